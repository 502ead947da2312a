"""Draws that carry their logarithm and their score.

A sampler computes two numbers for a draw that its value does not show:

- its logarithm: exp(-10,000) underflows in floating point, and -10,000 does not;
- its score: with rejection sampling, the pathwise derivative is not the whole gradient, because
  the distribution of the accepted noise depends on the parameters too.

``remember`` attaches them to the tensor of the draw, and ``recall`` reads them.
"""

__all__ = [
    "CarriesScore",
    "Draw",
    "bounded_exp",
    "check_parameters",
    "full_precision",
    "where_zero",
    "inside_unit_interval",
    "safe_log1m",
    "log_and_log1m",
    "safe_log",
    "log_of",
    "lowest_log",
    "on_simplex",
    "log_power_at_zero",
    "recall",
    "remember",
    "summed_score",
    "unsqueezed",
]

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.nn.functional import logsigmoid

from tarspyro.arguments import format_value

# Pyro's notation for a part of ``ScoreParts`` that is absent.
_ZERO: Any = 0


class Draw(NamedTuple):
    """The attributes that a sampler attaches to a draw v.

    Attributes:
        log: log v.
        log1m: log(1 - v).
        score: Returns the score, see ``CarriesScore``.
        parts: The draws that v was computed from.
        maker: The transforms that computed v, and whether gradients were enabled.
        at_edges: Whether the logarithms may be infinite; those of draws never are.
    """

    log: Tensor | None = None
    log1m: Tensor | None = None
    score: Callable[[], Tensor] | None = None
    parts: tuple[Tensor, ...] | None = None
    maker: tuple[object, bool] = (None, False)
    at_edges: bool = False


def remember(
    value: Tensor,
    *,
    log: Tensor | None = None,
    log1m: Tensor | None = None,
    score: Callable[[], Tensor] | None = None,
    parts: tuple[Tensor, ...] | None = None,
    maker: tuple[object, bool] = (None, False),
    at_edges: bool = False,
) -> Tensor:
    """Attaches the attributes of ``Draw`` to a value, until it is changed in place.

    Without gradients there is no gradient that a score could complete, so it is dropped.
    """
    # TorchDynamo cannot trace attributes of tensors. In code that it compiles, draws carry
    # nothing.
    if torch.compiler.is_dynamo_compiling():
        return value
    if not torch.is_grad_enabled():
        score = None
    draw = Draw(log, log1m, score, parts, maker, at_edges)
    value._draw = (draw, _version(value))  # type: ignore[attr-defined]
    return value


def recall(value: Tensor) -> Draw | None:
    """Returns the attributes of a draw; None if no sampler of this library drew the value."""
    if torch.compiler.is_dynamo_compiling():
        return None
    draw, version = getattr(value, "_draw", (None, 0))
    return draw if version == _version(value) else None


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def full_precision(value: Tensor) -> Tensor:
    """Returns the value, in single precision if it is in half precision."""
    return value.float() if torch.finfo(value.dtype).bits < 32 else value


def bounded_exp(log_value: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the exponential, clamped to a safe range, with the gradient of the exact one.

    The lower limit is ``tiny / eps`` (1e-31 in single precision): the derivatives of a
    log-density are multiples of 1 / value, and must not overflow. The upper limit is ``eps^2 /
    tiny`` (1e24): the derivatives of the value are multiples of it that grow with the inverse
    square of a concentration.
    """
    finfo = torch.finfo(log_value.dtype)
    coarse = torch.finfo(dtype)
    lowest = math.log(max(finfo.tiny / finfo.eps, coarse.tiny))
    highest = min(2 * math.log(finfo.eps) - math.log(finfo.tiny), math.log(coarse.max) - 1)
    inside = log_value.detach().clamp(lowest, highest)
    return (inside + (log_value - log_value.detach())).exp().to(dtype)


def inside_unit_interval(
    logit: Tensor, dtype: torch.dtype, score: Callable[[], Tensor] | None = None
) -> Tensor:
    """Returns the sigmoid, strictly between 0 and 1, with the gradient of the exact one.

    The value carries both its logarithms, and the score.
    """
    finfo = torch.finfo(dtype)
    fine = torch.finfo(logit.dtype)
    lowest = math.log(max(finfo.tiny, fine.tiny / fine.eps))
    inside = logit.detach().clamp(lowest, -math.log(finfo.eps))
    value = (inside + (logit - logit.detach())).sigmoid().to(dtype)
    return remember(value, log=logsigmoid(logit), log1m=logsigmoid(-logit), score=score)


def log_of(value: Tensor) -> Tensor:
    """Returns log v, the one that the value carries if it is a draw."""
    draw = recall(value)
    return full_precision(value).log() if draw is None or draw.log is None else draw.log


def log_and_log1m(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log v and log(1 - v), those that the value carries if it is a draw."""
    draw = recall(value)
    if draw is None or draw.log is None or draw.log1m is None:
        value = full_precision(value)
        return value.log(), torch.log1p(-value)
    return draw.log, draw.log1m


def safe_log(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns log v with finite values and derivatives, and where v is zero.

    Where v is zero, the logarithm is replaced by 0. The logarithm that a draw carries is always
    finite: then the second result is None.
    """
    draw = recall(value)
    if draw is not None and draw.log is not None:
        return _without_infinity(draw.log) if draw.at_edges else (draw.log, None)
    value = full_precision(value)
    zero = value == 0
    return torch.where(zero, 1.0, value).log(), zero


def safe_log1m(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns log(1 - v) likewise, and where v is one; see ``safe_log``."""
    draw = recall(value)
    if draw is not None and draw.log1m is not None:
        return _without_infinity(draw.log1m) if draw.at_edges else (draw.log1m, None)
    value = full_precision(value)
    one = value == 1
    return torch.log1p(-torch.where(one, 0.0, value)), one


def _without_infinity(log: Tensor) -> tuple[Tensor, Tensor]:
    zero = log == -math.inf
    return torch.where(zero, 0.0, log), zero


def log_power_at_zero(power: Tensor, zero: Tensor | None) -> Tensor | float:
    """Returns log(0^power) at the zeros (0, infinity or minus infinity), and 0 elsewhere."""
    return 0.0 if zero is None else torch.xlogy(power, (~zero).to(power.dtype))


def where_zero(
    zero: Tensor | None, there: Callable[[], Tensor] | float, elsewhere: Tensor
) -> Tensor:
    """Returns ``there`` at the zeros, and ``elsewhere`` at all other values.

    A function ``there`` is called only if there may be zeros.
    """
    if zero is None:
        return elsewhere
    return torch.where(zero, there() if callable(there) else there, elsewhere)


def lowest_log(dtype: torch.dtype) -> float:
    """Returns the logarithm of the smallest value of a draw, see ``bounded_exp``."""
    return math.log(torch.finfo(dtype).tiny / torch.finfo(dtype).eps)


def unsqueezed(value: Tensor, dim: int) -> Tensor:
    """Returns the value with one more dimension, and its logarithms likewise."""
    draw = recall(value)
    unsqueezed_value = value.unsqueeze(dim)
    if draw is None or draw.log is None:
        return unsqueezed_value
    log1m = None if draw.log1m is None else draw.log1m.unsqueeze(dim)
    return remember(unsqueezed_value, log=draw.log.unsqueeze(dim), log1m=log1m)


def summed_score(score: Callable[[], Tensor] | None) -> Callable[[], Tensor] | None:
    """Returns a score, summed over its last dimension."""
    return None if score is None else lambda: score().sum(-1)


def on_simplex(log_value: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns a point of the simplex from the logarithms of its entries.

    The entries sum to one up to rounding.
    """
    value = bounded_exp(log_value, dtype)
    return value if dtype != log_value.dtype else value / value.sum(-1, keepdim=True).detach()


def check_parameters(**parameters: object) -> None:
    """Raises unless the parameters of a family are numbers, or floating-point tensors.

    Raises:
        TypeError: If one is neither a number nor a tensor.
        ValueError: If one is a tensor of integers, or the shapes do not broadcast.
    """
    tensors = {}
    for name, value in parameters.items():
        if not isinstance(value, Tensor):
            if not isinstance(value, (int, float)):
                raise TypeError(
                    f"{name} must be a number or a tensor, got {format_value(value)}."
                )
            continue
        if not value.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point tensor, got {value.dtype}: give"
                f" {name}.float()."
            )
        if value.is_meta or value.layout is not torch.strided:
            raise ValueError(
                f"{name} must be a dense tensor that holds numbers, got {format_value(value)}."
            )
        tensors[name] = value

    shapes = [value.shape for value in tensors.values()]
    if len(set(shapes)) > 1:
        try:
            torch.broadcast_shapes(*shapes)
        except RuntimeError:
            names = " and ".join(tensors)
            sizes = " and ".join(str(tuple(shape)) for shape in shapes)
            raise ValueError(f"{names} must broadcast, got shapes {sizes}.") from None


class CarriesScore(TorchDistributionMixin):
    """A distribution whose draws carry a score, also after ``to_event`` and ``mask``.

    Pyro's own wrappers would drop the score. A draw carries it as a function that returns a
    tensor of the batch shape. The gradient of this tensor is that of the log-probability of the
    random choices behind the draw, which the pathwise derivative does not include.
    """

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Returns the parts of a gradient estimator: log-density, score and entropy term.

        The score of a value without a gradient is its whole log-density. The score of a draw is
        the one that it carries, also if another object of the family drew it.

        Raises:
            ValueError: If the value has a gradient, but no sampler of this library drew it.
        """
        log_prob = self.log_prob(value)
        if not self.partly_reparameterized:
            return ScoreParts(log_prob, _ZERO, log_prob)
        draw = recall(value)
        if draw is not None and draw.score is not None:
            return ScoreParts(log_prob, draw.score(), log_prob)
        if value.requires_grad:
            raise ValueError(
                f"value must be a draw of {type(self).__name__}, or a tensor without gradient,"
                " got a tensor with a gradient from another computation: detach it, or use"
                " reparameterization='implicit'."
            )
        return ScoreParts(log_prob, log_prob, _ZERO)

    @property
    def partly_reparameterized(self) -> bool:
        """Whether the pathwise derivative of a draw must be completed by its score."""
        return True

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistributionMixin:
        """Returns the distribution with its rightmost batch dimensions as event dimensions."""
        event = super().to_event(reinterpreted_batch_ndims)  # type: ignore[no-untyped-call]
        if type(event) is Independent:
            return _Independent(event.base_dist, event.reinterpreted_batch_ndims)
        return cast(TorchDistributionMixin, event)

    def mask(self, mask: bool | Tensor) -> TorchDistributionMixin:
        """Returns the distribution with its density masked; draws and scores are not masked."""
        return _Masked(self, mask)


class _Independent(CarriesScore, Independent):  # type: ignore[override]
    def score_parts(self, value: Tensor) -> ScoreParts:
        ndims = self.reinterpreted_batch_ndims
        parts = []
        for part in self.base_dist.score_parts(value):
            parts.append(sum_rightmost(part, ndims) if torch.is_tensor(part) else _ZERO)
        return ScoreParts(*parts)


class _Masked(CarriesScore, MaskedDistribution):
    def score_parts(self, value: Tensor) -> ScoreParts:
        parts: ScoreParts = self.base_dist.score_parts(value)
        if self._mask is True:
            return parts
        if self._mask is False:
            return ScoreParts(self.log_prob(value), parts.score_function, _ZERO)
        return parts.scale_and_mask(mask=self._mask)
