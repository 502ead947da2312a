"""AlignDRAW: the model."""

__all__ = ["AlignDRAW"]

from collections.abc import Callable, Generator
from typing import Any

from torch import Tensor

from tarspyro.arguments import check_module
from tarspyro.distributions import as_conditional
from tarspyro.models.draw import DRAW
from tarspyro.nn import Alignment, Canvas, LanguageRNN, as_alignment
from tarspyro.sequences import sequential
from tarspyro.types import Distribution


class AlignDRAW(DRAW):
    r"""The generative half of alignDRAW, which paints an image given a caption.

    .. math:: p(x, z_{0:T} \mid y) = p(x \mid c_{T-1}) \, p(z_0)
              \prod_{t=1}^{T-1} p(z_t \mid h_{t-1}), \qquad
              h_t = \mathrm{cell}(z_t, s_t, h_{t-1}), \quad
              s_t = \mathrm{align}(h_{t-1}, \mathrm{language}(y))

    In each step the decoder computes a new alignment to the words: s is a mean of their
    features, with the weights of the alignment. The canvas c is that of ``DRAW``. The caption
    y is not a site: bounds and log-likelihoods are those of :math:`\log p(x \mid y)`. It holds
    words as whole numbers of shape (B, N). Give ``lengths`` of shape (B,) if captions are
    padded: the padding has no effect. Sites, in the plate ``data`` of size :math:`B`:

    - ``z_{t}``: the latent variable, of the prior's event shape, for t from 0 to T - 1;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        prior: The prior of the first step, p(z_0): a distribution, or a module that returns
            one.
        transition: The prior of the later steps, p(z_t | h_{t-1}), such as a ``Conditional``
            of the decoder's hidden units.
        language: The features of the words; the guide takes the same module.
        align: The alignment of the decoder's hidden units to the words; the guide takes the
            same module.
        canvas: The canvas and its decoder, which takes z and s; the guide takes the same
            module.
        likelihood: The likelihood p(x | c_{T-1}), such as a ``Conditional`` with the trunk
            ``IdentityTrunk``; the guide takes the same module.
        steps: T, the number of steps.

    Raises:
        ValueError: If ``steps`` is below 1; when called, if y is not given, or ``lengths`` is
            invalid.

    References:
        Mansimov, Parisotto, Ba and Salakhutdinov (2015), Generating Images from Captions with
        Attention, arXiv:1511.02793, eqs. 1 to 8. There the mean of p(z_t | h_{t-1}) and the
        logarithm of its scale are between -1 and 1, by a tanh: ``transforms`` of a
        ``Conditional`` do the same.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP, AttentionWrite, IdentityTrunk, Recurrence
        >>> language = LanguageRNN(nn.Embedding(22, 8), nn.GRU(8, 6), nn.GRU(8, 6))
        >>> write = AttentionWrite(32, (1, 8, 8), size=3)
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(2 + 12, 32)), write)
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 8, 8)), 64)
        >>> transition = Conditional(dist.Normal, MLP(32, []), 2)
        >>> align = Alignment(32, 12, units=16)
        >>> prior = default_prior(dist.Normal, 2)
        >>> p = AlignDRAW(prior, transition, language, align, canvas, likelihood, steps=4)
        >>> p.factorization
        'p(x | c_t) p(z_t | h_{t-1}) p(z_0) p(s_t | y, h_{t-1}) p(c_t | z_t, s_t, c_{t-1})'
        >>> captions = torch.randint(22, (5, 12))
        >>> p(y=captions).shape  # one for each caption
        torch.Size([5, 64])
    """

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        transition: Callable[[Tensor], Distribution],
        language: LanguageRNN,
        align: Alignment,
        canvas: Canvas,
        likelihood: Callable[[Tensor], Distribution],
        steps: int,
    ) -> None:
        super().__init__(prior, canvas, likelihood, steps)
        self.transition = as_conditional("transition", transition)
        check_module("language", language)
        self.language = language
        self.align = as_alignment("align", align)
        self.factors = {
            "likelihood": "x | c_t",
            "transition": "z_t | h_{t-1}",
            "prior": "z_0",
            "align": "s_t | y, h_{t-1}",
            "canvas": "c_t | z_t, s_t, c_{t-1}",
        }

    @sequential
    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        batch_size: int = 1,
    ) -> Generator[Any, Any, Tensor]:
        """Samples the z_t and observes x given y; without x, generates it.

        It generates one x for each caption, or ``batch_size`` for a single one.
        """
        if y is None:
            raise ValueError(
                "y must be given, because models.AlignDRAW has no distribution of captions:"
                " call model(x, y), or model(y=y) to generate."
            )
        words = self.align.words(self.language(y, lengths), lengths)
        size = max(batch_size, len(y))
        return (yield from self.paint(x, size, attend=lambda h: self.align(h, words)))

    def prior_at(self, t: int, h: Tensor) -> Distribution:
        """Returns the prior of z_t given the decoder's hidden units before the step."""
        return self.prior() if t == 0 else self.transition(h)
