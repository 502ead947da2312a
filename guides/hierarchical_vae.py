"""The hierarchical variational autoencoder: the guide."""

__all__ = ["HierarchicalVAE"]

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from tarspyro.arguments import as_module_list, check_choice
from tarspyro.conditional import distribution_mean
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class HierarchicalVAE(StochasticModule):
    r"""The inference half of a variational autoencoder with several latent layers.

    With ``chain="samples"`` each layer takes a draw of the layer below:

    .. math:: q(z_1, \dots, z_L \mid x) = q(z_1 \mid x) \, q(z_2 \mid z_1) \cdots
              q(z_L \mid z_{L-1})

    With ``chain="means"`` each layer takes the mean of the layer below,
    :math:`m_i = \mathbb{E}_{q(z_i \mid x)}[z_i]`, so the layers are independent given x:

    .. math:: q(z_1, \dots, z_L \mid x) = q_1(z_1 \mid x) \, q_2(z_2 \mid m_1(x)) \cdots
              q_L(z_L \mid m_{L-1}(x))

    The networks then run once for each data point, however many draws are taken. The layers
    are sampled in the model's order, from the top, so the ELBO can use the KL of every layer in
    closed form.

    With ``chain="samples"`` a scale that is the exponential of an unbounded function of a draw
    overflows after a few layers. Use a bounded activation (``MLP(..., activation=nn.Tanh)``),
    a normalization, or softplus (``Conditional(..., transforms={"scale":
    SoftplusTransform()})``).

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z_1``, ..., ``z_L``: the latent variables, of the posteriors' event shapes; ``z_1`` is
      next to the data.

    Arguments:
        posteriors: The layers, q(z_1 | x) first, such as ``Conditional`` modules.
        chain: What each layer passes to the next, ``"samples"`` or ``"means"``.

    Raises:
        TypeError: If ``posteriors`` is not a list of modules.
        ValueError: If there is no posterior, or ``chain`` is not one of the two.
        NotImplementedError: When called with ``chain="means"``, if a layer has no mean in
            closed form.

    References:
        Burda et al. (2015), Importance Weighted Autoencoders, arXiv:1509.00519, eq. 2; the
        chain on means is that of Gulrajani et al. (2016), PixelVAE, arXiv:1611.05013.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> lower = Conditional(dist.Normal, MLP(64, [32]), 4)
        >>> posteriors = [lower, Conditional(dist.Normal, MLP(4, [16]), 2)]
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
        self.posteriors = as_module_list("posteriors", posteriors)
        self.chain = chain
        if not self.posteriors:
            raise ValueError("posteriors must hold at least q(z_1 | x), got an empty list.")
        check_choice("chain", chain, ("samples", "means"))

        factors = {}
        given = "x"
        for i in range(len(self.posteriors)):
            factors[f"posteriors.{i}"] = f"z_{i + 1} | {given}"
            if chain == "samples":
                given = f"z_{i + 1}"
        self.factors = factors

    def forward(self, x: Tensor) -> list[Tensor]:
        """Samples all layers given x; returns the draws, z_1 first."""
        with pyro.plate("data", len(x)):
            return self._from_samples(x) if self.chain == "samples" else self._from_means(x)

    def _from_samples(self, x: Tensor) -> list[Tensor]:
        """Samples q(z_1 | x), q(z_2 | z_1), ..."""
        draws: list[Tensor] = []
        below = x
        for i, posterior in enumerate(self.posteriors, start=1):
            below = pyro.sample(f"z_{i}", posterior(below))
            draws.append(below)
        return draws

    def _from_means(self, x: Tensor) -> list[Tensor]:
        """Samples q(z_L | m_{L-1}), ..., q(z_1 | x), with m_i the mean of q(z_i | m_{i-1})."""
        layers: list[Distribution] = []
        for posterior in self.posteriors:
            layers.append(posterior(distribution_mean(layers[-1]) if layers else x))

        draws: list[Tensor] = []
        for i, layer in reversed(list(enumerate(layers, start=1))):
            draws.append(pyro.sample(f"z_{i}", layer))
        return draws[::-1]
