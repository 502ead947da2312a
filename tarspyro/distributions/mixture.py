"""Mixtures of Normals as priors."""

__all__ = ["NormalMixture"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from tarspyro.arguments import as_count
from tarspyro.modules import Configurable
from tarspyro.types import Distribution


class NormalMixture(Configurable):
    r"""A prior that is a mixture of K multivariate Normals.

    .. math:: p(z) = \sum_{k=1}^K \pi_k \, \mathcal{N}(z; \mu_k, L_k L_k^T)

    Weights, means and Cholesky factors are learned with a pair. They start with equal weights,
    means from N(0, I) and covariances I; ``set`` gives them other values, and ``fit_prior``
    those of codes. It takes the place of any prior of vectors. Draws have no gradients.

    Arguments:
        event_shape: The size of a draw, D.
        components: The number of Normals, K.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> prior = NormalMixture(2, components=10)
        >>> prior
        mixture of 10 Normals of shape (2,)
        >>> prior().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, event_shape: int, components: int) -> None:
        super().__init__()
        size = as_count("event_shape", event_shape)
        components = as_count("components", components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, size))
        self.free_scale_tril = nn.Parameter(torch.zeros(components, size, size))

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factors of the covariances, of shape ``(K, D, D)``."""
        factors: Tensor = transform_to(constraints.lower_cholesky)(self.free_scale_tril)
        return factors

    @torch.no_grad()
    def set(self, weights: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
        """Sets the weights, the means and the Cholesky factors of the Normals."""
        free = transform_to(constraints.lower_cholesky).inv(scale_tril)
        self.logits.copy_(weights.log())
        self.loc.copy_(loc)
        self.free_scale_tril.copy_(free)

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution, which does not depend on the context."""
        components = dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)
        weights = dist.Categorical(logits=self.logits)
        mixture: Distribution = dist.MixtureSameFamily(weights, components)
        return mixture

    @property
    def headline(self) -> str:
        """The number of Normals and the shape of a draw."""
        components, size = self.loc.shape
        return f"mixture of {components} Normals of shape ({size},)"

    def __repr__(self) -> str:
        return self.headline
