"""Checks of the arguments of ``fit``, and explanations of steps that went wrong."""

__all__ = [
    "CollapseError",
    "NonFiniteError",
    "check_arguments",
    "check_sizes",
    "describe_nonfinite",
    "warn_of_evaluation_mode",
    "warn_user",
]

import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tarspyro.arguments import as_count, format_value
from tarspyro.infer.traces import PairError, check_program, name_of, sample_sites, trace_pair
from tarspyro.inputs import positions_with_gaps
from tarspyro.nn import GaussianNoise
from tarspyro.scopes import preserved_rng
from tarspyro.types import Arguments, Program

# Modules that compute something else in evaluation mode.
_MODAL = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, GaussianNoise)


class NonFiniteError(FloatingPointError):
    """A loss or a gradient was not finite.

    Attributes:
        remedy: A sentence with what to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class CollapseError(ArithmeticError):
    """One player of a game has won, so that the others learn nothing any more."""


def check_arguments(
    model: object,
    guide: object,
    *,
    counts: Mapping[str, object],
    patience: object,
    schedules: object,
    autocast: object,
    callback: object,
) -> None:
    """Raises unless arguments of ``fit`` have the right types and ranges.

    Arguments:
        model: See ``fit``.
        guide: See ``fit``.
        counts: Arguments that must be whole numbers from 1 on, by name.
        patience: See ``fit``.
        schedules: See ``fit``.
        autocast: See ``fit``.
        callback: See ``fit``.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, or gradients vanish under ``autocast``.
        RuntimeError: If gradients are turned off.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "fit needs gradients, which torch.no_grad() and torch.inference_mode() turn off: call"
            " fit outside of them."
        )
    check_program("model", model)
    if guide is not None:
        check_program("guide", guide)
    for name, count in counts.items():
        as_count(name, count)
    if patience is not None:
        as_count("patience", patience)
    _check_schedules(schedules)
    if autocast is torch.float16:
        raise ValueError(
            "autocast must be torch.bfloat16, got torch.float16, in which gradients below 6e-8"
            " are zero: bfloat16 has the range of float32."
        )
    if autocast is not None and autocast is not torch.bfloat16:
        raise TypeError(f"autocast must be torch.bfloat16, got {format_value(autocast)}.")
    if callback is not None and not callable(callback):
        raise TypeError(
            "callback must be a function of a row of the history, got"
            f" {format_value(callback)}."
        )


def _check_schedules(schedules: object) -> None:
    if schedules is None:
        return
    if not isinstance(schedules, Mapping):
        raise TypeError(
            "schedules must be a mapping from names to functions of the step, got"
            f" {format_value(schedules)}."
        )
    for name, schedule in schedules.items():
        if isinstance(schedule, type) or not callable(schedule):
            raise TypeError(
                f"schedules[{name!r}] must be a function of the step, such as"
                f" lambda step: 0.5, got {format_value(schedule)}."
            )


def warn_of_evaluation_mode(halves: Mapping[str, object]) -> None:
    """Warns of a half that is in evaluation mode as a whole, if that makes a difference.

    The user may have forgotten to call ``train()``.
    """
    for name, half in halves.items():
        if not isinstance(half, nn.Module) or half.training:
            continue
        if any(isinstance(part, _MODAL) for part in half.modules()):
            warn_user(
                f"The {name}, {name_of(half)}, is in evaluation mode and stays in it: its"
                " dropout and batch normalization do not train. To change that, call its method"
                " train() before fit."
            )


def check_sizes(halves: Mapping[str, object]) -> None:
    """Raises a ``PairError`` if a layer has no size yet after a run of the pair."""
    for half in halves.values():
        if not isinstance(half, nn.Module):
            continue
        for name, parameter in half.named_parameters():
            if is_lazy(parameter):
                raise PairError(
                    f"{name_of(half)} does not call the layer of {name!r}, which so has no size"
                    " yet: leave this part out of the module, or call it once before fit."
                )


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line of the user's code that called the library."""
    library = str(Path(__file__).parents[1])
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(library):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def describe_nonfinite(
    model: Program,
    guide: Program,
    arguments: Arguments,
    others: Iterable[nn.Module] = (),
    noise: Tensor | None = None,
) -> str:
    """Returns the cause of a loss or a gradient that is not finite, as a part of a sentence.

    The candidates, in this order: the data, a parameter, a draw or a log-probability at a site
    with the rows of the batch, the gradient of a parameter.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: The batch.
        others: More modules with parameters.
        noise: The random state of the CPU from which the loss was drawn, if it is known.
    """
    bad = [
        p for p, part in enumerate(arguments) if part is not None and not part.isfinite().all()
    ]
    with_gaps = positions_with_gaps(model, arguments) if bad else set()
    for position in bad:
        part = arguments[position]
        if part is not None and (position not in with_gaps or part.isinf().any()):
            return f"data[{position}] is not finite ({_rows(part)})"
    modules = {
        id(program): program
        for program in (guide, model, *others)
        if isinstance(program, nn.Module)
    }
    named = [
        (f"{name} of {name_of(program)}", parameter)
        for program in modules.values()
        for name, parameter in program.named_parameters()
    ]
    for name, parameter in named:
        if not parameter.isfinite().all():
            return f"the parameter {name} is not finite, so the step before went wrong"
    found = _nonfinite_site(model, guide, arguments, noise)
    if found is not None:
        return found
    for name, parameter in named:
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return (
                f"the gradient of {name} is not finite, while the log-probabilities of all"
                " sites are finite"
            )
    return "it could not be reproduced with new random draws"


def _nonfinite_site(
    model: Program, guide: Program, arguments: Arguments, noise: Tensor | None
) -> str | None:
    """The first site whose draw or log-probability is not finite; None if there is none."""
    with torch.no_grad(), pyro.validation_enabled(False), preserved_rng():
        if noise is not None:
            torch.set_rng_state(noise)
        model_trace, guide_trace = trace_pair(model, guide, arguments, {})
    for half, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in sample_sites(trace):
            if torch.is_tensor(site["value"]) and not site["value"].isfinite().all():
                return f"the {half}'s draw of {name} is not finite ({_rows(site['value'])})"
            if isinstance(site["fn"], Delta):
                continue  # a point mass has no density
            value = site["fn"].log_prob(site["value"])
            if not value.isfinite().all():
                return f"the {half}'s log-probability of {name} is not finite ({_rows(value)})"
    return None


def _rows(value: Tensor) -> str:
    """The rows of a tensor that are not finite, for a message."""
    if value.dim() == 0:
        return "a single number"
    bad = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
    return f"batch rows {bad[:5]}{', ...' if len(bad) > 5 else ''}"
