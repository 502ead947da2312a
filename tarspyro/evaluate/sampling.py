"""Samples of a model, and its means at given codes."""

__all__ = ["decode", "reconstruct", "sample"]

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_numbers, check_choice, format_value
from tarspyro.conditional import mean_or_mode
from tarspyro.distributions.autoregressive import AutoregressiveDistribution
from tarspyro.evaluate.batching import Array, as_codes, map_batches, seeded
from tarspyro.infer.matching import check_sites, explaining, one_row
from tarspyro.infer.traces import (
    InputError,
    PairError,
    Site,
    check_program,
    name_of,
    sample_sites,
    trace_pair,
)
from tarspyro.inputs import as_float
from tarspyro.programs import PROGRAM_ERRORS, device_of
from tarspyro.scopes import evaluating, local_parameters, preserved_rng
from tarspyro.types import Argument, ArrayLike, Data, Program


def reconstruct(model: Program, guide: Program, x: Data, *, site: str = "x") -> Array:
    """Returns the mean of the likelihood at a draw of the posterior, for each data point.

    An autoregressive likelihood has no mean in closed form; it gives a draw. Class numbers of
    a ``Categorical`` have none; it gives the most probable one.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes.
        site: The observed site to reconstruct.

    Raises:
        PairError: If the model observes nothing, as if it were the guide.
        ValueError: If the model has no such site.
    """

    def mean(*batch: Argument) -> Array:
        model_trace, guide_trace = trace_pair(model, guide, batch, {})
        check_sites(model, guide, model_trace, guide_trace, supports=False)
        return _shown(_site("site", model_trace, site)["fn"])

    return map_batches(mean, (model, guide), x)


def decode(
    model: Program,
    z: ArrayLike,
    *,
    given: Mapping[str, ArrayLike] | None = None,
    latent: str = "z",
    site: str = "x",
) -> Array:
    """Returns the mean of the likelihood given values of a latent variable.

    The model draws its other latent variables. An autoregressive likelihood has no mean in
    closed form; it gives a draw. A ``Categorical`` gives the most probable class.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        z: Values of the latent variable, of shape ``(N, *event)``.
        given: More arguments of the model, by name: ``{"y": y}`` for a ``ConditionalVAE``,
            with a row for each code, or one row for all.
        latent: The name of the latent variable.
        site: The observed site to decode.

    Raises:
        InputError: If ``z`` is a single code without a row.
        PairError: If the model does not generate.
        ValueError: If ``given`` has a name that the model does not take or a wrong number of
            rows, or if ``latent`` or ``site`` is not among the model's sites.
    """
    check_generates(model)
    for name, value in (("latent", latent), ("site", site)):
        if not isinstance(value, str):
            raise TypeError(f"{name} must be the name of a site, got {format_value(value)}.")
    codes = as_codes(z, model)
    others = _rows(model, given, len(codes))
    _check_codes(model, codes, others, latent)

    def mean(values: Tensor, *rows: Tensor) -> Array:
        conditioned = poutine.trace(poutine.condition(model, {latent: values}))
        trace = conditioned.get_trace(
            batch_size=len(values), **dict(zip(others, rows, strict=True))
        )
        check_choice("latent", latent, sorted(dict(sample_sites(trace)).keys() - {site}))
        return _shown(_site("site", trace, site)["fn"])

    with preserved_rng():  # the model draws its other latent variables
        return map_batches(mean, [model], z, arguments=(codes,), extra=list(others.values()))


def sample(
    model: Program,
    num_samples: int,
    *,
    given: Mapping[str, ArrayLike] | None = None,
    site: str | Sequence[str] = "x",
    length: int | None = None,
    mean: bool = False,
    seed: int | None = None,
) -> Any:
    """Generates from the model, by ancestral sampling.

    Arguments:
        model: A model that generates with ``batch_size``, as those of the library do.
        num_samples: The number of samples.
        given: More arguments of the model, by name: ``{"y": y}`` for a ``ConditionalVAE``,
            with a row for each sample, or one row for all.
        site: The site to return, or several.
        length: The number of steps of a model of sequences. Its sites are then named without
            their step: ``"x"`` for ``x_0``, ``x_1``, ..., of shape ``(num_samples, length,
            *event)``.
        mean: Whether to return the mean of the site's distribution instead of a draw from it,
            as papers do for Bernoulli likelihoods; an autoregressive distribution has none in
            closed form, and gives a draw. A ``Categorical`` gives the most probable class.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        A tensor of shape ``(num_samples, *event)``, or for several sites a mapping from their
        names to such tensors.

    Raises:
        PairError: If the model does not generate, or has no prior that can be drawn from.
        ValueError: If ``given`` has a name that the model does not take or a wrong number of
            rows, or if ``site`` is not among the model's sites.
    """
    check_generates(model)
    if not isinstance(site, str | Sequence):
        raise TypeError(
            f"site must be the name of a site, or a list of names, got {format_value(site)}."
        )
    trace = generated(model, num_samples, given=given, length=length, seed=seed)

    def value(name: str) -> Tensor:
        node = _site("site", trace, name)
        means = mean and not isinstance(node["fn"], AutoregressiveDistribution)
        drawn: Tensor = _shown(node["fn"]) if means else node["value"]
        return drawn

    def values(name: str) -> Tensor:
        if length is None:
            return value(name)
        return torch.stack([value(f"{name}_{t}") for t in range(length)], 1)

    if isinstance(site, str):
        return values(site)
    return {name: values(name) for name in site}


def generated(
    model: Program,
    num_samples: int,
    *,
    given: Mapping[str, ArrayLike] | None = None,
    length: int | None = None,
    seed: int | None = None,
) -> Trace:
    """A run of a model without data; ``sample`` describes the arguments.

    Raises:
        PairError: If the model does not generate, or has no prior that can be drawn from.
        ValueError: If ``given`` has a name that the model does not take or a wrong number of
            rows.
    """
    check_generates(model)
    num_samples = as_count("num_samples", num_samples)
    device = device_of(model)
    rows = _rows(model, given, num_samples)
    arguments: dict[str, Tensor | int] = {
        name: value.to(device) for name, value in rows.items()
    }
    if length is not None:
        arguments["length"] = as_count("length", length)

    with seeded(seed), pyro.validation_enabled(False), evaluating(model), local_parameters():
        try:
            with explaining([model], list(arguments.values())):
                return poutine.trace(model).get_trace(batch_size=num_samples, **arguments)
        except NotImplementedError:
            raise PairError(
                f"{name_of(model)} has no prior that can be drawn from: decode codes instead."
            ) from None


def _shown(distribution: Any) -> Tensor:
    """Returns the mean of a distribution; of an autoregressive one a draw, of classes the mode."""
    if isinstance(distribution, AutoregressiveDistribution):
        return distribution.sample()
    return mean_or_mode(distribution)


def _site(argument: str, trace: Trace, name: str) -> Site:
    """Returns a site of a trace, of which an argument has the name."""
    sites = dict(sample_sites(trace))
    check_choice(argument, name, sorted(sites))
    return sites[name]


def _rows(
    model: Program, given: Mapping[str, ArrayLike] | None, count: int
) -> dict[str, Tensor]:
    """Returns the given arguments of a model, with a row for each sample."""
    if not isinstance(given, Mapping | None):
        raise TypeError(
            "given must be a mapping from the names of the model's arguments, got"
            f" {format_value(given)}."
        )
    parameters = parameters_of(model)
    open_ended = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    rows = {}
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


def _check_codes(
    model: Program, codes: Tensor, given: Mapping[str, Tensor], latent: str
) -> None:
    """Raises unless codes are rows of the latent variable's event shape."""
    row = {name: value[:1] for name, value in given.items()}
    with (
        preserved_rng(),
        pyro.validation_enabled(False),
        evaluating(model),
        local_parameters(),
        torch.no_grad(),
    ):
        try:
            trace = poutine.trace(model).get_trace(batch_size=1, **row)
        except (*PROGRAM_ERRORS, NotImplementedError):
            return  # the decoding itself raises the reason, or needs no prior
    if latent not in trace.nodes:
        return
    event = tuple(_site("latent", trace, latent)["fn"].event_shape)
    if tuple(codes.shape[codes.dim() - len(event) :]) != event:
        raise InputError(
            f"z has shape {tuple(codes.shape)}, and {name_of(model)} has codes of shape"
            f" {event}: give z of shape (N{''.join(f', {size}' for size in event)})."
        )
    if codes.dim() == len(event):
        raise one_row("z", codes, "code")


def check_generates(model: Program) -> None:
    """Raises unless the model takes ``batch_size``."""
    check_program("model", model)
    if getattr(model, "density", "p") == "q":
        raise PairError(
            f"{name_of(model)} is a guide, which generates no data: give the model."
        )
    if "batch_size" not in parameters_of(model):
        raise PairError(
            f"{name_of(model)} cannot generate without data: give it an argument batch_size,"
            " as models.VAE has."
        )


def parameters_of(model: Program) -> Mapping[str, inspect.Parameter]:
    """The parameters of a model's signature, by name."""
    forward = model.forward if isinstance(model, nn.Module) else model
    try:
        return inspect.signature(forward).parameters
    except ValueError:  # a builtin has no signature
        return {}
