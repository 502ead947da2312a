"""Bayesian regression: the guide."""

__all__ = ["BayesianRegression"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.distributions import as_prior
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class BayesianRegression(StochasticModule):
    r"""The approximate posterior of the weights of a Bayesian regression.

    .. math:: q(w)

    Sites:

    - ``w``: the weights, of the posterior's event shape, outside all plates.

    Pyro's own guides pair with the model too: ``AutoNormal(p)``,
    ``AutoMultivariateNormal(p)``, and ``AutoDelta(p)`` for the maximum a posteriori weights.

    Arguments:
        posterior: The approximate posterior q(w), which has no context, such as a learned
            ``Prior``.

    References:
        Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114, appendix
        F.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import Prior
        >>> from tarspyro.nn import MLP, RandomWeights
        >>> likelihood = RandomWeights(Conditional(dist.Normal, MLP(8, [50]), (), scale=0.1))
        >>> size = likelihood.num_weights
        >>> loc = nn.Parameter(likelihood.initial)
        >>> scale = nn.Parameter(torch.full((size,), 0.01))
        >>> BayesianRegression(Prior(dist.Normal, size, loc=loc, scale=scale))
        BayesianRegression: q(w)
          posterior: q(w) = Normal(loc learned, scale learned) of shape (501,), learned
    """

    density = "q"
    factors = {"posterior": "w"}

    def __init__(self, posterior: Distribution | Callable[..., Distribution]) -> None:
        super().__init__()
        self.posterior = as_prior(posterior)

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Samples w; the data are not used."""
        return pyro.sample("w", self.posterior())
