"""Codes that are never stale, noisy or of the wrong mode; samples and decoded means."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from tarspyro import Conditional, embed, evaluate, fit, guides, models
from tarspyro.data import Split
from tarspyro.distributions import default_prior
from tarspyro.infer import PairError
from tarspyro.nn import MLP

from ..programs import LinearGaussian


@pytest.fixture
def toy():
    toy = LinearGaussian()
    yield toy


@pytest.fixture(autouse=True)
def _double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


def vae(dropout=0.0):
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [8], dropout=dropout), 2))


def test_embed_is_the_posterior_mean_in_evaluation_mode():
    _, guide = vae(dropout=0.5)
    x = torch.rand(250, 64).round()
    guide.train()
    codes = embed(guide, x)
    assert guide.training and not codes.requires_grad
    torch.testing.assert_close(codes, guide.eval().posterior(x).mean.detach())
    torch.testing.assert_close(codes, embed(guide, x))


def test_means_leave_the_random_state_as_it_was():
    model, guide = vae()
    state = torch.get_rng_state()
    embed(guide, torch.rand(5, 64, generator=torch.Generator().manual_seed(0)))
    evaluate.decode(model, torch.zeros(3, 2))
    assert torch.equal(state, torch.get_rng_state())


def test_embed_is_never_stale():
    """Pixyz returns the old codes of the same tensor after a step (known fault)."""
    _, guide = vae()
    x = torch.rand(5, 64)
    before = embed(guide, x)
    with torch.no_grad():
        guide.posterior.heads["loc"].bias += 1.0
    torch.testing.assert_close(embed(guide, x), before + 1.0)


def test_embed_gives_draws_when_asked():
    _, guide = vae()
    x = torch.rand(150, 64)
    draws = embed(guide, x, num_samples=2000)
    assert draws.shape == (2000, 150, 2)
    posterior = guide.posterior(x)
    error = posterior.stddev.detach() / 2000**0.5
    assert ((draws.mean(0) - posterior.mean.detach()).abs() < 5 * error).all()


def test_arrays_in_arrays_out():
    model, guide = vae()
    x = np.random.default_rng(0).random((5, 64)).round()
    results = {
        "embed": (embed(guide, x), (5, 2)),
        "draws": (embed(guide, x, num_samples=3), (3, 5, 2)),
        "log_likelihood": (evaluate.log_likelihood(model, guide, x, num_particles=3), (5,)),
        "effective_sample_size": (
            evaluate.log_likelihood(model, guide, x, num_particles=3, errors=True)[2],
            (5,),
        ),
        "elbo": (evaluate.elbo(model, guide, x).elbo, (5,)),
        "active_units": (evaluate.active_units(guide, x), (2,)),
        "reconstruct": (evaluate.reconstruct(model, guide, x), (5, 64)),
        "decode": (evaluate.decode(model, np.zeros((4, 2))), (4, 64)),
    }
    for name, (result, shape) in results.items():
        assert isinstance(result, np.ndarray) and result.shape == shape, name
    assert isinstance(embed(guide, torch.as_tensor(x)), torch.Tensor)
    assert embed(guide, Split(torch.as_tensor(x))).shape == (5, 2)


def test_one_row_says_nothing_of_the_activity_of_units(toy):
    for measure in (evaluate.active_units, evaluate.activity):
        with pytest.raises(ValueError, match="x must have at least 2 rows"):
            measure(toy.guide, toy.x[:1])
        assert measure(toy.guide, toy.x[:2]).shape == measure(toy.guide, toy.x).shape


def test_active_units_have_means_that_move():
    _, guide = vae()
    with torch.no_grad():
        guide.posterior.heads["loc"].weight[1].zero_()
    assert evaluate.active_units(guide, torch.rand(50, 64) * 10).tolist() == [True, False]


def test_generation_and_seeds():
    model, _ = vae()
    state = torch.get_rng_state()
    assert torch.equal(evaluate.sample(model, 5, seed=1), evaluate.sample(model, 5, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    means = evaluate.sample(model, 5, mean=True)
    assert ((means > 0) & (means < 1)).all()
    z = torch.randn(3, 2)
    torch.testing.assert_close(evaluate.decode(model, z), model.likelihood.mean(z).detach())


def test_it_works_on_any_program(toy):
    assert embed(toy.guide, toy.x).shape == (50, 2)
    torch.testing.assert_close(embed(toy.guide, toy.x), toy.posterior(toy.x).mean.detach())
    with pytest.raises(PairError, match="batch_size"):
        evaluate.sample(toy.model, 3)


def test_errors():
    _, guide = vae()
    with pytest.raises(ValueError, match="site must be one of"):
        embed(guide, torch.zeros(2, 64), site="w")
    autoencoder = models.Autoencoder(Conditional(dist.Bernoulli, MLP(2, [8]), 64), 2)
    with pytest.raises(PairError, match="decode codes instead"):
        evaluate.sample(autoencoder, 3)
    with pytest.raises(NotImplementedError, match="num_samples"):
        embed(
            guides.VAE(Conditional(dist.RelaxedBernoulli, MLP(64, [8]), 2)), torch.zeros(2, 64)
        )


def test_classes_have_probabilities_in_place_of_a_mean():
    """Alone, and beside a latent variable that depends on them."""
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    def labels(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=x))

    def mixture(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=x))
            pyro.sample("z", dist.Normal(torch.tensor([-4.0, 0.0, 5.0])[c], 1.0))

    probabilities = logits.softmax(-1)
    for guide in (labels, mixture):
        with pytest.raises(NotImplementedError, match=r"classify\(guide, x, site='c'\)"):
            embed(guide, logits, site="c")
        assert embed(guide, logits, site="c", num_samples=2).dtype == torch.int64
        found = evaluate.activity(guide, logits, site="c")
        torch.testing.assert_close(found, probabilities.var(0))
    means = probabilities @ torch.tensor([-4.0, 0.0, 5.0])
    assert (embed(mixture, logits, site="z") - means).abs().max() < 5 * 4 / 100**0.5
    assert evaluate.active_units(mixture, logits)["c"].shape == (3,)


def test_no_mean_is_nan():
    likelihood = Conditional(dist.Cauchy, MLP(2, [8]), 5)
    with pytest.raises(NotImplementedError, match="Cauchy has no mean"):
        likelihood.mean(torch.zeros(1, 2))


@pytest.mark.parametrize("function", [torch.softmax, lambda z, dim: torch.cat([z, z], dim)])
def test_codes_of_a_guide_that_takes_no_plate_of_runs(function):
    """In a plate of runs the dimension 1 is that of the rows."""

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1e-4).to_event(1))
            pyro.sample("w", dist.Normal(function(z, 1), 1e-4).to_event(1))

    x = torch.tensor([[0.3, -1.0, 2.0], [0.0, 1.0, 0.5], [-0.4, 0.2, 0.2], [1.0, 0.0, -2.0]])
    right = function(x, 1)
    torch.testing.assert_close(embed(guide, x, site="w"), right, atol=1e-3, rtol=0)
    draws = embed(guide, x, site="w", num_samples=3)
    assert draws.shape == (3, *right.shape) and (draws - right).abs().max() < 1e-3
    activity = evaluate.activity(guide, x, site="w")
    torch.testing.assert_close(activity, right.var(0), atol=1e-3, rtol=0)


def test_a_guide_of_other_rows_reconstructs_nothing():
    """Its results for each batch, as many as its own rows, were put one after another."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.linspace(-2.0, 2.0, 150)
    guide = AutoNormal(model)
    fit(model, guide, x, batch_size=150, epochs=1, seed=0, progress=False)
    assert evaluate.reconstruct(model, guide, x).shape == x.shape
    others = torch.linspace(-2.0, 2.0, 250)
    with pytest.raises(PairError, match="has the size 100 in model and 150 in AutoNormal"):
        evaluate.reconstruct(model, guide, others)
