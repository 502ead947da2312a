"""Guides: the inference halves, each the namesake of its model."""

__all__ = ["VAE", "Autoencoder", "BayesianRegression", "SemiSupervisedVAE"]

from tarspyro.guides.autoencoder import Autoencoder
from tarspyro.guides.bayesian_regression import BayesianRegression
from tarspyro.guides.semi_supervised_vae import SemiSupervisedVAE
from tarspyro.guides.vae import VAE
