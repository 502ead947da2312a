"""Distributions without a context, as modules: priors, fixed or learned."""

__all__ = [
    "Prior",
    "as_conditional",
    "as_prior",
    "default_prior",
    "has_context",
    "map_tensors",
]

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as td

from tarspyro.arguments import format_value
from tarspyro.distributions.family import FamilyModule
from tarspyro.distributions.gamma import Chi2, InverseGamma
from tarspyro.distributions.kumaraswamy import Kumaraswamy, StickBreaking
from tarspyro.distributions.relaxed import GumbelSigmoid, GumbelSoftmax

# The families' least informed members: what Tars takes where nothing else is said. Subclasses
# stand first.
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

    Called it returns the distribution, the same one whatever the context, so that a prior
    stands wherever a ``Conditional`` does. Its numbers move with ``.to(device)`` and are saved
    with the model. A parameter of the family that is not given is learned: it starts where the
    family's transform maps zero, such as ``Normal(0, 1)``.

    Arguments:
        family: The class of a Pyro distribution.
        event_shape: The shape of one draw.
        transforms: See ``Conditional``.
        param_shapes: See ``Conditional``.
        parameters: The fixed parameters: numbers, tensors, or ``nn.Parameter`` for the
            starting value of a learned one.

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions.
        ValueError: If a name is not one of the family's.

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
        **parameters: Any,
    ) -> None:
        super().__init__(family, event_shape, parameters, transforms, param_shapes)
        for name in self._fixed:
            constraint = family.arg_constraints.get(name)
            if constraint is not None and not td.constraints.is_dependent(constraint):
                # Drawing without a context takes the whole shape from the parameters.
                shape = self._shape(name, constraint)
                setattr(
                    self, f"fixed_{name}", getattr(self, f"fixed_{name}").expand(shape).clone()
                )
        for name, (_, shape) in self.free.items():
            self.register_parameter(f"free_{name}", nn.Parameter(torch.zeros(shape)))

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution, which is the same in every context."""
        return self.distribution({name: getattr(self, f"free_{name}") for name in self.free})

    def __repr__(self) -> str:
        learned = ", learned" if any(True for _ in self.parameters()) else ""
        return self.headline + learned


class _Constant(nn.Module):
    """A given distribution as a module: it goes where the module goes."""

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
        return (
            f"{self.distribution} of shape"
            f" {tuple(self.distribution.batch_shape + self.distribution.event_shape)}"
        )


def map_tensors(owner: Any, fn: Callable[[Tensor], Tensor]) -> None:
    """Applies a function to the tensors that a distribution or a transform keeps."""
    for name, value in vars(owner).items():
        if torch.is_tensor(value):
            setattr(owner, name, fn(value))
        elif isinstance(value, td.Distribution):
            map_tensors(value, fn)


def as_prior(prior: Any) -> Callable[..., Any]:
    """Returns what gives the prior when it is called: the prior itself, or a module around a
    distribution.

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
            "prior must be a distribution or a module that returns one, such as"
            f" default_prior(...), got {format_value(prior)}."
        )
    given: Callable[..., Any] = prior
    return given


def as_conditional(name: str, conditional: Any) -> Any:
    """Returns what gives a distribution when it is called with a context, of which ``name`` is
    the argument.

    Raises:
        TypeError: If it cannot be called, or is the class of one.
    """
    if isinstance(conditional, type) or not callable(conditional):
        raise TypeError(
            f"{name} must be a module that returns a distribution, such as Conditional(...),"
            f" got {format_value(conditional)}."
        )
    return conditional


def has_context(prior: Callable[..., Any]) -> bool:
    """Returns whether what ``as_prior`` returned may depend on its context: all but
    distributions and a ``Prior``.

    Example:
        >>> import pyro.distributions as dist
        >>> has_context(as_prior(dist.Beta(1.0, 1.0)))
        False
    """
    return not isinstance(prior, (Prior, _Constant))


def default_prior(
    family: type[Any], event_shape: int | tuple[int, ...], **parameters: Any
) -> Prior:
    r"""Returns the prior that a family has where nothing else is said.

    Normal, MultivariateNormal and Laplace: location 0 and scale 1. LogNormal: the exponential
    of N(0, 1). Gamma: Gamma(1, 1), InverseGamma and Kumaraswamy likewise. Beta: Beta(1, 1),
    and so each break of a stick. Dirichlet: Dir(1). Chi2: 2 degrees of freedom, an
    exponential. StudentT: 3 degrees of freedom, location 0 and scale 1. Bernoulli, Categorical
    and their relaxations: uniform over the classes (the relaxations at the temperature that
    ``Conditional`` takes too, 2/3 unless given; ``hard`` and ``score`` should be the guide's).
    The number of classes of a Categorical is told by ``param_shapes={"logits": (10,)}``.

    Arguments:
        family: The class of a Pyro distribution.
        event_shape: The shape of one draw.
        parameters: Parameters to fix at other values, such as ``temperature=0.5``.

    Raises:
        ValueError: If the family has no default; the message says how to write a prior.

    Example:
        >>> import pyro.distributions as dist
        >>> default_prior(dist.Gamma, 2)
        Gamma(concentration=1, rate=1) of shape (2,)
    """
    for known, defaults in _DEFAULT_PARAMETERS.items():
        if isinstance(family, type) and issubclass(family, known):
            return Prior(family, event_shape, **{**defaults, **parameters})
    name = getattr(family, "__name__", repr(family))
    known_names = ", ".join(known.__name__ for known in _DEFAULT_PARAMETERS)
    raise ValueError(
        f"{name} has no default prior ({known_names} have): write one, such as Prior({name},"
        " event_shape, ...)."
    )
