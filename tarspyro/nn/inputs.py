"""First layers: standardized inputs, logarithms of counts, and inputs with gaps."""

__all__ = ["Log1p", "Standardize", "WithGaps"]

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tarspyro.arguments import as_numbers, check_module, format_value
from tarspyro.modules import Configurable


class Standardize(Configurable):
    r"""Inputs with mean 0 and standard deviation 1.

    .. math:: x \mapsto \frac{x - \mu}{\sigma}

    Arguments:
        loc: The means :math:`\mu`, of the shape of an input or broadcasting to it.
        scale: The standard deviations :math:`\sigma`, likewise.

    Raises:
        ValueError: If a standard deviation is not positive.

    Example:
        >>> from tarspyro.nn import MLP
        >>> x = 500 + 100 * torch.randn(1000, 3)
        >>> encoder = nn.Sequential(Standardize.of(x), MLP(3, [32]))
        >>> round(encoder[0](x).std().item(), 1)
        1.0
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor | float, scale: Tensor | float) -> None:
        super().__init__()
        dtype = torch.get_default_dtype()
        self.register_buffer("loc", as_numbers("loc", loc, dtype).clone())
        self.register_buffer("scale", as_numbers("scale", scale, dtype).clone())
        if not bool((self.scale > 0).all()):
            raise ValueError(f"scale must be positive, got {format_value(scale)}.")

    @classmethod
    def of(cls, x: Tensor) -> "Standardize":
        """Returns the layer for some data, one mean and standard deviation for each element.

        Elements that are constant keep their scale. Missing values, NaN, are left out.

        Arguments:
            x: The training data, of shape ``(N, *E)``.
        """
        x = as_numbers("x", x, torch.get_default_dtype())
        known = ~x.isnan()
        count = known.sum(0).clamp(min=1)
        loc = x.nan_to_num(0.0).sum(0) / count
        squares = (x - loc).nan_to_num(0.0).square().sum(0)
        scale = (squares / count).sqrt()
        return cls(loc, scale.masked_fill(scale == 0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the standardized inputs."""
        standardized: Tensor = (x - self.loc) / self.scale
        return standardized

    def inverse(self, x: Tensor) -> Tensor:
        """Returns the inputs whose standardized values are x."""
        return self.loc + self.scale * x

    def __repr__(self) -> str:
        return f"Standardize({tuple(self.loc.shape)})"


class Log1p(Configurable):
    r"""Logarithms of counts, :math:`x \mapsto \log(1 + x)`.

    Example:
        >>> Log1p()(torch.tensor([0.0, 99.0]))
        tensor([0.0000, 4.6052])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logarithms."""
        return torch.log1p(x)

    def __repr__(self) -> str:
        return "Log1p()"


class WithGaps(Configurable):
    r"""A network of inputs of which some are missing, NaN.

    .. math:: \mathrm{network}(x \odot m, m), \qquad m_i = 1 \text{ where } x_i \text{ is known}

    The network sees zeros in the gaps, and beside them which values are known. It has two
    inputs, as ``MLP([D, D], ...)`` has, or one of twice the size, where ``dim`` says along
    which dimension the two are laid side by side.

    Arguments:
        network: The network of the values and the mask.
        in_shape: The shape of an input.
        dim: The dimension of the input along which values and mask are laid side by side,
            such as 0 for the channels of an image; None for a network of two inputs.

    Example:
        >>> from tarspyro.nn import MLP
        >>> encoder = WithGaps(MLP([3, 3], [32]), 3)
        >>> encoder(torch.tensor([[1.0, float("nan"), 2.0]])).isfinite().all()
        tensor(True)
    """

    def __init__(
        self, network: nn.Module, in_shape: int | Sequence[int], *, dim: int | None = None
    ) -> None:
        super().__init__()
        check_module("network", network)
        shape = (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)
        self.network = network
        self.in_shapes = (shape,)
        self.dim = dim
        features = getattr(network, "out_features", None)
        if isinstance(features, int):
            self.out_features = features

    def forward(self, x: Tensor) -> Tensor:
        """Returns the network's output."""
        known = (~x.isnan()).to(x.dtype)
        values = x.nan_to_num(0.0)
        output: Tensor
        if self.dim is None:
            output = self.network(values, known)
        else:
            along = x.dim() - len(self.in_shapes[0]) + self.dim
            output = self.network(torch.cat([values, known], along))
        return output

    def __repr__(self) -> str:
        return f"WithGaps({self.network!r})"
