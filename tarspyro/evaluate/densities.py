"""The densities of a pair at given values of its latent variables, for each particle and each
data point.
"""

__all__ = ["Densities", "LogDensities", "latent_sites", "log_densities"]

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta, Independent
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.arguments import as_numbers, format_value
from tarspyro.evaluate.batching import by_batch, rows_at_once
from tarspyro.infer.pairs import check_local, structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    Site,
    common_dims,
    log_prob,
    name_of,
    particle_plate,
    reduce_to,
    sample_sites,
    sum_of,
    trace_pair,
)
from tarspyro.inputs import as_float
from tarspyro.scopes import preserved_rng
from tarspyro.types import Program

Values = Mapping[str, Tensor]


class LogDensities(NamedTuple):
    """log p(x, z) and log q(z | x) at given z, in nats, with shape ``(N, num_samples)``."""

    model: Any
    guide: Any


def log_densities(
    model: Program, guide: Program, x: Any, z: Mapping[str, Any]
) -> LogDensities:
    """Returns log p(x, z) and log q(z | x) at values of the latent variables that the caller
    chose.

    Such as draws of the true posterior, or the points of a grid.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes in memory.
        z: For each latent site, values with shape ``(N, num_samples, *event)``.

    Returns:
        A tuple (model, guide), in nats, each with shape ``(N, num_samples)``: arrays for
        arrays, tensors for tensors.

    Raises:
        PairError: If the halves differ in their latent sites, or one is not continuous or not
            in the data's plate.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> at = log_densities(model, guide, torch.zeros(3), {"z": torch.zeros(3, 5)})
        >>> at.model.shape, at.guide.shape
        (torch.Size([3, 5]), torch.Size([3, 5]))
    """
    if not isinstance(z, Mapping) or not z:
        raise TypeError(
            "z must be a mapping from the latent sites to their values, got"
            f" {format_value(z)}."
        )
    names, values = (
        list(z),
        [
            as_float(as_numbers(f"z[{name!r}]", value), model, guide)
            for name, value in z.items()
        ],
    )
    if (
        min(value.dim() for value in values) < 2
        or len({value.shape[:2] for value in values}) > 1
    ):
        shapes = [tuple(value.shape) for value in values]
        raise ValueError(
            "z must hold values of shape (N, num_samples, *event) for one N, got shapes"
            f" {shapes}."
        )
    num_samples = values[0].shape[1]

    def evaluated(*rows: Tensor) -> Tensor:
        arguments, rows = rows[: -len(names)], rows[-len(names) :]
        structure = structure_of(
            model, guide, arguments, {}, particles=num_samples, observed=True
        )
        densities = Densities(model, guide, arguments, structure)
        if set(names) != densities.latent.keys():
            raise ValueError(
                f"z must hold values of {sorted(densities.latent)}, got those of"
                f" {sorted(names)}."
            )
        data_dim = densities.data_dim
        at = {
            name: value.movedim(0, data_dim - densities.latent[name]["fn"].event_dim)
            for name, value in zip(names, rows, strict=True)
        }
        both = torch.stack([densities.log_joint(at), densities.log_guide(at)])
        return both.reshape(2, num_samples, -1).permute(2, 1, 0)

    with preserved_rng():  # the pair draws before it is told its values
        result = by_batch(
            evaluated, model, guide, x, beside=values, batch_size=rows_at_once(num_samples)
        )
    return LogDensities(result[..., 0], result[..., 1])


class Densities:
    r"""log p(z), log p(x | z) and log q(z | x) as functions of z, for continuous latent
    variables of data points.

    Values and densities have the particles on the left of the pair's plates, as inside
    ``particle_plate``; the densities keep the dimensions of the particles and of the plates
    that hold all sites, the data points', and have size one in others. Scales do not enter,
    masks do, as in ``log_weights``.

    Arguments:
        model: The model.
        guide: The guide.
        arguments: A batch.
        structure: The structure of the pair.

    Raises:
        PairError: If the halves differ in their latent sites, or one is not continuous or not
            in the data's plate, or they cannot take a plate of particles.
    """

    def __init__(
        self, model: Program, guide: Program, arguments: Sequence[Tensor], structure: Structure
    ) -> None:
        nesting = structure.nesting
        self.model, self.guide, self.arguments, self.nesting = model, guide, arguments, nesting
        with preserved_rng():
            model_trace, guide_trace = trace_pair(
                particle_plate(model, 1, nesting),
                particle_plate(guide, 1, nesting),
                arguments,
                {},
            )
        self.latent, _ = latent_sites(model, model_trace)
        guided = {name for name, site in sample_sites(guide_trace) if not site["is_observed"]}
        if guided != self.latent.keys():
            raise PairError(
                f"{name_of(guide)} draws {sorted(guided)} and {name_of(model)}"
                f" {sorted(self.latent)}: the density of one at the other's draws needs the"
                " same latent sites in both."
            )
        check_local(model, structure)
        if structure.vectorized is False:
            raise PairError(
                f"{name_of(model)} cannot take its particles in a plate of their own, as"
                " densities at given values do."
            )
        self.dims = [*structure.groups[0].dims, -nesting - 1]

    @property
    def data_dim(self) -> int:
        """The dimension of the data points, counted from the right."""
        return one_dim(self.model, self.dims[:-1])

    def log_model(self, values: Values) -> tuple[Tensor, Tensor]:
        """Returns log p(z) and log p(x | z)."""
        sites = dict(sample_sites(self.run(self.model, values)))
        return (
            self._sum(site for name, site in sites.items() if name in values),
            self._sum(site for name, site in sites.items() if name not in values),
        )

    def log_joint(self, values: Values) -> Tensor:
        """Returns log p(x, z)."""
        prior, likelihood = self.log_model(values)
        return prior + likelihood

    def log_guide(self, values: Values) -> Tensor:
        """Returns log q(z | x)."""
        return self._sum(
            dict(sample_sites(self.run(self.guide, values)))[name] for name in values
        )

    def draws(self, half: Program, count: int) -> dict[str, Tensor]:
        """Returns values of the latent variables as the model or the guide draws them."""
        sites = dict(sample_sites(self.run(half, {}, count)))
        return {name: sites[name]["value"] for name in self.latent}

    def reduce(self, value: Tensor) -> Tensor:
        """Sums over all dimensions but the particles' and the data points'."""
        return reduce_to(value, self.dims)

    def columns(self, value: Tensor) -> Tensor:
        """Brings densities into the shape ``(particles, *sizes of the data's plates)``."""
        return value.reshape([value.shape[dim] for dim in sorted(self.dims)])

    def run(self, half: Program, values: Values, count: int | None = None) -> Trace:
        """Returns a run of the model or the guide with latent variables of the given values,
        the others drawn.
        """
        count = len(next(iter(values.values()))) if count is None else count
        program = poutine.condition(particle_plate(half, count, self.nesting), dict(values))
        return poutine.trace(program).get_trace(*self.arguments)

    def _sum(self, sites: Iterable[Site]) -> Tensor:
        return sum_of(
            self.reduce(scale_and_mask(log_prob(site), mask=site["mask"])) for site in sites
        )


def latent_sites(model: Program, trace: Trace) -> tuple[dict[str, Site], list[int]]:
    """Returns the latent sites of a run of the model and the dimensions of the data points'
    plates.

    Raises:
        PairError: If there is no latent site, or one is not continuous or not in the plates
            that hold all others.
    """
    sites = dict(sample_sites(trace))
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    if not latent:
        raise PairError(
            f"{name_of(model)} has no latent variable: its log-likelihood needs no estimate."
        )
    plates = common_dims(sites.values())
    for name, site in latent.items():
        base = site["fn"]
        while isinstance(base, Independent):
            base = base.base_dist
        if isinstance(base, Delta) or base.support.is_discrete:
            raise PairError(
                f"{name!r} is {type(base).__name__}, and only continuous latent variables move"
                " along gradients: take log_likelihood for discrete ones."
            )
        if not plates and not common_dims([site]):
            raise PairError(
                f"{name!r} lies outside the plate of the data, so that data points have no"
                " posterior of their own: put it inside pyro.plate('data', len(x)), or"
                " condition the model on it."
            )
    if not plates:
        raise PairError(
            f"{name_of(model)}'s sites {sorted(sites)} share no plate: put every site that"
            " belongs to a data point inside one pyro.plate, such as pyro.plate('data',"
            " len(x))."
        )
    return latent, plates


def one_dim(model: Program, plates: Sequence[int]) -> int:
    """Returns the dimension of the one plate that holds the data points."""
    if len(plates) != 1:
        raise PairError(
            f"{name_of(model)} has {len(plates)} plates around all sites, and a row of x needs"
            " to be one."
        )
    return plates[0]
