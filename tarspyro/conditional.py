"""A trunk and a family make a conditional distribution, and transforms make another of it."""

__all__ = ["Blocks", "Conditional", "Deterministic", "Transformed"]

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import ConditionalDistribution
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Transform, kl_divergence

from tarspyro.arguments import as_count, as_numbers, as_shape, check_module, format_value
from tarspyro.distributions.experts import Concatenate
from tarspyro.distributions.family import FamilyModule
from tarspyro.distributions.prior import as_prior
from tarspyro.distributions.transformed import TransformedDistribution, as_module, flattened
from tarspyro.modules import Configurable
from tarspyro.nn.folding import event_shapes, fold, unfold
from tarspyro.nn.heads import forget_features, make_head, through_heads
from tarspyro.scopes import evaluating


def _array_in_array_out(method: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy arrays give NumPy arrays, computed in evaluation mode without gradients; tensors
    give tensors.
    """

    @functools.wraps(method)
    def twin(self: nn.Module, *values: Any, **options: Any) -> Any:
        if not any(isinstance(value, np.ndarray) for value in values):
            return method(self, *values, **options)
        like = next(self.parameters(), torch.empty(0))
        with evaluating(self):
            tensors = [
                as_numbers("an array", v).to(like.device) if isinstance(v, np.ndarray) else v
                for v in values
            ]
            tensors = [
                v.to(like.dtype) if torch.is_tensor(v) and v.is_floating_point() else v
                for v in tensors
            ]
            return method(self, *tensors, **options).cpu().numpy()

    return twin


class _Interface(nn.Module, ConditionalDistribution):
    """What one can ask of any conditional distribution, in tensors or in NumPy arrays."""

    def condition(self, context: Tensor) -> Any:
        """Returns the distribution given the context: the name that Pyro's conditional flows
        call.
        """
        return self(context)

    @_array_in_array_out
    def sample(self, *context: Tensor, sample_shape: int | tuple[int, ...] = ()) -> Tensor:
        """Returns draws of shape ``sample_shape + batch_shape + event_shape``, reparameterized
        where possible.
        """
        distribution = self(*context)
        draw: Callable[..., Tensor] = (
            distribution.rsample if distribution.has_rsample else distribution.sample
        )
        return draw(as_shape("sample_shape", sample_shape))

    @_array_in_array_out
    def log_prob(self, value: Tensor, *context: Tensor) -> Tensor:
        """Returns log p(value | context) in nats, summed over the event: one number for each
        row.
        """
        distribution = self(*context)
        event = tuple(distribution.event_shape)
        if not torch.is_tensor(value):
            raise TypeError(f"value must be a tensor or an array, got {format_value(value)}.")
        if tuple(value.shape[value.dim() - len(event) :]) != event:
            raise ValueError(
                f"value must have rows of shape {event}, got {tuple(value.shape)}."
            )
        try:
            density: Tensor = distribution.log_prob(as_numbers("value", value))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"value of {value.dtype} has no density under {self!r}: {reason}."
            ) from error
        return density

    @_array_in_array_out
    def mean(self, *context: Tensor) -> Tensor:
        """Returns the mean of the distribution.

        Raises:
            NotImplementedError: If the family has no closed form for it.
        """
        return distribution_mean(self(*context))

    @_array_in_array_out
    def kl(self, other: Any, *context: Tensor) -> Tensor:
        """Returns KL(self || other) given the context, in nats: one number for each row, in
        closed form.

        Arguments:
            other: A conditional distribution of the same context, a prior, or a distribution.
            context: The context values.

        Raises:
            NotImplementedError: If no closed form is registered for the two families.
        """
        own = self(*context)
        if not isinstance(other, Distribution):
            if not callable(other):
                raise TypeError(
                    "other must be a distribution or a module that returns one, got"
                    f" {format_value(other)}."
                )
            other = other(*context) if isinstance(other, _Interface) else other()
        if not isinstance(other, Distribution):
            raise TypeError(
                "other must be a distribution or a module that returns one, got"
                f" {format_value(other)}."
            )
        if own.event_shape != other.event_shape:
            raise ValueError(
                f"other must draw {tuple(own.event_shape)} as the distribution itself, got"
                f" {tuple(other.event_shape)}."
            )
        try:
            return kl_divergence(own, other)
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise  # no closed form
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"other does not broadcast with the distribution itself: {reason}."
            ) from error


class Conditional(FamilyModule, _Interface):
    r"""A conditional distribution :math:`p(x \mid c)`: a network computes the parameters of a
    family.

    .. math:: h = \mathrm{trunk}(c), \qquad p(x \mid c) = \mathrm{family}(x; t_1(W_1 h + b_1), t_2(W_2 h + b_2), \dots)

    with one linear head for each parameter that is not fixed, and :math:`t_i` torch's
    ``transform_to`` of the parameter's constraint. Called with context values of shapes
    :math:`(*, E_i)`, it returns a Pyro distribution with batch shape :math:`*` and the given
    event shape. All leading dimensions are folded into one batch around the network, so that
    convolutions, recurrent cells and batch normalization work with any number of particles.
    Heads of scales start with zero weights: a scale is first 1 for every context, and learns
    to differ.

    It is also a ``pyro.distributions.ConditionalDistribution``, and so drops into Pyro's
    conditional flows.

    Arguments:
        family: The class of a Pyro distribution, such as ``pyro.distributions.Normal``.
        trunk: Any ``torch.nn.Module`` from the context values to features. If it has an
            attribute ``in_shapes`` (one event shape for each input) these are checked; if it
            has a method ``head(shape)``, this makes the heads; if its attribute ``broadcasts``
            is true, it gets several contexts with the leading dimensions they have.
        event_shape: The shape of one draw. Its last dimensions belong to the family, the
            others are independent.
        transforms: For a free or learned parameter, the transform to use in place of
            ``transform_to(constraint)``.
        param_shapes: For a parameter, a shape that the event shape does not tell (classes,
            ranks).
        fixed: Parameters of the family that the network does not compute, by the family's own
            names: numbers or tensors, or an ``nn.Parameter`` whose value is the starting point
                of a learned constant.

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions, or ``trunk`` not a
            module.
        ValueError: If a name is not one of the family's; when called, if a context has the
            wrong shape.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro.nn import MLP
        >>> q = Conditional(dist.Normal, MLP(64, [32]), 2)
        >>> q
        Normal(loc, scale) of shape (2,) from MLP(64 -> 32, ReLU)
        >>> q(torch.zeros(10, 100, 64)).batch_shape
        torch.Size([10, 100])
        >>> Conditional(dist.Normal, MLP(2, [32]), 64, scale=0.1).mean(np.zeros((5, 2))).shape
        (5, 64)
    """

    def __init__(
        self,
        family: type[Any],
        trunk: nn.Module,
        event_shape: int | tuple[int, ...],
        *,
        transforms: Mapping[str, Transform] | None = None,
        param_shapes: Mapping[str, tuple[int, ...]] | None = None,
        **fixed: Any,
    ) -> None:
        super().__init__(family, event_shape, fixed, transforms, param_shapes)
        check_module("trunk", trunk)
        self.trunk = trunk
        self.heads = nn.ModuleDict(
            {name: make_head(trunk, shape) for name, (_, shape) in self.free.items()}
        )
        if "scale" in self.heads:
            forget_features(self.heads["scale"])

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution given the context values."""
        return self.distribution(self.outputs(*context))

    def outputs(self, *context: Tensor) -> dict[str, Tensor]:
        """Returns what the network computes: the free parameters before their transforms, as
        ``distribution`` takes.
        """
        return through_heads(self.trunk, self.heads, context)

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"


class Deterministic(Configurable, _Interface):
    r"""A network as a distribution: all probability at :math:`x = t(W \, \mathrm{trunk}(c) +
    b)`.

    The encoder of an autoencoder, or the generator of a model without a likelihood.

    Arguments:
        trunk: Any ``torch.nn.Module`` from the context values to features.
        event_shape: The shape of the output.
        transform: What to apply to the output, such as ``torch.nn.Sigmoid()``.

    Raises:
        TypeError: If ``trunk`` is not a module.

    Example:
        >>> from tarspyro.nn import MLP
        >>> Deterministic(MLP(64, [32]), 2)
        Deterministic of shape (2,) from MLP(64 -> 32, ReLU)
    """

    def __init__(
        self,
        trunk: nn.Module,
        event_shape: int | tuple[int, ...],
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_module("trunk", trunk)
        if transform is not None and not callable(transform):
            raise TypeError(
                "transform must be a function of tensors, such as torch.nn.Sigmoid(), got"
                f" {format_value(transform)}."
            )
        self.event_shape = as_shape("event_shape", event_shape)
        self.trunk, self.transform = trunk, transform
        self.heads = nn.ModuleDict({"value": make_head(trunk, self.event_shape)})

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution given the context values."""
        return self.distribution(self.outputs(*context))

    def outputs(self, *context: Tensor) -> dict[str, Tensor]:
        """Returns what the network computes, before the transform."""
        return through_heads(self.trunk, self.heads, context)

    def distribution(self, outputs: Mapping[str, Tensor]) -> Any:
        """Returns the distribution that the network's outputs give."""
        value = outputs["value"]
        return dist.Delta(
            value if self.transform is None else self.transform(value),
            event_dim=len(self.event_shape),
        )

    @property
    def headline(self) -> str:
        """The class and its event shape."""
        return f"Deterministic of shape {tuple(self.event_shape)}"

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"


class Blocks(Configurable, _Interface):
    r"""Several conditional distributions of one context, side by side in one vector.

    .. math:: p(x \mid c) = \prod_b p_b(x_b \mid c), \qquad x = (x_1, \dots, x_B)

    As a likelihood it is several decoders of one code, each with its own network and family:
    an image and its label are observed as one vector, ``torch.cat([image, one_hot], -1)``.

    Arguments:
        blocks: Conditional distributions over vectors, or a ``Prior`` for a block that does
            not depend on the context.

    Raises:
        TypeError: If a block is not a module.
        ValueError: When called, if a block is not over vectors.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro.nn import MLP
        >>> image = Conditional(dist.Bernoulli, MLP(2, [32]), 64)
        >>> label = Conditional(dist.OneHotCategorical, MLP(2, [8]), 10)
        >>> Blocks(image, label)
        Bernoulli(logits) of shape (64,) and OneHotCategorical(logits) of shape (10,)
        >>> Blocks(image, label)(torch.zeros(5, 2)).event_shape
        torch.Size([74])
    """

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        as_count("the number of blocks", len(blocks))
        for block in blocks:
            if not isinstance(block, nn.Module):
                raise TypeError(
                    "blocks must be modules, such as a Conditional or a Prior, got"
                    f" {format_value(block)}."
                )
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution given the context values."""
        return Concatenate([block(*context) for block in self.blocks])

    def __repr__(self) -> str:
        return " and ".join(getattr(block, "headline", repr(block)) for block in self.blocks)


class Transformed(Configurable, _Interface):
    r"""A distribution whose draws pass through invertible transforms: a normalizing flow.

    .. math:: z = t_n(\dots t_1(z_0)), \quad z_0 \sim q_0(z_0 \mid c), \qquad
              \log q(z \mid c) = \log q_0(z_0 \mid c) - \sum_i \log |\det J_{t_i}|

    As a posterior or as a prior, according to what the base is. The transforms are those of
    ``pyro.distributions.transforms``; the parameters of those that have some are trained,
    saved and moved with it. A conditional transform gets the context, or what a network makes
    of it. Draws are scored without an inverse, other values (as a model's prior gets them from
    the guide) with one; planar and radial transforms have none, so that in a prior it is their
    ``.inv`` that stands, which then cannot be drawn from. (The determinant of Pyro 1.9's
    ``Sylvester`` is not that of its map.)

    There is no mean in closed form: ``embed`` wants ``num_samples``.

    Arguments:
        base: The distribution of the draws before: a ``Conditional``, a ``Prior``, or a
            distribution.
        transforms: The transforms, the first to be applied first.
        trunk: A network from the context values to what conditional transforms see; without
            one, they see the context values side by side.

    Raises:
        TypeError: If ``base`` or a transform is none.
        ValueError: When called, if a conditional transform has no context.

    References:
        Rezende and Mohamed (2015), Variational Inference with Normalizing Flows,
        arXiv:1505.05770, eq. 7.

    Example:
        >>> from pyro.distributions.transforms import Planar, conditional_planar
        >>> from tarspyro.nn import MLP
        >>> Transformed(Conditional(dist.Normal, MLP(64, [32]), 2), [Planar(2), Planar(2)])
        Normal(loc, scale) of shape (2,) from MLP(64 -> 32, ReLU), through 2 Planar
        >>> base, trunk = dist.Normal(torch.zeros(2), 1.0).to_event(1), MLP(64, [32])
        >>> flow = Transformed(base, [conditional_planar(2, 32)], trunk=trunk)
        >>> flow(torch.zeros(10, 64)).batch_shape
        torch.Size([10])
    """

    def __init__(
        self,
        base: Any,
        transforms: Sequence[Transform | ConditionalTransform],
        *,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(base, (nn.Module, Distribution)):
            raise TypeError(
                "base must be a Conditional, a Prior or a distribution, got"
                f" {format_value(base)}."
            )
        if not isinstance(transforms, Iterable) or torch.is_tensor(transforms):
            raise TypeError(
                f"transforms must be a list of transforms, got {format_value(transforms)}."
            )
        for transform in transforms:
            if not isinstance(transform, (Transform, ConditionalTransform)):
                raise TypeError(
                    "transforms must be those of pyro.distributions.transforms, got"
                    f" {format_value(transform)}."
                )
        self.base: Any = as_prior(base)
        self.trunk = trunk
        single = list(flattened(transforms))
        self.transforms = nn.ModuleList(as_module(transform) for transform in single)
        self._names = [type(transform).__name__ for transform in single]

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution given the context values."""
        features: Tensor | None = None
        transforms: list[Any] = []
        for module in self.transforms:
            transform: Any = (
                module if isinstance(module, (Transform, ConditionalTransform)) else module()
            )
            if isinstance(transform, ConditionalTransform):
                features = self._features(context) if features is None else features
                transform = transform.condition(features)
            transforms.append(transform)
        base = self.base(*context)
        if (
            features is not None
        ):  # rows of different contexts have draws of their own, whatever the base is
            base = base.expand(torch.broadcast_shapes(base.batch_shape, features.shape[:-1]))
        return TransformedDistribution(base, transforms)

    def _features(self, context: tuple[Tensor, ...]) -> Tensor:
        if not context:
            raise ValueError(
                "transforms has conditional ones, which need a context: call with its values."
            )
        if self.trunk is None:
            lead = torch.broadcast_shapes(*(value.shape[:-1] for value in context))
            return torch.cat([value.expand(lead + value.shape[-1:]) for value in context], -1)
        folded, lead = fold(context, event_shapes(self.trunk, context))
        return unfold(self.trunk(*folded), lead)

    @property
    def headline(self) -> str:
        """The base and the names of the transforms."""
        return f"{getattr(self.base, 'headline', repr(self.base))}, through {self._summary}"

    def __repr__(self) -> str:
        return f"{self.base!r}, through {self._summary}"

    @property
    def _summary(self) -> str:
        runs = [(name, len(list(run))) for name, run in itertools.groupby(self._names)]
        return (
            ", ".join(name if count == 1 else f"{count} {name}" for name, count in runs)
            or "nothing"
        )


def distribution_mean(distribution: Any) -> Tensor:
    """Returns the mean, or says for which family there is none in closed form."""
    try:
        mean: Tensor = distribution.mean
        return mean
    except NotImplementedError:
        base = (
            distribution.base_dist if isinstance(distribution, Independent) else distribution
        )
        raise NotImplementedError(
            f"{type(base).__name__} has no mean in closed form: draw with sample, or"
            " embed(..., num_samples=...)."
        ) from None
