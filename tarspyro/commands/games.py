"""Games as the command line builds them: generators and discriminators, and autoencoders whose
codes follow a prior.
"""

__all__ = [
    "adversarial_autoencoder",
    "conditional_gan",
    "gan",
    "vae_gan",
    "wasserstein_autoencoder",
]

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
from torch import nn

from tarspyro import Deterministic, guides, models
from tarspyro.commands.builders import Built, decoder_of, encoder_of, likelihood, mlp, normal
from tarspyro.commands.material import Material
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    VAEGAN,
    WAE,
    Adversarial,
    AdversarialAutoencoder,
    Hinge,
    JensenShannon,
    LeastSquares,
    Wasserstein,
)
from tarspyro.nn import Discriminator

_DIVERGENCES: dict[str, Callable[[], Any]] = {
    "jensen-shannon": JensenShannon,
    "least-squares": LeastSquares,
    "hinge": Hinge,
    "wasserstein": Wasserstein,
}
# The paper's number of moves of the discriminator for one of the generator, under the
# Wasserstein distance.
_CRITIC_STEPS = 5


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


def _discriminator(o: Any, *inputs: Any, dropout: float = 0.0) -> Discriminator:
    return Discriminator(mlp(o.hidden, *inputs, activation=_leaky, dropout=dropout))


def _generator(o: Any, m: Material, *inputs: Any) -> Deterministic:
    """A network of noise: of images with values between 0 and 1, and of points anywhere."""
    if m.image_shape is None:
        return Deterministic(decoder_of(o, *inputs), m.shape)
    network = mlp(o.hidden[::-1], *inputs, normalization=nn.BatchNorm1d)
    return Deterministic(network, m.shape, transform=nn.Sigmoid())


def _against(o: Any, discriminator: Discriminator) -> Adversarial:
    every = _CRITIC_STEPS if o.divergence == "wasserstein" else 1
    return Adversarial(discriminator, _DIVERGENCES[o.divergence](), every=every)


def gan(o: Any, m: Material) -> Built:
    """Builds the pair of ``GAN``."""
    model = models.GAN(default_prior(dist.Normal, o.latent), _generator(o, m, o.latent))
    discriminator = _discriminator(o, m.shape, dropout=0.0 if m.image_shape is None else 0.3)
    return Built(model, None, _against(o, discriminator))


def conditional_gan(o: Any, m: Material) -> Built:
    """Builds the pair of ``ConditionalGAN``."""
    generator = _generator(o, m, o.latent, m.num_classes)
    model = models.ConditionalGAN(default_prior(dist.Normal, o.latent), generator)
    discriminator = _discriminator(o, m.shape, m.num_classes, dropout=0.3)
    return Built(model, None, _against(o, discriminator))


def _plain_vae(o: Any, m: Material, posterior: Any) -> tuple[models.VAE, guides.VAE]:
    model = models.VAE(
        default_prior(dist.Normal, o.latent), likelihood(o, m.shape, decoder_of(o, o.latent))
    )
    return model, guides.VAE(posterior)


def vae_gan(o: Any, m: Material) -> Built:
    """The pair of a VAE, trained by VAEGAN."""
    pair = _plain_vae(o, m, normal(encoder_of(o, m.shape), o))
    divergence = _DIVERGENCES[o.divergence]()
    return Built(*pair, VAEGAN(_discriminator(o, m.shape), divergence, gamma=o.gamma))


def adversarial_autoencoder(o: Any, m: Material) -> Built:
    """The pair of a VAE whose guide is deterministic, trained by AdversarialAutoencoder."""
    pair = _plain_vae(o, m, Deterministic(encoder_of(o, m.shape), o.latent))
    game = AdversarialAutoencoder(
        _discriminator(o, o.latent), _DIVERGENCES[o.divergence](), weight=o.weight
    )
    return Built(*pair, game)


def wasserstein_autoencoder(o: Any, m: Material) -> Built:
    """The pair of a VAE whose guide is deterministic, trained by WAE."""
    return Built(
        *_plain_vae(o, m, Deterministic(encoder_of(o, m.shape), o.latent)),
        WAE(weight=o.weight),
    )
