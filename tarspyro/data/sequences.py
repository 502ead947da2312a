"""Sequences of different lengths, padded into one tensor, and their batches."""

__all__ = ["SequenceBatches", "SequenceDataset", "Sequences"]

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, format_fields, format_value
from tarspyro.types import ArrayLike


@dataclass(frozen=True)
class Sequences:
    """Sequences, padded with zeros to the same number of steps.

    ``fit`` and ``evaluate`` hand both parts to a model that takes them, such as a ``VRNN``. A
    selection, such as ``sequences[:10]``, is cut to its longest sequence.

    Attributes:
        x: The sequences, of shape ``(N, T, *event)``; an array becomes a tensor.
        lengths: The number of steps of each sequence, integers from 1 to T, of shape (N,).

    Raises:
        TypeError: If one of them is not a tensor or an array.
        ValueError: If the shapes do not match, or a length is not from 1 to T.

    Example:
        >>> sequences = Sequences.padded([torch.ones(3, 2), torch.ones(5, 2)])
        >>> sequences.x.shape, sequences.lengths.tolist()
        (torch.Size([2, 5, 2]), [3, 5])
        >>> sequences[:1].x.shape
        torch.Size([1, 3, 2])
        >>> [sequence.shape for sequence in sequences]
        [torch.Size([3, 2]), torch.Size([5, 2])]
    """

    x: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        for name in ("x", "lengths"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)) and name == "x":
                raise TypeError(
                    f"x must be a tensor, got {format_value(value)}: see Sequences.padded for a"
                    " list."
                )
            if not isinstance(value, Tensor):
                object.__setattr__(self, name, as_numbers(name, value))
        x = self.x
        lengths = self.lengths
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
    def padded(cls, sequences: Iterable[ArrayLike]) -> "Sequences":
        """Returns sequences, given as tensors or arrays of shapes ``(T_i, *event)``, in one
        tensor.

        Whole numbers without an event, of shapes ``(T_i,)``, are tokens and stay whole.

        Raises:
            TypeError: If ``sequences`` is not a list of tensors or arrays.
            ValueError: If there are none, or they differ in the shape of an event.
        """
        is_scalar = torch.is_tensor(sequences) and not sequences.dim()
        if not isinstance(sequences, Iterable) or is_scalar:
            raise TypeError(
                "sequences must be a list of tensors or arrays, got"
                f" {format_value(sequences)}."
            )
        parts = [
            as_numbers(f"sequences[{index}]", part) for index, part in enumerate(sequences)
        ]
        if not parts:
            raise ValueError("sequences is empty: there is nothing to pad.")
        tokens = all(part.dim() == 1 and not part.is_floating_point() for part in parts)
        dtype = torch.int64 if tokens else torch.get_default_dtype()
        parts = [part.detach().to(dtype) for part in parts]
        events = {part.shape[1:] for part in parts}
        if not all(part.dim() for part in parts) or len(events) > 1:
            shapes = sorted({tuple(part.shape) for part in parts})[:5]
            raise ValueError(
                f"sequences must be of shapes (T, *event) with one event shape, got {shapes}."
            )
        lengths = torch.tensor([len(part) for part in parts])
        return cls(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), lengths)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        if not len(self):
            return "Sequences: none"
        shortest = int(self.lengths.min())
        longest = int(self.lengths.max())
        steps = f"{longest}" if shortest == longest else f"{shortest} to {longest}"
        return f"Sequences: {len(self)} of {steps} steps, events {tuple(self.x.shape[2:])}"

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice | Tensor) -> "Sequences": ...

    def __getitem__(self, index: int | slice | Tensor) -> "Sequences | Tensor":
        """Returns some sequences, or the steps of a single one, of the shape ``(T_i, *event)``."""
        if isinstance(index, int):
            return self.x[index, : int(self.lengths[index])]
        lengths = self.lengths[index]
        longest = int(lengths.max()) if len(lengths) else 0
        return Sequences(self.x[index, :longest], lengths)

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
        """Returns batches of sequences of similar lengths for ``fit``, see
        ``SequenceBatches``.
        """
        return SequenceBatches(self, batch_size, shuffle=shuffle, multiple_of=multiple_of)


class SequenceBatches:
    """Batches (x, lengths) of sequences of similar lengths, each only as long as its longest
    sequence.

    In every epoch the sequences are shuffled and divided into pools of twenty batches. Each
    pool is sorted by length, and the batches come in a random order. The order is drawn from
    torch's random state, so a resumed run has the same one.

    Arguments:
        sequences: The sequences.
        batch_size: The number of sequences in a batch; one batch of an epoch may be smaller.
        shuffle: If False, the order is that of the lengths, the same in every epoch.
        multiple_of: A number; the steps of a batch are padded to a multiple of it. Compiled
            steps are made for every shape, so fewer shapes save compilations.

    Raises:
        TypeError: If ``sequences`` is not a ``Sequences``.
        ValueError: If a number is below one.

    Example:
        >>> sequences = Sequences.padded([torch.ones(length, 2) for length in (9, 3, 8, 4)])
        >>> batches = SequenceBatches(sequences, 2, shuffle=False, multiple_of=3)
        >>> [x.shape for x, lengths in batches]
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
        self.sequences = sequences
        self.batch_size = as_count("batch_size", batch_size)
        self.shuffle = shuffle
        self.multiple_of = as_count("multiple_of", multiple_of)

    def __len__(self) -> int:
        return -(-len(self.sequences) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x = self.sequences.x
        lengths = self.sequences.lengths
        for rows in self._draw_batches():
            longest = int(lengths[rows].max())
            steps = -(-longest // self.multiple_of) * self.multiple_of
            part = x[rows, :steps]
            missing = part.new_zeros(len(rows), steps - part.shape[1], *x.shape[2:])
            yield torch.cat([part, missing], 1), lengths[rows]

    def _draw_batches(self) -> Iterator[Tensor]:
        """Yields the rows of each batch of an epoch."""
        lengths = self.sequences.lengths
        count = len(lengths)
        if self.shuffle:
            pools = torch.randperm(count).split(20 * self.batch_size)
        else:
            pools = torch.arange(count).split(count)
        batches: list[Tensor] = []
        for pool in pools:
            batches += pool[lengths[pool].argsort()].split(self.batch_size)
        order = torch.randperm(len(batches)) if self.shuffle else range(len(batches))
        for index in order:
            yield batches[index]


@dataclass(frozen=True)
class SequenceDataset:
    """A data set of sequences in its parts."""

    name: str
    train: Sequences
    validation: Sequences
    test: Sequences

    def __repr__(self) -> str:
        fields = {name: part for name, part in vars(self).items() if name != "name"}
        return format_fields(f"SequenceDataset {self.name!r}", fields)
