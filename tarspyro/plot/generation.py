"""Pictures of generated images and of reconstructions."""

from __future__ import annotations

__all__ = ["reconstructions", "samples"]

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from tarspyro import evaluate
from tarspyro.arguments import as_count
from tarspyro.evaluate.batching import first_rows
from tarspyro.plot.figures import ImageShape, as_images, axes_of, sheet_of, show
from tarspyro.scopes import preserved_rng
from tarspyro.types import ArrayLike, Data, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def reconstructions(
    model: Program,
    guide: Program,
    data: Data,
    *,
    num: int = 12,
    site: str = "x",
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws data points above their reconstructions from draws of the posterior.

    Arguments:
        model: The model.
        guide: The guide.
        data: The data, in any form that ``fit`` takes in memory; the first ``num`` are drawn.
        num: The number of data points.
        site: The observed site to draw, the first part of the data.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    num = as_count("num", num)
    rows = first_rows(data, num, model, name="data")
    x = torch.as_tensor(rows[0])
    with preserved_rng(seed=0):
        means = evaluate.reconstruct(model, guide, rows, site=site)
    as_images("data", x, means)
    figure, ax = axes_of(ax, (max(3.0, 0.7 * num), 1.7))
    show(ax, sheet_of(torch.cat([x.cpu(), means.cpu()]), len(x), image_shape))
    ax.set_title("data (above), reconstructions (below)")
    return figure


def samples(
    model: Program,
    *,
    num: int = 64,
    given: Mapping[str, ArrayLike] | None = None,
    mean: bool = True,
    seed: int = 0,
    columns: int | None = None,
    site: str = "x",
    length: int | None = None,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws a sheet of images that the model generates.

    Arguments:
        model: A model that generates with ``batch_size``.
        num: The number of images.
        given: More arguments of the model, by name: ``{"y": y}`` for a ``ConditionalVAE``,
            with one row or ``num`` rows.
        mean: Whether to draw the likelihood's means; otherwise draws from it.
        seed: The seed of the latent variables: with the same seed, sheets of different epochs
            are comparable.
        columns: The number of images in a row; if not given, the sheet is a square.
        site: The site to draw.
        length: The number of steps of a model of sequences, such as the rows of an image.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    num = as_count("num", num)
    images = evaluate.sample(
        model, num, given=given, site=site, length=length, mean=mean, seed=seed
    )
    figure, ax = axes_of(ax, (6.4, 6.4))
    show(ax, sheet_of(images, columns or math.ceil(math.sqrt(num)), image_shape))
    ax.set_title("samples" + (" (means of the likelihood)" if mean else ""))
    return figure
