"""Models: the generative halves, one file a method."""

__all__ = ["VAE", "Autoencoder", "BayesianRegression", "SemiSupervisedVAE"]

from tarspyro.models.autoencoder import Autoencoder
from tarspyro.models.bayesian_regression import BayesianRegression
from tarspyro.models.semi_supervised_vae import SemiSupervisedVAE
from tarspyro.models.vae import VAE
