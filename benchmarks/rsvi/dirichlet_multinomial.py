"""Figure 4 of rejection sampling variational inference: the error of the gradient on a
conjugate model.

    # 20,000 draws: 4 minutes on one CPU core
    python benchmarks/rsvi/dirichlet_multinomial.py
    # 2,000 draws at four concentrations; only prints
    python benchmarks/rsvi/dirichlet_multinomial.py --short

Naesseth, Ruiz, Linderman and Blei (2017, arXiv:1610.05683, section 5.1): 100 multinomial
counts over 100 categories with a flat Dirichlet prior, and a Dirichlet as the variational
family, at the optimum but for its first concentration a. The bound's derivative in a is known;
the figure is the mean squared error of its one-draw estimates:

    d/da log p(x, z)  +  log p(x, z) * score  +  d/da entropy

with the entropy in closed form, as in the paper. The score multiplies the whole log-joint, so
constants matter: the ``proper`` one is that of the multinomial; the ``released`` code of the
paper subtracts, by mistake, the log-factorial of the coordinate's own count instead of the sum
over all. ``PUBLISHED`` is that code's error, run anew.

Writes ``benchmarks/results/rsvi_dirichlet.json`` and ``.png``.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch

from tarspyro.distributions import Dirichlet

CATEGORIES = TRIALS = 100
RESULTS = Path(__file__).parents[1] / "results"
PUBLISHED = {
    1.01: {
        "G-REP": 5.6e3,
        "RSVI, B=0": 1.4e4,
        "RSVI, B=1": 245,
        "RSVI, B=3": 7.2,
        "RSVI, B=10": 1.5,
    },
    1.5: {
        "G-REP": 1.5e3,
        "RSVI, B=0": 1.1e3,
        "RSVI, B=1": 61,
        "RSVI, B=3": 4.2,
        "RSVI, B=10": 0.48,
    },
    2.0: {
        "G-REP": 610,
        "RSVI, B=0": 262,
        "RSVI, B=1": 26,
        "RSVI, B=3": 2.4,
        "RSVI, B=10": 0.24,
    },
    3.0: {
        "G-REP": 160,
        "RSVI, B=0": 34,
        "RSVI, B=1": 7.6,
        "RSVI, B=3": 1.9,
        "RSVI, B=10": 0.11,
    },
}


def rejection(boost):
    def draw(concentration):
        q = Dirichlet(concentration, boost=boost)
        z = q.rsample()
        return z.log(), q.score_parts(z).score_function

    return draw


def implicit(concentration):
    return Dirichlet(concentration, reparameterization="implicit").rsample().log(), None


def implicit_of_torch(concentration):
    return dist.Dirichlet(concentration).rsample().log(), None


def generalized(concentration):
    """G-REP (Ruiz, Titsias and Blei 2016): log-Gamma draws, standardized by their mean and
    standard deviation.

    That leaves noise whose law still depends on the concentration, though less than the draws'
    does; the score is that of the noise's density, which is the draw's times dz / d noise.
    """
    log_gamma = torch._standard_gamma(concentration.detach()).log()
    mean = torch.digamma(concentration)
    deviation = torch.polygamma(1, concentration).sqrt()
    noise = ((log_gamma - mean) / deviation).detach()
    log_gamma = mean + deviation * noise
    log_density = (
        concentration * log_gamma
        - log_gamma.exp()
        - torch.lgamma(concentration)
        + deviation.log()
    )
    return torch.log_softmax(log_gamma, -1), log_density.sum(-1)


ESTIMATORS = {
    "G-REP": generalized,
    **{f"RSVI, B={boost}": rejection(boost) for boost in (0, 1, 3, 10)},
    "implicit": implicit,
    "implicit, torch": implicit_of_torch,
}


def data():
    """The paper's counts, from the seed of its notebook."""
    source = np.random.RandomState(0)
    return torch.tensor(
        source.multinomial(TRIALS, source.dirichlet(np.ones(CATEGORIES))), dtype=torch.float64
    )


def constants(counts):
    """What log p(x, z) has besides sum x log z; the flat prior adds log Gamma(K)."""
    both = torch.lgamma(counts.new_tensor(CATEGORIES)) + torch.lgamma(counts.sum() + 1)
    factorials = torch.lgamma(counts + 1)
    return {"proper": both - factorials.sum(), "released": both - factorials[0]}


def exact_gradient(first, counts):
    """The derivative of the bound: of the expected log-likelihood and of the entropy."""
    concentration = 1 + counts
    concentration[0] = first
    concentration.requires_grad_()
    expected = torch.digamma(concentration) - torch.digamma(concentration.sum())
    bound = (counts * expected).sum() + dist.Dirichlet(concentration).entropy()
    return torch.autograd.grad(bound, concentration)[0][0].item()


def gradients(estimator, first, counts, constant, draws):
    """One estimate of the derivative in the first concentration for each draw."""
    # Every draw has a first concentration of its own, so that one backward pass keeps the
    # estimates apart.
    own = torch.full((draws, 1), first, dtype=counts.dtype, requires_grad=True)
    concentration = torch.cat([own, (1 + counts[1:]).expand(draws, -1)], -1)
    log_z, score = ESTIMATORS[estimator](concentration)
    log_joint = (counts * log_z).sum(-1) + constant
    surrogate = log_joint + dist.Dirichlet(concentration).entropy()
    if score is not None:
        surrogate = surrogate + log_joint.detach() * score
    return torch.autograd.grad(surrogate.sum(), own)[0].squeeze(-1)


def mean_squared_error(estimator, first, counts, constant, draws, chunk=2_000):
    """The mean over the draws, and its standard error."""
    sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]
    estimates = torch.cat(
        [gradients(estimator, first, counts, constant, size) for size in sizes]
    )
    squares = (estimates - exact_gradient(first, counts)) ** 2
    return squares.mean().item(), squares.std().item() / draws**0.5


def figure(curves, grid):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for index, (name, errors) in enumerate(curves.items()):
        axes.semilogy(
            grid,
            errors,
            label=name,
            color=f"C{index}",
            linestyle="--" if "torch" in name else "-",
        )
        points = {first: row[name] for first, row in PUBLISHED.items() if name in row}
        axes.semilogy(
            list(points), list(points.values()), "o", color=f"C{index}", markersize=4
        )
    axes.set(
        xlabel="first concentration", ylabel="mean squared error of its gradient, one draw"
    )
    axes.set_title(
        "Dirichlet-multinomial, released log-joint; dots: the paper's code", fontsize=10
    )
    axes.legend(fontsize=8)
    return drawing


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="2,000 draws at the four concentrations of the table",
    )
    parser.add_argument("--draws", type=int, help="20,000 if not given; 2,000 with --short")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the draws; the data are always the paper's"
    )
    parser.add_argument(
        "--out", type=Path, help="results/rsvi_dirichlet.json if not given; none with --short"
    )
    arguments = parser.parse_args()
    draws = arguments.draws or (2_000 if arguments.short else 20_000)
    out = arguments.out or (None if arguments.short else RESULTS / "rsvi_dirichlet.json")
    torch.manual_seed(arguments.seed)
    start = time.perf_counter()
    counts = data()
    table = {}
    curves = {}
    for kind, constant in constants(counts).items():
        table[kind] = {}
        for first in PUBLISHED:
            row = {
                name: mean_squared_error(name, first, counts, constant, draws)
                for name in ESTIMATORS
            }
            table[kind][first] = {
                name: {
                    "mean squared error": float(f"{error:.4g}"),
                    "standard error": float(f"{deviation:.2g}"),
                }
                for name, (error, deviation) in row.items()
            }
            cells = "  ".join(
                f"{name} {error:.3g} +- {deviation:.1g}"
                for name, (error, deviation) in row.items()
            )
            print(f"{kind} log-joint, a = {first}: {cells}", flush=True)
    if out is None:
        return
    grid = np.linspace(1.01, 3.0, 21).round(4).tolist()
    constant = constants(counts)["released"]
    for name in ESTIMATORS:
        pairs = [mean_squared_error(name, first, counts, constant, draws) for first in grid]
        curves[name] = [float(f"{error:.4g}") for error, _ in pairs]
    figure(curves, grid).savefig(out.with_suffix(".png"), dpi=100)
    report = {
        "draws": draws,
        "seed": arguments.seed,
        "torch": torch.__version__,
        "table": table,
        "curves": {"log-joint": "released", "first concentration": grid, **curves},
        "published, released log-joint": PUBLISHED,
        "seconds": round(time.perf_counter() - start, 1),
    }
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
