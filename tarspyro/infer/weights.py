"""From a run of a pair to the log weights of its data points: the part that all bounds share."""

__all__ = [
    "Group",
    "Shared",
    "Structure",
    "Weights",
    "in_plates",
    "joined",
    "structure_of",
    "weigh",
    "weigh_in_chunks",
    "weigh_one_by_one",
]

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.infer.traces import (
    PARTICLES,
    PairError,
    Plates,
    Program,
    Site,
    log_prob,
    name_of,
    reduce_to,
    sample_sites,
    score_function,
    sum_of,
    trace_pair,
)
from tarspyro.modules import evaluating, preserved_rng

GROUPS = "num_groups_vectorized"

Signed = tuple[str, Site, int]  # a site of the model (+1) or of the guide (-1)


class Structure(NamedTuple):
    """How many plates deep a pair is, and whether latent variables belong to single data points."""

    nesting: int
    local: bool


class Group(NamedTuple):
    """Data points that have weights of their own; tensors of the shape ``[groups, particles, data points]``."""

    log_joint: Tensor  # log p(x, z), without scales
    log_guide: Tensor  # log q(z | x)
    score: Tensor | None  # of the draws that are not, or not wholly, reparameterized
    scale: Any = 1.0  # how much a data point counts: one number, or one for each of them
    latent: tuple[str, ...] = ()  # the guide's sites
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
    """What all data points share, drawn once for each group of particles; tensors of the shape ``[groups]``."""

    log_joint: Tensor
    log_guide: Tensor
    score: Tensor | None

    @property
    def log_weights(self) -> Tensor:
        """Log p - log q of the shared sites."""
        return self.log_joint - self.log_guide


class Weights(NamedTuple):
    """What one run of a pair says of its data points, and of what they share (None if there is nothing)."""

    groups: list[Group]
    shared: Shared | None


class _LocalPlate(pyro.plate):
    """A plate of particles for the sites inside other plates; what all data points share is drawn once."""

    def _process_message(self, msg: Any) -> None:
        if _plates(msg):
            super()._process_message(msg)


def structure_of(model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Structure:
    """Finds the structure of a pair by one run that leaves no mark on random state and statistics."""
    with preserved_rng(), evaluating(model, guide):
        traces = trace_pair(model, guide, args, kwargs)
    sites = [site for trace in traces for site in trace.nodes.values()]
    frames = [frame for site in sites for frame in site.get("cond_indep_stack", ()) if frame.vectorized]
    dims = [-(frame.dim or 0) for frame in frames]
    latent = [site for _, site in sample_sites(traces[0]) if not site["is_observed"]]
    return Structure(max(dims, default=0), any(_plates(site) for site in latent))


def in_plates(
    model: Program, guide: Program, groups: int, particles: int, structure: Structure
) -> tuple[Program, Program]:
    """Returns both halves inside a plate of groups and one of particles, to the left of their own plates."""
    kind = _LocalPlate if structure.local else pyro.plate
    plates = [kind(PARTICLES, particles, dim=-structure.nesting - 1)]
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


def weigh(model: Program, model_trace: Trace, guide_trace: Trace, structure: Structure) -> Weights:
    """Reads the weights off the traces of a run inside ``in_plates``.

    Latent variables inside plates belong to data points. Sites that plates tie together make a group, and its data
    points are the indices of the plates that hold all of them. Sites outside all plates are shared. Where all latent
    variables are shared, the whole data set is one data point, and the scale of a subsampled plate belongs into its
    weight: it is an estimate of the weight with all data.

    Raises:
        PairError: If data points have no weights of their own, or no common scale.
    """
    signed: list[Signed] = [(name, site, 1) for name, site in sample_sites(model_trace)]
    signed += [(name, site, -1) for name, site in sample_sites(guide_trace) if not site["is_observed"]]
    group_dim, particle_dim = -structure.nesting - 2, -structure.nesting - 1
    if not structure.local:
        if not any(_plates(site) for _, site, _ in signed):
            raise PairError(
                f"{name_of(model)} has no weight for each data point, because no site lies in a plate: put what "
                "belongs to a data point inside one, such as pyro.plate('data', len(x))."
            )
        return Weights([_group(signed, [group_dim, particle_dim], structure, 1.0, scaled=True)], None)
    groups = []
    for component in _tied([entry for entry in signed if _plates(entry[1])]):
        common = frozenset.intersection(*(_plates(site) for _, site, _ in component))
        if not common:
            names = sorted({name for name, _, _ in component})
            raise PairError(
                f"{name_of(model)} has no weight for each data point, because no pyro.plate holds all of {names}, "
                "which share plates: give them one in common, or train with the ELBO."
            )
        dims = sorted(dim for _, dim in common if dim < 0)
        scale = _common_scale(model, component)
        groups.append(_group(component, [group_dim, particle_dim, *dims], structure, scale))
    outside = [entry for entry in signed if not _plates(entry[1])]
    if not outside:
        return Weights(groups, None)
    joint, guide, score = _sums(outside, [group_dim], scaled=True)
    return Weights(groups, Shared(joint.reshape(-1), guide.reshape(-1), None if score is None else score.reshape(-1)))


def weigh_one_by_one(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    groups: int,
    particles: int,
    structure: Structure,
) -> Weights:
    """Returns the weights of as many runs of a pair as there are particles, without plates of particles.

    Every run takes the same rows of subsampled plates, and every run of a group the same draws of what all data
    points share.
    """

    def run(model_again: Trace, guide_again: Trace) -> tuple[Trace, Trace]:
        halves = poutine.replay(model, trace=model_again), poutine.replay(guide, trace=guide_again)
        return trace_pair(halves[0], halves[1], args, kwargs)

    rows: list[list[Weights]] = []
    indices = Trace(), Trace()
    for _ in range(groups):
        first = run(*indices)
        indices = _only(first[0], site_is_subsample), _only(first[1], site_is_subsample)
        shared = _only(first[1], lambda site: site_is_subsample(site) or (structure.local and not _plates(site)))
        runs = [first, *(run(indices[0], shared) for _ in range(particles - 1))]
        rows.append([weigh(model, *traces, structure) for traces in runs])
    groups_of = [_join([[run.groups[i] for run in row] for row in rows]) for i in range(len(rows[0][0].groups))]
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
    """Yields the weights of some particles at a time; every chunk takes the same rows of subsampled plates.

    Raises:
        PairError: If data points share latent variables, which all particles of a group would have to share too.
    """
    indices = Trace(), Trace()
    for start in range(0, particles, chunk_size):
        halves = poutine.replay(model, trace=indices[0]), poutine.replay(guide, trace=indices[1])
        halves = in_plates(*halves, groups, min(chunk_size, particles - start), structure)
        traces = trace_pair(*halves, args, kwargs)
        indices = _only(traces[0], site_is_subsample), _only(traces[1], site_is_subsample)
        weights = weigh(model, *traces, structure)
        if weights.shared is not None:
            raise PairError(f"{name_of(model)} has latent variables outside all plates: leave out chunk_size.")
        yield weights


def joined(chunks: Sequence[Weights]) -> Weights:
    """Puts chunks of particles together."""
    return Weights([_join([groups]) for groups in zip(*(chunk.groups for chunk in chunks), strict=True)], None)


def _only(trace: Trace, chosen: Callable[[Any], bool]) -> Trace:
    """The unobserved sites of a trace that are chosen."""
    part = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and chosen(site):
            part.add_node(name, **site)
    return part


def _join(table: Sequence[Sequence[Group]]) -> Group:
    """Puts single particles side by side: a row of the table is a group of them."""

    def together(name: str) -> Any:
        return _concatenated([_concatenated([getattr(entry, name) for entry in row], 1) for row in table])

    return table[0][0]._replace(**{name: together(name) for name in ("log_joint", "log_guide", "score")})


def _concatenated(values: Sequence[Tensor | None], dim: int = 0) -> Any:
    return None if values[0] is None else torch.cat([value for value in values if value is not None], dim)


def _plates(site: Any) -> Plates:
    """The user's plates around a site, name and dimension; a sequential plate's index takes the dimension's place."""
    frames = site.get("cond_indep_stack", ())
    return frozenset(
        (frame.name, frame.dim if frame.vectorized else frame.counter)
        for frame in frames
        if frame.name not in (PARTICLES, GROUPS)
    )


def _tied(entries: Sequence[Signed]) -> list[list[Signed]]:
    """Puts sites together that share a plate, directly or through others."""
    found: list[tuple[set[tuple[str, int]], list[Signed]]] = []
    for entry in entries:
        plates, members = set(_plates(entry[1])), [entry]
        for other in [group for group in found if group[0] & plates]:
            found.remove(other)
            plates, members = plates | other[0], other[1] + members
        found.append((plates, members))
    return [members for _, members in found]


def _group(
    entries: Sequence[Signed], dims: Sequence[int], structure: Structure, scale: Any, scaled: bool = False
) -> Group:
    """The data points of some sites that are summed over all dimensions but the given ones."""
    sums = [value for value in _sums(entries, dims, scaled) if value is not None]
    if len({value.shape for value in sums}) > 1:
        sums = list(torch.broadcast_tensors(*sums))
    full = (1,) * (structure.nesting + 2 - sums[0].dim()) + tuple(sums[0].shape)
    joint, guide, *score = (value.reshape(full[:2] + (-1,)) for value in sums)
    latent = tuple(name for name, _, sign in entries if sign < 0)
    return Group(joint, guide, score[0] if score else None, scale, latent, full)


def _sums(entries: Sequence[Signed], dims: Sequence[int], scaled: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log joint, log guide and score of some sites, summed over all dimensions but the given ones."""
    joints: list[Tensor] = []
    guides: list[Tensor] = []
    scores: list[Tensor] = []
    for _, site, sign in entries:
        density = scale_and_mask(log_prob(site), site["scale"] if scaled else 1.0, site["mask"])
        (joints if sign > 0 else guides).append(reduce_to(density, dims))
        if sign < 0 and not is_identically_zero(score := score_function(site["fn"], site["value"])):
            scores.append(reduce_to(score, dims))
    joint = sum_of(joints or [torch.zeros_like(guides[0])])
    return joint, sum_of(guides) if guides else torch.zeros_like(joint), sum_of(scores) if scores else None


def _common_scale(model: Program, component: Sequence[Signed]) -> Any:
    """The scale of all sites of a group: a bound that is not linear cannot have several."""
    first_name, first, _ = component[0]
    for name, site, _ in component[1:]:
        one, other = first["scale"], site["scale"]
        if torch.is_tensor(one) or torch.is_tensor(other):
            # Comparing tensors reads them back, so it belongs to validation.
            same = torch.is_tensor(one) and torch.is_tensor(other)
            same = same and (not is_validation_enabled() or torch.equal(one, other))
        else:
            same = one == other
        if not same:
            raise PairError(
                f"{name_of(model)} has different scales at {first_name!r} ({one}) and {name!r} ({other}), which no "
                "weighted bound can have within a data point: scale the whole pair, or train with the ELBO."
            )
    scale = first["scale"]
    return scale.reshape(-1) if torch.is_tensor(scale) else scale
