"""Guides: the inference halves q, each with the name of its model."""

__all__ = [
    "CMMA",
    "DRAW",
    "JMVAE",
    "MVAE",
    "VAE",
    "VRNN",
    "Auto",
    "AlignDRAW",
    "Autoencoder",
    "BayesianRegression",
    "ConditionalDRAW",
    "ConditionalVAE",
    "ConvDRAW",
    "DeepMarkovModel",
    "HierarchicalVAE",
    "LadderVAE",
    "SemiSupervisedVAE",
    "auto",
]

from typing import TYPE_CHECKING

from tarspyro.arguments import unknown_name
from tarspyro.guides.align_draw import AlignDRAW
from tarspyro.guides.autoencoder import Autoencoder
from tarspyro.guides.automatic import Auto, auto
from tarspyro.guides.bayesian_regression import BayesianRegression
from tarspyro.guides.cmma import CMMA
from tarspyro.guides.conditional_draw import ConditionalDRAW
from tarspyro.guides.conditional_vae import ConditionalVAE
from tarspyro.guides.conv_draw import ConvDRAW
from tarspyro.guides.deep_markov_model import DeepMarkovModel
from tarspyro.guides.draw import DRAW
from tarspyro.guides.hierarchical_vae import HierarchicalVAE
from tarspyro.guides.jmvae import JMVAE
from tarspyro.guides.ladder_vae import LadderVAE
from tarspyro.guides.mvae import MVAE
from tarspyro.guides.semi_supervised_vae import SemiSupervisedVAE
from tarspyro.guides.vae import VAE
from tarspyro.guides.vrnn import VRNN

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        raise unknown_name(__name__, name, __all__)
