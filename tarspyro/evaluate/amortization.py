"""Where a bound loses: to the guide's family, or to the network that computes the family's parameters."""

__all__ = ["Gaps", "gaps"]

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent
from pyro.distributions.util import is_identically_zero
from torch import Tensor

from tarspyro.arguments import as_count, as_numbers, check_positive
from tarspyro.distributions.family import FamilyModule
from tarspyro.evaluate.batching import by_batch, over_particles, seeded
from tarspyro.evaluate.densities import Densities
from tarspyro.evaluate.likelihood import elbo
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import PairError, Program, name_of, score_function, sum_of


class Gaps(NamedTuple):
    """log p(x), the best ELBO within the guide's family, and the guide's ELBO, in nats, for each data point."""

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

    (Cremer et al. 2018, arXiv:1801.03558, eq. 4.) q* has the families of the guide's latent sites, and parameters of
    its own for each data point: Adam starts from the guide's, in unconstrained space, with a rate that falls to 0.
    Its bound is then estimated with draws of its own. What the search has not found counts as approximation.

    Arguments:
        model: The model. Its latent variables are continuous and in the data's plate.
        guide: The guide. The distributions of its latent sites do not depend on one another's draws.
        x: The data, in any form that ``fit`` takes in memory.
        num_particles: The number of draws for each of the two bounds, and for log p(x).
        num_steps: The number of steps of Adam.
        num_draws: The number of draws for the gradient of a step.
        lr: The first learning rate.
        log_likelihood: log p(x) of each data point, such as what ``annealed_log_likelihood`` returned, with or without
            errors. If not given, it is importance weighted with as many draws of q* as of the guide, over their
            mixture: a lower bound in expectation, and with it the approximation gap.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Returns:
        A tuple (log_likelihood, best_elbo, elbo) with the properties ``approximation`` and ``amortization``: arrays
        for arrays, tensors for tensors. The three are estimates: a gap near 0 may come out below it.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a latent site is not continuous or not in the data's plate, the halves differ in their latent
            sites, or a site of the guide depends on another's draw or has no free parameters.
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
        structure = structure_of(model, guide, arguments, {}, particles=num_particles, observed=True)
        densities = Densities(model, guide, arguments, structure)
        local = _Local(densities)
        local.maximize(num_steps, num_draws, lr)

        def moments(arguments: tuple[Tensor, ...], count: int, structure: Structure) -> Tensor:
            own, theirs = local.draws(count), densities.draws(guide, count)
            bound = densities.log_joint(own) - local.log_prob(own)
            # Weights over the mixture of q* and q, as many draws of each: large only where both are too small.
            mixed = [
                densities.log_joint(z) - torch.logaddexp(local.log_prob(z), densities.log_guide(z)) + math.log(2)
                for z in (own, theirs)
            ]
            return torch.stack([densities.columns(torch.cat(mixed)).logsumexp(0), densities.columns(bound).sum(0)])

        def combine(one: Tensor, other: Tensor) -> Tensor:
            return torch.stack([torch.logaddexp(one[0], other[0]), one[1] + other[1]])

        log_sum, total = over_particles(moments, combine, model, guide, num_particles)(*arguments)
        return torch.stack([log_sum - math.log(2 * num_particles), total / num_particles], -1)

    known = None if log_likelihood is None else getattr(log_likelihood, "log_likelihood", log_likelihood)
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
        self.families: dict[str, FamilyModule] = {}
        self.parameters: dict[str, dict[str, Tensor]] = {}
        trace = densities.run(densities.guide, densities.draws(densities.guide, 2))
        for name in densities.latent:
            self.families[name], pairs = _unconstrained(name, trace.nodes[name]["fn"])
            # Given two draws of the other sites, the distributions must be the same.
            if not all(torch.equal(*pair) for pair in pairs.values()):
                raise PairError(
                    f"{name!r} of {name_of(densities.guide)} depends on another site's draw, and has no parameters to "
                    "optimize for a data point: gaps is for guides whose sites are independent given the data."
                )
            self.parameters[name] = {parameter: pair[:1].clone() for parameter, pair in pairs.items()}

    def distributions(self, count: int) -> dict[str, Any]:
        """Returns the sites' distributions for so many particles."""
        made = ((name, family.distribution(self.parameters[name])) for name, family in self.families.items())
        return {name: q.expand((count, *q.batch_shape[1:])) for name, q in made}

    def draws(self, count: int) -> dict[str, Tensor]:
        """Returns so many draws of each site."""
        return {name: q.sample() for name, q in self.distributions(count).items()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Returns log q(z)."""
        made = self.distributions(len(next(iter(values.values()))))
        return sum_of(self.densities.reduce(made[name].log_prob(value)) for name, value in values.items())

    def bound(self, count: int) -> Tensor:
        """Returns log p(x, z) - log q(z) of so many draws, whose gradient is that of the bound."""
        made = self.distributions(count)
        values = {name: q.rsample() if q.has_rsample else q.sample() for name, q in made.items()}
        log_q = sum_of(self.densities.reduce(q.log_prob(values[name])) for name, q in made.items())
        log_w = self.densities.log_joint(values) - log_q
        signal = (log_w - log_w.mean(0, keepdim=True)).detach()
        for name, q in made.items():
            score = score_function(q, values[name])
            if not is_identically_zero(score):
                log_w = log_w + signal * self.densities.reduce(score)
        return log_w

    def maximize(self, num_steps: int, num_draws: int, lr: float) -> None:
        """Maximizes the bound of each data point; their parameters are apart, and so are Adam's steps."""
        leaves = [p.requires_grad_() for parameters in self.parameters.values() for p in parameters.values()]
        optimizer = torch.optim.Adam(leaves, lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
        for _ in range(num_steps):
            with torch.enable_grad():
                loss = -self.bound(num_draws).sum() / num_draws
                # The model's parameters stay as they are, their gradients too.
                for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                    leaf.grad = gradient
            optimizer.step()
            schedule.step()


def _unconstrained(name: str, distribution: Any) -> tuple[FamilyModule, dict[str, Tensor]]:
    """Returns the family of a distribution and its parameters, any real numbers."""
    event_shape = distribution.event_shape
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    family = type(distribution)
    names = inspect.signature(family.__init__).parameters.keys() - {"self", "validate_args"}
    options = {
        option: getattr(distribution, option)
        for option in names - family.arg_constraints.keys()
        if hasattr(distribution, option)
    }
    try:
        module = FamilyModule(family, event_shape, options)
    except (TypeError, ValueError) as error:
        raise PairError(f"{name!r} is {family.__name__}, whose parameters cannot be optimized: {error}") from None
    return module, {
        parameter: transform.inv(getattr(distribution, parameter)).detach()
        for parameter, (transform, _) in module.free.items()
    }
