"""Importance weighted bounds: IWAE, Renyi and their relatives, for each data point."""

__all__ = ["IWAE", "Renyi", "renyi_bound"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from torch import Tensor

from tarspyro.infer.base import Bound
from tarspyro.infer.traces import PairError, Program, sample_sites, score_function, trace_pair
from tarspyro.infer.weights import Structure, Weights, in_plates, is_local, weigh


def renyi_bound(log_weights: Tensor, alpha: float, dim: int = 0) -> Tensor:
    r"""Reduces log weights to the variational Renyi bound.

    .. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^K w_k^{1 - \alpha}

    (Li and Turner 2016, arXiv:1602.02311, eq. 7.) alpha = 1 is the limit, the mean of log w; -inf is the largest log
    weight, +inf the smallest.

    Example:
        >>> renyi_bound(torch.tensor([0.0, math.log(3.0)]), alpha=0.0).exp()
        tensor(2.)
    """
    order = 1 - alpha
    if order == 0:
        return log_weights.mean(dim)
    if math.isinf(order):
        return log_weights.amax(dim) if order > 0 else log_weights.amin(dim)
    if abs(order) < 1e-3:
        # Around the mean, the logarithm of a number near one, divided by a number near zero, keeps its digits.
        centre = log_weights.mean(dim, keepdim=True)
        return centre.squeeze(dim) + torch.log1p(torch.expm1(order * (log_weights - centre)).mean(dim)) / order
    return (torch.logsumexp(order * log_weights, dim) - math.log(log_weights.shape[dim])) / order


def renyi_weights(log_weights: Tensor, alpha: float, dim: int = 0) -> Tensor:
    """Returns the bound's derivative in each log weight: the softmax of (1 - alpha) log w."""
    order = 1 - alpha
    if math.isinf(order):
        chosen = log_weights.argmax(dim, keepdim=True) if order > 0 else log_weights.argmin(dim, keepdim=True)
        return torch.zeros_like(log_weights).scatter(dim, chosen, 1.0)
    return torch.softmax(order * log_weights, dim)


def without_each(log_weights: Tensor, alpha: float, dim: int = 0) -> Tensor:
    """Returns the bound with each log weight in turn replaced by the mean of the others.

    The baseline of a particle's score, which must not know the particle. (Mnih and Rezende 2016, VIMCO,
    arXiv:1602.06725, eq. 8.) It costs as little as the bound: sums from the left and from the right meet around each.
    """
    count, order = log_weights.shape[dim], 1 - alpha
    if count == 1:
        return torch.zeros_like(log_weights)
    others = (log_weights.sum(dim, keepdim=True) - log_weights) / (count - 1)
    if order == 0:
        return others
    if math.isinf(order):
        sign = math.copysign(1.0, order)
        first, second = (sign * log_weights).topk(2, dim).values.split(1, dim)
        return sign * torch.where(sign * log_weights == first, second, first)
    scaled = order * log_weights
    edge = torch.full_like(scaled.narrow(dim, 0, 1), -math.inf)
    left = torch.cat([edge, torch.logcumsumexp(scaled, dim).narrow(dim, 0, count - 1)], dim)
    right = torch.cat([edge, torch.logcumsumexp(scaled.flip(dim), dim).narrow(dim, 0, count - 1)], dim).flip(dim)
    total = torch.logsumexp(torch.stack([left, right, order * others]), 0)
    return (total - math.log(count)) / order


class Renyi(Bound):
    r"""The variational Renyi bound, for each data point.

    .. math:: \mathcal{L}_\alpha(x) = \mathbb{E}\bigg[ \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^K
              \Big( \frac{p(x, z_k)}{q(z_k \mid x)} \Big)^{1 - \alpha} \bigg], \qquad z_k \sim q(z \mid x)

    alpha = 1 is the ELBO, 0 the importance weighted bound (``IWAE``), -inf the largest weight (VR-max), +inf the
    smallest. With alpha below 0 and many particles it is an upper bound on log p(x): for alpha = 1 - n the chi bound
    CUBO of order n (Dieng et al. 2017). (Li and Turner 2016, arXiv:1602.02311, eq. 7.)

    The weights are those of single data points: the indices of the plates that hold all sites of a data point, several
    plates side by side included. Latent variables outside all plates are shared by the data points, and the bound is
    nested: their log p - log q, plus the data points' bounds given them, in expectation over them. Where all latent
    variables are shared, the data set is the one data point. Scales multiply a data point's bound; masks act on the
    weights.

    Draws that are not, or not wholly, reparameterized (discrete ones, rejection samplers) get the score-function
    gradient, unbiased for the bound with K particles: a data point's bound minus the bound without the particle.

    Arguments:
        alpha: The order, any real number, ``-math.inf`` or ``math.inf``.
        num_particles: K, the number of draws inside the logarithm.
        num_groups: How many such bounds are averaged.
        gradient: ``"pathwise"``, or ``"dreg"`` for the doubly reparameterized gradient of the guide (Tucker et al.
            2018, arXiv:1810.04152; for other orders than 0 Daudel et al. 2022), whose noise does not drown it as K
            grows. It wants a reparameterized guide, and runs the guide twice; without dropout, which would differ.
        max_plate_nesting: How many plates deep the pair is; found by a run without side effects if not given.
        retain_graph: Passed on to ``backward`` by ``loss_and_grads``.

    Raises:
        ValueError: If an argument is out of range.
        PairError: When called, if data points have no weights of their own or no common scale, or ``"dreg"`` meets a
            guide that is not reparameterized.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> x = torch.tensor([0.0, 2.0])
        >>> exact = dist.Normal(0.0, 2.0**0.5).log_prob(x).sum()
        >>> abs(Renyi(0.0, num_particles=100_000).loss(model, guide, x) + exact.item()) < 0.05
        True
    """

    def __init__(
        self,
        alpha: float,
        num_particles: int = 10,
        num_groups: int = 1,
        gradient: str = "pathwise",
        *,
        max_plate_nesting: int | float = math.inf,
        retain_graph: bool | None = None,
    ) -> None:
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}.")
        if math.isnan(alpha):
            raise ValueError("alpha must be a number, got nan.")
        if gradient not in ("pathwise", "dreg"):
            raise ValueError(f"gradient must be 'pathwise' or 'dreg', got {gradient!r}.")
        if gradient == "dreg" and math.isinf(alpha):
            raise ValueError("gradient='dreg' is for a finite alpha: take 'pathwise'.")
        super().__init__(num_particles, max_plate_nesting=max_plate_nesting, retain_graph=retain_graph)
        self.alpha, self.num_groups, self.gradient = alpha, num_groups, gradient

    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each data point, from weights of the shape ``[groups, particles, data points]``."""
        return renyi_bound(log_weights, self.alpha, dim=1)

    def baseline(self, log_weights: Tensor) -> Tensor:
        """The bound without each particle."""
        return without_each(log_weights, self.alpha, dim=1)

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the bound; there are no terms."""
        structure = self._structure(model, guide, args, kwargs)
        plates = (self.num_groups, self.num_particles, structure)
        replicated = in_plates(model, *plates), in_plates(guide, *plates)
        if self.gradient == "dreg" and torch.is_grad_enabled():
            return -self._doubly_reparameterized(model, *replicated, args, kwargs, structure), {}
        return -self._estimate(weigh(model, *trace_pair(*replicated, args, kwargs), structure)), {}

    def _estimate(self, weights: Weights) -> Tensor:
        """The bound, with its pathwise gradient and the score functions' where a draw needs them."""
        total, surrogates = torch.zeros(()), []
        for group in weights.groups:
            value = self.bound(group.log_weights)
            total = total + (group.scale * value).sum(-1)
            if group.score is not None:
                signal = value.unsqueeze(1) - self.baseline(group.log_weights)
                surrogates.append((group.scale * signal.detach() * group.score).sum((1, 2)))
        if weights.shared is not None:
            total = total + weights.shared.log_weights
            if weights.shared.score is not None:
                signal = total.detach()
                if len(signal) > 1:
                    signal = signal - (signal.sum() - signal) / (len(signal) - 1)
                surrogates.append(signal * weights.shared.score)
        for surrogate in surrogates:
            total = total + (surrogate - surrogate.detach())
        return total.mean()

    def _doubly_reparameterized(
        self,
        model: Program,
        model_in_plates: Program,
        guide_in_plates: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        structure: Structure,
    ) -> Tensor:
        r"""The bound, with the model's gradient as ever and the guide's through the draws alone.

        .. math:: \nabla_\phi \mathcal{L}_\alpha = \mathbb{E}\Big[ \sum_k \big( \alpha \tilde w_k + (1 - \alpha)
                  \tilde w_k^2 \big) \frac{\partial \log w_k}{\partial z_k} \frac{d z_k}{d \phi} \Big]

        A second run of both halves on cut-off copies of the draws gives the partial derivatives: each draw's own, with
        the other draws and all parameters fixed. The chain through the draws is that of the first run.
        """
        drawn = poutine.trace(guide_in_plates).get_trace(*args, **kwargs)
        latent = {name: site for name, site in sample_sites(drawn) if not site["is_observed"]}
        for name, site in latent.items():
            if not site["value"].requires_grad or not is_identically_zero(score_function(site["fn"], site["value"])):
                raise PairError(f"gradient='dreg' needs reparameterized draws, and {name!r} is not: take 'pathwise'.")
        copies = {name: site["value"].detach().requires_grad_() for name, site in latent.items()}
        cut = drawn.copy()
        for name, value in copies.items():
            cut.nodes[name] = {**cut.nodes[name], "value": value}
        model_trace, guide_trace = (
            poutine.trace(poutine.replay(half, trace=cut)).get_trace(*args, **kwargs)
            for half in (model_in_plates, guide_in_plates)
        )
        weights = weigh(model, model_trace, guide_trace, structure)
        total, joint, local, outer = (torch.zeros(()) for _ in range(4))
        for group in weights.groups:
            log_weights, scale = group.log_weights, group.scale
            normalized = renyi_weights(log_weights.detach(), self.alpha, dim=1)
            doubly = normalized**2 if self.alpha == 0 else normalized + (1 - self.alpha) * (normalized**2 - normalized)
            total = total + (scale * self.bound(log_weights)).sum(-1).detach().mean()
            joint = joint + (scale * normalized * group.log_joint).sum()
            local = local + (scale * doubly * log_weights).sum()
            outer = outer + (scale * normalized * log_weights).sum()
        if weights.shared is not None:
            total = total + weights.shared.log_weights.detach().mean()
            joint = joint + weights.shared.log_joint.sum()
            outer = outer + weights.shared.log_weights.sum()
        # What data points share is drawn once for all particles: its derivative is that of the bound itself.
        inside = {name for name, site in latent.items() if not structure.local or is_local(site)}
        chain = torch.zeros(())
        for objective, names in ((local, inside), (outer, latent.keys() - inside)):
            values = [copies[name] for name in names]
            if values:
                partial = torch.autograd.grad(objective, values, retain_graph=True)
                terms = zip(names, partial, strict=True)
                chain = chain + sum((latent[name]["value"] * derivative).sum() for name, derivative in terms)
        surrogate = (joint + chain) / self.num_groups
        return total + (surrogate - surrogate.detach())


class IWAE(Renyi):
    r"""The importance weighted bound of each data point: ``Renyi`` of order 0.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}\Big[ \log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)} \Big]

    (Burda et al. 2015, arXiv:1509.00519, eq. 8.) With ``num_groups`` it is MIWAE (Rainforth et al. 2018).

    Arguments:
        num_particles: K.
        num_groups: See ``Renyi``.
        gradient: See ``Renyi``.

    Example:
        >>> IWAE(num_particles=5).alpha
        0.0
    """

    def __init__(
        self, num_particles: int = 10, num_groups: int = 1, gradient: str = "pathwise", **options: Any
    ) -> None:
        super().__init__(0.0, num_particles, num_groups, gradient, **options)
