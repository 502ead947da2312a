"""Pictures of sequences."""

__all__ = ["piano_roll"]

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tarspyro.plot.figures import as_array, axes_of

_LOWEST = 21  # the MIDI number of the lowest of 88 keys


def piano_roll(
    x: Any,
    *,
    known: int | None = None,
    lowest: int = _LOWEST,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Draws one piece of music as a piano roll: time to the right, notes upwards, black where
    one sounds.

    Arguments:
        x: The notes at each step, of shape ``(T, notes)``: 0 and 1, or probabilities.
        known: After how many steps to draw a line, behind which the music is the model's.
        lowest: The MIDI number of the first note; 21 is A0, the lowest of a piano's 88 keys.
        title: What to write above it.
        ax: Where to draw.

    Raises:
        ValueError: If x is not one piece.
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
    if len(sounding):  # an octave holds twelve notes: leave half of one around what sounds
        ax.set_ylim(
            max(edges[2], lowest + sounding[0] - 6.5),
            min(edges[3], lowest + sounding[-1] + 6.5),
        )
    if known is not None:
        ax.axvline(known - 0.5, color="C3", linewidth=1)
    ax.set(xlabel="step", title=title)
    return figure
