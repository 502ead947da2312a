"""Convolutional encoders and decoders for images of any size."""

__all__ = ["ConvDecoder", "ConvEncoder", "dimensions", "image_of", "pyramid"]

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_sizes
from tarspyro.modules import Configurable
from tarspyro.nn.folding import fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.nn.normalization import Normalization, check_layers, normalization_layer
from tarspyro.nn.residual import ResidualBlock


class ConvEncoder(Configurable):
    r"""A convolutional encoder: strided convolutions, each of which halves the image.

    It is the trunk of a ``Conditional`` given images. Inputs have shape :math:`(*, C, H, W)`
    (or flattened, :math:`(*, CHW)`), with any height and width; the output has shape
    :math:`(*, F)`. A layer is a convolution, a normalization and an activation; a stride of
    s divides height and width by s, rounded up if the kernel's size is odd.

    Arguments:
        in_shape: The shape of an image, channels first, such as ``(1, 28, 28)`` or ``(3, 32,
            48)``.
        channels: The number of channels of each layer.
        kernel_size: The size of the kernels, or one for each layer.
        stride: The stride, or one for each layer: ``stride=[2, 1, 2]`` keeps the size in the
            second layer, for networks of any depth.
        residual: The number of residual blocks after each layer, see ``ResidualBlock``.
        activation: The constructor of the activation.
        normalization: The normalization before each activation: ``"batch"``, ``"group"`` (of
            eight channels or more), ``"layer"`` (over channels and positions), or the
            constructor of a layer, such as ``nn.BatchNorm2d``.

    Raises:
        TypeError: If a size is not an integer, or ``activation`` or ``normalization`` makes no
            module.
        ValueError: If ``in_shape`` has no channel axis, the image is too small for the number
            of layers, or a kernel is so small beside its stride that it misses pixels.

    Example:
        >>> ConvEncoder((1, 28, 28), [32, 64])
        ConvEncoder(1x28x28 -> 32x14x14 -> 64x7x7, ReLU)
        >>> ConvEncoder((3, 5, 7), [8, 8, 16], stride=[1, 2, 2], residual=1)
        ConvEncoder(3x5x7 -> 8x5x7 -> 8x3x4 -> 16x2x2, ReLU, residual blocks 1)
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        *,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        residual: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Normalization = None,
    ) -> None:
        super().__init__()
        channels = as_sizes("channels", channels, at_least=1)
        windows = windows_of(kernel_size, stride, len(channels))
        sizes = pyramid("in_shape", in_shape, channels, windows)
        residual = as_count("residual", residual, 0)
        check_layers(activation, normalization)
        self.in_shapes = (sizes[0],)
        self.out_features = math.prod(sizes[-1])
        layers: list[nn.Module] = []
        for (size, *_), (next_size, *_), window in zip(
            sizes, sizes[1:], windows, strict=False
        ):
            layers.append(nn.Conv2d(size, next_size, *window, padding=window.padding))
            layers += normalization_layer(normalization, next_size)
            layers.append(activation())
            layers += _residual_blocks(residual, next_size, activation, normalization)
        self.layers = nn.Sequential(*layers, nn.Flatten())
        initialize(self.layers, activation())
        for layer in self.layers:
            if isinstance(layer, ResidualBlock):
                layer.reset_parameters(activation())
        self._summary = _summary(sizes, activation, residual)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the features of the last layer, flattened."""
        (image,), lead = fold([image], self.in_shapes)
        return unfold(self.layers(image), lead)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary})"


class ConvDecoder(Configurable):
    r"""A convolutional decoder: a linear layer and transposed convolutions.

    It mirrors ``ConvEncoder``: with the channels, kernels and strides of an encoder in reverse
    order, its maps have the sizes of the encoder's. The input has shape :math:`(*, F)`, the
    output :math:`(*, C_1, H, W)`, with any height and width. A ``Conditional`` of images, of
    shape :math:`(C, H, W)`, computes each parameter by a 3x3 convolution.

    Arguments:
        in_features: The size of the input; a list with one size for each of several inputs,
            such as a code and a one-hot label, which are concatenated.
        out_shape: The shape of an image, channels first, such as ``(1, 28, 28)`` or ``(3, 32,
            48)``.
        channels: The number of channels of each layer, from the smallest map to the largest.
        kernel_size: The size of the kernels, or one for each layer.
        stride: The stride, or one for each layer.
        residual: The number of residual blocks before each transposed convolution, see
            ``ResidualBlock``.
        activation: The constructor of the activation.
        normalization: The normalization before each activation, see ``ConvEncoder``.

    Raises:
        TypeError: If a size is not an integer, or ``activation`` or ``normalization`` makes no
            module.
        ValueError: If ``out_shape`` has no channel axis, the image is too small for the number
            of layers, or a kernel is so small beside its stride that it misses pixels.

    Example:
        >>> ConvDecoder(2, (1, 28, 28), [64, 32])
        ConvDecoder(2 -> 64x7x7 -> 32x14x14 -> 32x28x28, ReLU)
        >>> ConvDecoder(2, (3, 5, 7), [16, 8, 8], stride=[2, 2, 1])
        ConvDecoder(2 -> 16x2x2 -> 8x3x4 -> 8x5x7 -> 8x5x7, ReLU)
        >>> network = ConvDecoder([2, 10], (1, 28, 28))
        >>> network(torch.zeros(5, 2), torch.zeros(5, 10)).shape
        torch.Size([5, 32, 28, 28])
    """

    def __init__(
        self,
        in_features: int | list[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        residual: int = 0,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Normalization = None,
    ) -> None:
        super().__init__()
        channels = as_sizes("channels", channels, at_least=1)
        windows = windows_of(kernel_size, stride, len(channels))
        image, *maps = pyramid("out_shape", out_shape, channels[::-1], windows[::-1])
        inputs = in_features if isinstance(in_features, list) else [in_features]
        as_count("the number of in_features", len(inputs))
        self.in_shapes = tuple((as_count("in_features", size),) for size in inputs)
        size = sum(shape[0] for shape in self.in_shapes)
        residual = as_count("residual", residual, 0)
        check_layers(activation, normalization)
        sizes = [*maps[::-1], (channels[-1], *image[1:])]
        self.out_shape = image
        self.out_features = sizes[-1][0]
        layers: list[nn.Module] = [
            nn.Linear(size, math.prod(sizes[0])),
            nn.Unflatten(1, sizes[0]),
        ]
        for small, large, window in zip(sizes, sizes[1:], windows, strict=False):
            layers.append(activation())
            layers += _residual_blocks(residual, small[0], activation, normalization)
            convolution = nn.ConvTranspose2d(
                small[0],
                large[0],
                *window,
                padding=window.padding,
                output_padding=window.output_padding(small, large),
            )
            layers.append(convolution)
            layers += normalization_layer(normalization, large[0])
        self.layers = nn.Sequential(*layers, activation())
        self._summary = f"{size} -> {_summary(sizes, activation, residual)}"

    def forward(self, *codes: Tensor) -> Tensor:
        """Returns a map of features of the height and width of the image."""
        folded, lead = fold(codes, self.in_shapes)
        return unfold(self.layers(torch.cat(folded, 1)), lead)

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


class Window(NamedTuple):
    """The kernel and the stride of a layer, with a padding by which every pixel is seen."""

    kernel_size: int
    stride: int

    @property
    def padding(self) -> int:
        """The number of rows and columns of zeros on each side."""
        return (self.kernel_size - 1) // 2

    def reduced(self, size: int) -> int:
        """Returns the height or the width of the layer's output."""
        return (size + 2 * self.padding - self.kernel_size) // self.stride + 1

    def output_padding(self, small: Sequence[int], large: Sequence[int]) -> tuple[int, int]:
        """Returns what a transposed convolution of a map of shape ``small`` lacks to one of
        shape ``large``: the pixels that rounding has dropped.
        """
        _, height, width = small
        return large[1] - self._enlarged(height), large[2] - self._enlarged(width)

    def _enlarged(self, size: int) -> int:
        """Returns the least height or width that is reduced to ``size``."""
        return (size - 1) * self.stride - 2 * self.padding + self.kernel_size


# The window of a layer that halves the image.
_HALVING = Window(kernel_size=3, stride=2)


def windows_of(
    kernel_size: int | Sequence[int], stride: int | Sequence[int], num_layers: int
) -> list[Window]:
    """Returns the window of each layer.

    Raises:
        TypeError: If a size is not a whole number.
        ValueError: If there is not one for each layer, or a window misses pixels.
    """
    sizes = of_each_layer("kernel_size", kernel_size, num_layers)
    strides = of_each_layer("stride", stride, num_layers)
    windows = list(map(Window, sizes, strides))
    for size, step in windows:
        if size < 2 * step - 1:
            raise ValueError(
                f"kernel_size must be at least {2 * step - 1} for a stride of {step}, so that"
                f" every pixel is seen, got {size}."
            )
    return windows


def of_each_layer(name: str, value: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Returns one number for each layer.

    Raises:
        TypeError: If a number is not a whole number.
        ValueError: If there is not one for each layer.
    """
    if not isinstance(value, Iterable):
        return (as_count(name, value),) * num_layers
    numbers = as_sizes(name, value)
    if len(numbers) != num_layers:
        raise ValueError(
            f"{name} must be a number, or {num_layers} of them, one for each layer, got"
            f" {list(numbers)}."
        )
    return numbers


def pyramid(
    name: str,
    shape: Sequence[int],
    channels: Sequence[int],
    windows: Sequence[Window] | None = None,
) -> list[tuple[int, ...]]:
    """Returns the shapes of the maps; by default each layer halves the image, rounding up.

    ``name`` is the name of the image's shape in error messages.
    """
    sizes = [image_of(shape, name)]
    for channel, window in zip(channels, windows or [_HALVING] * len(channels), strict=True):
        _, height, width = sizes[-1]
        reduced = (window.reduced(height), window.reduced(width))
        if min(reduced) < 1 or (window.stride > 1 and max(height, width) < 2):
            raise ValueError(
                f"{name} must be an image that {len(channels)} layers can halve, got"
                f" {tuple(shape)}: give fewer channels."
            )
        sizes.append((channel, *reduced))
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


def _residual_blocks(
    count: int,
    channels: int,
    activation: Callable[[], nn.Module],
    normalization: Normalization,
) -> list[nn.Module]:
    """Returns a number of residual blocks."""
    return [
        ResidualBlock(channels, activation=activation, normalization=normalization)
        for _ in range(count)
    ]


def _summary(
    sizes: Sequence[Sequence[int]], activation: Callable[[], nn.Module], residual: int
) -> str:
    """Returns the layers of a network as text."""
    blocks = f", residual blocks {residual}" if residual else ""
    return f"{' -> '.join(map(dimensions, sizes))}, {type(activation()).__name__}{blocks}"
