"""Pictures of inference: where the bound loses, and the guide beside the true posterior."""

__all__ = ["gaps", "posteriors"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tarspyro import evaluate
from tarspyro.arguments import format_value
from tarspyro.data import Split
from tarspyro.plot.figures import Picture, as_array, axes_of
from tarspyro.scopes import preserved_rng

# Of a density in two dimensions, the part of its mass that each contour of a Gaussian holds:
# one and two sigmas.
_LEVELS = (0.8647, 0.3935)


def gaps(pairs: Mapping[str, evaluate.Gaps], *, ax: Axes | None = None) -> Figure:
    """Draws how far the ELBO of each pair is below log p(x), and which part of it is whose
    fault.

    Bars are means over the data points, with their standard errors over the data points.

    Arguments:
        pairs: For each name, what ``evaluate.gaps`` returned.
        ax: Where to draw.

    Raises:
        ValueError: If there is nothing to draw.
    """
    if not pairs:
        raise ValueError(
            "pairs must hold what evaluate.gaps returned under at least one name, got none."
        )
    figure, ax = axes_of(ax, (3.5 + 1.5 * len(pairs), 4.0))
    bottom = np.zeros(len(pairs))
    for kind, color in (("approximation", "C0"), ("amortization", "C1")):
        parts = [as_array(getattr(pair, kind)).astype(float) for pair in pairs.values()]
        means = np.array([part.mean() for part in parts])
        errors = np.array(
            [
                part.std(ddof=1) / len(part) ** 0.5 if len(part) > 1 else np.nan
                for part in parts
            ]
        )
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


def posteriors(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Any,
    *,
    draws: Mapping[str, Any] | None = None,
    site: str | None = None,
    units: tuple[int, int] = (0, 1),
    num_grid: int = 60,
    names: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Figure:
    """Draws the true posterior beside the guide's, for a few data points side by side.

    Dots are draws of the true posterior by the No-U-Turn sampler. Of a latent variable of two
    dimensions, lines are the contours of the guide's density and of the true posterior's,
    which hold 39 % and 86 % of their mass (one and two standard deviations of a Gaussian). Of
    one with more dimensions, the chosen two are drawn, with draws of the guide in place of
    contours: a density's projection is not its slice.

    Arguments:
        model: The model.
        guide: The guide.
        x: A few data points.
        draws: What ``evaluate.true_posterior`` returned; drawn here if not given.
        site: Which latent variable; not needed if there is one.
        units: Which two of its dimensions.
        num_grid: The number of points along each side of the grid of the contours.
        names: The titles of the data points.
        seed: Of the draws.
        options: Passed on to ``evaluate.true_posterior``.

    Raises:
        ValueError: If there are several latent variables and ``site`` names none of them, or
            ``units`` are not two of its dimensions.
    """
    x = torch.as_tensor(x.x if isinstance(x, Split) else x)
    if draws is None:
        draws = evaluate.true_posterior(model, x, seed=seed, **options)
    chosen = site if site is not None else next(iter(draws)) if len(draws) == 1 else None
    if chosen is None or chosen not in draws:
        raise ValueError(f"site must be one of {sorted(draws)}, got {format_value(site)}.")
    true = as_array(draws[chosen]).reshape(len(x), np.shape(draws[chosen])[1], -1)
    size = true.shape[2]
    if size < 2 or max(units) >= size or min(units) < 0:
        raise ValueError(
            f"units must be two of the {size} dimensions of {chosen}, got {units}."
        )
    with preserved_rng(seed):
        ours = evaluate.embed(guide, x, site=chosen, num_samples=true.shape[1])
    guided = np.moveaxis(as_array(ours).reshape(true.shape[1], len(x), -1), 1, 0)
    figure = Picture(figsize=(3.2 * len(x), 3.6), layout="constrained")
    for index, ax in enumerate(figure.subplots(1, len(x), squeeze=False)[0]):
        dots, others = true[index][:, units], guided[index][:, units]
        ax.scatter(*dots.T, s=4, color="0.6", linewidths=0, zorder=1)
        if size == 2 and len(draws) == 1:
            both = np.concatenate([dots, others])
            low, high = both.min(0), both.max(0)
            _contours(
                ax, model, guide, x[index : index + 1], chosen, low, high, units, num_grid
            )
        else:
            ax.scatter(*others.T, s=4, color="C1", linewidths=0, alpha=0.5, zorder=2)
        ax.set(xlabel=f"{chosen}[{units[0]}]", ylabel=f"{chosen}[{units[1]}]")
        ax.set_title(f"data point {index}" if names is None else names[index])
    handles = [
        Line2D([], [], marker="o", linestyle="", color="0.6", label="draws of p(z | x) (NUTS)")
    ]
    if size == 2 and len(draws) == 1:
        handles += [
            Line2D([], [], color="C0", label="p(z | x)"),
            Line2D([], [], color="C1", label="q(z | x)"),
        ]
    else:
        handles += [
            Line2D([], [], marker="o", linestyle="", color="C1", label="draws of q(z | x)")
        ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


def _contours(
    ax: Axes,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: torch.Tensor,
    site: str,
    low: np.ndarray,
    high: np.ndarray,
    units: tuple[int, int],
    num_grid: int,
) -> None:
    """Draws the contours of both densities on a grid between the given corners."""
    sides = [
        torch.linspace(float(a), float(b), num_grid) for a, b in zip(low, high, strict=True)
    ]
    grid = torch.cartesian_prod(*sides)[:, list(np.argsort(units))]
    at = evaluate.log_densities(model, guide, x, {site: grid[None]})
    for log_density, color in ((at.model, "C0"), (at.guide, "C1")):
        density = (
            as_array((log_density[0] - log_density[0].max()).exp())
            .reshape(num_grid, num_grid)
            .T
        )
        ax.contour(
            *(as_array(side) for side in sides),
            density,
            levels=_levels(density),
            colors=color,
            zorder=3,
        )


def _levels(density: np.ndarray) -> list[float]:
    """The heights above which a density holds the given parts of its mass."""
    ordered = np.sort(density, axis=None)[::-1]
    mass = ordered.cumsum() / ordered.sum()
    return sorted({float(ordered[np.searchsorted(mass, level)]) for level in _LEVELS})
