"""Runs of a pair, and what their sites hold."""

__all__ = [
    "InputError",
    "PairError",
    "check_program",
    "no_guide",
    "particle_plate",
    "trace_pair",
]

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Distribution, Independent, Unit
from pyro.distributions.util import is_identically_zero, sum_rightmost
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.types import Program

Site = dict[str, Any]
Plates = frozenset[tuple[str, int]]  # names, and dimensions or, of sequential plates, indices

PARTICLES = "num_particles_vectorized"  # the name that Pyro's own bounds give this plate
GROUPS = "num_groups_vectorized"


class PairError(ValueError):
    """The model and the guide do not belong together, or do not fit the data."""


class InputError(ValueError):
    """The data does not fit the model's likelihood."""


def no_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model whose latent variables nobody infers: it draws nothing."""


def check_program(name: str, half: Any) -> None:
    """Raises unless one half is a module or a function, and not the class of one.

    Raises:
        TypeError: If it is none.
    """
    if not callable(half) or isinstance(half, (type, torch.distributions.Distribution)):
        raise TypeError(
            f"{name} must be a module or a function that samples from Pyro's sites, got"
            f" {format_value(half)}."
        )


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Yields the sites that carry a log-probability: no subsampling, no
    ``pyro.deterministic``.
    """
    site: Any
    for name, site in trace.nodes.items():
        if (
            site["type"] == "sample"
            and not site_is_subsample(site)
            and not site["infer"].get("_deterministic")
        ):
            yield name, site


def is_factor(site: Site) -> bool:
    """Whether a site is a ``pyro.factor``."""
    return isinstance(site["fn"], Unit)


def is_delta(site: Site) -> bool:
    """Whether the value of a site is a function of what was drawn before."""
    fn = site["fn"]
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def guide_terms(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Yields the sites of log q: what the guide draws, and its factors."""
    for name, site in sample_sites(trace):
        if not site["is_observed"] or is_factor(site):
            yield name, site


def is_enumerated(site: Site) -> bool:
    """Whether a site takes all its values at once."""
    return "_enumerate_dim" in site["infer"]


def particle_plate(program: Program, num_particles: int, plate_nesting: int) -> Program:
    """Returns the program inside a plate of particles, to the left of its ``plate_nesting``
    plates.
    """

    def particles(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PARTICLES, num_particles, dim=-plate_nesting - 1):
            return program(*args, **kwargs)

    return particles


def trace_pair(
    model: Program,
    guide: Program,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    num_particles: int = 1,
    plate_nesting: int = 0,
    enumerate: bool = False,
) -> tuple[Trace, Trace]:
    """Runs the guide, then the model on the guide's draws; returns both traces.

    With more than one particle both run once, inside a plate of particles. With ``enumerate``
    the sites that the guide marks for it take all their values, each site in a dimension of
    its own to the left of all plates.

    Raises:
        TypeError: If one of them is no program.
    """
    for name, half in (("model", model), ("guide", guide)):
        check_program(name, half)
    if num_particles > 1:
        model, guide = (
            particle_plate(half, num_particles, plate_nesting) for half in (model, guide)
        )
    if enumerate:
        guide = poutine.enum(
            guide, first_available_dim=-plate_nesting - 1 - (num_particles > 1)
        )
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
        *args, **kwargs
    )
    return model_trace, guide_trace


def reparameterized(guide_trace: Trace, wanted_by: str) -> dict[str, Site]:
    """Returns the sites that a guide draws.

    Raises:
        PairError: If one of them is not, or not wholly, reparameterized.
    """
    drawn = {
        name: site
        for name, site in sample_sites(guide_trace)
        if not site["is_observed"] and not is_enumerated(site)
    }
    for name, site in drawn.items():
        if not site["fn"].has_rsample or not is_identically_zero(
            score_function(site["fn"], site["value"])
        ):
            raise PairError(
                f"{wanted_by} needs reparameterized draws, and {name!r} is not: take"
                " 'pathwise'."
            )
    return drawn


def views_of(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Returns views of the draws at some sites."""
    return {name: site["value"].view_as(site["value"]) for name, site in sites.items()}


def rerun(
    guide: Program,
    guide_trace: Trace,
    values: Mapping[str, Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Trace:
    """Returns the trace of a guide that draws the given values in place of those in its trace."""
    trace = with_values(guide_trace, values)
    # What a single draw comes from does not depend on it, so there is no need to run the guide
    # again.
    alone = len(values) == 1 and not any(
        is_factor(site) for _, site in guide_terms(guide_trace)
    )
    return (
        trace
        if alone
        else poutine.trace(poutine.replay(guide, trace=trace)).get_trace(*args, **kwargs)
    )


def with_values(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """Returns a copy of a trace with other values at some sites."""
    copy = trace.copy()
    for name, value in values.items():
        copy.nodes[name] = {**copy.nodes[name], "value": value}
    return copy


def only(trace: Trace, chosen: Callable[[Any], bool]) -> Trace:
    """Returns the unobserved sites of a trace that are chosen."""
    part = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and chosen(site):
            part.add_node(name, **site)
    return part


def plates_of(site: Any) -> Plates:
    """Returns the user's plates around a site; the index of a sequential plate takes the
    dimension's place.
    """
    return frozenset(
        (frame.name, frame.counter if frame.dim is None else frame.dim)
        for frame in site.get("cond_indep_stack", ())
        if frame.name not in (PARTICLES, GROUPS)
    )


def common_dims(sites: Iterable[Site]) -> list[int]:
    """Returns the dimensions of the plates that hold all of the sites, counted from the right."""
    return sorted(dim for _, dim in frozenset.intersection(*map(plates_of, sites)) if dim < 0)


def nesting_of(*traces: Trace) -> int:
    """Returns how many plates deep the sites of some traces are."""
    sites: Any = [site for trace in traces for site in trace.nodes.values()]
    frames = [
        frame
        for site in sites
        for frame in site.get("cond_indep_stack", ())
        if frame.vectorized
    ]
    return max((-frame.dim for frame in frames), default=0)


def reduce_to(value: Tensor, dims: Sequence[int]) -> Tensor:
    """Sums over all dimensions but the given ones, which stay where they are, counted from the
    right.
    """
    others = [dim for dim in range(-value.dim(), 0) if dim not in dims]
    return value.sum(others, keepdim=True) if others else value


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Adds tensors that broadcast, without the operation that Python's sum adds by starting
    from zero.
    """
    return functools.reduce(torch.add, values)


def log_prob(site: Site) -> Tensor:
    """Returns the log-probability of a site, without scale and mask, on the device of its
    value.
    """
    value: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    # Improper priors answer with a zero on the CPU whatever the value's device.
    return value.to(site["value"].device) if torch.is_tensor(site["value"]) else value


def score_function(distribution: Any, value: Tensor) -> Any:
    """Returns the score function of a draw that is not, or not wholly, reparameterized; 0 if
    it is.
    """
    # Independent does not pass on the score of the distribution that it wraps, so ask that
    # one.
    if isinstance(distribution, Independent):
        return sum_rightmost(
            score_function(distribution.base_dist, value),
            distribution.reinterpreted_batch_ndims,
        )
    if distribution.has_rsample and type(distribution).score_parts is Distribution.score_parts:
        return 0  # reparameterized: spare the log-probability that score_parts would compute
    return distribution.score_parts(value).score_function


def name_of(program: Program) -> str:
    """Returns what to call a program in an error, such as ``models.VAE``."""
    cls = type(program)
    if cls.__module__.startswith(("tarspyro.models", "tarspyro.guides")):
        return f"{cls.__module__.split('.')[1]}.{cls.__name__}"
    return getattr(program, "__name__", cls.__name__)
