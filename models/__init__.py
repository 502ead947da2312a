"""Models: the generative halves, one file a method."""

__all__ = ["VAE", "Autoencoder"]

from tarspyro.models.autoencoder import Autoencoder
from tarspyro.models.vae import VAE
