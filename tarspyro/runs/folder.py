"""Run folders: the configuration, history, weights and checkpoints of a training."""

__all__ = ["Run", "RunError", "open_regular"]

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tarspyro.arguments import as_count, format_value, printable
from tarspyro.runs.description import with_public_paths
from tarspyro.runs.history import States, is_ranked

FORMAT = 2
# The largest files that are read, since their objects take many times as much memory.
_MOST = {".json": 1 << 24, ".jsonl": 1 << 25}
_WHICH = ("best", "last")
_LONGEST_NAME = 255
_MOST_HEADER = 1 << 25
# From so many bytes on a file may not consist of holes.
_LARGE = 1 << 26


class RunError(OSError):
    """A run folder exists already, is missing, or has a file that cannot be read."""

    def __init__(self, message: str) -> None:
        # It may quote a stranger's file, which must not command the terminal.
        super().__init__(printable(message))


class Run:
    """A run folder: ``config.json``, ``metrics.jsonl``, weights and checkpoints of a training.

    ``fit(..., folder="runs/a")`` starts a new run. A ``Run`` has options:
    ``fit(..., folder=Run("runs/a", resume=True))``.

    Arguments:
        folder: The path of the folder.
        resume: Whether to resume the run in the folder where it stopped, also in the middle of
            an epoch. ``"auto"`` resumes it, or starts a new run if there is none. On a CPU and
            without ``compile`` the finished run is then bit by bit what it would have been
            without the stop, provided that the randomness of the data, such as that of a
            loader, is torch's.
        overwrite: Whether a new run replaces the run in the folder.
        checkpoint_steps: Write a checkpoint every so many steps, in addition to the one after
            every epoch.
        keep_checkpoints: How many checkpoints to keep: ``state.safetensors``, and before it
            ``state-1.safetensors``, ....
        settings: More entries for ``config.json``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Example:
        >>> Run("runs/vae", resume="auto", checkpoint_steps=1000)
        Run('runs/vae', resume='auto', checkpoint_steps=1000)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        resume: bool | str = False,
        overwrite: bool = False,
        checkpoint_steps: int | None = None,
        keep_checkpoints: int = 1,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        if not isinstance(folder, str | Path):
            raise TypeError(
                f"folder must be the path of a run folder, got {format_value(folder)}."
            )
        folder = _usable(folder)
        if not (isinstance(resume, bool) or (isinstance(resume, str) and resume == "auto")):
            raise ValueError(
                f"resume must be True, False or 'auto', got {format_value(resume)}."
            )
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(
                f"settings must be a mapping by name, got {format_value(settings)}."
            )
        if checkpoint_steps is not None:
            checkpoint_steps = as_count("checkpoint_steps", checkpoint_steps)
        self.folder = folder
        self.resume = resume
        self.overwrite = overwrite
        self.checkpoint_steps = checkpoint_steps
        self.keep_checkpoints = as_count("keep_checkpoints", keep_checkpoints)
        self.settings = dict(settings or {})

    def __repr__(self) -> str:
        defaults = vars(Run(self.folder))
        shown = [
            f", {name}={value!r}"
            for name, value in vars(self).items()
            if value != defaults[name]
        ]
        return f"Run({str(self.folder)!r}{''.join(shown)})"

    def create(self, config: Mapping[str, object]) -> None:
        """Creates the folder and writes the configuration.

        Raises:
            RunError: If it holds a run already, which ``overwrite`` does not allow to replace,
                or cannot be written.
        """
        if self.exists and not self.overwrite:
            folder = str(self.folder)
            raise RunError(
                f"{folder} holds a run already: give another folder, or Run({folder!r},"
                f" resume=True) to go on with it, or Run({folder!r}, overwrite=True) to replace"
                " it."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file: give the name of a folder.")
        # The configuration may not be writable as JSON, so it is made before files are deleted.
        content = json.dumps({"format": FORMAT, **config}, indent=1).encode()
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
        self.write("config.json", content)

    @contextlib.contextmanager
    def written_alone(self) -> Iterator[None]:
        """Keeps other trainings from writing the folder; creates it if it is missing.

        A folder that was created for a training which has written nothing is removed.

        Raises:
            RunError: If another training writes the folder, or it cannot be written.
        """
        is_new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise RunError(f"{self.folder} is a file: give the name of a folder.") from error
        except OSError as error:
            raise RunError(
                f"{self.folder} could not be written ({error.strerror}): give another folder."
            ) from error
        with self._locked():
            try:
                yield
            finally:
                if is_new:
                    with contextlib.suppress(OSError):  # it is not empty
                        self.folder.rmdir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock of the folder.

        The lock belongs to the process, and ends with it. On a file system without locks there
        is none.

        Raises:
            RunError: If another training holds it.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        handle = os.open(self.folder, os.O_RDONLY)
        # A process that is forked meanwhile, such as the worker of a loader, may live longer.
        held = _Handle(handle)
        os.register_at_fork(after_in_child=held.close)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held.close()
            raise RunError(
                f"{self.folder} is being written by another training: wait until it has ended,"
                " or give another folder."
            ) from error
        except OSError:
            pass
        try:
            yield
        finally:
            held.close()

    @property
    def exists(self) -> bool:
        """Whether a training has begun to write the folder."""
        return (self.folder / "config.json").exists()

    def update(self, config: Mapping[str, object]) -> None:
        """Writes the configuration of a run anew; if that fails, the old one stays."""
        with contextlib.suppress(RunError):  # a disk may be full or read-only
            self.write("config.json", json.dumps(config, indent=1).encode())

    @property
    def has_weights(self) -> bool:
        """Whether there are weights of an epoch."""
        return any((self.folder / f"{which}.safetensors").exists() for which in _WHICH)

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
                f" reads format {FORMAT}: load it with the version that has written it."
            )
        # A configuration that is nested too deeply gets its error where it is built.
        with contextlib.suppress(RecursionError):
            for part in {"model", "guide", "loss"} & config.keys():
                config[part] = with_public_paths(config[part])
        return config

    def save_weights(self, which: str, states: States, *, epoch: int = 0) -> None:
        """Writes the ``"best"`` or ``"last"`` weights.

        Arguments:
            which: ``"best"`` or ``"last"``.
            states: The weights.
            epoch: The epoch after which they are the weights.
        """
        flat = {
            f"{half}.{name}": tensor
            for half, state in states.items()
            for name, tensor in state.items()
        }
        self.write(f"{which}.safetensors", self._packed(flat, {"epoch": epoch}))

    def load_weights(self, which: str) -> States:
        """Reads the ``"best"`` or ``"last"`` weights."""
        states: States = {"model": {}, "guide": {}}
        for name, tensor in self._load(f"{which}.safetensors")[0].items():
            half, _, key = name.partition(".")
            states.setdefault(half, {})[key] = tensor
        return {half: state for half, state in states.items() if state}

    def entries(self, which: str) -> dict[str, tuple[int, ...]]:
        """Returns the names and the shapes of the weights in a file, without reading them."""
        name = f"{which}.safetensors"
        try:
            with open_regular(self.folder / name) as file:
                size = int.from_bytes(file.read(8), "little")
                if size > _MOST_HEADER:
                    raise ValueError(f"its header has {size} bytes")
                header = json.loads(file.read(size))
                held = os.fstat(file.fileno()).st_size - 8 - size
            header.pop("__metadata__", None)
            shapes = {key: tuple(map(int, entry["shape"])) for key, entry in header.items()}
            for key, entry in header.items():
                start, end = entry["data_offsets"]
                if not 0 <= start <= end <= held or math.prod(shapes[key]) > 2 * (end - start):
                    raise ValueError(f"{key} is not within the file")
            return shapes
        except RunError:
            raise
        except OSError as error:
            raise self._unreadable(name, error) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._corrupted(name, error) from error

    def epoch_of(self, which: str) -> int | None:
        """Returns the epoch of the ``"best"`` or ``"last"`` weights; None if there are none."""
        name = f"{which}.safetensors"
        return self._load(name)[1].get("epoch") if (self.folder / name).exists() else None

    def save_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> None:
        """Writes a checkpoint, one file with tensors and with values as JSON.

        It keeps ``keep_checkpoints`` of them: the one before becomes ``state-1.safetensors``,
        and so on.
        """
        content = self._packed(tensors, values)
        newest = self.folder / "state.safetensors"
        older = [
            self.folder / f"state-{age}.safetensors" for age in range(1, self.keep_checkpoints)
        ]
        try:
            for age in range(len(older) - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    older[age - 1].replace(older[age])
        except OSError as error:
            raise RunError(f"{older[0]} could not be renamed ({error.strerror}).") from error
        if older and self.has_state:
            # A copy, so that the newest checkpoint stays until another one takes its place.
            self.write(older[0].name, self._read(newest.name))
        self.write(newest.name, content)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Reads the newest checkpoint that ``save_state`` wrote."""
        return self._load("state.safetensors")

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Writes the rows of the history, each as a line of JSON."""
        lines = [json.dumps(row) + "\n" for row in rows]
        self.write("metrics.jsonl", "".join(lines).encode())

    def read_metrics(self) -> list[dict[str, float]]:
        """Reads the rows of the history."""
        try:
            lines = self._read("metrics.jsonl").decode().splitlines()
            rows = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise self._corrupted("metrics.jsonl", error) from error
        for row in rows:
            if not isinstance(row, dict) or not is_ranked(row):
                raise self._corrupted("metrics.jsonl", "a line is not the row of an epoch")
        return rows

    def _packed(self, tensors: Mapping[str, Tensor], values: Mapping[str, object]) -> bytes:
        """The content of a file with tensors, values and a digest of both."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        described = json.dumps({"format": FORMAT, **values})
        digest = _digest(save_safetensors(tensors), described)
        return save_safetensors(tensors, {"values": described, "sha256": digest})

    def _load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Reads a file with tensors and values, and compares its digest."""
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
        """An error about a corrupted file, with the names of files that may still be good."""
        others = [
            path.name
            for path in self.folder.glob("*.safetensors")
            if path.name not in (name, "state.safetensors")
        ]
        hint = f"; {' and '.join(sorted(others))} may still be good" if others else ""
        return RunError(f"{self.folder / name} is corrupted ({reason}){hint}.")

    def _read(self, name: str) -> bytes:
        try:
            with open_regular(self.folder / name, _MOST.get(Path(name).suffix)) as file:
                return file.read()
        except OSError as error:
            if isinstance(error, RunError):
                raise
            raise self._unreadable(name, error) from error
        except MemoryError as error:
            raise RunError(
                f"{self.folder / name} cannot be read (it does not fit into memory)."
            ) from error

    def _unreadable(self, name: str, error: OSError) -> RunError:
        return RunError(
            f"{self.folder} has no readable {name} ({error.strerror}): is it a run folder?"
        )

    def write(self, name: str, content: bytes) -> None:
        """Writes a file beside its place and moves it there.

        So a crash leaves the old file or the new one, never a part of a file, and what stands
        in the place of either, such as a link or a pipe, is replaced and not written through.

        Raises:
            RunError: If it cannot be written.
        """
        partial = self.folder / (name + ".part")
        try:
            # A link in this place would lead out of the folder.
            partial.unlink(missing_ok=True)
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                # The next attempt needs the room of the incomplete file.
                partial.unlink(missing_ok=True)
            raise RunError(
                f"{self.folder / name} could not be written ({error.strerror})."
            ) from error


def _usable(folder: str | Path) -> Path:
    """The path of a folder, with ``~`` as the home.

    Raises:
        ValueError: If no folder can have this name.
    """
    name = str(folder)
    if not name.strip() or "\0" in name:
        raise ValueError(
            f"folder must be the path of a run folder, got {format_value(folder)}."
        )
    longest = max((part for part in Path(name).parts), key=len)
    if len(os.fsencode(longest)) > _LONGEST_NAME:
        raise ValueError(
            f"folder has a name of {len(os.fsencode(longest))} bytes, and a name may have"
            f" {_LONGEST_NAME}: {format_value(longest)}."
        )
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"folder names a home that is not known, got {format_value(folder)}."
        ) from error


class _Handle:
    """An open file that is closed once."""

    def __init__(self, number: int) -> None:
        self.number: int | None = number

    def close(self) -> None:
        """Closes the file, if it is open."""
        if self.number is not None:
            number = self.number
            self.number = None
            os.close(number)


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Opens a regular file to read it.

    A link is not followed, a pipe or a device is not waited for, and a file that consists of
    holes is not read, since it would fill the memory.

    Arguments:
        path: The file.
        most: The largest number of bytes that it may have.

    Raises:
        RunError: If it is something else than a regular file, or has too many bytes.
        OSError: If it cannot be opened.
    """
    if path.is_symlink():
        raise RunError(f"{path} cannot be read (it is a link): put the file in its place.")
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    file = os.fdopen(os.open(path, flags), "rb")
    found = os.fstat(file.fileno())
    reason = None
    if not stat.S_ISREG(found.st_mode):
        reason = "it is no file"
    elif most is not None and found.st_size > most:
        reason = f"it has {found.st_size} bytes, more than {most}"
    elif _is_hollow(file.fileno(), found.st_size):
        reason = "it consists of holes"
    if reason is not None:
        file.close()
        raise RunError(f"{path} cannot be read ({reason}).")
    return file


def _is_hollow(handle: int, size: int) -> bool:
    """Whether a large file has hardly any data, so that it is no file of numbers."""
    if size < _LARGE or not hasattr(os, "SEEK_DATA"):
        return False
    held = 0
    position = 0
    with contextlib.suppress(OSError):  # there is no more data, or it cannot be told
        while held <= size // 20:
            start = os.lseek(handle, position, os.SEEK_DATA)
            position = os.lseek(handle, start, os.SEEK_HOLE)
            held += position - start
    os.lseek(handle, 0, os.SEEK_SET)
    return held <= size // 20


def _header(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file."""
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header


def _digest(content: bytes, values: str) -> str:
    """The SHA-256 of the tensors of a file, with their names, types and shapes, and of values."""
    header = {
        name: entry for name, entry in _header(content).items() if name != "__metadata__"
    }
    start = 8 + int.from_bytes(content[:8], "little")
    described = json.dumps([header, values], sort_keys=True)
    return hashlib.sha256(described.encode() + content[start:]).hexdigest()
