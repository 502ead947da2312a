"""Batches of in-memory data, data sets, loaders and streams."""

__all__ = ["Batches"]

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from tarspyro.arguments import as_numbers
from tarspyro.data import Stream
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
from tarspyro.training.interrupts import sheltered
from tarspyro.types import Argument, Arguments, Data, Program

# The number of rows that stand for all of the data.
_EXAMPLES = 1000


class _Rows(Sampler[list[int]]):
    """The rows of each batch of an epoch; of several processes, the share of this one.

    Arguments:
        size: The number of rows of the data.
        batch_size: The number of rows of a batch.
        shuffle: Whether a generator draws the order.
        processes: The processes that train together.

    Attributes:
        generator: The generator of the order.
    """

    def __init__(
        self, size: int, batch_size: int, shuffle: bool, processes: Processes
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.processes = processes
        self.generator: torch.Generator | None = None

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for index in range(len(self)):
            rows = range(self.size)[self.slice(index)]
            yield list(rows) if order is None else order[rows.start : rows.stop].tolist()

    def order(self) -> Tensor | None:
        """Draws the order of an epoch; None stands for the given order."""
        return torch.randperm(self.size, generator=self.generator) if self.shuffle else None

    def slice(self, index: int) -> slice:
        """Returns the places of a batch's rows in the order."""
        start = index * self.batch_size
        share = self.processes.share(min(self.batch_size, self.size - start))
        # Every process takes part in every step. A process without a share runs one row, which
        # does not count.
        return slice(start + share.start, start + max(share.stop, share.start + 1))

    def count(self, index: int) -> int:
        """Returns how many of the batch's rows count."""
        share = self.processes.share(min(self.batch_size, self.size - index * self.batch_size))
        return int(share.stop - share.start)


class Batches:
    """Batches of data on a device.

    In-memory data is moved to the device once and indexed there; loaders are read.

    Arguments:
        data: In-memory data, see ``as_arguments``; a torch ``Dataset``; an iterable of batches
            such as a ``DataLoader``; or a ``Stream``.
        program: The model.
        batch_size: The number of rows of a batch; the last one of an epoch may be shorter.
        device: The device of the batches.
        others: More programs that get the same data, such as the guide.
        shuffle: Whether each epoch has another order. Loaders keep their own order.
        binarize: Whether to draw the pixels of the first part anew for every batch.
        pixel_seed: A seed with which every epoch has the same pixels, whatever other random
            numbers are drawn.
        processes: The processes that train together. Each takes its share of the rows of a
            batch. A loader or stream of the user gives each process its own batches.

    Raises:
        ValueError: If the data is an iterator that is not in a ``Stream``.
    """

    def __init__(
        self,
        data: Data | None,
        program: Program,
        batch_size: int,
        device: torch.device,
        *,
        others: Sequence[Program] = (),
        shuffle: bool = True,
        binarize: bool = False,
        pixel_seed: int | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.program = program
        self.batch_size = batch_size
        self.dtype = type_of(program, *others)
        self.device = device
        self.binarize = binarize
        self.pixel_seed = pixel_seed
        self._pixels = None if pixel_seed is None else torch.Generator(device)
        self.source: Iterable[Any] = ()
        self.tensors: Arguments | None = None
        self._rows: _Rows | None = None

        processes = processes or Processes()
        arguments = None if isinstance(data, Stream) else as_arguments(data, program, *others)
        if arguments is not None:
            if binarize:
                check_binarizable(arguments[0])
            self.tensors = each(lambda part: part.to(device), arguments)
            self._rows = _Rows(count_rows(arguments), batch_size, shuffle, processes)
        elif isinstance(data, IterableDataset):
            self.source = DataLoader(data, batch_size)
        elif isinstance(data, Dataset) or not isinstance(data, Iterable):
            self._rows = _Rows(len(cast(Sized, data)), batch_size, shuffle, processes)
            self.source = DataLoader(cast("Dataset[Any]", data), batch_sampler=self._rows)
        else:
            self.source = data
        # The type tells; calling iter() would start the workers of a loader.
        if isinstance(self.source, Iterator):
            raise ValueError(
                "data is an iterator, which an epoch exhausts: give"
                " tarspyro.data.Stream(iterator, steps_per_epoch=1000), which says how many"
                " batches make an epoch."
            )

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return len(self.source) if isinstance(self.source, Sized) else 0

    @property
    def constant(self) -> Arguments | None:
        """All of the data, if it is in memory and its pixels are not drawn anew."""
        return None if self.binarize else self.tensors

    @property
    def rows_of_last(self) -> int | None:
        """The number of rows of the last batch of an epoch; None if a loader decides it."""
        if self._rows is None or not self._rows.size:
            return None
        return (self._rows.size - 1) % self._rows.batch_size + 1

    @property
    def is_read(self) -> bool:
        """Whether a loader or a stream of the user decides how many batches there are."""
        return self._rows is None

    @property
    def exhausted(self) -> bool:
        """Whether a stream has ended. This waits for its next batch."""
        return isinstance(self.source, Stream) and not self.source.peek()

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators that a loader of the user and its parts hold."""
        found: dict[int, torch.Generator] = {}
        seen: set[int] = set()
        waiting: list[object] = [self.source]
        while waiting:
            part = waiting.pop()
            if id(part) in seen or part is self._rows:
                continue
            seen.add(id(part))
            for name, value in getattr(part, "__dict__", {}).items():
                if isinstance(value, torch.Generator):
                    found.setdefault(id(value), value)
                elif name in ("sampler", "batch_sampler", "dataset"):
                    waiting.append(value)
        return list(found.values())

    def first(self) -> Arguments:
        """Returns the first rows in their given order."""
        if self.tensors is not None and self._rows is not None:
            rows = slice(self._rows.batch_size)
            return self._prepare(each(operator.itemgetter(rows), self.tensors))
        source = self.source.peek() if isinstance(self.source, Stream) else self.source
        with sheltered(source):
            batches = iter(source)
        for batch in batches:
            arguments = self._move(batch)
            if self.binarize:
                check_binarizable(arguments[0])
            return self._prepare(arguments)
        raise ValueError("data is empty: it has no batches.")

    def examples(self, first: Arguments | None = None) -> Iterator[Arguments]:
        """Returns batches that stand for all of the data, about a thousand rows.

        Rows in memory are taken from everywhere; a loader or stream gives its first batch.

        Arguments:
            first: The first batch, if it was read already.
        """
        if self.tensors is None or self._rows is None:
            yield self.first() if first is None else first
            return
        size = self._rows.size
        step = min(size, self._rows.batch_size)
        number = max(1, min(size, _EXAMPLES) // step)
        order = torch.arange(number * step, device=self.device) * size // (number * step)
        # Each batch is spread over the data, too.
        for rows in order.reshape(step, number).unbind(1):
            yield self._prepare(each(operator.itemgetter(rows), self.tensors))

    def epoch(
        self, generator: torch.Generator, number: int = 0, skip: int = 0
    ) -> Iterator[tuple[Arguments, int]]:
        """Returns an iterator over the batches of an epoch and how many rows of each count.

        Arguments:
            generator: The generator of the order.
            number: The number of the epoch, from 0, for loaders whose order depends on it.
            skip: The number of batches to leave out at the start. A stream goes on with
                whatever batch comes next.
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
        with sheltered(self.source):
            batches = iter(self.source)
        if not isinstance(self.source, Stream):
            for _ in range(skip):
                next(batches, None)
        return self._loaded(batches, skip)

    def _indexed(
        self, order: Tensor | None, batches: range
    ) -> Iterator[tuple[Arguments, int]]:
        """Batches of data that is on the device."""
        assert self._rows is not None and self.tensors is not None
        order = None if order is None else order.to(self.device)
        for index in batches:
            places = self._rows.slice(index)
            rows = places if order is None else order[places]
            batch = self._prepare(each(operator.itemgetter(rows), self.tensors))
            yield batch, self._rows.count(index)

    def _loaded(self, batches: Iterator[Any], skip: int) -> Iterator[tuple[Arguments, int]]:
        """Batches from a loader or a stream."""
        for index, batch in enumerate(batches, skip):
            arguments = self._prepare(self._move(batch))
            rows = self._rows.count(index) if self._rows is not None else count_rows(arguments)
            yield arguments, rows

    def _move(self, batch: object) -> Arguments:
        """A batch as arguments of the program, on the device."""
        parts: Sequence[Any]
        if isinstance(batch, Mapping):
            parts = in_order(batch, positional_names(self.program))
        else:
            parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        check_count(parts, self.program)

        def moved(part: object) -> Tensor:
            numbers = as_type(as_numbers("data", part), self.dtype)
            return numbers.to(self.device, non_blocking=True)

        return each(moved, parts)

    def _prepare(self, arguments: tuple[Argument, ...]) -> Arguments:
        """A batch with its pixels drawn."""
        pixels = arguments[0]
        if not self.binarize or pixels is None:
            return arguments
        return binarized(pixels, self._pixels), *arguments[1:]
