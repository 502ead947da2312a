"""Checks of a training's arguments, and explanations of what went wrong in a step."""

__all__ = [
    "CollapseError",
    "NonFiniteError",
    "check_trained",
    "check_training",
    "describe_nonfinite",
    "hidden_parameters",
]

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from torch import Tensor, nn

from tarspyro.arguments import format_value
from tarspyro.infer.gradients import leaves_of
from tarspyro.infer.traces import PairError, check_program, name_of, sample_sites, trace_pair
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program

_JITTED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


class NonFiniteError(FloatingPointError):
    """A loss was not a finite number."""


class CollapseError(ArithmeticError):
    """A player of a game has won, so that the others learn nothing any more."""


def check_training(
    model: Any,
    guide: Any,
    loss: Any,
    optimizer: Any,
    optimizer_options: Any,
    schedules: Any,
    settings: Any,
    autocast: Any,
) -> None:
    """Raises unless a training's arguments are of the kinds that they have to be.

    Raises:
        TypeError: If one is of another kind.
        ValueError: If ``autocast`` is a type in which gradients vanish.
    """
    check_program("model", model)
    if guide is not None:
        check_program("guide", guide)
    if loss is not None and (
        isinstance(loss, type) or not callable(loss) and not hasattr(loss, "loss_and_grads")
    ):
        raise TypeError(
            f"loss must be a bound or a game, such as ELBO(), got {format_value(loss)}."
        )
    if isinstance(loss, _JITTED):
        name = type(loss).__name__
        raise TypeError(
            f"loss is a {name}, which torch compiles by a way of its own: take"
            f" pyro.infer.{name.removeprefix('Jit')}() as it is, or tarspyro.infer.ELBO() with"
            " compile=True."
        )
    if isinstance(loss, TraceTailAdaptive_ELBO):
        raise TypeError(
            "loss is a TraceTailAdaptive_ELBO, which has gradients and no value: take"
            " tarspyro.infer.Renyi(0.5)."
        )
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "optimizer must be the class of one, such as torch.optim.Adam, got"
            f" {format_value(optimizer)}."
        )
    named = {
        "optimizer_options": optimizer_options,
        "schedules": schedules,
        "settings": settings,
    }
    for name, value in named.items():
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a mapping by name, got {format_value(value)}.")
    for name, schedule in (schedules or {}).items():
        if not callable(schedule):
            raise TypeError(
                f"schedules[{name!r}] must be a function of the step, got"
                f" {format_value(schedule)}."
            )
    if autocast is torch.float16:
        raise ValueError(
            "autocast must be torch.bfloat16, got torch.float16, in which gradients below 6e-8"
            " are zero: bfloat16 has the range of float32."
        )
    if autocast is not None and autocast is not torch.bfloat16:
        raise TypeError(f"autocast must be torch.bfloat16, got {format_value(autocast)}.")


def check_trained(
    loss: Tensor,
    parameters: Iterable[Tensor],
    programs: Sequence[Program],
    others: Iterable[Tensor] | None = None,
    hidden: Iterable[Tensor] = (),
) -> list[str]:
    """Compares what the loss depends on with what the optimizer holds, after the first forward
    pass.

    Arguments:
        loss: The loss.
        parameters: What its optimizer holds.
        programs: What the parameters are named after.
        others: What all players of a game change, if the loss is one of a game. It may depend
            on all of them, and on tensors of its own, such as points at which it takes slopes.
        hidden: Parameters that the programs keep from the optimizer on purpose.

    Returns:
        The names of parameters that the optimizer holds and the loss does not depend on.

    Raises:
        PairError: If the loss depends on a parameter that no optimizer holds, as of a network
            that is not an attribute of its half.
    """
    if not torch.is_tensor(loss):
        raise TypeError(f"loss must return a number in a tensor, got {format_value(loss)}.")
    held = {id(parameter) for parameter in parameters}
    reached = {id(parameter): parameter for parameter in leaves_of(loss)}
    known = held | {id(other) for other in (*(others or ()), *hidden)}
    strangers = [variable for key, variable in reached.items() if key not in known]
    if others is not None:
        strangers = [variable for variable in strangers if isinstance(variable, nn.Parameter)]
    if strangers:
        shapes = ", ".join(str(tuple(variable.shape)) for variable in strangers[:3])
        raise PairError(
            f"{len(strangers)} parameters that the loss depends on would not be trained"
            f" (shapes {shapes}, ...): make their module an attribute of the model or guide,"
            " or register it with pyro.module."
        )
    names: dict[int, str] = {}
    for program in programs:
        if isinstance(program, nn.Module):
            names |= {
                id(parameter): f"{name_of(program)}.{name}"
                for name, parameter in program.named_parameters()
            }
    return [name for key, name in names.items() if key in held and key not in reached]


def hidden_parameters(
    model: Program, guide: Program, arguments: Sequence[Any]
) -> list[Tensor]:
    """Returns the parameters in Pyro's store that a pair reads and hides,
    ``poutine.block(hide_types=["param"])``.
    """
    stored = list(pyro.get_param_store().named_parameters())
    if not stored:
        return []
    with preserved_rng(), evaluating(model, guide), poutine.trace(param_only=True) as capture:
        trace_pair(model, guide, arguments, {})
    return [value for name, value in stored if name not in capture.trace.nodes]


def describe_nonfinite(
    model: Program,
    guide: Program,
    arguments: Sequence[Any],
    others: Iterable[nn.Module] = (),
    noise: Tensor | None = None,
) -> str:
    """Says where a loss or a gradient that is not finite came from.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: The batch.
        others: More modules with parameters.
        noise: The random state of the CPU from which the loss was drawn, if it is known.

    Returns:
        What is not finite: the data, a parameter, a draw or log-probability at a site with the
        rows of the batch, or the gradient of a parameter.
    """
    for position, part in enumerate(arguments):
        if torch.is_tensor(part) and not part.isfinite().all():
            return f"data[{position}] is not finite ({_rows(part)})"
    modules = {
        id(program): program
        for program in (guide, model, *others)
        if isinstance(program, nn.Module)
    }
    named = [
        (name, p, name_of(program))
        for program in modules.values()
        for name, p in program.named_parameters()
    ]
    for name, parameter, owner in named:
        if not parameter.isfinite().all():
            return (
                f"the parameter {name} of {owner} is not finite, so the step before it went"
                " wrong"
            )
    with torch.no_grad(), pyro.validation_enabled(False), preserved_rng():
        if noise is not None:
            torch.set_rng_state(noise)
        model_trace, guide_trace = trace_pair(model, guide, arguments, {})
    for half, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in sample_sites(trace):
            if torch.is_tensor(site["value"]) and not site["value"].isfinite().all():
                return f"the {half}'s draw of {name} is not finite ({_rows(site['value'])})"
            if isinstance(site["fn"], Delta):
                continue  # a point has no density
            value = site["fn"].log_prob(site["value"])
            if not value.isfinite().all():
                return f"the {half}'s log-probability of {name} is not finite ({_rows(value)})"
    for name, parameter, owner in named:
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return (
                f"the gradient of {name} of {owner} is not finite, while the densities at all"
                " sites are"
            )
    return "no single site shows it again with fresh draws"


def _rows(value: Tensor) -> str:
    if value.dim() == 0:
        return "a single number"
    bad = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
    return f"batch rows {bad[:5]}{', ...' if len(bad) > 5 else ''}"
