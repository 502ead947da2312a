"""Discretized logistic distributions against scipy's distribution function and enumeration."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from tarspyro import Conditional
from tarspyro.distributions import DiscretizedLogistic, DiscretizedLogisticMixture
from tarspyro.nn import MLP

PARAMETERS = [(0.5, 0.1), (0.0, 0.02), (1.3, 0.3), (-4.0, 0.05), (0.37, 1e-3), (0.5, 40.0)]
LEVELS = [2, 3, 17, 256]


def levels_of(number):
    return torch.arange(number, dtype=torch.float64) / (number - 1)


def of(loc, scale, number, dtype=torch.float64):
    parameters = (torch.tensor(value, dtype=dtype) for value in (loc, scale))
    return DiscretizedLogistic(*parameters, num_levels=number)


def mixture(number=256):
    torch.manual_seed(0)
    logits, loc = torch.randn(2, 3, 4, dtype=torch.float64)
    scale = torch.rand(3, 4, dtype=torch.float64) / 5 + 0.01
    return DiscretizedLogisticMixture(logits, loc / 2 + 0.5, scale, num_levels=number)


@pytest.mark.parametrize("number", LEVELS)
@pytest.mark.parametrize(("loc", "scale"), PARAMETERS)
def test_the_probabilities_are_differences_of_the_distribution_function(loc, scale, number):
    found = of(loc, scale, number).log_prob(levels_of(number))
    ends = torch.arange(number - 1).double() / (number - 1) + 0.5 / (number - 1)
    below = stats.logistic.cdf(ends.numpy(), loc, scale)
    above = stats.logistic.sf(ends.numpy(), loc, scale)
    # From whichever tail is smaller, so that the difference keeps its digits.
    lower = [0.0, *below]
    upper = [*below, 1.0]
    survived = [1.0, *above]
    beyond = [*above, 0.0]
    expected = [
        max(u - low, s - b) if low < 0.5 else s - b
        for low, u, s, b in zip(lower, upper, survived, beyond, strict=True)
    ]
    expected = torch.tensor(expected, dtype=torch.float64)
    visible = expected > 1e-12
    assert torch.allclose(found.exp()[visible], expected[visible], rtol=1e-3, atol=1e-13)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("loc", "scale"), PARAMETERS)
def test_log_probabilities_are_finite_where_probabilities_underflow(loc, scale):
    exact = of(loc, scale, 256).log_prob(levels_of(256))
    single = of(loc, scale, 256, torch.float32).log_prob(levels_of(256).float())
    assert exact.isfinite().all() and single.isfinite().all()
    assert torch.allclose(single.double(), exact, rtol=2e-4, atol=2e-3 / min(scale, 1))


@pytest.mark.parametrize("number", LEVELS)
def test_moments_are_those_of_the_levels(number):
    for loc, scale in PARAMETERS:
        p = of(loc, scale, number)
        levels = levels_of(number)
        probabilities = p.log_prob(levels).exp()
        mean = (probabilities * levels).sum()
        variance = (probabilities * (levels - mean) ** 2).sum()
        assert torch.allclose(p.mean, mean, atol=1e-12)
        assert torch.allclose(p.variance, variance, atol=1e-12)
        assert torch.allclose(p.cdf(levels), probabilities.cumsum(0), atol=1e-12)
    p = mixture(number)
    levels = levels_of(number)[:, None]
    probabilities = p.log_prob(levels).exp()
    mean = (probabilities * levels).sum(0)
    assert torch.allclose(probabilities.sum(0), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(p.mean, mean)
    assert torch.allclose(p.variance, (probabilities * (levels - mean) ** 2).sum(0))


@pytest.mark.parametrize("number", [2, 5])
def test_draws_have_the_probabilities(number):
    torch.manual_seed(1)
    for p in (of(0.4, 0.2, number), mixture(number)):
        draws = p.sample((20_000,))
        assert p.support.check(draws).all()
        for level in levels_of(number):
            share = (draws == level).double().mean(0)
            expected = p.log_prob(level).exp()
            error = (expected * (1 - expected) / 20_000).sqrt()
            assert ((share - expected).abs() <= 4.5 * error + 1e-9).all()


def test_a_mixture_is_the_weighted_sum_of_its_components():
    p = mixture()
    value = levels_of(256)[[0, 100, 255], None]
    weights = torch.softmax(p.logits, -1)
    of_each = [
        DiscretizedLogistic(p.loc[:, k], p.scale[:, k]).log_prob(value).exp() for k in range(4)
    ]
    expected = sum(weights[:, k] * of_each[k] for k in range(4))
    assert torch.allclose(p.log_prob(value).exp(), expected)


def test_gradients_are_those_of_the_function():
    value = levels_of(256)[[0, 3, 128, 255]]

    def log_prob(loc, scale):
        return DiscretizedLogistic(loc, scale, validate_args=False).log_prob(value)

    loc = torch.tensor([0.1, 0.2, -3.0, 0.9], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.1, 0.01, 0.02, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_prob, (loc, scale))


def test_values_between_levels_are_refused():
    p = of(0.5, 0.1, 256)
    assert p.support.check(torch.arange(256).float() / 255).all()
    assert not p.support.check(torch.tensor([0.5001, 1.2, -0.1, 17.0])).any()
    with pytest.raises(ValueError, match="support"):
        DiscretizedLogistic(0.5, 0.1, validate_args=True).log_prob(torch.tensor(0.5001))
    with pytest.raises(ValueError, match="num_levels must be 2 or more, got 1"):
        DiscretizedLogistic(0.5, 0.1, num_levels=1)


@pytest.mark.parametrize("family", [DiscretizedLogistic, DiscretizedLogisticMixture])
def test_as_a_likelihood(family):
    likelihood = Conditional(family, MLP(2, [8]), (3, 4, 4))
    p = likelihood(torch.zeros(7, 5, 2))
    assert p.batch_shape == (7, 5) and p.event_shape == (3, 4, 4)
    draws = p.sample()
    assert draws.shape == (7, 5, 3, 4, 4) and p.log_prob(draws).shape == (7, 5)
    assert p.mean.shape == draws.shape
    assert p.expand((2, 7, 5)).log_prob(draws).shape == (2, 7, 5)


def test_number_of_components():
    likelihood = Conditional(DiscretizedLogisticMixture, MLP(2, [8]), 6, num_components=3)
    assert likelihood(torch.zeros(5, 2)).base_dist.logits.shape == (5, 6, 3)


def test_one_level_in_two_is_a_bernoulli():
    p = of(0.5, 1.0, 2)
    assert torch.allclose(
        p.log_prob(levels_of(2)), dist.Bernoulli(logits=0.0).log_prob(levels_of(2))
    )
    assert p.log_prob(levels_of(2)).exp().tolist() == pytest.approx([0.5, 0.5])
    assert math.isclose(p.mean.item(), 0.5)
