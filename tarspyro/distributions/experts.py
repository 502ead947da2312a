"""Distributions made of distributions: products and mixtures of Normal experts, and blocks
side by side.
"""

__all__ = ["Concatenate", "MixtureOfExperts", "ProductOfExperts"]

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import Independent, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from tarspyro.arguments import format_value
from tarspyro.distributions.drawing import CarriesScore, check_parameters, recall, remember


def _stack_experts(experts: Sequence[Any], prior: Any) -> tuple[Tensor, Tensor, int]:
    """The experts' locations and scales, of shape ``batch_shape + (experts,) + event_shape``,
    and the event_dim.
    """
    if not isinstance(experts, Sequence) or isinstance(experts, str):
        raise TypeError(
            f"experts must be a list of Normal distributions, got {format_value(experts)}."
        )
    experts = [*experts, *([] if prior is None else [prior])]
    for expert in experts:
        if not isinstance(expert, torch.distributions.Distribution):
            raise TypeError(
                f"experts must be Normal distributions, got {format_value(expert)}."
            )
    ndims = {
        expert.reinterpreted_batch_ndims if isinstance(expert, Independent) else 0
        for expert in experts
    }
    normals = [
        expert.base_dist if isinstance(expert, Independent) else expert for expert in experts
    ]
    if len(ndims) != 1 or not all(
        isinstance(normal, torch.distributions.Normal) for normal in normals
    ):
        raise ValueError(
            "experts must be one or more Normal distributions of one event_dim, got"
            f" {list(experts)}."
        )
    (event_dim,) = ndims
    check_parameters(
        **{f"experts[{index}].loc": normal.loc for index, normal in enumerate(normals)}
    )
    shape = torch.broadcast_shapes(*(normal.batch_shape for normal in normals))
    locs = torch.stack([normal.loc.expand(shape) for normal in normals], dim=-1 - event_dim)
    scales = torch.stack(
        [normal.scale.expand(shape) for normal in normals], dim=-1 - event_dim
    )
    return locs, scales, event_dim


def _one_for_each(values: Tensor, count: int, name: str) -> Tensor:
    """Moves the experts of a tensor of shape ``(experts, *batch_shape)`` last."""
    if values.dim() == 0 or values.shape[0] != count:
        raise ValueError(
            f"{name} must be of shape (experts, *batch_shape) with {count} experts, got"
            f" {values.shape}."
        )
    return values.movedim(0, -1)


class ProductOfExperts(Independent):
    r"""The normalized product of Normal experts, itself Normal.

    .. math:: q(z) \propto p(z) \prod_m q_m(z), \qquad
              \sigma^{-2} = \sum_m \sigma_m^{-2}, \quad \mu = \sigma^2 \sum_m \sigma_m^{-2}
              \mu_m

    (Hinton 2002; Wu and Goodman 2018, arXiv:1802.05335, with the prior as one more expert.) A
    product whose experts are masked in some row leaves them out there, as where a modality is
    missing.

    Arguments:
        experts: Normal distributions, each with the same event dimensions
            (``Normal(...).to_event(1)`` is fine).
        prior: One more expert, which is never masked.
        mask: Booleans of the shape ``(experts, *batch_shape)``; false leaves an expert out.
            Without a prior at least one expert must remain in each row.

    Raises:
        ValueError: If an expert is not Normal, or the mask has another shape.

    Example:
        >>> experts = [dist.Normal(torch.tensor([0.0]), 1.0), dist.Normal(torch.tensor([4.0]), 1.0)]
        >>> ProductOfExperts([expert.to_event(1) for expert in experts]).mean
        tensor([2.])
    """

    def __init__(
        self, experts: Sequence[Any], prior: Any = None, mask: Tensor | None = None
    ) -> None:
        locs, scales, event_dim = _stack_experts(experts, prior)
        precisions = scales**-2
        if mask is not None:
            present = _one_for_each(mask, len(experts), "mask").bool()
            if prior is not None:
                present = torch.cat([present, torch.ones_like(present[..., :1])], -1)
            present = present.reshape(present.shape + (1,) * event_dim)
            # Choices, and not products: a missing expert's parameters need not be finite, nor
            # their derivatives.
            precisions = torch.where(present, torch.where(present, scales, 1.0) ** -2, 0.0)
            locs = torch.where(present, locs, 0.0)
        experts_dim = -1 - event_dim
        variance = 1 / precisions.sum(experts_dim)
        normal = dist.Normal(variance * (precisions * locs).sum(experts_dim), variance.sqrt())
        super().__init__(normal, event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the product with its batch expanded."""
        return Independent(self.base_dist, self.reinterpreted_batch_ndims).expand(batch_shape)


class MixtureOfExperts(TorchDistribution):
    r"""The mixture of Normal experts.

    .. math:: q(z) = \sum_m w_m q_m(z), \qquad \log q(z) = \operatorname{logsumexp}_m (\log w_m + \log q_m(z))

    (Shi et al. 2019, arXiv:1911.03393.) One expert is chosen for each row, and its draw is
    reparameterized; with fixed weights this is the whole gradient. Weights that are learned
    take the reparameterization away, so that bounds use the score function.

    Arguments:
        experts: Normal distributions, each with the same event dimensions.
        prior: One more expert.
        weights: Probabilities of the shape ``(experts, *batch_shape)`` or ``(experts,)``, the
            prior's included if there is one; equal if not given. Zeros leave an expert out.

    Raises:
        ValueError: If an expert is not Normal, or the weights have another shape.

    Example:
        >>> experts = [dist.Normal(torch.tensor([-1.0]), 0.1), dist.Normal(torch.tensor([1.0]), 0.1)]
        >>> MixtureOfExperts([expert.to_event(1) for expert in experts]).mean
        tensor([0.])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, experts: Sequence[Any], prior: Any = None, weights: Tensor | None = None
    ) -> None:
        self.locs, self.scales, event_dim = _stack_experts(experts, prior)
        count = self.locs.shape[-1 - event_dim]
        equal = self.locs.new_full((count,), 1 / count)
        self.weights = equal if weights is None else _one_for_each(weights, count, "weights")
        shape = torch.broadcast_shapes(
            self.locs.shape[: self.locs.dim() - event_dim - 1], self.weights.shape[:-1]
        )
        super().__init__(
            shape, self.locs.shape[self.locs.dim() - event_dim :], validate_args=False
        )

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real values."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the weights are constants."""
        return not self.weights.requires_grad

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Returns the mixture with its batch expanded."""
        new = self._get_checked_instance(MixtureOfExperts, _instance)
        batch_shape, count = torch.Size(batch_shape), self.weights.shape[-1]
        new.locs = self.locs.expand(batch_shape + (count,) + self.event_shape)
        new.scales = self.scales.expand(batch_shape + (count,) + self.event_shape)
        new.weights = self.weights
        super(MixtureOfExperts, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns draws, reparameterized but for the choice of the expert."""
        shape = self._extended_shape(sample_shape)
        rows, event = shape[: len(shape) - self.event_dim], (1,) * self.event_dim
        chosen = torch.multinomial(
            self.weights.detach()
            .expand(rows + self.weights.shape[-1:])
            .reshape(-1, self.weights.shape[-1]),
            1,
        )
        index = chosen.reshape(rows + (1,) + event).expand(rows + (1,) + self.event_shape)
        loc, scale = (
            parameter.expand(rows + parameter.shape[-1 - self.event_dim :])
            .gather(len(rows), index)
            .squeeze(len(rows))
            for parameter in (self.locs, self.scales)
        )
        return loc + scale * torch.randn_like(loc)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Returns draws without gradients."""
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log q(value), in nats."""
        experts = dist.Normal(self.locs, self.scales).to_event(self.event_dim)
        return torch.logsumexp(
            self.weights.log() + experts.log_prob(value.unsqueeze(-1 - self.event_dim)), -1
        )

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability of at most the value, of a mixture over single numbers."""
        if self.event_dim:
            raise NotImplementedError(
                "A mixture over vectors has no distribution function of one value."
            )
        probabilities: Tensor = dist.Normal(self.locs, self.scales).cdf(value.unsqueeze(-1))
        return (self.weights * probabilities).sum(-1)

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._average(self.locs)

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        return self._average(
            self.scales**2 + (self.locs - self.mean.unsqueeze(-1 - self.event_dim)) ** 2
        )

    def _average(self, values: Tensor) -> Tensor:
        weights = self.weights.reshape(self.weights.shape + (1,) * self.event_dim)
        return (weights * values).sum(-1 - self.event_dim)


class _SideBySide(constraints.Constraint):
    """Each block of a vector lies in its own support."""

    event_dim = 1

    def __init__(
        self, supports: Sequence[constraints.Constraint], sizes: Sequence[int]
    ) -> None:
        self.supports, self.sizes = supports, list(sizes)

    def check(self, value: Tensor) -> Tensor:
        blocks = zip(self.supports, value.split(self.sizes, -1), strict=True)
        return torch.stack([support.check(block) for support, block in blocks]).all(0)


class Concatenate(CarriesScore, TorchDistribution):
    r"""Independent blocks side by side in one vector, each of its own family.

    .. math:: p(z) = \prod_b p_b(z_b), \qquad z = (z_1, \dots, z_B)

    Arguments:
        blocks: Distributions over vectors, of the same batch shape or shapes that broadcast.

    Raises:
        ValueError: If a block is not over vectors.

    Example:
        >>> style, label = dist.Normal(torch.zeros(5), 1.0).to_event(1), dist.OneHotCategorical(torch.ones(10) / 10)
        >>> Concatenate([style, label]).event_shape
        torch.Size([15])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, blocks: Sequence[Any], validate_args: bool | None = None) -> None:
        if not isinstance(blocks, Sequence) or not blocks:
            raise ValueError(
                "blocks must be a list of one distribution or more, got"
                f" {format_value(blocks)}."
            )
        for block in blocks:
            if not isinstance(block, torch.distributions.Distribution):
                raise TypeError(
                    f"blocks must be distributions over vectors, got {format_value(block)}."
                )
            if len(block.event_shape) != 1:
                raise ValueError(
                    f"blocks must be over vectors, got {block}: add .to_event(1)."
                )
        batch_shape = torch.broadcast_shapes(*(block.batch_shape for block in blocks))
        self.blocks = [block.expand(batch_shape) for block in blocks]
        self.sizes = [block.event_shape[0] for block in blocks]
        super().__init__(
            batch_shape, torch.Size([sum(self.sizes)]), validate_args=validate_args
        )

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The product of the blocks' supports."""
        return _SideBySide([block.support for block in self.blocks], self.sizes)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether every block can be reparameterized."""
        return all(block.has_rsample for block in self.blocks)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Concatenate":
        """Returns the distribution with its batch expanded."""
        blocks = [block.expand(torch.Size(batch_shape)) for block in self.blocks]
        return Concatenate(blocks, validate_args=self._validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, which remember what their blocks do."""
        parts = tuple(block.rsample(sample_shape) for block in self.blocks)

        def score() -> Any:
            pairs = zip(self.blocks, parts, strict=True)
            return sum(block.score_parts(part).score_function for block, part in pairs)

        return remember(torch.cat(parts, -1), parts=parts, score=score)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Returns draws without gradients."""
        parts = tuple(block.sample(sample_shape) for block in self.blocks)
        return remember(torch.cat(parts, -1), parts=parts)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value), in nats: the sum over the blocks."""
        parts = zip(self.blocks, self._parts(value), strict=True)
        total: Tensor = sum(block.log_prob(part) for block, part in parts)
        return total

    @property
    def partly_reparameterized(self) -> bool:
        """Whether a block needs a score beside its pathwise derivative."""
        bases = [
            block.base_dist if isinstance(block, Independent) else block
            for block in self.blocks
        ]
        return not self.has_rsample or any(
            isinstance(b, CarriesScore) and b.partly_reparameterized for b in bases
        )

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        draw = recall(value)
        return (
            value.split(self.sizes, -1) if draw is None or draw.parts is None else draw.parts
        )

    def entropy(self) -> Tensor:
        """Returns the entropy in nats: the sum over the blocks."""
        total: Tensor = sum(block.entropy() for block in self.blocks)
        return total

    @property
    def mode(self) -> Tensor:
        """The blocks' modes, side by side."""
        return torch.cat([block.mode for block in self.blocks], -1)

    @property
    def mean(self) -> Tensor:
        """The blocks' means, side by side."""
        return torch.cat([block.mean for block in self.blocks], -1)

    @property
    def variance(self) -> Tensor:
        """The blocks' variances, side by side."""
        return torch.cat([block.variance for block in self.blocks], -1)
