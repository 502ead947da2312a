"""The process that runs NumPyro in an environment of its own, and takes turns with ours."""

import contextlib
import json
import math
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from contestants import Cost, Program, Turn, modules_of

FOLDER = Path(__file__).parent
DRAWS = 20


def environment(threads: int) -> dict[str, str]:
    """The variables of a JAX process on the CPU with so many threads, which XLA reads at its
    start.
    """
    return {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": str(threads)}


class NumPyro:
    """A process of ``numpyro_steps.py``, which waits while the others take their turns.

    Arguments:
        python: The Python of an environment that has NumPyro.
        threads: The number of threads.
    """

    def __init__(self, python: str, threads: int):
        self.process = subprocess.Popen(
            [python, str(FOLDER / "numpyro_steps.py")],
            env=environment(threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object) -> dict:
        """Sends a request and returns the reply."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        reply = self.process.stdout.readline()
        if not reply:
            raise RuntimeError(
                f"The NumPyro process has ended with code {self.process.wait()}; its own error"
                " stands above."
            )
        return json.loads(reply)

    def load(self, program: Program, x: torch.Tensor) -> dict[str, float]:
        """Gives the process a program with a pair's initial weights and a batch, and returns
        the loss of both sides at the start.

        Raises:
            RuntimeError: If the losses differ by more than their draws explain.
        """
        name, options = program.numpyro
        model, guide = program.pair()
        bound = program.bound()
        with torch.no_grad():
            ours = [float(bound.loss(model, guide, x)) / len(x) for _ in range(DRAWS)]
        with tempfile.TemporaryDirectory() as folder:
            start = Path(folder) / "start.npz"
            np.savez(start, x=x.numpy(), **_weights(model, guide))
            theirs = self.ask(program=name, options=options, start=str(start))["losses"]
        means = [statistics.mean(losses) for losses in (ours, theirs)]
        error = math.hypot(
            *(statistics.stdev(losses) / len(losses) ** 0.5 for losses in (ours, theirs))
        )
        if not abs(means[0] - means[1]) <= 5 * error + 1e-4 * abs(means[0]):
            raise RuntimeError(
                f"With equal weights and data the losses of {name} are {means[0]:.3f} here and"
                f" {means[1]:.3f} in NumPyro, with a standard error of {error:.3f} of their"
                " difference: the programs are not the same."
            )
        return {
            "tarspyro": round(means[0], 3),
            "NumPyro": round(means[1], 3),
            "standard error of the difference": round(error, 3),
        }

    def turn(self, contestant: str) -> Turn:
        """The turn of ``"step"`` or ``"scan"``."""
        return lambda steps: Cost(**self.ask(contestant=contestant, steps=steps))

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def started(python: str | None, threads: int) -> Iterator[NumPyro | None]:
    """A process until the end of the block; None without a Python."""
    if python is None:
        yield None
        return
    with contextlib.closing(NumPyro(python, threads)) as process:
        yield process


def _weights(model: object, guide: object) -> dict[str, np.ndarray]:
    """The parameters of a pair by name, those that both halves share once."""
    found: dict[int, str] = {}
    arrays = {}
    for half, module in zip("pq", modules_of(model, guide), strict=False):
        for name, parameter in module.named_parameters():
            if found.setdefault(id(parameter), half) == half:
                arrays[f"{half}.{name}"] = parameter.detach().numpy()
    return arrays
