"""Sequences of different lengths, padded into one tensor."""

__all__ = ["SequenceBatches", "SequenceDataset", "Sequences"]

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, format_value


@dataclass(frozen=True)
class Sequences:
    """Sequences x of shape ``(N, T, *event)``, padded with zeros from their ``lengths`` on, of
    shape ``(N,)``.

    ``fit`` and ``evaluate`` hand both parts to a model that takes them, such as a ``VRNN``. In
    time x is cut to the longest sequence that is left.

    Raises:
        ValueError: If the shapes do not match, or a length is not from 1 to T.

    Example:
        >>> sequences = Sequences.padded([torch.ones(3, 2), torch.ones(5, 2)])
        >>> sequences.x.shape, sequences.lengths.tolist()
        (torch.Size([2, 5, 2]), [3, 5])
        >>> sequences[:1].x.shape
        torch.Size([1, 3, 2])
    """

    x: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        x, lengths = self.x, self.lengths
        for name, value in (("x", x), ("lengths", lengths)):
            if not torch.is_tensor(value):
                raise TypeError(
                    f"{name} must be a tensor, got {format_value(value)}: see Sequences.padded"
                    " for a list."
                )
        if x.dim() < 2 or lengths.shape != x.shape[:1] or lengths.is_floating_point():
            raise ValueError(
                "x must have the shape (N, T, *event) and lengths be N integers, got"
                f" {tuple(x.shape)} and {lengths.dtype} of shape {tuple(lengths.shape)}."
            )
        if len(x) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]:
            raise ValueError(
                f"lengths must be from 1 to {x.shape[1]}, got {int(lengths.min())} to"
                f" {int(lengths.max())}."
            )

    @classmethod
    def padded(cls, sequences: Iterable[Any]) -> "Sequences":
        """Puts sequences, tensors or arrays of shapes ``(T_i, *event)``, side by side."""
        if not isinstance(sequences, Iterable) or (
            torch.is_tensor(sequences) and not sequences.dim()
        ):
            raise TypeError(
                "sequences must be a list of tensors or arrays, got"
                f" {format_value(sequences)}."
            )
        kind = torch.get_default_dtype()
        parts = [
            as_numbers(f"sequences[{index}]", part, kind)
            for index, part in enumerate(sequences)
        ]
        if not parts:
            raise ValueError("sequences is empty: there is nothing to pad.")
        if (
            not all(part.dim() for part in parts)
            or len({part.shape[1:] for part in parts}) > 1
        ):
            shapes = sorted({tuple(part.shape) for part in parts})[:5]
            raise ValueError(
                f"sequences must be of shapes (T, *event) with one event shape, got {shapes}."
            )
        lengths = torch.tensor([len(part) for part in parts])
        return cls(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), lengths)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor) -> "Sequences":
        lengths = self.lengths[index]
        return Sequences(self.x[index, : int(lengths.max()) if len(lengths) else 0], lengths)

    @property
    def steps(self) -> int:
        """The number of steps of all sequences together."""
        return int(self.lengths.sum())

    def mean(self) -> Tensor:
        """Returns the mean over the steps of all sequences, of the event's shape."""
        inside = torch.arange(self.x.shape[1]) < self.lengths.unsqueeze(1)
        return self.x[inside].mean(0)

    def batches(
        self, batch_size: int, *, shuffle: bool = True, multiple_of: int = 1
    ) -> "SequenceBatches":
        """Returns batches of sequences of similar lengths, for ``fit``; see
        ``SequenceBatches``.
        """
        return SequenceBatches(self, batch_size, shuffle=shuffle, multiple_of=multiple_of)


class SequenceBatches:
    """Batches (x, lengths) of sequences of similar lengths, each only as long as its longest
    one.

    In every epoch the sequences are shuffled, twenty batches of them at a time are sorted by
    length, and the batches are yielded in a random order. The order is drawn from torch's
    random state, so that a resumed run has the same one.

    Arguments:
        sequences: The sequences.
        batch_size: The number of sequences of a batch; that of an epoch's last sequences may
            be smaller.
        shuffle: If False, the order is that of the lengths, the same in every epoch.
        multiple_of: Pad the steps to a multiple of this number: compiled steps are made for
            every shape that they meet.

    Raises:
        ValueError: If a number is below one.

    Example:
        >>> sequences = Sequences.padded([torch.ones(length, 2) for length in (9, 3, 8, 4)])
        >>> [x.shape for x, lengths in SequenceBatches(sequences, 2, shuffle=False, multiple_of=3)]
        [torch.Size([2, 6, 2]), torch.Size([2, 9, 2])]
    """

    def __init__(
        self,
        sequences: Sequences,
        batch_size: int,
        *,
        shuffle: bool = True,
        multiple_of: int = 1,
    ) -> None:
        if not isinstance(sequences, Sequences):
            raise TypeError(
                f"sequences must be Sequences, got {format_value(sequences)}: see"
                " Sequences.padded."
            )
        self.sequences, self.batch_size = sequences, as_count("batch_size", batch_size)
        self.shuffle, self.multiple_of = shuffle, as_count("multiple_of", multiple_of)

    def __len__(self) -> int:
        return -(-len(self.sequences) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, lengths = self.sequences.x, self.sequences.lengths
        count = len(lengths)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        pools = order.split(20 * self.batch_size if self.shuffle else count)
        batches = [
            rows
            for pool in pools
            for rows in pool[lengths[pool].argsort()].split(self.batch_size)
        ]
        for index in torch.randperm(len(batches)) if self.shuffle else range(len(batches)):
            rows = batches[index]
            steps = -(-int(lengths[rows].max()) // self.multiple_of) * self.multiple_of
            part = x[rows, :steps]
            missing = part.new_zeros(len(rows), steps - part.shape[1], *x.shape[2:])
            yield torch.cat([part, missing], 1), lengths[rows]


@dataclass(frozen=True)
class SequenceDataset:
    """A data set of sequences in its parts."""

    name: str
    train: Sequences
    validation: Sequences
    test: Sequences
