"""Functions of tensors on an accelerator as graphs of their kernels."""

__all__ = ["Captured"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tarspyro.accelerators import Graph


class Captured:
    """A function of tensors on an accelerator, all of whose kernels are launched at once.

    The constructor runs the function once, which records the kernels without executing them.
    Every call then copies its arguments to the memory from which the kernels read, and
    replays. Changes in place happen at every call. The function must have run before, so that
    it builds and allocates nothing for the first time, and must not read values.

    Arguments:
        function: A function from tensors to a list of tensors, which the next call
            overwrites.
        inputs: Tensors of the shapes of its arguments.
        pool: The memory of other graphs, see ``Graph``.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        inputs: Sequence[Tensor],
        pool: object = None,
    ) -> None:
        self.inputs = [value.clone() for value in inputs]
        self.graph = Graph(lambda: function(*self.inputs), inputs[0].device, pool)

    @property
    def pool(self) -> object:
        """The memory of the graph."""
        return self.graph.pool

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Runs the function on other values."""
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        results: list[Tensor] = self.graph.result
        return results
