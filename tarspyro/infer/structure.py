"""The structure of a pair: which sites belong to which data points."""

__all__ = ["SHARED", "SiteGroup", "Structure", "read_structure"]

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample

from tarspyro.infer.gradients import reachable_leaves
from tarspyro.infer.matching import check_auxiliary, check_sites, run_pair
from tarspyro.infer.traces import (
    PairError,
    Plates,
    Site,
    guide_terms,
    is_delta,
    is_factor,
    log_prob,
    only,
    plates_of,
    sample_sites,
    with_values,
)
from tarspyro.scopes import kept_buffers
from tarspyro.types import Program

SHARED = -1  # in place of a group: what is drawn once for all particles


@dataclass(frozen=True)
class SiteGroup:
    """Sites of the same data points, which are the indices of the plates that hold all of
    them.
    """

    plates: Plates = frozenset()

    @functools.cached_property
    def dims(self) -> tuple[int, ...]:
        """The plates' dimensions, counted from the right; a sequential plate has none."""
        return tuple(sorted(dim for _, dim in self.plates if dim < 0))


@dataclass(frozen=True)
class Structure:
    r"""The sites of a pair by the data points that they belong to.

    Given the shared latent variables s, the log weight of all data is a sum over data points
    n,

    .. math:: \log w = \log \frac{p(s)}{q(s)} + \sum_n \log w_n(z_n; s)

    and every bound takes its logarithm for each n. Where everything is shared there is one
    weight of all data.

    Attributes:
        nesting: How many plates deep the pair is.
        groups: The groups of sites; one without plates where there is one weight of all data.
        group_of: The place of each site's group, or ``SHARED``.
        latent: The latent variables that the guide draws.
        enumerated: The latent variables of the model alone, which it marks to be summed out.
        subsampled: Whether plates are subsamples of more data.
        vectorized: Whether the pair can take a plate of particles; None if that was not tried.
    """

    nesting: int
    groups: tuple[SiteGroup, ...]
    group_of: Mapping[str, int]
    latent: tuple[str, ...] = ()
    enumerated: tuple[str, ...] = ()
    subsampled: bool = False
    vectorized: bool | None = None

    @functools.cached_property
    def joint(self) -> bool:
        """Whether there is one weight of all data."""
        return not self.groups[0].plates

    @property
    def shared(self) -> list[str]:
        """The latent variables that are drawn once for all particles."""
        return [name for name in self.latent if self.group_of[name] == SHARED]

    @property
    def whole(self) -> "Structure":
        """The structure with one weight of all data."""
        return replace(self, groups=(SiteGroup(),), group_of=dict.fromkeys(self.group_of, 0))

    def group(self, name: str, site: Site) -> int:
        """The place of a site's group; of one that only some runs have, the first that its
        plates allow.
        """
        place = self.group_of.get(name)
        if place is not None:
            return place
        plates = plates_of(site)
        places = [place for place, group in enumerate(self.groups) if group.plates <= plates]
        if not places:
            raise PairError(
                f"The site {name!r} is there in some runs only, outside the plates of all data"
                " points, so that its weight belongs to none: train with the ELBO, or sample"
                " it in every run and mask it."
            )
        return places[0]

    def __str__(self) -> str:
        if self.joint:
            return "one weight of all data"
        plates = [
            " and ".join(repr(name) for name, _ in sorted(group.plates))
            for group in self.groups
        ]
        text = f"a weight for each index of {', of '.join(dict.fromkeys(plates))}"
        return (
            f"{text}, given one draw of {', '.join(self.shared)} for all particles"
            if self.shared
            else text
        )


def read_structure(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    observed: bool = False,
) -> tuple[Structure, Trace, Trace]:
    """Finds the structure of a pair by a run that leaves no mark on statistics.

    The run is in the programs' own mode: a site may be there in training alone. Sites that
    share plates belong together, where the plates tell. Where they do not, the derivatives of
    each site's density tell which latent variables it depends on. A latent variable is shared
    if no plate holds all sites that depend on it.

    Returns:
        The structure, and the run's traces.

    Raises:
        PairError: If the halves do not match.
    """
    with kept_buffers(model, guide), torch.no_grad():
        model_trace, guide_trace = run_pair(model, guide, args, kwargs)
        check_sites(
            model,
            guide,
            model_trace,
            guide_trace,
            data=(*args, *kwargs.values()),
            observed=observed,
        )
        terms = _terms(model_trace, guide_trace)
        guided = {
            name: site for name, site in sample_sites(guide_trace) if not site["is_observed"]
        }
        drawn = list(guided)
        latent = {name for name, site in sample_sites(model_trace) if not site["is_observed"]}
        summed = tuple(name for name in latent if name not in drawn)
        auxiliary = [name for name in drawn if name not in latent]
        random = [name for name in drawn if not is_delta(guided[name])]
        frames = [
            frame
            for trace in (model_trace, guide_trace)
            for frame in _vectorized_frames(trace)
        ]
        depth = [-frame.dim for frame in frames]
        depth += [len(getattr(term.site["fn"], "batch_shape", ())) for term in terms]
        structure = Structure(
            max(depth, default=0),
            (SiteGroup(),),
            {term.name: 0 for term in terms},
            tuple(name for name in drawn if name in random),
            summed,
            any(frame.full_size not in (None, frame.size) for frame in frames),
        )
        common = (
            frozenset.intersection(*(term.plates for term in terms)) if terms else frozenset()
        )
        if common and not auxiliary:
            structure = replace(structure, groups=(SiteGroup(common),))
        elif auxiliary or any(plates_of(guided[name]) for name in random):
            try:
                found, deltas = _dependencies(
                    model, guide, guide_trace, terms, random, args, kwargs
                )
            except (RuntimeError, ValueError, NotImplementedError):
                found, deltas = None, None  # then everything may depend on everything
            check_auxiliary(guide, model_trace, guide_trace, auxiliary, deltas)
            if common:
                structure = replace(structure, groups=(SiteGroup(common),))
            elif found is not None:
                structure = _partition(structure, terms, random, found)
    return structure, model_trace, guide_trace


@dataclass(frozen=True, eq=False)
class _Term:
    """The density of a site of the model, or of one that the guide draws."""

    name: str
    half: int  # 0 for the model, 1 for the guide
    site: Site
    plates: Plates

    @property
    def observed(self) -> bool:
        return self.half == 0 and self.site["is_observed"] and not is_factor(self.site)


def _terms(model_trace: Trace, guide_trace: Trace) -> list[_Term]:
    halves = (sample_sites(model_trace), guide_terms(guide_trace))
    return [
        _Term(name, half, site, plates_of(site))
        for half, sites in enumerate(halves)
        for name, site in sites
    ]


def _vectorized_frames(trace: Trace) -> Iterable[Any]:
    sites: Any = trace.nodes.values()
    return (
        frame
        for site in sites
        for frame in site.get("cond_indep_stack", ())
        if frame.vectorized
    )


def _dependencies(
    model: Program,
    guide: Program,
    guide_trace: Trace,
    terms: Sequence[_Term],
    random: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[dict[tuple[int, str], frozenset[str]], dict[str, frozenset[str]]]:
    """Finds the latent variables that each density, and each ``Delta`` of the guide, is a
    function of.

    Values without derivatives, such as class numbers, count as known to the sites that share a
    plate with them.
    """
    with torch.enable_grad():
        values: dict[str, Any] = {name: guide_trace.nodes[name]["value"] for name in random}
        leaves = {
            name: value.detach().clone().requires_grad_()
            for name, value in values.items()
            if value.is_floating_point()
        }
        chosen = only(
            guide_trace, lambda site: site_is_subsample(site) or site["name"] in random
        )
        # Copies of the leaves, which the programs may change in place.
        given = with_values(chosen, {name: leaf.clone() for name, leaf in leaves.items()})
        guided = poutine.trace(poutine.replay(guide, trace=given)).get_trace(*args, **kwargs)
        modelled = poutine.trace(poutine.replay(model, trace=guided)).get_trace(
            *args, **kwargs
        )
        names = {id(leaf): name for name, leaf in leaves.items()}
        reachable = reachable_leaves(list(leaves.values()))

        def reached(value: Any) -> frozenset[str]:
            return (
                frozenset(names[key] for key in reachable(value))
                if torch.is_tensor(value)
                else frozenset()
            )

        counted = [name for name in random if name not in leaves]
        densities: dict[tuple[int, str], frozenset[str]] = {}
        for term in terms:
            site: Any = (modelled, guided)[term.half].nodes[term.name]
            beside = {
                name for name in counted if plates_of(guide_trace.nodes[name]) & term.plates
            }
            own = {term.name} if term.name in random else set()
            densities[term.half, term.name] = reached(log_prob(site)) | beside | own
        deltas = {
            name: reached(site["value"])
            for name, site in sample_sites(guided)
            if not site["is_observed"] and name not in random
        }
    return densities, deltas


def _partition(
    structure: Structure,
    terms: Sequence[_Term],
    random: Sequence[str],
    dependencies: Mapping[tuple[int, str], frozenset[str]],
) -> Structure:
    """Puts sites into groups, so that given the shared latent variables each data point has
    its own.

    Starts with what no plate holds together with all that depends on it. A group whose sites
    no single plate holds, or that observes nothing, is shared too.
    """
    found = {term: dependencies[term.half, term.name] for term in terms}
    shared = set()
    for name in random:
        around = [term.plates for term in terms if name in found[term]]
        if not frozenset.intersection(*around):
            shared.add(name)
    groups: list[tuple[set[str], list[_Term], Plates]] = []
    while True:
        groups = []
        for names, members in _tied(found, shared):
            groups.append(
                (names, members, frozenset.intersection(*(term.plates for term in members)))
            )
        bad = [
            names
            for names, members, plates in groups
            if not plates or not any(t.observed for t in members)
        ]
        if not bad:
            break
        shared = shared.union(*bad)
    if not groups:
        return structure
    group_of = {
        term.name: place for place, (_, members, _) in enumerate(groups) for term in members
    }
    for name in {term.name for term in terms} - group_of.keys():
        # What depends on no data point's draws is a constant of those whose plates it lies in.
        plates = frozenset.intersection(*(term.plates for term in terms if term.name == name))
        places = [place for place, (*_, around) in enumerate(groups) if around <= plates]
        group_of[name] = places[0] if places and name not in shared else SHARED
    return replace(
        structure, groups=tuple(SiteGroup(plates) for *_, plates in groups), group_of=group_of
    )


def _tied(
    found: Mapping[_Term, frozenset[str]], shared: Collection[str]
) -> list[tuple[set[str], list[_Term]]]:
    """Puts terms together that depend on a latent variable, one that is not shared, directly
    or through others.
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
