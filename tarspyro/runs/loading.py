"""Runs read back from their folders: the pair with its weights, and the history."""

__all__ = [
    "LoadedRun",
    "load_run",
]

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tarspyro.arguments import check_choice
from tarspyro.programs import layers_of
from tarspyro.runs.description import build, refers
from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import Declared, History, check_states, rank, set_states
from tarspyro.runs.limits import check_entries, count_objects, limited_numbers
from tarspyro.scopes import preserved_rng
from tarspyro.types import Json, Program

# Stands in Pyro's store between the name of a module and that of its parameter.
_SEPARATOR = "$$$"

# A description may have so many objects and numbers beside those that the weights explain.
_OBJECTS = 5_000
_NUMBERS = 10_000_000


class LoadedRun(NamedTuple):
    """A run read back from its folder.

    Attributes:
        model: The model, with the requested weights.
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
    held = run.entries(which)
    built: dict[str, object] = {}
    with preserved_rng():  # building draws initial weights, which are overwritten
        for half in halves:
            if halves[half] is None:
                halves[half] = _rebuild(run, half, config[half], built, held)

    # Everything is read before the halves change, so that a corrupted file leaves them alone.
    _check_sizes(run, which, halves, held)
    states = run.load_weights(which)
    history = History(rows=run.read_metrics(), in_hand=which)
    states.pop("loss", None)  # the networks of a game belong to its training
    if "params" in states:
        halves["params"] = _declared(run, states["params"], halves)
    try:
        check_states(halves, states)
        set_states(halves, states)
    except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{folder}: the {which} weights do not fit the model and the guide ({reason})."
        ) from error

    ranks = [rank(row) for row in history.rows]
    history.best_epoch = 1 + ranks.index(max(ranks)) if ranks else 0
    return LoadedRun(halves["model"], halves["guide"], config, history)


def _rebuild(
    run: Run,
    half: str,
    described: Json,
    built: dict[str, object],
    held: Mapping[str, tuple[int, ...]],
) -> object:
    """Builds a half from its description.

    What it may build is limited by the weights of the run: the description is a stranger's.

    Arguments:
        run: The run.
        half: ``"model"`` or ``"guide"``.
        described: The description.
        built: What was built before, see ``build``.
        held: The entries of the weights file, with their shapes.

    Raises:
        RunError: If it is no description, or holds the reason why there is none.
        ImportError: If a class is not found.
    """
    if isinstance(described, dict) and "unavailable" in described:
        reason = str(described["unavailable"]).rstrip(".")
        raise RunError(f"{run.folder} cannot rebuild its {half} ({reason}): pass {half}=...")
    numbers = sum(map(math.prod, held.values()))
    try:
        if count_objects(described) > _OBJECTS + 10 * len(held):
            raise ValueError("it describes far more objects than the run has weights")
        # Constructors draw initial weights, and pass some of them on.
        with limited_numbers(_NUMBERS + 10 * numbers):
            program = build(described, f"#/{half}", built)
        check_entries(program, _OBJECTS + 10 * len(held))
        return program
    except ImportError:
        raise
    except Exception as error:
        raise RunError(
            f"{run.folder / 'config.json'} does not describe a {half} ({error}): pass"
            f" {half}=..."
        ) from error


def _check_sizes(
    run: Run, which: str, halves: Mapping[str, Any], held: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises a ``RunError`` if the weights need far more memory than those of the halves.

    This is checked before the weights are read.
    """
    rest = sum(math.prod(shape) for name, shape in held.items() if not _is_of_half(name))
    asked = sum(map(math.prod, held.values())) - rest
    own = sum(
        tensor.numel()
        for half in halves.values()
        if isinstance(half, nn.Module)
        for tensor in half.state_dict().values()
        if not is_lazy(tensor)
    )
    lazy = any(
        is_lazy(tensor)
        for half in halves.values()
        if isinstance(half, nn.Module)
        for tensor in half.state_dict().values()
    )
    if asked > own + _NUMBERS and not lazy:
        raise RunError(
            f"{run.folder}: the {which} weights do not fit the model and the guide (they are"
            f" {asked} numbers, and the pair has {own})."
        )


def _is_of_half(name: str) -> bool:
    return name.startswith(("model.", "guide."))


def _declared(run: Run, names: Iterable[str], halves: Mapping[str, Any]) -> Declared:
    """The parameters of a run that functions have declared in this process, and the buffers of
    their modules.

    Only the functions know the constraints of the parameters.
    """
    functions = [half for half in halves.values() if not isinstance(half, nn.Module)]
    modules = [half for half in halves.values() if isinstance(half, nn.Module)]
    buffers = Declared({}, functions, modules).buffers
    names = [name for name in names if name not in buffers]
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
    parameters = {name: value.unconstrained() for name, value in stored.items()}
    _check_own(run, parameters, functions)
    return Declared(parameters, functions, modules)


def _check_own(
    run: Run, parameters: Mapping[str, Tensor], functions: Sequence[object]
) -> None:
    """Raises a ``RunError`` if parameters in Pyro's store are those of other modules than the
    functions read, of which the functions have equals.
    """
    registered: dict[str, dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        prefix, _, path = name.partition(_SEPARATOR)
        if path:
            registered.setdefault(prefix, {})[path] = parameter
    read = [
        {name: value for name, value in part.named_parameters() if value.requires_grad}
        for part in layers_of(*functions)
    ]
    for prefix, stored in registered.items():
        equals = [own for own in read if _shapes(own) == _shapes(stored)]
        if equals and not any(all(own[n] is stored[n] for n in stored) for own in equals):
            raise RunError(
                f"{run.folder} holds parameters of {prefix!r}, and Pyro's store has those of"
                " another module under this name: call pyro.clear_param_store(), then the model"
                " and the guide on some data, and load the run again."
            )


def _shapes(parameters: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in parameters.items()}
