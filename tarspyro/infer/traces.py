"""Traces of a model and its guide, and the sites in them."""

__all__ = [
    "InputError",
    "PairError",
    "check_program",
    "no_guide",
    "particle_plate",
    "trace_pair",
]

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import (
    Delta,
    Distribution,
    ImproperUniform,
    Independent,
    MaskedDistribution,
    SineBivariateVonMises,
    SineSkewed,
    Unit,
)
from pyro.distributions import transforms as flows
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from pyro.distributions.util import is_identically_zero, sum_rightmost
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    IndependentTransform,
    MixtureSameFamily,
    Transform,
    VonMises,
)
from torch.distributions.transforms import _InverseTransform

from tarspyro.arguments import format_value
from tarspyro.sharing import sharing
from tarspyro.types import Program

# A site of a trace, as Pyro records it: ``fn``, ``value``, ``scale``, ``mask``, and so on.
Site = dict[str, Any]

# The plates around a site: their names and dimensions. A sequential plate has no dimension, and
# its index stands in that place.
Plates = frozenset[tuple[str, int]]

PARTICLES = "num_particles_vectorized"  # the name that Pyro's own bounds give this plate
GROUPS = "num_groups_vectorized"


class PairError(ValueError):
    """The model and the guide do not belong together, or do not fit the data."""


class InputError(ValueError):
    """The data does not fit the model's likelihood."""


def no_guide(*args: object, **kwargs: object) -> None:
    """An empty guide, for a model without latent variables."""


def check_program(name: str, program: object) -> None:
    """Raises unless the argument ``name`` is a module or a function.

    Raises:
        TypeError: If it is something else, such as a class or a distribution.
    """
    if isinstance(program, type):
        made = f"{program.__name__}(...)"
        raise TypeError(
            f"{name} must be a module or a function that samples from Pyro's sites, got the"
            f" class {program.__name__}: give an instance, {made}."
        )
    if not callable(program) or isinstance(program, torch.distributions.Distribution):
        raise TypeError(
            f"{name} must be a module or a function that samples from Pyro's sites, got"
            f" {format_value(program)}."
        )


def sample_sites(trace: Trace) -> list[tuple[str, Site]]:
    """Returns the sites that have a log-probability, with their names.

    The random indices of subsampled plates and ``pyro.deterministic`` are left out.
    """
    nodes: dict[str, Any] = trace.nodes
    return [
        (name, site)
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    ]


def guide_terms(trace: Trace) -> list[tuple[str, Site]]:
    """Returns the sites of log q: those that the guide draws, and its ``pyro.factor``s."""
    return [
        (name, site)
        for name, site in sample_sites(trace)
        if not site["is_observed"] or is_factor(site)
    ]


def drawn_of(sites: Iterable[tuple[str, Site]]) -> dict[str, Site]:
    """Returns the latent sites among named ones: those that the program draws."""
    return {name: site for name, site in sites if not site["is_observed"]}


def observed_of(sites: Iterable[tuple[str, Site]]) -> dict[str, Site]:
    """Returns the sites among named ones that hold data, without ``pyro.factor``s."""
    return {name: site for name, site in sites if site["is_observed"] and not is_factor(site)}


def is_factor(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``."""
    return isinstance(site["fn"], Unit)


def elements_of(distribution: Any) -> Any:
    """Returns the distribution of the elements, which ``to_event`` has made independent.

    Example:
        >>> import pyro.distributions as dist
        >>> elements_of(dist.Bernoulli(logits=torch.zeros(3)).to_event(1))
        Bernoulli(logits: torch.Size([3]))
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


def innermost(distribution: Any) -> Any:
    """Returns what is inside a distribution's masks and independent dimensions."""
    while isinstance(distribution, (Independent, MaskedDistribution)):
        distribution = distribution.base_dist
    return distribution


def without_masks(distribution: Any) -> Any:
    """Returns what is inside a distribution's masks."""
    while isinstance(distribution, MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def is_delta(site: Site) -> bool:
    """Whether a site is a ``Delta``, whose value is a function of earlier draws."""
    return isinstance(elements_of(site["fn"]), Delta)


def is_enumerated(site: Site) -> bool:
    """Whether a site takes all its values at once, along a dimension of its own."""
    return "_enumerate_dim" in site["infer"]


def particle_plate(program: Program, num_particles: int, plate_nesting: int) -> Program:
    """Returns the program inside a plate of particles, to the left of its own plates.

    Arguments:
        program: A model or a guide.
        num_particles: The size of the plate.
        plate_nesting: How many dimensions the program's own plates take.
    """

    def particles(*args: object, **kwargs: object) -> object:
        with pyro.plate(PARTICLES, num_particles, dim=-plate_nesting - 1):
            return program(*args, **kwargs)

    return particles


def trace_pair(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    num_particles: int = 1,
    plate_nesting: int = 0,
    enumerate: bool = False,
    enumerate_model: bool = False,
) -> tuple[Trace, Trace]:
    """Runs the guide, then the model on the guide's draws; returns the model's trace first.

    Arguments:
        model: The model.
        guide: The guide.
        args: The arguments that both are called with.
        kwargs: The keyword arguments that both are called with.
        num_particles: With more than one, both run once, inside a plate of particles.
        plate_nesting: How many dimensions the pair's own plates take.
        enumerate: Whether a site that the guide marks for it takes all its values, each in a
            dimension of its own to the left of all plates.
        enumerate_model: Whether a site of the model alone that it marks for it does so too, to
            the left of those of the guide.
    """
    if num_particles > 1:
        model = particle_plate(model, num_particles, plate_nesting)
        guide = particle_plate(guide, num_particles, plate_nesting)
    first_dim = -plate_nesting - 1 - (num_particles > 1)
    if enumerate:
        guide = poutine.enum(guide, first_available_dim=first_dim)
    if enumerate_model:
        # None goes on where the guide has stopped.
        model = poutine.enum(model, first_available_dim=None if enumerate else first_dim)

    with sharing():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    return model_trace, guide_trace


def reparameterized(
    guide_trace: Trace, wanted_by: str, remedy: str = "take gradient='pathwise'"
) -> dict[str, Site]:
    """Returns the sites that a guide draws, if all of them are reparameterized.

    Raises:
        PairError: If one of them is not, or only in part, or has no density; ``wanted_by`` and
            ``remedy`` stand in the message.
    """
    drawn = {
        name: site
        for name, site in sample_sites(guide_trace)
        if not site["is_observed"] and not is_enumerated(site)
    }
    for name, site in drawn.items():
        if not site["fn"].has_rsample:
            raise PairError(
                f"{wanted_by} needs reparameterized draws, and {name!r} is not: {remedy}, or"
                " take a reparameterized family in the guide."
            )
        if score_function(site["fn"], site["value"]) is not None:
            raise PairError(
                f"{wanted_by} needs reparameterized draws, and {name!r} is drawn by rejection:"
                f" {remedy}, or give the guide's family reparameterization='implicit'."
            )
    check_densities(drawn.values(), wanted_by, remedy)
    return drawn


def check_densities(sites: Iterable[Site], wanted_by: str, remedy: str) -> None:
    """Raises unless the distributions of all sites have a density at any value.

    Raises:
        PairError: If one of them has it at its own draws alone, from what these remember.
    """
    for site in sites:
        if not _has_density(site["fn"]):
            raise PairError(
                f"{wanted_by} needs the density of a given {site['name']!r}, which its family"
                f" estimates for its own draws alone: {remedy}, or take a family with a density"
                " in the guide."
            )


# The flows of Pyro that find the inverse of their own draws alone, which they remember.
_REMEMBERING = (
    flows.BlockAutoregressive,
    ConditionedPlanar,
    ConditionedRadial,
    flows.Polynomial,
    flows.Sylvester,
)


def _has_density(distribution: Any) -> bool:
    """Whether a distribution has a density at any value."""
    layers = list(nested(distribution))
    # The flows of the library remember all of their draws, and not the latest alone.
    forgetful = [layer for layer in layers if not getattr(layer, "remembers_draws", False)]
    one_way = [flow for layer in forgetful for flow in _one_way_flows(layer)]
    return not one_way and getattr(layers[-1], "has_density", True)


def one_way_flow(distribution: Any) -> Any:
    """Returns a transform of a distribution with an inverse at its own draws alone, or None."""
    flows_inside = (flow for layer in nested(distribution) for flow in _one_way_flows(layer))
    return next(flows_inside, None)


def nested(distribution: Any) -> Iterator[Any]:
    """Yields a distribution and those that it is made of, the innermost last."""
    yield distribution
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
        yield distribution


def _one_way_flows(layer: Any) -> Iterator[Any]:
    """Yields the transforms of a distribution that have an inverse at its own draws alone."""
    for transform in getattr(layer, "transforms", ()):
        yield from _one_way_parts(transform)


def _one_way_parts(transform: Any) -> Iterator[Any]:
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from _one_way_parts(part)
    elif isinstance(transform, IndependentTransform):
        yield from _one_way_parts(transform.base_transform)
    elif not isinstance(transform, _InverseTransform):
        own = getattr(type(transform), "_inverse", Transform._inverse)
        if own is Transform._inverse or isinstance(transform, _REMEMBERING):
            yield transform


def views_of(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Returns a view of each site's value, whose gradient can be changed on its own."""
    return {name: site["value"].view_as(site["value"]) for name, site in sites.items()}


def rerun(
    guide: Program,
    guide_trace: Trace,
    values: Mapping[str, Tensor],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> Trace:
    """Returns the trace of a guide that draws the given values in place of those in its trace."""
    trace = with_values(guide_trace, values)
    factors = any(is_factor(site) for _, site in guide_terms(guide_trace))
    if len(values) == 1 and not factors:
        # The distribution of a single draw does not depend on it, so a second run would change
        # nothing.
        return trace
    return poutine.trace(poutine.replay(guide, trace=trace)).get_trace(*args, **kwargs)


def with_values(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """Returns a copy of a trace with other values at some sites."""
    copy = trace.copy()
    for name, value in values.items():
        copy.nodes[name] = {**copy.nodes[name], "value": value}
    return copy


def only(trace: Trace, chosen: Callable[[Any], bool]) -> Trace:
    """Returns a trace of those unobserved sites for which ``chosen`` is true."""
    part = Trace()
    nodes: dict[str, Any] = trace.nodes
    for name, site in nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and chosen(site):
            part.add_node(name, **site)
    return part


def plates_of(site: Mapping[str, Any]) -> Plates:
    """Returns the user's plates around a site, without those of particles and groups."""
    plates = set()
    for frame in site.get("cond_indep_stack", ()):
        if frame.name not in (PARTICLES, GROUPS):
            plates.add((frame.name, frame.counter if frame.dim is None else frame.dim))
    return frozenset(plates)


def own_scale(site: Mapping[str, Any]) -> Tensor | float:
    """Returns the scale of a site without that of the subsampled plates around it."""
    scale: Tensor | float = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.full_size not in (None, frame.size):
            scale = scale * (frame.size / frame.full_size)
    return scale


def equal_scales(one: Tensor | float, other: Tensor | float) -> bool:
    """Whether two scales are equal, but for rounding, such as that of 277 / 21 * 21 / 277."""
    if one is other:
        return True
    if not isinstance(one, Tensor) and not isinstance(other, Tensor):
        return math.isclose(one, other, rel_tol=1e-9)
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    # A comparison of tensors reads them back from the device, so it belongs to validation.
    return not is_validation_enabled() or torch.allclose(one, other)


def common_dims(sites: Iterable[Site]) -> list[int]:
    """Returns the dimensions of the plates that hold all of the sites, counted from the right."""
    plates = frozenset.intersection(*map(plates_of, sites))
    return sorted(dim for _, dim in plates if dim < 0)


def nesting_of(*traces: Trace) -> int:
    """Returns how many dimensions the plates in some traces take."""
    deepest = 0
    for trace in traces:
        nodes: dict[str, Any] = trace.nodes
        for site in nodes.values():
            for frame in site.get("cond_indep_stack", ()):
                if frame.vectorized:
                    deepest = max(deepest, -frame.dim)
    return deepest


def reduce_to(value: Tensor, dims: Sequence[int]) -> Tensor:
    """Sums over all dimensions but the given ones, which are counted from the right and kept."""
    others = []
    for dim in range(-value.dim(), 0):
        if dim not in dims:
            others.append(dim)
    return value.sum(others, keepdim=True) if others else value


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Adds tensors that broadcast.

    Python's ``sum`` starts from zero, which is one more operation on the device.
    """
    return functools.reduce(torch.add, values)


def log_prob(site: Site) -> Tensor:
    """Returns the log-probability of a site's value, without scale and mask, on its device."""
    value = site["value"]
    density: Tensor = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
    if not torch.is_tensor(value):
        return density
    if is_flat(site["fn"]):
        # Pyro makes its zero on the CPU, and to copy it would wait for the device.
        return value.new_zeros(density.shape)
    return density.to(value.device)


def is_flat(distribution: object) -> bool:
    """Whether a distribution is an improper prior, whose log-probability is zero."""
    (*_, innermost) = nested(distribution)
    return isinstance(innermost, ImproperUniform)


# Families of angles from -pi to pi, whose support is the real line to Pyro and torch.
_CIRCULAR = (SineBivariateVonMises, SineSkewed, VonMises)


def is_circular(distribution: Any) -> bool:
    """Whether a distribution is one of angles.

    Its density is defined on the real line, of which each turn of the circle has the mass 1.

    Example:
        >>> import pyro.distributions as dist
        >>> is_circular(dist.VonMises(torch.zeros(2), 1.0).to_event(1))
        True
    """
    while True:
        if isinstance(distribution, (ExpandedDistribution, Independent, MaskedDistribution)):
            distribution = distribution.base_dist
        elif isinstance(distribution, MixtureSameFamily):
            distribution = distribution.component_distribution
        else:
            return isinstance(distribution, _CIRCULAR)


def score_function(distribution: Distribution, value: Tensor) -> Tensor | None:
    """Returns the score function of a draw; None if the draw is wholly reparameterized."""
    if isinstance(distribution, Independent):
        # Independent does not pass on the score of the distribution that it wraps.
        score = score_function(distribution.base_dist, value)
        ndims = distribution.reinterpreted_batch_ndims
        return None if score is None else sum_rightmost(score, ndims)
    if distribution.has_rsample and type(distribution).score_parts is Distribution.score_parts:
        return None  # Pyro's own score_parts would compute the log-probability too.
    own = distribution.score_parts(value).score_function
    return None if is_identically_zero(own) else own


def name_of(program: Program) -> str:
    """Returns the name of a program for an error message, such as ``models.VAE``."""
    cls = type(program)
    if cls.__module__.startswith(("tarspyro.models", "tarspyro.guides")):
        return f"{cls.__module__.split('.')[1]}.{cls.__name__}"
    return getattr(program, "__name__", cls.__name__)
