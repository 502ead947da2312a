"""Graphs of programs: sites, dependencies and plates."""

from __future__ import annotations

__all__ = ["graph"]

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from pyro import poutine
from pyro.infer.inspect import get_model_relations

from tarspyro.arguments import as_numbers, format_value
from tarspyro.infer.matching import explaining
from tarspyro.infer.traces import check_program
from tarspyro.plot.figures import axes_of
from tarspyro.programs import tensors_of
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse

# The distances between the centres of sites, in inches.
_WIDTH = 1.8
_HEIGHT = 1.25
# The radius of a site.
_RADIUS = 0.3
# The distance from the centre of a site to the border of its plate.
_MARGIN = 0.5
# The room at the right of a site for the name of its family.
_ROOM = 0.4

Place: TypeAlias = tuple[float, float]
Places: TypeAlias = dict[str, Place]


def graph(program: Program, *args: object, ax: Axes | None = None, **kwargs: object) -> Figure:
    r"""Draws the directed graph of a model or guide, as Pyro finds it in one run.

    A circle is a sample site, grey if it is observed, with the name of its family. An arrow
    leads from a site to those that depend on it. A rectangle is a plate.
    ``pyro.render_model`` draws the same graph by Graphviz, if that is installed.

    Arguments:
        program: A model or a guide, any Pyro program.
        *args: The arguments of the program.
        ax: Where to draw.
        **kwargs: More arguments of the program.

    Raises:
        ValueError: If the program has no sample sites.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> decoder = Conditional(dist.Bernoulli, MLP(2, [8]), 64)
        >>> p = models.VAE(default_prior(dist.Normal, 2), decoder)
        >>> [text.get_text() for text in graph(p, torch.zeros(5, 64)).axes[0].texts]
        ['$z$', 'Normal', '$x$', 'Bernoulli', 'data']
    """
    from matplotlib.patches import Ellipse

    check_program("program", program)
    tensors = tensors_of(args)
    for value in tensors:
        as_numbers("data", value)
    with (
        preserved_rng(),
        evaluating(program),
        torch.no_grad(),
        explaining([program], tensors),
    ):
        # The values are drawn first: some samplers, such as Laplace's, fail on the parameters
        # that Pyro marks to follow their dependencies.
        values = poutine.trace(program).get_trace(*args, **kwargs)
        found = get_model_relations(poutine.replay(program, trace=values), args, kwargs)
    parents = found["sample_sample"]
    plates = found["plate_sample"]
    if not parents:
        raise ValueError(
            f"program has no sample sites, got {format_value(program)}: give a model or a"
            " guide, with its data."
        )

    places = _places(parents, plates)
    across, down = zip(*places.values(), strict=True)
    left = min(across) - 2 * _MARGIN
    right = max(across) + 2 * _MARGIN + _ROOM
    bottom = min(down) - 2 * _MARGIN
    top = max(down) + 2 * _MARGIN
    figure, ax = axes_of(ax, (right - left, top - bottom))
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.axis("off")

    circles = {}
    for name, place in places.items():
        color = "0.8" if name in found["observed"] else "white"
        circles[name] = Ellipse(
            place, 2 * _RADIUS, 2 * _RADIUS, facecolor=color, edgecolor="black", zorder=2
        )
    for name, place in places.items():
        ax.add_patch(circles[name])
        _label(ax, place, name, found["sample_dist"][name])
        for parent in parents[name]:
            others = [places[other] for other in places if other not in (name, parent)]
            _arrow(ax, circles[parent], circles[name], others)
    for name, members in plates.items():
        _plate(ax, name.removesuffix("__CLONE"), members, plates, places)
    return figure


def _places(
    parents: Mapping[str, Sequence[str]], plates: Mapping[str, Sequence[str]]
) -> Places:
    """Returns the centres of sites.

    A site is below those that it depends on, and beside the sites of other plates.
    """
    depths: dict[str, int] = {}
    for name in parents:  # in the order of the run, so that parents come first
        depths[name] = 1 + max((depths[parent] for parent in parents[name]), default=-1)
    # For each set of plates, its sites by depth.
    blocks: dict[frozenset[str], dict[int, list[str]]] = {}
    for name, depth in depths.items():
        around = frozenset(plate for plate, members in plates.items() if name in members)
        blocks.setdefault(around, {}).setdefault(depth, []).append(name)

    places: Places = {}
    left = 0.0
    for rows in blocks.values():
        widest = max(map(len, rows.values()))
        for depth, names in rows.items():
            start = left + (widest - len(names)) / 2 * _WIDTH
            for index, name in enumerate(names):
                places[name] = (start + index * _WIDTH, -depth * _HEIGHT)
        left += widest * _WIDTH
    return places


def _label(ax: Axes, place: Place, name: str, family: str) -> None:
    """Writes the name of a site into its circle, and that of its family beside it."""
    x, y = place
    size = 11 if len(name) < 6 else 8
    ax.text(x, y, _formula(name), ha="center", va="center", fontsize=size, zorder=3)
    right = x + 0.7 * _RADIUS
    below = y - 0.8 * _RADIUS
    ax.text(right, below, family, ha="left", va="top", fontsize=7, color="0.4")


def _arrow(ax: Axes, source: Ellipse, target: Ellipse, others: Sequence[Place]) -> None:
    """Draws an arrow, which bends around the sites between its ends."""
    from matplotlib.patches import FancyArrowPatch

    start = source.center
    end = target.center
    bend = 0.0
    if any(_between(place, start, end) for place in others):
        # On this side there are fewer arrows.
        bend = -0.2 if end[0] > start[0] else 0.2
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            patchA=source,
            patchB=target,
            shrinkA=0,
            shrinkB=0,
            arrowstyle="-|>",
            mutation_scale=10,
            color="black",
            connectionstyle=f"arc3,rad={bend}",
        )
    )


def _between(place: Place, start: Place, end: Place) -> bool:
    """Returns whether a site lies on the straight line between two others."""
    a, b, c = (complex(*point) for point in (start, end, place))
    along = (c - a) / (b - a)
    return 0 < along.real < 1 and abs(along.imag) * abs(b - a) < _RADIUS


def _plate(
    ax: Axes,
    label: str,
    members: Sequence[str],
    plates: Mapping[str, Sequence[str]],
    places: Places,
) -> None:
    """Draws a rectangle around the members of a plate, outside the plates that it contains."""
    from matplotlib.patches import FancyBboxPatch

    inside = sum(set(other) < set(members) for other in plates.values())
    margin = _MARGIN * (1 + 0.3 * inside)
    across, down = zip(*(places[name] for name in members), strict=True)
    left = min(across) - margin
    right = max(across) + margin + _ROOM
    bottom = min(down) - 1.2 * margin
    top = max(down) + margin
    ax.add_patch(
        FancyBboxPatch(
            (left, bottom),
            right - left,
            top - bottom,
            boxstyle="round,pad=0,rounding_size=0.1",
            fill=False,
            color="0.5",
        )
    )
    ax.text(
        right - 0.05, bottom + 0.05, label, ha="right", va="bottom", fontsize=7, color="0.4"
    )


def _formula(name: str) -> str:
    r"""Returns a site's name as a formula, with an index and upright words.

    Example:
        >>> _formula("z_1"), _formula("hidden_1")
        ('$z_{1}$', '$\\mathrm{hidden}_{1}$')
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        return name
    letter, _, index = name.partition("_")
    words = [
        part if len(part) == 1 or part.isdigit() else rf"\mathrm{{{part}}}"
        for part in (letter, index)
        if part
    ]
    subscripts = [f"{{{word.replace('_', ',')}}}" for word in words[1:]]
    return "$" + "_".join([words[0], *subscripts]) + "$"
