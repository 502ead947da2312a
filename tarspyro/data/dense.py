"""Any data of one kind of rows as one tensor."""

__all__ = ["dense"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tarspyro.arguments import as_numbers
from tarspyro.data.containers import Split
from tarspyro.data.rows import LazyRows, part_of
from tarspyro.data.sequences import Sequences
from tarspyro.data.tables import Table


def dense(name: str, data: object) -> Tensor:
    """Returns the rows of data in one tensor; of several parts, those of the first one.

    Raises:
        TypeError: If they are not numbers, or differ in shape.

    Example:
        >>> dense("x", Split([[1.0, 2.0], [3.0, 4.0]], [0, 1])).shape
        torch.Size([2, 2])
    """
    if isinstance(data, (Split, Sequences, Table)):
        data = data.x
    elif isinstance(data, TensorDataset):
        data = data.tensors[0]
    elif isinstance(data, Mapping):
        data = _first(data)
    elif isinstance(data, DataLoader):
        return torch.cat([as_numbers(name, _first(batch)) for batch in data])
    elif isinstance(data, IterableDataset):
        data = [as_numbers(name, _first(row)) for row in data]
    elif isinstance(data, Dataset):
        rows: Any = data
        data = [as_numbers(name, _first(rows[index])) for index in range(len(rows))]
    part = part_of(name, data)
    return part[:] if isinstance(part, LazyRows) else part


def _first(item: object) -> object:
    """Returns the first part of a row or a batch; of parts by name, x."""
    if isinstance(item, Mapping) and item:
        return item["x"] if "x" in item else next(iter(item.values()))
    return item[0] if isinstance(item, (tuple, list)) and len(item) else item
