"""Distributions whose parameters are random, with bounds on their densities."""

__all__ = ["SemiImplicitDistribution"]

import math
from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from tarspyro.distributions.drawing import recall, remember
from tarspyro.types import Shape


class SemiImplicitDistribution(TorchDistribution):
    r"""The marginal distribution of z, whose parameters depend on an auxiliary variable.

    .. math:: q(z) = \int q(z \mid \psi) \, q(\psi) \, \mathrm{d} \psi

    Its density has no closed form. ``log_prob`` of its own draws is an estimate that is too
    large in the mean, so that bounds on log p(x) stay bounds:

    .. math:: \log q(z) \le \mathbb{E}\left[\log \frac{1}{K + 1} \sum_{k=0}^K
              \frac{q(z \mid \psi_k) \, q(\psi_k)}{\tau(\psi_k \mid z)}\right], \qquad
              \psi_1, \dots, \psi_K \sim \tau(\psi \mid z),

    with the auxiliary variable :math:`\psi_0` that the draw came from. The estimate falls to
    log q(z) with K, and is exact where :math:`\tau` is the posterior of the auxiliary variable.
    Of other values :math:`\psi_0` is not known, and the mean over :math:`k \ge 1` estimates
    q(z) without bias. Its logarithm is too small in the mean, so that it gives no bounds.

    Arguments:
        auxiliary: The distribution :math:`q(\psi)`.
        given: Returns :math:`q(z \mid \psi)` for draws of it.
        reverse: Returns :math:`\tau(\psi \mid z)`, which is reparameterized; None for
            :math:`q(\psi)`.
        num_draws: K, the number of draws from the reverse distribution.

    References:
        Yin and Zhou (2018), Semi-Implicit Variational Inference, arXiv:1805.11183, eq. 8;
        Sobolev and Vetrov (2019), Importance Weighted Hierarchical Variational Inference,
        arXiv:1905.03290, eq. 8.

    Example:
        >>> import pyro.distributions as dist
        >>> mixed = dist.Normal(torch.zeros(5), 1.0)
        >>> q = SemiImplicitDistribution(mixed, lambda psi: dist.Normal(psi, 1.0), None, 10)
        >>> q.rsample().shape
        torch.Size([5])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_density = False

    def __init__(
        self,
        auxiliary: Distribution,
        given: Callable[[Tensor], Distribution],
        reverse: Callable[[Tensor], Distribution] | None,
        num_draws: int,
    ) -> None:
        with torch.no_grad():
            like = given(auxiliary.sample())
        self.given = given
        self.reverse = reverse
        self.num_draws = num_draws
        self._support: constraints.Constraint = like.support  # type: ignore[assignment]
        self._reparameterized = like.has_rsample and auxiliary.has_rsample
        # Each row has an auxiliary variable of its own.
        shape = torch.broadcast_shapes(auxiliary.batch_shape, like.batch_shape)
        self.auxiliary = auxiliary.expand(shape)
        super().__init__(shape, like.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether both its parts are reparameterized."""
        return bool(self._reparameterized)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support given the auxiliary variable."""
        return self._support

    def expand(
        self, batch_shape: Shape, _instance: object = None
    ) -> "SemiImplicitDistribution":
        """Returns the distribution with another batch shape."""
        new: SemiImplicitDistribution = self._get_checked_instance(
            SemiImplicitDistribution, _instance
        )
        for name in ("given", "reverse", "num_draws", "_support", "_reparameterized"):
            setattr(new, name, getattr(self, name))
        new.auxiliary = self.auxiliary.expand(Size(batch_shape))
        super(SemiImplicitDistribution, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which remember their auxiliary variable."""
        psi = self.auxiliary.rsample(Size(sample_shape))
        return self._remembering(self.given(psi).rsample(), psi)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws without gradients, which remember their auxiliary variable."""
        with torch.no_grad():
            psi = self.auxiliary.sample(Size(sample_shape))
            return self._remembering(self.given(psi).sample(), psi)

    def _remembering(self, value: Tensor, psi: Tensor) -> Tensor:
        return remember(value, parts=(psi,), maker=(self.given, torch.is_grad_enabled()))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the estimate of the log-density in nats, an upper bound in the mean."""
        event = len(self.event_shape)
        lead = value.shape[: value.dim() - event]
        shape = torch.broadcast_shapes(lead, self.batch_shape)
        auxiliary = self.auxiliary.expand(shape)
        reverse = auxiliary if self.reverse is None else self.reverse(value).expand(shape)

        draw = recall(value)
        psi = []
        if draw is not None and draw.parts and draw.maker[0] is self.given:
            psi.append(draw.parts[0].unsqueeze(0))
        missing = self.num_draws if psi else max(1, self.num_draws)
        if missing:
            psi.append(reverse.rsample(Size([missing])))
        draws = torch.cat(psi)

        log_ratios = self.given(draws).log_prob(value)
        if self.reverse is not None:
            log_ratios = log_ratios + auxiliary.log_prob(draws) - reverse.log_prob(draws)
        return log_ratios.logsumexp(0) - math.log(len(draws))
