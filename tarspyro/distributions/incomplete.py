"""Densities of data with gaps."""

__all__ = ["Incomplete", "has_gaps", "log_prob_of_known"]

import math

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Size, Tensor
from torch.distributions import Distribution, Independent, constraints, transform_to

from tarspyro.distributions.experts import Concatenate, SideBySide


class _WithGaps(constraints.Constraint):
    """A constraint that missing values, NaN, satisfy."""

    def __init__(self, known: constraints.Constraint) -> None:
        self.known = known
        self.is_discrete = known.is_discrete
        self.event_dim = known.event_dim

    def check(self, value: Tensor) -> Tensor:
        """Returns whether the known elements satisfy the constraint."""
        return _check(self.known, value)

    def __repr__(self) -> str:
        return f"{self.known}, or NaN"


class Incomplete(TorchDistribution):
    r"""A distribution whose values may have gaps, NaN, which are integrated out.

    .. math:: \log p(x_\mathrm{known}) = \sum_{i \text{ known}} \log p_i(x_i)

    The elements of the distribution are independent given its parameters, as those of a
    likelihood are, so that a gap is left out of the sum. A vector that belongs together, such
    as the one-hot vector of a category, is known or missing as a whole: one that is missing in
    part is outside the support, and its log-density is NaN.

    Arguments:
        base: The distribution of complete values.

    Example:
        >>> import pyro.distributions as dist
        >>> p = Incomplete(dist.Normal(torch.zeros(3), 1.0).to_event(1))
        >>> value = torch.tensor([0.0, float("nan"), 0.0])
        >>> round(p.log_prob(value).item(), 4)  # two standard Normals at 0
        -1.8379
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base: Distribution, validate_args: bool | None = None) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the draws of the distribution are reparameterized."""
        return bool(self.base.has_rsample)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Never: what has gaps is observed."""
        return False

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of the distribution, and NaN."""
        return _WithGaps(_support(self.base))

    def expand(
        self, batch_shape: Size | list[int] | tuple[int, ...], _instance: object = None
    ) -> "Incomplete":
        """Returns the distribution with another batch shape."""
        return Incomplete(self.base.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of the known elements, in nats."""
        return log_prob_of_known(self.base, value)

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Returns complete draws."""
        return self.base.sample(Size(sample_shape))

    def rsample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Returns complete draws, reparameterized."""
        return self.base.rsample(Size(sample_shape))

    @property
    def mean(self) -> Tensor:
        """The mean of complete values."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance of complete values."""
        return self.base.variance


def _check(known: constraints.Constraint, value: Tensor) -> Tensor:
    if isinstance(known, SideBySide):
        parts = value.split(known.sizes, -1)
        checked = [_check(part, x) for part, x in zip(known.supports, parts, strict=True)]
        return torch.stack(torch.broadcast_tensors(*checked)).all(0)
    if isinstance(known, constraints.independent):
        inner = _check(known.base_constraint, value)
        ndims = known.reinterpreted_batch_ndims
        return inner.flatten(inner.dim() - ndims).all(-1) if ndims else inner
    missing, partly, filled = _gaps(known, value)
    inside: Tensor = known.check(filled)
    return missing | (inside & ~partly)


def _support(distribution: Distribution) -> constraints.Constraint:
    support: constraints.Constraint = distribution.support  # type: ignore[assignment]
    return support


def has_gaps(distribution: object) -> bool:
    """Returns whether values of the distribution may be missing in part."""
    while isinstance(distribution, (Independent, MaskedDistribution)):
        distribution = distribution.base_dist
    if isinstance(distribution, Concatenate):
        return any(map(has_gaps, distribution.blocks))
    return isinstance(distribution, Incomplete)


def log_prob_of_known(distribution: Distribution, value: Tensor) -> Tensor:
    """Returns the log-density of the elements that are not NaN, which are independent.

    It is NaN where elements that belong together are missing in part.
    """
    log_prob: Tensor
    if isinstance(distribution, Concatenate):
        parts = value.split(distribution.sizes, -1)
        blocks = zip(distribution.blocks, parts, strict=True)
        log_probs = [log_prob_of_known(block, part) for block, part in blocks]
        return torch.stack(torch.broadcast_tensors(*log_probs)).sum(0)
    if isinstance(distribution, Incomplete):
        return log_prob_of_known(distribution.base, value)
    if isinstance(distribution, Independent):
        inner = log_prob_of_known(distribution.base_dist, value)
        log_prob = sum_rightmost(inner, distribution.reinterpreted_batch_ndims)
        return log_prob
    if isinstance(distribution, MaskedDistribution):
        inner = log_prob_of_known(distribution.base_dist, value)
        log_prob = scale_and_mask(inner, mask=distribution._mask)
        return log_prob
    missing, partly, filled = _gaps(_support(distribution), value)
    log_prob = distribution.log_prob(filled)
    return log_prob.masked_fill(missing, 0.0).masked_fill(partly, math.nan)


def _gaps(support: constraints.Constraint, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns which events are missing, which in part, and the value with all of them filled."""
    gaps = value.isnan()
    flat = (
        gaps.flatten(value.dim() - support.event_dim) if support.event_dim else gaps[..., None]
    )
    some = flat.any(-1)
    missing = flat.all(-1)
    filled = torch.where(
        some.reshape(some.shape + (1,) * support.event_dim), _inside(support, value), value
    )
    return missing, some & ~missing, filled


def _inside(support: constraints.Constraint, like: Tensor) -> Tensor:
    """Returns values inside the support, of the shape and type of others."""
    zeros = torch.zeros_like(like)
    if support.is_discrete:
        if support.event_dim:  # one of several classes
            zeros[..., 0] = 1.0
        return zeros + getattr(support, "lower_bound", 0)
    inside: Tensor = transform_to(support)(zeros)
    return inside
