"""Codes of data points, and what the model makes of codes: the data of pictures."""

__all__ = ["active_units", "activity", "decode", "embed", "reconstruct", "sample"]

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_numbers, check_choice, check_number, format_value
from tarspyro.conditional import distribution_mean
from tarspyro.evaluate.batching import by_batch, codes_of, seeded
from tarspyro.infer.matching import explaining
from tarspyro.infer.traces import (
    InputError,
    PairError,
    check_program,
    is_factor,
    name_of,
    nesting_of,
    particle_plate,
    sample_sites,
    trace_pair,
)
from tarspyro.inputs import as_float
from tarspyro.scopes import evaluating, local_parameters, preserved_rng
from tarspyro.types import Program

# How many draws of the other latent variables a posterior mean is averaged over.
_DRAWS = 100


def embed(
    guide: Program, x: Any, *, site: str | None = None, num_samples: int | None = None
) -> Any:
    r"""Returns the posterior mean of each data point: never a draw, unless asked for.

    In evaluation mode and without gradients. Where the guide has several latent variables, one
    of them may hang on draws of others, as in a hierarchy; its posterior is then a mixture,
    whose mean is estimated by the average of 100 conditional means, with the same noise every
    time:

    .. math:: \mathbb{E}_{q(z_2 \mid x)}[z_2] \approx \frac{1}{100} \sum_s \mathbb{E}_{q(z_2 \mid z_1^s)}[z_2],
              \qquad z_1^s \sim q(z_1 \mid x)

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        site: Which latent variable; not needed if there is one.
        num_samples: Return so many draws from the posterior in place of its mean.

    Returns:
        Shape ``(N, *event)``, or ``(num_samples, N, *event)``: an array for arrays, a tensor
        for tensors.

    Raises:
        NotImplementedError: If the family has no mean in closed form.
        ValueError: If there are several latent variables and ``site`` names none of them.
    """
    if num_samples is not None:
        num_samples = as_count("num_samples", num_samples)
    if num_samples is None:
        (mean,) = _posterior_means(guide, x, site, _DRAWS, several=False)[0].values()
        return mean

    def draws(*arguments: Tensor) -> Tensor:
        (name,) = _chosen(_latent_sites(guide, arguments), site)
        return _in_many_runs(guide, arguments, num_samples, lambda node: node["value"])[
            name
        ].movedim(0, 1)

    codes = by_batch(draws, guide, guide, x)
    return np.moveaxis(codes, 1, 0) if isinstance(codes, np.ndarray) else codes.movedim(1, 0)


def activity(
    guide: Program, x: Any, *, site: str | None = None, num_particles: int = 100
) -> Any:
    r"""Returns how much the posterior mean of each latent unit moves with the data.

    .. math:: A_u = \mathrm{Var}_x\big(\mathbb{E}_{q(u \mid x)}[u]\big)

    (Burda et al. 2015, arXiv:1509.00519, section 2.) Where u hangs on draws of other latent
    variables, its posterior mean is the average of its conditional means given
    ``num_particles`` draws of them, and the variance that these draws add is taken off, so
    that the estimate is unbiased; of a unit that is not used it may be below zero.

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        site: Which latent variable; all if not given.
        num_particles: How many draws of the other latent variables.

    Returns:
        Numbers of the latent variable's event shape, or for several latent variables a mapping
        from their names, in order, to such: arrays for arrays, tensors for tensors.

    Raises:
        NotImplementedError: If the family has no mean in closed form.
        ValueError: If ``site`` is none of the latent variables, or ``num_particles`` below 2.
    """
    num_particles = as_count("num_particles", num_particles, 2)
    means, errors = _posterior_means(guide, x, site, num_particles, several=True)
    moved = {}
    for name, mean in sorted(means.items()):
        total = mean.var(0, ddof=1) if isinstance(mean, np.ndarray) else mean.var(0)
        moved[name] = total - errors[name].mean(0)
    return moved if len(moved) > 1 else next(iter(moved.values()))


def active_units(
    guide: Program,
    x: Any,
    *,
    site: str | None = None,
    threshold: float = 0.01,
    num_particles: int = 100,
) -> Any:
    r"""Returns which latent units the guide uses.

    .. math:: \mathrm{active}_u \iff \mathrm{Var}_x\big(\mathbb{E}_{q(u \mid x)}[u]\big) > 0.01

    (Burda et al. 2015, section 2.) Their number is ``active_units(...).sum()``.

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        site: Which latent variable; all if not given.
        threshold: The variance above which a unit is active.
        num_particles: See ``activity``.

    Returns:
        Booleans of the latent variable's event shape, or for several latent variables a
        mapping from their names to
        such: arrays for arrays, tensors for tensors.
    """
    check_number("threshold", threshold)
    found = activity(guide, x, site=site, num_particles=num_particles)
    return (
        {n: part > threshold for n, part in found.items()}
        if isinstance(found, dict)
        else found > threshold
    )


def _latent_sites(guide: Program, arguments: tuple[Tensor, ...]) -> dict[str, Any]:
    trace = poutine.trace(guide).get_trace(*arguments)
    observed = sorted(
        name
        for name, node in sample_sites(trace)
        if node["is_observed"] and not is_factor(node)
    )
    if observed:
        raise PairError(
            f"{name_of(guide)} observes {observed}, as a model does: codes are the guide's,"
            " give that."
        )
    return {name: node for name, node in sample_sites(trace) if not node["is_observed"]}


def _check_rows(
    guide: Program, arguments: tuple[Tensor, ...], latent: Mapping[str, Any]
) -> None:
    """Raises if x is one row, whose numbers the plate takes for rows: then all of them have
    the code of the row.
    """
    x, *others = arguments
    if (
        others
        or not torch.is_tensor(x)
        or x.dim() != 1
        or len(x) < 2
        or not x.is_floating_point()
    ):
        return
    codes = {
        name: distribution_mean(node["fn"])
        for name, node in latent.items()
        if _has_mean(node["fn"])
    }
    if not codes or not all(bool((code == code[:1]).all()) for code in codes.values()):
        return
    try:
        with preserved_rng():
            whole = _latent_sites(guide, (x.unsqueeze(0),))
            other = _latent_sites(guide, (x + 1,))
    except (RuntimeError, ValueError, TypeError):
        return  # it takes no rows of more numbers
    depends = any(
        bool((distribution_mean(other[name]["fn"]) != code).any())
        for name, code in codes.items()
    )
    if depends and all(node["value"].shape[:1] == (1,) for node in whole.values()):
        raise InputError(
            f"x has shape {tuple(x.shape)}, which is one row of data: add a dimension,"
            " x.unsqueeze(0)."
        )


def _has_mean(distribution: Any) -> bool:
    try:
        return bool(distribution_mean(distribution).dim())
    except NotImplementedError:
        return False


def _in_many_runs(
    guide: Program, arguments: tuple[Tensor, ...], num_runs: int, read: Callable[[Any], Tensor]
) -> dict[str, Tensor]:
    """What is read off each latent site in so many runs at once: shape ``(num_runs, N,
    *event)``.
    """
    trace = poutine.trace(guide).get_trace(*arguments)
    shapes = {name: node["value"].shape for name, node in sample_sites(trace)}
    runs = particle_plate(guide, num_runs, nesting_of(trace))
    return {
        name: read(node).reshape(-1, *shapes[name])
        for name, node in _latent_sites(runs, arguments).items()
    }


def _chosen(latent: Mapping[str, Any], site: str | None, several: bool = False) -> list[str]:
    if not latent:
        raise PairError("The guide has no latent variables: it draws nothing.")
    if not isinstance(site, str | None):
        raise TypeError(
            f"site must be the name of a latent variable, got {format_value(site)}."
        )
    chosen = list(latent) if site is None else [site]
    if not set(chosen) <= latent.keys() or (len(chosen) > 1 and not several):
        raise ValueError(f"site must be one of {sorted(latent)}, got {format_value(site)}.")
    return chosen


def _posterior_means(
    guide: Program, x: Any, site: str | None, num_draws: int, several: bool
) -> Any:
    """By site the posterior means, and the squared standard errors of their estimates."""

    def moments(*arguments: Tensor) -> dict[str, Tensor]:
        latent = _latent_sites(guide, arguments)
        chosen = _chosen(latent, site, several)
        _check_rows(guide, arguments, latent)
        if len(latent) == 1:  # its mean hangs on no draws
            means = {
                chosen[0]: (
                    distribution_mean(latent[chosen[0]]["fn"]).expand(
                        2, *latent[chosen[0]]["value"].shape
                    )
                )
            }
        else:
            means = _in_many_runs(
                guide, arguments, num_draws, lambda node: distribution_mean(node["fn"])
            )
        return {name: torch.stack(_mean_and_error(means[name]), 1) for name in chosen}

    with preserved_rng(seed=0):  # where draws matter, they are the same every time
        both = by_batch(moments, guide, guide, x)
    return tuple({name: values[:, part] for name, values in both.items()} for part in (0, 1))


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    # From differences to the first, so that means which are all the same stay exactly as they
    # are.
    moved = values - values[0]
    return values[0] + moved.mean(0), moved.var(0) / len(values)


def reconstruct(model: Program, guide: Program, x: Any, *, site: str = "x") -> Any:
    """Returns the mean of the likelihood at a draw of the posterior, for each data point.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        site: The observed site to reconstruct.

    Raises:
        ValueError: If the model has no such site.
    """

    def mean(*arguments: Tensor) -> Tensor:
        model_trace, _ = trace_pair(model, guide, arguments, {})
        return distribution_mean(_named(model_trace, site)["fn"])

    return by_batch(mean, model, guide, x)


def decode(
    model: Program,
    z: Any,
    *,
    given: Mapping[str, Any] | None = None,
    latent: str = "z",
    site: str = "x",
) -> Any:
    """Returns the mean of the likelihood given values of a latent variable; the model draws
    the others.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        z: Values of the latent variable, with shape ``(N, *event)``.
        given: What else the model needs, by the names of its arguments: ``{"y": y}`` for a
            ``ConditionalVAE``, with a row for each code, or one row for all.
        latent: The name of the latent variable.
        site: The observed site to decode.

    Raises:
        PairError: If the model does not generate.
        ValueError: If something given has another number of rows or is nothing that the model
            takes, or ``latent`` or ``site`` is none of the model's sites.
    """

    def mean(values: Tensor, *rows: Tensor) -> Tensor:
        conditioned = poutine.trace(poutine.condition(model, {latent: values}))
        trace = conditioned.get_trace(
            batch_size=len(values), **dict(zip(others, rows, strict=True))
        )
        check_choice("latent", latent, sorted(dict(sample_sites(trace)).keys() - {site}))
        return distribution_mean(_named(trace, site)["fn"])

    _check_generates(model)
    for name, value in (("latent", latent), ("site", site)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be the name of a site, got {format_value(value)}.")
    others = _rows(model, given, len(codes_of(z)))
    with preserved_rng():  # the model draws what it is not asked for
        return by_batch(mean, None, model, z, beside=list(others.values()))


def sample(
    model: Program,
    num_samples: int,
    *,
    given: Mapping[str, Any] | None = None,
    site: str | Sequence[str] = "x",
    length: int | None = None,
    mean: bool = False,
    seed: int | None = None,
) -> Any:
    """Generates from the model, by ancestral sampling.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        num_samples: How many to generate.
        given: What else the model needs, by the names of its arguments: ``{"y": y}`` for a
            ``ConditionalVAE``, with a row for each sample, or one row for all.
        site: The site to return; or several, which are returned in a mapping by their names.
        length: The number of steps of a model of sequences, whose sites are named before their
            step: ``"x"`` for ``x_0``, ``x_1``, ..., of shape ``(num_samples, length,
                *event)``.
        mean: Return the mean of the site's distribution in place of a draw from it: what
            papers show of Bernoulli likelihoods.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Raises:
        PairError: If the model does not generate, or has no prior that can be drawn from.
        ValueError: If something given has another number of rows or is nothing that the model
            takes, or ``site`` is none of the model's sites.
    """
    _check_generates(model)
    num_samples = as_count("num_samples", num_samples)
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    device = None if parameter is None else parameter.device
    others: dict[str, Any] = {
        name: value.to(device) for name, value in _rows(model, given, num_samples).items()
    }
    if length is not None:
        others["length"] = as_count("length", length)
    with seeded(seed), pyro.validation_enabled(False), evaluating(model), local_parameters():
        try:
            with explaining([model], list(others.values())):
                trace = poutine.trace(model).get_trace(batch_size=num_samples, **others)
        except NotImplementedError:
            raise PairError(
                f"{name_of(model)} has no prior that can be drawn from: decode codes instead."
            ) from None
    if not isinstance(site, str | Sequence):
        raise TypeError(
            f"site must be the name of a site, or a list of names, got {format_value(site)}."
        )
    wanted = [site] if isinstance(site, str) else site

    def value(name: str) -> Tensor:
        node = _named(trace, name)
        return distribution_mean(node["fn"]) if mean else node["value"]

    def steps(name: str) -> Tensor:
        return torch.stack([value(f"{name}_{t}") for t in range(length or 0)], 1)

    values = {name: value(name) if length is None else steps(name) for name in wanted}
    return values[site] if isinstance(site, str) else values


def _named(trace: Any, site: str) -> Any:
    sites = dict(sample_sites(trace))
    check_choice("site", site, sorted(sites))
    return sites[site]


def _rows(model: Program, given: Mapping[str, Any] | None, count: int) -> dict[str, Tensor]:
    """What is given, with so many rows."""
    if not isinstance(given, Mapping | None):
        raise TypeError(
            "given must be a mapping from the names of the model's arguments, got"
            f" {format_value(given)}."
        )
    parameters, rows = _parameters(model), {}
    open_ended = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    for name, value in (given or {}).items():
        if name not in parameters and not open_ended:
            raise ValueError(
                f"given has {name!r}, which {name_of(model)} does not take: it takes"
                f" {list(parameters)}."
            )
        part = as_float(as_numbers(f"given[{name!r}]", value), model)
        if not part.dim() or len(part) not in (1, count):
            raise ValueError(
                f"given[{name!r}] must have {count} rows or one row for all, got"
                f" {len(part) if part.dim() else 'none'}."
            )
        rows[name] = part.expand(count, *part.shape[1:])
    return rows


def _check_generates(model: Program) -> None:
    check_program("model", model)
    if "batch_size" not in _parameters(model):
        raise PairError(
            f"{name_of(model)} cannot generate without data: give it an argument batch_size,"
            " as models.VAE has."
        )


def _parameters(model: Program) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(
            model.forward if isinstance(model, nn.Module) else model
        ).parameters
    except ValueError:  # a builtin does not tell
        return {}
