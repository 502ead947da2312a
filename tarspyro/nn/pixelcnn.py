"""The PixelCNN: convolutions that see the pixels above and to the left alone."""

__all__ = ["PixelCNN"]

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Size, Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from tarspyro.arguments import as_count, as_shape, format_value
from tarspyro.nn.causal import CausalTrunk, HeadWalk, MaskedLinear, Walk
from tarspyro.nn.conv import dimensions, of_each_layer
from tarspyro.nn.initialization import initialize


class PixelCNN(CausalTrunk):
    r"""A convolutional network whose features at a pixel see the pixels before it alone.

    It is the trunk of an ``Autoregressive`` over images. Pixels come row by row, from the
    left; the channels of a pixel one after another. Two stacks leave no blind spot: the
    vertical one sees all rows above, and the horizontal one the pixels to the left and the
    vertical one. A layer of both is, with the activation a and the context c,

    .. math:: u = W_v * v + U_v c, \quad v' = v + a(u), \qquad
              h' = h + P \, a(W_h * h + L u + U_h c)

    Inputs have shape :math:`(*, C, H, W)`, or :math:`(*, H, W)` for one channel.

    Arguments:
        in_shape: The shape of an image, such as ``(1, 28, 28)`` or ``(28, 28)``.
        channels: The number of channels of a layer.
        num_layers: The number of layers.
        kernel_size: The side of the window of a layer, of which the half that comes before is
            seen; an odd number, or one for each layer. A large first window costs little, since
            an image has few channels. Few layers of small windows see a small neighbourhood:
            they leave the rest of the image to the context.
        gated: Whether the activation is :math:`\tanh(s) \, \sigma(t)` of twice as many
            channels, instead of a rectifier.
        channel_order: Whether a channel sees those before it in the same pixel. Otherwise
            they are independent given the pixels before.
        context: The context, if there is one: a network to vectors or to maps of the height
            and width of the image, such as an ``MLP`` or a ``ConvDecoder``; the size of a
            vector; or the shape of a map.
        num_classes: The number of classes, if x holds the indices of classes.

    Raises:
        TypeError: If a size is not a whole number.
        ValueError: If ``in_shape`` is not the shape of an image, ``kernel_size`` is even, or
            there is not one for each layer.

    References:
        Van den Oord et al. (2016), Pixel Recurrent Neural Networks, arXiv:1601.06759; Van den
        Oord et al. (2016), Conditional Image Generation with PixelCNN Decoders,
        arXiv:1606.05328, eq. 2 to 5 and figure 2.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Autoregressive
        >>> p = Autoregressive(dist.Bernoulli, PixelCNN((1, 8, 8), 16, 3), (1, 8, 8))
        >>> p
        Bernoulli(logits) of shape (1, 8, 8) from PixelCNN(1x8x8, 3 layers of 16 channels)
        >>> p.sample(sample_shape=5).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: int = 16,
        num_layers: int = 5,
        *,
        kernel_size: int | Sequence[int] = 3,
        gated: bool = False,
        channel_order: bool = True,
        context: int | Sequence[int] | nn.Module | None = None,
        num_classes: int | None = None,
    ) -> None:
        shape = as_shape("in_shape", in_shape)
        if len(shape) not in (2, 3):
            raise ValueError(
                "in_shape must be the shape of an image, (channels, height, width) or (height,"
                f" width), got {format_value(in_shape)}."
            )
        super().__init__(shape, num_classes, context)
        self.image = tuple(shape) if len(shape) == 3 else (1, *shape)
        self.gated = gated
        count = as_count("num_layers", num_layers)
        width = as_count("channels", channels)
        windows = of_each_layer("kernel_size", kernel_size, count)
        if any(window % 2 == 0 for window in windows):
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")

        colours, height, columns = self.image
        groups = colours if channel_order else 1
        pixels = torch.arange(height * columns).reshape(height, columns) * groups
        within = (
            torch.arange(colours) if channel_order else torch.zeros_like(torch.arange(colours))
        )
        order = pixels + within.reshape(-1, 1, 1)
        self.register_buffer("order", order.reshape(shape), persistent=False)

        given = None if self.context is None else self.context.out_features
        sizes = [colours * self.depth, *[width] * count]
        self.blocks = nn.ModuleList()
        for size, next_size, window in zip(sizes, sizes[1:], windows, strict=False):
            self.blocks.append(_Block(size, next_size, window, gated, given))

        # The last layer sees the pixel's own channels too, each of its units those before its
        # degree.
        self.steps = groups
        self.degrees = torch.arange(groups).repeat_interleave(width).unsqueeze(0)
        self.out_features = self.degrees.shape[1]
        self.mix = nn.Conv2d(width, self.out_features, 1)
        initialize(self.mix, nn.ReLU())
        self.own: MaskedLinear | None = None
        if groups > 1:
            seen = (torch.arange(groups) + 1).repeat_interleave(self.depth).unsqueeze(0)
            self.own = MaskedLinear(seen, self.degrees)
        self._summary = f"{dimensions(shape)}, {count} {'gated ' if gated else ''}layers of"
        self._summary += f" {width} channels"

    def features(self, x: Tensor, given: Tensor | None, mask: int | Tensor) -> Tensor:
        """Returns the maps of the last layer."""
        image = self._as_maps(x)
        # The vertical stack sees the rows above, the horizontal one what is to the left.
        vertical = pad(image, (0, 0, 1, -1))
        horizontal = pad(image, (1, -1))
        given = _as_map(given)
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, given)
        mixed: Tensor = self.mix(torch.relu(horizontal))
        if self.own is not None:
            weight = self.own.masked_weight()[..., None, None]
            mixed = mixed + conv2d(image, weight, self.own.bias)
        return torch.relu(mixed)

    def walk(self, count: int, given: Tensor | None, mask: int) -> Walk:
        """Returns a function that computes the features of one pixel, and at the beginning of
        a row the vertical stack of this row.
        """
        colours, height, width = self.image
        steps = self.steps
        given = _as_map(given)
        blocks = cast("list[_Block]", list(self.blocks))
        rows = [_Rows(block, count, self.image[1:], given) for block in blocks]
        weight = self.mix.weight.flatten(1)
        own = None if self.own is None else self.own.masked_weight()
        before = torch.empty(0)

        def step_of(x: Tensor, step: int) -> Tensor:
            nonlocal before
            place, channel = divmod(step, steps)
            i, j = divmod(place, width)
            image = x.reshape(count, colours, height, width)
            if channel == 0:
                if j == 0:
                    values = self._row_above(image, i)
                    for row in rows:
                        values = row.start(i, values)
                value = self._pixel_before(image, i, j)
                for row in rows:
                    value = row.step(j, value)
                before = linear(torch.relu(value), weight, self.mix.bias)
            if own is None:
                return torch.relu(before)
            assert self.own is not None
            seen = self.encoded(image[:, :, i, j]).flatten(1)
            return torch.relu(before + linear(seen, own, self.own.bias))

        return step_of

    def _row_above(self, image: Tensor, i: int) -> Tensor:
        """Returns the inputs of the row above, (N, channels, 1, W), which are zero for the
        first.
        """
        values = self._as_maps(image[:, :, max(0, i - 1) : max(1, i)])
        return values if i else torch.zeros_like(values)

    def _pixel_before(self, image: Tensor, i: int, j: int) -> Tensor:
        """Returns the inputs of the pixel to the left, (N, channels), likewise."""
        values = self.encoded(image[:, :, i, max(0, j - 1)]).flatten(1)
        return values if j else torch.zeros_like(values)

    def causal_head(self, positions: Size, trailing: Size) -> nn.Module:
        """Returns a convolution of single pixels."""
        if math.prod(positions) != math.prod(self.image):
            raise ValueError(
                f"PixelCNN draws the elements of {self.image} one by one, and not vectors of"
                " them: take a family of single numbers or of classes, such as Categorical."
            )
        return _PixelHead(self.degrees, self.image[0], positions, trailing)

    def _as_maps(self, x: Tensor) -> Tensor:
        """Returns images (N, C, H, W) with one-hot vectors of classes as channels."""
        image = x.reshape(len(x), self.image[0], -1, self.image[2])
        if self.num_classes is None:
            return image
        return self.encoded(image).movedim(-1, 2).flatten(1, 2)


class _Block(nn.Module):
    """A layer of the vertical and of the horizontal stack."""

    def __init__(
        self, size: int, next_size: int, kernel_size: int, gated: bool, given: int | None
    ) -> None:
        super().__init__()
        self.gated = gated
        self.residual = size == next_size
        self.reach = kernel_size // 2
        inner = 2 * next_size if gated else next_size
        # The windows end at the pixel itself: the inputs were shifted by one.
        self.vertical = nn.Conv2d(
            size, inner, (self.reach + 1, kernel_size), padding=(self.reach, self.reach)
        )
        self.horizontal = nn.Conv2d(size, inner, (1, self.reach + 1), padding=(0, self.reach))
        self.link = nn.Conv2d(inner, inner, 1)
        self.out = nn.Conv2d(next_size, next_size, 1)
        for layer in (self.vertical, self.horizontal, self.link):
            initialize(layer, None if gated else nn.ReLU())
        initialize(self.out)
        self.given = None if given is None else nn.Conv2d(given, 2 * inner, 1, bias=False)
        if self.given is not None:
            initialize(self.given)

    def forward(
        self, vertical: Tensor, horizontal: Tensor, given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the maps of the next layer of both stacks."""
        height, width = horizontal.shape[2:]
        above = self.vertical(vertical)[:, :, :height]
        left = self.horizontal(horizontal)[..., :width]
        if self.given is not None:
            parts = self.given(given).chunk(2, 1)
            above = above + parts[0]
            left = left + parts[1]
        after = self.activate(above)
        aside = self.out(self.activate(left + self.link(above)))
        if self.residual:
            return vertical + after, horizontal + aside
        return after, aside

    def activate(self, value: Tensor) -> Tensor:
        """Returns the activation, of half as many channels if it is gated."""
        if not self.gated:
            return torch.relu(value)
        signal, gate = value.chunk(2, 1)
        return signal.tanh() * gate.sigmoid()


class _Rows:
    """A layer of both stacks, for images that grow pixel by pixel.

    Arguments:
        block: The layer.
        count: The number of images.
        size: Their height and width.
        given: The features of the context, as a map; None without one.
    """

    def __init__(
        self, block: _Block, count: int, size: Sequence[int], given: Tensor | None
    ) -> None:
        height, width = size
        half = block.reach
        channels = block.vertical.in_channels
        weight = block.vertical.weight
        self.block = block
        self.given: list[Tensor] = []
        if block.given is not None:
            for part in block.given(given).chunk(2, 1):
                self.given.append(part.expand(-1, -1, height, width))
        # All rows with a margin above and on both sides; one row with a margin on the left.
        self.above = weight.new_zeros(count, channels, height + half, width + 2 * half)
        self.left = weight.new_zeros(count, channels, width + half)
        self.across = block.horizontal.weight.flatten(1)
        self.out = block.out.weight.flatten(1)
        self.links = weight.new_empty(0)

    def start(self, i: int, values: Tensor) -> Tensor:
        """Takes the row i of the vertical stack; returns that of the next layer."""
        block = self.block
        half = block.reach
        width = values.shape[-1]
        self.above[:, :, half + i, half : half + width] = values[:, :, 0]
        window = self.above[:, :, i : i + half + 1]
        above = conv2d(window, block.vertical.weight, block.vertical.bias)
        if self.given:
            above = above + self.given[0][:, :, i : i + 1]
        self.links = block.link(above)[:, :, 0]
        if block.horizontal.bias is not None:
            self.links = self.links + block.horizontal.bias.unsqueeze(-1)
        if self.given:
            self.links = self.links + self.given[1][:, :, i]
        after = block.activate(above)
        return values + after if block.residual else after

    def step(self, j: int, value: Tensor) -> Tensor:
        """Takes the pixel j of the horizontal stack; returns that of the next layer."""
        block = self.block
        self.left[:, :, block.reach + j] = value
        window = self.left[:, :, j : j + block.reach + 1].flatten(1)
        left = linear(window, self.across) + self.links[:, :, j]
        aside = linear(block.activate(left), self.out, block.out.bias)
        return value + aside if block.residual else aside


class _PixelHead(MaskedLinear):
    """A masked layer from the features of a pixel to a parameter of each of its channels."""

    def __init__(self, degrees: Tensor, colours: int, positions: Size, trailing: Size) -> None:
        size = math.prod(trailing)
        sees = torch.arange(colours).clamp(max=int(degrees.max()))
        super().__init__(degrees, sees.repeat_interleave(size).unsqueeze(0))
        self.colours = colours
        self.steps = int(degrees.max()) + 1
        self.out_shape = (*positions, *trailing)
        self.trailing = tuple(trailing)

    def forward(self, features: Tensor, mask: int | Tensor = 0) -> Tensor:
        """Returns the parameter of each channel of each pixel."""
        maps = conv2d(features, self.masked_weight(mask)[..., None, None], self.bias)
        by_channel: Tensor = maps.unflatten(1, (self.colours, -1)).movedim(2, -1)
        return by_channel.reshape(len(features), *self.out_shape)

    def start(self, mask: int = 0) -> HeadWalk:
        """Returns a function to the parameters of a step's channels alone."""
        weight = self.masked_weight(mask).unflatten(0, (self.steps, -1))
        bias = self.bias.unflatten(0, (self.steps, -1))

        def step_of(features: Tensor, step: int) -> Tensor:
            channel = step % self.steps
            rows = linear(features, weight[channel], bias[channel])
            return rows.reshape(len(features), -1, *self.trailing)

        return step_of


def _as_map(given: Tensor | None) -> Tensor | None:
    """Returns a vector as a map of one pixel, which broadcasts over the image."""
    if given is None or given.dim() == 4:
        return given
    return given[..., None, None]
