"""Densities of a pair at given values of its latent variables."""

__all__ = ["Densities", "LogDensities", "latent_sites", "log_densities"]

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.arguments import as_numbers, format_fields, format_value
from tarspyro.evaluate.batching import Array, map_batches, readable, rows_at_once
from tarspyro.infer.pairs import check_drawn, check_local, check_vectorized, structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    Site,
    check_densities,
    common_dims,
    drawn_of,
    elements_of,
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
from tarspyro.types import Arguments, ArrayLike, Data, Program

# The values of latent variables by name.
Values: TypeAlias = Mapping[str, Tensor]


class LogDensities(NamedTuple):
    """log p(x, z) and log q(z | x) at given z, in nats, of shape ``(N, num_samples)``."""

    model: Array
    guide: Array

    def __repr__(self) -> str:
        return format_fields("LogDensities", self._asdict())


def log_densities(
    model: Program, guide: Program, x: Data, z: Mapping[str, ArrayLike]
) -> LogDensities:
    """Returns log p(x, z) and log q(z | x) at given values of the latent variables.

    For example at draws of the true posterior, or at the points of a grid.

    Arguments:
        model: The model.
        guide: The guide.
        x: The data, in any form that ``fit`` takes.
        z: For each latent site, values with shape ``(N, num_samples, *event)``.

    Returns:
        A tuple (model, guide), in nats, each with shape ``(N, num_samples)``: arrays for
        arrays, tensors for tensors.

    Raises:
        PairError: If the model and the guide differ in their latent sites, or if one of the
            sites is not continuous or lies outside the plate of the data, or has no density of
            given values, as that of a ``SemiImplicit`` guide.
        TypeError: If ``z`` is not a mapping of numbers.
        ValueError: If ``z`` lacks a latent site, or has a shape that does not match x.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
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
    values = {
        name: as_float(as_numbers(f"z[{name!r}]", value), model, guide)
        for name, value in z.items()
    }
    num_samples = _check_samples(values, readable(x, model, guide).count())

    def evaluated(*columns: Tensor) -> LogDensities:
        batch = columns[: -len(values)]
        drawn = dict(zip(values, columns[-len(values) :], strict=True))
        structure = structure_of(model, guide, batch, {}, particles=num_samples, observed=True)
        densities = Densities(model, guide, batch, structure)
        if drawn.keys() != densities.latent.keys():
            raise ValueError(
                f"z must hold values of {sorted(densities.latent)}, got those of"
                f" {sorted(drawn)}."
            )
        at = {
            name: value.movedim(0, densities.data_dim - densities.latent[name]["fn"].event_dim)
            for name, value in drawn.items()
        }
        log_joint = densities.log_joint(at).reshape(num_samples, -1).T
        log_guide = densities.log_guide(at).reshape(num_samples, -1).T
        return LogDensities(log_joint, log_guide)

    with preserved_rng():  # the pair draws before the values replace its draws
        return map_batches(
            evaluated,
            (model, guide),
            x,
            extra=list(values.values()),
            batch_size=rows_at_once(num_samples),
        )


def _check_samples(values: Mapping[str, Tensor], rows: int) -> int:
    """Returns the number of samples of values of shape ``(rows, samples, *event)``."""
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    if min(map(len, shapes.values())) < 2 or len({shape[:2] for shape in shapes.values()}) > 1:
        raise ValueError(
            "z must hold values of shape (N, num_samples, *event) for one N, got shapes"
            f" {list(shapes.values())}."
        )
    found, num_samples = next(iter(shapes.values()))[:2]
    if found != rows:
        raise ValueError(
            f"z must have a row for each of the {rows} rows of x, got {found} rows."
        )
    return num_samples


class Densities:
    r"""log p(z), log p(x | z) and log q(z | x) of a batch as functions of z.

    The latent variables are continuous and belong to data points. Values and densities have
    the dimension of the particles to the left of the pair's plates, as inside
    ``particle_plate``. Densities keep the dimensions of the particles and of the plates that
    hold all sites, which are the data points', and have size one in others. They include masks
    and leave out scales, as ``log_weights`` does.

    Arguments:
        model: The model.
        guide: The guide.
        batch: The arguments of both.
        structure: The structure of the pair.

    Raises:
        PairError: If the model and the guide differ in their latent sites, if one of the sites
            is not continuous or lies outside the plate of the data, or if the pair cannot run
            in a plate of particles.
    """

    def __init__(
        self, model: Program, guide: Program, batch: Arguments, structure: Structure
    ) -> None:
        check_vectorized(model, guide, structure, "The density at given values")
        self.model = model
        self.guide = guide
        self.batch = batch
        self.nesting = structure.nesting
        with preserved_rng():
            model_trace, guide_trace = trace_pair(
                particle_plate(model, 1, self.nesting),
                particle_plate(guide, 1, self.nesting),
                batch,
                {},
            )
        self.latent, _ = latent_sites(model, model_trace)
        drawn = drawn_of(sample_sites(guide_trace))
        if drawn.keys() != self.latent.keys():
            raise PairError(
                f"{name_of(guide)} draws {sorted(drawn)} and {name_of(model)} draws"
                f" {sorted(self.latent)}: give both the same latent sites, so that each has a"
                " density at the other's draws."
            )
        check_drawn(model, structure)
        check_local(model, structure)
        self.dims = [*structure.groups[0].dims, -self.nesting - 1]

    @property
    def data_dim(self) -> int:
        """The dimension of the data points, counted from the right.

        Raises:
            PairError: If data points lie in several nested plates.
        """
        return one_dim(self.model, self.dims[:-1])

    def of(self, batch: Arguments) -> "Densities":
        """Returns the densities of another batch of the same shapes."""
        densities = copy.copy(self)
        densities.batch = batch
        return densities

    def log_model(self, values: Values) -> tuple[Tensor, Tensor]:
        """Returns log p(z) and log p(x | z)."""
        sites = dict(sample_sites(self.run(self.model, values)))
        prior = self._sum(site for name, site in sites.items() if name in values)
        likelihood = self._sum(site for name, site in sites.items() if name not in values)
        return prior, likelihood

    def log_joint(self, values: Values) -> Tensor:
        """Returns log p(x, z)."""
        prior, likelihood = self.log_model(values)
        return prior + likelihood

    def log_guide(self, values: Values) -> Tensor:
        """Returns log q(z | x)."""
        sites = dict(sample_sites(self.run(self.guide, values)))
        given = [sites[name] for name in values]
        check_densities(given, "log q(z | x)", "compare pairs by log_likelihood")
        return self._sum(given)

    def draws(self, half: Program, count: int) -> dict[str, Tensor]:
        """Returns draws of the latent variables from the model or the guide."""
        sites = dict(sample_sites(self.run(half, {}, count)))
        return {name: sites[name]["value"] for name in self.latent}

    def reduce(self, value: Tensor) -> Tensor:
        """Sums over all dimensions except the particles' and the data points'."""
        return reduce_to(value, self.dims)

    def columns(self, value: Tensor) -> Tensor:
        """Returns densities in the shape ``(particles, *sizes of the data's plates)``."""
        return value.reshape([value.shape[dim] for dim in sorted(self.dims)])

    def run(self, half: Program, values: Values, count: int | None = None) -> Trace:
        """Runs the model or the guide, with latent variables of given values or drawn.

        Arguments:
            half: The model or the guide.
            values: The given values.
            count: The number of particles; that of the values if not given.
        """
        if count is None:
            count = len(next(iter(values.values())))
        program = poutine.condition(particle_plate(half, count, self.nesting), dict(values))
        return poutine.trace(program).get_trace(*self.batch)

    def _sum(self, sites: Iterable[Site]) -> Tensor:
        return sum_of(
            self.reduce(scale_and_mask(log_prob(site), mask=site["mask"])) for site in sites
        )


def latent_sites(model: Program, trace: Trace) -> tuple[dict[str, Site], list[int]]:
    """Returns the latent sites of a run and the dimensions of the plates of the data points.

    Raises:
        PairError: If there is no latent site, or if one of them is not continuous or lies
            outside the plates that hold all others.
    """
    sites = dict(sample_sites(trace))
    latent = drawn_of(sites.items())
    if not latent:
        raise PairError(
            f"{name_of(model)} has no latent variable: compute its exact log-likelihood from"
            " the log_prob of its sites."
        )
    plates = common_dims(sites.values())
    for name, site in latent.items():
        base = elements_of(site["fn"])
        if isinstance(base, Delta) or base.support.is_discrete:
            raise PairError(
                f"{name!r} is {type(base).__name__}, and gradients need continuous latent"
                " variables: take log_likelihood for discrete ones."
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
    """Returns the dimension of the plate that holds the data points.

    Raises:
        PairError: If there are several.
    """
    if len(plates) != 1:
        raise PairError(
            f"{name_of(model)} has {len(plates)} plates around all sites: put a row of x"
            " inside a single plate."
        )
    return plates[0]
