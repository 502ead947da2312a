"""The conditional variational autoencoder: the guide."""

__all__ = ["ConditionalVAE"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class ConditionalVAE(StochasticModule):
    r"""The inference half of a conditional variational autoencoder.

    .. math:: q(z \mid x, y)

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the posterior's event shape.

    Arguments:
        posterior: The approximate posterior q(z | x, y), such as a ``Conditional`` whose trunk
            takes x and y.

    References:
        Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep
        Conditional Generative Models.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> ConditionalVAE(Conditional(dist.Normal, MLP([64, 10], [32]), 2))
        ConditionalVAE: q(z | x, y)
          posterior: q(z | x, y) = Normal(loc, scale) of shape (2,) from MLP(74 -> 32, ReLU)
    """

    density = "q"
    factors = {"posterior": "z | x, y"}

    def __init__(self, posterior: Callable[[Tensor, Tensor], Distribution]) -> None:
        super().__init__()
        self.posterior = as_conditional("posterior", posterior)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Samples z given x and y."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, y))
