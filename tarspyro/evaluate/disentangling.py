"""Disentanglement: the match of a code's units and the known factors of the data."""

__all__ = ["Disentanglement", "disentanglement"]

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from tarspyro.arguments import as_count, as_numbers, as_seed, check_finite, format_value
from tarspyro.types import ArrayLike

# The rows of the importances' forest, of which a share is held out.
_HELD_OUT = 0.25
_TREES = 50


@dataclass(frozen=True, repr=False)
class Disentanglement:
    """The result of ``disentanglement``: scores from 0 to 1, and what they were computed from.

    Attributes:
        mig: The mutual information gap.
        sap: The separated attribute predictability.
        dci_disentanglement: Whether each unit is important for one factor alone.
        dci_completeness: Whether each factor needs one unit alone.
        dci_informativeness: The accuracy with which the code predicts the factors of held-out
            rows, the mean over factors.
        mutual_information: Of units (rows) and factors (columns), in nats.
        predictability: Of each factor (columns) by each unit (rows) alone.
        importance: Of units (rows) for factors (columns); each column sums to one.
        entropy: The entropy of each factor, in nats.
    """

    mig: float
    sap: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    mutual_information: np.ndarray
    predictability: np.ndarray
    importance: np.ndarray
    entropy: np.ndarray

    def __repr__(self) -> str:
        return (
            f"MIG {self.mig:.3f}, SAP {self.sap:.3f}, DCI: disentanglement"
            f" {self.dci_disentanglement:.3f}, completeness {self.dci_completeness:.3f},"
            f" informativeness {self.dci_informativeness:.3f}"
        )


def disentanglement(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    categorical: Collection[int] = (),
    bins: int = 20,
    seed: int = 0,
) -> Disentanglement:
    r"""Returns how far units of a code and known factors belong together, by three scores.

    - MIG: the gap between the two units with most information on a factor, with units in bins of
      equal width (Chen et al. 2018, arXiv:1802.04942, eq. 6),

    .. math:: \mathrm{MIG} = \frac{1}{K} \sum_k \frac{I(z_{(1)}; v_k) - I(z_{(2)}; v_k)}{H(v_k)}

    - SAP: the gap between the two units that predict a factor best: by a linear regression,
      R^2; or the balanced accuracy of thresholds for a categorical factor (Kumar et al. 2017,
      arXiv:1711.00848, section 3).
    - DCI: from the importance of each unit in a bagged forest that classifies each factor, with
      columns that sum to one (Eastwood and Williams 2018). Disentanglement is 1 minus the
      entropy of a unit's row over the factors, in units of its maximum, weighted by the row's
      share of all importance; completeness is 1 minus the entropy of a factor's column over the
      units; informativeness is the forest's accuracy on a quarter of the rows, which it has not
      seen. One factor, or one unit, has no entropy: the score is then 1.

    All three compare single units: a code may be rotated, which changes all scores and not its
    information. Values are comparable for the same factors and numbers of rows only.

    Arguments:
        codes: Codes of shape ``(N, *event)``, for example the result of ``embed``.
        factors: The values of the factors, numbers of shape ``(N, K)``, such as
            ``tarspyro.data.sprites().factors``. Each has a few values, which are classes for MIG
            and DCI.
        categorical: The columns of factors whose values have no order.
        bins: The number of bins of each unit.
        seed: The seed of the forest and of the held-out rows.

    Raises:
        TypeError: If ``categorical`` is not a collection of columns.
        ValueError: If codes and factors differ in length, if a code is not finite, or if a
            factor has a single value, or more values than half the rows.

    Example:
        >>> import torch
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5)).repeat(10, 1)
        >>> round(disentanglement(2.0 * factors - 1.0, factors).mig, 6)
        1.0
        >>> rotated = torch.stack([factors.sum(1), factors[:, 0] - factors[:, 1]], 1)
        >>> disentanglement(rotated, factors).sap < 0.3
        True
    """
    units, values = _as_arrays(codes, factors)
    if not isinstance(categorical, Collection):
        raise TypeError(
            f"categorical must hold columns of factors, such as [0], got"
            f" {format_value(categorical)}."
        )
    categorical = set(categorical)
    unknown = sorted(categorical - set(range(values.shape[1])))
    if unknown:
        raise ValueError(
            f"categorical must hold columns of factors, 0 to {values.shape[1] - 1}, got"
            f" {unknown[0]}."
        )
    labels = np.stack([_labels(column, k) for k, column in enumerate(values.T)], 1)
    information = _mutual_information(_binned(units, as_count("bins", bins)), labels)
    entropy = np.array([_entropy(np.bincount(column)) for column in labels.T])
    predictability = _predictability(units, values, labels, categorical)
    importance, accuracy = _importance(units, labels, as_seed(seed))
    shares = importance.sum(1) / importance.sum()
    return Disentanglement(
        mig=float((_gap(information) / entropy).mean()),
        sap=float(_gap(predictability).mean()),
        dci_disentanglement=float(shares @ _concentration(importance)),
        dci_completeness=float(_concentration(importance.T).mean()),
        dci_informativeness=accuracy,
        mutual_information=information,
        predictability=predictability,
        importance=importance,
        entropy=entropy,
    )


def _as_arrays(codes: ArrayLike, factors: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    units = as_numbers("codes", codes).detach().cpu().double().numpy()
    values = as_numbers("factors", factors).detach().cpu().double().numpy()
    if units.ndim < 2 or not units.size:
        raise ValueError(f"codes must be of shape (N, *event), got {units.shape}.")
    if values.ndim != 2 or values.shape[0] != len(units) or not values.size:
        raise ValueError(
            f"factors must be of shape (N, K) with a row for each of {len(units)} codes, got"
            f" {values.shape}."
        )
    check_finite("codes", units)
    check_finite("factors", values)
    vectors: np.ndarray = units.reshape(len(units), -1)
    return vectors, values


def _labels(column: np.ndarray, k: int) -> np.ndarray:
    """Returns the values of a factor as integers from 0."""
    found, labels = np.unique(column, return_inverse=True)
    if len(found) < 2:
        raise ValueError(
            f"factors must each have two values or more, and column {k} has only"
            f" {format_value(float(found[0]))}: leave it out."
        )
    if 2 * len(found) > len(column):
        raise ValueError(
            f"factors must have values that repeat, and column {k} has {len(found)} different ones"
            f" in {len(column)} rows: divide it into a few, such as by np.digitize."
        )
    return np.asarray(labels)


def _binned(units: np.ndarray, bins: int) -> np.ndarray:
    """Returns the bin of each unit, of equal width between its least and its largest value."""
    low = units.min(0)
    width = units.max(0) - low
    share = (units - low) / np.where(width > 0, width, 1)
    return np.asarray(np.minimum((share * bins).astype(int), bins - 1))


def _entropy(counts: np.ndarray) -> float:
    """Returns the entropy of counts of any shape, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _mutual_information(units: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns I(z_u; v_k) = H(z_u) + H(v_k) - H(z_u, v_k)."""
    found = np.zeros((units.shape[1], labels.shape[1]))
    for u, unit in enumerate(units.T):
        for k, label in enumerate(labels.T):
            joint = np.zeros((unit.max() + 1, label.max() + 1))
            np.add.at(joint, (unit, label), 1)
            both = _entropy(joint)
            found[u, k] = _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - both
    return np.maximum(found, 0.0)


def _predictability(
    units: np.ndarray, values: np.ndarray, labels: np.ndarray, categorical: Collection[int]
) -> np.ndarray:
    """Returns R^2 or balanced accuracy of each factor by each unit; 0 for a constant unit."""
    found = np.zeros((units.shape[1], values.shape[1]))
    for u, unit in enumerate(units.T):
        if unit.std() < 1e-9 * max(1.0, float(np.abs(unit).max())):
            continue
        for k in range(values.shape[1]):
            if k in categorical:
                found[u, k] = _accuracy_of_thresholds(unit, labels[:, k])
            else:
                found[u, k] = np.corrcoef(unit, values[:, k])[0, 1] ** 2
    return found


def _accuracy_of_thresholds(unit: np.ndarray, label: np.ndarray) -> float:
    """Returns the balanced accuracy of a division of the unit's range, one part a class."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    classes = int(label.max()) + 1
    tree: Any = DecisionTreeClassifier(max_leaf_nodes=classes, class_weight="balanced")
    tree.fit(unit[:, None], label)
    return float(balanced_accuracy_score(label, tree.predict(unit[:, None])))


def _importance(units: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Returns the importance of units for factors, and the accuracy on held-out rows."""
    from sklearn.ensemble import RandomForestClassifier

    order = np.random.default_rng(seed).permutation(len(units))
    test, train = np.split(order, [max(1, int(_HELD_OUT * len(units)))])
    if not len(train):
        train = test  # a single row
    columns = []
    accuracies = []
    for label in labels.T:
        forest: Any = RandomForestClassifier(_TREES, max_features=None, random_state=seed)
        forest.fit(units[train], label[train])
        importance = forest.feature_importances_
        uniform = np.full(len(importance), 1 / len(importance))
        columns.append(importance if importance.sum() > 0 else uniform)
        accuracies.append(forest.score(units[test], label[test]))
    return np.stack(columns, 1), float(np.mean(accuracies))


def _gap(scores: np.ndarray) -> np.ndarray:
    """Returns the difference of the two largest scores of each column."""
    ordered = np.sort(np.concatenate([np.zeros((1, scores.shape[1])), scores]), 0)
    return np.asarray(ordered[-1] - ordered[-2])


def _concentration(rows: np.ndarray) -> np.ndarray:
    """Returns 1 minus the entropy of each row, in units of its maximum."""
    count = rows.shape[1]
    if count == 1:
        return np.ones(len(rows))
    entropies = np.array([_entropy(row) if row.sum() > 0 else np.log(count) for row in rows])
    return np.asarray(1 - entropies / np.log(count))
