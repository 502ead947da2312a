"""Pictures. Every function returns the figure; no display is needed.

What is a single picture is drawn into ``ax`` if one is given.
"""

__all__ = [
    "Picture",
    "active_units",
    "animation",
    "arithmetic",
    "canvases",
    "curves",
    "gaps",
    "graph",
    "imputations",
    "interpolation",
    "latents",
    "manifold",
    "neighbours",
    "piano_roll",
    "posteriors",
    "reconstructions",
    "samples",
    "traversal",
]

from tarspyro.plot.canvases import animation, canvases
from tarspyro.plot.comparisons import arithmetic, imputations, neighbours
from tarspyro.plot.figures import Picture
from tarspyro.plot.graph import graph
from tarspyro.plot.inference import gaps, posteriors
from tarspyro.plot.learning import curves
from tarspyro.plot.pictures import (
    active_units,
    interpolation,
    latents,
    manifold,
    reconstructions,
    samples,
    traversal,
)
from tarspyro.plot.sequences import piano_roll
