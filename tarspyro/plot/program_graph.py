"""The graph of a program: its sites, what each depends on, and the plates around them."""

__all__ = ["graph"]

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch
from pyro import poutine
from pyro.infer.inspect import get_model_relations

from tarspyro.arguments import as_numbers, format_value
from tarspyro.infer.matching import explaining
from tarspyro.infer.traces import check_program
from tarspyro.plot.figures import axes_of
from tarspyro.programs import tensors_of
from tarspyro.scopes import evaluating, preserved_rng

_WIDTH, _HEIGHT = 1.8, 1.25  # between the centres of sites, in inches
_RADIUS, _MARGIN, _ROOM = (
    0.3,
    0.5,
    0.4,
)  # of a site, from its centre to the border of a plate, for its family's name

Place = tuple[float, float]
Places = dict[str, Place]


def graph(
    program: Callable[..., Any], *args: Any, ax: Axes | None = None, **kwargs: Any
) -> Figure:
    r"""Draws the directed graph of a model or guide, as Pyro finds it in one run.

    A circle is a sample site, shaded where it is observed, with the name of its family beside
    it; an arrow leads from a site to what depends on it; a rectangle is a plate.
    ``pyro.render_model`` draws the same graph by Graphviz, where that is installed.

    Arguments:
        program: A model or a guide, any Pyro program.
        *args: The data that it is called with.
        ax: Axes to draw on; a new figure if not given.
        **kwargs: Further arguments of the program.

    Raises:
        ValueError: If the program has no sample sites.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64))
        >>> [text.get_text() for text in graph(p, torch.zeros(5, 64)).axes[0].texts]
        ['$z$', 'Normal', '$x$', 'Bernoulli', 'data']
    """
    check_program("program", program)
    for value in tensors_of(args):
        as_numbers("data", value)
    with (
        preserved_rng(),
        evaluating(program),
        torch.no_grad(),
        explaining([program], tensors_of(args)),
    ):
        # Drawn beforehand: some samplers, such as Laplace's, fail on parameters that carry
        # where they come from.
        values = poutine.trace(program).get_trace(*args, **kwargs)
        found: Mapping[str, Any] = get_model_relations(
            poutine.replay(program, trace=values), args, kwargs
        )
    parents, plates = found["sample_sample"], found["plate_sample"]
    if not parents:
        raise ValueError(
            f"program has no sample sites, got {format_value(program)}: give a model or a"
            " guide, with its data."
        )
    places = _places(parents, plates)
    across, down = zip(*places.values(), strict=True)
    left, right = min(across) - 2 * _MARGIN, max(across) + 2 * _MARGIN + _ROOM
    bottom, top = min(down) - 2 * _MARGIN, max(down) + 2 * _MARGIN
    figure, ax = axes_of(ax, (right - left, top - bottom))
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.axis("off")
    faces = {name: "0.8" if name in found["observed"] else "white" for name in places}
    circles = {
        name: Ellipse(
            place, 2 * _RADIUS, 2 * _RADIUS, facecolor=faces[name], edgecolor="black", zorder=2
        )
        for name, place in places.items()
    }
    for name, (x, y) in places.items():
        ax.add_patch(circles[name])
        ax.text(
            x,
            y,
            _formula(name),
            ha="center",
            va="center",
            fontsize=11 if len(name) < 6 else 8,
            zorder=3,
        )
        beside: Any = {"ha": "left", "va": "top", "fontsize": 7, "color": "0.4"}
        ax.text(x + 0.7 * _RADIUS, y - 0.8 * _RADIUS, found["sample_dist"][name], **beside)
        for parent in parents[name]:
            others = [place for other, place in places.items() if other not in (name, parent)]
            _arrow(ax, circles[parent], circles[name], others)
    for name, members in plates.items():
        _plate(ax, name.removesuffix("__CLONE"), members, plates, places)
    return figure


def _places(
    parents: Mapping[str, Sequence[str]], plates: Mapping[str, Sequence[str]]
) -> Places:
    """Where the sites stand: below what they depend on, and beside those of other plates."""
    depths: dict[str, int] = {}
    for name in parents:  # in the order of the run, so that what a site depends on comes first
        depths[name] = 1 + max((depths[parent] for parent in parents[name]), default=-1)
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
            places |= {
                name: (start + i * _WIDTH, -depth * _HEIGHT) for i, name in enumerate(names)
            }
        left += widest * _WIDTH
    return places


def _arrow(ax: Axes, source: Ellipse, target: Ellipse, others: Sequence[Place]) -> None:
    start, end = source.center, target.center
    # Round what stands between the two, on the side where fewer arrows go.
    bend = (
        0.0
        if not any(_between(place, start, end) for place in others)
        else -0.2
        if end[0] > start[0]
        else 0.2
    )
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
    """Whether a site stands on the straight line from one to another."""
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
    inside = sum(set(other) < set(members) for other in plates.values())
    margin = _MARGIN * (1 + 0.3 * inside)
    across, down = zip(*(places[name] for name in members), strict=True)
    left, right, bottom, top = (
        min(across) - margin,
        max(across) + margin + _ROOM,
        min(down) - 1.2 * margin,
        max(down) + margin,
    )
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
    """A site's name as a formula: ``z_1`` with an index, and words upright."""
    letter, _, index = name.partition("_")
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        return name
    words = [
        part if len(part) == 1 or part.isdigit() else rf"\mathrm{{{part}}}"
        for part in (letter, index)
        if part
    ]
    return (
        "$"
        + "_".join([words[0], *(f"{{{word.replace('_', ',')}}}" for word in words[1:])])
        + "$"
    )
