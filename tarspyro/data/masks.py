"""Which pixels of images are missing: masks for ``evaluate.impute``, true where a pixel is
observed.
"""

__all__ = ["lower_half", "off_grid", "random_pixels"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, as_seed, as_sizes, check_number


def lower_half(x: Tensor, *, image_shape: Sequence[int] | None = None) -> Tensor:
    """Returns the mask of images whose lower half is missing, with what is in the middle row
    of an odd number.

    Arguments:
        x: Images of shape (N, C, H, W), (N, H, W) or (N, P), square ones of P pixels if no
            ``image_shape`` is given.
        image_shape: The shape of an image whose pixels stand in one row.

    Returns:
        Booleans of the shape of x, true in the upper half.

    Raises:
        ValueError: If the shape of the images is not known.

    Example:
        >>> lower_half(torch.zeros(1, 3, 2))
        tensor([[[ True,  True],
                 [False, False],
                 [False, False]]])
    """
    mask = _images(x, image_shape)
    mask[..., mask.shape[-2] // 2 :, :] = False
    return mask.reshape(as_numbers("x", x).shape)


def off_grid(x: Tensor, step: int, *, image_shape: Sequence[int] | None = None) -> Tensor:
    """Returns the mask of images that are missing off the grid of every so many rows and
    columns.

    What remains of 28x28 pixels is an image of 14x14 with a step of 2, of 7x7 with a step of
    4: imputing the others is super-resolution.

    Arguments:
        x: See ``lower_half``.
        step: The distance of the grid's lines; the first are in the middle of the first so
            many rows and columns.
        image_shape: See ``lower_half``.

    Returns:
        Booleans of the shape of x, true on the grid.

    Raises:
        ValueError: If the shape of the images is not known, or the step is less than 1 or more
            than a side.

    Example:
        >>> off_grid(torch.zeros(1, 4, 4), 2).int()
        tensor([[[0, 0, 0, 0],
                 [0, 1, 0, 1],
                 [0, 0, 0, 0],
                 [0, 1, 0, 1]]], dtype=torch.int32)
    """
    mask = _images(x, image_shape)
    if as_count("step", step, 0) not in range(1, min(mask.shape[-2:]) + 1):
        raise ValueError(
            f"step must lie between 1 and the side of the images, {min(mask.shape[-2:])}, got"
            f" {step}."
        )
    grid = torch.zeros_like(mask)
    grid[..., step // 2 :: step, step // 2 :: step] = True
    return grid.reshape(as_numbers("x", x).shape)


def random_pixels(x: Tensor, missing: float = 0.5, *, seed: int | None = None) -> Tensor:
    """Returns the mask of images of which each pixel is missing with some probability,
    whatever the others are.

    Missing completely at random, in the words of Rubin (1976).

    Arguments:
        x: Data of any shape.
        missing: The probability.
        seed: Makes the draws those of this seed; from the global generator if not given.

    Returns:
        Booleans of the shape of x, true where it is observed.

    Raises:
        ValueError: If ``missing`` is no probability.

    Example:
        >>> random_pixels(torch.zeros(100, 784), 0.8, seed=0).float().mean().round(decimals=2)
        tensor(0.2000)
    """
    check_number("missing", missing, 0, 1)
    x = as_numbers("x", x)
    generator = None if seed is None else torch.Generator().manual_seed(as_seed(seed))
    return (torch.rand(x.shape, generator=generator) >= missing).to(x.device)


def _images(x: Tensor, image_shape: Sequence[int] | None) -> Tensor:
    """All true, with rows and columns in the last two dimensions."""
    x = as_numbers("x", x)
    if x.dim() < 2:
        raise ValueError(
            f"x must be images of a shape such as (N, 784), got {tuple(x.shape)}."
        )
    shape = tuple(x.shape[1:]) if image_shape is None else as_sizes("image_shape", image_shape)
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        if side * side != shape[0]:
            raise ValueError(f"image_shape is needed: {shape[0]} pixels are no square.")
        shape = (side, side)
    if not 2 <= len(shape) <= 3 or math.prod(shape) != math.prod(x.shape[1:]):
        raise ValueError(
            f"image_shape must be that of the images, {tuple(x.shape[1:])}, got {shape}."
        )
    return torch.ones(len(x), *shape, dtype=torch.bool, device=x.device)
