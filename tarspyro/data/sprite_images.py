"""Generated images of one shape each, whose factors of variation are known."""

__all__ = ["Sprites", "sprites"]

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tarspyro.arguments import as_count

# The largest shape reaches so far from its centre, as a share of the image's width.
_REACH = 0.24
# The smallest shape, as a share of the largest.
_SMALLEST = 0.5
# The points of a pixel, in each direction, at which a shape is looked up.
_POINTS = 3


@dataclass(frozen=True)
class Sprites:
    """Images of a shape, one for each combination of its factors.

    Attributes:
        x: The images, zeros and ones of shape (N, 1, size, size).
        factors: The values of the factors, integers from 0 of shape (N, 5): shape, scale,
            orientation, horizontal and vertical position.
        names: The names of the factors.
        categorical: The columns of factors whose values have no order.
    """

    x: Tensor
    factors: Tensor
    names: ClassVar[tuple[str, ...]] = (
        "shape",
        "scale",
        "orientation",
        "horizontal",
        "vertical",
    )
    categorical: ClassVar[tuple[int, ...]] = (0,)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        sizes = (self.factors.amax(0) + 1).tolist()
        factors = ", ".join(
            f"{size} of {name}" for name, size in zip(self.names, sizes, strict=True)
        )
        return f"Sprites: {len(self)} images of shape {tuple(self.x.shape[1:])}, {factors}"


def sprites(
    *,
    size: int = 32,
    shapes: int = 3,
    scales: int = 4,
    orientations: int = 8,
    positions: int = 8,
) -> Sprites:
    """Returns binary images of a square, an ellipse or a heart, in every combination of shape,
    scale, orientation and place.

    They are generated, in a second, and are the same in each run. The factors are those of
    dSprites (Matthey et al. 2017), with fewer values by default: 6,144 images. As there,
    orientations go once around, so some of a square's and of an ellipse's look the same.

    Arguments:
        size: The height and the width of an image in pixels.
        shapes: The number of shapes, from 1 to 3.
        scales: The number of scales.
        orientations: The number of orientations.
        positions: The number of positions in each direction.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If an argument is out of range.

    Example:
        >>> data = sprites(orientations=2, positions=4)
        >>> data
        Sprites: 384 images of shape (1, 32, 32), 3 of shape, 4 of scale, 2 of orientation,
        4 of horizontal, 4 of vertical
        >>> data.factors[0].tolist(), data.factors[-1].tolist()
        ([0, 0, 0, 0, 0], [2, 3, 1, 3, 3])
    """  # noqa: E501
    size = as_count("size", size, 8)
    counts = {
        "shapes": shapes,
        "scales": scales,
        "orientations": orientations,
        "positions": positions,
    }
    shapes, scales, orientations, positions = (
        as_count(name, count) for name, count in counts.items()
    )
    if shapes > len(_SHAPES):
        raise ValueError(f"shapes must be from 1 to {len(_SHAPES)}, got {shapes}.")
    sizes = (shapes, scales, orientations, positions, positions)
    factors = torch.cartesian_prod(*(torch.arange(count) for count in sizes))
    of_shapes = factors.split(len(factors) // shapes)
    parts = []
    for within, of_shape in zip(_SHAPES[:shapes], of_shapes, strict=True):
        parts += [_images(within, part, sizes, size) for part in of_shape.split(500)]
    x = torch.cat(parts)
    return Sprites(x, factors)


def _images(
    within: Callable[[Tensor, Tensor], Tensor],
    factors: Tensor,
    sizes: tuple[int, ...],
    size: int,
) -> Tensor:
    """Returns images of a shape, the pixels that it covers by half or more."""
    _, scale, turn, across, down = factors.reshape(-1, 5, 1, 1).unbind(1)
    reach = _REACH * (_SMALLEST + (1 - _SMALLEST) * (scale + 1) / sizes[1])
    angle = 2 * math.pi * turn / sizes[2]
    centre_x = _REACH + (1 - 2 * _REACH) * (across + 0.5) / sizes[3]
    centre_y = _REACH + (1 - 2 * _REACH) * (down + 0.5) / sizes[4]

    points = (torch.arange(size * _POINTS) + 0.5) / (size * _POINTS)
    right = (points - centre_x) / reach
    up = (centre_y - points[:, None]) / reach
    x = right * angle.cos() + up * angle.sin()
    y = up * angle.cos() - right * angle.sin()
    pixels = within(x, y).float().reshape(-1, size, _POINTS, size, _POINTS).mean((2, 4))
    return (pixels >= 0.5).float().unsqueeze(1)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) <= 0.7


def _ellipse(x: Tensor, y: Tensor) -> Tensor:
    return x**2 + (2 * y) ** 2 <= 1


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x = 1.3 * x
    y = 1.3 * y
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


_SHAPES = (_square, _ellipse, _heart)
