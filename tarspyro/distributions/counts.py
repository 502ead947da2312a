"""Distributions of counts whose log-probabilities are those of double precision."""

__all__ = [
    "BetaBinomial",
    "Binomial",
    "DirichletMultinomial",
    "GammaPoisson",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

from tarspyro.accelerators import widest_type


class _Counts(Distribution):
    """A family of counts. The abstract base of the classes here, before Pyro's in their order.

    In single precision a log-probability of counts is a difference of log-gamma functions whose
    rounding errors grow with their arguments: to a nat at counts or concentrations of 10^6.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        widest = widest_type(value.device)
        # Pyro's log_prob on a copy with parameters of that type.
        log_prob: Tensor = super(_Counts, _converted(self, widest)).log_prob(value.to(widest))
        return log_prob.to(_type_of(self))


def _converted(distribution: Any, dtype: torch.dtype) -> Any:
    """Returns a copy of a distribution whose tensors, and those inside them, have a type."""
    given = getattr(distribution, "_param", None)
    converted = copy.copy(distribution)
    converted._validate_args = False
    for name, value in vars(distribution).items():
        if isinstance(value, Tensor):
            derived = isinstance(getattr(type(distribution), name, None), lazy_property)
            if derived and given is not None and value is not given:
                # Probabilities that were computed from logits, or the other way round.
                del vars(converted)[name]
            else:
                setattr(converted, name, value.to(dtype))
        elif isinstance(value, Distribution):
            setattr(converted, name, _converted(value, dtype))
    return converted


def _type_of(distribution: Any) -> torch.dtype:
    """Returns the type of a distribution's parameters."""
    parts = vars(distribution).values()
    types = [value.dtype for value in parts if isinstance(value, Tensor)]
    types += [_type_of(value) for value in parts if isinstance(value, Distribution)]
    found = torch.bool
    for dtype in types:
        found = torch.promote_types(found, dtype)
    return found


class Poisson(_Counts, dist.Poisson):
    """The Poisson distribution.

    It is Pyro's class with a log-probability that is computed in double precision, as are the
    other families of counts here. ``Conditional`` and ``Prior`` use them in place of Pyro's.

    Example:
        >>> Poisson(torch.tensor(1e6)).log_prob(torch.tensor(1e6))  # -log(2 pi 1e6) / 2
        tensor(-7.8267)
    """


class NegativeBinomial(_Counts, dist.NegativeBinomial):  # type: ignore[misc]
    """The negative Binomial distribution, also near the Poisson distribution.

    Example:
        >>> logits = torch.tensor(1e-6).log()
        >>> NegativeBinomial(1e6, logits=logits).log_prob(torch.tensor(0.0))  # minus the mean
        tensor(-1.0000)
    """


class GammaPoisson(_Counts, dist.GammaPoisson):
    """The negative Binomial distribution as a Poisson whose rate is a Gamma."""


class Binomial(_Counts, dist.Binomial):
    """The Binomial distribution."""


class BetaBinomial(_Counts, dist.BetaBinomial):
    """The Binomial distribution whose probability is a Beta."""


class Multinomial(_Counts, dist.Multinomial):
    """The Multinomial distribution."""


class DirichletMultinomial(_Counts, dist.DirichletMultinomial):
    """The Multinomial distribution whose probabilities are a Dirichlet."""


class ZeroInflatedPoisson(_Counts, dist.ZeroInflatedPoisson):
    """The Poisson distribution with more zeros."""


class ZeroInflatedNegativeBinomial(_Counts, dist.ZeroInflatedNegativeBinomial):
    """The negative Binomial distribution with more zeros."""
