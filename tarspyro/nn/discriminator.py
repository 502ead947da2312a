"""Discriminators: networks that score data points, or patches of images."""

__all__ = ["BatchDeviation", "Discriminator", "PatchGAN", "spectrally_normalized"]

from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tarspyro.arguments import as_count, as_sizes, check_module, format_value
from tarspyro.modules import Configurable
from tarspyro.nn.conv import image_of
from tarspyro.nn.folding import fold
from tarspyro.nn.heads import make_head, through_heads
from tarspyro.nn.initialization import initialize
from tarspyro.nn.normalization import Normalization, check_layers, normalization_layer


class Discriminator(Configurable):
    r"""A discriminator: a trunk and one linear unit, which scores each data point.

    .. math:: D(x, c) = w^T \mathrm{trunk}(x, c) + b, \qquad
              P(\text{real} \mid x, c) = \sigma(D(x, c))

    The score is the logit that a data point is real, or that of another loss. Inputs have the
    shapes that the trunk takes; the output has their leading shape. A game accepts any network
    from a data point (and conditions) to a number in its place.

    Arguments:
        trunk: The network from the inputs to features, any ``torch.nn.Module``.

    Raises:
        TypeError: If ``trunk`` is not a module.

    Example:
        >>> from tarspyro.nn import MLP
        >>> discriminator = Discriminator(MLP([64, 10], [32]))
        >>> discriminator(torch.zeros(5, 64), torch.zeros(5, 10)).shape
        torch.Size([5])
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        check_module("trunk", trunk)
        self.trunk = trunk
        self.heads = nn.ModuleDict({"logit": make_head(trunk, Size())})

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the score of each data point."""
        return through_heads(self.trunk, self.heads, inputs)["logit"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.trunk!r})"


class PatchGAN(Configurable):
    r"""A convolutional discriminator that gives a logit for each patch of an image.

    Inputs are images of the same height and width, of shapes :math:`(B, C_i, H, W)`, whose
    channels are concatenated. The output is a map of logits, of shape :math:`(B, 1, h, w)`;
    losses take its mean. Each layer but the last halves the image. With :math:`n` layers before
    the last, a logit depends on a square of :math:`5 \cdot 2^n - 2` pixels a side.

    Arguments:
        in_shapes: The shapes of the images, channels first, such as ``[(1, 28, 28), (1, 28,
            28)]``.
        channels: The number of channels of each layer before the logits.
        activation: The constructor of the activation.
        normalization: The normalization before each activation but the first, see
            ``ConvEncoder``.

    Raises:
        ValueError: If the images differ in height or width.

    References:
        Isola et al. (2017), Image-to-Image Translation with Conditional Adversarial Networks,
        arXiv:1611.07004.

    Example:
        >>> images = torch.zeros(5, 1, 28, 28)
        >>> PatchGAN([(1, 28, 28), (1, 28, 28)])(images, images).shape
        torch.Size([5, 1, 7, 7])
    """

    def __init__(
        self,
        in_shapes: Sequence[tuple[int, int, int]],
        channels: Sequence[int] = (32, 64),
        *,
        activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.2),
        normalization: Normalization = None,
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
                "in_shapes must be images of the same height and width, got"
                f" {list(in_shapes)}."
            )
        channels = as_sizes("channels", channels, at_least=1)
        check_layers(activation, normalization)
        layers: list[nn.Module] = []
        in_channels = sum(shape[0] for shape in self.in_shapes)
        for size, next_size in zip([in_channels, *channels], channels, strict=False):
            layers.append(nn.Conv2d(size, next_size, 4, stride=2, padding=1))
            if len(layers) > 1:
                layers += normalization_layer(normalization, next_size)
            layers.append(activation())
        self.layers = initialize(nn.Sequential(*layers), activation())
        self.logits = initialize(nn.Conv2d(channels[-1], 1, 3, padding=1))

    def forward(self, *images: Tensor) -> Tensor:
        """Returns the map of logits of each row."""
        folded, _ = fold(images, self.in_shapes)
        logits: Tensor = self.logits(self.layers(torch.cat(folded, 1)))
        return logits


class BatchDeviation(Configurable):
    r"""A layer that appends the mean standard deviation of the batch to the features.

    .. math:: h_n \mapsto [h_n, \bar\sigma], \qquad
              \bar\sigma = \frac{1}{F} \sum_f \sqrt{\mathrm{Var}_n(h_{nf}) + 10^{-8}}

    With it a discriminator can see that fakes are too much alike, so the generator keeps its
    variety. The features of images get it as one more channel. It ties the rows of a batch
    together, so penalties on the gradient of a row also hold those of others.

    Arguments:
        in_features: The number of features, or channels.

    Raises:
        ValueError: If ``in_features`` is below 1; when called, if the features are others.

    References:
        Karras et al. (2018), Progressive Growing of GANs, arXiv:1710.10196, section 3.

    Example:
        >>> from tarspyro.nn import MLP
        >>> trunk = nn.Sequential(MLP(2, [32]), BatchDeviation(32))
        >>> Discriminator(trunk)(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = as_count("in_features", in_features)
        self.out_features = self.in_features + 1

    def forward(self, features: Tensor) -> Tensor:
        """Returns the features of shape ``(N, F, *)`` with one more, ``(N, F + 1, *)``."""
        if features.dim() < 2 or features.shape[1] != self.in_features:
            raise ValueError(
                f"BatchDeviation takes features of shape (N, {self.in_features}, ...), got"
                f" {tuple(features.shape)}."
            )
        deviation = (features.var(0, correction=0) + 1e-8).sqrt().mean()
        shape = (len(features), 1, *features.shape[2:])
        return torch.cat([features, deviation.expand(shape)], 1)

    def __repr__(self) -> str:
        return f"BatchDeviation({self.in_features})"


def spectrally_normalized(network: nn.Module) -> nn.Module:
    r"""Divides the weights of linear and convolutional layers by their largest singular value.

    .. math:: \bar{W} = W / \sigma(W)

    A network of such linear layers, and of activations with slopes of at most 1, has a
    Lipschitz constant of at most 1. For convolutions W is the matrix of the kernel, and the
    constant is only near 1. The singular value is estimated by power iteration, one step for
    each call in training mode.

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
