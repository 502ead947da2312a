"""Convolutional encoders and decoders for small images."""

__all__ = ["ConvDecoder", "ConvEncoder", "check_layers", "dimensions", "image_of", "pyramid"]

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tarspyro.arguments import as_count, as_sizes, check_constructor
from tarspyro.modules import Configurable
from tarspyro.nn.folding import fold, unfold
from tarspyro.nn.initialization import initialize


class ConvEncoder(Configurable):
    r"""A convolutional encoder: strided 3x3 convolutions, each of which halves the image.

    It is the trunk of a ``Conditional`` given images. Inputs have shape :math:`(*, C, H, W)`
    (or flattened, :math:`(*, CHW)`); the output has shape :math:`(*, F)`.

    Arguments:
        in_shape: The shape of an image, channels first, such as ``(1, 28, 28)`` or ``(1, 8,
            8)``.
        channels: The number of channels of each layer.
        activation: The constructor of the activation.
        normalization: The constructor of a normalization layer before each activation, such
            as ``nn.BatchNorm2d``.

    Raises:
        TypeError: If a size is not an integer, or ``activation`` or ``normalization`` is not
            a constructor of modules.
        ValueError: If ``in_shape`` has no channel axis, or the image is too small for the
            number of layers.

    Example:
        >>> ConvEncoder((1, 28, 28), [32, 64])
        ConvEncoder(1x28x28 -> 32x14x14 -> 64x7x7, ReLU)
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        sizes = pyramid("in_shape", in_shape, as_sizes("channels", channels, at_least=1))
        check_layers(activation, normalization)
        self.in_shapes = (sizes[0],)
        self.out_features = math.prod(sizes[-1])
        layers: list[nn.Module] = []
        for (size, *_), (next_size, *_) in zip(sizes, sizes[1:], strict=False):
            layers.append(nn.Conv2d(size, next_size, 3, stride=2, padding=1))
            if normalization is not None:
                layers.append(normalization(next_size))
            layers.append(activation())
        self.layers = initialize(nn.Sequential(*layers, nn.Flatten()), activation())
        self._summary = f"{' -> '.join(map(dimensions, sizes))}, {type(activation()).__name__}"

    def forward(self, image: Tensor) -> Tensor:
        """Returns the features of the last layer, flattened."""
        (image,), lead = fold([image], self.in_shapes)
        return unfold(self.layers(image), lead)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary})"


class ConvDecoder(Configurable):
    r"""A convolutional decoder: a linear layer and transposed convolutions.

    It mirrors ``ConvEncoder``. The input has shape :math:`(*, F)`, the output
    :math:`(*, C_1, H, W)`. A ``Conditional`` of images, of shape :math:`(C, H, W)`, computes
    each parameter by a 3x3 convolution.

    Arguments:
        in_features: The size of the input.
        out_shape: The shape of an image, channels first, such as ``(1, 28, 28)`` or ``(1, 8,
            8)``.
        channels: The number of channels of each layer, from the smallest map to the largest.
        activation: The constructor of the activation.
        normalization: The constructor of a normalization layer before each activation, such
            as ``nn.BatchNorm2d``.

    Raises:
        TypeError: If a size is not an integer, or ``activation`` or ``normalization`` is not
            a constructor of modules.
        ValueError: If ``out_shape`` has no channel axis, or the image is too small for the
            number of layers.

    Example:
        >>> ConvDecoder(2, (1, 28, 28), [64, 32])
        ConvDecoder(2 -> 64x7x7 -> 32x14x14 -> 32x28x28, ReLU)
    """

    def __init__(
        self,
        in_features: int,
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        channels = as_sizes("channels", channels, at_least=1)
        image, *maps = pyramid("out_shape", out_shape, channels[::-1])
        in_features = as_count("in_features", in_features)
        check_layers(activation, normalization)
        sizes = [*maps[::-1], (channels[-1], *image[1:])]
        self.in_shapes = ((in_features,),)
        self.out_shape = image
        self.out_features = sizes[-1][0]
        layers: list[nn.Module] = [
            nn.Linear(in_features, math.prod(sizes[0])),
            nn.Unflatten(1, sizes[0]),
        ]
        for (size, height, width), (next_size, next_height, next_width) in zip(
            sizes, sizes[1:], strict=False
        ):
            layers.append(activation())
            # The output padding restores the last pixel of a map of odd size.
            padding = (next_height - 2 * height + 1, next_width - 2 * width + 1)
            convolution = nn.ConvTranspose2d(
                size, next_size, 3, stride=2, padding=1, output_padding=padding
            )
            layers.append(convolution)
            if normalization is not None:
                layers.append(normalization(next_size))
        self.layers = initialize(nn.Sequential(*layers, activation()), activation())
        self._summary = (
            f"{in_features} -> {' -> '.join(map(dimensions, sizes))},"
            f" {type(activation()).__name__}"
        )

    def forward(self, code: Tensor) -> Tensor:
        """Returns a map of features of the height and width of the image."""
        (code,), lead = fold([code], self.in_shapes)
        return unfold(self.layers(code), lead)

    def head(self, shape: Sequence[int]) -> nn.Module:
        """Returns the layer that computes a parameter of the given shape."""
        channels, rest = divmod(math.prod(shape), math.prod(self.out_shape[1:]))
        if rest:
            raise ValueError(
                f"The decoder gives maps of height and width {self.out_shape[1:]}, got a"
                f" parameter of shape {tuple(shape)}: give it whole channels of this size."
            )
        return nn.Sequential(
            nn.Conv2d(self.out_features, channels, 3, padding=1),
            nn.Flatten(),
            nn.Unflatten(1, tuple(shape)),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary})"


def pyramid(name: str, shape: Sequence[int], channels: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns the shapes of the maps if each layer halves the image, rounding up.

    ``name`` is the name of the image's shape in error messages.
    """
    sizes = [image_of(shape, name)]
    for channel in channels:
        _, height, width = sizes[-1]
        if min(height, width) < 2:
            raise ValueError(
                f"{name} must be an image that {len(channels)} layers can halve, got"
                f" {tuple(shape)}: give fewer channels."
            )
        sizes.append((channel, (height + 1) // 2, (width + 1) // 2))
    return sizes


def image_of(shape: Sequence[int], name: str = "shape") -> tuple[int, ...]:
    """Returns the shape of an image, with its channels; ``name`` is the argument's."""
    sizes = as_sizes(name, shape)
    if len(sizes) != 3:
        raise ValueError(
            f"{name} must be the shape of an image, (channels, height, width), got {sizes}."
        )
    return sizes


def dimensions(shape: Sequence[int]) -> str:
    """Returns a shape as text, such as 1x28x28."""
    return "x".join(map(str, shape))


def check_layers(
    activation: Callable[[], nn.Module], normalization: Callable[[int], nn.Module] | None
) -> None:
    """Raises unless both are constructors of modules."""
    check_constructor("activation", activation, "torch.nn.ReLU")
    if normalization is not None:
        check_constructor("normalization", normalization, "torch.nn.BatchNorm2d", 1)
