"""A multivariate Normal whose covariance is of low rank plus a diagonal."""

__all__ = ["LowRankMultivariateNormal"]

import pyro.distributions as dist
from torch import Tensor


class LowRankMultivariateNormal(dist.LowRankMultivariateNormal):
    r"""The multivariate Normal with covariance :math:`W W^\top + \mathrm{diag}(d)`.

    It is Pyro's class with a log-density that is computed in double precision. In single
    precision the log-density is a difference of two numbers of the size
    :math:`\lVert W \rVert^2 / d`, whose rounding errors may be larger than the log-density
    itself: a guide then trains towards errors that look like a bound above the evidence.

    ``Conditional`` and ``Prior`` use this class in place of Pyro's.

    Arguments:
        loc: The mean, of shape ``(..., D)``.
        cov_factor: W, of shape ``(..., D, R)``.
        cov_diag: d, of shape ``(..., D)``.
        validate_args: Whether the parameters and the values are checked.

    Example:
        >>> import torch
        >>> factor = torch.ones(2, 1)
        >>> q = LowRankMultivariateNormal(torch.zeros(2), factor, torch.full((2,), 1e-8))
        >>> q.log_prob(torch.tensor([0.5, 0.5]))
        tensor(6.9009)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density, in nats."""
        double = dist.LowRankMultivariateNormal(
            self.loc.double(),
            self.cov_factor.double(),
            self.cov_diag.double(),
            validate_args=False,
        )
        if self._validate_args:
            self._validate_sample(value)
        log_prob: Tensor = double.log_prob(value.double()).to(self.loc.dtype)
        return log_prob
