"""Dirichlet and Beta distributions, normalized Gamma variables in log space."""

__all__ = ["Beta", "Dirichlet"]

import pyro.distributions as dist
import torch
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.distributions.drawing import (
    check_parameters,
    full_precision,
    inside_unit_interval,
    log_power_at_zero,
    on_simplex,
    remember,
    safe_log,
    safe_log1m,
    summed_score,
    where_zero,
)
from tarspyro.distributions.gamma import HALF_LOG_TAU, FromGammas, gamma_entropy
from tarspyro.distributions.rejection import digamma_remainder, stirling_remainder
from tarspyro.types import Shape


class Dirichlet(FromGammas, dist.Dirichlet):
    r"""The Dirichlet distribution: independent Gamma variables, divided by their sum.

    .. math:: p(z) = \frac{\Gamma(\sum_k \alpha_k)}{\prod_k \Gamma(\alpha_k)}
              \prod_k z_k^{\alpha_k - 1}, \qquad
              z_k = \frac{g_k}{\sum_j g_j}, \quad g_k \sim \mathrm{Gamma}(\alpha_k, 1)

    Sampling and gradients are those of ``Gamma``: draws carry their logarithms, and their score
    is the sum of the scores of the K Gamma draws.

    Arguments:
        concentration: Positive, of shape ``batch_shape + (K,)``.
        boost: See ``Gamma``.
        reparameterization: See ``Gamma``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> q = Dirichlet(torch.full((10,), 1e-3))
        >>> z = q.rsample((1000,))
        >>> bool((z > 0).all()), bool(torch.isfinite(q.log_prob(z)).all())
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
                "concentration must be a tensor of shape batch_shape + (K,), got"
                f" {format_value(concentration)}."
            )
        self._set_sampler(boost, reparameterization)
        super().__init__(concentration, validate_args=validate_args)
        self._check_boost(self.concentration)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Dirichlet":
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(Dirichlet, _instance)
        expanded: Dirichlet = super().expand(batch_shape, new)  # type: ignore[no-untyped-call]
        return expanded._like(self)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry their logarithms."""
        shape = self._extended_shape(sample_shape)
        log_gammas, score = self._log_gammas(self.concentration, shape)
        log = torch.log_softmax(log_gammas, -1)
        value = on_simplex(log, self.concentration.dtype)
        return remember(value, log=log, score=summed_score(score))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, without cancellation at large concentrations."""
        if (
            self._validate_args and torch.finfo(value.dtype).bits >= 32
        ):  # shares in half precision sum to 1 +- 1 %
            self._validate_sample(value)
        log, zero = safe_log(value)
        return _dirichlet_log_prob(value, log, zero, full_precision(self.concentration))

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, without cancellation at large concentrations."""
        return _dirichlet_entropy(full_precision(self.concentration))


class Beta(FromGammas, dist.Beta):
    r"""The Beta distribution: a Gamma variable, divided by the sum of two.

    .. math:: p(z) = \frac{\Gamma(\alpha + \beta)}{\Gamma(\alpha) \Gamma(\beta)}
              z^{\alpha - 1} (1 - z)^{\beta - 1}, \qquad z = \frac{g_1}{g_1 + g_0}, \quad
              g_1 \sim \mathrm{Gamma}(\alpha, 1), \; g_0 \sim \mathrm{Gamma}(\beta, 1)

    Draws lie strictly between 0 and 1, and carry log z and log(1 - z), however small. Gradients
    are those of ``Gamma``; the score is the sum of the scores of the two Gamma draws.

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
        concentration1: Tensor | float,
        concentration0: Tensor | float,
        boost: int = 4,
        reparameterization: str = "rejection",
        validate_args: bool | None = None,
    ) -> None:
        parameters = {"concentration1": concentration1, "concentration0": concentration0}
        check_parameters(**parameters)
        for name, value in parameters.items():
            if torch.is_tensor(value) and not value.numel():
                raise ValueError(f"{name} must hold numbers, got {format_value(value)}.")
        self._set_sampler(boost, reparameterization)
        super().__init__(concentration1, concentration0, validate_args=validate_args)
        self._check_boost(self._dirichlet.concentration)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Beta":
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(Beta, _instance)
        expanded: Beta = super().expand(batch_shape, new)  # type: ignore[no-untyped-call]
        return expanded._like(self)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry log z and log(1 - z)."""
        concentration = self._dirichlet.concentration
        shape = self._extended_shape(sample_shape) + (2,)
        log_gammas, score = self._log_gammas(concentration, shape)
        logit = log_gammas[..., 0] - log_gammas[..., 1]
        return inside_unit_interval(logit, concentration.dtype, summed_score(score))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, without cancellation at large concentrations."""
        if self._validate_args:
            self._validate_sample(value)
        log, zero = safe_log(value)
        log1m, one = safe_log1m(value)
        logs = torch.stack([log, log1m], -1)
        edges = None
        if zero is not None and one is not None:
            edges = torch.stack([zero, one], -1)
            value = torch.stack([value, 1 - value], -1)
        return _dirichlet_log_prob(
            value, logs, edges, full_precision(self._dirichlet.concentration)
        )

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, without cancellation at large concentrations."""
        return _dirichlet_entropy(full_precision(self._dirichlet.concentration))


def _dirichlet_entropy(concentration: Tensor) -> Tensor:
    """Returns the entropy of a Dirichlet from those of Gamma variables.

    K Gamma variables are a bijection of their sum and their shares of it, which are independent.
    The Jacobian is the sum to the power K - 1.
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
    """Returns the log-density of a Dirichlet.

    Stirling's formula is taken out of the normalizer, and a term that sums to zero over the
    simplex is added, so that nothing cancels at large concentrations.
    """
    total = concentration.sum(-1)
    ratio = log - concentration.log() + total.log().unsqueeze(-1)
    excess = where_zero(
        zero,
        lambda: full_precision(value) * total.unsqueeze(-1) / concentration - 1,
        torch.expm1(ratio),
    )
    terms = (
        concentration * (ratio - excess)
        - log
        + log_power_at_zero(concentration - 1, zero)
        + 0.5 * concentration.log()
        - stirling_remainder(concentration)
    )
    free = concentration.shape[-1] - 1
    return terms.sum(-1) - 0.5 * total.log() - free * HALF_LOG_TAU + stirling_remainder(total)
