"""Networks: trunks that know no distribution."""

__all__ = [
    "MLP",
    "AttentionRead",
    "AttentionWrite",
    "Backward",
    "Canvas",
    "ConvDecoder",
    "ConvEncoder",
    "ConvLSTMCell",
    "ConvRead",
    "ConvWrite",
    "Discriminator",
    "FeatureMap",
    "GaussianNoise",
    "MaskingNoise",
    "PatchGAN",
    "RandomWeights",
    "Read",
    "Recurrence",
    "UNet",
    "Unchanged",
    "Write",
    "as_recurrence",
    "event_ndims",
    "fold",
    "initialize",
    "spectrally_normalized",
    "unfold",
]

from tarspyro.nn.attention import AttentionRead, AttentionWrite, Read, Write
from tarspyro.nn.canvas import Canvas, ConvRead, ConvWrite, FeatureMap, Unchanged
from tarspyro.nn.conv import ConvDecoder, ConvEncoder
from tarspyro.nn.discriminator import Discriminator, PatchGAN, spectrally_normalized
from tarspyro.nn.folding import event_ndims, fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.nn.mlp import MLP
from tarspyro.nn.noise import GaussianNoise, MaskingNoise
from tarspyro.nn.random_weights import RandomWeights
from tarspyro.nn.recurrent import Backward, ConvLSTMCell, Recurrence, as_recurrence
from tarspyro.nn.unet import UNet
