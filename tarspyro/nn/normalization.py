"""Normalization layers by name, and batch normalization that takes a batch of one value."""

__all__ = ["Normalization", "check_layers", "normalization_layer"]

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.functional import batch_norm

from tarspyro.arguments import check_constructor, format_value

# A normalization layer: the constructor that takes its number of channels, or its name.
Normalization: TypeAlias = Callable[[int], nn.Module] | str | None

# How many channels a group of group normalization has at least.
_CHANNELS_OF_GROUP = 8


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization that falls back to its running statistics.

    It does so in training where a batch has a single value for each channel, such as a last
    batch of one row. One value has no variance, and torch's own layers raise an error.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns the normalized batch."""
        if self.training and input.numel() == self.num_features:
            statistics = (self.running_mean, self.running_var)
            return batch_norm(input, *statistics, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Batch normalization of vectors, also of one."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Batch normalization of maps, also of a single map of one pixel."""


def _group_norm(channels: int) -> nn.Module:
    """Returns group normalization, with groups of eight channels or more."""
    most = max(1, channels // _CHANNELS_OF_GROUP)
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def _layer_norm(channels: int) -> nn.Module:
    """Returns normalization over all channels and positions of a data point."""
    return nn.GroupNorm(1, channels)


_NAMED: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm2d,
    "group": _group_norm,
    "layer": _layer_norm,
}
_ROBUST: dict[object, Callable[[int], nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
}


def normalization_layer(normalization: Normalization, channels: int) -> list[nn.Module]:
    """Returns the normalization layer of some channels in a list, which is empty for None.

    Arguments:
        normalization: The constructor of the layer, or for maps its name: ``"batch"``,
            ``"group"`` (groups of eight channels or more) or ``"layer"`` (over all channels
            and positions).
        channels: The number of channels.

    Raises:
        TypeError: If it is neither.

    Example:
        >>> [layer] = normalization_layer("group", 32)
        >>> layer.num_groups
        4
    """
    if normalization is None:
        return []
    if isinstance(normalization, str):
        return [_NAMED[normalization](channels)]
    return [_ROBUST.get(normalization, normalization)(channels)]


def check_layers(activation: Callable[[], nn.Module], normalization: Normalization) -> None:
    """Raises unless both make the layers of a convolutional network.

    Raises:
        TypeError: If ``activation`` is not the constructor of a module, or ``normalization``
            is neither one nor a name.
    """
    check_constructor("activation", activation, "torch.nn.ReLU")
    if isinstance(normalization, str) and normalization not in _NAMED:
        raise TypeError(
            f"normalization must be {', '.join(map(repr, _NAMED))} or the constructor of a"
            f" module, such as torch.nn.BatchNorm2d, got {format_value(normalization)}."
        )
    if normalization is not None and not isinstance(normalization, str):
        check_constructor("normalization", normalization, "torch.nn.BatchNorm2d", 1)
