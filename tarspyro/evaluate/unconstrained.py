"""Maps of unconstrained numbers to the supports of latent variables, for samplers."""

__all__ = ["check_supports", "to_support"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to

from tarspyro.infer.diagnosis import single_constraint
from tarspyro.infer.traces import PairError, Site, is_circular
from tarspyro.inputs import same_support


def to_support(name: str, distribution: Distribution) -> Transform:
    """Returns the map of unconstrained numbers to the support of a latent variable.

    Raises:
        PairError: If there is none.
    """
    plain: constraints.Constraint = distribution.support  # type: ignore[assignment]
    support = _of_components(plain)
    if is_circular(distribution):
        return _ToCircle(support.event_dim)
    if single_constraint(support) is constraints.sphere:
        return _ToSphere(support.event_dim)
    try:
        transform: Transform = biject_to(support)
    except NotImplementedError:
        raise PairError(
            f"{name!r} has the support {support}, to which no unconstrained numbers are mapped:"
            " take log_likelihood or check_guide."
        ) from None
    return transform


def check_supports(latent: Mapping[str, Site], other: Mapping[str, Site]) -> None:
    """Raises if the supports of latent variables are others in another run.

    Raises:
        PairError: If a support depends on another latent variable.
    """
    for name, site in latent.items():
        if not same_support(site["fn"].support, other[name]["fn"].support):
            raise PairError(
                f"The support of {name!r} depends on another latent variable, and a sampler"
                " moves in the space of one support: draw from a support that is fixed and"
                " change the draw, such as a * pyro.sample('u', dist.Uniform(0.0, 1.0)) for"
                " dist.Uniform(0.0, a)."
            )


def _of_components(support: constraints.Constraint) -> constraints.Constraint:
    """Returns a support with that of its components in place of a mixture's."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _of_components(support.base_constraint)
    if isinstance(support, constraints.independent):
        base = _of_components(support.base_constraint)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    return support


class _ToSphere(Transform):
    r"""The direction of a vector, whose length is added to the variables.

    .. math:: y \in \mathbb{R}^d, \qquad z = \frac{y}{\lVert y \rVert}, \qquad
              f(y) = f(z) \, \frac{\mathcal{N}(y; 0, I)}{u(z)}

    with u the uniform density of the sphere. The length is that of a standard normal vector
    whatever the density f of z, so that the integral of f does not change.

    Arguments:
        ndims: The dimensions of the support, of which the last one holds the vectors.
    """

    bijective = False

    def __init__(self, ndims: int) -> None:
        super().__init__()
        self.ndims = ndims
        self.domain = constraints.independent(constraints.real, ndims)
        self.codomain = constraints.independent(constraints.sphere, ndims - 1)

    def __eq__(self, other: Any) -> bool:
        return type(other) is type(self) and other.ndims == self.ndims

    def __hash__(self) -> int:
        return hash((type(self), self.ndims))

    def _call(self, x: Tensor) -> Tensor:
        direction: Tensor = x / x.norm(dim=-1, keepdim=True)
        return direction

    def _inverse(self, y: Tensor) -> Tensor:
        """Returns a vector of this direction with a length drawn at random."""
        length: Tensor = torch.randn_like(y).norm(dim=-1, keepdim=True)
        return y * length

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the logarithm of the factor of f."""
        half = x.shape[-1] / 2
        log_area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        log_normal = -x.square().sum(-1) / 2 - half * math.log(2 * math.pi)
        log_factor: Tensor = sum_rightmost(log_normal + log_area, self.ndims - 1)
        return log_factor


class _ToCircle(_ToSphere):
    """The angle of a vector of two numbers, from -pi to pi.

    Arguments:
        ndims: The dimensions of the support, whose elements are angles.
    """

    def __init__(self, ndims: int) -> None:
        super().__init__(ndims + 1)
        self.codomain = constraints.independent(constraints.interval(-math.pi, math.pi), ndims)

    def _call(self, x: Tensor) -> Tensor:
        return torch.atan2(x[..., 1], x[..., 0])

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(torch.stack([y.cos(), y.sin()], -1))
