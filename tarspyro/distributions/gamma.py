"""Gamma and its kin, reparameterized by rejection sampling, in log space."""

__all__ = ["Chi2", "FromGammas", "Gamma", "InverseGamma", "StudentT", "gamma_entropy"]

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from tarspyro.arguments import check_choice, format_value
from tarspyro.distributions.drawing import (
    CarriesScore,
    bounded,
    check_parameters,
    full_precision,
    instead,
    log_inside,
    power_at_zero,
    remember,
)
from tarspyro.distributions.rejection import (
    digamma_remainder,
    log_gamma_draw,
    stirling_remainder,
)

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


class FromGammas(CarriesScore):
    """What the families that are functions of Gamma variables share: how these are drawn."""

    boost: int
    reparameterization: str

    def _set_sampler(self, boost: int, reparameterization: str) -> None:
        check_choice("reparameterization", reparameterization, ("rejection", "implicit"))
        if isinstance(boost, bool) or not isinstance(boost, int) or boost < 0:
            raise ValueError(
                f"boost must be a whole number, 0 or more, got {format_value(boost)}."
            )
        self.boost, self.reparameterization = boost, reparameterization

    def _check_boost(self, *concentrations: Tensor) -> None:
        # Reads values back, so it belongs to validation.
        if self._validate_args and self.boost == 0 and self.reparameterization == "rejection":
            if any((concentration < 1).any() for concentration in concentrations):
                raise ValueError(
                    "boost=0 is for concentrations of at least 1, got one of"
                    f" {min(concentration.min().item() for concentration in concentrations):g}:"
                    " give boost=1 or more."
                )

    @property
    def partly_reparameterized(self) -> bool:
        return self.reparameterization == "rejection"

    def _log_gammas(
        self, concentration: Tensor, shape: torch.Size
    ) -> tuple[Tensor, Callable[[], Tensor] | None]:
        return log_gamma_draw(
            full_precision(concentration).expand(shape), self.boost, self.reparameterization
        )

    def _like(self, other: Any) -> Any:
        """Takes over the sampler of the distribution that this one is an expansion of."""
        self.boost, self.reparameterization = other.boost, other.reparameterization
        return self


class Gamma(FromGammas, dist.Gamma):
    r"""The Gamma distribution, drawn and differentiated by rejection sampling.

    .. math:: p(z) = \frac{\beta^\alpha}{\Gamma(\alpha)} z^{\alpha - 1} e^{-\beta z}, \qquad
              z = \frac{h(\varepsilon, \alpha + B)}{\beta} \prod_{i=0}^{B-1} u_i^{1 / (\alpha +
              i)}

    Draws are made in log space, so that concentrations down to 1e-4 give neither zeros nor
    NaN: a draw too small for a floating-point number is kept at ``tiny / eps`` (1e-31 in
        single precision) and remembers its logarithm, which
    ``log_prob`` and the gradients use. The gradient is the pathwise derivative of the accepted
    proposal plus the score that ``score_parts`` carries (Naesseth et al. 2017,
    arXiv:1610.05683, eq. 7); each augmentation makes the score smaller, like 1 / (36 (alpha +
    B)^2), at the price of one more uniform number. The pathwise derivative alone is what an
    estimator sees that knows nothing of scores (``pyro.infer.TraceGraph_ELBO`` drops them):
    use ``reparameterization="implicit"`` there, which has none.

    Half precision is computed in single precision: draws come back in the parameters' type,
    log-probabilities in single precision.

    Arguments:
        concentration: The shape, positive.
        rate: The inverse scale, positive.
        boost: B, the number of shape augmentations. 0 needs concentrations of at least 1.
        reparameterization: ``"rejection"``, or ``"implicit"`` for the implicit derivative
            (Figurnov et al. 2018), which is what torch's own Gamma has, here without its
            underflow.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> z = Gamma(torch.tensor(1e-3), torch.tensor(1.0)).rsample((1000,))
        >>> bool((z > 0).all())
        True
    """

    def __init__(
        self,
        concentration: Any,
        rate: Any,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(concentration=concentration, rate=rate)
        self._set_sampler(boost, reparameterization)
        super().__init__(concentration, rate, validate_args=validate_args)
        self._check_boost(self.concentration)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(Gamma, _instance)
        return super().expand(batch_shape, new)._like(self)  # type: ignore[no-untyped-call]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, which remember their logarithms."""
        log_gamma, score = self._log_gammas(
            self.concentration, self._extended_shape(sample_shape)
        )
        log = log_gamma - full_precision(self.rate).log()
        return remember(bounded(log, self.concentration.dtype), log=log, score=score)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, accurate at large concentrations too: around the mode
        nothing cancels.
        """
        if self._validate_args:
            self._validate_sample(value)
        log, zero = log_inside(value)
        concentration = full_precision(self.concentration)
        rate = full_precision(self.rate)
        log_ratio = log + rate.log() - concentration.log()
        excess = instead(
            zero,
            lambda: full_precision(value) * rate / concentration - 1,
            torch.expm1(log_ratio),
        )
        return (
            concentration * (log_ratio - excess)
            - log
            + power_at_zero(concentration - 1, zero)
            + 0.5 * concentration.log()
            - HALF_LOG_TAU
            - stirling_remainder(concentration)
        )

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, accurate at large concentrations too."""
        return (
            gamma_entropy(full_precision(self.concentration)) - full_precision(self.rate).log()
        )


def gamma_entropy(concentration: Tensor) -> Tensor:
    r"""The entropy at rate 1, with :math:`\delta` Stirling's remainder.

    .. math:: \tfrac{1}{2} \log 2 \pi a + \delta(a) - (a - 1)(\psi(a) - \log a)
    """
    remainder = stirling_remainder(concentration) - (concentration - 1) * digamma_remainder(
        concentration
    )
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
        df: Any,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(df=df)
        rate = torch.full_like(df, 0.5) if torch.is_tensor(df) else 0.5
        super().__init__(
            0.5 * df, rate, boost, reparameterization, validate_args=validate_args
        )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
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
        rate: The rate of the Gamma variable, the scale of this one; positive.
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
        concentration: Any,
        rate: Any,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        self.gamma = Gamma(
            concentration, rate, boost, reparameterization, validate_args=validate_args
        )
        self._set_sampler(boost, reparameterization)
        super().__init__(self.gamma.batch_shape, validate_args=validate_args)

    @property
    def concentration(self) -> Tensor:
        """The shape."""
        return self.gamma.concentration

    @property
    def rate(self) -> Tensor:
        """The scale."""
        return self.gamma.rate

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(InverseGamma, _instance)
        new.gamma = self.gamma.expand(batch_shape)
        super(InverseGamma, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new._like(self)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, which remember their logarithms."""
        log_gamma, score = self._log_gammas(
            self.concentration, self._extended_shape(sample_shape)
        )
        log = full_precision(self.rate).log() - log_gamma
        return remember(bounded(log, self.concentration.dtype), log=log, score=score)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log, zero = log_inside(value)
        inverse = remember(bounded(-log, value.dtype), log=-log, at_edges=True)
        return instead(zero, -math.inf, self.gamma.log_prob(inverse) - 2 * log)

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability of at most the value."""
        if self._validate_args:
            self._validate_sample(value)
        probability: Tensor = torch.special.gammaincc(self.concentration, self.rate / value)
        return probability

    def entropy(self) -> Tensor:
        """Returns the entropy in nats: that of the Gamma variable, less the mean of twice its
        logarithm.
        """
        concentration = full_precision(self.concentration)
        log_mean = concentration.log() + digamma_remainder(concentration)
        return gamma_entropy(concentration) + full_precision(self.rate).log() - 2 * log_mean

    @property
    def mode(self) -> Tensor:
        """The value of the highest density."""
        return self.rate / (self.concentration + 1)

    @property
    def mean(self) -> Tensor:
        """The mean, infinite for concentrations of at most 1."""
        return torch.where(
            self.concentration > 1, self.rate / (self.concentration - 1).clamp(min=0), math.inf
        )

    @property
    def variance(self) -> Tensor:
        """The variance, infinite for concentrations of at most 2."""
        excess = (self.concentration - 2).clamp(min=0)
        return torch.where(self.concentration > 2, self.mean**2 / excess, math.inf)


class StudentT(FromGammas, dist.StudentT):  # type: ignore[misc]
    r"""Student's t distribution, :math:`\mu + \sigma n / \sqrt{g}` with :math:`g \sim
    \mathrm{Gamma}(\nu/2, \nu/2)`.

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
        df: Any,
        loc: Any = 0.0,
        scale: Any = 1.0,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(df=df, loc=loc, scale=scale)
        self._set_sampler(boost, reparameterization)
        super().__init__(df, loc, scale, validate_args=validate_args)
        self._check_boost(0.5 * self.df)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(StudentT, _instance)
        return super().expand(batch_shape, new)._like(self)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws."""
        half = full_precision(0.5 * self.df)
        log_gamma, score = self._log_gammas(half, self._extended_shape(sample_shape))
        spread = bounded(0.5 * (half.log() - log_gamma), self.loc.dtype)
        return remember(self.loc + self.scale * torch.randn_like(spread) * spread, score=score)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, accurate for many degrees of freedom and for values
        far out.
        """
        if self._validate_args:
            self._validate_sample(value)
        half, scale = full_precision(0.5 * self.df), full_precision(self.scale)
        size = ((full_precision(value) - full_precision(self.loc)) / scale).abs()
        # log(1 + t^2 / df), whose square overflows for large t and whose logarithm has no
        # derivative at 0.
        near, far = size.clamp(max=1.0), size.clamp(min=1.0)
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
