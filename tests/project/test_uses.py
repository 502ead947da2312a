"""Anomaly scores and their AUROC, neighbours and arithmetic of codes, their pictures, and
training on streams.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, Run, data, evaluate, fit, guides, load_run, models, plot
from tarspyro.distributions import Dirichlet, Gamma, default_prior
from tarspyro.infer import ELBO, IWAE, Renyi
from tarspyro.nn import MLP

from ..infer.test_compiled import assert_same_step
from ..programs import LinearGaussian

# --- anomalies


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_scores_are_minus_the_bound_the_likelihood_and_the_reconstruction(double):
    toy = LinearGaussian()
    x = toy.x
    # Errors of 3,000 draws: a term of the bound varies by a few nats, a weight by a few times
    # its mean.
    for score in ("elbo", "log_likelihood", "reconstruction"):
        found = evaluate.anomaly_score(
            toy.model, toy.guide, x, score=score, num_particles=3000, seed=0
        )
        torch.testing.assert_close(found, -getattr(toy, score)(x).detach(), atol=0.4, rtol=0)
    elbo = evaluate.anomaly_score(toy.model, toy.guide, x, num_particles=7, seed=0)
    torch.testing.assert_close(
        elbo, -evaluate.elbo(toy.model, toy.guide, x, num_particles=7, seed=0).elbo
    )
    far = torch.cat([x, 5 + x])
    assert (
        evaluate.auroc(
            evaluate.anomaly_score(toy.model, toy.guide, far, seed=0), torch.arange(100) >= 50
        )
        > 0.99
    )
    assert isinstance(evaluate.anomaly_score(toy.model, toy.guide, x.numpy()), np.ndarray)
    with pytest.raises(
        ValueError,
        match="score must be one of 'elbo', 'log_likelihood', 'reconstruction', got 'kl'",
    ):
        evaluate.anomaly_score(toy.model, toy.guide, x, score="kl")


@pytest.mark.parametrize("levels", [3, 10, 10**6], ids=["many ties", "ties", "none"])
def test_auroc_counts_pairs(levels):
    generator = np.random.default_rng(levels)
    scores, labels = generator.integers(levels, size=200) / 7, generator.integers(2, size=200)
    pairs = [
        (a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]
    ]
    assert evaluate.auroc(scores, labels) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert evaluate.auroc(-scores, labels) == pytest.approx(1 - np.mean(pairs), abs=1e-12)
    assert evaluate.auroc(torch.tensor(scores), torch.tensor(labels).bool()) == evaluate.auroc(
        scores, labels
    )


def test_auroc_of_infinite_scores_and_its_errors():
    assert evaluate.auroc([math.inf, 0.0, -math.inf], [1, 0, 0]) == 1
    for scores, labels, message in (
        ([1.0, 2.0], [1], "labels must be one for each"),
        ([1.0, math.nan], [1, 0], "scores must be numbers, got NaN in 1 of 2"),
        ([1.0, 2.0], [1, 2], "labels must be booleans, or zeros and ones"),
        ([1.0, 2.0], [1, 1], "got 2 anomalies among 2"),
        ([1.0, 2.0], [0, 0], "got 0 anomalies among 2"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.auroc(scores, labels)


# --- the latent space


def linear_pair():
    """z is half of x, and x twice z."""
    p = models.VAE(
        default_prior(dist.Normal, 4), Conditional(dist.Normal, MLP(4, []), 4, scale=0.1)
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(4, []), 4, scale=0.1))
    with torch.no_grad():
        for half, factor in ((p.likelihood, 2.0), (q.posterior, 0.5)):
            half.heads["loc"].weight.copy_(factor * torch.eye(4))
            half.heads["loc"].bias.zero_()
    return p, q


def test_nearest_neighbours_are_those_of_all_distances():
    _, q = linear_pair()
    x, among = torch.randn(130, 4), torch.randn(50, 4)
    before = torch.get_rng_state()
    found = evaluate.nearest_neighbours(q, x, among, num=7)
    assert torch.equal(before, torch.get_rng_state())
    distances = ((x[:, None] - among[None]) ** 2).sum(-1).sqrt() / 2
    ordered, indices = distances.sort(1)
    torch.testing.assert_close(found.distances, ordered[:, :7])
    assert torch.equal(found.indices, indices[:, :7])
    own = evaluate.nearest_neighbours(q, x, x, num=1)
    assert torch.equal(own.indices[:, 0], torch.arange(130)) and own.distances.max() == 0
    arrays = evaluate.nearest_neighbours(q, x.numpy(), among, num=7)
    assert isinstance(arrays.indices, np.ndarray)
    np.testing.assert_array_equal(arrays.indices, found.indices.numpy())
    with pytest.raises(
        ValueError, match="num must be between 1 and 50, the number of data points, got 51"
    ):
        evaluate.nearest_neighbours(q, x, among, num=51)


def test_arithmetic_of_a_linear_pair_is_that_of_the_data():
    p, q = linear_pair()
    a, b, c = torch.randn(3, 4), torch.randn(5, 4), torch.randn(2, 4)
    moved = evaluate.arithmetic(p, q, a, b, c)
    torch.testing.assert_close(moved, c + a.mean(0) - b.mean(0))
    torch.testing.assert_close(
        evaluate.arithmetic(p, q, a, b, c, scale=-2.0), c - 2 * (a.mean(0) - b.mean(0))
    )
    assert isinstance(evaluate.arithmetic(p, q, *(v.numpy() for v in (a, b, c))), np.ndarray)


def test_pictures():
    p, q = linear_pair()
    x = torch.rand(30, 4)
    mask = data.lower_half(x)
    single = evaluate.impute(p, q, x, mask, num_rounds=1)
    several = evaluate.impute(p, q, x, mask, num_rounds=1, num_samples=3)
    for figure, rows, columns in (
        (plot.imputations(x, mask, single, num=8), 3, 8),
        (plot.imputations(x, mask[0], several), 5, 12),
        (plot.imputations(x[:5], torch.full((4,), 0.5), several.numpy()[:, :5]), 5, 5),
        (plot.neighbours(q, x[:4], data.Split(x), num=6), 4, 7),
        (plot.arithmetic(p, q, x[:3], x[3:9], x[9:14]), 5, 7),
    ):
        (image,) = figure.axes[0].images
        assert image.get_array().shape == (3 * rows + 1, 3 * columns + 1)
    # The row of what is observed: true above, grey below.
    image = plot.imputations(x, mask, single, num=2).axes[0].images[0].get_array()
    np.testing.assert_allclose(image[4, 1:3], x[0, :2], atol=1e-6)
    np.testing.assert_allclose(image[5, 1:3], 0.5)
    ax = plot.samples(p).axes[0]
    assert plot.neighbours(q, x[:4], x, ax=ax) is ax.figure
    with pytest.raises(ValueError, match="imputed must be of the shape of x"):
        plot.imputations(x, mask, single[:3])


# --- streams

N = 12


class Whole:
    """A model of N data points with latent variables of each, and one of all; minibatches say
    that they are some.
    """

    def __init__(self, shared=False):
        self.shared, self.weight = shared, torch.tensor(0.7, requires_grad=True)
        self.x = torch.randn(N, generator=torch.Generator().manual_seed(0))

    def model(self, x):
        pyro.param("weight", self.weight)
        if self.shared:
            pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.weight * z, 1.0), obs=x)

    def guide(self, x):
        if self.shared:
            pyro.sample("w", dist.Normal(0.2, 0.5))
        with pyro.plate("data", N, subsample=x):
            pyro.sample("z", dist.Normal(0.3 * x, 0.8))


@pytest.mark.parametrize("shared", [False, True], ids=["local", "local and shared"])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_expectation_of_a_stream_s_loss_is_the_bound_of_all_data(rows, shared):
    toy = Whole(shared)
    torch.manual_seed(1)
    batches = [toy.x[torch.randperm(N)[:rows]] for _ in range(300)]
    losses = [ELBO().loss(toy.model, toy.guide, batch) for batch in batches]
    whole = [ELBO().loss(toy.model, toy.guide, toy.x) for _ in range(200)]
    exact = float(np.mean(whole))
    error = (np.var(losses) / len(losses) + np.var(whole) / len(whole)) ** 0.5
    assert abs(np.mean(losses) - exact) < 4 * error
    # What fit writes down is per data point of all N, whatever the batch.
    pyro.clear_param_store()
    history = fit(
        toy.model,
        toy.guide,
        data.Stream(iter(batches), len(batches)),
        epochs=1,
        lr=0.0,
        seed=0,
        progress=False,
    )
    assert abs(history["loss"][0] - exact / N) < 4 * error / N


def digit_pair(family=dist.Normal):
    torch.manual_seed(0)
    p = models.VAE(default_prior(family, 2), Conditional(dist.Bernoulli, MLP(2, [32]), 64))
    return p, guides.VAE(Conditional(family, MLP(64, [32]), 2))


STREAMED = {
    "Normal, ELBO": (dist.Normal, ELBO()),
    "Normal, IWAE": (dist.Normal, IWAE(3)),
    "Normal, dreg": (dist.Normal, IWAE(3, gradient="dreg")),
    "Gamma, ELBO": (Gamma, ELBO()),
    "Dirichlet, Renyi": (Dirichlet, Renyi(0.5, 3)),
}


@pytest.mark.parametrize("family, loss", STREAMED.values(), ids=STREAMED)
def test_an_endless_stream_of_single_points_trains(family, loss):
    p, q = digit_pair(family)
    x = data.digits().train.x
    untrained = -evaluate.elbo(p, q, x[:50].round(), num_particles=20).elbo.mean()
    endless = (x[i % len(x)].unsqueeze(0) for i in itertools.count())
    history = fit(
        p,
        q,
        data.Stream(endless, steps_per_epoch=60),
        epochs=2,
        loss=loss,
        binarize=True,
        validation=x[:50],
        lr=3e-3,
        seed=0,
        progress=False,
    )
    assert [row["steps"] for row in history.rows] == [60, 120]
    assert history["validation_loss"][-1] < untrained - 3
    # Nothing was taken from the stream that was not trained on.
    torch.testing.assert_close(next(endless)[0], x[120])
    assert_same_step(loss, p, q, x[:1].round())


class Epoch:
    """An iterable that begins anew every time."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_stream_equals_the_same_batches_of_one_epoch(tmp_path):
    batches = [
        part.round() for part in data.digits().train.x[:400].split([7, 1, 92, 100, 50, 150])
    ]
    weights = []
    for source, options in (
        (Epoch(batches), {"epochs": 1}),
        (data.Stream(iter(batches), len(batches)), {"epochs": 1}),
        # And then it ends.
        (data.Stream(iter(batches), 4), {"epochs": 9, "folder": tmp_path}),
        (data.Stream(({"x": part} for part in batches), 2), {"epochs": 3}),
    ):
        p, q = digit_pair()
        history = fit(p, q, source, seed=0, progress=False, **options)
        weights.append(
            torch.cat([v.flatten() for v in (*p.parameters(), *q.parameters())]).detach()
        )
        assert len(history.step_losses) == len(batches)
    assert all(torch.equal(weights[0], other) for other in weights[1:])
    assert [row["steps"] for row in history.rows] == [2, 4, 6]
    # A resumed run goes on with what comes next.
    run = load_run(tmp_path)
    history = fit(
        run.model,
        run.guide,
        data.Stream(iter(batches), 1),
        epochs=3,
        folder=Run(tmp_path, resume=True),
        progress=False,
    )
    assert [row["steps"] for row in history.rows] == [4, 6, 7]


def test_errors_about_streams():
    p, q = digit_pair()
    x = torch.zeros(10, 64)
    for options, message in (
        ({"data": iter([x])}, r"an iterator, .*tarspyro.data.Stream\(iterator"),
        ({"data": data.Stream(iter([]), 3)}, "data is empty"),
        ({"data": x, "validation": iter([x])}, "validation is read after every epoch"),
        ({"data": x, "validation": data.Stream(iter([x]))}, "validation is read after every"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(p, q, **options, progress=False)
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, got 0"):
        data.Stream(iter([x]), 0)
    for again in ([x], x):
        with pytest.raises(TypeError, match="batches must be an iterator"):
            data.Stream(again, 3)
