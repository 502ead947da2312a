"""Batches of in-memory data, data sets, loaders and streams."""

__all__ = ["Batches"]

import operator
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, IterableDataset, Sampler

from tarspyro.data import Stream
from tarspyro.inputs import binarized, check_binarizable, count_rows, each
from tarspyro.sources import Part, Source
from tarspyro.training.distributed import Processes
from tarspyro.training.interrupts import sheltered
from tarspyro.types import Argument, Arguments, Data, Program

# The number of rows that stand for all of the data.
_EXAMPLES = 1000

# Threads that read files, which wait most of the time, and how far they are ahead.
_READERS = 4
_BATCHES_AHEAD = 8
# When they start: a batch whose rows the system holds in memory takes less, in seconds.
_QUICK = 1e-3
_SLOW_IN_A_ROW = 3


class _Rows(Sampler[list[int]]):
    """The rows of each batch of an epoch; of several processes, the share of this one.

    Arguments:
        size: The number of rows of the data.
        batch_size: The number of rows of a batch.
        shuffle: Whether a generator draws the order, unless one batch has all rows.
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
        """Draws the order of an epoch; None stands for the given order.

        One batch of all rows keeps it, so that programs may have parameters for each row.
        """
        if not self.shuffle or len(self) <= 1:
            return None
        return torch.randperm(self.size, generator=self.generator)

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

    In-memory data is moved to the device once and indexed there. Rows of files and of sparse
    matrices are read when they are needed; loaders are read batch by batch.

    Arguments:
        data: Data of any kind that ``tarspyro.sources.Source`` takes, or a ``Stream``.
        program: The model.
        batch_size: The number of rows of a batch; the last one of an epoch may be shorter.
        device: The device of the batches.
        others: More programs that get the same data, such as the guide.
        shuffle: Whether each epoch has another order, unless one batch has all rows. Loaders
            keep their own order.
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
        self.device = device
        self.binarize = binarize
        self.pixel_seed = pixel_seed
        self._pixels = None if pixel_seed is None else torch.Generator(device)
        self.data = Source(data, program, *others)
        self.batch_size = batch_size
        self.source: Iterable[Any] = self.data.batched
        self.parts: tuple[Tensor | Part | None, ...] | None = None
        self._rows: _Rows | None = None

        processes = processes or Processes()
        if self.data.parts is not None or self.data.dataset is not None:
            self._rows = _Rows(self.data.count(), batch_size, shuffle, processes)
        if self.data.parts is not None:
            in_memory = self.data.in_memory
            if binarize and in_memory is not None:
                check_binarizable(in_memory[0])
            self.parts = tuple(
                None if part is None else part.to(device) for part in self.data.parts
            )
        elif self.data.dataset is not None:
            self.source = self.data.loader(self.data.dataset, batch_sampler=self._rows)
        elif isinstance(data, IterableDataset):
            self.source = self.data.loader(data, batch_size=batch_size)

    def __len__(self) -> int:
        """The number of batches of an epoch; 0 if it is not known."""
        if self._rows is not None:
            return len(self._rows)
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:  # an iterable without a length, also one in a loader
            return 0

    @property
    def constant(self) -> Arguments | None:
        """All of the data, if it is in memory and its pixels are not drawn anew."""
        if self.binarize or self.parts is None or self.data.in_memory is None:
            return None
        return each(lambda part: part if isinstance(part, Tensor) else part.values, self.parts)

    @property
    def num_rows(self) -> int | None:
        """The number of rows of the data; None if a loader decides it."""
        return None if self._rows is None else self._rows.size

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
        if self.parts is not None and self._rows is not None:
            rows = slice(self._rows.batch_size)
            arguments = each(operator.itemgetter(rows), self.parts)
            if self.binarize and self.data.in_memory is None:
                check_binarizable(arguments[0])
            return self._prepare(arguments)
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

        Rows by index are taken from everywhere; a loader or stream gives its first batch.

        Arguments:
            first: The first batch, if it was read already.
        """
        if self.parts is None or self._rows is None:
            yield self.first() if first is None else first
            return
        size = self._rows.size
        step = min(size, self._rows.batch_size)
        number = max(1, min(size, _EXAMPLES) // step)
        device = "cpu" if self.data.in_memory is None else self.device
        order = torch.arange(number * step, device=device) * size // (number * step)
        # Each batch is spread over the data, too.
        for rows in order.reshape(step, number).unbind(1):
            yield self._prepare(each(operator.itemgetter(rows), self.parts))

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
        if self._rows is not None and self.parts is not None:
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
        """Batches of data with rows by index."""
        assert self._rows is not None and self.parts is not None
        if order is not None and self.data.in_memory is not None:
            order = order.to(self.device)

        def read(index: int) -> Arguments:
            assert self._rows is not None and self.parts is not None
            places = self._rows.slice(index)
            rows = places if order is None else order[places]
            return each(partial(_taken, rows), self.parts)

        waits = any(isinstance(part, Part) and part.waits for part in self.parts)
        taken = _read_in_time(read, batches) if waits else map(read, batches)
        for index, numbers in zip(batches, taken, strict=True):
            batch = tuple(map(_made_of, self.parts, numbers))
            yield self._prepare(batch), self._rows.count(index)

    def _loaded(self, batches: Iterator[Any], skip: int) -> Iterator[tuple[Arguments, int]]:
        """Batches from a loader or a stream."""
        index = skip
        for index, batch in enumerate(batches, skip + 1):
            arguments = self._prepare(self._move(batch))
            count = self._rows.count(index - 1) if self._rows is not None else None
            yield arguments, count_rows(arguments) if count is None else count
        if index == 0 and not isinstance(self.source, Stream):
            raise ValueError(
                "data has no batches in this epoch: if it can be read once only, give"
                " tarspyro.data.Stream(iter(data), steps_per_epoch=1000)."
            )

    def _move(self, batch: object) -> Arguments:
        """A batch as arguments of the program, on the device."""
        return each(
            lambda part: part.to(self.device, non_blocking=True), self.data.arguments(batch)
        )

    def _prepare(self, arguments: tuple[Argument, ...]) -> Arguments:
        """A batch with its pixels drawn."""
        pixels = arguments[0]
        if not self.binarize or pixels is None:
            return arguments
        return binarized(pixels, self._pixels), *arguments[1:]


def _taken(rows: slice | Tensor, part: Tensor | Part) -> Tensor:
    """Some rows of a part of the data, as they are kept."""
    if isinstance(part, Part):
        return part.read(rows)
    # Half the time of an index, but not there for every type.
    quick = (torch.float32, torch.float64, torch.uint8)
    if isinstance(rows, Tensor) and part.dtype in quick:
        return part.index_select(0, rows)
    return part[rows]


def _made_of(part: Tensor | Part | None, numbers: Argument) -> Argument:
    """Rows as the program gets them."""
    return part.made_of(numbers) if isinstance(part, Part) and numbers is not None else numbers


def _read_in_time(read: Callable[[int], Arguments], batches: range) -> Iterator[Arguments]:
    """Batches of rows in files, each read when it is needed or, from a slow disk, ahead of it.

    As long as the system holds the files in memory, a batch is read when it is needed. Once
    several reads in a row were slow, threads read the other batches of the epoch ahead.
    """
    slow = 0
    for done, index in enumerate(batches, 1):
        start = time.perf_counter()
        numbers = read(index)
        slow = slow + 1 if time.perf_counter() - start > _QUICK else 0
        yield numbers
        if slow == _SLOW_IN_A_ROW:
            yield from _read_ahead(read, batches[done:])
            return


def _read_ahead(read: Callable[[int], Arguments], batches: range) -> Iterator[Arguments]:
    """Batches of rows in files, read by threads a few batches before they are needed."""
    waiting: deque[Future[Arguments]] = deque()
    with ThreadPoolExecutor(_READERS) as readers:
        try:
            for index in batches:
                waiting.append(readers.submit(read, index))
                if len(waiting) > _BATCHES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
