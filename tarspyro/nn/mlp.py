"""Multilayer perceptrons."""

__all__ = ["MLP"]

import functools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tarspyro.arguments import as_count, as_shape, as_sizes, check_constructor, check_number
from tarspyro.modules import Configurable
from tarspyro.nn.folding import as_events, fold, unfold
from tarspyro.nn.initialization import initialize


class MLP(Configurable):
    r"""A multilayer perceptron that ends in its last hidden layer, as the trunk of a
    ``Conditional``.

    .. math:: h_0 = [x_1, x_2, \dots], \quad h_{i+1} = a(W_i h_i + b_i)

    The weights start as ``initialize`` draws them. Inputs have shapes :math:`(*, E_i)`; the
    output has shape
    :math:`(*, H)`, with any leading dimensions. Those of several inputs broadcast, and the
    first layer, a sum over the inputs, multiplies each of them as it comes: an image that
    meets ten labels is multiplied once.

    Arguments:
        in_features: The size of the input; a tuple for an input with several dimensions, such
            as ``(1, 28, 28)``; a list with one entry for each of several inputs, which are
            concatenated.
        hidden_features: The sizes of the layers, each followed by the activation. Without any
            the inputs are only laid side by side, and a ``Conditional`` is linear.
        activation: The constructor of the activation.
        normalization: The constructor of a normalization before each activation, such as
            ``nn.BatchNorm1d``.
        dropout: The probability with which a hidden unit is dropped in training.

    Attributes:
        broadcasts: That several inputs need not be brought to one leading shape.

    Raises:
        TypeError: If a size is no whole number, or ``activation`` or ``normalization`` no
            constructor of a module.
        ValueError: If a size is below 1, or ``dropout`` no probability; when called, if an
            input does not end in its shape.

    Example:
        >>> MLP(784, [512, 512])
        MLP(784 -> 512 -> 512, ReLU)
        >>> MLP([(1, 28, 28), 10], [512])(torch.zeros(5, 100, 1, 28, 28), torch.zeros(100, 10)).shape
        torch.Size([5, 100, 512])
    """

    broadcasts = True

    def __init__(
        self,
        in_features: int | tuple[int, ...] | list[int | tuple[int, ...]],
        hidden_features: Sequence[int],
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inputs = in_features if isinstance(in_features, list) else [in_features]
        self.in_shapes = tuple(tuple(as_shape("in_features", entry)) for entry in inputs)
        as_count("the number of in_features", len(inputs))
        hidden_features = as_sizes("hidden_features", hidden_features)
        check_constructor("activation", activation, "torch.nn.ReLU")
        check_number("dropout", dropout, 0, 1)
        sizes = [sum(math.prod(shape) for shape in self.in_shapes), *hidden_features]
        self.out_features, self._num_layers = sizes[-1], len(hidden_features)
        layers: list[nn.Module] = []
        for size, next_size in zip(sizes, sizes[1:], strict=False):
            layers.append(nn.Linear(size, next_size))
            if normalization is not None:
                check_constructor(
                    "normalization", normalization, "torch.nn.BatchNorm1d", next_size
                )
                layers.append(normalization(next_size))
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = initialize(nn.Sequential(*layers), activation())
        self._summary = (
            f"{' -> '.join(map(str, sizes))}, {type(activation()).__name__}"
            if hidden_features
            else f"{sizes[0]}"
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the last hidden layer."""
        if len(inputs) > 1 and self._num_layers:
            events = as_events(inputs, self.in_shapes)
            rows = [
                value.reshape(*value.shape[: value.dim() - ndims], -1)
                for value, ndims in events
            ]
            if len({row.shape[:-1] for row in rows}) > 1:
                return self._from_products(rows)
        folded, lead = fold(inputs, self.in_shapes)
        flat = [value.flatten(1) for value in folded]
        return unfold(self.layers(flat[0] if len(flat) == 1 else torch.cat(flat, -1)), lead)

    def _from_products(self, rows: Sequence[Tensor]) -> Tensor:
        """The last hidden layer from the products of the first layer with each input, which
        are then broadcast.
        """
        first, *others = self.layers.children()
        weights = cast(nn.Linear, first).weight.split([row.shape[-1] for row in rows], 1)
        products = [linear(row, weight) for row, weight in zip(rows, weights, strict=True)]
        hidden = functools.reduce(torch.add, products) + cast(nn.Linear, first).bias
        lead, hidden = hidden.shape[:-1], hidden.flatten(0, -2)
        for layer in others:
            hidden = layer(hidden)
        return unfold(hidden, lead)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary})"
