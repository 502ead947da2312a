"""What codes are worth to a classifier, and pictures of walks through the latent space."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, evaluate, fit, guides, models, plot
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

RANDOM = np.random.default_rng(0)


def clusters(n, scale, dimensions=3, classes=4):
    """Codes about the corners of a simplex, and whose they are."""
    labels = RANDOM.integers(classes, size=n)
    return 3.0 * np.eye(classes, dimensions)[labels] + scale * RANDOM.standard_normal(
        (n, dimensions)
    ), labels


# --- accuracies


@pytest.mark.parametrize("k", [1, 3, 10])
def test_nearest_neighbours_are_those_of_all_distances(k):
    x, y = clusters(120, 1.5)
    test_x, test_y = clusters(80, 1.5)
    distances = ((test_x[:, None] - x[None]) ** 2).sum(-1)
    votes = np.stack([np.bincount(y[row[:k]], minlength=4) for row in distances.argsort(1)])
    expected = (
        votes.argmax(1) == test_y
    ).mean()  # of equal counts the smaller label, as in scikit-learn
    assert evaluate.knn_accuracy(x, y, test_x, test_y, k=k) == pytest.approx(expected)
    assert 0.3 < expected < 1


def test_a_probe_reaches_bayes_accuracy_where_the_classes_are_gaussian():
    """Two Gaussians of one covariance: the best classifier is linear, and right with the
    probability Phi(d / 2).
    """
    direction = np.array([2.0, -1.0, 0.0]) / math.sqrt(5)

    def draw(n):
        y = RANDOM.integers(2, size=n)
        return RANDOM.standard_normal((n, 3)) + 2.0 * np.outer(y, direction), y

    (x, y), (test_x, test_y) = draw(5000), draw(20_000)
    bayes = dist.Normal(0.0, 1.0).cdf(torch.tensor(1.0)).item()
    found = evaluate.linear_probe(x, y, test_x, test_y)
    assert (
        abs(found - bayes) < 4 * math.sqrt(bayes * (1 - bayes) / 20_000) + 0.002
    )  # what 5,000 codes cost
    # units do not matter: codes are standardized
    assert (
        evaluate.linear_probe(x * [1e4, 1e-4, 1.0], y, test_x * [1e4, 1e-4, 1.0], test_y)
        == found
    )


def test_a_ring_is_for_neighbours_and_not_for_lines():
    angle = RANDOM.uniform(0, 2 * np.pi, 600)
    y = RANDOM.integers(2, size=600)
    x = (1.0 + 2.0 * y)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    halves = x[:300], y[:300], x[300:], y[300:]
    assert evaluate.knn_accuracy(*halves) > 0.99
    assert evaluate.linear_probe(*halves) < 0.75


def test_codes_without_information_give_chance():
    y, test_y = (RANDOM.integers(4, size=2000) for _ in range(2))
    x, test_x = (RANDOM.standard_normal((2000, 3)) for _ in range(2))
    error = 4 * math.sqrt(0.25 * 0.75 / 2000)
    assert abs(evaluate.linear_probe(x, y, test_x, test_y) - 0.25) < error
    assert abs(evaluate.knn_accuracy(x, y, test_x, test_y) - 0.25) < error


def test_tensors_events_and_labels_of_any_kind():
    x, y = clusters(100, 0.3, dimensions=4)
    names = np.array(["a", "b", "c", "d"])[y]
    tensor = torch.tensor(x, dtype=torch.float32).reshape(100, 2, 2)
    for function in (evaluate.knn_accuracy, evaluate.linear_probe):
        for labels in (y, torch.tensor(y), names, names.tolist()):
            assert function(tensor, labels, tensor.numpy(), labels) > 0.99


def test_codes_of_trained_digits_are_better_than_of_untrained_ones():
    data = digits()
    found = []
    for epochs in (0, 20):
        torch.manual_seed(0)
        p = models.VAE(
            default_prior(dist.Normal, 4), Conditional(dist.Bernoulli, MLP(4, [64]), 64)
        )
        q = guides.VAE(Conditional(dist.Normal, MLP(64, [64]), 4))
        if epochs:
            options = {
                "optimizer_options": {"lr": 3e-3},
                "binarize": True,
                "seed": 0,
                "progress": False,
            }
            fit(p, q, data.train, epochs=epochs, **options)
        codes, test_codes = (evaluate.embed(q, part) for part in (data.train, data.test))
        found.append(evaluate.knn_accuracy(codes, data.train.y, test_codes, data.test.y))
    assert found[1] > found[0] + 4 * math.sqrt(0.25 / len(data.test))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f, x, y: f(x, y[:-1], x, y),
            r"labels must have one label for each of 10 codes, got shape \(9,\)",
        ),
        (
            lambda f, x, y: f(x, y, x[:5], y),
            "test_labels must have one label for each of 5 codes",
        ),
        (
            lambda f, x, y: f(x, y, x[:, :2], y),
            r"test_codes must have rows of shape \(3,\), got \(2,\)",
        ),
        (
            lambda f, x, y: f(x * np.nan, y, x, y),
            "codes must be finite, got 30 numbers that are not",
        ),
    ],
)
@pytest.mark.parametrize("function", [evaluate.knn_accuracy, evaluate.linear_probe])
def test_errors(function, call, message):
    with pytest.raises(ValueError, match=message):
        call(function, RANDOM.standard_normal((10, 3)), np.arange(10) % 2)


def test_options_are_checked():
    x, y = clusters(10, 1.0)
    for k in (0, 11):
        with pytest.raises(
            ValueError, match=f"k must lie between 1 and the number of codes, 10, got {k}"
        ):
            evaluate.knn_accuracy(x, y, x, y, k=k)
    with pytest.raises(ValueError, match="penalty must be positive, got 0"):
        evaluate.linear_probe(x, y, x, y, penalty=0)
    with pytest.raises(ValueError, match="labels must hold two different ones or more"):
        evaluate.linear_probe(x, 0 * y, x, y)


# --- walks


def watching(seen, latent=3, pixels=4):
    """A pair whose codes are what the data say, and a decoder that writes down what it gets."""

    def likelihood(z):
        seen.append(z)
        return dist.Bernoulli(
            logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], pixels)
        ).to_event(1)

    model = models.VAE(default_prior(dist.Normal, latent), likelihood)
    guide = guides.VAE(lambda x: dist.Normal(10 * x[..., :latent], 1.0).to_event(1))
    return model, guide


def test_interpolation_runs_straight_between_the_posterior_means():
    seen = []
    model, guide = watching(seen)
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    figure = plot.interpolation(model, guide, a, b, num=5)
    codes = seen[0].reshape(2, 5, 3)
    for row in range(2):
        for step in range(5):
            expected = 10 * (a[row, :3] + (b[row, :3] - a[row, :3]) * step / 4)
            torch.testing.assert_close(codes[row, step], expected)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    assert sheet.shape == (2 * 3 + 1, 7 * 3 + 1)  # the data at both ends
    np.testing.assert_allclose(sheet[1:3, 1:3], a[0].reshape(2, 2), rtol=1e-6)
    np.testing.assert_allclose(sheet[4:6, -3:-1], b[1].reshape(2, 2), rtol=1e-6)
    np.testing.assert_allclose(sheet[1, 4], torch.sigmoid(codes[0, 0].sum()), rtol=1e-5)


def test_interpolation_is_between_as_many_data_points():
    model, guide = watching([])
    with pytest.raises(
        ValueError,
        match=r"a and b must have the same shape \(N, \*x\), got \[\(2, 4\), \(1, 4\)\]",
    ):
        plot.interpolation(model, guide, torch.rand(2, 4), torch.rand(1, 4))
    with pytest.raises(ValueError, match="num must be at least 2, got 1"):
        plot.interpolation(model, guide, torch.rand(2, 4), torch.rand(2, 4), num=1)


def test_traversal_begins_with_the_most_active_units():
    seen = []
    model, _ = watching(seen)
    codes = torch.tensor([0.1, 3.0, 1.0]) * torch.randn(200, 3)
    figure = plot.traversal(model, codes=codes, num=3)
    assert figure.axes[0].get_ylabel() == "units 1, 2, 0"
    rows = seen[0].reshape(3, 3, 3)
    assert (rows.std(1).argmax(1) == torch.tensor([1, 2, 0])).all()
    chosen = plot.traversal(model, codes=codes, units=[0], num=3)
    assert chosen.axes[0].get_ylabel() == "units 0"
    with pytest.raises(ValueError, match="codes must have 3 units as 'z' has, got 2"):
        plot.traversal(model, codes=codes[:, :2])


def hierarchy(x=None, *, batch_size=1):
    with pyro.plate("data", batch_size if x is None else len(x)):
        top = pyro.sample("z_2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        z = pyro.sample(
            "z_1", dist.Normal(5.0 + top.expand(*top.shape[:-1], 2), 0.1).to_event(1)
        )
        pyro.sample("label", dist.Bernoulli(logits=z[..., 0]))
        return pyro.sample(
            "image",
            dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(-1, 4)).to_event(1),
            obs=x,
        )


def test_traversal_of_a_hierarchy():
    figure = plot.traversal(hierarchy, latent="z_1", site="image", num=3)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    # z_1 has the mean 5 and the variance 1.01 under the model, and the other unit stays at its
    # median
    quantiles = 5 + math.sqrt(1.01) * dist.Normal(0.0, 1.0).icdf(
        torch.tensor([0.02, 0.5, 0.98])
    )
    expected = torch.sigmoid(5 + quantiles)
    for row in range(2):
        np.testing.assert_allclose(sheet[1 + 3 * row, 1::3], expected, atol=2e-4)
    assert figure.axes[0].get_ylabel() == "units 0, 1"
    assert (
        plot.traversal(hierarchy, latent="z_2", site="image", num=3).axes[0].get_ylabel()
        == "units 0"
    )
