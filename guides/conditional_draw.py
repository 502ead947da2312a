"""DRAW given labels: the guide."""

__all__ = ["ConditionalDRAW"]

from typing import Any

from torch import Tensor

from tarspyro.guides.draw import DRAW
from tarspyro.sequential import sequential


class ConditionalDRAW(DRAW):
    r"""The inference half of DRAW given a condition, convolutional or not.

    .. math:: q(z_{0:T} \mid x, y) = \prod_{t=0}^{T-1} q(z_t \mid g_t), \qquad
              g_t = \mathrm{encoder}(\mathrm{read}(x, \hat{x}_t, h_{t-1}), h_{t-1}, y, g_{t-1})

    The encoder's recurrence is called with what was read, the decoder's hidden units and y
    (one-hot labels), the decoder's with z and y; all else is as in ``DRAW``, arguments and
    sites too.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623; Sohn, Lee and Yan (2015), Learning Structured Output Representation
        using Deep Conditional Generative Models.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP, AttentionRead, AttentionWrite, Canvas, Recurrence, Unchanged
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(2 + 10, 32)), AttentionWrite(32, (1, 8, 8), size=3))
        >>> likelihood = Conditional(dist.Bernoulli, Unchanged((1, 8, 8)), 64)
        >>> read, encoder = AttentionRead(32, (1, 8, 8), size=2), Recurrence(nn.LSTMCell(8 + 32 + 10, 32))
        >>> posterior = Conditional(dist.Normal, MLP(32, []), 2)
        >>> ConditionalDRAW(posterior, encoder, read, canvas, likelihood, steps=4).factorization
        'q(z_t | g_t) q(g_t | x, y, g_{t-1}, c_{t-1}) q(c_t | z_t, y, c_{t-1})'
    """

    factors = {
        "posterior": "z_t | g_t",
        "encoder": "g_t | x, y, g_{t-1}, c_{t-1}",
        "canvas": "c_t | z_t, y, c_{t-1}",
    }

    @sequential
    def forward(self, x: Tensor, y: Tensor) -> Any:
        """Samples the z_t given x and y."""
        return (yield from self.look(x, y))
