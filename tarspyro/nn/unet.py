"""The U-Net: an image from an image, with shortcuts between maps of one size."""

__all__ = ["UNet"]

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, check_number
from tarspyro.modules import Configurable
from tarspyro.nn.conv import check_layers, pyramid
from tarspyro.nn.folding import fold, unfold
from tarspyro.nn.initialization import initialize


class UNet(Configurable):
    r"""Strided convolutions down to a small map and transposed ones up again, as the trunk of
    p(x given z, y).

    Every map of the way up is laid on top of the map of the same size on the way down, so that
    edges of y stay where they are. The code z is laid on the smallest map, the same at each of
    its places.

    Inputs are z of shape :math:`(*, F)` and an image y of shape :math:`(*, C, H, W)`; the
    output has shape
    :math:`(*, C_1 + C, H, W)`, from which a ``Conditional`` or ``Deterministic`` takes an
    image by a 3x3 convolution.

    Arguments:
        in_features: The size of z.
        in_shape: The shape of y, channels first, such as ``(1, 28, 28)``.
        channels: The number of channels of each layer on the way down, and of its mirror image
            on the way up.
        activation: The constructor of the activation.
        normalization: The constructor of a normalization before each activation, such as
            ``nn.BatchNorm2d``.
        dropout: The probability with which a map on the way up is dropped in training.

    Raises:
        ValueError: If ``in_shape`` has no channel axis, or the image is too small for so many
            layers.

    References:
        Ronneberger et al. (2015), U-Net, arXiv:1505.04597; Isola et al. (2017),
        arXiv:1611.07004, section 3.2.1.

    Example:
        >>> UNet(8, (1, 28, 28), [32, 64])(torch.zeros(5, 8), torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 33, 28, 28])
    """

    def __init__(
        self,
        in_features: int,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = pyramid("in_shape", in_shape, channels)
        in_features = as_count("in_features", in_features)
        check_layers(activation, normalization)
        check_number("dropout", dropout, 0, 1)
        self.in_shapes = ((in_features,), sizes[0])
        self.out_shape, self.out_features = sizes[0], channels[0] + sizes[0][0]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        size_in = channels[-1] + in_features
        for (size, *_), (next_size, *_) in zip(sizes, sizes[1:], strict=False):
            self.down.append(
                _layer(
                    nn.Conv2d(size, next_size, 3, stride=2, padding=1),
                    activation,
                    normalization,
                )
            )
        for (_, height, width), (size, next_height, next_width) in zip(
            sizes[:0:-1], sizes[-2::-1], strict=True
        ):
            size_out = channels[0] if len(self.up) == len(channels) - 1 else size
            # What a halved map of odd size lost is put back by the output padding.
            padding = (next_height - 2 * height + 1, next_width - 2 * width + 1)
            convolution = nn.ConvTranspose2d(
                size_in, size_out, 3, stride=2, padding=1, output_padding=padding
            )
            self.up.append(_layer(convolution, activation, normalization, dropout))
            size_in = size_out + size
        self._summary = (
            f"{in_features} and {' -> '.join('x'.join(map(str, size)) for size in sizes)} and"
            " back"
        )

    def forward(self, z: Tensor, image: Tensor) -> Tensor:
        """Returns the map of features on the image's grid."""
        (z, image), lead = fold([z, image], self.in_shapes)
        maps = [image]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        smallest = maps.pop()
        hidden = torch.cat(
            [smallest, z[..., None, None].expand(*z.shape, *smallest.shape[-2:])], 1
        )
        for layer in self.up:
            hidden = torch.cat([layer(hidden), maps.pop()], 1)
        return unfold(hidden, lead)

    def head(self, shape: Sequence[int]) -> nn.Module:
        """Returns the layer that takes a parameter of the given shape from the map of
        features.
        """
        channels, rest = divmod(math.prod(shape), math.prod(self.out_shape[1:]))
        if rest:
            raise ValueError(
                f"The U-Net draws images of shape {self.out_shape}, got a parameter of"
                f" {tuple(shape)}."
            )
        return nn.Sequential(
            nn.Conv2d(self.out_features, channels, 3, padding=1),
            nn.Flatten(),
            nn.Unflatten(1, tuple(shape)),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary})"


def _layer(
    convolution: nn.Module,
    activation: Callable[[], nn.Module],
    normalization: Callable[[int], nn.Module] | None,
    dropout: float = 0.0,
) -> nn.Module:
    layers = [initialize(convolution, activation())]
    if normalization is not None:
        size: int = convolution.out_channels  # type: ignore[assignment]
        layers.append(normalization(size))
    layers.append(activation())
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)
