"""The modes of a mixture of Gaussians that a generator finds, under each loss: a ring of 8 and a
grid of 25.

    python benchmarks/gan_modes.py ring --compile         # 2,000 moves of the generator, 2 seeds
    python benchmarks/gan_modes.py grid --compile         # 4,000 moves
    python benchmarks/gan_modes.py ring --full --compile  # 50,000 moves, 10 seeds
    python benchmarks/gan_modes.py grid --steps 3000 --noise 8 --zero-biases

Generator 2-128-128-128-2, ReLU, noise N(0, I); discriminator 2-128-128-128-1, LeakyReLU(0.2);
batches of 256 fresh points, Adam with a learning rate of 1e-3 that falls to 0 over the second
half and betas of 0 and 0.9, the same for all. The units of the first layers bend at points of
the noise and of the data (``nn.spread_kinks``); ``--zero-biases`` leaves that out. Samples come
from the moving average of the generator, with a decay of 0.995. Under the Wasserstein distance
the generator moves in every second step, and the penalty weighs 0.1; the other losses have the
R1 penalty with a weight of 0.003. Of 2,500 samples one counts as good within three standard
deviations of the nearest mode; a mode is found by 20 good samples. The figures are means over
the seeds, with the lowest and the highest number of modes. Tables and a picture go to
``benchmarks/results/``.
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
from tarspyro.nn import MLP, Discriminator, spread_kinks
from tarspyro.training.checks import CollapseError

LOSSES = {
    "Jensen-Shannon, minimax": lambda: JensenShannon(saturating=True),
    "Jensen-Shannon, non-saturating": JensenShannon,
    "least squares": LeastSquares,
    "hinge": Hinge,
    "Wasserstein, gradient penalty": lambda: Wasserstein(0.1),
}
MIXTURES = {"ring": data.ring, "grid": data.grid}
EVERY = 2  # steps for a move of the generator under the Wasserstein distance
MOVES = {"ring": 2_000, "grid": 4_000}


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
    generator = MLP(arguments.noise, hidden)
    critic = MLP(2, hidden, activation=leaky)
    if not arguments.zero_biases:
        spread_kinks(generator, torch.randn(1000, arguments.noise))
        spread_kinks(critic, modes.x)
    p = models.GAN(default_prior(dist.Normal, arguments.noise), Deterministic(generator, 2))
    penalized = isinstance(divergence, Wasserstein)
    every = EVERY if penalized else 1
    average = MovingAverage(p, arguments.average)
    loss = Adversarial(
        Discriminator(critic),
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
    return evaluate.sample(average.model, 2500, seed=seed).cpu()


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
    parser.add_argument(
        "--moves", type=int, help="in place of those of the short or the full form"
    )
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=[*LOSSES])
    parser.add_argument("--noise", type=int, default=2, help="dimensions of the noise")
    parser.add_argument(
        "--zero-biases", action="store_true", help="without a start of the kinks in the data"
    )
    parser.add_argument("--r1", type=float, default=0.003, help="the weight of the R1 penalty")
    parser.add_argument("--average", type=float, default=0.995, help="decay of the average")
    parser.add_argument("--layers", type=int, default=3, help="hidden layers of both networks")
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
    moves = 50_000 if arguments.full else MOVES[arguments.mixture]
    arguments.steps = arguments.steps or arguments.moves or moves
    modes = MIXTURES[arguments.mixture](2500)
    rows = {}
    pictures = {}
    for name in arguments.losses:
        found = []
        for seed in range(seeds):
            try:
                samples = trained(modes, LOSSES[name](), seed, arguments)
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
    if arguments.moves is not None:
        variant += f"_{arguments.moves}"
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
