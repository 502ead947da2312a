"""Discretized logistic distributions against scipy's distribution function and enumeration."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from tarspyro import Conditional, FromNetwork, evaluate, fit, guides, models
from tarspyro.distributions import (
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    default_prior,
)
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-38, -20, -10, -3, 0, 3, 10, 20, 37])
def test_gradients_at_extreme_values_are_finite(dtype, exponent):
    """Networks compute such values before they are trained, and where they err."""
    value = torch.arange(256, dtype=dtype) / 255
    for centre in (-1e4, 0.0, 0.5, 1.0, 1e4):
        loc = torch.tensor(centre, dtype=dtype, requires_grad=True)
        scale = torch.tensor(10.0**exponent, dtype=dtype, requires_grad=True)
        found = DiscretizedLogistic(loc, scale).log_prob(value)
        gradients = torch.autograd.grad(found.sum(), (loc, scale))
        assert found.isfinite().all() and all(g.isfinite() for g in gradients)


def test_very_wide_distributions_against_their_closed_form():
    """At a scale s far above 1, both outermost levels have 1/2, the others h / (4 s)."""
    for scale in (1e12, 1e20, 1e36):
        for dtype in (torch.float32, torch.float64):
            found = of(0.5, scale, 256, dtype).log_prob(levels_of(256).to(dtype)).double()
            expected = torch.full((256,), -math.log(4 * 255 * scale), dtype=torch.float64)
            expected[[0, 255]] = math.log(0.5)
            assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("number", [2, 16, 256, 65536])
def test_levels_in_single_precision_are_levels(number):
    """Divided in single or in double precision, by NumPy or by torch."""
    steps = torch.arange(number)
    p = DiscretizedLogistic(0.5, 0.1, num_levels=number)
    for levels in (steps.float() / (number - 1), (steps.double() / (number - 1)).float()):
        assert p.support.check(levels).all()
    assert p.support.check(p.sample((1000,))).all()


BYTES = torch.arange(256).repeat(2)
VALUES = {
    "bytes": (BYTES.to(torch.uint8), 256, "x / 255"),
    "bytes as real numbers": (BYTES.float(), 256, "x / 255"),
    "resized bytes": (BYTES * 0.99, 256, "(x / 255 * 255).round() / 255"),
    "bytes for fewer levels": (BYTES, 16, "(x / 255 * 15).round() / 15"),
    "numbers of levels": (BYTES // 16, 16, "x / 15"),
    "another number of levels": (BYTES / 255, 16, "(x * 15).round() / 15"),
    "from -1 to 1": (BYTES / 127.5 - 1, 256, "(x + 1) / 2"),
    "dequantized": (BYTES / 256 + 0.001, 256, "(x * 255).round() / 255"),
    "half precision": ((BYTES / 255).half(), 256, "(x * 255).round() / 255"),
}


@pytest.mark.parametrize(("x", "number", "remedy"), VALUES.values(), ids=VALUES)
def test_the_remedy_for_values_that_are_no_levels(x, number, remedy):
    x = x.reshape(32, 16)
    p = models.VAE(
        default_prior(dist.Normal, 2),
        Conditional(DiscretizedLogistic, MLP(2, [8]), 16, num_levels=number),
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(16, [8]), 2))
    x = x.float() if x.dtype is torch.int64 else x
    with pytest.raises(InputError, match=f"{number} levels from 0 to 1") as error:
        evaluate.elbo(p, q, x)
    assert str(error.value).endswith(f"{remedy}.")
    # What the sentence says is true.
    repaired = eval(remedy, {"x": x.float()})
    fit(p, q, repaired, epochs=1, progress=False, seed=0)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 3.0), (-0.5, 2.0), (0.0, 300.0)])
def test_values_of_an_unknown_scale(low, high):
    support = DiscretizedLogistic(0.5, 0.1).support
    said = support.remedy("x", torch.tensor([low, high]))
    assert said == "rescale x to numbers from 0 to 1, and round them to the levels"


@pytest.mark.parametrize("family", [DiscretizedLogistic, DiscretizedLogisticMixture])
def test_a_pair_of_colour_images(family):
    torch.manual_seed(0)
    shape = (3, 5, 7)
    x = torch.randint(256, (20, *shape)) / 255
    likelihood = Conditional(family, ConvDecoder(2, shape, [8, 4]), shape)
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder(shape, [4, 8]), 2))
    history = fit(p, q, x, epochs=3, lr=0.01, batch_size=10, seed=0, progress=False)
    assert history["elbo"][-1] > history["elbo"][0]
    found = evaluate.log_likelihood(p, q, x, num_particles=10, seed=0)
    assert found.shape == (20,) and (found < 0).all()
    drawn = evaluate.sample(p, 4, seed=0, mean=False)
    assert p.likelihood(torch.zeros(1, 2)).base_dist.support.check(drawn).all()


class Network(nn.Module):
    """A network that returns a distribution of four levels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 6)

    def forward(self, z):
        loc, scale = self.layer(z).chunk(2, -1)
        return DiscretizedLogistic(loc, scale.exp(), num_levels=4).to_event(1)


def test_the_levels_of_a_network_stay_with_particles():
    likelihood = FromNetwork(Network())
    z = torch.randn(3, 5, 2)
    value = torch.tensor([0.0, 1 / 3, 1.0])
    expected = torch.stack([likelihood(one).log_prob(value) for one in z])
    assert torch.allclose(likelihood(z).log_prob(value), expected)
