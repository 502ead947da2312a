"""Pictures of data, latent spaces, training and inference.

Every function returns its figure; no display is needed. A single picture is drawn on the axes
``ax``, if they are given.
"""

__all__ = [
    "Explorer",
    "Picture",
    "active_units",
    "animation",
    "arithmetic",
    "calibration",
    "canvases",
    "compare",
    "curves",
    "explore",
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

import sys
from typing import TYPE_CHECKING

from tarspyro.plot.codes import latents
from tarspyro.plot.comparisons import arithmetic, imputations, neighbours
from tarspyro.plot.estimates import compare
from tarspyro.plot.explorer import Explorer, explore
from tarspyro.plot.generation import reconstructions, samples
from tarspyro.plot.inference import gaps, posteriors
from tarspyro.plot.latent_space import (
    active_units,
    interpolation,
    manifold,
    traversal,
)
from tarspyro.plot.learning_curves import curves
from tarspyro.plot.painting import animation, canvases
from tarspyro.plot.program_graph import graph
from tarspyro.plot.ranks import calibration
from tarspyro.plot.sequences import piano_roll

if TYPE_CHECKING:
    from tarspyro.plot.picture import Picture


def __getattr__(name: str) -> "type[Picture]":
    if name == "Picture":  # imported when it is used, because its module imports Matplotlib
        from tarspyro.plot.picture import Picture

        return Picture
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__]
    )
