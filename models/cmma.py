"""The conditional multimodal autoencoder: the model."""

__all__ = ["CMMA"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.distributions import as_conditional, as_prior, has_context
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class CMMA(StochasticModule):
    r"""The generative half of a conditional multimodal autoencoder.

    .. math:: p(x, z \mid y) = p(x \mid z) \, p(z \mid y)

    All information about y passes through the code: the likelihood does not see y, unlike that
    of ``ConditionalVAE``, so the prior must. The ELBO has one KL, KL(q(z | x, y) || p(z | y)).
    Earlier versions of the method added a KL to N(0, I), which is not part of a bound on
    :math:`\log p(x \mid y)`.

    The condition y is not a site. Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the prior's event shape;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        prior: The prior p(z | y), such as a ``Conditional``.
        likelihood: The likelihood p(x | z), such as a ``Conditional``.

    Raises:
        ValueError: If the prior is a distribution or a ``Prior``, which do not depend on y;
            when called, if y is not given.

    References:
        Pandey and Dukkipati (2016), Variational Methods for Conditional Multimodal Deep
        Learning, arXiv:1603.01801.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> prior = Conditional(dist.Normal, MLP(10, [32]), 2)
        >>> p = CMMA(prior, Conditional(dist.Bernoulli, MLP(2, [32]), 64))
        >>> p
        CMMA: p(x, z | y) = p(x | z) p(z | y)
          likelihood: p(x | z) = Bernoulli(logits) of shape (64,) from MLP(2 -> 32, ReLU)
          prior: p(z | y) = Normal(loc, scale) of shape (2,) from MLP(10 -> 32, ReLU)
        >>> p(y=torch.eye(10)).shape  # one for each label
        torch.Size([10, 64])
    """

    density = "p"
    factors = {"likelihood": "x | z", "prior": "z | y"}

    def __init__(
        self,
        prior: Callable[[Tensor], Distribution],
        likelihood: Callable[[Tensor], Distribution],
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.likelihood = as_conditional("likelihood", likelihood)
        if not has_context(self.prior):
            raise ValueError(
                "prior must be p(z | y), such as Conditional(...), so that x depends on y, got"
                f" {format_value(prior)}."
            )

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, *, batch_size: int = 1
    ) -> Tensor:
        """Samples z given y and observes x; without x, generates it.

        It generates one x for each row of y, or ``batch_size`` for a single row.
        """
        if y is None:
            raise ValueError(
                "y must be given, because models.CMMA has no distribution of y: call"
                " model(x, y), or model(y=y) to generate."
            )
        with pyro.plate("data", max(batch_size, len(y)) if x is None else len(x)):
            z = pyro.sample("z", self.prior(y))
            return pyro.sample("x", self.likelihood(z), obs=x)
