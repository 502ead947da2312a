"""Figures, axes and sheets of images: what all pictures are made of."""

__all__ = ["Picture", "Shape", "as_array", "as_images", "axes_of", "sheet_of", "show"]

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tarspyro.arguments import as_numbers, as_sizes, format_value
from tarspyro.data import Split
from tarspyro.inputs import as_float

Shape = Sequence[int] | None


class Picture(Figure):
    """A figure that notebooks show by itself, without pyplot's global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        return buffer.getvalue()


def axes_of(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Returns the axes with their figure, of a new figure if there are none."""
    if not isinstance(ax, Axes | None):
        raise TypeError(f"ax must be axes of Matplotlib, got {format_value(ax)}.")
    if ax is not None:
        figure = ax.figure.figure  # the figure of a subfigure too
        assert isinstance(figure, Figure)
        return figure, ax
    figure = Picture(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def as_array(values: Any, name: str = "values") -> np.ndarray:
    """Returns tensors and sequences of numbers as arrays, of which ``name`` is the argument."""
    return as_numbers(name, values).detach().cpu().numpy()


def as_images(name: str, data: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """Returns images, those of a ``Split`` too, with rows as another set has them, if there is
    one.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they have no rows, as a single image, or rows of another shape.
    """
    images = as_float(as_numbers(name, data.x if isinstance(data, Split) else data)).cpu()
    if not images.is_floating_point():
        images = images.to(torch.get_default_dtype())
    if images.dim() < 2 or not len(images):
        raise ValueError(
            f"{name} must have the shape (N, *x), got {tuple(images.shape)}: one image x is a"
            " row, x.unsqueeze(0)."
        )
    if like is not None and images.shape[1:].numel() != like.shape[1:].numel():
        raise ValueError(
            f"{name} must have rows of shape {tuple(like.shape[1:])}, got"
            f" {tuple(images.shape[1:])}: one image x is a row, x.unsqueeze(0)."
        )
    return images


def _image_shape(shape: Sequence[int], image_shape: Shape) -> tuple[int, ...]:
    if image_shape is not None:
        sizes = as_sizes("image_shape", image_shape)
        if len(sizes) not in (2, 3) or math.prod(sizes) != math.prod(shape):
            raise ValueError(
                f"image_shape must be (height, width) of images of shape {tuple(shape)}, got"
                f" {sizes}."
            )
        return sizes
    if len(shape) in (2, 3):
        return tuple(shape)
    known = {560: (28, 20)}  # Frey Face
    size = math.prod(shape)
    side = math.isqrt(size)
    if side * side != size and size not in known:
        raise ValueError(f"image_shape is needed: {size} pixels are no square.")
    return known.get(size, (side, side))


def sheet_of(images: torch.Tensor, columns: int, image_shape: Shape) -> np.ndarray:
    """Puts images side by side, with a line of white between them."""
    array = as_array(images)
    shape = _image_shape(array.shape[1:], image_shape)
    array = array.reshape(len(array), *shape)
    if len(shape) == 3:
        array = np.moveaxis(array, 1, -1)
    height, width = array.shape[1:3]
    rows = math.ceil(len(array) / columns)
    sheet = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1, *array.shape[3:]))
    for index, image in enumerate(array):
        top, left = (index // columns) * (height + 1) + 1, (index % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    return sheet.squeeze(-1) if sheet.ndim == 3 and sheet.shape[-1] == 1 else sheet


def show(ax: Axes, sheet: np.ndarray) -> None:
    """Draws a sheet of images, without axes around it."""
    ax.imshow(np.clip(sheet, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
