"""The canvas of DRAW, and its convolutional parts."""

__all__ = ["Canvas", "ConvRead", "ConvWrite", "FeatureMap", "IdentityTrunk"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_shape, as_sizes, format_value
from tarspyro.modules import Configurable
from tarspyro.nn.conv import dimensions, image_of
from tarspyro.nn.folding import fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.nn.recurrent import Recurrence, State
from tarspyro.sharing import computed_once


class Canvas(Configurable):
    r"""The canvas of DRAW and the recurrent decoder that paints on it.

    .. math:: s_t = \mathrm{cell}(z_t, s_{t-1}), \qquad c_t = c_{t-1} + \mathrm{write}(h_t)

    The state is the pair of the cell's state s and the canvas c, both functions of the draws
    so far. Model and guide share one module. The initial canvas is learned. It is made as zeros,
    and ``fit`` starts it at the best constant canvas for the data, as
    ``tarspyro.initialize_from_data`` says.

    Arguments:
        cell: The decoder's recurrence.
        write: The module that computes what is added to the canvas from the decoder's hidden
            units, such as ``AttentionWrite``. Its attribute ``shape`` is the canvas's shape.
        view: Features of the canvas that the cell takes beside z, such as a strided
            convolution; by default the cell does not see the canvas.

    Raises:
        TypeError: If ``cell`` is not a ``Recurrence``, or ``write`` has no ``shape``.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eqs. 7 and 8; Gregor et al. (2016), Towards Conceptual Compression,
        arXiv:1604.08772, section 2.2, for ``view``.

    Example:
        >>> from tarspyro.nn import Write
        >>> canvas = Canvas(Recurrence(nn.LSTMCell(10, 32)), Write(32, (1, 8, 8)))
        >>> canvas
        Write(1x8x8) after LSTMCell(10, 32)
        >>> state = canvas(canvas.initial(5), torch.zeros(5, 10))
        >>> canvas.hidden(state).shape, canvas.painted(state).shape
        (torch.Size([5, 32]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self, cell: Recurrence, write: nn.Module, view: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not isinstance(cell, Recurrence):
            raise TypeError(
                "cell must be a Recurrence, such as Recurrence(torch.nn.LSTMCell(10, 32)),"
                f" got {format_value(cell)}."
            )
        shape = getattr(write, "shape", None)
        if shape is None:
            raise TypeError(
                "write must be a module with the attribute shape, the canvas's shape, such as"
                f" nn.Write, got {format_value(write)}."
            )
        self.cell = cell
        self.write = write
        self.view = view
        self.start = nn.Parameter(torch.zeros(as_sizes("write.shape", shape)))

    @computed_once
    def initial(self, batch_size: int) -> tuple[State, Tensor]:
        """Returns the state before the first step."""
        canvas = self.start.expand(batch_size, *self.start.shape)
        return self.cell.initial(batch_size), canvas

    def hidden(self, state: tuple[State, Tensor]) -> Tensor:
        """Returns the decoder's hidden units."""
        return self.cell.hidden(state[0])

    def painted(self, state: tuple[State, Tensor]) -> Tensor:
        """Returns the canvas."""
        return state[1]

    def boxes(self, state: tuple[State, Tensor]) -> Tensor | None:
        """Returns the window of the latest step, as ``AttentionWrite.boxes`` does.

        Without attention, it returns None.
        """
        boxes = getattr(self.write, "boxes", None)
        return None if boxes is None else boxes(self.hidden(state))

    @computed_once
    def forward(self, state: tuple[State, Tensor], *inputs: Tensor) -> tuple[State, Tensor]:
        """Returns the next state."""
        before, painted = state
        if self.view is not None:
            inputs = (*inputs, self.view(painted))
        after = self.cell(before, *inputs)
        return after, painted + self.write(self.cell.hidden(after))

    def __repr__(self) -> str:
        view = "" if self.view is None else f" that sees {self.view!r}"
        return f"{self.write!r} after {self.cell!r}{view}"


class FeatureMap(Configurable):
    r"""The channels of maps and vectors, concatenated to one map.

    It is the trunk of a ``Conditional`` over maps, or of a ``Recurrence``. A vector is repeated
    at each position. Inputs have shapes :math:`(*, C_i, H, W)` or :math:`(*, C_i)`, the output
    :math:`(*, \sum_i C_i, H, W)`. A ``Conditional`` computes each parameter by a convolution.

    Arguments:
        in_shapes: The shape of the map, such as ``(16, 7, 7)``; for several inputs a list with
            a shape or a size for each.
        kernel_size: The side of the convolutions' filters, an odd number.

    Raises:
        ValueError: If no input is a map, maps differ in height or width, or ``kernel_size`` is
            even.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> posterior = Conditional(dist.Normal, FeatureMap((16, 7, 7)), (4, 7, 7))
        >>> posterior(torch.zeros(5, 16, 7, 7)).event_shape
        torch.Size([4, 7, 7])
        >>> FeatureMap([(4, 7, 7), 10])(torch.zeros(5, 4, 7, 7), torch.zeros(5, 10)).shape
        torch.Size([5, 14, 7, 7])
    """

    def __init__(
        self, in_shapes: tuple[int, ...] | list[int | tuple[int, ...]], kernel_size: int = 3
    ) -> None:
        super().__init__()
        inputs = in_shapes if isinstance(in_shapes, list) else [in_shapes]
        self.in_shapes = tuple(tuple(as_shape("in_shapes", entry)) for entry in inputs)
        grids = {shape[1:] for shape in self.in_shapes if len(shape) == 3}
        if len(grids) != 1:
            raise ValueError(
                "in_shapes must have at least one map (channels, height, width), and all maps"
                f" the same height and width, got {in_shapes}."
            )
        if as_count("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd to keep the size of a map, got {kernel_size}."
            )
        self.out_shape = (sum(shape[0] for shape in self.in_shapes), *grids.pop())
        self.kernel_size = kernel_size

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the inputs as one map."""
        folded, lead = fold(inputs, self.in_shapes)
        grid = self.out_shape[1:]
        maps = []
        for value in folded:
            is_map = value.dim() == 4
            maps.append(value if is_map else value[..., None, None].expand(-1, -1, *grid))
        return unfold(torch.cat(maps, 1), lead)

    def head(self, shape: Sequence[int]) -> nn.Module:
        """Returns the convolution that computes a parameter of the given shape."""
        if tuple(shape[1:]) != self.out_shape[1:]:
            raise ValueError(
                f"FeatureMap({dimensions(self.out_shape)}) gives parameters of the same height"
                f" and width, got one of shape {tuple(shape)}."
            )
        return initialize(
            nn.Conv2d(
                self.out_shape[0], shape[0], self.kernel_size, padding=self.kernel_size // 2
            )
        )

    def __repr__(self) -> str:
        return f"FeatureMap({dimensions(self.out_shape)})"


class IdentityTrunk(Configurable):
    r"""The trunk of a ``Conditional`` whose one free parameter is the input itself.

    The input is a canvas of logits, for example. Unlike with ``torch.nn.Identity``, the
    ``Conditional`` has no linear layer either: there are no weights and no biases. The input
    has the shape :math:`(*, C, H, W)`; the parameter may have another shape of the same number
    of elements.

    Arguments:
        shape: The shape of the input, such as ``(1, 28, 28)``.

    Raises:
        ValueError: If a parameter has another number of elements.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> likelihood = Conditional(dist.Bernoulli, IdentityTrunk((1, 28, 28)), 784)
        >>> likelihood(torch.zeros(5, 1, 28, 28)).event_shape
        torch.Size([784])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shapes = (tuple(as_sizes("shape", shape)),)

    def forward(self, value: Tensor) -> Tensor:
        """Returns the input."""
        return value

    def head(self, shape: Sequence[int]) -> nn.Module:
        """Returns a layer without weights that gives the input the shape of a parameter."""
        if math.prod(shape) != math.prod(self.in_shapes[0]):
            raise ValueError(
                "The parameter must have as many elements as the input of IdentityTrunk, of"
                f" shape {self.in_shapes[0]}, got shape {tuple(shape)}."
            )
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, tuple(shape)))

    def __repr__(self) -> str:
        return f"IdentityTrunk({dimensions(self.in_shapes[0])})"


class ConvRead(Configurable):
    r"""Reads the whole image by one strided convolution.

    The convolution takes x and the error image :math:`\hat{x}`. Both have the shape
    :math:`(*, C, H, W)` (or flattened), the output :math:`(*, C', H / s, W / s)`. The decoder's
    hidden units, the third input of every reader, are not used.

    Arguments:
        shape: The shape of an image, channels first, such as ``(1, 28, 28)``.
        channels: The number of channels C' of the map.
        stride: s, a divisor of height and width.

    Raises:
        ValueError: If ``shape`` has no channel axis, or ``stride`` does not divide height and
            width.

    References:
        Gregor et al. (2016), Towards Conceptual Compression, arXiv:1604.08772, section 2.2.

    Example:
        >>> read = ConvRead((1, 28, 28), 16, stride=4)
        >>> read(torch.zeros(5, 784), torch.zeros(5, 784), torch.zeros(5, 32, 7, 7)).shape
        torch.Size([5, 16, 7, 7])
    """

    def __init__(self, shape: Sequence[int], channels: int, stride: int) -> None:
        super().__init__()
        self.shape = image_of(shape)
        channels = as_count("channels", channels)
        stride = as_count("stride", stride)
        if any(side % stride for side in self.shape[1:]):
            raise ValueError(
                "stride must divide height and width of the image, of shape"
                f" {self.shape}, got {stride}."
            )
        self.convolution = nn.Conv2d(
            2 * self.shape[0], channels, _side(stride), stride, (stride + 1) // 2
        )
        initialize(self.convolution)
        self.out_shape = (channels, shape[1] // stride, shape[2] // stride)

    def forward(self, x: Tensor, error: Tensor, hidden: Tensor) -> Tensor:
        """Returns the map."""
        images, lead = fold([x, error], [self.shape] * 2)
        return unfold(self.convolution(torch.cat(images, 1)), lead)

    def __repr__(self) -> str:
        return f"ConvRead({dimensions(self.shape)} -> {dimensions(self.out_shape)})"


class ConvWrite(Configurable):
    r"""Writes on the whole canvas by one transposed convolution.

    The input, the decoder's hidden maps, has the shape :math:`(*, C, H, W)`, the output
    :math:`(*, C', sH, sW)`.

    Arguments:
        in_shape: The shape of the hidden maps, such as ``(32, 7, 7)``.
        shape: The shape of the canvas, channels first, such as ``(1, 28, 28)``.

    Raises:
        ValueError: If a shape has no channel axis, or height and width of the canvas are not
            the same multiple s of those of the maps.

    References:
        Gregor et al. (2016), Towards Conceptual Compression, arXiv:1604.08772, section 2.2.

    Example:
        >>> ConvWrite((32, 7, 7), (1, 28, 28))(torch.zeros(5, 32, 7, 7)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(self, in_shape: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape = image_of(in_shape, "in_shape")
        self.shape = image_of(shape)
        stride = shape[1] // in_shape[1]
        if (stride * in_shape[1], stride * in_shape[2]) != tuple(shape[1:]):
            raise ValueError(
                "Height and width of shape must be the same multiple of those of in_shape, got"
                f" shape {tuple(shape)} and in_shape {tuple(in_shape)}."
            )
        self.convolution = nn.ConvTranspose2d(
            in_shape[0], shape[0], _side(stride), stride, (stride + 1) // 2
        )
        initialize(self.convolution)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the addition to the canvas."""
        (hidden,), lead = fold([hidden], [self.in_shape])
        return unfold(self.convolution(hidden), lead)

    def __repr__(self) -> str:
        return f"ConvWrite({dimensions(self.in_shape)} -> {dimensions(self.shape)})"


def _side(stride: int) -> int:
    """Returns the side of filters that overlap.

    With (stride + 1) // 2 as padding, the convolution divides the sides of a map exactly by the
    stride, and a transposed one multiplies them.
    """
    return stride + 2 * ((stride + 1) // 2)
