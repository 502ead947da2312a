"""Log weights of a pair's data points: log p(x, z) - log q(z | x), from the traces of its runs.

Bounds, the particle filter and the evaluation all take their weights from here.
"""

__all__ = [
    "PointWeights",
    "SharedWeights",
    "Weights",
    "draw_weights",
    "in_plates",
    "joined",
    "weigh",
    "weigh_in_chunks",
]

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.infer.structure import SHARED, SiteGroup, Structure
from tarspyro.infer.summation import trace_summed
from tarspyro.infer.traces import (
    GROUPS,
    PARTICLES,
    PairError,
    Site,
    equal_scales,
    guide_terms,
    log_prob,
    name_of,
    only,
    own_scale,
    plates_of,
    reduce_to,
    sample_sites,
    score_function,
    sum_of,
)
from tarspyro.types import Program

# A site of the model, with the sign +1, or of the guide, with the sign -1.
SignedSite = tuple[str, Site, int]

# Where the scales of the sites go, see ``weigh``.
Scales = Literal["common", "inside", "none"]


class PointWeights(NamedTuple):
    """Weights of the data points of one group of sites.

    Attributes:
        log_joint: log p(x, z), of shape ``[groups, particles, data points]``.
        log_guide: log q(z | x), of the same shape.
        score: The score function of the draws that are not, or only in part,
            reparameterized, of the same shape; None if there are none.
        scale: How much a data point counts: one number, or one for each of them.
        latent: The sites that the guide draws.
        shape: The shape of the weights with one dimension for each plate.
    """

    log_joint: Tensor
    log_guide: Tensor
    score: Tensor | None
    scale: Tensor | float = 1.0
    latent: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z | x)."""
        return self.log_joint - self.log_guide

    def spread(self, values: Tensor, site: Site) -> Tensor:
        """Reshapes values of the weights' shape so that they multiply the draw of a site."""
        shape = self.shape + (1,) * site["fn"].event_dim
        return values.reshape(shape[len(shape) - site["value"].dim() :])


class SharedWeights(NamedTuple):
    """Weights of the sites that all data points share, drawn once for a group of particles.

    Attributes:
        log_joint: log p of the shared sites, of shape ``[groups]``.
        log_guide: log q of the shared sites, of the same shape.
        score: Their score function, of the same shape; None if there is none.
    """

    log_joint: Tensor
    log_guide: Tensor
    score: Tensor | None

    @property
    def log_weights(self) -> Tensor:
        """Log p - log q of the shared sites."""
        return self.log_joint - self.log_guide


class Weights(NamedTuple):
    """The weights of one run of a pair.

    Attributes:
        groups: The weights of the data points, for each group of sites.
        shared: The weights of the sites that data points share; None if they share none.
    """

    groups: list[PointWeights]
    shared: SharedWeights | None


def draw_weights(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    groups: int,
    particles: int,
    structure: Structure,
    *,
    scales: Scales = "common",
) -> Weights:
    """Draws particles from the guide and returns their weights.

    The pair runs once, inside plates of particles, or once for each particle if it cannot take
    such plates.
    """
    if structure.vectorized is False:
        return _weigh_one_by_one(
            model, guide, args, kwargs, groups, particles, structure, scales
        )
    if groups * particles == 1:
        model_trace, guide_trace = trace_summed(model, guide, args, kwargs, structure)
    else:
        halves = in_plates(model, guide, groups, particles, structure)
        model_trace, guide_trace = trace_summed(*halves, args, kwargs, structure)
    return weigh(model, model_trace, guide_trace, structure, scales=scales)


def weigh(
    model: Program,
    model_trace: Trace,
    guide_trace: Trace,
    structure: Structure,
    *,
    scales: Scales = "common",
) -> Weights:
    """Computes the weights from the traces of a run inside ``in_plates``.

    The weight of a data point has no scale. Its bound is multiplied by the scale that all its
    sites have. If there is one weight of all data, the scale of a subsampled plate belongs into
    the weight, which then estimates the weight of all data (Li and Turner 2016,
    arXiv:1602.02311, section 4.3).

    Arguments:
        model: The model.
        model_trace: A run of the model on the guide's draws.
        guide_trace: The run of the guide.
        structure: The structure of the pair.
        scales: ``"common"`` if all sites of a data point must have one scale. ``"inside"`` if
            scales may differ and belong into the weight, where a bound is the log weight
            itself, as with one particle. ``"none"`` for log weights without scales and scores.

    Raises:
        PairError: If the sites of a data point have different scales.
    """
    places: list[list[SignedSite]] = [[] for _ in range(len(structure.groups) + 1)]
    group_of = structure.group_of
    for sign, sites in ((1, sample_sites(model_trace)), (-1, guide_terms(guide_trace))):
        for name, site in sites:
            place = group_of[name] if name in group_of else structure.group(name, site)
            places[place].append((name, site, sign))

    groups = []
    for group, entries in zip(structure.groups, places[:-1], strict=True):
        if entries:
            groups.append(_weigh_points(model, entries, group, structure, scales))
    if not places[SHARED]:
        return Weights(groups, None)

    counted = scales != "none"
    dims = [-structure.nesting - 2]
    joint, guide, score = _sums(places[SHARED], dims, scaled=counted, scored=counted)
    if score is not None:
        score = score.reshape(-1)
    return Weights(groups, SharedWeights(joint.reshape(-1), guide.reshape(-1), score))


def _weigh_points(
    model: Program,
    entries: Sequence[SignedSite],
    group: SiteGroup,
    structure: Structure,
    scales: Scales,
) -> PointWeights:
    """Returns the weights of the data points that some sites belong to."""
    counted = scales != "none"
    scale = _common_scale(model, entries, structure, scales) if counted else 1.0
    dims = (-structure.nesting - 2, -structure.nesting - 1, *group.dims)
    joint, guide, score = _sums(entries, dims, scaled=scale is None, scored=counted)
    if score is not None:
        joint, guide, score = torch.broadcast_tensors(joint, guide, score)
    elif joint.shape != guide.shape:
        joint, guide = torch.broadcast_tensors(joint, guide)

    shape = (1,) * (structure.nesting + 2 - joint.dim()) + tuple(joint.shape)
    flat = (*shape[:2], -1)
    if scale is None:
        scale = 1.0
    elif isinstance(scale, Tensor):
        scale = scale.reshape(-1)
    latent = []
    for name, site, sign in entries:
        if sign < 0 and not site["is_observed"]:
            latent.append(name)
    return PointWeights(
        joint.reshape(flat),
        guide.reshape(flat),
        None if score is None else score.reshape(flat),
        scale,
        tuple(latent),
        shape,
    )


def _sums(
    entries: Sequence[SignedSite], dims: Sequence[int], *, scaled: bool, scored: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the log joint, the log guide and the score of some sites.

    Each is summed over all dimensions but the given ones.
    """
    joints: list[Tensor] = []
    guides: list[Tensor] = []
    scores: list[Tensor] = []
    for _, site, sign in entries:
        density = log_prob(site)
        if scaled or site["mask"] is not None:
            density = scale_and_mask(density, site["scale"] if scaled else 1.0, site["mask"])
        (joints if sign > 0 else guides).append(reduce_to(density, dims))
        if scored and sign < 0:
            score = score_function(site["fn"], site["value"])
            if score is not None:
                scores.append(reduce_to(score, dims))
    joint = sum_of(joints) if joints else torch.zeros_like(guides[0])
    guide = sum_of(guides) if guides else torch.zeros_like(joint)
    return joint, guide, sum_of(scores) if scores else None


def _common_scale(
    model: Program, entries: Sequence[SignedSite], structure: Structure, scales: Scales
) -> Tensor | float | None:
    """Returns the scale that all sites of a data point have.

    It is None if their scales differ and belong into the weight.

    Raises:
        PairError: If their scales differ and cannot belong into the weight.
    """
    first_name, first, _ = entries[0]
    scale: Tensor | float = first["scale"]
    different = []
    for entry in entries:
        if not equal_scales(scale, entry[1]["scale"]):
            different.append(entry)
    if not different:
        return scale
    if scales == "inside":
        return None
    own = own_scale(first)
    if structure.joint and all(equal_scales(own, own_scale(site)) for _, site, _ in different):
        return None
    name, site, _ = different[0]
    raise PairError(
        f"{name_of(model)} has different scales at {first_name!r} ({first['scale']}) and"
        f" {name!r} ({site['scale']}), and a weighted bound needs one scale for each data"
        " point: scale the whole pair, or train with ELBO()."
    )


class _LocalPlate(pyro.plate):
    """A plate of particles that leaves out the sites which data points share.

    These are drawn once for all particles of a group.
    """

    def __init__(self, name: str, size: int, dim: int, structure: Structure) -> None:
        super().__init__(name, size, dim=dim)
        self.structure = structure

    def _process_message(self, msg: Any) -> None:
        place = self.structure.group_of.get(msg["name"]) if msg["type"] == "sample" else None
        if place == SHARED or (place is None and not plates_of(msg)):
            return
        super()._process_message(msg)


def in_plates(
    model: Program, guide: Program, groups: int, particles: int, structure: Structure
) -> tuple[Program, Program]:
    """Returns model and guide inside a plate of groups and one of particles.

    These plates lie to the left of the programs' own.
    """
    dim = -structure.nesting - 1
    plates = []
    if groups > 1:
        # Each group has its own draws of all sites, also of those that data points share.
        plates.append(pyro.plate(GROUPS, groups, dim=dim - 1))
    if structure.joint:
        plates.append(pyro.plate(PARTICLES, particles, dim=dim))
    else:
        plates.append(_LocalPlate(PARTICLES, particles, dim, structure))
    return _inside(plates, model), _inside(plates, guide)


def _inside(plates: Sequence[pyro.plate], program: Program) -> Program:
    def run(*args: object, **kwargs: object) -> object:
        with contextlib.ExitStack() as stack:
            for plate in plates:
                stack.enter_context(plate)
            return program(*args, **kwargs)

    return run


def _weigh_one_by_one(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    groups: int,
    particles: int,
    structure: Structure,
    scales: Scales,
) -> Weights:
    """Returns the weights of as many runs as there are particles, without plates of particles.

    Every run takes the same rows of subsampled plates, and every run of a group the same draws
    of the shared sites.
    """

    def run(model_again: Trace, guide_again: Trace) -> tuple[Trace, Trace]:
        replayed = poutine.replay(model, trace=model_again)
        again = poutine.replay(guide, trace=guide_again)
        return trace_summed(replayed, again, args, kwargs, structure)

    def is_kept(site: Any) -> bool:
        return site_is_subsample(site) or structure.group_of.get(site["name"]) == SHARED

    rows: list[list[Weights]] = []
    model_rows = Trace()
    guide_rows = Trace()
    for _ in range(groups):
        traces = run(model_rows, guide_rows)
        model_rows = only(traces[0], site_is_subsample)
        guide_rows = only(traces[1], site_is_subsample)
        kept = only(traces[1], is_kept)
        runs = [traces, *(run(model_rows, kept) for _ in range(particles - 1))]
        rows.append([weigh(model, *traces, structure, scales=scales) for traces in runs])

    joined_groups = []
    for place in range(len(rows[0][0].groups)):
        joined_groups.append(_join([[run.groups[place] for run in row] for row in rows]))
    shared = [row[0].shared for row in rows if row[0].shared is not None]
    if not shared:
        return Weights(joined_groups, None)
    joint = torch.cat([weights.log_joint for weights in shared])
    log_guide = torch.cat([weights.log_guide for weights in shared])
    scores = [weights.score for weights in shared if weights.score is not None]
    score = torch.cat(scores) if scores else None
    return Weights(joined_groups, SharedWeights(joint, log_guide, score))


def weigh_in_chunks(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    groups: int,
    particles: int,
    chunk_size: int,
    structure: Structure,
) -> Iterator[Weights]:
    """Yields the weights of ``chunk_size`` particles of each group at a time.

    Every chunk takes the same rows of subsampled plates.

    Raises:
        PairError: If data points share latent variables, which all particles of a group would
            have to share too.
    """
    model_rows = Trace()
    guide_rows = Trace()
    for start in range(0, particles, chunk_size):
        size = min(chunk_size, particles - start)
        halves = in_plates(
            poutine.replay(model, trace=model_rows),
            poutine.replay(guide, trace=guide_rows),
            groups,
            size,
            structure,
        )
        model_trace, guide_trace = trace_summed(*halves, args, kwargs, structure)
        model_rows = only(model_trace, site_is_subsample)
        guide_rows = only(guide_trace, site_is_subsample)
        weights = weigh(model, model_trace, guide_trace, structure)
        if weights.shared is not None:
            raise PairError(
                f"{name_of(model)}'s data points share {structure.shared}: leave out"
                " chunk_size."
            )
        yield weights


def joined(chunks: Sequence[Weights]) -> Weights:
    """Concatenates the weights of chunks of particles."""
    groups = zip(*(chunk.groups for chunk in chunks), strict=True)
    return Weights([_join([row]) for row in groups], None)


def _join(table: Sequence[Sequence[PointWeights]]) -> PointWeights:
    """Concatenates weights: a row of the table holds the particles of one group."""
    scores = [[part.score for part in row if part.score is not None] for row in table]
    return table[0][0]._replace(
        log_joint=_concatenated([[part.log_joint for part in row] for row in table]),
        log_guide=_concatenated([[part.log_guide for part in row] for row in table]),
        score=_concatenated(scores) if scores[0] else None,
    )


def _concatenated(table: Sequence[list[Tensor]]) -> Tensor:
    return torch.cat([torch.cat(row, 1) for row in table])
