"""Functions of tensors on a GPU as CUDA graphs."""

__all__ = ["Captured"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Captured:
    """A function of tensors on a GPU, all of whose kernels are launched at once.

    The function is run once, to record the kernels and not to execute them; every call then
    copies its arguments to where the kernels read them, and replays. What the function changes
    in place it changes at every call. It must have run before, so that nothing is built or
    allocated for the first time, and must not look at values.

    Arguments:
        function: Takes tensors and returns a list of tensors, which the next call overwrites.
        inputs: Tensors of the shapes that it will be called with.
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
