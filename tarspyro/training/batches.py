"""Batches of in-memory data, data sets, loaders and streams."""

__all__ = [
    "Batches",
]

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from tarspyro.arguments import as_count, as_numbers
from tarspyro.infer.matching import check_count, positional_names
from tarspyro.inputs import (
    as_arguments,
    as_type,
    binarized,
    check_binarizable,
    count_rows,
    each,
    in_order,
)
from tarspyro.programs import type_of
from tarspyro.training.distributed import Processes
from tarspyro.types import Arguments


class _Stream:
    """Batches that come once, so many of them an epoch."""

    def __init__(self, batches: Iterator[Any], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.batches, self.steps)

    def ahead(self) -> list[Any]:
        """Returns the next batch, if there is one, without taking it out of the stream."""
        following = list(itertools.islice(self.batches, 1))
        self.batches = itertools.chain(following, self.batches)
        return following


class _Rows(Sampler[list[int]]):
    """The rows of every batch of an epoch, in an order that a generator draws; of each batch
    one process's share.
    """

    def __init__(
        self, size: int, batch_size: int, shuffle: bool, processes: Processes
    ) -> None:
        self.size, self.batch_size, self.shuffle, self.processes = (
            size,
            batch_size,
            shuffle,
            processes,
        )
        self.generator: torch.Generator | None = None

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for index in range(len(self)):
            rows = range(self.size)[self.slice(index)]
            yield list(rows) if order is None else order[rows.start : rows.stop].tolist()

    def order(self) -> Tensor | None:
        """Draws the order of an epoch; None for the given one."""
        return torch.randperm(self.size, generator=self.generator) if self.shuffle else None

    def slice(self, index: int) -> slice:
        """Returns the places of a batch's rows in the order."""
        start = index * self.batch_size
        share = self.processes.share(min(self.batch_size, self.size - start))
        # Every process takes part in every step; one without a row goes along with one that
        # counts nothing.
        return slice(start + share.start, start + max(share.stop, share.start + 1))

    def count(self, index: int) -> int:
        """Returns how many of the batch's rows count."""
        share = self.processes.share(min(self.batch_size, self.size - index * self.batch_size))
        return int(share.stop - share.start)


class Batches:
    """Batches of data on a device: in-memory data is kept and indexed there, loaders are read.

    Arguments:
        data: See ``as_arguments``; else a torch ``Dataset``, or an iterable of batches such as
            a ``DataLoader``; or an iterator of them, with ``steps_per_epoch``.
        program: The model that will be called.
        batch_size: The number of rows of a batch; the last one of an epoch may be shorter.
        device: Where the batches are.
        others: What will be called with the same data, such as the guide.
        shuffle: Whether each epoch has another order (loaders keep their own).
        binarize: Whether to draw the pixels of the first part anew for every batch.
        pixel_seed: Draw the same pixels in every epoch instead, whatever else draws random
            numbers meanwhile.
        steps_per_epoch: How many batches of an iterator make an epoch.
        processes: Those that train together. A batch is that of all, and each has its share of
            the rows; loaders and streams of the user's give each process a batch of its own.

    Raises:
        ValueError: If data is an iterator and ``steps_per_epoch`` is not given, or the other
            way round.
    """

    def __init__(
        self,
        data: Any,
        program: Callable[..., Any],
        batch_size: int,
        device: torch.device,
        *,
        others: Sequence[Callable[..., Any]] = (),
        shuffle: bool = True,
        binarize: bool = False,
        pixel_seed: int | None = None,
        steps_per_epoch: int | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.pixel_seed, self._pixels = (
            pixel_seed,
            None if pixel_seed is None else torch.Generator(device),
        )
        self.program, self.dtype = program, type_of(program, *others)
        self.device, self.binarize = device, binarize
        batch_size = as_count("batch_size", batch_size)
        arguments = as_arguments(data, program, *others)
        if binarize and arguments is not None:
            check_binarizable(arguments[0])
        self.tensors = (
            None if arguments is None else each(lambda part: part.to(device), arguments)
        )
        self.source: Iterable[Any] = ()
        self._rows: _Rows | None = None
        processes = processes or Processes()
        if self.tensors is not None:
            self._rows = _Rows(count_rows(self.tensors), batch_size, shuffle, processes)
        elif isinstance(data, IterableDataset):
            self.source = DataLoader(data, batch_size)
        elif isinstance(data, Dataset) or not isinstance(data, Iterable):
            self._rows = _Rows(len(cast(Sized, data)), batch_size, shuffle, processes)
            self.source = DataLoader(data, batch_sampler=self._rows)
        else:
            self.source = data
        if isinstance(
            self.source, Iterator
        ):  # asking for iter() would start the workers of a loader
            if steps_per_epoch is None:
                raise ValueError(
                    "data is an iterator, which an epoch exhausts: say how many of its batches"
                    " make one, steps_per_epoch=1000 (for held-out data give an iterable, such"
                    " as a DataLoader)."
                )
            self.source = _Stream(iter(self.source), steps_per_epoch)
        if steps_per_epoch is not None and not isinstance(self.source, _Stream):
            raise ValueError(
                "steps_per_epoch is for an iterator of batches, and this data has epochs of"
                " its own: leave it out, or give iter(data)."
            )

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return len(self.source) if isinstance(self.source, Sized) else 0

    @property
    def exhausted(self) -> bool:
        """Whether there is no further epoch, because a stream has ended; waits for its next
        batch.
        """
        return isinstance(self.source, _Stream) and not self.source.ahead()

    def first(self) -> Arguments:
        """Returns the first rows in their given order."""
        if self.tensors is not None and self._rows is not None:
            return self._prepare(
                each(operator.itemgetter(slice(self._rows.batch_size)), self.tensors)
            )
        for batch in self.source.ahead() if isinstance(self.source, _Stream) else self.source:
            arguments = self._move(batch)
            if self.binarize:
                check_binarizable(arguments[0])
            return self._prepare(arguments)
        raise ValueError("data is empty: it has no batches.")

    def epoch(
        self, generator: torch.Generator, number: int = 0, skip: int = 0
    ) -> Iterator[tuple[Arguments, int]]:
        """Returns an iterator over the batches of one epoch, and how many rows of each count.

        Arguments:
            generator: What draws the order.
            number: Which epoch it is, from 0, for loaders that have an order of their own for
                each.
            skip: How many batches to leave out at the start; a stream goes on with whatever
                comes next.
        """
        if self._pixels is not None and self.pixel_seed is not None:
            self._pixels.manual_seed(self.pixel_seed)
        if self._rows is not None:
            self._rows.generator = generator
        if self._rows is not None and self.tensors is not None:
            return self._indexed(self._rows.order(), range(skip, len(self._rows)))
        sampler = getattr(self.source, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(number)
        batches = iter(self.source)
        if not isinstance(self.source, _Stream):
            for _ in range(skip):
                next(batches, None)
        return self._loaded(batches, skip)

    def _indexed(
        self, order: Tensor | None, batches: range
    ) -> Iterator[tuple[Arguments, int]]:
        """Batches of what is on the device."""
        assert self._rows is not None and self.tensors is not None
        order = None if order is None else order.to(self.device)
        for index in batches:
            places = self._rows.slice(index)
            rows = places if order is None else order[places]
            yield (
                self._prepare(each(operator.itemgetter(rows), self.tensors)),
                self._rows.count(index),
            )

    def _loaded(self, batches: Iterator[Any], skip: int) -> Iterator[tuple[Arguments, int]]:
        """Batches that something else loads."""
        for index, batch in enumerate(batches, skip):
            arguments = self._prepare(self._move(batch))
            yield (
                arguments,
                count_rows(arguments) if self._rows is None else self._rows.count(index),
            )

    def _move(self, batch: Any) -> Arguments:
        parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        if isinstance(batch, Mapping):
            parts = in_order(batch, positional_names(self.program))
        check_count(parts, self.program)

        def moved(part: Any) -> Tensor:
            return as_type(as_numbers("data", part), self.dtype).to(
                self.device, non_blocking=True
            )

        return each(moved, parts)

    def _prepare(self, arguments: Arguments) -> Arguments:
        if not self.binarize:
            return arguments
        return binarized(arguments[0], self._pixels), *arguments[1:]
