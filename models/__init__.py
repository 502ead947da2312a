"""Models: the generative halves p, one file for each method."""

__all__ = [
    "CMMA",
    "DRAW",
    "GAN",
    "JMVAE",
    "MVAE",
    "VAE",
    "VRNN",
    "AlignDRAW",
    "Autoencoder",
    "BayesianRegression",
    "Classifier",
    "ConditionalGAN",
    "ConditionalDRAW",
    "ConditionalVAE",
    "ConvDRAW",
    "DeepMarkovModel",
    "Density",
    "HierarchicalVAE",
    "LadderVAE",
    "SemiSupervisedVAE",
]

from typing import TYPE_CHECKING

from tarspyro.arguments import unknown_name
from tarspyro.models.align_draw import AlignDRAW
from tarspyro.models.autoencoder import Autoencoder
from tarspyro.models.bayesian_regression import BayesianRegression
from tarspyro.models.classifier import Classifier
from tarspyro.models.cmma import CMMA
from tarspyro.models.conditional_draw import ConditionalDRAW
from tarspyro.models.conditional_gan import ConditionalGAN
from tarspyro.models.conditional_vae import ConditionalVAE
from tarspyro.models.conv_draw import ConvDRAW
from tarspyro.models.deep_markov_model import DeepMarkovModel
from tarspyro.models.density import Density
from tarspyro.models.draw import DRAW
from tarspyro.models.gan import GAN
from tarspyro.models.hierarchical_vae import HierarchicalVAE
from tarspyro.models.jmvae import JMVAE
from tarspyro.models.ladder_vae import LadderVAE
from tarspyro.models.mvae import MVAE
from tarspyro.models.semi_supervised_vae import SemiSupervisedVAE
from tarspyro.models.vae import VAE
from tarspyro.models.vrnn import VRNN

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        raise unknown_name(__name__, name, __all__)
