"""Run folders: configuration, metrics, weights and the state of a training, without anything executable."""

__all__ = ["History", "Run", "RunError", "load_run"]

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyro
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from tarspyro.arguments import check_choice, shown
from tarspyro.config import build, refers
from tarspyro.modules import preserved_rng

FORMAT = 2
States = dict[str, dict[str, Tensor]]  # "model", "guide", and "loss" of a game -> state_dict


class RunError(OSError):
    """A run folder exists already, is missing, or holds something that cannot be read."""


@dataclass
class History:
    """What a training measured: one row an epoch, in nats per data point.

    Attributes:
        rows: One dictionary an epoch, with the epoch, the steps done and the means of the epoch's metrics.
        step_losses: The loss of every step, per data point.
        best_epoch: The epoch with the best validation (else training) objective.
        in_hand: Which weights the model and guide hold now, ``"best"`` or ``"last"``.
        states: Both weights, to change what is in hand with ``use``.
        others: What was trained beside the model and the guide: parameters that functions declared, a game's networks.

    Example:
        >>> history = History(rows=[{"epoch": 1, "elbo": -20.0}, {"epoch": 2, "elbo": -15.0}])
        >>> history["elbo"]
        [-20.0, -15.0]
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    in_hand: str = "last"
    states: dict[str, States] = field(default_factory=dict, repr=False)
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]

    def __len__(self) -> int:
        return len(self.rows)

    def use(self, which: str, model: Any, guide: Any) -> None:
        """Puts the ``"best"`` or the ``"last"`` weights into the model and guide.

        Raises:
            KeyError: If there are no such weights.
        """
        if which not in self.states:
            raise KeyError(f"This history holds the weights {sorted(self.states)}, not {which!r}.")
        set_states({**self.others, "model": model, "guide": guide}, self.states[which])
        self.in_hand = which


class Declared:
    """The parameters that functions declare with ``pyro.param`` or ``pyro.module``, saved and restored like modules."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the parameters by name, unconstrained."""
        return dict(self.tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts values into the parameters."""
        for name, value in state.items():
            self.tensors[name].data.copy_(value)


def rank(row: Mapping[str, float]) -> tuple[Any, Any]:
    """What epochs are ordered by: the newest values of the schedules first, and under the same ones the objective."""
    return row.get("stage", 0), row.get("objective")


def get_states(halves: Mapping[str, Any]) -> States:
    """Returns copies of the halves' parameters and buffers, on the CPU."""
    return {
        half: {name: tensor.detach().cpu().clone() for name, tensor in program.state_dict().items()}
        for half, program in halves.items()
        if isinstance(program, (nn.Module, Declared))
    }


def set_states(halves: Mapping[str, Any], states: States) -> None:
    """Puts parameters and buffers back into the halves."""
    for half, state in states.items():
        halves[half].load_state_dict(state)


class LoadedRun(NamedTuple):
    """A run read back from its folder."""

    model: Any
    guide: Any
    config: dict[str, Any]
    history: History


class Run:
    """A folder that a training writes: ``config.json``, ``metrics.jsonl``, weights and the state to go on from.

    Arguments:
        folder: Where it is.

    Raises:
        RunError: If a file is missing or cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        if not isinstance(folder, str | Path):
            raise TypeError(f"folder must be the path of a run folder, got {shown(folder)}.")
        self.folder = Path(folder)

    def create(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Makes the folder and writes the configuration; an existing run is kept unless ``overwrite``."""
        if self.exists and not overwrite:
            raise RunError(
                f"{self.folder} holds a run already: give another folder, go on with resume=True, or overwrite=True."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file: give the name of a folder.")
        content = json.dumps({"format": FORMAT, **config}, indent=1).encode()  # may fail: before anything is deleted
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "best.safetensors", "last.safetensors"):
                (self.folder / name).unlink(missing_ok=True)
            for path in self.folder.glob("state*.safetensors"):
                path.unlink()
        except OSError as error:
            raise RunError(f"{self.folder} could not be written ({error.strerror}): give another folder.") from error
        self._write("config.json", content)

    @property
    def exists(self) -> bool:
        """Whether a training has begun to write the folder."""
        return (self.folder / "config.json").exists()

    @property
    def has_state(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.folder / "state.safetensors").exists()

    def config(self) -> dict[str, Any]:
        """Returns the configuration."""
        path = self.folder / "config.json"
        try:
            config: dict[str, Any] = json.loads(self._read("config.json"))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} is not valid JSON ({error}).") from error
        if not isinstance(config, dict) or not {"format", "model", "guide"} <= config.keys():
            raise RunError(f"{path} is not the configuration of a run.")
        if config["format"] != FORMAT:
            raise RunError(
                f"{self.folder} has format {config['format']!r}, this version of tarspyro reads format {FORMAT}."
            )
        return config

    def save_weights(self, which: str, states: States, *, epoch: int = 0) -> None:
        """Writes the ``"best"`` or ``"last"`` weights, those after an epoch."""
        flat = {f"{half}.{name}": tensor for half, state in states.items() for name, tensor in state.items()}
        self._save(f"{which}.safetensors", flat, {"epoch": epoch})

    def load_weights(self, which: str) -> States:
        """Reads the ``"best"`` or ``"last"`` weights."""
        states: States = {"model": {}, "guide": {}}
        for name, tensor in self._load(f"{which}.safetensors")[0].items():
            half, _, key = name.partition(".")
            states.setdefault(half, {})[key] = tensor
        return {half: state for half, state in states.items() if state}

    def epoch_of(self, which: str) -> int | None:
        """Returns after which epoch the ``"best"`` or ``"last"`` weights are; None if there are none."""
        name = f"{which}.safetensors"
        return self._load(name)[1].get("epoch") if (self.folder / name).exists() else None

    def save_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, keep: int = 1) -> None:
        """Writes what a training needs to go on exactly, in one file: tensors, and values as JSON.

        The files before it are kept as ``state-1.safetensors``, the last one, and so on, so that there are ``keep``.
        """
        content = self._packed(tensors, values)
        files = [
            self.folder / "state.safetensors",
            *(self.folder / f"state-{age}.safetensors" for age in range(1, keep)),
        ]
        for newer, older in zip(files[-2:0:-1], files[:1:-1], strict=True):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
        if keep > 1 and self.has_state:
            self._write(files[1].name, files[0].read_bytes())  # a copy: the newest stays until another takes its place
        self._write(files[0].name, content)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Reads what ``save_state`` wrote."""
        return self._load("state.safetensors")

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Writes one line of JSON an epoch."""
        self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def read_metrics(self) -> list[dict[str, float]]:
        """Reads the lines of ``metrics.jsonl``."""
        try:
            rows = [json.loads(line) for line in self._read("metrics.jsonl").decode().splitlines()]
        except (ValueError, RecursionError) as error:
            raise self._corrupted("metrics.jsonl", error) from error
        if not all(isinstance(row, dict) and all(isinstance(n, (int, float)) for n in rank(row)) for row in rows):
            raise self._corrupted("metrics.jsonl", "a line is not that of an epoch")
        return rows

    def _save(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self._write(name, self._packed(tensors, values))

    def _packed(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> bytes:
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        described = json.dumps({"format": FORMAT, **values})
        digest = _digest(save_safetensors(tensors), described)
        return save_safetensors(tensors, {"values": described, "sha256": digest})

    def _load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        content = self._read(name)
        try:
            tensors: dict[str, Tensor] = load_safetensors(content)
            metadata = _header(content)["__metadata__"]
            values: dict[str, Any] = json.loads(metadata["values"])
            expected: str = metadata["sha256"]
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._corrupted(name, error) from error
        if _digest(content, metadata["values"]) != expected:
            raise self._corrupted(name, "its SHA-256 is not the one written in it")
        return tensors, values

    def _corrupted(self, name: str, reason: object) -> RunError:
        others = [
            path.name for path in self.folder.glob("*.safetensors") if path.name not in (name, "state.safetensors")
        ]
        hint = f"; {' and '.join(sorted(others))} may still be good" if others else ""
        return RunError(f"{self.folder / name} is corrupted ({reason}){hint}.")

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        if path.exists() and not path.is_file():
            raise RunError(f"{path} cannot be read (it is no file).")  # reading a device may never end
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(f"{self.folder} has no readable {name} ({error.strerror}): is it a run folder?") from error

    def _write(self, name: str, content: bytes) -> None:
        # Written beside and moved, so that a crash leaves the old file or the new one, never half of one.
        partial = self.folder / (name + ".part")
        try:
            partial.unlink(missing_ok=True)  # a link that stands there would lead out of the folder
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)  # what it holds takes room that the next attempt needs
            raise RunError(f"{self.folder / name} could not be written ({error.strerror}).") from error


def _header(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def _digest(content: bytes, values: str) -> str:
    """The SHA-256 of a file's tensors, of their names, types and shapes, and of the values beside them."""
    header = {name: entry for name, entry in _header(content).items() if name != "__metadata__"}
    start = 8 + int.from_bytes(content[:8], "little")
    described = json.dumps([header, values], sort_keys=True)
    return hashlib.sha256(described.encode() + content[start:]).hexdigest()


def _rebuild(run: Run, half: str, described: Any, built: dict[str, Any]) -> Any:
    if isinstance(described, dict) and "unavailable" in described:
        reason = str(described["unavailable"]).rstrip(".")
        raise RunError(f"{run.folder} cannot rebuild its {half} ({reason}): pass {half}=...")
    try:
        return build(described, f"#/{half}", built)
    except ImportError:
        raise
    except Exception as error:
        raise RunError(f"{run.folder / 'config.json'} does not describe a {half} ({error}): pass {half}=...") from error


def _declared(run: Run, names: Iterable[str]) -> Declared:
    """The parameters that functions declared in this process, whose constraints only the functions know."""
    store: Any = pyro.get_param_store()
    missing = [name for name in names if name not in store]
    if missing:
        raise RunError(
            f"{run.folder} holds parameters that functions declared ({', '.join(sorted(missing))}): "
            "call the model and the guide on some data, so that they declare them here too, and load the run again."
        )
    return Declared({name: store[name].unconstrained() for name in names})


def _check_precision(halves: Mapping[str, Any], states: States) -> None:
    for half, state in states.items():
        for name, tensor in halves[half].state_dict().items():
            if name in state and state[name].dtype != tensor.dtype:
                raise TypeError(
                    f"{half}.{name} is of {tensor.dtype}, the file holds {state[name].dtype}: "
                    "see torch.set_default_dtype"
                )


def load_run(folder: str | Path, which: str = "best", *, model: Any = None, guide: Any = None) -> LoadedRun:
    """Reads a run: the same classes with the weights of the best or the last epoch.

    Classes of the user's own are found by their import path, in modules that are imported already; nothing in the
    folder is ever executed. A half that the folder cannot describe is given: ``load_run(folder, model=p, guide=q)``. A
    module that both halves held is one module again; such halves are both given, or none of them. The networks of a
    game are not among what is returned: ``fit(..., resume=True)`` puts their weights into those of its loss.

    Arguments:
        folder: The run folder.
        which: ``"best"`` or ``"last"``.
        model: The model, if the folder cannot describe it.
        guide: The guide, likewise.

    Raises:
        RunError: If the folder is not a run, or a file is corrupted.
        ImportError: If a class of the run is not to be found.
    """
    check_choice("which", which, ("best", "last"))
    run = Run(folder)
    config = run.config()
    halves: dict[str, Any] = {"model": model, "guide": guide}
    if (model is None) != (guide is None) and refers(config["guide"], "#/model"):
        raise RunError(f"{folder} holds halves that share modules: pass both, model=... and guide=..., or neither.")
    built: dict[str, Any] = {}
    with preserved_rng():  # building draws initial weights, which are overwritten
        for half in halves:
            if halves[half] is None:
                halves[half] = _rebuild(run, half, config[half], built)
    states, history = run.load_weights(which), History(rows=run.read_metrics(), in_hand=which)
    states.pop("loss", None)  # a game's networks belong to the training
    if "params" in states:
        halves["params"] = _declared(run, states["params"])
    try:
        _check_precision(halves, states)
        set_states(halves, states)
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{folder}: the {which} weights do not fit the model and the guide ({reason}).") from error
    ranks = [rank(row) for row in history.rows]
    history.best_epoch = 1 + ranks.index(max(ranks)) if ranks else 0
    return LoadedRun(halves["model"], halves["guide"], config, history)
