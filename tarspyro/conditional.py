"""Conditional distributions: a network with a family, blocks of them, and normalizing flows."""

__all__ = [
    "Blocks",
    "Conditional",
    "Deterministic",
    "FromNetwork",
    "IncompleteLikelihood",
    "Interface",
    "Transformed",
]

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions import ConditionalDistribution
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Cauchy,
    Distribution,
    Transform,
    kl_divergence,
)
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import (
    as_count,
    as_numbers,
    as_shape,
    check_module,
    format_value,
    numpy_of,
)
from tarspyro.distributions.experts import Concatenate
from tarspyro.distributions.family import FamilyModule
from tarspyro.distributions.incomplete import Incomplete
from tarspyro.distributions.links import Direction, is_identity
from tarspyro.distributions.prior import as_prior
from tarspyro.distributions.transformed import TransformedDistribution, as_module, flattened
from tarspyro.infer.traces import elements_of
from tarspyro.modules import Configurable
from tarspyro.nn.folding import event_shapes, fold, unfold, unfold_distribution
from tarspyro.nn.heads import make_head, through_heads, zero_weights
from tarspyro.nn.inputs import Standardize
from tarspyro.scopes import evaluating

# A transform, or one whose parameters depend on a context.
AnyTransform: TypeAlias = Transform | ConditionalTransform


def _array_in_array_out(method: Callable[..., Tensor]) -> Callable[..., Any]:
    """Lets a method take NumPy arrays too.

    Arrays give an array, computed in evaluation mode without gradients. Tensors give a tensor.
    """

    @functools.wraps(method)
    def twin(self: nn.Module, *values: object, **options: object) -> Tensor | np.ndarray:
        if not any(isinstance(value, np.ndarray) for value in values):
            return method(self, *values, **options)
        like = next(self.parameters(), torch.empty(0))
        tensors: list[object] = []
        for value in values:
            if isinstance(value, np.ndarray):
                value = as_numbers("an array", value).to(like.device)
            if isinstance(value, Tensor) and value.is_floating_point():
                value = value.to(like.dtype)
            tensors.append(value)
        with evaluating(self):
            return numpy_of(method(self, *tensors, **options))

    return twin


class Interface(nn.Module, ConditionalDistribution):
    """The methods of any conditional distribution, with tensors or with NumPy arrays."""

    def condition(self, context: Tensor) -> Distribution:
        """Returns the distribution given the context.

        Pyro's conditional flows call this method.
        """
        distribution: Distribution = self(context)
        return distribution

    @_array_in_array_out
    def sample(self, *context: Tensor, sample_shape: int | tuple[int, ...] = ()) -> Tensor:
        """Returns draws, reparameterized if the family is.

        Their shape is ``sample_shape + batch_shape + event_shape``.
        """
        distribution = self(*context)
        draw: Callable[..., Tensor] = (
            distribution.rsample if distribution.has_rsample else distribution.sample
        )
        return draw(as_shape("sample_shape", sample_shape))

    @_array_in_array_out
    def log_prob(self, value: Tensor, *context: Tensor) -> Tensor:
        """Returns log p(value | context) in nats, one number for each row.

        Raises:
            TypeError: If ``value`` is not a tensor or an array.
            ValueError: If ``value`` has rows of another shape than the event shape, or numbers
                that have no density.
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
    def kl(
        self, other: Distribution | Callable[..., Distribution], *context: Tensor
    ) -> Tensor:
        """Returns KL(self || other) given the context, in closed form.

        It is in nats, one number for each row.

        Arguments:
            other: A conditional distribution of the same context, a prior, or a distribution.
            context: The context values.

        Raises:
            NotImplementedError: If no closed form is registered for the two families.
            TypeError: If ``other`` is not a distribution and returns none.
            ValueError: If ``other`` has another event shape, or does not broadcast.
        """
        own = self(*context)
        given: object = other
        if callable(given) and not isinstance(given, Distribution):
            given = given(*context) if isinstance(given, Interface) else given()
        if not isinstance(given, Distribution):
            raise TypeError(
                "other must be a distribution or a module that returns one, got"
                f" {format_value(given)}."
            )
        if own.event_shape != given.event_shape:
            raise ValueError(
                "other must have the event shape of the distribution,"
                f" {tuple(own.event_shape)}, got {tuple(given.event_shape)}."
            )
        try:
            return kl_divergence(own, given)
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise  # There is no closed form.
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"other must broadcast with the distribution, and does not: {reason}."
            ) from error


class Conditional(FamilyModule, Interface):
    r"""A conditional distribution :math:`p(x \mid c)`: a network computes a family's parameters.

    .. math:: h = \mathrm{trunk}(c), \qquad
              p(x \mid c) = \mathrm{family}(x; t_1(W_1 h + b_1), t_2(W_2 h + b_2), \dots)

    with one linear head for each parameter that is not fixed, and :math:`t_i` torch's
    ``transform_to`` of the parameter's constraint, with an exponential that cannot overflow.
    Called with context values of shapes :math:`(*, E_i)`, it returns a Pyro distribution with
    batch shape :math:`*` and the given event shape. All leading dimensions are folded into one
    batch around the network, so that convolutions, recurrent cells and batch normalization work
    with any number of particles.
    Heads of constrained parameters start with zero weights: every scale is 1 at first, and
    every covariance the identity.

    It is also a ``pyro.distributions.ConditionalDistribution``, for Pyro's conditional flows.

    Arguments:
        family: The class of a Pyro distribution, such as ``pyro.distributions.Normal``.
        trunk: Any ``torch.nn.Module`` from the context values to features. If it has an
            attribute ``in_shapes`` (one event shape for each input), the contexts must have
            these shapes. If it has a method ``head(shape)``, this makes the heads. If its
            attribute ``broadcasts`` is true, it gets several contexts with different leading
            dimensions.
        event_shape: The shape of one draw. Its last dimensions belong to the family, the
            others are independent.
        transforms: For a free or learned parameter, the transform to use in place of
            ``transform_to(constraint)``.
        param_shapes: For a parameter, a shape that does not follow from the event shape
            (classes, ranks).
        standardize: By the position of an input (``"0"``) or the name of a parameter
            (``"loc"``), the shape of the ``tarspyro.nn.Standardize`` layer before or, inverted,
            after the network. ``fit`` adds these layers to a new pair where data are far from
            the scale of 1; their values come with the weights.
        fixed: Parameters of the family that the network does not compute, by the family's own
            names: numbers, tensors, or an ``nn.Parameter``, whose value is then the starting
            point of a learned constant.

    Raises:
        TypeError: If ``family`` is not a class of Pyro distributions, or ``trunk`` is not a
            module.
        ValueError: If the family has no parameter of that name; when called, if a context has
            the wrong shape.

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
        family: type[Distribution],
        trunk: nn.Module,
        event_shape: int | tuple[int, ...],
        *,
        transforms: Mapping[str, Transform] | None = None,
        param_shapes: Mapping[str, tuple[int, ...]] | None = None,
        standardize: Mapping[str, tuple[int, ...]] | None = None,
        **fixed: Any,
    ) -> None:
        super().__init__(family, event_shape, fixed, transforms, param_shapes)
        check_module("trunk", trunk)
        self.trunk = trunk
        self.units = nn.ModuleDict(
            {key: _identity(tuple(shape)) for key, shape in (standardize or {}).items()}
        )
        heads = {name: make_head(trunk, shape) for name, (_, shape) in self.free.items()}
        self.heads = nn.ModuleDict(heads)
        for name, (transform, _) in self.free.items():
            # A direction has no scale that random weights could take out of range.
            if not (is_identity(transform) or isinstance(transform, Direction)):
                zero_weights(self.heads[name])
        self._sizes: list[float | None] | None = None
        self.is_new = True

    @property
    def is_new(self) -> bool:
        """Whether the heads are still as the constructor has made them, and are trained."""
        if self._sizes is None or not all(p.requires_grad for p in self.heads.parameters()):
            return False
        sizes = self._measure()
        return len(sizes) == len(self._sizes) and all(
            was is None or math.isclose(was, now or 0.0, rel_tol=1e-3)
            for was, now in zip(self._sizes, sizes, strict=True)
        )

    @is_new.setter
    def is_new(self, new: bool) -> None:
        self._sizes = self._measure() if new else None

    def _measure(self) -> list[float | None]:
        """The sum of the sizes of each head's parameters, to see whether they have changed."""
        return [
            None
            if isinstance(parameter, UninitializedParameter)
            else parameter.abs().sum().item()
            for parameter in self.heads.parameters()
        ]

    def standardize(self, key: str, rows: Tensor) -> None:
        """Lets the network compute in units of the data.

        The network then sees an input with mean 0 and standard deviation 1, or its output 0 is
        the mean of the data and 1 a standard deviation from it. Vectors are standardized
        element by element, values of more dimensions as a whole.

        Arguments:
            key: The position of an input, ``"0"``, or the name of a parameter, ``"loc"``.
            rows: Inputs or values, of shape ``(N, *E)``.
        """
        layer = Standardize.of(rows if rows.dim() == 2 else rows.reshape(-1))
        self.units[key] = layer.to(rows.device)

        # A run folder describes the layer as an argument of the constructor.
        args, options = self.constructor_arguments
        shapes = {**options.get("standardize", {}), key: tuple(layer.loc.shape)}
        described = (args, {**options, "standardize": shapes})
        object.__setattr__(self, "constructor_arguments", described)

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        distribution: Distribution = self.distribution(self.outputs(*context))
        return distribution

    def outputs(self, *context: Tensor) -> dict[str, Tensor]:
        """Returns the network's outputs: the free parameters before their transforms.

        ``distribution`` makes the distribution of them.
        """
        if not len(self.units):
            return through_heads(self.trunk, self.heads, context)
        seen = [
            self.units[str(index)](value) if str(index) in self.units else value
            for index, value in enumerate(context)
        ]
        outputs = through_heads(self.trunk, self.heads, tuple(seen))
        for name in outputs.keys() & self.units.keys():
            layer = self.units[name]
            assert isinstance(layer, Standardize)
            outputs[name] = layer.inverse(outputs[name])
        return outputs

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"


def _identity(shape: tuple[int, ...]) -> Standardize:
    return Standardize(torch.zeros(shape), torch.ones(shape))


class Deterministic(Configurable, Interface):
    r"""A network as a point distribution, with all probability at its output.

    .. math:: x = t(W \, \mathrm{trunk}(c) + b)

    It is the encoder of an autoencoder, or the generator of a model without a likelihood.

    Arguments:
        trunk: Any ``torch.nn.Module`` from the context values to features.
        event_shape: The shape of the output.
        transform: A function t of the output, such as ``torch.nn.Sigmoid()``.

    Raises:
        TypeError: If ``trunk`` is not a module, or ``transform`` is not a function.

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
        self.trunk = trunk
        self.transform = transform
        self.heads = nn.ModuleDict({"value": make_head(trunk, self.event_shape)})

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        return self.distribution(self.outputs(*context))

    def outputs(self, *context: Tensor) -> dict[str, Tensor]:
        """Returns the network's output before the transform."""
        return through_heads(self.trunk, self.heads, context)

    def distribution(self, outputs: Mapping[str, Tensor]) -> Distribution:
        """Returns the distribution of the network's outputs."""
        value = outputs["value"]
        if self.transform is not None:
            value = self.transform(value)
        return dist.Delta(value, event_dim=len(self.event_shape))

    @property
    def headline(self) -> str:
        """The class and its event shape."""
        return f"Deterministic of shape {tuple(self.event_shape)}"

    def __repr__(self) -> str:
        return f"{self.headline} from {self.trunk!r}"


class FromNetwork(Configurable, Interface):
    r"""A conditional distribution whose network computes the parameters itself.

    .. math:: p(x \mid c) = d(\mathrm{network}(c))

    For networks that end in heads of their own, such as one that returns a mean and the
    logarithm of a variance. Leading dimensions are folded into one batch around the network,
    as those of ``Conditional`` are.

    Arguments:
        network: Any ``torch.nn.Module`` from the context values to a tensor or several; or to
            a distribution.
        distribution: A function of the network's outputs that returns the distribution; None
            if the network returns it.

    Raises:
        TypeError: If ``network`` is not a module; when called, if no distribution comes out.

    Example:
        >>> class Encoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden = nn.Linear(64, 32)
        ...         self.loc = nn.Linear(32, 2)
        ...         self.log_variance = nn.Linear(32, 2)
        ...     def forward(self, x):
        ...         h = torch.relu(self.hidden(x))
        ...         return self.loc(h), self.log_variance(h)
        >>> def normal(loc, log_variance):
        ...     return dist.Normal(loc, (log_variance / 2).exp()).to_event(1)
        >>> q = FromNetwork(Encoder(), normal)
        >>> q(torch.zeros(5, 10, 64)).batch_shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        network: nn.Module,
        distribution: Callable[..., Distribution] | None = None,
    ) -> None:
        super().__init__()
        check_module("network", network)
        if distribution is not None and not callable(distribution):
            raise TypeError(
                "distribution must be a function of the network's outputs, got"
                f" {format_value(distribution)}."
            )
        self.network = network
        self.make = distribution

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        folded, lead = fold(context, event_shapes(self.network, context))
        made = self.network(*folded)
        if self.make is not None:
            outputs = made if isinstance(made, (tuple, list)) else (made,)
            made = self.make(*(unfold(output, lead) for output in outputs))
        elif isinstance(made, Distribution):
            made = unfold_distribution(made, lead)
        if not isinstance(made, Distribution):
            raise TypeError(
                f"{type(self.network).__name__} returns {format_value(made)}, which is no"
                " distribution: give a function that makes one of it, FromNetwork(network,"
                " lambda loc, log_variance: ...), or features to a Conditional."
            )
        return made

    def __repr__(self) -> str:
        return f"FromNetwork({type(self.network).__name__})"


class IncompleteLikelihood(Configurable, Interface):
    r"""A likelihood of data with gaps, NaN, which are integrated out.

    .. math:: \log p(x_\mathrm{known} \mid c) = \sum_{i \text{ known}} \log p_i(x_i \mid c)

    Draws are complete. The guide's network needs the positions of the gaps as an input: see
    ``tarspyro.nn.WithGaps``.

    Arguments:
        likelihood: A ``Conditional``, or ``Blocks`` of several families.

    Raises:
        TypeError: If ``likelihood`` is not a module.

    Example:
        >>> from tarspyro.nn import MLP
        >>> p = IncompleteLikelihood(Conditional(dist.Normal, MLP(2, [8]), 3))
        >>> x = torch.tensor([[1.0, float("nan"), 0.5]])
        >>> p(torch.zeros(1, 2)).log_prob(x).isfinite()
        tensor([True])
    """

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        check_module("likelihood", likelihood)
        self.likelihood = likelihood

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        return Incomplete(self.likelihood(*context))

    def __repr__(self) -> str:
        return f"{self.likelihood!r}, with gaps"


class Blocks(Configurable, Interface):
    r"""Several conditional distributions of one context, concatenated to one vector.

    .. math:: p(x \mid c) = \prod_b p_b(x_b \mid c), \qquad x = (x_1, \dots, x_B)

    As a likelihood it has several decoders, each with its own network and family. For example,
    an image and its label are observed as one vector, ``torch.cat([image, one_hot], -1)``.

    Arguments:
        blocks: Conditional distributions over vectors, or a ``Prior`` for a block that does
            not depend on the context.

    Raises:
        TypeError: If a block is not a module.
        ValueError: If there is no block; when called, if a block is not over vectors.

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

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        return Concatenate([block(*context) for block in self.blocks])

    def __repr__(self) -> str:
        return " and ".join(getattr(block, "headline", repr(block)) for block in self.blocks)


class Transformed(Configurable, Interface):
    r"""A normalizing flow: a distribution whose draws pass through invertible transforms.

    .. math:: z = t_n(\dots t_1(z_0)), \quad z_0 \sim q_0(z_0 \mid c), \qquad
              \log q(z \mid c) = \log q_0(z_0 \mid c) - \sum_i \log |\det J_{t_i}|

    It is a posterior or a prior, depending on the base. The transforms are those of
    ``pyro.distributions.transforms``. Their parameters, if they have some, are trained, saved
    and moved to devices with the module. A conditional transform gets the context, or the
    features that ``trunk`` computes from it.

    The density of its own draws needs no inverse. The density of other values does, such as a
    draw of the guide under a model's prior. Planar and radial transforms have no inverse: in a
    prior, use their ``.inv``, which then cannot be drawn from. (Pyro 1.9's ``Sylvester``
    computes a determinant that is not its own.)

    There is no mean in closed form, so ``embed`` needs ``num_samples``.

    Arguments:
        base: The distribution of z_0: a ``Conditional``, a ``Prior``, or a distribution.
        transforms: The transforms t_1, ..., t_n.
        trunk: A network from the context values to the context of conditional transforms. If
            not given, this is the context values, concatenated.

    Raises:
        TypeError: If ``base`` is not a distribution or a module, or a transform is not one.
        ValueError: When called, if a conditional transform has no context.

    References:
        Rezende and Mohamed (2015), Variational Inference with Normalizing Flows,
        arXiv:1505.05770, eq. 7.

    Example:
        >>> from pyro.distributions.transforms import Planar, conditional_planar
        >>> from tarspyro.nn import MLP
        >>> Transformed(Conditional(dist.Normal, MLP(64, [32]), 2), [Planar(2), Planar(2)])
        Normal(loc, scale) of shape (2,) from MLP(64 -> 32, ReLU), through 2 Planar
        >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> flow = Transformed(base, [conditional_planar(2, 32)], trunk=MLP(64, [32]))
        >>> flow(torch.zeros(10, 64)).batch_shape
        torch.Size([10])
    """

    def __init__(
        self,
        base: Distribution | nn.Module,
        transforms: Sequence[AnyTransform],
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
        self.base = as_prior(base)
        self.trunk = trunk
        single = list(flattened(transforms))
        self.transforms = nn.ModuleList(as_module(transform) for transform in single)
        self._names = [type(transform).__name__ for transform in single]

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the distribution given the context values."""
        features: Tensor | None = None
        transforms: list[Transform] = []
        for module in self.transforms:
            transform: Any = module
            if not isinstance(module, (Transform, ConditionalTransform)):
                transform = module()
            if isinstance(transform, ConditionalTransform):
                if features is None:
                    features = self._features(context)
                transform = transform.condition(features)
            transforms.append(transform)
        base = self.base(*context)
        if features is not None:
            # Each context has a draw of its own, also if the base does not depend on it.
            base = base.expand(torch.broadcast_shapes(base.batch_shape, features.shape[:-1]))
        return TransformedDistribution(base, transforms)

    def _features(self, context: tuple[Tensor, ...]) -> Tensor:
        """Returns the context of conditional transforms."""
        if not context:
            raise ValueError("Conditional transforms need a context: call flow(context).")
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
        """The names of the transforms, with a number before those that repeat."""
        parts = []
        for name, run in itertools.groupby(self._names):
            count = len(list(run))
            parts.append(name if count == 1 else f"{count} {name}")
        return ", ".join(parts) or "nothing"


def distribution_mean(distribution: Distribution) -> Tensor:
    """Returns the mean of a distribution.

    Raises:
        NotImplementedError: If the family has no closed form for it; the message names it.
    """
    base = elements_of(distribution)
    try:
        if isinstance(base, (Categorical, Cauchy)):  # for torch it is NaN
            raise NotImplementedError
        return distribution.mean
    except NotImplementedError:
        raise NotImplementedError(
            f"{type(base).__name__} has no mean in closed form: draw with sample, or"
            " embed(..., num_samples=...)."
        ) from None


def mean_or_mode(distribution: Distribution) -> Tensor:
    """Returns the mean of a distribution; of classes that are numbers, the most probable one.

    Raises:
        NotImplementedError: As ``distribution_mean`` does.
    """
    if isinstance(elements_of(distribution), Categorical):
        return distribution.mode
    return distribution_mean(distribution)
