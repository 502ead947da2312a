"""Log-likelihoods by importance sampling, the ELBO and its two terms."""

__all__ = [
    "BoundEstimate",
    "LogLikelihood",
    "conditional_log_likelihood",
    "difference",
    "elbo",
    "log_likelihood",
    "log_mean_exp",
    "num_particles_of",
    "reconstruction",
]

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tarspyro.arguments import as_count, format_fields
from tarspyro.evaluate.batching import (
    Array,
    ParticleChunks,
    ValuesByStructure,
    first_rows,
    map_batches,
)
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.pairs import log_weights
from tarspyro.infer.structure import Structure, check_points
from tarspyro.infer.traces import (
    PairError,
    name_of,
    no_guide,
    sample_sites,
    sum_of,
    trace_pair,
)
from tarspyro.scopes import preserved_rng
from tarspyro.types import Argument, ArrayLike, Data, Program


class BoundEstimate(NamedTuple):
    """An estimate of the ELBO and its two terms, in nats, a number for each data point."""

    elbo: Array
    reconstruction: Array
    kl: Array

    def __repr__(self) -> str:
        return format_fields("BoundEstimate", self._asdict())


class LogLikelihood(NamedTuple):
    """An estimate of log p(x), in nats, and its precision, a number for each data point."""

    log_likelihood: Array
    standard_error: Array
    effective_sample_size: Array

    def __repr__(self) -> str:
        return format_fields("LogLikelihood", self._asdict())


def log_likelihood(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    num_particles: int = 1000,
    errors: bool = False,
    binarize: bool = False,
    seed: int | None = None,
    compile: bool = False,
) -> Any:
    r"""Estimates the log-likelihood of each data point by importance sampling, in nats.

    .. math:: \log p(x_n) \approx \log \frac{1}{K} \sum_{k=1}^K w_{nk}, \qquad
              w_{nk} = \frac{p(x_n, z_{nk})}{q(z_{nk} \mid x_n)}, \qquad
              z_{nk} \sim q(z \mid x_n)

    In expectation this is a lower bound that grows with K (Burda et al. 2015,
    arXiv:1509.00519, eq. 8). Particles are drawn in chunks, so that memory does not grow with
    their number, in evaluation mode and without gradients.

    With ``errors``, also the effective sample size (Kong 1992) and the standard error that
    follows from it by the delta method,

    .. math:: \mathrm{ESS}_n = \frac{(\sum_k w_{nk})^2}{\sum_k w_{nk}^2}, \qquad
              \sigma_n = \sqrt{1 / \mathrm{ESS}_n - 1 / K}

    Both are estimates from the same weights: neither shows a mode that the guide misses.

    Without latent variables, as of a ``Density``, the log-likelihood is exact: no particles are
    drawn, and the standard error is zero.

    Arguments:
        model: The model.
        guide: The guide; None for a model without latent variables.
        x: The data, in any form that ``fit`` takes.
        num_particles: K, the number of draws for each data point.
        errors: Whether to return a tuple (log_likelihood, standard_error,
            effective_sample_size).
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: The seed of the draws; the global random state then stays unchanged.
        compile: Whether to compile the weights of a chunk, as ``fit(compile=True)`` does with
            steps. It takes some seconds, and may draw from another stream of random numbers.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If data points have no weights of their own, because a site lies outside
            the plate of the data, or if the guide gives a latent variable a single value.
        ValueError: If ``num_particles`` is below 1, or below 2 with ``errors``.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact_posterior(x):  # its weights are constant, so the estimate has no noise
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = np.array([0.0, 2.0])
        >>> log_likelihood(model, exact_posterior, x, num_particles=10).round(4)
        array([-1.2655, -2.2655])
        >>> estimate = log_likelihood(model, exact_posterior, x, num_particles=10, errors=True)
        >>> estimate.effective_sample_size.round(2)
        array([10., 10.])
    """
    num_particles = num_particles_of("num_particles", num_particles, errors)
    guide = no_guide if guide is None else guide
    chunks = ParticleChunks(model, guide, num_particles)

    def weights(structure: Structure, count: int, *batch: Argument) -> dict[str, Tensor]:
        log_w = log_weights(model, guide, *batch, num_particles=count, structure=structure)
        return {"log_w": log_w}

    values = ValuesByStructure(weights, (model, guide), compile)

    def estimate(*batch: Argument) -> LogLikelihood:
        check_points(guide, chunks.structure(batch))
        log_w = (
            values(batch, structure, count)["log_w"] for count, structure in chunks(batch)
        )
        return log_mean_exp(log_w, chunks.count(batch))

    result = map_batches(estimate, (model, guide), x, binarize=binarize, seed=seed, check=True)
    return result if errors else result.log_likelihood


def log_mean_exp(log_w: Iterable[Tensor], num_particles: int) -> LogLikelihood:
    r"""Returns the logarithm of the mean weight of each data point, and its precision.

    .. math:: \log \frac{1}{K} \sum_{k=1}^K w_{nk}

    Arguments:
        log_w: The log weights in chunks of shape ``(particles, *data points)``.
        num_particles: K, the number of particles in all chunks.
    """
    # A map frees a chunk before it computes the next one.
    sums = map(_log_sums, log_w)
    log_sum, log_sum_of_squares = functools.reduce(torch.logaddexp, sums)

    log_mean = log_sum - math.log(num_particles)
    effective = (2 * log_sum - log_sum_of_squares).exp()
    # Rounding takes the variance of equal weights below zero.
    error = (1 / effective - 1 / num_particles).clamp(min=0).sqrt()
    return LogLikelihood(log_mean, error, effective)


def _log_sums(log_w: Tensor) -> Tensor:
    """Returns the logarithms of the sums of the weights and of their squares."""
    return torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)])


def num_particles_of(name: str, value: int, errors: bool) -> int:
    """Returns a number of particles, of which standard errors need two.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is too small.
    """
    count = as_count(name, value)
    if errors and count < 2:
        raise ValueError(f"{name} must be at least 2 for errors=True, got {count}.")
    return count


def difference(joint: LogLikelihood, condition: LogLikelihood) -> LogLikelihood:
    r"""Returns :math:`\log p(a \mid b) = \log p(a, b) - \log p(b)` of independent estimates.

    The squares of their standard errors add up; the smaller effective sample size counts.
    """
    sizes = (joint.effective_sample_size, condition.effective_sample_size)
    return LogLikelihood(
        joint.log_likelihood - condition.log_likelihood,
        (joint.standard_error**2 + condition.standard_error**2) ** 0.5,
        _minimum(*sizes),
    )


def _minimum(a: Array, b: Array) -> Array:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return np.minimum(a, b)


def conditional_log_likelihood(
    model: Program,
    guide: Program,
    x: ArrayLike,
    y: ArrayLike,
    *,
    num_particles: int = 1000,
    errors: bool = False,
    binarize: bool = False,
    seed: int | None = None,
    compile: bool = False,
) -> Any:
    r"""Estimates log p(x | y) of each data point by importance sampling, in nats.

    .. math:: \log p(x_n \mid y_n) \approx \log \frac{1}{K} \sum_{k=1}^K
              \frac{p(x_n, z_{nk} \mid y_n)}{q(z_{nk} \mid x_n, y_n)}, \qquad
              z_{nk} \sim q(z \mid x_n, y_n)

    This is ``log_likelihood`` given y (Sohn et al. 2015, section 4.1, "importance sampling").
    The model is one of x given y, such as ``ConditionalVAE``. A guide that draws from the
    prior p(z | y) gives the paper's Monte Carlo estimate, which has more noise.

    Arguments:
        model: The model, called with x and y.
        guide: The guide, likewise.
        x: The data, with a row for each data point.
        y: The condition, likewise.
        num_particles: K, the number of draws for each data point.
        errors: See ``log_likelihood``.
        binarize: Whether to draw black and white pixels of x, once, with the grey values as
            probabilities.
        seed: The seed of the draws; the global random state then stays unchanged.
        compile: See ``log_likelihood``.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the model observes y, because its weights are then those of p(x, y).
        ValueError: If ``num_particles`` is below 1, or below 2 with ``errors``.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(y, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact_posterior(x, y):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))
        >>> x, y = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])
        >>> conditional_log_likelihood(model, exact_posterior, x, y, num_particles=10)
        tensor([-1.5155, -1.2655])
        >>> dist.Normal(y, 2.0**0.5).log_prob(x)
        tensor([-1.5155, -1.2655])
    """
    first_row = first_rows((x, y), 1, model, name="data")
    with preserved_rng():
        map_batches(
            functools.partial(_check_condition, model, guide),
            (model, guide),
            first_row,
            check=not binarize,
        )
    return log_likelihood(
        model,
        guide,
        (x, y),
        num_particles=num_particles,
        errors=errors,
        binarize=binarize,
        seed=seed,
        compile=compile,
    )


def _check_condition(model: Program, guide: Program, x: Tensor, y: Tensor) -> Tensor:
    """Raises if the model observes y."""
    model_trace, _ = trace_pair(model, guide, (x, y), {})
    for name, site in sample_sites(model_trace):
        if site["value"] is y:
            raise PairError(
                f"{name_of(model)} observes y at the site {name!r}, so that its weights are"
                " those of p(x, y): take log_likelihood, and subtract log p(y)."
            )
    return x


def elbo(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    num_particles: int = 1,
    analytic_kl: bool = True,
    binarize: bool = False,
    seed: int | None = None,
) -> BoundEstimate:
    r"""Estimates the ELBO of each data point and its two terms, in nats.

    .. math:: \mathcal{L}(x) = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)] -
              \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    Arguments:
        model: The model.
        guide: The guide; None for a model without latent variables, whose ELBO is log p(x).
        x: The data, in any form that ``fit`` takes.
        num_particles: The number of draws for each data point.
        analytic_kl: Whether to take the KL in closed form where that is legal, as the bound
            ``ELBO`` does.
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        A tuple (elbo, reconstruction, kl) with elbo = reconstruction - kl: arrays for arrays,
        tensors for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If data points have no bounds of their own, because a site lies outside the
            plate of the data, or if the guide gives a latent variable a single value.
    """
    num_particles = as_count("num_particles", num_particles)
    bound = ELBO(analytic_kl=analytic_kl)
    return _terms(
        bound, model, guide, x, num_particles, check_points, binarize=binarize, seed=seed
    )


def _terms(
    bound: ELBO,
    model: Program,
    guide: Program | None,
    x: Data,
    num_particles: int,
    check: Callable[[Program, Structure], None] | None,
    **options: Any,
) -> BoundEstimate:
    """Returns the bound of each data point in its terms, if the structure passes a check.

    The options are those of ``map_batches``.
    """
    guide = no_guide if guide is None else guide
    chunks = ParticleChunks(model, guide, num_particles)

    def estimate(*batch: Argument) -> BoundEstimate:
        if check is not None:
            check(guide, chunks.structure(batch))
        terms = sum_of(
            bound.terms_per_point(
                model, guide, batch, num_particles=count, structure=structure
            )
            for count, structure in chunks(batch)
        )
        likelihood, kl = terms / chunks.count(batch)
        return BoundEstimate(likelihood - kl, likelihood, kl)

    return map_batches(estimate, (model, guide), x, check=True, **options)


def reconstruction(
    model: Program,
    guide: Program | None,
    x: Data,
    *,
    num_particles: int = 1,
    binarize: bool = False,
    seed: int | None = None,
) -> Array:
    r"""Estimates the reconstruction term of each data point's ELBO, in nats.

    .. math:: \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)]

    It measures how well the code preserves a data point. It is not a likelihood: without the
    KL term the information in the code costs nothing, and it usually exceeds log p(x) by far.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes: ``(x, y)`` for a
            ``ConditionalVAE``.
        num_particles: The number of draws for each data point.
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        One number for each data point: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If data points have no bounds of their own, because a site lies outside the
            plate of the data.
    """
    num_particles = as_count("num_particles", num_particles)
    return _terms(
        ELBO(), model, guide, x, num_particles, None, binarize=binarize, seed=seed
    ).reconstruction
