"""Guides: the inference halves, each the namesake of its model."""

__all__ = ["VAE", "Autoencoder", "BayesianRegression", "ConditionalVAE"]

from tarspyro.guides.autoencoder import Autoencoder
from tarspyro.guides.bayesian_regression import BayesianRegression
from tarspyro.guides.conditional_vae import ConditionalVAE
from tarspyro.guides.vae import VAE
