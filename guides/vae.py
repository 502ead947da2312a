"""The variational autoencoder: the guide."""

__all__ = ["VAE"]

from collections.abc import Callable
from typing import Any

import pyro
from torch import Tensor

from tarspyro.modules import StochasticModule


class VAE(StochasticModule):
    r"""The inference half of a variational autoencoder.

    .. math:: q(z \mid x)

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the posterior's event shape.

    Arguments:
        posterior: The approximate posterior q(z | x), such as a ``Conditional``.

    References:
        Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> VAE(Conditional(dist.Normal, MLP(64, [32]), 2))
        VAE: q(z | x)
          posterior: q(z | x) = Normal(loc, scale) of shape (2,) from MLP(64 -> 32, ReLU)
    """

    density = "q"
    factors = {"posterior": "z | x"}

    def __init__(self, posterior: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, x: Tensor) -> Tensor:
        """Samples z given x."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))
