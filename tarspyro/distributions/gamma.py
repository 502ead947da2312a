"""Gamma and related distributions, reparameterized by rejection sampling in log space."""

__all__ = ["Chi2", "FromGammas", "Gamma", "InverseGamma", "StudentT", "gamma_entropy"]

import math
from collections.abc import Callable
from typing import TypeVar

import pyro.distributions as dist
import torch
import torch.distributions as td
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import softplus

from tarspyro.arguments import check_choice, format_value
from tarspyro.distributions.drawing import (
    CarriesScore,
    bounded_exp,
    check_parameters,
    full_precision,
    log_power_at_zero,
    remember,
    safe_log,
    where_zero,
)
from tarspyro.distributions.rejection import (
    digamma_remainder,
    log_gamma_draw,
    stirling_remainder,
)
from tarspyro.types import Shape

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)

_Family = TypeVar("_Family", bound="FromGammas")


class FromGammas(CarriesScore):
    """The base of families whose draws are functions of Gamma draws."""

    boost: int
    reparameterization: str

    def _set_sampler(self, boost: int, reparameterization: str) -> None:
        check_choice("reparameterization", reparameterization, ("rejection", "implicit"))
        if isinstance(boost, bool) or not isinstance(boost, int) or boost < 0:
            raise ValueError(
                f"boost must be an integer of at least 0, got {format_value(boost)}."
            )
        self.boost = boost
        self.reparameterization = reparameterization

    def _check_boost(self, *concentrations: Tensor) -> None:
        # Only with validation, because reading values waits for the device.
        if self._validate_args and self.boost == 0 and self.reparameterization == "rejection":
            lowest = min(concentration.min().item() for concentration in concentrations)
            if lowest < 1:
                raise ValueError(
                    f"boost=0 needs concentrations of at least 1, got {lowest:g}: give boost=1 or"
                    " more."
                )

    @property
    def partly_reparameterized(self) -> bool:
        return self.reparameterization == "rejection"

    def _log_gammas(
        self, concentration: Tensor, shape: torch.Size
    ) -> tuple[Tensor, Callable[[], Tensor] | None]:
        expanded = full_precision(concentration).expand(shape)
        return log_gamma_draw(expanded, self.boost, self.reparameterization)

    def _like(self: _Family, other: "FromGammas") -> _Family:
        """Copies the options of the sampler from another distribution; returns this one."""
        self.boost = other.boost
        self.reparameterization = other.reparameterization
        return self


class Gamma(FromGammas, dist.Gamma):
    r"""The Gamma distribution, with rejection sampling gradients and draws in log space.

    .. math:: p(z) = \frac{\beta^\alpha}{\Gamma(\alpha)} z^{\alpha - 1} e^{-\beta z}, \qquad
              z = \frac{h(\varepsilon, \alpha + B)}{\beta}
              \prod_{i=0}^{B-1} u_i^{1 / (\alpha + i)}

    Sampling in log space gives neither zeros nor NaN at concentrations down to 1e-4. The value
    of a draw is at least ``tiny / eps`` (1e-31 in single precision), and the draw carries its
    exact logarithm, which ``log_prob`` and the gradients use.

    The gradient is the pathwise derivative of the accepted proposal plus the score in
    ``score_parts`` (Naesseth et al. 2017, arXiv:1610.05683, eq. 7). The score is of the order of
    1 / (36 (alpha + B)^2): each augmentation reduces it, and costs one uniform draw. Estimators
    that ignore scores, such as ``pyro.infer.TraceGraph_ELBO``, need
    ``reparameterization="implicit"``, which has no score.

    Parameters in half precision are computed in single precision: draws have the parameters'
    dtype, and log-densities are in single precision.

    Arguments:
        concentration: The shape, positive.
        rate: The inverse scale, positive.
        boost: B, the number of shape augmentations. 0 needs concentrations of at least 1.
        reparameterization: ``"rejection"``, or ``"implicit"`` for the implicit derivative
            (Figurnov et al. 2018) of torch's own Gamma, here without underflow.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> z = Gamma(torch.tensor(1e-3), torch.tensor(1.0)).rsample((1000,))
        >>> bool((z > 0).all())
        True
    """

    def __init__(
        self,
        concentration: Tensor | float,
        rate: Tensor | float,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(concentration=concentration, rate=rate)
        self._set_sampler(boost, reparameterization)
        super().__init__(concentration, rate, validate_args=validate_args)
        self._check_boost(self.concentration)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Gamma":
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(Gamma, _instance)
        expanded: Gamma = super().expand(batch_shape, new)  # type: ignore[no-untyped-call]
        return expanded._like(self)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry their logarithms."""
        shape = self._extended_shape(sample_shape)
        log_gamma, score = self._log_gammas(self.concentration, shape)
        log = log_gamma - full_precision(self.rate).log()
        return remember(bounded_exp(log, self.concentration.dtype), log=log, score=score)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, without cancellation at large concentrations."""
        if self._validate_args:
            self._validate_sample(value)
        log, zero = safe_log(value)
        concentration = full_precision(self.concentration)
        rate = full_precision(self.rate)
        log_ratio = log + rate.log() - concentration.log()
        excess = where_zero(
            zero,
            lambda: full_precision(value) * rate / concentration - 1,
            torch.expm1(log_ratio),
        )
        return (
            concentration * (log_ratio - excess)
            - log
            + log_power_at_zero(concentration - 1, zero)
            + 0.5 * concentration.log()
            - HALF_LOG_TAU
            - stirling_remainder(concentration)
        )

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, without cancellation at large concentrations."""
        entropy = gamma_entropy(full_precision(self.concentration))
        return entropy - full_precision(self.rate).log()


def gamma_entropy(concentration: Tensor) -> Tensor:
    r"""Returns the entropy at rate 1, with Stirling's remainder :math:`\delta`.

    .. math:: \tfrac{1}{2} \log 2 \pi a + \delta(a) - (a - 1)(\psi(a) - \log a)
    """
    log_mean = digamma_remainder(concentration)
    remainder = stirling_remainder(concentration) - (concentration - 1) * log_mean
    return 0.5 * concentration.log() + HALF_LOG_TAU + remainder


class Chi2(Gamma):
    r"""The chi-squared distribution, :math:`\mathrm{Gamma}(\nu / 2, 1 / 2)`.

    Arguments:
        df: The degrees of freedom, positive.
        boost: See ``Gamma``.
        reparameterization: See ``Gamma``.

    Example:
        >>> Chi2(torch.tensor(3.0)).mean
        tensor(3.)
    """

    arg_constraints = {"df": constraints.positive}

    def __init__(
        self,
        df: Tensor | float,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(df=df)
        rate = torch.full_like(df, 0.5) if torch.is_tensor(df) else 0.5
        super().__init__(
            0.5 * df, rate, boost, reparameterization, validate_args=validate_args
        )

    def expand(self, batch_shape: Shape, _instance: object = None) -> Gamma:
        """Returns the distribution with its batch expanded."""
        return super().expand(batch_shape, self._get_checked_instance(Chi2, _instance))

    @property
    def df(self) -> Tensor:
        """The degrees of freedom."""
        return 2 * self.concentration


class InverseGamma(FromGammas, TorchDistribution):
    r"""The distribution of :math:`1 / g` with :math:`g \sim \mathrm{Gamma}(\alpha, \beta)`.

    .. math:: p(z) = \frac{\beta^\alpha}{\Gamma(\alpha)} z^{-\alpha - 1} e^{-\beta / z}

    Arguments:
        concentration: The shape, positive.
        rate: The rate of the Gamma variable, the scale of its inverse; positive.
        boost: See ``Gamma``.
        reparameterization: See ``Gamma``.

    Example:
        >>> InverseGamma(torch.tensor(3.0), torch.tensor(4.0)).mean
        tensor(2.)
    """

    arg_constraints = {"concentration": constraints.positive, "rate": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(
        self,
        concentration: Tensor | float,
        rate: Tensor | float,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        self.gamma = Gamma(
            concentration, rate, boost, reparameterization, validate_args=validate_args
        )
        self._like(self.gamma)
        super().__init__(self.gamma.batch_shape, validate_args=validate_args)

    @property
    def concentration(self) -> Tensor:
        """The shape parameter."""
        return self.gamma.concentration

    @property
    def rate(self) -> Tensor:
        """The scale parameter."""
        return self.gamma.rate

    def expand(self, batch_shape: Shape, _instance: object = None) -> "InverseGamma":
        """Returns the distribution with its batch expanded."""
        new: InverseGamma = self._get_checked_instance(InverseGamma, _instance)
        new.gamma = self.gamma.expand(batch_shape)
        super(InverseGamma, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new._like(self)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry their logarithms."""
        shape = self._extended_shape(sample_shape)
        log_gamma, score = self._log_gammas(self.concentration, shape)
        log = full_precision(self.rate).log() - log_gamma
        return remember(bounded_exp(log, self.concentration.dtype), log=log, score=score)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log, zero = safe_log(value)
        inverse = remember(bounded_exp(-log, value.dtype), log=-log, at_edges=True)
        return where_zero(zero, -math.inf, self.gamma.log_prob(inverse) - 2 * log)

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability that a draw is at most the value."""
        if self._validate_args:
            self._validate_sample(value)
        probability: Tensor = torch.special.gammaincc(self.concentration, self.rate / value)
        return probability

    def entropy(self) -> Tensor:
        """Returns the entropy in nats: that of the Gamma g minus 2 E[log g]."""
        concentration = full_precision(self.concentration)
        log_mean = concentration.log() + digamma_remainder(concentration)
        return gamma_entropy(concentration) + full_precision(self.rate).log() - 2 * log_mean

    @property
    def mode(self) -> Tensor:
        """The mode."""
        return self.rate / (self.concentration + 1)

    @property
    def mean(self) -> Tensor:
        """The mean, infinite for concentrations of at most 1."""
        excess = (self.concentration - 1).clamp(min=0)
        return torch.where(self.concentration > 1, self.rate / excess, math.inf)

    @property
    def variance(self) -> Tensor:
        """The variance, infinite for concentrations of at most 2."""
        excess = (self.concentration - 2).clamp(min=0)
        return torch.where(self.concentration > 2, self.mean**2 / excess, math.inf)


class StudentT(FromGammas, dist.StudentT):  # type: ignore[misc]
    r"""Student's t distribution, by the Gamma representation.

    .. math:: z = \mu + \sigma n / \sqrt{g}, \qquad n \sim \mathcal{N}(0, 1), \quad
              g \sim \mathrm{Gamma}(\nu/2, \nu/2)

    Arguments:
        df: The degrees of freedom, positive.
        loc: The location.
        scale: The scale, positive.
        boost: See ``Gamma``.
        reparameterization: See ``Gamma``.

    Example:
        >>> StudentT(torch.tensor(5.0)).rsample((3,)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(df=df, loc=loc, scale=scale)
        self._set_sampler(boost, reparameterization)
        self.df, self.loc, self.scale = broadcast_all(df, loc, scale)
        # Past torch's constructor: it copies a number to the device for a part that is not
        # needed here.
        td.Distribution.__init__(self, self.df.shape, validate_args=validate_args)
        self._check_boost(0.5 * self.df)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "StudentT":
        """Returns the distribution with its batch expanded."""
        new: StudentT = self._get_checked_instance(StudentT, _instance)
        new.df = self.df.expand(batch_shape)
        new.loc = self.loc.expand(batch_shape)
        new.scale = self.scale.expand(batch_shape)
        td.Distribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new._like(self)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws."""
        half = full_precision(0.5 * self.df)
        log_gamma, score = self._log_gammas(half, self._extended_shape(sample_shape))
        spread = bounded_exp(0.5 * (half.log() - log_gamma), self.loc.dtype)
        return remember(self.loc + self.scale * torch.randn_like(spread) * spread, score=score)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, accurate for many degrees of freedom and in the tails."""
        if self._validate_args:
            self._validate_sample(value)
        half = full_precision(0.5 * self.df)
        scale = full_precision(self.scale)
        size = ((full_precision(value) - full_precision(self.loc)) / scale).abs()
        # log(1 + t^2 / df) in two branches: t^2 overflows for large t, and log t has no
        # derivative at 0.
        near = size.clamp(max=1.0)
        far = size.clamp(min=1.0)
        log1p = torch.where(
            size < 1,
            torch.log1p(near**2 / (2 * half)),
            softplus(2 * far.log() - (2 * half).log()),
        )
        log_gammas = (
            half * torch.log1p(0.5 / half)
            - 0.5
            + stirling_remainder(half + 0.5)
            - stirling_remainder(half)
        )
        return log_gammas - (half + 0.5) * log1p - HALF_LOG_TAU - scale.log()
