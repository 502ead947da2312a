"""Batches of data and chunks of particles, so that evaluation runs in bounded memory."""

__all__ = [
    "Array",
    "ParticleChunks",
    "StructureByShape",
    "ValuesByStructure",
    "as_codes",
    "chunk_sizes",
    "first_rows",
    "in_memory",
    "map_batches",
    "readable",
    "rows_at_once",
    "seeded",
]

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar, cast

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tarspyro.arguments import as_numbers, as_seed, numpy_of
from tarspyro.data import Stream
from tarspyro.data.parts import gives_arrays
from tarspyro.infer.compilation.values import CompiledValues
from tarspyro.infer.matching import check_shape, explaining
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.structure import Structure, check_every_row, unmatched_in
from tarspyro.infer.traces import (
    InputError,
    PairError,
    check_program,
    name_of,
    sample_sites,
    trace_pair,
)
from tarspyro.inputs import (
    as_float,
    binarized,
    check_binarizable,
    check_data,
    check_inputs,
    count_rows,
    each,
    has_nan,
    sentence_of_gaps,
)
from tarspyro.programs import PROGRAM_ERRORS, device_of, have_rows, tensors_of
from tarspyro.scopes import evaluating, kept_buffers, local_parameters, preserved_rng
from tarspyro.sources import Source
from tarspyro.types import Arguments, ArrayLike, Data, Program

# A result: a tensor for data in tensors, an array for data in arrays. Which one depends on what
# a tuple or a mapping holds, so type checkers take it for a tensor, and Any admits the array.
Array: TypeAlias = Tensor | Any

# A result, several by name, or a named tuple of them.
Results = TypeVar("Results")

# The number of rows (data points times particles) that are in memory at once, and of the numbers
# in them. Networks have several tensors of about this size; larger ones do not fit the caches of
# a processor, and take more time (``benchmarks/likelihood_time.py``).
_ROWS = 10_000
_NUMBERS = 2_000_000


def rows_at_once(copies: int, numbers: int = 1) -> int:
    """Returns how many rows fit in memory.

    Arguments:
        copies: The number of copies of each row.
        numbers: The number of numbers in a row.
    """
    return max(1, min(_ROWS, _NUMBERS // max(1, numbers)) // copies)


def chunk_sizes(num_particles: int, rows: int, numbers: int = 1) -> Iterator[int]:
    """Yields the sizes of chunks of particles, which fit in memory with a number of rows each.

    Arguments:
        num_particles: The number of particles in all.
        rows: The number of rows of each particle.
        numbers: The number of numbers in a row.

    Example:
        >>> list(chunk_sizes(250, rows=100))
        [100, 100, 50]
    """
    chunk = rows_at_once(rows, numbers)
    for start in range(0, num_particles, chunk):
        yield min(chunk, num_particles - start)


class StructureByShape:
    """The structure of a pair, found once for each shape of a batch.

    Called with a batch, it raises a ``PairError`` if the pair draws some of its rows only. The
    masks of both programs, which depend on the values of a batch, are compared in each.

    Arguments:
        model: The model.
        guide: The guide.
        num_particles: The number of particles that the pair runs with.
        observed: Whether observed sites belong to the structure.
    """

    def __init__(
        self, model: Program, guide: Program, num_particles: int = 1, observed: bool = False
    ) -> None:
        self.model = model
        self.guide = guide
        self.num_particles = num_particles
        self.observed = observed
        self._structures: dict[tuple[torch.Size | None, ...], Structure] = {}
        self._batch: Arguments = ()  # The last one.

    def __call__(self, batch: Arguments) -> Structure:
        shapes = tuple(None if part is None else part.shape for part in batch)
        if shapes not in self._structures:
            structure = structure_of(
                self.model,
                self.guide,
                batch,
                {},
                particles=self.num_particles,
                observed=self.observed,
            )
            check_every_row(self.model, structure.subsamples, count_rows(batch))
            self._structures[shapes] = structure
        elif self._structures[shapes].masked and batch is not self._batch:
            with preserved_rng(), kept_buffers(self.model, self.guide):
                unmatched = unmatched_in(*trace_pair(self.model, self.guide, batch, {}))
            if unmatched != self._structures[shapes].unmatched:
                known = self._structures[shapes]
                self._structures[shapes] = replace(known, unmatched=unmatched)
        self._batch = batch
        return self._structures[shapes]


class ValuesByStructure:
    """Values of a batch given the structure of a pair, with ``compile`` by compiled functions.

    A compiled function belongs to one structure, which depends on the values of masks and is
    therefore found outside of it.

    Arguments:
        function: Takes the structure, further whole numbers, and the parts of a batch; returns
            named tensors.
        programs: The programs that it runs.
        compile: Whether to compile it.
    """

    def __init__(
        self,
        function: Callable[..., dict[str, Tensor]],
        programs: Sequence[Program],
        compile: bool,
    ) -> None:
        self.function = function
        self.programs = programs
        self.compile = compile
        self._compiled: dict[tuple[int, ...], CompiledValues] = {}

    def __call__(
        self, batch: Arguments, structure: Structure, *numbers: int
    ) -> dict[str, Tensor]:
        """Returns the function's values."""
        function = functools.partial(self.function, structure, *numbers)
        if not self.compile:
            return function(*batch)
        # A compiled function keeps its structure, so that the structure's id stays its own.
        key = id(structure), *numbers
        if key not in self._compiled:
            self._compiled[key] = CompiledValues(function, self.programs)
        return self._compiled[key](*batch)


class ParticleChunks:
    """The particles of a pair in chunks that fit in memory.

    Called with a batch, yields for each chunk the number of its particles and the structure of
    the pair.

    Arguments:
        model: The model.
        guide: The guide.
        num_particles: The number of particles in all chunks.

    Attributes:
        structure: Finds the structure of the pair for a batch.
    """

    def __init__(self, model: Program, guide: Program, num_particles: int) -> None:
        self.num_particles = num_particles
        self.structure = StructureByShape(model, guide, num_particles, observed=True)

    def __call__(self, batch: Arguments) -> Iterator[tuple[int, Structure]]:
        structure = self.structure(batch)
        rows = count_rows(batch)
        numbers = sum(part.numel() for part in tensors_of(batch)) // max(1, rows)
        for count in chunk_sizes(self.count(batch), rows, numbers):
            yield count, structure

    def count(self, batch: Arguments) -> int:
        """Returns the number of particles: one if nothing is drawn, as all would be equal."""
        return self.num_particles if self.structure(batch).latent else 1


def map_batches(
    function: Callable[..., Results],
    programs: Sequence[Program],
    x: Data,
    *,
    arguments: Arguments | None = None,
    extra: Sequence[Tensor] = (),
    binarize: bool = False,
    seed: int | None = None,
    check: bool = False,
    batch_size: int | None = None,
) -> Results:
    """Applies a function to batches of the data, in evaluation mode and without gradients.

    Arguments:
        function: Takes the parts of a batch; returns tensors with a row for each data point:
            one, several in a mapping by name, or a named tuple of them.
        programs: The model and the guide, or one of them. Batches move to the device of the
            last one that has parameters, or else buffers.
        x: The data.
        arguments: The data as tensors, if it is not that of the programs' own arguments.
        extra: Tensors with a row for each data point, which are the function's last arguments.
        binarize: Whether to draw black and white pixels with the grey values as probabilities.
        seed: See ``seeded``.
        check: Whether to compare the data with the likelihood first, as ``fit`` does.
        batch_size: The number of rows of a batch. By default 100; all of them if parameters may
            be those of single rows, as in Pyro's ``AutoNormal``.

    Returns:
        The results of the function for all data: arrays for arrays, tensors for tensors.
    """
    names = ("model", "guide") if len(programs) > 1 else ("model or guide",)
    for name, program in zip(names, programs, strict=True):
        check_program(name, program)
    source = None if arguments is not None else readable(x, *programs)
    known = arguments if source is None else source.in_memory
    if binarize and known is not None:
        check_binarizable(known[0])
    if source is not None and known is not None:
        _check_rows(programs, known)
    if batch_size is None:
        whole_rows = 0 if known is None else count_rows(known)
        batch_size = whole_rows if have_rows({whole_rows}, *programs) else 100
    if source is None:
        batches = _split((*(arguments or ()), *extra), batch_size)
    else:
        batches = _beside(source.batches(batch_size), extra)

    device = device_of(*reversed(programs))
    origin: torch.device | None = None
    results: list[Results] = []
    with (
        seeded(seed),
        pyro.validation_enabled(False),
        evaluating(*programs),
        local_parameters(),
    ):
        # The pixels have a generator of their own: the same seed gives the same pixels to
        # every pair, however many random numbers the pair itself draws.
        chosen = int(torch.randint(2**62, ())) if seed is None else as_seed(seed)
        pixels: torch.Generator | None = None
        for batch in batches:
            origin = origin or tensors_of(batch)[0].device
            device = device or origin
            moved = _moved(batch, device)
            if binarize and moved[0] is not None:
                pixels = pixels or torch.Generator(device).manual_seed(chosen)
                if known is None:
                    check_binarizable(moved[0])
                moved = (binarized(moved[0], pixels), *moved[1:])
            if check and not results:
                own = moved[: len(moved) - len(extra)]
                whole = None
                if known is not None and not binarize:
                    whole = _moved(known, device)
                if len(programs) == 1:
                    check_data(programs[0], own, whole)
                else:
                    check_inputs(programs[0], programs[1], own, whole)
            with explaining(programs, moved):
                results.append(function(*moved))
            _check_order(programs[0], results[-1], count_rows(moved))

    def join(parts: Sequence[Tensor]) -> Array:
        joined = torch.cat([part.to(origin) for part in parts])
        if has_nan(joined) and any(map(has_nan, known or ())):
            raise InputError(sentence_of_gaps(programs[-1]))
        return numpy_of(joined) if gives_arrays(x) else joined

    return _joined(results, join)


def readable(x: Data, *programs: Program, name: str = "x") -> Source:
    """Returns data that can be read again and ends; errors call it by the name.

    Raises:
        ValueError: If the data is a stream of batches.
    """
    if isinstance(x, Stream):
        raise ValueError(
            f"{name} must be data that ends, got a Stream: give tensors, a data set or a"
            " DataLoader."
        )
    return Source(x, *programs, name=name)


def in_memory(x: Data, *programs: Program, name: str = "x") -> Arguments:
    """Returns all of the data as the arguments that the programs take."""
    return readable(x, *programs, name=name).whole()


def first_rows(x: Data, count: int, *programs: Program, name: str = "x") -> Arguments:
    """Returns the first rows of the data as the arguments that the programs take."""
    return readable(x, *programs, name=name).first(count)


def seeded(seed: int | None) -> AbstractContextManager[None]:
    """Draws from the seed inside and restores the random state after; does nothing for None."""
    return contextlib.nullcontext() if seed is None else preserved_rng(seed)


def as_codes(z: ArrayLike, *programs: Program) -> Tensor:
    """Returns values of a latent variable as a tensor with a row for each.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If there are no rows.
    """
    codes = as_float(as_numbers("z", z), *programs)
    if not codes.is_floating_point():
        codes = codes.to(torch.get_default_dtype())
    if not codes.dim() or not len(codes):
        raise ValueError(f"z must have a row for each code, got shape {tuple(codes.shape)}.")
    return codes


def _check_rows(programs: Sequence[Program], data: Arguments) -> None:
    """Raises if the model observes numbers without the dimension of rows, or of events.

    Its plate would take each number for a row, and broadcast it. A run on two rows shows the
    event shape.
    """
    x = data[0]
    if x is None or x.dim() != 1:
        return
    rows = _moved(next(_split(data, 2)), device_of(*reversed(programs)) or x.device)
    with (
        preserved_rng(),
        pyro.validation_enabled(False),
        evaluating(*programs),
        local_parameters(),
        torch.no_grad(),
    ):
        try:
            trace = poutine.trace(programs[0]).get_trace(*rows)
        except PROGRAM_ERRORS:
            return  # the evaluation itself raises the reason
    for name, site in sample_sites(trace):
        if site["is_observed"] and site["value"] is rows[0]:
            check_shape(name, site["fn"], site["value"], x)


def _moved(arguments: Arguments, device: torch.device) -> Arguments:
    return each(lambda part: part.to(device), arguments)


def _split(arguments: Arguments, size: int) -> Iterator[Arguments]:
    for start in range(0, count_rows(arguments), size):
        rows = slice(start, start + size)
        yield tuple(None if part is None else part[rows] for part in arguments)


def _beside(batches: Iterable[Arguments], extra: Sequence[Tensor]) -> Iterator[Arguments]:
    """Yields batches with the same rows of further columns after them."""
    start = 0
    for batch in batches:
        rows = slice(start, start + count_rows(batch))
        yield (*batch, *(column[rows] for column in extra))
        start = rows.stop
    if not start:
        raise ValueError("x is empty: it has no rows.")


def _check_order(program: Program, result: object, rows: int) -> None:
    """Raises if the result of a batch has other plates left of that of the rows.

    Raises:
        PairError: If it has.
    """
    for part in tree_leaves(result):
        if rows in part.shape[1:] and len(part) != rows:
            raise PairError(
                f"{name_of(program)} has numbers of shape {tuple(part.shape)} for {rows} rows:"
                " put the plate of the rows left of the others, in the program and its guide,"
                " such as pyro.plate('data', len(x), dim=-2)."
            )


def _joined(results: list[Results], join: Callable[[Sequence[Tensor]], Array]) -> Results:
    """Returns the results of all batches as one."""
    first = results[0]
    if isinstance(first, Mapping):
        by_name = cast("list[Mapping[str, Tensor]]", results)
        columns = {name: join([result[name] for result in by_name]) for name in first}
        return cast("Results", columns)
    if isinstance(first, tuple):
        fields = zip(*cast("list[tuple[Tensor, ...]]", results), strict=True)
        return cast("Results", type(first)(*map(join, fields)))
    return cast("Results", join(cast("list[Tensor]", results)))
