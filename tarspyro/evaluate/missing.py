"""Pairs of which some elements of x are missing: chains, weighted codes, likelihoods."""

__all__ = [
    "Incomplete",
    "MissingElements",
    "as_trust",
    "completions",
    "expanded",
    "log_noise",
]

import contextlib
import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Independent, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

from tarspyro.arguments import as_count, as_numbers
from tarspyro.conditional import distribution_mean
from tarspyro.distributions import Concatenate
from tarspyro.distributions.autoregressive import AutoregressiveDistribution
from tarspyro.distributions.incomplete import Incomplete as IncompleteDistribution
from tarspyro.distributions.incomplete import has_gaps, log_prob_of_known
from tarspyro.evaluate.batching import in_memory
from tarspyro.evaluate.densities import Values, one_dim
from tarspyro.infer.compilation.values import CompiledValues
from tarspyro.infer.pairs import check_drawn, check_local, check_vectorized, structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    Site,
    check_densities,
    check_program,
    drawn_of,
    log_prob,
    name_of,
    no_guide,
    particle_plate,
    reduce_to,
    sample_sites,
    sum_of,
    trace_pair,
    with_values,
)
from tarspyro.inputs import check_inputs, each
from tarspyro.programs import tensors_of
from tarspyro.scopes import preserved_rng
from tarspyro.types import Argument, Arguments, ArrayLike, Data, Program

# The number of chains whose missing elements the guide sees for its weighted codes.
_CHAINS = 20
# The number of codes of the prior among which a chain chooses its start.
_STARTS = 50
# The key of the best score of a start, beside the codes, which have the names of sites.
_SCORE = "score of the start"
# The share of the rounds that accept every proposal, before Metropolis' rule applies.
_WARM_UP = 0.2
# The log-probability of a corrupted binary element, which a fair coin replaced.
_COIN = math.log(0.5)

# The remedy where the guide has no density at given codes.
_PSEUDO_GIBBS = "draw with impute(method='pseudo-gibbs')"

# The traces of the model and of the guide.
Traces: TypeAlias = tuple[Trace, Trace]
# The values of the latent variables by the names of their sites.
Codes: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Incomplete:
    """A batch of which some elements of x are missing.

    Arguments:
        x: The observed elements, with any numbers in the places of the missing ones.
        others: The further arguments of the pair.
        trust: The mask, of the shape of x: booleans, or probabilities of unchanged elements.
    """

    x: Tensor
    others: Arguments
    trust: Tensor

    @property
    def arguments(self) -> Arguments:
        """The arguments of the pair."""
        return (self.x, *self.others)

    def repeated(self, copies: int) -> "Incomplete":
        """Returns a batch with copies of each row, one after another."""
        x, trust, *others = each(
            lambda part: part.repeat_interleave(copies, 0),
            (self.x, self.trust, *self.others),
        )
        assert x is not None and trust is not None
        return Incomplete(x, tuple(others), trust)


class MissingElements:
    """A pair of whose observed site some elements are missing.

    ``check`` has to be called first.

    Arguments:
        model: The model.
        guide: The guide.
        site: The observed site.
        num_rounds: The number of rounds of a chain.
        metropolis: Whether the rounds accept codes by Metropolis' rule.
        compile: Whether to compile the search for a start and the rounds.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        site: str,
        num_rounds: int,
        *,
        metropolis: bool = False,
        compile: bool = False,
    ) -> None:
        check_program("model", model)
        check_program("guide", guide)
        self.model = model
        self.guide = guide
        self.site = site
        self.num_rounds = as_count("num_rounds", num_rounds, 0)
        self.metropolis = metropolis
        self.structure: Structure | None = None
        # The number of plates of the pair and the dimension of the data points' plate.
        self.nesting = 0
        self.dim = -1
        # Whether the pair takes NaN for what is missing, so that the guide need not see draws.
        self.with_gaps = False
        # Whether missing elements can be drawn given the code and all observed ones.
        self.in_order = True
        self.compile = compile
        self._compiled: dict[Hashable, CompiledValues] = {}

    def check(self, batch: Incomplete) -> None:
        """Compares a batch, completed by draws of the model, with the likelihood.

        Raises:
            InputError: If an observed element does not fit it.
            PairError: If it does not factorize, if there is no such site, or if the prior
                cannot be drawn from.
            ValueError: If the mask holds probabilities and the elements are not binary.
        """
        start = self._prior_run(batch)
        fn = _site(start, self.site)["fn"]
        if isinstance(fn, AutoregressiveDistribution):
            self.in_order = _in_order(self.model, fn, batch.trust)
        elif batch.trust.dtype == torch.bool:
            _check_events(self.model, fn, batch.trust)
            self.with_gaps = has_gaps(fn) and self._guide_takes_gaps(batch)
        else:
            elements = _elements(self.model, fn)
            grey = (batch.x * (1 - batch.x))[batch.trust > 0]
            if not isinstance(elements, Bernoulli) or bool(grey.any()):
                raise ValueError(
                    f"mask holds probabilities, which are for a Bernoulli {self.site!r} of"
                    " zeros and ones: give booleans."
                )
        complete = (self.filled(start, batch), *batch.others)
        check_inputs(self.model, self.guide, complete)
        structure = structure_of(
            self.model, self.guide, complete, {}, particles=2, observed=True
        )
        check_drawn(self.model, structure)
        check_local(self.model, structure)
        self.structure = structure
        self.nesting = structure.nesting
        self.dim = one_dim(self.model, structure.groups[0].dims)

    def chain(self, batch: Incomplete) -> Trace:
        """Returns the trace of the model after all rounds.

        A row whose values are no longer finite goes on from its start, with a warning.
        """
        start = self._completed(batch, self._start(batch))
        guide_trace = poutine.trace(self.guide).get_trace(start, *batch.others)
        sites = drawn_of(sample_sites(guide_trace))
        x = start
        codes = _values(sites)
        lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for index in range(self.num_rounds):
            metropolis = self.metropolis and index >= _WARM_UP * self.num_rounds
            step = self._metropolis_round if metropolis else self._gibbs_round
            x, codes = self._advance(step, batch, x, codes)

            endless = ~self._finite_rows(x, codes, sites)
            lost |= endless
            x = start.where(endless.reshape(-1, *[1] * (x.dim() - 1)), x)
            codes = {
                name: self._where(endless, site, codes[name]) for name, site in sites.items()
            }
        if bool(lost.any()):
            warnings.warn(
                f"{int(lost.sum())} of {len(lost)} chains of imputed values left the finite numbers"
                " and began again, because the guide answers large values with codes that draw"
                " larger ones: take fewer rounds, such as num_rounds=1.",
                stacklevel=2,
            )
        return self._at(batch, x, codes)

    def _finite_rows(self, x: Tensor, codes: Codes, sites: Mapping[str, Site]) -> Tensor:
        """Returns whether the values of each row are finite, apart from gaps in x."""
        known = x.isfinite() | x.isnan() if self.with_gaps else x.isfinite()
        finite = known.flatten(1).all(1)
        for name, site in sites.items():
            by_row = codes[name].isfinite().movedim(self.dim - site["fn"].event_dim, 0)
            finite = finite & by_row.reshape(len(by_row), -1).all(1)
        return finite

    def filled(self, model_trace: Trace, batch: Incomplete, *, mean: bool = False) -> Tensor:
        """Returns x with its missing elements drawn at the code of a trace, or their means.

        An autoregressive likelihood has no means, and draws take their place. If its order
        does not allow to draw them, they are those of the trace, which go with its code.
        """
        site = _site(model_trace, self.site)
        fn = site["fn"]
        if isinstance(fn, AutoregressiveDistribution):
            if not self.in_order:
                x: Tensor = site["value"]
                return x
            return fn.complete(batch.x, batch.trust).to(batch.x.dtype)
        other = distribution_mean(fn) if mean else fn.sample()
        if batch.trust.dtype == torch.bool:
            return torch.where(batch.trust, batch.x, other)
        elements = _elements(self.model, fn)
        unchanged = (batch.trust.logit() + elements.log_prob(batch.x) - _COIN).sigmoid()
        if mean:
            return unchanged * batch.x + (1 - unchanged) * other
        return torch.where(torch.bernoulli(unchanged).bool(), batch.x, other)

    def _next(self, model_trace: Trace, batch: Incomplete) -> Tensor:
        """Returns x with the missing elements of the next round, at the code of a trace.

        Where they cannot be drawn given all observed elements, they take Metropolis steps: the
        likelihood draws some of them anew, each given those before it, and these draws are
        accepted by the density that they give to the other elements. These are first all
        missing elements, then a half of them that follow each other, a quarter, down to one.
        """
        if self.in_order:
            return self.filled(model_trace, batch)
        site = _site(model_trace, self.site)
        fn: AutoregressiveDistribution = site["fn"]
        x: Tensor = site["value"]
        ranks = _element_ranks(fn)
        missing = ~batch.trust
        places = ranks.expand(missing.shape)[missing].unique()

        size = len(places)
        while size:
            start = int(torch.randint(1 - size, len(places), ()))
            window = places[max(start, 0) : start + size]
            kept = batch.trust | ~torch.isin(ranks, window)
            proposed = fn.complete(x, kept).to(x.dtype)
            log_ratio = fn.log_prob_of(proposed, kept) - fn.log_prob_of(x, kept)
            accepted = torch.rand_like(log_ratio).log() < log_ratio
            x = proposed.where(accepted.reshape(-1, *[1] * len(fn.event_shape)), x)
            size //= 2
        return x

    def weighed(self, batch: Incomplete, num_particles: int) -> tuple[Trace, Tensor]:
        r"""Returns a trace of the model at codes of the prior and the guide, with log weights.

        .. math:: \log w = \log p(x_o, z) -
                  \log \Big(\pi_0 \, p(z) + \pi_1 \sum_{c=1}^C q(z \mid x_o, u_c)\Big)

        with the shares :math:`\pi_0` of particles of the prior and :math:`\pi_1` of each
        chain. The weights have the shape ``(particles, rows)``. If missing elements are drawn
        together with the code, the density is that of the observed elements given those before.

        Raises:
            PairError: If the pair cannot run in a plate of particles.
        """
        assert self.structure is not None
        check_vectorized(self.model, self.guide, self.structure, "The weighing of codes")
        sites = drawn_of(sample_sites(self._run(self.model, batch.arguments, 1)))
        chains = min(_CHAINS, num_particles - 1) if sites else 0
        of_chain = num_particles // (chains + 1)
        of_prior = num_particles - chains * of_chain
        sites = drawn_of(sample_sites(self._run(self.model, batch.arguments, of_prior)))
        codes = _values(sites)
        # The dimension of the rows in a code, counted from the right.
        dims = {name: self.dim - site["fn"].event_dim for name, site in sites.items()}

        seen: Arguments = ()
        if chains:
            repeated = batch.repeated(chains)
            seen = (_site(self.chain(repeated), self.site)["value"], *repeated.others)
            guided = drawn_of(sample_sites(self._run(self.guide, seen, of_chain)))
            check_densities(guided.values(), "The weight of a code", _PSEUDO_GIBBS)
            for name, site in guided.items():
                dim = dims[name]
                by_chain = site["value"].unflatten(dim, (-1, chains)).movedim(dim, 1)
                codes[name] = torch.cat([codes[name], by_chain.flatten(0, 1)])

        run = self._run(self.model, batch.arguments, num_particles, codes)
        prior = self._density(_site(run, name) for name in codes)
        proposals = [prior.unsqueeze(-1) + math.log(of_prior / num_particles)]
        if chains:
            under_all = {
                name: value.repeat_interleave(chains, dims[name])
                for name, value in codes.items()
            }
            under = self._run(self.guide, seen, num_particles, under_all)
            density = self._density(_site(under, name) for name in codes)
            by_row = density.unflatten(1, (-1, chains))
            proposals.append(by_row + math.log(of_chain / num_particles))

        joint = self._observed(run, batch)
        return run, joint - torch.cat(proposals, -1).logsumexp(-1)

    def _completed(self, batch: Incomplete, x: Tensor) -> Tensor:
        """Returns a complete x as the pair takes it, with gaps if it takes them."""
        return x.where(batch.trust, math.nan) if self.with_gaps else x

    def _guide_takes_gaps(self, batch: Incomplete) -> bool:
        """Whether the guide draws numbers from data with NaN."""
        seen = batch.x.where(batch.trust, math.nan)
        with preserved_rng(), contextlib.suppress(RuntimeError, ValueError):
            trace = poutine.trace(self.guide).get_trace(seen, *batch.others)
            return all(
                not torch.as_tensor(site["value"]).isnan().any()
                for _, site in sample_sites(trace)
            )
        return False

    def _observed(self, trace: Trace, batch: Incomplete) -> Tensor:
        """Returns log p(x_o, z), or log p(corrupted x, z), of each particle and row.

        Where missing elements come before observed ones, they are drawn, and stay in the trace.
        """
        site = _site(trace, self.site)
        fn = site["fn"]
        if isinstance(fn, AutoregressiveDistribution):
            site["value"] = self._whole(fn, batch)
        sites = dict(sample_sites(trace))
        likelihood = _Observed(self.model, sites[self.site]["fn"], batch)
        observed = {**sites[self.site], "fn": likelihood}
        return self._density({**sites, self.site: observed}.values())

    def _run(
        self, program: Program, arguments: Arguments, count: int, codes: Values | None = None
    ) -> Trace:
        """Runs a program in a plate of particles, with codes drawn or given."""
        particles = particle_plate(program, count, self.nesting)
        if codes is not None:
            particles = poutine.condition(particles, dict(codes))
        return poutine.trace(particles).get_trace(*arguments)

    def _density(self, sites: Iterable[Site]) -> Tensor:
        """Returns the log-density of some sites of a run, of each particle and row; or 0."""
        sites = list(sites)
        if not sites:
            return torch.zeros(1, 1)
        dims = [-self.nesting - 1, self.dim]
        total = sum_of(
            reduce_to(scale_and_mask(log_prob(site), mask=site["mask"]), dims)
            for site in sites
        )
        return total.reshape(-1, total.shape[self.dim])

    def _prior_run(self, batch: Incomplete) -> Trace:
        """Runs the model on codes of its prior."""
        try:
            trace = poutine.trace(self.model).get_trace(*batch.arguments)
        except NotImplementedError:
            raise PairError(
                f"{name_of(self.model)} has no prior that can be drawn from, which imputation"
                " starts from: give it a proper prior."
            ) from None
        except (RuntimeError, ValueError, TypeError):
            # This raises an error that names the reason, unless there is another reason.
            check_inputs(self.model, self.guide, batch.arguments)
            raise
        sites = {name: site for name, site in sample_sites(trace) if site["is_observed"]}
        if self.site not in sites:
            if not sites:
                check_inputs(self.model, self.guide, batch.arguments)
            raise PairError(
                f"{name_of(self.model)} observes {sorted(sites)} and no {self.site!r}: name"
                " one, site=..."
            )
        observed = sites[self.site]
        if observed["value"].shape != observed["fn"].shape():
            check_inputs(self.model, self.guide, batch.arguments)
        return trace

    def _start(self, batch: Incomplete) -> Tensor:
        """Returns x with missing elements drawn at codes of the prior.

        The codes are chosen by the likelihood of the observed elements. Where few elements are
        observed, the rounds forget their start slowly; but then many codes of the prior are
        likely.
        """
        trace = self._prior_run(batch)
        highest = self._score(trace, batch)
        x = batch.x if self.in_order else _site(trace, self.site)["value"]
        codes = _values(drawn_of(sample_sites(trace)))
        for _ in range(_STARTS - 1):
            x, codes = self._advance(self._choose, batch, x, {_SCORE: highest, **codes})
            highest = codes.pop(_SCORE)
        return self.filled(self._at(batch, x, codes), batch)

    def _choose(self, batch: Incomplete, x: Tensor, state: Codes) -> tuple[Tensor, Codes]:
        """Replaces the codes of a start by others of the prior, in the rows that these win."""
        trace = self._prior_run(batch)
        score = self._score(trace, batch)
        chosen = score > state[_SCORE]
        codes = {
            name: self._where(chosen, site, state[name])
            for name, site in drawn_of(sample_sites(trace)).items()
        }
        if not self.in_order:
            rows = chosen.reshape(-1, *[1] * (x.dim() - 1))
            x = _site(trace, self.site)["value"].where(rows, x)
        return x, {_SCORE: torch.maximum(score, state[_SCORE]), **codes}

    def _score(self, trace: Trace, batch: Incomplete) -> Tensor:
        """Returns the log weight of each row with Gumbel noise.

        The code with the maximum is a choice in proportion to the weights.
        """
        prior = self._density(drawn_of(sample_sites(trace)).values())
        log_w = (self._observed(trace, batch) - prior)[0]
        return log_w - torch.empty_like(log_w).exponential_().log()

    def _gibbs_round(self, batch: Incomplete, x: Tensor, codes: Codes) -> tuple[Tensor, Codes]:
        """Draws the missing elements given the codes, and then codes given all elements."""
        x = self._completed(batch, self._next(self._at(batch, x, codes), batch))
        guide_trace = poutine.trace(self.guide).get_trace(x, *batch.others)
        return x, _values(drawn_of(sample_sites(guide_trace)))

    def _metropolis_round(
        self, batch: Incomplete, x: Tensor, codes: Codes
    ) -> tuple[Tensor, Codes]:
        """Likewise, with the codes accepted by Metropolis' rule in each row."""
        x = self._completed(batch, self._next(self._at(batch, x, codes), batch))
        complete = (x, *batch.others)
        proposed = trace_pair(self.model, self.guide, complete, {})
        drawn = drawn_of(sample_sites(proposed[1]))
        check_densities(drawn.values(), "method='metropolis-within-gibbs'", _PSEUDO_GIBBS)
        replayed = poutine.replay(self.guide, trace=with_values(proposed[1], codes))
        current = trace_pair(self.model, replayed, complete, {})
        log_ratio = self._log_weights(proposed) - self._log_weights(current)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        return x, {
            name: self._where(accepted, site, codes[name]) for name, site in drawn.items()
        }

    def _at(self, batch: Incomplete, x: Tensor, codes: Codes) -> Trace:
        """Returns the trace of the model at a complete x and given codes."""
        return poutine.trace(poutine.condition(self.model, codes)).get_trace(x, *batch.others)

    def _advance(
        self,
        step: Callable[[Incomplete, Tensor, Codes], tuple[Tensor, Codes]],
        batch: Incomplete,
        x: Tensor,
        state: Codes,
    ) -> tuple[Tensor, Codes]:
        """Takes a step of a chain, with ``compile`` a compiled one."""
        if not self.compile:
            return step(batch, x, state)
        names = [*state]
        key = step.__name__, self.in_order, self.with_gaps, self.nesting, self.dim, *names

        def flat(x: Tensor, observed: Tensor, trust: Tensor, *rest: Argument) -> Codes:
            values = tensors_of(rest[: len(names)])
            part = Incomplete(observed, rest[len(names) :], trust)
            x, after = step(part, x, dict(zip(names, values, strict=True)))
            return {"": x, **after}  # No site has an empty name.

        if key not in self._compiled:
            self._compiled[key] = CompiledValues(flat, (self.model, self.guide))
        after = dict(
            self._compiled[key](x, batch.x, batch.trust, *state.values(), *batch.others)
        )
        return after.pop(""), after

    def _where(self, chosen: Tensor, site: Site, other: Tensor) -> Tensor:
        """Returns the site's value in the chosen rows, and the other one elsewhere."""
        value: Tensor = site["value"]
        rows = chosen.reshape(-1, *[1] * (site["fn"].event_dim - self.dim - 1))
        return value.where(rows, other)

    def _whole(self, fn: AutoregressiveDistribution, batch: Incomplete) -> Tensor:
        """Returns x with missing elements that the observed ones may depend on.

        Where these come first in the order, any numbers of the support will do.
        """
        x = batch.x
        if self.in_order:
            return x.where(batch.trust, fn.elements.sample().to(x.dtype))
        return fn.complete(x, batch.trust).to(x.dtype)

    def _log_weights(self, traces: Traces) -> Tensor:
        """Returns log p(x, z) - log q(z | x) of each row."""
        joint = self._density(site for _, site in sample_sites(traces[0]))
        return (joint - self._density(drawn_of(sample_sites(traces[1])).values()))[0]


class _Observed:
    """The likelihood of the observed elements, which replaces that of all elements."""

    def __init__(self, model: Program, fn: Distribution, batch: Incomplete) -> None:
        self.model = model
        self.fn = fn
        self.batch = batch

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(x_o | z), or log p(corrupted x | z), in nats."""
        trust = self.batch.trust
        if isinstance(self.fn, AutoregressiveDistribution):
            return self.fn.log_prob_of(value, trust)
        if trust.dtype == torch.bool:
            return log_prob_of_known(self.fn, self.batch.x.where(trust, math.nan))
        log_probs = _elements(self.model, self.fn).log_prob(self.batch.x)
        log_probs = torch.logaddexp(trust.log() + log_probs, (1 - trust).log() + _COIN)
        total: Tensor = sum_rightmost(self._masked(log_probs), len(self.fn.event_shape))
        return total

    def _masked(self, log_probs: Tensor) -> Tensor:
        """Returns the log-probabilities, with zeros where the likelihood has a mask."""
        fn = self.fn
        while isinstance(fn, (Independent, MaskedDistribution)):
            if isinstance(fn, MaskedDistribution):
                mask = torch.as_tensor(fn._mask, device=log_probs.device)
                mask = mask.reshape(*mask.shape, *[1] * len(fn.event_shape))
                log_probs = torch.where(mask, log_probs, 0)
            fn = fn.base_dist
        return log_probs


def completions(model: Program, batch: Incomplete, site: str, copies: int) -> Tensor | None:
    """Returns exact draws of a model without latent variables given the observed elements.

    They have the shape ``(copies, rows, *event)``; None if the model has latent variables, or
    draws missing elements before observed ones.

    Raises:
        InputError: If an observed element does not fit the likelihood.
        PairError: If the elements depend on each other in a way that cannot be conditioned on.
    """
    try:
        with preserved_rng():
            trace = poutine.trace(model).get_trace(*batch.arguments)
    except (NotImplementedError, RuntimeError, ValueError, TypeError):
        return None  # ``MissingElements.check`` raises the reason.
    if (
        drawn_of(sample_sites(trace))
        or batch.trust.dtype != torch.bool
        or site not in trace.nodes
    ):
        return None
    fn = _site(trace, site)["fn"]
    shape = (copies, *batch.x.shape)
    x = batch.x.expand(shape)
    known = batch.trust.expand(shape)
    if isinstance(fn, AutoregressiveDistribution):
        if not _in_order(model, fn, batch.trust):
            return None
        drawn = fn.complete(x, known)
    else:
        drawn = torch.where(known, x, _elements(model, fn).sample(torch.Size([copies])))
    check_inputs(model, no_guide, (drawn[0], *batch.others))
    return drawn


def log_noise(x: Tensor, observed: Tensor, trust: Tensor) -> Tensor:
    """Returns log p(observed | x) of each row, which is 0 for a mask of booleans."""
    if trust.dtype == torch.bool:
        return x.new_zeros(len(x))
    return (trust * (x == observed) + (1 - trust) / 2).log().flatten(1).sum(1)


def as_trust(x: Data, model: Program, mask: ArrayLike | None) -> Tensor:
    """Returns the mask in the shape of x; without one, the elements that are not NaN.

    It holds booleans, or probabilities if some are neither 0 nor 1.

    Raises:
        ValueError: If x is None, or if the mask has another shape or other numbers.
    """
    first = in_memory(x, model)[0]
    if first is None:
        raise ValueError(
            "x must not be None, only its elements may be missing: take impute_modalities for"
            " whole modalities."
        )
    if mask is None:
        return ~first.isnan()
    given = expanded("mask", as_numbers("mask", mask), first)
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise ValueError(
            "mask must hold booleans, true where an element is observed, or probabilities from"
            f" 0 to 1, got numbers from {given.min():g} to {given.max():g}."
        )
    whole = (given == 0) | (given == 1)
    return given.bool() if bool(whole.all()) else given.to(first.dtype)


def expanded(argument: str, value: Tensor, x: Tensor) -> Tensor:
    """Returns the value in the shape of x, expanded if it is one row.

    Raises:
        ValueError: If it has another shape.
    """
    try:
        return value.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"{argument} must be of the shape of x, {tuple(x.shape)}, or of a row, got"
            f" {tuple(value.shape)}."
        ) from None


def _site(trace: Trace, name: str) -> Site:
    """Returns a site of a trace."""
    sites = dict(sample_sites(trace))
    if name not in sites:
        raise PairError(
            f"The model and the guide do not have the same sites: {name!r} is missing in one"
            " of them."
        )
    return sites[name]


def _values(sites: dict[str, Site]) -> Codes:
    return {name: site["value"] for name, site in sites.items()}


def _element_ranks(fn: AutoregressiveDistribution) -> Tensor:
    """Returns the step in which each element is drawn, of the event's shape."""
    ranks = fn.conditionals.ranks[0]
    each = fn.event_shape.numel() // len(ranks)
    return ranks.repeat_interleave(each).reshape(fn.event_shape)


def _in_order(model: Program, fn: AutoregressiveDistribution, trust: Tensor) -> bool:
    """Returns whether in all rows the observed elements come before the missing ones.

    Raises:
        PairError: If vectors are known in part, or if there are several orders and none of them
            will do.
        ValueError: If the mask holds probabilities.
    """
    if trust.dtype != torch.bool:
        raise ValueError(
            "mask holds probabilities, which are for Bernoulli elements that are independent"
            f" given the code, and those of {name_of(model)} depend on each other: give"
            " booleans."
        )
    flat = trust.flatten(trust.dim() - len(fn.event_shape))
    by_position = flat.unflatten(-1, (fn.conditionals.ranks.shape[1], -1))
    if bool((by_position.any(-1) & ~by_position.all(-1)).any()):
        raise PairError(
            f"{name_of(model)} draws vectors as a whole, and in some rows of x one is known in"
            " part: give a mask that is true or false for all elements of a vector."
        )
    if bool(fn.completes(trust).all()):
        return True
    if len(fn.conditionals.ranks) > 1:
        raise PairError(
            f"{name_of(model)} is a mixture of several masks, and in some rows of x observed"
            " elements come after missing ones: give a mask that is true up to some place of"
            " all their orders, or train with one mask, num_masks=1."
        )
    return False


def _check_events(model: Program, fn: Distribution, known: Tensor) -> None:
    """Raises unless elements that belong together are known or missing together."""
    fn = _complete(fn)
    if isinstance(fn, Concatenate):
        for block, part in zip(fn.blocks, known.split(fn.sizes, -1), strict=True):
            _check_events(model, block, part)
    elif fn.event_shape:
        together = known.flatten(known.dim() - len(fn.event_shape))
        if bool((together.any(-1) & ~together.all(-1)).any()):
            _elements(model, fn)


def _complete(fn: Distribution) -> Distribution:
    """Returns the distribution of complete elements, without masks."""
    while isinstance(fn, (Independent, MaskedDistribution, IncompleteDistribution)):
        fn = fn.base if isinstance(fn, IncompleteDistribution) else fn.base_dist
    return fn


def _elements(model: Program, fn: Distribution) -> Distribution:
    """Returns the distribution of single elements, with all of them in its batch shape."""
    fn = _complete(fn)
    if len(fn.event_shape) > 0:
        raise PairError(
            f"{name_of(model)}'s likelihood {type(fn).__name__} does not factorize over"
            " elements, some of which are missing: take one that does, such as Normal or"
            " Bernoulli."
        )
    return fn
