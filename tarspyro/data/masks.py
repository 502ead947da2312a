"""Masks of missing pixels for ``evaluate.impute``, and the quadrants of images for a
``ConditionalVAE``.
"""

__all__ = ["join_quadrants", "lower_half", "off_grid", "quadrants", "random_pixels"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, as_seed, as_sizes, check_number
from tarspyro.data.dense import dense


def lower_half(x: Tensor, *, image_shape: Sequence[int] | None = None) -> Tensor:
    """Returns the mask of images whose lower half is missing. Of an odd number of rows, the
    middle one is missing too.

    Arguments:
        x: Images of shape (N, C, H, W), (N, H, W) or (N, P), in any form that ``fit`` takes.
        image_shape: The shape of an image whose P pixels stand in one row; if not given, the
            images are square.

    Returns:
        Booleans of the shape of x, true in the upper half, where pixels are observed.

    Raises:
        ValueError: If the images have another shape, or are not square.

    Example:
        >>> lower_half(torch.zeros(1, 3, 2))
        tensor([[[ True,  True],
                 [False, False],
                 [False, False]]])
    """
    x = _images(x)
    mask = _all_observed(x, image_shape)
    mask[..., mask.shape[-2] // 2 :, :] = False
    return mask.reshape(x.shape)


def off_grid(x: Tensor, step: int, *, image_shape: Sequence[int] | None = None) -> Tensor:
    """Returns the mask of images of which only the pixels on a grid are observed.

    Of 28x28 pixels a step of 2 leaves an image of 14x14, a step of 4 one of 7x7. To impute the
    other pixels is super-resolution.

    Arguments:
        x: Images, see ``lower_half``.
        step: The distance of the lines of the grid. The first line is in the middle of the
            first ``step`` rows or columns.
        image_shape: See ``lower_half``.

    Returns:
        Booleans of the shape of x, true on the grid.

    Raises:
        ValueError: If the images have another shape, or the step is less than 1 or more than a
            side of the images.

    Example:
        >>> off_grid(torch.zeros(1, 4, 4), 2).int()
        tensor([[[0, 0, 0, 0],
                 [0, 1, 0, 1],
                 [0, 0, 0, 0],
                 [0, 1, 0, 1]]], dtype=torch.int32)
    """
    x = _images(x)
    mask = _all_observed(x, image_shape)
    side = min(mask.shape[-2:])
    step = as_count("step", step, most=side, most_is="the side of the images")
    grid = torch.zeros_like(mask)
    grid[..., step // 2 :: step, step // 2 :: step] = True
    return grid.reshape(x.shape)


def random_pixels(x: Tensor, missing: float = 0.5, *, seed: int | None = None) -> Tensor:
    """Returns the mask of images of which each pixel is missing with the same probability,
    independently of all others.

    This is "missing completely at random" (Rubin 1976).

    Arguments:
        x: Data of any shape.
        missing: The probability that a pixel is missing.
        seed: The seed of the draws; they are from the global generator if not given.

    Returns:
        Booleans of the shape of x, true where a pixel is observed.

    Raises:
        ValueError: If ``missing`` is not from 0 to 1.

    Example:
        >>> random_pixels(torch.zeros(100, 784), 0.8, seed=0).float().mean().round(decimals=2)
        tensor(0.2000)
    """
    check_number("missing", missing, 0, 1)
    x = dense("x", x)
    generator = None if seed is None else torch.Generator().manual_seed(as_seed(seed))
    return (torch.rand(x.shape, generator=generator) >= missing).to(x.device)


def quadrants(x: Tensor, given: int) -> tuple[Tensor, Tensor]:
    """Returns the missing and the given pixels of square images: data for a
    ``ConditionalVAE``, in its order.

    The task of Sohn et al. (2015): given one, two or three quadrants, predict the rest. The
    lower left quadrant is given first, then the upper left, then the upper right. The lower
    right quadrant is never given. Pixels stand quadrant by quadrant in this order, and row by
    row within each.

    Arguments:
        x: Grey images of a shape such as (N, 784) or (N, 1, 28, 28).
        given: The number of quadrants that are given: 1, 2 or 3.

    Returns:
        For images of P pixels, the missing pixels of shape (N, (4 - given) P / 4) and the
        given ones of shape (N, given P / 4).

    Raises:
        ValueError: If ``given`` is not 1, 2 or 3, or the images are not square with an even
            side.

    Example:
        >>> from tarspyro.data import digits
        >>> missing, given = quadrants(digits().test.x, 1)
        >>> missing.shape, given.shape
        (torch.Size([360, 48]), torch.Size([360, 16]))
        >>> bool((join_quadrants(missing, given) == digits().test.x).all())
        True
    """
    given = as_count("given", given, most=3)
    flat = _images(x).flatten(1)
    num_pixels = flat.shape[1]
    pixels = flat[:, _quadrant_order(num_pixels)]
    split = given * num_pixels // 4
    return pixels[:, split:], pixels[:, :split]


def join_quadrants(missing: Tensor, given: Tensor) -> Tensor:
    """Returns the flat images whose parts ``quadrants`` returned, of shape (N, P).

    Raises:
        ValueError: If the parts differ in their leading dimensions, or together are not square
            images with an even side.
    """
    missing = as_numbers("missing", missing)
    given = as_numbers("given", given)
    if not missing.dim() or not given.dim() or missing.shape[:-1] != given.shape[:-1]:
        raise ValueError(
            "missing and given must be parts of the same images, got shapes"
            f" {tuple(missing.shape)} and {tuple(given.shape)}."
        )
    pixels = torch.cat([given, missing], -1)
    return pixels[..., _quadrant_order(pixels.shape[-1]).argsort()]


def _quadrant_order(num_pixels: int) -> Tensor:
    """The indices of the pixels, quadrant by quadrant: lower left, upper left, upper right,
    lower right.
    """
    half = math.isqrt(num_pixels) // 2
    if 4 * half * half != num_pixels:
        raise ValueError(
            f"quadrants needs square images with an even side, got images of {num_pixels}"
            " pixels."
        )
    rows_and_columns = torch.arange(num_pixels).reshape(2, half, 2, half)
    blocks = rows_and_columns.transpose(1, 2).reshape(4, half * half)
    return blocks[[2, 0, 1, 3]].flatten()


def _images(x: Tensor) -> Tensor:
    x = dense("x", x)
    if x.dim() < 2:
        raise ValueError(
            f"x must be images of a shape such as (N, 784), got {tuple(x.shape)}."
        )
    return x


def _all_observed(x: Tensor, image_shape: Sequence[int] | None) -> Tensor:
    """A mask that is true everywhere, with rows and columns in the last two dimensions."""
    event_shape = tuple(x.shape[1:])
    shape = event_shape
    if image_shape is not None:
        shape = as_sizes("image_shape", image_shape)
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        if side * side != shape[0]:
            raise ValueError(f"image_shape is needed: {shape[0]} pixels are no square.")
        shape = (side, side)
    if not 2 <= len(shape) <= 3 or math.prod(shape) != math.prod(event_shape):
        raise ValueError(
            f"image_shape must be that of the images, {event_shape}, got {shape}."
        )
    return torch.ones(len(x), *shape, dtype=torch.bool, device=x.device)
