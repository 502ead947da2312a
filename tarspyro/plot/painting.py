"""Pictures and animations of the canvases of a model such as DRAW."""

from __future__ import annotations

__all__ = ["animation", "canvases"]

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tarspyro import evaluate
from tarspyro.arguments import as_count
from tarspyro.evaluate.batching import first_rows
from tarspyro.plot.figures import ImageShape, axes_of, sheet_of, show
from tarspyro.types import ArrayLike, Data, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def canvases(
    model: Program,
    guide: Program | None = None,
    data: Data | None = None,
    *,
    num: int = 6,
    given: Mapping[str, ArrayLike] | None = None,
    columns: int = 12,
    boxes: bool = True,
    seed: int = 0,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws how a model paints images: a row for each image and a column for each step.

    With a guide and data, the model reconstructs the data, which is drawn at the right;
    without them, it generates images. Red boxes are the windows that each step wrote through.

    Arguments:
        model: The model, such as a ``DRAW``.
        guide: The guide.
        data: The data to reconstruct, in any form that ``fit`` takes; its first
            ``num`` rows are drawn.
        num: The number of images.
        given: More arguments of a model that generates, by name: ``{"y": y}`` for a
            ``ConditionalDRAW``, with a row for each image.
        columns: The largest number of steps to draw; they are equally spaced, and the last
            one is among them.
        boxes: Whether to draw the windows of attention, if the model has it.
        seed: The seed of the draws; the global random state then stays unchanged.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        TypeError: If the model has no canvas.
        ValueError: If one of ``guide`` and ``data`` is missing, or ``columns`` is below 2.
    """
    columns = as_count("columns", columns, 2)
    painted = evaluate.canvases(model, guide, data, num=num, given=given, seed=seed)
    last = painted.images.shape[1] - 1
    equally_spaced = torch.linspace(0, last, min(columns, last + 1)).tolist()
    steps = sorted({round(step) for step in equally_spaced})
    rows = painted.images[:, steps]
    windows = [_windows(painted, step) if boxes else [] for step in steps]
    title = f"canvases after steps {', '.join(map(str, steps))}"
    if data is not None:
        x = torch.as_tensor(first_rows(data, len(rows), model, name="data")[0])
        rows = torch.cat([rows, x.reshape(rows[:, :1].shape).to(rows)], 1)
        windows.append([])
        title += ", and the data"

    count = rows.shape[1]
    figure, ax = axes_of(ax, (0.7 * count, 0.7 * len(rows) + 0.4))
    placed = {
        row * count + column: window
        for column, of_step in enumerate(windows)
        for row, window in enumerate(of_step)
    }
    _draw(ax, rows.flatten(0, 1), placed, count, image_shape)
    ax.set_title(title)
    return figure


def animation(
    path: str | Path,
    model: Program,
    guide: Program | None = None,
    data: Data | None = None,
    *,
    num: int = 36,
    given: Mapping[str, ArrayLike] | None = None,
    boxes: bool = True,
    seed: int = 0,
    frames_per_second: int = 5,
    image_shape: ImageShape = None,
) -> Path:
    """Writes an animated GIF of a model that paints images, with a frame for each step.

    The last frame stays for two seconds, and the animation starts again.

    Arguments:
        path: The file, with the suffix ``.gif``.
        model: See ``canvases``.
        guide: See ``canvases``.
        data: See ``canvases``.
        num: The number of images, which are painted side by side.
        given: See ``canvases``.
        boxes: See ``canvases``.
        seed: See ``canvases``.
        frames_per_second: The number of steps in a second.
        image_shape: See ``canvases``.

    Returns:
        The path.

    Raises:
        ValueError: If the file has another suffix.
    """
    from matplotlib.animation import PillowWriter

    from tarspyro.plot.picture import Picture

    path = Path(path)
    if path.suffix != ".gif":
        raise ValueError(f"path must end in .gif, got {path.name!r}.")
    painted = evaluate.canvases(model, guide, data, num=num, given=given, seed=seed)
    side = math.ceil(math.sqrt(len(painted.images)))
    figure = Picture(figsize=(0.5 * side, 0.5 * side))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    writer = PillowWriter(fps=frames_per_second)
    with writer.saving(figure, str(path), dpi=80):
        for step in range(painted.images.shape[1]):
            ax.clear()
            windows = dict(enumerate(_windows(painted, step))) if boxes else {}
            _draw(ax, painted.images[:, step], windows, side, image_shape)
            writer.grab_frame()
        for _ in range(2 * frames_per_second):
            writer.grab_frame()
    return path


def _windows(painted: evaluate.Canvases, step: int) -> Sequence[Tensor]:
    """Returns the windows that led to the canvases after a step; none before the first one."""
    if painted.boxes is None or step == 0:
        return []
    return painted.boxes[:, step - 1].unbind()


def _draw(
    ax: Axes,
    images: Tensor,
    windows: Mapping[int, Tensor],
    columns: int,
    image_shape: ImageShape,
) -> None:
    """Draws a sheet of images with windows on some of them, clipped at the image.

    Arguments:
        ax: The axes.
        images: The images.
        windows: For the indices of some images the centre, width and scale of the window.
        columns: The number of images in a row.
        image_shape: The shape of an image.
    """
    from matplotlib.patches import Rectangle

    sheet = sheet_of(images, columns, image_shape)
    show(ax, sheet)
    width = (sheet.shape[1] - 1) // columns
    height = (sheet.shape[0] - 1) // math.ceil(len(images) / columns)
    for index, window in windows.items():
        row, column = divmod(index, columns)
        left = column * width + 0.5
        top = row * height + 0.5
        x, y, side, _ = window.tolist()
        # The window reaches from the centre of a pixel to that of another one, and the image
        # from edge to edge.
        corner = (left + 0.5 + x - side / 2, top + 0.5 + y - side / 2)
        box = Rectangle(corner, side, side, fill=False, edgecolor="C3", linewidth=0.9)
        ax.add_patch(box)
        image = Rectangle((left, top), width - 1, height - 1, transform=ax.transData)
        box.set_clip_path(image)
