"""Any bound, with its step recorded as a graph of tensor operations and compiled."""

__all__ = ["Compiled"]

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.fx import GraphModule

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.compilation.capture import Captured
from tarspyro.infer.compilation.recording import Recording, RecordingError, record
from tarspyro.infer.gradients import with_gradients
from tarspyro.infer.traces import name_of, trace_pair
from tarspyro.programs import modules_of, tensors_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program

_TRIALS = 5  # steps of each kind that tell which is faster
_MOST_VALUES = 4  # of the same attributes for which steps are compiled
_PLAIN = (bool, int, float, str, type(None))
_TYPES = frozenset(_PLAIN)


class Compiled(Bound):
    r"""A bound whose steps are recorded once for each shape of the data, and compiled.

    The value, the gradients' law and the interface are those of the bound; random draws come
    from another stream than without compilation, unless ``backend="eager"``. The first steps
    of every shape run as ever. Then the loss and its gradients are recorded as one graph of
    tensor operations, in which Pyro has no part, and the compiler makes a function of it.
    Where that function turns out slower than the steps before, or cannot be built, it is left
    aside, with a warning. Further shapes, such as the short last batch of an epoch, run as
    ever until that has cost as much time as the last compilation did; what was compiled once
    is found again on disk by the next process.

    Arrays that the pair reads, its parameters, statistics and fixed parameters, are inputs of
    the graph, and so is the ``beta`` of ``ELBO``: changes take effect. Numbers and branches of
    Python are parts of it. Another shape, another mode (``train`` or ``eval``), a parameter
    that is replaced, frozen or unfrozen (``requires_grad``), another number among the
    attributes of a module, of the bound or of a bound inside it makes another recording. Such
    a number that changes from step to step, as a schedule's, would make one at every step:
    steps run eagerly, with a warning, until it has stayed the same for a few of them.

    Arguments:
        bound: Any bound of ``tarspyro.infer``, or a subclass.
        backend: The compiler: ``"inductor"``, any other name that ``torch.compile`` takes, or
            ``"eager"``, which runs the graph operation by operation and needs a second or two
            to start.
        choose: Whether to compare the compiled step with the eager one, and to keep the
            faster. False compiles at the first step of a shape.
        fallback: Whether a program that cannot be recorded runs eagerly, with a warning, in
            place of an error.
        capture: Whether a whole step on a GPU, with the update that ``fit`` gives it, becomes
            one CUDA graph.
        report: What to do with a line that says how the compilation goes, such as ``print``.

    Raises:
        TypeError: If ``bound`` is not one of the library's.
        ValueError: If the bound goes through its particles in chunks.
        RecordingError: When called, if the program reads a value back; the sentence names the
            line.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro.infer import ELBO
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", lambda: torch.zeros(()))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 1.0))
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Compiled(ELBO(), backend="eager"))
        >>> losses = [svi.step(torch.full((50,), 4.0)) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        bound: Bound,
        *,
        backend: str = "inductor",
        choose: bool = True,
        fallback: bool = False,
        capture: bool = True,
        report: Callable[[str], object] | None = None,
    ) -> None:
        if not isinstance(bound, Bound):
            raise TypeError(
                f"bound must be one of tarspyro.infer, got {type(bound).__name__}."
            )
        if getattr(bound, "chunk_size", None) is not None:
            raise ValueError(
                "chunk_size runs every chunk twice on the same noise, which no recorded step"
                " can: drop it."
            )
        super().__init__(bound.num_particles, max_plate_nesting=bound.max_plate_nesting)
        self.original, self.backend, self.choose, self.fallback = (
            bound,
            backend,
            choose,
            fallback,
        )
        self.capture, self.report = capture, report
        self.last_compilation: float | None = None  # seconds
        self._inputs: dict[Any, dict[str, Tensor]] = {}  # by device and type
        self._plans: dict[Any, _Plan] = {}
        self._moving: dict[Any, _Moving] = {}
        self._warned = False

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, to be differentiated as any other, and its terms."""
        if torch.is_grad_enabled():
            plan = self._plan(model, guide, args, kwargs)
            if plan.ready(args):
                _, terms, gradients = plan.run(args, 1.0)
                return with_gradients(terms.pop("loss"), plan.parameters, gradients), terms
        return self.original.loss_and_terms(model, guide, *args, **kwargs)

    def loss_and_grads(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> float:
        """Computes the gradients of minus the bound, as ``SVI.step`` asks; returns minus the
        bound, a float.
        """
        return self.accumulate_gradients(model, guide, *args, **kwargs)[0].item()

    def accumulate_gradients(
        self,
        model: Program,
        guide: Program,
        *args: Any,
        scale: float = 1.0,
        update: Callable[[], None] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradients of the loss times a scale to those of the parameters; returns the
        loss and its terms.

        Arguments:
            model: The model.
            guide: The guide.
            args: The data.
            scale: The factor of the gradients.
            update: What uses the gradients: a function that on a GPU becomes part of the
                captured step, where it must not look at values, and starts from gradients that
                are those of this step alone.
            kwargs: More data.
        """
        plan = self._plan(model, guide, args, kwargs)
        start = time.perf_counter()
        compiled = plan.ready(args)
        if compiled and update is not None and self.capture and _device(args).type == "cuda":
            loss, terms = plan.replay(args, scale, update)
        elif compiled:
            loss, terms = plan.add_gradients(args, scale)
            for name in plan.names:
                pyro.param(name)  # SVI asks which parameters a step has used
        else:
            with poutine.trace(param_only=True) as trace:
                loss, terms = self.original.loss_and_terms(model, guide, *args, **kwargs)
            (loss * scale).backward(inputs=self.original.parameters)
            plan.names = _stored(trace.trace.nodes)
        if update is not None and not (compiled and plan.captured):
            update()
        plan.took(time.perf_counter() - start, compiled=compiled, device=_device(args))
        return loss.detach(), terms

    def _plan(
        self, model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> "_Plan":
        """How steps of this kind run: with these programs, shapes and attributes of the bound."""
        bound, settings, device, dtype = (
            self.original,
            self.original.settings,
            _device(args),
            _dtype(args),
        )
        inputs = self._inputs.setdefault((device, dtype), {})
        for name in bound.adjustable:
            value = getattr(settings, name)
            if name not in inputs:
                inputs[name] = torch.tensor(float(value), device=device, dtype=dtype)
            inputs[name].fill_(value)
        described = [
            (v.shape, v.dtype, v.device) if torch.is_tensor(v) else repr(v)
            for v in (*args, *kwargs.values())
        ]
        cast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        programs = [list(_modules(program)) for program in (model, guide, *bound.programs)]
        states = [tuple(_state(module) for module in modules) for modules in programs]
        numbers = [
            number for modules in programs for module in modules for number in _numbers(module)
        ]
        kind = (model, guide, *described, *kwargs, cast, *states)
        values = (*_attributes_of(settings, bound.adjustable), *numbers)
        key = kind, values
        if kind not in self._moving:
            self._moving[kind] = _Moving(_Plan(self, model, guide, kwargs, inputs).give_up())
        moving = self._moving[kind]
        moving.note(values)
        if key not in self._plans and not moving.steady:
            if moving.keeps_changing and not self._warned:
                self._warned = True
                warnings.warn(
                    f"{', '.join(moving.changed)} keeps changing, and a compiled step holds"
                    f" its value: {name_of(model)} goes on eagerly while it does.",
                    stacklevel=4,
                )
            return moving.eager
        if key not in self._plans or self._plans[key].outdated():
            moving.plans += key not in self._plans
            self._plans[key] = _Plan(self, model, guide, kwargs, inputs)
        return self._plans[key]


class _Moving:
    """The attributes that a step of one kind holds: whether they are the same for long enough
    to compile it.
    """

    def __init__(self, eager: "_Plan") -> None:
        self.eager, self.plans = eager, 0
        self.values: tuple[tuple[str, Any], ...] | None = None
        self.calls = 0  # in a row with these values
        self.brief = 0  # how many values in a row were those of a single step
        self.changed: list[str] = []

    def note(self, values: tuple[tuple[str, Any], ...]) -> None:
        """Notes the values of a step."""
        if values == self.values:
            self.calls, self.brief = self.calls + 1, 0
            return
        if self.values is not None:
            before = dict.fromkeys(self.values)
            self.changed = list(
                dict.fromkeys(name for name, value in values if (name, value) not in before)
            )
            self.brief += self.calls == 1
        self.values, self.calls = values, 1

    @property
    def keeps_changing(self) -> bool:
        """Whether steps will go on eagerly for a while."""
        return self.brief >= _TRIALS or (self.calls > _TRIALS and self.plans >= _MOST_VALUES)

    @property
    def steady(self) -> bool:
        """Whether a step with the newest values is worth a plan."""
        return not self.plans or (self.calls > _TRIALS and self.plans < _MOST_VALUES)


class _Plan:
    """Steps of one kind: eager at first, then compiled, then whichever was faster."""

    def __init__(
        self,
        owner: Compiled,
        model: Program,
        guide: Program,
        kwargs: Mapping[str, Any],
        inputs: Mapping[str, Tensor],
    ) -> None:
        self.owner, self.halves, self.kwargs, self.inputs = (
            owner,
            (model, guide),
            kwargs,
            inputs,
        )
        self.names: dict[
            str, int
        ] = {}  # what the step reads from Pyro's store, and which tensors these were
        self.recording: Recording | None = None
        self.function: Callable[..., Any] | None = None
        self.given_up = False
        self.scales: dict[float, Tensor] = {}
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.calls = self.compiled_calls = 0
        self.spent = 0.0
        self.captured: Captured | None = None
        self.modes: list[
            tuple[nn.Module, bool]
        ] = []  # of the modules that ran, wherever the step has them from
        self.frozen: list[
            tuple[Tensor, bool]
        ] = []  # whether what it holds required no gradients

    @property
    def parameters(self) -> list[Tensor]:
        """What the gradients belong to."""
        return [] if self.recording is None else self.recording.parameters

    def give_up(self) -> "_Plan":
        """Goes on eagerly; returns the plan."""
        self.given_up = True
        return self

    def outdated(self) -> bool:
        """Whether what the step was recorded with is another now: parameters in Pyro's store,
        modes, what is frozen.
        """
        if self.recording is None:
            return False
        return (
            any(module.training != training for module, training in self.modes)
            or any(tensor.requires_grad == frozen for tensor, frozen in self.frozen)
            or bool(self.names)
            and _stored(self.names) != self.names
        )

    def ready(self, args: Sequence[Any]) -> bool:
        """Whether this step runs compiled; compiles it when its time has come."""
        self.calls += 1
        if self.function is not None or self.given_up:
            return not self.given_up
        if self.owner.choose:
            if self.calls <= _TRIALS or self.spent < (self.owner.last_compilation or 0.0):
                return False
        try:
            self._compile(args)
        except RecordingError as error:
            if not self.owner.fallback:
                raise
            self._give_up(str(error))
        return self.function is not None

    def run(
        self, args: Sequence[Any], scale: float
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """One compiled step: the loss times the scale, its terms, and its gradients."""
        assert self.recording is not None and self.function is not None
        return self.recording.run(self.function, [self._scale(scale, args), *tensors_of(args)])

    def add_gradients(
        self, args: Sequence[Any], scale: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One compiled step, whose gradients are added to those of the parameters."""
        _, terms, gradients = self.run(args, scale)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient.stride() != parameter.stride():
                # Fused optimizers read both as they lie in memory, and would silently mix up
                # the entries.
                gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return terms.pop("loss"), terms

    def replay(
        self, args: Sequence[Any], scale: float, update: Callable[[], None]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One compiled step with its update; after the first few, which prepare what it needs,
        as one CUDA graph.
        """
        self.compiled_calls += 1
        if self.captured is None and self.compiled_calls <= _TRIALS:
            return self.add_gradients(args, scale)
        names: list[str] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            remaining = iter(tensors)
            for parameter in self.parameters:
                parameter.grad = None
            loss, terms = self.add_gradients(
                [next(remaining) if torch.is_tensor(a) else a for a in args], scale
            )
            update()
            names[:] = list(terms)
            return [loss, *terms.values()]

        if self.captured is None:
            self._scale(scale, args)  # made outside of the graph
            self.captured = Captured(step, tensors_of(args))
            self.captured_names = names
        loss, *values = (value.clone() for value in self.captured(*tensors_of(args)))
        return loss, dict(zip(self.captured_names, values, strict=True))

    def took(self, seconds: float, *, compiled: bool, device: torch.device) -> None:
        """Notes how long a step took, and gives up once the compiled ones turn out slower."""
        if not compiled:
            self.spent += seconds
        if self.given_up or not self.owner.choose or len(self.times[True]) > _TRIALS:
            return
        if device.type == "cuda":
            start = time.perf_counter()
            torch.cuda.synchronize()
            seconds += time.perf_counter() - start
        self.times[compiled].append(seconds)
        if len(self.times[True]) > _TRIALS:
            # The first of each kind is not counted: it builds what the others only use.
            eager, ours = (
                statistics.median(self.times[kind][1 : _TRIALS + 1]) for kind in (False, True)
            )
            if ours > eager:
                self._give_up(
                    f"Compiled, a step takes {1e3 * ours:.2f} ms, and {1e3 * eager:.2f} ms"
                    " without."
                )
            else:
                steps = (
                    round((self.owner.last_compilation or 0.0) / (eager - ours))
                    if eager > ours
                    else 0
                )
                self._report(
                    f"a step takes {1e3 * ours:.2f} ms instead of {1e3 * eager:.2f} ms:"
                    f" compiling pays after {steps} steps"
                )

    def _scale(self, scale: float, args: Sequence[Any]) -> Tensor:
        if scale not in self.scales:
            self.scales[scale] = torch.full(
                (), scale, device=_device(args), dtype=_dtype(args)
            )
        return self.scales[scale]

    def _compile(self, args: Sequence[Any]) -> None:
        bound, owner, inputs = self.owner.original, self.owner, self.inputs

        def step(scale: Tensor, *args: Any) -> tuple[Tensor, dict[str, Tensor]]:
            with _attributes(bound.settings, inputs):
                loss, terms = bound.loss_and_terms(*self.halves, *args, **self.kwargs)
            return loss * scale, {"loss": loss, **terms}

        start = time.perf_counter()
        if (
            self.calls == 1 and bound.parameters is None
        ):  # no step has told what it reads from Pyro's store
            with (
                preserved_rng(),
                evaluating(*self.halves),
                poutine.trace(param_only=True) as trace,
            ):
                trace_pair(*self.halves, args, self.kwargs)
            self.names = _stored(trace.trace.nodes)
        bound.prepare(*self.halves, tuple(args), self.kwargs)
        programs = (*self.halves, *bound.programs)
        buffers = [
            buffer
            for program in programs
            for module in _modules(program)
            for buffer in module.buffers(False)
        ]
        scale = self._scale(1.0, args)
        with _noting_modes() as self.modes:
            self.recording = record(
                step, (scale, *args), buffers=buffers, parameters=bound.parameters
            )
        self.frozen = [(tensor, not tensor.requires_grad) for tensor in self.recording.held]
        nodes = len(self.recording.graph.graph.nodes)
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(args))
        self._report(f"compiling the step for data of shape {shapes}: {nodes} operations ...")
        try:
            examples = [scale, *tensors_of(args), *self.recording.held]
            self.function = _built(self.recording.graph, examples, owner.backend)
        except Exception as error:  # whatever a compiler fails with, training goes on without
            self._give_up(
                f"The step cannot be compiled ({type(error).__name__}:"
                f" {str(error).splitlines()[0]})."
            )
        owner.last_compilation = time.perf_counter() - start
        self._report(f"... took {owner.last_compilation:.1f} s")

    def _report(self, line: str) -> None:
        if self.owner.report is not None:
            self.owner.report(line)

    def _give_up(self, reason: str) -> None:
        self.give_up()
        warnings.warn(f"{reason} {name_of(self.halves[0])} goes on eagerly.", stacklevel=5)


def _built(graph: GraphModule, inputs: Sequence[Tensor], backend: str) -> Callable[..., Any]:
    """Gives a graph to a compiler. TorchDynamo would only read off the same graph once more."""
    if backend == "eager":
        return graph
    with torch.no_grad():
        if backend == "inductor":
            return torch._inductor.standalone_compile(
                graph, list(inputs), dynamic_shapes="from_example_inputs"
            )
        return torch._dynamo.lookup_backend(backend)(graph, list(inputs))


def _device(args: Sequence[Any]) -> torch.device:
    return next(
        (value.device for value in args if torch.is_tensor(value)), torch.device("cpu")
    )


def _dtype(args: Sequence[Any]) -> torch.dtype:
    """The type of numbers that meet the data: double precision stays double."""
    double = any(value.dtype is torch.float64 for value in args if torch.is_tensor(value))
    return torch.float64 if double else torch.get_default_dtype()


def _stored(names: Iterable[str]) -> dict[str, int]:
    """Which tensors Pyro's store has under some names."""
    stored = dict(pyro.get_param_store().named_parameters())
    return {name: id(stored[name]) for name in names if name in stored}


def _state(module: nn.Module) -> tuple[Any, ...]:
    """The mode of a module, which tensors it holds, and which of them are trained."""
    parameters, buffers = module._parameters, module._buffers
    if not parameters and not buffers:
        return (module.training,)
    trained = [
        parameter is not None and parameter.requires_grad for parameter in parameters.values()
    ]
    return module.training, *map(id, parameters.values()), *trained, *map(id, buffers.values())


def _numbers(module: nn.Module) -> list[tuple[str, Any]]:
    """The numbers and words among the attributes of a module, but for its mode."""
    plain = [(name, value) for name, value in vars(module).items() if type(value) in _TYPES]
    return [(name, value) for name, value in plain if name[0] != "_" and name != "training"]


def _attributes_of(settings: Any, adjustable: Collection[str]) -> list[tuple[str, Any]]:
    """What a loss holds besides what may change at every step: of bounds inside it their own,
    as far as they are.
    """
    return [
        (name, _frozen(value, adjustable))
        for name, value in vars(settings).items()
        if name[0] != "_" and name != "constructor_arguments" and name not in adjustable
    ]


def _frozen(value: Any, adjustable: Collection[str]) -> Any:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return type(value), *(_frozen(part, adjustable) for part in value)
    if isinstance(value, dict):
        return dict, *((name, _frozen(part, adjustable)) for name, part in value.items())
    if isinstance(value, (Bound, nn.Module)):
        return id(value), *_attributes_of(value, adjustable)
    return id(value)


def _modules(program: Program) -> Iterator[nn.Module]:
    """All modules of a program: its own, or those that a function reads."""
    for module in modules_of(program):
        yield from module.modules()


@contextlib.contextmanager
def _noting_modes() -> Iterator[list[tuple[nn.Module, bool]]]:
    """Gives a list, in which afterwards are the modules that ran inside, and their modes."""
    ran: dict[int, nn.Module] = {}
    modes: list[tuple[nn.Module, bool]] = []

    def note(module: nn.Module, inputs: Any) -> None:
        ran[id(module)] = module

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield modes
    finally:
        handle.remove()
        modes += [(module, module.training) for module in ran.values()]


@contextlib.contextmanager
def _attributes(settings: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Gives an object other attributes for a while."""
    before = {name: getattr(settings, name) for name in values}
    try:
        vars(settings).update(values)
        yield
    finally:
        vars(settings).update(before)
