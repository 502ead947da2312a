"""A linear-Gaussian pair with a correlated posterior, in closed form."""

import pyro.distributions as dist
import torch

from ..programs import LinearGaussian


class Correlated(LinearGaussian):
    """A linear-Gaussian pair whose posterior is correlated, so that no factorized guide is
    exact.
    """

    def __init__(self, num=50):
        super().__init__(num=num)
        with torch.no_grad():
            self.weight.copy_(
                torch.tensor([[1.0, 0.8], [0.5, 0.6], [-0.3, -0.2], [0.2, 0.3], [1.0, 1.1]])
            )
        self.precision = (
            torch.eye(2) + self.weight.detach().T @ self.weight.detach() / self.scale**2
        )
        self.posterior_covariance = self.precision.inverse()
        with torch.no_grad():
            self.map.copy_(self.posterior_covariance @ self.weight.T / self.scale**2)
            # Wider than the posterior, so that importance weights are bounded.
            self.log_scale.copy_((1.4 * self.posterior_covariance.diagonal().sqrt()).log())

    def truth(self, x):
        return dist.MultivariateNormal((x @ self.map.T).detach(), self.posterior_covariance)

    def as_multivariate(self, x):
        q = self.posterior(x).base_dist
        return dist.MultivariateNormal(
            q.loc.detach(), torch.diag_embed(q.variance.detach().expand(q.loc.shape))
        )

    def approximation(self):
        """KL(q* || p) of the best factorized Gaussian, whose precisions are the diagonal of
        the posterior's.
        """
        return 0.5 * (self.precision.diagonal().log().sum() - self.precision.logdet())
