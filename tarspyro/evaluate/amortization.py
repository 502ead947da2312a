"""Where a bound loses: to the guide's family, or to the network that computes the family's
parameters.
"""

__all__ = ["Gaps", "gaps"]

import contextlib
import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, Independent
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints, transform_to

from tarspyro.arguments import as_count, as_numbers, check_positive
from tarspyro.distributions.family import FIXED_UNLESS_GIVEN, SPELLINGS
from tarspyro.evaluate.batching import by_batch, over_particles, seeded
from tarspyro.evaluate.densities import Densities
from tarspyro.evaluate.likelihood import elbo
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import PairError, name_of, score_function, sum_of
from tarspyro.types import Program


class Gaps(NamedTuple):
    """log p(x), the best ELBO within the guide's family, and the guide's ELBO, in nats, for
    each data point.
    """

    log_likelihood: Any
    best_elbo: Any
    elbo: Any

    @property
    def approximation(self) -> Any:
        """What the family loses: KL(q* || p) of its best member q*."""
        return self.log_likelihood - self.best_elbo

    @property
    def amortization(self) -> Any:
        """What the guide loses beyond that, because one network serves all data points."""
        return self.best_elbo - self.elbo


def gaps(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_particles: int = 1000,
    num_steps: int = 500,
    num_draws: int = 10,
    lr: float = 0.05,
    log_likelihood: Any = None,
    seed: int | None = None,
) -> Gaps:
    r"""Splits the gap between log p(x) and the ELBO in two, for each data point.

    .. math:: \log p(x) - \mathcal{L}[q] = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation}}
              + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortization}}, \qquad
              q^* = \arg\max_{q \in \mathcal{Q}} \mathcal{L}[q]

    (Cremer et al. 2018, arXiv:1801.03558, eq. 4.) q* has the families of the guide's latent
    sites, and parameters of its own for each data point: Adam starts from the guide's, in
    unconstrained space, with a rate that falls to 0. What a family is made of beside free
    parameters is the guide's: the temperature of a relaxed variable, transforms, masks, and
    parameters that the support depends on. The bound of q* is then estimated with draws of its
    own. What the search has not found counts as approximation.

    Arguments:
        model: The model. Its latent variables are continuous and in the data's plate.
        guide: The guide. The distributions of its latent sites do not depend on one another's
            draws.
        x: The data, in any form that ``fit`` takes in memory.
        num_particles: The number of draws for each of the two bounds, and for log p(x).
        num_steps: The number of steps of Adam.
        num_draws: The number of draws for the gradient of a step.
        lr: The first learning rate.
        log_likelihood: log p(x) of each data point, such as what ``annealed_log_likelihood``
            returned, with or without errors. If not given, it is importance weighted with as
            many draws of q* as of the guide, over their
            mixture: a lower bound in expectation, and with it the approximation gap.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it
            was.

    Returns:
        A tuple (log_likelihood, best_elbo, elbo) with the properties ``approximation`` and
        ``amortization``: arrays for arrays, tensors for tensors. The three are estimates: a
            gap near 0 may come out below it.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a latent site is not continuous or not in the data's plate, the halves
            differ in their latent sites, or a site of the guide depends on another's draw or
            has no free parameters.
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 1.0))  # a Gaussian, as the posterior, but too wide
        >>> found = gaps(model, guide, torch.tensor([0.0, 2.0]), num_steps=200, seed=0)
        >>> bool((found.approximation.abs() < 0.05).all() and (found.amortization > 0.05).all())
        True
    """
    num_steps, num_draws = as_count("num_steps", num_steps), as_count("num_draws", num_draws)
    check_positive("lr", lr)

    def best(*arguments: Tensor) -> Tensor:
        structure = structure_of(
            model, guide, arguments, {}, particles=num_particles, observed=True
        )
        densities = Densities(model, guide, arguments, structure)
        local = _Local(densities)
        local.maximize(num_steps, num_draws, lr)

        def moments(arguments: tuple[Tensor, ...], count: int, structure: Structure) -> Tensor:
            own, theirs = local.draws(count), densities.draws(guide, count)
            bound = densities.log_joint(own) - local.log_prob(own)
            # Weights over the mixture of q* and q, as many draws of each: large only where
            # both are too small.
            mixed = [
                densities.log_joint(z)
                - torch.logaddexp(local.log_prob(z), densities.log_guide(z))
                + math.log(2)
                for z in (own, theirs)
            ]
            return torch.stack(
                [
                    densities.columns(torch.cat(mixed)).logsumexp(0),
                    densities.columns(bound).sum(0),
                ]
            )

        def combine(one: Tensor, other: Tensor) -> Tensor:
            return torch.stack([torch.logaddexp(one[0], other[0]), one[1] + other[1]])

        log_sum, total = over_particles(moments, combine, model, guide, num_particles)(
            *arguments
        )
        return torch.stack([log_sum - math.log(2 * num_particles), total / num_particles], -1)

    known = (
        None
        if log_likelihood is None
        else getattr(log_likelihood, "log_likelihood", log_likelihood)
    )
    if known is not None:
        as_numbers("log_likelihood", known)
    with seeded(seed):
        amortized = elbo(model, guide, x, num_particles=num_particles).elbo
        weighted = by_batch(best, model, guide, x)
    return Gaps(weighted[..., 0] if known is None else known, weighted[..., 1], amortized)


class _Local:
    """The guide's families with parameters of their own for each data point, any real numbers."""

    def __init__(self, densities: Densities) -> None:
        self.densities = densities
        self.members: dict[str, _Member] = {}
        self.masks: dict[str, Any] = {}
        trace = densities.run(densities.guide, densities.draws(densities.guide, 2))
        for name in densities.latent:
            site = trace.nodes[name]
            try:
                member = _Member(site["fn"])
            except ValueError as error:
                raise PairError(
                    f"{name!r} is {site['fn']}, whose parameters cannot be optimized: {error}"
                ) from None
            if member.depends_on_draws:
                raise PairError(
                    f"{name!r} of {name_of(densities.guide)} depends on another site's draw,"
                    " and has no parameters to optimize for a data point: gaps is for guides"
                    " whose sites are independent given the data."
                )
            q: Any = site["fn"]
            again = member.distribution().expand(q.batch_shape).log_prob(site["value"])
            if not torch.allclose(again, q.log_prob(site["value"]), rtol=1e-3, atol=1e-2):
                raise PairError(
                    f"{name!r} is {q}, whose attributes do not say what it was made of: gaps"
                    " is for families that keep the arguments of their constructor, as"
                    " Pyro's do."
                )
            self.members[name] = member
            self.masks[name] = site["mask"]

    def distributions(self, count: int) -> dict[str, Any]:
        """Returns the sites' distributions for so many particles."""
        made = {name: member.distribution() for name, member in self.members.items()}
        return {name: q.expand((count, *q.batch_shape[1:])) for name, q in made.items()}

    def draws(self, count: int) -> dict[str, Tensor]:
        """Returns so many draws of each site."""
        return {name: q.sample() for name, q in self.distributions(count).items()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Returns log q(z)."""
        made = self.distributions(len(next(iter(values.values()))))
        return sum_of(self._density(name, made[name], value) for name, value in values.items())

    def _density(self, name: str, q: Any, value: Tensor) -> Tensor:
        return self.densities.reduce(scale_and_mask(q.log_prob(value), mask=self.masks[name]))

    def bound(self, count: int) -> Tensor:
        """Returns log p(x, z) - log q(z) of so many draws, whose gradient is that of the
        bound.
        """
        made = self.distributions(count)
        values = {
            name: q.rsample() if q.has_rsample else q.sample() for name, q in made.items()
        }
        log_q = sum_of(self._density(name, q, values[name]) for name, q in made.items())
        log_w = self.densities.log_joint(values) - log_q
        signal = (log_w - log_w.mean(0, keepdim=True)).detach()
        for name, q in made.items():
            score = score_function(q, values[name])
            if score is not None:
                log_w = log_w + signal * self.densities.reduce(score)
        return log_w

    def maximize(self, num_steps: int, num_draws: int, lr: float) -> None:
        """Maximizes the bound of each data point; their parameters are apart, and so are
        Adam's steps.
        """
        leaves = [leaf for member in self.members.values() for leaf in member.leaves]
        optimizer = torch.optim.Adam(leaves, lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, 1.0, 0.0, total_iters=num_steps
        )
        for _ in range(num_steps):
            with torch.enable_grad():
                loss = -self.bound(num_draws).sum() / num_draws
                # The model's parameters stay as they are, their gradients too.
                for leaf, gradient in zip(
                    leaves, torch.autograd.grad(loss, leaves), strict=True
                ):
                    leaf.grad = gradient
            optimizer.step()
            schedule.step()


class _Member:
    """A distribution, taken apart into what its constructor was given, with its parameters
    free.

    Free are the parameters that any real numbers can be mapped to and that its support does
    not depend on. Whatever else it was made of stays as it is: temperatures, masks,
    transforms, scoring rules, samplers.
    """

    def __init__(self, distribution: Any) -> None:
        self.family = (
            Independent if isinstance(distribution, Independent) else type(distribution)
        )
        if issubclass(self.family, Delta):
            raise ValueError("a point has none.")
        self._given: dict[str, Any] = {}
        self._free: dict[str, tuple[Transform, Tensor]] = {}
        self.depends_on_draws = False
        batch_shape = distribution.batch_shape
        for name, value in _constructor_arguments(self.family, distribution).items():
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
            else:
                self._given[name] = self._of_one_particle(value, batch_shape)
        self.depends_on_draws |= any(member.depends_on_draws for member in self._members)
        self._keep_the_support()
        if not self.leaves:
            raise ValueError("it has no free parameters.")

    @property
    def leaves(self) -> list[Tensor]:
        """The free parameters, any real numbers, and those of the distributions that it is
        made of.
        """
        own = [leaf for _, leaf in self._free.values()]
        return own + [leaf for member in self._members for leaf in member.leaves]

    def distribution(self) -> Any:
        """Returns the distribution of the present parameters, of one particle."""
        given = {name: _made(value) for name, value in self._given.items()}
        free = {name: transform(leaf) for name, (transform, leaf) in self._free.items()}
        return self.family(**given, **free)

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
                # Some families do not broadcast their parameters, and data points shall not
                # share them.
                whole = value.expand(
                    batch_shape + value.shape[value.dim() - constraint.event_dim :]
                )
                leaf = self._of_one_particle(transform.inv(whole), batch_shape)
                self._free[name] = transform, leaf.clone().requires_grad_()
                return
        self._given[name] = self._of_one_particle(value, batch_shape)

    def _of_one_particle(self, value: Any, batch_shape: torch.Size) -> Any:
        """The first of two particles, which must be equal: given two draws of the other sites,
        nothing changes.
        """
        if (
            not torch.is_tensor(value)
            or value.dim() < len(batch_shape)
            or value.shape[0] != 2
            or not batch_shape
        ):
            return value
        self.depends_on_draws |= not torch.equal(value[0], value[1])
        return value[:1]

    def _keep_the_support(self) -> None:
        """Fixes the parameters that the ends of the support depend on: no gradient leads
        across them.
        """
        with torch.enable_grad():
            support: Any = (
                getattr(self.distribution(), "support", None) if self._free else None
            )
            while hasattr(support, "base_constraint"):
                support = support.base_constraint
            bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
            ends = [
                bound.sum()
                for bound in bounds
                if isinstance(bound, Tensor) and bound.requires_grad
            ]
            if not ends:
                return
            leaves = [leaf for _, leaf in self._free.values()]
            gradients = torch.autograd.grad(sum_of(ends), leaves, allow_unused=True)
        for name, gradient in zip([*self._free], gradients, strict=True):
            if gradient is not None:
                transform, leaf = self._free.pop(name)
                self._given[name] = transform(leaf.detach())


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(part) for part in value]
    return value.distribution() if isinstance(value, _Member) else value


def _constructor_arguments(family: type[Any], distribution: Any) -> dict[str, Any]:
    """The arguments that would make the distribution, as it keeps them: one spelling of each."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(family.__init__).parameters.items():
        if name in ("self", "validate_args") or any(
            name in spellings and arguments.keys() & set(spellings) for spellings in SPELLINGS
        ):
            continue
        attributes = (name, f"_{name}", "base_dist" if name == "base_distribution" else name)
        kept = [
            getattr(distribution, attribute)
            for attribute in attributes
            if hasattr(distribution, attribute)
        ]
        kept = [value for value in kept if not inspect.ismethod(value)]
        if kept:
            arguments[name] = kept[0]
        else:
            needed = parameter.default is inspect.Parameter.empty
            if needed and parameter.kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                raise ValueError(f"it does not keep its {name}.")
    return arguments
