"""Rows that are read when they are used: of files that are mapped into memory, and of sparse
matrices.
"""

__all__ = ["ChosenRows", "LazyRows", "SparseRows", "StoredRows", "part_of", "stored"]

import math
import mmap
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.format import MAGIC_PREFIX
from torch import Tensor

from tarspyro.arguments import as_numbers, format_value

_SPARSE = (
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
)


class LazyRows(ABC):
    """Rows of data that become dense tensors in memory when they are used.

    Attributes:
        shape: The shape of all rows together, ``(N, *event)``.
        dtype: The type of their numbers.
        waits: Whether rows are read from a file, so that reading may wait for a disk.
    """

    shape: torch.Size
    dtype: torch.dtype
    waits: bool = False

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        """Returns some of the rows as a dense tensor, chosen as those of a tensor are: by a
        slice, a number, numbers, or a mask.
        """
        if isinstance(rows, slice) and (rows.step is None or rows.step > 0):
            return self.made_of(self.read(rows))
        if isinstance(rows, slice):
            rows = range(len(self))[rows]
        index = torch.as_tensor(rows)
        if index.dtype is torch.bool:
            index = self._chosen_by(index)
        if not index.dim():
            return self[index[None]][0]
        if index.is_floating_point() and len(index):
            raise IndexError(f"rows are chosen by whole numbers, got {format_value(rows)}.")
        index = index.long()  # that of an empty list is a float
        return self.made_of(self.read(index.where(index >= 0, index + len(self))))

    def _chosen_by(self, mask: Tensor) -> Tensor:
        """Returns the places of the rows that a mask chooses."""
        if mask.shape != self.shape[:1]:
            raise IndexError(
                f"a mask of rows must have the shape ({len(self)},), got {tuple(mask.shape)}."
            )
        return mask.nonzero().squeeze(1)

    @abstractmethod
    def read(self, rows: slice | Tensor) -> Tensor:
        """Returns the numbers of some rows as they are kept."""

    def made_of(self, numbers: Tensor) -> Tensor:
        """Returns the rows that are made of numbers as they are kept."""
        return numbers

    def to(self, device: torch.device) -> "LazyRows":
        """Returns the rows, kept on a device if they are small."""
        return self

    def reshape(self, *shape: int) -> "LazyRows":
        """Returns the rows in another shape, ``rows.reshape(len(rows), *event)``."""
        return _Reshaped(self, shape[1:])

    def __repr__(self) -> str:
        return f"{type(self).__name__} of shape {tuple(self.shape)}, {self.dtype}"


class StoredRows(LazyRows):
    """The rows of an array that lies in a file.

    Arguments:
        array: A ``numpy.memmap``, or an array of h5py or zarr.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.arange(6.0).reshape(3, 2))
        ...     x = np.load(f"{folder}/x.npy", mmap_mode="r", allow_pickle=False)
        ...     StoredRows(x)[torch.tensor([2, 0])]
        tensor([[4., 5.],
                [0., 1.]], dtype=torch.float64)
    """

    waits = True

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape = torch.Size(array.shape)
        self.dtype = as_numbers("data", np.zeros(0, array.dtype)).dtype
        self._map = _map_of(array)
        self._scattered = False

    def read(self, rows: slice | Tensor) -> Tensor:
        self._advise(scattered=not isinstance(rows, slice))
        if isinstance(rows, slice):
            return as_numbers("data", np.array(self.array[rows]))
        # Files are read in their order, and each row once.
        index, places = np.unique(rows.cpu().numpy(), return_inverse=True)
        return as_numbers("data", np.asarray(self.array[index])[places])

    def _advise(self, *, scattered: bool) -> None:
        """Tells the system whether to read ahead, which makes scattered rows slow."""
        if (
            self._map is not None
            and scattered != self._scattered
            and hasattr(mmap, "MADV_RANDOM")
        ):
            self._map.madvise(mmap.MADV_RANDOM if scattered else mmap.MADV_NORMAL)
            self._scattered = scattered


class ChosenRows(LazyRows):
    """Other rows, or some of them, passed through a function when they are used.

    Arguments:
        rows: The rows to choose from.
        index: The places of the chosen ones; None for all.
        function: A function of a batch of rows.

    Example:
        >>> rows = SparseRows.of_tensor(torch.eye(3).to_sparse())
        >>> ChosenRows(rows, torch.tensor([2, 0]), lambda x: 10 * x)[:1]
        tensor([[ 0.,  0., 10.]])
    """

    def __init__(
        self, rows: LazyRows, index: Tensor | None, function: Callable[[Tensor], Tensor]
    ) -> None:
        self.rows = rows
        self.index = index
        self.function = function
        self.waits = rows.waits
        first = self[:1]
        self.shape = torch.Size((len(rows if index is None else index), *first.shape[1:]))
        self.dtype = first.dtype

    def read(self, rows: slice | Tensor) -> Tensor:
        if self.index is None:
            return self.rows.read(rows)
        return self.rows.read(self.index[rows if isinstance(rows, slice) else rows.cpu()])

    def made_of(self, numbers: Tensor) -> Tensor:
        return self.function(self.rows.made_of(numbers))


def stored(array: Any, function: Callable[[Tensor], Tensor] | None = None) -> LazyRows:
    """Returns the rows of an array in a file, which are read when they are used.

    If the disk is slow, ``fit`` reads the rows of the next batches while a step computes.

    Arguments:
        array: A ``numpy.memmap``, an array of h5py or zarr, or the path of a ``.npy`` file.
        function: A function of a batch of rows, to scale bytes, say. It returns as many rows.

    Raises:
        TypeError: If the array does not lie in a file, or the function cannot be called.
        ValueError: If the path is that of another file, or the function does not return a row
            for each row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/images.npy", np.full((1000, 784), 255, np.uint8))
        ...     x = stored(f"{folder}/images.npy", lambda pixels: pixels / 255)
        ...     x[torch.tensor([7, 3])].mean(1)
        tensor([1., 1.])
    """
    if isinstance(array, (str, os.PathLike)):
        with open(array, "rb") as file:
            is_array = file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX
        if not is_array:
            raise ValueError(
                f"array must be the path of a .npy file, got {format_value(os.fspath(array))}:"
                " read other files with tarspyro.data.load."
            )
        array = np.load(array, mmap_mode="r", allow_pickle=False)
    if not is_stored(array):
        raise TypeError(
            f"array must lie in a file, got {format_value(array)}: give the path of a .npy file, or"
            " its memory map."
        )
    rows = StoredRows(array)
    if function is None:
        return rows
    if not callable(function):
        raise TypeError(
            "function must be a function of a batch of rows, such as lambda x: x / 255, got"
            f" {format_value(function)}."
        )
    few = rows[:2]
    made = function(few)
    if not torch.is_tensor(made) or made.shape[:1] != few.shape[:1]:
        raise ValueError(
            f"function must return a tensor with a row for each row, got {format_value(made)} of"
            f" rows of shape {tuple(few.shape)}."
        )
    return ChosenRows(rows, None, function)


class SparseRows(LazyRows):
    """The rows of a sparse matrix, in the compressed form of rows.

    Arguments:
        starts: Where the entries of each row begin, and where the last ones end, of shape
            (N + 1,).
        columns: The column of each entry.
        values: The value of each entry. Entries at the same place add up.
        event_shape: The shape of a row, whose columns are counted in its flat form.

    Example:
        >>> matrix = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]]).to_sparse()
        >>> rows = SparseRows.of_tensor(matrix)
        >>> rows[torch.tensor([2, 0])]
        tensor([[1., 0.],
                [0., 2.]])
    """

    def __init__(
        self, starts: Tensor, columns: Tensor, values: Tensor, event_shape: Sequence[int]
    ) -> None:
        self.starts = starts
        self.columns = columns
        self.values = values.byte() if values.dtype is torch.bool else values
        self.shape = torch.Size([len(starts) - 1, *event_shape])
        self.dtype = self.values.dtype

    @classmethod
    def of_matrix(cls, matrix: Any) -> "SparseRows":
        """Returns the rows of a sparse matrix of SciPy."""
        rows = matrix.tocsr()
        starts = torch.as_tensor(rows.indptr.astype(np.int64))
        columns = as_numbers("data", rows.indices)
        return cls(starts, columns, as_numbers("data", rows.data), matrix.shape[1:])

    @classmethod
    def of_tensor(cls, tensor: Tensor) -> "SparseRows":
        """Returns the rows of a sparse tensor of any layout."""
        entries = tensor.detach().to_sparse_coo().coalesce()
        if entries.dense_dim():
            entries = entries.to_dense().to_sparse_coo().coalesce()
        row, *others = entries.indices()
        column = torch.zeros_like(row)
        for index, size in zip(others, tensor.shape[1:], strict=True):
            column = column * size + index
        starts = torch.zeros(len(tensor) + 1, dtype=torch.int64, device=row.device)
        starts[1:] = row.bincount(minlength=len(tensor)).cumsum(0)
        return cls(starts, column, entries.values(), tensor.shape[1:])

    def read(self, rows: slice | Tensor) -> Tensor:
        if isinstance(rows, slice):
            rows = torch.arange(len(self), device=self.starts.device)[rows]
        rows = rows.to(self.starts.device)
        starts = self.starts[rows]
        counts = self.starts[rows + 1] - starts
        # The places of the rows' entries: one run of numbers for each row.
        first = counts.cumsum(0) - counts
        places = torch.arange(int(counts.sum()), device=starts.device)
        places += (starts - first).repeat_interleave(counts)
        owners = torch.arange(len(rows), device=starts.device).repeat_interleave(counts)
        dense = self.values.new_zeros(len(rows), math.prod(self.shape[1:]))
        index = (owners, self.columns[places].long())
        dense.index_put_(index, self.values[places], accumulate=True)
        return dense.reshape(len(rows), *self.shape[1:])

    def to(self, device: torch.device) -> "SparseRows":
        """Returns the rows with their entries on a device."""
        return SparseRows(
            self.starts.to(device),
            self.columns.to(device),
            self.values.to(device),
            self.shape[1:],
        )


class _Reshaped(LazyRows):
    """Rows in another shape."""

    def __init__(self, rows: LazyRows, event_shape: Sequence[int]) -> None:
        self.rows = rows
        self.shape = torch.Size([len(rows), *event_shape])
        self.dtype = rows.dtype
        self.waits = rows.waits

    def read(self, rows: slice | Tensor) -> Tensor:
        return self.rows.read(rows)

    def made_of(self, numbers: Tensor) -> Tensor:
        dense = self.rows.made_of(numbers)
        return dense.reshape(len(dense), *self.shape[1:])

    def to(self, device: torch.device) -> LazyRows:
        return _Reshaped(self.rows.to(device), self.shape[1:])


def part_of(name: str, value: object) -> Tensor | LazyRows:
    """Returns numbers with a row for each data point: a tensor, or rows that are read later.

    Arrays in files and sparse matrices are never copied as a whole.

    Raises:
        TypeError: If the value does not hold real numbers.
    """
    if isinstance(value, LazyRows):
        return value
    if isinstance(value, Tensor):
        if value.layout in _SPARSE:
            return SparseRows.of_tensor(value)
        return as_numbers(name, value)
    if is_stored(value):
        return StoredRows(value)
    if hasattr(value, "tocsr"):
        return SparseRows.of_matrix(value)
    sparse: Any = getattr(value, "sparse", None)  # a DataFrame may have sparse columns
    if hasattr(sparse, "to_coo"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SparseRows.of_matrix(sparse.to_coo())
    return as_numbers(name, value)


def _map_of(array: object) -> mmap.mmap | None:
    """Returns the memory map that an array, or what it is a view of, lies in."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array if isinstance(array, mmap.mmap) else None


def is_stored(value: object) -> bool:
    """Returns whether an array with rows lies in a file."""
    if isinstance(value, np.ndarray):
        return _map_of(value) is not None and value.ndim > 0 and value.dtype.kind in "biuf"
    for library, kind in (("h5py", "Dataset"), ("zarr", "Array")):
        module = sys.modules.get(library)
        if module is not None and isinstance(value, getattr(module, kind)):
            return True
    return False
