"""Leading dimensions (particles, plates, time) folded into the batch around networks of fixed
rank.
"""

__all__ = ["ELEMENTWISE", "as_events", "event_ndims", "event_shapes", "fold", "unfold"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from tarspyro.arguments import check_module, format_value

# The modules of torch whose layers keep every shape, and the number of features.
ELEMENTWISE = ("torch.nn.modules.activation", "torch.nn.modules.dropout")

# What one data point looks like to the first layer of a network: its number of dimensions.
_NDIMS: tuple[tuple[type | tuple[type, ...], int], ...] = (
    (nn.modules.conv._ConvNd, -1),  # as many as the kernel has, and the channels
    (nn.modules.batchnorm.BatchNorm1d, 1),
    (nn.modules.batchnorm.BatchNorm2d, 3),
    ((nn.Linear, nn.Bilinear, nn.RNNCellBase), 1),
    (nn.Embedding, 0),
)


def event_ndims(network: nn.Module) -> int | None:
    """The number of dimensions that one data point has for the network, from its first layer.

    Returns None where the first layer takes inputs of any rank, or is of an unknown kind.

    Example:
        >>> event_ndims(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten()))
        3
    """
    check_module("network", network)
    for layer in network.modules():
        shapes = getattr(layer, "in_shapes", None)
        if shapes is not None:
            return len(shapes[0])
        if next(layer.children(), None) is not None or type(layer).__module__ in ELEMENTWISE:
            continue
        for kinds, ndims in _NDIMS:
            if isinstance(layer, kinds):
                kernel: Any = (
                    layer.kernel_size if ndims < 0 else ()
                )  # lazy layers have no weight yet
                return len(kernel) + 1 if ndims < 0 else ndims
        return None
    return None


def event_shapes(
    network: nn.Module, inputs: Sequence[Tensor]
) -> Sequence[Sequence[int] | int]:
    """What one data point is in each of the network's inputs: its shape, or its number of
    dimensions.

    A network that does not tell takes its first input as it comes, with one dimension for the
    batch.
    """
    shapes: Sequence[Sequence[int] | int] | None = getattr(network, "in_shapes", None)
    if shapes is None:
        ndims = event_ndims(network)
        shapes = [inputs[0].dim() - 1 if ndims is None else ndims] + [1] * (len(inputs) - 1)
    return shapes


def fold(
    inputs: Sequence[Tensor], shapes: Sequence[Sequence[int] | int]
) -> tuple[list[Tensor], Size]:
    r"""Folds the leading dimensions of the inputs into one batch dimension.

    Arguments:
        inputs: Tensors of shapes :math:`(*B_i, *E_i)`, where the leading shapes :math:`B_i`
            broadcast.
        shapes: For each input the event shape :math:`E_i`, or its number of dimensions. An
            input that is the flattened event is accepted where the shape is given.

    Returns:
        The inputs with shapes :math:`(N, *E_i)`, and the leading shape :math:`B` with
        :math:`N` elements.

    Raises:
        TypeError: If an input is no tensor.
        ValueError: If an input does not end in its event shape, or is of integers where the
            shape is not ``()``, or leading shapes do not broadcast.

    Example:
        >>> (flat,), lead = fold([torch.zeros(5, 100, 784)], [(1, 28, 28)])
        >>> flat.shape, lead
        (torch.Size([500, 1, 28, 28]), torch.Size([5, 100]))
    """
    events = as_events(inputs, shapes)
    leads = [value.shape[: value.dim() - ndims] for value, ndims in events]
    try:
        lead = leads[0] if len(leads) == 1 else torch.broadcast_shapes(*leads)
    except RuntimeError:
        shapes = [tuple(value.shape) for value in inputs]
        raise ValueError(
            f"The leading dimensions of the network's inputs do not broadcast, got {shapes}."
        ) from None
    if all(len(own) == 1 and own == lead for own in leads):
        return [value for value, _ in events], lead
    return [
        value.expand(lead + value.shape[value.dim() - ndims :]).reshape(
            (-1,) + value.shape[value.dim() - ndims :]
        )
        for value, ndims in events
    ], lead


def unfold(output: Tensor, lead: Size) -> Tensor:
    """Gives back the leading dimensions that ``fold`` took."""
    return output if len(lead) == 1 else output.reshape(lead + output.shape[1:])


def as_events(
    inputs: Sequence[Tensor], shapes: Sequence[Sequence[int] | int]
) -> list[tuple[Tensor, int]]:
    """Checks that each input ends in its event shape; returns it with the number of dimensions
    that this has.
    """
    if len(inputs) != len(shapes):
        raise ValueError(f"The network takes {len(shapes)} input(s), got {len(inputs)}.")
    for value in inputs:
        if not torch.is_tensor(value):
            raise TypeError(
                f"The network takes tensors, got {format_value(value)}: make one of it,"
                " torch.as_tensor(...)."
            )
    return [_as_event(value, shape) for value, shape in zip(inputs, shapes, strict=True)]


def _as_event(value: Tensor, shape: Sequence[int] | int) -> tuple[Tensor, int]:
    if isinstance(shape, int):
        if value.dim() < shape:
            raise ValueError(
                f"The network takes inputs of {shape} dimensions or more, got shape"
                f" {tuple(value.shape)}."
            )
        return value, shape
    shape = tuple(shape)
    if shape and not (value.is_floating_point() or value.is_complex()):
        # Of labels it cannot be told whether (10,) are ten of them, or one vector of ten
        # numbers.
        raise ValueError(
            f"The network takes inputs of shape (*, {', '.join(map(str, shape))}) in floating"
            f" point, got {value.dtype} of shape {tuple(value.shape)}: give labels as one-hot"
            " vectors, such as data.Split(x, y).one_hot()."
        )
    if value.shape[value.dim() - len(shape) :] == shape:
        return value, len(shape)
    if value.dim() > 0 and value.shape[-1] == math.prod(shape):
        return value.reshape(value.shape[:-1] + shape), len(shape)
    flat = f" or (*, {math.prod(shape)})" if len(shape) > 1 else ""
    expected = f"(*, {', '.join(map(str, shape))})"
    raise ValueError(
        f"The network takes inputs of shape {expected}{flat}, got {tuple(value.shape)}."
    )
