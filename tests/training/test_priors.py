"""Priors fitted to codes: the maximum of the likelihood, and exact bounds with them."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture

from tarspyro import Conditional, embed, evaluate, fit, fit_prior, guides, load_run, models
from tarspyro.distributions import NormalMixture, default_prior
from tarspyro.infer import ELBO
from tarspyro.nn import MLP


def two_clusters(num, seed=0):
    """Two Normals in the plane of different sizes and shapes, and their density."""
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])),
        dist.MultivariateNormal(
            torch.tensor([[-3.0, 0.0], [20.0, 1.0]]),
            torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[4.0, 0.0], [0.0, 0.01]]]),
        ),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return law.sample((num,)), law


def test_a_mixture_is_scikit_learns():
    z, law = two_clusters(2000)
    prior = fit_prior(z, components=2)
    judge = GaussianMixture(2, random_state=0).fit(z.double().numpy())
    assert prior().log_prob(z).mean().item() == pytest.approx(judge.score(z), abs=1e-3)
    assert prior.loc.detach().sort(0).values.numpy() == pytest.approx(
        np.sort(judge.means_, 0), abs=1e-2
    )
    # Held-out codes: the excess over the true density is about 11 parameters / (2 N).
    held_out, _ = two_clusters(2000, seed=1)
    loss = law.log_prob(held_out) - prior().log_prob(held_out)
    assert abs(loss.mean()) < 11 / 4000 + 4 * loss.std() / math.sqrt(2000)


def test_bounds_with_a_fitted_prior_are_those_of_the_model():
    """With one Normal and a linear likelihood, log p(x) and q(z | x) are known."""
    torch.manual_seed(0)
    z = torch.randn(500, 2) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]]) + 1.0
    prior = fit_prior(z, components=1)
    mean, covariance = z.mean(0), z.T.cov(correction=0)
    assert torch.allclose(prior.loc[0], mean, atol=1e-4)

    likelihood = Conditional(dist.Normal, MLP(2, []), 3, scale=0.5)
    p = models.VAE(prior, likelihood)
    head = likelihood.heads["loc"]
    law = dist.MultivariateNormal(
        head(mean), head.weight @ covariance @ head.weight.T + 0.25 * torch.eye(3)
    )
    x = law.sample((4,))
    gain = covariance @ head.weight.T @ law.covariance_matrix.inverse()
    posterior = covariance - gain @ head.weight @ covariance

    def guide(x, width=1.0):
        with pyro.plate("data", len(x)):
            loc = mean + (x - law.mean) @ gain.T
            pyro.sample("z", dist.MultivariateNormal(loc, width * posterior))

    bound = -ELBO().loss(p, guide, x)
    assert bound == pytest.approx(law.log_prob(x).sum().item(), abs=1e-2)
    wide = functools.partial(guide, width=2.0)
    found = evaluate.log_likelihood(p, wide, x, num_particles=5000, errors=True, seed=0)
    gap = found.log_likelihood - law.log_prob(x).detach()
    assert bool((gap.abs() < 4 * found.standard_error).all())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_flow_is_a_density_near_the_codes(size):
    torch.manual_seed(0)
    law = dist.LogNormal(0.0, 0.5).expand([size]).to_event(1)
    z, held_out = law.sample((600,)), law.sample((600,))
    prior = fit_prior(z, "flow", epochs=40, layers=2)
    flow = prior()
    assert flow.event_shape == (size,)
    # Better than the best Normal, whose loss is known in closed form.
    best = dist.Normal(z.mean(0), z.std(0)).to_event(1).log_prob(held_out).mean()
    assert flow.log_prob(held_out).mean() > best
    draws = flow.sample((2000,)).detach()
    # E_p[law / p] is 1 for two densities of the same support.
    ratio = (law.log_prob(draws.clamp(min=1e-6)) - flow.log_prob(draws)).exp()
    ratio = ratio.masked_fill((draws <= 0).any(-1), 0.0).detach()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(2000)


def test_a_pair_with_a_fitted_prior_is_sampled_and_saved(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(100, 3)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [4]), 3))
    q = guides.VAE(Conditional(dist.Normal, MLP(3, [4]), 2))
    codes = embed(q, x, num_samples=1)
    fitted = models.VAE(fit_prior(codes.reshape(-1, 2), components=3), p.likelihood)
    assert evaluate.sample(fitted, 5, seed=0).shape == (5, 3)
    fit(fitted, q, x, epochs=1, seed=0, progress=False, folder=tmp_path / "run")
    run = load_run(tmp_path / "run")
    z = torch.randn(5, 2)
    assert torch.equal(run.model.prior().log_prob(z), fitted.prior().log_prob(z))


def test_errors():
    for wrong in (torch.zeros(5), torch.zeros(5, 2, 2), torch.full((20, 2), math.nan)):
        with pytest.raises(ValueError, match="codes must be at least 10 finite rows"):
            fit_prior(wrong)
    with pytest.raises(ValueError, match="codes must be at least 10 finite rows"):
        fit_prior(torch.zeros(5, 2))
    with pytest.raises(ValueError, match="kind must be"):
        fit_prior(torch.randn(20, 2), "vamp")
    with pytest.raises(ValueError, match="components"):
        NormalMixture(2, 0)


@pytest.mark.parametrize("kind", ["gmm", "flow"])
def test_a_unit_whose_codes_are_all_the_same(kind):
    """As a dead one of an autoencoder."""
    torch.manual_seed(0)
    codes = torch.cat([torch.randn(100, 1), torch.full((100, 1), 5.0)], 1)
    prior = fit_prior(codes, kind, **({"components": 2} if kind == "gmm" else {"epochs": 2}))
    assert prior().log_prob(codes).isfinite().all()
    assert prior().sample((50,)).isfinite().all()


@pytest.mark.parametrize("kind", ["gmm", "flow"])
def test_the_prior_is_in_the_precision_of_the_codes(kind):
    torch.manual_seed(0)
    codes = torch.randn(60, 2, dtype=torch.float64)
    prior = fit_prior(codes, kind, epochs=1, seed=2**40)
    assert prior().log_prob(codes).dtype == torch.float64
    assert prior().sample((3,)).dtype == torch.float64
    assert fit_prior(codes.numpy(), kind, epochs=1)().sample((3,)).dtype == torch.float32
