"""Pictures of the latent space: grids, traversals, interpolations, active units."""

from __future__ import annotations

__all__ = ["active_units", "interpolation", "manifold", "traversal"]

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from torch import Tensor

from tarspyro import evaluate
from tarspyro.arguments import as_count, as_numbers, check_positive, format_value
from tarspyro.data import Split
from tarspyro.distributions import has_context
from tarspyro.infer.traces import PairError, name_of
from tarspyro.plot.figures import ImageShape, as_array, as_images, axes_of, sheet_of, show
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import ArrayLike, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def manifold(
    model: Program,
    *,
    given: Mapping[str, ArrayLike] | None = None,
    num: int = 20,
    extent: float | None = None,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws the images decoded from a grid over a two-dimensional latent space.

    The grid is equally spaced in the quantiles of each latent unit under the prior (Kingma and
    Welling 2013, Fig. 4), or with ``extent`` in the unit itself, from -extent to extent.

    Arguments:
        model: A model with a latent variable ``z`` of two dimensions that generates with
            ``batch_size``.
        given: More arguments of the model, by name, in one row: ``{"y": y}`` for a
            ``ConditionalVAE``.
        num: The number of images along each side.
        extent: Half the width of an equally spaced grid.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        ValueError: If z does not have two dimensions; ``traversal`` takes any number.
    """
    num = as_count("num", num)
    if extent is not None:
        check_positive("extent", extent)
    draws = _draws(model, given)
    if draws[0].numel() != 2:
        raise ValueError(
            f"manifold needs a latent variable of two dimensions, got one of {draws[0].numel()}:"
            " take traversal."
        )
    if extent is None:
        levels = (torch.arange(num) + 0.5) / num
        first, second = (torch.quantile(draws.flatten(1)[:, unit], levels) for unit in (0, 1))
    else:
        first = torch.linspace(-extent, extent, num)
        second = first
    if _on_simplex(draws):
        # Points of the simplex have one degree of freedom: a line of images.
        grid = torch.stack([first, 1 - first], -1)
        title = "decoder along the simplex"
    else:
        # The first row of images has the largest value of the second unit, as on an axis.
        grid = torch.cartesian_prod(second.flip(0), first).flip(1)
        title = "decoder manifold"
    images = _decode(model, grid.reshape(-1, *draws.shape[1:]), given)
    figure, ax = axes_of(ax, (6.4, 6.4))
    show(ax, sheet_of(images, num, image_shape))
    ax.set(title=title, xlabel="z[0]", ylabel="z[1]")
    return figure


def traversal(
    model: Program,
    code: ArrayLike | None = None,
    *,
    given: Mapping[str, ArrayLike] | None = None,
    codes: ArrayLike | None = None,
    units: Sequence[int] | None = None,
    num: int = 11,
    latent: str = "z",
    site: str = "x",
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws decoded images as single latent units run through the quantiles of the prior.

    Each row is a unit. With the codes of data, rows are sorted by activity, the variance of
    the unit's posterior mean (Burda et al. 2015, section 2). In a hierarchy, the model draws
    the variables between the latent one and the data.

    Arguments:
        model: A model that generates with ``batch_size``.
        code: The values of the other units; the prior's medians if not given.
        given: More arguments of the model, by name, in one row: ``{"y": y}`` for a
            ``ConditionalVAE``.
        codes: The posterior means of some data, for example the result of ``embed``.
        units: The units to draw; if not given, the ten most active ones, or the first ten
            without ``codes``.
        num: The number of steps.
        latent: The name of the latent variable.
        site: The observed site to draw.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        TypeError: If ``units`` is not a list of whole numbers.
        ValueError: If ``code`` or ``codes`` have another shape than the latent variable, or if
            ``units`` are not its own.
    """
    num = as_count("num", num)
    draws = _draws(model, given, latent)
    flat = draws.flatten(1)
    size = flat.shape[1]
    if code is None:
        center = flat.median(0).values
    else:
        center = as_numbers("code", code, flat.dtype).flatten()
    if len(center) != size:
        raise ValueError(f"code must have {size} units as {latent!r} has, got {len(center)}.")
    rows = _units(units, codes, size, latent)

    levels = torch.linspace(0.02, 0.98, num)
    grid = center.repeat(len(rows), num, 1)
    for row, unit in enumerate(rows):
        values = torch.quantile(flat[:, unit], levels)
        if _on_simplex(draws):  # the other units of the point share the rest
            first = unit - unit % draws.shape[-1]
            point = slice(first, first + draws.shape[-1])
            rest = grid[row, :, point].sum(-1) - grid[row, :, unit]
            grid[row, :, point] *= ((1 - values) / rest)[:, None]
        grid[row, :, unit] = values
    images = _decode(model, grid.reshape(-1, *draws.shape[1:]), given, latent, site)

    figure, ax = axes_of(ax, (0.6 * num, 0.6 * len(rows) + 0.6))
    show(ax, sheet_of(images, num, image_shape))
    ax.set(title="traversal of latent units", ylabel=f"units {', '.join(map(str, rows))}")
    return figure


def _units(
    units: Sequence[int] | None, codes: ArrayLike | None, size: int, latent: str
) -> list[int]:
    """Returns the units of a traversal."""
    order = list(range(size))
    if codes is not None:
        activity = as_images("codes", codes).double().flatten(1).numpy().var(0)
        if len(activity) != size:
            raise ValueError(
                f"codes must have {size} units as {latent!r} has, got {len(activity)}."
            )
        order = np.argsort(-activity, kind="stable").tolist()
    if not isinstance(units, Iterable | None) or torch.is_tensor(units):
        raise TypeError(f"units must be a list of whole numbers, got {format_value(units)}.")
    if units is None:
        return order[:10]
    chosen = [as_count("units", unit, 0) for unit in units]
    if not chosen or max(chosen) >= size:
        raise ValueError(
            f"units must be some of the {size} of {latent!r}, counted from 0, got {chosen}."
        )
    return chosen


def interpolation(
    model: Program,
    guide: Program,
    a: ArrayLike | Split,
    b: ArrayLike | Split,
    *,
    num: int = 11,
    latent: str = "z",
    site: str = "x",
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws images decoded along the line between the posterior means of two data points.

    Each row has two data points at its ends, and the decoded means between them.

    Arguments:
        model: A model that generates with ``batch_size``.
        guide: The guide.
        a: The data points at the left, of shape ``(N, *x)``.
        b: The data points at the right, likewise.
        num: The number of decoded means in a row, with those of both ends.
        latent: The name of the latent variable.
        site: The observed site to draw.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        NotImplementedError: If the guide's family has no mean in closed form.
        ValueError: If ``a`` and ``b`` differ in shape, or if ``num`` is below 2.
    """
    left = as_images("a", a)
    right = as_images("b", b)
    if left.shape != right.shape:
        raise ValueError(
            "a and b must have the same shape (N, *x), got"
            f" {[tuple(left.shape), tuple(right.shape)]}."
        )
    num = as_count("num", num, 2)
    first = torch.as_tensor(evaluate.embed(guide, left, site=latent)).unsqueeze(1)
    last = torch.as_tensor(evaluate.embed(guide, right, site=latent)).unsqueeze(1)
    steps = torch.linspace(0, 1, num).reshape(-1, *[1] * (first.dim() - 2))
    codes = torch.lerp(first, last, steps).flatten(0, 1)
    images = _decode(model, codes, None, latent, site)
    as_images("a", left, images)
    images = images.reshape(len(left), num, *left.shape[1:])
    rows = torch.cat([left.unsqueeze(1), images.cpu(), right.unsqueeze(1)], 1)

    figure, ax = axes_of(ax, (0.6 * (num + 2), 0.6 * len(left) + 0.6))
    show(ax, sheet_of(rows.flatten(0, 1), num + 2, image_shape))
    ax.set(title="data (left and right), decoded means between them")
    return figure


def active_units(
    activities: ArrayLike | Mapping[str, ArrayLike],
    *,
    threshold: float = 0.01,
    ax: Axes | None = None,
) -> Figure:
    """Draws the activity of latent units, sorted, on a logarithmic scale.

    The activity is the variance of the unit's posterior mean over the data. Estimates below a
    thousandth of the threshold are drawn there.

    Arguments:
        activities: The result of ``evaluate.activity``, or several under any names.
        threshold: The variance above which a unit is active.
        ax: Where to draw.

    Raises:
        ValueError: If there is nothing to draw.
    """
    from matplotlib.ticker import MaxNLocator

    check_positive("threshold", threshold)
    layers = activities if isinstance(activities, Mapping) else {"z": activities}
    if not layers:
        raise ValueError(
            "activities must hold at least one result of evaluate.activity by its name, got"
            " none."
        )
    figure, ax = axes_of(ax, (6.4, 4.0))
    for name, values in layers.items():
        ordered = np.sort(as_array(values, f"activities of {name}"), axis=None)[::-1]
        label = f"{name}: {(ordered > float(threshold)).sum()} of {ordered.size} active"
        heights = ordered.clip(min=threshold / 1000)
        ax.plot(np.arange(1, ordered.size + 1), heights, ".-", label=label)
    ax.axhline(threshold, color="0.7", linewidth=1, linestyle=":")
    ax.set(
        yscale="log",
        xlabel="unit",
        ylabel="variance of the posterior mean",
        title="activity of latent units",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _decode(
    model: Program,
    codes: Tensor,
    given: Mapping[str, ArrayLike] | None = None,
    latent: str = "z",
    site: str = "x",
) -> Tensor:
    with preserved_rng():  # the model draws its other latent variables
        return evaluate.decode(model, codes, given=given, latent=latent, site=site)


def _draws(
    model: Program,
    given: Mapping[str, ArrayLike] | None = None,
    latent: str = "z",
    num: int = 10_000,
) -> Tensor:
    """Returns draws of a latent variable, whose quantiles make grids.

    They come from the prior alone, if the variable is the prior's, else from the whole model.
    """
    if not isinstance(latent, str):
        raise TypeError(
            f"latent must be the name of a latent variable, got {format_value(latent)}."
        )
    prior = getattr(model, "prior", None) if latent == "z" else None
    draws: Tensor
    if prior is None or has_context(prior):
        try:
            draws = evaluate.sample(model, num, given=given, site=latent, seed=0)
        except (PairError, NotImplementedError):
            raise ValueError(
                f"{name_of(model)} has no prior that can be drawn from, as a grid needs: give"
                " it a proper prior."
            ) from None
        return draws.cpu()
    with preserved_rng(seed=0), evaluating(model), pyro.validation_enabled(False):
        draws = prior().sample((num,))
    return draws.cpu()


def _on_simplex(draws: Tensor) -> bool:
    """Returns whether the draws are points of a simplex."""
    return draws.shape[-1] > 1 and torch.allclose(draws.sum(-1), draws.new_ones(()))
