"""The processes of one training, one a device, with ``torch.distributed``."""

__all__ = ["ProcessError", "Processes", "join"]

import atexit
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed as distributed
from torch import Tensor

# How long a process waits for the others, which may be compiling or writing.
_PATIENCE = timedelta(minutes=30)


class ProcessError(RuntimeError):
    """Another process of the training has died, or does not do the same as this one."""


class Processes:
    """What the processes of one training tell each other; a single process tells itself, at no
    cost.

    The gradient of the mean over all rows of a batch is the mean of the processes' gradients,
    each weighted with its rows, so that many processes do what one would do with the same
    batch.

    Attributes:
        rank: The number of this process; the first one, 0, writes the files.
        size: How many there are.

    Example:
        >>> alone = Processes()
        >>> alone.rank, alone.size, alone.share(100)
        (0, 1, slice(0, 100, None))
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (
            (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        )

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Returns which of so many rows are this process's: as equal parts as can be, in
        order, without overlap.
        """
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    def average(self, parameters: Sequence[Tensor], numbers: Tensor, weight: int) -> Tensor:
        """Replaces gradients by their mean over the processes, and returns the mean of some
        numbers beside them.

        Arguments:
            parameters: The parameters that have the gradients; one without any in all
                processes still has none.
            numbers: The numbers, a vector.
            weight: The rows that this process's gradients and numbers are means of.

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
        # One message of everything: what a message costs hardly depends on its length.
        parts = [part.detach().reshape(-1).to(dtype) for part in (numbers, *gradients)]
        whole = torch.cat([weights.to(dtype), *parts])
        whole[len(weights) :] *= weight
        whole = self.total(whole)
        reached, sums = whole[1 : len(weights)].tolist(), whole[len(weights) :]
        sums /= whole[0]
        numbers, *means = sums.split([part.numel() for part in parts])
        torch._foreach_copy_(
            gradients, [mean.view_as(g) for mean, g in zip(means, gradients, strict=True)]
        )
        for parameter, gradient, rows in zip(parameters, gradients, reached, strict=True):
            parameter.grad = gradient if rows else None
        return numbers

    def total(self, numbers: Tensor) -> Tensor:
        """Returns the sums of some numbers over the processes; they may take the place of the
        numbers.
        """
        return self._exchange(distributed.all_reduce, numbers) if self.size > 1 else numbers

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Gives every process the values that the first one has, in place."""
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
        """Gives every process random numbers of its own, by the state of the first one, whose
        own stay.
        """
        if self.size > 1:
            state = torch.get_rng_state()
            seed = torch.randint(2**62, (), dtype=torch.int64)
            torch.set_rng_state(state)
            self.broadcast([seed])
            if self.rank > 0:
                torch.manual_seed(int(seed) + self.rank)

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.total(torch.zeros(1))

    def check_equal(self, what: str, value: int) -> None:
        """Raises a ``ProcessError`` unless a number is the same in all processes."""
        values = [int(found) for found in self.gather(torch.tensor(value))]
        if len(set(values)) > 1:
            raise ProcessError(
                f"{what} must be the same in all processes, got {values}: give each its share"
                " of the data, such as with torch.utils.data.DistributedSampler."
            )

    def _exchange(
        self, operation: Callable[..., object], tensor: Tensor, *arguments: object
    ) -> Tensor:
        """Runs an operation on a tensor where the backend wants it, which may be in place, and
        returns the result.
        """
        device = (
            torch.device("cuda")
            if distributed.get_backend() == "nccl"
            else torch.device("cpu")
        )
        copy = tensor.to(device).contiguous()
        try:
            operation(copy.view(torch.uint8) if copy.dtype is torch.bool else copy, *arguments)
        except (
            RuntimeError
        ) as error:  # what gloo and NCCL raise when a connection is lost or time is up
            reason = str(error).partition("\n")[0]
            raise ProcessError(
                f"Another process of the training has died or does not answer ({reason})."
            ) from error
        return copy.to(tensor.device)


def join(device: torch.device) -> torch.device:
    """Joins the processes that ``torchrun`` has started, unless this one has joined them;
    returns its device.

    The backend is NCCL on GPUs, of which each process takes the one of its local rank, and
    gloo elsewhere. A process stays among them until it ends: groups made again under the same
    names would meet what is left of the first.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return device
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE
        )
        atexit.register(distributed.destroy_process_group)
    return device
