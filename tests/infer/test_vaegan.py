"""VAE-GAN, adversarial autoencoder and WAE: what each player minimizes by hand, and the
discrepancy in closed form.
"""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.functional import softplus

from tarspyro import Conditional, Deterministic, Optimizer, fit, guides, load_run, models, plot
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    ELBO,
    IWAE,
    VAEGAN,
    WAE,
    AdversarialAutoencoder,
    GaussianKernel,
    Hinge,
    InverseMultiquadratic,
    LeastSquares,
    ModalityKL,
    PairError,
    Wasserstein,
    mmd,
)
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder, Discriminator
from tarspyro.runs import Run
from tarspyro.runs.description import build
from tarspyro.scopes import local_parameters
from tarspyro.training.checks import CollapseError, NonFiniteError

from ..programs import LinearGaussian, assert_within
from .test_games import assert_same_moves, equal, weights, without_compiler

LATENT, PIXELS = 2, 5


def mlp(sizes, hidden=(8,)):
    return MLP(sizes, list(hidden), activation=nn.Tanh)


def pair(likelihood=None, prior=None):
    torch.manual_seed(0)
    likelihood = likelihood or Deterministic(mlp(LATENT), PIXELS)
    p = models.VAE(prior or default_prior(dist.Normal, LATENT), likelihood)
    return p, guides.VAE(Conditional(dist.Normal, mlp(PIXELS), LATENT))


def discriminator(sizes=PIXELS, hidden=(8,)):
    torch.manual_seed(1)
    return Discriminator(mlp(sizes, hidden))


def vaegan(**options):
    return (*pair(), VAEGAN(discriminator(), **options))


def autoencoder(**options):
    torch.manual_seed(0)
    p, q = pair(Conditional(dist.Normal, mlp(LATENT), PIXELS, scale=0.5))
    return p, q, AdversarialAutoencoder(discriminator(LATENT), **options)


def train(p, q, x, loss, **options):
    return fit(p, q, x, loss=loss, **{"epochs": 2, "progress": False, "seed": 0, **options})


def loss_of(game, name, p, q, *x, seed=7):
    """A player's loss on the noise of a seed, its gradient in its own parameters, and its
    terms.
    """
    own = list(p.parameters()), list(q.parameters())
    (player,) = [player for player in game.players(*own) if player.name == name]
    with local_parameters():
        player.loss.prepare(p, q, x, {})
        torch.manual_seed(seed)
        loss, terms = player.loss.loss_and_terms(p, q, *x)
    return loss, torch.autograd.grad(loss, player.parameters, allow_unused=True), terms


def codes_of(q, x):
    """The guide's codes, with the noise that comes next."""
    posterior = q.posterior(x).base_dist
    return posterior.loc + posterior.scale * torch.randn_like(posterior.loc)


def squared(a, b):
    return ((a - b) ** 2).sum()


# --- the losses of the VAE-GAN


def test_the_guides_loss_is_the_kl_and_a_normal_likelihood_in_the_layer():
    p, q, game = vaegan()
    x = torch.randn(20, PIXELS)
    loss, _, terms = loss_of(game, "guide", p, q, x)
    torch.manual_seed(7)
    features = game.discriminator.trunk
    mean = p.likelihood(codes_of(q, x)).v
    similarity = -squared(features(x), features(mean)) / 2 - 20 * 8 / 2 * math.log(2 * math.pi)
    kl = kl_divergence(q.posterior(x), p.prior()).sum()
    torch.testing.assert_close(terms["similarity"], similarity.detach())
    torch.testing.assert_close(terms["kl"], kl.detach())
    torch.testing.assert_close(loss, kl - similarity)


@pytest.mark.parametrize(
    ("layer", "size"), [("trunk.layers.1", 8), ("trunk.layers.2", 6), ("trunk", 6)]
)
def test_any_layer_is_compared(layer, size):
    p, q = pair()
    game = VAEGAN(discriminator(hidden=(8, 6)), layer=layer)
    x = torch.randn(20, PIXELS)
    _, _, terms = loss_of(game, "guide", p, q, x)
    torch.manual_seed(7)
    upto = {"trunk.layers.1": 2, "trunk.layers.2": 3, "trunk": 4}[layer]
    features = game.discriminator.trunk.layers[:upto]
    expected = -squared(features(x), features(p.likelihood(codes_of(q, x)).v)) / 2
    torch.testing.assert_close(
        terms["similarity"], (expected - 20 * size / 2 * math.log(2 * math.pi)).detach()
    )


def test_a_map_of_features_is_compared_at_every_place():
    shape = (1, 8, 8)
    p, q = pair(Deterministic(ConvDecoder(LATENT, shape, [4]), shape))
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder(shape, [4]), LATENT))
    game = VAEGAN(Discriminator(ConvEncoder(shape, [4, 6])), layer="trunk.layers.1")
    x = torch.rand(5, *shape)
    _, _, terms = loss_of(game, "guide", p, q, x)
    torch.manual_seed(7)
    features = game.discriminator.trunk.layers[:2]
    expected = -squared(features(x), features(p.likelihood(codes_of(q, x)).v)) / 2
    torch.testing.assert_close(
        terms["similarity"],
        (expected - 5 * 4 * 16 / 2 * math.log(2 * math.pi)).detach(),
        rtol=1e-5,
        atol=1e-3,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_the_generator_has_gamma_times_the_similarity_and_both_kinds_of_fakes(gamma):
    p, q, game = vaegan(gamma=gamma)
    x = torch.randn(20, PIXELS)
    loss, gradients, _ = loss_of(game, "generator", p, q, x)
    torch.manual_seed(7)
    z = codes_of(q, x)
    features = game.discriminator.trunk
    similarity = -squared(
        features(x), features(p.likelihood(z).v)
    ) / 2 - 20 * 8 / 2 * math.log(2 * math.pi)
    drawn, again = p.likelihood(torch.randn(20, LATENT)).v, p.likelihood(codes_of(q, x)).v
    fooled = [softplus(-game.discriminator(fake)).sum() for fake in (drawn, again)]
    expected = (
        kl_divergence(q.posterior(x), p.prior()).sum()
        - gamma * similarity
        + (fooled[0] + fooled[1]) / 2
    )
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(
        gradients, torch.autograd.grad(expected, list(p.parameters())), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_generator_has_a_share_of_the_models_own_log_density():
    p, q = pair(Conditional(dist.Normal, mlp(LATENT), PIXELS, scale=0.5))
    x = torch.randn(20, PIXELS)
    without, _, none = loss_of(VAEGAN(discriminator()), "generator", p, q, x)
    game = VAEGAN(discriminator(), likelihood=0.3)
    loss, _, terms = loss_of(game, "generator", p, q, x)
    torch.manual_seed(7)
    codes_of(q, x)
    p.likelihood(torch.randn(20, LATENT)).sample()
    mean = p.likelihood(codes_of(q, x)).base_dist.loc
    log_density = -2 * squared(x, mean) - 20 * PIXELS * math.log(0.5 * math.sqrt(2 * math.pi))
    assert not none
    torch.testing.assert_close(terms["likelihood"], log_density.detach())
    torch.testing.assert_close(without - loss, 0.3 * log_density)


@pytest.mark.parametrize(("likelihood", "dark"), [(0.0, False), (0.1, True)])
def test_a_pixel_that_no_image_sets_comes_back_from_one(likelihood, dark):
    """At a logit of 20 a sigmoid is 1 in single precision, with a derivative of 0."""
    torch.manual_seed(0)
    x = torch.rand(200, PIXELS).round()
    x[:, 0] = 0.0
    p, q = pair(Conditional(dist.Bernoulli, mlp(LATENT), PIXELS))
    with torch.no_grad():
        p.likelihood.heads["logits"].weight[0] = 0.0
        p.likelihood.heads["logits"].bias[0] = 20.0
    game = VAEGAN(discriminator(), gamma=0.1, likelihood=likelihood)
    train(p, q, x, game, epochs=60, batch_size=20, lr=1e-2)
    pixel = p.likelihood.mean(torch.randn(500, LATENT))[:, 0]
    assert (pixel.mean() < 0.02) if dark else (pixel == 1).all()


def test_the_discriminator_tells_x_from_both_kinds_of_fakes():
    p, q, game = vaegan()
    x = torch.randn(20, PIXELS)
    loss, gradients, terms = loss_of(game, "discriminator", p, q, x)
    torch.manual_seed(7)
    drawn = p.likelihood(torch.randn(20, LATENT)).v.detach()
    again = p.likelihood(codes_of(q, x)).v.detach()
    scores = [game.discriminator(value) for value in (x, drawn, again)]
    expected = (
        softplus(-scores[0]).sum()
        + (softplus(scores[1]).sum() + softplus(scores[2]).sum()) / 2
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(terms["real"], scores[0].sigmoid().sum().detach())
    torch.testing.assert_close(
        terms["fake"], torch.stack(scores[1:]).sigmoid().sum().detach() / 2
    )
    # The similarity measures with the discriminator and does not train it.
    for found, wanted in zip(
        gradients, torch.autograd.grad(expected, list(game.parameters())), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_the_discriminator_has_a_penalty_on_its_slope():
    """That of a linear score is the squared norm of its weights, at every x."""
    p, q = pair()
    x = torch.rand(6, PIXELS)
    linear = Discriminator(nn.Identity())
    linear(x)  # finds the size of its input
    losses = [
        loss_of(VAEGAN(linear, layer=None, r1=r1), "discriminator", p, q, x)[0]
        for r1 in (0.0, 3.0)
    ]
    weight = next(value for value in linear.parameters() if value.numel() == PIXELS)
    slope = weight.square().sum()
    torch.testing.assert_close(losses[1] - losses[0], len(x) * 1.5 * slope)
    with pytest.raises(ValueError, match="r1 must"):
        VAEGAN(linear, layer=None, r1=-1.0)


def test_a_score_without_bounds_has_no_level_of_its_own():
    """With both kinds of fakes added up against x counted once, it would go down for ever."""
    p, q, _ = vaegan()
    x, found = torch.randn(20, PIXELS), []
    for shift in (0.0, 5.0):
        game = VAEGAN(discriminator(), Wasserstein())
        with torch.no_grad():
            game.discriminator.heads["logit"][0].bias.add_(shift)
        found.append(loss_of(game, "discriminator", p, q, x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


class Mean(nn.Module):
    """A generator whose output is its code, and a discriminator that remembers what it was
    shown.
    """

    in_shapes, out_features = ((1,),), 1

    def __init__(self):
        super().__init__()
        self.scale, self.shown = nn.Parameter(torch.ones(())), []

    def head(self, shape):
        return nn.Identity()

    def forward(self, x, *conditions):
        self.shown.append((x, *conditions))
        return self.scale * x


def test_fakes_come_from_the_models_own_prior():
    """From U(-1, 1) in the place of a prior N(3, 0.1), as in an earlier version, they would be
    near 0.
    """
    prior = dist.Normal(torch.full((1,), 3.0), 0.1).to_event(1)
    p = models.VAE(prior, Conditional(dist.Normal, Mean(), 1, scale=1.0))
    p.likelihood.heads["loc"] = nn.Identity()
    q = guides.VAE(Conditional(dist.Normal, Mean(), 1, scale=0.1))
    q.posterior.heads["loc"] = nn.Identity()
    game = VAEGAN(Mean(), layer=None)
    x = torch.full((4000, 1), -2.0)
    for name in ("discriminator", "generator"):
        game.discriminator.shown.clear()
        loss_of(game, name, p, q, x)
        drawn, again = [shown[0].detach() for shown in game.discriminator.shown][-2:]
        assert_within(drawn, 3.0, "means given codes of the prior")
        assert_within(again, -2.0, "means given codes of the guide")
        assert drawn.std() == pytest.approx(
            0.1, rel=0.1
        )  # means, without the likelihood's own noise


@pytest.mark.parametrize("bound", [ELBO(beta=0.5), IWAE(5)], ids=["ELBO", "IWAE"])
def test_with_the_models_own_likelihood_the_guide_has_the_bound(bound):
    program = LinearGaussian().float()
    program.x = program.x.float()
    program.prior = lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1)
    game = VAEGAN(Discriminator(MLP(5, [4])), layer=None, bound=bound)
    if isinstance(bound, ELBO):
        assert game.adjustable == ("gamma", "beta") and game.beta == 0.5
    found = []
    for one in (bound.loss_and_terms, game.guide_loss):
        torch.manual_seed(0)
        found.append(one(program.model, program.guide, program.x))
    assert found[0][0] == found[1][0] and found[0][1].keys() == found[1][1].keys()


def test_labels_that_are_missing_are_summed_out():
    """A pair whose bound enumerates: the similarity given each label, weighed by q(y | x)."""
    torch.manual_seed(0)
    p = models.SemiSupervisedVAE(
        default_prior(dist.Normal, LATENT),
        default_prior(dist.OneHotCategorical, 3),
        Deterministic(mlp([LATENT, 3]), PIXELS),
    )
    posterior = Conditional(dist.Normal, mlp([PIXELS, 3]), LATENT, scale=1e-6)
    q = guides.SemiSupervisedVAE(
        Conditional(dist.OneHotCategorical, mlp(PIXELS), 3), posterior
    )
    game = VAEGAN(discriminator())
    x = torch.randn(20, PIXELS)
    _, gradients, terms = loss_of(game, "guide", p, q, x)
    probs, features, expected = q.classifier(x).probs, game.discriminator.trunk, 0.0
    for k, y in enumerate(torch.eye(3)):
        y = y.expand(20, 3)
        distance = features(x) - features(p.likelihood(posterior(x, y).mean, y).v)
        expected = expected - (probs[:, k] * (distance**2).sum(1) / 2).sum()
    expected = expected - 20 * 8 / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(terms["similarity"], expected.detach(), rtol=1e-4, atol=1e-4)
    assert all(gradient is not None for gradient in gradients)
    train(p, q, x, game)
    # Rows with labels and others without, and the adversary where there are none.
    half = (x[:10], torch.eye(3)[torch.arange(10) % 3], x[10:])
    likelihood = Conditional(dist.Normal, mlp([LATENT, 3]), PIXELS, scale=1.0)
    p = models.SemiSupervisedVAE(p.prior, p.label_prior, likelihood)
    history = train(p, q, half, VAEGAN(discriminator(), site="x_unlabelled"))
    assert history["similarity"] and history["fake"]


# --- other pairs


def conditional():
    p = models.ConditionalVAE(
        Conditional(dist.Normal, mlp(3), LATENT), Deterministic(mlp([LATENT, 3]), PIXELS)
    )
    return (
        p,
        guides.ConditionalVAE(Conditional(dist.Normal, mlp([PIXELS, 3]), LATENT)),
        [PIXELS, 3],
        {},
    )


def cmma():
    p = models.CMMA(
        Conditional(dist.Normal, mlp(3), LATENT), Deterministic(mlp(LATENT), PIXELS)
    )
    return p, guides.CMMA(Conditional(dist.Normal, mlp([PIXELS, 3]), LATENT)), [PIXELS, 3], {}


def jmvae():
    label = Conditional(dist.OneHotCategorical, mlp(LATENT), 3)
    p = models.JMVAE(
        default_prior(dist.Normal, LATENT), [Deterministic(mlp(LATENT), PIXELS), label]
    )
    own = [Conditional(dist.Normal, mlp(size), LATENT) for size in (PIXELS, 3)]
    q = guides.JMVAE(Conditional(dist.Normal, mlp([PIXELS, 3]), LATENT), own)
    return p, q, PIXELS, {"site": "x_1", "bound": ModalityKL(ELBO(), alpha=0.1)}


@pytest.mark.parametrize("make", [conditional, cmma, jmvae])
def test_other_pairs_compose(make):
    torch.manual_seed(0)
    p, q, sizes, options = make()
    game = VAEGAN(discriminator(sizes), **options)
    x, y = torch.randn(40, PIXELS), torch.eye(3)[torch.arange(40) % 3]
    _, gradients, terms = loss_of(game, "guide", p, q, x, y)
    assert all(gradient is not None for gradient in gradients)
    torch.manual_seed(7)
    given = () if make is jmvae else (y,)
    posterior = q.posterior(x, y).base_dist
    z = posterior.loc + posterior.scale * torch.randn_like(posterior.loc)
    likelihood = (
        p.likelihoods[0](z)
        if make is jmvae
        else p.likelihood(z, *(given if make is conditional else ()))
    )
    features = game.discriminator.trunk
    expected = -squared(
        features(x, *given), features(likelihood.v, *given)
    ) / 2 - 40 * 8 / 2 * math.log(2 * math.pi)
    if make is jmvae:  # the label keeps its likelihood
        expected = expected + p.likelihoods[1](z).log_prob(y).sum()
    torch.testing.assert_close(terms["similarity"], expected.detach(), rtol=1e-4, atol=1e-4)
    before = weights(p, q, game)
    history = train(p, q, (x, y), game, lr=0.1)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(p, q, game), strict=True))
    assert {"guide_loss", "generator_gradient", "real", "fake", "kl"} <= history.rows[0].keys()
    assert p(*([None, y] if make is not jmvae else []), batch_size=40) is not None


# --- the discrepancy


def test_mmd_equals_its_definition():
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64) + 1
    for kernel in (GaussianKernel((0.5, 2.0)), InverseMultiquadratic((1.0, 0.1))):

        def k(a, b, kernel=kernel):
            square, total = float(((a - b) ** 2).sum()), 0.0
            for scale in kernel.scales:
                constant = 2 * 3 * scale**2
                is_gaussian = isinstance(kernel, GaussianKernel)
                total += (
                    math.exp(-square / (2 * scale**2))
                    if is_gaussian
                    else constant / (constant + square)
                )
            return total

        expected = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (
            7 * 6
        )
        expected += sum(
            k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j
        ) / (5 * 4)
        expected -= 2 * sum(k(a, b) for a in x for b in y) / 35
        assert mmd(x, y, kernel).item() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(ValueError, match="mmd needs at least two draws .* got 1 and 5"):
        mmd(x[:1], y, GaussianKernel())
    with pytest.raises(ValueError, match="scales must be positive"):
        GaussianKernel((0.0,))


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_mmd_of_gaussians_is_known(shift):
    """E k(a, b) of a Gaussian kernel and Gaussians is a Gaussian density of their means'
    distance.
    """
    size, kernel_scale, first, second = 4, 1.5, 1.0, 1.0 if shift == 0 else 0.5

    def mean_kernel(distance, s, t):
        variance = kernel_scale**2 + s**2 + t**2
        return (kernel_scale**2 / variance) ** (size / 2) * math.exp(
            -distance / (2 * variance)
        )

    expected = mean_kernel(0, first, first) + mean_kernel(0, second, second)
    expected -= 2 * mean_kernel(size * shift**2, first, second)
    torch.manual_seed(0)
    kernel, found, faulty = GaussianKernel((kernel_scale,)), [], []
    for _ in range(300):
        x, y = first * torch.randn(20, size), shift + second * torch.randn(30, size)
        found.append(mmd(x, y, kernel))
        faulty.append(
            (kernel(x, x).sum() + kernel(y, y).sum() - 2 * kernel(x, y).sum()) / size
        )
    found, faulty = torch.stack(found), torch.stack(faulty)
    assert_within(found, expected, "the discrepancy")
    if shift == 0:
        # With the diagonal, and divided by the number of features, equal laws would seem to
        # differ.
        assert expected == pytest.approx(0.0, abs=1e-15) and (found < 0).any()
        assert faulty.mean() > 4 * faulty.std() / 300**0.5 and faulty.mean() > 1


def linear(prior=None):
    """Data of one dimension, and codes of it."""
    torch.manual_seed(0)
    p = models.VAE(
        prior or default_prior(dist.Normal, 1),
        Conditional(dist.Normal, mlp(1, ()), 1, scale=0.5),
    )
    return p, guides.VAE(Deterministic(mlp(1, ()), 1))


def test_waes_loss_is_the_reconstruction_and_the_discrepancy():
    p, q = linear()
    x, loss = 3 + 2 * torch.randn(50, 1), WAE(weight=2.0)
    torch.manual_seed(7)
    found, terms = loss.loss_and_terms(p, q, x)
    torch.manual_seed(7)
    z = q.posterior(x).v
    discrepancy = mmd(z, torch.randn(50, 1), InverseMultiquadratic())
    reconstruction = p.likelihood(z).log_prob(x).sum()
    torch.testing.assert_close(found, 2.0 * 50 * discrepancy - reconstruction)
    torch.testing.assert_close(terms["mmd"], 50 * discrepancy.detach())
    single, terms = loss.loss_and_terms(p, q, x[:1])
    assert terms.keys() == {"reconstruction"} and single == -terms["reconstruction"]


def test_codes_come_to_follow_the_prior():
    x = 3 + 2 * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    prior = dist.Normal(torch.full((1,), -1.0), 0.5).to_event(1)
    games = {
        "WAE": (WAE(100.0, GaussianKernel((0.5, 2.0))), {"lr": 0.05}),
        "AAE": (
            AdversarialAutoencoder(Discriminator(mlp(1, (16,))), LeastSquares(), weight=10.0),
            {"lr": 0.01, "betas": (0.5, 0.9)},
        ),
    }
    for name, (loss, options) in games.items():
        p, q = linear(prior)
        train(
            p,
            q,
            x[: 1000 if name == "WAE" else None],
            loss,
            epochs=15 if name == "WAE" else 30,
            optimizer=Optimizer(**options),
        )
        z = q.posterior(x).v.detach()
        assert abs(z.mean() + 1.0) < 0.15 and abs(z.std() - 0.5) < 0.15, (
            name,
            z.mean(),
            z.std(),
        )


# --- the adversarial autoencoder


def test_the_adversarial_autoencoders_losses():
    p, q, game = autoencoder(weight=0.3)
    x = torch.randn(20, PIXELS)
    loss, gradients, terms = loss_of(game, "autoencoder", p, q, x)
    torch.manual_seed(7)
    z = codes_of(q, x)
    reconstruction = p.likelihood(z).log_prob(x).sum()
    torch.testing.assert_close(terms["reconstruction"], reconstruction.detach())
    torch.testing.assert_close(
        loss, 0.3 * softplus(-game.discriminator(z)).sum() - reconstruction
    )
    assert all(gradient is not None for gradient in gradients)
    loss, _, terms = loss_of(game, "discriminator", p, q, x)
    torch.manual_seed(7)
    z = codes_of(q, x).detach()
    scores = game.discriminator(torch.randn(20, LATENT)), game.discriminator(z)
    torch.testing.assert_close(loss, softplus(-scores[0]).sum() + softplus(scores[1]).sum())
    torch.testing.assert_close(terms["real"], scores[0].sigmoid().sum().detach())


def test_the_discriminator_of_codes_sees_the_condition():
    p, q, *_ = conditional()
    game = AdversarialAutoencoder(Mean())
    likelihood = Conditional(dist.Normal, mlp([LATENT, 3]), PIXELS, scale=1.0)
    p = models.ConditionalVAE(p.prior, likelihood)
    x, y = torch.randn(20, PIXELS), torch.eye(3)[torch.arange(20) % 3]
    loss_of(game, "discriminator", p, q, x, y)
    assert [shown[1] is y for shown in game.discriminator.shown[-2:]] == [True, True]
    assert all(shown[0].shape == (20, LATENT) for shown in game.discriminator.shown[-2:])


# --- runs and recordings


def rows_of(history):
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in history.rows
    ]


@pytest.mark.parametrize("make", [vaegan, autoencoder])
def test_a_resumed_game_is_the_uninterrupted_one(tmp_path, make):
    x = torch.randn(70, PIXELS)
    options = {
        "batch_size": 10,
        "optimizer": Optimizer(lr=1e-2, discriminator={"lr": 1e-3}),
    }
    whole_pair = make()
    whole = train(*whole_pair[:2], x, whole_pair[2], epochs=4, **options)
    half = make()
    train(*half[:2], x, half[2], epochs=2, folder=tmp_path, **options)
    torch.manual_seed(17)  # another process
    again = make()
    history = train(
        *again[:2], x, again[2], epochs=4, folder=Run(tmp_path, resume=True), **options
    )
    assert equal(weights(*whole_pair), weights(*again))
    assert rows_of(history) == rows_of(whole) and history.step_losses == whole.step_losses
    loaded = load_run(tmp_path)
    assert equal(weights(loaded.model, loaded.guide), weights(*whole_pair[:2]))
    half[2].load_state_dict(Run(tmp_path).load_weights("last")["loss"])
    assert equal(weights(half[2]), weights(whole_pair[2]))
    assert type(build(loaded.config["loss"])) is type(half[2])


def normalized():
    """Batch normalization in all three networks, whose statistics a recording must not move."""
    p, q = pair(Deterministic(MLP(LATENT, [8], normalization=nn.BatchNorm1d), PIXELS))
    q = guides.VAE(
        Conditional(dist.Normal, MLP(PIXELS, [8], normalization=nn.BatchNorm1d), LATENT)
    )
    return p, q, VAEGAN(Discriminator(MLP(PIXELS, [8], normalization=nn.BatchNorm1d)))


GAMES = {
    "VAEGAN, Hinge, gamma": partial(vaegan, divergence=Hinge(), gamma=0.1),
    "VAEGAN, normalized": normalized,
    "AAE": autoencoder,
}


@pytest.mark.parametrize("make", GAMES.values(), ids=GAMES)
def test_recorded_moves_are_the_eager_ones(make):
    p, q, game = make()
    assert_same_moves(game, p, q, torch.randn(6, PIXELS))


@pytest.mark.parametrize("make", [vaegan, autoencoder])
def test_a_compiled_game_is_the_eager_one(make, monkeypatch):
    without_compiler(monkeypatch)
    x, found = torch.randn(60, PIXELS), []
    for compiled in (False, True):
        p, q, game = make()
        number = "gamma" if make is vaegan else "weight"
        schedules = {number: lambda step: 1 / (1 + step)}
        history = train(p, q, x, game, batch_size=20, compile=compiled, schedules=schedules)
        found.append((rows_of(history), weights(p, q, game)))
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_the_structure_of_the_pair_is_found_once(monkeypatch):
    p, q, game = vaegan()
    calls = []
    forward = p.likelihood.forward
    monkeypatch.setattr(p.likelihood, "forward", lambda *z: (calls.append(1), forward(*z))[1])
    x = torch.randn(10, PIXELS)
    for name in ("guide", "generator"):
        loss_of(game, name, p, q, x)
    calls.clear()
    with local_parameters():
        (
            game.guide_loss(p, q, x),
            game.generator_loss(p, q, x),
            game.discriminator_loss(p, q, x),
        )
    assert (
        len(calls) == 1 + 3 + 2
    )  # the bound's draw; that and both kinds of fakes; both kinds of fakes


def test_curves_of_a_vaegan():
    p, q, game = vaegan()
    figure = plot.curves(train(p, q, torch.randn(100, PIXELS), game))
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "loss",
        "norm of the gradient",
        "mean output of the discriminator",
    ]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["discriminator", "guide", "generator"]


# --- what cannot be played


def test_what_goes_wrong_stops_with_a_sentence():
    p, q, game = vaegan(patience=20)
    still = {"lr": 0.5, "generator": {"lr": 0.0}, "guide": {"lr": 0.0}}
    with pytest.raises(
        CollapseError,
        match=r"The discriminator has won: its loss was below 0.001 in 20 moves in a row",
    ):
        train(
            p,
            q,
            5 + torch.randn(100, PIXELS),
            game,
            epochs=100,
            batch_size=10,
            optimizer=Optimizer(**still),
        )
    p, q, game = vaegan()
    start = weights(p, q)
    with pytest.raises(
        NonFiniteError,
        match=r"The (guide|generator|discriminator)'s loss was (nan|inf) at step \d+",
    ):
        train(p, q, torch.randn(500, PIXELS), game, batch_size=10, lr=1e38)
    assert equal(start, weights(p, q))


def test_what_cannot_be_played_is_said():
    p, q, game = vaegan()
    x = torch.randn(20, PIXELS)
    with pytest.raises(
        ValueError, match=r"layer of the discriminator must be one of 'trunk', "
    ):
        VAEGAN(discriminator(), layer="trunck")
    with pytest.raises(ValueError, match="gamma must not be negative"):
        VAEGAN(discriminator(), gamma=-1.0)
    with pytest.raises(
        TypeError, match=r"bound must be one of tarspyro.infer, such as ELBO\(\), got 'elbo'"
    ):
        VAEGAN(discriminator(), bound="elbo")
    with pytest.raises(PairError, match="observes nothing at 'y'"):
        train(p, q, x, VAEGAN(discriminator(), site="y"))
    with pytest.raises(
        PairError,
        match=r"has a Deterministic likelihood at 'x', without a density: give the name",
    ):
        train(p, q, x, VAEGAN(discriminator(), layer=None))
    cauchy, guide = pair(Conditional(dist.Cauchy, mlp(LATENT), PIXELS))
    with pytest.raises(PairError, match="distribution of 'x' has no mean to generate"):
        train(cauchy, guide, x, game)
    with pytest.raises(PairError, match=r"guide is None, but models\.VAE samples \['z'\]"):
        fit(p, data=x, loss=game, progress=False)
    for make in (
        lambda: WAE(-1.0),
        lambda: AdversarialAutoencoder(discriminator(), weight=0.0),
    ):
        with pytest.raises(ValueError, match="weight must"):
            make()
    with pytest.raises(PairError, match=r"draws no 'w': latent must be one of \['z'\]"):
        train(p, q, x, WAE(latent="w"))
    torch.manual_seed(0)
    p = models.VAE(
        default_prior(dist.Bernoulli, LATENT),
        Conditional(dist.Normal, mlp(LATENT), PIXELS, scale=1.0),
    )
    q = guides.VAE(Conditional(dist.Bernoulli, mlp(PIXELS), LATENT))
    with pytest.raises(
        PairError, match="draws 'z' without a derivative: take a Normal, or a Deterministic"
    ):
        train(p, q, x, AdversarialAutoencoder(discriminator(LATENT)))
