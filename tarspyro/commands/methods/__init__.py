"""The methods of the command line: one dataclass each, with its settings, pair, report and
pictures.

A new method is a subclass of ``Method`` in one of the modules below, and its default instance
in ``METHODS``. ``autoencoders``, ``labels``, ``multimodal``, ``hierarchies``, ``sequences``,
``draw``, ``densities``, ``games`` and ``regression`` hold the methods. They share ``settings``
(options as fields), ``forms`` and ``sources`` (data), ``networks``, ``reports`` and
``pictures``.
"""

__all__ = ["METHODS"]

from tarspyro.commands.methods.autoencoders import VAE, Autoencoder, BetaTCVAE, SphericalVAE
from tarspyro.commands.methods.densities import (
    MADE,
    VQVAE,
    Flow,
    PixelCNN,
    PixelVAE,
)
from tarspyro.commands.methods.draw import DRAW, ConditionalDRAW, ConvDRAW
from tarspyro.commands.methods.games import (
    GAN,
    VAEGAN,
    AdversarialAutoencoder,
    ConditionalGAN,
    FactorVAE,
    WassersteinAutoencoder,
)
from tarspyro.commands.methods.hierarchies import HierarchicalVAE, LadderVAE
from tarspyro.commands.methods.labels import CMMA, ConditionalVAE, SemiSupervisedVAE
from tarspyro.commands.methods.method import Method
from tarspyro.commands.methods.multimodal import JMVAE, MVAE
from tarspyro.commands.methods.regression import BayesianRegression, Classifier
from tarspyro.commands.methods.sequences import VRNN, DeepMarkovModel

_ALL: tuple[Method, ...] = (
    VAE(),
    SphericalVAE(),
    BetaTCVAE(),
    Autoencoder(),
    ConditionalVAE(),
    HierarchicalVAE(),
    LadderVAE(),
    SemiSupervisedVAE(),
    JMVAE(),
    MVAE(),
    CMMA(),
    VRNN(),
    DeepMarkovModel(),
    DRAW(),
    ConvDRAW(),
    ConditionalDRAW(),
    MADE(),
    PixelCNN(),
    PixelVAE(),
    VQVAE(),
    Flow(),
    GAN(),
    ConditionalGAN(),
    VAEGAN(),
    FactorVAE(),
    AdversarialAutoencoder(),
    WassersteinAutoencoder(),
    BayesianRegression(),
    Classifier(),
)

# The methods with their default settings, by the names that ``tarspyro train`` takes.
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
