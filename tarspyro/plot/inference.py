"""Pictures of inference gaps and of posteriors."""

from __future__ import annotations

__all__ = ["gaps", "posteriors"]

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tarspyro import evaluate
from tarspyro.arguments import format_value
from tarspyro.evaluate.batching import readable
from tarspyro.inputs import each
from tarspyro.plot.figures import as_array, axes_of, mass_levels
from tarspyro.scopes import preserved_rng
from tarspyro.types import ArrayLike, Data, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def gaps(pairs: Mapping[str, evaluate.Gaps], *, ax: Axes | None = None) -> Figure:
    """Draws the gap between log p(x) and the ELBO of each pair, split in two.

    Bars are means over the data points, with their standard errors.

    Arguments:
        pairs: For each name the result of ``evaluate.gaps``.
        ax: Where to draw.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not pairs:
        raise ValueError(
            "pairs must hold at least one result of evaluate.gaps by its name, got none."
        )
    figure, ax = axes_of(ax, (3.5 + 1.5 * len(pairs), 4.0))
    bottom = np.zeros(len(pairs))
    for kind, color in (("approximation", "C0"), ("amortization", "C1")):
        parts = [as_array(getattr(pair, kind)).astype(float) for pair in pairs.values()]
        means = np.array([part.mean() for part in parts])
        errors = np.array([_standard_error(part) for part in parts])
        ax.bar(
            list(pairs),
            means,
            0.6,
            bottom=bottom,
            yerr=errors,
            capsize=4,
            color=color,
            label=f"{kind} gap",
        )
        bottom = bottom + means
    totals = [as_array(pair.log_likelihood).mean() for pair in pairs.values()]
    labels = [
        f"{name}\nlog p(x) = {total:.1f}" for name, total in zip(pairs, totals, strict=True)
    ]
    ax.set_xticks(range(len(pairs)), labels)
    ax.set(ylabel="log p(x) - ELBO (nats per data point)", title="inference gap")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan


def posteriors(
    model: Program,
    guide: Program,
    x: Data,
    *,
    draws: Mapping[str, ArrayLike] | None = None,
    site: str | None = None,
    units: tuple[int, int] = (0, 1),
    num_grid: int = 60,
    names: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Figure:
    """Draws the true posterior and the guide's, for a few data points side by side.

    Grey dots are draws of the true posterior by the No-U-Turn sampler. For a single latent
    variable of two dimensions, lines are contours of the guide's density and of the true
    posterior's that hold 39 % and 86 % of the mass, as one and two standard deviations of a
    Gaussian do. In other cases two dimensions are drawn, with draws of the guide instead of
    contours, because the projection of a density is not its slice.

    Arguments:
        model: The model.
        guide: The guide.
        x: A few data points, in any form that ``fit`` takes.
        draws: The result of ``evaluate.true_posterior``; drawn here if not given.
        site: The latent variable; not needed if there is one.
        units: The two dimensions to draw.
        num_grid: The number of points along each side of the grid of the contours.
        names: The titles of the data points.
        seed: The seed of the draws.
        options: Options of ``evaluate.true_posterior``.

    Raises:
        ValueError: If there are several latent variables and ``site`` names none of them, or
            ``units`` are not two of its dimensions.
    """
    from matplotlib.lines import Line2D

    from tarspyro.plot.picture import Picture

    source = readable(x, model, guide)
    count = source.count()
    rows = source.first(count)
    if draws is None:
        draws = evaluate.true_posterior(model, rows, seed=seed, **options)
    chosen = next(iter(draws)) if site is None and len(draws) == 1 else site
    if chosen is None or chosen not in draws:
        raise ValueError(f"site must be one of {sorted(draws)}, got {format_value(site)}.")
    num_draws = np.shape(draws[chosen])[1]
    true = as_array(draws[chosen]).reshape(count, num_draws, -1)
    size = true.shape[2]
    if size < 2 or max(units) >= size or min(units) < 0:
        raise ValueError(
            f"units must be two of the {size} dimensions of {chosen}, got {units}."
        )
    with preserved_rng(seed):
        codes = evaluate.embed(guide, rows, site=chosen, num_samples=num_draws)
    guided = np.moveaxis(as_array(codes).reshape(num_draws, count, -1), 1, 0)
    with_contours = size == 2 and len(draws) == 1

    figure = Picture(figsize=(3.2 * count, 3.6), layout="constrained")
    for index, ax in enumerate(figure.subplots(1, count, squeeze=False)[0]):
        dots = true[index][:, units]
        others = guided[index][:, units]
        ax.scatter(*dots.T, s=4, color="0.6", linewidths=0, zorder=1)
        if with_contours:
            both = np.concatenate([dots, others])
            grid = _Grid(both.min(0), both.max(0), units, num_grid)
            row = each(lambda part: part[index : index + 1], rows)  # noqa: B023
            at = evaluate.log_densities(model, guide, row, {chosen: grid.points[None]})
            grid.contour(ax, at.model[0], "C0")
            grid.contour(ax, at.guide[0], "C1")
        else:
            ax.scatter(*others.T, s=4, color="C1", linewidths=0, alpha=0.5, zorder=2)
        ax.set(xlabel=f"{chosen}[{units[0]}]", ylabel=f"{chosen}[{units[1]}]")
        ax.set_title(f"data point {index}" if names is None else names[index])

    dot: dict[str, Any] = {"marker": "o", "linestyle": ""}
    handles = [Line2D([], [], color="0.6", label="draws of p(z | x) (NUTS)", **dot)]
    if with_contours:
        handles.append(Line2D([], [], color="C0", label="p(z | x)"))
        handles.append(Line2D([], [], color="C1", label="q(z | x)"))
    else:
        handles.append(Line2D([], [], color="C1", label="draws of q(z | x)", **dot))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


class _Grid:
    """A grid over two dimensions of a latent variable, on which densities have contours.

    Arguments:
        low: The lower corner, in the order of the axes.
        high: The upper corner.
        units: The dimensions of the latent variable on the axes.
        num: The number of points along each side.
    """

    def __init__(
        self, low: np.ndarray, high: np.ndarray, units: tuple[int, int], num: int
    ) -> None:
        self.num = num
        self.sides = [
            torch.linspace(float(a), float(b), num) for a, b in zip(low, high, strict=True)
        ]
        # The points as values of the latent variable, of shape (num * num, 2).
        self.points = torch.cartesian_prod(*self.sides)[:, list(np.argsort(units))]

    def contour(self, ax: Axes, log_density: Tensor, color: str) -> None:
        """Draws the contours of a density that is given at the points."""
        density = as_array((log_density - log_density.max()).exp())
        density = density.reshape(self.num, self.num).T
        ax.contour(
            *map(as_array, self.sides),
            density,
            levels=mass_levels(density),
            colors=color,
            zorder=3,
        )
