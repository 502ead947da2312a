"""Learning curves of bounds and games."""

from __future__ import annotations

__all__ = ["curves"]

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tarspyro.arguments import format_value
from tarspyro.plot.figures import axes_of
from tarspyro.runs import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The panels of a game by the suffixes of its measures.
_PANELS = {"_loss": "loss", "_gradient": "norm of the gradient"}


def curves(
    history: History, *, names: Sequence[str] = ("elbo", "loss"), ax: Axes | None = None
) -> Figure:
    """Draws learning curves on training and held-out data.

    The curve of a bound is that of the first name that was measured. A game, for which none of
    the names was measured, has panels for the players' losses, the discriminator's mean
    outputs on real and generated data, and the norms of the players' gradients; ``ax`` gets
    the losses alone.

    Arguments:
        history: The history that ``fit`` returned.
        names: The measures to draw, by order of preference.
        ax: Where to draw.

    Raises:
        TypeError: If ``history`` is not a history.
        ValueError: If neither one of the names nor the loss of a player was measured.
    """
    if not isinstance(history, History):
        raise TypeError(
            f"history must be a History, as fit returns it, got {format_value(history)}."
        )
    name = next((name for name in names if history[name]), None)
    if name is None:
        return _game(history, names, ax)
    figure, ax = axes_of(ax, (6.4, 4.0))
    for key, label in ((name, "training"), (f"validation_{name}", "held out")):
        _line(ax, history, key, label)
    if history.best_epoch:
        ax.axvline(
            history.best_epoch, color="0.7", linewidth=1, linestyle=":", label="best epoch"
        )
    _finish(ax, f"{name.upper() if name == 'elbo' else name} (nats per data point)")
    return figure


def _game(history: History, names: Sequence[str], ax: Axes | None) -> Figure:
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
        figure: Figure = Picture(figsize=(4.4 * len(panels), 3.4), layout="constrained")
        axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    else:
        panels = {"loss": panels["loss"]}
        figure, ax = axes_of(ax, (4.4, 3.4))
        axes = [ax]
    for place, (title, found) in zip(axes, panels.items(), strict=True):
        for name in found:
            label = name.removesuffix("_loss").removesuffix("_gradient")
            _line(place, history, name, label)
            _line(place, history, f"validation_{name}", f"{label}, held out")
        _finish(place, title)
    return figure


def _line(ax: Axes, history: History, key: str, label: str) -> None:
    if not history[key]:
        return
    # A resumed run may measure more than the epochs before did.
    epochs = [row["epoch"] for row in history.rows if key in row]
    ax.plot(epochs, history[key], label=label, marker="." if len(history) < 30 else None)


def _finish(ax: Axes, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.legend(frameon=False)
