"""Canvases that recurrent cells paint on, and the maps of features that convolutions take for
it.
"""

__all__ = ["Canvas", "ConvRead", "ConvWrite", "FeatureMap", "Unchanged"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count, as_shape, as_sizes, format_value
from tarspyro.modules import Configurable
from tarspyro.nn.conv import dimensions, image_of
from tarspyro.nn.folding import fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.nn.recurrent import Recurrence


class Canvas(Configurable):
    r"""A canvas that a recurrent cell paints on, step by step: the state of DRAW, one module
    for both halves of a pair.

    .. math:: s_t = \mathrm{cell}(z_t, s_{t-1}), \qquad c_t = c_{t-1} + \mathrm{write}(h_t)

    The state is that of the cell and the canvas, both functions of the draws so far. The first
    canvas is learned, and starts at zero.

    Arguments:
        cell: The decoder's recurrence.
        write: What the decoder adds to the canvas, from its hidden units, such as
            ``AttentionWrite``: a module with the attribute ``shape``, that of a canvas.
        view: What the cell sees of the canvas beside z, such as a strided convolution; nothing
            if not given.

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
        shape: Any = getattr(write, "shape", None)
        if shape is None:
            raise TypeError(
                "write must be a module with the shape of a canvas, such as nn.Write, got"
                f" {format_value(write)}."
            )
        self.cell, self.write, self.view = cell, write, view
        self.start = nn.Parameter(torch.zeros(as_sizes("write.shape", shape)))

    def initial(self, batch_size: int) -> tuple[Any, Tensor]:
        """Returns the state before the first step."""
        return self.cell.initial(batch_size), self.start.expand(batch_size, *self.start.shape)

    def hidden(self, state: tuple[Any, Tensor]) -> Tensor:
        """Returns the decoder's hidden units."""
        return self.cell.hidden(state[0])

    def painted(self, state: tuple[Any, Tensor]) -> Tensor:
        """Returns the canvas."""
        return state[1]

    def boxes(self, state: tuple[Any, Tensor]) -> Tensor | None:
        """Returns where the step before has written, as ``AttentionWrite.boxes`` does; None
        without attention.
        """
        boxes: Any = getattr(self.write, "boxes", None)
        return None if boxes is None else boxes(self.hidden(state))

    def forward(self, state: tuple[Any, Tensor], *inputs: Tensor) -> tuple[Any, Tensor]:
        """Returns the next state."""
        before, painted = state
        after = self.cell(
            before, *inputs, *([] if self.view is None else [self.view(painted)])
        )
        return after, painted + self.write(self.cell.hidden(after))

    def __repr__(self) -> str:
        view = "" if self.view is None else f" that sees {self.view!r}"
        return f"{self.write!r} after {self.cell!r}{view}"


class FeatureMap(Configurable):
    r"""Maps and vectors laid over each other, as the trunk of a ``Conditional`` over maps or
    of a ``Recurrence``.

    A vector is the same at each place of the grid. Inputs have shapes :math:`(*, C_i, H, W)`
    or :math:`(*, C_i)`, the output :math:`(*, \sum_i C_i, H, W)`, of which each parameter of a
    ``Conditional`` is a convolution.

    Arguments:
        in_shapes: The shape of the map, such as ``(16, 7, 7)``; a list with one entry, a shape
            or a size, for each of several inputs.
        kernel_size: The side of the convolutions' filters, an odd number.

    Raises:
        ValueError: If no input is a map or the maps differ in size, or ``kernel_size`` is
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
                "in_shapes must have maps (channels, height, width) of one size, got"
                f" {in_shapes}."
            )
        if as_count("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, so that a map keeps its size, got {kernel_size}."
            )
        self.out_shape = (sum(shape[0] for shape in self.in_shapes), *grids.pop())
        self.kernel_size = kernel_size

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the inputs as one map."""
        folded, lead = fold(inputs, self.in_shapes)
        grid = self.out_shape[1:]
        maps = [
            value if value.dim() == 4 else value[..., None, None].expand(*value.shape, *grid)
            for value in folded
        ]
        return unfold(torch.cat(maps, 1), lead)

    def head(self, shape: Sequence[int]) -> nn.Module:
        """Returns the convolution that takes a parameter of the given shape from the map."""
        if tuple(shape[1:]) != self.out_shape[1:]:
            raise ValueError(
                f"The map has the shape {self.out_shape}, got a parameter of {tuple(shape)}."
            )
        return nn.Conv2d(
            self.out_shape[0], shape[0], self.kernel_size, padding=self.kernel_size // 2
        )

    def __repr__(self) -> str:
        return f"FeatureMap({dimensions(self.out_shape)})"


class Unchanged(Configurable):
    """The trunk of a ``Conditional`` whose one free parameter is what comes in, such as a
    canvas: no weights, no bias.

    The input has the shape :math:`(*, C, H, W)`; a parameter may have the same or another
    shape of as many numbers.

    Arguments:
        shape: The shape of the input.

    Raises:
        ValueError: If a parameter has more or fewer numbers.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> Conditional(dist.Bernoulli, Unchanged((1, 28, 28)), 784)(torch.zeros(5, 1, 28, 28)).event_shape
        torch.Size([784])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shapes = (tuple(as_sizes("shape", shape)),)

    def forward(self, value: Tensor) -> Tensor:
        """Returns the input."""
        return value

    def head(self, shape: Sequence[int]) -> nn.Module:
        """Returns what gives the input the shape of a parameter."""
        if math.prod(shape) != math.prod(self.in_shapes[0]):
            raise ValueError(
                f"The input of shape {self.in_shapes[0]} is no parameter of shape"
                f" {tuple(shape)}."
            )
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, tuple(shape)))

    def __repr__(self) -> str:
        return f"Unchanged({dimensions(self.in_shapes[0])})"


class ConvRead(Configurable):
    r"""Reads the whole image by one strided convolution of x and the error image
    :math:`\hat{x}`, as a map.

    Both inputs have the shape :math:`(*, C, H, W)` (or flattened), the output :math:`(*, C', H
    / s, W / s)`. What reads is called with the decoder's hidden units too; this does not look
    at them.

    Arguments:
        shape: The shape of an image, channels first, such as ``(1, 28, 28)``.
        channels: The number of channels C' of the map.
        stride: s, which divides height and width.

    Raises:
        ValueError: If ``shape`` has no channel axis, or the stride does not divide its sides.

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
        channels, stride = as_count("channels", channels), as_count("stride", stride)
        if any(side % stride for side in self.shape[1:]):
            raise ValueError(
                f"stride must divide the sides of an image of shape {self.shape}, got"
                f" {stride}."
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
    r"""Writes on the whole canvas by one transposed convolution of the decoder's hidden maps.

    The input has the shape :math:`(*, C, H, W)`, the output :math:`(*, C', sH, sW)`.

    Arguments:
        in_shape: The shape of the hidden maps, such as ``(32, 7, 7)``.
        shape: The shape of the canvas, channels first, such as ``(1, 28, 28)``.

    Raises:
        ValueError: If a shape has no channel axis, or the canvas is not s times as high and
            wide as the maps.

    References:
        Gregor et al. (2016), Towards Conceptual Compression, arXiv:1604.08772, section 2.2.

    Example:
        >>> ConvWrite((32, 7, 7), (1, 28, 28))(torch.zeros(5, 32, 7, 7)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(self, in_shape: Sequence[int], shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape, self.shape = image_of(in_shape, "in_shape"), image_of(shape)
        stride = shape[1] // in_shape[1]
        if (stride * in_shape[1], stride * in_shape[2]) != tuple(shape[1:]):
            raise ValueError(
                "shape must be a whole number of times as high and wide as in_shape, got"
                f" {tuple(shape)} for {tuple(in_shape)}."
            )
        self.convolution = nn.ConvTranspose2d(
            in_shape[0], shape[0], _side(stride), stride, (stride + 1) // 2
        )
        initialize(self.convolution)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns what to add to the canvas."""
        (hidden,), lead = fold([hidden], [self.in_shape])
        return unfold(self.convolution(hidden), lead)

    def __repr__(self) -> str:
        return f"ConvWrite({dimensions(self.in_shape)} -> {dimensions(self.shape)})"


def _side(stride: int) -> int:
    """The side of filters that overlap, and with half of the stride as padding keep or divide
    a map's sides exactly.
    """
    return stride + 2 * ((stride + 1) // 2)
