"""Measures of samples against closed forms, and the mixtures of Gaussians that they are tried on."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy.linalg import sqrtm

from tarspyro import Conditional, data, evaluate, fit, models
from tarspyro.nn import MLP

from ..programs import assert_within


def exactly(mean, covariance, num=200, seed=0):
    """Rows whose mean and covariance are exactly the given ones."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, len(mean), generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


def covariance(seed, size=4):
    root = torch.randn(
        size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


# --- the Frechet distance
def test_the_frechet_distance_of_gaussians():
    means, covariances = torch.randn(2, 4, dtype=torch.float64), [covariance(1), covariance(2)]
    x, y = (
        exactly(m, c, seed=seed)
        for seed, (m, c) in enumerate(zip(means, covariances, strict=True))
    )
    root = torch.as_tensor(sqrtm((covariances[0] @ covariances[1]).numpy()).real)
    expected = (means[0] - means[1]).square().sum() + (
        covariances[0] + covariances[1] - 2 * root
    ).trace()
    assert evaluate.frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-8)
    assert evaluate.frechet_distance(y, x) == pytest.approx(expected.item(), rel=1e-8)
    # Diagonal ones: the sum of (s - t)^2.
    scales = torch.tensor([[1.0, 2.0, 3.0], [2.0, 0.5, 3.0]], dtype=torch.float64)
    x, y = (
        exactly(torch.zeros(3, dtype=torch.float64), (s**2).diag(), seed=i)
        for i, s in enumerate(scales)
    )
    assert evaluate.frechet_distance(x, y) == pytest.approx(1.0 + 2.25, rel=1e-8)


def test_the_frechet_distance_of_fewer_rows_than_features():
    """Singular covariances: roots of eigenvalues near zero must not become NaN, nor add up to
    noise.
    """
    x = torch.randn(10, 50)
    assert evaluate.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-4)
    assert evaluate.frechet_distance(x, x + 1) == pytest.approx(50.0, rel=1e-5)
    constant = torch.ones(10, 3)
    assert evaluate.frechet_distance(constant, constant.numpy()) == 0.0


# --- precision and recall
def by_hand(x, y, k):
    """Equation 2 of the paper, point by point."""
    among = 0
    for point in y:
        for i, centre in enumerate(x):
            radius = sorted(
                (centre - other).norm().item() for j, other in enumerate(x) if j != i
            )[k - 1]
            if (point - centre).norm().item() <= radius:
                among += 1
                break
    return among / len(y)


def test_precision_and_recall_are_those_of_the_paper():
    torch.manual_seed(0)
    x, y = (
        torch.randn(40, 2, dtype=torch.float64),
        1 + 0.7 * torch.randn(30, 2, dtype=torch.float64),
    )
    for k in (1, 3):
        found = evaluate.precision_recall(x, y, k=k)
        assert found.precision == pytest.approx(
            by_hand(x, y, k)
        ) and found.recall == pytest.approx(by_hand(y, x, k))
        assert 0 < found.precision < 1 and 0 < found.recall < 1


def test_precision_and_recall_tell_what_is_wrong():
    num = 1300  # the distances are computed in two parts
    ring = data.ring(num)
    other = data.ring(num, seed=1)
    few = other.x[other.y < 4]
    alike = evaluate.precision_recall(ring.x, other.x)
    assert min(alike) > 0.9
    dropped = evaluate.precision_recall(ring.x, few)
    assert dropped.precision > 0.9 and 0.3 < dropped.recall < 0.6
    blurred = evaluate.precision_recall(ring.x, data.ring(num, seed=1, scale=0.5).x)
    assert blurred.precision < 0.2
    assert evaluate.precision_recall(ring.x, ring.x) == (1.0, 1.0)


# --- labels and modes
def test_agreement_is_with_the_asked_labels():
    split = data.digits().one_hot()
    p = models.Classifier(Conditional(dist.OneHotCategorical, MLP(64, [32]), 10))
    fit(p, data=split.train, epochs=3, seed=0, progress=False, lr=1e-2)
    right = (p.classes(split.test.x) == split.test.y.argmax(1)).double().mean().item()
    assert evaluate.agreement(p, split.test.x, split.test.y) == pytest.approx(right)
    assert evaluate.agreement(p, split.test.x, split.test.y.argmax(1)) == pytest.approx(right)
    assert evaluate.agreement(p, split.test.x, split.test.y.roll(1, 0)) < 0.5
    with pytest.raises(
        ValueError, match="y must have a label for each of the 5 rows of x, got 4"
    ):
        evaluate.agreement(p, split.test.x[:5], split.test.y[:4])


def test_modes_are_reached_by_samples_near_them():
    ring = data.ring(2000)
    found = evaluate.mode_coverage(ring.x, ring.means, ring.scale)
    assert found.modes == 8
    # Within three standard deviations in the plane: 1 - exp(-9 / 2).
    share = 1 - math.exp(-4.5)
    assert abs(found.quality - share) < 4 * (share * (1 - share) / 2000) ** 0.5
    assert evaluate.mode_coverage(ring.x[ring.y < 3], ring.means, ring.scale).modes == 3
    assert evaluate.mode_coverage(torch.zeros(50, 2), ring.means, ring.scale) == (0, 0.0)
    one_more = torch.cat([ring.means[0].repeat(5, 1), ring.means[1:2]])
    assert evaluate.mode_coverage(one_more, ring.means, ring.scale, at_least=2).modes == 1


def test_mixtures_have_the_moments_they_say():
    for modes, count in ((data.ring(20_000, scale=0.1), 8), (data.grid(20_000), 25)):
        assert len(modes.means) == count and len(modes) == 20_000
        torch.testing.assert_close(modes.means.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
        assert_within(
            (modes.x - modes.means[modes.y]).square(), modes.scale**2, "the variance of a mode"
        )
        assert_within((modes.y == 3).double(), 1 / count, "how likely a mode is")
        exact = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(torch.ones(count)),
            dist.Normal(modes.means, modes.scale).to_event(1),
        )
        torch.testing.assert_close(
            modes.log_prob(modes.x[:100]), exact.log_prob(modes.x[:100]), rtol=1e-3, atol=1e-3
        )
    assert torch.equal(data.grid(10).x, data.grid(10).x) and not torch.equal(
        data.grid(10).x, data.grid(10, seed=1).x
    )


def test_what_cannot_be_judged_is_said():
    x = torch.randn(10, 3)
    bad = torch.full((10, 3), math.nan)
    for call, words in (
        (
            lambda: evaluate.frechet_distance(x, x[:, :2]),
            "others must have 3 columns as features has, got 2",
        ),
        (
            lambda: evaluate.frechet_distance(x[:1], x),
            r"features must have shape \(N, F\) with N of 2 at least",
        ),
        (
            lambda: evaluate.frechet_distance(x, bad),
            "others must be finite, got 30 numbers that are not",
        ),
        (
            lambda: evaluate.precision_recall(x, x[:3], k=3),
            "k must be between 1 and 2, the number of rows less one",
        ),
        (lambda: evaluate.mode_coverage(x, x, 0.0), "scale must be positive"),
        (
            lambda: evaluate.parzen_log_likelihood(x, x),
            "validation must be given to choose among 11 scales",
        ),
        (lambda: evaluate.parzen_log_likelihood(x, x, scales=-1.0), "scales must be positive"),
        (
            lambda: evaluate.parzen_log_likelihood(x, x[:, :2], scales=1.0),
            "data must have 3 numbers in a row",
        ),
        (lambda: data.ring(0), "num must be at least 1, got 0"),
        (lambda: data.grid(10, step=-1.0), "step must be positive"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# Distances.
GRID = torch.randint(0, 10, (300, 2), generator=torch.Generator().manual_seed(0))


WIDER = torch.randint(0, 12, (300, 2), generator=torch.Generator().manual_seed(1))


AS_FEATURES = {
    "integers": lambda grid: grid,
    "far away": lambda grid: grid.double() + 1e6 + 0.3,
    "tenths": lambda grid: 0.1 * grid.double(),
    "tenths in single precision": lambda grid: (0.1 * grid).float(),
    "ninths, far away, in single precision": lambda grid: (grid / 9 + 100).float(),
}


@pytest.mark.parametrize("features", AS_FEATURES.values(), ids=AS_FEATURES)
def test_ties_of_precision_and_recall_are_those_of_the_integers(features):
    """On a grid most of the distances are equal to others, by matrix products only nearly."""

    def share(x, y):
        squares = (x[:, None] - x[None]).square().sum(-1)
        radii = squares.kthvalue(4, dim=1).values
        return ((y[:, None] - x[None]).square().sum(-1) <= radii).any(1).double().mean().item()

    found = evaluate.precision_recall(features(GRID), features(WIDER))
    assert 0.5 < share(GRID, WIDER) < 0.9
    assert found == (share(GRID, WIDER), share(WIDER, GRID))


def test_a_point_beside_a_neighbourhood_is_not_in_it():
    data, samples = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.00001], [1.99999]])
    assert evaluate.precision_recall(data, samples, k=1).precision == 0.5


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_numbers_far_from_the_origin_have_the_distances_that_they_have(offset):
    """Every sum is exact here: the same numbers, moved."""
    torch.manual_seed(0)
    x, y = (torch.randint(-8, 8, (50, 20)).double() / 8 for _ in range(2))
    moved, other = x + offset, y + offset
    found = evaluate.parzen_log_likelihood(moved, other, scales=0.5).log_likelihood
    torch.testing.assert_close(
        found, evaluate.parzen_log_likelihood(x, y, scales=0.5).log_likelihood
    )
    assert evaluate.mode_coverage(moved, moved[:5], scale=1e-9) == (5, 0.1)
    labels = (x[:, 0] > 0).long()
    own = evaluate.knn_accuracy(moved, labels, moved + 1 / 64, labels, k=1)
    assert own == 1.0


def test_the_density_of_narrow_modes_is_exact():
    modes = data.ring(100, scale=1e-3, seed=0)
    at = (
        modes.means.repeat(10, 1) + 1e-3
    )  # more than 25 rows, from which on torch multiplies matrices
    expected = -1.0 - math.log(len(modes.means) * 2 * math.pi * 1e-6)
    # The points themselves are rounded, by 1e-4 of the scale.
    torch.testing.assert_close(
        modes.log_prob(at), torch.full((len(at),), expected), rtol=0, atol=1e-3
    )
