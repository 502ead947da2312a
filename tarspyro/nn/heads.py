"""Heads: the last layers of a network, one for each parameter of a family."""

__all__ = [
    "LazyHead",
    "bias_of",
    "make_head",
    "out_features",
    "scale_weights",
    "through_heads",
    "zero_weights",
]

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parameter import UninitializedParameter

from tarspyro.arguments import format_value
from tarspyro.nn.folding import ELEMENTWISE, event_shapes, fold, unfold
from tarspyro.nn.initialization import initialize


def _shown(value: object) -> str:
    """Returns a short description of a network's output."""
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(repr, value))}"
    return format_value(value)


def through_heads(
    trunk: nn.Module, heads: nn.ModuleDict, context: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Returns the output of every head, by its name.

    The trunk computes the features once, with the leading dimensions folded into the batch.
    """
    if len(context) > 1 and getattr(trunk, "broadcasts", False):
        (features,), lead = fold([trunk(*context)], [1])
    else:
        folded, lead = fold(context, event_shapes(trunk, context))
        features = trunk(*folded)
    if not isinstance(features, Tensor):
        raise TypeError(
            f"{type(trunk).__name__} returns {_shown(features)}, where the network of a"
            f" Conditional returns one tensor, its features: {_about_outputs(features)}."
        )
    # The networks may compute in half precision, but the densities may not.
    half = torch.is_autocast_enabled(features.device.type)
    outputs = {}
    for name, head in heads.items():
        output = unfold(head(features), lead)
        outputs[name] = output.float() if half else output
    return outputs


def _about_outputs(made: object) -> str:
    """A remedy for a network that returns something else than features."""
    if isinstance(made, Distribution):
        return (
            "it is a distribution already, so replace the Conditional by FromNetwork(network)"
        )
    if isinstance(made, Mapping):
        example = f"lambda {', '.join(map(str, made))}: ..."
        return f"let it return a tuple, and give it to FromNetwork(network, {example})"
    if isinstance(made, (tuple, list)):
        names = [f"output_{index}" for index in range(len(made))]
        names = ["loc", "log_variance"] if len(made) == 2 else names
        return (
            "leave its last layers out, or replace the Conditional by"
            f" FromNetwork(network, lambda {', '.join(names)}: ...)"
        )
    return "let it return a tensor"


def make_head(trunk: nn.Module, shape: torch.Size) -> nn.Module:
    """Returns a layer from the trunk's features to one parameter of this shape."""
    if hasattr(trunk, "head"):
        own: Callable[[tuple[int, ...]], nn.Module] = trunk.head  # type: ignore[assignment]
        return own(tuple(shape))
    layers: list[nn.Module] = []
    size = math.prod(shape)
    features = out_features(trunk)
    if features is None:
        # The number of features is known from the first call on.
        layers += [nn.Flatten(), LazyHead(size)]
    else:
        layers.append(initialize(nn.Linear(features, size)))
    if len(shape) != 1:
        layers.append(nn.Unflatten(1, tuple(shape)) if shape else nn.Flatten(0))
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


def zero_weights(head: nn.Module) -> None:
    """Sets the weights of a head to zero, so that it starts with the same output for every
    context.

    A scale is the exponential of a head's output. With random weights, the scales of different
    contexts differ by orders of magnitude at first: some rows have a likelihood that is far off,
    and chains of such distributions overflow.
    """
    for layer in head.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, LazyHead):
            layer.starts_at_zero = True
        elif isinstance(weight, nn.Parameter) and not isinstance(
            weight, UninitializedParameter
        ):
            nn.init.zeros_(weight)


def scale_weights(head: nn.Module, factor: float) -> None:
    """Multiplies the weights of a head's last layer."""
    layers = [layer for layer in head.modules() if isinstance(layer, _LINEAR)]
    if layers:
        with torch.no_grad():
            layers[-1].weight.mul_(factor)


def bias_of(head: nn.Module) -> Tensor | None:
    """Returns the bias of a head that is one linear layer or convolution, reshaped.

    Adding a number to an element of the bias adds it to an element of the output, or to a
    channel of a convolution. None for other heads, and for those without a bias.
    """
    linear = [layer for layer in head.modules() if isinstance(layer, _LINEAR)]
    others = [layer for layer in head.modules() if not isinstance(layer, (*_LINEAR, *_SHAPES))]
    return linear[0].bias if len(linear) == 1 and not others else None


_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SHAPES = (nn.Sequential, nn.Flatten, nn.Unflatten)


class LazyHead(nn.LazyLinear):
    """A linear head whose number of features is set by the first call."""

    starts_at_zero = False

    def reset_parameters(self) -> None:
        if self.has_uninitialized_params() or not self.in_features:
            return
        initialize(self)
        if self.starts_at_zero:
            nn.init.zeros_(self.weight)


def out_features(trunk: nn.Module) -> int | None:
    """Returns the number of a trunk's features; None if it is not known before a call."""
    if isinstance(trunk, nn.Sequential):
        for layer in reversed(trunk):
            # A gated linear unit is among the activations, but halves the number of features.
            if type(layer).__module__ not in ELEMENTWISE or isinstance(layer, nn.GLU):
                return out_features(layer)
        return None
    size = getattr(trunk, "out_features", None)
    return size if isinstance(size, int) else None
