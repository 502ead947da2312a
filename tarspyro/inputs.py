"""Numbers as arguments of a program, and checks that they fit the likelihood."""

__all__ = [
    "as_float",
    "as_type",
    "binarized",
    "check_bounds",
    "check_binarizable",
    "check_data",
    "check_inputs",
    "count_rows",
    "each",
    "has_nan",
    "positions_with_gaps",
    "same_support",
    "sentence_of_gaps",
]

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Independent, MaskedDistribution, Multinomial
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution, constraints

from tarspyro.distributions import Concatenate
from tarspyro.distributions.autoregressive import AutoregressiveDistribution
from tarspyro.distributions.incomplete import has_gaps
from tarspyro.infer.diagnosis import about_source, explained
from tarspyro.infer.matching import (
    check_shape,
    check_sites,
    run_pair,
)
from tarspyro.infer.remedies import (
    about_bounds,
    about_edges,
    about_support,
    is_range_of_bytes,
)
from tarspyro.infer.traces import (
    InputError,
    PairError,
    is_factor,
    name_of,
    sample_sites,
    trace_pair,
)
from tarspyro.programs import tensors_of, type_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Argument, Arguments, Program


def each(function: Callable[[Any], Tensor], arguments: Iterable[object]) -> Arguments:
    """Returns a function's values at the arguments; an argument that is None stays None."""
    return tuple(None if part is None else function(part) for part in arguments)


def count_rows(arguments: Sequence[object]) -> int:
    """Returns the number of rows of a batch."""
    return len(tensors_of(arguments)[0])


def as_float(tensor: Tensor, *programs: object) -> Tensor:
    """Returns numbers in the type in which programs compute, see ``as_type``.

    Arguments:
        tensor: The numbers.
        programs: Modules or functions. Without any, booleans, bytes and double precision,
            NumPy's default, become torch's default.
    """
    if not programs and tensor.dtype is torch.float64:
        return tensor.to(torch.get_default_dtype())
    return as_type(tensor, type_of(*programs))


def as_type(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns real numbers, booleans and bytes in a type.

    Other integers are labels and stay as they are. Without a type, real numbers keep their own,
    and booleans and bytes get torch's default.

    Example:
        >>> double = torch.zeros(2, dtype=torch.float64)
        >>> as_type(double, torch.float32).dtype
        torch.float32
        >>> as_type(double, None).dtype
        torch.float64
        >>> as_type(torch.zeros(2, dtype=torch.uint8), None).dtype
        torch.float32
    """
    if tensor.is_floating_point():
        return tensor if dtype is None else tensor.to(dtype)
    if tensor.dtype in (torch.bool, torch.uint8):
        return tensor.to(dtype or torch.get_default_dtype())
    return tensor


def binarized(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws black and white pixels with the grey values x as probabilities."""
    return torch.bernoulli(x, generator=generator)


def check_inputs(
    model: Program,
    guide: Program,
    arguments: Sequence[Argument],
    data: Sequence[Argument] | None = None,
    *,
    pair: str | None = "whole",
) -> None:
    """Compares the halves of a pair, and compares data with the likelihood.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: A batch, with None for arguments that are not observed.
        data: All of the data, if it is in memory, in any type. The batch is its first rows.
        pair: What has to match in the halves: the ``"whole"`` latent variables, or for Pyro's
            own bounds only their ``"names"`` and shapes. None compares nothing.

    Raises:
        InputError: If a value is NaN or infinite, a shape is not the likelihood's, or a value
            is outside its support.
        PairError: If the halves do not match.
    """
    data = arguments if data is None else data
    if _check_numbers(model, arguments, data):
        _check_takes_gaps(guide, arguments)
    # With validation on, a distribution skips it only if the user has switched it off.
    with pyro.validation_enabled(True), preserved_rng(), evaluating(model, guide):
        if pair is not None:
            traces = run_pair(model, guide, arguments, {})
            whole = pair == "whole"
            check_sites(model, guide, *traces, data=arguments, observed=whole, supports=whole)
        with _in_one_sentence((model, guide), arguments):
            # The model runs alone first. Its sentence about bad data is better than an error
            # of the guide's network. It may have a prior from which nothing can be drawn.
            with contextlib.suppress(NotImplementedError):
                _check_observed(poutine.trace(model).get_trace, arguments, data)
            _check_observed(
                lambda *batch: trace_pair(model, guide, batch, {})[0], arguments, data
            )


def check_data(
    model: Program, arguments: Sequence[Argument], data: Sequence[Argument] | None = None
) -> None:
    """Compares data with the likelihood of a model that has no guide.

    Arguments:
        model: The model.
        arguments: A batch, with None for arguments that are not observed.
        data: All of the data, if it is in memory. The batch is its first rows.

    Raises:
        InputError: As ``check_inputs`` does.
    """
    data = arguments if data is None else data
    _check_numbers(model, arguments, data)
    with pyro.validation_enabled(True), preserved_rng(), evaluating(model):
        with (
            _in_one_sentence((model,), arguments),
            contextlib.suppress(NotImplementedError),
        ):
            _check_observed(poutine.trace(model).get_trace, arguments, data)


@contextlib.contextmanager
def _in_one_sentence(
    programs: Sequence[Program], arguments: Sequence[Argument]
) -> Iterator[None]:
    """Turns any error of programs that do not run on data into one sentence."""
    try:
        yield
    except (InputError, PairError):
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        found, cause = explained(programs, arguments, error)
        raise found from cause


def _check_numbers(
    model: Program, arguments: Sequence[Argument], data: Sequence[Argument]
) -> bool:
    """Raises if a number is infinite, or NaN where the likelihood does not take gaps.

    Returns:
        Whether there are gaps.
    """
    with_gaps = positions_with_gaps(model, arguments) if any(map(has_nan, data)) else set()
    for position, part in enumerate(data):
        if position in with_gaps and part is not None:
            part = part.nan_to_num(0.0, math.inf, -math.inf)
        _check_finite(part, position)
    return bool(with_gaps)


# The number of draws that show whether a support depends on a latent variable.
_DRAWS = 5


def _check_observed(
    run: Callable[..., Trace], arguments: Sequence[Argument], data: Sequence[Argument]
) -> None:
    """Compares the observed sites of a program with their shapes and supports.

    Arguments:
        run: Runs the program on a batch, and returns its trace.
        arguments: The batch.
        data: All of the data. The batch is its first rows.
    """
    for name, site in sample_sites(run(*arguments)):
        value = site["value"]
        if not isinstance(site["fn"], Distribution):
            raise PairError(about_source(name, site["fn"]))
        if not (site["is_observed"] and torch.is_tensor(value)) or is_factor(site):
            continue
        check_shape(name, site["fn"], value)
        # Validation is off later, so this checks all rows of the data, unless each row has a
        # support of its own.
        whole = value
        if not _is_of_rows(site["fn"].support):
            for argument, part in zip(arguments, data, strict=True):
                if argument is value and part is not None:
                    whole = part
        draws = _DRAWS
        for rows in _batches_of(whole, value):
            batch = whole[rows].to(value.dtype)
            try:
                _check_support(name, site["fn"], batch, whole)
            except InputError:
                own = arguments if whole is value else _rows_of(data, rows, arguments)
                again: list[Any] = [run(*own).nodes[name]["fn"] for _ in range(draws)]
                if all(same_support(site["fn"].support, fn.support) for fn in again):
                    raise
                # A support such as that of Uniform(0, z) depends on a latent variable, and the
                # next draw may fit. That of counts up to the largest sum of a batch is the
                # batch's own.
                if not all(same_support(again[0].support, fn.support) for fn in again):
                    break
                _check_support(name, again[0], batch, whole)
                draws = 1


def check_bounds(model: Program, arguments: Sequence[Argument]) -> None:
    """Raises an ``InputError`` if the bounds of a likelihood's support are trained parameters.

    They cannot be trained by the gradient of the density, which leads to the bound and beyond.

    Arguments:
        model: The model.
        arguments: A batch.
    """
    with pyro.validation_enabled(False), preserved_rng(), evaluating(model):
        try:
            with torch.enable_grad():
                trace = poutine.trace(model).get_trace(*arguments)
        except NotImplementedError:  # it has a prior from which nothing can be drawn
            return
    for name, site in sample_sites(trace):
        if site["is_observed"] and isinstance(site["fn"], Distribution):
            sentence = about_bounds(name, site["fn"])
            if sentence is not None:
                raise InputError(sentence)


def _rows_of(
    data: Sequence[Argument], rows: slice, like: Sequence[Argument]
) -> tuple[Argument, ...]:
    """Some rows of all data, of the types of a batch and where it is."""
    return tuple(
        one if part is None or one is None else part[rows].to(one)
        for part, one in zip(data, like, strict=True)
    )


def _batches_of(whole: Tensor, batch: Tensor) -> Iterator[slice]:
    """The rows of some data in batches of one size.

    The last one overlaps the one before, as a support may have parameters for each row.
    """
    if batch.dim():
        size = len(batch)
        for start in range(0, len(whole), size):
            start = min(start, len(whole) - size)
            yield slice(start, start + size)


def _is_of_rows(support: object) -> bool:
    """Whether a support has parameters that differ from row to row."""
    return any(
        part.numel() > 1 and bool((part != part.flatten()[0]).any())
        for part in _tensors(support)
    )


def same_support(support: object, other: object) -> bool:
    """Whether two supports have the same parameters."""
    return all(map(torch.equal, _tensors(support), _tensors(other)))


def _tensors(support: object) -> list[Tensor]:
    """The parameters of a support and of its parts."""
    if isinstance(support, Tensor):
        return [support]
    if isinstance(support, (int, float)):
        return [torch.tensor(support)]
    if isinstance(support, (list, tuple)):
        return [tensor for part in support for tensor in _tensors(part)]
    if isinstance(support, constraints.Constraint):
        return [tensor for part in vars(support).values() for tensor in _tensors(part)]
    return []


def check_binarizable(part: Tensor | None) -> None:
    """Raises an ``InputError`` unless the values are probabilities, as ``binarize`` needs."""
    if part is None:
        raise InputError(
            "binarize=True draws the pixels of the first part of the data, which is None: leave"
            " out binarize=True."
        )
    _check_finite(part, 0)
    low = part.min().item()
    high = part.max().item()
    if low < 0 or high > 1:
        fix = "leave out binarize=True"
        if is_range_of_bytes(low, high):
            fix = "these look like bytes, divide by 255"
        raise InputError(
            f"binarize=True needs pixels between 0 and 1, got values from {low:g} to {high:g}:"
            f" {fix}."
        )


def has_nan(part: Argument) -> bool:
    """Returns whether a part of the data has gaps, NaN."""
    return part is not None and part.is_floating_point() and bool(part.isnan().any())


def positions_with_gaps(model: Program, arguments: Sequence[Argument]) -> set[int]:
    """Returns the positions of arguments whose likelihood takes NaN for missing values."""
    with preserved_rng(), evaluating(model), pyro.validation_enabled(False):
        trace = poutine.trace(model).get_trace(*arguments)
    found = set()
    for _, site in sample_sites(trace):
        if site["is_observed"] and has_gaps(site["fn"]):
            found |= {i for i, part in enumerate(arguments) if part is site["value"]}
    return found


def _check_takes_gaps(guide: Program, arguments: Sequence[Argument]) -> None:
    """Raises an ``InputError`` if the guide draws NaN from data with gaps."""
    with preserved_rng(), evaluating(guide), pyro.validation_enabled(False):
        trace = poutine.trace(guide).get_trace(*arguments)
    for _, site in sample_sites(trace):
        if has_nan(torch.as_tensor(site["value"])):
            raise InputError(sentence_of_gaps(guide))


def sentence_of_gaps(program: Program) -> str:
    """Returns the sentence about a program that computes NaN from data with gaps."""
    return (
        f"{name_of(program)} computes NaN from the NaN of the data: let its network see the"
        " gaps, nn.WithGaps(network, in_shape), where the network takes the values and which"
        " of them are known, as MLP([D, D], ...) does."
    )


def _check_finite(part: Argument, position: int) -> None:
    """Raises an ``InputError`` if a part of the data has values that are not finite."""
    if part is None or not part.is_floating_point():
        return
    bad = ~part.isfinite().reshape(len(part) if part.dim() else 1, -1)
    rows = bad.any(1)
    if not rows.any():
        return
    kinds = [
        kind
        for kind, found in (("NaN", part.isnan()), ("infinite", part.isinf()))
        if found.any()
    ]
    first = int(rows.nonzero()[0])
    raise InputError(
        f"data[{position}] has {' and '.join(kinds)} values in {int(rows.sum())} of {len(rows)}"
        f" rows, first in row {first}{_about_gaps(bad, kinds)}."
    )


def _about_gaps(bad: Tensor, kinds: Sequence[str]) -> str:
    """The end of a sentence about values that are not finite, with what to do about them.

    Arguments:
        bad: Which values are not finite, in rows of numbers.
        kinds: The kinds of them.
    """
    columns = bad.all(0).nonzero().flatten().tolist()
    if columns and len(bad) > 1 and len(columns) < bad.shape[1]:
        return (
            f", and column {columns[0]} has no other values: leave that column out; a constant"
            " column divided by its standard deviation, or words read as numbers, look so"
        )
    if "infinite" in kinds:
        return ": drop these rows, or look for a division by 0 or a logarithm of 0"
    return (
        ": drop these rows, fill the gaps in, or leave them out of the density with an"
        " IncompleteLikelihood and an encoder tarspyro.nn.WithGaps"
    )


def _check_support(
    name: str, distribution: Distribution, value: Tensor, whole: Tensor
) -> None:
    """Raises an ``InputError`` if a value is outside the support of a distribution, or at an
    edge without a finite density.

    Arguments:
        name: The name of the site.
        distribution: The distribution.
        value: The value, of as many rows as the distribution.
        whole: All of the data, for the message.
    """
    base = distribution
    while isinstance(base, (Independent, MaskedDistribution, AutoregressiveDistribution)):
        ordered = isinstance(base, AutoregressiveDistribution)
        base = base.elements if ordered else base.base_dist
    if isinstance(base, Concatenate):
        parts = zip(
            base.blocks, value.split(base.sizes, -1), whole.split(base.sizes, -1), strict=True
        )
        for block, part, whole_part in parts:
            _check_support(name, block, part, whole_part)
        return
    support = base.support
    if isinstance(base, Bernoulli) and base._validate_args is False:
        # The user accepts the cross-entropy of grey values.
        support = constraints.unit_interval
    if isinstance(base, Multinomial) and base._validate_args is False:
        # So torch scores rows of any totals.
        support = constraints.independent(constraints.nonnegative_integer, 1)
    if support is None:
        return
    if not bool(support.check(value).all()):
        # In the type of the program: in half precision all numbers would look like levels.
        raise InputError(about_support(name, base, whole.to(value.dtype), support))
    sentence = about_edges(name, base, value)
    if sentence is not None:
        raise InputError(sentence)
