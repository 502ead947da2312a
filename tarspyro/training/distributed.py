"""Processes that train together, with ``torch.distributed``, one on each device."""

__all__ = ["ProcessError", "Processes", "join"]

import atexit
import functools
import hashlib
import importlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from tarspyro.accelerators import accelerator, is_accelerator, use_local_device
from tarspyro.scopes import find_device
from tarspyro.types import Device

# How long a process waits for the others, which may compile or write files.
_PATIENCE = timedelta(minutes=30)
# A process that waits looks so often whether it has received a signal. After a signal it waits
# for the others a little longer: if they have received it too, all stop after the same step.
_LOOK = timedelta(seconds=0.2)
_GRACE = 5.0


class ProcessError(RuntimeError):
    """Another process of the training has died, or does something else than this one."""


class Processes:
    """The communication between the processes of one training; free if there is only one.

    Each process takes its share of a batch. The gradient of the whole batch is the mean of the
    gradients of the processes, weighted by their rows. So several processes do what a single
    one would do with the same batch.

    Attributes:
        rank: The number of this process. Process 0 writes the files.
        size: The number of processes.
        is_asked: A function that tells whether this process was asked to stop; it then no
            longer waits for processes that do not answer.

    Example:
        >>> alone = Processes()
        >>> alone.rank, alone.size, alone.share(100)
        (0, 1, slice(0, 100, None))
    """

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1
        self.is_asked: Callable[[], bool] = lambda: False
        if distributed.is_available() and distributed.is_initialized():
            self.rank = distributed.get_rank()
            self.size = distributed.get_world_size()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Returns the share of this process in a number of rows.

        The shares follow each other, and are as equal as possible.
        """
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def average(self, parameters: Sequence[Tensor], numbers: Tensor, weight: int) -> Tensor:
        """Replaces gradients by their mean over the processes, and averages some numbers too.

        Arguments:
            parameters: The parameters with the gradients. A parameter that has no gradient in
                any process still has none afterwards.
            numbers: The numbers, a vector.
            weight: The number of rows that the gradients and numbers of this process are means
                of.

        Returns:
            The means of the numbers.

        Raises:
            ProcessError: If another process has died.
        """
        if self.size == 1:
            return numbers
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        weights = numbers.new_tensor(
            [weight, *(weight if p.grad is not None else 0 for p in parameters)]
        )
        dtype = functools.reduce(
            torch.promote_types, [g.dtype for g in gradients], numbers.dtype
        )
        # Everything goes in one message, since its cost hardly depends on its length.
        parts = [part.detach().reshape(-1).to(dtype) for part in (numbers, *gradients)]
        whole = torch.cat([weights.to(dtype), *parts])
        whole[len(weights) :] *= weight
        whole = self.total(whole)
        reached = whole[1 : len(weights)].tolist()
        sums = whole[len(weights) :] / whole[0]
        numbers, *means = sums.split([part.numel() for part in parts])
        torch._foreach_copy_(
            gradients, [mean.view_as(g) for mean, g in zip(means, gradients, strict=True)]
        )
        for parameter, gradient, rows in zip(parameters, gradients, reached, strict=True):
            parameter.grad = gradient if rows else None
        return numbers

    def total(self, numbers: Tensor) -> Tensor:
        """Returns the sums of numbers over the processes; it may overwrite the numbers."""
        return self._exchange(distributed.all_reduce, numbers) if self.size > 1 else numbers

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copies the values of the first process into the tensors of every process."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    tensor.copy_(self._exchange(distributed.broadcast, tensor.detach(), 0))

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Returns the tensors of all processes, in their order."""
        whole = tensor.new_zeros(self.size, *tensor.shape)
        whole[self.rank] = tensor
        return list(self.total(whole))

    def vary_noise(self) -> None:
        """Gives every process its own random numbers, derived from those of the first one.

        The random numbers of the first process stay as they are.
        """
        if self.size > 1:
            state = torch.get_rng_state()
            seed = torch.randint(2**62, (), dtype=torch.int64)
            torch.set_rng_state(state)
            self.broadcast([seed])
            if self.rank > 0:
                torch.manual_seed(int(seed) + self.rank)

    def wait(self) -> None:
        """Waits until all processes have called this."""
        self.total(torch.zeros(1))

    def check_equal(self, what: str, value: int) -> None:
        """Raises a ``ProcessError`` unless a number is the same in all processes."""
        values = [int(found) for found in self.gather(torch.tensor(value))]
        if len(set(values)) > 1:
            raise ProcessError(
                f"{what} must be the same in all processes, got {values}: give each process its"
                " share of the data, such as with torch.utils.data.DistributedSampler."
            )

    def check_same(self, **values: object) -> None:
        """Raises a ``ProcessError`` unless values print the same in all processes."""
        if self.size == 1:
            return
        digests = [hashlib.sha256(repr(value).encode()).digest() for value in values.values()]
        own = torch.tensor([int.from_bytes(digest[:6], "little") for digest in digests])
        everyone = torch.stack(self.gather(own))
        for name, column in zip(values, everyone.T, strict=True):
            if len(column.unique()) > 1:
                raise ProcessError(
                    f"The {name.replace('_', ' ')} must be the same in all processes, and"
                    f" differ between process 0 and {int((column != column[0]).nonzero()[0])}:"
                    " run one script, with the same arguments and data, in all of them."
                )

    def have_all(self, what: str, own: bool) -> bool:
        """Returns whether there is something in all processes.

        Arguments:
            what: What it is, for the error.
            own: Whether this process has it.

        Raises:
            ProcessError: If some have it and others do not.
        """
        count = int(self.total(torch.tensor(int(own))))
        if 0 < count < self.size:
            raise ProcessError(
                f"{count} of {self.size} processes have {what}, and the others have none: give"
                " all processes the same number of batches."
            )
        return count > 0

    def _exchange(
        self, operation: Callable[..., Any], tensor: Tensor, *arguments: object
    ) -> Tensor:
        """Runs an operation on a tensor, on the device that the backend needs.

        The operation may overwrite the tensor.

        Returns:
            The result.
        """
        copy = tensor.to(_device_of_backend()).contiguous()
        sent = copy.view(torch.uint8) if copy.dtype is torch.bool else copy
        try:
            if is_accelerator(copy.device):
                operation(sent, *arguments)  # it only joins the queue of the device
            else:
                self._wait(operation(sent, *arguments, async_op=True))
        except RuntimeError as error:
            # Gloo and NCCL raise it when a connection is lost or the time is up.
            reason = str(error).partition("\n")[0]
            raise ProcessError(
                f"Another process of the training has died or does not answer ({reason})."
            ) from error
        return copy.to(tensor.device)

    def _wait(self, work: Any) -> None:
        """Waits for an exchange; signals are handled meanwhile."""
        asked_at: float | None = None
        while True:
            try:
                work.wait(_LOOK)
                return
            except RuntimeError:
                if work.is_completed():
                    work.wait()  # returns, or says why the exchange has failed
                    return
            if asked_at is None and self.is_asked():
                asked_at = time.monotonic()
            if asked_at is not None and time.monotonic() - asked_at > _GRACE:
                raise RuntimeError("this one was asked to stop and has waited in vain")


def patience() -> timedelta:
    """Returns how long a process waits for the others: half an hour, or as many seconds as the
    variable ``TARSPYRO_PATIENCE`` says.

    Raises:
        ValueError: If the variable is not a positive number.
    """
    given = os.environ.get("TARSPYRO_PATIENCE")
    if not given:
        return _PATIENCE
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e8:
        raise ValueError(
            "TARSPYRO_PATIENCE must be the number of seconds that a process waits for the"
            f" others, got {given!r}."
        )
    return timedelta(seconds=seconds)


def join(device: Device) -> torch.device:
    """Joins the processes that ``torchrun`` has started, if this one has not joined yet.

    On GPUs each process takes the one of its local rank, unless the device has a number. They
    exchange numbers through the backend that torch has for the device, such as NCCL, and
    through gloo where it has none.

    The process leaves the group only when it ends: a second group under the same name would
    meet what is left of the first.

    Arguments:
        device: The device, as the user gives it.

    Returns:
        The device of this process.

    Raises:
        ValueError: If this machine has no such device, or too few of them.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return find_device(device)
    if str(device) in ("auto", accelerator()) and accelerator() is not None:
        use_local_device(int(os.environ["LOCAL_RANK"]))
    found = find_device(device)  # without a number, the current one
    if not distributed.is_initialized():
        # Functions of this module have the group as a default argument if it exists when the
        # module is imported, as every optimizer does. The group would then never end, and a
        # thread of gloo that still holds a tensor aborts the process when it releases it after
        # Python's end.
        importlib.import_module("torch.distributed.nn")
        distributed.init_process_group(_backend_of(found), timeout=patience())
        atexit.register(_leave)
    return found


def _backend_of(device: torch.device) -> str:
    """The backend that torch has for a device."""
    known = distributed.Backend.default_device_backend_map
    return str(known.get(device.type, distributed.Backend.GLOO))


def _device_of_backend() -> torch.device:
    """The device on which processes exchange numbers."""
    if distributed.get_backend() == distributed.Backend.GLOO:
        return torch.device("cpu")
    return find_device("auto")  # the current one


def _leave() -> None:
    """Leaves the group at the end of the process, and with it ends the threads of gloo."""
    if distributed.is_initialized():  # the script may have left it
        distributed.destroy_process_group()
