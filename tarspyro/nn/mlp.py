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
from tarspyro.nn.normalization import normalization_layer


class MLP(Configurable):
    r"""A multilayer perceptron that ends in its last hidden layer: the trunk of a
    ``Conditional``.

    .. math:: h_0 = [x_1, x_2, \dots], \quad h_{i+1} = a(W_i h_i + b_i)

    The weights start as ``initialize`` draws them. Inputs have shapes :math:`(*, E_i)`; the
    output has shape :math:`(*, H)`, with any leading dimensions. Those of several inputs
    broadcast. The first layer is a sum over the inputs, and multiplies each of them before it
    broadcasts: an image that is paired with ten labels is multiplied once.

    Arguments:
        in_features: The size of the input; a tuple for an input with several dimensions, such
            as ``(1, 28, 28)``, or with none, ``()`` for a number; a list with one entry for
            each of several inputs, which are concatenated.
        hidden_features: The sizes of the layers, each followed by the activation. If the list
            is empty, the inputs are only concatenated, and a ``Conditional`` is linear.
        activation: The constructor of the activation.
        normalization: The constructor of a normalization before each activation, such as
            ``nn.BatchNorm1d``.
        dropout: The probability with which a hidden unit is dropped in training.

    Attributes:
        broadcasts: Tells a ``Conditional`` that several inputs may have different leading
            shapes.

    Raises:
        TypeError: If a size is not a whole number, or ``activation`` or ``normalization`` is
            not the constructor of a module.
        ValueError: If a size is below 1, or ``dropout`` is not a probability; when called, if
            an input does not end in its shape.

    Example:
        >>> MLP(784, [512, 512])
        MLP(784 -> 512 -> 512, ReLU)
        >>> network = MLP([(1, 28, 28), 10], [512])
        >>> network(torch.zeros(5, 100, 1, 28, 28), torch.zeros(100, 10)).shape
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
        self.out_features = sizes[-1]
        layers: list[nn.Module] = []
        for size, next_size in zip(sizes, sizes[1:], strict=False):
            layers.append(nn.Linear(size, next_size))
            if normalization is not None:
                check_constructor(
                    "normalization", normalization, "torch.nn.BatchNorm1d", next_size
                )
            layers += normalization_layer(normalization, next_size)
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        initialize(self.layers, activation())

        self._summary = " -> ".join(map(str, sizes))
        if hidden_features:
            self._summary += f", {type(activation()).__name__}"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the last hidden layer."""
        if len(inputs) == 1:
            (value,), lead = fold(inputs, self.in_shapes)
            flat = value.flatten(1) if self.in_shapes[0] else value.unsqueeze(1)
            return unfold(self.layers(flat), lead)
        rows = []
        for value, ndims in as_events(inputs, self.in_shapes):
            rows.append(value.flatten(-ndims) if ndims else value.unsqueeze(-1))
        lead = rows[0].shape[:-1]
        if any(row.shape[:-1] != lead for row in rows):
            if len(self.layers) > 0:
                return self._from_products(rows)
            rows, lead = fold(rows, [1] * len(rows))
        together = torch.cat(rows, -1)
        if len(lead) != 1:
            together = together.reshape(-1, together.shape[-1])
        return unfold(self.layers(together), lead)

    def _from_products(self, rows: Sequence[Tensor]) -> Tensor:
        """Returns the last hidden layer of inputs with different leading shapes.

        The first layer multiplies each input on its own, and the products broadcast.
        """
        layers = list(self.layers)
        first = cast(nn.Linear, layers[0])
        weights = first.weight.split([row.shape[-1] for row in rows], 1)
        products = [linear(row, weight) for row, weight in zip(rows, weights, strict=True)]
        hidden = functools.reduce(torch.add, products) + first.bias
        lead = hidden.shape[:-1]
        hidden = hidden.flatten(0, -2)
        for layer in layers[1:]:
            hidden = layer(hidden)
        return unfold(hidden, lead)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary})"
