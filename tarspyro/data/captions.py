"""MNIST with captions: one or two digits on a larger image, and a sentence that says where."""

__all__ = ["CaptionedDataset", "CaptionedImages", "captioned_mnist"]

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_seed, format_fields
from tarspyro.data.containers import Split
from tarspyro.data.images import mnist
from tarspyro.data.sequences import Sequences

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIDE = 60

# For each kind of caption: its words, where a and b are the digits in the order of the words;
# the image's layout; and whether the first word is the digit on the left or at the top.
_KINDS = (
    ("the digit a is on the left of the digit b .", 0, True),
    ("the digit a is on the right of the digit b .", 0, False),
    ("the digit a is at the top of the digit b .", 1, True),
    ("the digit a is at the bottom of the digit b .", 1, False),
    ("the digit a is at the top left of the image .", 2, True),
    ("the digit a is at the top right of the image .", 3, True),
    ("the digit a is at the bottom left of the image .", 4, True),
    ("the digit a is at the bottom right of the image .", 5, True),
)

# For each layout, the first and the last position of the first digit's upper left corner, and
# of the second's: (rows, columns) of a digit's 28 x 28 pixels.
_PLACES: tuple[tuple[tuple[range, range], ...], ...] = (
    ((range(16, 19), range(5)), (range(16, 19), range(28, 33))),
    ((range(3), range(16, 19)), (range(30, 33), range(16, 19))),
    ((range(3), range(5)),),
    ((range(3), range(28, 33)),),
    ((range(30, 33), range(5)),),
    ((range(30, 33), range(28, 33)),),
)


@dataclass(frozen=True)
class CaptionedImages:
    """Images with captions, in the form that ``fit`` and ``evaluate`` hand to a pair.

    Attributes:
        x: The images, of shape (N, 1, 60, 60) with values in [0, 1].
        y: The captions, whole numbers of shape (N, W): the places of the words in the
            vocabulary.
        lengths: The number of words of each caption, of shape (N,).
        digits: The digits of each image, of shape (N, 2): first the one on the left or at the
            top, and 10 in place of a second one that is missing.
        layout: Where the digits are, from 0 to 5 in the order of ``layouts``, of shape (N,).
        layouts: The names of the layouts.
    """

    x: Tensor
    y: Tensor
    lengths: Tensor
    digits: Tensor
    layout: Tensor
    layouts: ClassVar[tuple[str, ...]] = (
        "left and right",
        "top and bottom",
        "top left",
        "top right",
        "bottom left",
        "bottom right",
    )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> "CaptionedImages":
        return CaptionedImages(*(part[index] for part in vars(self).values()))

    def __repr__(self) -> str:
        shape = tuple(self.x.shape[1:])
        return f"CaptionedImages: {len(self)} of shape {shape}, {self.y.shape[1]} words"


@dataclass(frozen=True)
class CaptionedDataset:
    """A data set of images with captions, and captions that training never sees.

    Attributes:
        name: The name of the data set.
        train: The training part.
        test: New images with captions of the kinds of the training part.
        withheld: New images with captions that have no like in the training part.
        vocabulary: The words.
    """

    name: str
    train: CaptionedImages
    test: CaptionedImages
    withheld: CaptionedImages
    vocabulary: tuple[str, ...]

    def encode(self, *captions: str) -> Sequences:
        """Returns captions as padded whole numbers x, with their lengths.

        Case does not count, and a full stop may follow the last word directly.

        Raises:
            ValueError: If a word is not in the vocabulary.
        """
        return Sequences.padded([self._words(caption) for caption in captions])

    def decode(self, captions: Tensor) -> list[str]:
        """Returns captions of shape (N, W) as text."""
        return [" ".join(self.vocabulary[k] for k in row) for row in captions.tolist()]

    def _words(self, caption: str) -> Tensor:
        words = caption.lower().replace(".", " . ").split()
        unknown = [word for word in words if word not in self.vocabulary]
        if unknown:
            raise ValueError(
                f"A caption has the word {unknown[0]!r}, which is not in the vocabulary:"
                f" {', '.join(self.vocabulary)}."
            )
        return torch.tensor([self.vocabulary.index(word) for word in words])

    def __repr__(self) -> str:
        fields = {name: part for name, part in vars(self).items() if name != "name"}
        fields["vocabulary"] = f"{len(self.vocabulary)} words"
        return format_fields(f"CaptionedDataset {self.name!r}", fields)


def captioned_mnist(
    *,
    num_train: int = 10_000,
    num_test: int = 1_000,
    seed: int = 0,
    folder: str | Path | None = None,
) -> CaptionedDataset:
    """Returns MNIST with captions: one or two digits on 60x60 pixels, and a sentence about them.

    Two digits lie beside or below each other without overlap, one lies in a corner. Eight kinds
    of captions are equally frequent before some are withheld, such as:

    - ``the digit three is at the bottom of the digit one .``
    - ``the digit seven is at the bottom left of the image .``

    For each place of a digit in each kind of caption, one digit is withheld from training: no
    caption of ``train`` and ``test`` has it there, and each caption of ``withheld`` has at
    least one that is withheld. The digits of ``train`` are MNIST's training images, those of
    the other parts its test images. They are generated, and the same for the same seed. All
    captions have 12 words of a vocabulary of 22. Words, places and withheld digits are those of
    Mansimov et al. (2015), arXiv:1511.02793, appendix A and the authors' program, which draws
    10,000 new images for every epoch.

    Arguments:
        num_train: The number of training images, 14 kB each.
        num_test: The number of images in each of ``test`` and ``withheld``.
        seed: The seed of the withheld digits, of the captions and of the places.
        folder: The data folder, see ``mnist``.

    Raises:
        DataError: If a file of MNIST is missing and cannot be downloaded.
        ValueError: If a number is below 1.
    """
    num_train = as_count("num_train", num_train)
    num_test = as_count("num_test", num_test)
    generator = torch.Generator().manual_seed(as_seed(seed))
    digits = mnist(validation=0, flatten=False, folder=folder)
    banned = torch.randint(10, (len(_KINDS), 2), generator=generator)
    vocabulary = tuple(dict.fromkeys((*_DIGITS, *_words_of_kinds())))

    def part(source: Split, num: int, withheld: bool) -> CaptionedImages:
        return _draw(source, num, withheld, banned, vocabulary, generator)

    train = part(digits.train, num_train, False)
    test = part(digits.test, num_test, False)
    unseen = part(digits.test, num_test, True)
    return CaptionedDataset("captioned_mnist", train, test, unseen, vocabulary)


def _words_of_kinds() -> Iterator[str]:
    for caption, _, _ in _KINDS:
        yield from (word for word in caption.split() if word not in "ab")


def _draw(
    source: Split,
    num: int,
    withheld: bool,
    banned: Tensor,
    vocabulary: tuple[str, ...],
    generator: torch.Generator,
) -> CaptionedImages:
    """Returns captions that are withheld or not, and an image for each."""
    labels = source.y
    assert labels is not None
    has_two = torch.tensor([layout < 2 for _, layout, _ in _KINDS])
    kinds = torch.zeros(0, dtype=torch.int64)
    rows = torch.zeros(0, 2, dtype=torch.int64)
    while len(kinds) < num:
        kind = torch.randint(len(_KINDS), (num,), generator=generator)
        row = torch.randint(len(labels), (num, 2), generator=generator)
        met = labels[row] == banned[kind]
        met[:, 1] &= has_two[kind]
        chosen = met.any(1) == withheld
        kinds = torch.cat([kinds, kind[chosen]])[:num]
        rows = torch.cat([rows, row[chosen]])[:num]

    images = torch.zeros(num, 1, _SIDE, _SIDE)
    captions = []
    shown = torch.full((num, 2), 10)
    for n, (kind, pair) in enumerate(zip(kinds.tolist(), rows.tolist(), strict=True)):
        caption, layout, in_order = _KINDS[kind]
        a, b = (_DIGITS[int(labels[row])] for row in pair)
        words = [{"a": a, "b": b}.get(word, word) for word in caption.split()]
        captions.append([vocabulary.index(word) for word in words])
        places = _PLACES[layout]
        placed = (pair if in_order else pair[::-1])[: len(places)]
        for k, (row, (heights, widths)) in enumerate(zip(placed, places, strict=True)):
            top = _one_of(heights, generator)
            left = _one_of(widths, generator)
            window = images[n, :, top : top + 28, left : left + 28]
            # The margins of two digits may overlap, though not the digits.
            torch.maximum(window, source.x[row], out=window)
            shown[n, k] = labels[row]
    y = torch.tensor(captions)
    layouts = torch.tensor([layout for _, layout, _ in _KINDS])[kinds]
    return CaptionedImages(images, y, torch.full((num,), y.shape[1]), shown, layouts)


def _one_of(places: range, generator: torch.Generator) -> int:
    return places[int(torch.randint(len(places), (), generator=generator))]
