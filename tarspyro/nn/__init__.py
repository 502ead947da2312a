"""Networks: trunks that know no distribution."""

__all__ = [
    "MLP",
    "Backward",
    "ConvDecoder",
    "ConvEncoder",
    "Discriminator",
    "GaussianNoise",
    "MaskingNoise",
    "PatchGAN",
    "RandomWeights",
    "Recurrence",
    "UNet",
    "event_ndims",
    "fold",
    "initialize",
    "spectrally_normalized",
    "unfold",
]

from tarspyro.nn.conv import ConvDecoder, ConvEncoder
from tarspyro.nn.discriminator import Discriminator, PatchGAN, spectrally_normalized
from tarspyro.nn.folding import event_ndims, fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.nn.mlp import MLP
from tarspyro.nn.noise import GaussianNoise, MaskingNoise
from tarspyro.nn.recurrent import Backward, Recurrence
from tarspyro.nn.unet import UNet
from tarspyro.nn.weights import RandomWeights
