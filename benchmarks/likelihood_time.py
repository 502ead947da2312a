"""The time of a log-likelihood with many particles: in large chunks, in chunks that fit the
caches, and compiled.

    python benchmarks/likelihood_time.py                    # 500 images, 1,000 particles
    python benchmarks/likelihood_time.py --images 10000     # a whole test set, some minutes

The pair is an MLP VAE, 784-200-200-50, and the weights are those of its start. The ways take
turns: in a round each evaluates all images, in an order drawn anew. Times are medians over the
rounds, ratios are taken round by round. ``large`` has the chunks of 10,000,000 numbers that
evaluation had before. Results are written to ``benchmarks/results/likelihood_time.json``, or
with another number of images to ``likelihood_time_10000.json``.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pyro.distributions as dist
import torch

from tarspyro import Conditional, evaluate, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = torch.rand(arguments.images, 784).round()
    likelihood = Conditional(dist.Bernoulli, MLP(50, [200, 200]), 784)
    p = models.VAE(default_prior(dist.Normal, 50), likelihood)
    q = guides.VAE(Conditional(dist.Normal, MLP(784, [200, 200]), 50))

    def estimate(compile: bool = False) -> torch.Tensor:
        return evaluate.log_likelihood(
            p, q, x, num_particles=arguments.particles, seed=0, compile=compile
        )

    def large() -> torch.Tensor:
        with mock.patch("tarspyro.evaluate.batching._NUMBERS", 10_000_000):
            return estimate()

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "large": large,
        "now": estimate,
        "compiled": lambda: estimate(compile=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for _ in range(arguments.rounds):
        for name in random.sample([*ways], len(ways)):
            start = time.perf_counter()
            values[name] = ways[name]().mean().item()
            seconds[name].append(time.perf_counter() - start)
    report = {
        "images": arguments.images,
        "particles": arguments.particles,
        "threads": arguments.threads,
        "seconds": {
            name: round(statistics.median(times), 2) for name, times in seconds.items()
        },
        "faster than large": {
            name: round(
                statistics.median(
                    first / second
                    for first, second in zip(seconds["large"], times, strict=True)
                ),
                2,
            )
            for name, times in seconds.items()
        },
        "mean log-likelihood": {name: round(value, 3) for name, value in values.items()},
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=1))
    arguments.out.mkdir(parents=True, exist_ok=True)
    variant = "" if arguments.images == 500 else f"_{arguments.images}"
    path = arguments.out / f"likelihood_time{variant}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
