"""Products and mixtures of Normal experts, and concatenated distributions."""

__all__ = ["Concatenate", "MixtureOfExperts", "ProductOfExperts"]

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import Independent, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from tarspyro.arguments import format_value
from tarspyro.distributions.drawing import CarriesScore, check_parameters, recall, remember
from tarspyro.types import Distribution, Shape

# The maker of the parts that a draw of blocks remembers. Flows and others remember parts too.
_MAKER = ("blocks", True)


def _stack_experts(
    experts: Sequence[Distribution], prior: Distribution | None
) -> tuple[Tensor, Tensor, int]:
    """Returns the locations and scales of the experts, and the number of event dimensions.

    Both tensors have the shape ``batch_shape + (experts,) + event_shape``.
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

    normals = []
    ndims = set()
    for expert in experts:
        is_independent = isinstance(expert, Independent)
        ndims.add(expert.reinterpreted_batch_ndims if is_independent else 0)
        normals.append(expert.base_dist if is_independent else expert)
    all_normal = all(isinstance(normal, torch.distributions.Normal) for normal in normals)
    if len(ndims) != 1 or not all_normal:
        raise ValueError(
            "experts must be one or more Normal distributions with the same event_dim, got"
            f" {list(experts)}."
        )

    (event_dim,) = ndims
    check_parameters(**{f"experts[{i}].loc": normal.loc for i, normal in enumerate(normals)})
    shape = torch.broadcast_shapes(*(normal.batch_shape for normal in normals))
    dim = -1 - event_dim
    locs = torch.stack([normal.loc.expand(shape) for normal in normals], dim)
    scales = torch.stack([normal.scale.expand(shape) for normal in normals], dim)
    return locs, scales, event_dim


def _experts_last(values: Tensor, count: int, name: str) -> Tensor:
    """Returns a tensor of shape ``(experts, *batch_shape)`` with the experts last."""
    if values.dim() == 0 or values.shape[0] != count:
        raise ValueError(
            f"{name} must be of shape (experts, *batch_shape) with {count} experts, got"
            f" {tuple(values.shape)}."
        )
    return values.movedim(0, -1)


class ProductOfExperts(Independent):
    r"""The normalized product of Normal experts, itself Normal.

    .. math:: q(z) \propto p(z) \prod_m q_m(z), \qquad \sigma^{-2} = \sum_m \sigma_m^{-2}, \quad
              \mu = \sigma^2 \sum_m \sigma_m^{-2} \mu_m

    (Hinton 2002; Wu and Goodman 2018, arXiv:1802.05335, with the prior as one more expert.) A
    mask leaves experts out of some rows, for example those of missing modalities.

    Arguments:
        experts: Normal distributions with the same number of event dimensions
            (``Normal(...).to_event(1)`` is fine).
        prior: One more expert, which is never masked.
        mask: Booleans of the shape ``(experts, *batch_shape)``; false leaves an expert out.
            Without a prior, each row needs at least one expert.

    Raises:
        ValueError: If an expert is not Normal, or the mask has another shape.

    Example:
        >>> one = dist.Normal(torch.tensor([0.0]), 1.0).to_event(1)
        >>> other = dist.Normal(torch.tensor([4.0]), 1.0).to_event(1)
        >>> ProductOfExperts([one, other]).mean
        tensor([2.])
    """

    def __init__(
        self,
        experts: Sequence[Distribution],
        prior: Distribution | None = None,
        mask: Tensor | None = None,
    ) -> None:
        locs, scales, event_dim = _stack_experts(experts, prior)
        precisions = scales**-2
        if mask is not None:
            present = _experts_last(mask, len(experts), "mask").bool()
            if prior is not None:
                present = torch.cat([present, torch.ones_like(present[..., :1])], -1)
            present = present.reshape(present.shape + (1,) * event_dim)
            # Selected, not multiplied by zero: the parameters of a missing expert and their
            # derivatives may be infinite.
            precisions = torch.where(present, torch.where(present, scales, 1.0) ** -2, 0.0)
            locs = torch.where(present, locs, 0.0)
        experts_dim = -1 - event_dim
        variance = 1 / precisions.sum(experts_dim)
        normal = dist.Normal(variance * (precisions * locs).sum(experts_dim), variance.sqrt())
        super().__init__(normal, event_dim)

    def expand(self, batch_shape: Shape, _instance: object = None) -> Independent:
        """Returns the product with its batch expanded."""
        product = Independent(self.base_dist, self.reinterpreted_batch_ndims)
        expanded: Independent = product.expand(batch_shape)
        return expanded


class MixtureOfExperts(TorchDistribution):
    r"""The mixture of Normal experts.

    .. math:: q(z) = \sum_m w_m q_m(z), \qquad
              \log q(z) = \operatorname{logsumexp}_m (\log w_m + \log q_m(z))

    (Shi et al. 2019, arXiv:1911.03393.) A draw chooses one expert for each row and
    reparameterizes its Normal; with fixed weights this is the whole gradient. With learned
    weights the mixture is not reparameterized, and bounds use the score function.

    Arguments:
        experts: Normal distributions with the same number of event dimensions.
        prior: One more expert.
        weights: Probabilities of the shape ``(experts, *batch_shape)`` or ``(experts,)``,
            including that of the prior; by default all equal. Zeros leave an expert out.

    Raises:
        ValueError: If an expert is not Normal, or the weights have another shape.

    Example:
        >>> one = dist.Normal(torch.tensor([-1.0]), 0.1).to_event(1)
        >>> other = dist.Normal(torch.tensor([1.0]), 0.1).to_event(1)
        >>> MixtureOfExperts([one, other]).mean
        tensor([0.])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        experts: Sequence[Distribution],
        prior: Distribution | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.locs, self.scales, event_dim = _stack_experts(experts, prior)
        count = self.locs.shape[-1 - event_dim]
        self.levels: Tensor | None = None
        equal = self.locs.new_full((count,), 1 / count)
        self.weights = equal if weights is None else _experts_last(weights, count, "weights")
        experts_dim = self.locs.dim() - event_dim - 1
        shape = torch.broadcast_shapes(self.locs.shape[:experts_dim], self.weights.shape[:-1])
        super().__init__(shape, self.locs.shape[experts_dim + 1 :], validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The real numbers, of the event's dimensions."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the weights are fixed."""
        return not self.weights.requires_grad

    def expand(self, batch_shape: Shape, _instance: object = None) -> "MixtureOfExperts":
        """Returns the mixture with its batch expanded."""
        new: MixtureOfExperts = self._get_checked_instance(MixtureOfExperts, _instance)
        batch_shape = torch.Size(batch_shape)
        count = self.weights.shape[-1]
        new.locs = self.locs.expand(batch_shape + (count,) + self.event_shape)
        new.scales = self.scales.expand(batch_shape + (count,) + self.event_shape)
        new.weights = self.weights
        new.levels = self.levels
        super(MixtureOfExperts, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        return new

    def at(self, levels: Tensor) -> "MixtureOfExperts":
        r"""Returns the same mixture, whose draws come from given experts.

        A level l chooses the expert m with :math:`w_1 + \dots + w_{m-1} \le l < w_1 + \dots +
        w_m`. Levels that are spread evenly choose each expert in proportion to its weight.

        Arguments:
            levels: Numbers from 0 to 1, one for each row, which broadcast with the batch shape.
        """
        chosen = self.expand(self.batch_shape)
        chosen.levels = levels
        return chosen

    def _chosen(self, rows: torch.Size) -> Tensor:
        """Returns the expert of each row."""
        count = self.weights.shape[-1]
        weights = self.weights.detach().expand(rows + (count,))
        if self.levels is None:
            return torch.multinomial(weights.reshape(-1, count), 1).reshape(rows)
        edges = weights.cumsum(-1)
        below = self.levels.unsqueeze(-1) * edges[..., -1:] >= edges
        # Experts of weight zero at the end are never chosen, whatever the rounding.
        last = (weights > 0).long().cumsum(-1).argmax(-1)
        return torch.minimum(below.sum(-1), last)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws, reparameterized except for the choice of the expert."""
        shape = self._extended_shape(sample_shape)
        rows = shape[: len(shape) - self.event_dim]
        chosen = self._chosen(rows).reshape(rows + (1,) + (1,) * self.event_dim)
        index = chosen.expand(rows + (1,) + self.event_shape)

        def of_chosen(parameter: Tensor) -> Tensor:
            expanded = parameter.expand(rows + parameter.shape[-1 - self.event_dim :])
            return expanded.gather(len(rows), index).squeeze(len(rows))

        loc = of_chosen(self.locs)
        return loc + of_chosen(self.scales) * torch.randn_like(loc)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws without gradients."""
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log q(value), in nats."""
        experts = dist.Normal(self.locs, self.scales).to_event(self.event_dim)
        log_probs = experts.log_prob(value.unsqueeze(-1 - self.event_dim))
        return torch.logsumexp(self.weights.log() + log_probs, -1)

    def cdf(self, value: Tensor) -> Tensor:
        """Returns the probability that a draw is at most the value, for scalar draws only."""
        if self.event_dim:
            raise NotImplementedError(
                "MixtureOfExperts over vectors has no cdf, only a mixture over numbers has one."
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
        deviations = self.locs - self.mean.unsqueeze(-1 - self.event_dim)
        return self._average(self.scales**2 + deviations**2)

    def _average(self, values: Tensor) -> Tensor:
        weights = self.weights.reshape(self.weights.shape + (1,) * self.event_dim)
        return (weights * values).sum(-1 - self.event_dim)


class SideBySide(constraints.Constraint):
    """The product of the supports of the blocks of a vector."""

    event_dim = 1

    def __init__(
        self, supports: Sequence[constraints.Constraint], sizes: Sequence[int]
    ) -> None:
        self.supports = supports
        self.sizes = list(sizes)

    def __repr__(self) -> str:
        return " and ".join(map(repr, self.supports))

    def check(self, value: Tensor) -> Tensor:
        blocks = zip(self.supports, value.split(self.sizes, -1), strict=True)
        return torch.stack([support.check(block) for support, block in blocks]).all(0)


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


class Concatenate(CarriesScore, TorchDistribution):
    r"""A vector of independent blocks, each with a distribution of its own.

    .. math:: p(z) = \prod_b p_b(z_b), \qquad z = (z_1, \dots, z_B)

    Arguments:
        blocks: Distributions over vectors, whose batch shapes broadcast.

    Raises:
        ValueError: If a block is not a distribution over vectors.

    Example:
        >>> style = dist.Normal(torch.zeros(5), 1.0).to_event(1)
        >>> label = dist.OneHotCategorical(torch.ones(10) / 10)
        >>> Concatenate([style, label]).event_shape
        torch.Size([15])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, blocks: Sequence[Distribution], validate_args: bool | None = None
    ) -> None:
        if not isinstance(blocks, Sequence) or not blocks:
            raise ValueError(
                f"blocks must be a list of at least one distribution, got"
                f" {format_value(blocks)}."
            )
        for block in blocks:
            if not isinstance(block, torch.distributions.Distribution):
                raise TypeError(
                    f"blocks must be distributions over vectors, got {format_value(block)}."
                )
            if len(block.event_shape) != 1:
                raise ValueError(
                    f"blocks must be distributions over vectors, got {block}: add"
                    " .to_event(1)."
                )
        batch_shape = torch.broadcast_shapes(*(block.batch_shape for block in blocks))
        self.blocks = [
            block if block.batch_shape == batch_shape else block.expand(batch_shape)
            for block in blocks
        ]
        self.sizes = [block.event_shape[0] for block in blocks]
        super().__init__(
            batch_shape, torch.Size([sum(self.sizes)]), validate_args=validate_args
        )

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """The product of the blocks' supports."""
        supports = [block.support for block in self.blocks]
        if all(map(_is_real, supports)):
            return constraints.real_vector
        return SideBySide(supports, self.sizes)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether every block can be reparameterized."""
        return all(block.has_rsample for block in self.blocks)

    @property
    def has_density(self) -> bool:
        """Whether every block has a density at any value, and not at its own draws alone."""
        known = []
        for block in self.blocks:
            while hasattr(block, "base_dist"):
                block = block.base_dist
            known.append(getattr(block, "has_density", True))
        return all(known)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Concatenate":
        """Returns the distribution with its batch expanded."""
        blocks = [block.expand(torch.Size(batch_shape)) for block in self.blocks]
        return Concatenate(blocks, validate_args=self._validate_args)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns reparameterized draws, which carry the draws of their blocks."""
        parts = tuple(block.rsample(sample_shape) for block in self.blocks)

        def score() -> Tensor:
            pairs = zip(self.blocks, parts, strict=True)
            total: Tensor = sum(
                block.score_parts(part).score_function for block, part in pairs
            )
            return total

        return remember(torch.cat(parts, -1), parts=parts, maker=_MAKER, score=score)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws without gradients."""
        parts = tuple(block.sample(sample_shape) for block in self.blocks)
        return remember(torch.cat(parts, -1), parts=parts, maker=_MAKER)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value) in nats, the sum over the blocks."""
        parts = zip(self.blocks, self._parts(value), strict=True)
        total: Tensor = sum(block.log_prob(part) for block, part in parts)
        return total

    @property
    def partly_reparameterized(self) -> bool:
        """Whether a block's pathwise derivative must be completed by its score."""
        if not self.has_rsample:
            return True
        for block in self.blocks:
            base = block.base_dist if isinstance(block, Independent) else block
            if isinstance(base, CarriesScore) and base.partly_reparameterized:
                return True
        return False

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        draw = recall(value)
        if draw is not None and draw.parts is not None and draw.maker == _MAKER:
            # Other blocks may have drawn it, as those of a posterior for a prior.
            if [part.shape[-1] for part in draw.parts] == self.sizes:
                return draw.parts
        parts: Sequence[Tensor] = value.split(self.sizes, -1)
        return parts

    def entropy(self) -> Tensor:
        """Returns the entropy in nats, the sum over the blocks."""
        total: Tensor = sum(block.entropy() for block in self.blocks)
        return total

    @property
    def mode(self) -> Tensor:
        """The modes of the blocks, concatenated."""
        return torch.cat([block.mode for block in self.blocks], -1)

    @property
    def mean(self) -> Tensor:
        """The means of the blocks, concatenated."""
        return torch.cat([block.mean for block in self.blocks], -1)

    @property
    def variance(self) -> Tensor:
        """The variances of the blocks, concatenated."""
        return torch.cat([block.variance for block in self.blocks], -1)
