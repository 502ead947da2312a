"""Networks: trunks, recurrent cells, canvases, discriminators, noise."""

__all__ = [
    "BatchDeviation",
    "MADE",
    "MLP",
    "Alignment",
    "AttentionRead",
    "AttentionWrite",
    "Backward",
    "Canvas",
    "CausalConv1d",
    "CausalRNN",
    "Codebook",
    "ConvDecoder",
    "ConvEncoder",
    "ConvLSTMCell",
    "ConvRead",
    "ConvWrite",
    "Discriminator",
    "FeatureMap",
    "GaussianNoise",
    "IdentityTrunk",
    "LanguageRNN",
    "Log1p",
    "MaskingNoise",
    "PatchGAN",
    "PixelCNN",
    "RandomWeights",
    "Read",
    "Recurrence",
    "ResidualBlock",
    "Standardize",
    "UNet",
    "WithGaps",
    "Words",
    "Write",
    "as_alignment",
    "as_recurrence",
    "event_ndims",
    "fold",
    "initialize",
    "spectrally_normalized",
    "spread_kinks",
    "unfold",
]

import warnings

import torch

from tarspyro.arguments import unknown_name
from tarspyro.nn.attention import AttentionRead, AttentionWrite, Read, Write
from tarspyro.nn.canvas import Canvas, ConvRead, ConvWrite, FeatureMap, IdentityTrunk
from tarspyro.nn.causal_sequences import CausalConv1d, CausalRNN
from tarspyro.nn.codebook import Codebook
from tarspyro.nn.conv import ConvDecoder, ConvEncoder
from tarspyro.nn.discriminator import (
    BatchDeviation,
    Discriminator,
    PatchGAN,
    spectrally_normalized,
)
from tarspyro.nn.folding import event_ndims, fold, unfold
from tarspyro.nn.initialization import initialize, spread_kinks
from tarspyro.nn.inputs import Log1p, Standardize, WithGaps
from tarspyro.nn.language import Alignment, LanguageRNN, Words, as_alignment
from tarspyro.nn.made import MADE
from tarspyro.nn.mlp import MLP
from tarspyro.nn.noise import GaussianNoise, MaskingNoise
from tarspyro.nn.pixelcnn import PixelCNN
from tarspyro.nn.random_weights import RandomWeights
from tarspyro.nn.recurrent import Backward, ConvLSTMCell, Recurrence, as_recurrence
from tarspyro.nn.residual import ResidualBlock
from tarspyro.nn.unet import UNet


def __getattr__(name: str) -> type[IdentityTrunk]:
    if name == "Unchanged":
        message = "tarspyro.nn.Unchanged is now tarspyro.nn.IdentityTrunk."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return IdentityTrunk
    if hasattr(torch.nn, name):
        message = f"module 'tarspyro.nn' has no attribute {name!r}: use torch.nn.{name}"
        raise AttributeError(message, name=name, obj=None)
    raise unknown_name(__name__, name, __all__)
