"""The time of a Gamma draw and its gradient: ours and torch's, eager and compiled, on one and
the same machine.

    python benchmarks/sampler_time.py [--rounds 21] [--threads 2] [--device cpu]

Forward and backward of ``rsample().sum()`` for 5,000 and for 1,000,000 concentrations between
0.1 and 10 in single precision. All contestants take turns, in an order drawn anew in each
round; ratios to torch's eager draw are taken round by round. The gradient's variance is that
of an ELBO (a Gamma prior, a Poisson observation, concentrations 0.5, 1.5 and 10), relative to
the implicit derivative's. Results go to ``benchmarks/results/sampler_time.json``.
"""

import argparse
import json
import platform
import random
import statistics
import time
from pathlib import Path

import pyro.distributions as dist
import torch

from tarspyro.distributions import Gamma

SIZES = {5_000: 50, 1_000_000: 1}  # and how many draws are timed together
OURS = {
    "ours, boost 1": {"boost": 1},
    "ours, boost 4 (the default)": {},
    "ours, boost 8": {"boost": 8},
    "ours, implicit": {"reparameterization": "implicit"},
}


def sum_of_draws(options):
    if options is None:
        return lambda concentration: (
            dist.Gamma(concentration, 1.0, validate_args=False).rsample().sum()
        )
    return lambda concentration: (
        Gamma(concentration, 1.0, validate_args=False, **options).rsample().sum()
    )


def contestants(size, device):
    concentration = (
        torch.empty(size, device=device).uniform_(-1, 1).mul_(2.302585).exp_().requires_grad_()
    )
    table = {"torch": None, **OURS}
    steps = {}
    for name, options in table.items():
        draw = sum_of_draws(options)
        for kind, function in (("eager", draw), ("compiled", torch.compile(draw))):

            def step(function=function):
                concentration.grad = None
                function(concentration).backward()

            steps[f"{name}, {kind}"] = step
    return steps


def race(steps, rounds, repeats, device):
    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    times = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    order = list(steps)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            wait()
            start = time.perf_counter()
            for _ in range(repeats):
                steps[name]()
            wait()
            times[name].append((time.perf_counter() - start) / repeats * 1e3)
    base = times["torch, eager"]
    return {
        name: {
            "ms": round(statistics.median(values), 3),
            "to torch, eager": round(
                statistics.median(v / b for v, b in zip(values, base, strict=True)), 3
            ),
        }
        for name, values in times.items()
    }


def gradient_variance(concentration, options, draws=400_000):
    """The variance of the gradient of an ELBO with one sample, in double precision."""
    torch.manual_seed(0)
    a = torch.full((draws,), concentration, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(1.5, dtype=torch.float64)
    q = Gamma(a, rate, validate_args=False, **options)
    z = q.rsample()
    log_prob, score, _ = q.score_parts(z)
    bound = (
        dist.Gamma(z.new_tensor(2.0), 2.0).log_prob(z)
        + dist.Poisson(z, validate_args=False).log_prob(z.new_tensor(3.0))
    ) - log_prob
    (gradient,) = torch.autograd.grad((bound + bound.detach() * score).sum(), a)
    return gradient.var().item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": arguments.device,
    }
    report["threads"] = arguments.threads
    for size, repeats in SIZES.items():
        report[f"{size} draws"] = race(
            contestants(size, arguments.device), arguments.rounds, repeats, arguments.device
        )
    report["gradient variance, to the implicit one"] = {
        f"concentration {concentration}": {
            f"boost {boost}": round(
                gradient_variance(concentration, {"boost": boost})
                / gradient_variance(concentration, {"reparameterization": "implicit"}),
                3,
            )
            for boost in (1, 4, 8)
        }
        for concentration in (0.5, 1.5, 10.0)
    }
    print(json.dumps(report, indent=1))
    name = "sampler_time" + ("" if arguments.device == "cpu" else f"_{arguments.device}")
    (Path(__file__).parent / "results" / f"{name}.json").write_text(
        json.dumps(report, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
