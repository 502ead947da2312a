"""The command line: ``tarspyro list | train | sweep | evaluate | compare | report | ...``."""

__all__ = ["METHODS", "main"]

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tarspyro.commands.completion import completion
from tarspyro.commands.listing import list_methods
from tarspyro.commands.methods import METHODS
from tarspyro.commands.parser import UsageError, parse, tree
from tarspyro.commands.reuse import known_report
from tarspyro.commands.wording import in_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0, 2 after an error that the user can mend, or
    130 after an interruption.
    """
    names: list[str] = []
    try:
        options = parse(arguments)
        if options.command in ("train", "sweep"):
            names = list(METHODS[options.method].options)
        if options.command == "list":
            list_methods()
            sys.stdout.flush()
            return 0
        if options.command == "completion":
            print(completion(options.shell, tree()), end="")
            return 0

        if options.command == "evaluate" and not options.again:
            run = Path(options.run)
            known = known_report(run, options.which, options.num_particles)
            if known is not None:
                print(*known, sep="\n")
                print(f"(as in {run / 'evaluation.json'}: --again computes it anew)")
                return 0

        _import_modules(getattr(options, "modules", ()))

        # PyTorch is imported here, when the arguments are known to be right.
        from tarspyro.commands.running import RUN_COMMANDS

        RUN_COMMANDS[options.command](options)
    except BrokenPipeError:
        # Who reads the output, such as head, has enough. What is left to write goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (
        ValueError,
        OSError,
        ImportError,
        TypeError,
        ArithmeticError,
        NotImplementedError,
    ) as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UsageError):
            sentence = in_options(sentence, names)
        print(f"tarspyro: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tarspyro: interrupted", file=sys.stderr)
        return 130
    return 0


def _import_modules(modules: Sequence[str]) -> None:
    if modules and os.getcwd() not in sys.path:
        # Python looks beside an installed script, not in the folder where the user is.
        sys.path.insert(0, os.getcwd())
    for module in modules:
        importlib.import_module(module)
