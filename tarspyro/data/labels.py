"""Few labels among many data points: which rows have one, and batches of rows with and
without.
"""

__all__ = ["PartlyLabelled", "labelled_subset"]

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tarspyro.arguments import as_count, as_numbers, as_seed


def labelled_subset(split: Any, num_labels: int, seed: int = 0) -> tuple[Any, Any]:
    """Returns the rows that keep their labels, equally many of each class, and all other rows.

    Arguments:
        split: A ``Split`` with labels.
        num_labels: How many rows keep them.
        seed: Another choice for every seed, the same for everybody.

    Raises:
        ValueError: If the split has no labels, or not as many of each class.

    Example:
        >>> from tarspyro.data import digits
        >>> labelled, rest = labelled_subset(digits().train, 100)
        >>> labelled.y.bincount().tolist(), len(rest)
        ([10, 10, 10, 10, 10, 10, 10, 10, 10, 10], 1337)
    """
    if getattr(split, "y", None) is None:
        raise ValueError("split has no labels: take one whose y is not None.")
    num_labels = as_count("num_labels", num_labels, 0)
    classes = split.y.unique().tolist()
    each, left_over = divmod(num_labels, len(classes))
    if each < 1 or left_over:
        raise ValueError(
            f"num_labels must be a multiple of the {len(classes)} classes, got {num_labels}."
        )
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(as_seed(seed)))
    chosen = torch.zeros(len(split), dtype=torch.bool)
    for label in classes:
        rows = order[split.y.cpu()[order] == label]
        if len(rows) < each:
            raise ValueError(
                f"num_labels asks for {each} rows of class {label}, and there are {len(rows)}."
            )
        chosen[rows[:each]] = True
    return split[chosen], split[~chosen]


class PartlyLabelled:
    """Batches (x, y, unlabelled): labelled rows x with one-hot labels y, and rows without
    labels, as ``fit`` takes.

    An epoch is one pass over the rows without labels, in another order each time; those that
    fill no batch wait for the next. The labelled rows come round as often as they must, each
    before any comes again.

    Arguments:
        labelled: A ``Split`` with labels 0, ..., K - 1.
        unlabelled: A ``Split``, or a tensor of rows.
        batch_size: How many unlabelled rows a batch has.
        labelled_batch_size: How many labelled ones; all of them, but at most ``batch_size``,
            if not given.
        num_classes: K; one more than the largest label if not given.
        binarize: Whether to draw black and white pixels anew for every batch, of both kinds of
            rows, with the grey values as probabilities. (``fit(binarize=True)`` draws those of
            x alone.)

    Raises:
        ValueError: If there are no labels, or too few rows for one batch.

    Example:
        >>> from tarspyro.data import digits
        >>> batches = PartlyLabelled(*labelled_subset(digits().train, 100), batch_size=200, labelled_batch_size=50)
        >>> x, y, unlabelled = next(iter(batches))
        >>> len(batches), x.shape, y.shape, unlabelled.shape
        (6, torch.Size([50, 64]), torch.Size([50, 10]), torch.Size([200, 64]))
    """

    def __init__(
        self,
        labelled: Any,
        unlabelled: Any,
        *,
        batch_size: int = 100,
        labelled_batch_size: int | None = None,
        num_classes: int | None = None,
        binarize: bool = False,
    ) -> None:
        if getattr(labelled, "y", None) is None or not len(labelled):
            raise ValueError(
                "labelled has no labels: take the first part of labelled_subset(...)."
            )
        self.unlabelled = as_numbers("unlabelled", getattr(unlabelled, "x", unlabelled))
        if self.unlabelled.shape[1:] != labelled.x.shape[1:] or not self.unlabelled.dim():
            raise ValueError(
                f"unlabelled must have rows of shape {tuple(labelled.x.shape[1:])} as labelled"
                f" has, got {tuple(self.unlabelled.shape)}."
            )
        if as_count("batch_size", batch_size, 0) not in range(1, len(self.unlabelled) + 1):
            raise ValueError(
                f"batch_size must be between 1 and {len(self.unlabelled)}, got {batch_size}."
            )
        least = min(len(labelled), batch_size)
        few = (
            least
            if labelled_batch_size is None
            else as_count("labelled_batch_size", labelled_batch_size)
        )
        self.batch_size, self.labelled_batch_size, self.binarize = batch_size, few, binarize
        classes = 1 + int(labelled.y.max())
        if num_classes is not None:
            classes = as_count("num_classes", num_classes, classes)
        self.x, self.y = labelled.x, one_hot(labelled.y, classes).to(labelled.x.dtype)

    def __len__(self) -> int:
        return len(self.unlabelled) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        count = len(self)
        rounds = -(-count * self.labelled_batch_size // len(self.x))
        order = torch.cat([torch.randperm(len(self.x)) for _ in range(rounds)])
        labelled = order.split(self.labelled_batch_size)
        unlabelled = torch.randperm(len(self.unlabelled)).split(self.batch_size)
        for few, many in zip(labelled[:count], unlabelled[:count], strict=True):
            x, rows = self.x[few], self.unlabelled[many]
            if self.binarize:
                x, rows = torch.bernoulli(x), torch.bernoulli(rows)
            yield x, self.y[few], rows
