"""Conditional DRAW: the guide."""

__all__ = ["ConditionalDRAW"]

from collections.abc import Generator
from typing import Any

from torch import Tensor

from tarspyro.guides.draw import DRAW
from tarspyro.sequences import sequential


class ConditionalDRAW(DRAW):
    r"""The inference half of DRAW given a condition.

    .. math:: q(z_{0:T} \mid x, y) = \prod_{t=0}^{T-1} q(z_t \mid g_t), \qquad
              g_t = \mathrm{encoder}(r_t, h_{t-1}, y, g_{t-1}), \quad
              r_t = \mathrm{read}(x, \hat{x}_t, h_{t-1})

    The encoder's recurrence takes the features r that were read, the decoder's hidden units
    and the condition y (one-hot labels); the decoder's takes z and y. Arguments and sites are
    those of ``DRAW``; its parts may be those of ``ConvDRAW``.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623; Sohn, Lee and Yan (2015), Learning Structured Output Representation
        using Deep Conditional Generative Models.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP, AttentionRead, AttentionWrite
        >>> from tarspyro.nn import Canvas, IdentityTrunk, Recurrence
        >>> write = AttentionWrite(32, (1, 8, 8), size=3)
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(2 + 10, 32)), write)
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> encoder = Recurrence(nn.LSTMCell(8 + 32 + 10, 32))
        >>> read = AttentionRead(32, (1, 8, 8), size=2)
        >>> posterior = Conditional(dist.Normal, MLP(32, []), 2)
        >>> q = ConditionalDRAW(posterior, encoder, read, canvas, likelihood, steps=4)
        >>> q.factorization
        'q(z_t | g_t) q(g_t | x, y, g_{t-1}, c_{t-1}) q(c_t | z_t, y, c_{t-1})'
    """

    factors = {
        "posterior": "z_t | g_t",
        "encoder": "g_t | x, y, g_{t-1}, c_{t-1}",
        "canvas": "c_t | z_t, y, c_{t-1}",
    }

    @sequential
    def forward(self, x: Tensor, y: Tensor) -> Generator[Any, Any, None]:
        """Samples the z_t given x and y."""
        return (yield from self.look(x, y))
