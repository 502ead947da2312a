"""The accelerator of this machine: CUDA, MPS, XPU or another, through torch's interface.

No other module depends on the kind of accelerator, so all kinds share one path of code.
"""

__all__ = [
    "Graph",
    "accelerator",
    "can_capture",
    "current_device",
    "get_random_state",
    "get_random_states",
    "is_accelerator",
    "name_of_accelerator",
    "set_random_state",
    "set_random_states",
    "synchronize",
    "use_local_device",
    "widest_type",
    "without_cudnn",
]

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def accelerator() -> str | None:
    """Returns the type of this machine's accelerator, such as ``"cuda"``; None if it has none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def is_accelerator(device: torch.device) -> bool:
    """Whether a device computes while the host goes on."""
    return device.type not in ("cpu", "meta")


def name_of_accelerator(device: torch.device) -> str:
    """Returns the product name of a device, such as ``"NVIDIA A100"``, or else its type."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name is None else str(name(device))


def synchronize(device: torch.device) -> None:
    """Waits until a device has finished its work; returns at once on a CPU."""
    if is_accelerator(device):
        with current_device(device):
            torch.get_device_module(device).synchronize()


def widest_type(device: torch.device) -> torch.dtype:
    """Returns the widest type of real numbers of a device: MPS has no double precision."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def current_device(device: torch.device) -> Iterator[None]:
    """Makes a device the current one of its kind.

    Streams, graphs, random states and tensors on ``"cuda"`` without a number are those of the
    current device.
    """
    switch = None
    if is_accelerator(device) and device.index is not None:
        # MPS has no such context, since it is always a single device.
        switch = getattr(torch.get_device_module(device), "device", None)
    with contextlib.nullcontext() if switch is None else switch(device.index):
        yield


def use_local_device(rank: int) -> None:
    """Makes a device the current one of this process, by its rank among those of the machine.

    Raises:
        ValueError: If the machine has fewer devices.
    """
    module = torch.get_device_module(accelerator())
    count = module.device_count()
    if rank >= count:
        raise ValueError(
            f"device must be another one for each process of a machine, and process {rank} of"
            f" this one has none, since there are {count}: start as many processes as there"
            " are devices, or give device='cpu'."
        )
    if count > 1:
        module.set_device(rank)


# --- random states


def _module(*, used: bool) -> ModuleType | None:
    """The module of the accelerator, such as ``torch.cuda``; None if there is none, or if it
    has to be ``used`` and nothing has used it yet.
    """
    kind = accelerator()
    if kind is None:
        return None
    module = torch.get_device_module(kind)
    # MPS has no such function, and no start that costs anything.
    started = getattr(module, "is_initialized", module.is_available)
    return module if started() or not used else None


def get_random_states(*, used: bool = True) -> list[Tensor]:
    """Returns the random states of all accelerators.

    Arguments:
        used: Whether to leave out accelerators that nothing has used yet, which this would
            start.
    """
    module = _module(used=used)
    if module is None:
        return []
    if hasattr(module, "get_rng_state_all"):
        return list(module.get_rng_state_all())
    return [module.get_rng_state()]


def set_random_states(states: Sequence[Tensor]) -> None:
    """Restores what ``get_random_states`` has returned."""
    module = _module(used=False) if states else None
    if module is None:
        return
    if hasattr(module, "set_rng_state_all"):
        module.set_rng_state_all(states)
    else:
        module.set_rng_state(states[0])


def get_random_state() -> dict[str, Tensor]:
    """Returns the random state of the current device under its type, as ``{"cuda": ...}``;
    empty if no accelerator is in use.
    """
    module = _module(used=True)
    return {} if module is None else {str(accelerator()): module.get_rng_state()}


def set_random_state(states: Mapping[str, Tensor]) -> None:
    """Restores what ``get_random_state`` has returned, if such an accelerator is in use."""
    module = _module(used=True)
    kind = accelerator()
    if module is not None and kind is not None and kind in states:
        module.set_rng_state(states[kind])


# --- graphs


@contextlib.contextmanager
def without_cudnn() -> Iterator[None]:
    """Computes without cuDNN inside.

    A recurrent network of cuDNN reads the memory of all its weights as one tensor, which no
    operation returns, so that it cannot be part of a recorded graph. A convolution is the same
    operation with and without cuDNN: one that is recorded here can run by cuDNN later.
    """
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def can_capture(device: torch.device) -> bool:
    """Whether the work of a device can be captured as a graph, to be launched at once."""
    return is_accelerator(device) and hasattr(torch.get_device_module(device), "CUDAGraph")


class Graph:
    """The work that a function gives to a device, captured without being done.

    Arguments:
        function: The function. It must have run before, so that it builds nothing for the
            first time, and must not read values.
        device: The device.
        pool: The memory of other graphs, to share it; their results must be read before this
            one is replayed. None takes new memory.

    Attributes:
        result: What the function has returned. Its tensors get their values at every replay.
        pool: The memory, for further graphs.
    """

    def __init__(
        self, function: Callable[[], Any], device: torch.device, pool: object = None
    ) -> None:
        module = torch.get_device_module(device)
        self._device = device
        self._graph = module.CUDAGraph()
        with current_device(device):
            synchronize(device)
            with module.graph(self._graph, pool=pool):
                self.result = function()
        self.pool = self._graph.pool()

    def replay(self) -> None:
        """Runs the captured work on the numbers that are in memory now."""
        with current_device(self._device):
            self._graph.replay()
