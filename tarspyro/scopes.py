"""Contexts for programs: evaluation mode, parameter store, random state and device."""

__all__ = [
    "evaluating",
    "exclusive",
    "find_device",
    "get_rng_states",
    "kept_buffers",
    "kept_tensors",
    "local_parameters",
    "own_store",
    "preserved_rng",
    "registering",
    "set_rng_states",
]

import contextlib
import contextvars
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence

import pyro
import torch
from pyro.params.param_store import StateDict
from torch import Tensor, nn

from tarspyro.accelerators import accelerator, get_random_states, set_random_states
from tarspyro.arguments import as_seed, format_value
from tarspyro.memory import keep_freed_memory
from tarspyro.programs import layers_of
from tarspyro.types import Device

# Whether a ``StochasticModule`` registers its parameters in Pyro's store.
registering = contextvars.ContextVar("registering", default=True)

# Pyro's stack and parameter store, and torch's random state, exist once in a process. So one
# thread at a time runs programs.
_running = threading.RLock()
_SILENT_SECONDS = 10.0  # a thread that waits longer warns


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Holds the lock with which one thread at a time runs programs; it is reentrant.

    All contexts of this module that change something global hold it too.
    """
    if not _running.acquire(timeout=_SILENT_SECONDS):
        warnings.warn(
            "Another thread of this process trains or evaluates a pair, and this thread waits"
            " until it has ended, since Pyro's stack and torch's random state exist once in a"
            " process. Processes do not wait for each other.",
            stacklevel=3,
        )
        _running.acquire()
    try:
        yield
    finally:
        _running.release()


def find_device(device: Device) -> torch.device:
    """Returns a device; for ``"auto"`` a GPU if there is one, else the CPU.

    Raises:
        ValueError: If this machine has no such device, or it is the meta device.
    """
    if isinstance(device, str) and device == "auto":
        device = accelerator() or "cpu"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        # Torch without CUDA raises an AssertionError.
        reason = str(error).partition("\n")[0].rstrip(".")
        if isinstance(device, str) and reason.startswith("Expected one of"):
            reason = "torch knows no device of this name, a GPU is 'cuda' or 'mps'"
        raise ValueError(
            f"device must be a device of this machine, such as 'cpu', or 'auto', got"
            f" {format_value(device)}: {reason}."
        ) from error
    if found.type == "meta":
        raise ValueError(
            f"device must be 'auto', 'cpu' or a GPU, got {format_value(device)}, where tensors"
            " have no values."
        )
    return found


@contextlib.contextmanager
def local_parameters() -> Iterator[None]:
    """Keeps the parameters of modules out of Pyro's global store.

    A ``StochasticModule`` registers nothing inside. What others register, such as Pyro's
    automatic guides, is removed afterwards: another one of that name would take it for its own.
    """
    store = pyro.get_param_store()
    with exclusive():
        before = set(store.keys())
        token = registering.set(False)
        try:
            yield
        finally:
            registering.reset(token)
            state: StateDict = store.get_state()
            kept = before | _declared(state)["params"].keys()
            for name in state["params"].keys() - kept:
                del store[name]


@contextlib.contextmanager
def own_store(*programs: object) -> Iterator[None]:
    """Replaces Pyro's parameter store by one with the parameters that functions declared.

    Parameters that modules register inside are removed from the store afterwards, so that no
    other module meets them under the same name. Parameters that functions declare by
    ``pyro.param`` are kept, since they exist in the store alone. An ``nn.Parameter`` is one of
    them if no module of the programs has it, and is kept as a tensor.
    """
    store = pyro.get_param_store()
    with exclusive():
        outside: StateDict = store.get_state()
        store.clear()
        store.set_state(_declared(outside))
        try:
            yield
        finally:
            # Pyro's own scope would lose what was declared before an error.
            held = {id(one) for half in layers_of(*programs) for one in half.parameters(False)}
            inside: StateDict = store.get_state()
            for name, value in inside["params"].items():
                if isinstance(value, nn.Parameter) and "$$$" not in name:
                    if id(value) not in held:
                        inside["params"][name] = value.detach().requires_grad_()
            declared = _declared(inside)
            merged: StateDict = {
                "params": {**outside["params"], **declared["params"]},
                "constraints": {**outside["constraints"], **declared["constraints"]},
            }
            store.clear()
            store.set_state(merged)


def _declared(state: StateDict) -> StateDict:
    """The part of a store's state that functions have declared."""
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
def evaluating(*programs: object) -> Iterator[None]:
    """Puts the modules of programs in evaluation mode, without gradients; restores the modes."""
    modules = layers_of(*programs)
    with exclusive():
        modes = [(module, module.training) for module in modules]
        keep_freed_memory()
        try:
            for module in modules:
                module.training = False
            with torch.no_grad():
                yield
        finally:
            for module, training in modes:
                module.training = training


@contextlib.contextmanager
def kept_buffers(*programs: object) -> Iterator[None]:
    """Restores the buffers of the programs' modules, such as running statistics."""
    before = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in layers_of(*programs)
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                module._buffers[name] = buffer  # a module may bind another tensor to its name
                if buffer is None or value is None:
                    continue
                # Through ``data``, since a loss from before may still need its gradient, and
                # autograd would count this as a change. That count does not show which
                # buffers have changed either: batch normalization changes its statistics
                # without it.
                buffer.data.copy_(value)


@contextlib.contextmanager
def kept_tensors(
    modules: Iterable[nn.Module],
) -> Iterator[list[tuple[nn.Module, str, object]]]:
    """Restores which tensors modules hold, as buffers or as other attributes.

    Gives a list, which afterwards has the attributes that were bound to other tensors: the
    module, the name, and what it held before, None if it had no such attribute.
    """
    held = [(module, (vars(module), module._buffers)) for module in modules]
    before = [[dict(names) for names in both] for _, both in held]
    replaced: list[tuple[nn.Module, str, object]] = []
    try:
        yield replaced
    finally:
        for (module, both), formers in zip(held, before, strict=True):
            for names, former in zip(both, formers, strict=True):
                for name in [key for key, value in names.items() if torch.is_tensor(value)]:
                    if name not in former:
                        del names[name]
                    elif names[name] is not former[name]:
                        names[name] = former[name]
                    else:
                        continue
                    replaced.append((module, name, former.get(name)))


def get_rng_states() -> list[Tensor]:
    """Returns the random states of the CPU and of all accelerators in use."""
    return [torch.get_rng_state(), *get_random_states()]


def set_rng_states(states: Sequence[Tensor]) -> None:
    """Restores what ``get_rng_states`` returned."""
    torch.set_rng_state(states[0])
    set_random_states(states[1:])


@contextlib.contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Restores the random state of every device afterwards.

    Arguments:
        seed: The seed of the random numbers inside; None goes on with the current state.
    """
    seed = None if seed is None else as_seed(seed)
    with exclusive():
        # A seed is one for all devices, also for those that will be used later.
        states = [torch.get_rng_state(), *get_random_states(used=seed is None)]
        try:
            if seed is not None:
                torch.manual_seed(seed)
            yield
        finally:
            set_rng_states(states)
