"""Conditional DRAW: the model."""

__all__ = ["ConditionalDRAW"]

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from tarspyro.models.draw import DRAW
from tarspyro.nn import Canvas
from tarspyro.sequences import sequential
from tarspyro.types import Distribution


class ConditionalDRAW(DRAW):
    r"""The generative half of DRAW given a condition.

    .. math:: p(x, z_{0:T} \mid y) = p(x \mid c_{T-1}) \prod_{t=0}^{T-1} p(z_t), \qquad
              h_t = \mathrm{cell}(z_t, y, h_{t-1})

    The condition y (one-hot labels) is not a site: bounds and log-likelihoods are those of
    :math:`\log p(x \mid y)`. The decoder's recurrence takes z and y. Arguments and sites are
    those of ``DRAW``; its parts may be those of ``ConvDRAW``.

    Raises:
        ValueError: If ``steps`` is below 1; when called, if y is not given.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623; Sohn, Lee and Yan (2015), Learning Structured Output Representation
        using Deep Conditional Generative Models.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import AttentionWrite, Canvas, IdentityTrunk, Recurrence
        >>> write = AttentionWrite(32, (1, 8, 8), size=3)
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(2 + 10, 32)), write)
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> p = ConditionalDRAW(default_prior(dist.Normal, 2), canvas, likelihood, steps=4)
        >>> p.formula
        'p(x, z_t, c_t | y, c_{t-1}) = p(x | c_t) p(z_t) p(c_t | z_t, y, c_{t-1})'
        >>> p(y=torch.eye(10)).shape  # one for each label
        torch.Size([10, 64])
    """

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        canvas: Canvas,
        likelihood: Callable[[Tensor], Distribution],
        steps: int,
    ) -> None:
        super().__init__(prior, canvas, likelihood, steps)
        self.factors = {**self.factors, "canvas": "c_t | z_t, y, c_{t-1}"}

    @sequential
    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, *, batch_size: int = 1
    ) -> Generator[Any, Any, Tensor]:
        """Samples the z_t and observes x given y; without x, generates it.

        It generates one x for each row of y, or ``batch_size`` for a single row.
        """
        if y is None:
            raise ValueError(
                "y must be given, because models.ConditionalDRAW has no distribution of y: call"
                " model(x, y), or model(y=y) to generate."
            )
        return (yield from self.paint(x, max(batch_size, len(y)), y))
