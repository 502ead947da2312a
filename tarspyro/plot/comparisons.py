"""Pictures of what a trained pair is for: imputations, nearest neighbours, sums and
differences of codes.
"""

__all__ = ["arithmetic", "imputations", "neighbours"]

from collections.abc import Callable
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tarspyro import evaluate
from tarspyro.arguments import as_count, as_numbers
from tarspyro.evaluate.missing import expanded
from tarspyro.plot.figures import Shape, as_images, axes_of, sheet_of, show


def imputations(
    x: Any,
    mask: Any,
    imputed: Any,
    *,
    num: int = 12,
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws images in the upper row, below them what is observed of each, and below that what
    was imputed.

    Arguments:
        x: The true images.
        mask: See ``evaluate.impute``; what is missing is grey in the second row, which shows
            probabilities as shades.
        imputed: What ``evaluate.impute`` returned, one image for each or ``num_samples`` of
            them.
        num: How many images.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        ValueError: If the images and their imputations differ in shape.
    """
    num, truth, filled = (
        as_count("num", num),
        as_images("x", x),
        as_numbers("imputed", imputed).cpu(),
    )
    filled = filled if filled.dim() > truth.dim() else filled.unsqueeze(0)
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
    guide: Callable[..., Any],
    x: Any,
    among: Any,
    *,
    num: int = 10,
    site: str | None = None,
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws images on the left, and beside each those whose codes are nearest to its own, the
    nearest first.

    Arguments:
        guide: The guide.
        x: The images to look for.
        among: The images to look among.
        num: How many neighbours of each.
        site: Which latent variable; not needed if there is one.
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
    model: Callable[..., Any],
    guide: Callable[..., Any],
    a: Any,
    b: Any,
    c: Any,
    *,
    latent: str = "z",
    site: str = "x",
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws a row for each image of c: the means of a and b, c, and what c becomes along the
    way from b to a.

    The last four columns are c decoded as it is, and after a half, the whole and one and a
    half of the difference between the mean codes of a and b. See ``evaluate.arithmetic``.

    Arguments:
        model: A model that generates with ``batch_size``.
        guide: The guide.
        a: Images with an attribute.
        b: Images without it.
        c: Images to give it to.
        latent: The name of the latent variable.
        site: The observed site to draw.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    third = as_images("c", c)
    first, second = as_images("a", a, third), as_images("b", b, third)
    decoded = [
        evaluate.arithmetic(
            model, guide, first, second, third, latent=latent, site=site, scale=scale
        ).cpu()
        for scale in (0.0, 0.5, 1.0, 1.5)
    ]
    as_images("c", third, decoded[0])
    means = (part.mean(0, keepdim=True).expand_as(third) for part in (first, second))
    columns = torch.stack([*means, third, *decoded], 1)
    figure, ax = axes_of(ax, (0.7 * columns.shape[1], 0.6 * len(third) + 0.6))
    show(ax, sheet_of(columns.flatten(0, 1), columns.shape[1], image_shape))
    ax.set_title("mean a, mean b, c; z(c) + s (z(a) - z(b)), s = 0, 1/2, 1, 3/2")
    return figure
