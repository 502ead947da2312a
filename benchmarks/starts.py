"""The start of training on many kinds of data: ``python benchmarks/starts.py [--seeds 3]``.

Each row is one kind of data under one likelihood, each column a family of the latent variables.
A pair with default settings is trained for 40 epochs from three starts: the library's, torch's
``reset_parameters`` everywhere, and heads of zeros. The figure is the ELBO of held-out data in
nats per data point; the baseline is the best distribution without latent variables, fitted to
the training data.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from tarspyro import Conditional, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import Dirichlet, Gamma, GumbelSoftmax, default_prior
from tarspyro.nn import MLP

LATENTS = 3
EPOCHS = 40
RESULTS = Path(__file__).parent / "results"
STARTS = ("library", "torch", "zeros")


class Case(NamedTuple):
    """Data with the likelihood under which they are trained."""

    x: Tensor
    family: type[Any]
    fixed: dict[str, Any]
    event_shape: int | tuple[int, ...]
    binarize: bool = False


def table() -> Tensor:
    """Ten correlated columns of mean 0 and standard deviation 1."""
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(800, 3)) @ rng.normal(size=(3, 10)) + rng.normal(size=(800, 10))
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)


def grey() -> Tensor:
    """The pixels of digits that are not constant, which would have any density."""
    x = digits().train.x
    return x[:, x.std(0) > 0.1]


def rates(mean: float) -> Tensor:
    """Poisson rates of 20 columns with a mean, from Gamma factors."""
    rng = np.random.default_rng(1)
    rate = rng.gamma(1, 1, size=(800, 3)) @ rng.gamma(0.5, 2, size=(3, 20)) + 0.1
    return torch.tensor(rate * mean / rate.mean(), dtype=torch.float32)


def counts(mean: float) -> Tensor:
    """Counts with these rates."""
    return torch.poisson(rates(mean), generator=torch.Generator().manual_seed(0))


def zero_inflated() -> Tensor:
    """Counts of which half are set to zero."""
    kept = torch.rand(800, 20, generator=torch.Generator().manual_seed(1)) < 0.5
    return counts(5) * kept


def proportions() -> Tensor:
    """Vectors of ten proportions."""
    shares = rates(1)[:, :10] + 0.05
    noise = torch.rand(shares.shape, generator=torch.Generator().manual_seed(2)) + 0.5
    return (shares * noise) / (shares * noise).sum(-1, keepdim=True)


def directions() -> Tensor:
    """Six directions in the plane, angles around three hidden ones."""
    rng = np.random.default_rng(3)
    hidden = rng.uniform(-1, 1, size=(800, 2)) @ rng.normal(size=(2, 6))
    angle = hidden + 0.3 * rng.normal(size=(800, 6))
    return torch.tensor((angle + math.pi) % (2 * math.pi) - math.pi, dtype=torch.float32)


def draws() -> Tensor:
    """Histograms of 50 draws over 20 classes."""
    share = rates(1)
    torch.manual_seed(4)
    return dist.Multinomial(50, probs=share / share.sum(-1, keepdim=True)).sample()


CASES: dict[str, Callable[[], Case]] = {
    "standardized table, Normal 0.3": lambda: Case(table(), dist.Normal, {"scale": 0.3}, 10),
    "table of mean 500, Normal": lambda: Case(500 + 100 * table(), dist.Normal, {}, 10),
    "grey digits, Normal 0.1": lambda: Case(digits().train.x, dist.Normal, {"scale": 0.1}, 64),
    "grey digits, Normal": lambda: Case(grey(), dist.Normal, {}, grey().shape[1]),
    "binary digits, Bernoulli": lambda: Case(digits().train.x, dist.Bernoulli, {}, 64, True),
    "counts of mean 1, Poisson": lambda: Case(counts(1), dist.Poisson, {}, 20),
    "counts of mean 50, Poisson": lambda: Case(counts(50), dist.Poisson, {}, 20),
    "counts of mean 5,000, Poisson": lambda: Case(counts(5000), dist.Poisson, {}, 20),
    "counts of mean 1, NegativeBinomial": lambda: Case(
        counts(1), dist.NegativeBinomial, {}, 20
    ),
    "counts of mean 50, NegativeBinomial": lambda: Case(
        counts(50), dist.NegativeBinomial, {"total_count": 10}, 20
    ),
    "counts of mean 5,000, NegativeBinomial": lambda: Case(
        counts(5000), dist.NegativeBinomial, {"total_count": 10}, 20
    ),
    "counts of mean 50, GammaPoisson": lambda: Case(counts(50), dist.GammaPoisson, {}, 20),
    "counts of mean 5,000, GammaPoisson": lambda: Case(
        counts(5000), dist.GammaPoisson, {}, 20
    ),
    "histograms, Multinomial": lambda: Case(
        draws(), dist.Multinomial, {"total_count": 50}, 20
    ),
    "counts with zeros, ZeroInflatedPoisson": lambda: Case(
        zero_inflated(), dist.ZeroInflatedPoisson, {}, 20
    ),
    "positive, Gamma": lambda: Case(rates(3) + 0.01, dist.Gamma, {}, 20),
    "positive, LogNormal": lambda: Case(rates(3) + 0.01, dist.LogNormal, {}, 20),
    "proportions, Beta": lambda: Case(proportions(), dist.Beta, {}, 10),
    "proportions, Dirichlet": lambda: Case(proportions(), dist.Dirichlet, {}, 10),
    "directions, VonMises": lambda: Case(directions(), dist.VonMises, {}, 6),
}
FAMILIES: dict[str, type[Any]] = {
    "Normal": dist.Normal,
    "full covariance": dist.MultivariateNormal,
    "Gamma": Gamma,
    "Dirichlet": Dirichlet,
    "GumbelSoftmax": GumbelSoftmax,
}


def pair(case: Case, latent: type[Any]) -> tuple[models.VAE, guides.VAE]:
    """A VAE with one hidden layer on each side, with default settings."""
    fixed = {
        name: nn.Parameter(value.detach().clone())
        if isinstance(value, nn.Parameter)
        else value
        for name, value in case.fixed.items()
    }
    likelihood = Conditional(case.family, MLP(LATENTS, [64]), case.event_shape, **fixed)
    p = models.VAE(default_prior(latent, LATENTS), likelihood)
    q = guides.VAE(Conditional(latent, MLP(case.x.shape[1], [64]), LATENTS))
    return p, q


def start(p: nn.Module, q: nn.Module, kind: str) -> None:
    """Gives a pair other initial weights than the library's."""
    for half in (p, q):
        for module in half.modules():
            if kind == "torch" and hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if kind != "library" and isinstance(module, Conditional):
                module.is_new = False  # so that fit keeps the weights
                if kind == "zeros":
                    for parameter in module.heads.parameters():
                        nn.init.zeros_(parameter)


def train(case: Case, latent: type[Any], kind: str, seed: int) -> float:
    """Returns the held-out ELBO after the last epoch; NaN if the training failed."""
    torch.manual_seed(seed)
    rows = len(case.x) * 3 // 4
    p, q = pair(case, latent)
    start(p, q, kind)
    try:
        history = fit(
            p,
            q,
            case.x[:rows],
            validation=case.x[rows:],
            epochs=EPOCHS,
            binarize=case.binarize,
            seed=seed,
            progress=False,
        )
    except (ValueError, ArithmeticError, RuntimeError) as error:
        print("   ", kind, type(error).__name__, str(error)[:120])
        return math.nan
    return float(history["validation_elbo"][-1])


def baseline(case: Case) -> float:
    """Returns the held-out log-density of the best distribution without latent variables."""
    rows = len(case.x) * 3 // 4
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(case.x, generator=generator) if case.binarize else case.x
    torch.manual_seed(0)
    likelihood = Conditional(case.family, nn.Identity(), case.event_shape, **case.fixed)
    free = {
        name: torch.zeros(shape, requires_grad=True)
        for name, (_, shape) in likelihood.free.items()
    }
    if "loc" in free:
        free["loc"] = x[:rows].mean(0).requires_grad_()
    optimizer = torch.optim.Rprop(free.values(), lr=0.05)
    best = -math.inf
    for _ in range(800):
        made = likelihood.distribution(free)
        loss = -made.log_prob(x[:rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            best = max(best, likelihood.distribution(free).log_prob(x[rows:]).mean().item())
    return best


def main() -> None:
    """Trains all cells and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", default="", help="a part of the names of the rows")
    parser.add_argument("--latents", default="", help="a part of the names of the columns")
    parser.add_argument("--starts", nargs="+", default=STARTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "starts.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name, make in CASES.items():
        if options.cases not in name:
            continue
        case = make()
        floor = rows.setdefault(name, {}).setdefault("baseline", baseline(case))
        for latent, family in FAMILIES.items():
            if options.latents not in latent:
                continue
            cell = rows[name].setdefault(latent, {})
            for kind in options.starts:
                if len(cell.get(kind, [])) < options.seeds:
                    cell[kind] = [train(case, family, kind, s) for s in range(options.seeds)]
            shown = {kind: [round(value, 2) for value in cell[kind]] for kind in cell}
            print(f"{name} | {latent} | baseline {floor:.2f} | {shown}", flush=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
