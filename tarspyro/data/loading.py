"""Data read from files of the usual formats."""

__all__ = ["delimiter_of", "load", "text_of"]

import codecs
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.data.containers import Split
from tarspyro.data.files import MAX_BYTES, DataError, check_file, check_size
from tarspyro.data.image_folder import IMAGES, read_image_folder
from tarspyro.data.images import gunzip, read_idx
from tarspyro.data.matlab import read_matlab
from tarspyro.data.tables import Table, read_table

_MOST_PACKED = 100  # how many times smaller an array may be in an archive
_LABELS = ("y", "label", "labels", "target", "targets")


def load(
    path: str | os.PathLike[str],
    *,
    kinds: Mapping[str, str] | None = None,
    size: tuple[int, int] | None = None,
) -> Split | Table:
    """Reads data from a file or a folder.

    ======================  ==================================================================
    ``.npy``                An array, one row a data point.
    ``.npz``                An array, or inputs ``x`` and labels ``y``.
    ``.csv``, ``.tsv``      A table with columns of several kinds, see ``read_table``.
    ``.parquet``            The same, if pandas is installed.
    ``.mat``                The one array of a MATLAB file, or its ``x`` and ``y``.
    IDX, also ``.gz``       An array in the format of MNIST's files.
    A folder                Images, in [0, 1], of shape ``(N, channels, height, width)``, in
                            the order of their names. Sub-folders are labels. Images are turned
                            upright by their EXIF orientation, what is transparent is white,
                            and hidden files are left out.
    ======================  ==================================================================

    Arguments:
        path: The file or the folder.
        kinds: For a table, kinds of columns in place of those that are found.
        size: For images, the height and width to which all are scaled.

    Returns:
        A ``Split`` with inputs ``x`` and, if there are any, labels ``y``; or a ``Table``.

    Raises:
        DataError: If the file is missing, damaged, or of another format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/counts.npz", x=np.ones((5, 3)), y=np.arange(5))
        ...     split = load(f"{folder}/counts.npz")
        >>> split.x.shape, split.y
        (torch.Size([5, 3]), tensor([0, 1, 2, 3, 4]))
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be that of a file or a folder, got {format_value(path)}.")
    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(f"{file} does not exist: give the path of a file or a folder.")
    if file.is_dir():
        return read_image_folder(file, size)
    if not file.is_file():
        raise DataError(f"{file} cannot be read (it is no file).")
    check_file(file)
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        delimiter = delimiter_of(file)
        return read_table(text_of(file), delimiter=delimiter, kinds=kinds, source=str(file))
    if suffix == ".parquet":
        return _parquet(file, kinds)
    readers: dict[str, Callable[[Path], Split]] = {
        ".npy": _npy,
        ".npz": _npz,
        ".mat": _matlab,
    }
    if suffix in readers:
        try:
            return readers[suffix](file)
        except (ValueError, EOFError, OSError, KeyError, MemoryError) as error:
            if isinstance(error, DataError):
                raise
            reason = " ".join(str(error).split())
            raise DataError(f"{file} cannot be read ({reason}).") from error
    if suffix in IMAGES:
        raise DataError(f"{file} is one image: give the folder that holds the images.")
    if suffix == ".gz" or "idx" in file.name:
        return _idx(file)
    raise DataError(
        f"{file} has no format that is known here: give a .npy, .npz, .csv, .tsv, .parquet or"
        " .mat file, or a folder of images."
    )


def delimiter_of(file: Path) -> str | None:
    """Returns the character between the cells of a table, if the name of the file gives it."""
    return "\t" if file.suffix.lower() == ".tsv" else None


def text_of(file: Path) -> str:
    """Returns the text of a file in UTF-8, or else in Latin-1.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(2)
        if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # spreadsheets' "Unicode text"
            return file.read_text(encoding="utf-16", errors="replace")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return file.read_text(encoding="latin-1")
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from error


def as_rows(array: np.ndarray, source: str, *, labels: bool = False) -> Tensor:
    """Returns an array of numbers as a tensor with a row for each data point.

    Bytes stay bytes, and whole numbers that are labels stay whole. All other numbers are in
    single precision, counts too.

    Raises:
        DataError: If it holds something other than real numbers, or is a single number.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{source} holds {array.dtype}, which are no real numbers: save numbers instead."
        )
    if array.ndim == 0:
        raise DataError(f"{source} holds a single number: give a row for each data point.")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if labels and array.dtype.kind in "iu":
        array = array.astype(np.int64)
    elif array.dtype.kind in "iuf" and array.dtype != np.uint8:
        array = array.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array).copy())


def _npy(file: Path) -> Split:
    return Split(as_rows(np.load(file, allow_pickle=False), str(file)))


def _npz(file: Path) -> Split:
    with np.load(file, allow_pickle=False) as archive:
        # A small archive may hold gigabytes of zeros.
        for entry in archive.zip.infolist():
            if entry.file_size > max(MAX_BYTES, _MOST_PACKED * entry.compress_size):
                raise DataError(
                    f"{file} cannot be read ({entry.filename} has {entry.file_size} bytes, more"
                    f" than {_MOST_PACKED} times as many as in the archive)."
                )
            check_size(file, entry.file_size)
        names = list(archive.files)
        x, y = _inputs_and_labels(names, str(file))
        inputs = as_rows(archive[x], f"{file}: {x}")
        labels = None if y is None else as_rows(archive[y], f"{file}: {y}", labels=True)
    return _split(inputs, labels, str(file))


def _matlab(file: Path) -> Split:
    inputs = ("x", "X", "data")
    labels = ("y", "Y", "labels", "label")
    found = read_matlab(file.read_bytes(), [*inputs, *labels], some=True)
    x = next((name for name in inputs if found.get(name)), None)
    y = next((name for name in labels if found.get(name)), None)
    if x is None:
        raise DataError(f"{file} has no array x, X or data: save it under one of these names.")
    rows = as_rows(found[x][0], f"{file}: {x}")
    if y is None:
        return _split(rows, None, str(file))
    column = found[y][0].reshape(-1)
    return _split(rows, as_rows(column, f"{file}: {y}", labels=True), str(file))


def _inputs_and_labels(names: list[str], source: str) -> tuple[str, str | None]:
    """Returns the names of the inputs and of the labels among those of some arrays."""
    lowered = {name.lower(): name for name in names}
    label = next((lowered[name] for name in _LABELS if name in lowered), None)
    others = [name for name in names if name != label]
    for name in ("x", "data", "images", "inputs"):
        if name in lowered:
            return lowered[name], label
    if len(others) == 1:
        return others[0], label
    raise DataError(
        f"{source} holds the arrays {', '.join(names)}: name the data x, and labels y."
    )


def _split(inputs: Tensor, labels: Tensor | None, source: str) -> Split:
    if labels is not None and len(labels) != len(inputs):
        raise DataError(f"{source} has {len(inputs)} rows and {len(labels)} labels.")
    return Split(inputs, labels)


def _idx(file: Path) -> Split:
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gunzip(content)
    return Split(as_rows(read_idx(content, str(file)), str(file)))


def _parquet(file: Path, kinds: Mapping[str, str] | None) -> Table:
    try:
        import pandas
    except ImportError as error:
        raise DataError(f"{file} needs pandas: pip install pandas pyarrow.") from error
    try:
        frame = pandas.read_parquet(file)
    except Exception as error:  # engines raise errors of their own
        reason = " ".join(str(error).split())
        raise DataError(f"{file} cannot be read ({reason}).") from error
    return read_table(frame.to_csv(index=False), delimiter=",", kinds=kinds, source=str(file))
