"""One step of a bound, recorded as a graph, compiled and run."""

__all__ = ["CompiledStep", "check_state", "compile_graph", "stored_tensors"]

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import pyro
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.compilation.capture import Captured
from tarspyro.infer.compilation.kernels import kernels_together
from tarspyro.infer.compilation.keys import TRIALS, device_of, dtype_of, modules_within
from tarspyro.infer.compilation.recording import RecordingError, TensorFunction, record
from tarspyro.infer.compilation.recurrences import in_parts
from tarspyro.infer.compilation.simplification import simplified
from tarspyro.programs import tensors_of
from tarspyro.scopes import kept_tensors
from tarspyro.types import Program


class CompiledStep:
    """A step of a bound as a compiled graph, from the data to the loss, its terms and its
    gradients.

    The constructor records the step, and ``compile`` compiles it.

    Arguments:
        bound: The bound.
        model: The model.
        guide: The guide.
        args: The data, of the shapes that the graph will be for.
        kwargs: More data, which are constants of the graph.
        inputs: Tensors in place of the adjustable numbers of the bound, by name.
        stored: The tensors in Pyro's store that the step reads, see ``stored_tensors``.

    Raises:
        RecordingError: If a program cannot be recorded.
    """

    def __init__(
        self,
        bound: Bound,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        inputs: Mapping[str, Tensor],
        stored: Mapping[str, int],
    ) -> None:
        def step(scale: Tensor, *args: object) -> tuple[Tensor, dict[str, Tensor]]:
            with _attributes(bound.settings, inputs), kept_tensors(modules) as replaced:
                loss, terms = bound.loss_and_terms(model, guide, *args, **kwargs)
            bound_anew.extend(replaced)
            return loss * scale, {"loss": loss, **terms}

        self.stored = stored
        self.captured: Captured | None = None
        self._captured_terms: list[str] = []
        self._update: Callable[[], object] | None = None  # the one that was captured
        self._runs = 0  # runs with this update, which build what it needs
        self._scales: dict[float, Tensor] = {}

        bound.prepare(model, guide, tuple(args), kwargs)
        modules = [
            module
            for program in (model, guide, *bound.programs)
            for module in modules_within(program)
        ]
        bound_anew: list[tuple[nn.Module, str, object]] = []
        # A step may change what is not trained: running statistics, averages of weights.
        kept = [buffer for module in modules for buffer in module.buffers(False)]
        for module in modules:
            kept += [each for each in module.parameters(False) if not each.requires_grad]
        scale = self._scale(1.0, args)
        with _noting_modes() as self._modes:
            self.recording = record(
                step, (scale, *args), buffers=kept, parameters=bound.parameters
            )
        check_state(bound_anew, self.recording.held)
        self._trained = [(tensor, tensor.requires_grad) for tensor in self.recording.held]
        self._function: TensorFunction = self.recording.graph

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that the gradients belong to."""
        return self.recording.parameters

    def compile(self, args: Sequence[object], backend: str) -> None:
        """Compiles the graph.

        Arguments:
            args: Data of the same shapes.
            backend: See ``Compiled``.
        """
        examples = [self._scale(1.0, args), *tensors_of(args), *self.recording.held]
        self._function = compile_graph(self.recording.graph, examples, backend)

    def is_outdated(self) -> bool:
        """Whether modes, trained tensors or tensors in Pyro's store have changed since the
        recording.
        """
        return (
            any(module.training != training for module, training in self._modes)
            or any(tensor.requires_grad != trained for tensor, trained in self._trained)
            or bool(self.stored)
            and stored_tensors(self.stored) != self.stored
        )

    def run(
        self, args: Sequence[object], scale: float
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Returns the loss times a scale, its terms, and its gradients."""
        return self._run(self._scale(scale, args), *tensors_of(args))

    def _run(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        loss, terms, gradients = self.recording.run(self._function, inputs)
        # Fused optimizers read parameters and gradients in the order of memory, and would
        # silently mix up the entries.
        laid_out = [
            gradient
            if gradient.stride() == parameter.stride()
            else torch.empty_like(parameter).copy_(gradient)
            for parameter, gradient in zip(self.parameters, gradients, strict=True)
        ]
        return loss, terms, laid_out

    def add_gradients(
        self, args: Sequence[object], scale: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradients of the loss times a scale to those of the parameters; returns the
        loss and its terms.
        """
        _, terms, gradients = self.run(args, scale)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return terms.pop("loss"), terms

    def replay(
        self,
        args: Sequence[object],
        scale: float,
        update: Callable[[], object],
        *,
        whole: bool,
        pool: object = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Makes a step and the update with one graph; returns the loss and its terms.

        The first few times it runs the step and the update one after the other, which builds
        what both need.

        Arguments:
            args: The data.
            scale: The factor of the gradients.
            update: A function that updates the parameters by their gradients. The graph is
                made anew for another one.
            whole: Whether the update is a part of the graph.
            pool: The memory of other graphs.
        """
        if update != self._update:
            self.release()
            self._update = update
        self._runs += 1
        if self._runs <= TRIALS:
            loss, terms = self.add_gradients(args, scale)
            update()
            return loss, terms
        inputs = [self._scale(scale, args), *tensors_of(args)]
        if self.captured is None:
            self._capture(inputs, update if whole else None, pool)
        assert self.captured is not None
        results = self.captured(*inputs)
        count = len(self._captured_terms)
        for parameter, gradient in zip(self.parameters, results[count:], strict=True):
            parameter.grad = gradient
        if not whole:
            update()
        values = [value.clone() for value in results[:count]]
        terms = dict(zip(self._captured_terms, values, strict=True))
        return terms.pop("loss"), terms

    def release(self) -> None:
        """Drops the graph and its memory."""
        self.captured = None
        self._update = None
        self._runs = 0

    def _capture(
        self, inputs: Sequence[Tensor], update: Callable[[], object] | None, pool: object
    ) -> None:
        """Captures the step, with the update if one is given."""

        def step(*tensors: Tensor) -> list[Tensor]:
            _, terms, gradients = self._run(*tensors)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            if update is not None:
                update()
            self._captured_terms = list(terms)
            return [*terms.values(), *gradients]

        self.captured = Captured(step, inputs, pool)

    def _scale(self, scale: float, args: Sequence[object]) -> Tensor:
        if scale not in self._scales:
            device = device_of(args)
            self._scales[scale] = torch.full((), scale, device=device, dtype=dtype_of(args))
        return self._scales[scale]


def compile_graph(
    graph: GraphModule, inputs: Sequence[Tensor], backend: str
) -> TensorFunction:
    """Returns a function that a compiler makes of a recorded graph.

    Arguments:
        graph: The graph.
        inputs: Tensors of the shapes that the function will be for.
        backend: See ``Compiled``.
    """
    if backend == "eager":
        return graph
    compiler = partial(_compile_part, backend=backend)
    # As TorchDynamo has it: no Python code for graphs that no one runs.
    with _use_lazy_graph_module(True), kernels_together():
        graph = simplified(graph)
        return in_parts(graph, inputs, compiler) or compiler(graph, inputs)


def _compile_part(
    graph: GraphModule, inputs: Sequence[Tensor], backend: str
) -> TensorFunction:
    # Without TorchDynamo, which would only find the same graph again.
    function: TensorFunction
    with torch.no_grad(), warnings.catch_warnings():
        # What a compiler's own imports deprecate is no fault of the program.
        warnings.simplefilter("ignore")
        if backend == "inductor":
            function = torch._inductor.standalone_compile(
                graph, list(inputs), dynamic_shapes="from_example_inputs"
            )
        else:
            function = torch._dynamo.lookup_backend(backend)(graph, list(inputs))
    return function


def check_state(
    bound_anew: Iterable[tuple[nn.Module, str, object]], held: Iterable[Tensor]
) -> None:
    """Raises if a module binds another tensor to an attribute that later steps read.

    Other attributes, such as outputs that a layer keeps for a look at them, stay as they were
    before the recording.
    """
    # Not by their addresses, which tensors of some subclasses do not tell.
    read = {tensor.untyped_storage()._cdata for tensor in held}
    for module, name, former in bound_anew:
        is_read = torch.is_tensor(former) and former.untyped_storage()._cdata in read
        if is_read or name in module._buffers:
            remedy = "" if name in module._buffers else "make it a buffer, and "
            raise RecordingError(
                f"{type(module).__name__} binds another tensor to its {name!r} when it runs, which"
                f" a graph cannot: {remedy}change it in place, such as by {name}.copy_(...)."
            )


def stored_tensors(names: Iterable[str]) -> dict[str, int]:
    """Returns the ``id`` of each tensor that Pyro's store has under some names."""
    stored = dict(pyro.get_param_store().named_parameters())
    return {name: id(stored[name]) for name in names if name in stored}


@contextlib.contextmanager
def _noting_modes() -> Iterator[list[tuple[nn.Module, bool]]]:
    """Gives a list, which afterwards holds the modules that ran inside, and their modes."""
    ran: dict[int, nn.Module] = {}
    modes: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, inputs: object) -> None:
        ran[id(module)] = module

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield modes
    finally:
        handle.remove()
        modes += [(module, module.training) for module in ran.values()]


@contextlib.contextmanager
def _attributes(settings: object, values: Mapping[str, object]) -> Iterator[None]:
    """Gives an object other attributes for a while."""
    before = {name: getattr(settings, name) for name in values}
    try:
        vars(settings).update(values)
        yield
    finally:
        vars(settings).update(before)
