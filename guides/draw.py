"""DRAW: the guide."""

__all__ = ["DRAW"]

from collections.abc import Callable, Generator
from typing import Any

import pyro
from torch import Tensor, nn

from tarspyro.arguments import as_count
from tarspyro.conditional import distribution_mean
from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.nn import Canvas, Recurrence, as_recurrence
from tarspyro.sequential import sequential


class DRAW(StochasticModule):
    r"""The inference half of DRAW, which looks at the image anew in each step, and at what the
    canvas still lacks.

    .. math:: q(z_{0:T} \mid x) = \prod_{t=0}^{T-1} q(z_t \mid g_t), \qquad
              g_t = \mathrm{encoder}(\mathrm{read}(x, \hat{x}_t, h_{t-1}), h_{t-1}, g_{t-1}),
              \quad \hat{x}_t = x - \mathbb{E}[x \mid c_{t-1}]

    The decoder's hidden units h and the canvas c are functions of the draws, as in the model.
    Sites, in the plate ``data`` of size :math:`B`:

    - ``z_{t}``: the latent variable, of the posterior's event shape, for t from 0 to T - 1.

    Arguments:
        posterior: The approximate posterior q(z_t | g_t), such as a ``Conditional`` of the
            encoder's hidden units.
        encoder: The encoder's recurrence, called with what was read and the decoder's hidden
            units.
        read: What is read, from x, the error image and the decoder's hidden units, such as
            ``AttentionRead``.
        canvas: The canvas with the decoder that paints on it, the same module as the model's.
        likelihood: The likelihood p(x | c), the same module as the model's. With logits as
            canvas its mean is
            :math:`\sigma(c)`, as in the paper.
        steps: T, the number of steps.

    Raises:
        ValueError: If ``steps`` is below 1; when called, if x has another shape than the
            likelihood draws.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eqs. 3 to 8.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP, AttentionRead, AttentionWrite, Unchanged
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(10, 32)), AttentionWrite(32, (1, 8, 8), size=3))
        >>> likelihood = Conditional(dist.Bernoulli, Unchanged((1, 8, 8)), 64)
        >>> read, encoder = AttentionRead(32, (1, 8, 8), size=2), Recurrence(nn.LSTMCell(8 + 32, 32))
        >>> DRAW(Conditional(dist.Normal, MLP(32, []), 10), encoder, read, canvas, likelihood, steps=4)
        DRAW: q(z_t, g_t, c_t | x, g_{t-1}, c_{t-1}) = q(z_t | g_t) q(g_t | x, g_{t-1},
            c_{t-1}) q(c_t | z_t, c_{t-1})
          posterior: q(z_t | g_t) = Normal(loc, scale) of shape (10,) from MLP(32)
          encoder: q(g_t | x, g_{t-1}, c_{t-1}) = LSTMCell(40, 32)
          canvas: q(c_t | z_t, c_{t-1}) = AttentionWrite(3x3 on 1x8x8) after LSTMCell(10, 32)
    """

    density = "q"
    factors = {
        "posterior": "z_t | g_t",
        "encoder": "g_t | x, g_{t-1}, c_{t-1}",
        "canvas": "c_t | z_t, c_{t-1}",
    }

    def __init__(
        self,
        posterior: Callable[[Tensor], Any],
        encoder: Recurrence,
        read: nn.Module,
        canvas: Canvas,
        likelihood: Callable[[Tensor], Any],
        steps: int,
    ) -> None:
        super().__init__()
        self.posterior = as_conditional("posterior", posterior)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.encoder, self.canvas = (
            as_recurrence("encoder", encoder),
            as_recurrence("canvas", canvas),
        )
        self.read = read
        self.steps = as_count("steps", steps)

    @sequential
    def forward(self, x: Tensor) -> Any:
        """Samples the z_t given x."""
        return (yield from self.look(x))

    def look(self, x: Tensor, *given: Tensor) -> Generator[Any, Any, None]:
        """Yields the states of the canvas and the encoder before each step and after the last
        one.
        """
        data, state = (
            pyro.plate("data", len(x)),
            (self.canvas.initial(len(x)), self.encoder.initial(len(x))),
        )
        for t in range(self.steps):
            painting, memory = yield state
            h = self.canvas.hidden(painting)
            error = self.error(x, self.canvas.painted(painting))
            memory = self.encoder(memory, self.read(x, error, h), h, *given)
            with data:
                z = pyro.sample(f"z_{t}", self.posterior(self.encoder.hidden(memory)))
            state = self.canvas(painting, z, *given), memory
        yield state

    def error(self, x: Tensor, painted: Tensor) -> Tensor:
        """Returns what the canvas still lacks of x."""
        likelihood = self.likelihood(painted)
        if x.shape[1:] != likelihood.event_shape:
            raise ValueError(
                f"x has rows of shape {tuple(x.shape[1:])}, but the likelihood draws"
                f" {tuple(likelihood.event_shape)}."
            )
        return x - distribution_mean(likelihood)
