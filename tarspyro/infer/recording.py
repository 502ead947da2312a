"""Programs as graphs of tensor operations: what a bound does in one step, recorded once, without Pyro."""

__all__ = ["Recording", "RecordingError", "leaves_of", "record", "tensors_of"]

import contextlib
import operator
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from tarspyro.infer.traces import PairError
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
        with torch.no_grad():
            return self.unpack(self.graph(*tensors_of(args)))

    def unpack(self, results: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Splits what the graph returns."""
        loss, *rest = results
        count = len(self.terms)
        return loss, dict(zip(self.terms, rest[:count], strict=True)), rest[count:]


def record(step: Step, args: Sequence[Any], *, buffers: Iterable[Tensor] = ()) -> Recording:
    r"""Records a function of tensors, such as a bound's loss, together with the gradients of its result.

    The function runs on tensors without values, so that nothing moves: no parameters, statistics or random state.
    Every tensor that it meets besides its arguments stays what it is, the same one at every call of the graph; those
    that require gradients are the parameters. Random draws are operations of the graph, fresh at every call.

    Operations that occur twice, such as the recurrence that a sequence's model and guide both run, are merged before
    they are differentiated, so that they cost once in both directions. That holds for functions whose gradient is
    that of their value; where it changes the gradients (hooks, derivatives inside) it is left undone.

    Arguments:
        step: The function; it returns a number to differentiate and a dictionary of numbers to write down.
        args: Its arguments. Tensors are inputs of the graph, of fixed shapes; everything else is a constant.
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
    buffers = list(buffers)
    recording, repeats = _with_gradients(step, args, buffers)
    if not repeats:
        return recording
    terms: list[str] = []

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, named = step(*_with_tensors(args, inputs))
        terms[:] = list(named)
        return loss, *named.values()

    graph = merged(_graph(forward, tensors_of(args), buffers, pre_dispatch=True))
    if any(
        node.op == "get_attr" and isinstance(attrgetter(node.target)(graph), FakeTensor) for node in graph.graph.nodes
    ):
        return recording  # a derivative inside took something that this kind of recording has no name for

    def once(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, *values = graph(*tensors_of(args))
        return loss, dict(zip(terms, values, strict=True))

    other, _ = _with_gradients(once, args, buffers)
    return other if _agree(recording, other, args, buffers) else recording


def _with_gradients(step: Step, args: Sequence[Any], buffers: Sequence[Tensor]) -> tuple[Recording, bool]:
    """Records a function and its derivatives as one graph; tells whether work in it was done twice."""
    found: list[Tensor] = []
    terms: list[str] = []

    def both(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, named = step(*_with_tensors(args, inputs))
        found[:], terms[:] = leaves_of(loss), list(named)
        derivatives = torch.autograd.grad(loss, found) if found else ()
        return loss.detach(), *(value.detach() for value in named.values()), *derivatives

    graph = _graph(both, tensors_of(args), buffers)
    before = _work(graph)
    return Recording(merged(graph), list(found), list(terms)), _work(graph) < before


def _graph(
    function: Callable[..., Any], inputs: Sequence[Tensor], buffers: Sequence[Tensor], pre_dispatch: bool = False
) -> GraphModule:
    with preserved_rng(), local_parameters(), pyro.validation_enabled(False), torch.enable_grad(), _kept(buffers):
        try:
            tracer = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True, pre_dispatch=pre_dispatch)
            return tracer(*(value.detach() for value in inputs))
        except PairError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise RecordingError(_where(error)) from error


@contextlib.contextmanager
def _kept(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Gives buffers their values back: the recorder computes with real ones where all that it meets is known."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _agree(one: Recording, other: Recording, args: Sequence[Any], buffers: Sequence[Tensor]) -> bool:
    """Whether two recordings give the same loss and gradients from the same noise."""
    results = []
    for recording in (one, other):
        with preserved_rng(seed=0), _kept(buffers), torch.no_grad():
            loss, _, gradients = recording(*args)
        results.append((loss, dict(zip(map(id, recording.parameters), gradients, strict=True))))
    (loss, first), (same_loss, second) = results
    return (
        torch.allclose(loss, same_loss)
        and first.keys() == second.keys()
        and all(bool((first[key] - second[key]).abs().max() <= 1e-4 * first[key].abs().max()) for key in first)
    )


def tensors_of(args: Sequence[Any]) -> list[Tensor]:
    """Returns the arguments that are tensors."""
    return [value for value in args if torch.is_tensor(value)]


def _with_tensors(args: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    remaining = iter(tensors)
    return [next(remaining) if torch.is_tensor(value) else value for value in args]


def leaves_of(loss: Tensor) -> list[Tensor]:
    """Returns the parameters that a number depends on, in the order of the graph."""
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


def merged(graph: GraphModule) -> GraphModule:
    """Computes equal operations once, in place, and drops those whose results nobody uses.

    Random draws are never equal, and what meets a tensor that is changed in place stays as it is.
    """
    changed: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        changed.update(_aliases(node, written=True))
        if node in changed:  # and so is what it is a view of
            changed.update(_aliases(node, written=False))
    outside = {id(getattr(graph, str(node.target))) for node in changed if node.op == "get_attr"}
    known: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            key: Any = id(getattr(graph, str(node.target)))
            if key in outside:
                changed.add(node)
        elif node.op == "call_function" and _is_pure(node):
            key = (node.target, repr(node.args), repr(node.kwargs))
        else:
            continue
        if node in changed or changed.intersection(node.all_input_nodes):
            changed.add(node)  # it may be a view of what is changed
        elif key in known:
            node.replace_all_uses_with(known[key])
            graph.graph.erase_node(node)
        else:
            known[key] = node
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _aliases(node: Node, *, written: bool) -> Iterator[Node]:
    """The arguments that an operation writes to, or that its result may share memory with."""
    # Operations such as unsafe_split return views of their input, though their signatures deny it.
    if not written and (node.target is operator.getitem or "unsafe" in str(node.target)):
        yield from node.all_input_nodes
    if isinstance(node.target, OpOverload):
        for position, argument in enumerate(node.target._schema.arguments):
            alias = argument.alias_info
            if alias is not None and (alias.is_write or not written):
                value = node.kwargs.get(argument.name, node.args[position] if position < len(node.args) else None)
                if isinstance(value, Node):
                    yield value


def _is_pure(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target._schema.is_mutable:
        return False
    # Batch normalization moves its statistics, though its signature does not say so.
    return torch.Tag.nondeterministic_seeded not in node.target.tags and "batch_norm" not in str(node.target)


def _work(graph: GraphModule) -> int:
    """The number of matrix products, convolutions and recurrent cells."""
    counts = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    kinds = ("linear", "matmul", "mm", "mv", "conv", "gru", "lstm", "rnn")
    return sum(number for name, number in counts.items() if any(kind in name for kind in kinds))


def _where(error: Exception) -> str:
    """Says in one sentence which line of the program cannot be recorded."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if not frame.filename.startswith(_MACHINERY) and frame.filename != "<string>"]
    if not own:
        return f"The program cannot be recorded: {error}"
    frame = own[-1]
    reason = "reads a value back" if "DataDependent" in type(error).__name__ else f"cannot be recorded ({error})"
    return f"{Path(frame.filename).name}, line {frame.lineno}, {reason}: {frame.line}"
