"""Approximation and amortization gaps of the ELBO."""

__all__ = ["Gaps", "gaps"]

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from pyro.distributions import Delta, Independent
from pyro.distributions import Distribution as PyroDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints, transform_to

from tarspyro.arguments import as_count, as_numbers, check_positive, format_fields
from tarspyro.distributions.family import FIXED_UNLESS_GIVEN, SPELLINGS
from tarspyro.evaluate.batching import Array, chunk_sizes, map_batches, seeded
from tarspyro.evaluate.densities import Densities
from tarspyro.evaluate.likelihood import LogLikelihood, elbo
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.traces import (
    PairError,
    Site,
    check_densities,
    name_of,
    sample_sites,
    score_function,
    sum_of,
)
from tarspyro.inputs import count_rows
from tarspyro.types import Data, Program


class Gaps(NamedTuple):
    """log p(x), the best ELBO of the guide's family, and the guide's ELBO.

    In nats, a number for each data point.
    """

    log_likelihood: Array
    best_elbo: Array
    elbo: Array

    def __repr__(self) -> str:
        return format_fields("Gaps", self._asdict())

    @property
    def approximation(self) -> Array:
        """The gap due to the family: KL(q* || p) of its best member q*."""
        return self.log_likelihood - self.best_elbo

    @property
    def amortization(self) -> Array:
        """The gap due to the network, which computes the parameters for all data points."""
        return self.best_elbo - self.elbo


def gaps(
    model: Program,
    guide: Program,
    x: Data,
    *,
    num_particles: int = 1000,
    num_steps: int = 500,
    num_draws: int = 10,
    lr: float = 0.05,
    log_likelihood: LogLikelihood | Array | None = None,
    seed: int | None = None,
) -> Gaps:
    r"""Splits the gap between log p(x) and the ELBO in two, for each data point.

    .. math:: \log p(x) - \mathcal{L}[q] =
              \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation}}
              + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortization}}, \qquad
              q^* = \arg\max_{q \in \mathcal{Q}} \mathcal{L}[q]

    (Cremer et al. 2018, arXiv:1801.03558, eq. 4.) q* has the families of the guide's latent
    sites, with parameters of its own for each data point. Adam maximizes the ELBO from the
    guide's parameters, in unconstrained space, with a learning rate that falls to 0. Other
    properties of a family stay fixed: the temperature of a relaxed variable, transforms,
    masks, and parameters that the support depends on. The bound of q* is then estimated with
    new draws. If the optimization falls short, the rest counts as approximation gap.

    Arguments:
        model: The model. Its latent variables are continuous and in the data's plate.
        guide: The guide. Its latent sites are independent given the data.
        x: The data, in any form that ``fit`` takes.
        num_particles: The number of draws for each of the two bounds, and for log p(x).
        num_steps: The number of steps of Adam.
        num_draws: The number of draws for the gradient of a step.
        lr: The initial learning rate.
        log_likelihood: log p(x) of each data point, for example the result of
            ``annealed_log_likelihood``, with or without errors. If not given, it is estimated
            by importance sampling from the mixture of q* and the guide, with as many draws of
            each. That estimate is a lower bound in expectation, and so is the approximation
            gap.
        seed: The seed of the draws; the global random state then stays unchanged.

    Returns:
        A tuple (log_likelihood, best_elbo, elbo) with the properties ``approximation`` and
        ``amortization``: arrays for arrays, tensors for tensors. The three are estimates, so
        a gap near 0 may come out negative.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a latent site is not continuous or lies outside the plate of the data, if
            the model and the guide differ in their latent sites, or if a site of the guide
            depends on the draw of another or has no free parameters.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # a Gaussian, as the posterior is, but too wide
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))
        >>> found = gaps(model, guide, torch.tensor([0.0, 2.0]), num_steps=200, seed=0)
        >>> bool((found.approximation.abs() < 0.05).all())
        True
        >>> bool((found.amortization > 0.05).all())
        True
    """
    num_particles = as_count("num_particles", num_particles)
    num_steps = as_count("num_steps", num_steps)
    num_draws = as_count("num_draws", num_draws)
    check_positive("lr", lr)
    known = cast("Array | None", getattr(log_likelihood, "log_likelihood", log_likelihood))
    if known is not None:
        as_numbers("log_likelihood", known)

    def bounds(*batch: Tensor) -> dict[str, Array]:
        structure = structure_of(
            model, guide, batch, {}, particles=num_particles, observed=True
        )
        densities = Densities(model, guide, batch, structure)
        best = _BestMember(densities)
        best.maximize(num_steps, num_draws, lr)
        return _bounds(densities, best, num_particles, count_rows(batch))

    with seeded(seed):
        amortized = elbo(model, guide, x, num_particles=num_particles).elbo
        found = map_batches(bounds, (model, guide), x)
    return Gaps(
        found["log_likelihood"] if known is None else known, found["best_elbo"], amortized
    )


def _bounds(
    densities: Densities, best: "_BestMember", num_particles: int, rows: int
) -> dict[str, Array]:
    """Estimates log p(x), from draws of q* and of the guide, and the ELBO of q*."""
    log_sums = []
    totals = []
    for count in chunk_sizes(num_particles, rows):
        own = best.draws(count)
        theirs = densities.draws(densities.guide, count)
        log_ratio = densities.log_joint(own) - best.log_prob(own)
        # Weights over the mixture of q* and q, with as many draws of each, are large only
        # where both densities are too small.
        log_w = [
            densities.log_joint(z)
            - torch.logaddexp(best.log_prob(z), densities.log_guide(z))
            + math.log(2)
            for z in (own, theirs)
        ]
        log_sums.append(densities.columns(torch.cat(log_w)).logsumexp(0))
        totals.append(densities.columns(log_ratio).sum(0))

    log_sum = functools.reduce(torch.logaddexp, log_sums)
    return {
        "log_likelihood": log_sum - math.log(2 * num_particles),
        "best_elbo": sum_of(totals) / num_particles,
    }


class _BestMember:
    """q*: the guide's families, with parameters of their own for each data point."""

    def __init__(self, densities: Densities) -> None:
        self.densities = densities
        self.members: dict[str, _Member] = {}
        self.masks: dict[str, Tensor | bool | None] = {}
        # Two particles show whether the parameters of a site depend on the draws of others.
        trace = densities.run(densities.guide, densities.draws(densities.guide, 2))
        sites = dict(sample_sites(trace))
        own = [sites[name] for name in densities.latent]
        check_densities(own, "gaps", "compare log_likelihood with elbo")
        for name in densities.latent:
            self.members[name] = self._member(name, sites[name])
            self.masks[name] = sites[name]["mask"]

    def _member(self, name: str, site: Site) -> "_Member":
        """Returns the free distribution of a site."""
        q = site["fn"]
        try:
            member = _Member(q)
        except ValueError as error:
            raise PairError(
                f"{name!r} is {q}, whose parameters cannot be optimized: {error}"
            ) from None
        if member.depends_on_draws:
            raise PairError(
                f"{name!r} of {name_of(self.densities.guide)} depends on another site's draw,"
                " and has no parameters to optimize for a data point: gaps is for guides whose"
                " sites are independent given the data."
            )
        log_prob = member.distribution().expand(q.batch_shape).log_prob(site["value"])
        if not torch.allclose(log_prob, q.log_prob(site["value"]), rtol=1e-3, atol=1e-2):
            raise PairError(
                f"{name!r} is {q}, which cannot be rebuilt from its attributes: gaps is for"
                " families that keep the arguments of their constructor, as Pyro's do."
            )
        return member

    def distributions(self, count: int) -> dict[str, Distribution]:
        """Returns the distribution of each site, expanded to ``count`` particles."""
        single = {name: member.distribution() for name, member in self.members.items()}
        return {name: q.expand((count, *q.batch_shape[1:])) for name, q in single.items()}

    def draws(self, count: int) -> dict[str, Tensor]:
        """Returns ``count`` draws of each site."""
        return {name: q.sample() for name, q in self.distributions(count).items()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Returns log q*(z)."""
        count = len(next(iter(values.values())))
        return self._log_prob(self.distributions(count), values)

    def _log_prob(
        self, distributions: Mapping[str, Distribution], values: Mapping[str, Tensor]
    ) -> Tensor:
        masked = (
            scale_and_mask(distributions[name].log_prob(value), mask=self.masks[name])
            for name, value in values.items()
        )
        return sum_of(map(self.densities.reduce, masked))

    def log_ratio(self, count: int) -> Tensor:
        """Returns log p(x, z) - log q*(z) of draws, whose gradient is that of the ELBO."""
        distributions = self.distributions(count)
        values = {
            name: q.rsample() if q.has_rsample else q.sample()
            for name, q in distributions.items()
        }
        log_ratio = self.densities.log_joint(values) - self._log_prob(distributions, values)
        signal = (log_ratio - log_ratio.mean(0, keepdim=True)).detach()
        for name, q in distributions.items():
            score = score_function(cast(PyroDistribution, q), values[name])
            if score is not None:
                log_ratio = log_ratio + signal * self.densities.reduce(score)
        return log_ratio

    def maximize(self, num_steps: int, num_draws: int, lr: float) -> None:
        """Maximizes the ELBO of all data points by Adam.

        No two data points share a parameter, so their optimizations are independent.
        """
        leaves = [leaf for member in self.members.values() for leaf in member.leaves]
        optimizer = torch.optim.Adam(leaves, lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, 1.0, 0.0, total_iters=num_steps
        )
        for _ in range(num_steps):
            with torch.enable_grad():
                loss = -self.log_ratio(num_draws).sum() / num_draws
                # Unlike backward(), this leaves the gradients of the model's parameters alone.
                gradients = torch.autograd.grad(loss, leaves)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
            schedule.step()


# An argument of a distribution's constructor; distributions in it are taken apart, too.
_Part: TypeAlias = "_Member | list[_Member] | object"


class _Member:
    """A distribution, taken apart into its constructor's arguments, with free parameters.

    Free are the parameters that unconstrained numbers can be mapped to and that the support
    does not depend on. All other arguments stay fixed: temperatures, masks, transforms,
    gradient estimators, samplers.

    Raises:
        ValueError: If there are no free parameters.
    """

    def __init__(self, distribution: Distribution) -> None:
        independent = isinstance(distribution, Independent)
        family = Independent if independent else type(distribution)
        if issubclass(family, Delta):
            raise ValueError("a point has none.")
        self._family: Callable[..., Distribution] = family
        self._given: dict[str, _Part] = {}
        self._free: dict[str, tuple[Transform, Tensor]] = {}
        self.depends_on_draws = False
        batch_shape = distribution.batch_shape
        for name, value in _constructor_arguments(family, distribution).items():
            constraint = distribution.arg_constraints.get(name)
            if name == "batch_shape":
                self._given[name] = (1, *value[1:])
            elif isinstance(value, Distribution):
                self._given[name] = _Member(value)
            elif isinstance(value, (list, tuple)) and any(
                isinstance(part, Distribution) for part in value
            ):
                self._given[name] = [_Member(part) for part in value]
            elif (
                constraint is not None and torch.is_tensor(value) and value.is_floating_point()
            ):
                self._add_parameter(name, value.detach(), constraint, batch_shape)
            elif torch.is_tensor(value):
                self._given[name] = self._of_one_particle(value, batch_shape)
            else:
                self._given[name] = value
        self.depends_on_draws |= any(member.depends_on_draws for member in self._members)
        self._fix_the_support()
        if not self.leaves:
            raise ValueError("it has no free parameters.")

    @property
    def leaves(self) -> list[Tensor]:
        """The free parameters in unconstrained space, with those of inner distributions."""
        own = [leaf for _, leaf in self._free.values()]
        return own + [leaf for member in self._members for leaf in member.leaves]

    def distribution(self) -> Distribution:
        """Returns the distribution of the current parameters, of one particle."""
        given = {name: _rebuilt(value) for name, value in self._given.items()}
        free = {name: transform(leaf) for name, (transform, leaf) in self._free.items()}
        return self._family(**given, **free)

    @property
    def _members(self) -> list["_Member"]:
        values = [
            value if isinstance(value, list) else [value] for value in self._given.values()
        ]
        return [part for parts in values for part in parts if isinstance(part, _Member)]

    def _add_parameter(
        self,
        name: str,
        value: Tensor,
        constraint: constraints.Constraint,
        batch_shape: torch.Size,
    ) -> None:
        fixed = name in FIXED_UNLESS_GIVEN or constraints.is_dependent(constraint)
        with contextlib.suppress(NotImplementedError):
            transform = None if fixed else transform_to(constraint)
            if transform is not None:
                # Some families do not broadcast their parameters, and no two data points may
                # share one.
                event_shape = value.shape[value.dim() - constraint.event_dim :]
                whole = value.expand(batch_shape + event_shape)
                leaf = self._of_one_particle(transform.inv(whole), batch_shape)
                self._free[name] = (transform, leaf.clone().requires_grad_())
                return
        self._given[name] = self._of_one_particle(value, batch_shape)

    def _of_one_particle(self, value: Tensor, batch_shape: torch.Size) -> Tensor:
        """Returns the first of two particles.

        They must be equal: they differ if the value depends on the draws of other sites.
        """
        if not batch_shape or value.dim() < len(batch_shape) or len(value) != 2:
            return value
        self.depends_on_draws |= not torch.equal(value[0], value[1])
        return value[:1]

    def _fix_the_support(self) -> None:
        """Fixes the parameters that the bounds of the support depend on.

        The gradient of the ELBO does not see density that crosses the bounds.
        """
        with torch.enable_grad():
            support: object = None
            if self._free:
                support = getattr(self.distribution(), "support", None)
            while hasattr(support, "base_constraint"):
                support = support.base_constraint
            bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
            moving = [
                bound.sum()
                for bound in bounds
                if isinstance(bound, Tensor) and bound.requires_grad
            ]
            if not moving:
                return
            leaves = [leaf for _, leaf in self._free.values()]
            gradients = torch.autograd.grad(sum_of(moving), leaves, allow_unused=True)
        for name, gradient in zip(list(self._free), gradients, strict=True):
            if gradient is not None:
                transform, leaf = self._free.pop(name)
                self._given[name] = transform(leaf.detach())


def _rebuilt(value: _Part) -> object:
    if isinstance(value, list):
        return [_rebuilt(part) for part in value]
    return value.distribution() if isinstance(value, _Member) else value


def _constructor_arguments(
    family: type[Distribution], distribution: Distribution
) -> dict[str, Any]:
    """Returns the arguments that would make the distribution, from its attributes.

    Of parameters with several spellings, such as logits and probs, one is returned.
    """
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(family.__init__).parameters.items():
        given_otherwise = any(
            name in spellings and arguments.keys() & set(spellings) for spellings in SPELLINGS
        )
        if name in ("self", "validate_args") or given_otherwise:
            continue
        attributes = [name, f"_{name}", "base_dist" if name == "base_distribution" else name]
        kept = [
            getattr(distribution, attribute)
            for attribute in attributes
            if hasattr(distribution, attribute)
        ]
        kept = [value for value in kept if not inspect.ismethod(value)]
        if kept:
            arguments[name] = kept[0]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise ValueError(f"it does not keep its {name}.")
    return arguments
