"""Vector-quantized codes."""

__all__ = ["VectorQuantized"]

from collections.abc import Callable, Mapping

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from tarspyro.arguments import as_shape, check_module, check_number
from tarspyro.conditional import Interface
from tarspyro.distributions.coded import CodePrior, check_codes
from tarspyro.modules import Configurable
from tarspyro.nn.codebook import Codebook
from tarspyro.nn.heads import make_head, through_heads
from tarspyro.scopes import evaluating


class VectorQuantized(Configurable, Interface):
    r"""A network whose outputs are replaced by the nearest vectors of a codebook.

    .. math:: v = W \, \mathrm{trunk}(x) + b, \qquad z = e_{k(v)}, \qquad
              k(v) = \arg\min_k \lVert v - e_k \rVert

    It is the posterior of a vector-quantized VAE: a point distribution at z, with the straight
    through gradient :math:`\partial z / \partial v = 1`. The model's prior is ``prior()``,
    uniform over the codes at first; an ``Autoregressive`` that is learned on ``indices``
    afterwards replaces it.

    In evaluation mode the ELBO is :math:`\log p(x \mid z) + \log p(k)`, a bound on log p(x)
    for a fixed codebook: it counts one of all codes. In training mode the log-density of z is
    the penalty :math:`\beta \lVert v - e \rVert^2`, which keeps the outputs near their codes:
    the loss is then the bound minus this penalty. The codes are moved by averages and not by
    the loss.

    Arguments:
        trunk: Any ``torch.nn.Module`` from the context values to features.
        codebook: The codebook, which the model's prior shares.
        event_shape: The shape of z, ``(size, *positions)``: the size of a code, then the
            shape of a map of codes, if there are several.
        commitment: The weight :math:`\beta` of the penalty.

    Raises:
        TypeError: If ``trunk`` is not a module, or ``codebook`` is no codebook.
        ValueError: If ``event_shape`` does not begin with the size of a code, or ``commitment``
            is negative.

    References:
        Van den Oord et al. (2017), Neural Discrete Representation Learning, arXiv:1711.00937,
        eq. 1 to 3.

    Example:
        >>> from tarspyro import Autoregressive, Conditional, guides, models
        >>> from tarspyro.nn import MLP, Codebook, ConvEncoder, PixelCNN
        >>> codebook = Codebook(16, 4)
        >>> posterior = VectorQuantized(ConvEncoder((1, 8, 8), [8]), codebook, (4, 2, 2))
        >>> likelihood = Conditional(dist.Bernoulli, MLP((4, 2, 2), [32]), (1, 8, 8))
        >>> p = models.VAE(posterior.prior(), likelihood)
        >>> q = guides.VAE(posterior)
        >>> posterior.indices(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 2, 2])
        >>> trunk = PixelCNN((2, 2), 8, 2, num_classes=16)
        >>> shapes = {"logits": (2, 2, 16)}
        >>> codes = Autoregressive(dist.Categorical, trunk, (2, 2), param_shapes=shapes)
        >>> models.VAE(posterior.prior(codes), likelihood)(batch_size=5).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        trunk: nn.Module,
        codebook: Codebook,
        event_shape: int | tuple[int, ...],
        *,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        check_module("trunk", trunk)
        check_number("commitment", commitment, 0)
        self.event_shape = as_shape("event_shape", event_shape)
        check_codes(codebook, self.event_shape)
        self.trunk = trunk
        self.heads = nn.ModuleDict({"value": make_head(trunk, self.event_shape)})
        self.codebook = codebook
        self.commitment = commitment

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the point distribution at the codes given the context values."""
        return self.distribution(self.outputs(*context))

    def outputs(self, *context: Tensor) -> dict[str, Tensor]:
        """Returns the network's outputs v."""
        return through_heads(self.trunk, self.heads, context)

    def distribution(self, outputs: Mapping[str, Tensor]) -> Distribution:
        """Returns the distribution of the network's outputs."""
        values = outputs["value"].movedim(-len(self.event_shape), -1)
        if self.training:
            self.codebook.update(values)
        codes = self.codebook.vectors(self.codebook.nearest(values))
        through = codes + (values - values.detach())
        z = through.movedim(-1, -len(self.event_shape))
        if not self.training:
            return dist.Delta(z, event_dim=len(self.event_shape))
        ndims = len(self.event_shape)
        penalty = (values - codes).square().flatten(-ndims).sum(-1)
        return dist.Delta(z, self.commitment * penalty, event_dim=ndims)

    def prior(
        self, indices: Distribution | Callable[..., Distribution] | None = None
    ) -> CodePrior:
        """Returns a prior over the codes, for the model.

        Arguments:
            indices: The prior of the indices; uniform if not given.
        """
        return CodePrior(self.codebook, tuple(self.event_shape), indices)

    def indices(self, *context: Tensor) -> Tensor:
        """Returns the indices of the codes of data points, of shape ``(N, *positions)``.

        Computed in evaluation mode, without gradients.
        """
        with evaluating(self), torch.no_grad():
            parts = zip(*(part.split(1000) for part in context), strict=True)
            found = []
            for part in parts:
                values = self.outputs(*part)["value"].movedim(-len(self.event_shape), -1)
                found.append(self.codebook.nearest(values))
        return torch.cat(found)

    @property
    def headline(self) -> str:
        """The class, the number of codes and the event shape."""
        count = self.codebook.num_codes
        return f"VectorQuantized of {count} codes, of shape {tuple(self.event_shape)}"

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"
