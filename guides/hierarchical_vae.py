"""The variational autoencoder with several layers of latent variables: the guide."""

__all__ = ["HierarchicalVAE"]

from collections.abc import Sequence
from typing import Any

import pyro
from torch import Tensor, nn

from tarspyro.arguments import check_choice
from tarspyro.conditional import distribution_mean
from tarspyro.modules import StochasticModule, layers_of


class HierarchicalVAE(StochasticModule):
    r"""The inference half of a variational autoencoder with a chain of latent variables, from
    the data upwards.

    Chained on draws, every layer sees a draw of the one below:

    .. math:: q(z_1, \dots, z_L \mid x) = q(z_1 \mid x) \, q(z_2 \mid z_1) \cdots q(z_L \mid z_{L-1})

    Chained on means, it sees the mean of the one below, :math:`m_i = \mathbb{E}_{q(z_i \mid
    x)}[z_i]`, so that the layers are independent given x:

    .. math:: q(z_1, \dots, z_L \mid x) = q_1(z_1 \mid x) \, q_2(z_2 \mid m_1(x)) \cdots q_L(z_L \mid m_{L-1}(x))

    All networks then see a data point once, however many draws are taken of it, and the layers
    are drawn in the model's order, from the top, which is where the ELBO may take the KL of
    every layer in closed form.

    Scales that are exponentials, each of features of a draw with the last one's scale, leave
    the range of numbers after few layers: features that are bounded (``MLP(...,
    activation=nn.Tanh)``) or normalized keep them in it, as does softplus (``Conditional(...,
    transforms={"scale": SoftplusTransform()})``).

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z_1``, ..., ``z_L``: the latent variables, of the posteriors' event shapes; ``z_1`` is
      nearest the data.

    Arguments:
        posteriors: The layers, q(z_1 | x) first, such as ``Conditional`` modules.
        chain: What a layer passes on to the next, its ``"samples"`` or its ``"means"``.

    Raises:
        TypeError: If ``posteriors`` is not a list of modules.
        ValueError: If there is no posterior, or ``chain`` is neither.
        NotImplementedError: When called, if a mean is to be passed on that has no closed form.

    References:
        Burda et al. (2015), Importance Weighted Autoencoders, arXiv:1509.00519, eq. 2; the
        chain on means is that of Gulrajani et al. (2016), PixelVAE, arXiv:1611.05013.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> posteriors = [Conditional(dist.Normal, MLP(64, [32]), 4), Conditional(dist.Normal, MLP(4, [16]), 2)]
        >>> HierarchicalVAE(posteriors)
        HierarchicalVAE: q(z_1, z_2 | x) = q(z_1 | x) q(z_2 | z_1)
          posteriors.0: q(z_1 | x) = Normal(loc, scale) of shape (4,) from MLP(64 -> 32, ReLU)
          posteriors.1: q(z_2 | z_1) = Normal(loc, scale) of shape (2,) from MLP(4 -> 16, ReLU)
        >>> HierarchicalVAE(posteriors, chain="means").formula
        'q(z_1, z_2 | x) = q(z_1 | x) q(z_2 | x)'
    """

    density = "q"

    def __init__(self, posteriors: Sequence[nn.Module], chain: str = "samples") -> None:
        super().__init__()
        self.posteriors, self.chain = layers_of("posteriors", posteriors), chain
        if not self.posteriors:
            raise ValueError("posteriors must hold at least q(z_1 | x), got none.")
        check_choice("chain", chain, ("samples", "means"))
        below = [
            "x" if i == 0 or chain == "means" else f"z_{i}"
            for i in range(len(self.posteriors))
        ]
        self.factors = {
            f"posteriors.{i}": f"z_{i + 1} | {given}" for i, given in enumerate(below)
        }

    def forward(self, x: Tensor) -> list[Tensor]:
        """Samples all layers given x; returns the draws, z_1 first."""
        with pyro.plate("data", len(x)):
            if self.chain == "samples":
                draws = [x]
                for i, posterior in enumerate(self.posteriors, start=1):
                    draws.append(pyro.sample(f"z_{i}", posterior(draws[-1])))
                return draws[1:]
            layers: list[Any] = []
            for posterior in self.posteriors:
                layers.append(posterior(distribution_mean(layers[-1]) if layers else x))
            return [pyro.sample(f"z_{i}", layers[i - 1]) for i in range(len(layers), 0, -1)][
                ::-1
            ]
