"""The autoencoder: the guide."""

__all__ = ["Autoencoder"]

from collections.abc import Callable

import pyro
from torch import Tensor, nn

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class Autoencoder(StochasticModule):
    r"""The encoder of an autoencoder, as a guide with all probability on one code.

    .. math:: q(z \mid x) = \delta(z - f(x))

    With a corruption it is the encoder of a denoising autoencoder: f encodes the corrupted x,
    and the model scores the clean x.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the code, of the encoder's event shape.

    Arguments:
        encoder: The encoder, such as a ``Deterministic``.
        corruption: Noise that is applied to x first, such as ``MaskingNoise(0.25)``. Noise
            modules act in training mode only.

    References:
        Vincent, Larochelle, Bengio and Manzagol (2008), Extracting and Composing Robust
        Features with Denoising Autoencoders.

    Example:
        >>> from tarspyro import Deterministic
        >>> from tarspyro.nn import MLP, MaskingNoise
        >>> Autoencoder(Deterministic(MLP(64, [32]), 2))
        Autoencoder: q(z | x)
          encoder: q(z | x) = Deterministic of shape (2,) from MLP(64 -> 32, ReLU)
        >>> Autoencoder(Deterministic(MLP(64, [32]), 2), corruption=MaskingNoise(0.25))
        Autoencoder: q(z, x_noisy | x) = q(z | x_noisy) q(x_noisy | x)
          encoder: q(z | x_noisy) = Deterministic of shape (2,) from MLP(64 -> 32, ReLU)
          corruption: q(x_noisy | x) = MaskingNoise(p=0.25)
    """

    density = "q"
    factors = {"encoder": "z | x"}

    def __init__(
        self,
        encoder: Callable[[Tensor], Distribution],
        corruption: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = as_conditional("encoder", encoder)
        self.corruption = corruption or nn.Identity()
        if corruption is not None:
            self.factors = {"encoder": "z | x_noisy", "corruption": "x_noisy | x"}

    def forward(self, x: Tensor) -> Tensor:
        """Returns the code of x."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(self.corruption(x)))
