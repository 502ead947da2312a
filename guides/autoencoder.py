"""The autoencoder: the guide."""

__all__ = ["Autoencoder"]

from collections.abc import Callable
from typing import Any

import pyro
from torch import Tensor

from tarspyro.modules import StochasticModule


class Autoencoder(StochasticModule):
    r"""The encoder of an autoencoder, as a guide that puts all probability on one code.

    .. math:: q(z \mid x) = \delta(z - f(x))

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the code, of the encoder's event shape.

    Arguments:
        encoder: The encoder, such as a ``Deterministic``.

    Example:
        >>> from tarspyro import Deterministic
        >>> from tarspyro.nn import MLP
        >>> Autoencoder(Deterministic(MLP(64, [32]), 2))
        Autoencoder: q(z | x)
          encoder: q(z | x) = Deterministic of shape (2,) from MLP(64 -> 32, ReLU)
    """

    density = "q"
    factors = {"encoder": "z | x"}

    def __init__(self, encoder: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Returns the code of x."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))
