"""Dirichlet and Beta: shares of Gamma variables, in log space."""

__all__ = ["Beta", "Dirichlet"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.distributions.drawing import (
    check_parameters,
    full_precision,
    inside_unit_interval,
    instead,
    log1m_inside,
    log_inside,
    on_simplex,
    power_at_zero,
    remember,
    summed,
)
from tarspyro.distributions.gamma import HALF_LOG_TAU, FromGammas, gamma_entropy
from tarspyro.distributions.rejection import digamma_remainder, stirling_remainder


class Dirichlet(FromGammas, dist.Dirichlet):
    r"""The Dirichlet distribution: independent Gamma variables, divided by their sum.

    .. math:: p(z) = \frac{\Gamma(\sum_k \alpha_k)}{\prod_k \Gamma(\alpha_k)} \prod_k z_k^{\alpha_k - 1}, \qquad
              z_k = \frac{g_k}{\sum_j g_j}, \quad g_k \sim \mathrm{Gamma}(\alpha_k, 1)

    Draws, gradients and what a draw remembers are as with ``Gamma``; the score is the sum of
    those of the K Gammas.

    Arguments:
        concentration: Positive, of shape ``batch_shape + (K,)``.
        boost: See ``Gamma``.
        reparameterization: See ``Gamma``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> z = Dirichlet(torch.full((10,), 1e-3)).rsample((1000,))
        >>> bool((z > 0).all()), bool(torch.isfinite(Dirichlet(torch.full((10,), 1e-3)).log_prob(z)).all())
        (True, True)
    """

    def __init__(
        self,
        concentration: Tensor,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(concentration=concentration)
        if (
            not torch.is_tensor(concentration)
            or not concentration.dim()
            or not concentration.numel()
        ):
            raise ValueError(
                "concentration must be of shape batch_shape + (K,), got"
                f" {format_value(concentration)}."
            )
        self._set_sampler(boost, reparameterization)
        super().__init__(concentration, validate_args=validate_args)
        self._check_boost(self.concentration)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(Dirichlet, _instance)
        return super().expand(batch_shape, new)._like(self)  # type: ignore[no-untyped-call]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, which remember their logarithms."""
        log_gammas, score = self._log_gammas(
            self.concentration, self._extended_shape(sample_shape)
        )
        log = torch.log_softmax(log_gammas, -1)
        return remember(
            on_simplex(log, self.concentration.dtype), log=log, score=summed(score)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, accurate at large concentrations too."""
        if (
            self._validate_args and torch.finfo(value.dtype).bits >= 32
        ):  # shares in half precision sum to 1 +- 1 %
            self._validate_sample(value)
        return _dirichlet_log_prob(
            value, *log_inside(value), full_precision(self.concentration)
        )

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, accurate at large concentrations too."""
        return _dirichlet_entropy(full_precision(self.concentration))


class Beta(FromGammas, dist.Beta):
    r"""The Beta distribution: one Gamma variable's share of two.

    .. math:: p(z) = \frac{\Gamma(\alpha + \beta)}{\Gamma(\alpha) \Gamma(\beta)} z^{\alpha - 1} (1 - z)^{\beta - 1},
              \qquad z = \frac{g_1}{g_1 + g_0}, \; g_1 \sim \mathrm{Gamma}(\alpha, 1), g_0 \sim
              \mathrm{Gamma}(\beta, 1)

    Draws stay strictly between 0 and 1 and remember log z and log(1 - z), however small;
    gradients are as with ``Gamma``, and the score is the sum of those of the two Gammas.

    Arguments:
        concentration1: alpha, positive.
        concentration0: beta, positive.
        boost: See ``Gamma``.
        reparameterization: See ``Gamma``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> z = Beta(torch.tensor(0.01), torch.tensor(0.01)).rsample((1000,))
        >>> bool(((z > 0) & (z < 1)).all())
        True
    """

    def __init__(
        self,
        concentration1: Any,
        concentration0: Any,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        check_parameters(concentration1=concentration1, concentration0=concentration0)
        for name, value in (
            ("concentration1", concentration1),
            ("concentration0", concentration0),
        ):
            if torch.is_tensor(value) and not value.numel():
                raise ValueError(f"{name} must hold numbers, got {format_value(value)}.")
        self._set_sampler(boost, reparameterization)
        super().__init__(concentration1, concentration0, validate_args=validate_args)
        self._check_boost(self._dirichlet.concentration)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(Beta, _instance)
        return super().expand(batch_shape, new)._like(self)  # type: ignore[no-untyped-call]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, which remember log z and log(1 - z)."""
        concentration = self._dirichlet.concentration
        log_gammas, score = self._log_gammas(
            concentration, self._extended_shape(sample_shape) + (2,)
        )
        return inside_unit_interval(
            log_gammas[..., 0] - log_gammas[..., 1], concentration.dtype, summed(score)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, accurate at large concentrations too."""
        if self._validate_args:
            self._validate_sample(value)
        (log, zero), (log1m, one) = log_inside(value), log1m_inside(value)
        logs, edges = torch.stack([log, log1m], -1), None
        if zero is not None and one is not None:
            edges = torch.stack([zero, one], -1)
            value = torch.stack([value, 1 - value], -1)
        return _dirichlet_log_prob(
            value, logs, edges, full_precision(self._dirichlet.concentration)
        )

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, accurate at large concentrations too."""
        return _dirichlet_entropy(full_precision(self._dirichlet.concentration))


def _dirichlet_entropy(concentration: Tensor) -> Tensor:
    """Gammas are their sum and its shares, with a volume of the sum to the power K - 1, and
    the two are independent.
    """
    total = concentration.sum(-1)
    log_mean = total.log() + digamma_remainder(total)
    return (
        gamma_entropy(concentration).sum(-1)
        - gamma_entropy(total)
        - (concentration.shape[-1] - 1) * log_mean
    )


def _dirichlet_log_prob(
    value: Tensor, log: Tensor, zero: Tensor | None, concentration: Tensor
) -> Tensor:
    """With Stirling's formula taken out of the normalizer, and a term added that sums to zero
    over the simplex.
    """
    total = concentration.sum(-1)
    ratio = log - concentration.log() + total.log().unsqueeze(-1)
    excess = instead(
        zero,
        lambda: full_precision(value) * total.unsqueeze(-1) / concentration - 1,
        torch.expm1(ratio),
    )
    terms = (
        concentration * (ratio - excess)
        - log
        + power_at_zero(concentration - 1, zero)
        + 0.5 * concentration.log()
        - stirling_remainder(concentration)
    )
    free = concentration.shape[-1] - 1
    return terms.sum(-1) - 0.5 * total.log() - free * HALF_LOG_TAU + stirling_remainder(total)
