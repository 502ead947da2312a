"""What a family's parameters are: their names, shapes and constraints, read from the family
itself.
"""

__all__ = ["FIXED_UNLESS_GIVEN", "SPELLINGS", "FamilyModule"]

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Transform, constraints, transform_to

from tarspyro.arguments import as_numbers, as_shape, format_value
from tarspyro.modules import Configurable

# Where a family has several spellings of one parameter, the first is the one that a network
# parameterizes best.
SPELLINGS = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))

# Parameters outside a family's constraints that a user need not give. Two thirds is what
# Maddison et al. (2016, "The Concrete Distribution", section 5) use for binary and find good
# for few categories.
FIXED_UNLESS_GIVEN = {"temperature": 2 / 3}


class FamilyModule(Configurable):
    """A module that returns distributions of one family.

    The abstract base of ``Conditional`` and ``Prior``. A parameter of the family is fixed (by
    a number, a tensor, or an ``nn.Parameter``, whose value is then the starting point of a
    learned constant), or free: a tensor of any real numbers that a transform maps into the
    parameter's domain.

    Arguments:
        family: The class of a Pyro distribution.
        event_shape: The shape of one draw. Its last dimensions belong to the family, the
            others are independent.
        fixed: The fixed parameters. A number for a matrix stands for that multiple of the
            identity.
        transforms: For a free or learned parameter, the transform in place of torch's
            ``transform_to(constraint)``.
        param_shapes: For a free parameter, a shape that the event shape does not tell
            (classes, ranks).

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions.
        ValueError: If a name is not one of the family's, or a parameter cannot be free.
    """

    free: dict[str, tuple[Transform, torch.Size]]

    def __init__(
        self,
        family: type[Any],
        event_shape: int | tuple[int, ...],
        fixed: Mapping[str, Any],
        transforms: Mapping[str, Transform] | None = None,
        param_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        if not (isinstance(family, type) and issubclass(family, TorchDistributionMixin)):
            raise TypeError(
                "family must be a class of pyro.distributions, such as"
                f" pyro.distributions.Normal, got {format_value(family)}."
            )
        if not isinstance(family.arg_constraints, Mapping):
            raise ValueError(
                f"{family.__name__}'s parameters depend on each other, which no network can"
                " respect."
            )
        self.family = family
        self.event_shape = as_shape("event_shape", event_shape)
        self._native = _native_ndims(family)
        if self._native > len(self.event_shape):
            raise ValueError(
                f"event_shape {tuple(self.event_shape)} has too few dimensions: a draw of"
                f" {family.__name__} has {self._native}."
            )
        for name, given in (("transforms", transforms), ("param_shapes", param_shapes)):
            if not isinstance(given, Mapping | None):
                raise TypeError(
                    f"{name} must be a mapping from the names of parameters, got"
                    f" {format_value(given)}."
                )
        transforms = dict(transforms or {})
        for name, transform in transforms.items():
            if not isinstance(transform, Transform):
                raise TypeError(
                    f"transforms[{name!r}] must be a transform of torch.distributions, got"
                    f" {format_value(transform)}."
                )
        shapes = (param_shapes or {}).items()
        self._param_shapes = {
            name: as_shape(f"param_shapes[{name!r}]", shape) for name, shape in shapes
        }
        names = _parameter_names(family, {**fixed, **transforms, **self._param_shapes})
        self.free = {}
        self._learned: dict[str, Transform] = {}
        self._fixed: list[str] = []
        self._options = {
            name: value
            for name, value in fixed.items()
            if value is None
            or isinstance(value, bool | str | int)
            and name not in family.arg_constraints
        }
        for name in names:
            constraint = family.arg_constraints.get(name, constraints.real)
            if name in self._options:
                continue
            if name in fixed or name in FIXED_UNLESS_GIVEN:
                self._fix(
                    name,
                    fixed.get(name, FIXED_UNLESS_GIVEN.get(name)),
                    constraint,
                    transforms.get(name),
                )
                continue
            if constraints.is_dependent(constraint):
                raise ValueError(
                    f"{family.__name__}'s {name} has a domain that depends on its other"
                    f" parameters: fix it, {name}=..."
                )
            shape = self._shape(name, constraint)
            try:
                transform = transforms.get(name) or transform_to(constraint)
            except NotImplementedError:
                raise ValueError(
                    f"{family.__name__}'s {name} must be a {constraint}, which no network can"
                    f" produce: fix it, {name}=..."
                ) from None
            self.free[name] = (transform, torch.Size(transform.inverse_shape(shape)))

    def distribution(self, free: Mapping[str, Tensor]) -> Any:
        """Returns the distribution that the free parameters, any real numbers, give."""
        parameters = {
            name: transform(free[name]) for name, (transform, _) in self.free.items()
        }
        for name in self._fixed:
            parameters[name] = getattr(self, f"fixed_{name}")
        for name, transform in self._learned.items():
            parameters[name] = transform(getattr(self, f"free_{name}"))
        distribution = self.family(**parameters, **self._options)
        independent = len(self.event_shape) - self._native
        return distribution.to_event(independent) if independent else distribution

    @property
    def headline(self) -> str:
        """The family, its parameters and its event shape in a line, such as ``Normal(loc,
        scale=0.1)``.
        """
        named = [*self.free, *(f"{name} learned" for name in self._learned)]
        for name in self._fixed:
            value = getattr(self, f"fixed_{name}")
            constant = value.numel() > 0 and bool((value == value.flatten()[0]).all())
            named.append(
                f"{name}={value.flatten()[0].item():.4g}" if constant else f"{name} fixed"
            )
        return f"{self.family.__name__}({', '.join(named)}) of shape {tuple(self.event_shape)}"

    def _fix(
        self,
        name: str,
        value: Any,
        constraint: constraints.Constraint,
        transform: Transform | None = None,
    ) -> None:
        kind = None if torch.is_tensor(value) else torch.get_default_dtype()
        tensor = as_numbers(name, value, kind).detach()
        if not constraints.is_dependent(constraint):
            if constraint.event_dim > 0 and tensor.dim() == 0:
                shape = self._shape(name, constraint)
                tensor = (
                    tensor * torch.eye(shape[-1])
                    if constraint.event_dim == 2
                    else tensor.expand(shape)
                )
            if not constraint.check(tensor).all():
                raise ValueError(
                    f"{name}={format_value(value)} is outside the domain of"
                    f" {self.family.__name__}'s {name}, {constraint}."
                )
            self._check_fits(name, tensor, constraint)
        if isinstance(value, nn.Parameter):
            self._learned[name] = transform or transform_to(constraint)
            self.register_parameter(
                f"free_{name}", nn.Parameter(self._learned[name].inv(tensor).clone())
            )
        else:
            self._fixed.append(name)
            self.register_buffer(f"fixed_{name}", tensor.clone())

    def _check_fits(
        self, name: str, tensor: Tensor, constraint: constraints.Constraint
    ) -> None:
        try:
            shape = self._shape(name, constraint)
        except ValueError:  # it does not follow from the event's
            return
        try:
            fits = (
                torch.broadcast_shapes(tensor.shape, shape)[tensor.dim() - len(shape) :]
                == shape
            )
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name} must be of shape {tuple(shape)} or broadcast to it, got"
                f" {tuple(tensor.shape)}."
            )

    def _shape(self, name: str, constraint: constraints.Constraint) -> torch.Size:
        """The shape of a parameter: the independent dimensions, then as many as its constraint
        has.
        """
        if name in self._param_shapes:
            return self._param_shapes[name]
        if hasattr(self.family, "parameter_shape"):
            return torch.Size(self.family.parameter_shape(self.event_shape))
        ndims, native = constraint.event_dim, self._native
        batch, event = (
            self.event_shape[: len(self.event_shape) - native],
            self.event_shape[len(self.event_shape) - native :],
        )
        if ndims == 0:
            return batch
        if native != 1:
            raise ValueError(
                f"The shape of {self.family.__name__}'s {name} does not follow from the event"
                f" shape: give it, param_shapes={{'{name}': {(*batch, 10)}}}."
            )
        return batch + event * ndims


def _native_ndims(family: type[Any]) -> int:
    try:
        return int(family.support.event_dim)
    except (AttributeError, NotImplementedError):
        raise ValueError(
            f"{family.__name__} does not declare how many dimensions a draw has"
            " (support.event_dim)."
        ) from None


def _parameter_names(family: type[Any], given: Mapping[str, Any]) -> list[str]:
    """The names of the family's parameters, one spelling of each; the spelling that the user
    gave, if any.
    """
    signature = inspect.signature(family.__init__).parameters
    allowed = [name for name in signature if name != "self"]
    for name in given:
        if name not in allowed:
            raise ValueError(
                f"{family.__name__} has no parameter {name}; its parameters are"
                f" {', '.join(allowed)}."
            )
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
        elif signature[name].default is inspect.Parameter.empty and signature[
            name
        ].kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            raise ValueError(f"{family.__name__} needs {name}: fix it, {name}=...")
    return names
