"""Pictures of canvases that a model paints, step by step, and an animation of them."""

__all__ = ["animation", "canvases"]

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from tarspyro import evaluate
from tarspyro.arguments import as_count
from tarspyro.inputs import as_arguments
from tarspyro.plot.figures import Picture, Shape, axes_of, sheet_of, show


def canvases(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    data: Any = None,
    *,
    num: int = 6,
    given: Mapping[str, Any] | None = None,
    columns: int = 12,
    boxes: bool = True,
    seed: int = 0,
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws how a model paints: one row an image, one column a step, with the window that the
    step wrote through.

    With a guide and data, the images that it reconstructs, with the data at the right;
    without, ones that it generates.

    Arguments:
        model: The model, such as a ``DRAW``.
        guide: The guide.
        data: The data to reconstruct, in any form that ``fit`` takes in memory; the first
            ``num`` rows are drawn.
        num: How many images.
        given: What else the model needs to generate, by name: ``{"y": y}`` for a
            ``ConditionalDRAW``, with a row for each image.
        columns: How many steps to draw at most, in equal distances, the last one among them.
        boxes: Whether to draw the windows of attention, if the model has it.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        TypeError: If the model has no canvas.
        ValueError: If one of ``guide`` and ``data`` is missing, or ``columns`` is below 2.
    """
    columns = as_count("columns", columns, 2)
    painted = evaluate.canvases(model, guide, data, num=num, given=given, seed=seed)
    last = painted.images.shape[1] - 1
    shown = sorted(
        {round(step) for step in torch.linspace(0, last, min(columns, last + 1)).tolist()}
    )
    images, edge = painted.images[:, shown], []
    if data is not None:
        x = (as_arguments(data, model) or (torch.as_tensor(data),))[0][: len(images)]
        edge = [x.reshape(images[:, :1].shape).to(images)]
    rows = torch.cat([images, *edge], 1)
    figure, ax = axes_of(ax, (0.7 * rows.shape[1], 0.7 * len(rows) + 0.4))
    windows = [
        painted.boxes[row, step - 1] if boxes and painted.boxes is not None and step else None
        for row in range(len(rows))
        for step in (*shown, *[0] * len(edge))
    ]
    _draw(ax, rows.flatten(0, 1), windows, rows.shape[1], image_shape)
    ax.set_title(
        f"canvases after steps {', '.join(map(str, shown))}"
        + (", and the data" if edge else "")
    )
    return figure


def animation(
    path: str | Path,
    model: Callable[..., Any],
    guide: Callable[..., Any] | None = None,
    data: Any = None,
    *,
    num: int = 36,
    given: Mapping[str, Any] | None = None,
    boxes: bool = True,
    seed: int = 0,
    frames_per_second: int = 5,
    image_shape: Shape = None,
) -> Path:
    """Writes a GIF of how a model paints, one frame a step; it rests on the last one, and
    begins again.

    Arguments:
        path: The file, whose name ends in ``.gif``.
        model: See ``canvases``.
        guide: See ``canvases``.
        data: See ``canvases``.
        num: How many images are painted side by side, in a square if they fill one.
        given: See ``canvases``.
        boxes: See ``canvases``.
        seed: See ``canvases``.
        frames_per_second: How many steps are shown in a second.
        image_shape: See ``canvases``.

    Returns:
        The path.

    Raises:
        ValueError: If the name of the file ends otherwise.
    """
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
            windows = (
                list(painted.boxes[:, step - 1])
                if boxes and painted.boxes is not None and step
                else []
            )
            _draw(ax, painted.images[:, step], windows, side, image_shape)
            writer.grab_frame()
        for _ in range(2 * frames_per_second):
            writer.grab_frame()
    return path


def _draw(
    ax: Axes,
    images: Tensor,
    windows: Sequence[Tensor | None],
    columns: int,
    image_shape: Shape,
) -> None:
    """Draws a sheet of images, and of those that have one the window, as far as it is on its
    image.
    """
    sheet = sheet_of(images, columns, image_shape)
    show(ax, sheet)
    width, height = (
        (sheet.shape[1] - 1) // columns,
        (sheet.shape[0] - 1) // math.ceil(len(images) / columns),
    )
    for index, window in enumerate(windows):
        if window is None:
            continue
        left, top = index % columns * width + 0.5, index // columns * height + 0.5
        x, y, side, _ = window.tolist()
        # The window reaches from the centre of one pixel to that of another, and the image
        # from edge to edge.
        corner = left + 0.5 + x - side / 2, top + 0.5 + y - side / 2
        patch = ax.add_patch(
            Rectangle(corner, side, side, fill=False, edgecolor="C3", linewidth=0.9)
        )
        patch.set_clip_path(
            Rectangle((left, top), width - 1, height - 1, transform=ax.transData)
        )
