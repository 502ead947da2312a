"""Pairs whose guide is the exact posterior, and faults that are planted in them.

Each family of pairs takes a setting, which changes its sizes and parameters, and the name of a
fault. Without one, the guide is exact.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

ROWS = 64


class Pair(NamedTuple):
    """A model, its guide, and data in the shape of their arguments."""

    model: Callable
    guide: Callable
    data: tuple[Tensor, ...]


class Fault(NamedTuple):
    """How far a guide is from the exact one."""

    scale: float = 1.0
    shift: float = 0.0
    name: str = ""


FAULTS = {
    "scale 0.8": Fault(scale=0.8),
    "scale 1.25": Fault(scale=1.25),
    "shift 0.3": Fault(shift=0.3),
    "swapped units": Fault(name="swap"),
    "wrong row": Fault(name="row"),
    "wrong condition": Fault(name="condition"),
    "collapsed unit": Fault(name="collapse"),
    "other prior": Fault(name="prior"),
    "mask forgotten": Fault(name="mask"),
    "biased gradient": Fault(name="gradient"),
}


def _settings(seed):
    return torch.Generator().manual_seed(seed)


def _biased(scale_tril):
    """The scale that the ELBO's gradient leads to without half of the entropy's part.

    The objective is E[log p] + h E[-log q] with h = 1/2, whose optimum is the Gaussian of half
    the covariance.
    """
    return scale_tril / math.sqrt(2)


def linear_gaussian(setting, fault):
    """z ~ N(b(y), I), x | z ~ N(W z, s^2), some of x masked; y is a condition."""
    generator = _settings(setting)
    units = 2 + setting % 2
    size = 4 + setting % 3
    weight = torch.randn(size, units, generator=generator)
    noise = 0.5 + 0.1 * (setting % 4)
    data = torch.zeros(ROWS, size)
    condition = torch.randn(ROWS, units, generator=generator)
    mask = torch.ones(size, dtype=torch.bool)
    mask[-1] = False

    def model(x, y):
        with pyro.plate("data", len(x)):
            prior_scale = 1.4 if fault.name == "prior" else 1.0
            z = pyro.sample("z", dist.Normal(y, prior_scale).to_event(1))
            likelihood = dist.Normal(z @ weight.T, noise).mask(mask).to_event(1)
            pyro.sample("x", likelihood, obs=x)

    def guide(x, y):
        if fault.name == "row":
            x = x.roll(1, 0)
        if fault.name == "condition":
            y = y.roll(1, 0)
        known = torch.ones(size) if fault.name == "mask" else mask.float()
        seen = weight * known.unsqueeze(-1)
        covariance = (torch.eye(units) + seen.T @ seen / noise**2).inverse()
        loc = (y + x @ seen / noise**2) @ covariance
        tril = torch.linalg.cholesky(covariance) * fault.scale
        loc = loc + fault.shift * covariance.diagonal().sqrt()
        if fault.name == "gradient":
            tril = _biased(tril)
        if fault.name == "swap":
            loc = loc.flip(-1)
        if fault.name == "collapse":
            loc = torch.cat([y[:, :1], loc[:, 1:]], -1)
            row = torch.zeros(units)
            row[0] = 1.0
            tril = torch.cat([row.unsqueeze(0), tril[1:] * (torch.arange(units) > 0)])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

    return Pair(model, guide, (data, condition))


def gamma_poisson(setting, fault):
    """Two rates z ~ Gamma(a, b), counts x | z ~ Poisson(z y) with exposures y."""
    generator = _settings(setting)
    shape = 2.0 + setting % 5
    rate = 1.0 + 0.25 * (setting % 4)
    counts = torch.zeros(ROWS, 2)
    exposure = 0.5 + 4 * torch.rand(ROWS, 2, generator=generator)

    def model(x, y):
        prior = dist.Gamma(shape, rate * (0.6 if fault.name == "prior" else 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.expand((2,)).to_event(1))
            pyro.sample("x", dist.Poisson(z * y).to_event(1), obs=x)

    def guide(x, y):
        if fault.name == "row":
            x = x.roll(1, 0)
        if fault.name == "condition":
            y = y.roll(1, 0)
        a = shape + x
        b = rate + y
        if fault.name == "swap":
            a = a.flip(-1)
            b = b.flip(-1)
        # A Gamma of the same mean whose standard deviation is scaled, or of another mean.
        factor = fault.scale**2 * (0.5 if fault.name == "gradient" else 1.0)
        mean = a / b * (1 + fault.shift / a.sqrt())
        a = a / factor
        b = a / mean
        if fault.name == "collapse":
            a = torch.stack([torch.full_like(a[:, 0], shape), a[:, 1]], -1)
            b = torch.stack([torch.full_like(b[:, 0], rate), b[:, 1]], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(a, b).to_event(1))

    return Pair(model, guide, (counts, exposure))


def mixture(setting, fault):
    """c ~ Categorical, z | c ~ N(m_c, 1), x | z ~ N(z, s^2)."""
    generator = _settings(setting)
    kinds = 2 + setting % 3
    weights = torch.softmax(torch.randn(kinds, generator=generator), -1)
    means = 3.0 * torch.randn(kinds, 2, generator=generator)
    noise = 0.6 + 0.2 * (setting % 3)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(weights))
            scale = 1.6 if fault.name == "prior" else 1.0
            z = pyro.sample("z", dist.Normal(means[c], scale).to_event(1))
            pyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def guide(x):
        if fault.name == "row":
            x = x.roll(1, 0)
        marginal = dist.Normal(means, (1 + noise**2) ** 0.5).to_event(1)
        logits = weights.log() + marginal.log_prob(x.unsqueeze(-2))
        if fault.name == "condition":
            logits = logits.flip(-1)
        if fault.name == "collapse":
            logits = weights.log().expand_as(logits)
        variance = 1 / (1 + noise**-2)
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits))
            loc = variance * (means[c] + x / noise**2) + fault.shift * variance**0.5
            if fault.name == "swap":
                loc = loc.flip(-1)
            scale = variance**0.5 * fault.scale * (0.5**0.5 if fault.name == "gradient" else 1)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return Pair(model, guide, (torch.zeros(ROWS, 2),))


def hierarchical(setting, fault):
    """Groups share m ~ N(0, 1): z_j | m ~ N(m, t^2), x_j | z_j ~ N(z_j, s^2)."""
    groups = 4 + setting % 4
    between = 0.5 + 0.25 * (setting % 3)
    noise = 0.5 + 0.2 * (setting % 4)

    def model(x):
        scale = 1.5 if fault.name == "prior" else 1.0
        m = pyro.sample("m", dist.Normal(torch.zeros(()), scale))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, between))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x):
        width = fault.scale * (0.5**0.5 if fault.name == "gradient" else 1.0)
        precision = 1 + len(x) / (between**2 + noise**2)
        loc = x.sum() / (between**2 + noise**2) / precision
        if fault.name == "condition":
            loc = -loc
        scale = precision**-0.5
        if fault.name == "collapse":
            loc = torch.zeros(())
            scale = 1.0
        m = pyro.sample("m", dist.Normal(loc + fault.shift * scale, scale * width))
        if fault.name in ("row", "swap"):
            x = x.roll(1, 0)
        own = 1 / (between**-2 + noise**-2)
        with pyro.plate("data", len(x)):
            mean = own * (m / between**2 + x / noise**2)
            pyro.sample("z", dist.Normal(mean + fault.shift * own**0.5, own**0.5 * width))

    return Pair(model, guide, (torch.zeros(groups),))


def sequential(setting, fault):
    """z_t ~ N(a z_{t-1}, 1), x_t | z_t ~ N(z_t, s^2), with the smoother as guide."""
    length = 3 + setting % 3
    a = 0.5 + 0.1 * (setting % 5)
    noise = 0.7 + 0.2 * (setting % 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = torch.zeros(len(x))
            for t in range(length):
                scale = 1.5 if fault.name == "prior" else 1.0
                z = pyro.sample(f"z_{t}", dist.Normal(a * z, scale))
                pyro.sample(f"x_{t}", dist.Normal(z, noise), obs=x[:, t])

    def guide(x):
        if fault.name == "row":
            x = x.roll(1, 0)
        if fault.name == "condition":
            x = torch.cat([x[:, :1], x[:, :-1]], 1)  # the step before
        if fault.name == "swap":
            x = x.flip(1)
        # p(x_t, ..., x_T | z_t) is a Gaussian in z_t with a precision and a precision x mean.
        precisions = []
        weighted = []
        precision = 0.0
        mean = torch.zeros(len(x))
        for t in reversed(range(length)):
            precision = precision + noise**-2
            mean = mean + x[:, t] / noise**2
            precisions.append(precision)
            weighted.append(mean)
            mean = a * mean / (1 + precision)
            precision = a**2 * precision / (1 + precision)
        width = fault.scale * (0.5**0.5 if fault.name == "gradient" else 1.0)
        with pyro.plate("data", len(x)):
            z = torch.zeros(len(x))
            for t in range(length):
                total = 1 + precisions[length - 1 - t]
                loc = (a * z + weighted[length - 1 - t]) / total
                scale = total**-0.5
                if fault.name == "collapse" and t == 1:
                    loc = a * z
                    scale = 1.0
                loc = loc + fault.shift * scale
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale * width))

    return Pair(model, guide, (torch.zeros(ROWS, length),))


FAMILIES = {
    "linear Gaussian": linear_gaussian,
    "Gamma-Poisson": gamma_poisson,
    "mixture": mixture,
    "hierarchical": hierarchical,
    "sequential": sequential,
}

# The faults of each family. A mask is planted where the model has one, and units are swapped
# where there are several.
PLANTED = {
    "linear Gaussian": [name for name in FAULTS if name != "biased gradient"][:9],
    "Gamma-Poisson": [name for name in FAULTS if name != "mask forgotten"][:8],
    "mixture": [name for name in FAULTS if name not in ("mask forgotten", "other prior")],
    "hierarchical": [
        "scale 0.8",
        "scale 1.25",
        "shift 0.3",
        "wrong row",
        "wrong condition",
        "other prior",
        "biased gradient",
    ],
    "sequential": [
        "scale 0.8",
        "scale 1.25",
        "shift 0.3",
        "wrong row",
        "wrong condition",
        "swapped units",
        "other prior",
        "biased gradient",
    ],
}


def exact(family, setting=0):
    """Returns a pair with the exact posterior as its guide."""
    return FAMILIES[family](setting, Fault())


def planted(family, fault, setting=0):
    """Returns a pair with a fault."""
    return FAMILIES[family](setting, FAULTS[fault])
