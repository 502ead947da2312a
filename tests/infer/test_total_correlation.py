"""The KL in three parts: ``BetaTCVAE`` and ``FactorVAE``, against quadrature and closed forms."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from tarspyro import Conditional, fit, guides, models
from tarspyro.distributions import Gamma, default_prior
from tarspyro.infer import ELBO, BetaTCVAE, FactorVAE, PairError
from tarspyro.infer.bounds.total_correlation import (
    information_and_correlation,
    log_densities,
    log_sampling_weights,
)
from tarspyro.nn import MLP, Discriminator

from ..programs import assert_within, with_random_heads
from .test_games import without_compiler

F64 = torch.float64
X = torch.tensor([[0.0, 1.0], [1.0, 0.5], [-1.0, -0.8], [2.0, 1.5], [0.3, -1.0]], dtype=F64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """Independent units given x; not so over the data."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(X @ torch.tensor([[1.0, 0.6], [0.2, 0.9]], dtype=F64))
        self.log_scale = nn.Parameter(torch.tensor([-0.5, -0.2], dtype=F64).repeat(5, 1))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            q = dist.Normal(self.loc[: len(x)], self.log_scale[: len(x)].exp())
            pyro.sample("z", q.to_event(1))


def exact_parts(guide):
    """The information, the total correlation and the distance from the prior, by quadrature."""
    grid = torch.linspace(-8, 8, 321, dtype=F64)
    q = dist.Normal(guide.loc.T[..., None], guide.log_scale.exp().T[..., None])
    units = q.log_prob(grid)  # unit, data point, grid
    joint = units[0, :, :, None] + units[1, :, None, :]
    of_all = joint.logsumexp(0) - math.log(5)
    of_units = units.logsumexp(1) - math.log(5)
    step = (grid[1] - grid[0]) ** 2
    information = (joint.exp() * (joint - of_all)).sum() * step / 5
    independent = of_units[0][:, None] + of_units[1][None]
    correlation = (of_all.exp() * (of_all - independent)).sum() * step
    prior = dist.Normal(torch.zeros((), dtype=F64), 1.0).log_prob(grid)
    from_prior = (of_units.exp() * (of_units - prior)).sum() * (grid[1] - grid[0])
    return information, correlation, from_prior


def test_the_parts_are_those_of_quadrature_and_sum_to_the_kl():
    torch.manual_seed(0)
    guide = Guide()
    bound = BetaTCVAE(5, num_particles=100)
    terms = [bound.loss_and_terms(model, guide, X)[1] for _ in range(100)]
    names = ("mutual_information", "total_correlation", "dimension_wise")
    draws = torch.stack([torch.stack([term[name] for name in names]) for term in terms])
    exact = torch.stack(exact_parts(guide))
    assert_within(draws / 5, exact)
    assert terms[0]["kl"].item() / 5 == pytest.approx(exact.sum().item(), rel=1e-6)


def test_the_gradient_is_that_of_quadrature():
    torch.manual_seed(0)
    guide = Guide()
    parameters = list(guide.parameters())
    information, correlation, from_prior = exact_parts(guide)
    reconstruction = dist.Normal(guide.loc, 1.0).log_prob(X) - guide.log_scale.exp() ** 2 / 2
    exact = 5 * (0.3 * information + 4.0 * correlation + 0.7 * from_prior)
    exact = torch.autograd.grad(exact - reconstruction.sum(), parameters)
    bound = BetaTCVAE(5, beta=4.0, alpha=0.3, gamma=0.7, num_particles=20)
    draws = []
    for _ in range(200):
        slopes = torch.autograd.grad(bound.differentiable_loss(model, guide, X), parameters)
        draws.append(torch.cat([slope.flatten() for slope in slopes]))
    assert_within(torch.stack(draws), torch.cat([slope.flatten() for slope in exact]))


@pytest.mark.parametrize("batch", [2, 3, 5])
def test_stratified_weights_are_unbiased_over_all_batches(batch):
    q = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=F64)  # q(z | x_n)
    weights = log_sampling_weights(batch, 5, "stratified", like=q).exp()
    assert torch.allclose(weights.sum(-1), torch.ones(batch, dtype=F64))
    for own in range(5):
        rest = [n for n in range(5) if n != own]
        found = []
        for others in itertools.combinations(rest, batch - 1):
            found.append(weights[0] @ q[[own, *others]])
        assert torch.stack(found).mean().item() == pytest.approx(q.mean().item())


def test_minibatch_weights_are_the_paper_s():
    density = torch.randn(3, 3, 2, dtype=F64)
    log_weights = log_sampling_weights(3, 10, "minibatch", like=density)
    own = density.sum(-1).diagonal()
    information, correlation = information_and_correlation(density, own, log_weights)
    of_all = density.sum(-1).logsumexp(1) - math.log(30)
    of_units = (density.logsumexp(1) - math.log(30)).sum(-1)
    assert torch.allclose(information, own - of_all)
    assert torch.allclose(correlation, of_all - of_units)


@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"vectorize_particles": False}])
def test_with_all_weights_one_it_is_the_elbo(options):
    guide = Guide()
    torch.manual_seed(0)
    ours = BetaTCVAE(5, beta=1.0, **options).loss(model, guide, X)
    torch.manual_seed(0)
    assert ours == pytest.approx(ELBO(**options).loss(model, guide, X))


def test_codes_of_particles_meet_the_distributions_of_their_own():
    guide = Guide()
    with pyro.plate("particles", 4, dim=-2):
        trace = poutine.trace(guide).get_trace(X)
    site = trace.nodes["z"]
    density = log_densities(site, "the test")
    assert density.shape == (4, 5, 5, 2)
    q = dist.Normal(guide.loc, guide.log_scale.exp())
    for particle, m, n in itertools.product(range(4), range(5), range(5)):
        expected = q.log_prob(site["value"][particle, m])[n]
        assert torch.allclose(density[particle, m, n], expected)


def test_scales_multiply_all_parts():
    guide = Guide()
    found = []
    for scale in (1.0, 3.0):
        torch.manual_seed(0)
        halves = (poutine.scale(half, scale) for half in (model, guide))
        loss, terms = BetaTCVAE(5).loss_and_terms(*halves, X)
        found.append(torch.stack([loss, *terms.values()]))
    assert torch.allclose(3 * found[0], found[1])


def vae(family=dist.Normal, size=2, **options):
    torch.manual_seed(0)
    likelihood = Conditional(dist.Normal, MLP(size, [8]), 3, scale=0.5)
    p = models.VAE(default_prior(family, size), likelihood)
    return p, with_random_heads(guides.VAE(Conditional(family, MLP(3, [8]), size, **options)))


def test_other_families_of_single_numbers_and_a_batch_of_one():
    for family in (dist.Laplace, dist.Gamma):
        p, q = vae(family)
        loss, terms = BetaTCVAE(50).loss_and_terms(p, q, torch.randn(7, 3))
        assert loss.isfinite() and all(term.isfinite() for term in terms.values())
    _, terms = BetaTCVAE(50).loss_and_terms(p, q, torch.randn(1, 3))
    assert terms["mutual_information"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda: BetaTCVAE(300, beta=3.0), lambda: FactorVAE(Discriminator(MLP(2, [8])))],
    ids=["BetaTCVAE", "FactorVAE"],
)
def test_it_trains_and_a_recorded_step_is_the_eager_one(make, monkeypatch):
    without_compiler(monkeypatch)
    x = torch.randn(300, 3)
    found = []
    for compile in (False, True):
        p, q = vae()
        torch.manual_seed(1)
        how = {"epochs": 2, "seed": 0, "progress": False, "compile": compile}
        found.append(fit(p, q, x, loss=make(), **how)["total_correlation"])
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)


def test_weights_are_scheduled():
    p, q = vae()
    seen = []

    class Seen(BetaTCVAE):
        def further(self, *run):
            seen.append(float(self.beta))
            return super().further(*run)

    loss = Seen(100)
    schedules = {"beta": lambda epoch: 1.0 + epoch}
    fit(p, q, torch.randn(100, 3), loss=loss, schedules=schedules, epochs=2, progress=False)
    assert min(seen) >= 1.0 and len(set(seen)) >= 2


def hierarchical(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Normal(y, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]), obs=x[:, 0])


def hierarchical_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(0.0, 1.0))


def masked_model(x):
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=torch.arange(len(x)) > 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def masked_guide(x):
    with pyro.plate("data", len(x)), poutine.mask(mask=torch.arange(len(x)) > 1):
        pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))


def test_pairs_that_it_cannot_take():
    x = torch.randn(6, 3)
    bound = BetaTCVAE(10)
    with pytest.raises(PairError, match=r"one latent site.*\['y', 'z'\]"):
        bound.loss(hierarchical, hierarchical_guide, x)
    with pytest.raises(PairError, match="independent units.*MultivariateNormal"):
        bound.loss(*vae(dist.MultivariateNormal), x)
    with pytest.raises(PairError, match="reparameterized"):
        bound.loss(*vae(dist.Bernoulli), x)
    with pytest.raises(PairError, match="by rejection: .* reparameterization='implicit'"):
        bound.loss(*vae(Gamma), x)
    assert math.isfinite(bound.loss(*vae(Gamma, reparameterization="implicit"), x))
    with pytest.raises(PairError, match="masked"):
        bound.loss(masked_model, masked_guide, x[:, :2])
    with pytest.raises(ValueError, match="data_size must be at least the size of a batch, 6"):
        BetaTCVAE(5).loss(*vae(), x)
    with pytest.raises(ValueError, match="weighting"):
        BetaTCVAE(5, weighting="uniform")
    with pytest.raises(TypeError, match="data_size"):
        BetaTCVAE(2.5)
    with pytest.raises(TypeError, match="discriminator"):
        FactorVAE(lambda z: z)


# FactorVAE.
MIXING = torch.tensor([[1.0, 0.0], [0.8, 0.5]])


class Ratio(nn.Module):
    """The exact log-ratio of N(0, S) and the product of its marginals, times a weight."""

    def __init__(self, covariance):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.covariance = covariance

    def forward(self, z):
        joint = dist.MultivariateNormal(torch.zeros(2), self.covariance).log_prob(z)
        units = dist.Normal(torch.zeros(2), self.covariance.diagonal().sqrt()).log_prob(z)
        return self.weight * (joint - units.sum(-1))


def linear_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ MIXING.T, 0.5).to_event(1))


def linear_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_with_the_best_discriminator_it_is_the_total_correlation():
    torch.manual_seed(0)
    covariance = MIXING @ MIXING.T + 0.25 * torch.eye(2)
    correlation = covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()
    exact = -0.5 * torch.log1p(-(correlation**2))
    game = FactorVAE(Ratio(covariance), gamma=3.0)
    estimates, slopes = [], []
    for _ in range(60):
        x = torch.randn(300, 2)
        _, terms = game.autoencoder_loss(linear_model, linear_guide, x)
        estimates.append(terms["total_correlation"] / 300)
        loss, _ = game.discriminator_loss(linear_model, linear_guide, x)
        slopes.append(torch.autograd.grad(loss / 300, game.discriminator.weight)[0])
    assert_within(torch.stack(estimates), exact)
    assert_within(torch.stack(slopes), 0.0)  # no discriminator tells them apart better


def test_the_pair_s_loss_is_the_elbo_and_the_weighted_total_correlation():
    p, q = vae()
    x = torch.randn(20, 3)
    game = FactorVAE(Discriminator(MLP(2, [8])), gamma=2.0, num_particles=3)
    torch.manual_seed(0)
    loss, terms = game.autoencoder_loss(p, q, x)
    elbo = (terms["reconstruction"] - terms["kl"]).item()
    assert loss.item() == pytest.approx(2 * terms["total_correlation"].item() - elbo, rel=1e-5)
    torch.manual_seed(0)
    assert -elbo == pytest.approx(ELBO(num_particles=3).loss(p, q, x), rel=1e-5)


def test_shuffled_codes_keep_their_units():
    seen = []

    class Recorder(nn.Module):
        def forward(self, z):
            seen.append(z)
            return z.sum(-1)

    torch.manual_seed(0)
    FactorVAE(Recorder()).discriminator_loss(linear_model, linear_guide, torch.randn(50, 2))
    codes, shuffled = seen
    assert torch.equal(codes.sort(0).values, shuffled.sort(0).values)
    moved = [(codes[:, u, None] == shuffled[None, :, u]).float().argmax(1) for u in range(2)]
    assert not torch.equal(*moved)
