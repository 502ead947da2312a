"""Pictures of generated images and of reconstructions."""

from __future__ import annotations

__all__ = ["reconstructions", "samples"]

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tarspyro import evaluate
from tarspyro.arguments import as_count
from tarspyro.autoregressive import Autoregressive
from tarspyro.data import Sequences
from tarspyro.evaluate.batching import first_rows, readable
from tarspyro.inputs import each
from tarspyro.plot.colors import PALETTE
from tarspyro.plot.figures import ImageShape, as_array, as_images, axes_of, sheet_of, show
from tarspyro.plot.forms import (
    as_form,
    draw_columns,
    draw_lines,
    draw_points,
    grid_of,
    names_of,
    panels_of,
    set_legend,
    set_title,
)
from tarspyro.scopes import preserved_rng
from tarspyro.types import ArrayLike, Data, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# How many data points are drawn, if their number is not given.
_RECONSTRUCTED = {"images": 12, "points": 300, "table": 300, "series": 4}
_SAMPLED = {"images": 64, "points": 1000, "table": 1000, "series": 6}


def reconstructions(
    model: Program,
    guide: Program,
    data: Data,
    *,
    num: int | None = None,
    site: str = "x",
    form: str | None = None,
    names: Sequence[str] | None = None,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws data points and their reconstructions from draws of the posterior.

    Images stand above their reconstructions. Points in the plane are joined to theirs. Each
    column of a table has a panel, with the data to the right and the reconstruction upwards.
    Series are grey beneath the lines of their reconstructions.

    Arguments:
        model: The model.
        guide: The guide.
        data: The data, in any form that ``fit`` takes; the first ``num`` are drawn.
        num: The number of data points; 12 images, 4 series, or 300 rows if not given.
        site: The observed site to draw, the first part of the data.
        form: ``"images"``, ``"points"``, ``"table"`` or ``"series"``; see ``samples``.
        names: The names of a table's columns; those of a ``Table`` if not given.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    given = max(_RECONSTRUCTED.values()) if num is None else as_count("num", num)
    rows = first_rows(data, given, model, guide, name="data")
    kind = as_form(
        form, torch.as_tensor(rows[0]), image_shape=image_shape, names=names, data=data
    )
    num = _RECONSTRUCTED[kind] if num is None else num
    rows = each(lambda part: part[:num], rows)
    x = torch.as_tensor(rows[0])
    with preserved_rng(seed=0):
        means = evaluate.reconstruct(model, guide, rows, site=site)
    as_images("data", x, means)
    if kind == "images":
        figure, ax = axes_of(ax, (max(3.0, 0.7 * num), 1.7))
        show(ax, sheet_of(torch.cat([x.cpu(), means.cpu()]), len(x), image_shape))
        ax.set_title("data (above), reconstructions (below)")
        return figure
    pairs = as_array(x), as_array(means)
    if kind == "points":
        return _joined_points(*pairs, ax)
    if kind == "table":
        return _against(*pairs, names_of(names, data, math.prod(x.shape[1:])), ax)
    lengths = rows[1] if isinstance(data, Sequences) else None
    return _beneath(*pairs, lengths, ax)


def _joined_points(x: np.ndarray, means: np.ndarray, ax: Axes | None) -> Figure:
    """Draws points in the plane, each joined to its reconstruction."""
    from matplotlib.collections import LineCollection

    figure, ax = axes_of(ax, (5.2, 4.8))
    segments: Any = np.stack([x, means], 1)
    joined = LineCollection(segments, colors="0.85", linewidths=0.8, zorder=0.5)
    ax.add_collection(joined)
    draw_points(ax, {"data": x, "reconstructions": means})
    ax.set_title("data and reconstructions")
    return figure


def _against(
    x: np.ndarray, means: np.ndarray, names: Sequence[str], ax: Axes | None
) -> Figure:
    """Draws the reconstruction of each column against the data."""
    figure, whole, panels = panels_of(ax, *grid_of(len(names)), (1.8, 1.8))
    x = x.reshape(len(x), -1)
    means = means.reshape(len(means), -1)
    for column, (panel, name) in enumerate(zip(panels, names, strict=False)):
        known = np.isfinite(x[:, column])
        data = x[known, column]
        area = min(12.0, max(3.0, 1200 / max(1, len(data))))
        panel.scatter(
            data, means[known, column], s=area, color=PALETTE[0], alpha=0.5, linewidths=0
        )
        center = float(data.mean()) if len(data) else 0.0
        panel.axline((center, center), slope=1, color="0.6", linewidth=0.8, zorder=0)
        panel.set_title(name, fontsize="small")
        panel.tick_params(labelsize="x-small")
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    set_title(figure, whole, "data (right), reconstructions (upwards)")
    return figure


def _beneath(
    x: np.ndarray, means: np.ndarray, lengths: Tensor | None, ax: Axes | None
) -> Figure:
    """Draws each series in grey beneath the line of its reconstruction, a panel for each."""
    x = x.reshape(len(x), x.shape[1], -1)
    means = means.reshape(x.shape)
    channels = x.shape[2]
    figure, whole, panels = panels_of(ax, len(x), channels, (max(2.2, 6.4 / channels), 1.2))
    for index, panel in enumerate(panels):
        row, channel = divmod(index, channels)
        steps = x.shape[1] if lengths is None else int(lengths[row])
        panel.plot(x[row, :steps, channel], color="0.7", linewidth=3, label="data")
        color = PALETTE[channel % len(PALETTE)]
        panel.plot(means[row, :steps, channel], color=color, linewidth=1.2)
        panel.tick_params(labelsize="x-small")
        if row == 0 and channels > 1:
            panel.set_title(f"x[{channel}]", fontsize="small")
        if row == len(x) - 1:
            panel.set_xlabel("step", fontsize="small")
    set_title(figure, whole, "data (grey), reconstructions (lines)")
    return figure


def samples(
    model: Program,
    *,
    num: int | None = None,
    given: Mapping[str, ArrayLike] | None = None,
    data: Data | None = None,
    mean: bool | None = None,
    seed: int = 0,
    columns: int | None = None,
    site: str = "x",
    length: int | None = None,
    form: str | None = None,
    names: Sequence[str] | None = None,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws what the model generates: images, points, the columns of a table, or series.

    The form follows the shape of a data point. Of two entries, it is a point in the plane. A
    vector that makes a square is an image (of fewer than 49 entries, if all are in [0, 1]);
    another one is a row of a table, or of more than 30 entries a series. Of two dimensions it
    is an image, or with at most four columns and at least eight rows a series.

    Arguments:
        model: A model that generates with ``batch_size``.
        num: The number of data points; 64 images, 6 series, or 1000 rows if not given.
        given: More arguments of the model, by name: ``{"y": y}`` for a ``ConditionalVAE``,
            with one row or ``num`` rows; then ``num`` is 64 if not given.
        data: Data to draw in grey behind points and the histograms of a table.
        mean: Whether to draw the likelihood's means; otherwise draws from it. If not given,
            images are means, and everything else is a draw.
        seed: The seed of the latent variables: with the same seed, sheets of different epochs
            are comparable.
        columns: The number of images in a row; if not given, the sheet is a square.
        site: The site to draw.
        length: The number of steps of a model of sequences, such as the rows of an image.
        form: ``"images"``, ``"points"``, ``"table"`` or ``"series"``, in place of the form that
            suits the shape.
        names: The names of a table's columns; those of a ``Table`` as ``data`` if not given.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        ValueError: If data points have another shape than the form needs, or ``data`` is given
            and they are images or series.
    """
    count = 64 if num is None else as_count("num", num)

    def drawn(count: int, mean: bool) -> Tensor:
        values: Tensor = evaluate.sample(
            model, count, given=given, site=site, length=length, mean=mean, seed=seed
        )
        return values.cpu()

    values = drawn(count, mean is not False)
    kind = as_form(form, values, image_shape=image_shape, names=names, data=data)
    if data is not None and kind in ("images", "series"):
        raise ValueError(
            f"data is drawn behind points and tables, got {kind}: see reconstructions."
        )
    if kind != "images":
        if num is None and given is None:
            count = _SAMPLED[kind]
        values = drawn(count, bool(mean))
    title = "samples"
    # An autoregressive likelihood has no means: it gives draws.
    has_means = not isinstance(getattr(model, "likelihood", None), Autoregressive)
    if has_means and (mean or (mean is None and kind == "images")):
        title += " (means of the likelihood)"
    if kind == "images":
        figure, ax = axes_of(ax, (6.4, 6.4))
        show(ax, sheet_of(values, columns or math.ceil(math.sqrt(count)), image_shape))
        ax.set_title(title)
        return figure
    if kind == "series":
        return _series(as_array(values), title, ax)
    groups = {title: as_array(values).reshape(len(values), -1)}
    if data is not None:
        rows = torch.as_tensor(readable(data, model, name="data").whole()[0])
        as_images("data", rows, values)
        groups = {"data": as_array(rows).reshape(len(rows), -1), **groups}
    if kind == "points":
        figure, ax = axes_of(ax, (5.2, 4.8))
        draw_points(ax, groups)
        ax.set_title(title)
        return figure
    return _columns(groups, names_of(names, data, groups[title].shape[1]), title, ax)


def _columns(
    groups: Mapping[str, np.ndarray], names: Sequence[str], title: str, ax: Axes | None
) -> Figure:
    """Draws a histogram of each column, a panel for each."""
    figure, whole, panels = panels_of(ax, *grid_of(len(names)), (1.8, 1.5))
    draw_columns(panels, groups, names)
    if len(groups) > 1:
        set_legend(figure, whole, panels[0])
    set_title(figure, whole, title)
    return figure


def _series(values: np.ndarray, title: str, ax: Axes | None) -> Figure:
    """Draws series as lines, a panel for each channel."""
    values = values.reshape(len(values), values.shape[1], -1)
    channels = values.shape[2]
    figure, whole, panels = panels_of(ax, channels, 1, (6.4, 3.2 if channels == 1 else 1.6))
    colors = [PALETTE[index % len(PALETTE)] for index in range(len(values))]
    for channel, panel in enumerate(panels):
        draw_lines(panel, values[:, :, channel], colors)
        if channels > 1:
            panel.set_ylabel(f"x[{channel}]")
        if channel < channels - 1:
            panel.set_xlabel("")
    set_title(figure, whole, title)
    return figure
