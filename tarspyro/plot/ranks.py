"""Pictures of a guide's calibration."""

from __future__ import annotations

__all__ = ["calibration"]

import math
from typing import TYPE_CHECKING

import numpy as np

from tarspyro import evaluate
from tarspyro.arguments import format_value
from tarspyro.plot.figures import as_array, axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The probability that a line of an exact guide leaves the band.
_LEVEL = 0.01
# The number of units that have a line and a name of their own.
_NAMED = 10


def calibration(check: evaluate.GuideCheck, *, ax: Axes | None = None) -> Figure:
    r"""Draws the ranks of true latent values among the guide's draws.

    A line for each unit shows the distribution function of its ranks minus that of uniform
    ranks. All lines of an exact guide stay within the band with a probability of 99 % (by the
    inequality of Dvoretzky, Kiefer and Wolfowitz). A line below zero has true values above the
    guide's, one above zero has them below. A line that first rises and then falls is one of a
    guide that is too narrow; one that first falls and then rises, of a guide that is too wide.

    Arguments:
        check: The result of ``evaluate.check_guide``.
        ax: Where to draw.

    Raises:
        TypeError: If ``check`` is something else.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> check = evaluate.check_guide(model, guide, torch.zeros(10), seed=0)
        >>> figure = calibration(check)
    """
    if not isinstance(check, evaluate.GuideCheck):
        raise TypeError(
            f"check must be a result of evaluate.check_guide, got {format_value(check)}."
        )
    figure, ax = axes_of(ax, (5.0, 3.5))
    lines = _ranks(check)
    half = math.sqrt(math.log(2 * max(len(lines), 1) / _LEVEL) / (2 * check.num_simulations))
    ax.axhspan(-half, half, color="0.9", zorder=0)
    ax.axhline(0.0, color="0.6", linewidth=0.8, zorder=1)
    named = len(lines) <= _NAMED
    for name, ranks in lines.items():
        ordered = np.sort(ranks[~np.isnan(ranks)])
        above = np.arange(1, len(ordered) + 1) / len(ordered) - ordered
        ax.plot(
            ordered,
            above,
            linewidth=1.2 if named else 0.6,
            color=None if named else "C0",
            alpha=1.0 if named else 0.4,
            label=name if named else None,
        )
    ax.set(
        xlim=(0, 1),
        xlabel="rank of the true value",
        ylabel="share of ranks below, minus uniform",
        title=f"guide: {check.verdict}",
    )
    if named and lines:
        ax.legend(frameon=False, fontsize="small")
    return figure


def _ranks(check: evaluate.GuideCheck) -> dict[str, np.ndarray]:
    """Returns the ranks of every unit by its name, and of log p(x, z)."""
    found = {}
    for site in check.sites.values():
        columns = as_array(site.ranks).reshape(len(site.ranks), -1)
        for index in range(columns.shape[1]):
            found[site.unit_name(index)] = columns[:, index]
    if len(check.joint_ranks):
        found["log p(x, z)"] = as_array(check.joint_ranks)
    return found
