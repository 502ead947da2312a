"""Guides: the inference halves, each the namesake of its model."""

__all__ = [
    "CMMA",
    "JMVAE",
    "MVAE",
    "VAE",
    "VRNN",
    "Autoencoder",
    "BayesianRegression",
    "ConditionalVAE",
    "DeepMarkovModel",
    "HierarchicalVAE",
    "LadderVAE",
    "SemiSupervisedVAE",
]

from tarspyro.guides.autoencoder import Autoencoder
from tarspyro.guides.bayesian_regression import BayesianRegression
from tarspyro.guides.cmma import CMMA
from tarspyro.guides.conditional_vae import ConditionalVAE
from tarspyro.guides.deep_markov_model import DeepMarkovModel
from tarspyro.guides.hierarchical_vae import HierarchicalVAE
from tarspyro.guides.jmvae import JMVAE
from tarspyro.guides.ladder_vae import LadderVAE
from tarspyro.guides.mvae import MVAE
from tarspyro.guides.semi_supervised_vae import SemiSupervisedVAE
from tarspyro.guides.vae import VAE
from tarspyro.guides.vrnn import VRNN
