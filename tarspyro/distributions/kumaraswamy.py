"""The Kumaraswamy distribution and stick-breaking distributions."""

__all__ = ["Kumaraswamy", "StickBreaking", "StickBreakingBeta", "StickBreakingKumaraswamy"]

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import pad

from tarspyro.arguments import format_value
from tarspyro.distributions.dirichlet import Beta
from tarspyro.distributions.drawing import (
    CarriesScore,
    bounded_exp,
    check_parameters,
    full_precision,
    inside_unit_interval,
    log_and_log1m,
    log_of,
    log_power_at_zero,
    on_simplex,
    recall,
    remember,
    safe_log,
    safe_log1m,
    summed_score,
)
from tarspyro.types import Distribution, Shape

_EULER_GAMMA = 0.5772156649015329


class Kumaraswamy(TorchDistribution):
    r"""The Kumaraswamy distribution, similar to a Beta, with an inverse cdf in closed form.

    .. math:: p(x) = a b x^{a - 1} (1 - x^a)^{b - 1}, \qquad x = (1 - u^{1/b})^{1/a}

    Draws are computed in log space. They lie strictly between 0 and 1, and carry log x and
    log(1 - x). (Kumaraswamy 1980; Nalisnick and Smyth 2017, arXiv:1605.06197.)

    Arguments:
        concentration1: a, positive.
        concentration0: b, positive.

    Example:
        >>> x = Kumaraswamy(torch.tensor(0.01), torch.tensor(0.01)).rsample((1000,))
        >>> bool(((x > 0) & (x < 1)).all())
        True
    """

    arg_constraints = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    support = constraints.unit_interval
    has_rsample = True

    def __init__(
        self,
        concentration1: Tensor | float,
        concentration0: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(concentration1=concentration1, concentration0=concentration0)
        self.concentration1, self.concentration0 = broadcast_all(
            concentration1, concentration0
        )
        super().__init__(self.concentration1.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Kumaraswamy":
        """Returns the distribution with its batch expanded."""
        new: Kumaraswamy = self._get_checked_instance(Kumaraswamy, _instance)
        new.concentration1 = self.concentration1.expand(batch_shape)
        new.concentration0 = self.concentration0.expand(batch_shape)
        super(Kumaraswamy, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws."""
        a = full_precision(self.concentration1)
        b = full_precision(self.concentration0)
        u = torch.rand_like(a.expand(self._extended_shape(sample_shape)))
        u = u.clamp(min=torch.finfo(a.dtype).eps / 2)

        # With w = u^(1/b): log x = log(1 - w) / a and log(1 - x) = log(1 - (1 - w)^(1/a)).
        log_w = u.log() / b
        log1m_w = log1mexp(log_w)
        log = log1m_w / a
        log1m = log1m_power(log_w, log1m_w, 1 / a)
        value = inside_unit_interval(log - log1m, self.concentration1.dtype)
        return remember(value, log=log, log1m=log1m)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        a = full_precision(self.concentration1)
        b = full_precision(self.concentration0)
        log, zero = safe_log(value)
        log1m, one = safe_log1m(value)
        if zero is None or one is None:
            return a.log() + b.log() + (a - 1) * log + (b - 1) * log1m_power(log1m, log, a)
        edge = zero | one
        # Zero at the edges, with the derivatives of a density that is finite there.
        slopes = torch.where(one, (a - 1) * log, 0.0) - torch.where(
            zero & (a == 1), (b - 1) * value, 0.0
        )
        at_edge = log_power_at_zero(a - 1, zero) + log_power_at_zero(b - 1, one) + slopes
        log = torch.where(edge, -math.log(2), log)
        log1m = torch.where(edge, -math.log(2), log1m)
        inside = (a - 1) * log + (b - 1) * log1m_power(log1m, log, a)
        return a.log() + b.log() + torch.where(edge, at_edge, inside)

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability that a draw is at most x, 1 - (1 - x^a)^b."""
        if self._validate_args:
            self._validate_sample(value)
        return -torch.expm1(self.concentration0 * torch.log1p(-(value**self.concentration1)))

    def icdf(self, value: Tensor) -> Tensor:
        """Returns the quantile of a probability."""
        w = -torch.expm1(torch.log1p(-value) / self.concentration0)
        return w ** (1 / self.concentration1)

    def entropy(self) -> Tensor:
        """Returns the entropy in nats."""
        a = self.concentration1
        b = self.concentration0
        return (b - 1) / b - (a - 1) * self.mean_log - a.log() - b.log()

    @property
    def mean_log(self) -> Tensor:
        """E[log x]."""
        b = self.concentration0
        return -(torch.digamma(b + 1) + _EULER_GAMMA) / self.concentration1

    @property
    def mode(self) -> Tensor:
        """The mode; NaN if it is 0 or 1, or does not exist."""
        a = self.concentration1
        b = self.concentration0
        inside = (a >= 1) & (b >= 1) & (a * b > 1)
        share = torch.where(inside, a - 1, 0.5) / torch.where(inside, a * b - 1, 1.0)
        return torch.where(inside, share ** (1 / a), math.nan)

    def _log_moment(self, order: int) -> Tensor:
        """Returns log E[x^n] = log b + log B(1 + n/a, b)."""
        # In double precision, because large logarithms cancel at large concentrations.
        a = self.concentration1.double()
        b = self.concentration0.double()
        first = 1 + order / a
        return b.log() + torch.lgamma(first) + torch.lgamma(b) - torch.lgamma(first + b)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._log_moment(1).exp().to(self.concentration1.dtype)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        first = self._log_moment(1)
        second = self._log_moment(2)
        variance = (2 * first).exp() * torch.expm1(second - 2 * first)
        return variance.clamp(min=0).to(self.concentration1.dtype)


def log1mexp(log: Tensor) -> Tensor:
    """Returns log(1 - exp(log)) of a negative tensor.

    It is accurate near zero and far from it, and its gradients are finite.
    """
    log = log.clamp(max=-torch.finfo(log.dtype).tiny)
    # Clamped in each branch, whose derivative would be infinite at the other's values.
    near = torch.log(-torch.expm1(log.clamp(min=-math.log(2))))
    far = torch.log1p(-torch.exp(log.clamp(max=-math.log(2))))
    return torch.where(log > -math.log(2), near, far)


def log1m_power(log: Tensor, log1m: Tensor, power: Tensor) -> Tensor:
    """Returns log(1 - (1 - w)^c) from log w and log(1 - w), also if w underflows.

    ``power`` is c.
    """
    # For w and c w below 3e-7 the first term, log(c w), is exact in single precision, and the
    # first two terms are in double precision.
    small = log + power.log().clamp(min=0.0) < -15.0
    w = torch.where(small, log.clamp(max=-15.0).exp(), 0.0)
    series = log + power.log() + torch.log1p((1 - power) / 2 * w)
    closed = log1mexp(power * torch.where(small, -1.0, log1m))
    return torch.where(small, series, closed)


class StickBreaking(CarriesScore, TorchDistribution):
    r"""The stick-breaking distribution over the simplex.

    .. math:: \pi_k = v_k \prod_{j < k} (1 - v_j), \; k < K, \qquad
              \pi_K = \prod_{j < K} (1 - v_j)

    A stick of length one is broken into K pieces by K - 1 breaks v. Density and KL are those of
    the breaks, because the last piece is determined by the others.

    Arguments:
        breaks: The distribution of the K - 1 breaks between 0 and 1, with one event dimension,
            such as ``Kumaraswamy(a, b).to_event(1)``.

    Raises:
        TypeError: If ``breaks`` is not a distribution.
        ValueError: If its draws are not vectors.

    Example:
        >>> breaks = Kumaraswamy(torch.ones(9), torch.full((9,), 5.0)).to_event(1)
        >>> StickBreaking(breaks).rsample().sum().allclose(torch.tensor(1.0))
        True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.simplex
    has_rsample = True

    def __init__(self, breaks: Distribution, validate_args: bool | None = None) -> None:
        if not isinstance(breaks, td.Distribution):
            raise TypeError(
                f"breaks must be a distribution over vectors, got {format_value(breaks)}."
            )
        if len(breaks.event_shape) != 1:
            fix = (
                "leave dimensions out of to_event"
                if breaks.event_shape
                else "add .to_event(1)"
            )
            raise ValueError(
                "breaks must be a distribution over vectors, got the event shape"
                f" {tuple(breaks.event_shape)}: {fix}."
            )
        self.breaks = breaks
        event_shape = torch.Size([breaks.event_shape[0] + 1])
        super().__init__(breaks.batch_shape, event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "StickBreaking":
        """Returns the distribution with its batch expanded."""
        return StickBreaking(
            self.breaks.expand(torch.Size(batch_shape)), validate_args=self._validate_args
        )

    @staticmethod
    def parameter_shape(event_shape: torch.Size) -> torch.Size:
        """Returns the shape of the parameters of the K - 1 breaks."""
        return event_shape[:-1] + (event_shape[-1] - 1,)

    @property
    def partly_reparameterized(self) -> bool:
        """Whether the breaks are partly reparameterized."""
        base = getattr(self.breaks, "base_dist", self.breaks)
        return isinstance(base, CarriesScore) and base.partly_reparameterized

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry their logarithms."""
        breaks = self.breaks.rsample(sample_shape)
        log, log1m = log_and_log1m(breaks)
        left = pad(log1m.cumsum(-1), (1, 0))
        log_pieces = pad(log, (0, 1)) + left
        draw = recall(breaks)
        score = None if draw is None else summed_score(draw.score)
        value = on_simplex(log_pieces, breaks.dtype)
        return remember(value, log=log_pieces, score=score, parts=(breaks,))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_pieces = log_of(value)
        # The stick after k breaks is the sum of the later pieces. Summed from the end, it does
        # not cancel.
        left = torch.logcumsumexp(log_pieces.flip(-1), -1).flip(-1)

        draw = recall(value)
        if draw is not None and draw.parts is not None:
            (breaks,) = draw.parts
        else:
            log = log_pieces[..., :-1] - left[..., :-1]
            log1m = left[..., 1:] - left[..., :-1]
            breaks = bounded_exp(log, value.dtype)
            breaks = remember(breaks, log=log, log1m=log1m, at_edges=draw is None)
        density: Tensor = self.breaks.log_prob(breaks)
        return density - left[..., :-1].sum(-1)

    @property
    def mean(self) -> Tensor:
        """The mean of each piece."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """The variance of each piece."""
        return (self._moment(2) - self.mean**2).clamp(min=0)

    def _moment(self, order: int) -> Tensor:
        """Returns E[v_k^n] prod_{j < k} E[(1 - v_j)^n] for n of 1 or 2; breaks are independent."""
        of_breaks = self.breaks.mean
        of_rest = 1 - of_breaks
        if order == 2:
            of_breaks = of_breaks**2 + self.breaks.variance
            of_rest = of_rest**2 + self.breaks.variance
        left = pad(of_rest.log().cumsum(-1).exp(), (1, 0), value=1.0)
        return pad(of_breaks, (0, 1), value=1.0) * left


class StickBreakingKumaraswamy(StickBreaking):
    r"""The stick-breaking distribution with Kumaraswamy breaks.

    Arguments:
        concentration1: a of each break, of shape ``batch_shape + (K - 1,)``.
        concentration0: b of each break.

    Example:
        >>> StickBreakingKumaraswamy(torch.ones(9), torch.ones(9)).event_shape
        torch.Size([10])
    """

    arg_constraints = {
        "concentration1": constraints.independent(constraints.positive, 1),
        "concentration0": constraints.independent(constraints.positive, 1),
    }

    def __init__(
        self, concentration1: Tensor, concentration0: Tensor, validate_args: bool | None = None
    ) -> None:
        breaks = Kumaraswamy(concentration1, concentration0)
        self.concentration1 = breaks.concentration1
        self.concentration0 = breaks.concentration0
        super().__init__(_vectors(breaks), validate_args=validate_args)


class StickBreakingBeta(StickBreaking):
    r"""The stick-breaking distribution with Beta breaks.

    With :math:`\mathrm{Beta}(1, \alpha)` it is the truncated GEM distribution.

    Arguments:
        concentration1: alpha of each break, of shape ``batch_shape + (K - 1,)``.
        concentration0: beta of each break.

    Example:
        >>> StickBreakingBeta(torch.ones(9), torch.full((9,), 5.0)).event_shape
        torch.Size([10])
    """

    arg_constraints = StickBreakingKumaraswamy.arg_constraints

    def __init__(
        self, concentration1: Tensor, concentration0: Tensor, validate_args: bool | None = None
    ) -> None:
        breaks = Beta(concentration1, concentration0)
        self.concentration1, self.concentration0 = broadcast_all(
            concentration1, concentration0
        )
        super().__init__(_vectors(breaks), validate_args=validate_args)


def _vectors(breaks: Distribution) -> Distribution:
    """Returns the breaks with their last batch dimension, if any, as the event's."""
    vectors: Distribution = breaks.to_event(min(1, len(breaks.batch_shape)))
    return vectors
