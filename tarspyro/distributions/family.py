"""The parameters of a family of distributions: names, shapes and constraints."""

__all__ = ["FIXED_UNLESS_GIVEN", "SPELLINGS", "FamilyModule"]

import inspect
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from tarspyro.arguments import as_numbers, as_shape, format_value, suggestion
from tarspyro.distributions import counts
from tarspyro.distributions.links import link_to
from tarspyro.distributions.low_rank import LowRankMultivariateNormal
from tarspyro.modules import Configurable
from tarspyro.types import Distribution

# Alternative parameters of a family, of which one must be given. The first is the one that
# networks parameterize best.
SPELLINGS = (
    ("logits", "probs"),
    ("gate_logits", "gate"),
    ("scale_tril", "covariance_matrix", "precision_matrix"),
)

# The usual names of parameters, where those of families differ.
_USUAL = {
    "mean": "loc",
    "mu": "loc",
    "std": "scale",
    "sigma": "scale",
    "alpha": "concentration",
}

# Families of Pyro whose log-densities are wrong in single precision, and those that are used
# instead.
_EXACT: dict[type[Any], type[Any]] = {
    dist.LowRankMultivariateNormal: LowRankMultivariateNormal,
    **{getattr(dist, name): getattr(counts, name) for name in counts.__all__},
}

# Parameters that are fixed at these values unless given. Maddison et al. (2016, "The Concrete
# Distribution", section 5) use a temperature of two thirds for binary variables, and find it
# good for few categories.
FIXED_UNLESS_GIVEN = {"temperature": 2 / 3}


class FamilyModule(Configurable):
    """A module that returns distributions of one family.

    The abstract base of ``Conditional`` and ``Prior``. A parameter of the family is fixed by a
    number or a tensor, learned if given as an ``nn.Parameter``, or free. A free parameter is a
    tensor of any real numbers that a transform maps into the parameter's domain.

    Arguments:
        family: The class of a Pyro distribution.
        event_shape: The shape of one draw. The last dimensions are those of the family's
            draws, the others are independent.
        fixed: The fixed and learned parameters. A number for a matrix is a multiple of the
            identity.
        transforms: Transforms of free or learned parameters, instead of torch's
            ``link_to(constraint)``.
        param_shapes: Shapes of free parameters that do not follow from the event shape
            (classes, ranks).

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions.
        ValueError: If a name is not a parameter of the family, or a parameter cannot be free.
    """

    free: dict[str, tuple[Transform, torch.Size]]

    def __init__(
        self,
        family: type[Any],
        event_shape: int | tuple[int, ...],
        fixed: Mapping[str, object],
        transforms: Mapping[str, Transform] | None = None,
        param_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        _check_family(family)
        self.family = _EXACT.get(family, family)
        self.event_shape = as_shape("event_shape", event_shape)
        self._native = _native_ndims(family)
        if self._native > len(self.event_shape):
            raise ValueError(
                f"event_shape must have at least {self._native} dimensions for"
                f" {family.__name__}, got {tuple(self.event_shape)}."
            )
        _check_options(transforms, param_shapes)
        transforms = dict(transforms or {})
        self._param_shapes = {
            name: as_shape(f"param_shapes[{name!r}]", shape)
            for name, shape in (param_shapes or {}).items()
        }
        self._options = {
            name: value for name, value in fixed.items() if _is_option(family, name, value)
        }

        self.free = {}
        self._learned: dict[str, Transform] = {}
        self._fixed: list[str] = []
        for name in _parameter_names(family, {**fixed, **transforms, **self._param_shapes}):
            if name in self._options:
                continue
            constraint = family.arg_constraints.get(name, constraints.real)
            transform = transforms.get(name)
            if name in fixed or name in FIXED_UNLESS_GIVEN:
                value = fixed.get(name, FIXED_UNLESS_GIVEN.get(name))
                self._fix(name, value, constraint, transform)
            else:
                self._set_free(name, constraint, transform)

    def distribution(self, free: Mapping[str, Tensor]) -> Distribution:
        """Returns the distribution with these free parameters, tensors of real numbers."""
        parameters = {
            name: transform(free[name]) for name, (transform, _) in self.free.items()
        }
        distribution: Distribution = self.family(
            **parameters, **self.constants(), **self._options
        )
        independent = len(self.event_shape) - self._native
        return distribution.to_event(independent) if independent else distribution

    def constants(self) -> dict[str, Tensor]:
        """Returns the fixed and the learned parameters, which do not depend on a context."""
        values = {name: getattr(self, f"fixed_{name}") for name in self._fixed}
        for name, transform in self._learned.items():
            values[name] = transform(getattr(self, f"free_{name}"))
        return values

    @property
    def headline(self) -> str:
        """The family, its parameters and its event shape in one line.

        For example ``Normal(loc, scale=0.1) of shape (2,)``.
        """
        named = [*self.free, *(f"{name} learned" for name in self._learned)]
        for name in self._fixed:
            values = getattr(self, f"fixed_{name}").flatten()
            if values.numel() > 0 and bool((values == values[0]).all()):
                named.append(f"{name}={values[0].item():.4g}")
            else:
                named.append(f"{name} fixed")
        return f"{self.family.__name__}({', '.join(named)}) of shape {tuple(self.event_shape)}"

    def _set_free(
        self, name: str, constraint: constraints.Constraint, transform: Transform | None
    ) -> None:
        """Adds a free parameter."""
        family = self.family.__name__
        if constraints.is_dependent(constraint):
            raise ValueError(
                f"{family}'s {name} has a domain that depends on its other parameters: fix it,"
                f" {name}=..."
            )
        shape = self._shape(name, constraint)
        try:
            transform = transform or link_to(constraint)
        except NotImplementedError:
            raise ValueError(
                f"{family}'s {name} must be a {constraint}, to which torch has no transform: fix"
                f" it, {name}=..."
            ) from None
        self.free[name] = (transform, torch.Size(transform.inverse_shape(shape)))

    def _fix(
        self,
        name: str,
        value: object,
        constraint: constraints.Constraint,
        transform: Transform | None,
    ) -> None:
        """Adds a fixed parameter, or a learned constant if the value is a parameter."""
        dtype = None if torch.is_tensor(value) else torch.get_default_dtype()
        tensor = as_numbers(name, value, dtype).detach()
        if not constraints.is_dependent(constraint):
            tensor = self._filled(name, tensor, constraint)
            if not constraint.check(tensor).all():
                raise ValueError(
                    f"{name}={format_value(value)} is outside the domain of"
                    f" {self.family.__name__}'s {name}, {constraint}."
                )
            self._check_fits(name, tensor, constraint)

        if isinstance(value, nn.Parameter):
            transform = transform or link_to(constraint)
            self._learned[name] = transform
            self.register_parameter(
                f"free_{name}", nn.Parameter(transform.inv(tensor).clone())
            )
        else:
            self._fixed.append(name)
            self.register_buffer(f"fixed_{name}", tensor.clone())

    def _filled(self, name: str, tensor: Tensor, constraint: constraints.Constraint) -> Tensor:
        """Returns a number as a vector, or as a multiple of the identity matrix, if needed."""
        if constraint.event_dim == 0 or tensor.dim() > 0:
            return tensor
        shape = self._shape(name, constraint)
        if constraint.event_dim == 2:
            return tensor * torch.eye(shape[-1])
        return tensor.expand(shape)

    def _check_fits(
        self, name: str, tensor: Tensor, constraint: constraints.Constraint
    ) -> None:
        try:
            shape = self._shape(name, constraint)
        except ValueError:  # the shape does not follow from the event shape
            return
        try:
            together = torch.broadcast_shapes(tensor.shape, shape)
            fits = together[len(together) - len(shape) :] == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} must be of shape {tuple(shape)} or broadcast to it, got"
                f" {tuple(tensor.shape)}."
            )

    def _shape(self, name: str, constraint: constraints.Constraint) -> torch.Size:
        """Returns the shape of a parameter.

        It has the independent dimensions of the event, then those of the parameter's constraint.
        """
        if name in self._param_shapes:
            return self._param_shapes[name]
        if hasattr(self.family, "parameter_shape"):
            told = inspect.signature(self.family.parameter_shape).parameters
            options = {key: value for key, value in self._options.items() if key in told}
            return torch.Size(self.family.parameter_shape(self.event_shape, **options))
        independent = len(self.event_shape) - self._native
        batch = self.event_shape[:independent]
        event = self.event_shape[independent:]
        if constraint.event_dim == 0:
            return batch
        if self._native != 1:
            raise ValueError(
                f"The shape of {self.family.__name__}'s {name} does not follow from the event"
                f" shape: give it, param_shapes={{'{name}': {(*batch, 10)}}}."
            )
        return batch + event * constraint.event_dim


def _check_family(family: type[Any]) -> None:
    if not (isinstance(family, type) and issubclass(family, TorchDistributionMixin)):
        raise TypeError(
            "family must be a class of pyro.distributions, such as pyro.distributions.Normal,"
            f" got {format_value(family)}."
        )
    if not isinstance(family.arg_constraints, Mapping):
        raise ValueError(
            f"family must have parameters with independent domains, which {family.__name__} has"
            " not: write a module that returns the distribution."
        )


def _check_options(transforms: object, param_shapes: object) -> None:
    for name, given in (("transforms", transforms), ("param_shapes", param_shapes)):
        if not isinstance(given, Mapping | None):
            raise TypeError(
                f"{name} must be a mapping from the names of parameters, got"
                f" {format_value(given)}."
            )
    for name, transform in (transforms or {}).items():  # type: ignore[attr-defined]
        if not isinstance(transform, Transform):
            raise TypeError(
                f"transforms[{name!r}] must be a transform of torch.distributions, got"
                f" {format_value(transform)}."
            )


def _is_option(family: type[Any], name: str, value: object) -> bool:
    """Returns whether an argument of the family is an option, such as ``hard=True``."""
    if value is None:
        return True
    return isinstance(value, bool | str | int) and name not in family.arg_constraints


def _native_ndims(family: type[Any]) -> int:
    try:
        return int(family.support.event_dim)
    except (AttributeError, NotImplementedError):
        raise ValueError(
            "family must declare the dimensions of a draw, support.event_dim, which"
            f" {family.__name__} does not: write a module that returns the distribution."
        ) from None


def _parameter_names(family: type[Any], given: Mapping[str, object]) -> list[str]:
    """Returns the names of the family's parameters, one of each group of alternatives.

    Of alternatives such as logits and probs it takes the one that is given, else the first.
    """
    signature = inspect.signature(family.__init__).parameters
    allowed = [name for name in signature if name != "self"]
    for name in given:
        if name not in allowed:
            others = [other for other in allowed if other != "validate_args"]
            meant = {usual: p for usual, p in _USUAL.items() if p in others}
            what = suggestion(name, others, meant).replace("arguments", "parameters")
            raise ValueError(f"{family.__name__} has no parameter {name!r}: {what}")
    names = [name for name in allowed if name in family.arg_constraints]
    for spellings in SPELLINGS:
        present = [name for name in spellings if name in names]
        chosen = next(
            (name for name in present if name in given), present[0] if present else None
        )
        names = [name for name in names if name not in present or name == chosen]
    for name in allowed:
        if name in names or name in family.arg_constraints or name == "validate_args":
            continue
        if name in given or name in FIXED_UNLESS_GIVEN:
            names.append(name)
        elif _is_required(signature[name]):
            raise ValueError(f"{family.__name__} needs {name}: fix it, {name}=...")
    return names


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variable
