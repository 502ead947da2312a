"""The low-rank Normal: its log-density in single precision is that of double precision."""

import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional
from tarspyro.distributions import LowRankMultivariateNormal, Prior
from tarspyro.nn import MLP


@pytest.mark.parametrize("diagonal", [1.0, 1e-4, 1e-7, 1e-9])
def test_log_prob_is_that_of_the_full_covariance(diagonal):
    torch.manual_seed(0)
    factor = torch.randn(200, 4, 2)
    family = LowRankMultivariateNormal(
        torch.randn(200, 4), factor, torch.full((200, 4), diagonal)
    )
    value = family.rsample()
    covariance = factor.double() @ factor.double().mT
    covariance = covariance + family.cov_diag.double().diag_embed()
    exact = dist.MultivariateNormal(family.loc.double(), covariance)
    torch.testing.assert_close(
        family.log_prob(value).double(), exact.log_prob(value.double()), rtol=1e-3, atol=1e-3
    )
    assert family.log_prob(value).dtype == torch.float32


def test_expanded_and_differentiated():
    loc = torch.zeros(3, requires_grad=True)
    family = LowRankMultivariateNormal(loc, torch.ones(3, 1), torch.ones(3)).expand([5])
    assert isinstance(family, LowRankMultivariateNormal)
    family.log_prob(torch.ones(3)).sum().backward()
    torch.testing.assert_close(loc.grad, torch.full((3,), 5 / 4))


def test_conditionals_and_priors_use_it_in_place_of_pyros():
    shapes = {"cov_factor": (3, 1)}
    conditional = Conditional(
        dist.LowRankMultivariateNormal, MLP(4, [8]), 3, param_shapes=shapes
    )
    assert isinstance(conditional(torch.zeros(2, 4)), LowRankMultivariateNormal)
    prior = Prior(dist.LowRankMultivariateNormal, 3, param_shapes=shapes)
    assert isinstance(prior(), LowRankMultivariateNormal)
