r"""Kullback-Leibler divergences in closed form, for ``torch.distributions.kl_divergence``.

Torch and Pyro have the families' own (Normal, full-covariance Normal, Laplace, Bernoulli, Categorical, ...). Here are
those of the families that TarsPyro adds, and Gamma, Beta and Dirichlet again in a form that loses no digits at large
concentrations. Each is in nats, one number for each row, summed over the event.
"""

__all__: list[str] = []

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import kl_divergence, register_kl

from tarspyro.distributions.dirichlet import Beta, Dirichlet
from tarspyro.distributions.experts import Concatenate
from tarspyro.distributions.gamma import Gamma, InverseGamma
from tarspyro.distributions.kumaraswamy import Kumaraswamy, StickBreaking, log1m_power, log1mexp
from tarspyro.distributions.rejection import digamma_remainder, stirling_remainder
from tarspyro.distributions.relaxed import GumbelSigmoid, GumbelSoftmax


@register_kl(Gamma, td.Gamma)
def _gamma_gamma(q: Gamma, p: td.Gamma) -> Tensor:
    return _gamma_kl(q.concentration, p.concentration) + _rate_kl(q, p)


def _gamma_kl(q: Tensor, p: Tensor) -> Tensor:
    r"""KL between Gammas of concentrations a and b and equal *means*, with :math:`\delta` Stirling's remainder.

    .. math:: (a - b)(\psi(a) - \log a) + \tfrac{1}{2} \log(a / b) - \delta(a) + \delta(b)
    """
    return (q - p) * digamma_remainder(q) + 0.5 * (q / p).log() - stirling_remainder(q) + stirling_remainder(p)


def _rate_kl(q: td.Gamma, p: td.Gamma) -> Tensor:
    """What other means add: b (r - 1 - log r) with r the ratio of the means."""
    log_ratio = (q.concentration / p.concentration).log() - (q.rate / p.rate).log()
    return p.concentration * (torch.expm1(log_ratio) - log_ratio)


@register_kl(InverseGamma, InverseGamma)
def _inverse_gamma_inverse_gamma(q: InverseGamma, p: InverseGamma) -> Tensor:
    return kl_divergence(q.gamma, p.gamma)


@register_kl(Dirichlet, td.Dirichlet)
def _dirichlet_dirichlet(q: Dirichlet, p: td.Dirichlet) -> Tensor:
    """The Gammas' sum is independent of their shares: their KL is that of the shares plus that of the sum."""
    return _shares_kl(q.concentration, p.concentration)


@register_kl(Beta, td.Beta)
def _beta_beta(q: Beta, p: td.Beta) -> Tensor:
    concentrations = (torch.stack([beta.concentration1, beta.concentration0], -1) for beta in (q, p))
    return _shares_kl(*concentrations)


def _shares_kl(q: Tensor, p: Tensor) -> Tensor:
    totals = q.sum(-1, keepdim=True), p.sum(-1, keepdim=True)
    log_ratio = (q / p).log() - (totals[0] / totals[1]).log()  # of the means
    rows = _gamma_kl(q, p) + p * (torch.expm1(log_ratio) - log_ratio)
    return rows.sum(-1) - _gamma_kl(*totals).squeeze(-1)


@register_kl(Kumaraswamy, td.Beta)
def _kumaraswamy_beta(q: Kumaraswamy, p: td.Beta) -> Tensor:
    r""":math:`\log a b + (a - \alpha) E[\log x] - (b - 1) / b - (\beta - 1) E[\log(1 - x)] + \log B(\alpha, \beta)`."""
    alpha, beta = p.concentration1, p.concentration0
    normalizer = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    log1m = _expected_log1m_power(q, torch.ones_like(q.concentration1))
    return _negative_entropy(q) - (alpha - 1) * _expected_log(q) - (beta - 1) * log1m + normalizer


@register_kl(Kumaraswamy, Kumaraswamy)
def _kumaraswamy_kumaraswamy(q: Kumaraswamy, p: Kumaraswamy) -> Tensor:
    a, b = p.concentration1, p.concentration0
    log1m = _expected_log1m_power(q, a)
    return _negative_entropy(q) - (a - 1) * _expected_log(q) - (b - 1) * log1m - a.log() - b.log()


def _expected_log(q: Kumaraswamy) -> Tensor:
    b = q.concentration0
    return -(torch.digamma(b) + 1 / b - torch.digamma(torch.ones_like(b))) / q.concentration1


def _negative_entropy(q: Kumaraswamy) -> Tensor:
    a, b = q.concentration1, q.concentration0
    return a.log() + b.log() + (a - 1) * _expected_log(q) - (b - 1) / b


def _expected_log1m_power(q: Kumaraswamy, power: Tensor) -> Tensor:
    r"""E[log(1 - x^c)], by double-exponential quadrature over the uniform number behind x.

    The series in the literature (Nalisnick and Smyth 2017, appendix) has terms of order m^(-b - 1): at b = 0.05 no
    number of them is enough. The quadrature's error falls exponentially at all concentrations.
    """
    a, b = (parameter.unsqueeze(-1) for parameter in (q.concentration1, q.concentration0))
    t = torch.linspace(-_QUADRATURE_END, _QUADRATURE_END, _QUADRATURE_NODES, dtype=a.dtype, device=a.device)
    logit = math.pi * torch.sinh(t)
    log_u, log1m_u = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    step = 2 * _QUADRATURE_END / (_QUADRATURE_NODES - 1)
    weights = step * math.pi * torch.cosh(t) * (log_u + log1m_u).exp()
    log_w = log_u / b
    return (weights * log1m_power(log_w, log1mexp(log_w), power.unsqueeze(-1) / a)).sum(-1)


_QUADRATURE_END, _QUADRATURE_NODES = 3.4, 64


@register_kl(StickBreaking, StickBreaking)
def _sticks_sticks(q: StickBreaking, p: StickBreaking) -> Tensor:
    """The simplex and its K - 1 breaks tell each other."""
    return kl_divergence(q.breaks, p.breaks)


@register_kl(GumbelSoftmax, GumbelSoftmax)
@register_kl(GumbelSoftmax, td.OneHotCategorical)
def _softmax_categorical(q: GumbelSoftmax, p: Any) -> Tensor:
    _check_discrete(q, p)
    log_q, log_p = torch.log_softmax(q.logits, -1), torch.log_softmax(p.logits, -1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


@register_kl(GumbelSigmoid, GumbelSigmoid)
@register_kl(GumbelSigmoid, td.Bernoulli)
def _sigmoid_bernoulli(q: GumbelSigmoid, p: Any) -> Tensor:
    _check_discrete(q, p)
    divergence: Tensor = _bernoulli_bernoulli(q, p)
    return divergence


@register_kl(dist.Bernoulli, td.Bernoulli)
def _bernoulli_bernoulli(q: Any, p: Any) -> Tensor:
    """Torch's own, which asks for batches of the same shape."""
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    names = ["logits" if "logits" in vars(one) else "probs" for one in (q, p)]
    same = [td.Bernoulli(**{name: getattr(one, name).expand(shape)}) for name, one in zip(names, (q, p), strict=True)]
    return kl_divergence(*same)


def _check_discrete(q: Any, p: Any) -> None:
    scores = [getattr(one, "score", "discrete") for one in (q, p)]
    if scores == ["density", "density"]:
        raise NotImplementedError("The KL between relaxed densities has no closed form.")
    if "density" in scores:
        raise ValueError(
            f"score={scores[0]!r} of the guide and {scores[1]!r} of the prior compare a density with a probability: "
            "give both the same."
        )


@register_kl(Concatenate, Concatenate)
def _blocks_blocks(q: Concatenate, p: Concatenate) -> Tensor:
    if q.sizes != p.sizes:
        raise NotImplementedError(f"Blocks of sizes {q.sizes} and {p.sizes} have no KL block by block.")
    divergences = [kl_divergence(one, other) for one, other in zip(q.blocks, p.blocks, strict=True)]
    return torch.stack(divergences).sum(0)


@register_kl(td.MultivariateNormal, td.Independent)
def _multivariate_independent(q: td.MultivariateNormal, p: Any) -> Tensor:
    normal = p.base_dist
    if not isinstance(normal, td.Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"KL from a MultivariateNormal to {p} has no closed form.")
    difference = ((q.loc - normal.loc) / normal.scale) ** 2
    log_determinants = q.scale_tril.diagonal(dim1=-2, dim2=-1).log() - normal.scale.log()
    return 0.5 * (q.variance / normal.variance + difference - 1).sum(-1) - log_determinants.sum(-1)
