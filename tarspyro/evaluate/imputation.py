"""Imputation of missing elements, and the log-likelihood of their true values."""

__all__ = ["imputation_log_likelihood", "impute"]

from typing import Any

import torch
from pyro.distributions import Categorical
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, as_seed, check_choice
from tarspyro.evaluate.batching import (
    Array,
    chunk_sizes,
    in_memory,
    map_batches,
    rows_at_once,
)
from tarspyro.evaluate.likelihood import (
    LogLikelihood,
    difference,
    log_likelihood,
    log_mean_exp,
    num_particles_of,
)
from tarspyro.evaluate.missing import (
    Incomplete,
    MissingElements,
    as_trust,
    completions,
    expanded,
    log_noise,
)
from tarspyro.infer.traces import PairError, name_of, no_guide
from tarspyro.types import ArrayLike, Data, Program

_METHODS = ("pseudo-gibbs", "metropolis-within-gibbs", "importance")


def impute(
    model: Program,
    guide: Program | None,
    x: Data,
    mask: ArrayLike | None = None,
    *,
    method: str = "pseudo-gibbs",
    num_rounds: int = 20,
    num_particles: int = 100,
    num_samples: int | None = None,
    mean: bool = False,
    site: str = "x",
    seed: int | None = None,
    compile: bool = False,
) -> Array:
    r"""Draws the missing elements of data points given the observed ones.

    The missing elements are first drawn given a code of the prior, chosen among 50 by the
    likelihood of the observed elements, and then in rounds, each from the result of the
    previous one:

    - ``"pseudo-gibbs"``: :math:`z \sim q(z \mid x_o, x_m)`, then
      :math:`x_m \sim p(x_m \mid z)`. Exact in the limit if the guide is the posterior.
      (Rezende et al. 2014, arXiv:1401.4082, appendix F.)
    - ``"metropolis-within-gibbs"``: the code is a proposal, accepted with probability

      .. math:: \min\left(1, \frac{p(x, z') \, q(z \mid x)}{p(x, z) \, q(z' \mid x)}\right),
                \qquad x = (x_o, x_m),

      which makes the distribution tend to :math:`p(x_m \mid x_o)` with any guide that reaches
      all likely codes. The first fifth of the rounds accepts every proposal. (Mattei and
      Frellsen 2018, arXiv:1802.04826, algorithm 1.)
    - ``"importance"``: one of ``num_particles`` codes is chosen with probability proportional
      to its weight (see ``imputation_log_likelihood``). Exact in the limit of many particles.

    An autoregressive likelihood draws the missing elements given the code and the observed
    ones, if these come before the others in its order, such as the upper half of an image.
    Without latent variables, as in a ``Density``, these draws are exact, and rounds and
    particles have no meaning. Where missing elements come before observed ones,
    ``"pseudo-gibbs"`` is refused. ``"importance"`` then draws them together with the code, each
    given those before it, and weighs by the density of the observed ones given these;
    ``"metropolis-within-gibbs"`` proposes such draws of all missing elements, then of fewer.
    The more is observed after what is missing, the more particles or rounds it takes. A mean is
    that of draws.

    Inpainting, super-resolution and denoising are one call each, with another mask:
    ``data.lower_half``, ``data.random_pixels`` or ``data.off_grid``, or probabilities instead
    of booleans. A probability :math:`m_d` is that of an unchanged binary element; otherwise a
    fair coin has replaced it:

    .. math:: p(\tilde{x}_d \mid x_d) = m_d \, [\tilde{x}_d = x_d] + (1 - m_d) / 2

    Arguments:
        model: The model, whose likelihood of x factorizes over its elements or is
            autoregressive, or a ``Density``.
            Elements that belong together, such as the one-hot vector of a category in
            ``Blocks``, are known or missing together.
        guide: The guide; None for a model without latent variables. One that takes gaps, as
            with ``tarspyro.nn.WithGaps`` beside an ``IncompleteLikelihood``, sees NaN in place
            of what is drawn.
        x: The data, in any form that ``fit`` takes; its first part is x. Missing elements may
            have any value, such as NaN, and are ignored.
        mask: True where an element of x is observed, of the shape of x or of one row of it; or
            probabilities. If not given, what is NaN is missing.
        method: See above.
        num_rounds: The number of rounds. With few observed elements a round forgets little of
            the start, which is then nearly right; with many, a few rounds forget all of it.
        num_particles: The number of codes to choose from, for ``"importance"`` alone.
        num_samples: The number of imputations of each data point; ``"importance"`` chooses
            with replacement.
        mean: Whether to return the mean of x given the observed elements, estimated from the
            likelihood's means at the codes of ``num_samples`` chains, or at all particles by
            their weights; then without a dimension of samples.
        site: The name of the observed site.
        seed: The seed of the draws; the global random state then stays unchanged.
        compile: Whether to compile the rounds and the search for their start, as
            ``fit(compile=True)`` does with steps of training. It takes some seconds for each
            shape of a batch, and may draw from another stream of random numbers. Rounds that
            take their elements in an order are not compiled.

    Returns:
        Shape ``(N, *event)``, or ``(num_samples, N, *event)``, with observed elements
        unchanged: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If an observed element does not fit the likelihood.
        NotImplementedError: If ``mean`` is true and the mean has no closed form.
        PairError: If the likelihood neither factorizes nor is autoregressive, if the model has
            no such site, if its prior cannot be drawn from, or if ``method`` does not allow that
            missing elements come before observed ones.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         both = z.unsqueeze(-1).expand(-1, 2)
        ...         pyro.sample("x", dist.Normal(both, 0.1).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(200 * x.mean(-1) / 201, 201**-0.5))
        >>> x = torch.tensor([[1.0, torch.nan], [torch.nan, -1.0]])
        >>> mask = torch.tensor([[1, 0], [0, 1]])
        >>> mean = impute(model, guide, x, mask, mean=True, num_samples=1000, seed=0)
        >>> mean.round(decimals=1)
        tensor([[ 1.,  1.],
                [-1., -1.]])
    """
    check_choice("method", method, _METHODS)
    num_particles = as_count("num_particles", num_particles)
    copies = 1 if num_samples is None else as_count("num_samples", num_samples)
    weighted = method == "importance"
    guide = no_guide if guide is None else guide
    pair = MissingElements(
        model,
        guide,
        site,
        num_rounds,
        metropolis=method == "metropolis-within-gibbs",
        compile=compile,
    )

    def imputed(x: Tensor, *columns: Tensor) -> Array:
        *others, trust = columns
        batch = Incomplete(x.where(trust > 0, 0), tuple(others), trust)
        exact = completions(
            model, batch, site, (num_samples or num_particles) if mean else copies
        )
        if exact is not None:
            return exact.mean(0) if mean else exact.movedim(0, 1)
        pair.check(batch)
        if method == "pseudo-gibbs" and not pair.in_order:
            raise PairError(
                f"{name_of(model)} draws elements in an order, and in some rows of x observed ones"
                " come after missing ones, which pseudo-Gibbs cannot draw: take"
                " method='metropolis-within-gibbs' or 'importance', a mask that is true up to some"
                " place of the order, or an order in which these elements come first."
            )
        if weighted:
            trace, log_w = pair.weighed(batch, num_particles)
            filled = pair.filled(trace, batch, mean=mean)
        else:
            repeated = batch.repeated(copies)
            filled = pair.filled(pair.chain(repeated), repeated, mean=mean)
            filled = filled.unflatten(0, (len(trust), copies)).movedim(1, 0)
            log_w = filled.new_zeros(filled.shape[:2])

        if mean:
            weights = log_w.softmax(0)
            weights = weights.reshape(*weights.shape, *[1] * (filled.dim() - 2))
            # A code of weight 0 may have a mean that is not finite.
            return (weights * filled).where(weights > 0, 0).sum(0)
        if weighted:
            chosen = Categorical(logits=log_w.T).sample((copies,))
            filled = filled[chosen, torch.arange(len(trust), device=chosen.device)]
        return filled.movedim(0, 1)

    result = map_batches(
        imputed,
        (model, guide),
        x,
        extra=[as_trust(x, model, mask)],
        seed=seed,
        batch_size=min(100, rows_at_once(num_particles if weighted else copies)),
    )
    if mean:
        return result
    return result[:, 0] if num_samples is None else result.swapaxes(0, 1)


def imputation_log_likelihood(
    model: Program,
    guide: Program | None,
    x: Data,
    mask: ArrayLike,
    *,
    corrupted: ArrayLike | None = None,
    num_particles: int = 1000,
    num_rounds: int = 20,
    errors: bool = False,
    site: str = "x",
    seed: int | None = None,
) -> Any:
    r"""Estimates the log-likelihood of missing elements given the observed ones, in nats.

    By importance sampling:

    .. math:: \log p(x_m \mid x_o) = \log p(x) - \log p(x_o), \qquad
              p(x_o) \approx \frac{1}{K} \sum_{k=1}^K w_k, \qquad
              w = p(x_o, z) \Big/ \frac{1}{C + 1}
              \Big(p(z) + \sum_{c=1}^C q(z \mid x_o, u_c)\Big)

    The codes :math:`z_k` come in equal parts from the prior and from the guide. The guide sees
    in turn the missing elements :math:`u_c` of C chains of pseudo-Gibbs, never the true ones.
    The guide alone takes the drawn elements for observed, and is overconfident; with the prior
    in the mixture the weights are bounded (Hesterberg 1995; Owen and Zhou 2000).

    If the likelihood is autoregressive, missing elements that come before observed ones are
    drawn together with the codes (see ``impute``). Without latent variables the result is exact
    if there are none.

    Both likelihoods are unbiased, so their logarithms are too low on average. The difference
    is not a bound, because the error of the second term is added. It tends to the true value
    with many particles.

    With probabilities as the mask and a ``corrupted`` x (see ``impute``) it is the
    log-likelihood of the uncorrupted x,

    .. math:: \log p(x \mid \tilde{x}) =
              \log p(x) + \log p(\tilde{x} \mid x) - \log p(\tilde{x}).

    Arguments:
        model: The model, whose likelihood of x factorizes over its elements or is
            autoregressive.
        guide: The guide; None for a model without latent variables.
        x: The complete, true data, in any form that ``fit`` takes; its first part is
            x.
        mask: True where an element of x is observed, of the shape of x or of one row of it; or
            probabilities.
        corrupted: The observed x, if the mask holds probabilities; of the shape of x or of one
            row of it.
        num_particles: K, the number of draws for each data point, in both terms.
        num_rounds: The number of rounds of the chains, of which there are 20, or fewer with
            fewer particles.
        errors: Whether to return a tuple (log_likelihood, standard_error,
            effective_sample_size), with the smaller of the two terms' effective sample sizes.
        site: The name of the observed site.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the likelihood neither factorizes nor is autoregressive, if the model has
            no such site, or if its prior cannot be drawn from.
        ValueError: If an argument is out of range.
    """
    guide = no_guide if guide is None else guide
    num_particles = num_particles_of("num_particles", num_particles, errors)
    pair = MissingElements(model, guide, site, num_rounds)
    trust = as_trust(x, model, mask)
    if (trust.dtype != torch.bool) != (corrupted is not None):
        raise ValueError(
            "corrupted and probabilities in mask must be given together, got"
            f" {'no probabilities' if trust.dtype == torch.bool else 'no corrupted'}: give"
            " booleans alone, or probabilities and the x that was observed."
        )
    observed = torch.as_tensor(in_memory(x, model)[0])
    if corrupted is not None:
        numbers = as_numbers("corrupted", corrupted, observed.dtype)
        observed = expanded("corrupted", numbers, observed)

    def of_observed(x: Tensor, *columns: Tensor) -> LogLikelihood:
        *others, seen, trust = columns
        noise = log_noise(x, seen, trust)
        batch = Incomplete(seen.where(trust > 0, 0), tuple(others), trust)
        pair.check(batch)
        log_w = (
            pair.weighed(batch, count)[1] for count in chunk_sizes(num_particles, len(trust))
        )
        estimate = log_mean_exp(log_w, num_particles)
        return estimate._replace(log_likelihood=estimate.log_likelihood - noise)

    complete = log_likelihood(
        model, guide, x, num_particles=num_particles, errors=True, seed=seed
    )
    incomplete = map_batches(
        of_observed,
        (model, guide),
        x,
        extra=[observed, trust],
        # Another seed makes the two estimates independent, so that their variances add up.
        seed=None if seed is None else as_seed(seed) + 1,
        batch_size=min(100, rows_at_once(num_particles)),
    )
    result = difference(complete, incomplete)
    return result if errors else result.log_likelihood
