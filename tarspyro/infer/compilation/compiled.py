"""``Compiled``: any bound, with its steps recorded as graphs and compiled."""

__all__ = ["Compiled"]

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from tarspyro.accelerators import can_capture, is_accelerator, synchronize
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.compilation.keys import (
    TRIALS,
    ConstantHistory,
    StepKey,
    StepKeys,
    device_of,
    dtype_of,
)
from tarspyro.infer.compilation.recording import RecordingError
from tarspyro.infer.compilation.steps import CompiledStep, stored_tensors
from tarspyro.infer.gradients import with_gradients
from tarspyro.infer.traces import name_of, trace_pair
from tarspyro.programs import tensors_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program


class Compiled(Bound):
    r"""A bound whose steps are recorded once for each shape of the data, and compiled.

    Value, gradients and interface are those of the bound. Random draws have the same
    distribution but come from another stream, unless ``backend="eager"``. The first steps of
    every shape run eagerly. Then the loss and its gradients are recorded as one graph of
    tensor operations without Pyro, and the compiler makes a function of it. If that function
    is slower than the eager steps, or cannot be built, steps go on eagerly, with a warning.
    A further shape, such as that of the short last batch of an epoch, is compiled once its
    eager steps have taken as much time as the last compilation. The compiler keeps its results
    on disk, where the next process finds them.

    Arrays that the pair reads, its parameters, statistics and fixed parameters, are inputs of
    the graph, and so are adjustable numbers such as the ``beta`` of ``ELBO``: changes take
    effect. Other Python numbers and branches are parts of the graph. A new recording is made
    for another shape, another mode (``train`` or ``eval``), a parameter that is replaced,
    frozen or unfrozen (``requires_grad``), and another number among the attributes of a
    module, of the bound or of a bound inside it. If such a number changes at every step, as
    with a schedule, steps run eagerly, with a warning, until it has been the same for a few
    steps.

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
        report: What to do with a line about the progress of a compilation, such as ``print``.

    Attributes:
        original: The bound.
        last_compilation: The time of the last compilation in seconds; None before the first.

    Raises:
        TypeError: If ``bound`` is not one of the library's.
        ValueError: If the bound goes through its particles in chunks.
        RecordingError: When called, if a program reads a value back; the message names the
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
        >>> loss = Compiled(ELBO(), backend="eager")
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), loss)
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
        self.original = bound
        self.backend = backend
        self.choose = choose
        self.fallback = fallback
        self.capture = capture
        self.report = report
        self.last_compilation: float | None = None
        self._inputs: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        self._keys = StepKeys(bound)
        self._plans: dict[StepKey, _Plan] = {}
        self._latest: tuple[StepKey, ConstantHistory, _Plan] | None = None
        self._histories: dict[tuple[Hashable, ...], ConstantHistory] = {}
        self._last_kinds: dict[tuple[Hashable, ...], tuple[Hashable, int]] = {}
        self._warned = False
        self._pool: object = None  # the memory that all graphs share
        self._trusts = False  # see ``unchanging``
        self._settled: tuple[object, _Plan] | None = None  # the last data, and its plan

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, to be differentiated as any other, and its terms."""
        if torch.is_grad_enabled():
            plan = self._plan_of(model, guide, args, kwargs)
            step = None if plan is None else plan.compiled_step(args)
            if step is not None:
                _, terms, gradients = step.run(args, 1.0)
                return with_gradients(terms.pop("loss"), step.parameters, gradients), terms
        return self.original.loss_and_terms(model, guide, *args, **kwargs)

    def loss_and_grads(
        self, model: Program, guide: Program, *args: object, **kwargs: Any
    ) -> float:
        """Computes the gradients of minus the bound, as ``SVI.step`` asks; returns minus the
        bound, a float.
        """
        return self.accumulate_gradients(model, guide, *args, **kwargs)[0].item()

    def accumulate_gradients(
        self,
        model: Program,
        guide: Program,
        *args: object,
        scale: float = 1.0,
        update: Callable[[], object] | None = None,
        capture_update: bool = True,
        **kwargs: object,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradients of the loss times a scale to those of the parameters; returns the
        loss and its terms.

        Arguments:
            model: The model.
            guide: The guide.
            args: The data.
            scale: The factor of the gradients.
            update: A function that updates the parameters by their gradients, called after
                each step; the gradients are then those of this step alone. On a GPU the step
                is captured for this function: give the same one in every step.
            capture_update: Whether the update is captured with the step. It must then find
                all that changes in memory, such as a learning rate that is a tensor, and must
                not read values. False captures the gradients alone.
            kwargs: More data.
        """
        plan = self._plan_of(model, guide, args, kwargs)
        device = device_of(args)
        undecided = plan is not None and plan.is_undecided
        start = _clock(device) if undecided else 0.0
        step = None if plan is None else plan.compiled_step(args)
        captures = update is not None and self.capture and can_capture(device)
        if step is not None and update is not None and captures:
            loss, terms = step.replay(
                args, scale, update, whole=capture_update, pool=self._pool
            )
            self._pool = self._pool if step.captured is None else step.captured.pool
        else:
            loss, terms = self._step(plan, step, model, guide, args, kwargs, scale)
            if update is not None:
                update()
        # What is made of a step is timed once it is whole.
        whole = not captures or step is None or step.captured is not None
        if plan is not None and undecided and whole:
            if plan.is_tried:
                synchronize(device)
            plan.add_time(_clock(device) - start, compiled=step is not None)
        return loss.detach(), terms

    def _step(
        self,
        plan: "_Plan | None",
        step: CompiledStep | None,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        scale: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradients of a step, which runs eagerly if it is not compiled."""
        if step is not None:
            made = step.add_gradients(args, scale)
            for name in step.stored:
                pyro.param(name)  # SVI asks which parameters a step has used
            return made
        with poutine.trace(param_only=True) as trace:
            loss, terms = self.original.loss_and_terms(model, guide, *args, **kwargs)
        (loss * scale).backward(inputs=self.original.parameters)
        if plan is not None:
            plan.stored = stored_tensors(trace.trace.nodes)
        return loss, terms

    @contextlib.contextmanager
    def unchanging(self) -> Iterator[None]:
        """Promises that nothing but the data changes between the steps within: no module, no
        number of one, and no setting of the bound.

        Only the shapes of the data are then compared in a step. The first step within, and all
        that run eagerly, are compared as ever.
        """
        before = self._trusts
        self._trusts = True
        self._settled = None
        try:
            yield
        finally:
            self._trusts = before
            self._settled = None

    def release_graphs(self) -> None:
        """Drops the graphs on a GPU with their memory, as ``fit`` does at its end; further
        steps capture them anew.
        """
        for plan in self._plans.values():
            plan.release()
        self._pool = None

    def _plan_of(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> "_Plan | None":
        """The plan for steps of this kind; None to go on eagerly."""
        data = _kinds(args) if self._trusts else None
        if data is not None and self._settled is not None and self._settled[0] == data:
            return self._settled[1]
        device = device_of(args)
        inputs = self._adjusted_inputs(device, dtype_of(args))
        key = self._keys.of(model, guide, args, kwargs, device)
        plan = self._latest_plan(key) or self._looked_up(key, model, guide, kwargs, inputs)
        self._latest = None if plan is None else (key, self._histories[key.kind], plan)
        # An eager step runs the programs, which may change themselves.
        self._settled = None
        if data is not None and plan is not None and plan.is_settled:
            self._settled = data, plan
        return plan

    def _latest_plan(self, key: StepKey) -> "_Plan | None":
        """The plan of the last step if it had this very key, and still stands for it."""
        if self._latest is None or self._latest[0] is not key:
            return None
        _, history, plan = self._latest
        if plan.is_outdated():
            return None
        history.add(key.constants)
        return plan

    def _looked_up(
        self,
        key: StepKey,
        model: Program,
        guide: Program,
        kwargs: Mapping[str, object],
        inputs: Mapping[str, Tensor],
    ) -> "_Plan | None":
        """The plan for steps with a key; None to go on eagerly."""
        if self._is_another_at_every_step(key, model):
            return None
        history = self._histories.get(key.kind)
        if history is None:
            history = self._histories[key.kind] = ConstantHistory()
        history.add(key.constants)

        plan = self._plans.get(key)
        if plan is None:
            if not history.steady:
                self._warn_of_changes(history, model)
                return None
            history.compiled += 1
        elif not plan.is_outdated():
            return plan
        for other, former in self._plans.items():
            if other.place == key.place:
                former.release()  # its time may be over, and its memory is large
        plan = self._plans[key] = _Plan(self, model, guide, kwargs, inputs)
        return plan

    def _is_another_at_every_step(self, key: StepKey, model: Program) -> bool:
        """Whether the tensors, the modes or the hooks of modules have been new ones in several
        steps in a row.
        """
        before, changes = self._last_kinds.get(key.place, (key.kind, 0))
        new = key.kind != before and key.kind not in self._histories
        changes = changes + 1 if new else 0
        self._last_kinds[key.place] = key.kind, changes
        if changes <= TRIALS:
            return False
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"The modules of {name_of(model)} or of its guide have other tensors, modes or"
                " hooks at every step, and a compiled step is for the same ones: it goes on"
                " eagerly. Change buffers in place, such as by self.mean.copy_(...).",
                stacklevel=5,
            )
        return True

    def _adjusted_inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors with the values of the adjustable numbers, always the same tensors."""
        settings = self.original.settings
        inputs = self._inputs.setdefault((device, dtype), {})
        for name in self.original.adjustable:
            value = getattr(settings, name)
            if name not in inputs:
                inputs[name] = torch.tensor(float(value), device=device, dtype=dtype)
            inputs[name].fill_(value)
        return inputs

    def _warn_of_changes(self, history: ConstantHistory, model: Program) -> None:
        if history.keeps_changing and not self._warned:
            self._warned = True
            warnings.warn(
                f"{', '.join(history.changed)} keeps changing, and a compiled step holds its"
                f" value: {name_of(model)} goes on eagerly while it does.",
                stacklevel=5,
            )


def _kinds(args: Sequence[object]) -> list[object]:
    """The shape, the type and the device of every tensor, and other values in words."""
    return [
        (value.shape, value.dtype, value.device) if torch.is_tensor(value) else repr(value)
        for value in args
    ]


def _clock(device: torch.device) -> float:
    """The time in seconds: on a CPU that of this thread alone, which no other process adds to."""
    return time.perf_counter() if is_accelerator(device) else time.thread_time()


class _Plan:
    """The steps of one key: eager at first, then both ways in turns, then the faster one."""

    def __init__(
        self,
        owner: Compiled,
        model: Program,
        guide: Program,
        kwargs: Mapping[str, object],
        inputs: Mapping[str, Tensor],
    ) -> None:
        self.owner = owner
        self.model = model
        self.guide = guide
        self.kwargs = kwargs
        self.inputs = inputs
        self.stored: dict[str, int] = {}  # see ``stored_tensors``
        self._step: CompiledStep | None = None
        self._gave_up = False
        self._chosen = not owner.choose
        self._calls = 0
        self._spent = 0.0  # seconds, by eager steps
        self._eager_times: list[float] = []
        self._compiled_times: list[float] = []

    @property
    def is_settled(self) -> bool:
        """Whether all further steps run compiled."""
        return self._chosen and self._step is not None and not self._gave_up

    @property
    def is_undecided(self) -> bool:
        """Whether it is open how further steps run."""
        return not (self._gave_up or self.is_settled)

    @property
    def is_tried(self) -> bool:
        """Whether the steps are trials, of both ways in turns."""
        return self._step is not None and not self._chosen

    def is_outdated(self) -> bool:
        """Whether the recording no longer stands for the step."""
        return self._step is not None and self._step.is_outdated()

    def compiled_step(self, args: Sequence[object]) -> CompiledStep | None:
        """Returns the step if it runs compiled, which it compiles when its time has come; None
        if it runs eagerly.
        """
        self._calls += 1
        if self._gave_up:
            return None
        if self._step is not None:
            # In the trials every other step is eager, so that both have the same neighbours.
            eager = self.is_tried and len(self._eager_times) < len(self._compiled_times)
            return None if eager else self._step
        if self.owner.choose:
            compilation = self.owner.last_compilation or 0.0
            if self._calls <= TRIALS or self._spent < compilation:
                return None
        try:
            self._step = self._compile(args)
        except RecordingError as error:
            if not self.owner.fallback:
                raise
            self._give_up(str(error))
        return self._step

    def add_time(self, seconds: float, *, compiled: bool) -> None:
        """Adds the time of a step, and gives up if the compiled ones turn out slower."""
        if not compiled:
            self._spent += seconds
        if not self.is_tried:
            return
        (self._compiled_times if compiled else self._eager_times).append(seconds)
        if len(self._eager_times) > TRIALS:
            self._choose()

    def _choose(self) -> None:
        # The first step of each kind is not counted: it builds what the others only use.
        eager = statistics.median(self._eager_times[1:])
        compiled = statistics.median(self._compiled_times[1:])
        self._chosen = True
        if compiled > eager:
            self._give_up(
                f"Compiled, a step takes {1e3 * compiled:.2f} ms, and {1e3 * eager:.2f} ms"
                " without."
            )
            return
        compilation = self.owner.last_compilation or 0.0
        steps = round(compilation / (eager - compiled)) if eager > compiled else 0
        self._report(
            f"a step takes {1e3 * compiled:.2f} ms instead of {1e3 * eager:.2f} ms: compiling"
            f" pays after {steps} steps"
        )

    def _compile(self, args: Sequence[object]) -> CompiledStep | None:
        """Records and compiles the step; returns None if the compiler fails."""
        start = time.perf_counter()
        bound = self.owner.original
        if self._calls == 1 and bound.parameters is None:
            self.stored = self._find_stored(args)
        step = CompiledStep(
            bound, self.model, self.guide, args, self.kwargs, self.inputs, self.stored
        )
        count = len(step.recording.graph.graph.nodes)
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(args))
        self._report(f"compiling the step for data of shape {shapes}: {count} operations ...")
        try:
            step.compile(args, self.owner.backend)
        except Exception as error:  # whatever a compiler fails with, training goes on
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._give_up(f"The step cannot be compiled ({reason}).")
        self.owner.last_compilation = time.perf_counter() - start
        self._report(f"... took {self.owner.last_compilation:.1f} s")
        return None if self._gave_up else step

    def _find_stored(self, args: Sequence[object]) -> dict[str, int]:
        """The tensors in Pyro's store that the pair reads, found by a run of its own."""
        with (
            preserved_rng(),
            evaluating(self.model, self.guide),
            poutine.trace(param_only=True) as trace,
        ):
            trace_pair(self.model, self.guide, args, self.kwargs)
        return stored_tensors(trace.trace.nodes)

    def _report(self, line: str) -> None:
        if self.owner.report is not None:
            self.owner.report(line)

    def release(self) -> None:
        """Drops the graph of the step."""
        if self._step is not None:
            self._step.release()

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        self._step = None
        warnings.warn(f"{reason} {name_of(self.model)} goes on eagerly.", stacklevel=5)
