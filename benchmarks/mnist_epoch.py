"""The first epochs of MNIST in Tars' set-up, compilation included: ``fit`` against a NumPyro
script.

    TARSPYRO_DATA=... python benchmarks/mnist_epoch.py --numpyro .venv-jax/bin/python

Grey pixels, 50,000 training images, 784-512-512-64 ReLU networks, batches of 100, Adam, as in
``mnist_vae.py``. NumPyro's script is ``numpyro_epoch.py``: an epoch is one ``lax.scan``. Every
run is a new process that has the machine to itself, in an order drawn anew. A run's time is that
from the call of ``fit`` to its history, or from NumPyro's arrays to the ELBO of its last epoch;
imports and the reading of files are not in it. A cold run finds nothing of earlier runs but the
compiler's headers, a warm one finds the compiled functions on disk, which NumPyro does not store
by default. Figures are medians over the runs, written to ``benchmarks/results/mnist_epoch.json``.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mnist_vae import pair
from numpyro_process import environment

from tarspyro import fit
from tarspyro.data import mnist

FOLDER = Path(__file__).parent
EAGER = "tarspyro, eager"
COLD = "tarspyro, compiled, cold"
WARM = "tarspyro, compiled, warm"
NUMPYRO = "NumPyro"


def train(images, epochs, threads, compiled):
    """A run of ``fit``."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, guide = pair("vae")
    start = time.perf_counter()
    history = fit(
        model,
        guide,
        torch.from_numpy(images),
        epochs=epochs,
        seed=0,
        device="cpu",
        compile=compiled,
        progress=False,
    )
    return {"seconds": time.perf_counter() - start, "elbo": history["elbo"]}


def result_of(command, **variables):
    """The last line that a process prints."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **variables},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    if not math.isfinite(result["elbo"][-1]):
        raise RuntimeError(
            f"{Path(command[1]).name} has trained to an ELBO that is not finite."
        )
    return result


def contestants_of(arguments, images, folder):
    """For every contestant a function from the number of epochs to the result of a run."""
    threads = arguments.threads

    def ours(epochs, kind, **variables):
        command = [sys.executable, __file__, "--child", kind, images, epochs]
        return result_of([*command, "--threads", threads], **variables)

    def cold(epochs):
        with tempfile.TemporaryDirectory() as empty:
            return ours(epochs, "compiled", TORCHINDUCTOR_CACHE_DIR=empty)

    contestants = {
        EAGER: lambda epochs: ours(epochs, "eager"),
        COLD: cold,
        WARM: lambda epochs: ours(epochs, "compiled", TORCHINDUCTOR_CACHE_DIR=str(folder)),
    }
    if arguments.numpyro:
        command = [arguments.numpyro, FOLDER / "numpyro_epoch.py", images]
        contestants[NUMPYRO] = lambda epochs: result_of(
            [*command, epochs], **environment(threads)
        )
    return contestants


def compare(arguments):
    """Runs all contestants in turns, and writes the figures."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npy"
        np.save(images, mnist().train.x[: arguments.images].numpy())
        contestants = contestants_of(arguments, images, Path(folder) / "cache")
        contestants[WARM](1)  # fills the cache
        for epochs in arguments.epochs:
            runs = {name: [] for name in contestants}
            for _ in range(arguments.runs):
                for name in random.sample(list(contestants), len(contestants)):
                    runs[name].append(contestants[name](epochs))
            rows[f"{epochs} epochs"] = {
                name: {
                    "seconds": round(statistics.median(r["seconds"] for r in results), 2),
                    "of each run": [round(r["seconds"], 2) for r in results],
                    "elbo of the last epoch": round(results[-1]["elbo"][-1], 2),
                }
                for name, results in runs.items()
            }
            report = {"torch": torch.__version__, "threads": arguments.threads, "rows": rows}
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            print(f"{epochs} epochs")
            for name, entry in rows[f"{epochs} epochs"].items():
                print(f"  {name:26} {json.dumps(entry)}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--numpyro", metavar="PYTHON", help="the Python of an environment that has NumPyro"
    )
    parser.add_argument(
        "--epochs", type=int, nargs="+", default=[1, 2, 3], help="the lengths of trainings"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=50_000, help="a multiple of 100")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "mnist_epoch.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, images, epochs = arguments.child
        compiled = kind == "compiled"
        print(json.dumps(train(np.load(images), int(epochs), arguments.threads, compiled)))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
