"""Programs as graphs of tensor operations: what a bound does in one step, recorded once, without Pyro."""

__all__ = ["Recording", "RecordingError", "record"]

import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from tarspyro.modules import local_parameters, preserved_rng

Step = Callable[..., tuple[Tensor, dict[str, Tensor]]]

# Where a read-back happens is the last line of the program before these packages take over.
_MACHINERY = tuple(str(Path(str(file)).parent) for file in (torch.__file__, pyro.__file__, __file__))


class RecordingError(RuntimeError):
    """A program reads values back, so that no graph of tensor operations stands for it."""


class Recording(NamedTuple):
    """A step as a graph: called with the arguments, it returns the loss, its terms, and the gradients."""

    graph: GraphModule
    parameters: list[Tensor]  # what the loss depends on, in the order of the gradients
    terms: list[str]

    def __call__(self, *args: Any) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Runs the graph, operation by operation."""
        return self.unpack(self.graph(*tensors_of(args)))

    def unpack(self, results: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Splits what the graph returns."""
        loss, *rest = results
        count = len(self.terms)
        return loss, dict(zip(self.terms, rest[:count], strict=True)), rest[count:]


def record(step: Step, args: Sequence[Any], *, gradients: bool = True, buffers: Iterable[Tensor] = ()) -> Recording:
    r"""Records a function of tensors, such as a bound's loss, together with the gradients of its result.

    The function runs once, on tensors without values, so that nothing moves: no parameters, statistics or random
    state. Every tensor that it meets besides its arguments stays what it is, the same one at every call of the graph;
    those that require gradients are the parameters. Random draws are operations of the graph, fresh at every call.

    Arguments:
        step: The function; it returns a number to differentiate and a dictionary of numbers to write down.
        args: Its arguments. Tensors are inputs of the graph, of fixed shapes; everything else is a constant.
        gradients: Whether to record the gradients too.
        buffers: What the function changes in place, such as the statistics of batch normalization.

    Raises:
        RecordingError: If the function reads a value back, or branches on one.

    Example:
        >>> weight = torch.ones(3, requires_grad=True)
        >>> recording = record(lambda x: ((weight * x).sum() ** 2, {}), (torch.arange(3.0),))
        >>> loss, _, (gradient,) = recording(torch.tensor([0.0, 1.0, 1.0]))
        >>> loss, gradient
        (tensor(4.), tensor([0., 4., 4.]))
    """
    found: list[Tensor] = []
    terms: list[str] = []

    def flat(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, named = step(*_with_tensors(args, inputs))
        found[:], terms[:] = _leaves(loss) if gradients else [], list(named)
        derivatives = torch.autograd.grad(loss, found) if found else ()
        return loss.detach(), *(value.detach() for value in named.values()), *derivatives

    inputs = [value.detach() for value in tensors_of(args)]
    # Where all that an operation meets are single numbers known in advance, the recorder computes with the real ones.
    before = [(buffer, buffer.clone()) for buffer in buffers]
    with preserved_rng(), local_parameters(), pyro.validation_enabled(False), torch.set_grad_enabled(gradients):
        try:
            graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        except (RuntimeError, ValueError, TypeError) as error:
            raise RecordingError(_where(error)) from error
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
    return Recording(_simplified(graph), list(found), list(terms))


def tensors_of(args: Sequence[Any]) -> list[Tensor]:
    """Returns the arguments that are tensors."""
    return [value for value in args if torch.is_tensor(value)]


def _with_tensors(args: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    remaining = iter(tensors)
    return [next(remaining) if torch.is_tensor(value) else value for value in args]


def _leaves(loss: Tensor) -> list[Tensor]:
    """The parameters that a number depends on, in the order of the graph."""
    leaves: dict[int, Tensor] = {}
    stack, seen = [loss.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = node.variable
        stack.extend(function for function, _ in node.next_functions)
    return list(leaves.values())


def _simplified(graph: GraphModule) -> GraphModule:
    """Merges equal operations and drops those whose results nobody uses."""
    codegen = graph.graph._codegen
    merged = GraphModule(graph, fx_graph_cse(graph.graph))
    merged.graph.set_codegen(codegen)
    merged.graph.eliminate_dead_code()
    merged.recompile()
    return merged


def _where(error: Exception) -> str:
    """Says in one sentence which line of the program cannot be recorded."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if not frame.filename.startswith(_MACHINERY) and frame.filename != "<string>"]
    if not own:
        return f"The program cannot be recorded: {error}"
    frame = own[-1]
    reason = "reads a value back" if "DataDependent" in type(error).__name__ else f"cannot be recorded ({error})"
    return f"{Path(frame.filename).name}, line {frame.lineno}, {reason}: {frame.line}"
