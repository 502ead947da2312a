"""Run folders: configuration, metrics, weights and the state of a training."""

__all__ = [
    "Run",
    "RunError",
]

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.runs.description import with_public_paths
from tarspyro.runs.history import States, rank

FORMAT = 2


class RunError(OSError):
    """A run folder exists already, is missing, or holds something that cannot be read."""


class Run:
    """A folder that a training writes: ``config.json``, ``metrics.jsonl``, weights and the
    state to go on from.

    Arguments:
        folder: Where it is.

    Raises:
        RunError: If a file is missing or cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        if not isinstance(folder, str | Path):
            raise TypeError(
                f"folder must be the path of a run folder, got {format_value(folder)}."
            )
        self.folder = Path(folder)

    def create(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Makes the folder and writes the configuration; an existing run is kept unless
        ``overwrite``.
        """
        if self.exists and not overwrite:
            raise RunError(
                f"{self.folder} holds a run already: give another folder, go on with"
                " resume=True, or overwrite=True."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file: give the name of a folder.")
        content = json.dumps(
            {"format": FORMAT, **config}, indent=1
        ).encode()  # may fail: before anything is deleted
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "best.safetensors", "last.safetensors"):
                (self.folder / name).unlink(missing_ok=True)
            for path in self.folder.glob("state*.safetensors"):
                path.unlink()
        except OSError as error:
            raise RunError(
                f"{self.folder} could not be written ({error.strerror}): give another folder."
            ) from error
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
                f"{self.folder} has format {config['format']!r}, this version of tarspyro"
                f" reads format {FORMAT}."
            )
        with contextlib.suppress(RecursionError):  # whoever builds from it says so
            for part in {"model", "guide", "loss"} & config.keys():
                config[part] = with_public_paths(config[part])
        return config

    def save_weights(self, which: str, states: States, *, epoch: int = 0) -> None:
        """Writes the ``"best"`` or ``"last"`` weights, those after an epoch."""
        flat = {
            f"{half}.{name}": tensor
            for half, state in states.items()
            for name, tensor in state.items()
        }
        self._save(f"{which}.safetensors", flat, {"epoch": epoch})

    def load_weights(self, which: str) -> States:
        """Reads the ``"best"`` or ``"last"`` weights."""
        states: States = {"model": {}, "guide": {}}
        for name, tensor in self._load(f"{which}.safetensors")[0].items():
            half, _, key = name.partition(".")
            states.setdefault(half, {})[key] = tensor
        return {half: state for half, state in states.items() if state}

    def epoch_of(self, which: str) -> int | None:
        """Returns after which epoch the ``"best"`` or ``"last"`` weights are; None if there
        are none.
        """
        name = f"{which}.safetensors"
        return self._load(name)[1].get("epoch") if (self.folder / name).exists() else None

    def save_state(
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, keep: int = 1
    ) -> None:
        """Writes what a training needs to go on exactly, in one file: tensors, and values as
        JSON.

        The files before it are kept as ``state-1.safetensors``, the last one, and so on, so
        that there are ``keep``.
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
            self._write(
                files[1].name, files[0].read_bytes()
            )  # a copy: the newest stays until another takes its place
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
            rows = [
                json.loads(line) for line in self._read("metrics.jsonl").decode().splitlines()
            ]
        except (ValueError, RecursionError) as error:
            raise self._corrupted("metrics.jsonl", error) from error
        if not all(
            isinstance(row, dict) and all(isinstance(n, (int, float)) for n in rank(row))
            for row in rows
        ):
            raise self._corrupted("metrics.jsonl", "a line is not that of an epoch")
        return rows

    def _save(
        self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
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
            path.name
            for path in self.folder.glob("*.safetensors")
            if path.name not in (name, "state.safetensors")
        ]
        hint = f"; {' and '.join(sorted(others))} may still be good" if others else ""
        return RunError(f"{self.folder / name} is corrupted ({reason}){hint}.")

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        if path.exists() and not path.is_file():
            raise RunError(
                f"{path} cannot be read (it is no file)."
            )  # reading a device may never end
        try:
            return path.read_bytes()
        except OSError as error:
            raise RunError(
                f"{self.folder} has no readable {name} ({error.strerror}): is it a run folder?"
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        # Written beside and moved, so that a crash leaves the old file or the new one, never
        # half of one.
        partial = self.folder / (name + ".part")
        try:
            partial.unlink(
                missing_ok=True
            )  # a link that stands there would lead out of the folder
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(
                    missing_ok=True
                )  # what it holds takes room that the next attempt needs
            raise RunError(
                f"{self.folder / name} could not be written ({error.strerror})."
            ) from error


def _header(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def _digest(content: bytes, values: str) -> str:
    """The SHA-256 of a file's tensors, of their names, types and shapes, and of the values
    beside them.
    """
    header = {
        name: entry for name, entry in _header(content).items() if name != "__metadata__"
    }
    start = 8 + int.from_bytes(content[:8], "little")
    described = json.dumps([header, values], sort_keys=True)
    return hashlib.sha256(described.encode() + content[start:]).hexdigest()
