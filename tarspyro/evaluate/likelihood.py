"""Log-likelihoods by importance sampling, and the bound in its terms."""

__all__ = [
    "Bound",
    "LogLikelihood",
    "conditional_log_likelihood",
    "elbo",
    "from_moments",
    "from_weights",
    "given_by",
    "log_likelihood",
    "moments_of",
    "reconstruction",
]

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.evaluate.batching import by_batch, over_particles
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.pairs import log_weights
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import PairError, name_of, sample_sites, trace_pair
from tarspyro.inputs import as_arguments, each
from tarspyro.scopes import preserved_rng
from tarspyro.types import Program


class Bound(NamedTuple):
    """The ELBO and its two terms, in nats, one number for each data point."""

    elbo: Any
    reconstruction: Any
    kl: Any


class LogLikelihood(NamedTuple):
    """An estimate of log p(x), in nats, and how far to trust it; one number for each data
    point.
    """

    log_likelihood: Any
    standard_error: Any
    effective_sample_size: Any


def given_by(joint: LogLikelihood, condition: LogLikelihood) -> LogLikelihood:
    """Returns log p(a | b) = log p(a, b) - log p(b) of two independent estimates: their errors
    add up.
    """
    smaller: Any = torch.minimum if torch.is_tensor(joint.log_likelihood) else np.minimum
    return LogLikelihood(
        joint.log_likelihood - condition.log_likelihood,
        (joint.standard_error**2 + condition.standard_error**2) ** 0.5,
        smaller(joint.effective_sample_size, condition.effective_sample_size),
    )


def log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 1000,
    errors: bool = False,
    binarize: bool = False,
    seed: int | None = None,
) -> Any:
    r"""Estimates the log-likelihood of each data point by importance sampling, in nats.

    .. math:: \log p(x_n) \approx \log \frac{1}{K} \sum_{k=1}^K w_{nk}, \qquad
              w_{nk} = \frac{p(x_n, z_{nk})}{q(z_{nk} \mid x_n)}, \qquad z_{nk} \sim q(z \mid
              x_n)

    In expectation a lower bound that grows with K (Burda et al. 2015, arXiv:1509.00519, eq.
    8). Computed in chunks, so that memory does not grow with the number of particles, in
    evaluation mode and without gradients.

    With ``errors``, also the effective sample size (Kong 1992) and the standard error that
    follows from it by the delta method,

    .. math:: \mathrm{ESS}_n = \frac{(\sum_k w_{nk})^2}{\sum_k w_{nk}^2}, \qquad
              \sigma_n = \sqrt{1 / \mathrm{ESS}_n - 1 / K}

    Both are themselves estimates, from the weights that were drawn: where the guide misses a
    mode, neither shows it.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        num_particles: K, the number of draws for each data point.
        errors: Whether to return a tuple (log_likelihood, standard_error,
            effective_sample_size).
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a site outside the data's plate leaves data points without weights of
            their own.
        ValueError: If there are too few particles.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the exact posterior: no noise at all
        >>> log_likelihood(model, guide, np.array([0.0, 2.0]), num_particles=10).round(4)
        array([-1.2655, -2.2655])
        >>> log_likelihood(model, guide, np.array([0.0]), num_particles=10, errors=True).effective_sample_size.round(2)
        array([10.])
    """

    def weights(arguments: tuple[Tensor, ...], count: int, structure: Structure) -> Tensor:
        return log_weights(model, guide, *arguments, num_particles=count, structure=structure)

    return from_weights(
        weights, model, guide, x, num_particles, errors=errors, binarize=binarize, seed=seed
    )


def conditional_log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    y: Any,
    *,
    num_particles: int = 1000,
    errors: bool = False,
    binarize: bool = False,
    seed: int | None = None,
) -> Any:
    r"""Estimates log p(x | y) of each data point by importance sampling, in nats:
    ``log_likelihood`` given y.

    .. math:: \log p(x_n \mid y_n) \approx \log \frac{1}{K} \sum_{k=1}^K
              \frac{p(x_n, z_{nk} \mid y_n)}{q(z_{nk} \mid x_n, y_n)}, \qquad z_{nk} \sim q(z
              \mid x, y)

    (Sohn et al. 2015, section 4.1, "importance sampling".) The model is one of x given y, as
    ``ConditionalVAE`` is. A guide that draws from the prior p(z | y) gives the paper's Monte
    Carlo estimate, whose noise is larger.

    Arguments:
        model: The model, called with x and y.
        guide: The guide, likewise.
        x: The data, one row a data point.
        y: The condition, likewise.
        num_particles: K, the number of draws for each data point.
        errors: See ``log_likelihood``.
        binarize: Whether to draw black and white pixels of x, once, with the grey values as
            probabilities.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        One number for each data point, or three: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the model observes y, so that its weights are those of p(x, y).
        ValueError: If there are too few particles.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x, y):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(y, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x, y):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))  # the exact posterior: no noise at all
        >>> x, y = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])
        >>> conditional_log_likelihood(model, guide, x, y, num_particles=10)
        tensor([-1.5155, -1.2655])
        >>> dist.Normal(y, 2.0**0.5).log_prob(x)
        tensor([-1.5155, -1.2655])
    """

    def given(*arguments: Tensor) -> Tensor:
        for name, site in sample_sites(trace_pair(model, guide, arguments, {})[0]):
            if site["value"] is arguments[1]:
                raise PairError(
                    f"{name_of(model)} observes y at the site {name!r}, so that its weights"
                    " are those of p(x, y): take log_likelihood, and subtract log p(y)."
                )
        return arguments[0]

    arguments = as_arguments((x, y), model)
    if arguments is None:
        raise ValueError("x and y must be in memory: tensors or arrays.")
    with preserved_rng():
        by_batch(
            given, model, guide, each(lambda part: part[:1], arguments), check=not binarize
        )
    return log_likelihood(
        model,
        guide,
        (x, y),
        num_particles=num_particles,
        errors=errors,
        binarize=binarize,
        seed=seed,
    )


def from_weights(
    weights: Callable[[tuple[Tensor, ...], int, Structure], Tensor],
    model: Program,
    guide: Program,
    x: Any,
    num_particles: int,
    *,
    errors: bool,
    binarize: bool,
    seed: int | None,
) -> Any:
    """Estimates log p(x) by the mean of weights of which log w, one row a particle, is a
    function of a batch.
    """
    if as_count("num_particles", num_particles) < 2 and errors:
        raise ValueError(
            f"errors=True needs at least 2 particles or chains, got {num_particles}."
        )

    def moments(arguments: tuple[Tensor, ...], count: int, structure: Structure) -> Tensor:
        return moments_of(weights(arguments, count, structure))

    total = over_particles(moments, torch.logaddexp, model, guide, num_particles)

    def estimates(*arguments: Tensor) -> Tensor:
        return from_moments(total(*arguments), num_particles)

    columns = by_batch(estimates, model, guide, x, binarize=binarize, seed=seed, check=True)
    result = LogLikelihood(columns[..., 0], columns[..., 1], columns[..., 2])
    return result if errors else result.log_likelihood


def moments_of(log_w: Tensor) -> Tensor:
    """Returns the logarithms of the sums of weights and of their squares over the first
    dimension, in a last one.
    """
    return torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)], -1)


def from_moments(moments: Tensor, num_particles: int) -> Tensor:
    """Returns the three columns of a ``LogLikelihood``, in a last dimension, for
    ``moments_of`` so many weights.
    """
    log_sum, log_sum_of_squares = moments.unbind(-1)
    effective = (2 * log_sum - log_sum_of_squares).exp()
    # Rounding takes equal weights below zero.
    error = (1 / effective - 1 / num_particles).clamp(min=0).sqrt()
    return torch.stack([log_sum - math.log(num_particles), error, effective], -1)


def elbo(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 1,
    analytic_kl: bool = True,
    binarize: bool = False,
    seed: int | None = None,
) -> Bound:
    """Estimates the ELBO of each data point and its two terms, in nats.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        num_particles: The number of draws for each data point.
        analytic_kl: Whether to take the KL in closed form where that is legal, as the bound
            ``ELBO`` does.
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        A tuple (elbo, reconstruction, kl) with elbo = reconstruction - kl: arrays for arrays,
        tensors for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a site outside the data's plate leaves data points without a bound of
            their own.
    """
    bound = ELBO(analytic_kl=analytic_kl)

    def terms(arguments: tuple[Tensor, ...], count: int, structure: Structure) -> Tensor:
        return bound.terms_per_point(
            model, guide, arguments, num_particles=count, structure=structure
        )

    total = over_particles(terms, torch.add, model, guide, num_particles)
    both = by_batch(
        lambda *a: (total(*a) / num_particles).movedim(0, -1),
        model,
        guide,
        x,
        binarize=binarize,
        seed=seed,
        check=True,
    )
    return Bound(both[..., 0] - both[..., 1], both[..., 0], both[..., 1])


def reconstruction(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 1,
    binarize: bool = False,
    seed: int | None = None,
) -> Any:
    r"""Estimates the reconstruction term of each data point's ELBO, in nats.

    .. math:: \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)]

    It says how well the code keeps a data point, and is no likelihood: without the KL term it
    pays nothing for the information in the code, and mostly exceeds log p(x) by far.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory: ``(x, y)`` for a
            ``ConditionalVAE``.
        num_particles: The number of draws for each data point.
        binarize: Whether to draw black and white pixels, once, with the grey values as
            probabilities.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        One number for each data point: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a site outside the data's plate leaves data points without a bound of
            their own.
    """
    return elbo(
        model, guide, x, num_particles=num_particles, binarize=binarize, seed=seed
    ).reconstruction
