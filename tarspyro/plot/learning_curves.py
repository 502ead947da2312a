"""Learning curves of bounds and games."""

from __future__ import annotations

__all__ = ["curves"]

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tarspyro.arguments import format_value
from tarspyro.plot.colors import PALETTE
from tarspyro.plot.figures import axes_of
from tarspyro.runs import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One history, or those of several runs, such as of several seeds.
Runs: TypeAlias = History | Sequence[History]

# The panels of a game by the suffixes of its measures.
_PANELS = {"_loss": "loss", "_gradient": "norm of the gradient"}

_BEST = "best epoch"


def curves(
    history: Runs | Mapping[str, Runs],
    *,
    names: Sequence[str] = ("elbo", "loss"),
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws learning curves on training and held-out data, of one training or of several.

    The curves are those of the first name that every training measured. Of one history, the
    best epoch is a line. Of several, each name has a colour, held-out data is dashed, and a
    ring marks the best epoch; several runs under one name are thin lines around their mean.

    A game, for which none of the names was measured, has panels for the players' losses, the
    discriminator's mean outputs on real and generated data, and the norms of the players'
    gradients; ``ax`` gets the losses alone.

    Arguments:
        history: The history that ``fit`` returned, or several by name,
            ``{"ELBO": history, "IWAE": [first_run, second_run]}``, or a list of them.
        names: The measures to draw, by order of preference.
        figsize: The width and height of a new figure, in inches.
        ax: Where to draw. Curves that are there already must be of the same measure.

    Raises:
        TypeError: If ``history`` holds something else than histories.
        ValueError: If none of the names and no loss of a player was measured, if histories have
            no measure in common, or if ``ax`` shows another one.

    Example:
        >>> slow = History(rows=[{"epoch": 1, "elbo": -9.0}, {"epoch": 2, "elbo": -8.0}])
        >>> fast = History(rows=[{"epoch": 1, "elbo": -7.0}, {"epoch": 2, "elbo": -5.0}])
        >>> figure = curves({"slow": slow, "fast": fast})
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['slow', 'fast']
    """
    groups = _groups(history)
    single = isinstance(history, History)
    every = [run for runs in groups.values() for run in runs]
    name = next((name for name in names if all(name in run for run in every)), None)
    if name is None and single:
        return _game(every[0], names, figsize, ax)
    if name is None:
        measured = {group: _measures(runs) for group, runs in groups.items()}
        raise ValueError(
            f"names must hold something that every history measured, got {list(names)}; the"
            f" histories measured {format_value(measured)}."
        )

    shown = ax
    figure, ax = axes_of(ax, figsize or (6.4, 4.0))
    ylabel = f"{name.upper() if name == 'elbo' else name} (nats per data point)"
    if shown is not None and ax.lines and ax.get_ylabel() not in ("", ylabel):
        raise ValueError(
            f"ax shows {ax.get_ylabel()!r} already, got curves of {ylabel!r}: give them other"
            " axes, or the same names to both calls."
        )
    if single:
        _draw_one(ax, every[0], name)
    else:
        _draw_groups(ax, groups, name)
    _finish(ax, ylabel)
    return figure


def _groups(history: object) -> dict[str, list[History]]:
    """Returns histories by name, each with its runs."""
    if isinstance(history, Mapping):
        named = dict(history)
    elif isinstance(history, Iterable) and not isinstance(history, (History, str)):
        named = {f"run {index}": run for index, run in enumerate(history, 1)}
    else:
        named = {"": history}
    groups: dict[str, list[History]] = {}
    for name, runs in named.items():
        groups[str(name)] = []
        for run in runs if isinstance(runs, (list, tuple)) else [runs]:
            if not isinstance(run, History):
                raise TypeError(
                    "history must be a History, as fit returns it, or several by name, got"
                    f" {format_value(run)}."
                )
            groups[str(name)].append(run)
    if not groups or not all(groups.values()):
        raise ValueError(
            f"history must hold at least one History, got {format_value(history)}."
        )
    return groups


def _measures(runs: Sequence[History]) -> list[str]:
    """Returns the measures on the training data that all runs have."""
    first, *others = runs
    return [
        name
        for name in first.columns
        if name not in ("epoch", "step", "seconds")
        and not name.startswith("validation_")
        and all(name in run for run in others)
    ]


def _draw_one(ax: Axes, history: History, name: str) -> None:
    start = _drawn(ax)
    for index, (key, label) in enumerate(
        ((name, "training"), (f"validation_{name}", "held out"))
    ):
        if key in history:
            color = PALETTE[(start + index) % len(PALETTE)]
            _line(ax, history, key, _unused(ax, label), color=color)
    if history.best_epoch:
        label = _unused(ax, _BEST)
        ax.axvline(history.best_epoch, color="0.7", linewidth=1, linestyle=":", label=label)


def _draw_groups(ax: Axes, groups: Mapping[str, Sequence[History]], name: str) -> None:
    start = _drawn(ax)
    held_out = f"validation_{name}"
    for index, (group, runs) in enumerate(groups.items()):
        color = PALETTE[(start + index) % len(PALETTE)]
        label = _unused(ax, group)
        for key, style in ((name, "-"), (held_out, "--")):
            measured = [run for run in runs if key in run]
            if len(measured) == 1:
                _line(ax, measured[0], key, label, color=color, linestyle=style)
                _ring(
                    ax, measured[0], held_out if held_out in measured[0] else name, key, color
                )
            elif measured:
                for run in measured:
                    (thin,) = ax.plot(*_points(run, key), color=color, linestyle=style)
                    thin.set(alpha=0.35, linewidth=0.8, label="_run")
                ax.plot(*_mean(measured, key), color=color, linestyle=style, label=label)
            label = f"_{label}"  # once in the legend
    if any(held_out in run for runs in groups.values() for run in runs):
        for label, style in (("training", "-"), ("held out", "--")):
            ax.plot([], [], color="0.4", linestyle=style, label=_unused(ax, label))
    if any(line.get_label() == f"_{_BEST}" for line in ax.lines):
        label = _unused(ax, _BEST)
        ax.plot([], [], "o", color="0.4", markerfacecolor="none", label=label)


def _drawn(ax: Axes) -> int:
    """Returns how many colours of the palette the axes have already."""
    from matplotlib.colors import to_hex

    used = [
        PALETTE.index(c) for line in ax.lines if (c := to_hex(line.get_color())) in PALETTE
    ]
    return 1 + max(used, default=-1)


def _unused(ax: Axes, label: str) -> str:
    """Returns a label that no line of the axes has: the second one is ``label (2)``."""
    found = {str(line.get_label()) for line in ax.lines}
    number = 2
    chosen = label
    while chosen in found:
        chosen = f"{label} ({number})"
        number += 1
    return chosen


def _points(history: History, key: str) -> tuple[list[float], list[float]]:
    # A resumed run may measure more than the epochs before did.
    return [row["epoch"] for row in history.rows if key in row], history[key]


def _mean(runs: Sequence[History], key: str) -> tuple[list[float], list[float]]:
    """Returns the mean over the runs, of the epochs that all of them measured."""
    values = [dict(zip(*_points(run, key), strict=True)) for run in runs]
    epochs = sorted(set(values[0]).intersection(*values))
    return epochs, [float(np.mean([of_run[epoch] for of_run in values])) for epoch in epochs]


def _ring(ax: Axes, history: History, judged: str, key: str, color: str) -> None:
    """Marks the best epoch on the curve by which it was judged."""
    epochs, values = _points(history, key)
    if key != judged or history.best_epoch not in epochs:
        return
    value = values[epochs.index(history.best_epoch)]
    ax.plot(
        [history.best_epoch],
        [value],
        color=color,
        label=f"_{_BEST}",
        linestyle="",
        marker="o",
        markersize=7,
        markerfacecolor="none",
    )


def _game(
    history: History,
    names: Sequence[str],
    figsize: tuple[float, float] | None,
    ax: Axes | None,
) -> Figure:
    from tarspyro.plot.picture import Picture

    last = history.rows[-1] if history.rows else {}
    measured = [name for name in last if not name.startswith("validation_")]
    panels = {
        title: [name for name in measured if name.endswith(suffix)]
        for suffix, title in _PANELS.items()
    }
    panels["mean output of the discriminator"] = [
        name for name in ("real", "fake") if name in measured
    ]
    if not panels["loss"]:
        raise ValueError(
            f"names must hold something measured, got {list(names)}: the history has"
            f" {len(history)} epochs."
        )

    if ax is None:
        panels = {title: found for title, found in panels.items() if found}
        size = figsize or (4.4 * len(panels), 3.4)
        figure: Figure = Picture(figsize=size, layout="constrained")
        axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    else:
        panels = {"loss": panels["loss"]}
        figure, ax = axes_of(ax, (4.4, 3.4))
        axes = [ax]
    for place, (title, found) in zip(axes, panels.items(), strict=True):
        for name, color in zip(found, PALETTE, strict=False):
            label = name.removesuffix("_loss").removesuffix("_gradient")
            _line(place, history, name, label, color=color)
            held_out = f"validation_{name}"
            if held_out in history:
                options = {"color": color, "linestyle": "--"}
                _line(place, history, held_out, f"{label}, held out", **options)
        _finish(place, title)
    return figure


def _line(ax: Axes, history: History, key: str, label: str, **options: str) -> None:
    marker = "." if len(history) < 30 else ""
    ax.plot(*_points(history, key), label=label, marker=marker, **options)  # type: ignore[arg-type]


def _finish(ax: Axes, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.legend(frameon=False)
