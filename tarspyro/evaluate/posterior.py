"""Draws from the true posterior of single data points, and the guide's KL to it."""

__all__ = ["Estimate", "PosteriorKL", "mean_of", "posterior_kl", "true_posterior"]

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from tarspyro.arguments import as_count, format_fields, format_value
from tarspyro.evaluate.batching import Array, ParticleChunks, map_batches, seeded
from tarspyro.evaluate.densities import LogDensities, latent_sites, log_densities, one_dim
from tarspyro.evaluate.likelihood import LogLikelihood
from tarspyro.evaluate.likelihood import log_likelihood as importance_sampled
from tarspyro.evaluate.unconstrained import check_supports, to_support
from tarspyro.infer.pairs import log_weights
from tarspyro.infer.traces import (
    PairError,
    Site,
    log_prob,
    name_of,
    nesting_of,
    particle_plate,
    reduce_to,
    sample_sites,
    sum_of,
)
from tarspyro.scopes import preserved_rng
from tarspyro.types import Argument, Arguments, ArrayLike, Data, Program

# The number of draws of the prior among which a chain chooses its start.
_STARTS = 1000


class Estimate(NamedTuple):
    """An estimate and its standard error, a number for each data point."""

    value: Array
    standard_error: Array

    def __repr__(self) -> str:
        return format_fields("Estimate", self._asdict())


def mean_of(values: Tensor) -> Estimate:
    """Returns the mean over data points with its standard error."""
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


class PosteriorKL(NamedTuple):
    """Estimates of the KL between the guide and the true posterior in both directions, in nats.

    ``guide_to_posterior`` is KL(q(z | x) || p(z | x)), which equals log p(x) - ELBO, and
    ``posterior_to_guide`` is KL(p(z | x) || q(z | x)).
    """

    guide_to_posterior: Estimate
    posterior_to_guide: Estimate

    def __repr__(self) -> str:
        return format_fields("PosteriorKL", self._asdict())


def true_posterior(
    model: Program,
    x: Data,
    *,
    num_samples: int = 1000,
    warmup: int = 500,
    num_chains: int = 1,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Array]:
    """Draws from the true posterior p(z | x) of each data point, by Pyro's No-U-Turn sampler.

    (Hoffman and Gelman 2014, arXiv:1111.4246.) Each data point has its own chains, which run
    one after another: this is for a few data points. The model's parameters stay as they are.

    A chain starts at one of a thousand draws of the prior, chosen in proportion to their
    likelihoods. It may stay in the mode where it started: several chains show whether there
    are others.

    Arguments:
        model: The model. Its latent variables are continuous and in the data's plate.
        x: A few data points, in any form that ``fit`` takes.
        num_samples: The number of draws of a chain.
        warmup: The number of first draws, which adapt the sampler and are discarded.
        num_chains: The number of chains of a data point.
        seed: The seed of the draws; the global random state then stays unchanged.
        progress: Whether to show Pyro's progress bars.

    Returns:
        For each latent site draws with shape ``(N, num_chains * num_samples, *event)``, chain
        after chain: arrays for arrays, tensors for tensors. The draws of a chain are
        correlated.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a latent site is not continuous, has half precision or lies outside the
            plate of the data, or if the prior cannot be drawn from.
        ValueError: If a number is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> x = torch.tensor([0.0, 2.0])
        >>> true_posterior(model, x, num_samples=5, warmup=5, seed=0)["z"].shape
        torch.Size([2, 5])
    """
    num_samples = as_count("num_samples", num_samples)
    num_chains = as_count("num_chains", num_chains)
    warmup = as_count("warmup", warmup, 0)

    def draws(*row: Argument) -> dict[str, Array]:
        try:
            trace = poutine.trace(model).get_trace(*row)
        except NotImplementedError:
            raise PairError(
                f"{name_of(model)} has no prior that can be drawn from, which chains start"
                " from: give it a proper prior."
            ) from None
        latent, plates = latent_sites(model, trace)
        with preserved_rng():
            again = sample_sites(poutine.trace(model).get_trace(*row))
        check_supports(latent, dict(again))
        # Pyro's transforms go from the support to unconstrained numbers.
        transforms = {name: to_support(name, site["fn"]).inv for name, site in latent.items()}
        for name, site in latent.items():
            _check_precision(name, site["value"].dtype)
        data_dim = one_dim(model, plates)

        chains = []
        for start in _starts(model, row, latent, num_chains):
            sampler = MCMC(
                NUTS(
                    model,
                    transforms=dict(transforms),
                    init_strategy=init_to_value(values=start),
                ),
                num_samples,
                warmup_steps=warmup,
                disable_progbar=not progress,
            )
            with torch.enable_grad():
                sampler.run(*row)
            chains.append(sampler.get_samples())

        joined = {name: torch.cat([chain[name] for chain in chains]) for name in latent}
        return {
            name: joined[name].movedim(data_dim - site["fn"].event_dim, 0)
            for name, site in latent.items()
        }

    return map_batches(draws, [model], x, seed=seed, check=True, batch_size=1)


def posterior_kl(
    model: Program,
    guide: Program,
    x: Data,
    draws: Mapping[str, ArrayLike],
    *,
    num_particles: int = 1000,
    log_likelihood: LogLikelihood | None = None,
    seed: int | None = None,
) -> PosteriorKL:
    r"""Estimates the KL between the guide and the true posterior, in both directions, in nats.

    .. math:: \mathrm{KL}(q \,\|\, p) &= \log p(x) - \mathbb{E}_{q(z \mid x)}[\log w], \qquad
              w = \frac{p(x, z)}{q(z \mid x)} \\
              \mathrm{KL}(p \,\|\, q) &= \mathbb{E}_{p(z \mid x)}[\log w] - \log p(x)

    The first expectation is over draws of the guide. The second is over draws of the true
    posterior; its standard error takes their effective sample size into account. A guide that
    misses a mode has a small first KL and a large second one.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data points, as given to ``true_posterior``.
        draws: The result of ``true_posterior``.
        num_particles: The number of draws of the guide, for each data point.
        log_likelihood: log p(x) with standard errors, for example the result of
            ``annealed_log_likelihood(..., errors=True)``. If not given, it is estimated by
            importance sampling with as many draws.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        A tuple (guide_to_posterior, posterior_to_guide) of tuples (value, standard_error):
        arrays for arrays, tensors for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the model and the guide differ in their latent sites, or if one of the
            sites is not continuous or lies outside the plate of the data.
        TypeError: If ``log_likelihood`` has no standard errors.
        ValueError: If ``num_particles`` is below 2.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the exact posterior
        >>> x = torch.tensor([0.0, 2.0])
        >>> draws = true_posterior(model, x, num_samples=10, warmup=10, seed=0)
        >>> kl = posterior_kl(model, guide, x, draws, seed=0)
        >>> bool((kl.posterior_to_guide.value.abs() < 1e-5).all())
        True
    """
    num_particles = as_count("num_particles", num_particles, 2)  # for a variance
    if not isinstance(log_likelihood, LogLikelihood | None):
        raise TypeError(
            "log_likelihood must be a LogLikelihood with standard errors, got"
            f" {format_value(log_likelihood)}: give the result of errors=True."
        )
    chunks = ParticleChunks(model, guide, num_particles)

    def elbo(*batch: Argument) -> dict[str, Array]:
        log_w = (
            log_weights(model, guide, *batch, num_particles=count, structure=structure)
            for count, structure in chunks(batch)
        )
        mean, mean_square = sum_of(map(_sums, log_w)) / num_particles
        variance = (mean_square - mean**2).clamp(min=0)
        return {"value": mean, "squared_error": variance / num_particles}

    with seeded(seed):
        if log_likelihood is None:
            log_likelihood = importance_sampled(
                model, guide, x, num_particles=num_particles, errors=True
            )
        bound = map_batches(elbo, (model, guide), x, check=True)
    mean, error = _mean_of_draws(log_densities(model, guide, x, draws))

    log_p, log_p_error, _ = log_likelihood
    return PosteriorKL(
        Estimate(log_p - bound["value"], (log_p_error**2 + bound["squared_error"]) ** 0.5),
        Estimate(mean - log_p, (log_p_error**2 + error**2) ** 0.5),
    )


def _sums(log_w: Tensor) -> Tensor:
    """Returns the sums of the log weights and of their squares, in double precision."""
    log_w = log_w.double()
    return torch.stack([log_w.sum(0), log_w.square().sum(0)])


def _mean_of_draws(at: LogDensities) -> Estimate:
    """Returns the mean log weight over the draws of Markov chains."""
    log_w = torch.as_tensor(at.model - at.guide)
    # The autocorrelation of constant weights is NaN, and their mean has no error.
    effective = effective_sample_size(log_w.T[None]).nan_to_num(log_w.shape[1])
    mean = log_w.mean(1)
    error = (log_w.var(1) / effective).sqrt()
    if isinstance(at.model, np.ndarray):
        return Estimate(mean.numpy(), error.numpy())
    return Estimate(mean, error)


def _check_precision(name: str, dtype: torch.dtype) -> None:
    """Raises for half precision, whose steps are longer than those of a sampler."""
    if dtype in (torch.bfloat16, torch.float16):
        raise PairError(
            f"The sampler takes steps that {dtype} rounds away, and {name!r} has this type:"
            " give a copy of the model in single precision, copy.deepcopy(model).float()."
        )


def _starts(
    model: Program, row: Arguments, latent: Mapping[str, Site], count: int
) -> list[dict[str, Tensor]]:
    """Returns draws of the prior, chosen in proportion to their likelihoods."""
    with preserved_rng():
        nesting = nesting_of(poutine.trace(model).get_trace(*row))
    trace = poutine.trace(particle_plate(model, _STARTS, nesting)).get_trace(*row)
    sites = dict(sample_sites(trace))
    observed = [
        scale_and_mask(log_prob(site), mask=site["mask"])
        for name, site in sites.items()
        if name not in latent
    ]
    log_likelihood = sum_of(reduce_to(value, [-nesting - 1]) for value in observed).flatten()
    chosen = torch.multinomial(log_likelihood.softmax(0), count, replacement=True)
    return [
        {
            name: sites[name]["value"][index].reshape(site["value"].shape)
            for name, site in latent.items()
        }
        for index in chosen
    ]
