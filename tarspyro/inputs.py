"""Data as the arguments of a program, and checks that it fits the program."""

__all__ = [
    "as_arguments",
    "as_float",
    "as_type",
    "binarized",
    "check_binarizable",
    "check_inputs",
    "count_rows",
    "each",
    "in_order",
]

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Independent, MaskedDistribution
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints
from torch.utils.data import TensorDataset

from tarspyro.arguments import as_numbers, format_value
from tarspyro.data import Sequences, Split
from tarspyro.distributions import Concatenate
from tarspyro.infer.matching import (
    check_count,
    check_shape,
    check_sites,
    positional_names,
    run_pair,
    sentence_of,
)
from tarspyro.infer.traces import (
    InputError,
    PairError,
    check_program,
    is_factor,
    name_of,
    sample_sites,
    trace_pair,
)
from tarspyro.programs import tensors_of, type_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Arguments, Program

_PART = (Tensor, np.ndarray, type(None))


def as_arguments(
    data: Any, program: Callable[..., Any], *others: Callable[..., Any]
) -> Arguments | None:
    """Returns in-memory data as the tensors that the program takes, in its order; None for
    loaders and streams.

    Real numbers, booleans and bytes get the type of the parameters. Functions without networks
    get real numbers as they are. Integers stay integers.

    Arguments:
        data: A tensor or array; a tuple of them, in the program's order, with None for what is
            not observed; a mapping from the names of the program's arguments; a ``Split`` or
            ``Sequences``, of which the program gets the parts (x, y, lengths) that it names;
            or a ``TensorDataset``.
        program: The model or guide that will be called.
        others: What will be called with the same data, such as the other half.

    Raises:
        ValueError: If the parts differ in length, or are more than the program takes, or it
            lacks one of the names.
    """
    check_program("model or guide", program)
    names = positional_names(program)
    if isinstance(data, (Split, Sequences)):
        parts: Sequence[Any] = [
            part for name, part in vars(data).items() if name in names and part is not None
        ]
        parts = parts or [data.x]
    elif isinstance(data, Mapping):
        unknown = [name for name in data if name not in names]
        if unknown:
            raise ValueError(
                f"data has {unknown[0]!r}, which {name_of(program)} does not take: it takes"
                f" {names}."
            )
        parts = in_order(data, names)
    elif isinstance(data, TensorDataset):
        parts = data.tensors
    elif isinstance(data, (Tensor, np.ndarray)):
        parts = [data]
    elif (
        isinstance(data, (tuple, list))
        and data
        and all(isinstance(part, _PART) for part in data)
    ):
        parts = data
    elif isinstance(data, Iterable) or (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        return None
    else:
        raise ValueError(
            "data must be tensors, arrays, a data set or an iterable of batches, got"
            f" {format_value(data)}."
        )
    dtype = type_of(program, *others)
    arguments = each(lambda part: as_type(as_numbers("data", part), dtype), parts)
    shapes = [tuple(tensor.shape) for tensor in tensors_of(arguments)]
    if () in shapes:
        raise ValueError("data has no rows: a part of it is a single number.")
    if len({shape[0] for shape in shapes}) > 1:
        raise ValueError(f"The parts of data differ in length: {shapes}.")
    if not shapes or shapes[0][0] == 0:
        raise ValueError("data is empty: it has no rows.")
    check_count(arguments, program)
    return arguments


def each(function: Callable[[Any], Any], arguments: Iterable[Any]) -> Arguments:
    """Applies a function to the arguments that are given; None stays None."""
    return tuple(None if part is None else function(part) for part in arguments)


def count_rows(arguments: Sequence[Any]) -> int:
    """Returns how many data points there are in some arguments."""
    return len(tensors_of(arguments)[0])


def in_order(data: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The parts that the program takes, in its order, without a gap: they are given to it by
    position.
    """
    parts = [data[name] for name in names if name in data]
    missing = [name for name in names[: len(parts)] if name not in data]
    if missing:
        raise ValueError(
            f"data has {sorted(data)} and lacks {missing[0]!r}, which comes before."
        )
    return parts


def as_float(tensor: Tensor, *programs: Any) -> Tensor:
    """Returns numbers in the type that programs compute in, see ``as_type``.

    Arguments:
        tensor: The numbers.
        programs: Modules or functions. If there are none, booleans, bytes and double
            precision, NumPy's default, become torch's default.
    """
    if not programs and tensor.dtype is torch.float64:
        return tensor.to(torch.get_default_dtype())
    return as_type(tensor, type_of(*programs))


def as_type(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns real numbers, booleans and bytes in a type; other integers stay, as they are
    labels.

    Without a type real numbers keep their own, and booleans and bytes get torch's default.

    Example:
        >>> double, byte = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.uint8)
        >>> as_type(double, torch.float32).dtype, as_type(byte, None).dtype, as_type(double, None).dtype
        (torch.float32, torch.float32, torch.float64)
    """
    if tensor.is_floating_point():
        return tensor if dtype is None else tensor.to(dtype)
    if tensor.dtype in (torch.bool, torch.uint8):
        return tensor.to(dtype or torch.get_default_dtype())
    return tensor


def binarized(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns a draw of black and white pixels with the grey values as probabilities, on the
    device of x.
    """
    return torch.bernoulli(x, generator=generator)


def check_inputs(
    model: Program,
    guide: Program,
    arguments: Sequence[Any],
    data: Sequence[Any] | None = None,
    *,
    pair: str | None = "whole",
) -> None:
    """Compares the halves with each other and the data with the model's likelihoods, before
    the first step.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: A batch, as the pair gets it, with None for what is not observed.
        data: All of the data, if it is in memory, of which the batch is the first rows.
        pair: What of the halves has to match: ``"whole"`` latent variables, or their
            ``"names"`` and shapes alone, for Pyro's own bounds; None for nothing.

    Raises:
        InputError: If a value is NaN or infinite, a shape is not the likelihood's, or values
            are outside its support.
        PairError: If the halves do not match.
    """
    data = arguments if data is None else data
    for position, part in enumerate(data):
        _check_finite(part, position)
    # With validation on, a distribution that does not validate is one whose user said so.
    with pyro.validation_enabled(True), preserved_rng(), evaluating(model, guide):
        if pair is not None:
            traces = run_pair(model, guide, arguments, {})
            whole = pair == "whole"
            check_sites(model, guide, *traces, data=arguments, observed=whole, supports=whole)
        try:
            # The model alone first: it tells what it expects before the guide's network
            # stumbles over the data.
            with contextlib.suppress(NotImplementedError):  # a prior that cannot be drawn from
                _check_observed(
                    lambda: poutine.trace(model).get_trace(*arguments), arguments, data
                )
            _check_observed(
                lambda: trace_pair(model, guide, arguments, {})[0], arguments, data
            )
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, (InputError, PairError)):
                raise
            raise InputError(sentence_of((model, guide), arguments, error)) from error


def _check_observed(
    run: Callable[[], Trace], arguments: Sequence[Any], data: Sequence[Any]
) -> None:
    for name, site in sample_sites(run()):
        value = site["value"]
        if not (site["is_observed"] and torch.is_tensor(value)) or is_factor(site):
            continue
        check_shape(name, site["fn"], value)
        # Validation is off later, so that rows which the first batch does not show are looked
        # at here, unless each row has a support of its own.
        whole = next(
            (
                part
                for argument, part in zip(arguments, data, strict=True)
                if argument is value
            ),
            value,
        )
        whole = value if _is_of_rows(site["fn"].support) else whole
        try:
            for start in range(0, len(whole), len(value)) if value.dim() else ():
                # The last batch overlaps the one before: a support may have parameters of a
                # batch's shape.
                start = min(start, len(whole) - len(value))
                _check_support(name, site["fn"], whole[start : start + len(value)])
        except InputError:
            # A support that a latent variable moves, such as that of Uniform(0, z), is no
            # matter of one draw.
            again: list[Any] = [run().nodes[name]["fn"] for _ in range(_DRAWS)]
            if all(_same(site["fn"].support, fn.support) for fn in again):
                raise


# How often a support is looked at again before it counts as one that no latent variable moves.
_DRAWS = 5


def _is_of_rows(support: Any) -> bool:
    """Whether a support has parameters that differ from row to row."""
    return any(
        part.numel() > 1 and bool((part != part.flatten()[0]).any())
        for part in _tensors(support)
    )


def _same(support: Any, other: Any) -> bool:
    return all(map(torch.equal, _tensors(support), _tensors(other)))


def _tensors(support: Any) -> list[Tensor]:
    """The parameters of a support and of those that it is made of."""
    if torch.is_tensor(support):
        return [support]
    if isinstance(support, (list, tuple)):
        return [tensor for part in support for tensor in _tensors(part)]
    if isinstance(support, constraints.Constraint):
        return [tensor for part in vars(support).values() for tensor in _tensors(part)]
    return []


def check_binarizable(part: Tensor | None) -> None:
    """Raises unless the values are probabilities, as ``binarize=True`` needs."""
    if part is None:
        raise InputError(
            "binarize=True draws the pixels of the first part of the data, which is None:"
            " leave it out."
        )
    _check_finite(part, 0)
    low, high = part.min().item(), part.max().item()
    if low < 0 or high > 1:
        raise InputError(
            f"binarize=True needs pixels between 0 and 1, got values from {low:g} to {high:g}:"
            f" {_rescaling(low, high)}."
        )


def _check_finite(part: Tensor | None, position: int) -> None:
    if part is None or not part.is_floating_point():
        return
    rows = (~part.isfinite()).reshape(len(part) if part.dim() else 1, -1).any(1)
    if rows.any():
        count, first = int(rows.sum()), int(rows.nonzero()[0])
        raise InputError(
            f"data[{position}] has NaN or infinite values in {count} of {len(rows)} rows,"
            f" first in row {first}: drop or impute them."
        )


def _check_support(name: str, distribution: Any, value: Tensor) -> None:
    base = distribution
    while hasattr(base, "base_dist") and isinstance(base, (Independent, MaskedDistribution)):
        base = base.base_dist
    if isinstance(base, Concatenate):
        for block, part in zip(base.blocks, value.split(base.sizes, -1), strict=True):
            _check_support(name, block, part)
        return
    support = base.support
    if isinstance(base, Bernoulli) and base._validate_args is False:
        support = (
            constraints.unit_interval
        )  # the user accepts the cross-entropy of grey values
    inside = support.check(value)
    if bool(inside.all()):
        return
    low, high = value.min().item(), value.max().item()
    if isinstance(base, Bernoulli) and 0 <= low and high <= 1:
        raise InputError(
            f"{name} has grey values (from {low:g} to {high:g}) but the likelihood is"
            " Bernoulli, for 0 and 1 alone: draw black and white pixels with binarize=True,"
            " or accept the cross-entropy of grey values with Conditional(...,"
            " validate_args=False)."
        )
    family = type(base).__name__
    shown_support = "of each row" if _is_of_rows(support) else support
    outside = f"outside the support of {family} ({shown_support})"
    raise InputError(
        f"{name} has values from {low:g} to {high:g}, {outside}: {_rescaling(low, high)}."
    )


def _rescaling(low: float, high: float) -> str:
    if low >= 0 and 1 < high <= 255:
        return "these look like bytes, divide by 255"
    return "rescale the data or choose another likelihood"
