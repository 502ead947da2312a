"""Functions of tensors without gradients, such as the log weights of a batch, compiled."""

__all__ = ["CompiledValues"]

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from tarspyro.infer.compilation.keys import TRIALS, modules_within
from tarspyro.infer.compilation.recording import RecordingError, TensorFunction, record
from tarspyro.infer.compilation.steps import check_state, compile_graph
from tarspyro.programs import tensors_of
from tarspyro.scopes import kept_tensors
from tarspyro.types import Argument, Program


class CompiledValues:
    """A function of tensors that returns named tensors, compiled for each shape of its arguments.

    The first calls of a shape run as the function is written, so that a shape that is rare costs
    no compilation. Values that the function reads besides its arguments, such as parameters, are
    taken to stay as they are.

    Arguments:
        function: The function. If it cannot be recorded, a warning says so, and it runs as it is
            written.
        programs: The programs that it runs.
    """

    def __init__(
        self, function: Callable[..., dict[str, Tensor]], programs: Sequence[Program]
    ) -> None:
        self.function = function
        self.modules = [module for each in programs for module in modules_within(each)]
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
        bound_anew: list[tuple[nn.Module, str, object]] = []

        def recorded(*values: Argument) -> tuple[Tensor, dict[str, Tensor]]:
            with kept_tensors(self.modules) as replaced:
                results = self.function(*values)
            bound_anew.extend(replaced)
            return next(iter(results.values())).sum(), results

        try:
            recording = record(recorded, args, parameters=[])
            check_state(bound_anew, recording.held)
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
