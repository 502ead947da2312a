"""Estimates side by side, with their standard errors."""

from __future__ import annotations

__all__ = ["compare"]

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from tarspyro.arguments import as_numbers, check_number, format_value
from tarspyro.plot.colors import PALETTE
from tarspyro.plot.figures import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The attributes that hold the value of a result, by order of preference.
_VALUES = ("value", "mean", "log_likelihood", "elbo")


def compare(
    estimates: Mapping[str, object],
    *,
    quantity: str = "log p(x) (nats per data point)",
    reference: float | None = None,
    sort: bool = False,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws estimates as dots, one below the other, with bars of one and two standard errors.

    The estimates stand at the right, with two digits of their standard errors. Of numbers for
    each data point, the estimate is their mean, and its standard error that of the mean over
    data points.

    Arguments:
        estimates: For each name a value, a pair (value, standard error), an array of numbers
            for each data point, or a result of ``evaluate`` that has them, such as a
            ``LogLikelihood``.
        quantity: What is estimated, with its unit: the label of the axis.
        reference: A value to compare with, such as the exact one, as a dotted line.
        sort: Whether the largest estimate comes first.
        figsize: The width and height of a new figure, in inches.
        ax: Where to draw.

    Raises:
        TypeError: If an estimate is nothing of these.
        ValueError: If there is nothing to draw, or an estimate is not finite.

    Example:
        >>> figure = compare({"VAE": (-97.31, 0.12), "IWAE": (-95.8, 0.11)})
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['−97.31 ± 0.12', '−95.80 ± 0.11']
    """
    if not isinstance(estimates, Mapping) or not estimates:
        raise ValueError(
            f"estimates must hold at least one estimate by its name, got"
            f" {format_value(estimates)}."
        )
    found = {str(name): _estimate(str(name), given) for name, given in estimates.items()}
    if sort:
        found = dict(sorted(found.items(), key=lambda item: -item[1][0]))
    figure, ax = axes_of(ax, figsize or (6.4, 1.1 + 0.38 * len(found)))
    for row, (value, error) in enumerate(found.values()):
        if error:
            for count, width in ((2, 1.2), (1, 3.5)):
                ends = [value - count * error, value + count * error]
                (bar,) = ax.plot(ends, [row, row], color=PALETTE[0], linewidth=width)
                bar.set_solid_capstyle("butt")
        ax.plot([value], [row], marker="o", color=PALETTE[0], markeredgecolor="white")
        text = _text(value, error)
        at_row = ax.get_yaxis_transform()
        ax.text(1.02, row, text, transform=at_row, va="center", fontsize="small")
    if reference is not None:
        check_number("reference", reference)
        ax.axvline(float(reference), color="0.5", linewidth=1, linestyle=":", zorder=0)
    ax.set_yticks(range(len(found)), list(found))
    ax.set_ylim(len(found) - 0.4, -0.6)  # the first on top
    bars = "\nbars: 1 and 2 standard errors" if any(e for _, e in found.values()) else ""
    ax.set_xlabel(quantity + bars)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


def _estimate(name: str, given: object) -> tuple[float, float]:
    """Returns a value and its standard error, 0 if that is not known."""
    value, error = _parts(given)
    try:
        values = as_numbers(name, value, torch.float64).detach().cpu().numpy()
        errors = as_numbers(name, error, torch.float64).detach().cpu().numpy()
    except TypeError:
        raise TypeError(
            f"estimates[{name!r}] must be a value, a pair (value, standard error), an array or"
            f" a result of evaluate, got {format_value(given)}."
        ) from None
    if values.ndim:  # numbers for each data point, whose errors are far below their spread
        errors = np.asarray(0.0)
        if values.size > 1:
            errors = values.std(ddof=1) / math.sqrt(values.size)
        values = values.mean() if values.size else np.asarray(math.nan)
    if not np.isfinite(values) or not np.isfinite(errors).all() or errors.ndim:
        raise ValueError(
            f"estimates[{name!r}] must be a finite number and its standard error, got"
            f" {format_value(given)}."
        )
    return float(values), float(errors)


def _parts(given: object) -> tuple[object, object]:
    """Returns the value of an estimate and its standard error, as they are given."""
    if isinstance(given, Mapping):
        key = next((key for key in _VALUES if key in given), None)
        return given.get(key), given.get("standard_error", 0.0)
    if not isinstance(given, (torch.Tensor, np.ndarray)):
        for attribute in _VALUES:
            value = getattr(given, attribute, None)
            if value is not None and not callable(value):
                return value, getattr(given, "standard_error", 0.0)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        if not any(np.ndim(part) for part in given):
            return given[0], given[1]
    return given, 0.0


def _text(value: float, error: float) -> str:
    """Returns a value with the digits that its standard error allows."""
    if not error:
        text = f"{value:.4g}"
    else:
        digits = max(0, 1 - math.floor(math.log10(error)))
        text = f"{value:.{digits}f} ± {error:.{digits}f}"
    return text.replace("-", "−")
