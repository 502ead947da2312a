"""Pictures of the latent space: grids, traversals, interpolations, active units."""

from __future__ import annotations

__all__ = ["active_units", "interpolation", "manifold", "traversal"]

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyro
import torch
from torch import Tensor

from tarspyro import evaluate
from tarspyro.arguments import as_count, as_numbers, check_choice, check_positive, format_value
from tarspyro.data import Split
from tarspyro.distributions import has_context
from tarspyro.evaluate.sampling import check_generates, generated
from tarspyro.infer.traces import PairError, name_of, sample_sites
from tarspyro.plot.colors import PALETTE
from tarspyro.plot.figures import ImageShape, as_array, as_images, axes_of, sheet_of, show
from tarspyro.plot.forms import (
    as_form,
    draw_lines,
    names_of,
    panels_of,
    set_title,
    short_ticks,
)
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import ArrayLike, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The number of draws of a latent variable whose quantiles make a grid.
_DRAWS = 10_000


def manifold(
    model: Program,
    *,
    given: Mapping[str, ArrayLike] | None = None,
    num: int = 20,
    extent: float | None = None,
    latent: str = "z",
    site: str = "x",
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws the images decoded from a grid over a two-dimensional latent space.

    The grid is equally spaced in the quantiles of each latent unit under the prior (Kingma and
    Welling 2013, Fig. 4), or with ``extent`` in the unit itself, from -extent to extent.

    Arguments:
        model: A model with a latent variable of two dimensions that generates with
            ``batch_size``.
        given: More arguments of the model, by name, in one row: ``{"y": y}`` for a
            ``ConditionalVAE``.
        num: The number of images along each side.
        extent: Half the width of an equally spaced grid.
        latent: The name of the latent variable.
        site: The name of the decoded variable.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        ValueError: If the latent variable does not have two dimensions; ``traversal`` takes any
            number.
    """
    num = as_count("num", num)
    if extent is not None:
        check_positive("extent", extent)
    draws = _draws(model, given, latent)
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
    images = _decode(model, grid.reshape(-1, *draws.shape[1:]), given, latent, site)
    figure, ax = axes_of(ax, (6.4, 6.4))
    if as_form(None, images, image_shape=image_shape) == "points":
        _draw_mesh(ax, as_array(images).reshape(-1, num, 2), title, latent, site)
        return figure
    sheet = sheet_of(images, num, image_shape)
    show(ax, sheet)
    ax.set(title=title, xlabel=f"{latent}[0]", ylabel=f"{latent}[1]")
    _set_ticks(ax, "x", sheet.shape[1], num, short_ticks(first, 5))
    if not _on_simplex(draws):
        _set_ticks(ax, "y", sheet.shape[0], num, short_ticks(second.flip(0), 5))
    return figure


def _draw_mesh(ax: Axes, points: np.ndarray, title: str, latent: str, site: str) -> None:
    """Draws where a grid of codes lands in the plane: the lines of equal first and second
    units.
    """
    for lines, color, unit in ((points.swapaxes(0, 1), 0, 1), (points, 2, 0)):
        for index, line in enumerate(lines):
            label = f"along {latent}[{unit}]" if index == 0 else "_"
            ax.plot(*line.T, color=PALETTE[color], linewidth=0.9, label=label)
    ax.set(title=title, xlabel=f"{site}[0]", ylabel=f"{site}[1]")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(frameon=False)


def _set_ticks(
    ax: Axes, axis: Literal["x", "y"], length: int, num: int, labels: Mapping[int, str]
) -> None:
    """Writes values at the images of a sheet.

    Arguments:
        ax: The axes.
        axis: Which of the two axes.
        length: The number of pixels of the sheet along it.
        num: The number of images along it.
        labels: The texts by the number of the image.
    """
    step = (length - 1) / num
    places = [(place + 0.5) * step for place in labels]
    setter = ax.set_xticks if axis == "x" else ax.set_yticks
    setter(places, list(labels.values()), fontsize="small")
    ax.tick_params(axis=axis, length=0)


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
    form: str | None = None,
    names: Sequence[str] | None = None,
    image_shape: ImageShape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws what codes decode to as single latent units run through the quantiles of the prior.

    Each row is a unit, from its 2 % to its 98 % quantile. With the codes of data, rows are
    sorted by activity, the variance of the unit's posterior mean (Burda et al. 2015,
    section 2). In a hierarchy, the model draws the variables between the latent one and the
    data. Images have the values of the unit below them, if all units share them. Points in the
    plane are joined to a path for each unit; rows of tables, and series, are lines of the
    colour of their quantile, with a panel for each unit.

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
        form: ``"images"``, ``"points"``, ``"table"`` or ``"series"``; see ``samples``.
        names: The names of a table's columns.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        TypeError: If ``units`` is not a list of whole numbers.
        ValueError: If ``code`` or ``codes`` have another shape than the latent variable, or if
            ``units`` are not its own.
    """
    num = as_count("num", num)
    draws = _draws(model, given, latent)
    flat = draws.reshape(len(draws), -1)
    size = flat.shape[1]
    if code is None:
        center = flat.median(0).values
    else:
        center = as_numbers("code", code, flat.dtype).flatten()
    if len(center) != size:
        raise ValueError(f"code must have {size} units as {latent!r} has, got {len(center)}.")
    rows = _units(units, codes, size, latent)

    levels = torch.linspace(0.02, 0.98, num)
    values = torch.stack([torch.quantile(flat[:, unit], levels) for unit in rows])
    grid = center.repeat(len(rows), num, 1)
    for row, unit in enumerate(rows):
        if _on_simplex(draws):  # the other units of the point share the rest
            first = unit - unit % draws.shape[-1]
            point = slice(first, first + draws.shape[-1])
            rest = grid[row, :, point].sum(-1) - grid[row, :, unit]
            grid[row, :, point] *= ((1 - values[row]) / rest)[:, None]
        grid[row, :, unit] = values[row]
    images = _decode(model, grid.reshape(-1, *draws.shape[1:]), given, latent, site).cpu()
    images = images if images.dim() > 1 else images[:, None]  # a number is a table's column

    labels = [f"{latent}[{unit}]" for unit in rows]
    kind = as_form(form, images, image_shape=image_shape, names=names)
    if kind == "images":
        sheet = sheet_of(images, num, image_shape)
        return _draw_traversal(ax, sheet, values.numpy(), labels)
    paths = as_array(images).reshape(len(rows), num, *images.shape[1:])
    if kind == "points":
        return _draw_paths(ax, paths, labels)
    columns = names_of(names, None, images.shape[1]) if kind == "table" else None
    return _draw_changes(ax, paths, labels, columns)


def _draw_traversal(
    ax: Axes | None, sheet: np.ndarray, values: np.ndarray, labels: Sequence[str]
) -> Figure:
    """Draws a row of images for each unit, with the values of the units below."""
    num = values.shape[1]
    figure, ax = axes_of(ax, (0.6 * num + 0.4, 0.6 * len(labels) + 0.9))
    show(ax, sheet)
    shared = bool((np.ptp(values, axis=0) < 0.05 * np.ptp(values)).all())
    if shared:
        ticks = short_ticks(values.mean(0), (num + 1) // 2)
    else:
        ticks = {p: f"{t} %" for p, t in short_ticks(np.linspace(2, 98, num), 5).items()}
        labels = [f"{name}: {_ends(row)}" for name, row in zip(labels, values, strict=True)]
    _set_ticks(ax, "x", sheet.shape[1], num, ticks)
    _set_ticks(ax, "y", sheet.shape[0], len(labels), dict(enumerate(labels)))
    ax.set_title("traversal of latent units")
    ax.set_xlabel("value of the unit" if shared else "quantile of the prior")
    return figure


def _ends(values: np.ndarray) -> str:
    first, last = short_ticks(values, 2).values() if len(values) > 1 else ("", "")
    return f"{first} to {last}"


def _draw_paths(ax: Axes | None, paths: np.ndarray, labels: Sequence[str]) -> Figure:
    """Draws the path of a point in the plane for each unit, with a ring at its last value."""
    figure, ax = axes_of(ax, (5.6, 4.8))
    for index, (path, label) in enumerate(zip(paths, labels, strict=True)):
        color = PALETTE[index % len(PALETTE)]
        ax.plot(*path.T, ".-", color=color, linewidth=1, label=label)
        ax.plot(*path[-1:].T, "o", color=color, markerfacecolor="white", label="_end")
    ax.set(xlabel="x[0]", ylabel="x[1]", title="traversal of latent units (ring: 98 %)")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _draw_changes(
    ax: Axes | None,
    paths: np.ndarray,
    labels: Sequence[str],
    columns: Sequence[str] | None,
) -> Figure:
    """Draws lines over the steps or columns, coloured by the quantile, a panel for each unit."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    paths = paths.reshape(*paths.shape[:3], -1)  # (units, steps of the unit, T, channels)
    channels = paths.shape[3]
    figure, whole, panels = panels_of(ax, len(labels), channels, (6.0 / channels, 1.5))
    scale = Normalize(2, 98)
    colors = [
        colormaps["viridis"](scale(level)) for level in np.linspace(2, 98, paths.shape[1])
    ]
    for index, panel in enumerate(panels):
        row, channel = divmod(index, channels)
        is_last = row == len(labels) - 1
        draw_lines(panel, paths[row, :, :, channel], colors, columns)
        panel.tick_params(labelsize="x-small", labelbottom=is_last)
        panel.set_xlabel("step" if is_last and columns is None else "")
        if channel == 0:
            panel.set_ylabel(labels[row])
        if row == 0 and channels > 1:
            panel.set_title(f"x[{channel}]", fontsize="small")
    bar = ScalarMappable(scale, "viridis")
    figure.colorbar(
        bar, ax=panels if whole is None else whole, label="quantile of the unit (%)"
    )
    set_title(figure, whole, "traversal of latent units")
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
    """Draws the activity of latent units as bars, sorted, on a logarithmic scale.

    The activity is the variance of the unit's posterior mean over the data. The bars of units
    that are not active are light; a dotted line is the threshold. Several layers stand side by
    side. Estimates below a thousandth of the threshold are drawn there.

    Arguments:
        activities: The result of ``evaluate.activity``, or several under any names.
        threshold: The variance above which a unit is active.
        ax: Where to draw.

    Raises:
        ValueError: If there is nothing to draw.
    """
    check_positive("threshold", threshold)
    layers = activities if isinstance(activities, Mapping) else {"z": activities}
    if not layers:
        raise ValueError(
            "activities must hold at least one result of evaluate.activity by its name, got"
            " none."
        )
    figure, ax = axes_of(ax, (6.4, 4.0))
    threshold = float(threshold)
    floor = threshold / 1000
    ticks: dict[int, str] = {}
    start = 1
    for layer, (name, values) in enumerate(layers.items()):
        ordered = np.sort(as_array(values, f"activities of {name}"), axis=None)[::-1]
        active = ordered > threshold
        bars = ax.bar(
            start + np.arange(ordered.size),
            ordered.clip(min=floor),
            color=PALETTE[layer % len(PALETTE)],
            label=f"{name}: {active.sum()} of {ordered.size} active",
        )
        for bar, is_active in zip(bars, active, strict=True):
            bar.set_alpha(None if is_active else 0.35)
        for unit in range(0, ordered.size, max(1, -(-ordered.size * len(layers) // 10))):
            ticks[start + unit] = str(unit + 1)
        start += ordered.size + 1  # a gap between layers
    ax.axhline(threshold, color="0.4", linewidth=1, linestyle=":")
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.set(
        yscale="log",
        xlabel="unit, the most active first",
        ylabel="variance of the posterior mean",
        title="activity of latent units",
    )
    ax.set_ylim(bottom=floor / 2)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
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


def _draws(model: Program, given: Mapping[str, ArrayLike] | None, latent: str) -> Tensor:
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
        check_generates(model)
        try:
            trace = generated(model, _DRAWS, given=given, seed=0)
        except (PairError, NotImplementedError):
            raise ValueError(
                f"{name_of(model)} has no prior that can be drawn from, as a grid needs: give"
                " it a proper prior."
            ) from None
        check_choice("latent", latent, sorted(dict(sample_sites(trace))))
        draws = torch.as_tensor(trace.nodes[latent]["value"])
    else:
        with preserved_rng(seed=0), evaluating(model), pyro.validation_enabled(False):
            draws = prior().sample((_DRAWS,))
    # Quantiles have levels of the same precision.
    return draws.cpu().to(torch.get_default_dtype())


def _on_simplex(draws: Tensor) -> bool:
    """Returns whether the draws are points of a simplex."""
    return draws.shape[-1] > 1 and torch.allclose(draws.sum(-1), draws.new_ones(()))
