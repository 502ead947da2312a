"""The log weights of a pair's data points: the one account that bounds, filters and
evaluations share.
"""

__all__ = [
    "Group",
    "Shared",
    "Weights",
    "in_plates",
    "joined",
    "weigh",
    "weigh_in_chunks",
    "weigh_one_by_one",
]

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.infer.structure import SHARED, Structure
from tarspyro.infer.traces import (
    GROUPS,
    PARTICLES,
    PairError,
    Site,
    guide_terms,
    log_prob,
    name_of,
    only,
    plates_of,
    reduce_to,
    sample_sites,
    score_function,
    sum_of,
    trace_pair,
)
from tarspyro.types import Program

Signed = tuple[str, Site, int]  # a site of the model (+1) or of the guide (-1)


class Group(NamedTuple):
    """Data points that have weights of their own; tensors of the shape ``[groups, particles,
    data points]``.
    """

    log_joint: Tensor  # log p(x, z), without scales
    log_guide: Tensor  # log q(z | x)
    score: Tensor | None  # of the draws that are not, or not wholly, reparameterized
    scale: Any = 1.0  # how much a data point counts: one number, or one for each of them
    latent: tuple[str, ...] = ()  # the sites that the guide draws
    shape: tuple[int, ...] = ()  # that of the weights, with one dimension for each plate

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) - log q(z | x)."""
        return self.log_joint - self.log_guide

    def spread(self, values: Tensor, site: Site) -> Tensor:
        """Brings values of the weights' shape into one that multiplies the draw of a site."""
        shape = self.shape + (1,) * site["fn"].event_dim
        return values.reshape(shape[len(shape) - site["value"].dim() :])


class Shared(NamedTuple):
    """What all data points share, drawn once for each group of particles; tensors of the shape
    ``[groups]``.
    """

    log_joint: Tensor
    log_guide: Tensor
    score: Tensor | None

    @property
    def log_weights(self) -> Tensor:
        """Log p - log q of the shared sites."""
        return self.log_joint - self.log_guide


class Weights(NamedTuple):
    """What one run of a pair says of its data points, and of what they share (None if there is
    nothing).
    """

    groups: list[Group]
    shared: Shared | None


class _LocalPlate(pyro.plate):
    """A plate of particles for the sites of data points; what all of them share is drawn once."""

    def __init__(self, name: str, size: int, dim: int, structure: Structure) -> None:
        super().__init__(name, size, dim=dim)
        self.structure = structure

    def _process_message(self, msg: Any) -> None:
        place = self.structure.group_of.get(msg["name"]) if msg["type"] == "sample" else None
        if place is None and plates_of(msg) or place not in (None, SHARED):
            super()._process_message(msg)


def in_plates(
    model: Program, guide: Program, groups: int, particles: int, structure: Structure
) -> tuple[Program, Program]:
    """Returns both halves inside a plate of groups and one of particles, to the left of their
    own plates.
    """

    def plate(name: str, size: int, dim: int) -> pyro.plate:
        return (
            pyro.plate(name, size, dim=dim)
            if structure.joint
            else _LocalPlate(name, size, dim, structure)
        )

    plates = [plate(PARTICLES, particles, -structure.nesting - 1)]
    if groups > 1:
        plates.insert(0, pyro.plate(GROUPS, groups, dim=-structure.nesting - 2))

    def replicated(program: Program) -> Program:
        def run(*args: Any, **kwargs: Any) -> Any:
            with contextlib.ExitStack() as stack:
                for plate in plates:
                    stack.enter_context(plate)
                return program(*args, **kwargs)

        return run

    return replicated(model), replicated(guide)


def weigh(
    model: Program,
    model_trace: Trace,
    guide_trace: Trace,
    structure: Structure,
    *,
    scales: str = "common",
) -> Weights:
    """Reads the weights off the traces of a run inside ``in_plates``.

    A data point's weight has no scale; its bound is multiplied by the scale that its sites
    have in common. Where there is one weight of all data, the scale of a subsampled plate
    belongs into it: it is an estimate of the weight of all data (Li and Turner 2016,
    arXiv:1602.02311, section 4.3).

    Arguments:
        model: The model.
        model_trace: A run of it.
        guide_trace: That of the guide.
        structure: The structure of the pair.
        scales: ``"common"`` to every data point's sites; ``"inside"`` its weight, where a
            bound is the log weight itself, as with one particle; or ``"none"``, for the log
            weights alone, without scales and scores.

    Raises:
        PairError: If a data point has no common scale.
    """
    entries: list[list[Signed]] = [[] for _ in range(len(structure.groups) + 1)]
    known = structure.group_of
    for name, site in sample_sites(model_trace):
        entries[known[name] if name in known else structure.group(name, site)].append(
            (name, site, 1)
        )
    for name, site in guide_terms(guide_trace):
        entries[known[name] if name in known else structure.group(name, site)].append(
            (name, site, -1)
        )
    dims = [-structure.nesting - 2, -structure.nesting - 1]
    groups = []
    for group, members in zip(structure.groups, entries[:-1], strict=True):
        if members:
            scale = (
                1.0
                if scales == "none"
                else _scale(model, members, structure.joint, scales == "inside")
            )
            groups.append(
                _group(
                    members, [*dims, *group.dims], structure, scale, scored=scales != "none"
                )
            )
    if not entries[SHARED]:
        return Weights(groups, None)
    counted = scales != "none"
    joint, guide, score = _sums(entries[SHARED], dims[:1], scaled=counted, scored=counted)
    return Weights(
        groups,
        Shared(
            joint.reshape(-1), guide.reshape(-1), None if score is None else score.reshape(-1)
        ),
    )


def weigh_one_by_one(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    groups: int,
    particles: int,
    structure: Structure,
    *,
    scales: str = "common",
) -> Weights:
    """Returns the weights of as many runs of a pair as there are particles, without plates of
    particles.

    Every run takes the same rows of subsampled plates, and every run of a group the same draws
    of what all data points share.
    """

    def run(model_again: Trace, guide_again: Trace) -> tuple[Trace, Trace]:
        halves = (
            poutine.replay(model, trace=model_again),
            poutine.replay(guide, trace=guide_again),
        )
        return trace_pair(halves[0], halves[1], args, kwargs)

    rows: list[list[Weights]] = []
    indices = Trace(), Trace()
    for _ in range(groups):
        first = run(*indices)
        indices = only(first[0], site_is_subsample), only(first[1], site_is_subsample)
        shared = only(
            first[1],
            lambda site: (
                site_is_subsample(site) or structure.group_of.get(site["name"]) == SHARED
            ),
        )
        runs = [first, *(run(indices[0], shared) for _ in range(particles - 1))]
        rows.append([weigh(model, *traces, structure, scales=scales) for traces in runs])
    groups_of = [
        _join([[run.groups[i] for run in row] for row in rows])
        for i in range(len(rows[0][0].groups))
    ]
    outside = [row[0].shared for row in rows]
    if outside[0] is None:
        return Weights(groups_of, None)
    return Weights(groups_of, Shared(*map(_concatenated, zip(*outside, strict=True))))


def weigh_in_chunks(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    groups: int,
    particles: int,
    chunk_size: int,
    structure: Structure,
) -> Iterator[Weights]:
    """Yields the weights of some particles at a time; every chunk takes the same rows of
    subsampled plates.

    Raises:
        PairError: If data points share latent variables, which all particles of a group would
            have to share too.
    """
    indices = Trace(), Trace()
    for start in range(0, particles, chunk_size):
        halves = (
            poutine.replay(model, trace=indices[0]),
            poutine.replay(guide, trace=indices[1]),
        )
        halves = in_plates(*halves, groups, min(chunk_size, particles - start), structure)
        traces = trace_pair(*halves, args, kwargs)
        indices = only(traces[0], site_is_subsample), only(traces[1], site_is_subsample)
        weights = weigh(model, *traces, structure)
        if weights.shared is not None:
            raise PairError(
                f"{name_of(model)}'s data points share {structure.shared}: leave out"
                " chunk_size."
            )
        yield weights


def joined(chunks: Sequence[Weights]) -> Weights:
    """Puts chunks of particles together."""
    return Weights(
        [_join([groups]) for groups in zip(*(chunk.groups for chunk in chunks), strict=True)],
        None,
    )


def _join(table: Sequence[Sequence[Group]]) -> Group:
    """Puts single particles side by side: a row of the table is a group of them."""

    def together(name: str) -> Any:
        return _concatenated(
            [_concatenated([getattr(entry, name) for entry in row], 1) for row in table]
        )

    return table[0][0]._replace(
        **{name: together(name) for name in ("log_joint", "log_guide", "score")}
    )


def _concatenated(values: Sequence[Tensor | None], dim: int = 0) -> Any:
    return (
        None
        if values[0] is None
        else torch.cat([value for value in values if value is not None], dim)
    )


def _group(
    entries: Sequence[Signed],
    dims: Sequence[int],
    structure: Structure,
    scale: Any,
    *,
    scored: bool,
) -> Group:
    """The data points of some sites, summed over all dimensions but the given ones."""
    sums = [
        value
        for value in _sums(entries, dims, scaled=scale is None, scored=scored)
        if value is not None
    ]
    if len({value.shape for value in sums}) > 1:
        sums = list(torch.broadcast_tensors(*sums))
    full = (1,) * (structure.nesting + 2 - sums[0].dim()) + tuple(sums[0].shape)
    joint, guide, *score = (value.reshape(full[:2] + (-1,)) for value in sums)
    latent = tuple(
        name for name, site, sign in entries if sign < 0 and not site["is_observed"]
    )
    if torch.is_tensor(scale):
        scale = scale.reshape(-1)
    return Group(
        joint,
        guide,
        score[0] if score else None,
        1.0 if scale is None else scale,
        latent,
        full,
    )


def _sums(
    entries: Sequence[Signed], dims: Sequence[int], *, scaled: bool, scored: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log joint, log guide and score of some sites, summed over all dimensions but the given
    ones.
    """
    joints: list[Tensor] = []
    guides: list[Tensor] = []
    scores: list[Tensor] = []
    for _, site, sign in entries:
        density = log_prob(site)
        if scaled or site["mask"] is not None:
            density = scale_and_mask(density, site["scale"] if scaled else 1.0, site["mask"])
        (joints if sign > 0 else guides).append(reduce_to(density, dims))
        if (
            scored
            and sign < 0
            and not is_identically_zero(score := score_function(site["fn"], site["value"]))
        ):
            scores.append(reduce_to(score, dims))
    joint = sum_of(joints or [torch.zeros_like(guides[0])])
    return (
        joint,
        sum_of(guides) if guides else torch.zeros_like(joint),
        sum_of(scores) if scores else None,
    )


def _scale(model: Program, entries: Sequence[Signed], joint: bool, inside: bool) -> Any:
    """The scale that all sites of a data point have in common; None if the scales belong into
    its weight.
    """
    first_name, first, _ = entries[0]
    scale = first["scale"]
    others = [entry for entry in entries if entry[1]["scale"] is not scale]
    strange = [entry for entry in others if not _equal(scale, entry[1]["scale"])]
    if not strange:
        return scale
    if inside or (
        joint and all(_equal(_own_scale(first), _own_scale(site)) for _, site, _ in strange)
    ):
        return None
    name, site, _ = strange[0]
    raise PairError(
        f"{name_of(model)} has different scales at {first_name!r} ({first['scale']}) and"
        f" {name!r} ({site['scale']}), which no weighted bound can have within a data point:"
        " scale the whole pair, or train with the ELBO."
    )


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not (torch.is_tensor(one) or torch.is_tensor(other)):
        return bool(one == other)
    # Comparing tensors reads them back, so it belongs to validation.
    both = torch.is_tensor(one) and torch.is_tensor(other)
    return both and (not is_validation_enabled() or torch.equal(one, other))


def _own_scale(site: Site) -> Any:
    """The scale of a site without that of subsampled plates around it."""
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.full_size is not None and frame.full_size != frame.size:
            scale = scale * (frame.size / frame.full_size)
    return scale
