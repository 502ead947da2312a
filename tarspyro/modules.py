"""Base classes: modules that remember their arguments, and modules that are Pyro programs."""

__all__ = [
    "Configurable",
    "StochasticModule",
    "copy_modules",
    "describe_call",
]

import copy
import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyro
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode

from tarspyro.arguments import as_count, check_names, format_value
from tarspyro.formulas import headline, latex_of, parts_of, split_factors
from tarspyro.scopes import local_parameters, preserved_rng, registering

_T = TypeVar("_T")

_counter = itertools.count()

# The names that other libraries give to arguments of networks and of models.
_ELSEWHERE = {
    "encoder": "posterior",
    "decoder": "likelihood",
    "network": "trunk",
    "net": "trunk",
    **dict.fromkeys(["hidden", "hidden_sizes", "hidden_dims", "layers"], "hidden_features"),
    **dict.fromkeys(["input_size", "input_dim", "in_dim", "in_channels"], "in_features"),
    **dict.fromkeys(["latent_dim", "out_features", "shape"], "event_shape"),
}


class Configurable(nn.Module):
    """A module that remembers its constructor's arguments, which run folders save.

    Attributes:
        constructor_arguments: The arguments and keyword arguments of the constructor.

    Example:
        >>> class Scale(Configurable):
        ...     def __init__(self, factor):
        ...         super().__init__()
        >>> Scale(3.0).constructor_arguments
        ((3.0,), {})
    """

    constructor_arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Configurable":
        check_names(cls, kwargs, _ELSEWHERE)
        module = super().__new__(cls)
        # nn.Module's own __setattr__ would register modules among the arguments a second time.
        object.__setattr__(module, "constructor_arguments", (args, kwargs))
        return module

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except AttributeError:
            if "_modules" in self.__dict__:
                raise
            raise TypeError(
                f"{type(self).__name__}.__init__ sets {name!r} before it calls"
                " super().__init__(): call that in its first line."
            ) from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError as error:
            if not any(value is None for value in args):
                raise
            raise TypeError(f"{describe_call(self, args)}: {error}") from error
        except (RuntimeError, ZeroDivisionError) as error:
            # Pyro's plates divide by zero if there are no rows. Subclasses of RuntimeError say:
            # out of memory, not implemented.
            if type(error) not in (RuntimeError, ZeroDivisionError):
                raise
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{describe_call(self, args)}: {reason}") from error


class _Detaching(TorchFunctionMode):
    """Copies of tensors of a graph are values alone: PyTorch refuses to copy such tensors."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copy_modules(owner: _T) -> _T:
    """Returns a deep copy of a module, or of anything with modules inside.

    A module may keep results of its last call, as the invertible transforms of Pyro do. The
    copy has their values, without the graph that they came from.

    Example:
        >>> import torch
        >>> import pyro.distributions.transforms as transforms
        >>> flow = transforms.spline_coupling(2)
        >>> y = flow(torch.zeros(3, 2))
        >>> copied = copy_modules(flow)  # copy.deepcopy(flow) raises RuntimeError
    """
    with _Detaching():
        return copy.deepcopy(owner)


def describe_call(network: nn.Module, inputs: Sequence[object]) -> str:
    """Returns the beginning of a sentence: the network does not run on inputs of these shapes.

    If they differ, it names the types and devices of the inputs and of the weights.
    """
    sizes = []
    kinds = set()
    for value in inputs:
        sizes.append(str(tuple(value.shape)) if isinstance(value, Tensor) else "None")
        if isinstance(value, Tensor) and value.is_floating_point():
            kinds.add(f"{value.dtype} on {value.device}")
    weight = next(network.parameters(), None)
    if weight is not None:
        kinds.add(f"{weight.dtype} on {weight.device}")
    different = f", {' and '.join(sorted(kinds))}" if len(kinds) > 1 else ""
    name = type(network).__name__
    return f"{name} does not run on inputs of shape {', '.join(sizes) or 'nothing'}{different}"


class StochasticModule(Configurable):
    r"""A module whose forward pass is a Pyro program: a model or a guide.

    To write one:

    - take distributions (``prior``, ``likelihood``, ``posterior``) in the constructor, never
      layer sizes;
    - write the program in ``forward``, with the data first, and ``batch_size`` to generate
      without data;
    - name the factor of each attribute in ``factors``; printing the module then shows the
      factorization.

    A call registers the module's parameters in Pyro's global store, where ``pyro.infer.SVI``
    finds them, under a name that no other instance has. So two modules of one class never share
    weights. Inside ``local_parameters`` (as in ``tarspyro.fit`` and ``tarspyro.evaluate``)
    nothing is registered.

    Attributes:
        density: The letter of the factorization, p for models and q for guides.
        factors: The factor of each attribute, in the notation of the formula.
            ``"conditionals.0"`` names the first of a list of modules, ``"posterior * prior"``
            two whose product is proportional to the factor, and
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
        """The name of this instance in Pyro's parameter store."""
        if "_pyro_name" not in self.__dict__:
            object.__setattr__(self, "_pyro_name", f"{type(self).__name__}_{next(_counter)}")
        name: str = self.__dict__["_pyro_name"]
        return name

    def __getstate__(self) -> dict[str, Any]:
        # A copy is another instance, and needs another name in the store.
        return {key: value for key, value in self.__dict__.items() if key != "_pyro_name"}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not am_i_wrapped():
            # A bound has checked the arguments before its first step, in a context of Pyro's.
            self.check_call(args, kwargs)
        if not registering.get():
            return super().__call__(*args, **kwargs)
        if any(isinstance(weight, UninitializedParameter) for weight in self.parameters()):
            # Lazy layers get their sizes from a run without side effects.
            with local_parameters(), preserved_rng(), pyro.poutine.block():
                super().__call__(*args, **kwargs)
        self.register()
        return super().__call__(*args, **kwargs)

    def check_call(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        """Raises unless the arguments of a call are tensors of data, and a ``batch_size``.

        A program of the library takes tensors or None; a user's may take other objects, but no
        numbers, text, lists or arrays.

        Raises:
            TypeError: If an argument is of another kind, or ``factors`` names no attribute.
            ValueError: If ``batch_size`` is below 1.
        """
        self._check_factors()
        if "batch_size" in kwargs:
            as_count("batch_size", kwargs["batch_size"])
        own = type(self).__module__.startswith("tarspyro.")
        for value in args:
            if isinstance(value, Tensor):
                strange = value.dim() == 0
            elif own:
                strange = value is not None
            else:
                strange = isinstance(value, (str, float, int, list, np.ndarray))
            if strange:
                raise TypeError(
                    f"{type(self).__name__} takes tensors with a row for each data point, got"
                    f" {format_value(value)}."
                )

    def _check_factors(self) -> None:
        """Raises unless ``factors`` names attributes."""
        for name in self.factors:
            try:
                parts_of(self, name)
            except AttributeError as error:
                missing = error.name or name
                known = [*self._modules, *(n for n in vars(self) if not n.startswith("_"))]
                close = difflib.get_close_matches(missing, known, n=1)
                fix = f"did you mean {close[0]!r}?" if close else "name attributes there."
                raise TypeError(
                    f"factors of {type(self).__name__} names {missing!r}, which is no attribute"
                    f" of it: {fix}"
                ) from None

    def register(self) -> None:
        """Registers the parameters in Pyro's store, except inside ``local_parameters``."""
        if registering.get():
            pyro.module(self.pyro_name, self)

    @property
    def factorization(self) -> str:
        """The right-hand side of the formula, such as ``p(x | z) p(z)``."""
        return " ".join(f"{self.density}({factor})" for factor in self.factors.values())

    @property
    def formula(self) -> str:
        """The joint density and its factorization, such as ``p(x, z) = p(x | z) p(z)``."""
        variables, conditions = split_factors(self.factors.values())
        given = f" | {', '.join(conditions)}" if conditions else ""
        joint = f"{self.density}({', '.join(variables)}{given})"
        return joint if joint == self.factorization else f"{joint} = {self.factorization}"

    @property
    def latex(self) -> str:
        r"""The formula in LaTeX, such as ``p(x, z) = p(x \mid z) \, p(z)``."""
        return latex_of(self.formula.replace(f") {self.density}(", rf") \, {self.density}("))

    def _repr_latex_(self) -> str:
        lines = [self.latex] if len(self.factors) != 1 else []
        for name, factor in self.factors.items():
            parts = [rf"\mathrm{{{headline(part)}}}" for part in parts_of(self, name)]
            product = (" + " if "+" in name else r" \cdot ").join(parts)
            sign = "=" if len(parts) == 1 else r"\propto"
            lines.append(rf"{self.density}({latex_of(factor)}) {sign} {product}")
        rows = r" \\ & ".join(lines)
        return rf"$$\begin{{aligned}} & {rows} \end{{aligned}}$$"

    def __repr__(self) -> str:
        if not self.factors:
            return super().__repr__()
        self._check_factors()
        lines = [f"{type(self).__name__}: {self.formula}"]
        for name, factor in self.factors.items():
            parts = [repr(part).replace("\n", "\n    ") for part in parts_of(self, name)]
            sign = "=" if len(parts) == 1 else "∝"
            product = (" + " if "+" in name else " * ").join(parts)
            lines.append(f"  {name}: {self.density}({factor}) {sign} {product}")
        return "\n".join(lines)
