"""Options that keep games stable: penalties, moving averages, statistics of the batch."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Deterministic, Run, evaluate, fit, models
from tarspyro.distributions import default_prior
from tarspyro.infer import Adversarial, Compiled, MovingAverage, Wasserstein
from tarspyro.infer.traces import no_guide
from tarspyro.nn import (
    MLP,
    BatchDeviation,
    ConvDecoder,
    ConvEncoder,
    Discriminator,
    PatchGAN,
)


def gan(**options):
    torch.manual_seed(0)
    p = models.GAN(default_prior(dist.Normal, 2), Deterministic(MLP(2, [8]), 3))
    return p, Adversarial(Discriminator(MLP(3, [8], activation=nn.Tanh)), **options)


def discriminator_loss(loss, p, x, seed=1):
    torch.manual_seed(seed)
    return loss.players([], [])[0].loss.loss_and_terms(p, no_guide, x)


def test_r1_is_half_the_squared_slope_at_the_data():
    x = torch.randn(5, 3)
    p, loss = gan(r1=10.0)
    total, terms = discriminator_loss(loss, p, x)
    loss.r1 = 0.0
    without, _ = discriminator_loss(loss, p, x)

    squares = []
    for row in x:
        slope = torch.func.jacrev(lambda point: loss.discriminator(point[None])[0])(row)
        squares.append(slope.square().sum())
    expected = torch.stack(squares).sum()
    assert torch.allclose(terms["r1"], expected)
    assert torch.allclose(total - without, 5.0 * expected)


def test_r1_of_a_linear_discriminator_does_not_depend_on_the_data():
    p = models.GAN(default_prior(dist.Normal, 2), Deterministic(MLP(2, [8]), 3))
    loss = Adversarial(Discriminator(MLP(3, [])), r1=1.0)
    weight = loss.discriminator.heads["logit"][0].weight
    for scale in (1.0, 100.0):
        _, terms = discriminator_loss(loss, p, scale * torch.randn(7, 3))
        assert torch.allclose(terms["r1"], 7 * weight.square().sum())
    assert not math.isclose(terms["r1"].item(), 0.0)


def test_r1_of_patches_is_that_of_their_mean():
    p = models.GAN(default_prior(dist.Normal, 2), Deterministic(MLP(2, [8]), (1, 8, 8)))
    loss = Adversarial(PatchGAN([(1, 8, 8)], [4]), r1=2.0)
    x = torch.randn(2, 1, 8, 8)
    _, terms = discriminator_loss(loss, p, x)
    slope = torch.func.jacrev(lambda image: loss.discriminator(image[None]).mean())
    expected = sum(slope(image).square().sum() for image in x)
    assert torch.allclose(terms["r1"], expected)


class Point(nn.Module):
    """A generator of one point."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, z):
        return dist.Delta(self.theta.expand(len(z), 1), event_dim=1)


def test_r1_lets_a_game_converge_that_circles():
    """The Dirac GAN of Mescheder et al.: data at 0, a fake at theta, D(x) = psi x.

    Moves in turn on psi theta keep theta^2 + psi^2 - 0.2 psi theta, or with the other sign, so
    the distance from (0, 0) stays above 1. With the penalty it comes to 0.
    """
    distances = {}
    for r1 in (0.0, 1.0):
        point = Point()
        discriminator = nn.Linear(1, 1, bias=False)
        nn.init.constant_(discriminator.weight, 1.0)
        fit(
            models.GAN(default_prior(dist.Normal, 1), point),
            data=torch.zeros(10, 1),
            loss=Adversarial(discriminator, Wasserstein(0.0), r1=r1),
            optimizer=torch.optim.SGD,
            lr=0.2,
            batch_size=10,
            epochs=100,
            seed=0,
            progress=False,
        )
        distances[r1] = math.hypot(point.theta.item(), discriminator.weight.item())
    assert distances[0.0] > 1.0
    assert distances[1.0] < 0.01


def test_the_average_is_that_of_the_weights_before_each_step():
    p, _ = gan()
    average = MovingAverage(p, 0.5)
    loss = Adversarial(Discriminator(MLP(3, [8])), average=average)
    x = torch.randn(20, 3)
    seen = []
    weight = p.likelihood.heads["value"].weight
    for epoch in range(4):  # a step each
        seen.append(weight.detach().clone())
        fit(p, data=x, loss=loss, epochs=1, batch_size=20, seed=epoch, progress=False)
    expected = seen[0]
    for count, value in enumerate(seen[1:], 2):
        expected = expected + max(0.5, 1 / count) * (value - expected)
    averaged = average.model.likelihood.heads["value"].weight
    assert torch.allclose(averaged, expected)
    assert not torch.allclose(averaged, weight)
    assert not averaged.requires_grad
    assert evaluate.sample(average.model, 5, seed=0).shape == (5, 3)


def test_an_evaluation_does_not_move_the_average():
    p, _ = gan()
    loss = Adversarial(Discriminator(MLP(3, [8])), average=MovingAverage(p))
    loss.eval()
    discriminator_loss(loss, p, torch.randn(5, 3))
    assert loss.average.updates == 0


@pytest.mark.parametrize("conditional", [False, True])
def test_renewed_statistics_are_those_of_the_averaged_weights(conditional):
    """Of an affine layer of normal noise they are known."""
    torch.manual_seed(0)
    layer = nn.Linear(3 if conditional else 2, 5)
    normalization = nn.BatchNorm1d(5, momentum=0.3)
    network = nn.Sequential(layer, normalization, nn.Dropout(0.5))
    prior = default_prior(dist.Normal, 2)
    if conditional:
        generator = Deterministic(Beside(network), 4)
        p = models.ConditionalGAN(prior, generator)
        given = {"y": np.full((200, 1), 2)}
    else:
        p = models.GAN(prior, Deterministic(network, 4))
        given = None
    p(
        **({"y": torch.ones(5, 1)} if conditional else {"batch_size": 5})
    )  # lazy layers have their sizes from here on
    average = MovingAverage(p)
    state = torch.get_rng_state()
    average.renew_statistics(500, batch_size=200, given=given, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in average.modules())
    (found,) = (m for m in average.modules() if isinstance(m, nn.BatchNorm1d))
    assert found.momentum == 0.3 and found is not normalization
    weight = layer.weight[:, :2]
    mean = layer.bias + (2.0 * layer.weight[:, 2] if conditional else 0.0)
    variance = (weight**2).sum(1)
    count = 500 * 200
    assert ((found.running_mean - mean).abs() < 4 * (variance / count).sqrt()).all()
    error = variance * (2 / count) ** 0.5
    assert ((found.running_var - variance).abs() < 4 * error).all()
    before = found.running_mean.clone()
    with pytest.raises(TypeError):
        average.renew_statistics(given={"nothing": np.zeros((5, 1))})
    assert torch.equal(found.running_mean, before) and found.momentum == 0.3


class Beside(nn.Module):
    """A network of noise and condition beside each other."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *parts):
        return self.network(torch.cat(parts, -1))


def test_a_resumed_average_is_the_uninterrupted_one(tmp_path):
    x = torch.randn(40, 3)
    averages = []
    for epochs in ([3], [1, 3]):
        p, _ = gan()
        torch.manual_seed(1)
        loss = Adversarial(Discriminator(MLP(3, [8])), average=MovingAverage(p, 0.9))
        for until in epochs:
            folder = Run(tmp_path / str(len(epochs)), resume=until != epochs[0])
            fit(p, data=x, loss=loss, epochs=until, seed=0, progress=False, folder=folder)
        averages.append([*loss.average.model.parameters(), loss.average.updates])
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


@pytest.mark.parametrize("r1", [0.0, 1.0])
def test_a_recorded_step_moves_the_average_as_an_eager_one(r1, monkeypatch):
    defaults = {**Compiled.__init__.__kwdefaults__, "backend": "eager", "choose": False}
    monkeypatch.setattr(Compiled.__init__, "__kwdefaults__", defaults)
    shape = (1, 8, 8)
    x = torch.rand(20, *shape)
    averages = []
    for compiled in (False, True):
        torch.manual_seed(0)
        likelihood = Deterministic(ConvDecoder(2, shape, [4]), shape)
        p = models.GAN(default_prior(dist.Normal, 2), likelihood)
        # Recordings lay out convolutions, and compare themselves with a run of the step.
        discriminator = Discriminator(ConvEncoder(shape, [4]))
        loss = Adversarial(discriminator, average=MovingAverage(p, 0.5), r1=r1)
        options = {"epochs": 4, "batch_size": 20, "seed": 0, "progress": False}
        fit(p, data=x, loss=loss, compile=compiled, **options)
        averages.append([*loss.average.model.parameters(), loss.average.updates])
    assert loss.average.updates == 4
    for eager, recorded in zip(*averages, strict=True):
        torch.testing.assert_close(recorded, eager, rtol=1e-5, atol=1e-6)


def test_the_deviation_of_the_batch_is_a_feature():
    features = torch.randn(6, 4, 3, 3)
    layer = BatchDeviation(4)
    out = layer(features)
    assert torch.equal(out[:, :4], features)
    expected = features.std(0, correction=0).mean()
    assert torch.allclose(out[:, 4], expected.expand(6, 3, 3))

    alike = torch.ones(5, 4, requires_grad=True)
    layer(alike).sum().backward()
    assert bool(alike.grad.isfinite().all())

    trunk = nn.Sequential(MLP(2, [8]), BatchDeviation(8))
    assert Discriminator(trunk)(torch.randn(6, 2)).shape == (6,)


def test_errors():
    with pytest.raises(ValueError, match="r1"):
        gan(r1=-1.0)
    with pytest.raises(TypeError, match="average must be a MovingAverage"):
        gan(average=0.99)
    with pytest.raises(ValueError, match="decay"):
        MovingAverage(nn.Linear(1, 1), 1.5)
    with pytest.raises(TypeError, match="model"):
        MovingAverage(lambda x: x)
    with pytest.raises(ValueError, match="no batch normalization with running statistics"):
        MovingAverage(gan()[0]).renew_statistics()
    with pytest.raises(ValueError, match="lazy layers without sizes"):
        MovingAverage(nn.LazyLinear(2))
    with pytest.raises(ValueError, match="BatchDeviation takes features of shape"):
        BatchDeviation(4)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="r1"):
        gan(r1=-1.0, divergence=Wasserstein())
