"""True posteriors and the KL to them against closed forms."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.ops.stats import effective_sample_size
from torch.distributions import kl_divergence

from tarspyro import Conditional, evaluate, models
from tarspyro.distributions import VonMisesFisher, default_prior
from tarspyro.infer import InputError, PairError
from tarspyro.nn import MLP

from ..programs import assert_within
from .correlated import Correlated


@pytest.fixture(autouse=True)
def _double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def toy():
    return Correlated()


def within(estimate, truth, errors=4.0):
    assert ((estimate.value - truth).abs() <= errors * estimate.standard_error).all(), (
        estimate,
        truth,
    )


@pytest.fixture(scope="module")
def drawn():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    toy = Correlated()
    draws = evaluate.true_posterior(toy.model, toy.x[:2], num_samples=250, warmup=100, seed=0)
    torch.set_default_dtype(default)
    return toy, draws


def mean_is(draws, truth):
    """The mean over correlated draws is within 4 standard errors, by their effective sample
    size.
    """
    error = draws.std(0) / effective_sample_size(draws[None]).sqrt()
    assert ((draws.mean(0) - truth).abs() < 4 * error).all(), (draws.mean(0), truth, error)


class TestTruePosterior:
    def test_has_the_moments_of_the_linear_gaussian(self, drawn):
        toy, draws = drawn
        assert draws["z"].shape == (2, 250, 2)
        for row, posterior in zip(draws["z"], toy.truth(toy.x[:2]).loc, strict=True):
            mean_is(row, posterior)
            centred = row - posterior
            mean_is(
                (centred[:, :, None] * centred[:, None]).flatten(1),
                toy.posterior_covariance.flatten(),
            )

    def test_of_a_positive_variable_and_of_several_chains(self):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Poisson(pyro.sample("z", dist.Gamma(2.0, 1.0))), obs=x)

        x = np.array([4.0])
        state = torch.get_rng_state()
        options = {"num_samples": 150, "warmup": 100, "num_chains": 2, "seed": 0}
        draws = evaluate.true_posterior(model, x, **options)["z"]
        assert torch.equal(state, torch.get_rng_state())
        assert isinstance(draws, np.ndarray) and draws.shape == (1, 300)
        mean_is(torch.as_tensor(draws[0]), torch.tensor(3.0))
        assert not np.array_equal(draws[0, :150], draws[0, 150:]), (
            "each chain has its own start"
        )
        np.testing.assert_array_equal(draws, evaluate.true_posterior(model, x, **options)["z"])

    def test_of_nested_plates_each_row_is_a_data_point(self):
        def model(x):
            with pyro.plate("data", len(x), dim=-2):
                m = pyro.sample("m", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                with pyro.plate("inner", 3, dim=-1):
                    z = pyro.sample("z", dist.Normal(m.sum(-1), 1.0))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("m", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                with pyro.plate("inner", 3, dim=-1):
                    pyro.sample("z", dist.Normal(x, 1.0))

        x = torch.randn(4, 3)
        draws = evaluate.true_posterior(model, x, num_samples=3, warmup=2, seed=0)
        assert draws["m"].shape == (4, 3, 1, 2) and draws["z"].shape == (4, 3, 3)
        at = evaluate.log_densities(model, guide, x, draws)
        m, z = draws["m"].squeeze(2), draws["z"]
        prior = dist.Normal(0.0, 1.0).log_prob(m).sum(-1)
        joint = prior + dist.Normal(m.sum(-1, keepdim=True), 1.0).log_prob(z).sum(-1)
        joint = joint + dist.Normal(z, 1.0).log_prob(x[:, None]).sum(-1)
        torch.testing.assert_close(at.model, joint)
        torch.testing.assert_close(
            at.guide, prior + dist.Normal(x[:, None], 1.0).log_prob(z).sum(-1)
        )

    def test_chains_start_where_the_mass_is(self):
        """Two modes of the same mass, far apart: each has its share of the chains."""

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(20 * (z.abs() - 1.5), 1.0), obs=x)

        draws = evaluate.true_posterior(
            model, torch.zeros(1), num_samples=2, warmup=20, num_chains=40, seed=0
        )["z"]
        sides = (draws.reshape(40, 2)[:, -1] > 0).double()
        assert_within(sides, 0.5)
        torch.testing.assert_close(draws.abs(), torch.full((1, 80), 1.5), atol=0.5, rtol=0)

    def test_leaves_the_parameters_alone(self, drawn):
        toy, _ = drawn
        assert all(value.requires_grad and value.grad is None for value in toy.parameters())

    def test_data_that_the_likelihood_does_not_have_is_refused(self):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

        options = {"num_samples": 3, "warmup": 3}
        for x, sentence in (
            ([1.0, 0.5], "grey values"),  # the second row counts, too
            ([1.0, 3.0], "outside the support of Bernoulli"),
            ([1.0, math.nan], "has NaN"),
        ):
            with pytest.raises(InputError, match=sentence):
                evaluate.true_posterior(model, torch.tensor(x), **options)

    def test_errors(self):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "x", dist.Normal(pyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=x
                )

        with pytest.raises(PairError, match="'z' is Bernoulli"):
            evaluate.true_posterior(model, torch.zeros(1))

        def improper(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        with pytest.raises(PairError, match="no prior that can be drawn from"):
            evaluate.true_posterior(improper, torch.zeros(1))
        for name, value in (("num_samples", 0), ("num_chains", 0), ("warmup", -1)):
            with pytest.raises(ValueError, match=f"{name} must "):
                evaluate.true_posterior(model, torch.zeros(1), **{name: value})


class TestPosteriorKL:
    def test_is_the_closed_form_in_both_directions(self, drawn):
        toy, draws = drawn
        x = toy.x[:2]
        found = evaluate.posterior_kl(
            toy.model, toy.guide, x, draws, num_particles=5000, seed=0
        )
        ours, true = toy.as_multivariate(x), toy.truth(x)
        within(found.guide_to_posterior, kl_divergence(ours, true))
        within(found.posterior_to_guide, kl_divergence(true, ours))

    def test_of_the_exact_posterior_is_zero_without_error(self, drawn):
        toy, draws = drawn
        found = evaluate.posterior_kl(
            toy.model, toy.exact_posterior_guide, toy.x[:2], draws, seed=0
        )
        for estimate in found:
            torch.testing.assert_close(estimate.value, torch.zeros(2))
            assert (estimate.standard_error < 1e-5).all()

    def test_takes_another_log_likelihood(self, drawn):
        toy, draws = drawn
        x = toy.x[:2].numpy()
        annealed = evaluate.annealed_log_likelihood(
            toy.model,
            toy.guide,
            x,
            num_steps=100,
            num_chains=50,
            num_leapfrog=5,
            errors=True,
            seed=0,
        )
        draws = {"z": draws["z"].numpy()}
        found = evaluate.posterior_kl(
            toy.model, toy.guide, x, draws, log_likelihood=annealed, seed=0
        )
        truth = kl_divergence(toy.truth(toy.x[:2]), toy.as_multivariate(toy.x[:2])).numpy()
        assert isinstance(found.posterior_to_guide.value, np.ndarray)
        assert (
            abs(found.posterior_to_guide.value - truth)
            < 4 * found.posterior_to_guide.standard_error
        ).all()

    def test_errors(self, drawn):
        toy, draws = drawn
        with pytest.raises(ValueError, match="num_particles must be at least 2"):
            evaluate.posterior_kl(toy.model, toy.guide, toy.x[:2], draws, num_particles=1)
        with pytest.raises(
            TypeError, match="log_likelihood must .*standard errors.* shape .*errors=True"
        ):
            evaluate.posterior_kl(
                toy.model, toy.guide, toy.x[:2], draws, log_likelihood=torch.zeros(2)
            )


class Anywhere(dist.constraints.Constraint):
    """A constraint to which torch maps no unconstrained numbers."""

    def check(self, value):
        return torch.ones_like(value, dtype=torch.bool)


class Somewhere(dist.Normal):
    support = Anywhere()


def test_a_support_that_the_sampler_does_not_know_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Somewhere(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(PairError, match="'z' has the support .*: take .* check_guide"):
        evaluate.true_posterior(model, torch.zeros(1, 2), num_samples=5, warmup=5)


@pytest.mark.parametrize("family", ["angles", "points of a circle"])
def test_draws_on_a_circle(family):
    """The likelihood is a Normal around the point, so that the posterior is von Mises."""
    loc, scale = 3.0, 0.7
    centre = torch.tensor([math.cos(loc), math.sin(loc)])
    prior = VonMisesFisher(centre, 1.0)
    if family == "angles":
        prior = dist.VonMises(torch.tensor(loc), torch.tensor(1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            point = torch.stack([z.cos(), z.sin()], -1) if family == "angles" else z
            pyro.sample("x", dist.Normal(point, scale).to_event(1), obs=x)

    x = torch.tensor([[-0.2, -0.8]])
    draws = evaluate.true_posterior(model, x, num_samples=100, warmup=50, seed=0)["z"][0]
    if family == "angles":
        assert draws.abs().max() <= math.pi
        draws = torch.stack([draws.cos(), draws.sin()], -1)
    sum_of_vectors = centre + x[0] / scale**2
    kappa = sum_of_vectors.norm()
    mean = torch.special.i1(kappa) / torch.special.i0(kappa) * sum_of_vectors / kappa
    size = effective_sample_size(draws[None]).clamp(max=len(draws))
    error = draws.std(0) / size.sqrt()
    assert ((draws.mean(0) - mean).abs() < 4 * error).all()


def test_half_precision_is_refused_and_a_copy_in_single_precision_works():
    torch.set_default_dtype(torch.float32)
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [4]), 3)
    ).bfloat16()
    x = torch.zeros(1, 3)
    with pytest.raises(
        PairError, match=r"torch.bfloat16 rounds away.*deepcopy\(model\).float"
    ):
        evaluate.true_posterior(p, x, num_samples=2, warmup=2)
    single = copy.deepcopy(p).float()
    draws = evaluate.true_posterior(single, x, num_samples=2, warmup=2, seed=0)
    assert draws["z"].shape == (1, 2, 2)
