"""Discriminators: networks that give each data point one number, or each patch of an image
one.
"""

__all__ = ["Discriminator", "PatchGAN", "spectrally_normalized"]

from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tarspyro.arguments import as_sizes, check_module, format_value
from tarspyro.modules import Configurable
from tarspyro.nn.conv import check_layers, image_of
from tarspyro.nn.folding import fold
from tarspyro.nn.heads import make_head, through_heads
from tarspyro.nn.initialization import initialize


class Discriminator(Configurable):
    r"""A trunk with one linear unit: the logit of a data point being real, or any other score
    of it.

    .. math:: D(x, c) = w^T \mathrm{trunk}(x, c) + b, \qquad P(\text{real} \mid x, c) = \sigma(D(x, c))

    Inputs have the shapes that the trunk takes; the output has their leading shape. Any other
    network from a data point (and conditions) to a number will do in its place.

    Arguments:
        trunk: Any ``torch.nn.Module`` from the inputs to features.

    Raises:
        TypeError: If ``trunk`` is not a module.

    Example:
        >>> from tarspyro.nn import MLP
        >>> Discriminator(MLP([64, 10], [32]))(torch.zeros(5, 64), torch.zeros(5, 10)).shape
        torch.Size([5])
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        check_module("trunk", trunk)
        self.trunk, self.heads = trunk, nn.ModuleDict({"logit": make_head(trunk, Size())})

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns a number for each data point."""
        return through_heads(self.trunk, self.heads, inputs)["logit"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.trunk!r})"


class PatchGAN(Configurable):
    r"""A convolutional discriminator of patches: a map of logits, each of which sees a part of
    the image.

    Inputs are images on the same grid, which are laid on top of each other, of shapes
    :math:`(B, C_i, H, W)`; the output has shape :math:`(B, 1, h, w)`, whose mean a loss takes.
    Each layer but the last halves the image; with
    :math:`n` layers before it, a logit sees a square of :math:`5 \cdot 2^n - 2` pixels a side.

    Arguments:
        in_shapes: The shapes of the images, channels first, such as ``[(1, 28, 28), (1, 28,
            28)]``.
        channels: The number of channels of each layer before the logits.
        activation: The constructor of the activation.
        normalization: The constructor of a normalization before each activation but the first.

    Raises:
        ValueError: If the images are not on one grid.

    References:
        Isola et al. (2017), Image-to-Image Translation with Conditional Adversarial Networks,
        arXiv:1611.07004.

    Example:
        >>> PatchGAN([(1, 28, 28), (1, 28, 28)])(torch.zeros(5, 1, 28, 28), torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 1, 7, 7])
    """

    def __init__(
        self,
        in_shapes: Sequence[tuple[int, int, int]],
        channels: Sequence[int] = (32, 64),
        *,
        activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.2),
        normalization: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(in_shapes, Sequence):
            raise TypeError(
                "in_shapes must be a list of shapes, such as [(1, 28, 28)], got"
                f" {format_value(in_shapes)}."
            )
        self.in_shapes = tuple(
            image_of(shape, f"in_shapes[{index}]") for index, shape in enumerate(in_shapes)
        )
        if len({shape[1:] for shape in self.in_shapes}) != 1:
            raise ValueError(
                f"in_shapes must be images of one height and width, got {list(in_shapes)}."
            )
        channels = as_sizes("channels", channels, at_least=1)
        check_layers(activation, normalization)
        layers: list[nn.Module] = []
        for size, next_size in zip(
            [sum(shape[0] for shape in self.in_shapes), *channels], channels, strict=False
        ):
            layers.append(nn.Conv2d(size, next_size, 4, stride=2, padding=1))
            if normalization is not None and len(layers) > 1:
                layers.append(normalization(next_size))
            layers.append(activation())
        self.layers = initialize(nn.Sequential(*layers), activation())
        self.logits = initialize(nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, *images: Tensor) -> Tensor:
        """Returns a map of logits for each row."""
        folded, _ = fold(images, self.in_shapes)
        logits: Tensor = self.logits(self.layers(torch.cat(folded, 1)))
        return logits


def spectrally_normalized(network: nn.Module) -> nn.Module:
    r"""Divides the weights of linear and convolutional layers by their largest singular
    values.

    .. math:: \bar{W} = W / \sigma(W)

    A network of such layers and of activations with slopes of at most 1 has a Lipschitz
    constant of at most 1 (of convolutions the matrix is the kernel's, so that it is near 1).
    The singular value is found by power iteration, a step at every call in training mode.

    Arguments:
        network: The network, changed in place.

    Returns:
        The network.

    References:
        Miyato et al. (2018), Spectral Normalization for Generative Adversarial Networks,
        arXiv:1802.05957, eq. 8.

    Example:
        >>> layer = spectrally_normalized(nn.Linear(20, 10)).eval()
        >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 1)
        1.0
    """
    check_module("network", network)
    for layer in list(network.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)):
            spectral_norm(layer)
    return network
