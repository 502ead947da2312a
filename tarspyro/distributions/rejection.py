r"""Gamma draws in log space, with the gradients of rejection sampling.

Marsaglia and Tsang (2000) propose :math:`h(\varepsilon, \alpha) = d (1 + \varepsilon /
\sqrt{9 d})^3` with :math:`d = \alpha - 1/3` and standard normal :math:`\varepsilon`, and accept
most proposals. The gradient of Naesseth et al. (2017, Reparameterization Gradients through
Acceptance-Rejection Sampling Algorithms, arXiv:1610.05683) has two parts: the pathwise
derivative through :math:`h`, and the score of the density :math:`\pi(\varepsilon; \alpha)` of
the accepted noise.
"""

__all__ = ["digamma_remainder", "log_gamma_draw", "stirling_remainder"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

# The coefficients of digamma(d + 1/3) in powers of 1 / d: B_n(1/3) / n for n = 2, ..., 7, with
# the Bernoulli polynomials B_n.
_DIGAMMA_AT_ONE_THIRD = (-1 / 36, 1 / 81, 13 / 3240, -1 / 243, -121 / 61236, 7 / 2187)


def log_gamma_draw(
    concentration: Tensor, boost: int, reparameterization: str
) -> tuple[Tensor, Callable[[], Tensor] | None]:
    r"""Returns the logarithms of standard Gamma draws, and a function that returns their score.

    .. math:: \log z = \log h(\varepsilon, \alpha + B) +
              \sum_{i=0}^{B-1} \frac{\log u_i}{\alpha + i}

    (Naesseth et al. 2017, eq. 12.) The accepted noise :math:`\varepsilon` is computed from a draw
    of torch's Marsaglia-Tsang kernel, which is exact because :math:`h` is invertible. This needs
    no loop over proposals on the host, and no values of a device there.

    With ``"implicit"`` the derivative is :math:`-\partial_\alpha F(z; \alpha) / f(z; \alpha)`
    (Figurnov et al. 2018) and there is no score. One augmentation then suffices to keep the
    logarithm finite.

    Arguments:
        concentration: Any positive tensor, in single or double precision.
        boost: B, the number of shape augmentations; ``concentration + boost`` must be above
            1/3.
        reparameterization: ``"rejection"`` or ``"implicit"``.

    Returns:
        The logarithms, and a function that returns the score, or None if there is no score. The
        score is a tensor of zeros with the score's gradient. It is a function because the score
        costs as much as the draw, and few estimators need it.
    """
    implicit = reparameterization == "implicit"
    # Detached, not computed under no_grad: a recording of this run keeps a detach, and loses
    # no_grad.
    fixed = concentration.detach()
    learned = concentration
    if implicit:
        concentration = fixed
        boost = 1
    d = concentration + boost - 1 / 3
    accepted = torch._standard_gamma(fixed + boost)
    epsilon = ((accepted / d.detach()) ** (1 / 3) - 1) * 3 * d.detach().sqrt()
    log_z = d.log() + 3 * torch.log1p(epsilon / (3 * d.sqrt()))
    if boost:
        steps = torch.arange(boost, dtype=d.dtype, device=d.device)
        steps = steps.reshape((boost,) + (1,) * d.dim())
        # Uniform numbers are below 1 but may be 0, so log(1 - u) is finite and log u is not.
        u = torch.rand((boost, *d.shape), dtype=d.dtype, device=d.device)
        log_u = torch.log1p(-u)
        log_z = log_z + (log_u / (concentration + steps)).sum(0)
    if implicit:
        return log_z + _implicit_slope(fixed, log_z) * (learned - fixed), None
    return log_z, lambda: _acceptance_slope(epsilon, d.detach()) * (concentration - fixed)


def _acceptance_slope(epsilon: Tensor, d: Tensor) -> Tensor:
    r"""Returns the derivative of :math:`\log \pi(\varepsilon; \alpha)` in the concentration.

    .. math::
        \log \pi = \log f(h; \alpha) + \log |\partial_\varepsilon h|
                 = (d - 1/6) \log d - \log \Gamma(d + 1/3) + d (\log v - v) + \text{const},
        \qquad v = (1 + t)^3, \; t = \varepsilon / (3 \sqrt{d})

    The derivative is of the order of 1 / (36 d^2). Its terms cancel up to t^4 and d^-2, so
    series replace the closed form for small t and for large d.
    """
    t = epsilon / (3 * d.sqrt())
    near = t.clamp(-0.1, 0.1)
    series = torch.zeros_like(t)
    for n in range(12, 3, -1):
        series = series * near + (1.5 - 3 / n) * (-1) ** n
    closed = 3 * torch.log1p(t) - 1.5 * t - 1.5 * t / (1 + t) + 0.5 * t**3
    shape = torch.where(t.abs() < 0.1, series * near**4, closed)
    inverse = 1 / d.clamp(min=8.0)
    tail = torch.zeros_like(d)
    for n, coefficient in reversed(list(enumerate(_DIGAMMA_AT_ONE_THIRD, start=2))):
        tail = tail * inverse + coefficient * (-1) ** n
    constant = d.log() - 1 / (6 * d) - torch.digamma(d + 1 / 3)
    return shape + torch.where(d > 8, tail * inverse**2, constant)


def _implicit_slope(concentration: Tensor, log_z: Tensor) -> Tensor:
    """Returns the implicit derivative of log z in the concentration a.

    For tiny z it is that of F(z) = z^a / Gamma(a + 1), which is then exact.
    """
    finfo = torch.finfo(log_z.dtype)
    z = log_z.clamp(min=math.log(finfo.eps)).exp()
    usual = torch._standard_gamma_grad(concentration, z) / z
    tiny = (torch.digamma(concentration + 1) - log_z) / concentration
    return torch.where(log_z.exp() > finfo.eps, usual, tiny)


def stirling_remainder(x: Tensor) -> Tensor:
    r"""Returns Stirling's remainder, without cancellation for large x.

    .. math:: \delta(x) = \log \Gamma(x) - (x - 1/2) \log x + x - \log(2 \pi) / 2
    """
    large = 1 / x.clamp(min=8.0)
    square = large * large
    series = large * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    small = x.clamp(max=8.0)
    closed = torch.lgamma(small) - (small - 0.5) * small.log() + small - 0.91893853320467274178
    return torch.where(x > 8, series, closed)


def digamma_remainder(x: Tensor) -> Tensor:
    r"""Returns :math:`\psi(x) - \log x`, without cancellation for large x."""
    large = 1 / x.clamp(min=8.0)
    square = large * large
    series = -large / 2 - square * (
        1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240))
    )
    small = x.clamp(max=8.0)
    return torch.where(x > 8, series, torch.digamma(small) - small.log())
