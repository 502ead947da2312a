"""A page that shows a latent space under the pointer, in one file without a server."""

from __future__ import annotations

__all__ = ["Explorer", "explore"]

import base64
import html
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarspyro import evaluate
from tarspyro.arguments import as_count, as_shape, format_value
from tarspyro.data import Split
from tarspyro.evaluate.batching import readable
from tarspyro.plot.explorer_page import EXPLORER
from tarspyro.plot.figures import as_array, is_channels_last
from tarspyro.plot.pages import page
from tarspyro.types import ArrayLike, Data, Program

# At most so many points along each side of the grid of decoded images, and along each unit's
# slider, and so many data points whose own picture is in the file.
_SIDE = 24
_STEPS = 13
_PICTURES = 1000
# At most so many bytes for each of these three kinds of pictures.
_BYTES = 800_000


class Explorer:
    """A page that ``explore`` has made. A notebook shows it in place.

    Attributes:
        page: The page, as HTML.
        part: The part of the page below its title, for a page of your own.
        path: Its file; None if none was written.
    """

    def __init__(self, title: str, part: str, path: Path | None) -> None:
        self.part = part
        self.page = page(title, part)
        self.path = path

    def __repr__(self) -> str:
        return f"Explorer({len(self.page) / 1e6:.1f} MB, {self.path or 'in memory'})"

    def _repr_html_(self) -> str:
        frame = 'style="width: 100%; height: 640px; border: 0"'
        return f'<iframe srcdoc="{html.escape(self.page, quote=True)}" {frame}></iframe>'


def explore(
    model: Program,
    guide: Program,
    x: Data,
    path: str | Path | None = None,
    *,
    labels: ArrayLike | None = None,
    image_shape: tuple[int, ...] | None = None,
    num_codes: int = 10_000,
    given: Mapping[str, ArrayLike] | None = None,
    latent: str = "z",
    site: str = "x",
    title: str = "latent space",
) -> Explorer:
    """Makes a page on which a latent space is explored with the pointer.

    The page is one file that needs no server and no network. It shows the codes of the data,
    coloured by label. Where the pointer is, it shows what the model decodes there,
    interpolated on a grid that is decoded beforehand, and the data point that is nearest on the
    map. Clicks lay a path, which plays as an animation. The arrow keys move the pointer, Enter
    and Backspace change the path, the space bar plays.

    With more than two units, the axes are the two whose codes vary the most. Each unit has a
    slider. The picture is then the sum of the changes that single units make, which
    approximates the decoder away from the axes.

    Arguments:
        model: A model with one latent variable, that generates with ``batch_size``.
        guide: The guide.
        x: The data, images or rows of numbers, in any form that ``fit`` takes.
        path: The file to write, if any.
        labels: The class of each data point, whole numbers from 0; those of a ``Split`` are
            taken.
        image_shape: The shape of an image, (height, width), (3, height, width) or (height,
            width, 3); read off if not given.
        num_codes: The number of first data points to show.
        given: More arguments of the model, by name, in one row: ``{"y": y}`` for a
            ``ConditionalVAE``, whose y everything is decoded with.
        latent: The name of the latent variable.
        site: The name of the decoded variable.
        title: The title of the page.

    Raises:
        ValueError: If the labels are not as many as the data, a row is no image of that
            shape, or a code is not finite.
    """
    num_codes = as_count("num_codes", num_codes)
    if isinstance(x, Split):
        labels = x.y if labels is None else labels
        x = x.x
    source = readable(x, guide)
    known = source.first(num_codes)
    rows = torch.as_tensor(known[0])
    count = len(rows) if labels is None else source.count()
    colours = _labels(labels, count)[:num_codes]
    codes = torch.as_tensor(evaluate.embed(guide, known, site=latent)).cpu().double()
    event = codes.shape[1:]
    codes = codes.flatten(1)
    shape = _image_shape(rows, image_shape)
    if not codes.isfinite().all():
        raise ValueError(
            "the guide's codes must be finite, got NaN or infinity: train it anew."
        )

    pixels = _pixels(torch.empty(1, *shape), shape)
    content = {"shape": [*pixels.shape[1:]], "labels": colours, "labelled": labels is not None}

    def decode(points: Tensor) -> Tensor:
        points = points.float().reshape(-1, *event)
        images = evaluate.decode(model, points, given=given, latent=latent, site=site)
        return torch.as_tensor(images).cpu()

    content |= _pictured(decode, codes, rows, shape)
    # A closing tag inside the data would end the script.
    data = json.dumps(content, separators=(",", ":")).replace("</", "<\\/")
    file = None if path is None else Path(path)
    explorer = Explorer(title, EXPLORER.replace("$DATA", data), file)
    if file is not None:
        file.write_text(explorer.page, encoding="utf-8")
    return explorer


def _pictured(
    decode: Callable[[Tensor], Tensor], codes: Tensor, rows: Tensor, shape: tuple[int, ...]
) -> dict[str, object]:
    """Returns the codes, what the model decodes around them, and the data, as text."""
    spread = codes.std(0) if len(codes) > 1 else torch.ones(codes.shape[1])
    axes = spread.argsort(descending=True)[:2].tolist()
    axes = axes if len(axes) == 2 else [0, 0]
    low = codes.quantile(0.002, 0) - 0.3 * spread
    high = codes.quantile(0.998, 0) + 0.3 * spread
    centre = codes.mean(0)

    units = codes.shape[1]
    number = _BYTES // math.prod(shape)
    side = min(_SIDE, max(6, math.isqrt(number)))
    steps = min(_STEPS, max(3, number // units))
    several = units if units > 2 else 0
    lines = [_line(centre, low, high, unit, steps) for unit in range(several)]
    return {
        "axes": axes,
        "low": low.tolist(),
        "high": high.tolist(),
        "centre": centre.tolist(),
        "side": side,
        "steps": steps,
        "codes": _packed(_scaled(codes, low, high)),
        "grid": _encoded(decode(_grid(centre, low, high, axes, side)), shape, rows),
        "strips": [_encoded(decode(line), shape, rows) for line in lines],
        "data": _encoded(rows[: min(_PICTURES, max(20, number))], shape, rows),
    }


def _labels(labels: ArrayLike | None, count: int) -> list[int]:
    if labels is None:
        return [0] * count
    values = as_array(labels, "labels")
    if values.ndim == 2:
        values = values.argmax(1)
    if values.shape != (count,):
        raise ValueError(
            f"labels must have one number for each of {count} data points, got shape"
            f" {values.shape}."
        )
    numbers = [float(value) for value in values] if values.dtype.kind in "biuf" else [math.nan]
    if not all(number.is_integer() for number in numbers):
        raise ValueError(
            "labels must be whole numbers, the class of each data point, got"
            f" {format_value(labels)}."
        )
    return [int(number) for number in numbers]


def _image_shape(rows: Tensor, given: tuple[int, ...] | None) -> tuple[int, ...]:
    """Returns the shape of a picture, as its numbers lie; a vector is one line of pixels."""
    size = math.prod(rows.shape[1:])
    shape = (
        tuple(as_shape("image_shape", given)) if given is not None else tuple(rows.shape[1:])
    )
    if given is None and len(shape) == 1:
        side = math.isqrt(size)
        shape = (side, side) if side**2 == size else (1, size)
    if math.prod(shape) != size or len(shape) not in (2, 3):
        raise ValueError(
            f"image_shape must be that of {size} numbers, (height, width) or (3, height,"
            f" width), got {given if given is not None else tuple(rows.shape[1:])}."
        )
    return shape


def _pixels(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns images as pixels of shape (N, height, width, channels)."""
    images = images.reshape(len(images), *shape)
    if len(shape) == 2:
        return images.unsqueeze(-1)
    return images if is_channels_last(shape) else images.movedim(1, -1)


def _grid(centre: Tensor, low: Tensor, high: Tensor, axes: list[int], side: int) -> Tensor:
    """Returns the points of a grid over two units, row by row from below."""
    steps = torch.linspace(0, 1, side, dtype=torch.double)
    points = centre.repeat(side * side, 1)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    for axis, place in zip(axes[::-1], (down, right), strict=True):
        points[:, axis] = low[axis] + place.flatten() * (high[axis] - low[axis])
    return points


def _line(centre: Tensor, low: Tensor, high: Tensor, unit: int, steps: int) -> Tensor:
    places = torch.linspace(0, 1, steps, dtype=torch.double)
    points = centre.repeat(steps, 1)
    points[:, unit] = low[unit] + places * (high[unit] - low[unit])
    return points


def _encoded(images: Tensor, shape: tuple[int, ...], data: Tensor) -> str:
    """Returns images as bytes, in base 64: the range of the data is black to white."""
    known = data.double().nan_to_num()
    low = min(0.0, float(known.min()))
    high = max(1.0, float(known.max()))
    pixels = _pixels(images.double().nan_to_num(), shape)
    levels = ((pixels - low) / (high - low) * 255).round().clamp(0, 255)
    return _text(levels.numpy().astype(np.uint8))


def _scaled(codes: Tensor, low: Tensor, high: Tensor) -> np.ndarray:
    """Returns codes as whole numbers of 16 bits, from the low to the high end."""
    width = (high - low).clamp(min=1e-12)
    levels = ((codes - low) / width * 65535).round().clamp(0, 65535)
    return levels.numpy().astype("<u2")


def _packed(values: np.ndarray) -> dict[str, Any]:
    return {"rows": len(values), "units": values.shape[1], "bytes": _text(values)}


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
