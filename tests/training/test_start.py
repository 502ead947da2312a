"""The start of a training: heads of new pairs are initialized from the data."""

import math
import warnings

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from tarspyro import (
    Blocks,
    Conditional,
    IncompleteLikelihood,
    Run,
    evaluate,
    fit,
    guides,
    initialize_from_data,
    load_run,
    models,
)
from tarspyro.data import digits
from tarspyro.distributions import (
    Dirichlet,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gamma,
    GumbelSoftmax,
    default_prior,
)
from tarspyro.infer import AdversarialAutoencoder, FactorVAE
from tarspyro.nn import MLP, ConvDecoder, Discriminator, WithGaps
from tarspyro.runs import RunError

ROWS = 400


def pair(likelihood, size, latent=dist.Normal, trunk=None):
    p = models.VAE(default_prior(latent, 3), likelihood)
    return p, guides.VAE(Conditional(latent, trunk or MLP(size, [16]), 3))


def started(family, x, **fixed):
    """The distributions of data under a new likelihood, for draws of the guide."""
    torch.manual_seed(0)
    likelihood = Conditional(family, MLP(3, [16]), x.shape[1:], **fixed)
    p, q = pair(likelihood, x[0].numel())
    initialize_from_data(p, q, x)
    with torch.no_grad():
        return likelihood(q.posterior(x.repeat(10, *x[0].dim() * [1])).sample())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(mean, columns=6):
    rates = torch.linspace(0.2, 1.8, columns) * mean
    return torch.poisson(rates.expand(ROWS, columns), generator=generator())


# --- likelihoods start at the best constant distribution


def test_a_bernoulli_starts_at_the_frequencies():
    x = torch.bernoulli(torch.linspace(0.1, 0.9, 8).expand(ROWS, 8), generator=generator())
    found = started(dist.Bernoulli, x).base_dist.logits.mean(0)
    assert torch.allclose(found, x.mean(0).logit(), atol=0.06)


@pytest.mark.parametrize("mean", [1, 50, 5000])
def test_a_poisson_starts_at_the_mean(mean):
    x = counts(mean)
    found = started(dist.Poisson, x).base_dist.rate.log().mean(0)
    assert torch.allclose(found, x.mean(0).log(), atol=0.06)


def test_a_normal_starts_at_mean_and_standard_deviation():
    x = torch.linspace(-2, 2, 5) + torch.linspace(0.5, 3, 5) * torch.randn(
        ROWS, 5, generator=generator()
    )
    made = started(dist.Normal, x).base_dist
    assert torch.allclose(made.loc.mean(0), x.mean(0), atol=0.06)
    assert torch.allclose(made.scale.mean(0), x.std(0), rtol=0.05)


def test_a_gamma_starts_at_the_maximum_likelihood_estimate():
    x = torch.tensor(np.random.default_rng(0).gamma(2.0, 3.0, size=(ROWS, 1))).float()
    made = started(Gamma, x).base_dist
    shape, _, scale = stats.gamma.fit(x.numpy(), floc=0)
    assert math.isclose(made.concentration.mean().item(), shape, rel_tol=0.05)
    assert math.isclose(made.rate.mean().item(), 1 / scale, rel_tol=0.05)


def test_a_covariance_starts_at_that_of_the_data():
    root = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 0.5, 0.5]])
    x = torch.randn(ROWS, 3, generator=generator()) @ root.T
    made = started(dist.MultivariateNormal, x)
    assert torch.allclose(made.covariance_matrix.mean(0), x.T.cov(correction=0), atol=0.15)


def test_a_zero_inflated_poisson_starts_at_its_two_parts():
    x = counts(20) * (torch.rand(ROWS, 6, generator=generator(1)) < 0.5)
    made = started(dist.ZeroInflatedPoisson, x).base_dist
    assert torch.allclose(made.gate.mean(0), (x == 0).float().mean(0), atol=0.05)


def test_a_convolution_starts_at_the_mean_of_each_channel():
    x = torch.tensor([0.2, 0.5, 0.9])[:, None, None] + 0.1 * torch.randn(
        60, 3, 8, 8, generator=generator()
    )
    torch.manual_seed(0)
    decoder = Conditional(dist.Normal, ConvDecoder(3, (3, 8, 8), [8]), (3, 8, 8), scale=0.1)
    p, q = pair(decoder, 192, trunk=nn.Sequential(nn.Flatten(), MLP(192, [16])))
    initialize_from_data(p, q, x)
    found = decoder.mean(torch.randn(500, 3)).mean((0, 2, 3))
    assert torch.allclose(found, torch.tensor([0.2, 0.5, 0.9]), atol=0.05)


def test_blocks_start_at_their_columns_and_gaps_are_left_out():
    x = torch.cat([3 + torch.randn(ROWS, 2, generator=generator()), counts(9, 2)], 1)
    x[::2, 0] = math.nan
    x[1::2, 3] = math.nan
    torch.manual_seed(0)
    blocks = Blocks(
        Conditional(dist.Normal, MLP(3, [16]), 2), Conditional(dist.Poisson, MLP(3, [16]), 2)
    )
    p, q = pair(IncompleteLikelihood(blocks), 4, trunk=WithGaps(MLP([4, 4], [16]), 4))
    initialize_from_data(p, q, x)
    with torch.no_grad():
        mean = p.likelihood(q.posterior(x.repeat(10, 1)).sample()).mean.mean(0)
    assert torch.allclose(mean, x.nanmean(0), rtol=0.05)


# --- inputs and locations on the scale of the data


def table():
    return 500 + 100 * torch.randn(ROWS, 4, generator=generator())


def test_inputs_and_locations_far_from_one_are_standardized():
    x = table()
    torch.manual_seed(0)
    p, q = pair(Conditional(dist.Normal, MLP(3, [16]), 4), 4)
    history = fit(p, q, x, epochs=2, seed=0, progress=False)
    assert set(p.likelihood.units) == {"loc"} and set(q.posterior.units) == {"0"}
    seen = q.posterior.units["0"](x)
    assert seen.mean().abs() < 0.1 and abs(seen.std().item() - 1) < 0.1
    best = dist.Normal(x.mean(0), x.std(0)).log_prob(x).sum(-1).mean().item()
    assert history["elbo"][0] > best - 2  # a nat of the outputs' spread, and the KL


@pytest.mark.parametrize("seed", [0, 1])
def test_black_and_white_pixels_have_a_use_for_the_code(seed):
    """Which they learn, though the code says little of a pixel at first."""
    x = digits().train.x.round()
    torch.manual_seed(seed)
    p = models.VAE(
        default_prior(dist.Normal, 8), Conditional(dist.Bernoulli, MLP(8, [16]), 64)
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(64, [16]), 8))
    fit(p, q, x, epochs=15, lr=1e-2, seed=seed, progress=False)
    assert evaluate.elbo(p, q, x, seed=0).kl.mean() > 1  # nats; torch's start learns 2


def test_a_spread_of_the_outputs_costs_at_most_a_nat_or_is_small():
    """Grey values under a Normal of scale 0.1 afford none, black and white pixels theirs."""
    grey = digits().train.x[:ROWS]
    spread = started(dist.Normal, grey, scale=0.1).mean.std(0).square().mean().sqrt()
    assert 0.1 < spread < 0.2  # 0.15, with other draws of the guide

    x = grey.round()
    found = started(dist.Bernoulli, x)
    frequencies = x.mean(0).clamp(0.01, 0.99)
    best = dist.Bernoulli(frequencies).log_prob(x).sum(-1).mean()
    cost = best - found.log_prob(x.repeat(10, 1)).mean()
    assert 0 < cost < 1.1
    assert found.base_dist.logits.std(0).square().mean().sqrt() > 0.2


def test_counts_are_no_locations():
    torch.manual_seed(0)
    p, q = pair(Conditional(dist.NegativeBinomial, MLP(3, [16]), 6, total_count=5), 6)
    initialize_from_data(p, q, counts(5000))
    assert not p.likelihood.units and set(q.posterior.units) == {"0"}


def test_data_of_scale_one_are_left_alone():
    torch.manual_seed(0)
    p, q = pair(Conditional(dist.Bernoulli, MLP(3, [16]), 4), 4)
    initialize_from_data(p, q, torch.ones(ROWS, 4).bernoulli(0.4, generator=generator()))
    assert not p.likelihood.units and not q.posterior.units


def test_a_run_with_standardized_data_is_loaded_and_resumed(tmp_path):
    x = table()

    def run(epochs, **options):
        torch.manual_seed(0)
        p, q = pair(Conditional(dist.Normal, MLP(3, [16]), 4), 4)
        return p, q, fit(p, q, x, epochs=epochs, seed=0, progress=False, **options)

    p, q, history = run(4)
    run(2, folder=tmp_path / "run")
    _, _, resumed = run(4, folder=Run(tmp_path / "run", resume=True))
    assert resumed["elbo"] == history["elbo"]
    loaded = load_run(tmp_path / "run")
    assert torch.equal(loaded.guide.posterior.mean(x), q.posterior.mean(x))
    z = torch.randn(5, 3)
    assert torch.equal(loaded.model.likelihood.mean(z), p.likelihood.mean(z))


# --- what is left as it is


def weights(*halves):
    return torch.cat(
        [part.detach().reshape(-1) for half in halves for part in half.parameters()]
    )


def test_weights_that_were_changed_or_trained_are_kept():
    x = counts(5)
    torch.manual_seed(0)
    p, q = pair(Conditional(dist.Poisson, MLP(3, [16]), 6), 6)
    with torch.no_grad():
        p.likelihood.heads["rate"].bias.fill_(2.0)
        q.posterior.heads["loc"].weight.mul_(0.5)
    before = weights(p, q)
    initialize_from_data(p, q, x)
    assert torch.equal(weights(p, q), before)
    fit(p, q, x, epochs=1, progress=False)
    before = weights(p, q)
    initialize_from_data(p, q, x)
    assert torch.equal(weights(p, q), before)


def test_trunks_and_random_numbers_stay_as_they_are():
    torch.manual_seed(0)
    p, q = pair(Conditional(dist.Poisson, MLP(3, [16]), 6), 6)
    before = weights(p.likelihood.trunk, q.posterior.trunk)
    state = torch.get_rng_state()
    initialize_from_data(p, q, counts(5))
    assert torch.equal(weights(p.likelihood.trunk, q.posterior.trunk), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_fit_starts_as_initialize_from_data_does():
    x = counts(50)

    def new():
        torch.manual_seed(0)
        return pair(Conditional(dist.Poisson, MLP(3, [16]), 6), 6)

    p, q = new()
    initialize_from_data(p, q, x)
    before = weights(p, q)
    trained = new()
    fit(*trained, x, epochs=1, lr=0.0, progress=False)
    assert torch.equal(weights(*trained), before)
    assert not torch.equal(weights(*new()), before)


@pytest.mark.parametrize("game", [AdversarialAutoencoder, FactorVAE])
def test_games_with_a_likelihood_start_as_bounds_do(game):
    x = counts(500)

    def new():
        torch.manual_seed(0)
        return pair(Conditional(dist.Poisson, MLP(3, [16]), 6), 6)

    expected = new()
    initialize_from_data(*expected, x)
    trained = new()
    loss = game(Discriminator(MLP(3, [4])))
    fit(*trained, x, loss=loss, epochs=1, lr=0.0, progress=False)
    assert torch.equal(weights(*trained), weights(*expected))


def test_constant_columns_have_a_start():
    x = torch.rand(ROWS, 6, generator=generator())
    x[:, :3] = 0.0
    torch.manual_seed(0)
    p, q = pair(Conditional(dist.Normal, MLP(3, [16]), 6), 6)
    history = fit(p, q, x, epochs=10, progress=False)
    assert history["elbo"][-1] > history["elbo"][0]


def test_constant_columns_start_with_a_scale_of_a_tenth():
    x = torch.rand(ROWS, 6, generator=generator())
    x[:, :3] = 0.0
    scales = started(dist.Normal, x).base_dist.scale
    assert torch.allclose(scales[:, :3], torch.tensor(0.1), rtol=0.2)


@pytest.mark.parametrize("family", [DiscretizedLogistic, DiscretizedLogisticMixture])
def test_constant_pixels_between_black_and_white_have_a_start(family):
    """Whose levels would otherwise have scales far below the spread of their locations."""
    x = torch.full((ROWS, 16), 0.5)
    x[:, :8] = torch.rand(ROWS, 8, generator=generator())
    x = (x * 255).round() / 255
    torch.manual_seed(0)
    p, q = pair(Conditional(family, MLP(3, [256, 256]), 16), 16)
    history = fit(p, q, x, epochs=1, progress=False)
    assert history["loss"][0] / (16 * math.log(2)) < 9  # evenly spread over levels: 8 bits


# --- where there is no start


def test_a_few_rows_are_no_marginal():
    x = torch.bernoulli(torch.full((ROWS, 6), 0.5), generator=generator())
    for rows, changed in ((1, False), (19, False), (20, True)):
        p, q = pair(Conditional(dist.Bernoulli, MLP(3, [16]), 6), 6)
        before = weights(p, q)
        initialize_from_data(p, q, x[:rows])
        assert torch.equal(weights(p, q), before) is not changed


def test_a_pair_that_does_not_run_on_the_examples_trains_without_a_start():
    class InOrder(nn.Linear):
        """A network that takes rows that follow one another, and not some of all."""

        def forward(self, x):
            if x[1, 0] - x[0, 0] > 1.5 / ROWS:
                raise RuntimeError("not in order")
            return super().forward(x)

    x = torch.rand(ROWS, 6, generator=generator())
    x[:, 0] = torch.arange(ROWS) / ROWS
    likelihood = Conditional(dist.Normal, MLP(3, [16]), 6, scale=1.0)
    p, q = pair(likelihood, 6, trunk=InOrder(6, 3))
    evaluate.elbo(p, q, x[:10])  # the heads get their sizes
    before = weights(p, q)
    with pytest.raises(ValueError, match="not in order"):
        initialize_from_data(p, q, x)
    history = fit(p, q, x, shuffle=False, epochs=1, lr=0.0, progress=False)
    assert math.isfinite(history["elbo"][0])
    assert torch.equal(weights(p, q), before)


def test_a_refused_training_leaves_the_pair_as_it_was(tmp_path):
    x = table()
    torch.manual_seed(0)
    first = pair(Conditional(dist.Normal, MLP(3, [16]), 4), 4)
    fit(*first, x, epochs=1, folder=tmp_path, progress=False)
    p, q = pair(Conditional(dist.Normal, MLP(3, [16]), 4), 4)
    before = weights(p, q)
    described = p.likelihood.constructor_arguments, q.posterior.constructor_arguments
    with pytest.raises(RunError, match="batch_size"):
        fit(p, q, x, epochs=2, batch_size=7, folder=Run(tmp_path, resume=True), progress=False)
    assert torch.equal(weights(p, q), before)
    assert not q.posterior.units
    assert (p.likelihood.constructor_arguments, q.posterior.constructor_arguments) == described
    initialize_from_data(p, q, x)  # it is still new
    assert not torch.equal(weights(p, q), before) and q.posterior.units


# --- a small form of benchmarks/starts.py

KINDS = {
    "counts of mean 5,000": (lambda: counts(5000), dist.Poisson, {}),
    "overdispersed counts": (lambda: counts(50), dist.NegativeBinomial, {"total_count": 10}),
    "table": (table, dist.Normal, {}),
    "positive": (lambda: counts(3) + 0.5, dist.LogNormal, {}),
}
LATENTS = {
    "Normal": dist.Normal,
    "full covariance": dist.MultivariateNormal,
    "Gamma": Gamma,
    "Dirichlet": Dirichlet,
    "GumbelSoftmax": GumbelSoftmax,
}


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_starts_near_the_best_constant(kind, latent):
    make, family, fixed = KINDS[kind]
    x = make()
    torch.manual_seed(0)
    likelihood = Conditional(family, MLP(3, [16]), x.shape[1], **fixed)
    p, q = pair(likelihood, x.shape[1], LATENTS[latent])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = fit(p, q, x, epochs=3, seed=0, progress=False)
    constant = started(family, x, **fixed).log_prob(x.repeat(10, 1))
    assert constant.isfinite().all()
    scale = x.std(0).log().abs().sum().item()
    assert history["elbo"][-1] > history["elbo"][0] - 0.1 * scale
    assert math.isfinite(history["elbo"][0])
