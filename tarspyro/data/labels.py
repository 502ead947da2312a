"""Partly labelled data: the choice of the labelled rows, and batches of both kinds of rows."""

__all__ = ["PartlyLabelled", "labelled_subset"]

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tarspyro.arguments import as_count, as_seed
from tarspyro.data.containers import Split
from tarspyro.data.dense import dense


def labelled_subset(split: Split, num_labels: int, seed: int = 0) -> tuple[Split, Split]:
    """Returns the rows that keep their labels, equally many of each class, and all other rows.

    Arguments:
        split: A ``Split`` with labels.
        num_labels: The number of rows that keep their labels.
        seed: The seed of the choice. The same seed chooses the same rows on every machine.

    Raises:
        ValueError: If the split has no labels, or too few of a class.

    Example:
        >>> from tarspyro.data import digits
        >>> labelled, rest = labelled_subset(digits().train, 100)
        >>> labelled.y.bincount().tolist(), len(rest)
        ([10, 10, 10, 10, 10, 10, 10, 10, 10, 10], 1337)
    """
    y = getattr(split, "y", None)
    if y is None:
        raise ValueError("split has no labels: take one whose y is not None.")
    num_labels = as_count("num_labels", num_labels, 0)
    classes = y.unique().tolist()
    each, left_over = divmod(num_labels, len(classes))
    if each < 1 or left_over:
        raise ValueError(
            f"num_labels must be a multiple of the {len(classes)} classes, got {num_labels}."
        )

    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(as_seed(seed)))
    shuffled = y.cpu()[order]
    chosen = torch.zeros(len(split), dtype=torch.bool)
    for label in classes:
        rows = order[shuffled == label]
        if len(rows) < each:
            raise ValueError(
                f"num_labels asks for {each} rows of class {label}, and there are {len(rows)}."
            )
        chosen[rows[:each]] = True
    return split[chosen], split[~chosen]


class PartlyLabelled:
    """Batches (x, y, unlabelled) for ``fit``: labelled rows x, their one-hot labels y, and
    rows without labels.

    An epoch is one pass over the rows without labels, in a new order each time; rows that do
    not fill a batch wait for the next epoch. The labelled rows are repeated as often as an
    epoch needs, and each of them comes once before any comes again.

    Arguments:
        labelled: A ``Split`` with labels 0, ..., K - 1.
        unlabelled: A ``Split``, or a tensor of rows.
        batch_size: The number of unlabelled rows in a batch.
        labelled_batch_size: The number of labelled rows in a batch; if not given, all of them,
            but at most ``batch_size``.
        num_classes: K; one more than the largest label if not given.
        binarize: Whether to draw binary pixels of both kinds of rows anew for every batch,
            with the grey values as probabilities. (``fit(binarize=True)`` draws those of x
            alone.)

    Raises:
        ValueError: If there are no labels, or too few rows for one batch.

    Example:
        >>> from tarspyro.data import digits
        >>> parts = labelled_subset(digits().train, 100)
        >>> batches = PartlyLabelled(*parts, batch_size=200, labelled_batch_size=50)
        >>> x, y, unlabelled = next(iter(batches))
        >>> len(batches), x.shape, y.shape, unlabelled.shape
        (6, torch.Size([50, 64]), torch.Size([50, 10]), torch.Size([200, 64]))
    """

    def __init__(
        self,
        labelled: Split,
        unlabelled: Split | Tensor,
        *,
        batch_size: int = 100,
        labelled_batch_size: int | None = None,
        num_classes: int | None = None,
        binarize: bool = False,
    ) -> None:
        labels = getattr(labelled, "y", None)
        if labels is None or not len(labelled):
            raise ValueError(
                "labelled has no labels: take the first part of labelled_subset(...)."
            )
        rows = dense("unlabelled", unlabelled)
        if rows.shape[1:] != labelled.x.shape[1:] or not rows.dim():
            raise ValueError(
                f"unlabelled must have rows of shape {tuple(labelled.x.shape[1:])} as labelled"
                f" has, got {tuple(rows.shape)}."
            )
        batch_size = as_count("batch_size", batch_size, most=len(rows))
        if labelled_batch_size is None:
            labelled_batch_size = min(len(labelled), batch_size)
        num_labels = 1 + int(labels.max())
        if num_classes is None:
            num_classes = num_labels

        self.x = labelled.x
        self.y = one_hot(labels, as_count("num_classes", num_classes, num_labels)).to(
            labelled.x.dtype
        )
        self.unlabelled = rows
        self.batch_size = batch_size
        self.labelled_batch_size = as_count("labelled_batch_size", labelled_batch_size)
        self.binarize = binarize

    def __len__(self) -> int:
        return len(self.unlabelled) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        count = len(self)
        rounds = -(-count * self.labelled_batch_size // len(self.x))
        order = torch.cat([torch.randperm(len(self.x)) for _ in range(rounds)])
        labelled = order.split(self.labelled_batch_size)
        unlabelled = torch.randperm(len(self.unlabelled)).split(self.batch_size)
        for few, many in zip(labelled[:count], unlabelled[:count], strict=True):
            x = self.x[few]
            rows = self.unlabelled[many]
            if self.binarize:
                x = torch.bernoulli(x)
                rows = torch.bernoulli(rows)
            yield x, self.y[few], rows
