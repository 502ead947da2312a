"""Images side by side: imputations, nearest neighbours, attribute vectors."""

from __future__ import annotations

__all__ = ["arithmetic", "imputations", "neighbours"]

from typing import TYPE_CHECKING

import torch

from tarspyro import evaluate
from tarspyro.arguments import as_count, as_numbers
from tarspyro.data import Split
from tarspyro.evaluate.missing import expanded
from tarspyro.plot.figures import ImageShape, as_images, axes_of, sheet_of, show
from tarspyro.types import ArrayLike, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def imputations(
    x: ArrayLike | Split,
    mask: ArrayLike,
    imputed: ArrayLike,
    *,
    num: int = 12,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws true images, below them their observed elements, and below these the imputations.

    Missing elements are grey in the second row, which shows probabilities as shades.

    Arguments:
        x: The true images.
        mask: The mask that ``evaluate.impute`` got.
        imputed: The result of ``evaluate.impute``, with one image for each or with
            ``num_samples``.
        num: The number of images.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        ValueError: If the images and their imputations differ in shape.
    """
    num = as_count("num", num)
    truth = as_images("x", x)
    filled = as_numbers("imputed", imputed).cpu()
    if filled.dim() <= truth.dim():
        filled = filled.unsqueeze(0)
    if filled.shape[1:] != truth.shape:
        raise ValueError(
            f"imputed must be of the shape of x, {tuple(truth.shape)}, got"
            f" {tuple(filled.shape[1:])}."
        )
    observed = expanded("mask", as_numbers("mask", mask).cpu(), truth).to(truth.dtype)
    seen = torch.lerp(torch.full_like(truth, 0.5), truth, observed)
    rows = torch.cat([part[:num] for part in (truth, seen, *filled)])
    columns = min(num, len(truth))
    figure, ax = axes_of(ax, (max(3.0, 0.6 * columns), 0.6 * (2 + len(filled)) + 0.5))
    show(ax, sheet_of(rows, columns, image_shape))
    ax.set_title("data, what is observed of it, imputations")
    return figure


def neighbours(
    guide: Program,
    x: ArrayLike | Split,
    among: ArrayLike | Split,
    *,
    num: int = 10,
    site: str | None = None,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws each query on the left, followed by the images with the nearest codes.

    Arguments:
        guide: The guide.
        x: The queries.
        among: The images to search.
        num: The number of neighbours of each query.
        site: The latent variable; not needed if there is one.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    others = as_images("among", among)
    queries = as_images("x", x, others)
    found = torch.as_tensor(
        evaluate.nearest_neighbours(guide, queries, others, num=num, site=site).indices
    ).cpu()
    rows = torch.cat([queries.unsqueeze(1), others[found]], 1)
    figure, ax = axes_of(ax, (0.6 * (num + 1), 0.6 * len(queries) + 0.6))
    show(ax, sheet_of(rows.flatten(0, 1), num + 1, image_shape))
    ax.set_title("data (left), nearest in the latent space")
    return figure


def arithmetic(
    model: Program,
    guide: Program,
    a: ArrayLike | Split,
    b: ArrayLike | Split,
    c: ArrayLike | Split,
    *,
    latent: str = "z",
    site: str = "x",
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws images of c as the difference between the mean codes of a and b is added to them.

    A row has the mean images of a and b, the image of c, and c decoded after adding 0, 1/2, 1
    and 3/2 of the difference. See ``evaluate.arithmetic``.

    Arguments:
        model: A model that generates with ``batch_size``.
        guide: The guide.
        a: Images with an attribute.
        b: Images without it.
        c: Images to add it to.
        latent: The name of the latent variable.
        site: The observed site to draw.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    third = as_images("c", c)
    first = as_images("a", a, third)
    second = as_images("b", b, third)
    decoded = []
    for scale in (0.0, 0.5, 1.0, 1.5):
        moved = evaluate.arithmetic(
            model, guide, first, second, third, latent=latent, site=site, scale=scale
        )
        decoded.append(moved.cpu())
    as_images("c", third, decoded[0])
    means = (part.mean(0, keepdim=True).expand_as(third) for part in (first, second))
    columns = torch.stack([*means, third, *decoded], 1)
    figure, ax = axes_of(ax, (0.7 * columns.shape[1], 0.6 * len(third) + 0.6))
    show(ax, sheet_of(columns.flatten(0, 1), columns.shape[1], image_shape))
    ax.set_title("mean a, mean b, c; z(c) + s (z(a) - z(b)), s = 0, 1/2, 1, 3/2")
    return figure
