"""The time of annealed importance sampling, with leapfrog steps as written and compiled.

    python benchmarks/annealing_time.py

MLP VAEs with the weights of their start, 784-200-200-50 on 100 images and 784-20-20-50 on ten,
with 16 chains. Both ways take turns, in an order drawn anew; figures are medians of the
process's CPU time on one thread, which other processes disturb least, and ratios are taken round
by round. Every call compiles anew, from a cache on disk that a call before has filled. Results
are written to ``benchmarks/results/annealing_time.json``.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import pyro.distributions as dist
import torch

from tarspyro import Conditional, evaluate, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

PROGRAMS = {  # hidden units, images, densities of the path
    "784-200-200-50, 100 images, T = 20": (200, 100, 20),
    "784-20-20-50, 10 images, T = 50": (20, 10, 50),
    "784-20-20-50, 10 images, T = 200": (20, 10, 200),
}


def estimator(hidden, images, num_steps):
    torch.manual_seed(0)
    x = torch.rand(images, 784).round()
    likelihood = Conditional(dist.Bernoulli, MLP(50, [hidden, hidden]), 784)
    p = models.VAE(default_prior(dist.Normal, 50), likelihood)
    q = guides.VAE(Conditional(dist.Normal, MLP(784, [hidden, hidden]), 50))

    def estimate(compile):
        evaluate.annealed_log_likelihood(p, q, x, num_steps=num_steps, seed=0, compile=compile)

    return estimate


def measure(estimate, rounds):
    """The seconds of both ways and their ratio, medians over rounds."""
    estimate(compile=True)
    seconds = {"as written": [], "compiled": []}
    for _ in range(rounds):
        for way in random.sample([*seconds], 2):
            start = time.process_time()
            estimate(compile=way == "compiled")
            seconds[way].append(time.process_time() - start)
    ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
    return {
        **{way: round(statistics.median(times), 2) for way, times in seconds.items()},
        "faster": round(statistics.median(ratios), 2),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        name: measure(estimator(*sizes), arguments.rounds) for name, sizes in PROGRAMS.items()
    }
    print(json.dumps(report, indent=1))
    path = arguments.out / "annealing_time.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
