"""The autoencoder: the model."""

__all__ = ["Autoencoder"]

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from torch import Tensor
from torch.distributions import constraints

from tarspyro.arguments import as_shape
from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class Autoencoder(StochasticModule):
    r"""The decoder of an autoencoder, as a model whose code has no prior.

    .. math:: p(x \mid z)

    The code z has an improper flat prior of density one. With a deterministic encoder f the
    ELBO is then the autoencoder's objective, :math:`\log p(x \mid f(x))` in nats per data
    point. A flat prior cannot be sampled. To decode codes, condition on them:
    ``pyro.condition(p, {"z": z})(batch_size=len(z))``.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the code, with shape ``(B, *code_shape)``;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        likelihood: The likelihood p(x | z), such as a ``Conditional``.
        code_shape: The shape of a code.

    Example:
        >>> import torch
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> p = Autoencoder(Conditional(dist.Bernoulli, MLP(2, [32]), 64), 2)
        >>> pyro.condition(p, {"z": torch.zeros(5, 2)})(batch_size=5).shape
        torch.Size([5, 64])
    """

    density = "p"
    factors = {"likelihood": "x | z"}

    def __init__(
        self, likelihood: Callable[[Tensor], Distribution], code_shape: int | tuple[int, ...]
    ) -> None:
        super().__init__()
        self.likelihood = as_conditional("likelihood", likelihood)
        self.code_shape = as_shape("code_shape", code_shape)

    def forward(self, x: Tensor | None = None, *, batch_size: int = 1) -> Tensor:
        """Decodes z and observes x; a guide or a condition must give z."""
        with pyro.plate("data", batch_size if x is None else len(x)):
            support = constraints.independent(constraints.real, len(self.code_shape))
            flat = dist.ImproperUniform(support, (), self.code_shape)
            z = pyro.sample("z", flat)
            return pyro.sample("x", self.likelihood(z), obs=x)
