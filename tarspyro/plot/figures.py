"""Figures, axes and sheets of images, which the pictures are made of."""

from __future__ import annotations

__all__ = [
    "ImageShape",
    "as_array",
    "as_images",
    "axes_of",
    "image_shape_of",
    "is_channels_last",
    "mass_levels",
    "sheet_of",
    "show",
]

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tarspyro.arguments import as_numbers, as_sizes, format_value, numpy_of
from tarspyro.data import Split
from tarspyro.data.dense import dense
from tarspyro.infer.matching import one_row
from tarspyro.inputs import as_float
from tarspyro.types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The shape of an image: (height, width), (channels, height, width) or (height, width,
# channels); None to read it off.
ImageShape: TypeAlias = Sequence[int] | None

# An image is grey, in colour, or in colour with transparency.
_CHANNELS = (1, 3, 4)

# Larger values than these are bytes, from 0 to 255.
_LARGEST_GREY = 16.0

# The shapes of images that are not square, by their number of pixels: Frey Face.
_KNOWN_SHAPES = {560: (28, 20)}

# The shares of the mass of a two-dimensional Gaussian within two and one standard deviations.
_LEVELS = (0.8647, 0.3935)


def axes_of(ax: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Returns the given axes with their figure, or those of a new figure.

    Arguments:
        ax: The axes, if any.
        size: The width and height of a new figure, in inches.

    Raises:
        TypeError: If ``ax`` is something else.
    """
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tarspyro.plot.picture import Picture

    if ax is None:
        picture = Picture(figsize=size, layout="constrained")
        return picture, picture.add_subplot()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be axes of Matplotlib, got {format_value(ax)}.")
    figure = ax.figure.figure  # also that of axes in a subfigure
    assert isinstance(figure, Figure)
    return figure, ax


def as_array(values: ArrayLike, name: str = "values") -> np.ndarray:
    """Returns numbers as an array; errors call them by the name."""
    return numpy_of(as_numbers(name, values))


def as_images(name: str, data: ArrayLike | Split, like: Tensor | None = None) -> Tensor:
    """Returns images as a tensor of floating-point numbers, also those of a ``Split``.

    Arguments:
        name: The name of the argument, for errors.
        data: The images.
        like: Images whose rows have the same number of pixels, if any.

    Raises:
        TypeError: If they are not numbers.
        InputError: If they are a single image without the dimension of rows.
        ValueError: If they have no rows, or rows of another shape.
    """
    images = as_float(dense(name, data)).cpu()
    if not images.is_floating_point():
        images = images.to(torch.get_default_dtype())
    if images.dim() == 1 and len(images):
        raise one_row(name, images)
    if images.dim() < 2 or not len(images):
        raise ValueError(f"{name} must have the shape (N, *x), got {tuple(images.shape)}.")
    if like is not None and images.shape[1:].numel() != like.shape[1:].numel():
        if images.shape == like.shape[1:]:
            raise one_row(name, images)
        raise ValueError(
            f"{name} must have rows of shape {tuple(like.shape[1:])}, got"
            f" {tuple(images.shape[1:])}."
        )
    return images


def sheet_of(images: Tensor, columns: int, image_shape: ImageShape) -> np.ndarray:
    """Returns a sheet of images side by side, with a white line between them.

    Arguments:
        images: The images, of shape ``(N, *x)``.
        columns: The number of images in a row.
        image_shape: The shape of an image, if it cannot be read off x.

    Raises:
        ValueError: If the shape is needed, or does not fit.
    """
    array = as_array(images)
    shape = _image_shape(array.shape[1:], image_shape)
    array = array.reshape(len(array), *shape)
    if len(shape) == 3 and not is_channels_last(shape):
        array = np.moveaxis(array, 1, -1)
    if array.max(initial=0.0) > _LARGEST_GREY:
        array = array / 255
    height, width = array.shape[1:3]
    rows = math.ceil(len(array) / columns)

    sheet = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1, *array.shape[3:]))
    for index, image in enumerate(array):
        row, column = divmod(index, columns)
        top = row * (height + 1) + 1
        left = column * (width + 1) + 1
        sheet[top : top + height, left : left + width] = image
    return sheet.squeeze(-1) if sheet.shape[2:] == (1,) else sheet


def is_channels_last(shape: Sequence[int]) -> bool:
    """Whether three sizes are (height, width, channels), and not (channels, height, width).

    Raises:
        ValueError: If neither the first nor the last is a number of channels.

    Example:
        >>> is_channels_last((3, 8, 8)), is_channels_last((8, 8, 3))
        (False, True)
    """
    if shape[0] in _CHANNELS:
        return False
    if shape[-1] in _CHANNELS:
        return True
    raise ValueError(
        f"images must have 1, 3 or 4 channels, before or after height and width, got shape"
        f" {tuple(shape)}: give image_shape=(height, width) with a place for every number."
    )


def _image_shape(shape: Sequence[int], image_shape: ImageShape) -> tuple[int, ...]:
    """Returns the shape of an image: the given one, or the one that x has."""
    size = math.prod(shape)
    if image_shape is not None:
        sizes = as_sizes("image_shape", image_shape)
        if len(sizes) not in (2, 3) or math.prod(sizes) != size:
            raise ValueError(
                f"image_shape must be (height, width) of images of shape {tuple(shape)}, got"
                f" {sizes}."
            )
        return sizes
    if len(shape) in (2, 3):
        return tuple(shape)
    found = image_shape_of(size)
    if found is None:
        raise ValueError(
            f"image_shape is needed: {size} pixels make no square, so give (height, width)."
        )
    return found


def image_shape_of(size: int) -> tuple[int, int] | None:
    """Returns the shape of an image of so many pixels: a square, or a known shape; else None."""
    side = math.isqrt(size)
    return (side, side) if side * side == size else _KNOWN_SHAPES.get(size)


def show(ax: Axes, sheet: np.ndarray) -> None:
    """Draws a sheet of images in grey or colour, without ticks and spines."""
    ax.imshow(np.clip(sheet, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def mass_levels(density: np.ndarray) -> list[float]:
    """Returns the heights above which a density on a grid holds 86 % and 39 % of its mass."""
    ordered = np.sort(density, axis=None)[::-1]
    mass = ordered.cumsum() / ordered.sum()
    return sorted({float(ordered[np.searchsorted(mass, level)]) for level in _LEVELS})
