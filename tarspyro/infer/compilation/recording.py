"""Functions of tensors, such as a bound's loss, recorded as graphs with their gradients."""

__all__ = ["Recording", "RecordingError", "record", "record_as_it_stands"]

import contextlib
import threading
import traceback
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import NamedTuple, TypeAlias
from unittest import mock

import pyro
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx import GraphModule
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tarspyro.accelerators import without_cudnn
from tarspyro.infer.compilation.graphs import (
    constants_of,
    count_products,
    lay_out_convolutions,
    layout_of,
    lift_constants,
    merge_equal_operations,
)
from tarspyro.infer.compilation.repeats import RepeatedOperations
from tarspyro.infer.gradients import leaves_of
from tarspyro.infer.traces import PairError
from tarspyro.programs import tensors_of
from tarspyro.scopes import local_parameters, preserved_rng

LossAndTerms: TypeAlias = tuple[Tensor, dict[str, Tensor]]
LossFunction: TypeAlias = Callable[..., LossAndTerms]
TensorFunction: TypeAlias = Callable[..., Sequence[Tensor]]

# A value is read back in the last line of the program before these packages take over.
_PYRO = Path(str(pyro.__file__)).parent
_LIBRARY = Path(__file__).parents[2]
_MACHINERY = (
    *(str(Path(str(file)).parent) for file in (torch.__file__, contextlib.__file__)),
    str(Path(__file__).parent),
)


class RecordingError(RuntimeError):
    """A program cannot be a graph of tensor operations, such as one that reads a value back."""


class Recording(NamedTuple):
    """A step as a graph: called with the arguments, it returns the loss, its terms, and the
    gradients.

    Attributes:
        graph: A function of the arguments' tensors and of the held tensors.
        held: The tensors that the step reads besides its arguments, the same at every call.
        parameters: The tensors that the gradients belong to, in their order.
        terms: The names of the terms.
    """

    graph: GraphModule
    held: list[Tensor]
    parameters: list[Tensor]
    terms: list[str]

    def __call__(self, *args: object) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Runs the graph, operation by operation."""
        return self.run(self.graph, tensors_of(args))

    def run(
        self, function: TensorFunction, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Runs the graph, or a function that a compiler made of it."""
        with torch.no_grad():
            loss, *rest = function(*tensors, *self.held)
        count = len(self.terms)
        return loss, dict(zip(self.terms, rest[:count], strict=True)), rest[count:]


def record(
    function: LossFunction,
    args: Sequence[object],
    *,
    buffers: Iterable[Tensor] = (),
    parameters: Iterable[Tensor] | None = None,
) -> Recording:
    r"""Records a function of tensors, such as a bound's loss, together with the gradients of
    its result.

    The function runs on tensors without values, so that parameters, statistics and random
    states stay as they are. Every tensor that it meets besides its arguments is the same one
    at every call of the graph; those that require gradients are the parameters. Random draws
    are operations of the graph, and new at every call.

    The graph is improved before it is differentiated. Operations that occur twice are computed
    once, forward and backward: for example the recurrence that a sequence's model and guide
    both run. Operations that are repeated on different tensors are computed at once: for
    example the decoder of all steps of a sequence. On a CPU convolutions get their fastest
    layout of memory. Then the graph and the function run once on the same noise. If the loss
    or the gradients differ, as with hooks or with derivatives inside the function, it is
    recorded as it stands.

    Arguments:
        function: The function; it returns a number to differentiate and a dictionary of
            further numbers.
        args: Its arguments. Tensors are inputs of the graph, of fixed shapes; other values are
            constants.
        buffers: The tensors that the function changes in place, such as the statistics of
            batch normalization.
        parameters: The tensors to differentiate in; all that the result depends on if not
            given.

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
    wanted = None if parameters is None else {id(parameter) for parameter in parameters}
    terms: list[str] = []

    def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, named = function(*_with_tensors(args, inputs))
        terms[:] = list(named)
        return loss, *named.values()

    graph = _trace(forward, tensors_of(args), buffers, pre_dispatch=True)
    if any(isinstance(constant, FakeTensor) for constant in constants_of(graph)):
        # Derivatives inside the function were of tensors that the recording alone had.
        return record_as_it_stands(function, args, buffers, wanted)
    products = count_products(graph)
    laid_out = lay_out_convolutions(graph)
    merged = count_products(merge_equal_operations(graph)) < products
    repeated = RepeatedOperations(graph)
    improvements: list[TensorFunction] = []
    if repeated.saved_products:
        improvements.append(repeated)
    if merged or laid_out:
        improvements.append(graph)
    for improvement in improvements:

        def improved(*args: object, step: TensorFunction = improvement) -> LossAndTerms:
            loss, *values = step(*tensors_of(args))
            return loss, dict(zip(terms, values, strict=True))

        try:
            # The programs do not run in it: whether they read values is known.
            recording = record_as_it_stands(improved, args, buffers, wanted, with_values=True)
        except RecordingError:
            continue
        if _agrees(recording, function, args, buffers, wanted):
            return recording
    return record_as_it_stands(function, args, buffers, wanted)


def record_as_it_stands(
    function: LossFunction,
    args: Sequence[object],
    buffers: Sequence[Tensor],
    wanted: Collection[int] | None = None,
    *,
    with_values: bool = False,
) -> Recording:
    """Records a function and its gradients as one graph, without improvements before the
    differentiation.

    Arguments:
        function: See ``record``.
        args: See ``record``.
        buffers: See ``record``.
        wanted: The ``id`` of each parameter to differentiate in; None for all that the result
            depends on.
        with_values: Whether the function runs on tensors with values. This takes less time,
            but a branch on a value is not noticed.
    """
    parameters: list[Tensor] = []
    terms: list[str] = []

    def with_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, named = function(*_with_tensors(args, inputs))
        terms[:] = list(named)
        parameters[:] = _wanted_leaves(loss, wanted)
        gradients = torch.autograd.grad(loss, parameters) if parameters else ()
        return loss.detach(), *(value.detach() for value in named.values()), *gradients

    graph = merge_equal_operations(
        _trace(with_gradients, tensors_of(args), buffers, with_values=with_values)
    )
    return Recording(graph, lift_constants(graph), list(parameters), list(terms))


def _trace(
    function: TensorFunction,
    inputs: Sequence[Tensor],
    buffers: Sequence[Tensor],
    *,
    pre_dispatch: bool = False,
    with_values: bool = False,
) -> GraphModule:
    with (
        preserved_rng(),
        local_parameters(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
        _preserved(buffers),
        without_cudnn(),  # its recurrent networks are no operations of a graph
        _use_lazy_graph_module(True),  # most graphs are changed before they run
    ):
        try:
            if with_values:
                tracer = _tracer_with_values(function)
                values = [value.detach().clone() for value in inputs]
            else:
                # No symbolic sizes for shapes that depend on values: compilers cannot take
                # them.
                fake = _FakeTensors()
                values = [
                    fake.from_tensor(value.detach(), static_shapes=True) for value in inputs
                ]
                tracer = make_fx(
                    _without_reads(function), tracing_mode="fake", pre_dispatch=pre_dispatch
                )
            graph = tracer(*values)
            if any("mkldnn_rnn" in str(node.target) for node in graph.graph.nodes):
                # An LSTM of oneDNN keeps a workspace for its derivative, which a graph cannot
                # hold.
                with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
                    graph = tracer(*values)
            return graph
        except PairError:
            raise
        except Exception as error:  # programs raise any kind on tensors without values
            raise RecordingError(_explanation(error)) from error


class _FakeTensors(FakeTensorMode):
    """Tensors without values, of which each parameter has one for all operations.

    PyTorch knows the result of an operation whose form it has met before, but not if an
    argument has values: it then computes the form anew, each time that a layer is called.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def dispatch(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func not in self.lift_fns:  # those make constants
            args = tuple(map(self._without_values, args))
        return super().dispatch(func, types, args, kwargs or {})

    def _without_values(self, value: object) -> object:
        if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter):
            return value
        if id(value) not in self._known:
            # The tensor is kept, because its id may be that of another one after it.
            self._known[id(value)] = value, self.from_tensor(value, static_shapes=True)
        return self._known[id(value)][1]


def _tracer_with_values(function: TensorFunction) -> Callable[..., GraphModule]:
    """A recorder of a function on tensors with values, whose graph has their forms alone.

    It replaces a function of PyTorch for the whole process. Its caller, with the random state
    preserved, is the one thread that runs programs.
    """
    forms = _Forms()
    tracer = make_fx(function)

    def trace(*inputs: Tensor) -> GraphModule:
        # On an accelerator the derivatives would be recorded in another thread.
        with (
            mock.patch.object(proxy_tensor, "extract_val", forms.of),
            torch.autograd.set_multithreading_enabled(False),
        ):
            return tracer(*inputs)

    return trace


class _Forms:
    """Tensors without values in place of those with values, one for all of a layout.

    PyTorch's recorder makes one for each, which takes most of its time.
    """

    def __init__(self) -> None:
        self._mode = FakeTensorMode()
        self._known: dict[Hashable, Tensor] = {}
        self._thread = threading.get_ident()
        self._of_others: Callable[..., object] = proxy_tensor.extract_val

    def of(self, value: object, **kwargs: object) -> object:
        """Returns the form of a tensor, or of each in a list."""
        if isinstance(value, (list, tuple)):
            return type(value)([self.of(part) for part in value])
        elsewhere = threading.get_ident() != self._thread
        if elsewhere or not torch.is_tensor(value) or value.layout is not torch.strided:
            return self._of_others(value, **kwargs)
        shape, strides, dtype = layout_of(value)
        start = value.storage_offset()
        key = shape, strides, dtype, start, value.device
        if key not in self._known:
            reach = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
            with self._mode:
                memory = torch.empty(
                    max(start + reach + 1, 0), dtype=dtype, device=value.device
                )
                self._known[key] = memory.as_strided(shape, strides, start)
        return self._known[key]


def _without_reads(function: TensorFunction) -> TensorFunction:
    """A function in whose runs no value may be read, not even one that is known, such as that
    of a parameter, since it may change.
    """

    def run(*inputs: Tensor) -> Sequence[Tensor]:
        reads = _RefuseReads()
        with _RefuseCopies(), reads:
            results = function(*inputs)
        if reads.met is not None:  # the program has caught it
            raise reads.met
        return results

    return run


class _ReadError(RuntimeError):
    """A value was read back."""


_READ_ERRORS = (_ReadError, DataDependentOutputException, DynamicOutputShapeException)


class _RefuseReads(TorchDispatchMode):
    """Refuses operations that return a Python value, or whose shape depends on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.met: Exception | None = None

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        try:
            if torch.Tag.data_dependent_output in func.tags:
                raise _ReadError
            return func(*args, **(kwargs or {}))
        except _READ_ERRORS as error:
            self.met = error
            raise


class _RefuseCopies(TorchFunctionMode):
    """Refuses functions that take values out of tensors without an operation."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in _COPIES:
            raise _ReadError
        return func(*args, **(kwargs or {}))


_COPIES = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.data_ptr)


@contextlib.contextmanager
def _preserved(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Gives buffers their values back: the recorder computes with the values it knows."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _wanted_leaves(loss: Tensor, wanted: Collection[int] | None) -> list[Tensor]:
    return [leaf for leaf in leaves_of(loss) if wanted is None or id(leaf) in wanted]


def _agrees(
    recording: Recording,
    function: LossFunction,
    args: Sequence[object],
    buffers: Sequence[Tensor],
    wanted: Collection[int] | None,
) -> bool:
    """Whether a recording gives the loss and the gradients of the function, on the same
    noise.
    """
    with preserved_rng(seed=0), _preserved(buffers):
        loss, _, gradients = recording(*args)
    with (
        preserved_rng(seed=0),
        _preserved(buffers),
        local_parameters(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
    ):
        exact_loss, _ = function(*args)
        parameters = _wanted_leaves(exact_loss, wanted)
        exact = torch.autograd.grad(exact_loss, parameters) if parameters else ()
    if not torch.allclose(loss, exact_loss, rtol=1e-4):
        return False
    found = dict(zip(map(id, recording.parameters), gradients, strict=True))
    expected = dict(zip(map(id, parameters), exact, strict=True))
    return found.keys() == expected.keys() and all(
        bool((found[key] - gradient).abs().max() <= 1e-4 * gradient.abs().max())
        for key, gradient in expected.items()
    )


def _with_tensors(args: Sequence[object], tensors: Sequence[Tensor]) -> list[object]:
    """The arguments with other tensors in the places of theirs."""
    remaining = iter(tensors)
    return [next(remaining) if torch.is_tensor(value) else value for value in args]


def _explanation(error: BaseException) -> str:
    """Says in one sentence which line of a program cannot be recorded."""
    chain = [error]
    while chain[-1].__cause__ is not None:  # a module may have raised an error of its own
        chain.append(chain[-1].__cause__)
    frames = [frame for one in chain for frame in traceback.extract_tb(one.__traceback__)]
    others = [frame for frame in frames if not frame.filename.startswith((*_MACHINERY, "<"))]
    packages = (str(_PYRO), str(_LIBRARY))
    own = [frame for frame in others if not frame.filename.startswith(packages)]

    reads = any(isinstance(one, _READ_ERRORS) for one in chain)
    reason = " ".join(str(chain[-1]).partition("\n")[0].split())
    what = "reads a value back" if reads else f"cannot be recorded ({reason})"
    if own:
        frame = own[-1]
        return f"{Path(frame.filename).name}, line {frame.lineno}, {what}: {frame.line}"
    if others:
        # No line of the user: Pyro or this library does it.
        frame = others[-1]
        root = _PYRO if frame.filename.startswith(str(_PYRO)) else _LIBRARY
        name = Path(frame.filename).relative_to(root.parent).as_posix()
        return f"No line of the program, but {name}, line {frame.lineno}, {what}: {frame.line}"
    return f"The program {what}."
