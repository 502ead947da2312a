"""A trunk and a family make a conditional distribution."""

__all__ = ["Blocks", "Conditional", "Deterministic"]

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import ConditionalDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, kl_divergence

from tarspyro.distributions.experts import Concatenate
from tarspyro.distributions.family import FamilyModule
from tarspyro.modules import Configurable, evaluating
from tarspyro.nn.folding import ELEMENTWISE, event_shapes, fold, unfold
from tarspyro.nn.initialization import initialize


def _array_in_array_out(method: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy arrays give NumPy arrays, computed in evaluation mode without gradients; tensors give tensors."""

    @functools.wraps(method)
    def twin(self: nn.Module, *values: Any, **options: Any) -> Any:
        if not any(isinstance(value, np.ndarray) for value in values):
            return method(self, *values, **options)
        like = next(self.parameters(), torch.empty(0))
        with evaluating(self):
            tensors = [torch.as_tensor(v, device=like.device) if isinstance(v, np.ndarray) else v for v in values]
            tensors = [v.to(like.dtype) if torch.is_tensor(v) and v.is_floating_point() else v for v in tensors]
            return method(self, *tensors, **options).cpu().numpy()

    return twin


class _Interface(nn.Module, ConditionalDistribution):
    """What one can ask of any conditional distribution, in tensors or in NumPy arrays."""

    def condition(self, context: Tensor) -> Any:
        """Returns the distribution given the context: the name that Pyro's conditional flows call."""
        return self(context)

    @_array_in_array_out
    def sample(self, *context: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Returns draws of shape ``sample_shape + batch_shape + event_shape``, reparameterized where possible."""
        distribution = self(*context)
        return distribution.rsample(sample_shape) if distribution.has_rsample else distribution.sample(sample_shape)

    @_array_in_array_out
    def log_prob(self, value: Tensor, *context: Tensor) -> Tensor:
        """Returns log p(value | context) in nats, summed over the event: one number for each row."""
        return self(*context).log_prob(value)

    @_array_in_array_out
    def mean(self, *context: Tensor) -> Tensor:
        """Returns the mean of the distribution.

        Raises:
            NotImplementedError: If the family has no closed form for it.
        """
        return distribution_mean(self(*context))

    @_array_in_array_out
    def kl(self, other: Any, *context: Tensor) -> Tensor:
        """Returns KL(self || other) given the context, in nats: one number for each row, in closed form.

        Arguments:
            other: A conditional distribution of the same context, a prior, or a distribution.
            context: The context values.

        Raises:
            NotImplementedError: If no closed form is registered for the two families.
        """
        if not isinstance(other, Distribution):
            other = other(*context) if isinstance(other, _Interface) else other()
        return kl_divergence(self(*context), other)


class Conditional(FamilyModule, _Interface):
    r"""A conditional distribution :math:`p(x \mid c)`: a network computes the parameters of a family.

    .. math:: h = \mathrm{trunk}(c), \qquad p(x \mid c) = \mathrm{family}(x; t_1(W_1 h + b_1), t_2(W_2 h + b_2), \dots)

    with one linear head for each parameter that is not fixed, and :math:`t_i` torch's ``transform_to`` of the
    parameter's constraint. Called with context values of shapes :math:`(*, E_i)`, it returns a Pyro distribution with
    batch shape :math:`*` and the given event shape. All leading dimensions are folded into one batch around the
    network, so that convolutions, recurrent cells and batch normalization work with any number of particles.

    It is also a ``pyro.distributions.ConditionalDistribution``, and so drops into Pyro's conditional flows.

    Arguments:
        family: The class of a Pyro distribution, such as ``pyro.distributions.Normal``.
        trunk: Any ``torch.nn.Module`` from the context values to features. If it has an attribute ``in_shapes`` (one
            event shape for each input) these are checked; if it has a method ``head(shape)``, this makes the heads;
            if its attribute ``broadcasts`` is true, it gets several contexts with the leading dimensions they have.
        event_shape: The shape of one draw. Its last dimensions belong to the family, the others are independent.
        transforms: For a free or learned parameter, the transform to use in place of ``transform_to(constraint)``.
        param_shapes: For a parameter, a shape that the event shape does not tell (classes, ranks).
        fixed: Parameters of the family that the network does not compute, by the family's own names: numbers or
            tensors, or an ``nn.Parameter`` whose value is the starting point of a learned constant.

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions, or ``trunk`` not a module.
        ValueError: If a name is not one of the family's; when called, if a context has the wrong shape.

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
        if not isinstance(trunk, nn.Module):
            raise TypeError(f"trunk must be a torch.nn.Module, got {trunk!r}.")
        self.trunk = trunk
        self.heads = nn.ModuleDict({name: _head(trunk, shape) for name, (_, shape) in self.free.items()})

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution given the context values."""
        return self.distribution(self.outputs(*context))

    def outputs(self, *context: Tensor) -> dict[str, Tensor]:
        """Returns what the network computes: the free parameters before their transforms, as ``distribution`` takes."""
        return _through_heads(self.trunk, self.heads, context)

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"


class Deterministic(Configurable, _Interface):
    r"""A network as a distribution: all probability at :math:`x = t(W \, \mathrm{trunk}(c) + b)`.

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
        if not isinstance(trunk, nn.Module):
            raise TypeError(f"trunk must be a torch.nn.Module, got {trunk!r}.")
        self.event_shape = torch.Size((event_shape,) if isinstance(event_shape, int) else event_shape)
        self.trunk, self.transform = trunk, transform
        self.heads = nn.ModuleDict({"value": _head(trunk, self.event_shape)})

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution given the context values."""
        return self.distribution(self.outputs(*context))

    def outputs(self, *context: Tensor) -> dict[str, Tensor]:
        """Returns what the network computes, before the transform."""
        return _through_heads(self.trunk, self.heads, context)

    def distribution(self, outputs: Mapping[str, Tensor]) -> Any:
        """Returns the distribution that the network's outputs give."""
        value = outputs["value"]
        return dist.Delta(value if self.transform is None else self.transform(value), event_dim=len(self.event_shape))

    @property
    def headline(self) -> str:
        """The class and its event shape."""
        return f"Deterministic of shape {tuple(self.event_shape)}"

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"


class Blocks(Configurable, _Interface):
    r"""Several conditional distributions of one context, side by side in one vector.

    .. math:: p(x \mid c) = \prod_b p_b(x_b \mid c), \qquad x = (x_1, \dots, x_B)

    As a likelihood it is several decoders of one code, each with its own network and family: an image and its label
    are observed as one vector, ``torch.cat([image, one_hot], -1)``.

    Arguments:
        blocks: Conditional distributions over vectors, or a ``Prior`` for a block that does not depend on the context.

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
        for block in blocks:
            if not isinstance(block, nn.Module):
                raise TypeError(f"blocks must be modules, such as a Conditional or a Prior, got {block!r}.")
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *context: Tensor) -> Any:
        """Returns the distribution given the context values."""
        return Concatenate([block(*context) for block in self.blocks])

    def __repr__(self) -> str:
        return " and ".join(getattr(block, "headline", repr(block)) for block in self.blocks)


def distribution_mean(distribution: Any) -> Tensor:
    """Returns the mean, or says for which family there is none in closed form."""
    try:
        return distribution.mean
    except NotImplementedError:
        base = getattr(distribution, "base_dist", distribution)
        raise NotImplementedError(
            f"{type(base).__name__} has no mean in closed form: draw with sample, or embed(..., num_samples=...)."
        ) from None


def _through_heads(trunk: nn.Module, heads: nn.ModuleDict, context: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Computes the features once, with the leading dimensions folded into the batch, and every head's output."""
    if len(context) > 1 and getattr(trunk, "broadcasts", False):
        (features,), lead = fold([trunk(*context)], [1])
    else:
        folded, lead = fold(context, event_shapes(trunk, context))
        features = trunk(*folded)
    outputs = {name: unfold(head(features), lead) for name, head in heads.items()}
    if torch.is_autocast_enabled(next(iter(outputs.values())).device.type):
        # The networks may compute in half precision, the densities of what comes out of them not.
        outputs = {name: output.float() for name, output in outputs.items()}
    return outputs


def _head(trunk: nn.Module, shape: torch.Size) -> nn.Module:
    if hasattr(trunk, "head"):
        make_head: Callable[[tuple[int, ...]], nn.Module] = trunk.head  # type: ignore[assignment]
        return initialize(make_head(tuple(shape)))
    size = math.prod(shape)
    features = _out_features(trunk)
    # Where the trunk does not tell its output size, the first call does.
    linear = nn.LazyLinear(size) if features is None else initialize(nn.Linear(features, size))
    layers = [nn.Flatten(), linear] if features is None else [linear]
    if len(shape) != 1:
        layers.append(nn.Unflatten(1, tuple(shape)) if shape else nn.Flatten(0))
    return nn.Sequential(*layers) if len(layers) > 1 else linear


def _out_features(trunk: nn.Module) -> int | None:
    if isinstance(trunk, nn.Sequential):
        sizes = (_out_features(layer) for layer in reversed(trunk) if type(layer).__module__ not in ELEMENTWISE)
        return next(sizes, None)
    size = getattr(trunk, "out_features", None)
    return size if isinstance(size, int) else None
