"""Runs read back from their folders: the pair with its weights, and the history."""

__all__ = [
    "LoadedRun",
    "load_run",
]

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyro

from tarspyro.arguments import check_choice
from tarspyro.runs.description import build, refers
from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import Declared, History, States, rank, set_states
from tarspyro.scopes import preserved_rng
from tarspyro.types import Json, Program


class LoadedRun(NamedTuple):
    """A run read back from its folder.

    Attributes:
        model: The model, with the weights that were asked for.
        guide: The guide, likewise.
        config: The configuration, ``config.json``.
        history: The history.
    """

    model: Any
    guide: Any
    config: dict[str, Any]
    history: History


def load_run(
    folder: str | Path,
    which: str = "best",
    *,
    model: Program | None = None,
    guide: Program | None = None,
) -> LoadedRun:
    """Reads a run: its model and guide with the weights of the best or the last epoch.

    Nothing in the folder is ever executed. Classes of the user are found by their import path,
    in modules that are imported already. A half that the folder cannot describe has to be
    given: ``load_run(folder, model=p, guide=q)``. A module that both halves shared is shared
    again; then give both halves or none. The networks of a game are not returned;
    ``fit(..., folder=Run(folder, resume=True))`` puts their weights into the game.

    Arguments:
        folder: The run folder.
        which: ``"best"`` or ``"last"``.
        model: The model, if the folder cannot describe it.
        guide: The guide, likewise.

    Raises:
        RunError: If the folder is not a run, or a file is corrupted.
        ImportError: If a class of the run is not found.
    """
    check_choice("which", which, ("best", "last"))
    run = Run(folder)
    config = run.config()
    halves: dict[str, Any] = {"model": model, "guide": guide}
    if (model is None) != (guide is None) and refers(config["guide"], "#/model"):
        raise RunError(
            f"{folder} holds halves that share modules: pass both, model=... and guide=..., or"
            " neither."
        )
    built: dict[str, object] = {}
    with preserved_rng():  # building draws initial weights, which are overwritten
        for half in halves:
            if halves[half] is None:
                halves[half] = _rebuild(run, half, config[half], built)

    # Everything is read before the halves change, so that a corrupted file leaves them alone.
    states = run.load_weights(which)
    history = History(rows=run.read_metrics(), in_hand=which)
    states.pop("loss", None)  # the networks of a game belong to its training
    if "params" in states:
        halves["params"] = _declared(run, states["params"])
    try:
        _check_precision(halves, states)
        set_states(halves, states)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{folder}: the {which} weights do not fit the model and the guide ({reason})."
        ) from error

    ranks = [rank(row) for row in history.rows]
    history.best_epoch = 1 + ranks.index(max(ranks)) if ranks else 0
    return LoadedRun(halves["model"], halves["guide"], config, history)


def _rebuild(run: Run, half: str, described: Json, built: dict[str, object]) -> object:
    """Builds a half from its description.

    Arguments:
        run: The run.
        half: ``"model"`` or ``"guide"``.
        described: The description.
        built: What was built before, see ``build``.

    Raises:
        RunError: If the description is none, or says why there is none.
        ImportError: If a class is not found.
    """
    if isinstance(described, dict) and "unavailable" in described:
        reason = str(described["unavailable"]).rstrip(".")
        raise RunError(f"{run.folder} cannot rebuild its {half} ({reason}): pass {half}=...")
    try:
        return build(described, f"#/{half}", built)
    except ImportError:
        raise
    except Exception as error:
        raise RunError(
            f"{run.folder / 'config.json'} does not describe a {half} ({error}): pass"
            f" {half}=..."
        ) from error


def _declared(run: Run, names: Iterable[str]) -> Declared:
    """The parameters of a run that functions have declared in this process.

    Only the functions know their constraints.
    """
    store = pyro.get_param_store()
    missing = [name for name in names if name not in store]
    if missing:
        raise RunError(
            f"{run.folder} holds parameters that functions declared"
            f" ({', '.join(sorted(missing))}): call the model and the guide on some data, so"
            " that they declare them here too, and load the run again."
        )
    # Pyro's parameters carry a function that returns their unconstrained value.
    stored: dict[str, Any] = {name: store[name] for name in names}
    return Declared({name: value.unconstrained() for name, value in stored.items()})


def _check_precision(halves: Mapping[str, Any], states: States) -> None:
    """Raises a ``TypeError`` if weights have another type than the parameters."""
    for half, state in states.items():
        for name, tensor in halves[half].state_dict().items():
            if name in state and state[name].dtype != tensor.dtype:
                raise TypeError(
                    f"{half}.{name} is of {tensor.dtype}, the file holds {state[name].dtype}: "
                    "see torch.set_default_dtype"
                )
