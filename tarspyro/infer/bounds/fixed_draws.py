"""Objectives whose gradients take the draws as given: reweighted wake-sleep, f-divergences, the
thermodynamic one.

The densities of the draws have gradients, the draws themselves have none. So no family needs a
reparameterization, and no baseline is needed for discrete ones.
"""

__all__ = ["TVO", "FDivergence", "FixedDraws", "ReweightedWakeSleep"]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import softplus

from tarspyro.arguments import as_count, check_choice, check_number, format_value
from tarspyro.infer.bounds.importance import TAKE_IWAE, WeightedBound
from tarspyro.infer.bounds.reductions import renyi_bound, renyi_weights
from tarspyro.infer.pairs import check_vectorized
from tarspyro.infer.structure import Structure
from tarspyro.infer.summation import run_model
from tarspyro.infer.traces import (
    PairError,
    check_densities,
    drawn_of,
    name_of,
    rerun,
    sample_sites,
    sum_of,
    with_values,
)
from tarspyro.infer.weights import Weights, in_plates, weigh
from tarspyro.types import Program

# f(t) of a divergence E_q[f(p / q)], as a function of log t.
_DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "inclusive-kl": lambda log_t: log_t.exp() * log_t,
    "exclusive-kl": lambda log_t: -log_t,
    "chi2": lambda log_t: log_t.expm1() ** 2,
    "hellinger": lambda log_t: (log_t / 2).expm1() ** 2,
    "jensen-shannon": lambda log_t: (
        (log_t.exp() * log_t - (1 + log_t.exp()) * (softplus(log_t) - math.log(2))) / 2
    ),
    "total-variation": lambda log_t: log_t.expm1().abs() / 2,
}
# What log t of a draw that the model cannot make counts as.
_IMPOSSIBLE = -100.0


class FixedDraws(WeightedBound):
    """The base of objectives of fixed draws. Subclasses define ``objective``.

    Arguments:
        num_particles: K, the draws of a group.
        num_groups: The number of groups.
        max_plate_nesting: See ``Renyi``.
        retain_graph: See ``Renyi``.
    """

    def __init__(
        self,
        num_particles: int,
        num_groups: int = 1,
        *,
        max_plate_nesting: int | float = math.inf,
        retain_graph: bool | None = None,
    ) -> None:
        super().__init__(
            num_particles,
            num_groups,
            "pathwise",
            max_plate_nesting=max_plate_nesting,
            retain_graph=retain_graph,
        )

    def objective(self, log_joint: Tensor, log_guide: Tensor) -> Tensor:
        """Returns a number for each group and data point, whose gradient is the estimate.

        Arguments:
            log_joint: log p(x, z), of shape ``[groups, particles, data points]``.
            log_guide: log q(z | x), of the same shape.
        """
        raise NotImplementedError

    def _check(self, model: Program, guide: Program, structure: Structure) -> None:
        check_vectorized(model, guide, structure, type(self).__name__, TAKE_IWAE)

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the objective; there are no terms."""
        structure = self.structure(model, guide, *args, **kwargs)
        weights = self._weights(model, guide, args, kwargs, structure)
        values = []
        for group in weights.groups:
            value = self.objective(group.log_joint, group.log_guide)
            values.append((group.scale * value).sum(-1).mean())
        return -sum_of(values), {}

    def _weights(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        structure: Structure,
    ) -> Weights:
        """Returns the weights of draws without gradients."""
        model_in_plate, guide_in_plate = in_plates(
            model, guide, self.num_groups, self.num_particles, structure
        )
        drawn = poutine.trace(guide_in_plate).get_trace(*args, **kwargs)
        sites = drawn_of(sample_sites(drawn))
        check_densities(sites.values(), type(self).__name__, "train with ELBO() or IWAE(K)")
        values = {name: site["value"].detach() for name, site in sites.items()}
        guide_trace = rerun(guide_in_plate, drawn, values, args, kwargs)
        given = with_values(drawn, values)
        model_trace = run_model(model_in_plate, given, args, kwargs, structure)
        weights = weigh(model, model_trace, guide_trace, structure)
        if weights.shared is not None:
            raise PairError(
                f"{type(self).__name__} is for latent variables of data points, and the data"
                f" points of {name_of(model)} share {structure.shared}: take IWAE."
            )
        return weights


class ReweightedWakeSleep(FixedDraws):
    r"""Reweighted wake-sleep for each data point, with two wake phases.

    .. math:: \nabla_\theta: \; \sum_k \bar w_k \nabla_\theta \log p(x, z_k), \qquad
              \nabla_\phi: \; \sum_k \bar w_k \nabla_\phi \log q(z_k \mid x), \qquad
              \bar w_k = \frac{w_k}{\sum_l w_l}, \quad z_k \sim q(z \mid x)

    The model follows the importance weighted bound, whose gradient in it this is. The guide
    minimizes an estimate of :math:`\mathrm{KL}(p(z \mid x) \,\|\, q(z \mid x))`, the other
    direction than that of the ELBO: it covers the posterior, and its signal does not vanish as
    K grows. Draws may be discrete. The loss is minus the importance weighted bound.

    There is no sleep phase, which trains the guide on draws of the model: Le et al. find the
    wake phase better as soon as there are a few particles.

    (Bornschein and Bengio 2014, arXiv:1406.2751, eqs. 4 and 8; Le et al. 2018,
    arXiv:1805.10469.)

    Arguments:
        num_particles: K, at least 2.
        num_groups: How many such estimates are averaged.
        options: ``max_plate_nesting`` and ``retain_graph``, see ``Renyi``.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If an argument is out of range.
        PairError: When called, if data points share latent variables, or the pair cannot run in
            a plate of particles.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=logits))
        >>> loss = ReweightedWakeSleep(1000).differentiable_loss(
        ...     model, guide, torch.tensor([-1.0, 3.0])
        ... )
        >>> loss.backward()
        >>> (-logits.grad).sign()  # z = 0 explains the first point, z = 1 the second
        tensor([-1.,  1.])
    """

    def __init__(self, num_particles: int = 10, num_groups: int = 1, **options: Any) -> None:
        super().__init__(as_count("num_particles", num_particles, 2), num_groups, **options)

    def objective(self, log_joint: Tensor, log_guide: Tensor) -> Tensor:
        """Returns log (1/K) sum_k w_k, with the gradients of the two wake phases."""
        log_weights = (log_joint - log_guide).detach()
        shares = renyi_weights(log_weights, 0.0, dim=1)
        wake = _mean(shares, log_joint + log_guide)
        return renyi_bound(log_weights, 0.0, dim=1) + (wake - wake.detach())


class FDivergence(FixedDraws):
    r"""An f-divergence from the posterior to the guide, for each data point.

    .. math:: D_f(x) = \mathbb{E}_{q(z \mid x)}\big[ f(t) \big], \qquad
              t = \frac{p(z \mid x)}{q(z \mid x)}, \qquad
              \nabla_\phi D_f = -\mathbb{E}_{q(z \mid x)}
              \big[ (t f'(t) - f(t)) \, \nabla_\phi \log q(z \mid x) \big]

    The guide minimizes the divergence, of any convex f. The model follows the importance
    weighted bound of the same draws, which is also the loss, with a minus. The ratios are
    estimated as :math:`t_k = K w_k / \sum_l w_l`, with a bias in the order of 1 / K. So the
    gradient does not depend on the units of x: a bound :math:`\mathbb{E}_q[f(w)]` of other
    functions than powers, which ``Renyi`` has, would. Expectations of scores are sample
    covariances times K / (K - 1), as in ``TVO``, and draws may be discrete.

    A mode that the guide has lost has no draws, so it is missing in the estimate, too. Start
    with a wide guide: only divergences that cover the posterior keep it wide.

    ============================  ==================================================
    ``f``                         f(t)
    ============================  ==================================================
    ``"inclusive-kl"``            :math:`t \log t`, KL(p || q)
    ``"exclusive-kl"``            :math:`-\log t`, KL(q || p), that of the ELBO
    ``"chi2"``                    :math:`(t - 1)^2`
    ``"hellinger"``               :math:`(\sqrt t - 1)^2`
    ``"jensen-shannon"``          :math:`(t \log t - (1 + t) \log \frac{1 + t}{2}) / 2`
    ``"total-variation"``         :math:`|t - 1| / 2`
    ============================  ==================================================

    ``"inclusive-kl"`` is ``ReweightedWakeSleep`` with the covariance in place of the mean, and
    ``"exclusive-kl"`` has the score-function gradient of the ELBO, without bias. ``"chi2"``
    minimizes the chi upper bound CUBO of order 2, with the gradient of CHIVI (Dieng et al. 2017,
    arXiv:1611.00328): :math:`\log(1 + D_f) = 2 \, (\mathrm{CUBO}_2 - \log p(x))`, and
    ``Renyi(-1.0, K)`` is an estimate of CUBO itself.

    (Wan et al. 2020, arXiv:2009.13093; Csiszar 1963.)

    Arguments:
        f: A name of the table, or a function that takes log t, a tensor, and returns f(t), which
            is convex in t: ``lambda log_t: log_t.exp() * log_t`` is :math:`t \log t`.
        num_particles: K, at least 2.
        num_groups: How many such estimates are averaged.
        options: ``max_plate_nesting`` and ``retain_graph``, see ``Renyi``.

    Raises:
        TypeError: If a number is not whole, ``f`` is neither a name nor a function, or it
            returns no tensor with derivatives.
        ValueError: If an argument is out of range, or ``f`` is not convex in t.
        PairError: When called, if data points share latent variables, or the pair cannot run in
            a plate of particles.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.5))
        ...         pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)
        >>> logits = torch.zeros(2, requires_grad=True)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Bernoulli(logits=logits))
        >>> loss = FDivergence("hellinger", 1000).differentiable_loss(
        ...     model, guide, torch.tensor([-1.0, 3.0])
        ... )
        >>> loss.backward()
        >>> (-logits.grad).sign()  # z = 0 explains the first point, z = 1 the second
        tensor([-1.,  1.])
        >>> FDivergence(lambda log_t: (3 * log_t).exp(), 1000).num_particles  # f(t) = t^3
        1000
    """

    def __init__(
        self,
        f: str | Callable[[Tensor], Tensor],
        num_particles: int = 10,
        num_groups: int = 1,
        **options: Any,
    ) -> None:
        if isinstance(f, str):
            check_choice("f", f, _DIVERGENCES)
        elif not callable(f):
            raise TypeError(
                f"f must be a name or a function of log t, got {format_value(f)}: take"
                " 'jensen-shannon'."
            )
        else:
            _check_convex(f)
        super().__init__(as_count("num_particles", num_particles, 2), num_groups, **options)
        self.f = f

    def objective(self, log_joint: Tensor, log_guide: Tensor) -> Tensor:
        """Returns log (1/K) sum_k w_k, with the model's gradient of it and the guide's of D_f."""
        log_weights = (log_joint - log_guide).detach()
        bound = renyi_bound(log_weights, 0.0, dim=1)
        shares = renyi_weights(log_weights, 0.0, dim=1)
        impossible = log_weights.isneginf()
        log_ratios = (log_weights - bound.unsqueeze(1)).masked_fill(impossible, _IMPOSSIBLE)
        signal = self._signal(log_ratios)
        deviation = signal - signal.mean(1, keepdim=True)
        approach: Tensor = (deviation * log_guide).sum(1) / (self.num_particles - 1)
        surrogate = _mean(shares, log_joint) + approach
        return bound + (surrogate - surrogate.detach())

    def _signal(self, log_ratios: Tensor) -> Tensor:
        """Returns t f'(t) - f(t), where t f'(t) is the derivative in log t."""
        f = _DIVERGENCES[self.f] if isinstance(self.f, str) else self.f
        with torch.enable_grad():
            log_t = log_ratios.detach().requires_grad_()
            value = f(log_t)
            (slope,) = torch.autograd.grad(value.sum(), log_t)
        return slope - value.detach()


class TVO(FixedDraws):
    r"""The thermodynamic variational objective: log p(x) as an integral from q to p.

    .. math:: \log p(x) = \int_0^1 \mathbb{E}_{\pi_\beta}[\log w] \, \mathrm{d} \beta, \qquad
              \pi_\beta(z) \propto q(z \mid x)^{1 - \beta} \, p(x, z)^\beta, \qquad
              w = \frac{p(x, z)}{q(z \mid x)}

    The integrand grows with beta, so a left Riemann sum is a lower bound on log p(x) and a right
    one an upper bound, for measurements: train with the left one. One partition is the ELBO, or
    from the right E[log w] under the posterior; more partitions are tighter. Expectations under
    :math:`\pi_\beta` are estimated with the same K draws of the guide, weighted by
    :math:`w_k^\beta`: estimates are biased for :math:`\beta > 0`, in the order of 1 / K.

    The gradient is the covariance estimator, for discrete and continuous draws alike:

    .. math:: \nabla \mathbb{E}_{\pi_\beta}[\log w] = \mathbb{E}_{\pi_\beta}[\nabla \log w] +
              \mathrm{Cov}_{\pi_\beta}\big( \beta \nabla \log p(x, z) +
              (1 - \beta) \nabla \log q(z \mid x), \; \log w \big)

    with sample covariances times K / (K - 1), which makes it unbiased for one partition.

    (Masrani et al. 2019, arXiv:1907.00031, eqs. 3, 6 and 8.)

    Arguments:
        num_particles: K, at least 2.
        num_partitions: The number of steps from 0 to 1.
        first_beta: The first step's end; the others follow at equal ratios. With one partition
            it is not used.
        integration: ``"left"`` for the lower bound, or ``"right"`` for the upper one.
        num_groups: How many such estimates are averaged.
        options: ``max_plate_nesting`` and ``retain_graph``, see ``Renyi``.

    Attributes:
        betas: The ends of the partitions, from 0 to 1.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If an argument is out of range.
        PairError: When called, if data points share latent variables, or the pair cannot run in
            a plate of particles.

    Example:
        >>> [round(beta, 4) for beta in TVO(num_partitions=3, first_beta=0.01).betas]
        [0.0, 0.01, 0.1, 1.0]
    """

    def __init__(
        self,
        num_particles: int = 10,
        num_partitions: int = 5,
        first_beta: float = 0.1,
        integration: str = "left",
        num_groups: int = 1,
        **options: Any,
    ) -> None:
        check_number("first_beta", first_beta, 0, 1)
        check_choice("integration", integration, ("left", "right"))
        num_partitions = as_count("num_partitions", num_partitions)
        if num_partitions > 1 and first_beta in (0, 1):
            raise ValueError(
                f"first_beta must lie between 0 and 1, got {first_beta}: take 0.1, or"
                " num_partitions=1."
            )
        super().__init__(as_count("num_particles", num_particles, 2), num_groups, **options)
        self.integration = integration
        steps = num_partitions - 1
        inner = [first_beta ** (1 - step / steps) for step in range(steps)]
        self.betas = [0.0, *inner, 1.0]

    def objective(self, log_joint: Tensor, log_guide: Tensor) -> Tensor:
        """Returns the Riemann sum, with the gradient of the covariance estimator."""
        values = []
        for start, end in zip(self.betas, self.betas[1:], strict=False):
            beta = start if self.integration == "left" else end
            values.append((end - start) * self._integrand(beta, log_joint, log_guide))
        return sum_of(values)

    def _integrand(self, beta: float, log_joint: Tensor, log_guide: Tensor) -> Tensor:
        """Returns the estimate of E[log w] under pi_beta."""
        log_weights = log_joint - log_guide
        shares = renyi_weights(log_weights.detach(), 1 - beta, dim=1)
        mean = _mean(shares, log_weights)
        deviation = (log_weights - mean.unsqueeze(1)).detach()
        # The mean is -inf if the model cannot make a draw, and has no gradient then.
        signal = shares * deviation.where((shares > 0) & deviation.isfinite(), 0.0)
        log_density = beta * log_joint + (1 - beta) * log_guide
        count: int = self.num_particles
        covariance = _mean(signal, log_density) * count / (count - 1)
        return mean + (covariance - covariance.detach())


def _check_convex(f: Callable[[Tensor], Tensor]) -> None:
    """Raises unless f, a function of log t, has derivatives and is convex in t."""
    with torch.enable_grad():
        log_t = torch.linspace(-3.0, 3.0, 61, dtype=torch.float64, requires_grad=True)
        value: object = f(log_t)
        if not torch.is_tensor(value) or value.shape != log_t.shape or not value.requires_grad:
            raise TypeError(
                "f must return a tensor with a number for each log t, which has derivatives, got"
                f" {format_value(value)}: take lambda log_t: log_t.exp() * log_t for t log t."
            )
        (slope,) = torch.autograd.grad(value.sum(), log_t)
    # The derivative of t f'(t) - f(t) in t is t f''(t).
    signal = (slope - value).detach()
    rounding = 1e-6 * (1 + signal.abs())  # a function may compute in single precision
    if not bool((signal.diff() >= -rounding[1:]).all()):  # false for NaN too
        raise ValueError(
            "f must be convex in t, and is given log t: take lambda log_t: log_t.exp() * log_t for"
            " t log t."
        )


def _mean(shares: Tensor, values: Tensor) -> Tensor:
    """Returns the sum of the particles' values times their shares; a share of 0 counts 0."""
    counted: Tensor = shares * values.masked_fill(shares == 0, 0.0)
    return counted.sum(1)
