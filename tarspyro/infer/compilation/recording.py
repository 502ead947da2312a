"""Programs as graphs of tensor operations: what a bound does in one step, recorded once,
without Pyro.
"""

__all__ = ["Recording", "RecordingError", "record"]

import contextlib
import operator
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tarspyro.infer.gradients import leaves_of
from tarspyro.infer.traces import PairError
from tarspyro.programs import tensors_of
from tarspyro.scopes import local_parameters, preserved_rng

Step = Callable[..., tuple[Tensor, dict[str, Tensor]]]

# Where a read-back happens is the last line of the program before these packages take over.
_MACHINERY = tuple(
    str(Path(str(file)).parent)
    for file in (torch.__file__, pyro.__file__, contextlib.__file__)
)
_LIBRARY = str(Path(__file__).parents[1])


class RecordingError(RuntimeError):
    """A program reads values back, so that no graph of tensor operations stands for it."""


class Recording(NamedTuple):
    """A step as a graph: called with the arguments, it returns the loss, its terms, and the
    gradients.
    """

    graph: GraphModule  # a function of the arguments' tensors and of those that are held
    held: list[
        Tensor
    ]  # what the step reads besides its arguments, the same tensors at every call
    parameters: list[Tensor]  # what the loss depends on, in the order of the gradients
    terms: list[str]

    def __call__(self, *args: Any) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Runs the graph, operation by operation."""
        return self.run(self.graph, tensors_of(args))

    def run(
        self, function: Callable[..., Any], tensors: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Runs the graph, or a function that a compiler made of it."""
        with torch.no_grad():
            loss, *rest = function(*tensors, *self.held)
        count = len(self.terms)
        return loss, dict(zip(self.terms, rest[:count], strict=True)), rest[count:]


def record(
    step: Step,
    args: Sequence[Any],
    *,
    buffers: Iterable[Tensor] = (),
    parameters: Iterable[Tensor] | None = None,
) -> Recording:
    r"""Records a function of tensors, such as a bound's loss, together with the gradients of
    its result.

    The function runs on tensors without values, so that nothing moves: no parameters,
    statistics or random state. Every tensor that it meets besides its arguments stays what it
    is, the same one at every call of the graph; those that require gradients are the
    parameters. Random draws are operations of the graph, fresh at every call.

    What can be improved before it is differentiated, is: operations that occur twice, such as
    the recurrence that a sequence's model and guide both run, cost once in both directions,
    and on a CPU convolutions get the layout of memory that they are fast in. Whether loss and
    gradients are still those of the function is seen by running both once on the same noise;
    where they are not (hooks, derivatives inside the function) it is recorded as it stands.

    Arguments:
        step: The function; it returns a number to differentiate and a dictionary of numbers to
            write down.
        args: Its arguments. Tensors are inputs of the graph, of fixed shapes; everything else
            is a constant.
        buffers: What the function changes in place, such as the statistics of batch
            normalization.
        parameters: What to take gradients in, of all that the result depends on; all of it if
            not given.

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
    own = None if parameters is None else {id(parameter) for parameter in parameters}
    terms: list[str] = []

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, named = step(*_with_tensors(args, inputs))
        terms[:] = list(named)
        return loss, *named.values()

    graph = _graph(forward, tensors_of(args), buffers, pre_dispatch=True)
    constants = [
        getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"
    ]
    if any(isinstance(constant, FakeTensor) for constant in constants):
        # Derivatives inside the function were of values that are gone after the recording.
        return record_as_it_stands(step, args, buffers, own)
    work = _work(graph)
    relaid = _lay_out_convolutions(graph)
    if _work(merged(graph)) < work or relaid:

        def improved(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
            loss, *values = graph(*tensors_of(args))
            return loss, dict(zip(terms, values, strict=True))

        recording = record_as_it_stands(improved, args, buffers, own)
        if _agree(recording, step, args, buffers, own):
            return recording
    return record_as_it_stands(step, args, buffers, own)


def record_as_it_stands(
    step: Step,
    args: Sequence[Any],
    buffers: Sequence[Tensor],
    own: Collection[int] | None = None,
) -> Recording:
    """Records a function and its derivatives, in parameters of certain identities or in all,
    as one graph.
    """
    found: list[Tensor] = []
    terms: list[str] = []

    def both(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, named = step(*_with_tensors(args, inputs))
        found[:], terms[:] = _own(leaves_of(loss), own), list(named)
        derivatives = torch.autograd.grad(loss, found) if found else ()
        return loss.detach(), *(value.detach() for value in named.values()), *derivatives

    graph = merged(_graph(both, tensors_of(args), buffers))
    return Recording(graph, _lift(graph), list(found), list(terms))


def _graph(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    buffers: Sequence[Tensor],
    pre_dispatch: bool = False,
) -> GraphModule:
    with (
        preserved_rng(),
        local_parameters(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
        _kept(buffers),
    ):
        try:
            # Without symbols for what only values tell: there is no graph of it that a
            # compiler could take.
            fake = FakeTensorMode(allow_non_fake_inputs=True)
            values = [fake.from_tensor(value.detach(), static_shapes=True) for value in inputs]
            tracer = make_fx(_unread(function), tracing_mode="fake", pre_dispatch=pre_dispatch)
            return tracer(*values)
        except PairError:
            raise
        except Exception as error:  # whatever a program says of tensors without values
            raise RecordingError(_where(error)) from error


def _unread(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function during whose run no value is read, not even of what is known, such as a
    parameter: it may change.
    """

    def run(*inputs: Tensor) -> Any:
        reads = _NoReads()
        with _NoCopies(), reads:
            results = function(*inputs)
        if reads.met is not None:  # and the program has caught it
            raise reads.met
        return results

    return run


class _Read(RuntimeError):
    """A value was read back."""


_READS = (_Read, DataDependentOutputException, DynamicOutputShapeException)


class _NoReads(TorchDispatchMode):
    """Refuses operations whose result is a Python value, or whose shape only values tell."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.met: Exception | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        try:
            if torch.Tag.data_dependent_output in func.tags:
                raise _Read
            return func(*args, **(kwargs or {}))
        except _READS as error:
            self.met = error
            raise


class _NoCopies(TorchFunctionMode):
    """Refuses what takes values out of tensors without an operation."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _COPIES:
            raise _Read
        return func(*args, **(kwargs or {}))


_COPIES = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr)


@contextlib.contextmanager
def _kept(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Gives buffers their values back: the recorder computes with real ones where all that it
    meets is known.
    """
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _own(leaves: list[Tensor], identities: Collection[int] | None) -> list[Tensor]:
    return [leaf for leaf in leaves if identities is None or id(leaf) in identities]


def _agree(
    recording: Recording,
    step: Step,
    args: Sequence[Any],
    buffers: Sequence[Tensor],
    own: Collection[int] | None,
) -> bool:
    """Whether a recording gives the loss and the gradients of the function, from the same
    noise.
    """
    with preserved_rng(seed=0), _kept(buffers):
        loss, _, gradients = recording(*args)
    with (
        preserved_rng(seed=0),
        _kept(buffers),
        local_parameters(),
        pyro.validation_enabled(False),
    ):
        with torch.enable_grad():
            exact, _ = step(*args)
            parameters = _own(leaves_of(exact), own)
            derivatives = torch.autograd.grad(exact, parameters) if parameters else ()
    known = dict(zip(map(id, recording.parameters), gradients, strict=True))
    return (
        torch.allclose(loss, exact, rtol=1e-4)
        and known.keys() == {id(parameter) for parameter in parameters}
        and all(
            bool(
                (known[id(parameter)] - derivative).abs().max()
                <= 1e-4 * derivative.abs().max()
            )
            for parameter, derivative in zip(parameters, derivatives, strict=True)
        )
    )


def _with_tensors(args: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    remaining = iter(tensors)
    return [next(remaining) if torch.is_tensor(value) else value for value in args]


def merged(graph: GraphModule) -> GraphModule:
    """Computes equal operations once, in place, and drops those whose results nobody uses.

    Random draws are never equal, and what meets a tensor that is changed in place stays as it
    is.
    """
    changed: set[Node] = set()
    for node in reversed(graph.graph.nodes):
        changed.update(_aliases(node, written=True))
        if node in changed:  # and so is what it is a view of
            changed.update(_aliases(node, written=False))
    outside = {
        id(getattr(graph, str(node.target))) for node in changed if node.op == "get_attr"
    }
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
        elif key in known or _returns_its_argument(node):
            node.replace_all_uses_with(known[key] if key in known else node.args[0])
            graph.graph.erase_node(node)
        else:
            known[key] = node
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _returns_its_argument(node: Node) -> bool:
    """Whether a view is its argument as it is, such as a vector flattened: what is recorded
    then goes by its name.
    """
    if not isinstance(node.target, OpOverload) or node.target is torch.ops.aten.detach.default:
        return False
    alias = node.target._schema.returns[0].alias_info if node.target._schema.returns else None
    view, source = node.meta.get("val"), node.args[0] if node.args else None
    value = source.meta.get("val") if isinstance(source, Node) else None
    if alias is None or not torch.is_tensor(view) or not torch.is_tensor(value):
        return False
    same = [
        (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)
        for tensor in (view, value)
    ]
    return same[0] == same[1]


def _aliases(node: Node, *, written: bool) -> Iterator[Node]:
    """The arguments that an operation writes to, or that its result may share memory with."""
    # Operations such as unsafe_split return views of their input, though their signatures deny
    # it.
    if not written and (node.target is operator.getitem or "unsafe" in str(node.target)):
        yield from node.all_input_nodes
    if isinstance(node.target, OpOverload):
        for position, argument in enumerate(node.target._schema.arguments):
            alias = argument.alias_info
            if alias is not None and (alias.is_write or not written):
                value = node.kwargs.get(
                    argument.name, node.args[position] if position < len(node.args) else None
                )
                if isinstance(value, Node):
                    yield value


def _lay_out_convolutions(graph: GraphModule) -> bool:
    """Gives the weights of two-dimensional convolutions on a CPU the layout that everything
    behind them follows.

    With the channels last, the library of convolutions and the compiler's loops agree; with
    the channels first, the compiler writes every map of features up to three times, once for
    each layout that is asked of it.
    """
    found = [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and "conv" in str(node.target)
    ]
    weights = {
        node.args[1]: node.args[1].meta.get("val")
        for node in found
        if isinstance(node.args[1], Node)
    }
    relaid = False
    for weight, value in weights.items():
        if value is not None and value.dim() == 4 and value.device.type == "cpu":
            with graph.graph.inserting_after(weight):
                copy = graph.graph.call_function(
                    torch.ops.aten.clone.default,
                    (weight,),
                    {"memory_format": torch.channels_last},
                )
            weight.replace_all_uses_with(copy, partial(operator.is_not, copy))
            relaid = True
    graph.recompile()
    return relaid


def _lift(graph: GraphModule) -> list[Tensor]:
    """Makes what a graph holds its last inputs; returns it."""
    held: dict[int, tuple[Tensor, Node]] = {}
    names: set[str] = set()
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            tensor = getattr(graph, str(node.target))
            names.add(str(node.target))
            if id(tensor) not in held:
                with graph.graph.inserting_after(last):
                    last = graph.graph.placeholder(f"held_{len(held)}")
                held[id(tensor)] = tensor, last
            node.replace_all_uses_with(held[id(tensor)][1])
            graph.graph.erase_node(node)
    for name in names:
        delattr(graph, name)
    graph.recompile()
    return [tensor for tensor, _ in held.values()]


def _is_pure(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, OpOverload) or node.target._schema.is_mutable:
        return False
    # Batch normalization moves its statistics, though its signature does not say so.
    return (
        torch.Tag.nondeterministic_seeded not in node.target.tags
        and "batch_norm" not in str(node.target)
    )


def _work(graph: GraphModule) -> int:
    """The number of matrix products, convolutions and recurrent cells."""
    counts = Counter(
        str(node.target) for node in graph.graph.nodes if node.op == "call_function"
    )
    kinds = ("linear", "matmul", "mm", "mv", "conv", "gru", "lstm", "rnn")
    return sum(
        number for name, number in counts.items() if any(kind in name for kind in kinds)
    )


def _where(error: BaseException) -> str:
    """Says in one sentence which line of the program cannot be recorded."""
    chain = [error]
    while chain[-1].__cause__ is not None:  # a module may have said it in its own words
        chain.append(chain[-1].__cause__)
    frames = [frame for one in chain for frame in traceback.extract_tb(one.__traceback__)]
    others = [frame for frame in frames if not frame.filename.startswith((*_MACHINERY, "<"))]
    own = [frame for frame in others if not frame.filename.startswith(_LIBRARY)] or others
    reads = any(isinstance(one, _READS) for one in chain)
    reason = " ".join(str(chain[-1]).partition("\n")[0].split())
    if not own:
        return (
            "The program reads a value back."
            if reads
            else f"The program cannot be recorded: {reason}"
        )
    frame = own[-1]
    what = "reads a value back" if reads else f"cannot be recorded ({reason})"
    return f"{Path(frame.filename).name}, line {frame.lineno}, {what}: {frame.line}"
