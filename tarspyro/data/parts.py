"""The parts of any container: tensors, arrays, tables, lists, named parts, data sets."""

__all__ = [
    "Values",
    "gives_arrays",
    "has_rows",
    "in_order",
    "lists_parts",
    "parts_of",
    "stacked",
]

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, unpack_sequence
from torch.utils.data import Dataset, TensorDataset

from tarspyro.arguments import as_numbers, format_value, is_array, too_many_parts
from tarspyro.data.captions import CaptionedImages
from tarspyro.data.containers import Split
from tarspyro.data.rows import LazyRows, part_of
from tarspyro.data.sequences import Sequences
from tarspyro.data.tables import Table

# The numbers of a part as they are kept: in memory, or to be read.
Values: TypeAlias = Tensor | LazyRows

_Part = TypeVar("_Part")


def parts_of(
    name: str, data: object, who: str, names: Sequence[str]
) -> Sequence[Values | None] | None:
    """Returns the parts of data with rows by index; None for data that is read by batches.

    Arguments:
        name: What errors call the data.
        data: The data, see ``tarspyro.sources.Source``.
        who: The name of the program that gets the data.
        names: The names of its arguments; none if it takes any.

    Raises:
        TypeError: If the data holds no numbers.
        ValueError: If its parts do not fit the arguments, or it can be read once only.
    """
    if isinstance(data, (Split, Sequences, CaptionedImages)):
        taken = [part for key, part in vars(data).items() if key in names]
        given = [part for part in taken if part is not None] or [data.x]
        return [part_of(name, part) for part in given]
    if isinstance(data, TensorDataset):
        return data.tensors[: len(names)] if names else data.tensors
    if isinstance(data, Table):
        return [data.x]
    if isinstance(data, Mapping) and not _is_numbers(data):
        unknown = [key for key in data if key not in names]
        if unknown and not names:
            raise ValueError(
                f"{name} has parts by name, {', '.join(map(repr, data))}, and {who} names no"
                " arguments that are passed by position: name them before any *."
            )
        if unknown:
            raise ValueError(
                f"{name} has {unknown[0]!r}, which {who} does not take: it takes"
                f" {list(names)}, so {_renaming(name, data, unknown, names)}."
            )
        return [
            None if part is None else part_of(name, part) for part in in_order(data, names)
        ]
    if isinstance(data, (str, bytes, os.PathLike, io.IOBase)):
        raise TypeError(
            f"{name} must be numbers, got {format_value(data)}: read a file first,"
            f" tarspyro.data.load({_path(data)})."
        )
    data = _as_list(data)
    if isinstance(data, (tuple, list)):
        return _of_list(name, data, who, names)
    if _is_numbers(data):
        return [part_of(name, data)]
    if isinstance(data, Iterator):
        raise ValueError(
            f"{name} is an iterator, which can be read once: give a data set, a DataLoader or"
            f" all rows, torch.cat(list({name})); or for fit tarspyro.data.Stream(iterator,"
            " steps_per_epoch=1000), which says how many batches make an epoch."
        )
    if isinstance(data, (Iterable, Dataset)):
        return None
    if has_rows(data):
        return None
    remedy = f": give a part of it, such as {name}.train" if hasattr(data, "train") else ""
    raise ValueError(
        f"{name} must be tensors, arrays, a data set or an iterable of batches, got"
        f" {format_value(data)}{remedy}."
    )


def _renaming(
    name: str, data: Mapping[str, object], unknown: Sequence[str], names: Sequence[str]
) -> str:
    """Returns how to bring the names of parts and those of a program's arguments together."""
    free = [argument for argument in names if argument not in data]
    if not free:
        return f"leave {', '.join(map(repr, unknown))} out"
    return (
        f"rename the parts, such as {{{free[0]!r}: {name}[{next(iter(unknown), free[0])!r}]}}, or"
        f" your program's arguments, such as model({', '.join(map(str, data))})"
    )


def _path(data: object) -> str:
    """Returns the path of a file as it is written in a program."""
    return repr(os.fspath(data)) if isinstance(data, (str, os.PathLike)) else "path"


def _of_list(
    name: str, data: Sequence[Any], who: str, names: Sequence[str]
) -> Sequence[Values | None] | None:
    """The parts of a list or a tuple: parts in the program's order, or rows of the first one.

    None for a list of batches, each a tuple or a mapping.
    """
    if not data:
        raise ValueError(f"{name} is empty: it has no rows.")
    many = bool(names) and len(data) > len(names)
    if all(part is None or _is_numbers(part) for part in data) and not many:
        parts = [None if part is None else part_of(name, part) for part in data]
        rows = {len(part) if part.shape else 0 for part in parts if part is not None}
        if len(rows) <= 1 or "lengths" not in names or len(parts) == len(names) == 1:
            return parts
    if many and len({np.shape(part)[1:] for part in data if _is_numbers(part)}) > 1:
        raise ValueError(too_many_parts(name, len(data), who, names))
    if _is_row(data[0]):
        return stacked(name, data, names, who)
    if all(isinstance(row, (tuple, list)) for row in data):
        if all(_is_label(row[-1]) for row in data) and not _is_batch(data[0]):
            columns = [list(column) for column in zip(*data, strict=True)]
            columns = columns[: len(names)] if names else columns
            return [part for column in columns for part in stacked(name, column, (), who)]
    elif all(isinstance(row, Mapping) for row in data):
        values = list(data[0].values())
        if any(map(_is_label, values)) and not _is_batch(values):
            by_name = {key: [row[key] for row in data] for key in names if key in data[0]}
            return [
                stacked(name, column, (), who)[0]
                for column in in_order(by_name or data[0], names)
            ]
    return None


def _as_list(data: object) -> object:
    """Returns data that holds a tensor or an array for each row as a list of them."""
    if isinstance(data, PackedSequence):
        return unpack_sequence(data)
    if isinstance(data, Tensor) and data.is_nested:
        return list(data.unbind())
    objects = str(getattr(data, "dtype", "")) == "object" and getattr(data, "ndim", 0) == 1
    if objects and isinstance(data, Iterable):
        return list(data)
    return data


def _is_row(value: object) -> TypeGuard[Any]:
    """Whether an entry of a list is a row: numbers, and not a batch in several parts."""
    if isinstance(value, (list, tuple)):
        return not any(_is_numbers(part) for part in value)
    return _is_numbers(value) or isinstance(value, (int, float, bool))


def _is_label(value: object) -> bool:
    """Whether the last entry of a row is the label of one data point."""
    if isinstance(value, (Tensor, np.ndarray)):
        return not value.shape
    return isinstance(value, (int, float, str, np.generic))


def _is_batch(values: Sequence[Any]) -> bool:
    """Whether some values with a number are a batch: several parts that are equally long.

    The number is then one for the whole batch, such as an annealing factor. Labels of classes
    are whole.
    """
    lengths = [np.shape(part)[0] for part in values if _is_numbers(part) and np.shape(part)]
    whole = any(_is_label(part) and not isinstance(part, float) for part in values)
    return not whole and len(lengths) > 1 and len(set(lengths)) == 1


def _is_numbers(value: object) -> bool:
    """Whether a value holds numbers in a tensor, an array, a table or a matrix."""
    return (
        isinstance(value, (Tensor, LazyRows, Table, Split))
        or is_array(value)
        or hasattr(value, "tocsr")
    ) and not isinstance(value, Dataset)


def has_rows(data: object) -> bool:
    """Whether data has rows by index, as a map data set has."""
    listed = isinstance(data, (list, tuple, Mapping, str))
    return not listed and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def stacked(
    name: str, rows: Sequence[Any], names: Sequence[str], who: str
) -> list[Values | None]:
    """Returns the rows in one tensor; sequences of different lengths with their lengths.

    Raises:
        ValueError: If the rows differ in shape, and are no sequences or the program takes no
            lengths.
    """
    if not _is_numbers(rows[0]):
        try:
            return [as_numbers(name, list(rows))]
        except TypeError:
            pass  # the rows differ in length, or one of them holds no numbers
    tensors = [as_numbers(f"{name}[{i}]", row).detach() for i, row in enumerate(rows)]
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) == 1:
        return [torch.stack(tensors)]
    if len({shape[1:] for shape in shapes}) > 1 or () in shapes:
        raise ValueError(
            f"{name} has rows of shapes {', '.join(map(str, shapes[:3]))}: give all rows one"
            " shape."
        )
    if "lengths" in names:
        sequences = Sequences.padded(tensors)
        return [sequences.x, sequences.lengths]
    raise ValueError(
        f"{name} is a list of {len(rows)} tensors that differ in length, from"
        f" {shapes[0][0]} to {shapes[-1][0]} rows, and {who} takes no lengths of sequences:"
        " join batches, torch.cat(...), or take a model of sequences, such as models.VRNN."
    )


def in_order(data: Mapping[str, _Part], names: Sequence[str]) -> list[_Part]:
    """Returns the parts of a mapping in the order of a program's arguments.

    They are passed by position.

    Raises:
        ValueError: If a part is missing before the last one, or no part has the name of an
            argument.
    """
    if not data:
        raise ValueError(f"data has no parts: give a mapping with {list(names) or 'x'}.")
    parts = [data[name] for name in names if name in data]
    if not parts and names:
        raise ValueError(
            f"data has parts named {', '.join(map(repr, data))}, and the program takes"
            f" {list(names)}, so {_renaming('row', data, list(data), names)}."
        )
    if not parts:
        raise ValueError(
            f"data has parts named {', '.join(map(repr, data))}, and the program names no"
            " arguments that are passed by position: name them before any *."
        )
    missing = [name for name in names[: len(parts)] if name not in data]
    if missing:
        raise ValueError(
            f"data has {sorted(data)} and lacks {missing[0]!r}, an argument before the last of"
            " them: give it too, or None in its place."
        )
    return parts


def lists_parts(data: object) -> bool:
    """Returns whether data are the parts themselves, in a tuple, a list or by name."""
    if isinstance(data, Mapping):
        return True
    return isinstance(data, (tuple, list)) and all(
        part is None or _is_numbers(part) for part in data
    )


def gives_arrays(data: object) -> bool:
    """Returns whether evaluations of the data return arrays: of arrays, tables and the like."""
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, (tuple, list)):
        return any(map(_is_array, data))
    return _is_array(data)


def _is_array(value: object) -> bool:
    return not isinstance(value, Tensor) and (is_array(value) or hasattr(value, "tocsr"))
