"""Pairs whose truth is known in closed form, for the tests of bounds and estimates."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional


class LinearGaussian(nn.Module):
    r"""z ~ N(0, I_2), x | z ~ N(Wz, s^2 I_5), with a shifted and widened Gaussian guide;
    everything is known.

    .. math:: p(x) = N(x; 0, WW^T + s^2 I), \quad p(z \mid x) = N(z; V W^T x / s^2, V), V = (I + W^T W / s^2)^{-1}
    """

    def __init__(self, seed=0, shift=0.3, widen=1.4, num=50):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale = 0.5
        self.weight = nn.Parameter(torch.randn(5, 2, generator=generator, dtype=torch.float64))
        z = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        noise = torch.randn(num, 5, generator=generator, dtype=torch.float64)
        self.x = (z @ self.weight.detach().T + self.scale * noise).detach()
        precision = (
            torch.eye(2, dtype=torch.float64)
            + self.weight.detach().T @ self.weight.detach() / self.scale**2
        )
        self.posterior_covariance = precision.inverse()
        self.map = nn.Parameter(
            (self.posterior_covariance @ self.weight.detach().T / self.scale**2).detach()
        )
        self.shift = nn.Parameter(torch.full((2,), shift, dtype=torch.float64))
        self.log_scale = nn.Parameter(
            (self.posterior_covariance.diagonal().sqrt() * widen).log()
        )

    def prior(self):
        return dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)

    def likelihood(self, z):
        return dist.Normal(z @ self.weight.T, self.scale).to_event(1)

    def posterior(self, x):
        return dist.Normal(x @ self.map.T + self.shift, self.log_scale.exp()).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def exact_posterior_guide(self, x):
        """A guide whose weights have no variance."""
        loc = x @ (self.posterior_covariance @ self.weight.detach().T / self.scale**2).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, self.posterior_covariance))

    def log_likelihood(self, x):
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(
            5, dtype=torch.float64
        )
        zeros = torch.zeros(5, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zeros, covariance).log_prob(x)

    def reconstruction(self, x):
        """E_q[log p(x | z)], in closed form."""
        q = self.posterior(x).base_dist
        error = ((x - q.loc @ self.weight.T) ** 2).sum(-1) + (
            (self.weight**2) @ q.variance.T
        ).T.sum(-1)
        return -error / (2 * self.scale**2) - 2.5 * math.log(2 * math.pi * self.scale**2)

    def kl(self, x):
        q = self.posterior(x).base_dist
        return 0.5 * (q.loc**2 + q.variance - 1 - q.variance.log()).sum(-1)

    def elbo(self, x):
        """The ELBO, in closed form, differentiable."""
        return self.reconstruction(x) - self.kl(x)


def assert_within(draws, truth, what="", errors=4.0):
    """The mean of the draws (over dim 0) is within so many standard errors of the truth."""
    draws, truth = (
        torch.as_tensor(draws, dtype=torch.float64),
        torch.as_tensor(truth, dtype=torch.float64),
    )
    error = draws.std(0) / len(draws) ** 0.5
    off = (draws.mean(0) - truth).abs()
    assert (off <= errors * error + 1e-12).all(), (
        f"{what}: {draws.mean(0)} is not {truth} within {errors} x {error}"
    )


def with_random_heads(half):
    """Gives the heads of all conditional distributions random weights, and returns the half.

    New heads of constrained parameters have zero weights, so that a guide's distribution is
    the same for all data, and often that of its prior.
    """
    for part in half.modules():
        if isinstance(part, Conditional):
            for parameter in part.heads.parameters():
                nn.init.normal_(parameter, std=0.3)
    return half


def as_made(*halves):
    """Keeps ``fit`` from initializing a new pair from the data, and returns the halves.

    It is for tests of what training does: a pair that starts near the data has little to gain
    in a few epochs.
    """
    for half in halves:
        for part in half.modules():
            if isinstance(part, Conditional):
                part.is_new = False
    return halves
