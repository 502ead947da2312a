"""Residual blocks of convolutions."""

__all__ = ["ResidualBlock"]

from collections.abc import Callable

from torch import Tensor, nn

from tarspyro.arguments import as_count
from tarspyro.modules import Configurable
from tarspyro.nn.initialization import initialize
from tarspyro.nn.normalization import Normalization, check_layers, normalization_layer


class ResidualBlock(Configurable):
    r"""A residual block: two 3x3 convolutions whose output is added to the input.

    .. math:: y = x + W_2 * a(n_2(W_1 * a(n_1(x))))

    with activations a and normalizations n before the convolutions. The last weights start at
    zero, so that the block starts as the identity, however many there are. Input and output
    have shape :math:`(N, C, H, W)`.

    Arguments:
        channels: The number of channels C.
        activation: The constructor of the activation.
        normalization: The normalization before each activation: ``"batch"``, ``"group"``,
            ``"layer"``, or the constructor of a layer, such as ``nn.BatchNorm2d``.

    Raises:
        TypeError: If ``channels`` is not a whole number, or ``activation`` or
            ``normalization`` makes no module.
        ValueError: If ``channels`` is below 1.

    References:
        He et al. (2016), Identity Mappings in Deep Residual Networks, arXiv:1603.05027,
        figure 4 (e).

    Example:
        >>> import torch
        >>> x = torch.randn(5, 16, 8, 8)
        >>> torch.equal(ResidualBlock(16, normalization="group")(x), x)
        True
    """

    def __init__(
        self,
        channels: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: Normalization = None,
    ) -> None:
        super().__init__()
        channels = as_count("channels", channels)
        check_layers(activation, normalization)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += normalization_layer(normalization, channels)
            layers.append(activation())
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        self.reset_parameters(activation())

    def reset_parameters(self, activation: nn.Module | None = None) -> None:
        """Draws new weights; those of the last convolution are zero."""
        *_, last = initialize(self.layers, activation or nn.ReLU()).children()
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        """Returns a map of the same shape."""
        residual: Tensor = self.layers(image)
        return image + residual
