"""Where a bound loses: to the guide's family, or to the network that computes the family's parameters."""

__all__ = ["Gaps", "gaps"]

import inspect
from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent
from pyro.distributions.util import is_identically_zero
from torch import Tensor

from tarspyro.distributions.family import FamilyModule
from tarspyro.evaluate.batching import by_batch, over_particles, seeded
from tarspyro.evaluate.densities import Densities
from tarspyro.evaluate.likelihood import elbo
from tarspyro.evaluate.likelihood import log_likelihood as importance_sampled
from tarspyro.infer.traces import PairError, Program, guess_plate_nesting, name_of, score_function, sum_of


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
        num_particles: The number of draws for log p(x) and for each of the two bounds.
        num_steps: The number of steps of Adam.
        num_draws: The number of draws for the gradient of a step.
        lr: The first learning rate.
        log_likelihood: log p(x) of each data point, such as what ``annealed_log_likelihood`` returned; by importance
            sampling if not given, a lower bound then, and with it the gap.
        seed: Makes the draws those of this seed, and leaves the caller's random state as it was.

    Returns:
        A tuple (log_likelihood, best_elbo, elbo) with the properties ``approximation`` and ``amortization``: arrays
        for arrays, tensors for tensors. The three are separate estimates: a gap near 0 may come out below it.

    Raises:
        InputError: If the data does not fit the likelihood.
        PairError: If a latent site is not continuous or not in the data's plate, the halves differ in their latent
            sites, or a site of the guide depends on another's draw or has no free parameters.
        ValueError: If an argument is out of range.
    """
    for name, number in (("num_steps", num_steps), ("num_draws", num_draws)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")

    def best(*arguments: Tensor) -> Tensor:
        densities = Densities(model, guide, arguments, guess_plate_nesting(model, guide, arguments, {}))
        local = _Local(densities)
        local.maximize(num_steps, num_draws, lr)

        def total(arguments: tuple[Tensor, ...], count: int, nesting: int) -> Tensor:
            return densities.columns(local.log_weights(count)[0].sum(0, keepdim=True)).squeeze(0)

        return over_particles(total, torch.add, model, guide, num_particles)(*arguments) / num_particles

    with seeded(seed):
        if log_likelihood is None:
            log_likelihood = importance_sampled(model, guide, x, num_particles=num_particles)
        amortized = elbo(model, guide, x, num_particles=num_particles).elbo
        return Gaps(log_likelihood, by_batch(best, model, guide, x), amortized)


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

    def log_weights(self, count: int) -> tuple[Tensor, Any]:
        """Returns log p(x, z) - log q(z) of so many draws, and the score function of those that need it, else 0."""
        values, log_q, scores = {}, [], []
        for name, family in self.families.items():
            q = family.distribution(self.parameters[name])
            q = q.expand((count, *q.batch_shape[1:]))
            values[name] = q.rsample() if q.has_rsample else q.sample()
            log_q.append(self.densities.reduce(q.log_prob(values[name])))
            score = score_function(q, values[name])
            scores += [] if is_identically_zero(score) else [self.densities.reduce(score)]
        prior, likelihood = self.densities.log_model(values)
        return prior + likelihood - sum_of(log_q), sum_of(scores) if scores else 0.0

    def maximize(self, num_steps: int, num_draws: int, lr: float) -> None:
        """Maximizes the bound of each data point; their parameters are apart, and so are Adam's steps."""
        leaves = [p.requires_grad_() for parameters in self.parameters.values() for p in parameters.values()]
        optimizer = torch.optim.Adam(leaves, lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
        for _ in range(num_steps):
            with torch.enable_grad():
                log_w, score = self.log_weights(num_draws)
                signal = (log_w - log_w.mean(0, keepdim=True)).detach()
                loss = -(log_w + signal * score).sum() / num_draws
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
