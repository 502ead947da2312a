"""Readers and writers of DRAW, with and without attention."""

__all__ = ["AttentionRead", "AttentionWrite", "Read", "Write"]

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_count
from tarspyro.modules import Configurable
from tarspyro.nn.conv import dimensions, image_of
from tarspyro.nn.folding import fold, unfold
from tarspyro.nn.initialization import initialize

# A window is placed by five numbers.
_NUM_PLACING = 5


class Window(NamedTuple):
    """Grids of N x N Gaussian filters on B images of height H and width W.

    Attributes:
        rows: The filters along the height, of shape (B, N, H); each sums to one.
        columns: The filters along the width, of shape (B, N, W); each sums to one.
        intensity: The factor of the patch, of shape (B, 1).
        boxes: Centre x, centre y, the distance between the outermost filters, and the filters'
            scale, in pixels; of shape (B, 4).
    """

    rows: Tensor
    columns: Tensor
    intensity: Tensor
    boxes: Tensor

    @staticmethod
    def stride(size: int, shape: Sequence[int]) -> float:
        """Returns the distance between filters that reach from border to border, in pixels."""
        return (max(shape[-2:]) - 1) / max(size - 1, 1)

    @classmethod
    def of(cls, placing: Tensor, size: int, shape: Sequence[int]) -> "Window":
        """Places the filters by any real numbers of shape (B, 5).

        Gregor et al. (2015), eqs. 19 to 26.
        """
        height, width = shape[-2:]
        across, down, log_variance, log_stride, log_intensity = placing.split(1, -1)
        # The paper counts pixels from 1, so the centre of an image is at half of A + 1.
        x = (width + 1) / 2 * (across + 1) - 1
        y = (height + 1) / 2 * (down + 1) - 1
        stride = cls.stride(size, shape) * log_stride.exp()
        steps = torch.arange(size, dtype=placing.dtype, device=placing.device) - (size - 1) / 2

        def filters(center: Tensor, length: int) -> Tensor:
            pixels = torch.arange(length, dtype=placing.dtype, device=placing.device)
            distance = pixels - (center + stride * steps).unsqueeze(-1)
            # Normalized in log space, because the sum of a filter far outside of the image
            # underflows.
            exponent: Tensor = -0.5 * distance**2 * (-log_variance).exp().unsqueeze(-1)
            return exponent.softmax(-1)

        boxes = torch.cat([x, y, stride * (size - 1), (0.5 * log_variance).exp()], -1)
        return cls(filters(y, height), filters(x, width), log_intensity.exp(), boxes)


def _placing(in_features: int, size: int, shape: Sequence[int], intensity: float) -> nn.Linear:
    """Returns the layer that places a window, which starts with filters that cover the image.

    Gaussians whose scale is half of their distance add up to a constant within 1.5 percent.
    """
    layer = nn.Linear(as_count("in_features", in_features), _NUM_PLACING)
    initialize(layer)
    scale = max(Window.stride(size, shape), 1.0) / 2  # filters on pixels have neighbours too
    with torch.no_grad():
        layer.bias[2] = 2 * math.log(scale)
        layer.bias[4] = math.log(intensity)
    return layer


class Read(Configurable):
    r"""Reads the whole image: x and the error image :math:`\hat{x}` in one vector.

    .. math:: \mathrm{read}(x, \hat{x}, h) = [x, \hat{x}]

    Both images have the shape :math:`(*, C, H, W)` (or flattened, :math:`(*, CHW)`), the
    output :math:`(*, 2CHW)`. The decoder's hidden units h, the third input of every reader,
    are not used.

    Arguments:
        shape: The shape of an image, channels first, such as ``(1, 28, 28)``.

    Raises:
        ValueError: If ``shape`` has no channel axis; when called, if an image has another
            shape.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eq. 17.

    Example:
        >>> read = Read((1, 28, 28))
        >>> read(torch.zeros(5, 784), torch.zeros(5, 784), torch.zeros(5, 256)).shape
        torch.Size([5, 1568])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = image_of(shape)
        self.out_features = 2 * math.prod(self.shape)

    def forward(self, x: Tensor, error: Tensor, hidden: Tensor) -> Tensor:
        """Returns the two images as one vector."""
        images, lead = fold([x, error], [self.shape] * 2)
        return unfold(torch.cat(images, 1).flatten(1), lead)

    def __repr__(self) -> str:
        return f"Read({dimensions(self.shape)})"


class Write(Configurable):
    r"""Writes on the whole canvas, by a linear layer.

    .. math:: \mathrm{write}(h) = W h + b

    The input has the shape :math:`(*, F)`, the output :math:`(*, C, H, W)`.

    Arguments:
        in_features: The number of the decoder's hidden units.
        shape: The shape of the canvas, channels first, such as ``(1, 28, 28)``.

    Raises:
        ValueError: If ``shape`` has no channel axis.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eq. 18.

    Example:
        >>> Write(256, (1, 28, 28))(torch.zeros(5, 256)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(self, in_features: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = image_of(shape)
        in_features = as_count("in_features", in_features)
        self.linear = initialize(nn.Linear(in_features, math.prod(self.shape)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the addition to the canvas."""
        flat: Tensor = self.linear(hidden)
        return flat.reshape(*hidden.shape[:-1], *self.shape)

    def __repr__(self) -> str:
        return f"Write({dimensions(self.shape)})"


class AttentionRead(Configurable):
    r"""Reads a window of the image with N x N Gaussian filters.

    .. math:: \mathrm{read}(x, \hat{x}, h) = \gamma [F_Y x F_X^\top, F_Y \hat{x} F_X^\top],
              \qquad F_X[i, a] \propto \exp\left(-\frac{(a - \mu_i)^2}{2 \sigma^2}\right), \quad
              \mu_i = g_X + (i - N/2 - 1/2) \delta

    A linear layer of the decoder's hidden units h gives the centre :math:`g`, the stride
    :math:`\delta`, the variance :math:`\sigma^2` and the intensity :math:`\gamma`. All channels,
    and the error image :math:`\hat{x}`, share the window. Images have the shape
    :math:`(*, C, H, W)` (or flattened), h the shape :math:`(*, F)`, the output
    :math:`(*, 2CN^2)`.

    A new window covers the image. Its filters reach from border to border of the longer side,
    their scale :math:`\sigma` is half of their distance, and :math:`\gamma = 1`, so that it
    reads weighted means of pixels. Where the weights of a pixel are small, so are the gradients:
    filters of one pixel, which the paper's equations give for outputs of zero, leave most pixels
    out.

    Arguments:
        in_features: The number of the decoder's hidden units.
        shape: The shape of an image, channels first, such as ``(1, 28, 28)``.
        size: N, the number of filters along each side.

    Raises:
        ValueError: If ``shape`` has no channel axis, ``size`` is below 1, or an image has
            another shape.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eqs. 19 to 27.

    Example:
        >>> read = AttentionRead(256, (1, 28, 28), size=2)
        >>> read(torch.zeros(5, 784), torch.zeros(5, 784), torch.zeros(5, 256)).shape
        torch.Size([5, 8])
    """

    def __init__(self, in_features: int, shape: Sequence[int], size: int) -> None:
        super().__init__()
        self.shape = image_of(shape)
        self.size = as_count("size", size)
        self.out_features = 2 * self.shape[0] * size**2
        self.placing = _placing(in_features, size, self.shape, intensity=1.0)

    def forward(self, x: Tensor, error: Tensor, hidden: Tensor) -> Tensor:
        """Returns the filtered patches of the two images as one vector."""
        (*images, hidden), lead = fold([x, error, hidden], [self.shape, self.shape, 1])
        window = Window.of(self.placing(hidden), self.size, self.shape)
        rows = window.rows.unsqueeze(1)
        columns = window.columns.unsqueeze(1)
        patch = rows @ torch.cat(images, 1) @ columns.mT
        return unfold(patch.flatten(1) * window.intensity, lead)

    def boxes(self, hidden: Tensor) -> Tensor:
        """Returns the windows: centre x, centre y, width and the filters' scale.

        They are in pixels; the shape is ``(*, 4)``.
        """
        return _boxes(self.placing(hidden), self.size, self.shape)

    def __repr__(self) -> str:
        return f"AttentionRead({self.size}x{self.size} of {dimensions(self.shape)})"


class AttentionWrite(Configurable):
    r"""Writes a patch of N x N numbers through Gaussian filters.

    .. math:: \mathrm{write}(h) = \frac{1}{\gamma} F_Y^\top w F_X, \qquad w = W h + b

    The filters are those of ``AttentionRead``, placed by a linear layer of their own. The
    input, the decoder's hidden units h, has the shape :math:`(*, F)`, the output
    :math:`(*, C, H, W)`.

    A new window covers the image, as that of ``AttentionRead`` does, and starts with
    :math:`\gamma = N^2 / (HW)`: a patch of ones adds one to a pixel in the mean. A filter's
    weights sum to one, so with :math:`\gamma = 1` a wide window would paint in proportion to
    :math:`N^2 / (HW)`.

    Arguments:
        in_features: The number of the decoder's hidden units.
        shape: The shape of the canvas, channels first, such as ``(1, 28, 28)``.
        size: N, the number of filters along each side.

    Raises:
        ValueError: If ``shape`` has no channel axis, or ``size`` is below 1.

    References:
        Gregor et al. (2015), DRAW: A Recurrent Neural Network For Image Generation,
        arXiv:1502.04623, eqs. 28 and 29.

    Example:
        >>> write = AttentionWrite(256, (1, 28, 28), size=5)
        >>> write(torch.zeros(5, 256)).shape
        torch.Size([5, 1, 28, 28])
        >>> write.boxes(torch.zeros(256)).detach()
        tensor([13.5000, 13.5000, 27.0000,  3.3750])
    """

    def __init__(self, in_features: int, shape: Sequence[int], size: int) -> None:
        super().__init__()
        self.shape = image_of(shape)
        self.size = as_count("size", size)
        height, width = self.shape[1:]
        self.placing = _placing(
            in_features, size, self.shape, intensity=size**2 / (height * width)
        )
        self.patch = initialize(nn.Linear(in_features, self.shape[0] * size**2))

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the addition to the canvas."""
        (hidden,), lead = fold([hidden], [1])
        window = Window.of(self.placing(hidden), self.size, self.shape)
        rows = window.rows.unsqueeze(1)
        columns = window.columns.unsqueeze(1)
        patch = self.patch(hidden) / window.intensity
        patch = patch.unflatten(1, (self.shape[0], self.size, self.size))
        return unfold(rows.mT @ patch @ columns, lead)

    def boxes(self, hidden: Tensor) -> Tensor:
        """Returns the windows: centre x, centre y, width and the filters' scale.

        They are in pixels; the shape is ``(*, 4)``.
        """
        return _boxes(self.placing(hidden), self.size, self.shape)

    def __repr__(self) -> str:
        return f"AttentionWrite({self.size}x{self.size} on {dimensions(self.shape)})"


def _boxes(placing: Tensor, size: int, shape: Sequence[int]) -> Tensor:
    boxes = Window.of(placing.reshape(-1, _NUM_PLACING), size, shape).boxes
    return boxes.reshape(*placing.shape[:-1], 4)
