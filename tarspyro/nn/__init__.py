"""Networks: trunks that know no distribution."""

__all__ = [
    "MLP",
    "Backward",
    "ConvDecoder",
    "ConvEncoder",
    "GaussianNoise",
    "MaskingNoise",
    "RandomWeights",
    "Recurrence",
    "event_ndims",
    "fold",
    "initialize",
    "unfold",
]

from tarspyro.nn.conv import ConvDecoder, ConvEncoder
from tarspyro.nn.folding import event_ndims, fold, unfold
from tarspyro.nn.initialization import initialize
from tarspyro.nn.mlp import MLP
from tarspyro.nn.noise import GaussianNoise, MaskingNoise
from tarspyro.nn.recurrent import Backward, Recurrence
from tarspyro.nn.weights import RandomWeights
