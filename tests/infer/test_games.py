"""Games: what each player minimizes against closed forms, whose parameters move, and that fit
plays any game.
"""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from tarspyro import Conditional, Deterministic, Optimizer, fit, load_run, models, plot
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    ELBO,
    Adversarial,
    Compiled,
    Game,
    Hinge,
    JensenShannon,
    LeastSquares,
    PairError,
    Wasserstein,
)
from tarspyro.infer.compilation.recording import record
from tarspyro.infer.traces import no_guide
from tarspyro.nn import MLP, ConvDecoder, Discriminator, PatchGAN, UNet, spectrally_normalized
from tarspyro.runs import Run
from tarspyro.runs.description import build, describe
from tarspyro.scopes import local_parameters
from tarspyro.training.checks import CollapseError, NonFiniteError
from tarspyro.training.losses import Objective
from tarspyro.training.state import TrainingState
from tarspyro.training.trainer import Trainer

from ..programs import assert_within

DIVERGENCES = {
    "JensenShannon": JensenShannon,
    "saturating": lambda: JensenShannon(saturating=True),
    "LeastSquares": LeastSquares,
    "Hinge": Hinge,
    "Wasserstein": Wasserstein,
}
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


def gan(features=3, latent=2, seed=0, **options):
    torch.manual_seed(seed)
    p = models.GAN(
        default_prior(dist.Normal, latent),
        Deterministic(MLP(latent, [8], activation=nn.Tanh), features),
    )
    return p, Adversarial(Discriminator(MLP(features, [8], activation=nn.Tanh)), **options)


def train(p, x, loss, **options):
    return fit(p, data=x, loss=loss, **{"epochs": 2, "progress": False, "seed": 0, **options})


def weights(*programs):
    return [
        parameter.detach().clone()
        for program in programs
        for parameter in program.parameters()
    ]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def losses_of(game, p, x, *more):
    """The value of each player's loss, and its gradient in its own parameters."""
    found = {}
    with local_parameters():
        for player in game.players(list(p.parameters()), []):
            loss, terms = player.loss.loss_and_terms(p, None, x, *more)
            found[player.name] = (
                loss.detach(),
                torch.autograd.grad(loss, player.parameters, allow_unused=True),
                terms,
            )
    return found


# --- the losses as functions of the score


def test_the_losses_are_those_of_the_papers():
    score = torch.linspace(-3, 3, 7, requires_grad=True)
    ones, zeros = torch.ones(7), torch.zeros(7)
    entropy = partial(binary_cross_entropy_with_logits, reduction="none")
    cases = [
        (JensenShannon(), entropy(score, ones), entropy(score, zeros), entropy(score, ones)),
        (
            JensenShannon(saturating=True),
            entropy(score, ones),
            entropy(score, zeros),
            -entropy(score, zeros),
        ),
        (LeastSquares(), (score - 1) ** 2 / 2, score**2 / 2, (score - 1) ** 2 / 2),
        (Hinge(), (1 - score).clamp(min=0), (1 + score).clamp(min=0), -score),
        (Wasserstein(), -score, score, -score),
    ]
    for divergence, real, fake, generator in cases:
        torch.testing.assert_close(divergence.real(score), real)
        torch.testing.assert_close(divergence.fake(score), fake)
        torch.testing.assert_close(divergence.generator(score), generator)
    torch.testing.assert_close(JensenShannon().output(score), 1 / (1 + (-score).exp()))


def test_nothing_overflows_where_the_discriminator_is_sure():
    """log(sigmoid + epsilon) would be log(epsilon), with a gradient of zero, for every score
    below -20 or so.
    """
    for saturating in (False, True):
        score = torch.tensor([-1e4, 1e4], requires_grad=True)
        divergence = JensenShannon(saturating)
        losses = torch.stack(
            [divergence.real(score), divergence.fake(score), divergence.generator(score)]
        )
        assert losses.isfinite().all()
        (slope,) = torch.autograd.grad(losses.sum(), score)
        assert slope.isfinite().all()
    far = torch.tensor([-100.0], requires_grad=True)
    (slope,) = torch.autograd.grad(JensenShannon().generator(far).sum(), far)
    assert slope.item() == -1.0  # the loss that does not saturate pulls as hard as it can


def test_the_penalty_is_of_the_norm_for_each_row():
    """Of the norm of the whole gradient, not of its square, and not of each pixel's."""
    weight = torch.tensor([[3.0, 4.0]])
    linear = nn.Linear(2, 1, bias=False)
    linear.weight.data = weight
    real, fake = torch.randn(5, 2), torch.randn(5, 2)
    penalty = Wasserstein(weight=10.0).penalty(linear, real, fake)
    torch.testing.assert_close(penalty, torch.full((5,), 10.0 * (5.0 - 1) ** 2))
    (slope,) = torch.autograd.grad(penalty.mean(), linear.weight)
    torch.testing.assert_close(slope, 20.0 * (5.0 - 1) * weight / 5.0)
    with torch.no_grad():  # in an evaluation too
        torch.testing.assert_close(
            Wasserstein(weight=10.0).penalty(linear, real, fake), penalty.detach()
        )
    # D(x) = |x|^2 / 2 has the slope x: the points lie between the rows, one for each, at
    # random places.
    found = Wasserstein(1.0).penalty(
        lambda x: (x**2).sum(1) / 2, torch.full((2000, 2), 3.0), torch.zeros(2000, 2)
    )
    places = 3.0 * 2**0.5 * torch.linspace(0, 1, 10_001)
    assert_within(found, ((places - 1) ** 2).mean(), "the mean penalty")
    # Scores of patches: the slope of their mean.
    torch.testing.assert_close(
        Wasserstein(1.0).penalty(lambda x: x, real, fake),
        torch.full((5,), (0.5**0.5 - 1) ** 2),
    )
    assert Wasserstein(0.0).penalty(linear, real, fake) is None


# --- the best discriminator of known densities


class Shifted(nn.Module):
    """G(z) = z + shift."""

    in_shapes, out_features = ((1,),), 1

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([shift]))

    def forward(self, z):
        return z + self.shift

    def head(self, shape):
        return nn.Identity()


def shifted(shift=0.0):
    return models.GAN(default_prior(dist.Normal, 1), Deterministic(Shifted(shift), 1))


class Logistic(nn.Module):
    """D(x) = w x + b, or its sigmoid."""

    def __init__(self, weight, bias, squashed=False):
        super().__init__()
        self.weight, self.bias, self.squashed = (
            nn.Parameter(torch.tensor(weight)),
            nn.Parameter(torch.tensor(bias)),
            squashed,
        )

    def forward(self, x):
        score = (self.weight * x + self.bias).squeeze(-1)
        return score.sigmoid() if self.squashed else score


GRID = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
MEAN = 1.5


def integral(values):
    return torch.trapezoid(values, GRID)


@pytest.mark.parametrize(
    ("divergence", "squashed"),
    [(JensenShannon(), False), (LeastSquares(), True)],
    ids=["JS", "LS"],
)
def test_the_best_discriminator_is_p_over_p_plus_q(divergence, squashed):
    """Data N(m, 1), fakes N(0, 1): log p - log q = m x - m^2 / 2, where the gradient is zero
    and the loss known.
    """
    discriminator = Logistic(MEAN, -(MEAN**2) / 2, squashed)
    game = Adversarial(discriminator, divergence)
    p, q = (
        dist.Normal(MEAN, 1.0).log_prob(GRID).exp(),
        dist.Normal(0.0, 1.0).log_prob(GRID).exp(),
    )
    best = p / (p + q)
    if squashed:
        expected = integral(p * (best - 1) ** 2 / 2 + q * best**2 / 2)
    else:
        divergence = 0.5 * integral(
            p * (p / (p + q)).log() + q * (q / (p + q)).log()
        ) + math.log(2)
        expected = 2 * math.log(2) - 2 * divergence
        torch.testing.assert_close(
            discriminator(GRID.float()).double().sigmoid(), best, atol=1e-5, rtol=0
        )
    found, slopes, wrong = [], [], []
    for _ in range(300):
        x = MEAN + torch.randn(200, 1)
        loss, slope, _ = losses_of(game, shifted(), x)["discriminator"]
        found.append(loss / 200), slopes.append(torch.stack(slope) / 200)
        wrong.append(torch.stack(losses_of(game, shifted(0.5), x)["discriminator"][1]) / 200)
    assert_within(torch.stack(found), expected, "the loss")
    assert_within(torch.stack(slopes), torch.zeros(2), "the gradient")
    far = torch.stack(wrong)
    assert (
        far.mean(0).abs() > 4 * far.std(0) / 300**0.5
    ).any()  # against other fakes it is not the best


@each_divergence
def test_the_generators_gradient_is_known_and_points_to_the_data(divergence):
    divergence, weight, bias = divergence(), MEAN, -(MEAN**2) / 2
    q = dist.Normal(0.0, 1.0).log_prob(GRID).exp()
    score = (weight * GRID + bias).requires_grad_()
    (slope,) = torch.autograd.grad(divergence.generator(score).sum(), score)
    expected = integral(q * slope * weight)
    game, found = Adversarial(Logistic(weight, bias), divergence), []
    for _ in range(200):
        (gradient,) = losses_of(game, shifted(), MEAN + torch.randn(100, 1))["generator"][1]
        found.append(gradient / 100)
    assert_within(torch.stack(found), expected, "the gradient")
    # Downhill is towards the data, also where least squares overshoot what they aim at.
    assert expected < 0 or isinstance(divergence, LeastSquares)


@each_divergence
def test_every_divergence_moves_fakes_to_the_data(divergence):
    torch.manual_seed(0)
    steep = divergence is Wasserstein
    # In one dimension a slope of the wrong sign has to pass 0, where the penalty is its
    # weight.
    divergence = Wasserstein(0.1) if steep else divergence()
    p, x = shifted(), MEAN + torch.randn(2000, 1)
    critic = Discriminator(MLP(1, [16], activation=nn.Tanh))
    options = {"lr": 1e-2, "betas": (0.0, 0.9), "generator": {"lr": 2e-2}}
    train(
        p,
        x,
        Adversarial(critic, divergence, every=3 if steep else 1),
        epochs=12,
        optimizer=Optimizer(**options),
    )
    assert abs(p.likelihood.trunk.shift.item() - MEAN) < 0.4


# --- the game


def by_hand(p, game, batches, lr, epochs):
    """The loop that a PyTorch user writes: Algorithm 1 with one step of the discriminator."""
    generator, discriminator = p.likelihood, game.discriminator
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=lr) for network in (discriminator, generator)
    ]
    history = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.randint(2**62, ())  # the draw that seeds the order of the data
        for _ in range(epochs):
            for x in batches:
                fake = generator(torch.randn(len(x), 2)).v.detach()
                loss = (softplus(-discriminator(x)) + softplus(discriminator(fake))).mean()
                optimizers[0].zero_grad()
                loss.backward()
                optimizers[0].step()
                history.append(loss.item())
                loss = softplus(-discriminator(generator(torch.randn(len(x), 2)).v)).mean()
                optimizers[1].zero_grad()
                loss.backward()
                optimizers[1].step()
                history.append(loss.item())
    return history


def test_equals_the_loop_written_by_hand():
    x = torch.randn(250, 3)
    p, game = gan()
    history = train(
        p, x, game, shuffle=False, epochs=3, optimizer=Optimizer(lr=1e-2, foreach=False)
    )
    other, twin = gan()
    assert history.step_losses == pytest.approx(
        by_hand(other, twin, x.split(100), 1e-2, 3), rel=1e-5
    )
    for a, b in zip(weights(p, game), weights(other, twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@each_divergence
def test_gradients_come_from_the_players_own_loss_alone(divergence):
    p, game = gan(divergence=divergence())
    x = torch.randn(20, 3)
    with local_parameters():
        first, second = game.players(list(p.parameters()), [])
        first.loss.loss_and_grads(p, None, x)
        assert all(parameter.grad is None for parameter in p.parameters())
        kept = [parameter.grad.clone() for parameter in game.parameters()]
        second.loss.loss_and_grads(p, None, x)
        assert equal(kept, [parameter.grad for parameter in game.parameters()])
        assert all(parameter.grad is not None for parameter in p.parameters())


def test_a_player_moves_its_own_parameters_alone():
    p, game = gan(every=3)
    x, before = torch.randn(20, 3), weights(p)
    with local_parameters():
        objective = Objective(game, p, no_guide)
        objective.add_players([*p.parameters()], [])
        optimizers = [
            torch.optim.SGD(player.parameters, lr=0.1) for player in objective.players
        ]
        trainer = Trainer(objective, TrainingState(objective.halves, optimizers))
        for step in range(6):
            critic, generator = weights(game), weights(p)
            trainer.step((x,))
            assert not equal(critic, weights(game))
            assert equal(generator, weights(p)) == (
                step % 3 != 2
            )  # after as many moves of the discriminator
    assert not equal(before, weights(p))


def test_what_the_history_holds():
    p, game = gan()
    x = torch.randn(250, 3)
    history = train(p, x, game, shuffle=False, epochs=1, validation=x[:50], lr=0.0)
    row = history.rows[0]
    score = game.discriminator(x)
    assert row["real"] == pytest.approx(score.sigmoid().mean().item(), rel=1e-5)
    # D's loss is what it pays for real data, which is known here, and for fakes.
    assert row["discriminator_loss"] > softplus(-score).mean().item()
    assert (
        0 < row["fake"] < 1
        and row["generator_gradient"] > 0
        and row["discriminator_gradient"] > 0
    )
    assert (
        history.best_epoch == 1 and history.in_hand == "best" and len(history.step_losses) == 6
    )
    assert {
        "validation_discriminator_loss",
        "validation_generator_loss",
        "validation_real",
    } <= row.keys()
    assert row["validation_real"] == pytest.approx(
        score[:50].sigmoid().mean().item(), rel=1e-5
    )
    assert not list(pyro.get_param_store().keys())


def test_the_norm_of_a_players_gradient():
    p, game = gan()
    x = torch.randn(40, 3)
    history = train(p, x, game, epochs=1, shuffle=False, lr=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.randint(2**62, ())
        (_, first, _), (_, second, _) = losses_of(game, p, x).values()
    for name, gradients in (("discriminator", first), ("generator", second)):
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm() / 40
        assert history[f"{name}_gradient"][0] == pytest.approx(norm.item(), rel=1e-5)


def test_a_move_every_so_many_steps_counts_by_its_own_rows():
    p, game = gan(divergence=Wasserstein(), every=2)
    history = train(
        p,
        torch.randn(70, 3),
        game,
        batch_size=10,
        epochs=2,
        shuffle=False,
        lr=0.0,
    )
    assert len(history.step_losses) == 14 + 7
    moves = [value for index, value in enumerate(history.step_losses) if index % 3 == 2]
    assert history["generator_loss"][0] == pytest.approx(sum(moves[:3]) / 3, rel=1e-4)
    assert history["generator_loss"][1] == pytest.approx(sum(moves[3:]) / 4, rel=1e-4)


def test_curves_of_a_game():
    p, game = gan()
    history = train(p, torch.randn(100, 3), game, validation=torch.randn(50, 3))
    figure = plot.curves(history)
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "loss",
        "norm of the gradient",
        "mean output of the discriminator",
    ]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [
        "discriminator",
        "discriminator, held out",
        "generator",
        "generator, held out",
    ]
    ax = figure.add_subplot()
    assert plot.curves(history, ax=ax) is figure and ax.get_ylabel() == "loss"


# --- conditions and other likelihoods


class Seen(nn.Module):
    """A discriminator that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.scale, self.shown = nn.Parameter(torch.ones(())), []

    def forward(self, *inputs):
        self.shown.append(inputs)
        return self.scale * inputs[0].flatten(1).sum(1)


def test_both_networks_see_the_condition():
    p = models.ConditionalGAN(
        default_prior(dist.Normal, 2), Deterministic(MLP([2, 4], [8]), 3)
    )
    game = Adversarial(Seen())
    x, y = torch.randn(5, 3), torch.eye(4)[torch.tensor([0, 1, 2, 3, 0])]
    game.discriminator.shown.clear()
    losses_of(game, p, x, y)
    (real, known), *fakes = game.discriminator.shown
    assert real is x and known is y
    for fake, condition in fakes:
        assert fake.shape == x.shape and condition is y
    # what a generator makes of one code and two labels differs
    z = torch.zeros(2, 2)
    one, other = pyro.condition(p, {"z": z})(y=torch.eye(4)[:2])
    assert not torch.equal(one, other)
    history = fit(
        p,
        data=(x, y),
        loss=Adversarial(Discriminator(MLP([3, 4], [8]))),
        epochs=1,
        progress=False,
    )
    assert history["discriminator_loss"][0] > 0


def test_what_a_model_observes_is_no_condition():
    likelihoods = [
        Conditional(dist.Normal, MLP(2, [8]), 3),
        Conditional(dist.OneHotCategorical, MLP(2, [8]), 4),
    ]
    p = models.JMVAE(default_prior(dist.Normal, 2), likelihoods)
    game = Adversarial(Seen(), site="x_1")
    losses_of(game, p, torch.randn(5, 3), torch.eye(4)[:1].expand(5, 4))
    assert {len(inputs) for inputs in game.discriminator.shown} == {1}


def test_pix2pix_adds_the_mean_absolute_difference():
    p = models.ConditionalGAN(
        default_prior(dist.Normal, 2), Deterministic(UNet(2, (1, 8, 8), [4]), (1, 8, 8))
    )
    critic = PatchGAN([(1, 8, 8)] * 2, [4])
    x, y = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
    found = {}
    for l1 in (0.0, 100.0):
        torch.manual_seed(0)
        found[l1] = losses_of(Adversarial(critic, l1=l1), p, x, y)["generator"]
    distance = found[100.0][2]["l1"]
    torch.testing.assert_close(found[100.0][0], found[0.0][0] + 100 * distance)
    torch.manual_seed(0)
    losses_of(Adversarial(Seen()), p, x, y)  # the discriminator's fakes come first
    torch.manual_seed(0)
    torch.randn(6, 2)
    z = torch.randn(6, 2)
    fake = p.likelihood(z, y).v
    torch.testing.assert_close(distance, (fake - x).abs().mean((1, 2, 3)).sum())
    fit(p, data=(x, y), loss=Adversarial(critic, l1=100.0), epochs=1, progress=False)


@pytest.mark.parametrize(
    "family", [dist.Normal, dist.Uniform, dist.Laplace], ids=lambda family: family.__name__
)
def test_noise_of_any_family(family):
    p = models.GAN(
        family(-torch.ones(2), torch.ones(2)).to_event(1), Deterministic(MLP(2, [8]), 3)
    )
    train(p, torch.randn(50, 3), gan()[1])
    assert p(batch_size=5).shape == (5, 3)


def test_a_likelihood_with_noise_of_its_own_and_a_function_as_the_generator():
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [8]), 3))
    before = weights(p)
    train(p, torch.randn(50, 3), gan()[1])
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(p), strict=True))

    def generator(x):
        loc = pyro.param("loc", lambda: torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    history = train(generator, 2 + torch.randn(200, 3), gan()[1], epochs=20, lr=0.05)
    assert (history.states["last"]["params"]["loc"] > 1.0).all()


def test_a_subsample_counts_by_its_scale():
    """Losses, outputs and gradients are per data point, whether or not a batch stands for
    more.
    """
    x, found = torch.randn(20, 3), []
    for size in (20, 500):
        p, game = gan()

        def model(x, p=p, size=size):
            pyro.module("generator", p.likelihood)
            with pyro.plate("data", size, subsample=x):
                z = pyro.sample("z", p.prior())
                pyro.sample("x", p.likelihood(z), obs=x)

        found.append(train(model, x, game, epochs=1, shuffle=False).rows[0])
    for name in (
        "discriminator_loss",
        "generator_loss",
        "real",
        "discriminator_gradient",
        "generator_gradient",
    ):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4), name


# --- networks


def test_patches_are_as_large_as_said():
    for channels, size in (([4], 8), ([4, 4], 18)):
        x = torch.zeros(1, 1, 64, 64, requires_grad=True)
        logits = PatchGAN([(1, 64, 64)], channels)(x)
        logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
        seen = x.grad[0, 0] != 0
        assert seen.any(0).sum() == seen.any(1).sum() == size
    with pytest.raises(
        ValueError, match="in_shapes must be images of the same height and width"
    ):
        PatchGAN([(1, 8, 8), (1, 4, 4)])


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 7)], ids=str)
def test_the_unet_keeps_the_grid_and_hands_edges_over(shape):
    net = Deterministic(
        UNet(4, shape, [8, 8], normalization=nn.BatchNorm2d, dropout=0.1), shape
    )
    z, y = torch.randn(2, 5, 4), torch.randn(5, *shape)
    assert net(z, y).mean.shape == (2, 5, *shape)
    # The shortcut at full size: with the map of the way up at zero, the image itself reaches
    # the last layer.
    trunk = UNet(4, shape, [8])
    features = trunk(torch.zeros(2, 4), y[:2])
    assert torch.equal(features[:, 8:], y[:2])
    assert repr(build(describe(trunk))) == repr(trunk)


def test_spectral_normalization_bounds_the_slope():
    torch.manual_seed(0)
    network = spectrally_normalized(Discriminator(MLP(5, [8, 8], activation=nn.LeakyReLU)))
    for _ in range(30):
        network(torch.randn(4, 5))
    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            assert torch.linalg.matrix_norm(layer.weight, 2) < 1.01
    x = torch.randn(100, 5, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x).sum(), x)
    assert slope.norm(dim=1).max() < 1.01


# --- runs and recordings


@pytest.mark.parametrize("every", [1, 2])
def test_a_resumed_game_is_the_uninterrupted_one(tmp_path, every):
    x = torch.randn(70, 3)
    options = {
        "batch_size": 10,
        "optimizer": Optimizer(lr=1e-2, generator={"lr": 1e-3, "betas": (0.5, 0.9)}),
    }
    p, game = gan(every=every)
    whole = train(p, x, game, epochs=4, **options)
    half, critic = gan(every=every)
    train(half, x, critic, epochs=2, folder=tmp_path, **options)
    torch.manual_seed(17)  # another process
    again, other = gan(seed=5, every=every)
    history = train(again, x, other, epochs=4, folder=Run(tmp_path, resume=True), **options)
    assert equal(weights(p, game), weights(again, other))
    shown = [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in history.rows
    ]
    assert shown == [
        {name: value for name, value in row.items() if name != "seconds"} for row in whole.rows
    ]
    assert history.step_losses == whole.step_losses
    loaded = load_run(tmp_path)
    assert (
        loaded.guide is None
        and equal(weights(loaded.model), weights(p))
        and loaded.history.best_epoch == 4
    )
    critic.load_state_dict(Run(tmp_path).load_weights("last")["loss"])
    assert equal(weights(critic), weights(game))
    rebuilt = build(loaded.config["loss"])
    assert isinstance(rebuilt, Adversarial) and rebuilt.every == every


GAMES = {
    **{name: partial(gan, divergence=make()) for name, make in DIVERGENCES.items()},
    "Wasserstein, ReLU": lambda: (
        gan()[0],
        Adversarial(Discriminator(MLP(3, [8])), Wasserstein()),
    ),
    "batch norm": lambda: (
        gan()[0],
        Adversarial(Discriminator(MLP(3, [8], normalization=nn.BatchNorm1d))),
    ),
}


def assert_same_moves(game, p, guide, *args):
    """Each player's recorded step is the eager one from the same noise, with the gradients of
    its own parameters.
    """
    own = list(p.parameters()), [] if guide is None else list(guide.parameters())
    with local_parameters(), pyro.validation_enabled(False):
        for player in game.players(*own):
            bound = player.loss
            bound.prepare(p, guide, args, {})
            buffers = [
                b for part in (p, guide, game) if part is not None for b in part.buffers()
            ]
            before = [buffer.clone() for buffer in buffers]
            recording = record(
                lambda *args, bound=bound: bound.loss_and_terms(p, guide, *args),
                args,
                buffers=buffers,
                parameters=player.parameters,
            )
            assert equal(before, buffers)
            torch.manual_seed(0)
            loss, terms = bound.loss_and_terms(p, guide, *args)
            gradients = torch.autograd.grad(loss, recording.parameters)
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
            torch.manual_seed(0)
            recorded, named, derivatives = recording(*args)
            torch.testing.assert_close(recorded, loss.detach(), rtol=1e-5, atol=1e-5)
            assert named.keys() == terms.keys()
            for name in terms:
                torch.testing.assert_close(named[name], terms[name], rtol=1e-5, atol=1e-5)
            for one, other in zip(derivatives, gradients, strict=True):
                scale = other.abs().max().clamp(min=1e-6)
                torch.testing.assert_close(one / scale, other / scale, atol=1e-5, rtol=0)
            assert set(map(id, recording.parameters)) == set(map(id, player.parameters))


@pytest.mark.parametrize("make", GAMES.values(), ids=GAMES)
def test_recorded_moves_are_the_eager_ones(make):
    p, game = make()
    assert_same_moves(game, p, None, torch.randn(6, 3))


def without_compiler(monkeypatch):
    """Lets ``fit(compile=True)`` record steps and not compile them."""
    defaults = {**Compiled.__init__.__kwdefaults__, "backend": "eager", "choose": False}
    monkeypatch.setattr(Compiled.__init__, "__kwdefaults__", defaults)


@pytest.mark.parametrize("divergence", [JensenShannon, Wasserstein])
def test_a_compiled_game_is_the_eager_one(divergence, monkeypatch):
    without_compiler(monkeypatch)
    x, found = torch.randn(60, 3), []
    for compiled in (False, True):
        p, game = gan(divergence=divergence(), every=2)
        found.append(
            (train(p, x, game, batch_size=20, compile=compiled).rows, weights(p, game))
        )
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert {**one, "seconds": 0} == pytest.approx({**other, "seconds": 0}, rel=1e-4)


# --- what cannot be played


def test_a_discriminator_that_has_won_ends_the_training():
    far, options = 100 + torch.randn(100, 3), {"lr": 0.05, "generator": {"lr": 0.0}}
    p, game = gan(patience=20)
    start = weights(p)
    with pytest.raises(
        CollapseError,
        match=r"The discriminator has won: its loss was below 0.001 in 20 moves in a row",
    ):
        train(p, far, game, epochs=100, batch_size=10, optimizer=Optimizer(**options))
    assert equal(start, weights(p))
    for other in (gan(patience=None), gan(patience=5, divergence=Wasserstein())):
        train(
            other[0], far, other[1], epochs=10, batch_size=10, optimizer=Optimizer(**options)
        )


def test_a_loss_that_is_not_finite_names_its_player():
    p, game = gan()
    start = weights(p)
    with pytest.raises(
        NonFiniteError,
        match=r"The (generator|discriminator)'s loss was (nan|inf) at step \d+ \(epoch 1, batch \d+\): the parameter",
    ):
        train(p, torch.randn(500, 3), game, batch_size=10, lr=1e38)
    assert equal(start, weights(p))


def test_what_cannot_be_played_is_said():
    p, game = gan()
    x = torch.randn(20, 3)
    with pytest.raises(TypeError, match="discriminator must be a torch.nn.Module, got 3"):
        Adversarial(3)
    with pytest.raises(
        TypeError,
        match=r"divergence must be one of tarspyro.infer, such as Hinge\(\), got 'hinge'",
    ):
        Adversarial(game.discriminator, "hinge")
    for options in ({"every": 0}, {"l1": -1.0}):
        with pytest.raises(ValueError, match="must"):
            Adversarial(game.discriminator, **options)
    with pytest.raises(ValueError, match="weight must not be negative"):
        Wasserstein(-1.0)
    with pytest.raises(TypeError, match="trunk must be a torch.nn.Module"):
        Discriminator(None)
    with pytest.raises(
        PairError, match=r"models.GAN observes nothing at 'y': site must be one of \['x'\]"
    ):
        train(p, x, Adversarial(game.discriminator, site="y"))
    bernoulli = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 3)
    )
    with pytest.raises(
        PairError, match="models.VAE draws 'x' from a Bernoulli, without a derivative"
    ):
        train(bernoulli, x.round().clamp(0, 1), game)
    with pytest.raises(ValueError, match="patience=2 waits .* game losses do not rank epochs"):
        train(p, x, game, validation=x, patience=2)
    with pytest.raises(
        ValueError,
        match=r"optimizer has options for 'generatr', .*: the players are disc",
    ):
        train(p, x, game, optimizer=Optimizer(generatr={"lr": 1.0}))
    classifier = models.Classifier(Conditional(dist.Normal, MLP(3, [4]), 3))
    with pytest.raises(
        ValueError, match="optimizer has options for 'generator', .* only a game has players"
    ):
        train(classifier, (x, x), ELBO(), optimizer=Optimizer(generator={"lr": 1.0}))
    with pytest.raises(PairError, match="The generator has no parameters to train"):
        train(lambda x: pyro.sample("x", dist.Normal(x, 1.0).to_event(2), obs=x), x, game)
    with pytest.raises(PairError, match=r"guide is None, but models\.GAN samples \['z'\]"):
        train(p, x, ELBO())


def test_rates_of_single_players():
    p, game = gan()
    before = weights(p)
    train(
        p,
        torch.randn(50, 3),
        game,
        schedules={"generator_lr": lambda step: 0.0, "lr": lambda step: 0.1},
    )
    assert not equal(before, weights(p))  # the last schedule that names a rate assigns it
    p, game = gan()
    before, critic = weights(p), weights(game)
    train(
        p,
        torch.randn(50, 3),
        game,
        schedules={"lr": lambda step: 0.1, "generator_lr": lambda step: 0.0},
    )
    assert equal(before, weights(p)) and not equal(critic, weights(game))


class Saddle(Game):
    """min over a, max over b of a b - b^2 / 2 + a^2 / 2, with the saddle at zero: any game of
    one's own.
    """

    adjustable = ("weight",)

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight, self.b = weight, nn.Parameter(torch.tensor(2.0))

    def players(self, model, guide):
        return [self.player("up", self.up, [self.b]), self.player("down", self.down, model)]

    def value(self, model, x):
        return self.weight * (model.a * self.b - self.b**2 / 2 + model.a**2 / 2) * len(x)

    def up(self, model, guide, x):
        return -self.value(model, x), {}

    def down(self, model, guide, x):
        value = self.value(model, x)
        return value, {"value": value.detach()}


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.a, 1.0), obs=x)


def test_a_game_of_ones_own_finds_its_saddle():
    game, p = Saddle(), Point()
    history = train(
        p,
        torch.zeros(100),
        game,
        epochs=300,
        batch_size=100,
        optimizer=torch.optim.SGD,
        lr=0.1,
    )
    assert abs(p.a.item()) < 1e-4 and abs(game.b.item()) < 1e-4
    assert history["value"][0] == pytest.approx(history["down_loss"][0])


def test_a_compiled_players_numbers_may_be_scheduled():
    game, p, x = Saddle(), Point(), torch.zeros(10)
    player = game.players(list(p.parameters()), [])[1]
    lines = []
    compiled = Compiled(player.loss, backend="eager", choose=False, report=lines.append)
    for weight in (1.0, 0.25):
        game.weight = weight
        p.a.grad = game.b.grad = None
        assert compiled.loss_and_grads(p, None, x) == pytest.approx(
            player.loss.loss(p, None, x)
        )
        assert (
            p.a.grad.item() == pytest.approx(weight * 10 * (game.b.item() + p.a.item()))
            and game.b.grad is None
        )
    assert sum(line.startswith("compiling the step") for line in lines) == 1


def test_supervised_learning_is_a_model_without_a_guide(tmp_path):
    data = digits().one_hot()
    p = models.Classifier(Conditional(dist.OneHotCategorical, MLP(64, [32]), 10))
    history = fit(
        p,
        data=data.train,
        epochs=6,
        seed=0,
        progress=False,
        folder=tmp_path,
        lr=1e-2,
    )
    accuracy = (p.classes(data.test.x) == data.test.y.argmax(1)).double().mean().item()
    assert accuracy > 0.9 and history["loss"][-1] < 0.5
    assert p.features(data.test.x[:5]).shape == (5, 32)
    loaded = load_run(tmp_path)
    assert torch.equal(loaded.model.features(data.test.x[:5]), p.features(data.test.x[:5]))


def test_convolutional_generators_and_patches_play(tmp_path):
    x = digits(flatten=False).train.x[:60]
    p = models.GAN(
        default_prior(dist.Normal, 2),
        Deterministic(ConvDecoder(2, (1, 8, 8), [4]), (1, 8, 8), transform=nn.Sigmoid()),
    )
    history = train(p, x, Adversarial(PatchGAN([(1, 8, 8)], [4]), Hinge()), folder=tmp_path)
    assert len(history) == 2
    assert torch.equal(
        load_run(tmp_path).model.likelihood(torch.ones(1, 2)).v,
        p.likelihood(torch.ones(1, 2)).v,
    )
