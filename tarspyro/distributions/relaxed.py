"""Continuous relaxations of discrete variables: Gumbel-softmax, in log space."""

__all__ = ["GumbelSigmoid", "GumbelSoftmax", "as_discrete"]

import math
from typing import TypeVar

import torch
from pyro.distributions import Bernoulli, OneHotCategorical, TorchDistribution
from torch import Tensor
from torch.distributions import RelaxedOneHotCategorical, constraints
from torch.distributions.utils import (
    broadcast_all,
    lazy_property,
    logits_to_probs,
    probs_to_logits,
)
from torch.nn.functional import logsigmoid, softplus

from tarspyro.arguments import as_count, as_numbers, check_choice, format_value
from tarspyro.distributions.drawing import (
    check_parameters,
    full_precision,
    inside_unit_interval,
    lowest_log,
    on_simplex,
    remember,
    safe_log,
    safe_log1m,
    where_zero,
)
from tarspyro.types import Distribution, Shape

_Family = TypeVar("_Family", bound="_Relaxed")


class _Relaxed(TorchDistribution):
    """The base of the relaxations of one-hot and of binary variables."""

    has_rsample = True
    hard: bool
    score: str
    rao_blackwell: int

    def _set_rules(self, hard: bool, score: str | None, rao_blackwell: int) -> None:
        if score is not None:
            check_choice("score", score, ("density", "discrete"))
        if hard and score == "density":
            raise ValueError(
                "score='density' needs soft draws, because hard draws have no density: use"
                " score='discrete' with hard=True."
            )
        self.rao_blackwell = as_count("rao_blackwell", rao_blackwell, 0)
        if self.rao_blackwell and not hard:
            raise ValueError(
                f"rao_blackwell={rao_blackwell} averages the gradient of hard draws: take"
                " hard=True, or leave it out."
            )
        self.hard = hard
        self.score = score or ("discrete" if hard else "density")

    def _logits(
        self,
        logits: Tensor | float | None,
        probs: Tensor | float | None,
        validate: bool | None,
        *,
        binary: bool,
    ) -> Tensor:
        if (logits is None) == (probs is None):
            given = "both" if logits is not None else "neither"
            raise ValueError(f"Either logits or probs must be given, got {given}.")
        if probs is not None and (self._validate_args if validate is None else validate):
            probs = as_numbers("probs", probs)
            if not probs.is_floating_point():
                raise ValueError(
                    f"probs must be a floating-point tensor, got {probs.dtype}: give"
                    " probs.float()."
                )
            if not self.arg_constraints["probs"].check(probs).all():
                raise ValueError(
                    f"probs must be probabilities, got {format_value(probs)}: give log-odds as"
                    " logits."
                )
        if probs is not None:
            return probs_to_logits(torch.as_tensor(probs), is_binary=binary)
        return logits  # type: ignore[return-value]

    @property
    def probs(self) -> Tensor:
        """The probabilities of the discrete variable."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """The mean of hard draws, which are the probabilities."""
        if not self.hard:
            raise self._no_closed_form("mean")
        return self.probs

    @property
    def variance(self) -> Tensor:
        """The variance of hard draws."""
        if not self.hard:
            raise self._no_closed_form("variance")
        return self.probs * (1 - self.probs)

    def entropy(self) -> Tensor:
        """Returns the entropy of hard draws, in nats."""
        if not self.hard:
            raise self._no_closed_form("entropy")
        entropy: Tensor = self._discrete.entropy()
        return entropy

    @property
    def mode(self) -> Tensor:
        """The mode of hard draws."""
        if not self.hard:
            raise self._no_closed_form("mode")
        mode: Tensor = self._discrete.mode
        return mode

    def _no_closed_form(self, name: str) -> NotImplementedError:
        return NotImplementedError(
            f"Soft draws of {type(self).__name__} have no {name} in closed form: estimate it from"
            " draws, or use hard=True."
        )

    @property
    def _discrete(self) -> OneHotCategorical | Bernoulli:
        """The discrete variable."""
        raise NotImplementedError

    def _like(self: _Family, other: "_Relaxed") -> _Family:
        """Copies the options from another distribution; returns this one."""
        self.hard = other.hard
        self.score = other.score
        self.rao_blackwell = other.rao_blackwell
        return self


def _as_temperature(value: Tensor | float, logits: Tensor) -> Tensor:
    """Returns a temperature as a tensor like the logits."""
    if isinstance(value, Tensor):
        return value.to(logits.dtype)
    # new_full creates the tensor on the device; torch.tensor would copy it there.
    return logits.new_full((), value)


def _log_exponential(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Returns the logarithms of standard exponential draws."""
    u = torch.rand(shape, dtype=like.dtype, device=like.device)
    least = torch.finfo(like.dtype).eps / 2
    return (-torch.log1p(-u)).clamp(min=least).log()


class GumbelSoftmax(_Relaxed):
    r"""The Gumbel-softmax or Concrete distribution, a relaxed one-hot variable.

    .. math:: y = \mathrm{softmax}((\ell + g) / \tau), \qquad g_k \sim \mathrm{Gumbel}(0, 1)

    (Jang et al. 2016, arXiv:1611.01144; Maddison et al. 2016, arXiv:1611.00712.) Draws are
    points of the simplex. They are computed in log space and carry log y, so density and
    gradient are finite at temperatures from 0.01 to 10 and for any number of classes. Entries
    are at least ``tiny / eps``.

    Papers define the score ``log_prob`` in two ways:

    - ``score="density"``: the density of the relaxed draw (Maddison et al., eq. 10). It is
      exact for the relaxed model, whose prior must be relaxed too.
    - ``score="discrete"``: the log-probability of the one-hot variable, evaluated at the draw,
      :math:`\sum_k y_k \log \mathrm{softmax}(\ell)_k`, with the KL between one-hot variables
      in closed form (Jang et al.). It is exact only in the limit of hard draws.

    With ``hard=True`` a draw is the corner of the simplex nearest to y, with the gradient of y
    (straight-through).

    Arguments:
        logits: Unnormalized log-probabilities of the K classes, of shape ``batch_shape +
            (K,)``.
        probs: The probabilities, in place of ``logits``.
        temperature: tau, a positive number or a tensor that broadcasts with the batch.
        hard: Whether draws are one-hot.
        score: ``"density"`` or ``"discrete"``; the default is ``"discrete"`` for hard draws,
            else ``"density"``.
        rao_blackwell: With hard draws, the number R of relaxed draws whose mean gives the
            gradient, all of which have the hard draw as nearest corner; 0 takes the one that it
            was made of. The gradient has the same mean and less noise (Gumbel-Rao, Paulus et
            al. 2020, arXiv:2010.04838).

    Raises:
        ValueError: If an argument is out of range, hard draws are given ``score="density"``,
            or soft draws ``rao_blackwell``.

    Example:
        >>> q = GumbelSoftmax(logits=torch.zeros(20, 10), temperature=0.01).to_event(1)
        >>> z = q.rsample()
        >>> z.shape, q.log_prob(z).isfinite().item()
        (torch.Size([20, 10]), True)
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "probs": constraints.simplex,
        "temperature": constraints.positive,
    }
    support = constraints.simplex

    def __init__(
        self,
        logits: Tensor | None = None,
        probs: Tensor | None = None,
        temperature: Tensor | float = 2 / 3,
        hard: bool = False,
        score: str | None = None,
        rao_blackwell: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        self._set_rules(hard, score, rao_blackwell)
        logits = self._logits(logits, probs, validate_args, binary=False)
        if not torch.is_tensor(logits) or not logits.dim() or not logits.numel():
            raise ValueError(
                "logits or probs must be a tensor of shape batch_shape + (K,), got"
                f" {format_value(logits)}."
            )
        check_parameters(logits=logits[..., 0], temperature=temperature)
        if torch.is_tensor(temperature) and not temperature.numel():
            raise ValueError(
                f"temperature must hold numbers, got {format_value(temperature)}."
            )
        # One temperature for each row; the logits' last dimension is the event.
        self.temperature, row = broadcast_all(
            _as_temperature(temperature, logits), logits[..., 0]
        )
        self.logits = logits.expand(row.shape + logits.shape[-1:])
        super().__init__(row.shape, logits.shape[-1:], validate_args=validate_args)

    @lazy_property
    def probs(self) -> Tensor:
        """The probabilities of the classes."""
        return logits_to_probs(self.logits)

    @property
    def _discrete(self) -> OneHotCategorical:
        return OneHotCategorical(logits=self.logits)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "GumbelSoftmax":
        """Returns the distribution with its batch expanded."""
        new: GumbelSoftmax = self._get_checked_instance(GumbelSoftmax, _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(batch_shape + self.event_shape)
        new.temperature = self.temperature.expand(batch_shape)
        super(GumbelSoftmax, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new._like(self)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry their logarithms."""
        logits = full_precision(self.logits).expand(self._extended_shape(sample_shape))
        # Uniform numbers are multiples of eps / 2. A zero stands for all numbers below that.
        log1m_u = torch.log1p(-torch.rand_like(logits))
        exponential = -log1m_u.clamp(max=-torch.finfo(logits.dtype).eps / 2)
        gumbel = -exponential.log()
        temperature = full_precision(self.temperature).unsqueeze(-1)
        log = torch.log_softmax((logits + gumbel) / temperature, -1)
        soft = on_simplex(log, self.logits.dtype)
        if not self.hard:
            return remember(soft, log=log)
        corner = torch.zeros_like(soft).scatter(-1, log.argmax(-1, keepdim=True), 1.0)
        if self.rao_blackwell:
            again = self._perturbed(logits, corner.detach())
            means = torch.softmax(again / temperature.unsqueeze(-1), -1).mean(-2)
            soft = means.to(self.logits.dtype)
        return corner + (soft - soft.detach())

    def _perturbed(self, logits: Tensor, corner: Tensor) -> Tensor:
        """Returns R draws of perturbed logits of which the largest is the corner's.

        They are in the dimension before the classes. Their derivative is that of the logits,
        with the noise fixed. (Paulus et al., eq. 10.)
        """
        logits = logits.unsqueeze(-2)
        corner = corner.unsqueeze(-2)
        log_probs = torch.log_softmax(logits.detach(), -1)
        shape = (*logits.shape[:-2], self.rao_blackwell, logits.shape[-1])
        noise = _log_exponential(shape, logits)
        winner = torch.where(corner > 0, noise, 0.0).sum(-1, keepdim=True)
        others = -torch.logaddexp(noise - log_probs, winner)
        perturbed = torch.where(corner > 0, -winner, others)
        return logits + (perturbed - logits.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the score in nats: the log-density, or the discrete log-probability."""
        if (
            self._validate_args and torch.finfo(value.dtype).bits >= 32
        ):  # half precision sums to 1 +- 1 %
            self._validate_sample(value)
        logits = full_precision(self.logits)
        if self.score == "discrete":
            log_probs = torch.log_softmax(logits, -1)
            # An impossible class that the value does not have counts 0, not 0 * -inf.
            absent = (value == 0) & (log_probs == -math.inf)
            return (value * torch.where(absent, 0.0, log_probs)).sum(-1)
        temperature = full_precision(self.temperature)
        log, zero = safe_log(value)
        log = where_zero(zero, lowest_log(log.dtype), log)
        classes = self.event_shape[-1]
        # log_softmax subtracts the largest term, so low temperatures do not overflow.
        scores = torch.log_softmax(logits - temperature.unsqueeze(-1) * log, -1)
        normalizer = math.lgamma(classes) + (classes - 1) * temperature.log()
        return normalizer + (scores - log).sum(-1)


class GumbelSigmoid(_Relaxed):
    r"""The binary Gumbel-softmax or Concrete distribution, a relaxed Bernoulli variable.

    .. math:: y = \sigma((\ell + \log u - \log(1 - u)) / \tau), \qquad
              u \sim \mathrm{Uniform}(0, 1)

    Scores and hard draws are those of ``GumbelSoftmax``. The density is that of Maddison et al.
    (2016, arXiv:1611.00712, eq. 24), the discrete score :math:`y \log p + (1 - y) \log(1 - p)`.

    Arguments:
        logits: The log-odds of a one.
        probs: The probability of a one, in place of ``logits``.
        temperature: tau, positive: a number or a tensor that broadcasts with the batch.
        hard: Whether draws are 0 or 1.
        score: ``"density"`` or ``"discrete"``; the default is ``"discrete"`` for hard draws,
            else ``"density"``.
        rao_blackwell: See ``GumbelSoftmax``.

    Raises:
        ValueError: If an argument is out of range, hard draws are given ``score="density"``,
            or soft draws ``rao_blackwell``.

    Example:
        >>> q = GumbelSigmoid(logits=torch.zeros(200), temperature=0.01).to_event(1)
        >>> q.log_prob(q.rsample()).isfinite().item()
        True
    """

    arg_constraints = {
        "logits": constraints.real,
        "probs": constraints.unit_interval,
        "temperature": constraints.positive,
    }
    support = constraints.unit_interval

    def __init__(
        self,
        logits: Tensor | float | None = None,
        probs: Tensor | float | None = None,
        temperature: Tensor | float = 2 / 3,
        hard: bool = False,
        score: str | None = None,
        rao_blackwell: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        self._set_rules(hard, score, rao_blackwell)
        logits = self._logits(logits, probs, validate_args, binary=True)
        check_parameters(logits=logits, temperature=temperature)
        logits = torch.as_tensor(logits)
        self.logits, self.temperature = broadcast_all(
            logits, _as_temperature(temperature, logits)
        )
        super().__init__(self.logits.shape, validate_args=validate_args)

    @lazy_property
    def probs(self) -> Tensor:
        """The probability of a one."""
        return logits_to_probs(self.logits, is_binary=True)

    @property
    def _discrete(self) -> Bernoulli:
        return Bernoulli(logits=self.logits)

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability that a soft draw is at most the value."""
        self._check_soft()
        if self._validate_args:
            self._validate_sample(value)
        return (self.temperature * torch.logit(value) - self.logits).sigmoid()

    def icdf(self, value: Tensor) -> Tensor:
        """Returns the quantile of a probability, of soft draws."""
        self._check_soft()
        return ((torch.logit(value) + self.logits) / self.temperature).sigmoid()

    def _check_soft(self) -> None:
        if self.hard:
            raise NotImplementedError(
                "cdf and icdf are those of soft draws, but hard=True draws zeros and ones: use"
                " log_prob."
            )

    def expand(self, batch_shape: Shape, _instance: object = None) -> "GumbelSigmoid":
        """Returns the distribution with its batch expanded."""
        new: GumbelSigmoid = self._get_checked_instance(GumbelSigmoid, _instance)
        new.logits = self.logits.expand(batch_shape)
        new.temperature = self.temperature.expand(batch_shape)
        super(GumbelSigmoid, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new._like(self)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry log y and log(1 - y)."""
        logits = full_precision(self.logits).expand(self._extended_shape(sample_shape))
        u = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).eps / 2)
        logit = (logits + u.log() - torch.log1p(-u)) / full_precision(self.temperature)
        soft = inside_unit_interval(logit, self.logits.dtype)
        if not self.hard:
            return soft
        bit = (logit > 0).to(soft.dtype)
        if self.rao_blackwell:
            again = self._perturbed(logits, bit.detach())
            temperature = full_precision(self.temperature).unsqueeze(-1)
            mean = (again / temperature).sigmoid().mean(-1)
            soft = mean.to(self.logits.dtype)
        return bit + (soft - soft.detach())

    def _perturbed(self, logits: Tensor, bit: Tensor) -> Tensor:
        """Returns R draws, in the last dimension, of perturbed logits with the sign of the bit;
        see ``GumbelSoftmax``.
        """
        shape = (*logits.shape, self.rao_blackwell, 2)
        logits = logits.unsqueeze(-1)
        fixed = logits.detach()
        sign = 2 * bit.to(fixed.dtype).unsqueeze(-1) - 1
        one, other = _log_exponential(shape, logits).unbind(-1)
        perturbed = sign * softplus(one - other - logsigmoid(-sign * fixed))
        return logits + (perturbed - fixed)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the score in nats: the log-density, or the discrete log-probability."""
        if self._validate_args:
            self._validate_sample(value)
        logits = full_precision(self.logits)
        if self.score == "discrete":
            return value * logits + logsigmoid(-logits)
        temperature = full_precision(self.temperature)
        log, zero = safe_log(value)
        log1m, one = safe_log1m(value)
        log = where_zero(zero, lowest_log(log.dtype), log)
        log1m = where_zero(one, lowest_log(log.dtype), log1m)
        shifted = logits - temperature * (log - log1m)
        return temperature.log() + logsigmoid(shifted) + logsigmoid(-shifted) - log - log1m


def as_discrete(distribution: Distribution) -> Distribution:
    """Returns the one-hot variable that a Gumbel-softmax relaxes; other distributions as is.

    A known one-hot value, such as a given label, has a probability and no density.

    Example:
        >>> as_discrete(GumbelSoftmax(logits=torch.zeros(10))).log_prob(torch.eye(10)[3]).exp()
        tensor(0.1000)
    """
    if isinstance(distribution, (GumbelSoftmax, RelaxedOneHotCategorical)):
        return OneHotCategorical(logits=distribution.logits)
    return distribution
