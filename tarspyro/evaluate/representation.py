"""The value of codes for classification, by nearest neighbours and linear probes."""

__all__ = ["knn_accuracy", "linear_probe"]

import numpy as np
import torch

from tarspyro.arguments import as_count, as_numbers, check_finite, check_positive
from tarspyro.types import ArrayLike


def knn_accuracy(
    codes: ArrayLike,
    labels: ArrayLike,
    test_codes: ArrayLike,
    test_labels: ArrayLike,
    *,
    k: int = 5,
) -> float:
    """Returns the accuracy of a k-nearest-neighbour classifier on test codes.

    Distances are Euclidean, in the units of the codes.

    Arguments:
        codes: Codes of shape ``(N, *event)``, for example the result of ``embed``.
        labels: The label of each code: numbers or words.
        test_codes: Codes to classify.
        test_labels: The label of each test code.
        k: The number of neighbours.

    Raises:
        ValueError: If codes and labels differ in length, if codes differ in shape, if a code
            is not finite, or if k is out of range.

    Example:
        >>> knn_accuracy([[0.0], [0.1], [1.0]], [3, 3, 8], [[0.2], [0.9]], [3, 8], k=1)
        1.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y, test_x, test_y = _as_arrays(codes, labels, test_codes, test_labels)
    k = as_count("k", k, most=len(x), most_is="the number of codes")
    # Scikit-learn subtracts squared norms, which loses the digits of codes far from the origin.
    centre = x.mean(0)
    return float(KNeighborsClassifier(k).fit(x - centre, y).score(test_x - centre, test_y))


def linear_probe(
    codes: ArrayLike,
    labels: ArrayLike,
    test_codes: ArrayLike,
    test_labels: ArrayLike,
    *,
    penalty: float = 1e-3,
) -> float:
    r"""Returns the accuracy of a linear classifier of codes on test codes.

    .. math:: \min_{W, b} \; -\frac1N \sum_n \log \mathrm{softmax}(W z_n + b)_{y_n}
              + \frac{\lambda}{2} \|W\|^2

    with codes in units of their standard deviation. (Alain and Bengio 2016, arXiv:1610.01644.)

    Arguments:
        codes: Codes of shape ``(N, *event)``, for example the result of ``embed``.
        labels: The label of each code: numbers or words.
        test_codes: Codes to classify.
        test_labels: The label of each test code.
        penalty: :math:`\lambda`.

    Raises:
        ValueError: If codes and labels differ in length, if codes differ in shape, if a code
            is not finite, if all labels are equal, or if the penalty is not positive.

    Example:
        >>> linear_probe([[0.0], [0.1], [1.0]], [3, 3, 8], [[0.2], [0.9]], [3, 8])
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = _as_arrays(codes, labels, test_codes, test_labels)
    check_positive("penalty", penalty)
    if len(np.unique(y)) < 2:
        raise ValueError(f"labels must hold two different ones or more, got only {y[0]!r}.")
    # Scikit-learn sums the loss over the data, and C is the inverse of the penalty.
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (penalty * len(x)), max_iter=10_000)
    )
    return float(probe.fit(x, y).score(test_x, test_y))


def _as_arrays(
    codes: ArrayLike, labels: ArrayLike, test_codes: ArrayLike, test_labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns codes, as vectors in double precision, and labels, as arrays."""
    x = _codes("codes", codes)
    y = _labels("labels", labels, x)
    test_x = _codes("test_codes", test_codes)
    test_y = _labels("test_labels", test_labels, test_x)
    if x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"test_codes must have rows of shape {x.shape[1:]}, got {test_x.shape[1:]}."
        )
    vectors = x.reshape(len(x), -1).astype(float)
    test_vectors = test_x.reshape(len(test_x), -1).astype(float)
    return vectors, y, test_vectors, test_y


def _codes(name: str, values: ArrayLike) -> np.ndarray:
    codes = as_numbers(name, values).detach().cpu().numpy()
    if not codes.ndim or not codes.size:
        raise ValueError(f"{name} must have rows, got shape {codes.shape}.")
    check_finite(name, codes)
    return codes


def _labels(name: str, values: ArrayLike, codes: np.ndarray) -> np.ndarray:
    if torch.is_tensor(values):
        labels = as_numbers(name, values).detach().cpu().numpy()
    else:
        labels = np.asarray(values)  # they may be words
    if labels.shape != codes.shape[:1]:
        raise ValueError(
            f"{name} must have one label for each of {len(codes)} codes, got shape"
            f" {labels.shape}."
        )
    return labels
