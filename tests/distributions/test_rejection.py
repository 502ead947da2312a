"""The estimators and programs of benchmarks/rsvi, against their papers."""

import importlib
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro.infer import ELBO


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "rsvi")
    return importlib.import_module


@pytest.fixture
def family(script, monkeypatch):
    module = script("sparse_gamma_def")
    monkeypatch.setattr(module, "LAYERS", (3, 2, 2))
    return module


@pytest.fixture
def counts():
    return torch.poisson(torch.full((4, 6), 2.0))


def test_log_joint_has_its_constant(script):
    fig4 = script("dirichlet_multinomial")
    counts = fig4.data()
    assert counts[0] == 1 and counts.sum() == fig4.TRIALS
    z = dist.Dirichlet(torch.ones_like(counts)).sample()
    expected = dist.Dirichlet(torch.ones_like(counts)).log_prob(z) + dist.Multinomial(
        100, probs=z
    ).log_prob(counts)
    torch.testing.assert_close(
        (counts * z.log()).sum() + fig4.constants(counts)["proper"], expected
    )


def test_exact_gradient_vanishes_at_the_optimum(script):
    fig4 = script("dirichlet_multinomial")
    assert fig4.exact_gradient(2.0, fig4.data()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "estimator",
    ["G-REP", "RSVI, B=0", "RSVI, B=1", "RSVI, B=10", "implicit", "implicit, torch"],
)
def test_gradients_are_unbiased(script, estimator):
    fig4 = script("dirichlet_multinomial")
    counts = fig4.data()
    estimates = fig4.gradients(estimator, 3.0, counts, fig4.constants(counts)["proper"], 4_000)
    assert (
        estimates.mean() - fig4.exact_gradient(3.0, counts)
    ).abs() < 5 * estimates.std() / 4_000**0.5


def test_rejection_has_the_published_error(script):
    fig4 = script("dirichlet_multinomial")
    counts = fig4.data()
    error, deviation = fig4.mean_squared_error(
        "RSVI, B=10", 2.0, counts, fig4.constants(counts)["released"], 4_000
    )
    assert abs(error - fig4.PUBLISHED[2.0]["RSVI, B=10"]) < 5 * deviation


@pytest.mark.parametrize("sampler", [{"boost": 2}, {"reparameterization": "implicit"}])
def test_bound_of_the_deep_exponential_family(family, counts, sampler):
    # The paper's estimator one draw at a time, and ours with the KL in closed form, in a plate
    # of particles.
    guide = family.Guide(counts, **sampler)
    expected = family.paper_elbo(guide, counts, 100)
    bound = -ELBO(num_particles=100, max_plate_nesting=1).loss(family.model, guide, counts)
    assert (bound - expected.mean()).abs() < 5 * expected.std() * (2 / 100) ** 0.5


def test_gradients_of_the_family_are_unbiased(script, family, counts):
    table1 = script("gradient_variance")
    pyro.enable_validation(False)
    means, errors = [], []
    for options in ({"boost": 4}, {"reparameterization": "implicit"}):
        guide = table1.ByShapeAndMean(counts, **options)
        estimates = torch.stack([table1.gradient(guide, counts) for _ in range(60)])
        assert estimates.shape[1] == sum(parameter.numel() for parameter in guide.parameters())
        means.append(estimates.mean(0))
        errors.append(estimates.var(0) / 60)
    assert ((means[0] - means[1]).abs() < 5 * (errors[0] + errors[1]).sqrt()).all()


def test_step_sizes_of_the_paper(script):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = script("sparse_gamma_def").PaperSteps([parameter], lr=0.5)
    value, square = parameter.detach().clone(), torch.zeros(2)
    for n in (1, 2, 3):
        optimizer.zero_grad()
        (parameter**2).sum().backward()
        optimizer.step()
        gradient = 2 * value
        square = 0.1 * gradient**2 + 0.9 * square
        value = value - 0.5 * n**-0.5 / (1 + square.sqrt()) * gradient
        torch.testing.assert_close(parameter.detach(), value)


def test_truncation(family, counts):
    guide = family.Guide(counts)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.fill_(-100.0)
    guide.truncate()
    shape, mean = guide.shape_and_mean("z_1")
    torch.testing.assert_close(shape, torch.full_like(shape, 1e-3))
    torch.testing.assert_close(mean, torch.full_like(mean, 1e-4))


def test_levels(script):
    levels = script("sparse_gamma_def").first_reached([-8e7, -6e6, -7e6, -2.5e6, -2.1e6])
    reached = [(row["first"], row["for good"]) for row in levels.values()]
    assert reached == [(1, 3), (3, 3), (4, 4), (None, None)]
