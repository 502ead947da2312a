"""Type aliases of the arguments that users give: programs, data, devices, shapes."""

__all__ = [
    "ArrayLike",
    "Argument",
    "Arguments",
    "Data",
    "Device",
    "Distribution",
    "Json",
    "Program",
    "Rows",
    "Shape",
    "Size",
]

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

# A Pyro program: a function or a module that samples from sites. It takes the data, and may
# return anything.
Program: TypeAlias = Callable[..., Any]

# An argument of a program; None if it is not observed.
Argument: TypeAlias = Tensor | None
Arguments: TypeAlias = tuple[Argument, ...]

# Numbers that ``torch.as_tensor`` takes.
ArrayLike: TypeAlias = Tensor | np.ndarray | float | Sequence[Any]


class Rows(Protocol):
    """Data with rows by index, such as a ``Split``, ``Sequences`` or a data set of torch."""

    def __len__(self) -> int:
        """Returns the number of rows."""

    def __getitem__(self, index: Any, /) -> object:
        """Returns some of the rows."""


# Data as users give it: tensors and arrays, parts by position or by name, data sets, batches.
Data: TypeAlias = ArrayLike | Mapping[str, ArrayLike | None] | Iterable[Any] | Rows

# A distribution of tensors that Pyro can sample from, such as ``pyro.distributions.Normal``.
Distribution: TypeAlias = TorchDistributionMixin

Device: TypeAlias = str | torch.device

# A shape as the methods of distributions take it.
Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]

# The shape of an event, as one size or several.
Size: TypeAlias = int | Sequence[int] | torch.Size

# A value that JSON can hold.
Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"
