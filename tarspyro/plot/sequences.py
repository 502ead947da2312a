"""Piano rolls of music."""

from __future__ import annotations

__all__ = ["piano_roll"]

from typing import TYPE_CHECKING

from tarspyro.plot.figures import as_array, axes_of
from tarspyro.types import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The MIDI number of the lowest of a piano's 88 keys.
_LOWEST = 21


def piano_roll(
    x: ArrayLike,
    *,
    known: int | None = None,
    lowest: int = _LOWEST,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Draws a piece of music as a piano roll: time to the right, notes upwards, sound in black.

    Arguments:
        x: The notes at each step, of shape ``(T, notes)``: 0 and 1, or probabilities.
        known: The number of steps before a line, after which the model continues.
        lowest: The MIDI number of the first note; 21 is A0, the lowest of a piano's 88 keys.
        title: The title.
        ax: Where to draw.

    Raises:
        ValueError: If x is not a single piece.
    """
    roll = as_array(x, "x")
    if roll.ndim != 2:
        raise ValueError(f"x must be one piece of shape (steps, notes), got {roll.shape}.")
    figure, ax = axes_of(ax, (9.0, 3.2))
    edges = (-0.5, roll.shape[0] - 0.5, lowest - 0.5, lowest + roll.shape[1] - 0.5)
    ax.imshow(
        roll.T,
        cmap="gray_r",
        vmin=0,
        vmax=1,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=edges,
    )
    octaves = [note for note in range(lowest, lowest + roll.shape[1]) if note % 12 == 0]
    ax.set_yticks(octaves, [f"C{note // 12 - 1}" for note in octaves])
    sounding = roll.max(0, initial=0).nonzero()[0]
    if len(sounding):  # leave half an octave, six notes, around the sounding ones
        ax.set_ylim(
            max(edges[2], lowest + sounding[0] - 6.5),
            min(edges[3], lowest + sounding[-1] + 6.5),
        )
    if known is not None:
        ax.axvline(known - 0.5, color="C3", linewidth=1)
    ax.set(xlabel="step", title=title)
    return figure
