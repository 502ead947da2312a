"""The quality of samples without a density, by features, labels and modes."""

__all__ = [
    "Coverage",
    "PrecisionRecall",
    "agreement",
    "frechet_distance",
    "mode_coverage",
    "precision_recall",
]

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tarspyro.arguments import (
    as_count,
    as_numbers,
    check_finite,
    check_number,
    check_positive,
    format_value,
)
from tarspyro.evaluate.classification import as_classes
from tarspyro.evaluate.distances import distances
from tarspyro.types import ArrayLike

# The number of rows of a matrix of distances that are in memory at once.
_ROWS = 1000


class Classifies(Protocol):
    """A classifier, such as ``models.Classifier``."""

    def classes(self, x: Tensor, /) -> Tensor:
        """Returns the class of each row."""


class PrecisionRecall(NamedTuple):
    """The share of samples that are like data, and the share of data that are like samples."""

    precision: float
    recall: float


class Coverage(NamedTuple):
    """The number of modes that samples reach, and the share of samples near a mode."""

    modes: int
    quality: float


def frechet_distance(features: ArrayLike, others: ArrayLike) -> float:
    r"""Returns the squared Frechet distance between two sets of features.

    .. math:: d^2 = \|m_1 - m_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

    with their means m and covariances C. With the features of an Inception network it is the
    FID. With those of another network, usually a small classifier trained on the real data
    (``models.Classifier.features``), values compare with each other and not with published
    ones. The distance falls with the number of samples: compare sets of equal sizes, and
    report the distance between two sets of real data, too.

    Arguments:
        features: Features of shape (N, F), of real data.
        others: Features of shape (M, F), of samples.

    Raises:
        ValueError: If a set has fewer than two rows or is not finite, or if they differ in the
            number of features.

    References:
        Heusel et al. (2017), GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500,
        eq. 6.

    Example:
        >>> frechet_distance([[-1.0], [1.0]], [[2.0], [4.0]])
        9.0
    """
    x, y = _checked(features=features, others=others)
    size = x.shape[1]
    mean = x.mean(0)
    other_mean = y.mean(0)
    covariance = x.T.cov().reshape(size, size)
    other_covariance = y.T.cov().reshape(size, size)

    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # The trace of a matrix root is the sum of the roots of the eigenvalues. This product is
    # symmetric, and has the eigenvalues of C_1 C_2.
    eigenvalues = torch.linalg.eigvalsh(root @ other_covariance @ root)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()

    total = (
        (mean - other_mean).square().sum()
        + covariance.trace()
        + other_covariance.trace()
        - 2 * trace_of_root
    )
    return max(float(total), 0.0)


def precision_recall(features: ArrayLike, others: ArrayLike, *, k: int = 3) -> PrecisionRecall:
    """Returns the share of samples among the data, and the share of data among the samples.

    A point lies among others if its distance to one of them is at most that one's distance to
    its k-th nearest neighbour of its own set. Distances that differ only by the rounding of
    the features count as equal, as on a grid. Samples that are unlike data lower the
    precision; data that the samples leave out lower the recall.

    Arguments:
        features: Features of shape (N, F), of real data (see ``frechet_distance``).
        others: Features of shape (M, F), of samples; as many as of the data, so that both
            shares are comparable.
        k: The number of neighbours.

    Returns:
        A tuple (precision, recall), both between 0 and 1.

    Raises:
        ValueError: If k is not below the number of rows, or if the features are not finite or
            not of the same size.

    References:
        Kynkaanniemi et al. (2019), Improved Precision and Recall Metric for Assessing
        Generative Models, arXiv:1904.06991, eqs. 1 and 2.

    Example:
        >>> data = torch.arange(10.0).unsqueeze(1)
        >>> samples = torch.tensor([[0.9], [1.0], [1.1], [1.3]])
        >>> precision_recall(data, samples, k=1)
        PrecisionRecall(precision=1.0, recall=0.1)
    """
    x, y = _checked(features=features, others=others)
    k = as_count("k", k, most=min(len(x), len(y)) - 1, most_is="the number of rows less one")
    slack = _rounding(features, others)
    return PrecisionRecall(_share_among(x, y, k, slack), _share_among(y, x, k, slack))


def agreement(classifier: Classifies, x: ArrayLike, y: ArrayLike) -> float:
    """Returns the share of conditional samples that a classifier assigns to their label.

    Arguments:
        classifier: A ``models.Classifier`` that was trained on real data, or another module
            with a method ``classes``. Report its error on real data, too.
        x: The samples.
        y: The labels that the samples were conditioned on: 0, ..., K - 1, or one-hot.

    Raises:
        ValueError: If x and y differ in length.
    """
    if not hasattr(classifier, "classes"):
        raise TypeError(
            "classifier must have classes, as models.Classifier has, got"
            f" {format_value(classifier)}."
        )
    x = as_numbers("x", x)
    labels = as_classes(y, len(x))
    found = classifier.classes(x)
    return (found == labels.to(found.device)).double().mean().item()


def mode_coverage(
    samples: ArrayLike,
    means: ArrayLike,
    scale: float,
    *,
    within: float = 3.0,
    at_least: int = 1,
) -> Coverage:
    """Returns the number of modes of a mixture of Gaussians that samples reach.

    Also returns the share of samples that are near a mode.

    Arguments:
        samples: The samples, of shape (N, D).
        means: The means of the modes, of shape (K, D), such as those of ``data.ring`` and
            ``data.grid``.
        scale: The standard deviation of each mode.
        within: The number of standard deviations up to which a sample is near its nearest
            mode.
        at_least: The number of samples near a mode that reach it.

    Returns:
        A tuple (modes, quality): a number up to K, and a share between 0 and 1.

    Raises:
        ValueError: If the scale is not positive, or if the shapes do not match.

    References:
        Srivastava et al. (2017), VEEGAN, arXiv:1705.07761, section 4.1.

    Example:
        >>> mode_coverage([[0.0, 0.1], [0.0, 5.0]], [[0.0, 0.0], [3.0, 0.0]], scale=0.1)
        Coverage(modes=1, quality=0.5)
    """
    check_positive("scale", scale)
    check_number("within", within, 0)
    at_least = as_count("at_least", at_least)
    x, centres = _checked(1, samples=samples, means=means)
    distance, nearest = distances(x, centres).min(1)
    near = distance <= within * scale
    counts = nearest[near].bincount(minlength=len(centres))
    return Coverage(int((counts >= at_least).sum()), near.double().mean().item())


def _share_among(x: Tensor, y: Tensor, k: int, slack: float) -> float:
    """Returns the share of the rows of y that lie among those of x."""
    # Of the rows of x, each is its own nearest neighbour.
    radii = torch.cat(
        [distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(_ROWS)]
    )
    among = torch.cat(
        [(distances(part, x) <= radii + slack).any(1) for part in y.split(_ROWS)]
    )
    return among.double().mean().item()


def _rounding(*sets: ArrayLike) -> float:
    """Returns the largest difference that rounding to their type makes between distances."""
    tensors = [as_numbers("features", rows) for rows in sets]
    precision = max(
        torch.finfo(rows.dtype if rows.is_floating_point() else torch.float64).eps
        for rows in tensors
    )
    largest = max(float(rows.abs().max()) for rows in tensors)
    return 2 * precision * largest * math.sqrt(tensors[0].shape[1])


def _checked(at_least: int = 2, **sets: ArrayLike) -> list[Tensor]:
    """Returns two sets of vectors in double precision, which are given by name."""
    tensors = {name: as_numbers(name, rows).detach().double() for name, rows in sets.items()}
    (first, x), (second, y) = tensors.items()
    for name, rows in tensors.items():
        if rows.dim() != 2 or len(rows) < at_least:
            raise ValueError(
                f"{name} must have shape (N, F) with N of {at_least} at least, got"
                f" {tuple(rows.shape)}."
            )
        check_finite(name, rows)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{second} must have {x.shape[1]} columns as {first} has, got {y.shape[1]}."
        )
    return [x, y]
