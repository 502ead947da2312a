"""The conditional multimodal autoencoder: the model."""

__all__ = ["CMMA"]

from collections.abc import Callable
from typing import Any

import pyro
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.distributions import as_conditional, as_prior, has_context
from tarspyro.modules import StochasticModule


class CMMA(StochasticModule):
    r"""The generative half of a conditional multimodal autoencoder.

    .. math:: p(x, z \mid y) = p(x \mid z) \, p(z \mid y)

    What y says of x goes through the code: unlike that of ``ConditionalVAE`` the likelihood
    does not see y, and the prior has to. The ELBO has one KL, KL(q(z | x, y) || p(z | y)); a
    second one to N(0, I), which earlier versions of the method had beside it, would not be
    part of a bound on :math:`\log p(x \mid y)`.

    y is no site. Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the prior's event shape;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        prior: The prior p(z | y), such as a ``Conditional``.
        likelihood: The likelihood p(x | z), such as a ``Conditional``.

    Raises:
        ValueError: If the prior is a distribution or a ``Prior``, the same for every y; when
            called, if y is not given.

    References:
        Pandey and Dukkipati (2016), Variational Methods for Conditional Multimodal Deep
        Learning, arXiv:1603.01801.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> p = CMMA(Conditional(dist.Normal, MLP(10, [32]), 2), Conditional(dist.Bernoulli, MLP(2, [32]), 64))
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
        self, prior: Callable[[Tensor], Any], likelihood: Callable[[Tensor], Any]
    ) -> None:
        super().__init__()
        self.prior, self.likelihood = as_prior(prior), as_conditional("likelihood", likelihood)
        if not has_context(self.prior):
            raise ValueError(
                f"prior must be p(z | y), such as Conditional(...), got {format_value(prior)}:"
                " x would not depend on y."
            )

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, *, batch_size: int = 1
    ) -> Tensor:
        """Samples z given y and observes x; without x, generates one for each row of y, or
        ``batch_size`` for one.
        """
        if y is None:
            raise ValueError(
                "y must be given: models.CMMA describes x given y, and y has no distribution."
            )
        with pyro.plate("data", max(batch_size, len(y)) if x is None else len(x)):
            z = pyro.sample("z", self.prior(y))
            return pyro.sample("x", self.likelihood(z), obs=x)
