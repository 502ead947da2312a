"""Reports that are there already: an evaluation of the same weights, data and settings."""

__all__ = ["known_report", "made_of"]

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from tarspyro import __version__
from tarspyro.commands.methods import METHODS
from tarspyro.commands.methods.files import stamp
from tarspyro.commands.methods.sources import SOURCES


def made_of(run: Path, which: str, data: str, particles: int) -> dict[str, object]:
    """Returns all that a report depends on.

    Arguments:
        run: The run folder, whose configuration holds the method and its options.
        which: ``"best"`` or ``"last"``.
        data: The name of the data set, or the path of the file.
        particles: The number of draws for the log-likelihood.
    """
    files = (run / f"{which}.safetensors", run / "config.json")
    return {
        "which": which,
        "files": [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()],
        "data": data,
        "stamp": None if data in SOURCES or not Path(data).exists() else stamp(data),
        "particles": particles,
        "version": __version__,
    }


def known_report(run: Path, which: str, particles: int | None) -> list[str] | None:
    """Returns the lines of the report in ``evaluation.json``, if a new one would be the same;
    None if it has to be computed. This takes no PyTorch.

    Arguments:
        run: The run folder.
        which: ``"best"`` or ``"last"``.
        particles: The number of draws for the log-likelihood; the training's if None.
    """
    try:
        found = json.loads((run / "evaluation.json").read_text())
        config = json.loads((run / "config.json").read_text())
        data = config["data"]["name"]
        method = METHODS[config["method"]]
        kept = config["options"].get("likelihood_particles", method.likelihood_particles)
        chosen = particles or kept
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(data, str):
        return None
    same: Mapping[str, object] = made_of(run, which, data, chosen)
    lines = found.get("lines")
    if found.get("made of") != same or not isinstance(lines, list):
        return None
    return [str(line) for line in lines]
