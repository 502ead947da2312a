"""The U-Net, a network from an image to an image."""

__all__ = ["UNet"]

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_sizes, check_number
from tarspyro.modules import Configurable
from tarspyro.nn.conv import dimensions, pyramid
from tarspyro.nn.folding import fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.nn.normalization import Normalization, check_layers, normalization_layer


class UNet(Configurable):
    r"""The U-Net: an encoder and a decoder with skip connections, as the trunk of p(x | z, y).

    Strided convolutions reduce y to a small map, and transposed convolutions enlarge it again.
    Each map of the decoder is concatenated with the encoder's map of the same size, which keeps
    the edges of y in place. The code z is repeated at each position of the smallest map.

    Inputs are z of shape :math:`(*, F)` and an image y of shape :math:`(*, C, H, W)`; the
    output has shape :math:`(*, C_1 + C, H, W)`. A ``Conditional`` or ``Deterministic``
    computes an image from it by a 3x3 convolution.

    Arguments:
        in_features: The size of z.
        in_shape: The shape of y, channels first, such as ``(1, 28, 28)``.
        channels: The number of channels of each layer of the encoder; the decoder mirrors
            them.
        activation: The constructor of the activation.
        normalization: The normalization before each activation, see ``ConvEncoder``.
        dropout: The probability that a channel of the decoder is dropped in training.

    Raises:
        ValueError: If ``in_shape`` has no channel axis, or the image is too small for the
            number of layers.

    References:
        Ronneberger et al. (2015), U-Net, arXiv:1505.04597; Isola et al. (2017),
        arXiv:1611.07004, section 3.2.1.

    Example:
        >>> network = UNet(8, (1, 28, 28), [32, 64])
        >>> network(torch.zeros(5, 8), torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 33, 28, 28])
    """

    def __init__(
        self,
        in_features: int,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Normalization = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = as_sizes("channels", channels, at_least=1)
        sizes = pyramid("in_shape", in_shape, channels)
        in_features = as_count("in_features", in_features)
        check_layers(activation, normalization)
        check_number("dropout", dropout, 0, 1)
        self.in_shapes = ((in_features,), sizes[0])
        self.out_shape = sizes[0]
        self.out_features = channels[0] + sizes[0][0]

        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for (size, *_), (next_size, *_) in zip(sizes, sizes[1:], strict=False):
            down = nn.Conv2d(size, next_size, 3, stride=2, padding=1)
            self.down.append(_layer(down, activation, normalization))

        size_in = channels[-1] + in_features
        for (_, height, width), (size, next_height, next_width) in zip(
            sizes[:0:-1], sizes[-2::-1], strict=True
        ):
            size_out = channels[0] if len(self.up) == len(channels) - 1 else size
            # The output padding restores the last pixel of a map of odd size.
            padding = (next_height - 2 * height + 1, next_width - 2 * width + 1)
            up = nn.ConvTranspose2d(
                size_in, size_out, 3, stride=2, padding=1, output_padding=padding
            )
            self.up.append(_layer(up, activation, normalization, dropout))
            size_in = size_out + size
        self._summary = f"{in_features} and {' -> '.join(map(dimensions, sizes))} and back"

    def forward(self, z: Tensor, image: Tensor) -> Tensor:
        """Returns a map of features of the height and width of the image."""
        (z, image), lead = fold([z, image], self.in_shapes)
        maps = [image]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        smallest = maps.pop()
        code = z[..., None, None].expand(*z.shape, *smallest.shape[-2:])
        hidden = torch.cat([smallest, code], 1)
        for layer in self.up:
            hidden = torch.cat([layer(hidden), maps.pop()], 1)
        return unfold(hidden, lead)

    def head(self, shape: Sequence[int]) -> nn.Module:
        """Returns the layer that computes a parameter of the given shape."""
        channels, rest = divmod(math.prod(shape), math.prod(self.out_shape[1:]))
        if rest:
            raise ValueError(
                f"The U-Net gives maps of height and width {self.out_shape[1:]}, got a"
                f" parameter of shape {tuple(shape)}: give it whole channels of this size."
            )
        return nn.Sequential(
            initialize(nn.Conv2d(self.out_features, channels, 3, padding=1)),
            nn.Flatten(),
            nn.Unflatten(1, tuple(shape)),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary})"


def _layer(
    convolution: nn.Module,
    activation: Callable[[], nn.Module],
    normalization: Normalization,
    dropout: float = 0.0,
) -> nn.Module:
    layers = [initialize(convolution, activation())]
    size: int = convolution.out_channels  # type: ignore[assignment]
    layers += normalization_layer(normalization, size)
    layers.append(activation())
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)
