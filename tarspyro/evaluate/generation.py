"""What samples are worth that have no density: by features of a classifier, its labels, and
the modes they reach.
"""

__all__ = [
    "Coverage",
    "PrecisionRecall",
    "agreement",
    "frechet_distance",
    "mode_coverage",
    "precision_recall",
]

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_numbers, check_number, check_positive, format_value
from tarspyro.evaluate.distances import distances

# How many rows of a matrix of distances are in memory at once.
_ROWS = 1000


class PrecisionRecall(NamedTuple):
    """The share of samples that are like data, and the share of data that are like samples."""

    precision: float
    recall: float


class Coverage(NamedTuple):
    """How many modes samples reach, and the share of samples that are near one."""

    modes: int
    quality: float


def frechet_distance(features: Any, others: Any) -> float:
    r"""Returns the Frechet distance of the Gaussians with the means and covariances of two
    sets of features.

    .. math:: d^2 = \|m_1 - m_2\|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

    The squared distance, as papers print it. With the features of an Inception network it is
    the FID; here they are those of any network, usually a small classifier that was trained on
    the real data with ``fit`` (``models.Classifier.features``), so that values compare with
    each other and not with published ones. It falls with the number of samples: compare sets
    of equal sizes, and with what two sets of real data have.

    Arguments:
        features: Features of shape (N, F), of real data.
        others: Features of shape (M, F), of samples.

    Raises:
        ValueError: If one set has fewer than two rows, they differ in the number of features,
            or one is not finite.

    References:
        Heusel et al. (2017), GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500,
        eq. 6.

    Example:
        >>> frechet_distance([[-1.0], [1.0]], [[2.0], [4.0]])
        9.0
    """
    x, y = _checked(features=features, others=others)
    means, covariances = zip(
        *((rows.mean(0), rows.T.cov().reshape(x.shape[1], -1)) for rows in (x, y)), strict=True
    )
    values, vectors = torch.linalg.eigh(covariances[0])
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # The trace of a root is the sum of the roots of eigenvalues; this product is symmetric,
    # and has those of C_1 C_2.
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    total = (
        (means[0] - means[1]).square().sum()
        + covariances[0].trace()
        + covariances[1].trace()
        - 2 * cross
    )
    return max(float(total), 0.0)


def precision_recall(features: Any, others: Any, *, k: int = 3) -> PrecisionRecall:
    """Returns which share of samples lies among the data, and which share of the data lies
    among the samples.

    A point lies among others if it is no farther from one of them than that one's k-th nearest
    neighbour of its own kind. Distances that differ by no more than the rounding of the
    features are equal, as on a grid. Precision falls where samples are unlike data, recall
    where the samples leave some data out.

    Arguments:
        features: Features of shape (N, F), of real data (see ``frechet_distance``).
        others: Features of shape (M, F), of samples; as many as of the data, for both to mean
            the same.
        k: The number of neighbours.

    Returns:
        A tuple (precision, recall), both between 0 and 1.

    Raises:
        ValueError: If k is not below the number of rows, or the features are out of order.

    References:
        Kynkaanniemi et al. (2019), Improved Precision and Recall Metric for Assessing
        Generative Models, arXiv:1904.06991, eqs. 1 and 2.

    Example:
        >>> data, samples = torch.arange(10.0).unsqueeze(1), torch.tensor([[0.9], [1.0], [1.1], [1.3]])
        >>> precision_recall(data, samples, k=1)
        PrecisionRecall(precision=1.0, recall=0.1)
    """
    x, y = _checked(features=features, others=others)
    if as_count("k", k, 0) not in range(1, min(len(x), len(y))):
        raise ValueError(
            f"k must lie between 1 and the number of rows less one, {min(len(x), len(y)) - 1},"
            f" got {k}."
        )
    slack = _rounding(features, others)
    return PrecisionRecall(_share_among(x, y, k, slack), _share_among(y, x, k, slack))


def agreement(classifier: nn.Module, x: Tensor, y: Tensor) -> float:
    """Returns the share of conditional samples that a classifier takes for what was asked for.

    Arguments:
        classifier: A ``models.Classifier`` that was trained on real data, or anything else
            with ``classes``. What it gets wrong of real data is to be told beside.
        x: The samples.
        y: The labels that they were asked for: 0, ..., K - 1, or one-hot.

    Raises:
        ValueError: If x and y differ in length.
    """
    if not hasattr(classifier, "classes"):
        raise TypeError(
            "classifier must have classes, as models.Classifier has, got"
            f" {format_value(classifier)}."
        )
    x, y = as_numbers("x", x), as_numbers("y", y)
    asked = y.argmax(-1) if y.dim() > 1 else y
    if len(asked) != len(x):
        raise ValueError(
            f"y must have a label for each of the {len(x)} rows of x, got {len(asked)}."
        )
    found: Tensor = classifier.classes(x)  # type: ignore[operator]
    return (found == asked.to(found.device)).double().mean().item()


def mode_coverage(
    samples: Any, means: Any, scale: float, *, within: float = 3.0, at_least: int = 1
) -> Coverage:
    """Returns how many modes of a mixture of Gaussians samples reach, and which share of
    samples is near a mode.

    Arguments:
        samples: The samples, of shape (N, D).
        means: The means of the modes, of shape (K, D), such as those of ``data.ring`` and
            ``data.grid``.
        scale: The standard deviation of each mode.
        within: A sample is near the nearest mode if it is within so many standard deviations.
        at_least: A mode is reached by so many samples near it.

    Returns:
        A tuple (modes, quality): a number up to K, and a share between 0 and 1.

    Raises:
        ValueError: If the scale is not positive, or the shapes do not match.

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
    farness, nearest = distances(x, centres).min(1)
    near = farness <= within * scale
    counts = nearest[near].bincount(minlength=len(centres))
    return Coverage(int((counts >= at_least).sum()), near.double().mean().item())


def _share_among(x: Tensor, y: Tensor, k: int, slack: float) -> float:
    """The share of the rows of y that lie among those of x."""
    # A row is the nearest of its neighbours to itself.
    radii = torch.cat(
        [distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(_ROWS)]
    )
    among = torch.cat(
        [(distances(part, x) <= radii + slack).any(1) for part in y.split(_ROWS)]
    )
    return among.double().mean().item()


def _rounding(*sets: Any) -> float:
    """How far two distances may be apart that were equal before the numbers were rounded to
    their type.
    """
    tensors = [as_numbers("features", rows) for rows in sets]
    precision = max(
        torch.finfo(rows.dtype if rows.is_floating_point() else torch.float64).eps
        for rows in tensors
    )
    largest = max(float(rows.abs().max()) for rows in tensors)
    return 2 * precision * largest * math.sqrt(tensors[0].shape[1])


def _checked(at_least: int = 2, **sets: Any) -> list[Tensor]:
    """Sets of vectors in double precision."""
    tensors = {name: as_numbers(name, rows).detach().double() for name, rows in sets.items()}
    (first, x), (second, y) = tensors.items()
    for name, rows in tensors.items():
        if rows.dim() != 2 or len(rows) < at_least:
            raise ValueError(
                f"{name} must have shape (N, F) with N of {at_least} at least, got"
                f" {tuple(rows.shape)}."
            )
        if not rows.isfinite().all():
            raise ValueError(
                f"{name} must be finite, got {int((~rows.isfinite()).sum())} numbers that are"
                " not."
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{second} must have {x.shape[1]} columns as {first} has, got {y.shape[1]}."
        )
    return [x, y]
