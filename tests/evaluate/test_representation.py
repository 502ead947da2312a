"""Accuracies of classifiers of codes."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, evaluate, fit, guides, models
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
                "lr": 3e-3,
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
            ValueError, match=f"k must be between 1 and 10, the number of codes, got {k}"
        ):
            evaluate.knn_accuracy(x, y, x, y, k=k)
    with pytest.raises(ValueError, match="penalty must be positive, got 0"):
        evaluate.linear_probe(x, y, x, y, penalty=0)
    with pytest.raises(ValueError, match="labels must hold two different ones or more"):
        evaluate.linear_probe(x, 0 * y, x, y)
