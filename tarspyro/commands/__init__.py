"""The command line: ``tarspyro list | train | evaluate | sample | plot``."""

__all__ = ["METHODS", "main"]

import importlib
import os
import sys
from collections.abc import Sequence

from tarspyro.commands.methods import METHODS
from tarspyro.commands.parser import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code, 2 after an error in the user's hands."""
    try:
        options = parse(arguments)
        _import(getattr(options, "modules", ()))
        options.command(options)
    except (
        ValueError,
        OSError,
        ImportError,
        TypeError,
        ArithmeticError,
        NotImplementedError,
    ) as error:
        print(
            f"tarspyro: {' '.join(str(error).split()) or type(error).__name__}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("tarspyro: interrupted", file=sys.stderr)
        return 130
    return 0


def _import(modules: Sequence[str]) -> None:
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed script does not look beside the user
    for module in modules:
        importlib.import_module(module)
