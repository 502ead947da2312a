"""Networks of sentences: features of words in both directions, and a soft alignment to them."""

__all__ = ["Alignment", "LanguageRNN", "Words", "as_alignment"]

from typing import NamedTuple, TypeVar

import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from tarspyro.arguments import as_count, check_lengths, check_method, format_value
from tarspyro.modules import Configurable
from tarspyro.nn.initialization import initialize
from tarspyro.nn.recurrent import Backward

_Aligning = TypeVar("_Aligning")


def as_alignment(name: str, value: _Aligning) -> _Aligning:
    """Returns a module that aligns hidden units to words; ``name`` is its argument in errors.

    Raises:
        TypeError: If it is not callable, or has no method ``words``.
    """
    what = "a module that aligns to words, such as nn.Alignment(...)"
    check_method(name, value, "words", what)
    return value


class LanguageRNN(Configurable):
    r"""Features of each word of a sentence, by a recurrent network in each direction.

    .. math:: w_k = [a_k, b_k], \qquad a_k = \mathrm{forward}(e_k, a_{k-1}), \quad
              b_k = \mathrm{backward}(e_k, b_{k+1}), \quad e_k = \mathrm{embedding}(y_k)

    Sentences are whole numbers of shape (B, N), the features have the shape (B, N, F). Padding
    after the ``lengths`` of the sentences has no effect on the features of their words. It may
    be any word of the vocabulary, and its own features have no meaning.

    Arguments:
        embedding: ``torch.nn.Embedding``, with a row for each word of the vocabulary.
        forward_rnn: ``torch.nn.GRU``, ``LSTM`` or ``RNN``, of one direction.
        backward_rnn: Another one, which reads the sentence from its end.

    Raises:
        TypeError: If a module is of another kind; when called, if the words are no whole
            numbers.
        ValueError: When called, if words or lengths have another shape. Where Pyro's validation
            is on, as in the checks before training, also if a word is not in the vocabulary or
            a length out of range.

    References:
        Mansimov et al. (2015), Generating Images from Captions with Attention,
        arXiv:1511.02793, section 3.1.

    Example:
        >>> language = LanguageRNN(nn.Embedding(22, 8), nn.LSTM(8, 16), nn.LSTM(8, 16))
        >>> language
        LanguageRNN(Embedding(22, 8), LSTM(8, 16), LSTM(8, 16))
        >>> language(torch.zeros(5, 12, dtype=torch.int64)).shape
        torch.Size([5, 12, 32])
    """

    def __init__(
        self, embedding: nn.Embedding, forward_rnn: nn.RNNBase, backward_rnn: nn.RNNBase
    ) -> None:
        super().__init__()
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(
                "embedding must be a torch.nn.Embedding, such as torch.nn.Embedding(22, 8),"
                f" got {format_value(embedding)}."
            )
        for name, rnn in (("forward_rnn", forward_rnn), ("backward_rnn", backward_rnn)):
            if not isinstance(rnn, nn.RNNBase) or rnn.bidirectional:
                raise TypeError(
                    f"{name} must be a torch.nn.GRU, LSTM or RNN of one direction, got"
                    f" {format_value(rnn)}."
                )
        self.embedding = embedding
        self.forward_rnn = forward_rnn
        self.backward = Backward(backward_rnn)
        self.out_features = forward_rnn.hidden_size + backward_rnn.hidden_size

    def forward(self, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns the features (B, N, F) of sentences (B, N)."""
        self._check(y)
        if lengths is not None:
            check_lengths(lengths, len(y), y.shape[1])
        words = self.embedding(y)
        if self.forward_rnn.batch_first:
            ahead, _ = self.forward_rnn(words)
        else:
            ahead, _ = self.forward_rnn(words.transpose(0, 1))
            ahead = ahead.transpose(0, 1)
        return torch.cat([ahead, self.backward(words, lengths)], -1)

    def _check(self, y: Tensor) -> None:
        if not isinstance(y, Tensor) or y.is_floating_point():
            raise TypeError(
                f"The words must be a tensor of whole numbers, got {format_value(y)}."
            )
        if y.dim() != 2:
            raise ValueError(
                f"The words must be of shape (sentences, words), got {tuple(y.shape)}."
            )
        count = self.embedding.num_embeddings
        # Reading values makes the device wait.
        if is_validation_enabled() and bool(((y < 0) | (y >= count)).any()):
            raise ValueError(
                f"The words must be from 0 to {count - 1}, the rows of the embedding, got"
                f" {int(y.min())} to {int(y.max())}."
            )

    def __repr__(self) -> str:
        return f"LanguageRNN({self.embedding!r}, {self.forward_rnn!r}, {self.backward.rnn!r})"


class Words(NamedTuple):
    """The words of B sentences, as ``Alignment.words`` prepares them.

    Attributes:
        features: The features of the words, of shape (B, N, F); zeros for padding.
        keys: What the hidden units are compared with, of shape (B, N, units).
        present: Which words are no padding, of shape (B, N).
    """

    features: Tensor
    keys: Tensor
    present: Tensor


class Alignment(Configurable):
    r"""A soft alignment of hidden units to the words of a sentence.

    .. math:: s = \sum_k \alpha_k w_k, \qquad \alpha = \mathrm{softmax}(e), \quad
              e_k = v^\top \tanh(U w_k + W h + b)

    The sum and the softmax are over the words alone, without padding. The hidden units h have
    the shape :math:`(*, B, H)`, with dimensions of particles if there are any, the words the
    shape (B, N, F), and s the shape :math:`(*, B, F)`.

    Arguments:
        in_features: H, the number of hidden units.
        word_features: F, the number of features of a word.
        units: The number of units that compare the two, the length of v.

    References:
        Bahdanau et al. (2014), Neural Machine Translation by Jointly Learning to Align and
        Translate, arXiv:1409.0473; Mansimov et al. (2015), Generating Images from Captions
        with Attention, arXiv:1511.02793, section 3.2.

    Example:
        >>> align = Alignment(300, 32, units=64)
        >>> words = align.words(torch.zeros(5, 12, 32), lengths=torch.full((5,), 4))
        >>> align(torch.zeros(5, 300), words).shape
        torch.Size([5, 32])
        >>> align.weights(torch.zeros(5, 300), words)[0, :6].tolist()
        [0.25, 0.25, 0.25, 0.25, 0.0, 0.0]
    """

    def __init__(self, in_features: int, word_features: int, units: int) -> None:
        super().__init__()
        self.in_features = as_count("in_features", in_features)
        self.word_features = as_count("word_features", word_features)
        self.units = as_count("units", units)
        self.key = initialize(nn.Linear(word_features, units))
        self.query = initialize(nn.Linear(in_features, units, bias=False))
        self.score = initialize(nn.Linear(units, 1, bias=False))

    def words(self, features: Tensor, lengths: Tensor | None = None) -> Words:
        """Returns the words as all steps use them: features, keys, and which are present.

        ``lengths`` are the numbers of words of the sentences, of shape (B,); all words count
        without them.
        """
        place = torch.arange(features.shape[1], device=features.device)
        count = features.shape[1] if lengths is None else lengths.unsqueeze(-1)
        present = (place < count).expand(features.shape[:2])
        # Padding gets the weight zero, which is no help where its features are not finite.
        features = features.masked_fill(~present.unsqueeze(-1), 0.0)
        return Words(features, self.key(features), present)

    def weights(self, hidden: Tensor, words: Words) -> Tensor:
        r"""Returns the weights :math:`\alpha`, of shape :math:`(*, B, N)`."""
        match = torch.tanh(words.keys + self.query(hidden).unsqueeze(-2))
        scores: Tensor = self.score(match).squeeze(-1)
        return scores.masked_fill(~words.present, -torch.inf).softmax(-1)

    def forward(self, hidden: Tensor, words: Words) -> Tensor:
        """Returns the mean of the words' features under the weights."""
        return (self.weights(hidden, words).unsqueeze(-2) @ words.features).squeeze(-2)

    def __repr__(self) -> str:
        return f"Alignment({self.in_features} to {self.word_features}, {self.units} units)"
