"""DRAW given labels: the model."""

__all__ = ["ConditionalDRAW"]

from typing import Any

from torch import Tensor

from tarspyro.models.draw import DRAW
from tarspyro.sequential import sequential


class ConditionalDRAW(DRAW):
    r"""The generative half of DRAW that paints what a condition asks for, convolutional or
    not.

    .. math:: p(x, z_{0:T} \mid y) = p(x \mid c_{T-1}) \prod_{t=0}^{T-1} p(z_t), \qquad
              h_t = \mathrm{cell}(z_t, y, h_{t-1})

    The condition y (one-hot labels) is no site: bounds and log-likelihoods are those of
    :math:`\log p(x \mid y)`. The decoder's recurrence is called with z and y; all else is as
    in ``DRAW``, arguments and sites too.

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
        >>> from tarspyro.nn import AttentionWrite, Canvas, Recurrence, Unchanged
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(2 + 10, 32)), AttentionWrite(32, (1, 8, 8), size=3))
        >>> likelihood = Conditional(dist.Bernoulli, Unchanged((1, 8, 8)), 64)
        >>> p = ConditionalDRAW(default_prior(dist.Normal, 2), canvas, likelihood, steps=4)
        >>> p.formula
        'p(x, z_t, c_t | y, c_{t-1}) = p(x | c_t) p(z_t) p(c_t | z_t, y, c_{t-1})'
        >>> p(y=torch.eye(10)).shape  # one for each label
        torch.Size([10, 64])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.factors = {**self.factors, "canvas": "c_t | z_t, y, c_{t-1}"}

    @sequential
    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, *, batch_size: int = 1
    ) -> Any:
        """Samples the z_t and observes x; without x, generates one for each row of y, or
        ``batch_size`` for one.
        """
        if y is None:
            raise ValueError(
                "y must be given: models.ConditionalDRAW describes x given y, and y has no"
                " distribution."
            )
        return (yield from self.paint(x, max(batch_size, len(y)), y))
