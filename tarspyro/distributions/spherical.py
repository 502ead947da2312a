r"""Distributions on the unit sphere that are symmetric around a direction.

Their density depends on x through :math:`w = \mu^\top x` alone. With the latitude
:math:`\lambda = \operatorname{artanh} w` a family is an exponential family with one statistic,

.. math:: p(\lambda) \propto e^{\ell(\lambda)}, \qquad
          \ell(\lambda) = \kappa T(\lambda) - (d - 1) \log \cosh \lambda, \qquad
          T \leq 0

because :math:`(1 - w^2)^{(d - 3) / 2} \, \mathrm{d} w = \cosh(\lambda)^{1 - d} \, \mathrm{d}
\lambda`. The width of this density hardly depends on the concentration, so one quadrature of
fixed size is exact, up to rounding, for all of them.
"""

__all__ = ["PowerSpherical", "Spherical", "VonMisesFisher"]

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid

from tarspyro.arguments import format_value
from tarspyro.distributions.drawing import check_parameters, full_precision
from tarspyro.distributions.rejection import log_gamma_draw
from tarspyro.types import Shape

# The quadrature over all latitudes: nodes at width * sinh(v) around the mode, |v| <= end.
_NODES = 96
_END = 4.6
# The quadrature from a latitude outwards: nodes at width * exp(u - exp(-u)).
_OUTER_NODES = 64
_OUTER_START = -3.5
_OUTER_END = 4.0
# Wood's proposals of each draw. At least 65 % are accepted for any dimension and concentration,
# so all are refused with probability 1e-15.
_PROPOSALS = 32

_Family = TypeVar("_Family", bound="Spherical")


class Spherical(TorchDistribution):
    r"""The base of the families on the sphere.

    The derivatives of a draw are exact:

    - In the direction, x turns with it: :math:`\mathrm{d} x = (\mu^\top x) \, \mathrm{d} \mu -
      (x^\top \mathrm{d} \mu) \, \mu`.
    - In the concentration, x moves along its meridian, :math:`\mathrm{d} x = (\mu - w x) \,
      \mathrm{d} \lambda`, with the implicit derivative of the latitude (Figurnov et al. 2018,
      arXiv:1805.08498, eq. 5). :math:`\overline{T}` is the mean of the statistic:

    .. math:: \frac{\mathrm{d} \lambda}{\mathrm{d} \kappa}
              = -\frac{\partial_\kappa F(\lambda)}{p(\lambda)}
              = \int_\lambda^\infty \big( T(s) - \overline{T} \big)
                e^{\ell(s) - \ell(\lambda)} \, \mathrm{d} s

    Subclasses define the statistic T, and how latitudes are drawn. Quadratures are in double
    precision.
    """

    arg_constraints = {"loc": constraints.sphere, "concentration": constraints.nonnegative}
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        concentration: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        if not torch.is_tensor(loc) or loc.dim() == 0 or loc.shape[-1] < 2:
            raise ValueError(
                "loc must be a tensor of unit vectors, of shape batch_shape + (d,) with d of at"
                f" least 2, got {format_value(loc)}."
            )
        check_parameters(loc=loc)
        check_parameters(concentration=concentration)
        concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        try:
            batch = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        except RuntimeError:
            raise ValueError(
                "concentration must broadcast with the batch of loc, got shapes"
                f" {tuple(concentration.shape)} and {tuple(loc.shape[:-1])}."
            ) from None
        self.loc = loc.expand(batch + loc.shape[-1:])
        self.concentration = concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self: _Family, batch_shape: Shape, _instance: object = None) -> _Family:
        """Returns the distribution with its batch expanded."""
        new: _Family = self._get_checked_instance(  # type: ignore[no-untyped-call]
            type(self), _instance
        )
        batch = torch.Size(batch_shape)
        new.loc = self.loc.expand(batch + self.event_shape)
        new.concentration = self.concentration.expand(batch)
        super(Spherical, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, unit vectors."""
        batch = torch.Size(sample_shape) + self.batch_shape
        loc = full_precision(self.loc)
        fixed = loc.detach()
        latitude = self._latitudes(batch)
        x = _at_latitude(fixed, latitude.detach())

        # These are zero, and have the derivatives of x.
        cosine = torch.tanh(latitude.detach()).unsqueeze(-1)
        turned = loc - fixed
        turn = cosine * turned - fixed * (x * turned).sum(-1, keepdim=True)
        climb = (fixed - cosine * x) * (latitude - latitude.detach()).unsqueeze(-1)
        return (x + turn + climb).to(self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, with respect to the area of the sphere."""
        if self._validate_args:
            self._validate_sample(value)
        concentration = full_precision(self.concentration)
        # The square of the distance has no cancellation where the density is high.
        difference = full_precision(value) - full_precision(self.loc)
        log_power = self._log_power(concentration, difference.square().sum(-1) / 2, value)
        return log_power - self._rounded(self.log_normalizer())

    def entropy(self) -> Tensor:
        """Returns the entropy in nats."""
        concentration = self.concentration.double()
        mean = self._expectation(self._statistic)
        return self._rounded(self.log_normalizer() - concentration * mean)

    @property
    def mean(self) -> Tensor:
        """The mean, in the direction of ``loc`` and shorter than it."""
        cosine = 1 - self.mean_height
        return self._rounded(cosine).unsqueeze(-1) * self.loc

    @property
    def mode(self) -> Tensor:
        """The mode, ``loc``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        height = self.mean_height.unsqueeze(-1)
        square = self._expectation(lambda latitude: _height(latitude) ** 2).unsqueeze(-1)
        along = square - height**2
        across = (2 * height - square) / (self._dim - 1)
        loc = self.loc.double()
        return self._rounded(along * loc**2 + across * (1 - loc**2))

    @property
    def mean_height(self) -> Tensor:
        """The mean of 1 - w, the height below the pole, in double precision."""
        return self._expectation(_height)

    def log_normalizer(self) -> Tensor:
        r"""Returns the logarithm of the integral of :math:`e^{\kappa T}` over the sphere.

        It is in double precision. T is 0 at the pole.
        """
        _, log_mass = self._quadrature()
        half = (self._dim - 1) / 2
        log_equator = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return log_mass.logsumexp(0) + log_equator

    @property
    def _dim(self) -> int:
        return self.event_shape[0]

    def _statistic(self, latitude: Tensor) -> Tensor:
        """Returns T, at most 0."""
        raise NotImplementedError

    def _log_power(self, concentration: Tensor, height: Tensor, value: Tensor) -> Tensor:
        """Returns concentration times T of unit vectors, given their heights 1 - w."""
        raise NotImplementedError

    def _draw(self, concentration: Tensor) -> Tensor:
        """Returns draws of the latitude for each concentration, without gradients."""
        raise NotImplementedError

    def _peak(self, concentration: Tensor) -> Tensor:
        """Returns the latitude where ell is largest."""
        raise NotImplementedError

    def _rounded(self, value: Tensor) -> Tensor:
        return value.to(full_precision(self.concentration).dtype)

    def _latitudes(self, batch: torch.Size) -> Tensor:
        """Returns reparameterized draws of the latitude."""
        concentration = full_precision(self.concentration)
        fixed = concentration.detach().expand(batch)
        latitude = self._draw(fixed)
        if not (torch.is_grad_enabled() and concentration.requires_grad):
            return latitude
        return latitude + self._slope(latitude) * (concentration - fixed)

    def _slope(self, latitude: Tensor) -> Tensor:
        """Returns the derivative of draws of the latitude in the concentration."""
        concentration = self.concentration.detach().double()
        mean = self._expectation(self._statistic).detach()
        start = latitude.double()
        # Over the tail on the latitude's side of the mean, where nothing cancels.
        side = torch.where(self._statistic(start) > mean, 1.0, -1.0)

        u = _grid(_OUTER_START, _OUTER_END, _OUTER_NODES, start)
        step = self._width(concentration) * torch.exp(u - torch.exp(-u))
        weights = step * (1 + torch.exp(-u)) * (_OUTER_END - _OUTER_START) / (_OUTER_NODES - 1)
        outer = start + side * step
        density = self._log_density(outer, concentration)
        density = torch.exp(density - self._log_density(start, concentration))
        integral = side * ((self._statistic(outer) - mean) * density * weights).sum(0)
        return integral.to(latitude.dtype)

    def _log_density(self, latitude: Tensor, concentration: Tensor) -> Tensor:
        """Returns ell."""
        size = latitude.abs()
        log_cosh = size + torch.log1p(torch.exp(-2 * size)) - math.log(2)
        return concentration * self._statistic(latitude) - (self._dim - 1) * log_cosh

    def _width(self, concentration: Tensor) -> Tensor:
        """Returns the width of the density of the latitude."""
        cosine = torch.tanh(self._peak(concentration))
        return 1 / ((self._dim - 1) * (1 + cosine)).sqrt()

    def _quadrature(self) -> tuple[Tensor, Tensor]:
        """Returns latitudes, and the logarithms of their masses before normalization."""
        concentration = self.concentration.double()
        fixed = concentration.detach()
        v = _grid(-_END, _END, _NODES, fixed)
        width = self._width(fixed)
        latitude = self._peak(fixed) + width * torch.sinh(v)
        log_step = (torch.cosh(v) * width * (2 * _END / (_NODES - 1))).log()
        return latitude, self._log_density(latitude, concentration) + log_step

    def _expectation(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the mean of a function of the latitude, in double precision."""
        latitude, log_mass = self._quadrature()
        return (log_mass.softmax(0) * function(latitude)).sum(0)


class VonMisesFisher(Spherical):
    r"""The von Mises-Fisher distribution, the exponential family of :math:`\mu^\top x`.

    .. math:: p(x) = \frac{\kappa^{d/2 - 1}}{(2 \pi)^{d/2} I_{d/2 - 1}(\kappa)}
              e^{\kappa \mu^\top x}, \qquad \lVert x \rVert = 1

    ``concentration=0`` is the uniform distribution on the sphere, the usual prior.

    Draws are those of Wood (1994), by a fixed number of proposals. In latitudes his proposal is
    a shift, :math:`\lambda = \operatorname{artanh} z + \frac{1}{2} \operatorname{arsinh}
    \frac{2 \kappa}{d - 1}` with a coordinate z of a uniform point. The gradient is the implicit
    one, which has no score to add: the pathwise derivative of an accepted proposal alone is
    biased, because acceptance depends on the concentration too. It is exact in all dimensions,
    and for concentrations up to 1e6.

    As latent family it makes a VAE hyperspherical (Davidson et al. 2018, arXiv:1804.00891).

    Arguments:
        loc: The mean direction, unit vectors of shape ``batch_shape + (d,)``, d at least 2.
        concentration: kappa, at least 0.

    Raises:
        TypeError: If an argument is not a number or a tensor.
        ValueError: If an argument is out of range, or the shapes do not broadcast.

    Example:
        >>> q = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(5.0))
        >>> q.rsample((10,)).shape
        torch.Size([10, 3])
        >>> round(q.mean[-1].item(), 4)  # coth(5) - 1/5
        0.8001
    """

    def _statistic(self, latitude: Tensor) -> Tensor:
        return -_height(latitude)

    def _log_power(self, concentration: Tensor, height: Tensor, value: Tensor) -> Tensor:
        return -concentration * height

    def _peak(self, concentration: Tensor) -> Tensor:
        return 0.5 * torch.asinh(2 * concentration / (self._dim - 1))

    def _draw(self, concentration: Tensor) -> Tensor:
        shift = self._peak(concentration).unsqueeze(-1)
        proposals = (*concentration.shape, _PROPOSALS)  # rows come first, as in all noise
        below, above = _uniform_coordinates(self._dim, proposals, shift)
        t = torch.tanh(shift) * (above - below) / 2
        log_acceptance = (self._dim - 1) * (t / (1 + t) - torch.log1p(t))
        accepted = torch.log1p(-torch.rand_like(t)) < log_acceptance
        first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
        below = below.gather(-1, first)
        above = above.gather(-1, first)
        return (0.5 * (above.log() - below.log()) + shift).squeeze(-1)


class PowerSpherical(Spherical):
    r"""The power spherical distribution, similar to a von Mises-Fisher and faster to draw.

    .. math:: p(x) \propto (1 + \mu^\top x)^\kappa, \qquad \lVert x \rVert = 1, \qquad
              \frac{1 + \mu^\top x}{2} \sim
              \mathrm{Beta}\Big( \frac{d - 1}{2} + \kappa, \frac{d - 1}{2} \Big)

    ``concentration=0`` is the uniform distribution on the sphere. (De Cao and Aziz 2020,
    arXiv:2006.04437, eq. 9.)

    Arguments:
        loc: The mean direction, unit vectors of shape ``batch_shape + (d,)``, d at least 2.
        concentration: kappa, at least 0.

    Raises:
        TypeError: If an argument is not a number or a tensor.
        ValueError: If an argument is out of range, or the shapes do not broadcast.

    Example:
        >>> q = PowerSpherical(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(6.0))
        >>> round(q.mean[-1].item(), 4)  # kappa / (kappa + d - 1)
        0.75
    """

    def _statistic(self, latitude: Tensor) -> Tensor:
        return logsigmoid(2 * latitude)  # log((1 + w) / 2)

    def _log_power(self, concentration: Tensor, height: Tensor, value: Tensor) -> Tensor:
        opposite = (full_precision(value) + full_precision(self.loc)).square().sum(-1) / 4
        near = height < 1
        log = torch.log1p(-torch.where(near, height, 0.0) / 2)
        far = torch.xlogy(concentration, torch.where(near, 1.0, opposite))
        return concentration * log + far

    def _peak(self, concentration: Tensor) -> Tensor:
        return 0.5 * torch.log1p(2 * concentration / (self._dim - 1))

    def _draw(self, concentration: Tensor) -> Tensor:
        half = torch.full_like(concentration, (self._dim - 1) / 2)
        above, _ = log_gamma_draw(half + concentration, 1, "rejection")
        below, _ = log_gamma_draw(half, 1, "rejection")
        return (above - below) / 2


def _height(latitude: Tensor) -> Tensor:
    """Returns 1 - w, without cancellation at large latitudes."""
    return 2 * torch.sigmoid(-2 * latitude)


def _grid(start: float, end: float, count: int, like: Tensor) -> Tensor:
    """Returns equidistant nodes in a new first dimension."""
    nodes = torch.linspace(start, end, count, dtype=like.dtype, device=like.device)
    return nodes.reshape((count,) + (1,) * like.dim())


def _uniform_coordinates(
    dim: int, shape: tuple[int, ...], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns 1 - z and 1 + z of a coordinate z of uniform points on the sphere.

    Two coordinates of a point lie at a radius r with P(r^2 > s) = (1 - s)^((d - 2) / 2), and at
    a uniform angle.
    """
    angle = math.pi * torch.rand(shape, dtype=like.dtype, device=like.device)  # half of it
    if dim == 2:
        radius = torch.ones_like(angle)
        gap = torch.zeros_like(angle)
    else:
        rest = torch.log1p(-torch.rand_like(angle)) * (2 / (dim - 2))
        radius = (-torch.expm1(rest)).sqrt()
        gap = rest.exp() / (1 + radius)  # 1 - r
    least = torch.finfo(like.dtype).tiny
    below = gap + 2 * radius * torch.sin(angle) ** 2
    above = gap + 2 * radius * torch.cos(angle) ** 2
    return below.clamp(min=least), above.clamp(min=least)


def _at_latitude(pole: Tensor, latitude: Tensor) -> Tensor:
    """Returns uniform points of the parallels of these latitudes around the pole."""
    finfo = torch.finfo(latitude.dtype)
    shape = (*latitude.shape, pole.shape[-1] - 1)
    side = torch.randn(shape, dtype=latitude.dtype, device=latitude.device)
    side = torch.where(side == 0, finfo.eps, side)
    side = side / torch.linalg.vector_norm(side, dim=-1, keepdim=True)

    latitude = latitude.unsqueeze(-1)
    x = torch.cat([torch.tanh(latitude), side / torch.cosh(latitude)], -1)
    # The half turn around the middle of the first axis and the pole takes one to the other; of
    # the axis and its opposite, we take the one that is nearer to the pole.
    sign = torch.where(pole[..., :1] >= 0, 1.0, -1.0).to(pole.dtype)
    middle = torch.cat([pole[..., :1] + sign, pole[..., 1:]], -1)
    along = (middle * x).sum(-1, keepdim=True) / (1 + pole[..., :1].abs())
    x = sign * (middle * along - x)
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return unit
