"""Functions of tensors on a GPU as CUDA graphs."""

__all__ = ["Captured"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Captured:
    """A function of tensors on a GPU, all of whose kernels are launched at once.

    The constructor runs the function once, which records the kernels without executing them.
    Every call then copies its arguments to the memory from which the kernels read, and
    replays. Changes in place happen at every call. The function must have run before, so that
    it builds and allocates nothing for the first time, and must not read values.

    Arguments:
        function: A function from tensors to a list of tensors, which the next call
            overwrites.
        inputs: Tensors of the shapes of its arguments.
    """

    def __init__(
        self, function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]
    ) -> None:
        self.inputs = [value.clone() for value in inputs]
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self.graph):
            self.results = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Runs the function on other values."""
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.results
