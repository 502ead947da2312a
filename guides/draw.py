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
from tarspyro.sequences import sequential
from tarspyro.types import Distribution


class DRAW(StochasticModule):
    r"""The inference half of DRAW, which reads the image in each step.

    .. math:: q(z_{0:T} \mid x) = \prod_{t=0}^{T-1} q(z_t \mid g_t), \qquad
              g_t = \mathrm{encoder}(\mathrm{read}(x, \hat{x}_t, h_{t-1}), h_{t-1}, g_{t-1}),
              \quad \hat{x}_t = x - \mathbb{E}[x \mid c_{t-1}]

    It reads x and the error image :math:`\hat{x}`, the difference between x and the canvas.
    The decoder's hidden units h and the canvas c are functions of the draws, as in the model.
    The arguments are the guide's own parts, then those it shares with the model, in the
    model's order. Sites, in the plate ``data`` of size :math:`B`:

    - ``z_{t}``: the latent variable, of the posterior's event shape, for t from 0 to T - 1.

    Arguments:
        posterior: The approximate posterior q(z_t | g_t), such as a ``Conditional`` of the
            encoder's hidden units.
        encoder: The encoder's recurrence, which takes the features that were read and the
            decoder's hidden units.
        read: The features of x, the error image and the decoder's hidden units, such as
            ``AttentionRead``.
        canvas: The canvas and its decoder, the same module as the model's.
        likelihood: The likelihood p(x | c), the same module as the model's. If the canvas
            holds logits, its mean is :math:`\sigma(c)`, as in the paper.
        steps: T, the number of steps, that of the model.

    Raises:
        ValueError: If ``steps`` is below 1; when called, if x does not have the event shape of
            the likelihood.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eqs. 3 to 8.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP, AttentionRead, AttentionWrite, IdentityTrunk
        >>> write = AttentionWrite(32, (1, 8, 8), size=3)
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(10, 32)), write)
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> posterior = Conditional(dist.Normal, MLP(32, []), 10)
        >>> encoder = Recurrence(nn.LSTMCell(8 + 32, 32))
        >>> read = AttentionRead(32, (1, 8, 8), size=2)
        >>> DRAW(posterior, encoder, read, canvas, likelihood, steps=4)
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
        posterior: Callable[[Tensor], Distribution],
        encoder: Recurrence,
        read: nn.Module,
        canvas: Canvas,
        likelihood: Callable[[Tensor], Distribution],
        steps: int,
    ) -> None:
        super().__init__()
        self.posterior = as_conditional("posterior", posterior)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.encoder = as_recurrence("encoder", encoder)
        self.canvas = as_recurrence("canvas", canvas)
        self.read = read
        self.steps = as_count("steps", steps)

    @sequential
    def forward(self, x: Tensor) -> Generator[Any, Any, None]:
        """Samples the z_t given x."""
        return (yield from self.look(x))

    def look(
        self,
        x: Tensor,
        *condition: Tensor,
        attend: Callable[[Tensor], Tensor] | None = None,
    ) -> Generator[Any, Any, None]:
        """Yields the states of canvas and encoder before each step and after the last one.

        Encoder and decoder take the condition. The decoder alone takes the context
        ``attend(h_{t-1})``, if it is given.
        """
        data = pyro.plate("data", len(x))
        state = (self.canvas.initial(len(x)), self.encoder.initial(len(x)))
        for t in range(self.steps):
            painting, memory = yield state
            h = self.canvas.hidden(painting)
            error = self.error(x, self.canvas.painted(painting))
            memory = self.encoder(memory, self.read(x, error, h), h, *condition)
            with data:
                z = pyro.sample(f"z_{t}", self.posterior(self.encoder.hidden(memory)))
            context = () if attend is None else (attend(h),)
            state = (self.canvas(painting, z, *condition, *context), memory)
        yield state

    def error(self, x: Tensor, painted: Tensor) -> Tensor:
        """Returns the error image, the difference between x and the mean of the likelihood."""
        likelihood = self.likelihood(painted)
        if x.shape[1:] != likelihood.event_shape:
            raise ValueError(
                f"x must have rows of the likelihood's shape {tuple(likelihood.event_shape)},"
                f" got {tuple(x.shape[1:])}."
            )
        return x - distribution_mean(likelihood)
