r"""Rejection sampling variational inference: Gamma draws in log space, and their gradients.

Marsaglia and Tsang (2000) propose :math:`h(\varepsilon, \alpha) = d (1 + \varepsilon / \sqrt{9
d})^3` with
:math:`d = \alpha - 1/3` and :math:`\varepsilon` standard normal, and accept most of it.
Naesseth et al. (2017, arXiv:1610.05683) differentiate what is accepted: pathwise through
:math:`h`, and through the density
:math:`\pi(\varepsilon; \alpha)` of the accepted noise, which is the score that a draw carries.
"""

__all__ = ["digamma_remainder", "log_gamma_draw", "stirling_remainder"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

# B_n(1/3) / n for n = 2, ..., 7, with Bernoulli's polynomials: digamma(d + 1/3) expanded in 1
# / d.
_DIGAMMA_AT_ONE_THIRD = (-1 / 36, 1 / 81, 13 / 3240, -1 / 243, -121 / 61236, 7 / 2187)


def log_gamma_draw(
    concentration: Tensor, boost: int, reparameterization: str
) -> tuple[Tensor, Callable[[], Tensor] | None]:
    r"""Draws the logarithms of standard Gamma variables, and the score that the pathwise
    derivative leaves out.

    .. math:: \log z = \log h(\varepsilon, \alpha + B) + \sum_{i=0}^{B-1} \frac{\log u_i}{\alpha + i}

    (Naesseth et al. 2017, eq. 12.) The accepted noise is read off a draw of torch's own
    Marsaglia-Tsang kernel:
    :math:`h` is invertible, so its law is exact, whatever the number of proposals the device
    needed; there is no loop on the host and nothing to read back.

    With ``"implicit"`` the derivative is :math:`-\partial_\alpha F(z; \alpha) / f(z; \alpha)`
    (Figurnov et al. 2018), no score remains, and one augmentation is enough: it keeps the
    logarithm finite.

    Arguments:
        concentration: Any positive tensor, in single or double precision.
        boost: B, the number of shape augmentations; ``concentration + boost`` must be above
            1/3.
        reparameterization: ``"rejection"`` or ``"implicit"``.

    Returns:
        The logarithms, and a function that returns the score: zeros, whose gradient is the
        score's. None if there is no score. Few estimators ask for it, and it costs as much as
        the draw.
    """
    implicit = reparameterization == "implicit"
    # Detached, not under no_grad: a recording of this run keeps the one and forgets the other.
    fixed = concentration.detach()
    if implicit:
        concentration, boost, learned = fixed, 1, concentration
    d = concentration + boost - 1 / 3
    accepted = torch._standard_gamma(fixed + boost)
    epsilon = ((accepted / d.detach()) ** (1 / 3) - 1) * 3 * d.detach().sqrt()
    log_z = d.log() + 3 * torch.log1p(epsilon / (3 * d.sqrt()))
    if boost:
        steps = torch.arange(boost, dtype=d.dtype, device=d.device).reshape(
            (boost,) + (1,) * d.dim()
        )
        log_u = torch.log1p(
            -torch.rand((boost, *d.shape), dtype=d.dtype, device=d.device)
        )  # 1 - u is never zero
        log_z = log_z + (log_u / (concentration + steps)).sum(0)
    if implicit:
        return log_z + _implicit_slope(fixed, log_z) * (learned - fixed), None
    return log_z, lambda: _acceptance_slope(epsilon, d.detach()) * (concentration - fixed)


def _acceptance_slope(epsilon: Tensor, d: Tensor) -> Tensor:
    r"""The derivative of :math:`\log \pi(\varepsilon; \alpha)` in the concentration, of order
    1 / (36 d^2).

    .. math::
        \log \pi = \log f(h; \alpha) + \log |\partial_\varepsilon h|
                 = (d - 1/6) \log d - \log \Gamma(d + 1/3) + d (\log v - v) + \text{const},
        \qquad v = (1 + t)^3, \; t = \varepsilon / (3 \sqrt{d})

    The derivative's terms cancel up to t^4 and d^-2; where these are small, expansions take
    over.
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
    """The implicit derivative of log z; where z is tiny, from F(z) = z^a / Gamma(a + 1), which
    is then exact.
    """
    finfo = torch.finfo(log_z.dtype)
    z = log_z.clamp(min=math.log(finfo.eps)).exp()
    tiny = (torch.digamma(concentration + 1) - log_z) / concentration
    return torch.where(
        log_z.exp() > finfo.eps, torch._standard_gamma_grad(concentration, z) / z, tiny
    )


def stirling_remainder(x: Tensor) -> Tensor:
    r"""Returns :math:`\log \Gamma(x) - (x - 1/2) \log x + x - \log(2 \pi) / 2`, without
    cancellation for large x.
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
