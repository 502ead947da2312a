"""Priors: modules that return a distribution without a context."""

__all__ = [
    "Prior",
    "as_conditional",
    "as_prior",
    "default_prior",
    "has_context",
    "map_tensors",
]

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributions as td

from tarspyro.arguments import as_shape, format_value
from tarspyro.distributions.family import FamilyModule
from tarspyro.distributions.gamma import Chi2, InverseGamma
from tarspyro.distributions.kumaraswamy import Kumaraswamy, StickBreaking
from tarspyro.distributions.relaxed import GumbelSigmoid, GumbelSoftmax
from tarspyro.distributions.spherical import PowerSpherical, Spherical, VonMisesFisher
from tarspyro.types import Distribution

_Conditional = TypeVar("_Conditional")

# The parameters of the least informative members of the families, the default priors of Tars.
# Subclasses come before their bases.
_DEFAULT_PARAMETERS: dict[type[Any], dict[str, float]] = {
    Chi2: {"df": 2.0},
    InverseGamma: {"concentration": 1.0, "rate": 1.0},
    Kumaraswamy: {"concentration1": 1.0, "concentration0": 1.0},
    StickBreaking: {"concentration1": 1.0, "concentration0": 1.0},
    GumbelSoftmax: {"logits": 0.0},
    GumbelSigmoid: {"logits": 0.0},
    td.StudentT: {"df": 3.0, "loc": 0.0, "scale": 1.0},
    td.Normal: {"loc": 0.0, "scale": 1.0},
    td.MultivariateNormal: {"loc": 0.0, "scale_tril": 1.0},
    td.Laplace: {"loc": 0.0, "scale": 1.0},
    td.LogNormal: {"loc": 0.0, "scale": 1.0},
    td.Gamma: {"concentration": 1.0, "rate": 1.0},
    td.Beta: {"concentration1": 1.0, "concentration0": 1.0},
    td.Dirichlet: {"concentration": 1.0},
    td.Bernoulli: {"logits": 0.0},
    td.Categorical: {"logits": 0.0},
    td.OneHotCategorical: {"logits": 0.0},
    td.RelaxedBernoulli: {"logits": 0.0},
    td.RelaxedOneHotCategorical: {"logits": 0.0},
}


class Prior(FamilyModule):
    r"""A distribution without a context, :math:`p(z)`, as a module.

    Called with any context or none, it returns the same distribution, so it can take the place
    of a ``Conditional``. Its parameters move with ``.to(device)`` and are saved with the model.
    A parameter of the family that is not given is learned. Its initial value is the transform
    of zero, such as that of ``Normal(0, 1)``.

    Arguments:
        family: The class of a Pyro distribution.
        event_shape: The shape of one draw.
        transforms: See ``Conditional``.
        param_shapes: See ``Conditional``.
        parameters: Fixed parameters, numbers or tensors; or an ``nn.Parameter``, the initial
            value of a learned one.

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions.
        ValueError: If a name is not a parameter of the family.

    Example:
        >>> import pyro.distributions as dist
        >>> Prior(dist.Normal, 2, loc=0.0, scale=1.0)
        Normal(loc=0, scale=1) of shape (2,)
        >>> len(list(Prior(dist.Gamma, 2).parameters()))  # a learned prior
        2
    """

    def __init__(
        self,
        family: type[Any],
        event_shape: int | tuple[int, ...],
        *,
        transforms: Mapping[str, td.Transform] | None = None,
        param_shapes: Mapping[str, tuple[int, ...]] | None = None,
        **parameters: object,
    ) -> None:
        super().__init__(family, event_shape, parameters, transforms, param_shapes)
        for name in self._fixed:
            constraint = family.arg_constraints.get(name)
            if constraint is not None and not td.constraints.is_dependent(constraint):
                # Without a context, only the parameters determine the shape of a draw.
                shape = self._shape(name, constraint)
                value = getattr(self, f"fixed_{name}").expand(shape).clone()
                setattr(self, f"fixed_{name}", value)
        for name, (_, shape) in self.free.items():
            self.register_parameter(f"free_{name}", nn.Parameter(torch.zeros(shape)))

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution, which does not depend on the context."""
        return self.distribution({name: getattr(self, f"free_{name}") for name in self.free})

    def __repr__(self) -> str:
        learned = ", learned" if any(True for _ in self.parameters()) else ""
        return self.headline + learned


class _Constant(nn.Module):
    """A distribution as a module, whose tensors move with the module."""

    def __init__(self, distribution: td.Distribution) -> None:
        super().__init__()
        self.distribution = distribution

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Constant":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        map_tensors(self.distribution, fn)
        return self

    def forward(self, *context: Tensor) -> td.Distribution:
        return self.distribution

    def __repr__(self) -> str:
        shape = self.distribution.batch_shape + self.distribution.event_shape
        return f"{self.distribution} of shape {tuple(shape)}"


def map_tensors(owner: object, fn: Callable[[Tensor], Tensor]) -> None:
    """Applies a function to the tensors among the attributes of a distribution or transform."""
    for name, value in vars(owner).items():
        if torch.is_tensor(value):
            setattr(owner, name, fn(value))
        elif isinstance(value, td.Distribution):
            map_tensors(value, fn)


def as_prior(prior: object, name: str = "prior") -> Callable[..., Distribution]:
    """Returns a callable that returns the prior: itself, or a module around a distribution.

    ``name`` is the argument's name in errors.

    Raises:
        TypeError: If ``prior`` is neither.

    Example:
        >>> import pyro.distributions as dist
        >>> as_prior(dist.Normal(torch.zeros(2), 1.0).to_event(1))().event_shape
        torch.Size([2])
    """
    if isinstance(prior, td.Distribution):
        return _Constant(prior)
    if isinstance(prior, type) or not callable(prior):
        raise TypeError(
            f"{name} must be a distribution or a module that returns one, such as"
            f" default_prior(...), got {format_value(prior)}."
        )
    return prior


def as_conditional(name: str, conditional: _Conditional) -> _Conditional:
    """Returns a callable from a context to a distribution; ``name`` is its argument in errors.

    Raises:
        TypeError: If it is a class, or not callable.
    """
    if isinstance(conditional, type) or not callable(conditional):
        raise TypeError(
            f"{name} must be a module that returns a distribution, such as Conditional(...),"
            f" got {format_value(conditional)}."
        )
    return conditional


def has_context(prior: Callable[..., Distribution]) -> bool:
    """Returns whether a result of ``as_prior`` may depend on a context.

    Distributions and a ``Prior`` do not; any other callable may.

    Example:
        >>> import pyro.distributions as dist
        >>> has_context(as_prior(dist.Beta(1.0, 1.0)))
        False
    """
    return not isinstance(prior, (Prior, _Constant))


def default_prior(
    family: type[Any], event_shape: int | tuple[int, ...], **parameters: object
) -> Prior:
    r"""Returns the default prior of a family.

    - Normal, MultivariateNormal and Laplace: location 0 and scale 1.
    - LogNormal: the exponential of N(0, 1).
    - Gamma, InverseGamma, Kumaraswamy and Beta: both parameters 1; so for the breaks of a
      stick. Dirichlet: all concentrations 1.
    - VonMisesFisher and PowerSpherical: the uniform distribution on the sphere,
      ``VonMisesFisher`` with concentration 0.
    - Chi2: 2 degrees of freedom. StudentT: 3 degrees of freedom, location 0 and scale 1.
    - Bernoulli, Categorical and their relaxations: uniform over the classes. Relaxations have
      the temperature 2/3 unless given, as in ``Conditional``; ``hard`` and ``score`` should be
      those of the guide. A Categorical needs its number of classes:
      ``param_shapes={"logits": (10,)}``.

    Arguments:
        family: The class of a Pyro distribution.
        event_shape: The shape of one draw.
        parameters: Parameters to fix at other values, such as ``temperature=0.5``.

    Raises:
        ValueError: If the family has no default prior.

    Example:
        >>> import pyro.distributions as dist
        >>> default_prior(dist.Gamma, 2)
        Gamma(concentration=1, rate=1) of shape (2,)
    """
    if isinstance(family, type) and issubclass(family, Spherical):
        shape = as_shape("event_shape", event_shape)
        if not shape or shape[-1] < 2:
            raise ValueError(
                f"event_shape must end in the dimension d of the sphere's space, at least 2, got"
                f" {tuple(shape)}."
            )
        axis = torch.eye(shape[-1])[0]
        uniform: dict[str, Any] = {"loc": axis, "concentration": 0.0, **parameters}
        return Prior(VonMisesFisher, event_shape, **uniform)
    for known, defaults in _DEFAULT_PARAMETERS.items():
        if isinstance(family, type) and issubclass(family, known):
            given: dict[str, Any] = {**defaults, **parameters}
            return Prior(family, event_shape, **given)
    name = getattr(family, "__name__", repr(family))
    spherical: tuple[type[Any], ...] = (VonMisesFisher, PowerSpherical)
    known_names = ", ".join(known.__name__ for known in (*_DEFAULT_PARAMETERS, *spherical))
    raise ValueError(
        f"family must be one with a default prior ({known_names}), got {name}: write a prior,"
        f" such as Prior({name}, event_shape, ...)."
    )
