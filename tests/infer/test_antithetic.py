"""The gradient of antithetic pairs, DisARM, against enumeration: of bits and of classes."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from tarspyro import Conditional, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, BetaTCVAE, PairError
from tarspyro.nn import MLP

from ..programs import assert_within
from .test_games import without_compiler

F64 = torch.float64
UNITS = 3
X = torch.tensor([0.3, 1.4], dtype=F64)
WEIGHTS = torch.tensor([1.0, -2.0, 0.7], dtype=F64)
LOGITS = torch.tensor([[0.5, -1.5, 0.2], [3.0, 0.0, -0.4]], dtype=F64)
OPTIONS = {
    "a pair": {"num_particles": 2},
    "three pairs": {"num_particles": 6},
    "a sampled KL": {"num_particles": 4, "analytic_kl": False},
    "beta": {"num_particles": 2, "beta": 0.3, "analytic_kl": False},
}


def mean_of(z):
    """Not linear in the units, so that they depend on each other given x."""
    return (z * WEIGHTS).sum(-1) + 2 * z[..., 0] * z[..., 1]


def prior(rows):
    return dist.Bernoulli(torch.tensor(0.4, dtype=F64)).expand([rows, UNITS]).to_event(1)


def pair(rows):
    """Rows with logits of their own, so that one run gives independent gradients."""
    logits = LOGITS.repeat_interleave(rows, 0).requires_grad_()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(len(x)))
            pyro.sample("x", dist.Normal(mean_of(z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide, logits


def exact(beta):
    """The bound of each data point and its gradient, by enumeration."""
    logits = LOGITS.clone().requires_grad_()
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=UNITS)), dtype=F64)
    log_q = dist.Bernoulli(logits=logits[:, None]).log_prob(z).sum(-1)
    log_p = prior(1).log_prob(z[:, None])[:, 0]
    likelihood = dist.Normal(mean_of(z), 1.0).log_prob(X[:, None])
    bound = (log_q.exp() * (likelihood + beta * (log_p - log_q))).sum(-1)
    return bound, torch.autograd.grad(bound.sum(), logits)[0]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_value_and_gradient_are_those_of_enumeration(options):
    torch.manual_seed(0)
    rows = 4000
    model, guide, logits = pair(rows)
    bound = ELBO(gradient="disarm", **options)
    x = X.repeat_interleave(rows)
    value, slope = exact(options.get("beta", 1.0))
    loss = bound.differentiable_loss(model, guide, x)
    found = -torch.autograd.grad(loss, logits)[0].reshape(2, rows, UNITS)
    for point in range(2):
        assert_within(found[point], slope[point])
    losses = [bound.loss(*pair(50)[:2], X.repeat_interleave(50)) / -50 for _ in range(50)]
    assert_within(losses, value.sum().item())


def test_it_has_less_noise_than_the_other_particle_as_the_baseline():
    torch.manual_seed(1)
    variances = []
    for gradient in ("disarm", "pathwise"):
        model, guide, logits = pair(4000)
        bound = ELBO(2, gradient=gradient)
        loss = bound.differentiable_loss(model, guide, X.repeat_interleave(4000))
        slope = torch.autograd.grad(loss, logits)[0].reshape(2, 4000, UNITS)
        variances.append(slope.var(1).mean().item())
    assert variances[0] < 0.8 * variances[1]


def test_pairs_are_mirrored_and_each_particle_follows_the_guide():
    torch.manual_seed(0)
    _, guide, logits = pair(500)
    seen = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(len(x)))
            seen.append(z)
            pyro.sample("x", dist.Normal(mean_of(z), 1.0), obs=x)

    bound = ELBO(4, gradient="disarm")
    x = X.repeat_interleave(500)
    bound.loss(model, guide, x)
    z = seen[-1]
    assert z.shape == (4, 1000, UNITS)
    for particle in z:
        for point in range(2):
            half = particle.reshape(2, 500, UNITS)[point]
            assert_within(half, LOGITS[point].sigmoid())
    # Two mirrored units cannot both be one with a probability below a half.
    rare = logits.detach() < 0
    assert (z[0] * z[2])[rare].max() == 0 and (z[1] * z[3])[rare].max() == 0
    assert (z[0] * z[1])[rare].max() == 1


CLASSES = torch.tensor(
    [
        [[0.5, -1.5, 0.2, 1.0, 0.0], [1.0, 0.3, -0.4, -0.2, 0.1]],
        [[3.0, 0.0, -0.4, 0.6, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0]],
    ],
    dtype=F64,
)
VALUES = torch.tensor([[1.0, -2.0, 0.7, 0.1, 0.4], [0.3, 2.0, -0.5, 1.5, -1.0]], dtype=F64)


def mean_of_classes(z):
    """Of two one-hot units, which depend on each other given x."""
    scores = (z * VALUES).sum(-1)
    return scores.sum(-1) + 2 * scores[..., 0] * scores[..., 1]


def classes_pair(rows, classes, one_hot):
    """Two units of some classes, as one-hot vectors or as integers."""
    logits = CLASSES[..., :classes].repeat_interleave(rows, 0).requires_grad_()
    family = dist.OneHotCategorical if one_hot else dist.Categorical

    def model(x):
        with pyro.plate("data", len(x)):
            uniform = family(logits=torch.zeros(2, classes, dtype=F64))
            z = pyro.sample("z", uniform.expand([len(x), 2]).to_event(1))
            z = z if one_hot else torch.nn.functional.one_hot(z, classes).to(F64)
            padded = torch.nn.functional.pad(z, (0, 5 - classes))
            pyro.sample("x", dist.Normal(mean_of_classes(padded), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", family(logits=logits).to_event(1))

    return model, guide, logits


def exact_classes(classes):
    """The bound of each data point and its gradient, by enumeration."""
    logits = CLASSES[..., :classes].clone().requires_grad_()
    corners = torch.eye(5, dtype=F64)[:classes]
    z = torch.stack([torch.stack(pair) for pair in itertools.product(corners, repeat=2)])
    log_q = (torch.log_softmax(logits, -1)[:, None] * z[..., :classes]).sum((-1, -2))
    likelihood = dist.Normal(mean_of_classes(z), 1.0).log_prob(X[:, None])
    log_p = -2 * torch.tensor(float(classes), dtype=F64).log()
    bound = (log_q.exp() * (likelihood + log_p - log_q)).sum(-1)
    return bound, torch.autograd.grad(bound.sum(), logits)[0]


@pytest.mark.parametrize(
    ("particles", "classes", "one_hot"),
    [(2, 2, True), (2, 3, False), (2, 4, True), (2, 5, True), (4, 5, False)],
)
def test_classes_have_the_value_and_gradient_of_enumeration(one_hot, classes, particles):
    torch.manual_seed(0)
    rows = 4000
    model, guide, logits = classes_pair(rows, classes, one_hot)
    bound = ELBO(particles, gradient="disarm")
    value, slope = exact_classes(classes)
    loss = bound.differentiable_loss(model, guide, X.repeat_interleave(rows))
    found = -torch.autograd.grad(loss, logits)[0].reshape(2, rows, 2, classes)
    for point in range(2):
        assert_within(found[point], slope[point])
    few = X.repeat_interleave(50)
    losses = [
        bound.loss(*classes_pair(50, classes, one_hot)[:2], few) / -50 for _ in range(50)
    ]
    assert_within(losses, value.sum().item())


def test_classes_have_less_noise_than_the_other_particle_as_the_baseline():
    torch.manual_seed(1)
    noise = []
    for gradient in ("disarm", "pathwise"):
        model, guide, logits = classes_pair(8000, 5, True)
        bound = ELBO(2, gradient=gradient)
        loss = bound.differentiable_loss(model, guide, X.repeat_interleave(8000))
        slope = torch.autograd.grad(loss, logits)[0].reshape(2, 8000, 2, 5)
        noise.append((slope - slope.mean(1, keepdim=True)).square().sum((-1, -2)).flatten())
    error = (sum(one.var() for one in noise) / len(noise[0])).sqrt()
    assert noise[1].mean() - noise[0].mean() > 4 * error


def test_each_particle_of_classes_follows_the_guide_and_pairs_part_early():
    torch.manual_seed(0)
    _, guide, logits = classes_pair(2000, 5, True)
    seen = []

    def model(x):
        with pyro.plate("data", len(x)):
            uniform = dist.OneHotCategorical(logits=torch.zeros(2, 5, dtype=F64))
            seen.append(pyro.sample("z", uniform.expand([len(x), 2]).to_event(1)))
            pyro.sample("x", dist.Normal(mean_of_classes(seen[-1]), 1.0), obs=x)

    ELBO(4, gradient="disarm").loss(model, guide, X.repeat_interleave(2000))
    z = seen[-1]
    assert z.shape == (4, 4000, 2, 5)
    for particle in z:
        for point in range(2):
            half = particle.reshape(2, 2000, 2, 5)[point]
            assert_within(half, CLASSES[point].softmax(-1))
    equal_classes = z[:, 2000:, 1]  # the unit whose classes are equally likely
    mirrored = (equal_classes[0] * equal_classes[2]).sum(-1).mean()
    independent = (equal_classes[0] * equal_classes[1]).sum(-1).mean()
    assert mirrored < 0.6 * independent


def test_impossible_classes_and_extreme_logits():
    logits = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, 0.0, -torch.inf]]).requires_grad_()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=torch.zeros(len(x), 3)))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    torch.manual_seed(0)
    bound = ELBO(64, analytic_kl=False, gradient="disarm")
    loss = bound.differentiable_loss(model, guide, torch.ones(2))
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and slope[:, :2].isfinite().all() and slope[0].abs().max() < 1e-6


def test_nested_plates_scales_and_probabilities():
    probs = torch.tensor([[0.3], [0.8]], dtype=F64).expand(2, 5).clone().requires_grad_()

    def model(x):
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 5, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 5, dim=-1):
            pyro.sample("z", dist.Bernoulli(probs))

    x = torch.linspace(-1, 2, 10, dtype=F64).reshape(2, 5)
    halves = [poutine.scale(half, 2.0) for half in (model, guide)]
    likelihood = [dist.Normal(3.0 * z, 1.0).log_prob(x) for z in (0, 1)]
    truth = probs * likelihood[1] + (1 - probs) * likelihood[0]
    kl = torch.distributions.kl_divergence(
        dist.Bernoulli(probs), dist.Bernoulli(torch.tensor(0.5, dtype=F64))
    )
    (slope,) = torch.autograd.grad(2 * (truth - kl).sum(), probs)
    torch.manual_seed(0)
    bound = ELBO(2, gradient="disarm")
    draws = []
    for _ in range(400):
        loss = bound.differentiable_loss(*halves, x)
        draws.append(-torch.autograd.grad(loss, probs)[0])
    assert_within(torch.stack(draws), slope)


def vae(family, size=3):
    torch.manual_seed(0)
    p = models.VAE(
        default_prior(family, size), Conditional(dist.Bernoulli, MLP(size, [16]), 8)
    )
    return p, guides.VAE(Conditional(family, MLP(8, [16]), size))


def test_it_trains_and_a_recorded_step_is_the_eager_one(monkeypatch):
    without_compiler(monkeypatch)
    bound = ELBO(4, gradient="disarm")
    x = (torch.rand(200, 1) < 0.5).float().repeat(1, 8)
    losses = []
    for compile in (False, True):
        p, q = vae(dist.Bernoulli)
        history = fit(
            p, q, x, loss=bound, epochs=8, lr=3e-2, seed=0, progress=False, compile=compile
        )
        losses.append(history["loss"])
    assert losses[0][-1] < losses[0][0] - 0.5
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_wrong_arguments_and_pairs():
    with pytest.raises(ValueError, match="even num_particles"):
        ELBO(gradient="disarm")
    with pytest.raises(ValueError, match="even num_particles"):
        ELBO(2, gradient="disarm", vectorize_particles=False)
    with pytest.raises(TypeError, match="num_particles"):
        ELBO("2", gradient="disarm")
    with pytest.raises(TypeError):
        BetaTCVAE(10, gradient="disarm")
    x = torch.rand(5, 8).round()
    with pytest.raises(PairError, match="one Bernoulli or categorical site.*'z' .Normal"):
        ELBO(2, gradient="disarm").loss(*vae(dist.Normal), x)

    def one(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))

    def model_of_one(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    with pytest.raises(PairError, match="enumerates"):
        ELBO(2, gradient="disarm").loss(model_of_one, pyro.infer.config_enumerate(one), x)

    def two(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * y))

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.full((len(x),), 0.5)))
            z = pyro.sample("z", dist.Bernoulli(0.2 + 0.5 * y))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    with pytest.raises(
        PairError, match="one Bernoulli or categorical site.*'y' .Bernoulli., 'z'"
    ):
        ELBO(2, gradient="disarm").loss(model, two, x)
