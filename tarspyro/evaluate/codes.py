"""Codes of data points, and what the model makes of codes: the data of pictures."""

__all__ = ["active_units", "decode", "embed", "reconstruct", "sample"]

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.batches import as_float
from tarspyro.conditional import distribution_mean
from tarspyro.evaluate.batching import by_batch, seeded
from tarspyro.infer.traces import PairError, Program, name_of, sample_sites, trace_pair
from tarspyro.modules import evaluating, local_parameters, preserved_rng


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
            return by_batch(posterior, guide, guide, x)
    codes = by_batch(posterior, guide, guide, x)
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

    return by_batch(mean, model, guide, x)


def decode(
    model: Program, z: Any, *, given: Mapping[str, Any] | None = None, latent: str = "z", site: str = "x"
) -> Any:
    """Returns the mean of the likelihood given values of the latent variable.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        z: Values of the latent variable, with shape ``(N, *event)``.
        given: What else the model needs, by the names of its arguments: ``{"y": y}`` for a ``ConditionalVAE``, with a
            row for each code, or one row for all.
        latent: The name of the latent variable.
        site: The observed site to decode.

    Raises:
        PairError: If the model does not generate.
        ValueError: If something given has another number of rows.
    """

    def mean(values: Tensor, *rows: Tensor) -> Tensor:
        conditioned = poutine.trace(poutine.condition(model, {latent: values}))
        trace = conditioned.get_trace(batch_size=len(values), **dict(zip(others, rows, strict=True)))
        return distribution_mean(trace.nodes[site]["fn"])

    _check_generates(model)
    others = _rows(given, len(z))
    with preserved_rng():  # the model draws what it is not asked for
        return by_batch(mean, None, model, z, beside=list(others.values()))


def sample(
    model: Program,
    num_samples: int,
    *,
    given: Mapping[str, Any] | None = None,
    site: str = "x",
    mean: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Generates from the model, by ancestral sampling.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        num_samples: How many to generate.
        given: What else the model needs, by the names of its arguments: ``{"y": y}`` for a ``ConditionalVAE``, with a
            row for each sample, or one row for all.
        site: The site to return.
        mean: Return the mean of the site's distribution in place of a draw from it: what papers show of Bernoulli
            likelihoods.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Raises:
        PairError: If the model does not generate, or has no prior that can be drawn from.
        ValueError: If something given has another number of rows.
    """
    _check_generates(model)
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    device = None if parameter is None else parameter.device
    others = {name: value.to(device) for name, value in _rows(given, num_samples).items()}
    with seeded(seed), pyro.validation_enabled(False), evaluating(model), local_parameters():
        try:
            node: Any = poutine.trace(model).get_trace(batch_size=num_samples, **others).nodes[site]
        except NotImplementedError:
            raise PairError(f"{name_of(model)} has no prior that can be drawn from: decode codes instead.") from None
    value: Tensor = distribution_mean(node["fn"]) if mean else node["value"]
    return value


def _rows(given: Mapping[str, Any] | None, count: int) -> dict[str, Tensor]:
    """What is given, with so many rows."""
    rows = {name: as_float(torch.as_tensor(value)) for name, value in (given or {}).items()}
    for name, value in rows.items():
        if len(value) not in (1, count):
            raise ValueError(f"given[{name!r}] must have {count} rows or one row for all, got {len(value)}.")
    return {name: value.expand(count, *value.shape[1:]) for name, value in rows.items()}


def _check_generates(model: Program) -> None:
    function = model.forward if isinstance(model, nn.Module) else model
    if "batch_size" not in inspect.signature(function).parameters:
        raise PairError(
            f"{name_of(model)} cannot generate without data: give it an argument batch_size, as models.VAE has."
        )
