"""Heads: the last layers of a network, one for each parameter of a family."""

__all__ = ["forget_features", "make_head", "through_heads"]

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tarspyro.nn.folding import ELEMENTWISE, event_shapes, fold, unfold
from tarspyro.nn.initialization import initialize


def through_heads(
    trunk: nn.Module, heads: nn.ModuleDict, context: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Computes the features once, with the leading dimensions folded into the batch, and every
    head's output.
    """
    if len(context) > 1 and getattr(trunk, "broadcasts", False):
        (features,), lead = fold([trunk(*context)], [1])
    else:
        folded, lead = fold(context, event_shapes(trunk, context))
        features = trunk(*folded)
    outputs = {name: unfold(head(features), lead) for name, head in heads.items()}
    if torch.is_autocast_enabled(next(iter(outputs.values())).device.type):
        # The networks may compute in half precision, the densities of what comes out of them
        # not.
        outputs = {name: output.float() for name, output in outputs.items()}
    return outputs


def make_head(trunk: nn.Module, shape: torch.Size) -> nn.Module:
    """Returns a layer from the trunk's features to one parameter of this shape."""
    if hasattr(trunk, "head"):
        own: Callable[[tuple[int, ...]], nn.Module] = trunk.head  # type: ignore[assignment]
        return initialize(own(tuple(shape)))
    size = math.prod(shape)
    features = _out_features(trunk)
    # Where the trunk does not tell its output size, the first call does.
    linear = _LazyHead(size) if features is None else initialize(nn.Linear(features, size))
    layers = [nn.Flatten(), linear] if features is None else [linear]
    if len(shape) != 1:
        layers.append(nn.Unflatten(1, tuple(shape)) if shape else nn.Flatten(0))
    return nn.Sequential(*layers) if len(layers) > 1 else linear


def forget_features(head: nn.Module) -> None:
    """Makes a head the same for all contexts to begin with.

    Exponentials of random features are scales apart by orders of magnitude: a likelihood's are
    then far off for some rows, and chains of such distributions leave the range of numbers.
    """
    for layer in head.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, _LazyHead):
            layer.forgets = True
        elif isinstance(weight, nn.Parameter) and not isinstance(
            weight, UninitializedParameter
        ):
            nn.init.zeros_(weight)


class _LazyHead(nn.LazyLinear):
    """A linear layer that starts as every head does, once the first call has told it the
    number of features.
    """

    forgets = False

    def reset_parameters(self) -> None:
        if self.has_uninitialized_params() or not self.in_features:
            return
        initialize(self)
        if self.forgets:
            nn.init.zeros_(self.weight)


def _out_features(trunk: nn.Module) -> int | None:
    if isinstance(trunk, nn.Sequential):
        # A gated linear unit is among the activations, and halves the number of features.
        kept = [
            type(layer).__module__ in ELEMENTWISE and not isinstance(layer, nn.GLU)
            for layer in trunk
        ]
        sizes = (
            _out_features(layer)
            for layer, keeps in zip(reversed(trunk), kept[::-1], strict=True)
            if not keeps
        )
        return next(sizes, None)
    size = getattr(trunk, "out_features", None)
    return size if isinstance(size, int) else None
