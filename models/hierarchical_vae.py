"""The hierarchical variational autoencoder: the model."""

__all__ = ["HierarchicalVAE"]

from collections.abc import Callable, Sequence

import pyro
from torch import Tensor, nn

from tarspyro.arguments import as_module_list
from tarspyro.distributions import as_conditional, as_prior
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class HierarchicalVAE(StochasticModule):
    r"""The generative half of a variational autoencoder with several latent layers.

    .. math:: p(x, z_1, \dots, z_L) = p(x \mid z_1) \, p(z_1 \mid z_2) \cdots
              p(z_{L-1} \mid z_L) \, p(z_L)

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z_L``, ..., ``z_1``: the latent variables, of the event shapes of the prior and the
      conditionals; ``z_1`` is next to the data;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        prior: The prior of the top layer, p(z_L): a distribution, or a module that returns
            one.
        conditionals: The L - 1 layers in between, p(z_1 | z_2) first, such as ``Conditional``
            modules.
        likelihood: The likelihood p(x | z_1), such as a ``Conditional``.

    Raises:
        TypeError: If ``conditionals`` is not a list of modules.

    References:
        Burda et al. (2015), Importance Weighted Autoencoders, arXiv:1509.00519, eq. 1 and
        section 5.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> between = Conditional(dist.Normal, MLP(2, [16]), 4)
        >>> likelihood = Conditional(dist.Bernoulli, MLP(4, [32]), 64)
        >>> p = HierarchicalVAE(default_prior(dist.Normal, 2), [between], likelihood)
        >>> p
        HierarchicalVAE: p(x, z_1, z_2) = p(x | z_1) p(z_1 | z_2) p(z_2)
          likelihood: p(x | z_1) = Bernoulli(logits) of shape (64,) from MLP(4 -> 32, ReLU)
          conditionals.0: p(z_1 | z_2) = Normal(loc, scale) of shape (4,) from MLP(2 -> 16,
          ReLU)
          prior: p(z_2) = Normal(loc=0, scale=1) of shape (2,)
        >>> p(batch_size=5).shape
        torch.Size([5, 64])
    """

    density = "p"

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        conditionals: Sequence[nn.Module],
        likelihood: Callable[[Tensor], Distribution],
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.conditionals = as_module_list("conditionals", conditionals)
        top = len(self.conditionals) + 1
        between = {f"conditionals.{i - 1}": f"z_{i} | z_{i + 1}" for i in range(1, top)}
        self.factors = {"likelihood": "x | z_1", **between, "prior": f"z_{top}"}

    def forward(self, x: Tensor | None = None, *, batch_size: int = 1) -> Tensor:
        """Samples z_L, ..., z_1 and observes x; without x, generates ``batch_size`` rows."""
        layers = list(enumerate(self.conditionals, start=1))
        with pyro.plate("data", batch_size if x is None else len(x)):
            z = pyro.sample(f"z_{len(layers) + 1}", self.prior())
            for i, conditional in reversed(layers):
                z = pyro.sample(f"z_{i}", conditional(z))
            return pyro.sample("x", self.likelihood(z), obs=x)
