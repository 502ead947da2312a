"""The time of evaluations, as written and with ``compile=True``: annealed importance sampling,
imputation, particle filters.

    python benchmarks/evaluation_time.py                     # --only filter for a part of it

The pairs have the weights of their start. AIS and imputation are of MLP VAEs, 784-200-200-50 and
784-20-20-50; the filter is of a VRNN of eight rows of 28 pixels, batches of 100 sequences with 100
particles each. Both ways take turns, in an order drawn anew; figures are medians of the
process's CPU time on one thread, which other processes disturb least, and ratios are taken round
by round. Every call compiles anew, from a cache on disk that a call before has filled. Results
are written to ``benchmarks/results/evaluation_time.json``.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional, data, evaluate, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP, Recurrence


def pair(hidden):
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(50, [hidden, hidden]), 784)
    p = models.VAE(default_prior(dist.Normal, 50), likelihood)
    return p, guides.VAE(Conditional(dist.Normal, MLP(784, [hidden, hidden]), 50))


def annealing(hidden, images, num_steps):
    """AIS with 16 chains, by the number of densities."""
    p, q = pair(hidden)
    x = torch.rand(images, 784).round()

    def estimate(compile):
        evaluate.annealed_log_likelihood(p, q, x, num_steps=num_steps, seed=0, compile=compile)

    return estimate


def imputation(hidden, images, num_rounds, method):
    """Lower halves of images."""
    p, q = pair(hidden)
    x = torch.rand(images, 784).round()
    options = {"num_rounds": num_rounds, "method": method, "seed": 0}

    def estimate(compile):
        evaluate.impute(p, q, x, data.lower_half(x), compile=compile, **options)

    return estimate


def filtering(sequences, steps):
    """The log-likelihoods of sequences."""
    torch.manual_seed(0)
    cell = Recurrence(nn.GRUCell(28 + 16, 64))
    prior = Conditional(dist.Normal, MLP(64, [64]), 16)
    p = models.VRNN(cell, prior, Conditional(dist.Bernoulli, MLP([16, 64], [64]), 28))
    q = guides.VRNN(cell, Conditional(dist.Normal, MLP([28, 64], [64]), 16))
    x = torch.rand(sequences, steps, 28).round()

    def estimate(compile):
        evaluate.particle_filter(p, q, x, seed=0, compile=compile)

    return estimate


PROGRAMS = {
    "AIS, 784-200-200-50, 100 images, T = 20": lambda: annealing(200, 100, 20),
    "AIS, 784-20-20-50, 10 images, T = 50": lambda: annealing(20, 10, 50),
    "AIS, 784-20-20-50, 10 images, T = 200": lambda: annealing(20, 10, 200),
    "imputation, pseudo-Gibbs, 784-200-200-50, 1,000 images, 100 rounds": lambda: imputation(
        200, 1000, 100, "pseudo-gibbs"
    ),
    "imputation, Metropolis, 784-200-200-50, 1,000 images, 100 rounds": lambda: imputation(
        200, 1000, 100, "metropolis-within-gibbs"
    ),
    "particle filter, VRNN, 2,000 sequences of 8 steps, 100 particles": lambda: filtering(
        2000, 8
    ),
    "particle filter, VRNN, 6,000 sequences of 8 steps, 100 particles": lambda: filtering(
        6000, 8
    ),
}


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
    parser.add_argument("--only", default="", help="a part of a program's name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / "evaluation_time.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for name, made in PROGRAMS.items():
        if arguments.only in name:
            report[name] = measure(made(), arguments.rounds)
            print(name, json.dumps(report[name]), flush=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
