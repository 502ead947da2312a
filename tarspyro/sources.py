"""Data of any container as batches of a program's arguments."""

__all__ = ["Part", "Source", "as_arguments"]

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from tarspyro.arguments import as_numbers
from tarspyro.data.parts import Values, has_rows, in_order, lists_parts, parts_of, stacked
from tarspyro.data.rows import LazyRows
from tarspyro.infer.matching import check_count, count_of_data, positional_names, settings_of
from tarspyro.infer.traces import check_program, name_of, trace_pair
from tarspyro.inputs import as_type, count_rows, each
from tarspyro.programs import PROGRAM_ERRORS, modules_of, tensors_of, type_of
from tarspyro.scopes import evaluating, local_parameters, preserved_rng
from tarspyro.types import Arguments, Data, Program

# The type of each argument, None for one that is not given.
Types: TypeAlias = tuple[torch.dtype | None, ...]

# The number of rows on which a pair is tried.
_TRIED = 100


class Part:
    """An argument of a program for all data points.

    The numbers are kept as they are if they need less memory than in the program's type, and
    get it when rows are used.

    Arguments:
        values: The numbers.
        dtype: The type that the program gets.
    """

    def __init__(self, values: Values, dtype: torch.dtype) -> None:
        if isinstance(values, Tensor):
            values = values.detach() if values.requires_grad else values
            narrow = values.element_size() < dtype.itemsize
            values = values if narrow else values.to(dtype)
        self.values = values
        self.dtype = dtype
        self.device = values.device if isinstance(values, Tensor) else torch.device("cpu")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def waits(self) -> bool:
        """Whether rows are read from a file, so that reading may wait for a disk."""
        return isinstance(self.values, LazyRows) and self.values.waits

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self.made_of(self.read(rows))

    def read(self, rows: slice | Tensor) -> Tensor:
        """Returns the numbers of some rows as they are kept."""
        values = self.values
        return values.read(rows) if isinstance(values, LazyRows) else values[rows]

    def made_of(self, numbers: Tensor) -> Tensor:
        """Returns the rows as the program gets them, made of numbers as they are kept."""
        if isinstance(self.values, LazyRows):
            numbers = self.values.made_of(numbers)
        return numbers.to(self.device).to(self.dtype)

    def to(self, device: torch.device) -> "Tensor | Part":
        """Returns the part on a device: a tensor if its numbers are as the program gets them."""
        values = self.values.to(device)
        if isinstance(values, Tensor) and values.dtype is self.dtype:
            return values
        moved = Part(values, self.dtype)
        moved.device = device
        return moved


class Source:
    """Data as batches of a program's arguments.

    Rows by index have ``parts``: tensors, arrays, tables and lists of them in memory; memory
    maps and sparse matrices, whose rows become dense when they are used. All else is read batch
    by batch: a map ``dataset``, or an iterable ``batched``.

    Real numbers, booleans and bytes get the type of the parameters. Whole numbers get it too,
    with two or more dimensions, if the programs run on them; a network with an embedding of
    tokens does not, and takes them as they are, booleans and bytes too. Whole numbers in one
    dimension are labels. Booleans stay booleans if the programs do not run on numbers, as where
    they are masks. A function without networks gets real numbers as they are.

    A data set or a loader may bring more than the program takes, such as labels.

    Arguments:
        data: The data.
        program: The model or the guide.
        others: More programs that get the same data, such as the other half.
        name: What errors call the data.

    Raises:
        TypeError: If the data holds no numbers.
        ValueError: If the parts differ in length, there are more of them than arguments, the
            program has no argument of a name, or the data is an iterator, which is read once.
    """

    def __init__(
        self, data: Data | None, program: Program, *others: Program, name: str = "data"
    ) -> None:
        check_program("model or guide", program)
        self.programs = (program, *others)
        self.name = name
        self.names = positional_names(program)
        self._settings = settings_of(program)
        self.parts: tuple[Part | None, ...] | None = None
        self.dataset: Any = None
        self.batched: Iterable[Any] = ()
        # For the types of a batch, None for missing parts, those that the programs take.
        self._types: dict[Types, Types] = {}
        values = parts_of(name, data, name_of(program), self.names)
        if values is not None:
            if not lists_parts(data):
                values = values[: count_of_data(values, self._settings)]
            self.parts = self._checked(values)
        elif isinstance(data, IterableDataset) or not has_rows(data):
            self.batched = data  # type: ignore[assignment]
        else:
            self.dataset = data

    @property
    def in_memory(self) -> Arguments | None:
        """All numbers as they are kept, if they are in memory."""
        if self.parts is None:
            return None
        values = [None if part is None else part.values for part in self.parts]
        if any(isinstance(value, LazyRows) for value in values):
            return None
        return tuple(value for value in values if not isinstance(value, LazyRows))

    def rows(self, rows: slice | Tensor) -> Arguments:
        """Returns some rows of the parts."""
        assert self.parts is not None
        return each(lambda part: part[rows], self.parts)

    def whole(self) -> Arguments:
        """Returns all rows, in memory."""
        if self.parts is not None:
            return each(_in_memory, self.parts)
        columns = zip(*self.batches(_TRIED), strict=True)
        return tuple(
            None if None in column else torch.cat(tensors_of(column)) for column in columns
        )

    def count(self) -> int:
        """Returns the number of rows. Iterables are read for it."""
        if self.parts is not None:
            return max(len(part) for part in self.parts if part is not None)
        if isinstance(self.dataset, Sized):
            return len(self.dataset)
        return sum(count_rows(batch) for batch in self.batches(_TRIED))

    def first(self, count: int) -> Arguments:
        """Returns the first rows.

        Raises:
            ValueError: If there are none.
        """
        for batch in self.batches(count):
            return batch
        raise ValueError(f"{self.name} is empty: it has no rows.")

    def batches(self, size: int) -> Iterator[Arguments]:
        """Yields all rows in batches of a size, in the order of the data.

        A loader that shuffles is read in the order of its data set.
        """
        if self.parts is not None:
            for start in range(0, self.count(), size):
                yield self.rows(slice(start, start + size))
            return
        batched = self.batched
        if self.dataset is not None:
            batched = self.loader(self.dataset, batch_size=size)
        elif isinstance(batched, IterableDataset):
            batched = self.loader(batched, batch_size=size)
        elif isinstance(batched, DataLoader):
            batched = _in_order_of_data(batched)
        yield from _rebatched(map(self.arguments, batched), size)

    def arguments(self, batch: object) -> Arguments:
        """Returns a batch of a data set, a loader or a stream as arguments of the program."""
        parts: Sequence[Any]
        if isinstance(batch, Mapping):
            parts = in_order(batch, self.names)
        else:
            parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        if self.names:
            parts = parts[: len(self.names)]
        numbers = each(lambda part: as_numbers(self.name, part).detach(), parts)
        numbers = numbers[: count_of_data(numbers, self._settings)]
        if any(not part.dim() for part in numbers[:1] if part is not None):
            raise ValueError(
                f"{self.name} gives a single number where a batch of rows is needed: give"
                " batches of shape (B, *event), or a data set of rows."
            )
        given = tuple(None if part is None else part.dtype for part in numbers)
        if given not in self._types:
            first = each(lambda part: part[:_TRIED] if part.dim() else part, numbers)
            self._types[given] = _types_of(self.programs, first)
        pairs = zip(numbers, self._types[given], strict=True)
        return tuple(
            None if part is None or dtype is None else part.to(dtype) for part, dtype in pairs
        )

    def loader(self, dataset: "Dataset[Any]", **options: Any) -> "DataLoader[Any]":
        """Returns a loader of a data set, which leaves torch's random state alone."""
        return DataLoader(
            dataset, collate_fn=self.collate, generator=torch.Generator(), **options
        )

    def collate(self, items: Sequence[Any]) -> object:
        """Returns the rows of a data set as a batch.

        Rows that torch does not know, such as images of Pillow, are read by NumPy. Sequences of
        different lengths are padded if the program takes their lengths.
        """
        try:
            return default_collate(list(items))
        except (TypeError, RuntimeError):
            if isinstance(items[0], Mapping):
                return {
                    key: stacked(self.name, [item[key] for item in items], (), "")[0]
                    for key in self.names
                    if key in items[0]
                }
            rows = [item if isinstance(item, (tuple, list)) else (item,) for item in items]
            columns = [list(column) for column in zip(*rows, strict=True)]
            who = name_of(self.programs[0])
            first = stacked(self.name, columns[0], self.names, who)
            kept = len(self.names) or len(columns)
            others = [
                part
                for column in columns[1:kept]
                for part in stacked(self.name, column, (), who)
            ]
            return [*first, *others][:kept]

    def _checked(self, values: Sequence[Values | None]) -> tuple[Part | None, ...]:
        """Returns parts of one length in the types that the programs take."""
        shapes = [tuple(value.shape) for value in values if value is not None]
        if () in shapes:
            raise ValueError(f"{self.name} has no rows: a part of it is a single number.")
        if len({shape[0] for shape in shapes}) > 1:
            raise ValueError(_about_lengths(self.name, shapes))
        if not shapes:
            raise ValueError(f"{self.name} is empty: it has no rows.")
        if shapes[0][0] == 0:
            raise ValueError(
                f"{self.name} is empty: it has no rows, got shape {shapes[0]}: look at how its rows"
                " were chosen."
            )
        check_count(values, self.programs[0])
        first = each(lambda value: value[: min(_TRIED, len(value))], values)
        types = _types_of(self.programs, first)
        pairs = zip(values, types, strict=True)
        return tuple(
            None if value is None or dtype is None else Part(value, dtype)
            for value, dtype in pairs
        )


def _about_lengths(name: str, shapes: Sequence[tuple[int, ...]]) -> str:
    """A sentence about parts of data that differ in length."""
    shown = ", ".join(map(str, shapes[:4])) + (", ..." if len(shapes) > 4 else "")
    fix = "give every part a row for each data point"
    if len(shapes[0]) > 1 and len({shape[1:] for shape in shapes}) == 1:
        fix = (
            "sequences of several lengths become one part in data.Sequences.padded(sequences)"
        )
    return f"The {len(shapes)} parts of {name} differ in length, got shapes {shown}: {fix}."


def as_arguments(data: Data | None, program: Program, *others: Program) -> Arguments | None:
    """Returns in-memory data as the arguments of a program; None for all other data.

    See ``Source``.
    """
    source = Source(data, program, *others)
    return source.whole() if source.in_memory is not None else None


def _in_memory(part: Part) -> Tensor:
    if isinstance(part.values, Tensor):
        return part.values.to(part.dtype)
    return part[:]


# --- types of numbers


def _types_of(programs: Sequence[Program], parts: Arguments) -> Types:
    """Returns the types of the numbers that the programs take, see ``Source``.

    Arguments:
        programs: The model and the guide, or one of them.
        parts: Some rows, as they are given.
    """
    dtype = type_of(*programs)
    default = dtype or torch.get_default_dtype()
    plain = [
        None if part is None else as_type(part.new_empty(0), dtype).dtype for part in parts
    ]
    embeds = any(map(_has_embedding, programs))
    several = []
    truths = []
    for index, part in enumerate(parts):
        if part is None or part.is_floating_point():
            continue
        narrow = part.dtype in (torch.bool, torch.uint8)
        if part.dtype is torch.bool:
            truths.append(index)
        if not narrow or embeds:
            plain[index] = torch.int64
        # Bytes may be labels or real numbers in any number of dimensions.
        if embeds if narrow else part.dim() > 1:
            several.append(index)
    if not several and not truths:
        return tuple(plain)

    # As many real numbers as the programs run on, and as few masks as they need.
    choices = [
        tuple(default if i in real else kept for i, kept in enumerate(plain))
        for count in range(len(several), -1, -1)
        for real in itertools.combinations(several, count)
    ]
    choices = [
        tuple(torch.bool if i in masks else t for i, t in enumerate(choice))
        for count in range(len(truths) + 1)
        for masks in itertools.combinations(truths, count)
        for choice in choices
    ]
    for types in choices:
        if _run(programs, _typed(programs, parts, types)):
            return types
    # Something else than the types is wrong with the programs, and they show it where they
    # come farthest.
    if embeds:
        choices.reverse()
    return max(choices, key=lambda types: _reach(programs, _typed(programs, parts, types)))


def _typed(programs: Sequence[Program], parts: Arguments, types: Types) -> Arguments:
    """Some rows in some types, on the device of the programs."""
    device = next(
        (
            tensor.device
            for module in modules_of(programs[-1])
            for tensor in module.parameters()
        ),
        None,
    )
    return tuple(
        None if part is None or dtype is None else part.to(dtype).to(device or part.device)
        for part, dtype in zip(parts, types, strict=True)
    )


def _run(programs: Sequence[Program], batch: Arguments) -> bool:
    """Whether the programs run on a batch. Nothing of the run is kept."""
    store = pyro.get_param_store()
    run: Callable[[], object]
    if len(programs) > 1:
        run = lambda: trace_pair(programs[0], programs[1], batch, {})  # noqa: E731
    else:
        run = lambda: poutine.trace(programs[0]).get_trace(*batch)  # noqa: E731
    with (
        preserved_rng(),
        evaluating(*programs),
        local_parameters(),
        pyro.validation_enabled(False),
        store.scope(store.get_state()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            run()
        except PROGRAM_ERRORS:
            return False
    return True


def _reach(programs: Sequence[Program], batch: Arguments) -> int:
    """The number of sites that programs, each run by itself, pass until they end or fail."""
    with _Counter() as passed:
        for program in programs:
            _run([program], batch)
    return passed.sites


class _Counter(Messenger):
    """A count of the sites that programs pass, plates included."""

    def __init__(self) -> None:
        super().__init__()
        self.sites = 0

    def _pyro_post_sample(self, msg: Any) -> None:
        self.sites += 1


def _has_embedding(program: Program) -> bool:
    return any(
        isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
        for module in modules_of(program)
        for layer in module.modules()
    )


# --- batches


def _in_order_of_data(loader: "DataLoader[Any]") -> Iterable[Any]:
    """A loader in the order of its data set, with all rows, that leaves the random state alone.

    One with a sampler of its own stays as it is.
    """
    sampler = loader.sampler
    shuffles = type(sampler) is RandomSampler and not sampler.replacement
    plain = shuffles or type(sampler) is SequentialSampler
    if not plain or type(loader.batch_sampler) is not BatchSampler:
        return loader
    return DataLoader(
        loader.dataset,
        loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
    )


def _rebatched(batches: Iterable[Arguments], size: int) -> Iterator[Arguments]:
    """Batches of one size of the same rows. Those that cannot be joined stay as they are."""
    held: list[Arguments] = []
    for batch in batches:
        if held and _event_shapes(held[-1]) != _event_shapes(batch):
            yield _joined(held)
            held = []
        if _event_shapes(batch) is None:
            yield batch
            continue
        held.append(batch)
        if sum(map(count_rows, held)) >= size:
            joined = _joined(held)
            rows = count_rows(joined)
            whole = rows - rows % size
            for start in range(0, whole, size):
                here = slice(start, start + size)
                yield tuple(None if part is None else part[here] for part in joined)
            rest = tuple(None if part is None else part[whole:] for part in joined)
            held = [rest] if whole < rows else []
    if held:
        yield _joined(held)


def _event_shapes(batch: Arguments) -> tuple[torch.Size | None, ...] | None:
    """The shapes of a row of each part; None if the parts differ in length."""
    if len({len(part) for part in tensors_of(batch)}) > 1:
        return None
    return tuple(None if part is None else part.shape[1:] for part in batch)


def _joined(batches: Sequence[Arguments]) -> Arguments:
    if len(batches) == 1:
        return batches[0]
    return tuple(
        None if None in column else torch.cat(tensors_of(column))
        for column in zip(*batches, strict=True)
    )
