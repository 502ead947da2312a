"""Functions of tensors without gradients, such as the log weights of a batch, compiled."""

__all__ = ["CompiledValues"]

import warnings
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from tarspyro.infer.compilation.keys import TRIALS
from tarspyro.infer.compilation.recording import RecordingError, TensorFunction, record
from tarspyro.infer.compilation.steps import compile_graph
from tarspyro.programs import tensors_of
from tarspyro.types import Argument


class CompiledValues:
    """A function of tensors that returns named tensors, compiled for each shape of its arguments.

    The first calls of a shape run as the function is written, so that a shape that is rare costs
    no compilation. Values that the function reads besides its arguments, such as parameters, are
    taken to stay as they are.

    Arguments:
        function: The function. If it cannot be recorded, a warning says so, and it runs as it is
            written.
    """

    def __init__(self, function: Callable[..., dict[str, Tensor]]) -> None:
        self.function = function
        self._calls: Counter[Hashable] = Counter()
        self._compiled: dict[Hashable, Callable[..., dict[str, Tensor]] | None] = {}

    def __call__(self, *args: Argument) -> dict[str, Tensor]:
        """Returns the function's values."""
        shape = tuple(None if each is None else (each.shape, each.dtype) for each in args)
        self._calls[shape] += 1
        if self._calls[shape] <= TRIALS:
            return self.function(*args)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(args)
        return (self._compiled[shape] or self.function)(*args)

    def _compile(self, args: tuple[Argument, ...]) -> Callable[..., dict[str, Tensor]] | None:
        def recorded(*values: Argument) -> tuple[Tensor, dict[str, Tensor]]:
            results = self.function(*values)
            return next(iter(results.values())).sum(), results

        try:
            recording = record(recorded, args, parameters=[])
            inputs = [*tensors_of(args), *recording.held]
            function: TensorFunction = compile_graph(recording.graph, inputs, "inductor")
        except RecordingError as error:
            warnings.warn(f"{error} The evaluation goes on uncompiled.", stacklevel=2)
            return None
        except Exception as error:  # whatever a compiler fails with, the evaluation goes on
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            warnings.warn(
                f"The densities cannot be compiled ({reason}). The evaluation goes on without.",
                stacklevel=2,
            )
            return None

        def run(*values: Argument) -> dict[str, Tensor]:
            with torch.no_grad():
                return recording.run(function, tensors_of(values))[1]

        return run
