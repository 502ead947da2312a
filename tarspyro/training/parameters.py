"""Parameters of a pair, and checks that the loss depends on them."""

__all__ = ["PairParameters", "find_parameters", "hidden_parameters", "untrained_names"]

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.arguments import format_value
from tarspyro.infer import PairError
from tarspyro.infer.gradients import leaves_of
from tarspyro.infer.traces import name_of, no_guide, trace_pair
from tarspyro.runs.history import Declared
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Arguments, Program


class PairParameters(NamedTuple):
    """The parameters of a pair, each of them once.

    Attributes:
        model: The trained parameters of the model, shared ones included.
        guide: The trained parameters of the guide alone.
        frozen: The parameters of both that require no gradient.
        declared: The parameters that functions declare by ``pyro.param`` and ``pyro.module``,
            by name, which are among the others too, and the buffers of their modules.
    """

    model: list[Tensor]
    guide: list[Tensor]
    frozen: list[Tensor]
    declared: Declared


def find_parameters(model: Program, guide: Program, arguments: Arguments) -> PairParameters:
    """Returns the parameters of a pair, found by a run on a batch."""
    own = {
        id(parameter): parameter
        for half in (model, guide)
        if isinstance(half, nn.Module)
        for parameter in half.parameters()
    }
    sites = _declared_sites(model, guide, arguments)
    declared = {name: value for name, value in sites.items() if id(value) not in own}

    with preserved_rng(), evaluating(model, guide), poutine.trace(param_only=True) as capture:
        guide(*arguments)
    in_guide = {id(sites[name]) for name in capture.trace.nodes if name in sites}
    if isinstance(guide, nn.Module):
        in_guide |= {id(parameter) for parameter in guide.parameters()}
    if isinstance(model, nn.Module):
        in_guide -= {id(parameter) for parameter in model.parameters()}

    everything = own | {id(value): value for value in declared.values()}
    of_model: list[Tensor] = []
    of_guide: list[Tensor] = []
    frozen: list[Tensor] = []
    for key, parameter in everything.items():
        if parameter.requires_grad:
            (of_guide if key in in_guide else of_model).append(parameter)
        elif parameter.is_floating_point():
            frozen.append(parameter)
    halves = [half for half in (model, guide) if isinstance(half, nn.Module)]
    functions = [half for half in (model, guide) if not isinstance(half, nn.Module)]
    return PairParameters(of_model, of_guide, frozen, Declared(declared, functions, halves))


def _declared_sites(model: Program, guide: Program, arguments: Arguments) -> dict[str, Tensor]:
    """The parameters in Pyro's store that a pair reads, unconstrained."""
    with preserved_rng(), evaluating(model, guide), poutine.trace(param_only=True) as capture:
        trace_pair(model, guide, arguments, {})
    # Pyro's parameters carry a function that returns their unconstrained value.
    values: dict[str, Any] = {
        name: site["value"] for name, site in capture.trace.nodes.items()
    }
    return {name: value.unconstrained() for name, value in values.items()}


def hidden_parameters(model: Program, guide: Program, arguments: Arguments) -> list[Tensor]:
    """Returns the parameters in Pyro's store that a pair reads and hides from its trace.

    A program hides them on purpose with ``poutine.block(hide_types=["param"])``.
    """
    stored = list(pyro.get_param_store().named_parameters())
    if not stored:
        return []
    with preserved_rng(), evaluating(model, guide), poutine.trace(param_only=True) as capture:
        trace_pair(model, guide, arguments, {})
    return [value for name, value in stored if name not in capture.trace.nodes]


def untrained_names(
    loss: Tensor,
    parameters: Iterable[Tensor],
    programs: Sequence[object],
    others: Iterable[Tensor] | None = None,
    hidden: Iterable[Tensor] = (),
) -> list[str]:
    """Compares what a loss depends on with what its optimizer holds.

    Arguments:
        loss: The loss, after its first forward pass.
        parameters: The parameters that its optimizer holds.
        programs: The modules from which the parameters have their names.
        others: In a game, the parameters of all players. The loss of a player may depend on
            all of them, and on tensors of its own, such as points for a gradient penalty.
        hidden: Parameters that the programs hide from the optimizer on purpose.

    Returns:
        The names of the parameters that the optimizer holds and the loss does not depend on.

    Raises:
        TypeError: If the loss is not a tensor.
        PairError: If the loss depends on a parameter that no optimizer holds. This happens
            with a network that is not an attribute of its half.
    """
    if not torch.is_tensor(loss):
        raise TypeError(f"loss must return a number in a tensor, got {format_value(loss)}.")
    held = {id(parameter) for parameter in parameters}
    reached = {id(parameter): parameter for parameter in leaves_of(loss)}
    known = held | {id(other) for other in (*(others or ()), *hidden)}
    strangers = [tensor for key, tensor in reached.items() if key not in known]
    if others is not None:
        strangers = [tensor for tensor in strangers if isinstance(tensor, nn.Parameter)]
    if strangers:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in strangers[:3])
        raise PairError(
            f"{len(strangers)} parameters that the loss depends on would not be trained"
            f" (shapes {shapes}, ...): {_about_strangers(programs)}."
        )
    names: dict[int, str] = {}
    for program in programs:
        if isinstance(program, nn.Module):
            for name, parameter in program.named_parameters():
                names[id(parameter)] = f"{name_of(program)}.{name}"
    return [name for key, name in names.items() if key in held and key not in reached]


def _about_strangers(programs: Sequence[object]) -> str:
    """A remedy for parameters that no optimizer holds."""
    registered = "register their module inside the function, pyro.module('network', network)"
    kinds = {isinstance(program, nn.Module) for program in programs if program is not no_guide}
    if kinds == {True}:
        return "make their module an attribute of the model or guide"
    if kinds == {False}:
        return registered
    return f"make their module an attribute of the module that uses it, or {registered}"
