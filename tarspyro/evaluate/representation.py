"""What codes are worth to a classifier: how well labels can be read off them."""

__all__ = ["knn_accuracy", "linear_probe"]

from typing import Any

import numpy as np
import torch

from tarspyro.arguments import as_count, as_numbers, check_positive


def knn_accuracy(
    codes: Any, labels: Any, test_codes: Any, test_labels: Any, *, k: int = 5
) -> float:
    """Returns the share of test codes whose label is that of most of their k nearest
    neighbours among the others.

    Distances are Euclidean, in the codes' own units.

    Arguments:
        codes: The codes of labelled data, such as ``embed`` returns them, with shape ``(N,
            *event)``.
        labels: Their labels, one for each.
        test_codes: Codes that are to be classified.
        test_labels: Their labels, to compare with.
        k: The number of neighbours.

    Raises:
        ValueError: If codes and labels differ in length or codes in shape, a code is not
            finite, or k is out of range.

    Example:
        >>> knn_accuracy([[0.0], [0.1], [1.0]], [3, 3, 8], [[0.2], [0.9]], [3, 8], k=1)
        1.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y, test_x, test_y = _checked(codes, labels, test_codes, test_labels)
    if as_count("k", k, 0) not in range(1, len(x) + 1):
        raise ValueError(f"k must lie between 1 and the number of codes, {len(x)}, got {k}.")
    # Scikit-learn subtracts squared norms, which lose the digits of codes far from the origin.
    centre = x.mean(0)
    return float(KNeighborsClassifier(k).fit(x - centre, y).score(test_x - centre, test_y))


def linear_probe(
    codes: Any, labels: Any, test_codes: Any, test_labels: Any, *, penalty: float = 1e-3
) -> float:
    r"""Returns the share of test codes that a linear classifier, trained on the others, tells
    right.

    .. math:: \min_{W, b} \; -\frac1N \sum_n \log \mathrm{softmax}(W z_n + b)_{y_n} + \frac{\lambda}{2} \|W\|^2

    with codes in units of their standard deviation. (Alain and Bengio 2016, arXiv:1610.01644.)

    Arguments:
        codes: The codes of labelled data, such as ``embed`` returns them, with shape ``(N,
            *event)``.
        labels: Their labels, one for each.
        test_codes: Codes that are to be classified.
        test_labels: Their labels, to compare with.
        penalty: :math:`\lambda`.

    Raises:
        ValueError: If codes and labels differ in length or codes in shape, a code is not
            finite, there is one label alone, or the penalty is not positive.

    Example:
        >>> linear_probe([[0.0], [0.1], [1.0]], [3, 3, 8], [[0.2], [0.9]], [3, 8])
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, test_x, test_y = _checked(codes, labels, test_codes, test_labels)
    check_positive("penalty", penalty)
    if len(np.unique(y)) < 2:
        raise ValueError(f"labels must hold two different ones or more, got only {y[0]!r}.")
    # Scikit-learn weighs the sum over the data against the penalty, by C.
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / (penalty * len(x)), max_iter=10_000)
    )
    return float(probe.fit(x, y).score(test_x, test_y))


def _checked(codes: Any, labels: Any, test_codes: Any, test_labels: Any) -> list[np.ndarray]:
    """The codes as vectors in double precision, and the labels, as arrays."""
    numbers, names = (
        {"codes": codes, "test_codes": test_codes},
        {"labels": labels, "test_labels": test_labels},
    )
    arrays = {
        name: as_numbers(name, values).detach().cpu().numpy()
        for name, values in numbers.items()
    }
    for name, labels in names.items():  # they may be words
        arrays[name] = (
            as_numbers(name, labels).cpu().numpy()
            if torch.is_tensor(labels)
            else np.asarray(labels)
        )
    for prefix in ("", "test_"):
        x, y = arrays[f"{prefix}codes"], arrays[f"{prefix}labels"]
        if not x.size:
            raise ValueError(f"{prefix}codes must have rows, got shape {x.shape}.")
        if y.shape != x.shape[:1]:
            raise ValueError(
                f"{prefix}labels must have one label for each of {len(x)} codes, got shape"
                f" {y.shape}."
            )
        if not np.isfinite(x).all():
            raise ValueError(
                f"{prefix}codes must be finite, got {int((~np.isfinite(x)).sum())} numbers"
                " that are not."
            )
    rows, test_rows = arrays["codes"], arrays["test_codes"]
    if rows.shape[1:] != test_rows.shape[1:]:
        raise ValueError(
            f"test_codes must have rows of shape {rows.shape[1:]}, got {test_rows.shape[1:]}."
        )
    x, test_x = (array.reshape(len(array), -1).astype(float) for array in (rows, test_rows))
    return [x, arrays["labels"], test_x, arrays["test_labels"]]
