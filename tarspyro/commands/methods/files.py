"""Data of the user's own: what a file or a folder holds, and its parts."""

__all__ = [
    "Contents",
    "OwnData",
    "Reading",
    "cells_of_file",
    "load_own",
    "open_file",
    "stamp",
    "without_padding",
]

import contextlib
import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tarspyro
from tarspyro.commands.methods.layout import (
    Layout,
    default_family,
    lay_out,
    look_at,
    reordered,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tarspyro.commands.methods.method import Method
    from tarspyro.data import Column, Split, Table
    from tarspyro.data.rows import LazyRows

# Files above this size are read when their rows are needed.
_LARGE = 1 << 30
# The most rows that validate, and that test.
_HELD_OUT = 10_000
# A whole number from 0 up is a count if small ones occur, and otherwise a measurement.
_SMALL_COUNT = 1
# Names of columns that number the rows, if all of their values differ.
_NUMBERS = ("id", "index", "row", "unnamed: 0")
# Labels with more values than these are no classes.
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Contents:
    """The content of a file: values, labels, columns and lengths.

    Attributes:
        path: Its path.
        x: The values, a row for each data point; of a table with the columns of one kind side
            by side.
        y: Labels or targets, of shape (N,), if there are any.
        table: The columns, if it is a table.
        order: The names of the columns in the file, without the target.
        lengths: The number of steps of each sequence, if it holds sequences.
        classes: The names of the classes, if the file names them.
        target: The name of the target.
        notes: Sentences on what was left out.
    """

    path: str
    x: Any
    y: "Tensor | None" = None
    table: "Table | None" = None
    order: tuple[str, ...] = ()
    lengths: "Tensor | None" = None
    classes: tuple[str, ...] = ()
    target: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: "Tensor") -> "Tensor":
        """Returns some rows of the values."""
        import torch

        return self.x[index] if torch.is_tensor(self.x) else self.stored()[index]

    def stored(self) -> "LazyRows":
        """Returns the values of a large array, which are read as needed."""
        from tarspyro.data.rows import StoredRows

        return StoredRows(self.x)


@dataclass(frozen=True)
class OwnData:
    """A file in its parts: a tenth of the rows tests and a tenth validates, at most 10,000
    each, drawn with a fixed seed.

    Attributes:
        contents: What the file holds.
        layout: How its values become x.
        sizes: The number of rows that train, validate and test.
        train: x of the rows that train, or of some of them if they are read as needed.
        validation: x of the rows that validate.
        test: x of the rows that test.
        as_needed: x of all rows that train, if they are read as needed.
    """

    contents: Contents
    layout: Layout
    sizes: tuple[int, int, int]
    train: "tuple[Tensor, ...]"
    validation: "tuple[Tensor, ...]"
    test: "tuple[Tensor, ...]"
    as_needed: "LazyRows | None" = None

    @property
    def sentence(self) -> str:
        """A sentence about the division of the rows."""
        train, validation, test = self.sizes
        return (
            f"{train + validation + test} rows, divided with a fixed seed: {train} train,"
            f" {validation} validate, {test} test"
        )


def load_own(
    path: str, method: "Method", layout: Layout | None = None, *, sequences: bool = False
) -> OwnData:
    """Returns a file in its parts, as the method takes it.

    Arguments:
        path: The file or the folder.
        method: The method, with its settings.
        layout: The layout of the training; found from the values if not given.
        sequences: Whether the method takes sequences.

    Raises:
        ValueError: If the method cannot take what the file holds.
    """
    import torch

    from tarspyro.data.rows import ChosenRows

    contents = open_file(
        path,
        Reading(
            getattr(method, "target", None),
            method.rows,
            None if method.size is None else tuple(method.size),
            tuple(method.without or ()),
            sequences,
        ),
        layout,
    )
    count = len(contents)
    if count < 10:
        raise ValueError(
            f"{path} has {count} rows, and a training needs at least 10: some of them validate"
            " and test."
        )
    if method.classes:
        contents = as_classes(contents)
    held_out = min(count // 10, _HELD_OUT)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    test, validation, train = order.split([held_out, held_out, count - 2 * held_out])
    if layout is None:
        layout = _layout_of(contents, train, method)
    method.check_takes(path, layout)

    lazy = not torch.is_tensor(contents.x)
    parts = [
        _part(contents, layout, rows)
        for rows in (train[:_HELD_OUT] if lazy else train, validation, test)
    ]
    sizes = (len(train), held_out, held_out)
    as_needed = ChosenRows(contents.stored(), train, layout.apply) if lazy else None
    return OwnData(contents, layout, sizes, parts[0], parts[1], parts[2], as_needed)


def _part(contents: Contents, layout: Layout, rows: "Tensor") -> "tuple[Tensor, ...]":
    """Returns x of some rows, with their lengths or their labels if there are any."""
    rows = rows.sort().values
    x = layout.apply(contents.rows(rows))
    if contents.lengths is not None:
        lengths = contents.lengths[rows]
        return without_padding(x, lengths), lengths
    return (x,) if contents.y is None else (x, contents.y[rows])


def without_padding(x: "Tensor", lengths: "Tensor") -> "Tensor":
    """Returns sequences with zeros after their ends."""
    import torch

    inside = torch.arange(x.shape[1]) < lengths[:, None]
    return x.where(inside.reshape(*inside.shape, *[1] * (x.dim() - 2)), torch.zeros(()))


def _layout_of(contents: Contents, train: "Tensor", method: "Method") -> Layout:
    """Returns the layout of a file that is read for the first time."""
    import torch

    some = contents.rows(train[:_HELD_OUT].sort().values)
    kind = "a table"
    channels = "none"
    if contents.lengths is not None:
        kind = "sequences"
        lengths = contents.lengths[train[:_HELD_OUT].sort().values]
        values = some[torch.arange(some.shape[1]) < lengths[:, None]]
    elif some.dim() > 2:
        kind = "images"
        channels = _channels(tuple(some.shape[1:]), contents.path)
        values = Layout("", kind, "", (), channels=channels).arranged(some)
    else:
        values = some if some.dim() == 2 else some[:, None]

    seen = look_at(values, image=kind == "images", table=contents.table)
    family = method.family_of(seen) or default_family(seen)
    layout = lay_out(
        values,
        seen,
        family,
        kind,
        channels=channels,
        table=contents.table,
        order=contents.order,
    )
    if kind == "sequences":
        layout = replace(layout, shape=tuple(some.shape[2:]))
    return replace(layout, target=contents.target, classes=contents.classes)


def _channels(shape: tuple[int, ...], path: str) -> str:
    """Returns where the channels of images stand."""
    if len(shape) == 2:
        return "none"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "first"
    if len(shape) == 3 and shape[-1] in (1, 3, 4):
        return "last"
    raise ValueError(
        f"{path} has rows of shape {shape}, which are neither images (height, width), with 1, 3"
        " or 4 channels before or after them, nor rows of a table: save them in one of these"
        " shapes."
    )


# --- reading


@dataclass(frozen=True)
class Reading:
    """The options for reading a file or a folder.

    Attributes:
        target: A column of a table, or a file, with the labels or targets.
        rows: How many rows to read, evenly spaced; all if None.
        size: The height and width to which the images of a folder are scaled.
        without: The columns of a table to leave out.
        sequences: Whether it holds sequences.
    """

    target: str | None = None
    rows: int | None = None
    size: tuple[int, ...] | None = None
    without: tuple[str, ...] = ()
    sequences: bool = False


def open_file(path: str, reading: Reading, layout: Layout | None = None) -> Contents:
    """Returns the contents of a file or a folder.

    Arguments:
        path: The file or the folder.
        reading: How it is read.
        layout: The layout of a training, whose columns the table must have.
    """
    file = Path(path).expanduser()
    contents = _sequences(file)
    if contents is not None and not reading.sequences:
        raise ValueError(
            f"{path} holds sequences, which vrnn and deep-markov-model train on: train one of"
            " them, or save one array x with a row for each data point."
        )
    contents = contents or _large(file) or _sparse(file) or _loaded(file, reading, layout)
    if reading.sequences and contents.lengths is None:
        contents = _as_sequences(contents)
    if reading.target is not None and contents.target is None and layout is None:
        contents = _with_labels(contents, reading.target)
    if layout is not None and layout.classes and contents.y is not None:
        contents = replace(contents, y=_known_classes(contents, layout.classes))
    return contents if reading.rows is None else _spaced(contents, reading.rows)


def _spaced(contents: Contents, rows: int) -> Contents:
    """Returns evenly spaced rows of the contents of a file."""
    count = min(rows, len(contents))
    step = len(contents) // count
    chosen = slice(0, count * step, step)
    return replace(
        contents,
        x=contents.x[chosen],
        y=None if contents.y is None else contents.y[chosen],
        lengths=None if contents.lengths is None else contents.lengths[chosen],
    )


def _large(file: Path) -> Contents | None:
    """Returns the contents of a file with a large array, without reading it."""
    import numpy as np

    if file.suffix.lower() != ".npy" or not file.is_file() or file.stat().st_size < _LARGE:
        return None
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if array.dtype.kind not in "biuf" or array.ndim < 2:
        return None
    return Contents(str(file), array)


def _native(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Returns numbers of a type that torch has."""
    import numpy as np

    if array.dtype == np.uint8:
        return array
    return array.astype(np.float32)


def _sparse(file: Path) -> Contents | None:
    """Returns the contents of a file with a sparse matrix of SciPy."""
    import numpy as np

    if file.suffix.lower() != ".npz" or not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as archive:
        if not {"format", "shape"} <= set(archive.files):
            return None
    import torch
    from scipy.sparse import load_npz

    return Contents(str(file), torch.from_numpy(_native(load_npz(file).toarray())))


def _sequences(file: Path) -> Contents | None:
    """Returns the sequences of an .npz file that holds one array for each, or an array with
    their lengths; or those of a cell array in a .mat file.
    """
    import numpy as np

    if file.suffix.lower() == ".mat" and file.is_file():
        from tarspyro.data.matlab import read_matlab

        for name in ("x", "X", "data", "sequences"):
            with contextlib.suppress(ValueError):
                parts = read_matlab(file.read_bytes(), [name])[name]
                return _padded(file, parts) if len(parts) > 1 else None
    if file.suffix.lower() != ".npz" or not file.is_file():
        return None
    import torch

    with np.load(file, allow_pickle=False) as archive:
        names = list(archive.files)
        if {"x", "lengths"} <= set(names):
            x = torch.from_numpy(_native(archive["x"]))
            lengths = torch.from_numpy(archive["lengths"].astype(np.int64))
            return Contents(str(file), tarspyro.data.Sequences(x, lengths).x, lengths=lengths)
        if len(names) < 3 or "x" in names:
            return None
        parts = [archive[name] for name in names]
    return _padded(file, parts)


def _padded(file: Path, parts: "Sequence[np.ndarray[Any, Any]]") -> Contents | None:
    """Returns arrays (steps, features) as sequences; None if they are something else."""
    if any(part.dtype.kind not in "biuf" or part.ndim not in (1, 2) for part in parts):
        return None
    parts = [_native(part)[:, None] if part.ndim == 1 else _native(part) for part in parts]
    if len({part.shape[1] for part in parts}) > 1:
        return None
    padded = tarspyro.data.Sequences.padded(parts)
    return Contents(str(file), padded.x, lengths=padded.lengths)


def _as_sequences(contents: Contents) -> Contents:
    """Returns an array (N, T, features) as sequences of one length; images stay images."""
    import torch

    x = contents.x
    if contents.table is not None or x.ndim != 3 or x.dtype == torch.uint8:
        return contents
    return replace(contents, lengths=torch.full((len(x),), x.shape[1]), y=None)


def _loaded(file: Path, reading: Reading, layout: Layout | None) -> Contents:
    """Returns the contents of a file that ``tarspyro.data.load`` reads."""
    loaded: Split | Table | None = None
    empty: tuple[str, ...] = ()
    rows = _chosen_cells(file, reading, layout)
    if rows is not None:
        empty = _empty(rows) if layout is not None else ()
        loaded = _read_cells(file, rows, empty)
    if loaded is None:
        if reading.size is not None and len(reading.size) != 2:
            raise ValueError("--size is a height and a width, such as --size 32 32.")
        size = None if reading.size is None else (reading.size[0], reading.size[1])
        loaded = tarspyro.data.load(file, size=size)
    if isinstance(loaded, tarspyro.data.Table):
        return _table(str(file), loaded, reading.target, layout, empty)
    classes: tuple[str, ...] = ()
    if file.is_dir() and loaded.y is not None:
        folders = sorted(p.name for p in file.iterdir() if p.is_dir() and p.name[0] != ".")
        if len(folders) == int(loaded.y.max()) + 1:
            classes = tuple(folders)
    if loaded.x.dim() < 2:
        loaded = tarspyro.data.Split(loaded.x[:, None], loaded.y)
    return Contents(str(file), loaded.x, loaded.y, classes=classes)


def _chosen_cells(
    file: Path, reading: Reading, layout: Layout | None
) -> list[list[str]] | None:
    """Returns the cells of some columns of a table, below their names; None if the file holds
    no table with names, or all columns are read.
    """
    if file.suffix.lower() not in (".csv", ".tsv", ".txt") or not file.is_file():
        return None
    choice = reading.without if layout is None else layout.columns
    if not choice:
        return None

    rows = cells_of_file(file)
    names = [name or f"column {index + 1}" for index, name in enumerate(rows[0])]
    for name in reading.without:
        if name not in names:
            raise ValueError(
                f"--without {name}: {file} has no such column, it has {', '.join(names)}."
            )
    if layout is None:
        kept = [index for index, name in enumerate(names) if name not in reading.without]
    elif set(layout.order) <= set(names):
        wanted = {*layout.order, layout.target}
        kept = [index for index, name in enumerate(names) if name in wanted]
    else:
        return None
    chosen = [[row[index] for index in kept if index < len(row)] for row in rows[1:]]
    return [[names[index] for index in kept], *chosen]


def _empty(rows: list[list[str]]) -> tuple[str, ...]:
    """Returns the names of the columns without a value."""
    names, *cells = rows
    return tuple(
        name
        for index, name in enumerate(names)
        if not any(row[index] for row in cells if index < len(row))
    )


def _read_cells(file: Path, rows: list[list[str]], empty: tuple[str, ...]) -> "Table":
    """Returns the table of some cells, without empty columns. A row without values stays one."""
    kept = [index for index, name in enumerate(rows[0]) if name not in empty]
    text = io.StringIO()
    csv.writer(text).writerows(
        [row[index] or "NA" for index in kept if index < len(row)] for row in rows
    )
    return tarspyro.data.read_table(text.getvalue(), delimiter=",", source=str(file))


def cells_of_file(file: Path) -> list[list[str]]:
    """Returns the cells of a CSV or TSV file, row by row, with its header if it has one."""
    from tarspyro.data.loading import delimiter_of, text_of
    from tarspyro.data.tables import cells_of

    return cells_of(text_of(file), delimiter_of(file))


def _table(
    path: str,
    table: "Table",
    target: str | None,
    layout: Layout | None,
    empty: tuple[str, ...] = (),
) -> Contents:
    """Returns a table without its target, of whose columns some may be empty."""
    names = [column.name for column in table.columns]
    notes: list[str] = []
    kept = list(names)
    y: Tensor | None = None
    classes: tuple[str, ...] = ()
    wanted = target if layout is None else layout.target

    if wanted is not None and wanted in names:
        y, classes = _target(path, table, wanted)
        kept.remove(wanted)
    elif wanted is not None and layout is None and not Path(wanted).exists():
        raise ValueError(
            f"--target {wanted} is neither a column of {path} nor a file: its columns are"
            f" {', '.join(names)}."
        )
    if layout is not None:
        return replace(_conformed(path, table, layout, empty), y=y, classes=classes)

    for column in table.columns:
        if column.name in kept and _is_index(table, column):
            kept.remove(column.name)
            notes.append(f"{column.name} only numbers the rows and is left out")
    if not kept:
        raise ValueError(f"{path} has no column beside {', '.join(names)}.")
    table = _with_measurements(reordered(table, kept))
    by_kind = table.by_kind()
    return Contents(
        path,
        by_kind.x,
        y,
        by_kind,
        tuple(kept),
        classes=classes,
        target=wanted if y is not None else None,
        notes=tuple(notes),
    )


def _is_index(table: "Table", column: "Column") -> bool:
    """Whether a column holds the numbers of the rows."""
    import torch

    if column.kind != "count":
        return False
    values = table.column(column.name)
    if len(values) < 3:
        return False
    named = column.name.lower() in _NUMBERS and len(values.unique()) == len(values)
    return named or bool((values == values[0] + torch.arange(len(values))).all())


def _with_measurements(table: "Table") -> "Table":
    """Returns a table whose whole numbers without small ones are real."""
    from tarspyro.data import Column, Table

    columns = []
    for column in table.columns:
        if column.kind == "count":
            values = table.column(column.name)
            if values[~values.isnan()].min() > _SMALL_COUNT:
                column = Column(column.name, "real")
        columns.append(column)
    return Table(table.x, tuple(columns))


def _conformed(path: str, table: "Table", layout: Layout, empty: tuple[str, ...]) -> Contents:
    """Returns a table with the columns of a training's.

    Raises:
        ValueError: If a column is missing, or holds another kind of values.
    """
    import torch

    from tarspyro.data import Column, Table

    columns = {column.name: column for column in table.columns}
    names = [name for name, *_ in layout.columns]
    missing = [name for name in names if name not in columns and name not in empty]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}, which the run was trained on: its columns"
            f" are {', '.join(columns)}."
        )
    parts = []
    for name, kind, levels in layout.columns:
        column = Column(name, kind, levels)
        if name in empty:
            parts.append(torch.full((len(table), column.width), torch.nan))
            continue
        values = table.column(name).reshape(len(table), -1)
        parts.append(_as_column(path, values, columns[name], column))
    x = torch.cat(parts, 1)
    whole = Table(x, tuple(Column(*column) for column in layout.columns))
    return Contents(path, x, None, whole, layout.order, target=layout.target)


def _as_column(path: str, values: "Tensor", found: "Column", wanted: "Column") -> "Tensor":
    """Returns the values of a column as those of the training's column of this name."""
    import torch

    if found.kind == wanted.kind == "category" or (wanted.levels and found.levels):
        codes = _codes(values, found)
        width = wanted.width
        x = torch.zeros(len(values), width)
        for row, code in enumerate(codes):
            if code is None:
                x[row] = torch.nan
                continue
            level = found.levels[code]
            if level not in wanted.levels:
                raise ValueError(
                    f"{path} has {level!r} in the column {found.name!r}, which the training did"
                    f" not have: it had {', '.join(wanted.levels)}."
                )
            index = wanted.levels.index(level)
            x[row] = float(index) if width == 1 else torch.eye(width)[index]
        return x
    if bool(found.levels) != bool(wanted.levels):
        raise ValueError(
            f"{path} has a column {found.name!r} of another kind than the training's, which is"
            f" {'words' if wanted.levels else 'numbers'}."
        )
    return values


def _codes(values: "Tensor", column: "Column") -> list[int | None]:
    """Returns the number of the level in each row; None where it is missing."""
    missing = values.isnan().any(1).tolist()
    codes = values.nan_to_num(0.0)
    index = codes.argmax(1) if column.kind == "category" else codes[:, 0].long()
    return [None if gap else int(i) for gap, i in zip(missing, index, strict=True)]


def _target(path: str, table: "Table", name: str) -> "tuple[Tensor, tuple[str, ...]]":
    """Returns a column as labels or as numbers, and the names of the classes."""
    (column,) = (column for column in table.columns if column.name == name)
    values = table.column(name)
    if values.isnan().any():
        raise ValueError(
            f"{path} has empty cells in the column {name!r}, which is the target: leave these"
            " rows out."
        )
    if column.kind == "category":
        return values.argmax(1), column.levels
    if column.kind == "binary":
        return values.long(), column.levels or ("0", "1")
    return values, ()


def as_classes(contents: Contents) -> Contents:
    """Returns the contents of a file, with its labels as numbers from 0 up.

    Raises:
        ValueError: If there are no labels, or too many different ones.
    """
    import torch

    y = contents.y
    if y is None:
        raise ValueError(
            f"{contents.path} has no labels: name a column of the table or a file with them,"
            " --target, or give each class of images a folder of its own."
        )
    values, codes = torch.unique(y, return_inverse=True)
    if len(values) > _MOST_CLASSES or bool((values != values.round()).any()):
        raise ValueError(
            f"{contents.path} has labels with {len(values)} different values, which are no"
            " classes: give labels that are."
        )
    classes = contents.classes or tuple(f"{value:g}" for value in values.tolist())
    if contents.classes:
        codes = y.long()
    return replace(contents, y=codes, classes=classes)


def _known_classes(contents: Contents, classes: tuple[str, ...]) -> "Tensor":
    """Returns labels as the numbers that they had in the training."""
    import torch

    assert contents.y is not None, "only labels have classes"
    named = bool(contents.classes)
    names = [
        contents.classes[int(value)] if named else f"{value:g}"
        for value in contents.y.tolist()
    ]
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(
            f"{contents.path} has the label {unknown[0]}, which the training did not have: it"
            f" had {', '.join(classes)}."
        )
    return torch.tensor([classes.index(name) for name in names])


def _with_labels(contents: Contents, target: str) -> Contents:
    """Returns the contents of a file, with the labels of another file."""
    if not Path(target).expanduser().exists():
        raise ValueError(
            f"--target {target} names no file: the columns of a table have names, other data"
            " needs a file with a label for each row."
        )
    other = open_file(target, Reading())
    y = other.x[:, 0] if other.table is None or other.x.shape[1] == 1 else other.x.argmax(1)
    if len(y) != len(contents):
        raise ValueError(
            f"{target} has {len(y)} labels, and {contents.path} {len(contents)} rows."
        )
    classes: tuple[str, ...] = ()
    if other.table is not None and len(other.table.columns) == 1:
        classes = other.table.columns[0].levels
    return replace(contents, y=y, classes=classes, target=target)


def stamp(path: str) -> str:
    """Returns a stamp that differs if a file, or the files of a folder, have changed."""
    file = Path(path).expanduser()
    files: Sequence[Path] = [file]
    if file.is_dir():
        files = sorted(part for part in file.rglob("*") if part.is_file())
    times = [os.stat(part) for part in files]
    return f"{len(times)} {sum(t.st_size for t in times)} {max(t.st_mtime_ns for t in times)}"
