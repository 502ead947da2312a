"""A pair of which some elements of the data are missing: chains, weighted codes, and the
likelihood of the rest.
"""

__all__ = ["Missing", "expanded", "log_noise", "trust_of"]

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Independent, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers
from tarspyro.conditional import distribution_mean
from tarspyro.evaluate.densities import one_dim
from tarspyro.infer.pairs import check_local, structure_of
from tarspyro.infer.traces import (
    PairError,
    Site,
    log_prob,
    name_of,
    particle_plate,
    reduce_to,
    sample_sites,
    sum_of,
    trace_pair,
    with_values,
)
from tarspyro.inputs import as_arguments, check_inputs, each
from tarspyro.types import Program

# How many sets of missing elements the guide is shown for its weighted codes.
_CHAINS = 20
# Among how many codes of the prior a chain chooses its start.
_STARTS = 50
# The share of the rounds that forget the start before Metropolis' rule holds on to a code.
_WARM_UP = 0.2
_COIN = math.log(0.5)  # what takes the place of a binary element that is not what it was

Traces = tuple[Trace, Trace]


class Missing:
    """A pair, of whose observed site some elements are missing.

    ``data`` are the arguments of the pair with x first and numbers where x is missing,
    ``trust`` is the mask in the shape of x. ``check`` comes first.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        site: str,
        num_rounds: int,
        *,
        metropolis: bool = False,
    ) -> None:
        num_rounds = as_count("num_rounds", num_rounds, 0)
        self.model, self.guide, self.site, self.num_rounds = model, guide, site, num_rounds
        self.metropolis, self.nesting, self.dim = metropolis, 0, -1

    def check(self, data: Sequence[Any], trust: Tensor) -> None:
        """Compares a batch, with what is missing drawn from the model, with the likelihood.

        Raises:
            InputError: If an observed element does not fit it.
            PairError: If it does not factorize, there is no such site, or the prior cannot be
                drawn from.
            ValueError: If the mask holds probabilities and the elements are not binary.
        """
        start = self._start(data)
        if trust.dtype != torch.bool:
            binary = isinstance(
                _elements(self.model, _site(start, self.site)["fn"]), Bernoulli
            )
            if not binary or bool((data[0] * (1 - data[0]))[trust > 0].any()):
                raise ValueError(
                    f"mask holds probabilities, which are for a Bernoulli {self.site!r} of"
                    " zeros and ones: give booleans."
                )
        complete = (self.filled(start, data[0], trust), *data[1:])
        check_inputs(self.model, self.guide, complete)
        structure = structure_of(
            self.model, self.guide, complete, {}, particles=2, observed=True
        )
        check_local(self.model, structure)
        self.nesting = structure.nesting
        self.dim = one_dim(self.model, structure.groups[0].dims)

    def chain(self, data: Sequence[Any], trust: Tensor) -> Traces:
        """Returns a run of both halves after all rounds."""
        complete = self.filled(self._near(data, trust), data[0], trust)
        traces = trace_pair(self.model, self.guide, (complete, *data[1:]), {})
        for index in range(self.num_rounds):
            complete = self.filled(traces[0], data[0], trust)
            proposed = trace_pair(self.model, self.guide, (complete, *data[1:]), {})
            metropolis = self.metropolis and index >= _WARM_UP * self.num_rounds
            traces = (
                self._accepted(traces, proposed, (complete, *data[1:]))
                if metropolis
                else proposed
            )
        return traces

    def filled(
        self, model_trace: Trace, x: Tensor, trust: Tensor, *, mean: bool = False
    ) -> Tensor:
        """Returns x with what is missing drawn at the code of a run, or its mean."""
        elements: Any = _elements(self.model, _site(model_trace, self.site)["fn"])
        other = distribution_mean(elements) if mean else elements.sample()
        if trust.dtype == torch.bool:
            return torch.where(trust, x, other)
        kept = (trust.logit() + elements.log_prob(x) - _COIN).sigmoid()
        return (
            kept * x + (1 - kept) * other
            if mean
            else torch.where(torch.bernoulli(kept).bool(), x, other)
        )

    def weighed(
        self, data: Sequence[Any], trust: Tensor, num_particles: int
    ) -> tuple[Trace, Tensor]:
        """Returns a run of the model at codes of the guide and of the prior, and their log
        weights.

        The particles come first, then the rows.
        """
        chains = min(_CHAINS, num_particles - 1)
        from_guide = num_particles // (chains + 1)
        from_prior = num_particles - chains * from_guide  # its part, and what is left over
        sites = _latent(self._run(self.model, data, from_prior))
        codes = {name: site["value"] for name, site in sites.items()}
        # Where a row stands in a code, counted from the right.
        dims = {name: self.dim - site["fn"].event_dim for name, site in sites.items()}
        seen: tuple[Any, ...] = ()
        if chains:
            rows = [*each(lambda part: part.repeat_interleave(chains, 0), (*data, trust))]
            seen = (_site(self.chain(rows[:-1], rows[-1])[0], self.site)["value"], *rows[1:-1])
            for name, site in _latent(self._run(self.guide, seen, from_guide)).items():
                by_chain = (
                    site["value"].unflatten(dims[name], (-1, chains)).movedim(dims[name], 1)
                )
                codes[name] = torch.cat([codes[name], by_chain.flatten(0, 1)])
        run = self._run(self.model, data, num_particles, codes)
        prior = self._density(_site(run, name) for name in codes)
        proposals = [prior.unsqueeze(-1) + math.log(from_prior / num_particles)]
        if chains:
            under_all = {
                name: value.repeat_interleave(chains, dims[name])
                for name, value in codes.items()
            }
            guided = self._run(self.guide, seen, num_particles, under_all)
            density = self._density(_site(guided, name) for name in codes).unflatten(
                1, (-1, chains)
            )
            proposals.append(density + math.log(from_guide / num_particles))
        joint = self._observed(run, data[0], trust)
        return run, joint - torch.cat(proposals, -1).logsumexp(-1)

    def _observed(self, trace: Trace, x: Tensor, trust: Tensor) -> Tensor:
        """Returns log p(x_o, z), or log p(corrupted x, z), of each particle and row."""
        sites = dict(sample_sites(trace))
        part = {
            **sites[self.site],
            "fn": _Observed(self.model, sites[self.site]["fn"], x, trust),
        }
        return self._density({**sites, self.site: part}.values())

    def _run(
        self,
        half: Program,
        data: Sequence[Any],
        count: int,
        codes: dict[str, Tensor] | None = None,
    ) -> Trace:
        """Returns a run in a plate of particles, with codes drawn or given."""
        program = particle_plate(half, count, self.nesting)
        return poutine.trace(
            program if codes is None else poutine.condition(program, codes)
        ).get_trace(*data)

    def _density(self, sites: Iterable[Site]) -> Tensor:
        """Returns the log density of some sites of a run, of each particle and row."""
        dims = [-self.nesting - 1, self.dim]
        terms = (
            reduce_to(scale_and_mask(log_prob(site), mask=site["mask"]), dims)
            for site in sites
        )
        total = sum_of(terms)
        return total.reshape(-1, total.shape[self.dim])

    def _start(self, data: Sequence[Any]) -> Trace:
        """A run of the model on codes of its own."""
        try:
            trace = poutine.trace(self.model).get_trace(*data)
        except NotImplementedError:
            raise PairError(
                f"{name_of(self.model)} has no prior that can be drawn from, as the start"
                " needs."
            ) from None
        except (RuntimeError, ValueError, TypeError):
            check_inputs(self.model, self.guide, data)  # says what is wrong
            raise
        sites = {name: site for name, site in sample_sites(trace) if site["is_observed"]}
        if self.site not in sites:
            if not sites:
                check_inputs(self.model, self.guide, data)
            raise PairError(
                f"{name_of(self.model)} observes {sorted(sites)} and no {self.site!r}: name"
                " one, site=..."
            )
        if (
            sites[self.site]["value"].shape
            != _elements(self.model, sites[self.site]["fn"]).batch_shape
        ):
            check_inputs(self.model, self.guide, data)
        return trace

    def _near(self, data: Sequence[Any], trust: Tensor) -> Trace:
        """A run of the model on codes of its prior, each chosen among several by the
        likelihood of what is observed.

        Little that is observed says little of the code, and then the rounds forget their start
        slowly; but then many codes of the prior are likely ones.
        """
        values: dict[str, Tensor] = {}
        highest = torch.full((), -math.inf)
        for _ in range(_STARTS):
            trace = self._start(data)
            sites = _latent(trace)
            log_w = (self._observed(trace, data[0], trust) - self._density(sites.values()))[0]
            # The highest of the log weights with Gumbel noise is a choice in proportion to the
            # weights.
            score = log_w - torch.empty_like(log_w).exponential_().log()
            chosen = score > highest.to(score)
            if values:
                values = {
                    name: self._of_rows(chosen, site, values[name])
                    for name, site in sites.items()
                }
            else:
                values = {name: site["value"] for name, site in sites.items()}
            highest = torch.maximum(score, highest.to(score))
        return poutine.trace(poutine.condition(self.model, values)).get_trace(*data)

    def _of_rows(self, chosen: Tensor, site: Site, other: Tensor) -> Tensor:
        """The site's value in the rows that are chosen, the other one elsewhere."""
        rows = chosen.reshape(-1, *[1] * (site["fn"].event_dim - self.dim - 1))
        value: Tensor = site["value"].where(rows, other)
        return value

    def _accepted(
        self, current: Traces, proposed: Traces, arguments: tuple[Any, ...]
    ) -> Traces:
        """A run at the proposed codes of the rows that accept them, and at the current ones of
        the others.
        """
        before = trace_pair(
            self.model, poutine.replay(self.guide, trace=current[1]), arguments, {}
        )
        log_ratio = self._log_weights(proposed) - self._log_weights(before)
        accepted, old = torch.rand_like(log_ratio).log() < log_ratio, _latent(before[1])
        values = {
            name: self._of_rows(accepted, site, old[name]["value"])
            for name, site in _latent(proposed[1]).items()
        }
        merged = with_values(proposed[1], values)
        return trace_pair(self.model, poutine.replay(self.guide, trace=merged), arguments, {})

    def _log_weights(self, traces: Traces) -> Tensor:
        """Returns log p(x, z) - log q(z | x) of each row."""
        joint = self._density(site for _, site in sample_sites(traces[0]))
        return (joint - self._density(_latent(traces[1]).values()))[0]


class _Observed:
    """The likelihood of what is observed, in the place of that of all elements."""

    def __init__(self, model: Program, fn: Any, x: Tensor, trust: Tensor) -> None:
        self.elements, self.fn, self.x, self.trust = _elements(model, fn), fn, x, trust

    def log_prob(self, _: Tensor) -> Tensor:
        """Returns log p(x_o | z), or log p(corrupted x | z), in nats."""
        each = self.elements.log_prob(self.x)
        if self.trust.dtype == torch.bool:
            each = torch.where(self.trust, each, 0)
        else:
            each = torch.logaddexp(self.trust.log() + each, (1 - self.trust).log() + _COIN)
        density: Tensor = sum_rightmost(self._masked(each), self.fn.event_dim)
        return density

    def _masked(self, each: Tensor) -> Tensor:
        """Without the elements that the likelihood itself leaves out."""
        fn: Any = self.fn
        while isinstance(fn, (Independent, MaskedDistribution)):
            if isinstance(fn, MaskedDistribution):
                mask = torch.as_tensor(fn._mask, device=each.device)
                each = torch.where(mask.reshape(*mask.shape, *[1] * fn.event_dim), each, 0)
            fn = fn.base_dist
        return each


def log_noise(x: Tensor, observed: Tensor, trust: Tensor) -> Tensor:
    """Returns log p(observed | x) of each row: 0 where all that is observed is as it was."""
    if trust.dtype == torch.bool:
        return x.new_zeros(len(x))
    return (trust * (x == observed) + (1 - trust) / 2).log().flatten(1).sum(1)


def trust_of(x: Any, model: Program, mask: Any) -> Tensor:
    """The mask in the shape of x: booleans, or probabilities if some are neither 0 nor 1."""
    arguments, given = as_arguments(x, model), as_numbers("mask", mask)
    if arguments is None:
        raise ValueError("x must be in memory: tensors, arrays, a mapping of them or a Split.")
    if arguments[0] is None:
        raise ValueError(
            "x must not be None, its elements may be missing: whole modalities are for"
            " impute_modalities."
        )
    given = expanded("mask", given, arguments[0])
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise ValueError(
            "mask must hold booleans, or probabilities from 0 to 1: true where an element is"
            " observed."
        )
    whole = (given == 0) | (given == 1)
    return given.bool() if bool(whole.all()) else given.to(arguments[0].dtype)


def expanded(argument: str, value: Tensor, x: Tensor) -> Tensor:
    """The value, or a row of it for all, in the shape of x."""
    try:
        return value.expand(x.shape)
    except RuntimeError:
        shapes = f"{tuple(x.shape)}, or of a row, got {tuple(value.shape)}"
        raise ValueError(f"{argument} must be of the shape of x, {shapes}.") from None


def _site(trace: Trace, name: str) -> Any:
    if name not in trace.nodes:
        raise PairError(
            f"The model and the guide do not have the same sites: {name!r} is missing in one"
            " of them."
        )
    return trace.nodes[name]


def _latent(trace: Trace) -> dict[str, Site]:
    return {name: site for name, site in sample_sites(trace) if not site["is_observed"]}


def _elements(model: Program, fn: Any) -> Any:
    """The distribution of the single elements, of the batch shape of all of them."""
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    if len(fn.event_shape) > 0:
        raise PairError(
            f"{name_of(model)}'s likelihood {type(fn).__name__} does not factorize over"
            " elements, some of which are missing: take one that does, such as Normal or"
            " Bernoulli."
        )
    return fn
