"""The base of every half: a module whose forward pass is a Pyro program."""

__all__ = [
    "Configurable",
    "StochasticModule",
    "describe_call",
    "layers_of",
]

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyro
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import as_count, format_value
from tarspyro.formulas import headline, latex_of, parts_of, split_factors
from tarspyro.scopes import local_parameters, preserved_rng, registering

_counter = itertools.count()


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
        # Past nn.Module's __setattr__, which would register modules among the arguments a
        # second time.
        object.__setattr__(module, "constructor_arguments", (args, kwargs))
        return module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except TypeError as error:
            if not any(value is None for value in args):
                raise
            raise TypeError(f"{describe_call(self, args)}: {error}") from error
        except (
            RuntimeError,
            ZeroDivisionError,
        ) as error:  # the latter is what Pyro's plates say of no rows
            if type(error) not in (RuntimeError, ZeroDivisionError):
                raise  # no memory, or not implemented
            raise ValueError(
                f"{describe_call(self, args)}: {str(error).partition(chr(10))[0]}"
            ) from error


def describe_call(network: nn.Module, inputs: Sequence[Any]) -> str:
    """Says that a module does not run on some inputs: of which shapes, types and devices they
    are, and its weights.
    """
    tensors = [value for value in inputs if torch.is_tensor(value)]
    sizes = (
        ", ".join(
            str(tuple(value.shape)) if torch.is_tensor(value) else "None" for value in inputs
        )
        or "nothing"
    )
    kinds = {(value.dtype, value.device) for value in tensors if value.is_floating_point()}
    weight = next(network.parameters(), None)
    if weight is not None:
        kinds |= {(weight.dtype, weight.device)}
    apart = (
        f", {' and '.join(sorted(f'{dtype} on {device}' for dtype, device in kinds))}"
        if len(kinds) > 1
        else ""
    )
    return f"{type(network).__name__} does not run on inputs of shape {sizes}{apart}"


class StochasticModule(Configurable):
    r"""A module whose forward pass samples from Pyro's sites: one half of a model/guide pair.

    To write a half:

    - take distributions (``prior``, ``likelihood``, ``posterior``) in the constructor, never
      layer sizes;
    - write the program in ``forward``, with the data first and ``batch_size`` to generate
      without data;
    - name what each attribute stands for in ``factors``; printing the module then shows the
      factorization.

    When called, the module registers its parameters in Pyro's global store, for
    ``pyro.infer.SVI`` to find, under a name that no other instance has: two modules of one
    class never share weights. Inside ``local_parameters`` (as in ``tarspyro.fit`` and
    ``tarspyro.evaluate``) the store is left alone.

    Attributes:
        density: The letter of the factorization, p for models and q for guides.
        factors: What each attribute is, in the notation of the formula. ``"conditionals.0"``
            names the first of a list of modules, ``"posterior * prior"`` two whose product is
            proportional to the factor, and ``"posteriors.0 + posteriors.1"`` two whose sum is.

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
            own = type(self).__module__.startswith("tarspyro.") and not (
                value is None or torch.is_tensor(value)
            )
            if scalar or own or isinstance(value, (str, float, int, list, np.ndarray)):
                name = type(self).__name__
                raise TypeError(
                    f"{name} takes tensors with a row for each data point, got"
                    f" {format_value(value)}."
                )
        if not registering.get():
            return super().__call__(*args, **kwargs)
        if any(
            isinstance(parameter, UninitializedParameter) for parameter in self.parameters()
        ):
            with local_parameters(), preserved_rng(), pyro.poutine.block():
                super().__call__(
                    *args, **kwargs
                )  # lazy layers get their sizes from a run that nobody sees
        self.register()
        return super().__call__(*args, **kwargs)

    def register(self) -> None:
        """Registers the parameters in Pyro's store, where ``SVI`` finds them; does nothing in
        ``local_parameters``.
        """
        if registering.get():
            pyro.module(self.pyro_name, self)

    @property
    def factorization(self) -> str:
        """The right-hand side of the formula, such as ``p(x | z) p(z)``."""
        return " ".join(f"{self.density}({factor})" for factor in self.factors.values())

    @property
    def formula(self) -> str:
        """The factorization in plain text, such as ``p(x, z) = p(x | z) p(z)``."""
        variables, conditions = split_factors(self.factors.values())
        given = f" | {', '.join(conditions)}" if conditions else ""
        joint = f"{self.density}({', '.join(variables)}{given})"
        return joint if joint == self.factorization else f"{joint} = {self.factorization}"

    @property
    def latex(self) -> str:
        r"""The factorization in LaTeX, such as ``p(x, z) = p(x \mid z) \, p(z)``."""
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
        lines = [f"{type(self).__name__}: {self.formula}"]
        for name, factor in self.factors.items():
            parts = [repr(part).replace("\n", "\n    ") for part in parts_of(self, name)]
            sign = "=" if len(parts) == 1 else "∝"
            product = (" + " if "+" in name else " * ").join(parts)
            lines.append(f"  {name}: {self.density}({factor}) {sign} {product}")
        return "\n".join(lines)


def layers_of(name: str, layers: Any) -> nn.ModuleList:
    """Returns the modules of a hierarchy's layers as one, which the constructor's argument
    ``name`` lists.

    Raises:
        TypeError: If they are not modules.
    """
    listed = (
        list(layers) if isinstance(layers, Iterable) and not torch.is_tensor(layers) else None
    )
    if listed is None or not all(isinstance(layer, nn.Module) for layer in listed):
        raise TypeError(
            f"{name} must be a list of modules, such as [Conditional(...), ...], got"
            f" {format_value(layers)}."
        )
    return nn.ModuleList(listed)
