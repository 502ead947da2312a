"""Tables with columns of several kinds, and with gaps."""

__all__ = ["Column", "Table", "cells_of", "read_table"]

import csv
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

from tarspyro.arguments import as_numbers, check_choice, format_value
from tarspyro.data.files import DataError

KINDS = ("real", "count", "binary", "category")

# How spreadsheets and statistics programs write that a value is missing.
_MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-"}
_YES = {"yes", "true", "y", "t"}
_NO = {"no", "false", "n", "f"}
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
# Numbers with a currency, a percent sign, parentheses or another minus than the hyphen.
_MARKED = re.compile(
    r"[-+\u2212(]?\s?[$€£¥]?\s?[-\u2212]?(\d{1,3}(,\d{3})+|\d+)?(\.?\d+)\s?[%$€£¥]?\)?"
)
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?$")

# A byte order mark, and empty lines.
_BEFORE_TEXT = "\ufeff \r\n"
_FILE_NAME = re.compile(r"[^\n]+\.(csv|tsv|txt|gz|xlsx?)", re.IGNORECASE)

# Single precision holds all whole numbers below this one.
_EXACT = 2**24

# A column of text with more levels than this is free text, not a category.
_MOST_LEVELS = 100


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: The name in the header, or ``column 3`` without a header.
        kind: ``"real"``, ``"count"``, ``"binary"`` or ``"category"``.
        levels: The levels of a category, or the two words of a binary column, in order.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of entries that the column takes in a row of ``Table.x``."""
        return len(self.levels) if self.kind == "category" else 1


@dataclass(frozen=True)
class Table:
    r"""A table as numbers, one row a data point.

    A category takes as many entries as it has levels, of which one is 1 and the others are 0.
    A binary column is 0 or 1. What is missing is NaN.

    Attributes:
        x: The numbers, of shape ``(N, D)``.
        columns: The columns, in the order of ``x``.

    Example:
        >>> table = read_table("age,smokes,city\n30,yes,Rome\n,no,Oslo\n41,no,Rome\n25,no,Oslo")
        >>> [(column.name, column.kind) for column in table.columns]
        [('age', 'count'), ('smokes', 'binary'), ('city', 'category')]
        >>> table.x.shape, int(table.x.isnan().sum())
        (torch.Size([4, 4]), 1)
    """

    x: Tensor
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", as_numbers("x", self.x))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Table":
        return Table(self.x[rows], self.columns)

    def __repr__(self) -> str:
        kinds = ", ".join(
            f"{sum(column.kind == kind for column in self.columns)} {kind}"
            for kind in KINDS
            if any(column.kind == kind for column in self.columns)
        )
        missing = 100 * self.x.isnan().float().mean().item() if self.x.numel() else 0.0
        gaps = f", {missing:.1f} % of the entries missing" if missing else ""
        return f"Table of {len(self)} rows, columns: {kinds}{gaps}"

    @property
    def names(self) -> list[str]:
        """The name of each entry of a row, such as ``age`` or ``city=Rome``."""
        names: list[str] = []
        for column in self.columns:
            if column.kind == "category":
                names += [f"{column.name}={level}" for level in column.levels]
            else:
                names.append(column.name)
        return names

    def column(self, name: str) -> Tensor:
        """Returns the entries of a column, of shape ``(N,)``, or ``(N, levels)`` of a category.

        Raises:
            KeyError: If there is no such column.
        """
        start = 0
        for column in self.columns:
            if column.name == name:
                entries = self.x[:, start : start + column.width]
                return entries if column.kind == "category" else entries[:, 0]
            start += column.width
        raise KeyError(
            f"The table has no column {name!r}: it has"
            f" {', '.join(column.name for column in self.columns)}."
        )

    def by_kind(self) -> "Table":
        """Returns the table with columns of one kind side by side: real, count, binary, category.

        A likelihood of ``Blocks`` has one block for each kind, and one for each category.
        """
        order = sorted(
            range(len(self.columns)), key=lambda i: KINDS.index(self.columns[i].kind)
        )
        columns = tuple(self.columns[i] for i in order)
        parts = [self.column(column.name).reshape(len(self), -1) for column in columns]
        return Table(torch.cat(parts, 1), columns)

    def write(self, x: Tensor | None = None) -> str:
        """Returns rows as the text of a CSV file, with the words of the columns.

        Arguments:
            x: Rows of the same width, such as samples or imputed rows; the table's own if not
                given. The level of a category is the one with the largest entry.
        """
        rows = self.x if x is None else x
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in rows.tolist():
            start = 0
            cells = []
            for column in self.columns:
                cells.append(_written(column, row[start : start + column.width]))
                start += column.width
            writer.writerow(cells)
        return file.getvalue()


def _written(column: Column, entries: Sequence[float]) -> str:
    if any(math.isnan(entry) for entry in entries):
        return ""
    if column.kind == "category":
        return column.levels[max(range(len(entries)), key=entries.__getitem__)]
    if column.kind == "binary" and column.levels:
        return column.levels[int(entries[0] >= 0.5)]
    if column.kind in ("count", "binary"):
        return str(round(entries[0]))
    return f"{entries[0]:.6g}"


def read_table(
    text: str,
    *,
    delimiter: str | None = None,
    kinds: Mapping[str, str] | None = None,
    source: str = "The table",
) -> Table:
    """Reads a table from the text of a CSV or TSV file.

    Columns of numbers are binary if they hold 0 and 1 alone, counts if they hold whole numbers
    from 0 up, and real otherwise. Columns of two words such as yes and no are binary, other
    columns of words are categories. Empty cells, NA, NaN, null and ? are missing.

    Arguments:
        text: The text.
        delimiter: What stands between cells; the one of comma, semicolon and tab that the first
            line has most often if not given.
        kinds: By the name of a column, its kind in place of the one that is found, such as
            ``{"year": "real"}``; ``"category"`` for numbers that are codes.
        source: What error messages call the table.

    Raises:
        DataError: If rows differ in length, two columns have one name, or a column holds dates
            or free text; the message says which and what to do.
        ValueError: If ``kinds`` names an unknown column or kind.
    """
    if not isinstance(text, str) or _FILE_NAME.fullmatch(text):
        raise DataError(
            f"text must be that of a table, got {format_value(text)}: to read a file, take"
            " data.load(path)."
        )
    delimiter = delimiter or _delimiter_in(text)
    rows = cells_of(text, delimiter)
    if not rows:
        raise DataError(f"{source} is empty: it has no rows.")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise DataError(
                f"{source} has {width} cells in its first row and {len(row)} in row {number}:"
                " give every row the same number of cells, and quote those that hold"
                f" {delimiter!r}."
            )
    if width == 1:
        _check_spaces([row[0] for row in rows], source)
    header = _has_header(rows)
    names = rows[0] if header else [f"column {index + 1}" for index in range(width)]
    names = [name or f"column {index + 1}" for index, name in enumerate(names)]
    rows = rows[1:] if header else rows
    if not rows:
        raise DataError(f"{source} has a header and no rows.")
    ((name, count),) = Counter(names).most_common(1)
    if count > 1:
        raise DataError(
            f"{source} has {count} columns named {name!r}: give each a name of its own."
        )
    kinds = dict(kinds or {})
    for name, kind in kinds.items():
        if name not in names:
            raise ValueError(f"kinds has {name!r}, which is no column: {', '.join(names)}.")
        check_choice(f"kinds[{name!r}]", kind, KINDS)
    columns = []
    parts = []
    for index, name in enumerate(names):
        cells = [row[index] for row in rows]
        column, part = _read_column(name, cells, kinds.get(name), source)
        columns.append(column)
        parts.append(part)
    return Table(torch.cat(parts, 1), tuple(columns))


def cells_of(text: str, delimiter: str | None = None) -> list[list[str]]:
    """Returns the cells of the text of a CSV or TSV file, row by row; empty rows are left out.

    Arguments:
        text: The text.
        delimiter: See ``read_table``.
    """
    lines = io.StringIO(text.lstrip(_BEFORE_TEXT))
    rows = csv.reader(lines, delimiter=delimiter or _delimiter_in(text))
    return [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]


def _delimiter_in(text: str) -> str:
    """Returns the one of comma, semicolon and tab that the first line has most often."""
    first = text.lstrip(_BEFORE_TEXT).partition("\n")[0]
    return max(",;\t", key=first.count)


def _check_spaces(cells: Sequence[str], source: str) -> None:
    """Raises if cells of words hold several numbers each, with spaces between them.

    Raises:
        DataError: If they do.
    """
    below = [cell.split() for cell in cells[1:]]
    counts = {len(parts) for parts in (cells[0].split(), *below)}
    if below and len(counts) == 1 and counts != {1} and all(map(_is_number, sum(below, []))):
        raise DataError(
            f"{source} has spaces between its cells, such as {format_value(cells[1])}: write"
            r" commas, or in Python give what pandas.read_csv(path, sep='\s+') returns."
        )


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: words over columns of numbers, or each once."""
    first, *others = rows
    if any(_is_number(cell) for cell in first):
        return False
    if not others:
        return True
    for index, cell in enumerate(first):
        below = [row[index] for row in others if row[index].lower() not in _MISSING]
        if below and all(_is_number(other) for other in below):
            return True
        if below and cell not in below:
            return True
    return False


def _is_number(cell: str) -> bool:
    if "_" in cell:
        return False  # Python would read the code 12_3 as 123.
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_column(
    name: str, cells: Sequence[str], kind: str | None, source: str
) -> tuple[Column, Tensor]:
    missing = torch.tensor([cell.lower() in _MISSING for cell in cells])
    given = [cell for cell in cells if cell.lower() not in _MISSING]
    if not given:
        raise DataError(f"{source} has no value in the column {name!r}: leave the column out.")
    numeric = all(_is_number(cell) for cell in given)
    if numeric and kind != "category":
        return _numbers(name, cells, missing, kind, source)
    if kind in ("real", "count"):
        wrong = next(cell for cell in given if not _is_number(cell))
        raise DataError(
            f"{source} has {format_value(wrong)} in the column {name!r}, which is no number."
        )
    return _words(name, cells, missing, kind, source)


def _numbers(
    name: str, cells: Sequence[str], missing: Tensor, kind: str | None, source: str
) -> tuple[Column, Tensor]:
    values = torch.tensor(
        [math.nan if gap else float(cell) for cell, gap in zip(cells, missing, strict=True)],
        dtype=torch.float64,
    )
    known = values[~missing]
    if not known.isfinite().all():
        raise DataError(
            f"{source} has an infinite number in the column {name!r}: leave it empty."
        )
    whole = bool((known == known.round()).all()) and bool((known >= 0).all())
    if kind is None:
        kind = "count" if whole else "real"
        if set(known.tolist()) <= {0.0, 1.0}:
            kind = "binary"
    if (kind == "count" and not whole) or (
        kind == "binary" and not set(known.tolist()) <= {0.0, 1.0}
    ):
        raise DataError(
            f"{source} has values from {known.min().item():g} to {known.max().item():g} in the"
            f" column {name!r}, which are no values of a {kind} column."
        )
    rounded = values.to(torch.get_default_dtype())
    _warn_of_equal_numbers(name, known, rounded[~missing], cells, source)
    return Column(name, kind), rounded[:, None]


def _warn_of_equal_numbers(
    name: str, known: Tensor, rounded: Tensor, cells: Sequence[str], source: str
) -> None:
    """Warns if rounding makes many different whole numbers equal, such as long identifiers."""
    if not bool((known == known.round()).all()) or known.abs().max() < _EXACT:
        return
    different = len({Decimal(cell) for cell in cells if cell.lower() not in _MISSING})
    kept = len(rounded.unique())
    if kept < 0.9 * different:
        warnings.warn(
            f"{source} has {different} different numbers in the column {name!r}, of which"
            f" rounding to {rounded.dtype} leaves {kept}: leave the column out if they are"
            " identifiers, or subtract the smallest number from all.",
            stacklevel=2,
        )


def _words(
    name: str, cells: Sequence[str], missing: Tensor, kind: str | None, source: str
) -> tuple[Column, Tensor]:
    given = [cell for cell, gap in zip(cells, missing, strict=True) if not gap]
    if kind is None and all(_THOUSANDS.fullmatch(c) or _is_number(c) for c in given):
        comma = next(cell for cell in given if not _is_number(cell))
        raise DataError(
            f"{source} has numbers with commas in the column {name!r}, such as"
            f" {format_value(comma)}: if they part thousands, leave them out (in Python, give"
            " what pandas.read_csv(path, thousands=',') returns); if they are decimal commas,"
            " write points."
        )
    if kind is None and all(_DECIMAL_COMMA.fullmatch(c) or _is_number(c) for c in given):
        comma = next(cell for cell in given if not _is_number(cell))
        raise DataError(
            f"{source} has numbers with decimal commas in the column {name!r}, such as"
            f" {format_value(comma)}: write points, or in Python give what"
            " pandas.read_csv(path, sep=None, engine='python', decimal=',') returns."
        )
    if kind is None and all(_MARKED.fullmatch(c) or _is_number(c) for c in given):
        marked = next(cell for cell in given if not _is_number(cell))
        raise DataError(
            f"{source} has numbers with signs around them in the column {name!r}, such as"
            f" {format_value(marked)}: write plain numbers, or name the column's kind,"
            f" kinds={{{name!r}: 'category'}}."
        )
    if all(_DATE.match(cell) for cell in given):
        raise DataError(
            f"{source} holds dates in the column {name!r}, such as {given[0]!r}: turn them into"
            " numbers, such as days since the first one, or leave the column out."
        )
    levels = tuple(sorted(set(given)))
    if len(levels) > _MOST_LEVELS or (len(levels) > 20 and len(levels) > len(given) / 2):
        raise DataError(
            f"{source} holds {len(levels)} different words in the column {name!r}, such as"
            f" {given[0]!r}: free text has no likelihood here, leave the column out."
        )
    lowered = {level.lower() for level in levels}
    yes_or_no = len(levels) == 2 and len(lowered & _YES) == 1 and len(lowered & _NO) == 1
    if kind == "binary" or (kind is None and yes_or_no):
        if len(levels) != 2:
            raise DataError(
                f"{source} holds {len(levels)} different words in the column {name!r}, and a"
                " binary column has two."
            )
        if yes_or_no and levels[0].lower() in _YES:
            levels = levels[::-1]
        codes = torch.tensor([float(cell == levels[1]) for cell in cells])
        codes[missing] = math.nan
        return Column(name, "binary", levels), codes[:, None].to(torch.get_default_dtype())
    index = {level: position for position, level in enumerate(levels)}
    codes = torch.zeros(len(cells), len(levels))
    for row, (cell, gap) in enumerate(zip(cells, missing.tolist(), strict=True)):
        if gap:
            codes[row] = math.nan
        else:
            codes[row, index[cell]] = 1.0
    return Column(name, "category", levels), codes.to(torch.get_default_dtype())
