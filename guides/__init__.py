"""Guides: the inference halves, each the namesake of its model."""

__all__ = [
    "VAE",
    "VRNN",
    "Autoencoder",
    "BayesianRegression",
    "ConditionalVAE",
    "DeepMarkovModel",
    "HierarchicalVAE",
    "LadderVAE",
]

from tarspyro.guides.autoencoder import Autoencoder
from tarspyro.guides.bayesian_regression import BayesianRegression
from tarspyro.guides.conditional_vae import ConditionalVAE
from tarspyro.guides.deep_markov_model import DeepMarkovModel
from tarspyro.guides.hierarchical_vae import HierarchicalVAE
from tarspyro.guides.ladder_vae import LadderVAE
from tarspyro.guides.vae import VAE
from tarspyro.guides.vrnn import VRNN
