"""Any bound, with its step recorded as a graph of tensor operations and compiled."""

__all__ = ["Compiled"]

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.infer.base import Bound
from tarspyro.infer.recording import Recording, RecordingError, record, tensors_of
from tarspyro.infer.traces import Program, name_of

_TRIALS = 5  # steps of each kind that tell which is faster


class Compiled(Bound):
    r"""A bound whose steps are recorded once for each shape of the data, and compiled.

    The value, the gradients' law and the interface are those of the bound; random draws come from another stream than
    without compilation, unless ``backend="aot_eager"``. The first steps of every shape run as ever. Then the loss and
    its gradients are recorded as one graph of tensor operations, in which Pyro has no part, and ``torch.compile``
    makes a function of it. Where that function turns out slower than the steps before, or cannot be built, it is left
    aside, with a warning.

    Arrays that the pair reads, its parameters, statistics and fixed parameters, are inputs of the graph, and so is the
    ``beta`` of ``ELBO``: changes take effect. Numbers and branches of Python are parts of it. Another shape, another
    mode (``train`` or ``eval``), another attribute of the bound or a replaced parameter makes another recording.

    Arguments:
        bound: Any bound of ``tarspyro.infer``, or a subclass.
        backend: The compiler, see ``torch.compile``; ``"aot_eager"`` runs the graph operation by operation.
        mode: See ``torch.compile``; on a GPU ``"reduce-overhead"`` replays the step as one CUDA graph.
        choose: Whether to compare the compiled step with the eager one, and to keep the faster. False compiles at the
            first step of a shape.
        fallback: Whether a program that cannot be recorded runs eagerly, with a warning, in place of an error.

    Raises:
        TypeError: If ``bound`` is not one of the library's.
        RecordingError: When called, if the program reads a value back; the sentence names the line.

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
        >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Compiled(ELBO(), backend="aot_eager"))
        >>> losses = [svi.step(torch.ones(50)) for _ in range(20)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self,
        bound: Bound,
        *,
        backend: str = "inductor",
        mode: str | None = None,
        choose: bool = True,
        fallback: bool = False,
    ) -> None:
        if not isinstance(bound, Bound):
            raise TypeError(f"bound must be one of tarspyro.infer, got {type(bound).__name__}.")
        super().__init__(bound.num_particles, max_plate_nesting=bound.max_plate_nesting)
        self.original, self.backend, self.mode, self.choose, self.fallback = bound, backend, mode, choose, fallback
        self._inputs: dict[str, Tensor] = {}
        self._plans: dict[Any, _Plan] = {}

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, to be differentiated as any other, and its terms."""
        if torch.is_grad_enabled():
            plan = self._plan(model, guide, args, kwargs)
            if results := plan.run(args, 1.0):
                _, terms, gradients = results
                return _WithGradients.apply(terms.pop("loss"), gradients, *plan.parameters), terms  # type: ignore
        return self.original.loss_and_terms(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Computes the gradients of minus the bound, as ``SVI.step`` asks; returns minus the bound, a float."""
        return self.accumulate_gradients(model, guide, *args, **kwargs)[0].item()

    def accumulate_gradients(
        self, model: Program, guide: Program, *args: Any, scale: float = 1.0, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds the gradients of the loss times a scale to those of the parameters; returns the loss and its terms."""
        plan = self._plan(model, guide, args, kwargs)
        start = time.perf_counter()
        if results := plan.run(args, scale):
            _, terms, gradients = results
            loss = terms.pop("loss")
            for parameter, gradient in zip(plan.parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            for name in plan.names:
                pyro.param(name)  # SVI asks which parameters a step has used
        else:
            with poutine.trace(param_only=True) as capture:
                loss, terms = self.original.loss_and_terms(model, guide, *args, **kwargs)
            (loss * scale).backward()
            plan.names = list(capture.trace.nodes)
        plan.took(start, compiled=bool(results))
        return loss.detach(), terms

    def _plan(self, model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "_Plan":
        """How steps of this kind run: with these programs, shapes and attributes of the bound."""
        bound = self.original
        for name in bound.adjustable:
            value = getattr(bound, name)
            if name not in self._inputs:
                self._inputs[name] = torch.tensor(float(value), device=_device(args))
            self._inputs[name].fill_(value)
        attributes = [repr(item) for item in vars(bound).items() if item[0] not in self._inputs and item[0][0] != "_"]
        described = [(v.shape, v.dtype, v.device) if torch.is_tensor(v) else repr(v) for v in (*args, *kwargs.values())]
        key = (model, guide, *described, *kwargs, *attributes, _state(model), _state(guide))
        if key not in self._plans:
            self._plans[key] = _Plan(self, model, guide, kwargs)
        return self._plans[key]


class _Plan:
    """Steps of one kind: eager at first, then compiled, then whichever was faster."""

    def __init__(self, owner: Compiled, model: Program, guide: Program, kwargs: Mapping[str, Any]) -> None:
        self.owner, self.halves, self.kwargs = owner, (model, guide), kwargs
        self.calls = 0
        self.names: list[str] = []
        self.recording: Recording | None = None
        self.function: Callable[..., Any] | None = None
        self.given_up = False
        self.scales: dict[float, Tensor] = {}
        self.times: dict[bool, list[float]] = {True: [], False: []}

    @property
    def parameters(self) -> list[Tensor]:
        """What the gradients belong to."""
        return [] if self.recording is None else self.recording.parameters

    def run(self, args: Sequence[Any], scale: float) -> tuple[Tensor, dict[str, Tensor], list[Tensor]] | None:
        """One compiled step: the loss times the scale, its terms, and its gradients. None if it is to run eagerly."""
        self.calls += 1
        if self.given_up or (self.owner.choose and self.calls <= _TRIALS):
            return None
        if scale not in self.scales:
            self.scales[scale] = torch.full((), scale, device=_device(args))
        tensors = self.scales[scale], *tensors_of(args)
        try:
            if self.recording is None or self.function is None:
                self._record(tensors[0], args)
            assert self.recording is not None and self.function is not None
            with torch.no_grad():
                loss, terms, gradients = self.recording.unpack(self.function(*tensors))
            if self.owner.mode is not None:  # a CUDA graph writes the next step's results over these
                terms = {name: value.clone() for name, value in terms.items()}
            return loss, terms, gradients
        except RecordingError as error:
            if not self.owner.fallback:
                raise
            reason = str(error)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            inner = error.inner_exception
            reason = f"The step cannot be compiled ({type(inner).__name__}: {str(inner).splitlines()[0]})."
        self._give_up(reason)
        return None

    def took(self, start: float, *, compiled: bool) -> None:
        """Notes how long a step took, and gives up once the compiled ones turn out slower."""
        if self.given_up or not self.owner.choose or len(self.times[True]) > _TRIALS:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times[compiled].append(time.perf_counter() - start)
        if len(self.times[True]) > _TRIALS:
            # The first of each kind is not counted: it builds what the others only use.
            eager, ours = (statistics.median(self.times[kind][1:]) for kind in (False, True))
            if ours > eager:
                self._give_up(f"Compiled, a step takes {1e3 * ours:.2f} ms, and {1e3 * eager:.2f} ms without.")

    def _record(self, scale: Tensor, args: Sequence[Any]) -> None:
        bound = self.owner.original

        def step(scale: Tensor, *args: Any) -> tuple[Tensor, dict[str, Tensor]]:
            with _attributes(bound, self.owner._inputs):
                loss, terms = bound.loss_and_terms(*self.halves, *args, **self.kwargs)
            return loss * scale, {"loss": loss, **terms}

        bound._structure(*self.halves, tuple(args), self.kwargs)  # a run of its own, and not part of the graph
        buffers = [buffer for half in self.halves for module in _modules(half) for buffer in module.buffers(False)]
        self.recording = record(step, (scale, *args), buffers=buffers)
        self.function = torch.compile(
            self.recording.graph, backend=self.owner.backend, mode=self.owner.mode, fullgraph=True, dynamic=False
        )

    def _give_up(self, reason: str) -> None:
        self.given_up = True
        warnings.warn(f"{reason} {name_of(self.halves[0])} goes on eagerly.", stacklevel=4)


class _WithGradients(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, *torch._foreach_mul(ctx.gradients, outer[0])


def _device(args: Sequence[Any]) -> torch.device:
    return next((value.device for value in args if torch.is_tensor(value)), torch.device("cpu"))


def _state(program: Program) -> tuple[Any, ...]:
    """The mode of every module of a program, and which tensors it holds."""
    return tuple(
        (module.training, *map(id, module._parameters.values()), *map(id, module._buffers.values()))
        for module in _modules(program)
    )


def _modules(program: Program) -> Iterable[nn.Module]:
    """The modules of a program that is one, or a method of one."""
    owner = getattr(program, "__self__", program)
    return owner.modules() if isinstance(owner, nn.Module) else ()


@contextlib.contextmanager
def _attributes(bound: Bound, values: Mapping[str, Any]) -> Iterator[None]:
    """Gives a bound other attributes for a while."""
    before = {name: getattr(bound, name) for name in values}
    try:
        vars(bound).update(values)
        yield
    finally:
        vars(bound).update(before)
