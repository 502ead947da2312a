"""A hundred hostile run folders and data files, each read by a process of its own.

Each has to be refused in one sentence, within five seconds of computation and a gigabyte, and
to leave everything outside of its folder as it was.

    python benchmarks/hostile.py
"""

import argparse
import json
import os
import resource
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch

from tarspyro import Conditional, data, fit, guides, load_run, models
from tarspyro.data.files import DataError
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tarspyro.runs import Run, RunError

SECONDS = 5.0  # of computation, so that it does not matter what else the machine does
WAITING = 60.0
BYTES = 1 << 30
HUGE = 2**60
X = data.digits().train.x[:20].round()
# A case changes a folder; the second function reads it.
Case = tuple[Callable[[Path], object], Callable[[Path], object]]


def make_pair(width: int = 4) -> tuple[models.VAE, guides.VAE]:
    """Returns an untrained pair."""
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(2, [width]), 64)
    posterior = Conditional(dist.Normal, MLP(64, [width]), 2)
    return models.VAE(default_prior(dist.Normal, 2), likelihood), guides.VAE(posterior)


def go_on(folder: Path) -> object:
    """Resumes the run."""
    run = Run(folder, resume=True)
    return fit(*make_pair(), X, epochs=2, seed=0, folder=run, progress=False)


# --- run folders


def write(name: str, content: bytes | str) -> Callable[[Path], object]:
    """Returns a change that replaces a file."""
    encoded = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(encoded)


def sparse(name: str, size: int, start: bytes = b"") -> Callable[[Path], None]:
    """Returns a change that replaces a file by one that consists of a hole."""

    def change(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.write(start)
            file.truncate(size)

    return change


def special(name: str, kind: str) -> Callable[[Path], object]:
    """Returns a change that puts a link or a pipe in the place of a file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(kind)

    return change


def truncated(name: str) -> Callable[[Path], object]:
    """Returns a change that leaves half of a file."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def header(entries: object) -> bytes:
    """Returns a file of tensors with a header alone."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Returns a change of the configuration."""

    def apply(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def model(described: object) -> Callable[[Path], object]:
    """Returns a change that describes another model."""
    return config(lambda content: content.update(model=described))


def new(name: str, *args: object, **kwargs: object) -> dict[str, object]:
    """Returns the description of an object."""
    return {"new": name, "args": list(args), "kwargs": kwargs}


def nested(depth: int) -> object:
    """Returns modules that hold each other twice, which have 2^depth entries."""
    inner: Any = new("torch.nn.Linear", 1, 1)
    path = "#/model" + "/args/0" * depth
    for _ in range(depth):
        inner = new("torch.nn.Sequential", inner, {"ref": path})
        path = path.removesuffix("/args/0")
    return inner


def state(
    change: Callable[[dict[str, Any], dict[str, Any]], object],
) -> Callable[[Path], None]:
    """Returns a change of the state, which is written with a valid digest."""

    def apply(folder: Path) -> None:
        tensors, values = Run(folder).load_state()
        change(tensors, values)
        Run(folder).save_state(tensors, {k: v for k, v in values.items() if k != "format"})

    return apply


def _files() -> Iterator[tuple[str, Case]]:
    readers = {
        "config.json": load_run,
        "metrics.jsonl": load_run,
        "best.safetensors": load_run,
        "state.safetensors": go_on,
    }
    for name, read in readers.items():
        yield f"{name} is a pipe", (special(name, "pipe"), read)
        yield f"{name} is a folder", (special(name, "folder"), read)
        yield f"{name} is a link to a device", (special(name, "/dev/zero"), read)
        yield f"{name} is a link to /proc", (special(name, "/proc/self/maps"), read)
        yield f"{name} is a link to a file", (special(name, "/etc/passwd"), read)
        yield f"{name} is a hole of 50 GB", (sparse(name, 50 << 30), read)
        yield f"{name} is half", (truncated(name), read)
        if name != "metrics.jsonl":  # a history may have no rows
            yield f"{name} is nothing", (write(name, b""), read)
        yield f"{name} is noise", (write(name, bytes(range(256)) * 64), read)
        yield f"{name} is a pickle", (write(name, b"\x80\x04cos\nsystem\n(S'ls'\ntR."), read)


def _tensors() -> Iterator[tuple[str, Case]]:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    contents = {
        "a header of 2^60 bytes": struct.pack("<Q", HUGE) + b"{}",
        "a header of 2^64 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
        "2^62 bytes": header(
            {"model.w": {**entry, "shape": [HUGE], "data_offsets": [0, HUGE]}}
        ),
        "2^120 numbers": header({"model.w": {**entry, "shape": [HUGE, HUGE]}}),
        "before the start": header({"model.w": {**entry, "data_offsets": [-4, 0]}}),
        "no offsets": header({"model.w": {"dtype": "F32", "shape": [1]}}),
        "a list": header([1, 2]),
        "deep": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
    }
    for name, content in contents.items():
        yield f"weights: {name}", (write("best.safetensors", content), load_run)
        yield f"state: {name}", (write("state.safetensors", content), go_on)
    text = header({"model.w": {**entry, "shape": [1 << 33], "data_offsets": [0, 1 << 35]}})
    hole = sparse("best.safetensors", len(text) + (1 << 35), text)
    yield "weights: a hole of 32 GB with a header", (hole, load_run)


def _configurations() -> Iterator[tuple[str, Case]]:
    big = new("torch.nn.Linear", 20_000, 20_000)
    deep = "[" * 100_000 + "]" * 100_000
    described = {
        "a large layer": big,
        "two large layers": new("torch.nn.Sequential", big, big),
        "2^20 entries": nested(20),
        "2^40 entries": nested(40),
        "100,000 objects": new("torch.nn.Sequential", *[new("torch.nn.ReLU")] * 100_000),
        "an embedding": new("torch.nn.Embedding", 10**12, 1),
        "a wide recurrence": new("torch.nn.GRU", 30_000, 30_000),
        "a class of the system": new("os:system", "touch executed"),
        "a function of the system": new("subprocess.Popen", "ls"),
        "a private module": new("torch._C:Generator"),
        "a reference to nothing": {"ref": "#/nowhere"},
        "an unknown part": {"lambda": "x"},
        "a number": 5,
        "nothing": None,
        "escape sequences": {"unavailable": "\x1b]0;owned\x07\x1b[31mred"},
    }
    for name, part in described.items():
        yield f"config: {name}", (model(part), load_run)
    yield "config: deep", (write("config.json", deep), load_run)
    yield "config: another format", (config(lambda c: c.update(format=99)), load_run)
    yield "config: no guide", (config(lambda c: c.pop("guide")), load_run)
    yield "config: 100 MB", (write("config.json", "[" + "1," * (50 << 20) + "1]"), load_run)
    lines = '{"epoch": 1, "objective": 1}\n' * (2 << 20)
    yield "metrics: two million lines", (write("metrics.jsonl", lines), load_run)
    yield "metrics: words", (write("metrics.jsonl", '{"objective": "high"}'), load_run)
    yield "metrics: deep", (write("metrics.jsonl", deep), load_run)


def _states() -> Iterator[tuple[str, Case]]:
    def longer(tensors: dict[str, Any], values: dict[str, Any]) -> None:
        tensors["optimizer.0.exp_avg"] = torch.zeros(1_000_000)

    def shorter(tensors: dict[str, Any], values: dict[str, Any]) -> None:
        tensors["optimizer.0.exp_avg_sq"] = torch.zeros(1)

    def half(tensors: dict[str, Any], values: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("weights.guide")]:
            del tensors[name]

    changes: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
        "a long moment": longer,
        "a short moment": shorter,
        "no guide": half,
        "another parameter": lambda t, v: t.update({"optimizer.9999.step": torch.zeros(())}),
        "no optimizer": lambda t, v: v.pop("optimizer"),
        "no progress": lambda t, v: v.pop("progress"),
        "a far position": lambda t, v: v["progress"].update(position=2**60),
        "a negative step": lambda t, v: v["progress"].update(step=-1),
        "an unknown counter": lambda t, v: v["progress"].update(__class__="x"),
        "random bytes": lambda t, v: t.update({"rng.now.0.cpu": torch.zeros(9).byte()}),
        "a rate that is a word": lambda t, v: v["optimizer"]["param_groups"][0].update(lr="x"),
    }
    for name, change in changes.items():
        yield f"state: {name}", (state(change), go_on)


# --- data files


def matlab(rows: int) -> bytes:
    """Returns a MATLAB file of a few megabytes with so many zeros."""
    flags = struct.pack("<IIII", 6, 8, 6, 0)
    size = struct.pack("<IIii", 5, 8, rows, 1)
    name = struct.pack("<HH4s", 1, 1, b"x\0\0\0")
    start = flags + size + name + struct.pack("<II", 9, rows * 8)
    packer = zlib.compressobj(9)
    packed = [packer.compress(struct.pack("<II", 14, len(start) + rows * 8) + start)]
    zeros = bytes(1 << 24)
    for left in range(rows * 8, 0, -len(zeros)):
        packed.append(packer.compress(zeros[:left]))
    body = b"".join([*packed, packer.flush()])
    first = b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + struct.pack("<H", 256) + b"IM"
    return first + struct.pack("<II", 15, len(body)) + body


def archive(folder: Path) -> None:
    """Writes a small archive that holds an array of 4 GB."""
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("x.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(
                entry, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30,)}
            )
            for _ in range(64):
                entry.write(bytes(1 << 26))


def _array(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def _data() -> Iterator[tuple[str, Case]]:
    def read(name: str) -> Callable[[Path], object]:
        return lambda folder: data.load(folder / name)

    yield (
        "data: a MATLAB file of 2.2 GB in 2 MB",
        (
            lambda folder: (folder / "x.mat").write_bytes(matlab(275_000_000)),
            read("x.mat"),
        ),
    )
    yield "data: an archive of 4 GB", (archive, read("x.npz"))
    yield "data: an array of 2^60", (write("x.npy", _array(f"({HUGE},)")), read("x.npy"))
    yield (
        "data: an array of objects",
        (
            write("x.npy", _array("(3,)").replace(b"<f4", b"|O ")),
            read("x.npy"),
        ),
    )
    for name in ("x.npy", "x.npz", "x.mat", "x.idx"):
        yield f"data: {name} is a pipe", (special(name, "pipe"), read(name))
        yield f"data: {name} is a device", (special(name, "/dev/zero"), read(name))
        yield f"data: {name} is a hole of 50 GB", (sparse(name, 50 << 30), read(name))
        yield f"data: {name} is noise", (write(name, bytes(range(256)) * 9), read(name))


def cases() -> dict[str, Case]:
    """Returns the cases by name."""
    return dict([*_files(), *_tensors(), *_configurations(), *_states(), *_data()])


# --- the measurement


def judge(folder: Path, read: Callable[[Path], object]) -> str:
    """Reads a folder in a child; returns ``"refused"``, or what went wrong."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        computed = time.process_time()
        try:
            read(folder)
            found = "read without a complaint"
        except (RunError, DataError, ImportError) as error:
            plain = "\n" not in str(error) and str(error).isprintable()
            found = "refused" if plain else f"not one plain sentence: {str(error)!r:.120}"
        except BaseException as error:
            found = f"{type(error).__name__}: {str(error):.120}"
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        own, others = (resource.getrusage(kind).ru_maxrss for kind in kinds)
        if 1024 * max(own - before, others) > BYTES:
            found = f"{found}, with {(own - before) >> 10} MB"
        used = time.process_time() - computed + sum(os.times()[2:4])
        waited = time.monotonic() - start
        if used > SECONDS or waited > WAITING:
            found = f"{found}, after {used:.1f} s of computation in {waited:.1f} s"
        os.write(writer, found.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read().decode()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answer if ended == 0 else f"the process ended with {ended}"


def attack(chosen: dict[str, Case]) -> dict[str, str]:
    """Returns what became of each case."""
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        original = Path(place) / "original"
        fit(*make_pair(), X, epochs=1, seed=0, folder=original, progress=False)
        contents = {path.name: path.read_bytes() for path in original.iterdir()}
        for number, (name, (change, read)) in enumerate(chosen.items()):
            folder = Path(place) / f"case{number}"
            folder.mkdir()
            for file, content in contents.items():
                (folder / file).write_bytes(content)
            change(folder)
            outside = sorted(os.listdir(place)), sorted(os.listdir())
            outcomes[name] = judge(folder, read)
            if (sorted(os.listdir(place)), sorted(os.listdir())) != outside:
                outcomes[name] += ", and wrote outside of its folder"
    return outcomes


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.set_num_threads(1)
    outcomes = attack(cases())
    for name, outcome in outcomes.items():
        if outcome != "refused":
            print(f"{name}: {outcome}")
    refused = sum(outcome == "refused" for outcome in outcomes.values())
    print(f"{refused} of {len(outcomes)} refused")
    sys.exit(refused < len(outcomes))
