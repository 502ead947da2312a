"""Families of counts: their log-probabilities in single precision are those of double precision."""

import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from tarspyro import Conditional, distributions
from tarspyro.distributions import Prior
from tarspyro.nn import MLP

MANY = 1e6

# The parameters of each family.
FAMILIES = {
    "Poisson": {"rate": MANY},
    "NegativeBinomial": {"total_count": MANY, "logits": -2.0},
    "GammaPoisson": {"concentration": MANY, "rate": 5.0},
    "Binomial": {"total_count": 2 * MANY, "logits": 0.0},
    "BetaBinomial": {"concentration1": MANY, "concentration0": MANY, "total_count": 2 * MANY},
    "DirichletMultinomial": {"concentration": [MANY, MANY], "total_count": 2 * MANY},
    "Multinomial": {"probs": [0.5, 0.5]},
    "ZeroInflatedPoisson": {"rate": MANY, "gate_logits": 0.0},
    "ZeroInflatedNegativeBinomial": {"total_count": MANY, "logits": -2.0, "gate_logits": 0.0},
}


def make(library, name, dtype):
    parameters = {
        key: torch.tensor(value, dtype=dtype) for key, value in FAMILIES[name].items()
    }
    return getattr(library, name)(**parameters, validate_args=False)


# scvi-tools #2965, pyro #1706: log-probabilities of large counts and dispersions were wrong by nats.
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_log_prob_is_that_of_double_precision(name):
    torch.manual_seed(0)
    family = make(distributions, name, torch.float32)
    exact = make(dist, name, torch.float64)
    value = exact.mean * (1 + torch.randn(50, *exact.event_shape) / 1000)
    if name == "Multinomial":  # whose mean is of one draw
        value = value * 2 * MANY
    value = value.round().float()
    expected = exact.log_prob(value.double())
    found = family.log_prob(value)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    # Also where the mean was computed before, and after an expansion.
    assert family.mean.dtype == torch.float32
    torch.testing.assert_close(family.log_prob(value), found)
    again = make(distributions, name, torch.float32).expand([50])
    assert type(again) is type(family)
    torch.testing.assert_close(again.log_prob(value), found)


def test_agrees_with_scipy_at_every_dispersion():
    value = torch.arange(20.0)
    for total_count in (0.1, 10.0, 1e4, 1e7):
        logits = torch.tensor(5.0 / total_count).log()
        family = distributions.NegativeBinomial(total_count, logits=logits)
        probs = 1 / (1 + logits.double().exp().item())
        expected = stats.nbinom.logpmf(value.numpy(), total_count, probs)
        torch.testing.assert_close(
            family.log_prob(value).double(), torch.tensor(expected), rtol=1e-4, atol=1e-5
        )


def test_gradients_reach_the_parameters_in_their_type():
    rate = torch.tensor([3.0, 5.0], requires_grad=True)
    value = torch.tensor([4.0, 0.0])
    distributions.Poisson(rate).log_prob(value).sum().backward()
    torch.testing.assert_close(rate.grad, value / rate.detach() - 1)


def test_values_are_still_checked():
    with pytest.raises(ValueError, match="support"):
        distributions.Poisson(torch.tensor(3.0)).log_prob(torch.tensor(0.5))


def test_conditionals_and_priors_use_them_in_place_of_pyros():
    likelihood = Conditional(dist.NegativeBinomial, MLP(2, [4]), 3)(torch.zeros(5, 2))
    assert isinstance(likelihood.base_dist, distributions.NegativeBinomial)
    prior = Prior(dist.Poisson, 3, rate=2.0)()
    assert isinstance(prior.base_dist, distributions.Poisson)
