"""Containers for the parts of a data set."""

__all__ = ["Dataset", "Regression", "Split"]

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_shape, format_fields
from tarspyro.data.rows import part_of


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Arrays, lists and tables become tensors. A memory map or a sparse matrix is not copied: its
    rows become tensors when they are used.

    Attributes:
        x: Images of shape ``(N, *event)`` with values in [0, 1]; in a ``Regression`` the
            standardized inputs, of shape (N, D).
        y: Labels of shape (N,), or None; in a ``Regression`` the standardized targets, of
            shape (N,).

    Raises:
        TypeError: If one of them does not hold numbers.
    """

    x: Tensor
    y: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                object.__setattr__(self, name, part_of(name, value))

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        parts = [f"{name} {_form(part)}" for name, part in vars(self).items()]
        return f"Split of {len(self)} rows: {', '.join(parts)}"

    def __getitem__(self, index: slice | Tensor) -> "Split":
        return Split(self.x[index], None if self.y is None else self.y[index])

    def reshape(self, *event_shape: int) -> "Split":
        """Returns the same images in another shape, such as ``split.reshape(1, 28, 28)``.

        Raises:
            ValueError: If that shape has another number of elements.
        """
        given = self.x.shape[1:]
        if given.numel() != as_shape("event_shape", event_shape).numel():
            raise ValueError(
                f"event_shape must have {given.numel()} elements, as the images of shape"
                f" {tuple(given)} have, got {event_shape}."
            )
        return Split(self.x.reshape(len(self.x), *event_shape), self.y)

    def one_hot(self, num_classes: int | None = None) -> "Split":
        """Returns the same data with one-hot labels, of shape (N, ``num_classes``).

        Arguments:
            num_classes: The number of classes; one more than the largest label if not given.

        Raises:
            ValueError: If there are no integer labels, or a label is not from 0 to
                ``num_classes`` - 1.

        Example:
            >>> from tarspyro.data import digits
            >>> digits().test.one_hot().y.shape
            torch.Size([360, 10])
        """
        y = self.y
        if y is None or y.is_floating_point() or y.dim() != 1 or not len(y):
            found = "none" if y is None else f"{y.dtype} of shape {tuple(y.shape)}"
            raise ValueError(f"one_hot needs integer labels y of shape (N,), got {found}.")
        smallest = int(y.min())
        largest = int(y.max())
        if num_classes is None:
            num_classes = largest + 1
        num_classes = as_count("num_classes", num_classes)
        if smallest < 0 or largest >= num_classes:
            raise ValueError(
                f"num_classes is {num_classes}, for labels from 0 to {num_classes - 1}, but"
                f" they are from {smallest} to {largest}."
            )
        return Split(self.x, torch.eye(num_classes)[y])


@dataclass(frozen=True)
class Dataset:
    """A data set of images in its parts."""

    name: str
    train: Split
    test: Split
    image_shape: tuple[int, int, int]
    validation: Split | None = None

    def __repr__(self) -> str:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        title = f"Dataset {self.name!r} of images of shape {tuple(self.image_shape)}"
        return format_fields(title, {k: v for k, v in parts.items() if v is not None})

    def reshape(self, *event_shape: int) -> "Dataset":
        """Returns the same data set with images of another shape, such as
        ``data.reshape(*data.image_shape)``.
        """
        return Dataset(
            self.name,
            self.train.reshape(*event_shape),
            self.test.reshape(*event_shape),
            self.image_shape,
            None if self.validation is None else self.validation.reshape(*event_shape),
        )

    def one_hot(self) -> "Dataset":
        """Returns the same data set with one-hot labels, the conditions that networks take."""
        train = self.train.one_hot()
        num_classes = 0 if train.y is None else train.y.shape[1]
        return Dataset(
            self.name,
            train,
            self.test.one_hot(num_classes),
            self.image_shape,
            None if self.validation is None else self.validation.one_hot(num_classes),
        )


@dataclass(frozen=True)
class Regression:
    """A regression data set in its parts, standardized by the mean and the standard deviation
    of the training part.

    In the target's own units a value is ``y_mean + y_scale * y``, an error is ``y_scale``
    times as large, and a log-likelihood is ``log(y_scale)`` nats lower.
    """

    name: str
    train: Split
    test: Split
    y_mean: float
    y_scale: float

    def __repr__(self) -> str:
        fields = {name: part for name, part in vars(self).items() if name != "name"}
        return format_fields(f"Regression data set {self.name!r}", fields)


def _form(part: object) -> str:
    """Returns the shape of a row and the type of its elements."""
    if not isinstance(part, (Tensor, np.ndarray)):
        return "None" if part is None else f"in a {type(part).__name__}"
    kind = str(part.dtype).removeprefix("torch.")
    shape = tuple(part.shape[1:])
    return f"{shape} {kind}" if shape else kind
