"""Bits per dimension against closed forms: uniform and independent levels, dequantized densities."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import (
    Autoregressive,
    Conditional,
    IncompleteLikelihood,
    evaluate,
    guides,
    models,
)
from tarspyro.conditional import Blocks
from tarspyro.data import Sequences, Split
from tarspyro.distributions import DiscretizedLogistic, default_prior
from tarspyro.evaluate import bits_per_dim
from tarspyro.infer.traces import PairError
from tarspyro.nn import MLP, PixelCNN


def independent(likelihood, shape):
    """A pair whose latent variable has no influence, so that weights have no noise."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", likelihood.expand(shape).to_event(len(shape)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return model, guide


SHAPE = (3, 4, 5)
BYTES = torch.randint(256, (7, *SHAPE), generator=torch.Generator().manual_seed(0)).double()


def test_discrete_likelihoods_are_probabilities():
    # A very wide logistic distribution has half of its probability at each end.
    x = BYTES / 255
    likelihood = DiscretizedLogistic(torch.tensor(0.4).double(), torch.tensor(0.2).double())
    found = bits_per_dim(independent(likelihood, SHAPE), x, num_particles=3, seed=0)
    exact = -likelihood.log_prob(x).flatten(1).sum(1) / (60 * math.log(2))
    assert torch.allclose(found.bits, exact)
    assert found.mean == pytest.approx(exact.mean().item())
    assert found.standard_error == pytest.approx(exact.std().item() / 7**0.5)
    assert found.monte_carlo_error == pytest.approx(0.0, abs=1e-7)

    uniform = DiscretizedLogistic(torch.tensor(0.5).double(), torch.tensor(1e6).double(), 2)
    black_and_white = (BYTES > 127).double()
    found = bits_per_dim(independent(uniform, SHAPE), black_and_white, num_particles=2)
    assert torch.allclose(found.bits, torch.ones(7).double(), atol=1e-6)


def test_densities_of_scaled_data_are_those_of_the_bytes():
    """A density that is constant on the cells of the bytes has exactly their bits."""
    noise = torch.rand(BYTES.shape, dtype=torch.float64)
    for divisor in (256.0, 255.0, 127.5, 1.0):
        x = (BYTES + noise) / divisor
        uniform = dist.Uniform(torch.tensor(0.0).double(), 256 / divisor)
        pair = independent(uniform, SHAPE)
        found = bits_per_dim(pair, x, divisor=divisor, num_particles=2)
        assert torch.allclose(found.bits, torch.full((7,), 8.0).double())

    # Any other density bounds the bits of its own cells from above, on average over the noise.
    normal = dist.Normal(torch.tensor(0.5).double(), 0.3)
    ends = torch.arange(257).double() / 256
    cells = normal.cdf(ends).diff()
    exact = -cells[BYTES.long()].log2().flatten(1).mean(1)
    pair = independent(normal, SHAPE)
    averaged = torch.stack(
        [
            bits_per_dim(
                pair,
                (BYTES + torch.rand(BYTES.shape).double()) / 256,
                divisor=256,
                num_particles=2,
            ).bits
            for _ in range(50)
        ]
    )
    excess = averaged.mean(0) - exact
    assert (excess.abs() < 4 * averaged.std(0) / 50**0.5 + 1e-5).all()


def test_numbers_of_an_evaluation():
    x = torch.zeros(4, 2, 3)
    nats = torch.tensor([-6.0, -12.0, -18.0, -24.0]) * math.log(2)
    found = bits_per_dim(nats, x)
    assert torch.allclose(found.bits, torch.tensor([1.0, 2, 3, 4]).double())
    assert found.mean == pytest.approx(2.5) and math.isnan(found.monte_carlo_error)
    assert found.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert bits_per_dim(nats, x, divisor=256).mean == pytest.approx(10.5)
    assert bits_per_dim(nats, x, divisor=255).mean == pytest.approx(2.5 + math.log2(255))

    estimate = evaluate.LogLikelihood(nats, torch.full((4,), 0.3), torch.ones(4))
    error = bits_per_dim(estimate, x).monte_carlo_error
    assert error == pytest.approx(0.3 / 2 / (6 * math.log(2)))
    bound = evaluate.BoundEstimate(nats, nats + 1, torch.ones(4))
    assert bits_per_dim(bound, Split(x)).mean == pytest.approx(2.5)
    found = bits_per_dim(nats.numpy(), x.numpy())
    assert isinstance(found.bits, np.ndarray) and found.mean == pytest.approx(2.5)
    assert math.isnan(bits_per_dim(nats[:1], x[:1]).standard_error)


def test_a_pair_with_binarized_pixels():
    torch.manual_seed(0)
    x = torch.rand(20, 12)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 12))
    q = guides.VAE(Conditional(dist.Normal, MLP(12, [8]), 2))
    options = {"num_particles": 20, "binarize": True, "seed": 3}
    found = bits_per_dim((p, q), Split(x), **options)
    nats = evaluate.log_likelihood(p, q, x, errors=True, **options)
    assert torch.equal(found.bits, bits_per_dim(nats, x).bits)
    assert found.monte_carlo_error > 0
    as_array = bits_per_dim((p, q), x.numpy(), **options)
    assert isinstance(as_array.bits, np.ndarray) and as_array.mean == found.mean


def test_a_density_has_exact_bits():
    torch.manual_seed(0)
    trunk = PixelCNN((3, 4, 5), 6, 2)
    p = models.Density(Autoregressive(DiscretizedLogistic, trunk, (3, 4, 5)))
    x = BYTES.float() / 255
    found = bits_per_dim((p, None), x, num_particles=2)
    exact = -p.likelihood().log_prob(x) / (60 * math.log(2))
    assert torch.allclose(found.bits, exact.double().to(found.bits.dtype))
    assert found.monte_carlo_error == 0
    with pytest.raises(ValueError, match="x has sequences"):
        bits_per_dim((p, None), Sequences(x, torch.full((7,), 3)))


def pair_of(likelihood):
    encoder = Conditional(dist.Normal, MLP(4, [8]), 2)
    return models.VAE(default_prior(dist.Normal, 2), likelihood), guides.VAE(encoder)


GREY = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
GAPS = torch.where(GREY > 0.9, torch.tensor(float("nan")), GREY)


def trunk():
    return MLP(2, [8])


def refused():
    normal = Conditional(dist.Normal, trunk(), 4)
    bernoulli = Conditional(dist.Bernoulli, trunk(), 4)
    grey = Conditional(dist.Bernoulli, trunk(), 4, validate_args=False)
    half = [Conditional(family, trunk(), 2) for family in (dist.Normal, dist.Bernoulli)]
    mixed = torch.cat([GREY[:, :2], GREY[:, 2:].round()], 1)
    return {
        "no divisor": (pair_of(normal), GREY, {}, "divisor must be given, because x has a dens"),
        "a divisor": (pair_of(bernoulli), GREY.round(), {"divisor": 255}, "must be None.*got 255"),
        "cross-entropy": (pair_of(grey), GREY, {}, "no probability.*binarize=True"),
        "mixed": (pair_of(Blocks(*half)), mixed, {}, "discrete and continuous elements"),
        "gaps": (pair_of(IncompleteLikelihood(normal)), GAPS, {"divisor": 1}, "missing values"),
        "gaps of numbers": (torch.zeros(10), GAPS, {}, "missing values, NaN"),
        "the mean": (torch.tensor(3.0), GREY, {}, "one number for each data point.*the mean"),
        "rows": (torch.zeros(9), GREY, {}, r"x must be the 9 data points.*\(9, \*event\)"),
        "no scale": (torch.zeros(10), GREY, {"divisor": 0}, "divisor must be positive"),
    }  # fmt: skip


@pytest.mark.parametrize("case", refused())
def test_what_has_no_bits_is_refused(case):
    given, x, options, message = refused()[case]
    if isinstance(given, tuple) and isinstance(given[1], nn.Module) and case == "gaps":
        given = (given[0], guides.VAE(Conditional(dist.Normal, Zeros(), 2)))
    with pytest.raises(ValueError, match=message):
        bits_per_dim(given, x, num_particles=5, **options)


class Zeros(nn.Module):
    """An encoder that does not look at its input."""

    out_features = 3

    def forward(self, x):
        return torch.zeros(len(x), 3)


def test_a_pair_that_observes_several_sites_is_refused():
    def model(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=x)
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(PairError, match=r"observes \['x', 'y'\]"):
        bits_per_dim((model, guide), (GREY, GREY[:, 0]), divisor=1)
    with pytest.raises(TypeError, match="got 3 programs"):
        bits_per_dim((model, guide, guide), GREY)
    with pytest.raises(TypeError, match="log_likelihood must be numbers"):
        bits_per_dim("all of them", GREY)
