"""Diagnosis: one sentence about why programs do not run on data, and supports in words."""

__all__ = [
    "about_source",
    "explained",
    "is_about_site",
    "is_real",
    "single_constraint",
    "words_of",
]

import re
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from tarspyro.arguments import format_value
from tarspyro.infer.traces import InputError, PairError, name_of
from tarspyro.types import Program

# Data with values from here on are the likely cause of parameters that are NaN or infinite.
_LARGE = 20.0

# The packages in whose code the user has no line to look at.
_LIBRARIES = ("tarspyro", "pyro", "torch", "contextlib")


def explained(
    programs: Sequence[Program], arguments: Sequence[object], error: Exception
) -> tuple[InputError | PairError, Exception | None]:
    """Returns an error of one sentence that says why the programs do not run on data.

    The sentence names the site whose distribution is wrong, if there is one. Else it names
    the part of a program that fails, as ``likelihood(z)``, with the shape that it got.

    Arguments:
        programs: The model and the guide, or one of them.
        arguments: What they were called with.
        error: What they raised.

    Returns:
        The new error, and its cause to be shown. That is None if the traceback leads through
        libraries alone, where the user has no line to look at.
    """
    frames = list(_frames(error))
    twice = _about_names(frames, error)
    if twice is not None:
        return PairError(twice), None
    site = _about_site(frames, error, _rows(arguments))
    if site is not None:
        return PairError(site), None
    sentence = _about_data(programs, arguments, error, frames)
    return InputError(sentence), error if any(map(_is_users, frames)) else None


def _about_names(frames: Sequence[FrameType], error: Exception) -> str | None:
    """A sentence about two sites, or two plates, of one name; None for other errors."""
    found = re.search(r"Multiple sample sites named '(.*?)'", str(error))
    if found is None:
        return None
    name = found[1]
    if any(frame.f_code.co_name == "_subsample" for frame in frames):
        return (
            f"the plate {name!r} is made twice in a run: make it once, before the loop,"
            f" data = pyro.plate({name!r}, ...), and enter it wherever it is needed, with data:."
        )
    return (
        f"two sites of a run are named {name!r}: give each a name of its own, such as"
        f" f'{name}_{{t}}' in step t."
    )


def _is_users(frame: FrameType) -> bool:
    """Whether a frame runs code of the user."""
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package not in _LIBRARIES


def is_about_site(error: Exception) -> bool:
    """Whether an error comes from a site whose distribution is wrong."""
    return _about_site(list(_frames(error)), error) is not None


def _frames(error: BaseException) -> Iterator[FrameType]:
    """The frames from where an error was caught to where it, or its cause, was raised."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
    if error.__cause__ is not None:
        yield from _frames(error.__cause__)


def _rows(arguments: Sequence[object]) -> int | None:
    """The number of rows of the data."""
    for part in arguments:
        if isinstance(part, Tensor) and part.dim():
            return len(part)
    return None


def _about_site(
    frames: Sequence[FrameType], error: Exception, rows: int | None = None
) -> str | None:
    """Returns a sentence about an object that ``pyro.sample`` got in place of a distribution."""
    for frame in reversed(frames):
        if (
            frame.f_code.co_name != "sample"
            or frame.f_globals["__name__"] != "pyro.primitives"
        ):
            continue
        name: str = frame.f_locals["name"]
        given: object = frame.f_locals["fn"]
        if not isinstance(given, Distribution):
            return about_source(name, given)
        if "Shape mismatch inside plate" in str(error):
            batch = tuple(given.batch_shape)
            if len(batch) == 1 and batch[0] == rows:
                return (
                    f"{name!r} has a distribution of batch shape {batch}, as the data has"
                    f" {rows} rows, in a plate of another size: write the plate with the size"
                    " of the data, pyro.plate('data', len(x))."
                )
            return (
                f"{name!r} has a distribution of batch shape {batch}, which does not fit into"
                f" its plates: append .to_event({max(len(batch) - 1, 1)}) to the distribution"
                " of a vector, which makes its numbers one event."
            )
    return None


def about_source(name: str, given: object) -> str:
    """Returns a sentence about a site that is sampled from something else than a distribution.

    Arguments:
        name: The name of the site.
        given: What ``pyro.sample`` got in place of a distribution.
    """
    wrong = f"{name!r} is sampled from {_kind_of(given)}, which is no distribution"
    if isinstance(given, tuple):
        fix = "wrap the network, FromNetwork(network, lambda loc, log_variance: ...)"
    elif isinstance(given, Tensor):
        fix = (
            "give the network to a Conditional, such as Conditional(dist.Normal, network,"
            " event_shape), or to a Deterministic"
        )
    elif isinstance(given, nn.Module):
        fix = f"call the module, pyro.sample({name!r}, module(...))"
    else:
        fix = "give a distribution with its parameters, such as dist.Normal(0.0, 1.0)"
    return f"{wrong}: {fix}."


def _kind_of(value: object) -> str:
    """Returns a short description of a value."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, nn.Module):
        return f"a module {type(value).__name__}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return format_value(value)


def _about_data(
    programs: Sequence[Program],
    arguments: Sequence[object],
    error: Exception,
    frames: Sequence[FrameType],
) -> str:
    """The names of programs, the shapes of the data, and the reason why they do not run."""
    reason = _about_parameter(error, arguments) or _reason(error)
    shapes = ", ".join(
        str(tuple(part.shape)) if isinstance(part, Tensor) else repr(part)
        for part in arguments
    )
    part = _failing_part(programs, frames)
    if part is not None:
        name, call = part
        reason = reason[:1].lower() + reason[1:] if reason.startswith("The ") else reason
        return f"{name} does not run on data of shape {shapes}: {call}, and {reason}"
    names = list(dict.fromkeys(name_of(program) for program in programs))
    verb = "does" if len(names) == 1 else "do"
    return f"{' and '.join(names)} {verb} not run on data of shape {shapes}: {reason}"


def _reason(error: Exception) -> str:
    """The message of an error, or of its cause if the message repeats that."""
    text = str(error).partition("\n")[0]
    cause = error.__cause__
    if isinstance(cause, Exception):
        inner = str(cause).partition("\n")[0]
        if inner and text.endswith(inner):
            return _reason(cause)
    sizes = re.search(r"mat1 and mat2 shapes .* \(\d+x(\d+) and (\d+)x\d+\)", text)
    if sizes is not None:
        given, wanted = sizes.groups()
        return (
            f"a linear layer takes vectors of size {wanted}, got size {given}: make that layer"
            f" for size {given}, or change the input."
        )
    return text


def _about_parameter(error: Exception, arguments: Sequence[object]) -> str | None:
    """Returns a sentence about a parameter that is out of range, such as NaN."""
    found = re.match(r"Expected parameter (\w+) .* of distribution (\w+)\(", _reason(error))
    if found is None:
        return None
    name, family = found.groups()
    numbers = [
        part.abs().max().item()
        for part in arguments
        if isinstance(part, Tensor) and part.is_floating_point() and part.numel()
    ]
    fix = "look at the values from which the program computes it"
    if numbers and max(numbers) > _LARGE:
        fix = (
            f"the data have values up to {max(numbers):,.0f}, so give networks standardized"
            " inputs, torch.nn.Sequential(Standardize.of(x), network) with a layer of tarspyro.nn"
        )
    return f"the parameter {name} of {family} is NaN, infinite or out of range: {fix}."


def _failing_part(
    programs: Sequence[Program], frames: Sequence[FrameType]
) -> tuple[str, str] | None:
    """The part of a program that raised an error.

    Returns:
        The name of the program, and the call of its part with the shapes of what it got, such
        as ``likelihood(z) got z of shape (20, 3)``. None if no part of a program was running,
        or it was called with something else than variables of the program.
    """
    names = {
        id(module): (name_of(program), name)
        for program in reversed(programs)
        if isinstance(program, nn.Module)
        for name, module in program.named_modules()
        if name
    }
    for before, frame in zip(frames, frames[1:], strict=False):
        found = names.get(id(frame.f_locals.get("self")))
        inputs = frame.f_locals.get("args")
        if found is None or not isinstance(inputs, tuple):
            continue
        program, part = found
        variables = [_variable(before, value) for value in inputs]
        if None in variables:
            return None
        given = " and ".join(
            f"{variable} of shape {tuple(value.shape)}"
            for variable, value in zip(variables, inputs, strict=True)
        )
        given = given or "nothing"
        return program, f"{part}({', '.join(map(str, variables))}) got {given}"
    return None


def _variable(frame: FrameType, value: object) -> str | None:
    """The name of the variable of a function that holds a tensor."""
    if not isinstance(value, Tensor):
        return None
    return next((name for name, other in frame.f_locals.items() if other is value), None)


def words_of(support: Constraint) -> str:
    """Returns the values of a support in words.

    Example:
        >>> words_of(constraints.nonnegative), words_of(constraints.one_hot)
        ('numbers of at least 0', 'one-hot vectors')
    """
    support = single_constraint(support)
    if hasattr(support, "known"):
        return f"{words_of(support.known)}, or NaN"
    edges = {
        name: _edge(getattr(support, name))
        for name in ("lower_bound", "upper_bound")
        if hasattr(support, name)
    }
    if None in edges.values():
        return "of each row"
    for kinds, text in _WORDS:
        if isinstance(support, kinds):
            return text.format(**edges)
    return str(support)


# The supports whose values have a name, first those of subclasses.
_WORDS: list[tuple[Any, str]] = [
    (type(constraints.boolean), "0 and 1"),
    (type(constraints.one_hot), "one-hot vectors"),
    (type(constraints.simplex), "vectors of positive numbers with the sum 1"),
    (type(constraints.multinomial(1)), "counts with a sum of at most {upper_bound}"),
    (constraints.integer_interval, "whole numbers from {lower_bound} to {upper_bound}"),
    (type(constraints.nonnegative_integer), "whole numbers of at least {lower_bound}"),
    (type(constraints.positive_integer), "whole numbers of at least {lower_bound}"),
    (type(constraints.nonnegative), "numbers of at least {lower_bound}"),
    (type(constraints.positive), "numbers above {lower_bound}"),
    (constraints.interval, "numbers from {lower_bound} to {upper_bound}"),
    (constraints.half_open_interval, "numbers from {lower_bound} to {upper_bound}"),
    (type(constraints.real), "real numbers"),
]


def single_constraint(support: Any) -> Any:
    """Returns the constraint of a single number, without the dimensions of the event."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_real(support: Any) -> bool:
    """Returns whether a support holds all real numbers, or all vectors of them."""
    return isinstance(single_constraint(support), type(constraints.real))


def _edge(value: object) -> str | None:
    """A bound of a support as text; None if it differs from row to row."""
    numbers = torch.as_tensor(value).flatten()
    if bool((numbers != numbers[0]).any()):
        return None
    return f"{numbers[0].item():g}"
