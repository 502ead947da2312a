"""The forms of data: images, points in the plane, tables and series, each drawn in its own way."""

from __future__ import annotations

__all__ = [
    "Form",
    "as_form",
    "draw_columns",
    "draw_lines",
    "draw_points",
    "grid_of",
    "names_of",
    "panels_of",
    "set_legend",
    "set_title",
    "short_ticks",
]

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np
from torch import Tensor

from tarspyro.arguments import check_choice, format_value
from tarspyro.data import Sequences, Table
from tarspyro.plot.colors import PALETTE
from tarspyro.plot.figures import ImageShape, axes_of, image_shape_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

Form: TypeAlias = Literal["images", "points", "table", "series"]

# Vectors of fewer entries with values outside of [0, 1] are no images, though a square fits.
_FEWEST_PIXELS = 49
# Vectors of more entries that are no images are series.
_MOST_COLUMNS = 30
# Matrices (T, D) of no more columns are series, if they have at least so many rows.
_MOST_CHANNELS = 4
_FEWEST_STEPS = 8
# The largest number of panels side by side.
_MOST_IN_A_ROW = 5
# Columns of no more distinct values are drawn as shares.
_MOST_LEVELS = 12


def as_form(
    form: str | None,
    values: Tensor,
    *,
    image_shape: ImageShape = None,
    names: Sequence[str] | None = None,
    data: object = None,
) -> Form:
    """Returns the form of data points: the given one, or the one that suits their shape.

    Arguments:
        form: The form, if it is given.
        values: The data points, of shape ``(N, *event)``.
        image_shape: The shape of an image, which only images have.
        names: The names of columns, which only tables have.
        data: The data as the user gave it.

    Raises:
        ValueError: If there is no such form, or the data has no such shape.
    """
    event = tuple(values.shape[1:])
    if form is not None:
        check_choice("form", form, get_args(Form))
        wanted = {"points": event == (2,), "table": len(event) < 2, "series": len(event) < 3}
        if not wanted.get(form, True):
            shapes = {"points": "(2,)", "table": "(D,)", "series": "(T,) or (T, D)"}
            raise ValueError(
                f"form={form!r} needs data points of shape {shapes[form]}, got {event}."
            )
        return cast("Form", form)
    if image_shape is not None:
        return "images"
    if len(event) < 2:
        is_table = names is not None or isinstance(data, Table)
        return "table" if is_table or not event else _of_vector(event[0], values)
    is_series = event[1] <= _MOST_CHANNELS and event[0] >= _FEWEST_STEPS
    if isinstance(data, Sequences):
        is_series = event[1] <= 2 * _MOST_CHANNELS
    return "series" if len(event) == 2 and is_series else "images"


def _of_vector(size: int, values: Tensor) -> Form:
    if size == 2:
        return "points"
    in_range = bool(((values >= 0) & (values <= 1)).all())
    if image_shape_of(size) and size > 1 and (size >= _FEWEST_PIXELS or in_range):
        return "images"
    return "table" if size <= _MOST_COLUMNS else "series"


def names_of(names: Sequence[str] | None, data: object, size: int) -> list[str]:
    """Returns the names of columns: the given ones, a table's, or ``x[0]``, ``x[1]``, ...

    Raises:
        ValueError: If there are not as many as columns.
    """
    if names is None:
        names = data.names if isinstance(data, Table) else [f"x[{i}]" for i in range(size)]
    if isinstance(names, str) or len(names) != size:
        raise ValueError(
            f"names must be one for each of the {size} columns, got {format_value(names)}."
        )
    return [str(name) for name in names]


def panels_of(
    ax: Axes | None, rows: int, columns: int, size: tuple[float, float]
) -> tuple[Figure, Axes | None, list[Axes]]:
    """Returns a figure, the axes that get the title, and a grid of panels.

    Arguments:
        ax: Axes that the panels share, if any.
        rows: The number of rows.
        columns: The number of columns.
        size: The width and height of a panel in a new figure, in inches.
    """
    from tarspyro.plot.picture import Picture

    if ax is None:
        whole = (size[0] * columns, size[1] * rows + 0.5)
        picture = Picture(figsize=whole, layout="constrained")
        return picture, None, list(picture.subplots(rows, columns, squeeze=False).flat)
    figure, ax = axes_of(ax, size)
    ax.axis("off")
    width = 1 / columns
    height = 1 / rows
    panels = [
        ax.inset_axes((column * width, 1 - (row + 1) * height, 0.78 * width, 0.6 * height))
        for row in range(rows)
        for column in range(columns)
    ]
    return figure, ax, panels


def set_title(figure: Figure, ax: Axes | None, title: str) -> None:
    """Writes the title of panels: over their common axes, or over the figure."""
    if ax is None:
        figure.suptitle(title, fontsize="large")
    else:
        ax.set_title(title)


def grid_of(num: int) -> tuple[int, int]:
    """Returns the rows and columns of a number of panels, with as few empty places as can be.

    Example:
        >>> grid_of(3), grid_of(6), grid_of(11)
        ((1, 3), (2, 3), (3, 4))
    """
    rows = math.ceil(num / _MOST_IN_A_ROW)
    return rows, math.ceil(num / rows)


def set_legend(figure: Figure, ax: Axes | None, panel: Axes) -> None:
    """Writes the legend of a panel below all of them."""
    handles, names = panel.get_legend_handles_labels()
    if ax is None:
        figure.legend(
            handles, names, loc="outside lower center", ncols=len(names), frameon=False
        )
    else:
        below = {"bbox_to_anchor": (0.5, 0.0), "ncols": len(names), "frameon": False}
        ax.legend(handles, names, loc="upper center", **below)


def draw_points(ax: Axes, groups: Mapping[str, np.ndarray]) -> None:
    """Draws clouds of points of shape (N, 2), the first one in grey if there are several."""
    for index, (name, points) in enumerate(groups.items()):
        color = PALETTE[0] if index == len(groups) - 1 else "0.75"
        area = min(16.0, max(3.0, 6000 / max(1, len(points))))
        ax.scatter(
            points[:, 0],
            points[:, 1],
            s=area,
            color=color,
            alpha=0.7,
            linewidths=0,
            label=name,
        )
    ax.set(xlabel="x[0]", ylabel="x[1]")
    ax.set_aspect("equal", adjustable="datalim")
    if len(groups) > 1:
        for handle in ax.legend(frameon=False).legend_handles:
            cast("PathCollection", handle).set_sizes([25.0])


def draw_columns(
    panels: Sequence[Axes], groups: Mapping[str, np.ndarray], names: Sequence[str]
) -> None:
    """Draws a histogram of each column, or the shares of its values if they are few."""
    for column, (panel, name) in enumerate(zip(panels, names, strict=False)):
        parts = [values[:, column] for values in groups.values()]
        parts = [part[np.isfinite(part)] for part in parts]
        levels = np.unique(np.concatenate(parts))
        for index, (part, group) in enumerate(zip(parts, groups, strict=True)):
            is_last = index == len(groups) - 1
            if len(levels) <= _MOST_LEVELS:
                _draw_shares(panel, part, levels, group, is_last)
            else:
                edges = np.histogram_bin_edges(np.concatenate(parts), bins=24)
                style: dict[str, Any] = {
                    "histtype": "step",
                    "color": PALETTE[0],
                    "linewidth": 1.5,
                }
                if not is_last or len(groups) == 1:
                    color = "0.8" if len(groups) > 1 else PALETTE[0]
                    style = {"histtype": "stepfilled", "color": color}
                panel.hist(part, bins=edges.tolist(), density=True, label=group, **style)
        panel.set_title(name, fontsize="small")
        panel.set_yticks([])
        panel.tick_params(labelsize="x-small")
    for panel in panels[len(names) :]:
        panel.set_visible(False)


def _draw_shares(
    panel: Axes, part: np.ndarray, levels: np.ndarray, group: str, is_last: bool
) -> None:
    """Draws the share of each level as a bar, or as a dash over other bars."""
    places = np.arange(len(levels))
    shares = np.array([(part == level).mean() if len(part) else 0.0 for level in levels])
    if is_last and panel.patches:
        panel.plot(places, shares, "_", color=PALETTE[0], markersize=14, label=group)
        panel.lines[-1].set_markeredgewidth(2)
    else:
        panel.bar(places, shares, 0.8, color="0.8" if not is_last else PALETTE[0], label=group)
    shown = range(0, len(levels), math.ceil(len(levels) / 5))
    panel.set_xticks([*shown], [f"{levels[place]:g}" for place in shown])


def draw_lines(
    ax: Axes, lines: np.ndarray, colors: Sequence[Any], names: Sequence[str] | None = None
) -> None:
    """Draws lines of shape (N, T) over their steps, or over the names of columns."""
    for line, color in zip(lines, colors, strict=True):
        steps = np.arange(len(line))
        ax.plot(steps, line, color=color, linewidth=1.2)
    if names is None:
        ax.set_xlabel("step")
        return
    ax.set_xticks(range(len(names)), list(names), rotation=90, fontsize="small")
    ax.grid(axis="x", color="0.9")


def short_ticks(values: Sequence[float] | np.ndarray | Tensor, most: int) -> dict[int, str]:
    """Returns labels for at most so many of the values, equally spaced, the ends among them.

    Example:
        >>> short_ticks([-2.0, -1.0, 0.0, 1.0, 2.0], 3)
        {0: '−2', 2: '0', 4: '2'}
    """
    count = len(values)
    most = min(most, count)
    places = sorted({round(place) for place in np.linspace(0, count - 1, most)})
    return {place: f"{values[place]:.2g}".replace("-", "−") for place in places}
