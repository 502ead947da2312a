"""Counts of data points: how many a batch holds, and how many its loss stands for."""

__all__ = ["Counter", "Counts", "rows_of"]

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import nn

from tarspyro.infer.traces import Site, is_delta, sample_sites, trace_pair
from tarspyro.inputs import count_rows
from tarspyro.modules import StochasticModule, copy_modules
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Argument, Program

# The lengths of the parts of a batch; parts of the same length count as one.
Lengths: TypeAlias = tuple[int, ...]

# The size and the full size of a plate.
_Sizes: TypeAlias = tuple[int, int]

_Program = TypeVar("_Program", bound=Program)


class Counts(NamedTuple):
    """The numbers of data points of a batch.

    Attributes:
        held: How many are in the batch.
        meant: How many the loss is a sum over. It is N where a plate makes the batch a
            subsample of N.
    """

    held: int
    meant: int


def rows_of(arguments: Sequence[Argument]) -> Counts:
    """Returns the counts of a batch that stands for its rows."""
    rows = count_rows(arguments)
    return Counts(rows, rows)


class _LinearSize(NamedTuple):
    """A size that is linear in the lengths of a batch.

    Attributes:
        start: The size in the first batch.
        lengths: The lengths of the first batch.
        slopes: The change of the size by each length.
    """

    start: int
    lengths: Lengths
    slopes: tuple[float, ...]

    def at(self, lengths: Lengths) -> int:
        """Returns the size in a batch of other lengths."""
        changes = zip(self.slopes, lengths, self.lengths, strict=True)
        return self.start + round(sum(slope * (now - then) for slope, now, then in changes))


class _Plate(NamedTuple):
    """A plate that holds data: its number of indices, and of how many they are a subsample."""

    size: _LinearSize
    full_size: _LinearSize

    def counts(self, lengths: Lengths) -> Counts:
        """Returns the counts of the plate in a batch."""
        return Counts(self.size.at(lengths), self.full_size.at(lengths))


class Counter:
    """Counts the data points of batches by the plates of the model.

    A plate holds data if its size depends on the number of rows. To find these plates, the pair
    runs once on the first batch and once on a shorter one. After that, the lengths of a batch
    tell its counts. The rules are:

    - A batch stands for its rows, or for N where its plate makes it a subsample of N.
    - Plates side by side add up, such as one for labelled and one for unlabelled data.
    - A plate inside another counts nothing more, nor does a plate without observations.

    Arguments:
        model: The model.
        guide: The guide.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", 1000, subsample=x):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> count = Counter(model, lambda x: None)
        >>> count([torch.zeros(10)])
        Counts(held=10, meant=1000)
        >>> count([torch.zeros(3)])
        Counts(held=3, meant=1000)
    """

    def __init__(self, model: Program, guide: Program) -> None:
        self.model = model
        self.guide = guide
        # For each pattern of equal lengths and missing parts, the plates that hold data.
        self._plates: dict[tuple[int | None, ...], list[_Plate]] = {}
        # For the lengths of each batch so far, its counts.
        self._counts: dict[tuple[int | None, ...], Counts] = {}

    def __call__(self, arguments: Sequence[Argument]) -> Counts:
        """Returns the counts of a batch."""
        parts = [None if part is None or not part.dim() else len(part) for part in arguments]
        key = tuple(parts)
        if key not in self._counts:
            self._counts[key] = self._count(arguments, parts)
        return self._counts[key]

    def shared(self, arguments: Sequence[Argument]) -> list[str]:
        """Returns the latent variables that a batch shares with all others, unweighted.

        Their priors count once in every batch, and so do its rows. The list is empty where a
        program weights one of the two, as by a plate that makes the batch a subsample.
        """
        rows = count_rows(arguments)
        sites = self._sites(arguments)
        sizes, _ = _sizes_of(sites)
        shorter = self._run_shorter(arguments, rows)
        of_data = {name for name in sizes if name in shorter and shorter[name] != sizes[name]}
        if not of_data:
            return []
        shared = []
        for site in sites:
            if not isinstance(site["scale"], float) or site["scale"] != 1:
                return []
            inside = any(frame.name in of_data for frame in site["cond_indep_stack"])
            told = is_delta(site) or site["infer"].get("_deterministic")
            if not (site["is_observed"] or inside or told or rows in site["fn"].shape()):
                shared.append(site["name"])
        return shared

    def _count(self, arguments: Sequence[Argument], parts: Sequence[int | None]) -> Counts:
        """The counts of a batch whose parts have certain lengths, None for missing parts."""
        lengths = tuple(dict.fromkeys(length for length in parts if length is not None))
        pattern = tuple(None if length is None else lengths.index(length) for length in parts)
        if pattern not in self._plates:
            self._plates[pattern] = self._find(arguments, lengths)
        rows = count_rows(arguments)
        counts = [plate.counts(lengths) for plate in self._plates[pattern]]
        if sum(length is not None for length in parts) == 1:
            # All plates hold the rows of the one part.
            meant = next((count.meant for count in counts if count.held < count.meant), rows)
            return Counts(rows, meant)
        if not counts:
            return rows_of(arguments)
        held = max(sum(count.held for count in counts), 1)
        return Counts(held, max(sum(count.meant for count in counts), 1))

    def _find(self, arguments: Sequence[Argument], lengths: Lengths) -> list[_Plate]:
        """Finds the plates that hold data; of plates around the same data, one."""
        sizes, plates_of_sites = _sizes_of(self._sites(arguments))
        shorter = [self._run_shorter(arguments, length) for length in lengths]
        plates: dict[str, _Plate] = {}
        for name, found in sizes.items():
            linear = []
            for index, size in enumerate(found):
                others = [sizes[name][index] if name in sizes else None for sizes in shorter]
                linear.append(_linear_size(size, others, lengths))
            if any(any(size.slopes) for size in linear):
                plates[name] = _Plate(*linear)
        groups = _groups_of(plates_of_sites, plates)
        return [_counting([plates[name] for name in names]) for names in groups]

    def _sites(self, arguments: Sequence[Argument]) -> list[Site]:
        """Runs the pair on a batch; returns the sites of the model."""
        with preserved_rng(), evaluating(self.model, self.guide):
            model_trace, _ = trace_pair(self.model, self.guide, arguments, {})
        return [site for _, site in sample_sites(model_trace)]

    def _run_shorter(self, arguments: Sequence[Argument], length: int) -> Mapping[str, _Sizes]:
        """Returns the sizes of plates where the parts of a length have half of their rows.

        They are empty if the pair cannot be copied or does not run on such data.
        """
        rows = _other(length)

        def cut(part: Argument) -> Argument:
            if part is None or not part.dim() or len(part) != length:
                return part
            return part[:rows] if rows < length else torch.cat([part, part])

        # A foreign program may keep something of a run that fails, such as an EasyGuide its
        # plates. So a copy runs.
        try:
            counter = Counter(_copied(self.model), _copied(self.guide))
            return _sizes_of(counter._sites([cut(part) for part in arguments]))[0]
        except Exception:  # a program may raise anything, on data of another length or copied
            return {}


def _sizes_of(sites: Sequence[Site]) -> tuple[dict[str, _Sizes], list[list[str]]]:
    """Returns the sizes of the plates by name, and for each observed site the names of its
    plates.
    """
    observed = [site for site in sites if site["is_observed"]]
    frames_of_sites = [site["cond_indep_stack"] for site in observed or sites]
    sizes = {
        frame.name: (frame.size, frame.full_size or frame.size)
        for frames in frames_of_sites
        for frame in frames
    }
    return sizes, [[frame.name for frame in frames] for frames in frames_of_sites]


def _copied(program: _Program) -> _Program:
    """A copy of a module that is not one of this library."""
    if isinstance(program, StochasticModule) or not isinstance(program, nn.Module):
        return program
    return copy_modules(program)


def _other(length: int) -> int:
    """Another length: the half, or 2 for a single row."""
    return length // 2 if length > 1 else 2


def _linear_size(size: int, others: Sequence[int | None], lengths: Lengths) -> _LinearSize:
    """A size as a function of the lengths, from its values in two batches.

    Without a second value a size counts as that of the data if it equals the length.

    Arguments:
        size: The size in the first batch.
        others: For each length, the size in the batch where it is another one.
        lengths: The lengths of the first batch.
    """
    slopes = []
    for other, length in zip(others, lengths, strict=True):
        if other is None:
            slopes.append(float(size == length))
        else:
            slopes.append((size - other) / (length - _other(length)))
    return _LinearSize(size, lengths, tuple(slopes))


def _groups_of(
    sites: Sequence[Sequence[str]], plates: Mapping[str, _Plate]
) -> list[list[str]]:
    """The names of the plates that hold data, in groups around the same data."""
    groups: list[list[str]] = []
    for site in sites:
        names = [name for name in site if name in plates]
        for group in [group for group in groups if set(group) & set(names)]:
            groups.remove(group)
            names = [*group, *(name for name in names if name not in group)]
        if names:
            groups.append(names)
    return groups


def _counting(plates: Sequence[_Plate]) -> _Plate:
    """The plate that counts, among plates around the same data.

    It is the first one that is a subsample, or else the outermost one.
    """
    for plate in plates:
        if plate.size.start < plate.full_size.start:
            return plate
    return plates[0]
