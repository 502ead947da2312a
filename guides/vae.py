"""The variational autoencoder: the guide."""

__all__ = ["VAE"]

from collections.abc import Callable

import pyro
from torch import Tensor, nn

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class VAE(StochasticModule):
    r"""The inference half of a variational autoencoder.

    .. math:: q(z \mid x)

    With a corruption :math:`q(\tilde{x} \mid x)` it is the guide of a denoising variational
    autoencoder. Its ELBO encodes the corrupted x and scores the clean x:

    .. math:: \mathbb{E}_{q(\tilde{x} \mid x)} \mathbb{E}_{q(z \mid \tilde{x})}
              [\log p(x, z) - \log q(z \mid \tilde{x})] \le \log p(x)

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the posterior's event shape.

    Arguments:
        posterior: The approximate posterior q(z | x), such as a ``Conditional``.
        corruption: Noise that is applied to x first, such as ``GaussianNoise(0.3)``. Noise
            modules act in training mode only.

    References:
        Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114; Im et al.
        (2017), Denoising Criterion for Variational Auto-Encoding Framework, arXiv:1511.06406.

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

    def __init__(
        self,
        posterior: Callable[[Tensor], Distribution],
        corruption: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.posterior = as_conditional("posterior", posterior)
        self.corruption = corruption or nn.Identity()
        if corruption is not None:
            self.factors = {"posterior": "z | x_noisy", "corruption": "x_noisy | x"}

    def forward(self, x: Tensor) -> Tensor:
        """Samples z given x."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(self.corruption(x)))
