"""Missing elements of data points: drawn given the observed ones, and the log-likelihood of what they truly were."""

__all__ = ["imputation_log_likelihood", "impute"]

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Categorical, Independent, MaskedDistribution
from pyro.distributions.util import sum_rightmost
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.batches import as_arguments, count_rows, each
from tarspyro.checks import check_inputs
from tarspyro.conditional import distribution_mean
from tarspyro.evaluate.batching import by_batch, chunks_of, rows_at_once
from tarspyro.evaluate.densities import one_dim
from tarspyro.evaluate.likelihood import LogLikelihood, from_moments, given_by, log_likelihood, moments_of
from tarspyro.infer.traces import (
    PairError,
    Program,
    guess_plate_nesting,
    name_of,
    sample_sites,
    shared_plates,
    trace_pair,
    weights_of_traces,
    with_values,
)

_METHODS = ("pseudo-gibbs", "metropolis-within-gibbs", "importance")
# The share of the rounds that forget the start before Metropolis' rule holds on to a code.
_WARM_UP = 0.2

_COIN = math.log(0.5)  # what takes the place of a binary element that is not what it was

Traces = tuple[Trace, Trace]


def impute(
    model: Program,
    guide: Program,
    x: Any,
    mask: Any,
    *,
    method: str = "pseudo-gibbs",
    num_rounds: int = 20,
    num_particles: int = 100,
    num_samples: int | None = None,
    mean: bool = False,
    site: str = "x",
    seed: int | None = None,
) -> Any:
    r"""Draws the missing elements of data points given the observed ones.

    What is missing is drawn from the model first, and then in rounds from what was drawn the round before:

    - ``"pseudo-gibbs"``: :math:`z \sim q(z \mid x_o, x_m)`, then :math:`x_m \sim p(x_m \mid z)`. Exact in the limit
      where the guide is the posterior. (Rezende et al. 2014, arXiv:1401.4082, appendix F.)
    - ``"metropolis-within-gibbs"``: the code is a proposal, taken with probability

      .. math:: \min\left(1, \frac{p(x, z') \, q(z \mid x)}{p(x, z) \, q(z' \mid x)}\right), \qquad x = (x_o, x_m),

      which makes the law of the rounds tend to :math:`p(x_m \mid x_o)` with any guide that reaches all likely codes.
      The first fifth of the rounds takes every proposal. (Mattei and Frellsen 2018, arXiv:1802.04826, algorithm 1.)
    - ``"importance"``: ``num_particles`` chains of pseudo-Gibbs, one of which is chosen with probability proportional
      to :math:`w = p(x_o, z) / q(z \mid x_o, x_m)` of its last code: exact in the limit of many of them.

    Inpainting, super-resolution and denoising are one call each, with another mask: ``data.lower_half``,
    ``data.random_pixels`` or ``data.off_grid``, and probabilities in the place of booleans. Of binary elements they say
    how likely each is what it was; otherwise a fair coin has taken its place:

    .. math:: p(\tilde{x}_d \mid x_d) = m_d \, [\tilde{x}_d = x_d] + (1 - m_d) / 2

    Arguments:
        model: The model, whose likelihood of x factorizes over its elements.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory; its first part is x. What is missing may hold anything,
            NaN too, and is not looked at.
        mask: True where an element of x is observed, of the shape of x or of one row of it; or probabilities.
        method: See above.
        num_rounds: The number of rounds.
        num_particles: The number of chains to choose from, of ``"importance"`` alone.
        num_samples: Return so many imputations of each data point; ``"importance"`` chooses with replacement.
        mean: Return the mean of x given the observed elements, estimated from the likelihood's means at the codes of
            ``num_samples`` chains, or of all particles; then without a dimension of samples.
        site: The name of the observed site.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Returns:
        Shape ``(N, *event)``, or ``(num_samples, N, *event)``, with observed elements as they were: an array for
        arrays, a tensor for tensors.

    Raises:
        InputError: If an observed element does not fit the likelihood.
        NotImplementedError: If a mean is asked for that has no closed form.
        PairError: If the likelihood does not factorize, the model has no such site, or its prior cannot be drawn from.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(-1, 2), 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(200 * x.mean(-1) / 201, 201**-0.5))
        >>> x, mask = torch.tensor([[1.0, torch.nan], [torch.nan, -1.0]]), torch.tensor([[1, 0], [0, 1]])
        >>> impute(model, guide, x, mask, mean=True, num_samples=1000, seed=0).round(decimals=1)
        tensor([[ 1.,  1.],
                [-1., -1.]])
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, _METHODS))}, got {method!r}.")
    for name, number in (("num_particles", num_particles), ("num_samples", 1 if num_samples is None else num_samples)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    weighted = method == "importance"
    copies = num_particles if weighted else num_samples or 1
    task = _Task(model, guide, site, num_rounds, metropolis=method == "metropolis-within-gibbs")

    def imputed(*arguments: Tensor) -> Tensor:
        *data, trust = arguments
        task.check(data, trust)
        rows = [*each(lambda part: part.repeat_interleave(copies, 0), arguments)]
        traces = task.chain(rows[:-1], rows[-1])
        filled = task.filled(traces[0], rows[0], rows[-1], mean=mean).unflatten(0, (-1, copies))
        log_w = filled.new_zeros(filled.shape[:2])
        if weighted:
            log_w = task.observed_weights(traces, rows[0], rows[-1]).reshape(-1, copies)
        if mean:
            weights = log_w.softmax(1)
            return (weights.reshape(*weights.shape, *[1] * (filled.dim() - 2)) * filled).sum(1)
        if weighted:
            chosen = Categorical(logits=log_w).sample((num_samples or 1,)).T
            filled = filled[torch.arange(len(filled), device=chosen.device).unsqueeze(1), chosen]
        return filled if num_samples else filled.squeeze(1)

    size = min(100, rows_at_once(copies))
    result = by_batch(imputed, model, guide, x, beside=[_trust(x, model, mask)], seed=seed, batch_size=size)
    if mean or num_samples is None:
        return result
    return np.moveaxis(result, 1, 0) if isinstance(result, np.ndarray) else result.movedim(1, 0)


def imputation_log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    mask: Any,
    *,
    corrupted: Any = None,
    num_particles: int = 1000,
    num_rounds: int = 5,
    errors: bool = False,
    site: str = "x",
    seed: int | None = None,
) -> Any:
    r"""Estimates the log-likelihood of what is missing given what is observed, by importance sampling, in nats.

    .. math:: \log p(x_m \mid x_o) = \log p(x) - \log p(x_o), \qquad
              p(x_o) \approx \frac{1}{K} \sum_{k=1}^K \frac{p(x_o, z_k)}{q(z_k \mid x_o, u_k)},
              \quad z_k \sim q(z \mid x_o, u_k)

    with missing elements :math:`u_k` of ``num_rounds`` rounds of pseudo-Gibbs, which never see the true ones. Both
    likelihoods are exact in expectation, and so their logarithms too low on average; the difference is no bound, since
    what the second lacks is added to it. It tends to the truth with many particles.

    With probabilities as the mask and a ``corrupted`` x (see ``impute``) it is the log-likelihood of the uncorrupted x,

    .. math:: \log p(x \mid \tilde{x}) = \log p(x) + \log p(\tilde{x} \mid x) - \log p(\tilde{x}).

    Arguments:
        model: The model, whose likelihood of x factorizes over its elements.
        guide: The guide.
        x: The complete, true data, in any form that ``fit`` takes in memory; its first part is x.
        mask: True where an element of x is observed, of the shape of x or of one row of it; or probabilities.
        corrupted: What was observed of x in place of it, if the mask holds probabilities.
        num_particles: K, the number of draws for each data point, in both terms.
        num_rounds: The number of rounds.
        errors: Whether to return a tuple (log_likelihood, standard_error, effective_sample_size), with the smaller of
            the two terms' effective sample sizes.
        site: The name of the observed site.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the likelihood does not factorize, the model has no such site, or its prior cannot be drawn from.
        ValueError: If an argument is out of range.
    """
    if num_particles < 1 + errors:
        raise ValueError(f"num_particles must be at least {1 + errors}, got {num_particles}.")
    task, trust = _Task(model, guide, site, num_rounds), _trust(x, model, mask)
    if (trust.dtype != torch.bool) != (corrupted is not None):
        raise ValueError("corrupted is what was observed in place of x where the mask holds probabilities: give both.")
    first = (as_arguments(x, model) or ())[0]
    seen = first if corrupted is None else torch.as_tensor(corrupted, dtype=first.dtype).expand_as(first)

    def of_observed(*arguments: Tensor) -> Tensor:
        *data, observed, trust = arguments
        noise = _log_noise(data[0], observed, trust)
        data[0] = observed
        task.check(data, trust)

        def moments(count: int) -> Tensor:
            rows = [*each(lambda part: part.repeat_interleave(count, 0), (*data, trust))]
            log_w = task.observed_weights(task.chain(rows[:-1], rows[-1]), rows[0], rows[-1])
            return moments_of(log_w.reshape(-1, count).T)

        counts = chunks_of(num_particles, count_rows(data))
        columns = from_moments(functools.reduce(torch.logaddexp, map(moments, counts)), num_particles)
        columns[..., 0] -= noise
        return columns

    complete = log_likelihood(model, guide, x, num_particles=num_particles, errors=True, seed=seed)
    # Other draws than those of the first term, so that the errors are independent and add up.
    other = None if seed is None else seed + 1
    size = min(100, rows_at_once(num_particles))
    columns = by_batch(of_observed, model, guide, x, beside=[seen, trust], seed=other, batch_size=size)
    result = given_by(complete, LogLikelihood(columns[..., 0], columns[..., 1], columns[..., 2]))
    return result if errors else result.log_likelihood


class _Task:
    """A pair, of whose observed site some elements are missing.

    ``data`` are the arguments of the pair with x first, ``trust`` is the mask in the shape of x.
    """

    def __init__(self, model: Program, guide: Program, site: str, num_rounds: int, *, metropolis: bool = False) -> None:
        if num_rounds < 0:
            raise ValueError(f"num_rounds must not be negative, got {num_rounds}.")
        self.model, self.guide, self.site, self.num_rounds = model, guide, site, num_rounds
        self.metropolis, self.nesting = metropolis, 0

    def check(self, data: Sequence[Any], trust: Tensor) -> None:
        """Compares a batch, with what is missing drawn from the model, with the likelihood."""
        start = self._start(data, trust)
        if trust.dtype != torch.bool:
            binary = isinstance(_elements(self.model, _site(start, self.site)["fn"]), Bernoulli)
            if not binary or bool((data[0] * (1 - data[0]))[trust > 0].any()):
                raise ValueError(
                    f"mask holds probabilities, which are for a Bernoulli {self.site!r} of zeros and ones: give "
                    "booleans."
                )
        complete = (self.filled(start, data[0], trust), *data[1:])
        check_inputs(self.model, self.guide, complete)
        self.nesting = guess_plate_nesting(self.model, self.guide, complete, {})

    def chain(self, data: Sequence[Any], trust: Tensor) -> Traces:
        """Returns a run of both halves after all rounds."""
        complete = self.filled(self._start(data, trust), data[0], trust)
        traces = trace_pair(self.model, self.guide, (complete, *data[1:]), {})
        for index in range(self.num_rounds):
            complete = self.filled(traces[0], data[0], trust)
            proposed = trace_pair(self.model, self.guide, (complete, *data[1:]), {})
            metropolis = self.metropolis and index >= _WARM_UP * self.num_rounds
            traces = self._accepted(traces, proposed, (complete, *data[1:])) if metropolis else proposed
        return traces

    def filled(self, model_trace: Trace, x: Tensor, trust: Tensor, *, mean: bool = False) -> Tensor:
        """Returns x with what is missing drawn at the code of a run, or its mean."""
        elements: Any = _elements(self.model, _site(model_trace, self.site)["fn"])
        other = distribution_mean(elements) if mean else elements.sample()
        if trust.dtype == torch.bool:
            return torch.where(trust, x, other)
        kept = (trust.logit() + elements.log_prob(x) - _COIN).sigmoid()
        return kept * x + (1 - kept) * other if mean else torch.where(torch.bernoulli(kept).bool(), x, other)

    def observed_weights(self, traces: Traces, x: Tensor, trust: Tensor) -> Tensor:
        """Returns log p(x_o, z) - log q(z | x_o, x_m) at the codes of a run, one for each row."""
        site = _site(traces[0], self.site)
        fn, elements = site["fn"], _elements(self.model, site["fn"])
        observed = traces[0].copy()
        part: Any = {**site, "fn": _Observed(elements, x, trust, fn.event_dim)}
        observed.nodes[self.site] = part
        return self._weights((observed, traces[1]))

    def _weights(self, traces: Traces) -> Tensor:
        return weights_of_traces(self.model, *traces, plate_nesting=self.nesting)[0]

    def _start(self, data: Sequence[Any], trust: Tensor) -> Trace:
        """A run of the model on codes of its own, whatever stands where elements are missing."""
        blank = torch.where(trust > 0, data[0], 0)
        try:
            trace = poutine.trace(self.model).get_trace(blank, *data[1:])
        except NotImplementedError:
            raise PairError(f"{name_of(self.model)} has no prior that can be drawn from, as the start needs.") from None
        except (RuntimeError, ValueError):
            check_inputs(self.model, self.guide, (blank, *data[1:]))  # says what is wrong
            raise
        sites = {name: site for name, site in sample_sites(trace) if site["is_observed"]}
        if self.site not in sites:
            raise PairError(f"{name_of(self.model)} observes {sorted(sites)} and no {self.site!r}: name one, site=...")
        if sites[self.site]["value"].shape != _elements(self.model, sites[self.site]["fn"]).batch_shape:
            check_inputs(self.model, self.guide, (blank, *data[1:]))
        return trace

    def _accepted(self, current: Traces, proposed: Traces, arguments: tuple[Any, ...]) -> Traces:
        """A run at the proposed codes of the rows that accept them, and at the current ones of the others."""
        before = trace_pair(self.model, poutine.replay(self.guide, trace=current[1]), arguments, {})
        log_ratio = self._weights(proposed) - self._weights(before)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        dim = one_dim(self.model, shared_plates([site for trace in proposed for _, site in sample_sites(trace)]))
        new, old = (
            {name: site for name, site in sample_sites(traces[1]) if not site["is_observed"]}
            for traces in (proposed, before)
        )
        values = {
            name: site["value"].where(accepted.reshape(-1, *[1] * (site["fn"].event_dim - dim - 1)), old[name]["value"])
            for name, site in new.items()
        }
        merged = with_values(proposed[1], values)
        return trace_pair(self.model, poutine.replay(self.guide, trace=merged), arguments, {})


class _Observed:
    """The likelihood of what is observed, in the place of that of all elements."""

    def __init__(self, elements: Any, x: Tensor, trust: Tensor, event_dim: int) -> None:
        self.elements, self.x, self.trust, self.event_dim = elements, x, trust, event_dim

    def log_prob(self, _: Tensor) -> Tensor:
        """Returns log p(x_o | z), or log p(corrupted x | z), in nats."""
        each = self.elements.log_prob(self.x)
        if self.trust.dtype == torch.bool:
            each = torch.where(self.trust, each, 0)
        else:
            each = torch.logaddexp(self.trust.log() + each, (1 - self.trust).log() + _COIN)
        return sum_rightmost(each, self.event_dim)


def _log_noise(x: Tensor, observed: Tensor, trust: Tensor) -> Tensor:
    """Returns log p(observed | x) of each row: 0 where all that is observed is as it was."""
    if trust.dtype == torch.bool:
        return x.new_zeros(len(x))
    return (trust * (x == observed) + (1 - trust) / 2).log().flatten(1).sum(1)


def _trust(x: Any, model: Program, mask: Any) -> Tensor:
    """The mask in the shape of x: booleans, or probabilities if some are neither 0 nor 1."""
    arguments, given = as_arguments(x, model), torch.as_tensor(mask)
    if arguments is None:
        raise ValueError("x must be in memory: tensors, arrays, a mapping of them or a Split.")
    try:
        given = given.expand(arguments[0].shape)
    except RuntimeError:
        shape = tuple(arguments[0].shape)
        raise ValueError(f"mask must be of the shape of x, {shape}, or of a row, got {tuple(given.shape)}.") from None
    if not bool(((given >= 0) & (given <= 1)).all()):
        raise ValueError("mask must hold booleans, or probabilities from 0 to 1: true where an element is observed.")
    whole = given == given.round()
    return given.bool() if bool(whole.all()) else given.to(arguments[0].dtype)


def _site(trace: Trace, name: str) -> Any:
    return trace.nodes[name]


def _elements(model: Program, fn: Any) -> Any:
    """The distribution of the single elements, of the batch shape of all of them."""
    while isinstance(fn, (Independent, MaskedDistribution)):
        fn = fn.base_dist
    if len(fn.event_shape) > 0:
        raise PairError(
            f"{name_of(model)}'s likelihood {type(fn).__name__} does not factorize over elements, some of which are "
            "missing: take one that does, such as Normal or Bernoulli."
        )
    return fn
