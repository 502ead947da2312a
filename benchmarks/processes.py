"""Weak scaling: steps a second of one, two and four processes, each with a batch of a hundred
rows of its own.

    python benchmarks/processes.py                       (three rounds, a minute or two)
    python benchmarks/processes.py --sizes 1 2 4 8 --device cuda    (as many GPUs)

The VAE 784-400-400-20 on random pixels, trained by ``fit`` under ``torchrun``, gloo on CPUs
and NCCL on GPUs. A step of many processes is one step on a batch so many times as large, its
gradients (1.1 million numbers) summed over all. With more processes than cores, they take
turns. Medians over interleaved rounds go to ``benchmarks/results/``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pyro.distributions as dist
import torch

from tarspyro import Conditional, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

RESULTS = Path(__file__).parent / "results"
ROWS = 100


def work(device, steps):
    """One process: trains, and the first prints how many steps a second the later epochs made."""
    torch.manual_seed(0)
    size = int(os.environ["WORLD_SIZE"])
    model = models.VAE(
        default_prior(dist.Normal, 20), Conditional(dist.Bernoulli, MLP(20, [400, 400]), 784)
    )
    guide = guides.VAE(Conditional(dist.Normal, MLP(784, [400, 400]), 20))
    x = torch.empty(ROWS * size * steps, 784).bernoulli_(0.3)
    history = fit(
        model,
        guide,
        x,
        epochs=4,
        batch_size=ROWS * size,
        device=device,
        seed=0,
        progress=False,
    )
    if os.environ["RANK"] == "0":
        print(
            json.dumps({"steps a second": steps / statistics.median(history["seconds"][1:])})
        )


def launch(size, options):
    """Starts so many processes; returns their steps a second."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(size),
        __file__,
    ]
    command += ["--work", "--device", options.device, "--steps", str(options.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])["steps a second"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps",
        type=int,
        default=60,
        help="of an epoch; there are four, of which the first warms up",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--work", action="store_true", help="what each process is started with"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.work:
        work(options.device, options.steps)
        return
    found = {size: [] for size in options.sizes}
    for _ in range(options.rounds):
        for size in options.sizes:
            found[size].append(launch(size, options))
    rates = {size: statistics.median(values) for size, values in found.items()}
    report = {
        "cores": os.cpu_count(),
        "device": options.device,
        "rows a process": ROWS,
        "torch": torch.__version__,
    }
    report["rows"] = [
        {
            "processes": size,
            "steps a second": round(rate, 1),
            "rows a second": round(rate * size * ROWS),
            "rows a second, to one process": round(rate * size / rates[options.sizes[0]], 2),
        }
        for size, rate in rates.items()
    ]
    print(json.dumps(report, indent=1))
    options.out.mkdir(exist_ok=True)
    (options.out / "processes.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
