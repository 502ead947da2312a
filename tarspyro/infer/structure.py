"""The structure of a pair: the sites of each data point, and those that all of them share."""

__all__ = [
    "SHARED",
    "SiteGroup",
    "Structure",
    "check_points",
    "check_every_row",
    "read_structure",
    "subsamples_of",
    "unmatched_in",
]

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.infer.gradients import reachable_leaves
from tarspyro.infer.matching import check_auxiliary, check_sites, run_pair
from tarspyro.infer.traces import (
    PairError,
    Plates,
    Site,
    drawn_of,
    guide_terms,
    is_delta,
    is_factor,
    is_flat,
    log_prob,
    name_of,
    nested,
    nesting_of,
    only,
    plates_of,
    sample_sites,
    with_values,
)
from tarspyro.scopes import kept_buffers
from tarspyro.types import Program

SHARED = -1  # The place of sites that are drawn once for all particles, and are in no group.

# The latent variables that each density depends on: by its half (0 for the model, 1 for the
# guide) and the name of its site.
Dependencies = Mapping[tuple[int, str], frozenset[str]]

# The masks of a site, each with its number of dimensions of the event.
_Masks: TypeAlias = list[tuple[Tensor, int]]


@dataclass(frozen=True)
class SiteGroup:
    """Sites of the same data points.

    Attributes:
        plates: The plates that hold all sites of the group. Their indices are the data points.
    """

    plates: Plates = frozenset()

    @functools.cached_property
    def dims(self) -> tuple[int, ...]:
        """The dimensions of the plates, counted from the right; a sequential plate has none."""
        return tuple(sorted(dim for _, dim in self.plates if dim < 0))


@dataclass(frozen=True)
class Structure:
    r"""The sites of a pair by the data points that they belong to.

    Given the shared latent variables s, the log weight of all data is a sum over data points
    n,

    .. math:: \log w = \log \frac{p(s)}{q(s)} + \sum_n \log w_n(z_n; s)

    A weighted bound takes its logarithm for each n. If everything is shared, there is one
    weight of all data.

    Attributes:
        nesting: How many dimensions the pair's plates take.
        groups: The groups of sites. If there is one weight of all data, this is one group
            without plates.
        group_of: The place of each site's group in ``groups``, or ``SHARED``.
        latent: The latent variables that the guide draws.
        enumerated: The latent variables of the model alone, which it marks to be summed out.
        subsamples: The plates that are subsamples of larger ones: names, sizes, full sizes.
        vectorized: Whether the pair runs in a plate of particles; None if that was not tried.
        unmatched: The latent variables whose density only one of the programs masks in some
            places, where log p - log q lacks a term.
        masked: Whether a latent variable has a mask, which may have other values in other data.
        points: The latent variables with a density in the model that the guide gives a single
            value. The density at a value bounds no probability.
    """

    nesting: int
    groups: tuple[SiteGroup, ...]
    group_of: Mapping[str, int]
    latent: tuple[str, ...] = ()
    enumerated: tuple[str, ...] = ()
    subsamples: tuple[tuple[str, int, int], ...] = ()
    vectorized: bool | None = None
    unmatched: tuple[str, ...] = ()
    masked: bool = False
    points: tuple[str, ...] = ()

    @functools.cached_property
    def joint(self) -> bool:
        """Whether there is one weight of all data."""
        return not self.groups[0].plates

    @property
    def subsampled(self) -> bool:
        """Whether a plate is a subsample of a larger one."""
        return bool(self.subsamples)

    @property
    def shared(self) -> list[str]:
        """The latent variables that are drawn once for all particles."""
        return [name for name in self.latent if self.group_of[name] == SHARED]

    @property
    def whole(self) -> "Structure":
        """The structure with one weight of all data."""
        return replace(self, groups=(SiteGroup(),), group_of=dict.fromkeys(self.group_of, 0))

    def group(self, name: str, site: Site) -> int:
        """Returns the place of a site's group, or ``SHARED``.

        A site that only some runs have belongs to the first group whose plates hold it.

        Raises:
            PairError: If no group's plates hold it.
        """
        place = self.group_of.get(name)
        if place is not None:
            return place
        plates = plates_of(site)
        for place, group in enumerate(self.groups):
            if group.plates <= plates:
                return place
        raise PairError(
            f"The site {name!r} is sampled in some runs only and lies outside the plates of the"
            " data points, so its weight belongs to no data point: train with ELBO(), or sample"
            " it in every run and mask it."
        )

    def __str__(self) -> str:
        if self.joint:
            return "one weight of all data"
        plates = [
            " and ".join(repr(name) for name, _ in sorted(group.plates))
            for group in self.groups
        ]
        text = f"a weight for each index of {', of '.join(dict.fromkeys(plates))}"
        if not self.shared:
            return text
        return f"{text}, given one draw of {', '.join(self.shared)} for all particles"


def read_structure(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    observed: bool = False,
) -> tuple[Structure, Trace, Trace]:
    """Finds the structure of a pair by one run, after which all statistics are as before.

    The programs run in the mode that they are in, because a site may be sampled in training
    alone. If some plates hold all sites, the indices of these plates are the data points. Else
    the derivatives of each site's density tell which latent variables it depends on. A latent
    variable is shared if no plate holds it together with all sites that depend on it.

    Arguments:
        model: The model.
        guide: The guide.
        args: The arguments that both are called with.
        kwargs: The keyword arguments that both are called with.
        observed: Whether the model has to observe something.

    Returns:
        The structure, the model's trace and the guide's.

    Raises:
        PairError: If the sites of model and guide do not match.
    """
    with kept_buffers(model, guide), torch.no_grad():
        model_trace, guide_trace = run_pair(model, guide, args, kwargs)
        data = (*args, *kwargs.values())
        check_sites(model, guide, model_trace, guide_trace, data=data, observed=observed)

        guided = drawn_of(sample_sites(guide_trace))
        latent = drawn_of(sample_sites(model_trace))
        random = [name for name, site in guided.items() if not is_delta(site)]
        auxiliary = [name for name in guided if name not in latent]
        terms = _terms(model_trace, guide_trace)
        structure = _joint_structure(model_trace, guide_trace, terms)
        structure = replace(
            structure,
            latent=tuple(random),
            enumerated=tuple(name for name in latent if name not in guided),
            unmatched=unmatched_in(model_trace, guide_trace),
            masked=any(halves for _, *halves in _masks_of_latent(model_trace, guide_trace)),
        )
        points = _points(model_trace, guide_trace)
        if not auxiliary:
            structure = replace(structure, points=points)

        common = frozenset[tuple[str, int]]()
        if terms:
            common = frozenset.intersection(*(term.plates for term in terms))
        if common:
            structure = replace(structure, groups=(SiteGroup(common),))
        local = any(plates_of(guided[name]) for name in random)
        if not auxiliary and (common or not local):
            return structure, model_trace, guide_trace

        try:
            found, deltas = _dependencies(
                model, guide, guide_trace, terms, random, args, kwargs
            )
        except (RuntimeError, ValueError, NotImplementedError):
            # The densities have no derivatives, so each may depend on everything.
            return structure, model_trace, guide_trace
        check_auxiliary(guide, model_trace, guide_trace, auxiliary, deltas)
        if auxiliary:
            # Functions of an auxiliary variable have its density.
            points = tuple(name for name in points if not deltas.get(name))
            structure = replace(structure, points=points)
        if not common:
            structure = _partition(structure, terms, random, found)
    return structure, model_trace, guide_trace


def _joint_structure(
    model_trace: Trace, guide_trace: Trace, terms: Sequence["_Term"]
) -> Structure:
    """Returns the structure with one weight of all data."""
    nesting = nesting_of(model_trace, guide_trace)
    for term in terms:
        nesting = max(nesting, len(getattr(term.site["fn"], "batch_shape", ())))
    return Structure(
        nesting,
        groups=(SiteGroup(),),
        group_of={term.name: 0 for term in terms},
        subsamples=subsamples_of(model_trace, guide_trace),
    )


def subsamples_of(*traces: Trace) -> tuple[tuple[str, int, int], ...]:
    """Returns the plates that are subsamples of larger ones: names, sizes, full sizes."""
    found = set()
    for trace in traces:
        nodes: dict[str, Any] = trace.nodes
        for site in nodes.values():
            for frame in site.get("cond_indep_stack", ()):
                if frame.vectorized and frame.full_size not in (None, frame.size):
                    found.add((frame.name, frame.size, frame.full_size))
    return tuple(sorted(found))


def check_every_row(
    program: Program, subsamples: Sequence[tuple[str, int, int]], rows: int
) -> None:
    """Raises if a program draws only some rows of its data, and has no result for the others.

    A plate that is larger than the data takes them for a subsample, all of which it has.

    Raises:
        PairError: If a plate is a subsample of the rows.
    """
    for name, size, full_size in subsamples:
        if size < full_size == rows:
            raise PairError(
                f"{name_of(program)} draws {size} of {rows} rows in the plate {name!r}, and"
                " every row has a result: evaluate without subsample_size."
            )


def check_points(guide: Program, structure: Structure) -> None:
    """Raises if a guide gives a continuous latent variable a single value.

    Raises:
        PairError: If it does.
    """
    if structure.points and not structure.joint:
        raise PairError(
            f"{name_of(guide)} gives {', '.join(map(repr, structure.points))} a single value,"
            " a Delta, and the density at one value is no bound on log p(x): give a guide with"
            " a density, such as a Conditional of Normal, or take evaluate.reconstruction."
        )


def _points(model_trace: Trace, guide_trace: Trace) -> tuple[str, ...]:
    """Returns the latent variables with a density in the model, and one value in the guide."""
    sites = dict(sample_sites(model_trace))
    return tuple(
        name
        for name, guided in drawn_of(sample_sites(guide_trace)).items()
        if is_delta(guided)
        and name in sites
        and not sites[name]["is_observed"]
        and _has_density(sites[name])
    )


def _has_density(site: Site) -> bool:
    """Whether a site has a normalized density: neither probabilities, nor a value, nor flat."""
    distribution = site["fn"]
    if is_delta(site) or is_flat(distribution):
        return False
    (*_, innermost) = nested(distribution)
    if getattr(innermost, "has_probabilities", False):  # vectors of a codebook
        return False
    return not distribution.support.is_discrete


def unmatched_in(model_trace: Trace, guide_trace: Trace) -> tuple[str, ...]:
    """Returns the latent variables that the programs mask in different places.

    A ``Delta`` of the guide has no density that a mask could leave out. A model that masks a
    variable everywhere and has a ``pyro.factor`` gives it a prior in this way.
    """
    factors = any(is_factor(site) for _, site in sample_sites(model_trace))
    names = []
    for name, *halves in _masks_of_latent(model_trace, guide_trace):
        ndims = max(events for half in halves for _, events in half)
        ours, others = (_joint_mask(half, ndims) for half in halves)
        replaced = factors and not ours.any()
        if bool((ours != others).any()) and not replaced:
            names.append(name)
    return tuple(names)


def _masks_of_latent(
    model_trace: Trace, guide_trace: Trace
) -> Iterator[tuple[str, _Masks, _Masks]]:
    """Yields the latent variables that have masks, with those of the model and of the guide."""
    sites = dict(sample_sites(model_trace))
    for name, guided in sample_sites(guide_trace):
        site = sites.get(name)
        if site is None or site["is_observed"] or is_delta(guided):
            continue
        ours, others = _masks_of(site), _masks_of(guided)
        if ours or others:
            yield name, ours, others


def _masks_of(site: Site) -> _Masks:
    """Returns the masks of a site: its handlers', and those inside its distribution.

    Each comes with the number of dimensions of the event that it has, right of the plates.
    """
    masks = []
    if site["mask"] is not None:
        masks.append((torch.as_tensor(site["mask"]), 0))
    distribution = site["fn"]
    events = 0
    while isinstance(distribution, (Independent, MaskedDistribution)):
        if isinstance(distribution, MaskedDistribution):
            masks.append((torch.as_tensor(distribution._mask), events))
        else:
            events += distribution.reinterpreted_batch_ndims
        distribution = distribution.base_dist
    return masks


def _joint_mask(masks: Sequence[tuple[Tensor, int]], ndims: int) -> Tensor:
    """Returns where all masks are true, with a number of dimensions of the event."""
    joint = torch.tensor(True)
    for mask, events in masks:
        if mask.dim():  # a plain True or False is on no device in particular
            mask = mask.reshape(mask.shape + (1,) * (ndims - events))
        joint = mask & joint
    return joint


@dataclass(frozen=True, eq=False)
class _Term:
    """The density of a site of the model, or of one that the guide draws."""

    name: str
    half: int  # 0 for the model, 1 for the guide.
    site: Site
    plates: Plates

    @property
    def observed(self) -> bool:
        return self.half == 0 and self.site["is_observed"] and not is_factor(self.site)


def _terms(model_trace: Trace, guide_trace: Trace) -> list[_Term]:
    """Returns the densities in log p and log q."""
    terms = [_Term(name, 0, site, plates_of(site)) for name, site in sample_sites(model_trace)]
    for name, site in guide_terms(guide_trace):
        terms.append(_Term(name, 1, site, plates_of(site)))
    return terms


def _dependencies(
    model: Program,
    guide: Program,
    guide_trace: Trace,
    terms: Sequence[_Term],
    random: Sequence[str],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> tuple[Dependencies, dict[str, frozenset[str]]]:
    """Finds the latent variables that each density depends on, and each ``Delta`` of the guide.

    The pair runs again on copies of its draws; what has a derivative in a copy depends on it.
    Values that may be used without a derivative, such as class numbers and other discrete
    draws, count as known to all sites that share a plate with them.
    """
    drawn: dict[str, Any] = guide_trace.nodes
    with torch.enable_grad():
        leaves = {
            name: drawn[name]["value"].detach().clone().requires_grad_()
            for name in random
            if drawn[name]["value"].is_floating_point()
        }
        chosen = only(
            guide_trace, lambda site: site_is_subsample(site) or site["name"] in random
        )
        # The programs may change their draws in place, and a leaf cannot be changed in place.
        given = with_values(chosen, {name: leaf.clone() for name, leaf in leaves.items()})
        guided = poutine.trace(poutine.replay(guide, trace=given)).get_trace(*args, **kwargs)
        modelled = poutine.trace(poutine.replay(model, trace=guided)).get_trace(
            *args, **kwargs
        )

        names = {id(leaf): name for name, leaf in leaves.items()}
        reachable = reachable_leaves(list(leaves.values()))

        def reached(value: object) -> frozenset[str]:
            if not isinstance(value, Tensor):
                return frozenset()
            return frozenset(names[key] for key in reachable(value))

        halves: tuple[dict[str, Any], dict[str, Any]] = (modelled.nodes, guided.nodes)
        counted = {
            name: plates_of(drawn[name])
            for name in random
            if name not in leaves or not drawn[name]["fn"].has_rsample
        }
        densities: dict[tuple[int, str], frozenset[str]] = {}
        for term in terms:
            found = set(reached(log_prob(halves[term.half][term.name])))
            found |= {name for name, plates in counted.items() if plates & term.plates}
            if term.name in random:
                found.add(term.name)
            densities[term.half, term.name] = frozenset(found)
        deltas = {
            name: reached(site["value"])
            for name, site in drawn_of(sample_sites(guided)).items()
            if name not in random
        }
    return densities, deltas


def _partition(
    structure: Structure,
    terms: Sequence[_Term],
    random: Sequence[str],
    dependencies: Dependencies,
) -> Structure:
    """Puts the sites into groups, so that each data point has its own, given the shared ones.

    A latent variable is shared at first if no plate holds all densities that depend on it.
    Then every group whose sites no single plate holds, or that observes nothing, is shared too.
    """
    found = {term: dependencies[term.half, term.name] for term in terms}
    shared: set[str] = set()
    for name in random:
        around = [term.plates for term in terms if name in found[term]]
        if not frozenset.intersection(*around):
            shared.add(name)

    while True:
        groups = [
            (names, members, frozenset.intersection(*(term.plates for term in members)))
            for names, members in _tied(found, shared)
        ]
        strange = [
            names
            for names, members, plates in groups
            if not plates or not any(term.observed for term in members)
        ]
        if not strange:
            break
        shared = shared.union(*strange)
    if not groups:
        return structure

    group_of = {}
    for place, (_, members, _) in enumerate(groups):
        for term in members:
            group_of[term.name] = place
    for name in {term.name for term in terms} - group_of.keys():
        # A density that depends on the draws of no data point is a constant of the data points
        # in its plates.
        plates = frozenset.intersection(*(term.plates for term in terms if term.name == name))
        places = [place for place, (*_, around) in enumerate(groups) if around <= plates]
        group_of[name] = places[0] if places and name not in shared else SHARED
    return replace(
        structure, groups=tuple(SiteGroup(plates) for *_, plates in groups), group_of=group_of
    )


def _tied(
    found: Mapping[_Term, frozenset[str]], shared: Collection[str]
) -> list[tuple[set[str], list[_Term]]]:
    """Puts densities together that depend on the same latent variables, directly or through
    others.

    Shared latent variables tie nothing together.
    """
    groups: list[tuple[set[str], list[_Term]]] = []
    for term, names in found.items():
        own = set(names) - set(shared)
        if not own:
            continue
        members = [term]
        for group in [group for group in groups if group[0] & own]:
            groups.remove(group)
            own |= group[0]
            members = group[1] + members
        groups.append((own, members))
    return groups
