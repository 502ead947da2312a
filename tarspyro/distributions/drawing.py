"""What a draw remembers, and distributions whose draws are reparameterized only in part.

A number such as exp(-10,000) has no place in floating point, though its logarithm has. And a
rejection sampler's pathwise derivative is not the whole gradient: the law of what it accepts
moves with the parameters too. Both facts are known when the draw is made, and cannot be told
from its value; so the draw keeps them.
"""

__all__ = [
    "CarriesScore",
    "Draw",
    "bounded",
    "check_parameters",
    "full_precision",
    "instead",
    "inside_unit_interval",
    "log1m_inside",
    "log_and_log1m",
    "log_inside",
    "log_of",
    "lowest_log",
    "on_simplex",
    "power_at_zero",
    "recall",
    "remember",
    "summed",
    "unsqueezed",
]

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.nn.functional import logsigmoid

from tarspyro.arguments import format_value

_ZERO: Any = 0  # Pyro's word for a part that is not there


class Draw(NamedTuple):
    """What a draw remembers: its logarithm, that of its complement, its score, what it was
    made of and by whom.
    """

    log: Tensor | None = None
    log1m: Tensor | None = None
    score: Callable[[], Tensor] | None = None
    parts: tuple[Tensor, ...] | None = None
    maker: Any = (None, False)  # the transforms, and whether with gradients
    at_edges: bool = (
        False  # whether logarithms may be infinite, which those of draws never are
    )


def remember(value: Tensor, **known: Any) -> Tensor:
    """Lets a draw keep what is known of it, for as long as it is not changed in place.

    A score belongs to a draw with a gradient; one that is made without gradients has none to
    complete.
    """
    if not torch.is_grad_enabled():
        known.pop("score", None)
    # TorchDynamo cannot follow attributes of tensors; compiled by it, a draw is its value and
    # nothing else.
    if not torch.compiler.is_dynamo_compiling():
        value._draw = (Draw(**known), _version(value))  # type: ignore[attr-defined]
    return value


def recall(value: Tensor) -> Draw | None:
    """Returns what a draw remembers; None for a value that no sampler of this library drew."""
    if torch.compiler.is_dynamo_compiling():
        return None
    draw, version = getattr(value, "_draw", (None, 0))
    return draw if version == _version(value) else None


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def full_precision(value: Tensor) -> Tensor:
    """Returns the value in single precision if it has less."""
    return value.float() if torch.finfo(value.dtype).bits < 32 else value


def bounded(log_value: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Returns the exponential, kept inside the floating-point numbers, with the gradient of
    the true one.

    Values stay above ``tiny / eps`` (1e-31 in single precision), so that the derivatives of a
    log-density there, multiples of 1 / value, do not overflow either; and below ``eps^2 /
    tiny`` (1e24), for the sake of the value's own derivatives, multiples of the value that
    grow with the inverse square of a concentration.
    """
    finfo, coarse = torch.finfo(log_value.dtype), torch.finfo(dtype)
    lowest = math.log(max(finfo.tiny / finfo.eps, coarse.tiny))
    highest = min(2 * math.log(finfo.eps) - math.log(finfo.tiny), math.log(coarse.max) - 1)
    inside = log_value.detach().clamp(lowest, highest)
    return (inside + (log_value - log_value.detach())).exp().to(dtype)


def inside_unit_interval(
    logit: Tensor, dtype: torch.dtype, score: Callable[[], Tensor] | None = None
) -> Tensor:
    """Returns the sigmoid, strictly between 0 and 1, with the true one's gradient and both its
    logarithms.
    """
    finfo = torch.finfo(dtype)
    lowest = math.log(
        max(finfo.tiny, torch.finfo(logit.dtype).tiny / torch.finfo(logit.dtype).eps)
    )
    inside = logit.detach().clamp(lowest, -math.log(finfo.eps))
    value = (inside + (logit - logit.detach())).sigmoid().to(dtype)
    return remember(value, log=logsigmoid(logit), log1m=logsigmoid(-logit), score=score)


def log_of(value: Tensor) -> Tensor:
    """Returns the logarithm of a value: what the draw remembers, if it is one."""
    draw = recall(value)
    return full_precision(value).log() if draw is None or draw.log is None else draw.log


def log_and_log1m(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns log v and log(1 - v) of values between 0 and 1: what the draw remembers, if it
    is one.
    """
    draw = recall(value)
    if draw is None or draw.log is None or draw.log1m is None:
        value = full_precision(value)
        return value.log(), torch.log1p(-value)
    return draw.log, draw.log1m


def log_inside(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns log v, with 0 in place of the logarithm of zero, and where that is; with finite
    derivatives.

    Of a draw it is nowhere: None.
    """
    draw = recall(value)
    if draw is not None and draw.log is not None:
        return _without_infinity(draw.log) if draw.at_edges else (draw.log, None)
    value = full_precision(value)
    zero = value == 0
    return torch.where(zero, 1.0, value).log(), zero


def log1m_inside(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns log(1 - v), with 0 in place of that of one, and where that is, likewise."""
    draw = recall(value)
    if draw is not None and draw.log1m is not None:
        return _without_infinity(draw.log1m) if draw.at_edges else (draw.log1m, None)
    value = full_precision(value)
    one = value == 1
    return torch.log1p(-torch.where(one, 0.0, value)), one


def _without_infinity(log: Tensor) -> tuple[Tensor, Tensor]:
    zero = log == -math.inf
    return torch.where(zero, 0.0, log), zero


def power_at_zero(power: Tensor, zero: Tensor | None) -> Tensor | float:
    """Returns log 0^power where there is a zero: 0, infinity or minus infinity; and 0
    elsewhere.
    """
    return 0.0 if zero is None else torch.xlogy(power, (~zero).to(power.dtype))


def instead(
    zero: Tensor | None, there: Callable[[], Tensor] | float, elsewhere: Tensor
) -> Tensor:
    """Returns one number where there is a zero, and the other one elsewhere."""
    return (
        elsewhere
        if zero is None
        else torch.where(zero, there() if callable(there) else there, elsewhere)
    )


def lowest_log(dtype: torch.dtype) -> float:
    """Returns the logarithm of the least value that a draw is kept at."""
    return math.log(torch.finfo(dtype).tiny / torch.finfo(dtype).eps)


def unsqueezed(value: Tensor, dim: int) -> Tensor:
    """Returns the value with one more dimension, which its logarithms get too."""
    draw, more = recall(value), value.unsqueeze(dim)
    if draw is None or draw.log is None:
        return more
    return remember(
        more,
        log=draw.log.unsqueeze(dim),
        log1m=None if draw.log1m is None else draw.log1m.unsqueeze(dim),
    )


def summed(score: Callable[[], Tensor] | None) -> Callable[[], Tensor] | None:
    """Returns a score that is summed over its last dimension."""
    return None if score is None else lambda: score().sum(-1)


def on_simplex(log_value: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the exponentials of logarithms of shares, which sum to one as nearly as the
    numbers allow.
    """
    value = bounded(log_value, dtype)
    return value if dtype != log_value.dtype else value / value.sum(-1, keepdim=True).detach()


def check_parameters(**parameters: Any) -> None:
    """Raises unless the parameters of a family are numbers, or tensors in floating point, that
    broadcast.

    Raises:
        TypeError: If one is neither.
        ValueError: If one is of integers, or the shapes do not broadcast.
    """
    tensors = {name: value for name, value in parameters.items() if torch.is_tensor(value)}
    for name, value in parameters.items():
        if name in tensors and not value.is_floating_point():
            raise ValueError(
                f"{name} must be in floating point, got {value.dtype}: {name}.float()."
            )
        if name in tensors and (value.is_meta or value.layout is not torch.strided):
            raise ValueError(
                f"{name} must be a dense tensor that holds numbers, got {format_value(value)}."
            )
        if name not in tensors and not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number or a tensor, got {format_value(value)}.")
    shapes = [value.shape for value in tensors.values()]
    if len(set(shapes)) > 1:
        try:
            torch.broadcast_shapes(*shapes)
        except RuntimeError:
            names, sizes = (
                " and ".join(tensors),
                " and ".join(str(tuple(shape)) for shape in shapes),
            )
            raise ValueError(f"{names} must broadcast, got shapes {sizes}.") from None


class CarriesScore(TorchDistributionMixin):
    """A distribution whose score must survive ``to_event`` and ``mask``, where Pyro's wrappers
    drop it.

    Its draws remember a score, as a function that computes it: a tensor of the batch shape
    whose gradient is that of the log-probability of the random choices behind the draw, which
    the pathwise derivative does not account for.
    """

    def score_parts(self, value: Tensor) -> ScoreParts:
        """Returns the parts of a gradient estimator: the density, the score of the random
        choices, the entropy.

        A value without a gradient carries nothing of the sampler, whoever drew it: its score
        is the whole one. A value that another object of the family drew brings its own.

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
                f"value must be a draw of {type(self).__name__} itself or have no gradient,"
                " got a tensor computed from something else: detach it, or use"
                " reparameterization='implicit'."
            )
        return ScoreParts(log_prob, log_prob, _ZERO)

    @property
    def partly_reparameterized(self) -> bool:
        """Whether draws need their score beside the pathwise derivative."""
        return True

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> Any:
        """Declares the rightmost batch dimensions independent parts of one event."""
        event = super().to_event(reinterpreted_batch_ndims)  # type: ignore[no-untyped-call]
        if type(event) is Independent:
            return _Independent(event.base_dist, event.reinterpreted_batch_ndims)
        return event

    def mask(self, mask: Any) -> Any:
        """Masks the density by a boolean tensor; the draws and their score stay."""
        return _Masked(self, mask)


class _Independent(CarriesScore, Independent):  # type: ignore[override]
    def score_parts(self, value: Tensor) -> ScoreParts:
        parts = self.base_dist.score_parts(value)
        return ScoreParts(
            *(
                (
                    sum_rightmost(part, self.reinterpreted_batch_ndims)
                    if torch.is_tensor(part)
                    else _ZERO
                )
                for part in parts
            )
        )


class _Masked(CarriesScore, MaskedDistribution):
    def score_parts(self, value: Tensor) -> ScoreParts:
        parts: ScoreParts = self.base_dist.score_parts(value)
        if self._mask is True:
            return parts
        if self._mask is False:
            return ScoreParts(self.log_prob(value), parts.score_function, _ZERO)
        return parts.scale_and_mask(mask=self._mask)
