"""The masked autoencoder for distribution estimation (MADE)."""

__all__ = ["MADE"]

import math
from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn
from torch.nn.functional import linear

from tarspyro.arguments import (
    as_count,
    as_numbers,
    as_seed,
    as_shape,
    as_sizes,
    check_choice,
    check_constructor,
)
from tarspyro.nn.causal import CausalTrunk, HeadWalk, MaskedLinear, Walk, dense_ranks


class MADE(CausalTrunk):
    r"""A masked autoencoder: a multilayer perceptron whose outputs see earlier inputs alone.

    .. math:: h_l = a\big((W_l \odot M_l) h_{l-1} + b_l + U_l c\big), \qquad
              M_{oi} = [\, d_i \le e_o \,]

    It is the trunk of an ``Autoregressive``. Each hidden unit has a degree: it sees the inputs
    before this place of the order, and the outputs from this place on see it. Inputs have
    shape :math:`(*, E)`; the features are the last hidden layer. Without hidden layers it is a
    fully visible belief network.

    With several masks the density is the mixture of those of all masks,
    :math:`p(x) = \frac1M \sum_m p_m(x)`. In training each call takes one mask at random, which
    bounds the mixture from below; in evaluation mode ``Autoregressive`` takes all.

    Arguments:
        in_shape: The shape of x.
        hidden_features: The sizes of the hidden layers.
        order: The order of the elements: ``"raster"``, from the first to the last;
            ``"random"``, for each mask another; or ranks, a tensor of the shape of x. Elements
            of equal rank are independent of each other given those before.
        num_masks: The number of masks.
        direct_connections: Whether the outputs see earlier inputs also directly, as in a fully
            visible belief network (section 4.2 of the paper). The features then have x behind
            the last hidden layer.
        context: The context, if there is one: a network to vectors, such as an ``MLP``, or the
            size of a vector.
        num_classes: The number of classes, if x holds the indices of classes.
        activation: The constructor of the activation, which acts on each unit alone.
        seed: The seed of random orders, and of the degrees of several masks.

    Raises:
        TypeError: If a size is not a whole number, or ``activation`` is not a constructor.
        ValueError: If ``order`` is unknown or of another shape, the activation mixes units, or
            there is a context and no hidden layer.

    References:
        Germain et al. (2015), MADE: Masked Autoencoder for Distribution Estimation,
        arXiv:1502.03509, eq. 8 to 14.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Autoregressive
        >>> p = Autoregressive(dist.Bernoulli, MADE(64, [128]), 64)
        >>> p
        Bernoulli(logits) of shape (64,) from MADE(64 -> 128, ReLU)
        >>> p().log_prob(torch.zeros(10, 64)).shape
        torch.Size([10])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden_features: Sequence[int] = (500,),
        *,
        order: str | Tensor = "raster",
        num_masks: int = 1,
        direct_connections: bool = False,
        context: int | Sequence[int] | nn.Module | None = None,
        num_classes: int | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        seed: int = 0,
    ) -> None:
        shape = as_shape("in_shape", in_shape)
        super().__init__(shape, num_classes, context)
        sizes = as_sizes("hidden_features", hidden_features)
        self.direct_connections = direct_connections
        if context is not None and not sizes:
            raise ValueError(
                "hidden_features must have a layer that sees the context, got none: give one,"
                " or leave the context out."
            )
        self.num_masks = as_count("num_masks", num_masks)
        check_constructor("activation", activation, "torch.nn.ReLU")
        generator = torch.Generator().manual_seed(as_seed(seed))
        ranks = self._ranks(order, shape, generator)
        several = self.num_masks > 1
        self.register_buffer(
            "order", ranks.reshape(-1, *shape) if several else ranks[0].reshape(shape), False
        )

        # An input that has the rank r is seen from the degree r + 1 on. The degree 0 sees the
        # context alone, so that there are no such units without one.
        degrees = (ranks + 1).repeat_interleave(self.depth, 1)
        lowest = torch.full((self.num_masks,), 0 if context is not None else 1)
        self.layers = nn.ModuleList()
        self.given = nn.ModuleList()
        self.activation = _checked(activation())
        for size in sizes:
            found = _degrees(size, lowest, int(ranks.max()), generator if several else None)
            self.layers.append(MaskedLinear(degrees, found))
            if self.context is not None:
                self.given.append(nn.Linear(self.context.out_features, size, bias=False))
            degrees = found
            lowest = found.min(1).values
        if self.direct_connections and sizes:
            degrees = torch.cat([degrees, (ranks + 1).repeat_interleave(self.depth, 1)], 1)
        self.degrees = degrees
        self.out_features = degrees.shape[1]
        self._summary = " -> ".join(map(str, [math.prod(shape), *sizes]))
        if sizes:
            self._summary += f", {type(self.activation).__name__}"
            if self.direct_connections:
                self._summary += ", direct connections"
        if several:
            self._summary += f", {self.num_masks} masks"

    def _ranks(self, order: str | Tensor, shape: Size, generator: torch.Generator) -> Tensor:
        """Returns the ranks of the elements for each mask, of shape ``(masks, elements)``."""
        size = math.prod(shape)
        if isinstance(order, str):
            check_choice("order", order, ("raster", "random"))
            if order == "raster":
                return torch.arange(size).expand(self.num_masks, size)
            count = self.num_masks
            return torch.stack(
                [torch.randperm(size, generator=generator) for _ in range(count)]
            )
        given = as_numbers("order", order)
        if given.shape != shape:
            raise ValueError(
                f"order must have a rank for each element, of shape {tuple(shape)}, got"
                f" {tuple(given.shape)}."
            )
        return dense_ranks(given.flatten()).expand(self.num_masks, size)

    def features(self, x: Tensor, given: Tensor | None, mask: int | Tensor) -> Tensor:
        """Returns the last hidden layer, and x behind it with direct connections."""
        inputs = self.encoded(x).flatten(1)
        hidden = inputs
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, mask)
            if given is not None:
                hidden = hidden + self.given[index](given)
            hidden = self.activation(hidden)
        return self._with_inputs(hidden, inputs)

    def _with_inputs(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """The last hidden layer, and the inputs behind it if the outputs see them."""
        direct = self.direct_connections and len(self.layers) > 0
        return torch.cat([hidden, inputs], 1) if direct else hidden

    def walk(self, count: int, given: Tensor | None, mask: int) -> Walk:
        """Returns a function that computes at each step the hidden units of its degree."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        units: list[list[Tensor]] = []
        last = self.num_steps - 1
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, MaskedLinear)
            bias = layer.bias.unsqueeze(0)
            weights.append(layer.masked_weight(mask))
            biases.append(bias if given is None else bias + self.given[index](given))
            units.append(_by_rank(layer.out_degrees[mask], last))
        hidden = [bias.new_zeros(count, bias.shape[1]) for bias in biases]

        def step_of(x: Tensor, step: int) -> Tensor:
            inputs = self.encoded(x).flatten(1)
            before = inputs
            for index, values in enumerate(hidden):
                new = units[index][step]
                if len(new):
                    rows = linear(before, weights[index][new]) + biases[index][:, new]
                    values[:, new] = self.activation(rows)
                before = values
            return self._with_inputs(before, inputs)

        return step_of

    @property
    def num_steps(self) -> int:
        """The number of steps in which x is drawn."""
        return int(self.order.max()) + 1

    def causal_head(self, positions: Size, trailing: Size) -> nn.Module:
        """Returns a masked linear layer."""
        ranks = self.order.reshape(self.num_masks, *self.in_shape).flatten(1)
        per_position = ranks.shape[1] // max(1, math.prod(positions))
        return _MaskedHead(self.degrees, ranks[:, ::per_position], positions, trailing)


class _MaskedHead(MaskedLinear):
    """The masked linear layer from the last hidden layer to a parameter of each position."""

    ranks: Tensor

    def __init__(
        self, degrees: Tensor, ranks: Tensor, positions: Size, trailing: Size
    ) -> None:
        size = math.prod(trailing)
        super().__init__(degrees, ranks.repeat_interleave(size, 1))
        self.out_shape = (*positions, *trailing)
        self.trailing = tuple(trailing)
        self.register_buffer("ranks", ranks, persistent=False)

    def forward(self, features: Tensor, mask: int | Tensor = 0) -> Tensor:
        """Returns the parameter of each position."""
        return super().forward(features, mask).reshape(len(features), *self.out_shape)

    def start(self, mask: int = 0) -> HeadWalk:
        """Returns a function to the parameters of a step's positions alone."""
        size = math.prod(self.trailing)
        weight = self.masked_weight(mask).unflatten(0, (-1, size))
        bias = self.bias.unflatten(0, (-1, size))
        places = _by_rank(self.ranks[mask], int(self.ranks.max()))

        def step_of(features: Tensor, step: int) -> Tensor:
            chosen = places[step]
            rows = linear(features, weight[chosen].flatten(0, 1), bias[chosen].flatten())
            return rows.reshape(len(features), len(chosen), *self.trailing)

        return step_of


def _degrees(
    size: int, lowest: Tensor, highest: int, generator: torch.Generator | None
) -> Tensor:
    """Returns the degrees of a hidden layer, of shape ``(masks, size)``.

    They are spread evenly from the lowest to the highest, or drawn with the generator.
    """
    rows = []
    for low in lowest.tolist():
        low = min(low, highest)
        count = highest - low + 1
        if generator is None:
            rows.append(low + torch.arange(size) * count // size)
        else:
            rows.append(low + torch.randint(count, (size,), generator=generator))
    return torch.stack(rows)


def _by_rank(ranks: Tensor, highest: int) -> list[Tensor]:
    """Returns for each rank the indices of the elements that have it."""
    counts = torch.bincount(ranks, minlength=highest + 1).tolist()
    return list(ranks.argsort(stable=True).split(counts))


def _checked(activation: nn.Module) -> nn.Module:
    """Returns an activation that acts on each unit alone.

    Raises:
        ValueError: If it mixes units, which would undo the masks.
    """
    values = torch.linspace(-1.0, 1.0, 8).unsqueeze(0)
    others = values.clone()
    others[:, 4:] += 1.0
    with torch.no_grad():
        outputs = activation.eval()(torch.cat([values, others]))
    activation.train()
    if outputs.shape != (2, 8) or not torch.equal(outputs[0, :4], outputs[1, :4]):
        raise ValueError(
            "activation must act on each unit alone, such as torch.nn.ReLU, got"
            f" {type(activation).__name__}, which mixes them."
        )
    return activation
