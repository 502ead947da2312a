"""Data that a model simulates, together with the latent variables that made it."""

__all__ = ["Simulated", "simulate", "template_of"]

from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.distributions.incomplete import has_gaps
from tarspyro.infer.matching import positional_names
from tarspyro.infer.traces import PairError, is_factor, name_of, sample_sites
from tarspyro.scopes import get_rng_states, set_rng_states
from tarspyro.types import Arguments, Program

# How often a program may run until its draws no longer change. A model that computes all states
# from x before its first step takes as many runs as there are steps.
_RUNS = 300


class Simulated(NamedTuple):
    """Data that a model simulates.

    Attributes:
        arguments: The arguments of the programs, with simulated data in them.
        trace: The run of the model that made the data.
    """

    arguments: Arguments
    trace: Trace


def simulate(model: Program, arguments: Arguments) -> Simulated:
    """Draws z and x from p(x, z), where x stands in for the data that the model observes.

    Every observed site draws its value, which is written into the argument that it came from.
    What is no observation stays as given: conditions, lengths, masks, and observations that a
    mask or a gap leaves out.

    Arguments:
        model: The model.
        arguments: Data whose shapes and conditions the simulated data has.

    Raises:
        PairError: If a prior or a likelihood cannot be drawn from, an observed value is not a
            part of an argument, or a factor weighs the draws.
    """
    filled = tuple(None if part is None else part.clone() for part in arguments)
    noise = get_rng_states()
    for _ in range(_RUNS):
        before = [None if part is None else part.clone() for part in filled]
        set_rng_states(noise)
        trace = _run(model, filled)
        # The draws of a model that reads x before they are written follow from another x.
        if all(map(_equal, before, filled)):
            _check_factors(model, filled, trace)
            return Simulated(filled, trace)
    raise PairError(
        f"{name_of(model)} does not simulate data: what it draws at an observed site depends on"
        " the data of that same site."
    )


def _check_factors(model: Program, filled: Arguments, trace: Trace) -> None:
    """Raises a ``PairError`` if a factor of the model depends on draws, which do not follow it."""
    factors = {name: site["fn"] for name, site in sample_sites(trace) if is_factor(site)}
    if not factors:
        return
    copies = tuple(None if part is None else part.clone() for part in filled)
    others = dict(sample_sites(_run(model, copies)))
    for name, factor in factors.items():
        if not _equal(factor.log_factor, others[name]["fn"].log_factor):
            raise PairError(
                f"{name_of(model)} weighs its draws by the factor {name!r}, which simulated data"
                " does not follow: observe a site in its place, pyro.sample(..., obs=...), or"
                " compare the guide with draws of true_posterior, evaluate.posterior_kl."
            )


def _run(model: Program, filled: Arguments) -> Trace:
    try:
        with _Drawn(model, filled):
            return poutine.trace(model).get_trace(*filled)
    except NotImplementedError as error:
        raise PairError(
            f"{name_of(model)} cannot simulate data, because one of its distributions cannot be"
            f" drawn from ({error}): give it a proper prior and likelihood."
        ) from error


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return True
    return torch.equal(one.nan_to_num(), other.nan_to_num())


class _Drawn(Messenger):
    """Writes draws of the likelihood into the data, in place of what is observed."""

    def __init__(self, model: Program, arguments: Arguments) -> None:
        super().__init__()
        self.model = model
        self.arguments = [part for part in arguments if part is not None]

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or site_is_subsample(msg) or is_factor(msg):
            return
        value = msg["value"]
        source = self._source(msg["name"], value)
        draw = msg["fn"](*msg["args"], **msg["kwargs"]).to(value.dtype)
        kept = _kept(msg)
        if kept is not None:
            draw = torch.where(kept, value, draw)
        value.copy_(draw)
        if source is not None:
            source.copy_(value.reshape(source.shape))

    def _source(self, name: str, value: object) -> Tensor | None:
        """Returns the argument that a value is a copy of; None if it is a view of one."""
        if isinstance(value, Tensor):
            for part in self.arguments:
                if part.untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
                    return None
            for part in self.arguments:
                if part.numel() == value.numel() and _equal(
                    part.reshape(-1).to(value.dtype), value.reshape(-1)
                ):
                    return part
        raise PairError(
            f"{name!r} of {name_of(self.model)} observes a value that is neither an argument"
            " nor a part of one, so no simulated data can take its place: pass the data as an"
            " argument, and observe it as it is."
        )


def _kept(msg: Any) -> Tensor | None:
    """Returns which elements of an observation stay as they are, because they do not count."""
    value = msg["value"]
    kept = value.isnan() if has_gaps(msg["fn"]) else None
    distribution = msg["fn"]
    masks = [(msg["mask"], distribution.event_dim)]
    while hasattr(distribution, "base_dist"):
        if isinstance(distribution, MaskedDistribution):
            masks.append((distribution._mask, distribution.event_dim))
        distribution = distribution.base_dist
    for mask, event_dim in masks:
        if mask is None or mask is True:
            continue
        left_out = ~torch.as_tensor(mask, device=value.device)
        left_out = left_out.reshape(left_out.shape + (1,) * event_dim).expand(value.shape)
        kept = left_out if kept is None else kept | left_out
    return kept


def template_of(model: Program, guide: Program, num_rows: int) -> Arguments:
    """Returns data in the shapes of the programs, for a model that generates without data.

    Raises:
        ValueError: If the model does not generate, or the guide takes something else.
    """
    try:
        trace = poutine.trace(model).get_trace(batch_size=num_rows)
    except TypeError:
        raise ValueError(
            f"x must be given: {name_of(model)} does not generate data without it, by"
            " model(batch_size=...)."
        ) from None
    sites = dict(sample_sites(trace))
    names = positional_names(guide)
    known = [name for name in names if name in sites]
    if not known or known != names[: len(known)]:
        raise ValueError(
            f"x must be given: {name_of(guide)} takes {names}, and {name_of(model)} generates"
            f" {sorted(sites)}."
        )
    return tuple(sites[name]["value"] for name in known)
