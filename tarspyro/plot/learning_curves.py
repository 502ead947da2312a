"""Learning curves, of bounds and of games."""

__all__ = ["curves"]

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tarspyro.arguments import format_value
from tarspyro.plot.figures import Picture, axes_of
from tarspyro.runs import History

# What the history of a game holds about its players, by the ends of the names.
_PANELS = {"_loss": "loss", "_gradient": "norm of the gradient"}


def curves(
    history: History, *, names: Sequence[str] = ("elbo", "loss"), ax: Axes | None = None
) -> Figure:
    """Draws the learning curves: the first of the names that was measured, in training and on
    held-out data.

    Of a game, where none of the names was measured, it draws the players' losses, the
    discriminator's mean outputs on real data and on fakes, and the norms of the players'
    gradients, side by side; into ``ax`` the losses alone.

    Arguments:
        history: What ``fit`` returned.
        names: What to draw, by order of preference.
        ax: Where to draw.

    Raises:
        ValueError: If none of the names was measured, and no player's loss either.
    """
    if not isinstance(history, History):
        raise TypeError(f"history must be what fit returned, got {format_value(history)}.")
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
    measured = [
        name
        for name in (history.rows[-1] if history.rows else ())
        if not name.startswith("validation_")
    ]
    panels = {
        title: [name for name in measured if name.endswith(end)]
        for end, title in _PANELS.items()
    }
    panels["mean output of the discriminator"] = [
        name for name in ("real", "fake") if name in measured
    ]
    if not panels["loss"]:
        raise ValueError(
            f"names must hold something measured, got {list(names)}: the history has"
            f" {len(history)} epochs."
        )
    chosen = {
        title: found
        for title, found in panels.items()
        if found and (ax is None or title == "loss")
    }
    if ax is None:
        figure: Figure = Picture(figsize=(4.4 * len(chosen), 3.4), layout="constrained")
        axes = figure.subplots(1, len(chosen), squeeze=False)[0]
    else:
        figure, axes = axes_of(ax, (4.4, 3.4))[0], [ax]
    for place, (title, found) in zip(axes, chosen.items(), strict=True):
        for name in found:
            label = name.removesuffix("_loss").removesuffix("_gradient")
            _line(place, history, name, label)
            _line(place, history, f"validation_{name}", f"{label}, held out")
        _finish(place, title)
    return figure


def _line(ax: Axes, history: History, key: str, label: str) -> None:
    if history[key]:
        epochs = [
            row["epoch"] for row in history.rows if key in row
        ]  # a resumed run may measure more
        ax.plot(epochs, history[key], label=label, marker="." if len(history) < 30 else None)


def _finish(ax: Axes, ylabel: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.legend(frameon=False)
