"""The share of a step that it takes to read the rows of its batch: of a file of a million images,
shuffled, and of a tensor in memory.

    TARSPYRO_DATA=... python benchmarks/loader.py [--images 1000000] [--steps 400]

The images are MNIST's training images as bytes, over and over, in a ``.npy`` file of 784 MB.
``fit`` gets it as ``data.stored(path, lambda x: x / 255)``, and draws the pixels anew for every
batch. The steps are those of ``step_time.py``: a VAE 784-512-512-50, batches of 100. A round
takes 50 steps of each kind, in an order drawn anew; figures are medians over the rounds. Cold is
a file of which the system holds nothing in memory at the start; each step then reads other rows.
The result is ``benchmarks/results/loader.json``.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from contestants import elbo, ours

from tarspyro import data
from tarspyro.memory import keep_freed_memory
from tarspyro.training.batches import Batches

FOLDER = Path(__file__).parent
IN_A_ROUND = 50


def write(path, count):
    """Writes a file of images."""
    images = (255 * data.mnist().train.x.reshape(-1, 784)).round().byte().numpy()
    stored = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 784))
    for start in range(0, count, len(images)):
        stored[start : start + len(images)] = images[: count - start]
    stored.flush()


def forget(path):
    """Lets the system forget what it holds of a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(path):
    """Reads a file, so that the system holds it."""
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass


def steps_of(x, pair, step):
    """Yields the times of each step's batch, and of the step, in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    batches = Batches(x, pair[0], 100, torch.device("cpu"), others=[pair[1]], binarize=True)
    while True:
        start = time.perf_counter()
        for (batch,), _ in batches.epoch(generator):
            middle = time.perf_counter()
            step(batch)
            end = time.perf_counter()
            yield 1e3 * (middle - start), 1e3 * (end - middle)
            start = time.perf_counter()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=400, help="of each kind")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "loader.json")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    random.seed(0)
    keep_freed_memory()
    program = elbo(784, 512, 50, 100)
    pair = program.pair()
    step = ours(program, "cpu", compiled=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: f"{folder}/{kind}.npy" for kind in ("cold", "warm")}
        for path in paths.values():
            write(path, arguments.images)
        remember(paths["warm"])
        forget(paths["cold"])
        rows = {kind: data.stored(path, lambda x: x / 255) for kind, path in paths.items()}
        sources = {
            "a tensor in memory": data.mnist().train.x.reshape(-1, 784),
            "a file, warm": rows["warm"],
            "a file, cold": rows["cold"],
        }
        steps = {name: steps_of(x, pair, step) for name, x in sources.items()}
        for each in steps.values():
            next(each)
        times = {name: [] for name in steps}
        for _ in range(arguments.steps // IN_A_ROUND):
            for name in random.sample(list(steps), len(steps)):
                taken = [next(steps[name]) for _ in range(IN_A_ROUND)]
                times[name].append(
                    [statistics.mean(column) for column in zip(*taken, strict=True)]
                )
        for each in steps.values():
            each.close()
    report = {}
    for name, rounds in times.items():
        batch, step_time = (statistics.median(column) for column in zip(*rounds, strict=True))
        report[name] = {
            "batch, ms": round(batch, 3),
            "step, ms": round(step_time, 3),
            "both, ms": round(statistics.median(map(sum, rounds)), 3),
        }
        print(f"{name:20}", json.dumps(report[name]))
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
