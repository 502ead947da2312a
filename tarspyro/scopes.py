"""Contexts in which programs run: evaluation mode, parameter store, random state, device."""

__all__ = [
    "evaluating",
    "find_device",
    "get_rng_states",
    "kept_buffers",
    "local_parameters",
    "own_store",
    "preserved_rng",
    "registering",
    "set_rng_states",
]

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import nn

from tarspyro.arguments import as_seed, format_value

registering = contextvars.ContextVar("registering", default=True)


def find_device(device: str | torch.device) -> torch.device:
    """Returns the device; for ``"auto"`` a GPU if there is one, else the CPU.

    Raises:
        ValueError: If there is no such device here, or it holds no numbers.
    """
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device
    except (
        RuntimeError,
        AssertionError,
        TypeError,
    ) as error:  # torch without CUDA raises the second
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device must be one that is here, or 'auto', got {format_value(device)} ({reason})."
        ) from error
    if found.type == "meta":
        raise ValueError(
            f"device must hold numbers, got {format_value(device)}, where tensors are shapes alone."
        )
    return found


@contextlib.contextmanager
def local_parameters() -> Iterator[None]:
    """Keeps the parameters of every ``StochasticModule`` out of Pyro's global store."""
    token = registering.set(False)
    try:
        yield
    finally:
        registering.reset(token)


@contextlib.contextmanager
def own_store() -> Iterator[None]:
    """Gives what runs inside a store of its own, with what functions declared by
    ``pyro.param`` before.

    What a module registers is its own and is forgotten afterwards, so that no other module
    meets it under the same name; what functions declare has no other home, and is kept.
    """
    store = pyro.get_param_store()
    outside: Any = store.get_state()
    store.clear()
    store.set_state(_declared(outside))
    try:
        yield
    finally:  # Pyro's own scope would lose what was declared before an error
        declared = _declared(store.get_state())
        merged: Any = {
            kind: {**outside[kind], **declared[kind]} for kind in ("params", "constraints")
        }
        store.clear()
        store.set_state(merged)


def _declared(state: Mapping[str, Any]) -> Any:
    """The part of a store's state that does not belong to modules."""
    params = {
        name: value
        for name, value in state["params"].items()
        if not isinstance(value, nn.Parameter)
    }
    return {
        "params": params,
        "constraints": {name: state["constraints"][name] for name in params},
    }


@contextlib.contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """Puts the programs that are modules in evaluation mode without gradients, and back again
    after.
    """
    modules = [
        part
        for program in programs
        if isinstance(program, nn.Module)
        for part in program.modules()
    ]
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def kept_buffers(*programs: Any) -> Iterator[None]:
    """Gives the buffers of programs that are modules, such as batch normalization's
    statistics, their values back.
    """
    buffers = [
        buffer
        for program in programs
        if isinstance(program, nn.Module)
        for buffer in program.buffers()
    ]
    before = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                # Past the count of versions: a loss of before may still want the gradient of
                # what is the same again. The count does not tell what has changed: batch
                # normalization's statistics do without it.
                buffer.data.copy_(value)


def get_rng_states() -> list[torch.Tensor]:
    """Returns the random state of every device: the CPU's, then the GPUs'."""
    return [
        torch.get_rng_state(),
        *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ()),
    ]


def set_rng_states(states: Sequence[torch.Tensor]) -> None:
    """Gives every device the random state that it had."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


@contextlib.contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Gives back the random state of every device as it was before; with ``seed``, starts from
    it inside.
    """
    seed = None if seed is None else as_seed(seed)
    devices = (
        range(torch.cuda.device_count())
        if torch.cuda.is_initialized() or seed is not None
        else ()
    )
    with torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.manual_seed(seed)
        yield
