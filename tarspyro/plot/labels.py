"""Labels as colours: classes with a legend, or numbers with a colour bar."""

from __future__ import annotations

__all__ = ["Labels", "as_labels", "draw_labelled", "labels_of", "legend_columns"]

import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.data import Split
from tarspyro.plot.colors import MARKERS, PALETTE, class_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

# Whole numbers of more distinct values than this are a scale, not classes.
_MOST_CLASSES = 30
# The legend has no more entries, in columns of so many rows.
_MOST_ENTRIES = 30
_ROWS = 15


@dataclass(frozen=True)
class Labels:
    """Labels of data points, either classes or numbers on a scale.

    Attributes:
        values: A number for each data point: of classes, the index of its name.
        known: Whether the label of each data point is known.
        names: The names of the classes; None for numbers on a scale.
        colors: The place of each class in a palette of ten colours, if the names say it.
        title: What the labels are, the name of a column.
    """

    values: np.ndarray
    known: np.ndarray
    names: list[str] | None
    colors: list[int] | None = None
    title: str = ""


def labels_of(data: object) -> Tensor | None:
    """Returns the labels that data brings: those of a ``Split``, if each row has one."""
    y = data.y if isinstance(data, Split) else None
    if y is None or not isinstance(y, Tensor):
        return y
    return y if y.dim() == 1 or _is_one_hot(y.detach().cpu().numpy()) else None


def as_labels(
    labels: object, count: int, continuous: bool | None, title: str | None = None
) -> Labels:
    """Returns labels, given as a tensor, an array, a list or a column of pandas.

    Numbers are on a scale if some are not whole or more than thirty differ; words, booleans
    and one-hot rows are classes. None, NaN and masked values are missing.

    Arguments:
        labels: The labels.
        count: The number of data points.
        continuous: Whether they are on a scale; decided as above if not given.
        title: What they are; the name of a column of pandas if not given.

    Raises:
        TypeError: If they are no labels.
        ValueError: If they are not one for each data point, or words on a scale.
    """
    column = getattr(labels, "name", None)
    if title is None:
        title = column if isinstance(column, str) else ""
    array = _as_column(labels, count)
    known = ~np.ma.getmaskarray(array)
    array = np.ma.getdata(array)
    if array.dtype.kind == "O":
        known = known & np.array([not _is_missing(value) for value in array], bool)
        given = array[known]
        if all(_is_number(value) for value in given):
            numeric = np.full(len(array), math.nan)
            numeric[known] = given.astype(float)
            array = numeric
    if array.dtype.kind not in "iuf":
        if continuous:
            raise ValueError(
                "continuous=True needs labels that are numbers, got"
                f" {format_value(array.tolist()[:3])}: leave it out for classes."
            )
        words = np.array([str(value) for value in array], object)
        return _classes(words, known, title)
    numeric = array.astype(float)
    known = known & np.isfinite(numeric)
    levels = np.unique(numeric[known])
    if continuous is None:
        continuous = len(levels) > _MOST_CLASSES or bool((levels != levels.round()).any())
    if continuous:
        return Labels(numeric, known, None, title=title)
    return _classes(numeric, known, title)


def _as_column(labels: object, count: int) -> np.ndarray:
    """Returns labels in an array of shape (N,)."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.double() if labels.is_floating_point() else labels
        labels = labels.numpy()
    try:
        array = labels if isinstance(labels, np.ndarray) else np.asarray(labels)
        if array.dtype.kind in "US" and isinstance(labels, (list, tuple)):
            # NumPy would write None and NaN among words as words.
            array = np.array(labels, object)
    except ValueError:
        raise TypeError(
            f"labels must be one for each data point, got {format_value(labels)}."
        ) from None
    if array.dtype.kind == "c":
        raise TypeError(f"labels must be numbers or words, got {array.dtype}.")
    if array.shape == (count, 1):
        array = array[:, 0]
    if array.ndim and len(array) == count and _is_one_hot(array):
        array = array.argmax(1)
    if array.shape != (count,):
        raise ValueError(
            f"labels must be one for each of the {count} codes, got shape {array.shape}."
        )
    return array


def _is_one_hot(array: np.ndarray) -> bool:
    if array.dtype.kind not in "biuf" or array.ndim != 2:
        return False
    ones = array == 1
    return bool((ones | (array == 0)).all() and (ones.sum(1) == 1).all())


def _is_missing(value: object) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and math.isnan(value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def _classes(values: np.ndarray, known: np.ndarray, title: str) -> Labels:
    levels, found = np.unique(values[known], return_inverse=True)
    order = sorted(range(len(levels)), key=lambda place: _natural(levels[place]))
    index = np.zeros(len(values))
    index[known] = np.argsort(order)[found] if order else found
    levels = levels[order]
    places = None
    if levels.dtype.kind == "f":
        names = [f"{level:g}" for level in levels]
        if all(level in range(len(PALETTE)) for level in levels):
            # A digit has its colour in every picture, whether or not the others are there.
            places = [int(level) for level in levels]
    else:
        names = [str(level) for level in levels]
    return Labels(index, known, names, places, title)


def _natural(level: object) -> list[tuple[float, str]]:
    """Returns the key by which "class 2" comes before "class 10"."""
    if not isinstance(level, str):
        return [(float(level), "")]  # type: ignore[arg-type]
    parts = re.split(r"(\d+)", level)
    return [(float(part), "") if part.isdecimal() else (math.inf, part) for part in parts]


def legend_columns(labels: Labels | None) -> int:
    """Returns the number of columns of the legend, 0 without one."""
    if labels is None or labels.names is None:
        return 0
    entries = min(_MOST_ENTRIES, len(labels.names) + int(not labels.known.all()))
    return math.ceil(entries / _ROWS)


def draw_labelled(
    ax: Axes,
    points: np.ndarray,
    labels: Labels,
    *,
    area: float,
    alpha: float,
    cmap: str | Colormap | None,
    limits: tuple[float, float] | None,
) -> list[str]:
    """Draws points in the colours of their labels, with a legend or a colour bar.

    Arguments:
        ax: The axes.
        points: The points, of shape (N, 2).
        labels: Their labels.
        area: The area of a point.
        alpha: The opacity of a point.
        cmap: A colour map in place of the usual colours.
        limits: The values at the ends of the colour bar.

    Returns:
        The colours of the classes, none for numbers on a scale.
    """
    scatter = partial(ax.scatter, s=area, alpha=alpha, linewidths=0)
    unknown = points[~labels.known]
    if len(unknown):
        scatter(*unknown.T, color="0.75", label="missing", zorder=0.9)
    chosen = points[labels.known]
    values = labels.values[labels.known]
    if labels.names is None:
        low, high = (None, None) if limits is None else limits
        drawn = scatter(*chosen.T, c=values, cmap=cmap or "viridis")
        drawn.set_clim(low, high)
        bar = ax.figure.colorbar(drawn, ax=ax, label=labels.title)
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
        if len(unknown):
            ax.legend(loc="upper right", bbox_to_anchor=(1.0, -0.06), frameon=False)
        return []
    colors = _colors_of(labels, cmap)
    many = len(colors) > len(PALETTE)
    for index, (name, color) in enumerate(zip(labels.names, colors, strict=True)):
        marker = MARKERS[index % len(MARKERS)] if many else "o"
        of_class = chosen[values == index]
        scatter(*of_class.T, color=color, label=name, marker=marker)
    _legend(ax, labels, np.bincount(values.astype(int), minlength=len(colors)), area)
    return colors


def _colors_of(labels: Labels, cmap: str | Colormap | None) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, to_hex

    num = len(labels.names or [])
    if cmap is None:
        if labels.colors is not None:
            return [PALETTE[place] for place in labels.colors]
        return class_colors(num)
    chosen = colormaps[cmap] if isinstance(cmap, str) else cmap
    if isinstance(chosen, ListedColormap) and num <= chosen.N < 64:
        return [to_hex(chosen(index)) for index in range(num)]
    return [to_hex(chosen(index / max(1, num - 1))) for index in range(num)]


def _legend(ax: Axes, labels: Labels, counts: Sequence[int] | np.ndarray, area: float) -> None:
    """Writes the classes beside the axes; of very many, the largest."""
    handles, names = ax.get_legend_handles_labels()
    classes = dict(zip(names, handles, strict=True))
    order = list(labels.names or [])
    room = _MOST_ENTRIES - ("missing" in classes)
    if len(order) > room:
        largest = np.argsort(-np.asarray(counts), kind="stable")[: room - 1]
        order = [order[index] for index in sorted(largest)]
    shown = {name: classes[name] for name in order}
    left = len(labels.names or []) - len(order)
    if left:
        shown[f"and {left} more"] = ax.scatter([], [], alpha=0)
    if "missing" in classes:
        shown["missing"] = classes["missing"]
    legend = ax.legend(
        list(shown.values()),
        list(shown),
        title=labels.title or None,
        markerscale=(25 / area) ** 0.5,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        ncols=max(1, legend_columns(labels)),
    )
    for handle in legend.legend_handles[: len(order)]:
        if handle is not None:
            handle.set_alpha(1)
