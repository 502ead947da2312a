"""The base of every half: a module whose forward pass is a Pyro program."""

__all__ = [
    "Configurable",
    "StochasticModule",
    "evaluating",
    "find_device",
    "kept_buffers",
    "get_rng_states",
    "layers_of",
    "local_parameters",
    "modalities_of",
    "own_store",
    "preserved_rng",
    "set_rng_states",
]

import contextlib
import contextvars
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyro
import torch
from pyro.infer.util import is_validation_enabled
from torch import nn
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import as_count, as_seed, shown

_counter = itertools.count()
_registering = contextvars.ContextVar("registering", default=True)


class Configurable(nn.Module):
    """A module that remembers its constructor's arguments, so that a run folder can name them.

    Example:
        >>> class Scale(Configurable):
        ...     def __init__(self, factor):
        ...         super().__init__()
        >>> Scale(3.0).constructor_arguments
        ((3.0,), {})
    """

    constructor_arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Configurable":
        module = super().__new__(cls)
        # Past nn.Module's __setattr__, which would register modules among the arguments a second time.
        object.__setattr__(module, "constructor_arguments", (args, kwargs))
        return module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError as error:
            if not any(value is None for value in args):
                raise
            raise TypeError(f"{describe_call(self, args)}: {error}") from error
        except (RuntimeError, ZeroDivisionError) as error:  # the latter is what Pyro's plates say of no rows
            if type(error) not in (RuntimeError, ZeroDivisionError):
                raise  # no memory, or not implemented
            raise ValueError(f"{describe_call(self, args)}: {str(error).partition(chr(10))[0]}") from error


def describe_call(network: nn.Module, inputs: Sequence[Any]) -> str:
    """Says that a module does not run on some inputs: of which shapes, types and devices they are, and its weights."""
    tensors = [value for value in inputs if torch.is_tensor(value)]
    sizes = ", ".join(str(tuple(value.shape)) if torch.is_tensor(value) else "None" for value in inputs) or "nothing"
    kinds = {(value.dtype, value.device) for value in tensors if value.is_floating_point()}
    weight = next(network.parameters(), None)
    if weight is not None:
        kinds |= {(weight.dtype, weight.device)}
    apart = f", {' and '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}" if len(kinds) > 1 else ""
    return f"{type(network).__name__} does not run on inputs of shape {sizes}{apart}"


class StochasticModule(Configurable):
    r"""A module whose forward pass samples from Pyro's sites: one half of a model/guide pair.

    To write a half:

    - take distributions (``prior``, ``likelihood``, ``posterior``) in the constructor, never layer sizes;
    - write the program in ``forward``, with the data first and ``batch_size`` to generate without data;
    - name what each attribute stands for in ``factors``; printing the module then shows the factorization.

    When called, the module registers its parameters in Pyro's global store, for ``pyro.infer.SVI`` to find, under a
    name that no other instance has: two modules of one class never share weights. Inside ``local_parameters`` (as in
    ``tarspyro.fit`` and ``tarspyro.evaluate``) the store is left alone.

    Attributes:
        density: The letter of the factorization, p for models and q for guides.
        factors: What each attribute is, in the notation of the formula. ``"conditionals.0"`` names the first of a
            list of modules, ``"posterior * prior"`` two whose product is proportional to the factor, and
            ``"posteriors.0 + posteriors.1"`` two whose sum is.

    Example:
        >>> import pyro.distributions as dist
        >>> class Coin(StochasticModule):
        ...     factors = {"prior": "z"}
        ...     def __init__(self, prior):
        ...         super().__init__()
        ...         self.prior = prior
        ...     def forward(self):
        ...         return pyro.sample("z", self.prior)
        >>> Coin(dist.Beta(1.0, 1.0)).factorization
        'p(z)'
    """

    density: ClassVar[str] = "p"
    factors: Mapping[str, str] = {}

    @property
    def pyro_name(self) -> str:
        """The name under which Pyro's parameter store knows this instance."""
        if "_pyro_name" not in self.__dict__:
            object.__setattr__(self, "_pyro_name", f"{type(self).__name__}_{next(_counter)}")
        name: str = self.__dict__["_pyro_name"]
        return name

    def __getstate__(self) -> dict[str, Any]:
        # A copy is another instance: it must not share its original's name in the store.
        return {key: value for key, value in self.__dict__.items() if key != "_pyro_name"}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "batch_size" in kwargs:
            as_count("batch_size", kwargs["batch_size"])
        for value in args:
            scalar = torch.is_tensor(value) and not value.dim()
            own = type(self).__module__.startswith("tarspyro.") and not (value is None or torch.is_tensor(value))
            if scalar or own or isinstance(value, (str, float, int, list, np.ndarray)):
                name = type(self).__name__
                raise TypeError(f"{name} takes tensors with a row for each data point, got {shown(value)}.")
        if not _registering.get():
            return super().__call__(*args, **kwargs)
        if any(isinstance(parameter, UninitializedParameter) for parameter in self.parameters()):
            with local_parameters(), preserved_rng(), pyro.poutine.block():
                super().__call__(*args, **kwargs)  # lazy layers get their sizes from a run that nobody sees
        self.register()
        return super().__call__(*args, **kwargs)

    def register(self) -> None:
        """Registers the parameters in Pyro's store, where ``SVI`` finds them; does nothing in ``local_parameters``."""
        if _registering.get():
            pyro.module(self.pyro_name, self)

    @property
    def factorization(self) -> str:
        """The right-hand side of the formula, such as ``p(x | z) p(z)``."""
        return " ".join(f"{self.density}({factor})" for factor in self.factors.values())

    @property
    def formula(self) -> str:
        """The factorization in plain text, such as ``p(x, z) = p(x | z) p(z)``."""
        variables, conditions = _split(self.factors.values())
        given = f" | {', '.join(conditions)}" if conditions else ""
        joint = f"{self.density}({', '.join(variables)}{given})"
        return joint if joint == self.factorization else f"{joint} = {self.factorization}"

    @property
    def latex(self) -> str:
        r"""The factorization in LaTeX, such as ``p(x, z) = p(x \mid z) \, p(z)``."""
        return _latex(self.formula.replace(f") {self.density}(", rf") \, {self.density}("))

    def _repr_latex_(self) -> str:
        lines = [self.latex] if len(self.factors) != 1 else []
        for name, factor in self.factors.items():
            parts = [rf"\mathrm{{{_headline(part)}}}" for part in _parts(self, name)]
            product = (" + " if "+" in name else r" \cdot ").join(parts)
            sign = "=" if len(parts) == 1 else r"\propto"
            lines.append(rf"{self.density}({_latex(factor)}) {sign} {product}")
        rows = r" \\ & ".join(lines)
        return rf"$$\begin{{aligned}} & {rows} \end{{aligned}}$$"

    def __repr__(self) -> str:
        if not self.factors:
            return super().__repr__()
        lines = [f"{type(self).__name__}: {self.formula}"]
        for name, factor in self.factors.items():
            parts = [repr(part).replace("\n", "\n    ") for part in _parts(self, name)]
            sign = "=" if len(parts) == 1 else "∝"
            product = (" + " if "+" in name else " * ").join(parts)
            lines.append(f"  {name}: {self.density}({factor}) {sign} {product}")
        return "\n".join(lines)


def layers_of(name: str, layers: Any) -> nn.ModuleList:
    """Returns the modules of a hierarchy's layers as one, which the constructor's argument ``name`` lists.

    Raises:
        TypeError: If they are not modules.
    """
    listed = list(layers) if isinstance(layers, Iterable) and not torch.is_tensor(layers) else None
    if listed is None or not all(isinstance(layer, nn.Module) for layer in listed):
        raise TypeError(f"{name} must be a list of modules, such as [Conditional(...), ...], got {shown(layers)}.")
    return nn.ModuleList(listed)


def modalities_of(
    half: Callable[..., Any], data: Sequence[torch.Tensor | None], count: int
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Returns the modalities among the arguments of a multimodal half, and which rows have each of them.

    After the modalities may come the mask of shape ``(B, modalities)``. Rows that lack a modality get zeros in it.

    Raises:
        ValueError: If there are fewer or more modalities, or the mask has another shape; where Pyro's validation is on,
            as in the checks before training and evaluation, if it holds anything but zeros and ones.
    """
    if len(data) not in (0, count, count + 1):
        name = getattr(half, "__name__", type(half).__name__)
        raise ValueError(
            f"{name} takes {count} modalities, and after them a mask where rows lack some, got {len(data)} arguments: "
            "give None in place of what is not observed."
        )
    values, mask = list(data[:count]) or [None] * count, data[count] if len(data) > count else None
    if mask is None:
        return values, [None] * count
    if mask.dim() != 2 or mask.shape[1] != count:
        raise ValueError(f"The mask must be of shape (rows, {count}), got {tuple(mask.shape)}.")
    # To look at the values waits for the device, which a step must not.
    if is_validation_enabled() and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("The mask must hold booleans, or zeros and ones: true where a row has the modality.")
    present: list[torch.Tensor | None] = [column.bool() for column in mask.unbind(1)]
    for m, (value, rows) in enumerate(zip(values, present, strict=True)):
        if value is not None and rows is not None:
            values[m] = value.where(rows.reshape(-1, *[1] * (value.dim() - 1)), value.new_zeros(()))
    return values, present


def _parts(half: nn.Module, name: str) -> list[Any]:
    """The attributes whose product or sum a factor is."""
    return [operator.attrgetter(path)(half) for path in re.split(r" [*+] ", name)]


def _split(factors: Any) -> tuple[list[str], list[str]]:
    """The variables that the factors describe, and the conditions that none of them does."""
    variables: list[str] = []
    conditions: list[str] = []
    for factor in factors:
        described, _, given = factor.partition("|")
        variables += [name.strip() for name in described.split(",")]
        conditions += [name.strip() for name in given.split(",") if name.strip()]
    return variables, [name for name in dict.fromkeys(conditions) if name not in variables]


def _latex(text: str) -> str:
    return re.sub(r"_(\w+)", r"_{\1}", text.replace(" | ", r" \mid "))


def _headline(part: Any) -> str:
    headline = getattr(part, "headline", None) or repr(part).partition("\n")[0]
    return headline.replace("_", r"\_").replace(" ", r"\ ")


def find_device(device: str | torch.device) -> torch.device:
    """Returns the device; for ``"auto"`` a GPU if there is one, else the CPU.

    Raises:
        ValueError: If there is no such device here, or it holds no numbers.
    """
    if isinstance(device, str) and device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA raises the second
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"device must be one that is here, or 'auto', got {shown(device)} ({reason}).") from error
    if found.type == "meta":
        raise ValueError(f"device must hold numbers, got {shown(device)}, where tensors are shapes alone.")
    return found


@contextlib.contextmanager
def local_parameters() -> Iterator[None]:
    """Keeps the parameters of every ``StochasticModule`` out of Pyro's global store."""
    token = _registering.set(False)
    try:
        yield
    finally:
        _registering.reset(token)


@contextlib.contextmanager
def own_store() -> Iterator[None]:
    """Gives what runs inside a store of its own, with what functions declared by ``pyro.param`` before.

    What a module registers is its own and is forgotten afterwards, so that no other module meets it under the same
    name; what functions declare has no other home, and is kept.
    """
    store = pyro.get_param_store()
    outside: Any = store.get_state()
    store.clear()
    store.set_state(_declared(outside))
    try:
        yield
    finally:  # Pyro's own scope would lose what was declared before an error
        declared = _declared(store.get_state())
        merged: Any = {kind: {**outside[kind], **declared[kind]} for kind in ("params", "constraints")}
        store.clear()
        store.set_state(merged)


def _declared(state: Mapping[str, Any]) -> Any:
    """The part of a store's state that does not belong to modules."""
    params = {name: value for name, value in state["params"].items() if not isinstance(value, nn.Parameter)}
    return {"params": params, "constraints": {name: state["constraints"][name] for name in params}}


@contextlib.contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """Puts the programs that are modules in evaluation mode without gradients, and back again after."""
    modules = [part for program in programs if isinstance(program, nn.Module) for part in program.modules()]
    modes = [(module, module.training) for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def kept_buffers(*programs: Any) -> Iterator[None]:
    """Gives the buffers of programs that are modules, such as batch normalization's statistics, their values back."""
    buffers = [buffer for program in programs if isinstance(program, nn.Module) for buffer in program.buffers()]
    before = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                # Past the count of versions: a loss of before may still want the gradient of what is the same again.
                # The count does not tell what has changed: batch normalization's statistics do without it.
                buffer.data.copy_(value)


def get_rng_states() -> list[torch.Tensor]:
    """Returns the random state of every device: the CPU's, then the GPUs'."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def set_rng_states(states: Sequence[torch.Tensor]) -> None:
    """Gives every device the random state that it had."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


@contextlib.contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Gives back the random state of every device as it was before; with ``seed``, starts from it inside."""
    seed = None if seed is None else as_seed(seed)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() or seed is not None else ()
    with torch.random.fork_rng(devices=list(devices)):
        if seed is not None:
            torch.manual_seed(seed)
        yield
