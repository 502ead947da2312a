"""AlignDRAW: the guide."""

__all__ = ["AlignDRAW"]

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor, nn

from tarspyro.arguments import check_module
from tarspyro.guides.draw import DRAW
from tarspyro.nn import Alignment, Canvas, LanguageRNN, Recurrence, as_alignment
from tarspyro.sequences import sequential
from tarspyro.types import Distribution


class AlignDRAW(DRAW):
    r"""The inference half of alignDRAW, which reads the image in each step.

    .. math:: q(z_{0:T} \mid x, y) = \prod_{t=0}^{T-1} q(z_t \mid g_t), \qquad
              g_t = \mathrm{encoder}(\mathrm{read}(x, \hat{x}_t, h_{t-1}), h_{t-1}, g_{t-1})

    It is the guide of ``DRAW``, with the decoder of the model ``AlignDRAW``: the encoder sees
    the caption y by the decoder's hidden units h. The arguments are the guide's own parts, then
    those it shares with the model, in the model's order. Captions and their lengths are those
    of the model. Sites, in the plate ``data`` of size :math:`B`:

    - ``z_{t}``: the latent variable, of the posterior's event shape, for t from 0 to T - 1.

    Arguments:
        posterior: The approximate posterior q(z_t | g_t), such as a ``Conditional`` of the
            encoder's hidden units.
        encoder: The encoder's recurrence, which takes the features that were read and the
            decoder's hidden units.
        read: The features of x, the error image and the decoder's hidden units, such as
            ``AttentionRead``.
        language: The features of the words, the same module as the model's.
        align: The alignment to the words, the same module as the model's.
        canvas: The canvas and its decoder, the same module as the model's.
        likelihood: The likelihood p(x | c), the same module as the model's.
        steps: T, the number of steps, that of the model.

    Raises:
        ValueError: If ``steps`` is below 1; when called, if x does not have the event shape of
            the likelihood, or ``lengths`` is invalid.

    References:
        Mansimov, Parisotto, Ba and Salakhutdinov (2015), Generating Images from Captions with
        Attention, arXiv:1511.02793, section 3.3.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP, AttentionRead, AttentionWrite, IdentityTrunk
        >>> language = LanguageRNN(nn.Embedding(22, 8), nn.GRU(8, 6), nn.GRU(8, 6))
        >>> write = AttentionWrite(32, (1, 8, 8), size=3)
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(2 + 12, 32)), write)
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> read = AttentionRead(32, (1, 8, 8), size=2)
        >>> encoder = Recurrence(nn.LSTMCell(8 + 32, 32))
        >>> posterior = Conditional(dist.Normal, MLP(32, []), 2)
        >>> align = Alignment(32, 12, units=16)
        >>> shared = (language, align, canvas, likelihood)
        >>> AlignDRAW(posterior, encoder, read, *shared, steps=4).factorization
        'q(z_t | g_t) q(g_t | x, g_{t-1}, c_{t-1}) q(s_t | y, h_{t-1}) q(c_t | z_t, s_t, c_{t-1})'
    """

    factors = {
        "posterior": "z_t | g_t",
        "encoder": "g_t | x, g_{t-1}, c_{t-1}",
        "align": "s_t | y, h_{t-1}",
        "canvas": "c_t | z_t, s_t, c_{t-1}",
    }

    def __init__(
        self,
        posterior: Callable[[Tensor], Distribution],
        encoder: Recurrence,
        read: nn.Module,
        language: LanguageRNN,
        align: Alignment,
        canvas: Canvas,
        likelihood: Callable[[Tensor], Distribution],
        steps: int,
    ) -> None:
        super().__init__(posterior, encoder, read, canvas, likelihood, steps)
        check_module("language", language)
        self.language = language
        self.align = as_alignment("align", align)

    @sequential
    def forward(
        self, x: Tensor, y: Tensor, lengths: Tensor | None = None
    ) -> Generator[Any, Any, None]:
        """Samples the z_t given x and y."""
        words = self.align.words(self.language(y, lengths), lengths)
        return (yield from self.look(x, attend=lambda h: self.align(h, words)))
