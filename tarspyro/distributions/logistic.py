"""Discretized logistic distributions: likelihoods of 8-bit images and other graded numbers."""

__all__ = ["DiscretizedLogistic", "DiscretizedLogisticMixture", "Levels"]

import math

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from tarspyro.arguments import as_count


class Levels(constraints.Constraint):
    """The constraint to evenly spaced levels from 0 to 1."""

    is_discrete = True

    def __init__(self, num_levels: int) -> None:
        self.num_levels = num_levels

    def nearest(self, value: Tensor) -> Tensor:
        """Returns the nearest levels."""
        return _rounded(value, self.num_levels)

    def check(self, value: Tensor) -> Tensor:
        """Returns which values are levels, up to rounding."""
        steps = value * (self.num_levels - 1)
        # Levels in single precision, such as those of bytes divided by 255.
        near = (steps - steps.round()).abs() < 1e-3
        return near & (value >= -1e-6) & (value <= 1 + 1e-6)

    def remedy(self, name: str, value: Tensor) -> str:
        """Returns how values become levels, as the end of a sentence."""
        last = self.num_levels - 1
        low = value.min().item()
        high = value.max().item()
        if low < -1 or high > (1 if low < 0 else max(last, 255)):
            return f"rescale {name} to numbers from 0 to 1, and round them to the levels"
        if low < 0:
            unit = f"({name} + 1) / 2"
            scaled = (value + 1) / 2
        elif high <= 1:
            unit = name
            scaled = value
        else:
            largest = last if high <= last else 255
            unit = f"{name} / {largest}"
            scaled = value / largest
        if self.check(scaled).all():
            return f"take {unit}"
        return f"round it to the levels, ({unit} * {last}).round() / {last}"

    def __repr__(self) -> str:
        return f"{self.num_levels} levels from 0 to 1"


def _log_prob(value: Tensor, loc: Tensor, scale: Tensor, num_levels: int) -> Tensor:
    r"""Returns the log-probability of the interval around each level.

    With :math:`b = a + d` the upper and lower end in units of the scale,
    :math:`\sigma(b) - \sigma(a) = \sigma(b) \sigma(-a) (1 - e^{-d})`: no difference of two
    almost equal numbers is taken.
    """
    width = 1 / (num_levels - 1)
    # Gradients divide by the square of the scale, which must not underflow.
    scale = scale.clamp(min=10 * torch.finfo(scale.dtype).tiny ** 0.5)
    lower = (value - width / 2 - loc) / scale
    upper = (value + width / 2 - loc) / scale
    below_upper = logsigmoid(upper)
    above_lower = logsigmoid(-lower)
    inside = below_upper + above_lower + _log_one_minus_exp(width, scale)

    # The outermost intervals reach to infinity.
    first = value < width / 2
    last = value > 1 - width / 2
    return torch.where(first, below_upper, torch.where(last, above_lower, inside))


# Below it, 1 - exp(-d) equals d to double precision.
_SMALL = 1e-15


def _log_one_minus_exp(width: float, scale: Tensor) -> Tensor:
    r"""Returns :math:`\log(1 - e^{-d})` with :math:`d` = width / scale, also where d underflows."""
    ratio = width / scale
    log_ratio = math.log(width) - scale.log()
    exact = torch.log(-torch.expm1(-ratio.clamp(min=_SMALL)))
    return torch.where(ratio < _SMALL, log_ratio, exact)


def _rounded(value: Tensor, num_levels: int) -> Tensor:
    """Returns the nearest levels."""
    return (value.clamp(0, 1) * (num_levels - 1)).round() / (num_levels - 1)


def _moments(loc: Tensor, scale: Tensor, num_levels: int) -> tuple[Tensor, Tensor]:
    r"""Returns the mean and the second moment, from the tails of the distribution function.

    For a variable on :math:`0, h, 2h, \dots`, :math:`\mathbb{E}[x] = h \sum_k P(x > kh)` and
    :math:`\mathbb{E}[x^2] = h^2 \sum_k (2k + 1) P(x > kh)`.
    """
    width = 1 / (num_levels - 1)
    mean = torch.zeros_like(loc)
    second = torch.zeros_like(loc)
    for k in range(num_levels - 1):
        tail = torch.sigmoid((loc - (k + 0.5) * width) / scale)
        mean = mean + width * tail
        second = second + width**2 * (2 * k + 1) * tail
    return mean, second


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic distribution that is rounded to evenly spaced levels from 0 to 1.

    .. math:: P(x) = \sigma\!\left(\frac{x + h/2 - \mu}{s}\right) -
              \sigma\!\left(\frac{x - h/2 - \mu}{s}\right), \qquad h = \frac{1}{L - 1}

    The outermost intervals reach to infinity, so that the probabilities of the :math:`L`
    levels sum to one. For 8-bit images, :math:`L = 256` and x is the bytes divided by 255;
    log-probabilities are then in nats of discrete data, and divided by :math:`D \log 2` they
    are bits per dimension.

    Arguments:
        loc: The location :math:`\mu`.
        scale: The scale :math:`s`; the standard deviation before rounding is
            :math:`s \pi / \sqrt 3`.
        num_levels: The number of levels :math:`L`.

    Raises:
        ValueError: If ``num_levels`` is below 2, or, with validation, a value is no level.

    References:
        Salimans et al. (2017), PixelCNN++, arXiv:1701.05517, eq. 2; Kingma et al. (2016),
        Improved Variational Inference with Inverse Autoregressive Flow, arXiv:1606.04934.

    Example:
        >>> levels = torch.arange(4) / 3
        >>> p = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.2), num_levels=4)
        >>> round(p.log_prob(levels).exp().sum().item(), 6)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = False

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        num_levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_levels = as_count("num_levels", num_levels)
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be 2 or more, got {num_levels}.")
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels."""
        return Levels(self.num_levels)

    def expand(
        self,
        batch_shape: Size | list[int] | tuple[int, ...],
        _instance: "DiscretizedLogistic | None" = None,
    ) -> "DiscretizedLogistic":
        """Returns the distribution with another batch shape."""
        shape = Size(batch_shape)
        return type(self)(
            self.loc.expand(shape), self.scale.expand(shape), self.num_levels, False
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of each level in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_prob(value, self.loc, self.scale, self.num_levels)

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Returns draws of shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            shape = self._extended_shape(Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            uniform = uniform.clamp(min=torch.finfo(uniform.dtype).tiny)
            return _rounded(self.loc + self.scale * torch.logit(uniform), self.num_levels)

    @property
    def mean(self) -> Tensor:
        """The mean of the rounded variable."""
        return _moments(self.loc, self.scale, self.num_levels)[0]

    @property
    def variance(self) -> Tensor:
        """The variance of the rounded variable."""
        mean, second = _moments(self.loc, self.scale, self.num_levels)
        return (second - mean**2).clamp(min=0)

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability of values up to each level."""
        width = 1 / (self.num_levels - 1)
        level = torch.floor(value * (self.num_levels - 1) + 1e-3)
        upper = (level + 0.5) * width
        below = torch.sigmoid((upper - self.loc) / self.scale)
        below = torch.where(level < 0, torch.zeros_like(below), below)
        return torch.where(level >= self.num_levels - 1, torch.ones_like(below), below)


class DiscretizedLogisticMixture(TorchDistribution):
    r"""A mixture of discretized logistic distributions with the same levels.

    .. math:: P(x) = \sum_{k=1}^K \pi_k P_k(x), \qquad
              \pi = \mathrm{softmax}(\mathrm{logits})

    Arguments:
        logits: The unnormalized log-weights of the components, of shape ``(*, K)``.
        loc: The locations, of shape ``(*, K)``.
        scale: The scales, of shape ``(*, K)``.
        num_levels: The number of levels of each component.
        num_components: The number of components that a network computes, where the
            parameters are its outputs. Given parameters have it in their shape.

    Raises:
        ValueError: If ``num_levels`` is below 2, or, with validation, a value is no level.

    References:
        Salimans et al. (2017), PixelCNN++, arXiv:1701.05517, eq. 1 and 2.

    Example:
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> p = Conditional(DiscretizedLogisticMixture, MLP(2, [32]), (3, 8, 8))
        >>> p(torch.zeros(10, 2)).log_prob(torch.zeros(10, 3, 8, 8)).shape
        torch.Size([10])
    """

    arg_constraints = {
        "logits": constraints.independent(constraints.real, 1),
        "loc": constraints.independent(constraints.real, 1),
        "scale": constraints.independent(constraints.positive, 1),
    }
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        num_levels: int = 256,
        num_components: int = 5,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale = broadcast_all(logits, loc, scale)
        self.num_levels = as_count("num_levels", num_levels)
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be 2 or more, got {num_levels}.")
        self.num_components = self.logits.shape[-1]
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    @staticmethod
    def parameter_shape(event_shape: Size, num_components: int = 5) -> Size:
        """Returns the shape of each parameter that gives draws of the event shape."""
        return Size([*event_shape, num_components])

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels."""
        return Levels(self.num_levels)

    def expand(
        self,
        batch_shape: Size | list[int] | tuple[int, ...],
        _instance: "DiscretizedLogisticMixture | None" = None,
    ) -> "DiscretizedLogisticMixture":
        """Returns the distribution with another batch shape."""
        shape = Size([*batch_shape, self.num_components])
        parts = (self.logits.expand(shape), self.loc.expand(shape), self.scale.expand(shape))
        return type(self)(*parts, num_levels=self.num_levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of each level in nats."""
        if self._validate_args:
            self._validate_sample(value)
        of_each = _log_prob(value.unsqueeze(-1), self.loc, self.scale, self.num_levels)
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + of_each, -1)

    def sample(self, sample_shape: Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Returns draws of shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            shape = Size(sample_shape)
            chosen = torch.distributions.Categorical(logits=self.logits).sample(shape)
            index = chosen.unsqueeze(-1)
            full = (*shape, *self.loc.shape)
            loc = self.loc.expand(full).gather(-1, index).squeeze(-1)
            scale = self.scale.expand(full).gather(-1, index).squeeze(-1)
            return DiscretizedLogistic(loc, scale, self.num_levels, False).sample()

    @property
    def mean(self) -> Tensor:
        """The mean of the rounded variable."""
        weights = torch.softmax(self.logits, -1)
        return (weights * _moments(self.loc, self.scale, self.num_levels)[0]).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the rounded variable."""
        weights = torch.softmax(self.logits, -1)
        mean, second = _moments(self.loc, self.scale, self.num_levels)
        mean = (weights * mean).sum(-1)
        return ((weights * second).sum(-1) - mean**2).clamp(min=0)
