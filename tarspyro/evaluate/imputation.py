"""Missing elements of data points: drawn given the observed ones, and the log-likelihood of
what they truly were.
"""

__all__ = ["imputation_log_likelihood", "impute"]

import functools
from typing import Any

import numpy as np
import torch
from pyro.distributions import Categorical
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, as_seed, check_choice
from tarspyro.evaluate.batching import by_batch, chunks_of, rows_at_once
from tarspyro.evaluate.likelihood import (
    LogLikelihood,
    from_moments,
    given_by,
    log_likelihood,
    moments_of,
)
from tarspyro.evaluate.missing import Missing, expanded, log_noise, trust_of
from tarspyro.infer.traces import check_program
from tarspyro.inputs import as_arguments, count_rows, each
from tarspyro.types import Program

_METHODS = ("pseudo-gibbs", "metropolis-within-gibbs", "importance")


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

    What is missing is drawn first given a code of the prior, chosen among 50 by the likelihood
    of what is observed, and then in rounds from what was drawn the round before:

    - ``"pseudo-gibbs"``: :math:`z \sim q(z \mid x_o, x_m)`, then :math:`x_m \sim p(x_m \mid
      z)`. Exact in the limit where the guide is the posterior. (Rezende et al. 2014,
      arXiv:1401.4082, appendix F.)
    - ``"metropolis-within-gibbs"``: the code is a proposal, taken with probability

      .. math:: \min\left(1, \frac{p(x, z') \, q(z \mid x)}{p(x, z) \, q(z' \mid x)}\right), \qquad x = (x_o, x_m),

      which makes the law of the rounds tend to :math:`p(x_m \mid x_o)` with any guide that
      reaches all likely codes. The first fifth of the rounds takes every proposal. (Mattei and
      Frellsen 2018, arXiv:1802.04826, algorithm 1.)
    - ``"importance"``: codes of ``num_particles`` draws, of which one is chosen with
      probability proportional to its weight (see ``imputation_log_likelihood``). Exact in the
      limit of many of them.

    Inpainting, super-resolution and denoising are one call each, with another mask:
    ``data.lower_half``, ``data.random_pixels`` or ``data.off_grid``, and probabilities in the
    place of booleans. Of binary elements they say how likely each is what it was; otherwise a
    fair coin has taken its place:

    .. math:: p(\tilde{x}_d \mid x_d) = m_d \, [\tilde{x}_d = x_d] + (1 - m_d) / 2

    Arguments:
        model: The model, whose likelihood of x factorizes over its elements.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory; its first part is x. What is
            missing may hold anything, NaN too, and is not looked at.
        mask: True where an element of x is observed, of the shape of x or of one row of it; or
            probabilities.
        method: See above.
        num_rounds: The number of rounds. Where little is observed a round forgets little of
            the start, which is nearly right there; where much is observed, a few rounds forget
            all of it.
        num_particles: The number of codes to choose from, of ``"importance"`` alone.
        num_samples: Return so many imputations of each data point; ``"importance"`` chooses
            with replacement.
        mean: Return the mean of x given the observed elements, estimated from the likelihood's
            means at the codes of ``num_samples`` chains, or of all particles by their weights;
            then without a dimension of samples.
        site: The name of the observed site.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        Shape ``(N, *event)``, or ``(num_samples, N, *event)``, with observed elements as they
        were: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If an observed element does not fit the likelihood.
        NotImplementedError: If a mean is asked for that has no closed form.
        PairError: If the likelihood does not factorize, the model has no such site, or its
            prior cannot be drawn from.
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
    check_program("model", model)
    check_program("guide", guide)
    check_choice("method", method, _METHODS)
    for name, number in (
        ("num_particles", num_particles),
        ("num_samples", 1 if num_samples is None else num_samples),
    ):
        as_count(name, number)
    weighted = method == "importance"
    task = Missing(
        model, guide, site, num_rounds, metropolis=method == "metropolis-within-gibbs"
    )

    def imputed(*arguments: Tensor) -> Tensor:
        *data, trust = arguments
        data[0] = data[0].where(trust > 0, 0)
        task.check(data, trust)
        if weighted:
            trace, log_w = task.weighed(data, trust, num_particles)
            filled = task.filled(trace, data[0], trust, mean=mean)
        else:
            rows = [
                *each(lambda part: part.repeat_interleave(num_samples or 1, 0), (*data, trust))
            ]
            filled = task.filled(
                task.chain(rows[:-1], rows[-1])[0], rows[0], rows[-1], mean=mean
            )
            filled = filled.unflatten(0, (len(trust), -1)).movedim(1, 0)
            log_w = filled.new_zeros(filled.shape[:2])
        if mean:
            weights = log_w.softmax(0)
            return (weights.reshape(*weights.shape, *[1] * (filled.dim() - 2)) * filled).sum(0)
        if weighted:
            chosen = Categorical(logits=log_w.T).sample((num_samples or 1,))
            filled = filled[chosen, torch.arange(len(trust), device=chosen.device)]
        return filled.movedim(0, 1) if num_samples else filled.squeeze(0)

    size = min(100, rows_at_once(num_particles if weighted else num_samples or 1))
    result = by_batch(
        imputed, model, guide, x, beside=[trust_of(x, model, mask)], seed=seed, batch_size=size
    )
    if mean or num_samples is None:
        return result
    return (
        np.moveaxis(result, 1, 0) if isinstance(result, np.ndarray) else result.movedim(1, 0)
    )


def imputation_log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    mask: Any,
    *,
    corrupted: Any = None,
    num_particles: int = 1000,
    num_rounds: int = 20,
    errors: bool = False,
    site: str = "x",
    seed: int | None = None,
) -> Any:
    r"""Estimates the log-likelihood of what is missing given what is observed, by importance
    sampling, in nats.

    .. math:: \log p(x_m \mid x_o) = \log p(x) - \log p(x_o), \qquad p(x_o) \approx \frac{1}{K} \sum_{k=1}^K w_k,
              \qquad w = p(x_o, z) \Big/ \frac{1}{C + 1} \Big(p(z) + \sum_{c=1}^C q(z \mid x_o,
              u_c)\Big)

    The codes :math:`z_k` come in equal parts from the prior and from the guide, which sees the
    missing elements
    :math:`u_c` of C chains of pseudo-Gibbs in turn, and never the true ones. The guide alone
    believes in what it sees, and is too sure of itself; with the prior beside it the weights
    are bounded (Hesterberg 1995; Owen and Zhou 2000).

    Both likelihoods are exact in expectation, and so their logarithms too low on average; the
    difference is no bound, since what the second lacks is added to it. It tends to the truth
    with many particles.

    With probabilities as the mask and a ``corrupted`` x (see ``impute``) it is the
    log-likelihood of the uncorrupted x,

    .. math:: \log p(x \mid \tilde{x}) = \log p(x) + \log p(\tilde{x} \mid x) - \log p(\tilde{x}).

    Arguments:
        model: The model, whose likelihood of x factorizes over its elements.
        guide: The guide.
        x: The complete, true data, in any form that ``fit`` takes in memory; its first part is
            x.
        mask: True where an element of x is observed, of the shape of x or of one row of it; or
            probabilities.
        corrupted: What was observed of x in place of it, if the mask holds probabilities; of
            the shape of x or of one row of it.
        num_particles: K, the number of draws for each data point, in both terms.
        num_rounds: The number of rounds of the chains, of which there are 20, or fewer with
            fewer particles.
        errors: Whether to return a tuple (log_likelihood, standard_error,
            effective_sample_size), with the smaller of the two terms' effective sample sizes.
        site: The name of the observed site.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the likelihood does not factorize, the model has no such site, or its
            prior cannot be drawn from.
        ValueError: If an argument is out of range.
    """
    num_particles = as_count("num_particles", num_particles, 1 + errors)
    task, trust = Missing(model, guide, site, num_rounds), trust_of(x, model, mask)
    if (trust.dtype != torch.bool) != (corrupted is not None):
        raise ValueError(
            "corrupted is what was observed in place of x where the mask holds probabilities:"
            " give both."
        )
    first = (as_arguments(x, model) or ())[0]
    seen = (
        first
        if corrupted is None
        else expanded("corrupted", as_numbers("corrupted", corrupted, first.dtype), first)
    )

    def of_observed(*arguments: Tensor) -> Tensor:
        *data, observed, trust = arguments
        noise = log_noise(data[0], observed, trust)
        data[0] = observed.where(trust > 0, 0)
        task.check(data, trust)

        def moments(count: int) -> Tensor:
            return moments_of(task.weighed(data, trust, count)[1])

        counts = chunks_of(num_particles, count_rows(data))
        columns = from_moments(
            functools.reduce(torch.logaddexp, map(moments, counts)), num_particles
        )
        columns[..., 0] -= noise
        return columns

    complete = log_likelihood(
        model, guide, x, num_particles=num_particles, errors=True, seed=seed
    )
    # Other draws than those of the first term, so that the errors are independent and add up.
    other = None if seed is None else as_seed(seed) + 1
    size = min(100, rows_at_once(num_particles))
    columns = by_batch(
        of_observed, model, guide, x, beside=[seen, trust], seed=other, batch_size=size
    )
    result = given_by(
        complete, LogLikelihood(columns[..., 0], columns[..., 1], columns[..., 2])
    )
    return result if errors else result.log_likelihood
