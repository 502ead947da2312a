"""Running a pair: its traces, whether its halves match, and its log weights."""

__all__ = [
    "PairError",
    "check_pair",
    "check_program",
    "guess_plate_nesting",
    "log_weights",
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
from pyro.distributions import Distribution, Independent
from pyro.distributions.util import is_identically_zero, scale_and_mask, sum_rightmost
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.arguments import shown
from tarspyro.modules import evaluating, preserved_rng

Program = Callable[..., Any]
Site = dict[str, Any]
Plates = frozenset[tuple[str, int]]  # names and dimensions

PARTICLES = "num_particles_vectorized"  # the name that Pyro's own bounds give this plate


class PairError(ValueError):
    """The model and the guide do not belong together, or do not fit the data."""


def no_guide(*args: Any, **kwargs: Any) -> None:
    """The guide of a model whose latent variables nobody infers: it draws nothing."""


def check_program(name: str, half: Any) -> None:
    """Raises unless one half is a module or a function, and not the class of one.

    Raises:
        TypeError: If it is none.
    """
    if not callable(half) or isinstance(half, (type, torch.distributions.Distribution)):
        raise TypeError(f"{name} must be a module or a function that samples from Pyro's sites, got {shown(half)}.")


def sample_sites(trace: Trace) -> Iterator[tuple[str, Site]]:
    """Yields the sites that carry a log-probability: no subsampling, no ``pyro.deterministic``."""
    site: Any
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic"):
            yield name, site


def is_drawn(site: Site) -> bool:
    """Whether the value of a site is random: neither given nor enumerated."""
    return not site["is_observed"] and "_enumerate_dim" not in site["infer"]


def particle_plate(program: Program, num_particles: int, plate_nesting: int) -> Program:
    """Returns the program inside a plate of particles, to the left of its ``plate_nesting`` plates."""

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

    With more than one particle both run once, inside a plate of particles. With ``enumerate`` the sites that the guide
    marks for it take all their values, each site in a dimension of its own to the left of all plates.

    Raises:
        TypeError: If one of them is no program.
    """
    for name, half in (("model", model), ("guide", guide)):
        check_program(name, half)
    if num_particles > 1:
        model, guide = (particle_plate(half, num_particles, plate_nesting) for half in (model, guide))
    if enumerate:
        guide = poutine.enum(guide, first_available_dim=-plate_nesting - 1 - (num_particles > 1))
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return model_trace, guide_trace


def reparameterized(guide_trace: Trace, wanted_by: str) -> dict[str, Site]:
    """Returns the sites that a guide draws.

    Raises:
        PairError: If one of them is not, or not wholly, reparameterized.
    """
    drawn = {name: site for name, site in sample_sites(guide_trace) if is_drawn(site)}
    for name, site in drawn.items():
        if not site["fn"].has_rsample or not is_identically_zero(score_function(site["fn"], site["value"])):
            raise PairError(f"{wanted_by} needs reparameterized draws, and {name!r} is not: take 'pathwise'.")
    return drawn


def views_of(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Returns views of the draws at some sites."""
    return {name: site["value"].view_as(site["value"]) for name, site in sites.items()}


def rerun(
    guide: Program, guide_trace: Trace, values: Mapping[str, Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Trace:
    """Returns the trace of a guide that draws the given values in place of those in its trace."""
    trace = with_values(guide_trace, values)
    # What a single draw comes from does not depend on it, so there is no need to run the guide again.
    return trace if len(values) == 1 else poutine.trace(poutine.replay(guide, trace=trace)).get_trace(*args, **kwargs)


def with_values(trace: Trace, values: Mapping[str, Tensor]) -> Trace:
    """Returns a copy of a trace with other values at some sites."""
    copy = trace.copy()
    for name, value in values.items():
        copy.nodes[name] = {**copy.nodes[name], "value": value}
    return copy


def guess_plate_nesting(model: Program, guide: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Returns how many plates deep the pair is, by one run that leaves no mark.

    The run draws from a copy of the random state and in evaluation mode, so that neither the noise of later steps
    nor the statistics of batch normalization change.
    """
    with preserved_rng(), evaluating(model, guide):
        traces = trace_pair(model, guide, args, kwargs)
    dims = [-frame.dim for trace in traces for site in trace.nodes.values() for frame in _frames(site)]
    return max(dims, default=0)


def check_pair(model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
    """Runs the pair once and raises where Pyro would only warn.

    Leaves random state, statistics and parameters as they are.

    Raises:
        PairError: If the halves do not sample the same latent sites, or the model observes nothing.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("w", dist.Normal(x, 1.0))
        >>> try:
        ...     check_pair(model, guide, torch.zeros(3))
        ... except PairError as error:
        ...     print(error)
        guide does not pair with model: the model also samples ['z']; the guide also samples ['w'].
    """
    with preserved_rng(), evaluating(model, guide):
        model_trace, guide_trace = trace_pair(model, guide, args, kwargs)
    latent = {name for name, site in sample_sites(model_trace) if not site["is_observed"]}
    guided = {
        name
        for name, site in sample_sites(guide_trace)
        if not site["is_observed"] and not site["infer"].get("is_auxiliary")
    }
    if latent != guided:
        missing, extra = sorted(latent - guided), sorted(guided - latent)
        parts = [f"the model also samples {missing}"] * bool(missing) + [f"the guide also samples {extra}"] * bool(
            extra
        )
        raise PairError(f"{name_of(guide)} does not pair with {name_of(model)}: {'; '.join(parts)}.")
    if not any(site["is_observed"] for _, site in sample_sites(model_trace)):
        raise PairError(f"{name_of(model)} observes nothing: give pyro.sample the data, obs=...")


def log_weights(
    model: Program,
    guide: Program,
    *args: Any,
    num_particles: int = 1,
    plate_nesting: int | None = None,
    **kwargs: Any,
) -> Tensor:
    r"""Returns the log weights of a pair, one row a particle and one column a data point.

    .. math:: \log w_{kn} = \log p(x_n, z_{nk}) - \log q(z_{nk} \mid x_n), \qquad z_{nk} \sim q(z \mid x_n)

    The plates that all sites share are kept, as columns; everything else is summed. Scales (of subsampling, or of
    ``poutine.scale``) do not enter: these are the weights of single data points. Masks do.

    Returns:
        A tensor with shape ``(num_particles, *sizes of the shared plates)``, in nats.

    Raises:
        PairError: If a site lies outside every plate that the others share, so that data points have no weights of
            their own.
    """
    if plate_nesting is None:
        plate_nesting = guess_plate_nesting(model, guide, args, kwargs)
    model_trace, guide_trace = trace_pair(
        model, guide, args, kwargs, num_particles=num_particles, plate_nesting=plate_nesting
    )
    signed = [
        (name, site, sign)
        for trace, sign in ((model_trace, 1), (guide_trace, -1))
        for name, site in sample_sites(trace)
        if sign > 0 or not site["is_observed"]
    ]
    shared = shared_plates([site for _, site, _ in signed])
    if not shared:
        bare = [name for name, site, _ in signed if not any(f.name != PARTICLES for f in _frames(site))]
        where = f"{bare[0]} lies outside every plate" if bare else "its sites share no plate"
        raise PairError(
            f"{name_of(model)} has no weight for each data point, because {where}: put every site that belongs to a "
            "data point inside one pyro.plate, such as pyro.plate('data', len(x))."
        )
    kept_dims = [*shared, -plate_nesting - 1] if num_particles > 1 else shared
    total = sum_of(
        sign * reduce_to(scale_and_mask(log_prob(site), mask=site["mask"]), kept_dims) for _, site, sign in signed
    )
    if num_particles == 1:
        total = total.unsqueeze(-plate_nesting - 1)
    # Drop the dimensions that no shared plate has; they are of size one after the reduction.
    kept = {dim % total.dim() for dim in shared} | {0}
    return total.reshape([size for dim, size in enumerate(total.shape) if dim in kept])


def shared_plates(sites: Sequence[Site]) -> list[int]:
    """Returns the dimensions of the plates that all the sites lie in, the particles' apart."""
    return sorted(dim for _, dim in frozenset.intersection(*map(plates_of, sites)))


def plates_of(site: Site) -> Plates:
    """Returns the plates around a site, the particles' apart."""
    return frozenset((frame.name, frame.dim) for frame in _frames(site) if frame.name != PARTICLES)


def reduce_to(value: Tensor, dims: Sequence[int]) -> Tensor:
    """Sums over all dimensions but the given ones, which stay where they are, counted from the right."""
    others = [dim for dim in range(-value.dim(), 0) if dim not in dims]
    return value.sum(others, keepdim=True) if others else value


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """Adds tensors that broadcast, without the operation that Python's sum adds by starting from zero."""
    return functools.reduce(torch.add, values)


def log_prob(site: Site) -> Tensor:
    """Returns the log-probability of a site, without scale and mask, on the device of its value."""
    value: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    # Improper priors answer with a zero on the CPU whatever the value's device.
    return value.to(site["value"].device) if torch.is_tensor(site["value"]) else value


def score_function(distribution: Any, value: Tensor) -> Any:
    """Returns the score function of a draw that is not, or not wholly, reparameterized; 0 if it is."""
    # Independent does not pass on the score of the distribution that it wraps, so ask that one.
    if isinstance(distribution, Independent):
        return sum_rightmost(score_function(distribution.base_dist, value), distribution.reinterpreted_batch_ndims)
    if distribution.has_rsample and type(distribution).score_parts is Distribution.score_parts:
        return 0  # reparameterized: spare the log-probability that score_parts would compute
    return distribution.score_parts(value).score_function


def name_of(program: Program) -> str:
    """Returns what to call a program in an error, such as ``models.VAE``."""
    cls = type(program)
    if cls.__module__.startswith(("tarspyro.models", "tarspyro.guides")):
        return f"{cls.__module__.split('.')[1]}.{cls.__name__}"
    return getattr(program, "__name__", cls.__name__)


def _frames(site: Any) -> list[Any]:
    return [frame for frame in site.get("cond_indep_stack", ()) if frame.vectorized]
