"""Distributions whose elements depend on those before them in an order."""

__all__ = ["AutoregressiveDistribution", "Conditionals", "FirstSteps"]

import functools
from typing import Protocol

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from tarspyro.distributions.drawing import CarriesScore
from tarspyro.types import Shape


class Conditionals(Protocol):
    """The conditional distributions of the elements, which a network computes.

    Attributes:
        ranks: The step in which each position is drawn, of shape ``(masks, positions)``.
        event_shape: The shape of a draw.
        in_steps: Whether the elements come one after another along the first dimension.
    """

    ranks: Tensor
    event_shape: Size
    in_steps: bool

    def template(self) -> Distribution:
        """Returns the distribution of all elements if they were independent."""

    def log_density(
        self, value: Tensor, context: tuple[Tensor, ...], chosen: Tensor | None = None
    ) -> Tensor:
        """Returns log p(value | context), or its part of chosen elements, by one pass."""

    def draw(
        self,
        shape: Size,
        context: tuple[Tensor, ...],
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Returns draws, one step of the order after another."""


class AutoregressiveDistribution(TorchDistribution):
    r"""A distribution whose elements depend on those before them in an order.

    .. math:: \log p(x \mid c) = \sum_i \log p(x_i \mid x_{<i}, c)

    An ``Autoregressive`` returns it. The density takes one pass of the network, a draw as many
    steps as the order has. Draws are reparameterized if those of the family are, wholly.

    Arguments:
        conditionals: The conditional distributions of the elements.
        context: The context values.
        batch_shape: The shape of the batch.
        validate_args: Whether ``log_prob`` checks that values lie in the support.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        conditionals: Conditionals,
        context: tuple[Tensor, ...],
        batch_shape: Size,
        validate_args: bool | None = None,
    ) -> None:
        self.conditionals = conditionals
        self.context = context
        super().__init__(batch_shape, Size(conditionals.event_shape), validate_args)

    @functools.cached_property
    def elements(self) -> Distribution:
        """The distribution of all elements if they were independent."""
        return self.conditionals.template()

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws are wholly reparameterized."""
        innermost = _innermost(self.elements)
        partly = isinstance(innermost, CarriesScore) and innermost.partly_reparameterized
        return bool(innermost.has_rsample) and not partly

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Never: there are too many values."""
        return False

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of the elements."""
        support: constraints.Constraint = self.elements.support  # type: ignore[assignment]
        return support

    def expand(
        self, batch_shape: Shape, _instance: object = None
    ) -> "AutoregressiveDistribution":
        """Returns the distribution with another batch shape."""
        return AutoregressiveDistribution(
            self.conditionals, self.context, Size(batch_shape), self._validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        density = self.conditionals.log_density(value, self.context)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    def log_prob_of(self, value: Tensor, chosen: Tensor) -> Tensor:
        r"""Returns the log-density of chosen elements, each given all those before it.

        .. math:: \sum_{i \text{ chosen}} \log p(x_i \mid x_{<i}, c)

        If the chosen elements come before the others in the order (see ``completes``), this is
        their log-density :math:`\log p(x_o \mid c)`. If not, and the others are drawn by
        ``complete``, its exponential has the expectation :math:`p(x_o \mid c)`.

        Arguments:
            value: Values, of shape ``(*, *event_shape)``.
            chosen: True where an element counts, of the same shape.
        """
        density = self.conditionals.log_density(value, self.context, chosen)
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws without gradients."""
        with torch.no_grad():
            shape = Size(sample_shape) + self.batch_shape
            return self.conditionals.draw(shape, self.context)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws.

        Raises:
            NotImplementedError: If the family has none.
        """
        if not self.has_rsample:
            name = type(_innermost(self.elements)).__name__
            raise NotImplementedError(f"{name} has no reparameterized draws: take sample.")
        return self.conditionals.draw(Size(sample_shape) + self.batch_shape, self.context)

    def complete(self, value: Tensor, known: Tensor) -> Tensor:
        r"""Draws the elements that are not known, given those that are.

        .. math:: x_i \sim p(x_i \mid x_{<i}, c), \qquad i \text{ not known}

        This is the distribution of the unknown elements given the known ones where these come
        before the others: see ``completes``. Elsewhere an unknown element does not depend
        on the known ones after it.

        Arguments:
            value: Values, of shape ``(*, *event_shape)``, with anything in place of the unknown
                elements.
            known: True where an element is known, of the same shape.
        """
        event = len(self.event_shape)
        shape = torch.broadcast_shapes(value.shape[: value.dim() - event], self.batch_shape)
        with torch.no_grad():
            return self.conditionals.draw(shape, self.context, (value, known))

    def completes(self, known: Tensor) -> Tensor:
        """Returns for each row whether its known elements come before its unknown ones.

        Arguments:
            known: True where an element is known, of shape ``(*, *event_shape)``.
        """
        event = len(self.event_shape)
        flat = known.flatten(known.dim() - event)
        ranks = self.conditionals.ranks.to(known.device)
        order = ranks.repeat_interleave(flat.shape[-1] // ranks.shape[1], 1)
        last = order.where(flat.unsqueeze(-2), -1).amax(-1)
        first = order.where(~flat.unsqueeze(-2), flat.shape[-1]).amin(-1)
        return (last <= first).all(-1)

    def first_steps(self, lengths: Tensor) -> "FirstSteps":
        """Returns the distribution of the first steps of sequences, whose others are summed out.

        Arguments:
            lengths: The number of steps of each sequence, of the batch shape.

        Raises:
            ValueError: If the elements do not come step by step along the first dimension.
        """
        if not self.conditionals.in_steps:
            raise ValueError(
                "lengths need a likelihood that draws one step after another along the first"
                f" dimension of {tuple(self.event_shape)}: leave them out, or take a CausalRNN or"
                " a CausalConv1d."
            )
        return FirstSteps(self, lengths)


class FirstSteps(TorchDistribution):
    r"""The distribution of the first steps of sequences.

    .. math:: \log p(x_{1:L} \mid c) = \sum_{t \le L} \log p(x_t \mid x_{<t}, c)

    The steps after them are summed out, which leaves no trace, since no earlier step sees them.
    Values have all steps, with anything that is finite beyond the lengths; so have draws.

    Arguments:
        base: The distribution of whole sequences.
        lengths: The number of steps L of each sequence, of the batch shape.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base: AutoregressiveDistribution, lengths: Tensor) -> None:
        self.base = base
        self.lengths = lengths
        shape = torch.broadcast_shapes(base.batch_shape, lengths.shape)
        super().__init__(shape, base.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """The support of whole sequences."""
        support: constraints.Constraint = self.base.support
        return support

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Never: there are too many values."""
        return False

    def expand(self, batch_shape: Shape, _instance: object = None) -> "FirstSteps":
        """Returns the distribution with another batch shape."""
        shape = Size(batch_shape)
        return FirstSteps(self.base.expand(shape), self.lengths.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of the first steps in nats."""
        steps = torch.arange(self.event_shape[0], device=value.device)
        counts = steps < self.lengths.unsqueeze(-1)
        counts = counts.reshape(counts.shape + (1,) * (len(self.event_shape) - 1))
        counts = counts.expand(self.batch_shape + self.event_shape)
        return self.base.log_prob_of(value, counts)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws of whole sequences without gradients."""
        return self.base.expand(self.batch_shape).sample(sample_shape)


def _innermost(distribution: Distribution) -> Distribution:
    while isinstance(distribution, torch.distributions.Independent):
        distribution = distribution.base_dist
    return distribution
