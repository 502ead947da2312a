"""Codes of data points, and the activity of latent units."""

__all__ = ["active_units", "activity", "check_rows", "embed"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Categorical, Distribution

from tarspyro.arguments import as_count, check_number, format_value
from tarspyro.conditional import distribution_mean
from tarspyro.evaluate.batching import Array, map_batches
from tarspyro.infer.matching import one_row
from tarspyro.infer.structure import check_every_row, subsamples_of
from tarspyro.infer.traces import (
    PairError,
    Site,
    drawn_of,
    elements_of,
    log_prob,
    name_of,
    nesting_of,
    observed_of,
    only,
    particle_plate,
    sample_sites,
    with_values,
)
from tarspyro.inputs import count_rows
from tarspyro.programs import PROGRAM_ERRORS
from tarspyro.scopes import preserved_rng
from tarspyro.types import Argument, Arguments, Data, Program

# The number of draws of other latent variables that a posterior mean averages over.
_DRAWS = 100


def embed(
    guide: Program, x: Data, *, site: str | None = None, num_samples: int | None = None
) -> Array:
    r"""Returns the posterior mean of each data point, or draws if asked for.

    In evaluation mode and without gradients. If the guide has several latent variables, one
    of them may depend on draws of others, as in a hierarchy. Its posterior is then a mixture,
    and its mean is estimated by the average of 100 conditional means, from a fixed seed:

    .. math:: \mathbb{E}_{q(z_2 \mid x)}[z_2] \approx
              \frac{1}{100} \sum_s \mathbb{E}_{q(z_2 \mid z_1^s)}[z_2],
              \qquad z_1^s \sim q(z_1 \mid x)

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes.
        site: The latent variable; not needed if there is one.
        num_samples: The number of draws of the posterior to return instead of its mean.

    Returns:
        Shape ``(N, *event)``, or ``(num_samples, N, *event)``: an array for arrays, a tensor
        for tensors.

    Raises:
        NotImplementedError: If the family has no mean in closed form.
        ValueError: If there are several latent variables and ``site`` names none of them.
    """
    if num_samples is None:
        (codes,) = _posterior_means(guide, x, site, _DRAWS, several=False).values()
        return codes[:, 0]
    num_samples = as_count("num_samples", num_samples)

    def draws(*batch: Argument) -> Array:
        latent = _latent_sites(guide, batch)
        (name,) = _chosen(latent, site)
        _check_local(guide, batch, latent, [name])
        check_rows(guide, batch, latent)
        values = _in_many_runs(
            guide, batch, num_samples, lambda latent: latent["value"], [name]
        )
        return values[name].movedim(0, 1)

    return map_batches(draws, [guide], x).swapaxes(0, 1)


def activity(
    guide: Program, x: Data, *, site: str | None = None, num_particles: int = 100
) -> Any:
    r"""Returns the variance of the posterior mean of each latent unit over the data.

    .. math:: A_u = \mathrm{Var}_x\big(\mathbb{E}_{q(u \mid x)}[u]\big)

    (Burda et al. 2015, arXiv:1509.00519, section 2.) If u depends on draws of other latent
    variables, its posterior mean is the average of its conditional means given
    ``num_particles`` draws. The variance due to these draws is subtracted, so that the
    estimate is unbiased; for an unused unit it may be negative.

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes.
        site: The latent variable; all if not given.
        num_particles: The number of draws of the other latent variables.

    Returns:
        Numbers of the latent variable's event shape, for a Categorical those of one-hot
        vectors, or for several latent variables a mapping from their sorted names to such
        numbers: arrays for arrays, tensors for tensors.

    Raises:
        NotImplementedError: If the family has no mean in closed form.
        ValueError: If ``site`` is not a latent variable, ``num_particles`` is below 2, or ``x``
            has a single row.
    """
    num_particles = as_count("num_particles", num_particles, 2)
    estimates = _posterior_means(guide, x, site, num_particles, several=True)
    activities = {}
    for name, columns in sorted(estimates.items()):
        if len(columns) < 2:
            raise ValueError(
                "x must have at least 2 rows, over which posterior means vary, got 1: give more"
                " data."
            )
        mean = columns[:, 0]
        squared_error = columns[:, 1]
        variance = mean.var(0, ddof=1) if isinstance(mean, np.ndarray) else mean.var(0)
        activities[name] = variance - squared_error.mean(0)
    return activities if len(activities) > 1 else next(iter(activities.values()))


def active_units(
    guide: Program,
    x: Data,
    *,
    site: str | None = None,
    threshold: float = 0.01,
    num_particles: int = 100,
) -> Any:
    r"""Returns which latent units are active.

    .. math:: \mathrm{active}_u \iff
              \mathrm{Var}_x\big(\mathbb{E}_{q(u \mid x)}[u]\big) > 0.01

    (Burda et al. 2015, section 2.) Their number is ``active_units(...).sum()``.

    Arguments:
        guide: The guide.
        x: The data, in any form that ``fit`` takes.
        site: The latent variable; all if not given.
        threshold: The variance above which a unit is active.
        num_particles: See ``activity``.

    Returns:
        Booleans of the latent variable's event shape, or for several latent variables a
        mapping from their names to booleans: arrays for arrays, tensors for tensors.
    """
    check_number("threshold", threshold)
    found = activity(guide, x, site=site, num_particles=num_particles)
    if isinstance(found, dict):
        return {name: part > threshold for name, part in found.items()}
    return found > threshold


def _posterior_means(
    guide: Program, x: Data, site: str | None, num_draws: int, several: bool
) -> dict[str, Array]:
    """Returns by site the posterior means and the squared standard errors of their estimates.

    In two columns: shape ``(N, 2, *event)``.
    """

    def estimate(*batch: Argument) -> dict[str, Array]:
        latent = _latent_sites(guide, batch)
        chosen = _chosen(latent, site, several)
        _check_local(guide, batch, latent, chosen)
        check_rows(guide, batch, latent)
        read = _mean_or_probabilities if several else _mean
        if len(latent) == 1:  # its mean depends on no draws: two equal ones have no error
            mean = read(latent[chosen[0]])
            means = {chosen[0]: mean.expand(2, *mean.shape)}
        else:
            means = _in_many_runs(guide, batch, num_draws, read, chosen)
        return {name: torch.stack(_mean_and_squared_error(means[name]), 1) for name in chosen}

    with preserved_rng(seed=0):
        return map_batches(estimate, [guide], x)


def _mean(site: Site) -> Tensor:
    if isinstance(elements_of(site["fn"]), Categorical):
        raise NotImplementedError(
            f"{site['name']!r} is Categorical, and classes have no mean: take their"
            f" probabilities, evaluate.classify(guide, x, site={site['name']!r}), or draws,"
            " embed(..., num_samples=...)."
        )
    return distribution_mean(site["fn"])


def _mean_or_probabilities(site: Site) -> Tensor:
    """Returns the mean of a site; of classes that are numbers, that of their one-hot vectors."""
    elements = elements_of(site["fn"])
    if isinstance(elements, Categorical):
        return elements.probs
    return distribution_mean(site["fn"])


def _mean_and_squared_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean over the first dimension and its squared standard error."""
    # Differences to the first value keep a mean of equal values exact.
    shifted = values - values[0]
    return values[0] + shifted.mean(0), shifted.var(0) / len(values)


def _in_many_runs(
    guide: Program,
    batch: Arguments,
    num_runs: int,
    read: Callable[[Site], Tensor],
    chosen: Sequence[str],
) -> dict[str, Tensor]:
    """Returns a function of some latent sites, in many runs: at once, if the guide can.

    The shapes are ``(num_runs, N, *event)``.
    """
    trace = poutine.trace(guide).get_trace(*batch)
    if not _takes_a_plate(guide, batch, trace):
        runs = [_latent_sites(guide, batch) for _ in range(num_runs)]
        return {name: torch.stack([read(sites[name]) for sites in runs]) for name in chosen}
    together = particle_plate(guide, num_runs, nesting_of(trace))
    single = dict(sample_sites(trace))
    sites = _latent_sites(together, batch)
    return {name: read(sites[name]).reshape(-1, *read(single[name]).shape) for name in chosen}


def _takes_a_plate(guide: Program, batch: Arguments, alone: Trace) -> bool:
    """Whether the draws of a run have the same densities in a plate of runs."""
    nesting = nesting_of(alone)
    sites = dict(sample_sites(alone))
    values = {}
    for name, site in sites.items():
        missing = nesting + 1 + site["fn"].event_dim - site["value"].dim()
        values[name] = site["value"].reshape((1,) * missing + site["value"].shape)
    given = with_values(only(alone, lambda site: site["name"] in sites), values)
    replayed = poutine.replay(particle_plate(guide, 1, nesting), trace=given)
    try:
        together = dict(sample_sites(poutine.trace(replayed).get_trace(*batch)))
        densities = [
            (log_prob(site), log_prob(together[name])) for name, site in sites.items()
        ]
    except PROGRAM_ERRORS:
        return False
    return all(
        one.numel() == other.numel()
        and torch.allclose(one.flatten(), other.flatten(), 1e-3, 1e-3, equal_nan=True)
        for one, other in densities
    )


def _latent_sites(guide: Program, batch: Arguments) -> dict[str, Site]:
    """Returns the latent sites of a run of the guide."""
    trace = poutine.trace(guide).get_trace(*batch)
    check_every_row(guide, subsamples_of(trace), count_rows(batch))
    sites = sample_sites(trace)
    observed = observed_of(sites)
    latent = drawn_of(sites)
    if observed and not latent:
        raise PairError(
            f"{name_of(guide)} observes {sorted(observed)} and has no latent variables, and so"
            " no codes."
        )
    if observed:
        raise PairError(
            f"{name_of(guide)} observes {sorted(observed)}, as a model does: give the guide,"
            " which draws the codes."
        )
    return latent


def _chosen(latent: Mapping[str, Site], site: str | None, several: bool = False) -> list[str]:
    """Returns the latent variables that ``site`` names, all if it is None."""
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


def _check_local(
    guide: Program, batch: Arguments, latent: Mapping[str, Site], chosen: Sequence[str]
) -> None:
    """Raises if a latent variable is one of all data, which is no code of a data point."""
    for name in chosen:
        if count_rows(batch) > 1 and latent[name]["fn"].batch_shape.numel() == 1:
            raise PairError(
                f"{name_of(guide)} draws {name!r} once for all data, so data points have no"
                " codes of their own: name another latent variable, site=..., or draw it inside"
                " pyro.plate('data', len(x))."
            )


def check_rows(guide: Program, batch: Arguments, latent: Mapping[str, Site]) -> None:
    """Raises if x is a single row of data without the dimension of rows.

    The plate then takes each number for a row, and all of them get the code of the one row.
    """
    x, *others = batch
    if others or x is None or x.dim() != 1 or len(x) < 2 or not x.is_floating_point():
        return
    codes = {
        name: distribution_mean(site["fn"])
        for name, site in latent.items()
        if _has_mean(site["fn"])
    }
    if not codes or not all(bool((code == code[:1]).all()) for code in codes.values()):
        return
    try:
        with preserved_rng():
            as_row = _latent_sites(guide, (x[None],))
            shifted = _latent_sites(guide, (x + 1,))
    except (RuntimeError, ValueError, TypeError):
        return  # the guide takes no rows of several numbers
    depends = any(
        bool((distribution_mean(shifted[name]["fn"]) != code).any())
        for name, code in codes.items()
    )
    if depends and all(site["value"].shape[:1] == (1,) for site in as_row.values()):
        raise one_row("x", x)


def _has_mean(distribution: Distribution) -> bool:
    try:
        return bool(distribution_mean(distribution).dim())
    except NotImplementedError:
        return False
