"""The true posterior of single data points, and how far the guide is from it."""

__all__ = ["Estimate", "PosteriorKL", "posterior_kl", "true_posterior"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.evaluate.batching import by_batch, over_particles, seeded
from tarspyro.evaluate.densities import latent_sites, log_densities, one_dim
from tarspyro.evaluate.likelihood import LogLikelihood
from tarspyro.evaluate.likelihood import log_likelihood as importance_sampled
from tarspyro.infer.pairs import log_weights
from tarspyro.infer.structure import Structure
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
from tarspyro.types import Program

_STARTS = 1000  # draws of the prior


class Estimate(NamedTuple):
    """An estimate and its standard error, one number for each data point."""

    value: Any
    standard_error: Any


class PosteriorKL(NamedTuple):
    """The two divergences between the guide and the true posterior, in nats, as estimates for
    each data point.
    """

    guide_to_posterior: Estimate  # KL(q(z | x) || p(z | x)), which is log p(x) - ELBO
    posterior_to_guide: Estimate  # KL(p(z | x) || q(z | x))


def true_posterior(
    model: Program,
    x: Any,
    *,
    num_samples: int = 1000,
    warmup: int = 500,
    num_chains: int = 1,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Draws from the true posterior p(z | x) of each data point, by Pyro's No-U-Turn sampler.

    Each data point has chains of its own, one after another: for a few data points. The
    model's parameters stay as they are. (Hoffman and Gelman 2014, arXiv:1111.4246.)

    A chain starts with one of a thousand draws of the prior, chosen in proportion to their
    likelihoods. It may stay in the mode where it started: several chains show whether there
    are others.

    Arguments:
        model: The model. Its latent variables are continuous and in the data's plate.
        x: A few data points, in any form that ``fit`` takes in memory.
        num_samples: The number of draws of a chain.
        warmup: The number of draws before, which adapt the sampler and are thrown away.
        num_chains: The number of chains, each from a start of its own.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.
        progress: Whether to show Pyro's progress bars.

    Returns:
        For each latent site draws with shape ``(N, num_chains * num_samples, *event)``, chain
        after chain: arrays for arrays, tensors for tensors. The draws of a chain are
        correlated.

    Raises:
        PairError: If a latent site is not continuous or not in the data's plate, or the prior
            cannot be drawn from.
        ValueError: If a number is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> true_posterior(model, torch.tensor([0.0, 2.0]), num_samples=5, warmup=5, seed=0)["z"].shape
        torch.Size([2, 5])
    """
    for name, number, least in (
        ("num_samples", num_samples, 1),
        ("num_chains", num_chains, 1),
        ("warmup", warmup, 0),
    ):
        as_count(name, number, least)

    def draws(*arguments: Tensor) -> dict[str, Tensor]:
        try:
            trace = poutine.trace(model).get_trace(*arguments)
        except NotImplementedError:
            raise PairError(
                f"{name_of(model)} has no prior that can be drawn from, where chains start."
            ) from None
        latent, plates = latent_sites(model, trace)
        data_dim = one_dim(model, plates)
        chains = []
        for start in _starts(model, arguments, latent, num_chains):
            sampler = MCMC(
                NUTS(model, init_strategy=init_to_value(values=start)),
                num_samples,
                warmup_steps=warmup,
                disable_progbar=not progress,
            )
            with torch.enable_grad():
                sampler.run(*arguments)
            chains.append(sampler.get_samples())
        return {
            name: (
                torch.cat([chain[name] for chain in chains]).movedim(
                    data_dim - site["fn"].event_dim, 0
                )
            )
            for name, site in latent.items()
        }

    result: dict[str, Any] = by_batch(draws, model, model, x, seed=seed, batch_size=1)
    return result


def posterior_kl(
    model: Program,
    guide: Program,
    x: Any,
    draws: Mapping[str, Any],
    *,
    num_particles: int = 1000,
    log_likelihood: LogLikelihood | None = None,
    seed: int | None = None,
) -> PosteriorKL:
    r"""Estimates how far the guide is from the true posterior of each data point, in both
    directions, in nats.

    .. math:: \mathrm{KL}(q \,\|\, p) &= \log p(x) - \mathbb{E}_{q(z \mid x)}[\log w], \qquad
              w = \frac{p(x, z)}{q(z \mid x)} \\
              \mathrm{KL}(p \,\|\, q) &= \mathbb{E}_{p(z \mid x)}[\log w] - \log p(x)

    The first expectation is over draws of the guide, the second over draws of the true
    posterior, whose standard error counts by their effective sample size. A guide that misses
    a mode has a small first and a large second one.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data points, as ``true_posterior`` got them.
        draws: What ``true_posterior`` returned.
        num_particles: The number of draws of the guide, for each data point.
        log_likelihood: log p(x) with its standard errors, such as what
            ``annealed_log_likelihood(..., errors=True)`` returned; if not given, by importance
            sampling with as many draws.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        A tuple (guide_to_posterior, posterior_to_guide) of tuples (value, standard_error):
        arrays for arrays, tensors for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If the halves differ in their latent sites, or one is not continuous or not
            in the data's plate.
        TypeError: If ``log_likelihood`` has no standard errors.
        ValueError: If there are too few particles.

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
        >>> bool((posterior_kl(model, guide, x, draws, seed=0).posterior_to_guide.value.abs() < 1e-5).all())
        True
    """
    num_particles = as_count("num_particles", num_particles, 2)  # for a standard error
    if not isinstance(log_likelihood, LogLikelihood | None):
        raise TypeError(
            "log_likelihood must come with its standard errors: give what errors=True"
            " returned."
        )

    def moments(arguments: tuple[Tensor, ...], count: int, structure: Structure) -> Tensor:
        log_w = log_weights(
            model, guide, *arguments, num_particles=count, structure=structure
        ).double()
        return torch.stack([log_w.sum(0), log_w.square().sum(0)], -1)

    with seeded(seed):
        if log_likelihood is None:
            log_likelihood = importance_sampled(
                model, guide, x, num_particles=num_particles, errors=True
            )
        total = over_particles(moments, torch.add, model, guide, num_particles)
        sums = by_batch(total, model, guide, x, check=True) / num_particles
    bound, variance = sums[..., 0], sums[..., 1] - sums[..., 0] ** 2
    at = log_densities(model, guide, x, draws)
    log_w = torch.as_tensor(at.model - at.guide)
    # Constant weights have no autocorrelation to estimate, and no error either.
    effective = effective_sample_size(log_w.T[None]).nan_to_num(log_w.shape[1])
    mean, error = (
        value.numpy() if isinstance(at.model, np.ndarray) else value
        for value in (log_w.mean(1), (log_w.var(1) / effective).sqrt())
    )
    log_p, log_p_variance = log_likelihood[0], log_likelihood[1] ** 2
    return PosteriorKL(
        Estimate(
            log_p - bound, (log_p_variance + variance.clip(min=0) / num_particles) ** 0.5
        ),
        Estimate(mean - log_p, (log_p_variance + error**2) ** 0.5),
    )


def _starts(
    model: Program, arguments: tuple[Tensor, ...], latent: Mapping[str, Site], count: int
) -> list[dict[str, Tensor]]:
    """Returns draws of the prior, chosen in proportion to their likelihoods."""
    with preserved_rng():
        nesting = nesting_of(poutine.trace(model).get_trace(*arguments))
    trace = poutine.trace(particle_plate(model, _STARTS, nesting)).get_trace(*arguments)
    sites = dict(sample_sites(trace))
    observed = [
        scale_and_mask(log_prob(site), mask=site["mask"])
        for name, site in sites.items()
        if name not in latent
    ]
    log_likelihood = sum_of(reduce_to(value, [-nesting - 1]) for value in observed).flatten()
    chosen = torch.multinomial(log_likelihood.softmax(0), count, replacement=True)
    values = {name: sites[name]["value"][chosen] for name in latent}
    return [
        {
            name: value[index].reshape(latent[name]["value"].shape)
            for name, value in values.items()
        }
        for index in range(count)
    ]
