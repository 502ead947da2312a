"""The variational autoencoder: the model."""

__all__ = ["VAE"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.distributions import as_conditional, as_prior
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class VAE(StochasticModule):
    r"""The generative half of a variational autoencoder.

    .. math:: p(x, z) = p(x \mid z) \, p(z)

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the prior's event shape;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        prior: The prior p(z): a distribution, or a module that returns one.
        likelihood: The likelihood p(x | z), such as a ``Conditional``.

    References:
        Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> p = VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [32]), 64))
        >>> p
        VAE: p(x, z) = p(x | z) p(z)
          likelihood: p(x | z) = Bernoulli(logits) of shape (64,) from MLP(2 -> 32, ReLU)
          prior: p(z) = Normal(loc=0, scale=1) of shape (2,)
        >>> p(batch_size=5).shape
        torch.Size([5, 64])
    """

    density = "p"
    factors = {"likelihood": "x | z", "prior": "z"}

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        likelihood: Callable[[Tensor], Distribution],
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.likelihood = as_conditional("likelihood", likelihood)

    def forward(self, x: Tensor | None = None, *, batch_size: int = 1) -> Tensor:
        """Samples z and observes x; without x, generates ``batch_size`` rows."""
        with pyro.plate("data", batch_size if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)
