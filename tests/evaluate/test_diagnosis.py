"""Diagnoses of pairs whose ailments are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, evaluate, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tarspyro.runs import History

WEIGHT = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.5, 1.0]])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT, 0.5).to_event(1), obs=x)


def gaussian(loc, scale):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x), scale).to_event(1))

    return guide


COVARIANCE = (torch.eye(2) + WEIGHT @ WEIGHT.T / 0.25).inverse()


def posterior_mean(x):
    return x @ WEIGHT.T @ COVARIANCE / 0.25


def data(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, generator=generator)
    return z @ WEIGHT + 0.5 * torch.randn(count, 3, generator=generator)


def names(found):
    return [symptom.name for symptom in found.symptoms]


def test_a_good_pair_is_healthy():
    guide = gaussian(posterior_mean, COVARIANCE.diagonal().sqrt())
    state = torch.get_rng_state()
    found = evaluate.diagnose(model, guide, data(600), seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert found.healthy, found
    assert repr(found).startswith("healthy")
    assert found.kl["z"].shape == (2,) and (found.kl["z"] > 0.5).all()


def test_a_guide_that_ignores_the_data():
    guide = gaussian(lambda x: torch.zeros(len(x), 2), 1.0)
    found = evaluate.diagnose(model, guide, data(300), seed=1)  # other draws than the data's
    assert names(found)[:2] == ["collapse", "unused units"]
    assert "free_bits" in found.symptoms[0].remedy and "free_bits" in repr(found)
    assert found.kl["z"].abs().max() == 0
    assert abs(found.decoder_gain.value) < 4 * found.decoder_gain.standard_error
    assert "<td>collapse</td>" in found._repr_html_()


def test_the_gain_is_that_of_the_closed_form():
    """With z = a x exactly, the own code gains E|x - W'z'|^2 - E|x - W'z|^2, over 2 s^2."""
    x = data(4000)
    guide = gaussian(posterior_mean, 1e-3)
    found = evaluate.diagnose(model, guide, x, num_rows=4000, seed=0)
    mean = posterior_mean(x) @ WEIGHT
    own = (x - mean).square().sum(1)
    other = torch.cdist(x, mean).square().mean(1)  # over all other data points
    expected = float((other - own).double().mean()) / 0.5
    assert abs(found.decoder_gain.value - expected) < 4 * found.decoder_gain.standard_error


def test_sorted_data_have_no_collapse():
    """Neighbours in sorted data have codes alike, and the gain is that over any other's."""

    def line(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    x = torch.linspace(-2.0, 2.0, 600)
    found = evaluate.diagnose(line, guide, x, num_rows=600, seed=0)
    assert "collapse" not in names(found)
    # E(x - z')^2 - E(x - z)^2 over 2 s^2, with z' of a row that is independent of x.
    gain = 2 * 0.8 * x.var().item() / (2 * 0.25)
    assert abs(found.decoder_gain.value - gain) < 4 * found.decoder_gain.standard_error


def test_the_kl_falls_into_three_parts():
    """q(z) is a mixture of two clusters far apart, so that all parts are known."""
    signs = torch.tensor([-1.0, 1.0]).repeat(300)
    x = signs.unsqueeze(1).expand(600, 3).contiguous()

    def centre(x):
        return 6.0 * x[:, :1].expand(len(x), 2)

    found = evaluate.diagnose(model, gaussian(centre, 1.0), x, seed=0)
    parts = found.decomposition
    # The cluster is known from z: log 2 nats in both units, which are then dependent.
    assert parts.mutual_information == pytest.approx(math.log(2), abs=1e-3)
    assert parts.total_correlation == pytest.approx(math.log(2), abs=1e-3)
    assert parts.kl == pytest.approx(36.0, abs=4 * 2**0.5 * 6 / 600**0.5)
    assert float(found.kl["z"].sum()) == pytest.approx(36.0, abs=1e-3)
    assert "aggregated posterior" in names(found)
    assert found.decomposition.kl == sum(parts)


def test_overfitting_and_an_unfinished_training():
    guide = gaussian(posterior_mean, COVARIANCE.diagonal().sqrt())
    fitting = data(300) * 0.2  # closer to the mean than the model expects
    found = evaluate.diagnose(model, guide, data(300, 1), train=fitting, seed=0)
    assert names(found) == ["overfitting"] and found.symptoms[0].value > 0.5
    falling = [{"loss": 100.0 * 0.9**epoch} for epoch in range(20)]
    found = evaluate.diagnose(model, guide, data(300), history=falling, seed=0)
    assert names(found) == ["not converged"]
    of_fit = evaluate.diagnose(model, guide, data(300), history=History(falling), seed=0)
    assert names(of_fit) == ["not converged"]
    flat = [{"loss": 100.0} for _ in range(20)]
    assert evaluate.diagnose(model, guide, data(300), history=flat, seed=0).healthy


def test_dead_units_and_saturated_scales():
    torch.manual_seed(0)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [8]), 3))
    trunk = MLP(3, [8, 8])
    q = guides.VAE(Conditional(dist.Normal, trunk, 2))
    assert "dead units" not in names(evaluate.diagnose(p, q, data(100), seed=0))
    with torch.no_grad():
        for half in (p, q):
            for module in half.modules():
                if isinstance(module, nn.Linear) and module.out_features == 8:
                    module.bias.fill_(-100.0)
    found = evaluate.diagnose(p, q, data(100), seed=0)
    dead = next(symptom for symptom in found.symptoms if symptom.name == "dead units")
    assert dead.value == 1.0 and "smaller lr" in dead.remedy

    guide = gaussian(posterior_mean, 1e-6)
    assert "saturated scales" in names(evaluate.diagnose(model, guide, data(100), seed=0))


def test_hierarchies_and_discrete_units():
    torch.manual_seed(0)

    def chain(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
            z = pyro.sample("z", dist.Normal(c.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample(
                "c", dist.Bernoulli(logits=x.unsqueeze(-1).expand(-1, 4)).to_event(1)
            )
            pyro.sample("z", dist.Normal((x + c.sum(-1)) / 2, 0.5**0.5))

    found = evaluate.diagnose(chain, guide, 2 + 2 * torch.randn(200), seed=0)
    assert found.kl["c"].shape == (4,) and found.kl["z"].shape == ()
    assert found.decomposition is None and "collapse" not in names(found)
