"""Discrete variables made continuous: Gumbel-softmax (Concrete) draws, kept in log space."""

__all__ = ["GumbelSigmoid", "GumbelSoftmax", "as_discrete"]

import math
from typing import Any

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
from torch.nn.functional import logsigmoid

from tarspyro.arguments import as_numbers, check_choice, format_value
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


class _Relaxed(TorchDistribution):
    """What the relaxation of a one-hot and of a binary variable share."""

    has_rsample = True
    hard: bool
    score: str

    def _set_rules(self, hard: bool, score: str | None) -> None:
        if score is not None:
            check_choice("score", score, ("density", "discrete"))
        if hard and score == "density":
            raise ValueError(
                "score='density' is for soft draws, hard=True puts them where there is none:"
                " 'discrete'."
            )
        self.hard, self.score = hard, score or ("discrete" if hard else "density")

    def _logits(
        self,
        logits: Tensor | None,
        probs: Tensor | None,
        validate: bool | None,
        *,
        binary: bool,
    ) -> Tensor:
        if (logits is None) == (probs is None):
            raise ValueError("Give logits or probs, one of the two.")
        if probs is not None and (self._validate_args if validate is None else validate):
            probs = as_numbers("probs", probs)
            if not probs.is_floating_point():
                raise ValueError(
                    f"probs must be in floating point, got {probs.dtype}: probs.float()."
                )
            if not self.arg_constraints["probs"].check(probs).all():
                raise ValueError(
                    f"probs must be probabilities, got {format_value(probs)}: or give logits."
                )
        return probs_to_logits(probs, is_binary=binary) if probs is not None else logits  # type: ignore[return-value]

    @property
    def probs(self) -> Tensor:
        """The probabilities of the discrete variable."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """The mean of hard draws, the probabilities; soft draws have none in closed form."""
        if not self.hard:
            raise NotImplementedError("Soft draws have no mean in closed form.")
        return self.probs

    @property
    def variance(self) -> Tensor:
        """The variance of hard draws; soft draws have none in closed form."""
        if not self.hard:
            raise NotImplementedError("Soft draws have no variance in closed form.")
        return self.probs * (1 - self.probs)

    def entropy(self) -> Tensor:
        """Returns the entropy of hard draws, in nats; that of soft draws has no closed form."""
        if not self.hard:
            raise NotImplementedError("Soft draws have no entropy in closed form.")
        entropy: Tensor = self._discrete.entropy()
        return entropy

    @property
    def mode(self) -> Tensor:
        """The most probable of hard draws; soft draws have none in closed form."""
        if not self.hard:
            raise NotImplementedError("Soft draws have no mode in closed form.")
        mode: Tensor = self._discrete.mode
        return mode

    @property
    def _discrete(self) -> Any:
        """The discrete variable."""
        raise NotImplementedError

    def _like(self, other: Any) -> Any:
        self.hard, self.score = other.hard, other.score
        return self


def _like(logits: Tensor, temperature: Any) -> Tensor:
    # A number is filled in on the device, where a tensor made from it would have to be copied.
    return (
        temperature.to(logits.dtype)
        if torch.is_tensor(temperature)
        else logits.new_full((), temperature)
    )


class GumbelSoftmax(_Relaxed):
    r"""The Gumbel-softmax or Concrete distribution: a point of the simplex near one of its
    corners.

    .. math:: y = \mathrm{softmax}((\ell + g) / \tau), \qquad g_k \sim \mathrm{Gumbel}(0, 1)

    (Jang et al. 2016, arXiv:1611.01144; Maddison et al. 2016, arXiv:1611.00712.) Draws are
    made in log space and remember log y, so that density and gradient are finite at
    temperatures from 0.01 to 10 and for any number of classes; entries too small for a
    floating-point number are kept at ``tiny / eps``.

    What ``log_prob`` is has to be chosen, because papers differ:

    - ``score="density"``: the density of the relaxed draw (Maddison et al., eq. 10). Exact for
      the relaxed model, whose prior must be relaxed too.
    - ``score="discrete"``: the probability of the one-hot variable with the draw in its place,
      :math:`\sum_k y_k \log \mathrm{softmax}(\ell)_k`, and the KL between the one-hot
      variables in closed form (Jang et al.). Exact only in the limit of hard draws.

    ``hard=True`` draws the one-hot corner nearest to y, with the gradient of y
    (straight-through). Nothing but the value is needed to score it.

    Arguments:
        logits: Unnormalized log-probabilities of the K classes, of shape ``batch_shape +
            (K,)``.
        probs: The probabilities, in place of ``logits``.
        temperature: tau, positive: a number or a tensor that broadcasts with the batch.
        hard: Whether draws are one-hot.
        score: ``"density"`` or ``"discrete"``; the default is ``"discrete"`` for hard draws,
            else ``"density"``.

    Raises:
        ValueError: If an argument is out of range, or ``score="density"`` is asked of hard
            draws.

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
        temperature: Any = 2 / 3,
        hard: bool = False,
        score: str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._set_rules(hard, score)
        logits = self._logits(logits, probs, validate_args, binary=False)
        if not torch.is_tensor(logits) or not logits.dim() or not logits.numel():
            raise ValueError(
                "logits and probs must be of shape batch_shape + (K,), got"
                f" {format_value(logits)}."
            )
        check_parameters(logits=logits[..., 0], temperature=temperature)
        if torch.is_tensor(temperature) and not temperature.numel():
            raise ValueError(
                f"temperature must hold numbers, got {format_value(temperature)}."
            )
        # One temperature for each row; the logits' last dimension is the event.
        self.temperature, row = broadcast_all(_like(logits, temperature), logits[..., 0])
        self.logits = logits.expand(row.shape + logits.shape[-1:])
        super().__init__(row.shape, logits.shape[-1:], validate_args=validate_args)

    @lazy_property
    def probs(self) -> Tensor:
        """The probabilities of the classes."""
        return logits_to_probs(self.logits)

    @property
    def _discrete(self) -> Any:
        return OneHotCategorical(logits=self.logits)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(GumbelSoftmax, _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(batch_shape + self.event_shape)
        new.temperature = self.temperature.expand(batch_shape)
        super(GumbelSoftmax, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new._like(self)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, which remember their logarithms."""
        logits = full_precision(self.logits).expand(self._extended_shape(sample_shape))
        # The uniform numbers are multiples of eps / 2; a zero among them stands for what is
        # less than that.
        exponential = -torch.log1p(-torch.rand_like(logits)).clamp(
            max=-torch.finfo(logits.dtype).eps / 2
        )
        gumbel = -exponential.log()
        log = torch.log_softmax(
            (logits + gumbel) / full_precision(self.temperature).unsqueeze(-1), -1
        )
        soft = on_simplex(log, self.logits.dtype)
        if not self.hard:
            return remember(soft, log=log)
        corner = torch.zeros_like(soft).scatter(-1, log.argmax(-1, keepdim=True), 1.0)
        return corner + (soft - soft.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of the relaxed draw, or the log-probability of the discrete
        one, in nats.
        """
        if (
            self._validate_args and torch.finfo(value.dtype).bits >= 32
        ):  # half precision sums to 1 +- 1 %
            self._validate_sample(value)
        logits = full_precision(self.logits)
        if self.score == "discrete":
            log_probs = torch.log_softmax(logits, -1)
            # A class that is neither possible nor there counts 0.
            absent = (value == 0) & (log_probs == -math.inf)
            return (value * torch.where(absent, 0.0, log_probs)).sum(-1)
        temperature, (log, zero) = full_precision(self.temperature), safe_log(value)
        log, classes = where_zero(zero, lowest_log(log.dtype), log), self.event_shape[-1]
        # With the largest term of every row taken out, nothing is left to overflow at low
        # temperatures.
        scores = torch.log_softmax(logits - temperature.unsqueeze(-1) * log, -1)
        return (
            math.lgamma(classes) + (classes - 1) * temperature.log() + (scores - log).sum(-1)
        )


class GumbelSigmoid(_Relaxed):
    r"""The binary Gumbel-softmax or Concrete distribution: a number near 0 or near 1.

    .. math:: y = \sigma((\ell + \log u - \log(1 - u)) / \tau), \qquad u \sim \mathrm{Uniform}(0, 1)

    Draws, scoring rules and hard draws are as with ``GumbelSoftmax``: the density is Maddison
    et al.'s (2016, arXiv:1611.00712, eq. 24), the discrete score :math:`y \log p + (1 - y)
    \log(1 - p)`.

    Arguments:
        logits: The log-odds of a one.
        probs: The probability of a one, in place of ``logits``.
        temperature: tau, positive: a number or a tensor that broadcasts with the batch.
        hard: Whether draws are 0 or 1.
        score: ``"density"`` or ``"discrete"``; the default is ``"discrete"`` for hard draws,
            else ``"density"``.

    Raises:
        ValueError: If an argument is out of range, or ``score="density"`` is asked of hard
            draws.

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
        logits: Any = None,
        probs: Any = None,
        temperature: Any = 2 / 3,
        hard: bool = False,
        score: str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._set_rules(hard, score)
        logits = self._logits(logits, probs, validate_args, binary=True)
        check_parameters(logits=logits, temperature=temperature)
        logits = torch.as_tensor(logits)
        self.logits, self.temperature = broadcast_all(logits, _like(logits, temperature))
        super().__init__(self.logits.shape, validate_args=validate_args)

    @lazy_property
    def probs(self) -> Tensor:
        """The probability of a one."""
        return logits_to_probs(self.logits, is_binary=True)

    @property
    def _discrete(self) -> Any:
        return Bernoulli(logits=self.logits)

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability of at most the value, of soft draws."""
        self._check_soft()
        if self._validate_args:
            self._validate_sample(value)
        return (self.temperature * torch.logit(value) - self.logits).sigmoid()

    def icdf(self, value: Tensor) -> Tensor:
        """Returns the value that a soft draw is at most with the given probability."""
        self._check_soft()
        return ((torch.logit(value) + self.logits) / self.temperature).sigmoid()

    def _check_soft(self) -> None:
        if self.hard:
            raise NotImplementedError(
                "Hard draws are zeros and ones, of which log_prob gives the probabilities."
            )

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the distribution with its batch expanded."""
        new = self._get_checked_instance(GumbelSigmoid, _instance)
        new.logits, new.temperature = (
            self.logits.expand(batch_shape),
            self.temperature.expand(batch_shape),
        )
        super(GumbelSigmoid, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new._like(self)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, which remember log y and log(1 - y)."""
        logits = full_precision(self.logits).expand(self._extended_shape(sample_shape))
        u = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).eps / 2)
        logit = (logits + u.log() - torch.log1p(-u)) / full_precision(self.temperature)
        soft = inside_unit_interval(logit, self.logits.dtype)
        return (logit > 0).to(soft.dtype) + (soft - soft.detach()) if self.hard else soft

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of the relaxed draw, or the log-probability of the discrete
        one, in nats.
        """
        if self._validate_args:
            self._validate_sample(value)
        logits = full_precision(self.logits)
        if self.score == "discrete":
            return value * logits + logsigmoid(-logits)
        temperature = full_precision(self.temperature)
        (log, zero), (log1m, one) = safe_log(value), safe_log1m(value)
        log, log1m = (
            where_zero(zero, lowest_log(log.dtype), log),
            where_zero(one, lowest_log(log.dtype), log1m),
        )
        shifted = logits - temperature * (log - log1m)
        return temperature.log() + logsigmoid(shifted) + logsigmoid(-shifted) - log - log1m


def as_discrete(distribution: Any) -> Any:
    """Returns the one-hot variable that a Gumbel-softmax one stands for; any other
    distribution as it is.

    What is known to be one-hot, such as a given label, has a probability and no density.

    Example:
        >>> as_discrete(GumbelSoftmax(logits=torch.zeros(10))).log_prob(torch.eye(10)[3]).exp()
        tensor(0.1000)
    """
    if isinstance(distribution, (GumbelSoftmax, RelaxedOneHotCategorical)):
        return OneHotCategorical(logits=distribution.logits)
    return distribution
