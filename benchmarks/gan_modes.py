"""The modes of a mixture of Gaussians that a generator finds, under each loss: a ring of 8 and a
grid of 25.

    python benchmarks/gan_modes.py ring --compile         # 8,000 moves of the generator, 2 seeds
    python benchmarks/gan_modes.py grid --compile
    python benchmarks/gan_modes.py ring --full --compile  # 50,000 moves, 10 seeds
    python benchmarks/gan_modes.py grid --steps 20000 --r1 0.001 --average 0.995 --layers 3

Generator 8-128-128-2, ReLU, noise N(0, I); discriminator 2-128-128-1, LeakyReLU(0.2); batches
of 256 fresh points, Adam with a learning rate of 1e-3 that falls to 0 over the second half and
betas of 0 and 0.9, the same for all. Under the Wasserstein distance the generator moves in
every fifth step, and the penalty weighs 0.1. ``--r1`` adds that penalty to the other losses,
and ``--average`` draws the samples from the moving average of the generator. Of 2,500 samples
one counts as good within three standard deviations of the nearest mode; a mode is found by 20
good samples. The figures are means over the seeds, with the lowest and the highest number of
modes. Tables and a picture go to ``benchmarks/results/``.
"""

import argparse
import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Deterministic, Optimizer, data, evaluate, fit, models
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    Adversarial,
    Hinge,
    JensenShannon,
    LeastSquares,
    MovingAverage,
    Wasserstein,
)
from tarspyro.nn import MLP, Discriminator
from tarspyro.training.checks import CollapseError

LOSSES = {
    "Jensen-Shannon, minimax": lambda: JensenShannon(saturating=True),
    "Jensen-Shannon, non-saturating": JensenShannon,
    "least squares": LeastSquares,
    "hinge": Hinge,
    "Wasserstein, gradient penalty": lambda: Wasserstein(0.1),
}
MIXTURES = {"ring": data.ring, "grid": data.grid}


def batches(modes, size, seed):
    """Fresh points for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        noise = torch.randn(size, 2, generator=generator)
        yield (
            modes.means[torch.randint(len(modes.means), (size,), generator=generator)]
            + modes.scale * noise
        )


def leaky():
    return nn.LeakyReLU(0.2)


def trained(modes, divergence, seed, arguments):
    torch.manual_seed(seed)
    hidden = [128] * arguments.layers
    p = models.GAN(default_prior(dist.Normal, 8), Deterministic(MLP(8, hidden), 2))
    penalized = isinstance(divergence, Wasserstein)
    every = 5 if penalized else 1
    average = MovingAverage(p, arguments.average) if arguments.average else None
    loss = Adversarial(
        Discriminator(MLP(2, hidden, activation=leaky)),
        divergence,
        every=every,
        r1=0.0 if penalized else arguments.r1,
        average=average,
    )
    steps = every * arguments.steps
    fit(
        p,
        data=data.Stream(batches(modes, 256, seed), steps),
        loss=loss,
        epochs=1,
        optimizer=Optimizer(torch.optim.Adam, betas=(0.0, 0.9)),
        schedules={"lr": lambda step: 1e-3 * min(1.0, 2 - 2 * step / steps)},
        seed=seed,
        compile=arguments.compile,
        device=arguments.device,
        progress=False,
    )
    return evaluate.sample(average.model if average else p, 2500, seed=seed).cpu()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mixture", choices=MIXTURES)
    parser.add_argument("--full", action="store_true", help="more moves and seeds")
    parser.add_argument(
        "--steps",
        type=int,
        help="so many moves of a single seed, to try it; nothing is written",
    )
    parser.add_argument("--r1", type=float, default=0.0, help="the weight of the R1 penalty")
    parser.add_argument("--average", type=float, default=0.0, help="decay of the average")
    parser.add_argument("--layers", type=int, default=2, help="hidden layers of both networks")
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--out",
        default=str(Path(__file__).parent / "results"),
        help="where the results are kept",
    )
    arguments = parser.parse_args()
    tried = arguments.steps is not None
    seeds = 1 if tried else 10 if arguments.full else 2
    arguments.steps = arguments.steps or (50_000 if arguments.full else 8_000)
    modes = MIXTURES[arguments.mixture](2500)
    rows = {}
    pictures = {}
    for name, make in LOSSES.items():
        found = []
        for seed in range(seeds):
            try:
                samples = trained(modes, make(), seed, arguments)
            except CollapseError as error:
                rows.setdefault(f"{name}, stopped", []).append(str(error))
                continue
            found.append(
                evaluate.mode_coverage(samples, modes.means, modes.scale, at_least=20)
            )
            pictures.setdefault(name, samples)
        if found:
            numbers = [coverage.modes for coverage in found]
            rows[name] = {
                "modes found": round(statistics.mean(numbers), 2),
                "lowest and highest": [min(numbers), max(numbers)],
                "good samples": round(
                    statistics.mean(coverage.quality for coverage in found), 3
                ),
                "runs": len(found),
            }
        print(name, rows.get(name, "stopped"), flush=True)
    report = {"mixture": arguments.mixture, "modes": len(modes.means), "rows": rows}
    report |= {
        "moves of the generator": arguments.steps,
        "torch": torch.__version__,
        "compile": arguments.compile,
    }
    if tried:
        return print(json.dumps(report, indent=1))
    variant = "_full" if arguments.full else ""
    out = Path(arguments.out) / f"gan_modes_{arguments.mixture}{variant}"
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    figure, axes = plt.subplots(
        1, len(pictures) + 1, figsize=(3 * len(pictures) + 3, 3.3), layout="constrained"
    )
    for ax, (name, samples) in zip(axes, {"data": modes.x, **pictures}.items(), strict=True):
        ax.scatter(*samples.T, s=2, alpha=0.4, linewidths=0)
        limit = 1.4 * modes.means.abs().max().item()
        ax.set(
            title=name,
            xlim=(-limit, limit),
            ylim=(-limit, limit),
            aspect="equal",
            xticks=[],
            yticks=[],
        )
    figure.savefig(out.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    main()
