"""What is wrong with the data, the pair or a loss, in one sentence each."""

__all__ = [
    "CollapseError",
    "InputError",
    "NonFiniteError",
    "check_binarizable",
    "check_inputs",
    "check_trained",
    "check_training",
    "describe_nonfinite",
    "explaining",
    "hidden_parameters",
]

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Delta, Independent, MaskedDistribution
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import constraints

from tarspyro.arguments import shown
from tarspyro.distributions import Concatenate
from tarspyro.infer.check import check_shape, check_sites, explaining, run_pair, sentence_of
from tarspyro.infer.gradients import leaves_of
from tarspyro.infer.traces import (
    InputError,
    PairError,
    Program,
    check_program,
    is_factor,
    name_of,
    sample_sites,
    trace_pair,
)
from tarspyro.modules import evaluating, preserved_rng

_JITTED = (JitTrace_ELBO, JitTraceEnum_ELBO, JitTraceGraph_ELBO, JitTraceMeanField_ELBO)


class NonFiniteError(FloatingPointError):
    """A loss was not a finite number."""


class CollapseError(ArithmeticError):
    """A player of a game has won, so that the others learn nothing any more."""


def check_inputs(
    model: Program,
    guide: Program,
    arguments: Sequence[Any],
    data: Sequence[Any] | None = None,
    *,
    pair: str | None = "whole",
) -> None:
    """Compares the halves with each other and the data with the model's likelihoods, before the first step.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: A batch, as the pair gets it, with None for what is not observed.
        data: All of the data, if it is in memory, of which the batch is the first rows.
        pair: What of the halves has to match: ``"whole"`` latent variables, or their ``"names"`` and shapes alone, for
            Pyro's own bounds; None for nothing.

    Raises:
        InputError: If a value is NaN or infinite, a shape is not the likelihood's, or values are outside its support.
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
            # The model alone first: it tells what it expects before the guide's network stumbles over the data.
            with contextlib.suppress(NotImplementedError):  # a prior that cannot be drawn from
                _check_observed(lambda: poutine.trace(model).get_trace(*arguments), arguments, data)
            _check_observed(lambda: trace_pair(model, guide, arguments, {})[0], arguments, data)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, (InputError, PairError)):
                raise
            raise InputError(sentence_of((model, guide), arguments, error)) from error


def _check_observed(run: Callable[[], Trace], arguments: Sequence[Any], data: Sequence[Any]) -> None:
    for name, site in sample_sites(run()):
        value = site["value"]
        if not (site["is_observed"] and torch.is_tensor(value)) or is_factor(site):
            continue
        check_shape(name, site["fn"], value)
        # Validation is off later, so that rows which the first batch does not show are looked at here, unless each
        # row has a support of its own.
        whole = next((part for argument, part in zip(arguments, data, strict=True) if argument is value), value)
        whole = value if _is_of_rows(site["fn"].support) else whole
        try:
            for start in range(0, len(whole), len(value)) if value.dim() else ():
                # The last batch overlaps the one before: a support may have parameters of a batch's shape.
                start = min(start, len(whole) - len(value))
                _check_support(name, site["fn"], whole[start : start + len(value)])
        except InputError:
            # A support that a latent variable moves, such as that of Uniform(0, z), is no matter of one draw.
            again: list[Any] = [run().nodes[name]["fn"] for _ in range(_DRAWS)]
            if all(_same(site["fn"].support, fn.support) for fn in again):
                raise


# How often a support is looked at again before it counts as one that no latent variable moves.
_DRAWS = 5


def _is_of_rows(support: Any) -> bool:
    """Whether a support has parameters that differ from row to row."""
    return any(part.numel() > 1 and bool((part != part.flatten()[0]).any()) for part in _tensors(support))


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
    if loss is not None and (isinstance(loss, type) or not callable(loss) and not hasattr(loss, "loss_and_grads")):
        raise TypeError(f"loss must be a bound or a game, such as ELBO(), got {shown(loss)}.")
    if isinstance(loss, _JITTED):
        name = type(loss).__name__
        raise TypeError(
            f"loss is a {name}, which torch compiles by a way of its own: take pyro.infer.{name.removeprefix('Jit')}() "
            "as it is, or tarspyro.infer.ELBO() with compile=True."
        )
    if isinstance(loss, TraceTailAdaptive_ELBO):
        raise TypeError(
            "loss is a TraceTailAdaptive_ELBO, which has gradients and no value: take tarspyro.infer.Renyi(0.5)."
        )
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be the class of one, such as torch.optim.Adam, got {shown(optimizer)}.")
    named = {"optimizer_options": optimizer_options, "schedules": schedules, "settings": settings}
    for name, value in named.items():
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a mapping by name, got {shown(value)}.")
    for name, schedule in (schedules or {}).items():
        if not callable(schedule):
            raise TypeError(f"schedules[{name!r}] must be a function of the step, got {shown(schedule)}.")
    if autocast is torch.float16:
        raise ValueError(
            "autocast must be torch.bfloat16, got torch.float16, in which gradients below 6e-8 are zero: bfloat16 has "
            "the range of float32."
        )
    if autocast is not None and autocast is not torch.bfloat16:
        raise TypeError(f"autocast must be torch.bfloat16, got {shown(autocast)}.")


def check_binarizable(part: Tensor | None) -> None:
    """Raises unless the values are probabilities, as ``binarize=True`` needs."""
    if part is None:
        raise InputError("binarize=True draws the pixels of the first part of the data, which is None: leave it out.")
    _check_finite(part, 0)
    low, high = part.min().item(), part.max().item()
    if low < 0 or high > 1:
        raise InputError(
            f"binarize=True needs pixels between 0 and 1, got values from {low:g} to {high:g}: {_rescaling(low, high)}."
        )


def _check_finite(part: Tensor | None, position: int) -> None:
    if part is None or not part.is_floating_point():
        return
    rows = (~part.isfinite()).reshape(len(part) if part.dim() else 1, -1).any(1)
    if rows.any():
        count, first = int(rows.sum()), int(rows.nonzero()[0])
        raise InputError(
            f"data[{position}] has NaN or infinite values in {count} of {len(rows)} rows, first in row {first}: "
            "drop or impute them."
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
        support = constraints.unit_interval  # the user accepts the cross-entropy of grey values
    inside = support.check(value)
    if bool(inside.all()):
        return
    low, high = value.min().item(), value.max().item()
    if isinstance(base, Bernoulli) and 0 <= low and high <= 1:
        raise InputError(
            f"{name} has grey values (from {low:g} to {high:g}) but the likelihood is Bernoulli, for 0 and 1 alone: "
            "draw black and white pixels with binarize=True, or accept the cross-entropy of grey values with "
            "Conditional(..., validate_args=False)."
        )
    family = type(base).__name__
    shown_support = "of each row" if _is_of_rows(support) else support
    outside = f"outside the support of {family} ({shown_support})"
    raise InputError(f"{name} has values from {low:g} to {high:g}, {outside}: {_rescaling(low, high)}.")


def _rescaling(low: float, high: float) -> str:
    if low >= 0 and 1 < high <= 255:
        return "these look like bytes, divide by 255"
    return "rescale the data or choose another likelihood"


def check_trained(
    loss: Tensor,
    parameters: Iterable[Tensor],
    programs: Sequence[Program],
    others: Iterable[Tensor] | None = None,
    hidden: Iterable[Tensor] = (),
) -> list[str]:
    """Compares what the loss depends on with what the optimizer holds, after the first forward pass.

    Arguments:
        loss: The loss.
        parameters: What its optimizer holds.
        programs: What the parameters are named after.
        others: What all players of a game change, if the loss is one of a game. It may depend on all of them, and on
            tensors of its own, such as points at which it takes slopes.
        hidden: Parameters that the programs keep from the optimizer on purpose.

    Returns:
        The names of parameters that the optimizer holds and the loss does not depend on.

    Raises:
        PairError: If the loss depends on a parameter that no optimizer holds, as of a network that is not an
            attribute of its half.
    """
    if not torch.is_tensor(loss):
        raise TypeError(f"loss must return a number in a tensor, got {shown(loss)}.")
    held = {id(parameter) for parameter in parameters}
    reached = {id(parameter): parameter for parameter in leaves_of(loss)}
    known = held | {id(other) for other in (*(others or ()), *hidden)}
    strangers = [variable for key, variable in reached.items() if key not in known]
    if others is not None:
        strangers = [variable for variable in strangers if isinstance(variable, nn.Parameter)]
    if strangers:
        shapes = ", ".join(str(tuple(variable.shape)) for variable in strangers[:3])
        raise PairError(
            f"{len(strangers)} parameters that the loss depends on would not be trained (shapes {shapes}, ...): make "
            "their module an attribute of the model or guide, or register it with pyro.module."
        )
    names: dict[int, str] = {}
    for program in programs:
        if isinstance(program, nn.Module):
            names |= {id(parameter): f"{name_of(program)}.{name}" for name, parameter in program.named_parameters()}
    return [name for key, name in names.items() if key in held and key not in reached]


def hidden_parameters(model: Program, guide: Program, arguments: Sequence[Any]) -> list[Tensor]:
    """Returns the parameters in Pyro's store that a pair reads and hides, ``poutine.block(hide_types=["param"])``."""
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
        What is not finite: the data, a parameter, a draw or log-probability at a site with the rows of the batch, or
        the gradient of a parameter.
    """
    for position, part in enumerate(arguments):
        if torch.is_tensor(part) and not part.isfinite().all():
            return f"data[{position}] is not finite ({_rows(part)})"
    modules = {id(program): program for program in (guide, model, *others) if isinstance(program, nn.Module)}
    named = [(name, p, name_of(program)) for program in modules.values() for name, p in program.named_parameters()]
    for name, parameter, owner in named:
        if not parameter.isfinite().all():
            return f"the parameter {name} of {owner} is not finite, so the step before it went wrong"
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
            return f"the gradient of {name} of {owner} is not finite, while the densities at all sites are"
    return "no single site shows it again with fresh draws"


def _rows(value: Tensor) -> str:
    if value.dim() == 0:
        return "a single number"
    bad = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
    return f"batch rows {bad[:5]}{', ...' if len(bad) > 5 else ''}"
