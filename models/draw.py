"""DRAW: the model."""

__all__ = ["DRAW"]

from collections.abc import Callable, Generator
from typing import Any

import pyro
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.distributions import as_conditional, as_prior, has_context
from tarspyro.modules import StochasticModule
from tarspyro.nn import Canvas, as_recurrence
from tarspyro.sequences import sequential
from tarspyro.types import Distribution


class DRAW(StochasticModule):
    r"""The generative half of DRAW, which paints an image on a canvas in T steps.

    .. math:: p(x, z_{0:T}) = p(x \mid c_{T-1}) \prod_{t=0}^{T-1} p(z_t), \qquad
              h_t = \mathrm{cell}(z_t, h_{t-1}), \quad c_t = c_{t-1} + \mathrm{write}(h_t)

    The canvas c is a function of the draws z, and x depends on the last canvas. The prior may
    be learned, p(z_t | h_{t-1}), as in ``ConvDRAW``. Sites, in the plate ``data`` of size
    :math:`B`:

    - ``z_{t}``: the latent variable, of the prior's event shape, for t from 0 to T - 1;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        prior: The prior p(z_t) of each step: a distribution, or a module that returns one; or
            p(z_t | h_{t-1}), such as a ``Conditional`` of the decoder's hidden units.
        canvas: The canvas and its decoder; the guide takes the same module.
        likelihood: The likelihood p(x | c_{T-1}), such as a ``Conditional`` with the trunk
            ``IdentityTrunk``; the guide takes the same module.
        steps: T, the number of steps (glimpses in the paper).

    Raises:
        ValueError: If ``steps`` is below 1.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eqs. 3 to 18.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import AttentionWrite, IdentityTrunk, Recurrence
        >>> write = AttentionWrite(32, (1, 8, 8), size=3)
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(10, 32)), write)
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> p = DRAW(default_prior(dist.Normal, 10), canvas, likelihood, steps=4)
        >>> p
        DRAW: p(x, z_t, c_t | c_{t-1}) = p(x | c_t) p(z_t) p(c_t | z_t, c_{t-1})
          likelihood: p(x | c_t) = Bernoulli(logits) of shape (64,) from IdentityTrunk(1x8x8)
          prior: p(z_t) = Normal(loc=0, scale=1) of shape (10,)
          canvas: p(c_t | z_t, c_{t-1}) = AttentionWrite(3x3 on 1x8x8) after LSTMCell(10, 32)
        >>> p(batch_size=5).shape
        torch.Size([5, 64])
    """

    density = "p"

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        canvas: Canvas,
        likelihood: Callable[[Tensor], Distribution],
        steps: int,
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.canvas = as_recurrence("canvas", canvas)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.steps = as_count("steps", steps)
        self.factors = {
            "likelihood": "x | c_t",
            "prior": "z_t | h_{t-1}" if has_context(self.prior) else "z_t",
            "canvas": "c_t | z_t, c_{t-1}",
        }

    @sequential
    def forward(
        self, x: Tensor | None = None, *, batch_size: int = 1
    ) -> Generator[Any, Any, Tensor]:
        """Samples the z_t and observes x; without x, generates ``batch_size`` rows."""
        return (yield from self.paint(x, batch_size))

    def paint(
        self,
        x: Tensor | None,
        batch_size: int,
        *condition: Tensor,
        attend: Callable[[Tensor], Tensor] | None = None,
    ) -> Generator[Any, Any, Tensor]:
        """Yields the state of the canvas before each step and after the last one.

        The decoder takes z_t and the condition, and if given the context ``attend(h_{t-1})``.
        """
        size = batch_size if x is None else len(x)
        data = pyro.plate("data", size)
        state = self.canvas.initial(size)
        for t in range(self.steps):
            state = yield state
            h = self.canvas.hidden(state)
            with data:
                z = pyro.sample(f"z_{t}", self.prior_at(t, h))
            context = () if attend is None else (attend(h),)
            state = self.canvas(state, z, *condition, *context)
        state = yield state
        with data:
            return pyro.sample("x", self.likelihood(self.canvas.painted(state)), obs=x)

    def prior_at(self, t: int, h: Tensor) -> Distribution:
        """Returns the prior of z_t given the decoder's hidden units before the step."""
        return self.prior(h)
