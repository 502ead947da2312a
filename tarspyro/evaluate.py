"""What a trained pair is worth: log-likelihoods, the bound in its terms, active units, codes and pictures' data."""

__all__ = ["Bound", "active_units", "decode", "elbo", "embed", "log_likelihood", "reconstruct", "sample"]

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.batches import as_arguments, binarized
from tarspyro.checks import check_binarizable, check_inputs
from tarspyro.conditional import distribution_mean
from tarspyro.infer.elbo import ELBO
from tarspyro.infer.traces import (
    PairError,
    guess_plate_nesting,
    log_weights,
    name_of,
    sample_sites,
    trace_pair,
)
from tarspyro.modules import evaluating, local_parameters, preserved_rng

# How many rows (data points times particles) are in memory at once.
_ROWS = 10_000

Program = Callable[..., Any]


class Bound(NamedTuple):
    """The ELBO and its two terms, in nats, one number for each data point."""

    elbo: Any
    reconstruction: Any
    kl: Any


def log_likelihood(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 1000,
    binarize: bool = False,
    seed: int | None = None,
) -> Any:
    r"""Estimates the log-likelihood of each data point by importance sampling, in nats.

    .. math:: \log p(x_n) \approx \log \frac{1}{K} \sum_{k=1}^K \frac{p(x_n, z_{nk})}{q(z_{nk} \mid x_n)},
              \qquad z_{nk} \sim q(z \mid x_n)

    In expectation a lower bound that grows with K (Burda et al. 2015, arXiv:1509.00519, eq. 8). Computed in chunks,
    so that memory does not grow with the number of particles, in evaluation mode and without gradients.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        num_particles: K, the number of draws for each data point.
        binarize: Whether to draw black and white pixels, once, with the grey values as probabilities.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Returns:
        One number for each data point: an array for arrays, a tensor for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a site outside the data's plate leaves data points without weights of their own.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the exact posterior: no noise at all
        >>> log_likelihood(model, guide, np.array([0.0, 2.0]), num_particles=10).round(4)
        array([-1.2655, -2.2655], dtype=float32)
    """

    def weights(arguments: tuple[Tensor, ...], count: int, nesting: int) -> Tensor:
        return log_weights(model, guide, *arguments, num_particles=count, plate_nesting=nesting).logsumexp(0)

    total = _over_particles(weights, torch.logaddexp, model, guide, num_particles)
    return _by_batch(
        lambda *a: total(*a) - math.log(num_particles), model, guide, x, binarize=binarize, seed=seed, check=True
    )


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
        analytic_kl: Whether to take the KL in closed form where that is legal, as the bound ``ELBO`` does.
        binarize: Whether to draw black and white pixels, once, with the grey values as probabilities.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Returns:
        A tuple (elbo, reconstruction, kl) with elbo = reconstruction - kl: arrays for arrays, tensors for tensors.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a site outside the data's plate leaves data points without a bound of their own.
    """
    bound = ELBO(analytic_kl=analytic_kl)

    def terms(arguments: tuple[Tensor, ...], count: int, nesting: int) -> Tensor:
        return bound.terms_per_point(model, guide, arguments, num_particles=count, plate_nesting=nesting)

    total = _over_particles(terms, torch.add, model, guide, num_particles)
    both = _by_batch(
        lambda *a: (total(*a) / num_particles).movedim(0, -1), model, guide, x, binarize=binarize, seed=seed, check=True
    )
    return Bound(both[..., 0] - both[..., 1], both[..., 0], both[..., 1])


def embed(guide: Program, x: Any, *, site: str | None = None, num_samples: int | None = None) -> Any:
    """Returns the posterior mean of each data point: never a draw, unless asked for.

    In evaluation mode and without gradients.

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        site: Which latent variable; not needed if there is one.
        num_samples: Return so many draws from the posterior in place of its mean.

    Returns:
        Shape ``(N, *event)``, or ``(num_samples, N, *event)``: an array for arrays, a tensor for tensors.

    Raises:
        NotImplementedError: If the family has no mean in closed form.
        ValueError: If there are several latent variables and ``site`` names none of them.
    """

    def posterior(*arguments: Tensor) -> Tensor:
        trace = poutine.trace(guide).get_trace(*arguments)
        latent = {name: node for name, node in sample_sites(trace) if not node["is_observed"]}
        chosen = site if site is not None else (next(iter(latent)) if len(latent) == 1 else None)
        if chosen not in latent:
            raise ValueError(f"site must be one of {sorted(latent)}, got {site!r}.")
        distribution = latent[chosen]["fn"]
        if num_samples is None:
            return distribution_mean(distribution)
        return distribution.sample((num_samples,)).movedim(0, 1)

    if num_samples is None:
        with preserved_rng():  # the guide draws on its way to the mean
            return _by_batch(posterior, guide, guide, x)
    codes = _by_batch(posterior, guide, guide, x)
    return np.moveaxis(codes, 1, 0) if isinstance(codes, np.ndarray) else codes.movedim(1, 0)


def active_units(guide: Program, x: Any, *, site: str | None = None, threshold: float = 0.01) -> Any:
    r"""Returns which latent units the guide uses.

    .. math:: \mathrm{active}_u \iff \mathrm{Var}_x\big(\mathbb{E}_{q(u \mid x)}[u]\big) > 0.01

    (Burda et al. 2015, section 2.) Their number is ``active_units(...).sum()``.

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        site: Which latent variable; not needed if there is one.
        threshold: The variance above which a unit is active.

    Returns:
        Booleans of the latent variable's event shape: an array for arrays, a tensor for tensors.
    """
    codes = embed(guide, x, site=site)
    return codes.var(0) > threshold


def reconstruct(model: Program, guide: Program, x: Any, *, site: str = "x") -> Any:
    """Returns the mean of the likelihood at a draw of the posterior, for each data point.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        site: The observed site to reconstruct.
    """

    def mean(*arguments: Tensor) -> Tensor:
        model_trace, _ = trace_pair(model, guide, arguments, {})
        return distribution_mean(model_trace.nodes[site]["fn"])

    return _by_batch(mean, model, guide, x)


def decode(model: Program, z: Any, *, latent: str = "z", site: str = "x") -> Any:
    """Returns the mean of the likelihood given values of the latent variable.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        z: Values of the latent variable, with shape ``(N, *event)``.
        latent: The name of the latent variable.
        site: The observed site to decode.
    """

    def mean(values: Tensor) -> Tensor:
        conditioned = poutine.condition(model, {latent: values})
        return distribution_mean(poutine.trace(conditioned).get_trace(batch_size=len(values)).nodes[site]["fn"])

    _check_generates(model)
    with preserved_rng():  # the model draws what it is not asked for
        return _by_batch(mean, None, model, z)


def sample(model: Program, num_samples: int, *, site: str = "x", mean: bool = False, seed: int | None = None) -> Tensor:
    """Generates from the model, by ancestral sampling.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        num_samples: How many to generate.
        site: The site to return.
        mean: Return the mean of the site's distribution in place of a draw from it: what papers show of Bernoulli
            likelihoods.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Raises:
        PairError: If the model does not generate, or has no prior that can be drawn from.
    """
    _check_generates(model)
    with _seeded(seed), pyro.validation_enabled(False), evaluating(model), local_parameters():
        try:
            node: Any = poutine.trace(model).get_trace(batch_size=num_samples).nodes[site]
        except NotImplementedError:
            raise PairError(f"{name_of(model)} has no prior that can be drawn from: decode codes instead.") from None
    value: Tensor = distribution_mean(node["fn"]) if mean else node["value"]
    return value


def _over_particles(
    function: Callable[[tuple[Tensor, ...], int, int], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
    model: Program,
    guide: Program,
    num_particles: int,
) -> Callable[..., Tensor]:
    """Returns what combines a function of a batch over chunks of particles, so that memory does not grow with them."""
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}.")
    nesting: int | None = None

    def estimate(*arguments: Tensor) -> Tensor:
        nonlocal nesting
        nesting = guess_plate_nesting(model, guide, arguments, {}) if nesting is None else nesting
        chunk = max(1, _ROWS // len(arguments[0]))
        counts = (min(chunk, num_particles - start) for start in range(0, num_particles, chunk))
        depth = nesting
        return functools.reduce(combine, (function(arguments, count, depth) for count in counts))

    return estimate


def _check_generates(model: Program) -> None:
    function = model.forward if isinstance(model, nn.Module) else model
    if "batch_size" not in inspect.signature(function).parameters:
        raise PairError(
            f"{name_of(model)} cannot generate without data: give it an argument batch_size, as models.VAE has."
        )


def _by_batch(
    function: Callable[..., Tensor],
    program: Program | None,
    like: Program,
    x: Any,
    *,
    binarize: bool = False,
    seed: int | None = None,
    check: bool = False,
    batch_size: int = 100,
) -> Any:
    """Applies the function to batches on the device of ``like``; gives arrays for arrays, tensors on their device.

    With ``check`` the data is compared with the likelihood of ``program`` first, as ``fit`` does.
    """
    arguments = (torch.as_tensor(x, dtype=torch.get_default_dtype()),) if program is None else as_arguments(x, program)
    if arguments is None:
        raise ValueError("x must be in memory: tensors, arrays, a mapping of them or a Split.")
    if binarize:
        check_binarizable(arguments[0])
    parameter = next(like.parameters(), None) if isinstance(like, nn.Module) else None
    device = arguments[0].device if parameter is None else parameter.device
    results: list[Tensor] = []
    with _seeded(seed), pyro.validation_enabled(False), evaluating(program, like), local_parameters():
        # The same seed gives the same pixels for every pair, however much randomness a pair itself consumes.
        pixels = torch.Generator(device).manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        for batch in _split(arguments, batch_size):
            moved = [part.to(device) for part in batch]
            if binarize:
                moved[0] = binarized(moved[0], pixels)
            if check and program is not None and not results:
                check_inputs(program, like, moved, None if binarize else [part.to(device) for part in arguments])
            results.append(function(*moved).to(arguments[0].device))
    result = torch.cat(results)
    return result.numpy() if _is_array(x) else result


def _split(arguments: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(part.split(size) for part in arguments), strict=True)


def _seeded(seed: int | None) -> Any:
    return contextlib.nullcontext() if seed is None else preserved_rng(seed)


def _is_array(x: Any) -> bool:
    if isinstance(x, dict):
        x = tuple(x.values())
    return isinstance(x[0] if isinstance(x, (tuple, list)) else x, np.ndarray)
