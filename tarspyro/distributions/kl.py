r"""Kullback-Leibler divergences in closed form, for ``torch.distributions.kl_divergence``.

Torch and Pyro have the families' own (Normal, full-covariance Normal, Laplace, Bernoulli,
Categorical, ...). Here are those of the families that TarsPyro adds, and Gamma, Beta and
Dirichlet again in a form that loses no digits at large concentrations. Each is in nats, one
number for each row, summed over the event.

Not every registered rule is the divergence. ``exact_kl`` takes those that are.
"""

__all__ = ["exact_kl"]

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.distribution import Distribution as PyroDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor, nn
from torch import distributions as td
from torch.distributions import Distribution, Transform, kl_divergence, register_kl
from torch.distributions.kl import _KL_REGISTRY, _dispatch_kl
from torch.distributions.transforms import _InverseTransform

from tarspyro.distributions.dirichlet import Beta, Dirichlet
from tarspyro.distributions.experts import Concatenate
from tarspyro.distributions.gamma import Gamma, InverseGamma
from tarspyro.distributions.kumaraswamy import (
    Kumaraswamy,
    StickBreaking,
    log1m_power,
    log1mexp,
)
from tarspyro.distributions.rejection import digamma_remainder, stirling_remainder
from tarspyro.distributions.relaxed import GumbelSigmoid, GumbelSoftmax


def exact_kl(q: Distribution, p: Distribution) -> Tensor | None:
    r"""The KL divergence in closed form, where there is one that is exact; else None.

    .. math:: \mathrm{KL}(q \,\|\, p) = \mathbb{E}_{q(z)}[\log q(z) - \log p(z)]

    A masked row counts 0, as in ``log_prob``. ``torch.distributions.kl_divergence`` has rules
    whose value or gradient is another one, and these are left out:

    - From a ``Delta``: Pyro's rule drops the Delta's log density.
    - Between distributions with different masks: Pyro's rule takes the rows that both have.
      Masks are the same if they are the same tensor, or the same view of one.
    - Between transformed distributions: torch's rule wants equal transforms, whose parameters
      it reads, and takes for granted that they are bijective. Here they must be bijective and
      share their parameters.
    - Between members of an exponential family without a rule of its own (Wishart): torch's
      rule has no gradient for q.
    - Between Binomials, where torch reads the numbers of trials, and between
      ``ContinuousBernoulli`` and ``Uniform``, where torch has infinity at the edges of the
      support.
    - Of a class that has a ``log_prob`` of its own and inherits the rule of its base.

    Arguments:
        q: The distribution that the expectation is over.
        p: The other one. Their batch shapes must broadcast.

    Returns:
        One number for each row, in nats, of the broadcast batch shape; None if there is no
        exact closed form.

    Raises:
        ValueError: If one of them is a relaxed variable scored as discrete and the other one
            by its density.

    Example:
        >>> exact_kl(dist.Normal(torch.tensor([0.0, 1.0]), 1.0), dist.Normal(0.0, 1.0))
        tensor([0.0000, 0.5000])
        >>> exact_kl(dist.Delta(torch.tensor(0.0)), dist.Normal(0.0, 1.0)) is None
        True
    """
    divergence = _exact(q, p)
    if divergence is None or q.batch_shape == p.batch_shape:
        return divergence
    return divergence.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


def _exact(q: Any, p: Any) -> Tensor | None:
    if q.event_shape != p.event_shape:
        return None
    if isinstance(q, MaskedDistribution) or isinstance(p, MaskedDistribution):
        return _of_masked(q, p)
    if isinstance(q, ExpandedDistribution) or isinstance(p, ExpandedDistribution):
        return exact_kl(
            *(
                one.base_dist if isinstance(one, ExpandedDistribution) else one
                for one in (q, p)
            )
        )
    families: list[Any] = [type(q), type(p)]
    if any(map(_has_own_density, families)):
        return _by_rule(q, p)
    if isinstance(q, td.Independent) and isinstance(p, td.Independent):
        shared = min(q.reinterpreted_batch_ndims, p.reinterpreted_batch_ndims)
        divergence = exact_kl(_with_fewer_dims(q, shared), _with_fewer_dims(p, shared))
        return divergence if divergence is None else sum_rightmost(divergence, shared)
    if isinstance(q, td.TransformedDistribution) and isinstance(p, td.TransformedDistribution):
        if _same(q.transforms, p.transforms) and all(
            transform.bijective for transform in q.transforms
        ):
            divergence = exact_kl(q.base_dist, p.base_dist)
            more = len(q.event_shape) - len(q.base_dist.event_shape)
            return divergence if divergence is None else sum_rightmost(divergence, more)
    if isinstance(q, StickBreaking) and isinstance(p, StickBreaking):
        return exact_kl(q.breaks, p.breaks)
    if isinstance(q, Concatenate) and isinstance(p, Concatenate):
        divergences = [exact_kl(*blocks) for blocks in zip(q.blocks, p.blocks, strict=False)]
        exact = q.sizes == p.sizes and all(
            divergence is not None for divergence in divergences
        )
        return torch.stack(divergences).sum(0) if exact else None  # type: ignore[arg-type]
    return _by_rule(q, p)


def _of_masked(q: Any, p: Any) -> Tensor | None:
    masks = [one._mask if isinstance(one, MaskedDistribution) else True for one in (q, p)]
    if not _same(*masks):
        return None
    divergence = exact_kl(
        *(one.base_dist if isinstance(one, MaskedDistribution) else one for one in (q, p))
    )
    if divergence is None or masks[0] is True:
        return divergence
    return (
        torch.zeros_like(divergence)
        if masks[0] is False
        else scale_and_mask(divergence, mask=masks[0])
    )


def _with_fewer_dims(distribution: Any, ndims: int) -> Any:
    left = distribution.reinterpreted_batch_ndims - ndims
    return dist.Independent(distribution.base_dist, left) if left else distribution.base_dist


def _by_rule(q: Any, p: Any) -> Tensor | None:
    families: list[Any] = [type(one) for one in (q, p, _innermost(q), _innermost(p))]
    rule = _rule(*families)
    if rule is None:
        return None
    try:  # not every rule broadcasts, and not every class expands
        if q.batch_shape != p.batch_shape:
            shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
            q, p = (one if one.batch_shape == shape else one.expand(shape) for one in (q, p))
        divergence: Tensor = rule(q, p)
    except NotImplementedError:
        return None
    return divergence


@functools.cache
def _rule(q: type, p: type, *innermost: type) -> Callable[..., Tensor] | None:
    """The registered rule of two classes, if it is exact for them; rules are registered before
    they are used.
    """
    rule = _dispatch_kl(q, p)
    if rule is NotImplemented or rule in _INEXACT:
        return None
    if _is_ours_or_theirs(rule) and any(map(_has_own_density, innermost)):
        return None
    exact: Callable[..., Tensor] = rule
    return exact


def _innermost(distribution: Any) -> Any:
    while isinstance(distribution, td.Independent):
        distribution = distribution.base_dist
    return distribution


@functools.cache
def _has_own_density(family: type) -> bool:
    """Whether no rule of a base is about it: a Delta, or a class from elsewhere with a
    ``log_prob`` of its own.
    """
    if issubclass(family, (dist.Delta, MaskedDistribution)):
        return True
    density = next(base for base in family.__mro__ if "log_prob" in vars(base))
    return not _is_ours_or_theirs(density)


def _is_ours_or_theirs(thing: Any) -> bool:
    """Whether a class or function is one of torch, Pyro or TarsPyro."""
    return thing.__module__.partition(".")[0] in ("torch", "pyro", "tarspyro")


def _same(one: Any, other: Any) -> bool:
    """Whether two masks, transforms or parameters are known to be equal without reading a
    tensor.
    """
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, nn.Module):
        return False
    if isinstance(one, Tensor):
        roots = [tensor if tensor._base is None else tensor._base for tensor in (one, other)]
        return roots[0] is roots[1] and _layout(one) == _layout(other)
    if isinstance(one, Transform):
        return _same(_parameters(one), _parameters(other))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return isinstance(one, (bool, int, float, str)) and one == other


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Where a view's numbers lie in memory, up to dimensions in front that only repeat them."""
    dims = list(zip(tensor.shape, tensor.stride(), strict=True))
    while dims and (dims[0][0] == 1 or dims[0][1] == 0):
        dims.pop(0)
    return tensor.storage_offset(), dims


def _parameters(transform: Transform) -> dict[str, Any]:
    """A transform's attributes, but for its cache and the inverse that it made of itself."""
    if isinstance(transform, _InverseTransform):
        return {"inverse of": transform.inv}
    private = ("_cache_size", "_cached_x_y", "_inv")
    return {name: value for name, value in vars(transform).items() if name not in private}


_INEXACT: set[Callable[..., Any]] = {
    _KL_REGISTRY[pair]
    for pair in (
        (dist.Delta, PyroDistribution),
        (td.ExponentialFamily, td.ExponentialFamily),
        (td.TransformedDistribution, td.TransformedDistribution),
        (td.Binomial, td.Binomial),
        (td.ContinuousBernoulli, td.Uniform),
        (td.Uniform, td.ContinuousBernoulli),
    )
}


@register_kl(td.InverseGamma, td.InverseGamma)
@register_kl(td.HalfCauchy, td.HalfCauchy)
def _through_the_base(q: Any, p: Any) -> Tensor:
    """One transform for all members of the family: the reciprocal, and the absolute value of
    what is symmetric.
    """
    return kl_divergence(q.base_dist, p.base_dist)


@register_kl(Gamma, td.Gamma)
def _gamma_gamma(q: Gamma, p: td.Gamma) -> Tensor:
    return _gamma_kl(q.concentration, p.concentration) + _rate_kl(q, p)


def _gamma_kl(q: Tensor, p: Tensor) -> Tensor:
    r"""KL between Gammas of concentrations a and b and equal *means*, with :math:`\delta`
    Stirling's remainder.

    .. math:: (a - b)(\psi(a) - \log a) + \tfrac{1}{2} \log(a / b) - \delta(a) + \delta(b)
    """
    return (
        (q - p) * digamma_remainder(q)
        + 0.5 * (q / p).log()
        - stirling_remainder(q)
        + stirling_remainder(p)
    )


def _rate_kl(q: td.Gamma, p: td.Gamma) -> Tensor:
    """What other means add: b (r - 1 - log r) with r the ratio of the means."""
    log_ratio = (q.concentration / p.concentration).log() - (q.rate / p.rate).log()
    return p.concentration * (torch.expm1(log_ratio) - log_ratio)


@register_kl(InverseGamma, InverseGamma)
def _inverse_gamma_inverse_gamma(q: InverseGamma, p: InverseGamma) -> Tensor:
    return kl_divergence(q.gamma, p.gamma)


@register_kl(Dirichlet, td.Dirichlet)
def _dirichlet_dirichlet(q: Dirichlet, p: td.Dirichlet) -> Tensor:
    """The Gammas' sum is independent of their shares: their KL is that of the shares plus that
    of the sum.
    """
    return _shares_kl(q.concentration, p.concentration)


@register_kl(Beta, td.Beta)
def _beta_beta(q: Beta, p: td.Beta) -> Tensor:
    concentrations = (
        torch.stack([beta.concentration1, beta.concentration0], -1) for beta in (q, p)
    )
    return _shares_kl(*concentrations)


def _shares_kl(q: Tensor, p: Tensor) -> Tensor:
    totals = q.sum(-1, keepdim=True), p.sum(-1, keepdim=True)
    log_ratio = (q / p).log() - (totals[0] / totals[1]).log()  # of the means
    rows = _gamma_kl(q, p) + p * (torch.expm1(log_ratio) - log_ratio)
    return rows.sum(-1) - _gamma_kl(*totals).squeeze(-1)


@register_kl(Kumaraswamy, td.Beta)
def _kumaraswamy_beta(q: Kumaraswamy, p: td.Beta) -> Tensor:
    r""":math:`\log a b + (a - \alpha) E[\log x] - (b - 1) / b - (\beta - 1) E[\log(1 - x)] +
    \log B(\alpha, \beta)`.
    """
    alpha, beta = p.concentration1, p.concentration0
    normalizer = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    log1m = _expected_log1m_power(q, torch.ones_like(q.concentration1))
    return -q.entropy() - (alpha - 1) * q.mean_log - (beta - 1) * log1m + normalizer


@register_kl(Kumaraswamy, Kumaraswamy)
def _kumaraswamy_kumaraswamy(q: Kumaraswamy, p: Kumaraswamy) -> Tensor:
    a, b = p.concentration1, p.concentration0
    log1m = _expected_log1m_power(q, a)
    return -q.entropy() - (a - 1) * q.mean_log - (b - 1) * log1m - a.log() - b.log()


def _expected_log1m_power(q: Kumaraswamy, power: Tensor) -> Tensor:
    r"""E[log(1 - x^c)], by double-exponential quadrature over the uniform number behind x.

    The series in the literature (Nalisnick and Smyth 2017, appendix) has terms of order m^(-b
    - 1): at b = 0.05 no number of them is enough. The quadrature's error falls exponentially
      at all concentrations.
    """
    a, b = (parameter.unsqueeze(-1) for parameter in (q.concentration1, q.concentration0))
    t = torch.linspace(
        -_QUADRATURE_END, _QUADRATURE_END, _QUADRATURE_NODES, dtype=a.dtype, device=a.device
    )
    logit = math.pi * torch.sinh(t)
    log_u, log1m_u = (
        torch.nn.functional.logsigmoid(logit),
        torch.nn.functional.logsigmoid(-logit),
    )
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
    impossible = log_q == -math.inf  # and counts 0, whatever the prior says
    return (log_q.exp() * torch.where(impossible, 0.0, log_q - log_p)).sum(-1)


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
    same = [
        td.Bernoulli(**{name: getattr(one, name).expand(shape)})
        for name, one in zip(names, (q, p), strict=True)
    ]
    return kl_divergence(*same)


def _check_discrete(q: Any, p: Any) -> None:
    scores = [getattr(one, "score", "discrete") for one in (q, p)]
    if scores == ["density", "density"]:
        raise NotImplementedError("The KL between relaxed densities has no closed form.")
    if "density" in scores:
        raise ValueError(
            f"score={scores[0]!r} of the guide and {scores[1]!r} of the prior compare a"
            " density with a probability: give both the same."
        )


@register_kl(Concatenate, Concatenate)
def _blocks_blocks(q: Concatenate, p: Concatenate) -> Tensor:
    if q.sizes != p.sizes:
        raise NotImplementedError(
            f"Blocks of sizes {q.sizes} and {p.sizes} have no KL block by block."
        )
    divergences = [
        kl_divergence(one, other) for one, other in zip(q.blocks, p.blocks, strict=True)
    ]
    return torch.stack(divergences).sum(0)


@register_kl(td.MultivariateNormal, td.Independent)
def _multivariate_independent(q: td.MultivariateNormal, p: Any) -> Tensor:
    normal = p.base_dist
    if not isinstance(normal, td.Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"KL from a MultivariateNormal to {p} has no closed form.")
    difference = ((q.loc - normal.loc) / normal.scale) ** 2
    log_determinants = q.scale_tril.diagonal(dim1=-2, dim2=-1).log() - normal.scale.log()
    return 0.5 * (q.variance / normal.variance + difference - 1).sum(
        -1
    ) - log_determinants.sum(-1)
