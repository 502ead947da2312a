"""The Renyi bound of log weights, its derivative, and the baseline of each weight's score."""

__all__ = ["renyi_bound", "renyi_weights", "without_each"]

import math

import torch
from torch import Tensor


def renyi_bound(log_weights: Tensor, alpha: float, dim: int = 0) -> Tensor:
    r"""Reduces log weights to the variational Renyi bound.

    .. math:: \mathcal{L}_\alpha =
              \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^K w_k^{1 - \alpha}

    (Li and Turner 2016, arXiv:1602.02311, eq. 7.) alpha = 1 is the limit, the mean of log w;
    -inf is the largest log weight, +inf the smallest.

    Arguments:
        log_weights: The log weights log w_k.
        alpha: The order.
        dim: The dimension of k.

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
        # The logarithm of a number near one is divided by a number near zero. Around the mean,
        # expm1 and log1p keep its digits.
        centre = log_weights.mean(dim, keepdim=True)
        excess = torch.expm1(order * (log_weights - centre)).mean(dim)
        return centre.squeeze(dim) + torch.log1p(excess) / order
    log_sum = torch.logsumexp(order * log_weights, dim)
    return (log_sum - math.log(log_weights.shape[dim])) / order


def renyi_weights(log_weights: Tensor, alpha: float, dim: int = 0) -> Tensor:
    """Returns the bound's derivative in each log weight: the softmax of (1 - alpha) log w."""
    order = 1 - alpha
    if math.isinf(order):
        largest = log_weights if order > 0 else -log_weights
        chosen = largest.argmax(dim, keepdim=True)
        return torch.zeros_like(log_weights).scatter(dim, chosen, 1.0)
    if order == 0:  # where 0 times the log of a weight of zero would have no value
        return torch.full_like(log_weights, 1 / log_weights.shape[dim])
    weights = torch.softmax(order * log_weights, dim)
    # If all weights are zero, the bound has no gradient.
    return torch.where(log_weights.isneginf().all(dim, keepdim=True), 0.0, weights)


def without_each(log_weights: Tensor, alpha: float, dim: int = 0) -> Tensor:
    """Returns the bound with each log weight in turn replaced by the mean of the others.

    It is the baseline of a particle's score, and must not depend on the particle. (Mnih and
    Rezende 2016, VIMCO, arXiv:1602.06725, eq. 8.) It costs as little as the bound, by cumulative
    sums from the left and from the right. If the bound without a particle is not finite, the
    baseline is 0, which does not depend on the particle either.
    """
    count = log_weights.shape[dim]
    order = 1 - alpha
    if count == 1:
        return torch.zeros_like(log_weights)
    others = _mean_of_others(log_weights, dim)
    if order == 0:
        return _finite(others)
    if math.isinf(order):
        sign = math.copysign(1.0, order)
        first, second = (sign * log_weights).topk(2, dim).values.split(1, dim)
        return _finite(sign * torch.where(sign * log_weights == first, second, first))
    scaled = order * log_weights
    edge = torch.full_like(scaled.narrow(dim, 0, 1), -math.inf)
    from_left = torch.logcumsumexp(scaled, dim).narrow(dim, 0, count - 1)
    from_right = torch.logcumsumexp(scaled.flip(dim), dim).narrow(dim, 0, count - 1)
    left = torch.cat([edge, from_left], dim)
    right = torch.cat([edge, from_right], dim).flip(dim)
    total = torch.logsumexp(torch.stack([left, right, order * others]), 0)
    return _finite((total - math.log(count)) / order)


def _mean_of_others(log_weights: Tensor, dim: int) -> Tensor:
    """Returns the mean of the other log weights, which is -inf if one of them is."""
    finite = log_weights.isfinite()
    known = torch.where(finite, log_weights, 0.0)
    means = (known.sum(dim, keepdim=True) - known) / (log_weights.shape[dim] - 1)
    infinite = (~finite).to(log_weights.dtype)
    return torch.where(infinite.sum(dim, keepdim=True) - infinite > 0, -math.inf, means)


def _finite(baseline: Tensor) -> Tensor:
    return torch.where(baseline.isfinite(), baseline, 0.0)
