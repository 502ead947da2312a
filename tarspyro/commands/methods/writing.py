"""Files that the commands write: codes, samples and filled tables, in the units of the data."""

__all__ = ["write_codes", "write_filled", "write_samples"]

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarspyro.commands.methods.files import Contents, cells_of_file
from tarspyro.commands.methods.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor


def write_codes(
    out: Path, codes: "Tensor", lengths: "Tensor | None", labels: Sequence[str] | None
) -> None:
    """Writes codes as ``z`` of an .npz file, or as the columns z_1, z_2, ... of a .csv file.

    Codes of sequences have a row for each step in a .csv file, and ``lengths`` in an .npz file.
    """
    if out.suffix == ".npz":
        extra = {} if lengths is None else {"lengths": lengths}
        if labels is not None:
            _save(out, {"z": codes, **extra}, labels)
        else:
            _save(out, {"z": codes, **extra})
        return

    units = codes.reshape(len(codes), -1).shape[1]
    if lengths is not None:
        units = codes[0, 0].numel()
        header = ["sequence", "step", *(f"z_{unit + 1}" for unit in range(units))]
        rows: Iterable[Sequence[object]] = (
            [row + 1, step + 1, *_as_text(codes[row, step].flatten().tolist())]
            for row, length in enumerate(lengths.tolist())
            for step in range(length)
        )
        _write(out, header, rows)
        return
    header = [f"z_{unit + 1}" for unit in range(units)]
    rows = map(_as_text, codes.reshape(len(codes), -1).tolist())
    if labels is not None:
        header.append("label")
        rows = ([*row, label] for row, label in zip(rows, labels, strict=True))
    _write(out, header, rows)


def write_samples(
    out: Path, samples: "dict[str, Tensor]", layout: Layout | None, length: int | None
) -> None:
    """Writes samples as ``x``, with labels ``y``, of an .npz file, or as the rows of a .csv file.

    Arguments:
        out: The file.
        samples: x, and maybe y.
        layout: How the values of the user's own file became x.
        length: The number of steps, of sequences.

    Raises:
        ValueError: If they are not rows, for a .csv file.
    """
    x = samples["x"]
    y = samples.get("y")
    raw = x if layout is None else layout.undo(x)
    names = None
    if y is not None:
        classes = layout.classes if layout is not None else ()
        names = [classes[i] if classes else str(i) for i in y.tolist()]
    if out.suffix == ".npz":
        _save(out, {"x": raw}, names)
        return

    if x.dim() > 2:
        what = "images" if length is None else "sequences"
        raise ValueError(
            f"--out {out}: {what} are no rows of a table, give an .npz or .png file."
        )
    if layout is not None and layout.columns:
        header, *rows = csv.reader(io.StringIO(layout.table(raw).write()))
    else:
        header = [f"column {index + 1}" for index in range(raw.shape[1])]
        rows = [_as_text(row) for row in raw.tolist()]
    if names is not None:
        target = layout.target if layout is not None and layout.target else "label"
        header.append(Path(target).name)
        rows = [[*row, name] for row, name in zip(rows, names, strict=True)]
    _write(out, header, rows)


def write_filled(out: Path, contents: Contents, layout: Layout, raw: "Tensor") -> None:
    """Writes a file with its gaps filled. The other cells of a table stay as they are.

    Raises:
        ValueError: If the data is no table, for a .csv file.
    """
    if out.suffix == ".npz":
        _save(out, {"x": raw})
        return
    if contents.table is None:
        if raw.dim() > 2:
            raise ValueError(f"--out {out}: images are no rows of a table, give an .npz file.")
        header = [f"column {index + 1}" for index in range(raw.shape[1])]
        _write(out, header, map(_as_text, raw.tolist()))
        return

    own = contents.table
    written = list(csv.reader(io.StringIO(layout.table(raw).write())))
    if Path(contents.path).suffix.lower() not in (".csv", ".tsv", ".txt"):
        _write(out, written[0], written[1:])
        return
    cells = cells_of_file(Path(contents.path))
    header = cells.pop(0) if len(cells) > len(own) else written[0]
    place = {name or f"column {index + 1}": index for index, name in enumerate(header)}
    for column, name in enumerate(written[0]):
        gaps = own.column(name).reshape(len(own), -1).isnan().any(1).tolist()
        for row, gap in enumerate(gaps):
            if gap:
                cells[row][place[name]] = written[row + 1][column]
    _write(out, header, cells)


def _as_text(numbers: Iterable[float]) -> list[str]:
    return [f"{number:.6g}" for number in numbers]


def _write(out: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _save(out: Path, arrays: "dict[str, Tensor]", names: Sequence[str] | None = None) -> None:
    import numpy as np

    content: dict[str, Any] = {name: values.numpy() for name, values in arrays.items()}
    if names is not None:
        content["y"] = np.array(names)
    np.savez_compressed(out, **content)
