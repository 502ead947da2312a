"""How many data points a batch holds, and how many its loss stands for."""

__all__ = ["Counter", "Counts", "rows_of"]

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from tarspyro.infer.traces import sample_sites, trace_pair
from tarspyro.inputs import count_rows
from tarspyro.modules import StochasticModule
from tarspyro.scopes import evaluating, preserved_rng

Lengths = tuple[int, ...]  # of the parts of a batch; parts of the same length count as one


class Counts(NamedTuple):
    """The data points of a batch."""

    held: int  # those that are in it
    meant: int  # those that its loss is a sum over: N, where a plate makes the batch a subsample of N


def rows_of(arguments: Sequence[Any]) -> Counts:
    """Returns the counts of a batch that stands for its rows."""
    rows = count_rows(arguments)
    return Counts(rows, rows)


class _Growing(NamedTuple):
    """A number of a batch that grows with the lengths of its parts."""

    start: int
    lengths: Lengths
    slopes: tuple[float, ...]

    def __call__(self, lengths: Lengths) -> int:
        """Returns the number in a batch of other lengths."""
        changes = zip(self.slopes, lengths, self.lengths, strict=True)
        return self.start + round(sum(slope * (now - then) for slope, now, then in changes))


class _Plate(NamedTuple):
    """A plate that holds data: its indices, and those that they are a subsample of."""

    size: _Growing
    full_size: _Growing


class Counter:
    """Counts the data points of batches, by what plates say of them.

    A plate holds data if it grows with the rows, whatever its size. Which ones do is found out
    once, with runs of the pair on the first batch and on a shorter one; then the lengths of a
    batch tell everything. A batch stands for its rows, or for N where its plate makes it a
    subsample of N. Plates side by side count together, such as those of data with labels and
    of others without; a plate inside another counts nothing more, nor does one without
    observations.

    Arguments:
        model: The model.
        guide: The guide.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", 1000, subsample=x):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> count = Counter(model, lambda x: None)
        >>> count([torch.zeros(10)]), count([torch.zeros(3)])
        (Counts(held=10, meant=1000), Counts(held=3, meant=1000))
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any]) -> None:
        self.model, self.guide = model, guide
        self._plates: dict[
            Any, list[_Plate]
        ] = {}  # for each way in which lengths are equal, or parts not given

    def __call__(self, arguments: Sequence[Any]) -> Counts:
        """Returns the counts of a batch."""
        every = [
            len(part) if torch.is_tensor(part) and part.dim() else None for part in arguments
        ]
        lengths = tuple(dict.fromkeys(length for length in every if length is not None))
        kind = tuple(None if length is None else lengths.index(length) for length in every)
        if kind not in self._plates:
            self._plates[kind] = self._find(arguments, lengths)
        rows = count_rows(arguments)
        plates = self._plates[kind]
        counts = [Counts(plate.size(lengths), plate.full_size(lengths)) for plate in plates]
        if sum(length is not None for length in every) == 1:  # all plates hold the same rows
            meant = next((count.meant for count in counts if count.held < count.meant), rows)
            return Counts(rows, meant)
        if not counts:
            return rows_of(arguments)
        return Counts(*(max(sum(numbers), 1) for numbers in zip(*counts, strict=True)))

    def _find(self, arguments: Sequence[Any], lengths: Lengths) -> list[_Plate]:
        """Finds the plates that hold the data points, one for all that hold the same."""
        sizes, sites = self._run(arguments)
        shorter = [self._run_shorter(arguments, length) for length in lengths]
        plates: dict[str, _Plate] = {}
        for name, found in sizes.items():
            numbers = []
            for index, number in enumerate(found):
                slopes = [
                    (
                        _slope(number, other[name][index], length)
                        if name in other
                        else float(number == length)
                    )  # no such run: its size has to tell
                    for other, length in zip(shorter, lengths, strict=True)
                ]
                numbers.append(_Growing(number, lengths, tuple(slopes)))
            if any(any(number.slopes) for number in numbers):
                plates[name] = _Plate(*numbers)
        holding: list[list[str]] = []
        for site in sites:
            names = [name for name in site if name in plates]
            for other in [other for other in holding if set(other) & set(names)]:
                holding.remove(other)
                names = [*other, *(name for name in names if name not in other)]
            if names:
                holding.append(names)
        return [_leading([plates[name] for name in names]) for names in holding]

    def _run(
        self, arguments: Sequence[Any]
    ) -> tuple[dict[str, tuple[int, int]], list[list[str]]]:
        """Returns the sizes of plates, those that they are subsamples of, and the plates
        around each observed site.
        """
        with preserved_rng(), evaluating(self.model, self.guide):
            model_trace, _ = trace_pair(self.model, self.guide, arguments, {})
        drawn: list[Any] = [site for _, site in sample_sites(model_trace)]
        sites = [site["cond_indep_stack"] for site in drawn if site["is_observed"]]
        sites = sites or [site["cond_indep_stack"] for site in drawn]
        sizes = {
            frame.name: (frame.size, frame.full_size or frame.size)
            for frames in sites
            for frame in frames
        }
        return sizes, [[frame.name for frame in frames] for frames in sites]

    def _run_shorter(
        self, arguments: Sequence[Any], length: int
    ) -> Mapping[str, tuple[int, int]]:
        """Returns the sizes where the parts of a length have half of their rows; none if the
        pair does not run so.
        """
        rows = _other(length)

        def cut(part: Any) -> Any:
            if not (torch.is_tensor(part) and part.dim() and len(part) == length):
                return part
            return part[:rows] if rows < length else torch.cat([part, part])

        # A program of others may keep something of a run that fails, such as an EasyGuide its
        # plates.
        halves = [self._copy(half) for half in (self.model, self.guide)]
        try:
            return Counter(*halves)._run([cut(part) for part in arguments])[0]
        except Exception:  # whatever a program says of data of another length
            return {}

    @staticmethod
    def _copy(program: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(program, StochasticModule) or not isinstance(program, nn.Module):
            return program
        return copy.deepcopy(program)


def _other(length: int) -> int:
    """Another length: half of it, of a single row twice."""
    return length // 2 if length > 1 else 2


def _slope(number: int, other: int, length: int) -> float:
    return (number - other) / (length - _other(length))


def _leading(plates: Sequence[_Plate]) -> _Plate:
    """The plate that counts, of some around the same data: a subsampled one, else the
    outermost.
    """
    return next(
        (plate for plate in plates if plate.size.start < plate.full_size.start), plates[0]
    )
