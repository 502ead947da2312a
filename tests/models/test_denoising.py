"""Denoising autoencoders, and autoencoders with several decoders."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from tarspyro import (
    Blocks,
    Conditional,
    Deterministic,
    evaluate,
    fit,
    guides,
    load_run,
    models,
)
from tarspyro.data import digits
from tarspyro.distributions import Prior, default_prior
from tarspyro.infer import ELBO, IWAE, Renyi, check_pair
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP, GaussianNoise, MaskingNoise
from tarspyro.scopes import preserved_rng

from ..infer.test_compiled import assert_same_step
from ..programs import LinearGaussian, as_made, assert_within

BOUNDS = {
    "ELBO": ELBO,
    "IWAE": lambda: IWAE(3),
    "Renyi": lambda: Renyi(0.5, 3),
    "dreg": lambda: IWAE(3, gradient="dreg"),
}
NOISES = {
    "masking": lambda: MaskingNoise(0.3),
    "Gaussian": lambda: GaussianNoise(0.3),
    "dropout": lambda: nn.Dropout(0.3),
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the noise


def test_masking_noise_keeps_other_entries():
    x = 0.5 + torch.rand(200, 50)
    noisy = MaskingNoise(0.3)(x)
    kept = noisy != 0
    assert torch.equal(noisy[kept], x[kept])
    assert_within(1 - kept.double().mean(1), 0.3)
    assert (kept.double().mean(0) < 1).all()  # every input, in some row


def test_gaussian_noise_has_its_scale():
    noise = GaussianNoise(0.5)(torch.ones(4000, 3)) - 1
    assert_within(noise, torch.zeros(3))
    assert_within(noise.square(), torch.full((3,), 0.25))


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_evaluation_sees_the_data_itself(noise):
    x = torch.rand(5, 4)
    assert torch.equal(noise().eval()(x), x) and not torch.equal(noise()(x), x)


def test_noise_rejects_invalid_arguments():
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"p must be .*, got {p}"):
            MaskingNoise(p)
    for scale in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"scale must .*, got {scale}"):
            GaussianNoise(scale)


# --- the guides


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_the_guide_sees_corrupted_data_and_the_model_scores_the_data(noise):
    x = torch.rand(5, 4)
    encoder = Deterministic(MLP(4, []), 2)
    p, q = (
        models.Autoencoder(Conditional(dist.Normal, MLP(2, []), 4), 2),
        guides.Autoencoder(encoder, noise()),
    )
    with preserved_rng(seed=1):
        noisy = q.corruption(x)
    with preserved_rng(seed=1):
        trace = poutine.trace(q).get_trace(x)
    assert not torch.equal(noisy, x)
    torch.testing.assert_close(trace.nodes["z"]["value"], encoder(noisy).mean)
    assert poutine.trace(poutine.replay(p, trace=trace)).get_trace(x).nodes["x"]["value"] is x
    torch.testing.assert_close(q.eval()(x), encoder(x).mean)
    torch.testing.assert_close(evaluate.embed(q.train(), x), encoder(x).mean)


@pytest.mark.parametrize("particles", [1, 4])
def test_elbo_of_a_denoising_vae_is_the_closed_form(particles):
    """For x + s e the variance of the posterior mean Mx is larger by s^2 MM^T, in both terms."""
    toy, scale = LinearGaussian(), 0.4
    spread = scale**2 * toy.map.square().sum(1)
    blur = scale**2 * (toy.weight @ toy.map).square().sum() / (2 * toy.scale**2)
    exact = (toy.elbo(toy.x) - blur - spread.sum() / 2).sum().item()
    p, q = (
        models.VAE(toy.prior(), toy.likelihood),
        guides.VAE(toy.posterior, corruption=GaussianNoise(scale)),
    )
    draws = [-ELBO(particles).loss(p, q, toy.x) for _ in range(600)]
    assert_within(draws, exact)
    assert exact < toy.elbo(toy.x).sum().item() < toy.log_likelihood(toy.x).sum().item()


def test_log_likelihoods_are_unbiased_with_corrupted_proposals(double):
    """A weight p(x, z) / q(z | x_noisy) is unbiased for p(x) with any x_noisy."""
    toy = LinearGaussian(num=5)
    q = guides.VAE(
        toy.posterior, corruption=lambda x: x + 0.2 * torch.randn_like(x)
    )  # in evaluation mode too
    found = evaluate.log_likelihood(
        models.VAE(toy.prior(), toy.likelihood),
        q,
        toy.x,
        num_particles=20_000,
        errors=True,
        seed=0,
    )
    assert (
        (found.log_likelihood - toy.log_likelihood(toy.x)).abs() < 4 * found.standard_error
    ).all()


def pair(noise=None, family=dist.Normal):
    p = models.VAE(default_prior(family, 3), Conditional(dist.Bernoulli, MLP(3, [16]), 64))
    return p, guides.VAE(Conditional(family, MLP(64, [16]), 3), noise)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_denoising_pairs_train(noise, bound, tmp_path):
    x = digits().train.x[:200].round()
    p, q = pair(noise())
    check_pair(p, q, x)
    history = fit(
        *as_made(p, q),
        x,
        loss=bound(),
        epochs=4,
        lr=1e-2,
        folder=tmp_path / "run",
        seed=0,
        progress=False,
    )
    assert history["loss"][-1] < history["loss"][0]
    run = load_run(tmp_path / "run")
    assert repr(run.guide) == repr(q) and type(run.guide.corruption) is type(q.corruption)
    scores = [
        evaluate.log_likelihood(*halves, x[:5], num_particles=5, seed=0)
        for halves in ((p, q), run[:2])
    ]
    assert torch.equal(*scores)
    assert p(batch_size=2).shape == (2, 64)


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_recorded_steps_are_the_eager_ones(noise):
    assert_same_step(IWAE(3), *pair(noise()), torch.rand(6, 64).round())


def test_formulas_name_the_corruption():
    assert pair()[1].formula == "q(z | x)" and "corruption" not in repr(pair()[1])
    q = pair(MaskingNoise(0.3))[1]
    assert q.formula == "q(z, x_noisy | x) = q(z | x_noisy) q(x_noisy | x)"
    assert q.latex == r"q(z, x_{noisy} \mid x) = q(z \mid x_{noisy}) \, q(x_{noisy} \mid x)"
    assert "corruption: q(x_noisy | x) = MaskingNoise(p=0.3)" in repr(q)
    assert pair()[1].formula == "q(z | x)"  # each instance has its own


# --- several decoders of one code


def decoders(latent=3, **grey):
    image = Conditional(dist.Bernoulli, MLP(latent, [16]), 64, **grey)
    return Blocks(image, Conditional(dist.OneHotCategorical, MLP(latent, [8]), 10))


def images_and_labels(binary=True):
    data = digits().train[:300].one_hot(10)
    return torch.cat([data.x.round() if binary else data.x, data.y], 1)


def test_blocks_add_the_log_probabilities_of_their_parts():
    joint, z, x = decoders(), torch.randn(4, 5, 3), images_and_labels()[:5]
    image, label = joint.blocks
    torch.testing.assert_close(
        joint.log_prob(x, z),
        image.log_prob(x[:, :64], z) + label.log_prob(x[:, 64:], z),
        atol=1e-4,
        rtol=0,
    )
    torch.testing.assert_close(joint.mean(z), torch.cat([image.mean(z), label.mean(z)], -1))
    assert joint.sample(z).shape == (4, 5, 74) and joint.sample(z.numpy()).shape == (4, 5, 74)
    assert (
        repr(joint)
        == "Bernoulli(logits) of shape (64,) and OneHotCategorical(logits) of shape (10,)"
    )


def test_a_multi_decoder_autoencoder():
    """Its objective is log p(image | f(x)) + log p(label | f(x)), and both decoders learn."""
    p = models.Autoencoder(decoders(), 3)
    q = guides.Autoencoder(Deterministic(MLP(74, [16]), 3))
    x = images_and_labels()
    z = q.encoder(x).mean
    image, label = p.likelihood.blocks
    parts = image.log_prob(x[:, :64], z).sum(), label.log_prob(x[:, 64:], z).sum()
    assert ELBO().loss(p, q, x) == pytest.approx(-sum(part.item() for part in parts), rel=1e-5)
    fit(p, q, x, epochs=20, lr=1e-2, seed=0, progress=False)
    z = q.encoder(x).mean
    after = image.log_prob(x[:, :64], z).sum(), label.log_prob(x[:, 64:], z).sum()
    assert after[0] > parts[0] and after[1] > parts[1]


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
def test_two_decoders_of_a_vae(bound, tmp_path):
    p = models.VAE(default_prior(dist.Normal, 3), decoders())
    q = guides.VAE(Conditional(dist.Normal, MLP(74, [16]), 3))
    x = images_and_labels()
    assert_same_step(bound(), p, q, x[:6])
    fit(p, q, x, loss=bound(), epochs=1, folder=tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p)
    scores = [
        evaluate.log_likelihood(*halves, x[:5], num_particles=5, seed=0)
        for halves in ((p, q), run[:2])
    ]
    assert torch.equal(*scores) and p(batch_size=2).shape == (2, 74)


def test_blocks_are_checked_one_by_one():
    """Grey pixels are an error in the one block, unless the user accepts them; labels are
    checked as labels.
    """
    q = guides.VAE(Conditional(dist.Normal, MLP(74, [16]), 3))
    x = images_and_labels(binary=False)
    with pytest.raises(InputError, match="x has grey values"):
        fit(models.VAE(default_prior(dist.Normal, 3), decoders()), q, x, progress=False)
    p = models.VAE(default_prior(dist.Normal, 3), decoders(validate_args=False))
    fit(p, q, x, epochs=1, progress=False)
    with pytest.raises(InputError, match="outside the support of OneHotCategorical"):
        fit(p, q, torch.cat([x[:, :64], 0.5 * x[:, 64:]], 1), progress=False)


def test_a_posterior_of_blocks():
    """The code is a Normal block and a Dirichlet block, as is the prior."""
    families = (
        Conditional(dist.Normal, MLP(64, [8]), 2),
        Conditional(dist.Dirichlet, MLP(64, [8]), 3),
    )
    prior = Blocks(default_prior(dist.Normal, 2), Prior(dist.Dirichlet, 3, concentration=1.0))
    p = models.VAE(prior, Conditional(dist.Bernoulli, MLP(5, [16]), 64))
    q = guides.VAE(Blocks(*families))
    x = digits().train.x[:100].round()
    history = fit(p, q, x, epochs=3, lr=1e-2, seed=0, progress=False)
    assert history["loss"][-1] < history["loss"][0]
    code = evaluate.embed(q, x)
    torch.testing.assert_close(code[:, 2:].sum(1), torch.ones(100))
    assert p(batch_size=3).shape == (3, 64)


def test_blocks_reject_invalid_arguments():
    with pytest.raises(
        TypeError, match="blocks must be modules, such as a Conditional or a Prior, got 3"
    ):
        Blocks(3)
    with pytest.raises(ValueError, match=r"blocks must be distributions over vectors"):
        Blocks(Conditional(dist.Normal, MLP(2, []), ()))(torch.zeros(3, 2))
