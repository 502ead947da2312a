"""``gan``, ``conditional-gan``, ``vae-gan``, ``factor-vae``, ``adversarial-autoencoder`` and
``wasserstein-autoencoder``.
"""

__all__ = [
    "GAN",
    "VAEGAN",
    "AdversarialAutoencoder",
    "ConditionalGAN",
    "FactorVAE",
    "WassersteinAutoencoder",
]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import (
    IMAGES,
    IMAGES_OR_POINTS,
    LABELLED_IMAGES,
    PreparedData,
)
from tarspyro.commands.methods.method import Built, EarlyStopping, Method, WithLabels
from tarspyro.commands.methods.networks import (
    decoder,
    deterministic_pair,
    grey_pair,
    mlp,
    standard_normal,
)
from tarspyro.commands.methods.settings import (
    BOUND,
    PAIR,
    hidden_layers,
    latent_units,
    setting,
)

if TYPE_CHECKING:
    from tarspyro import Deterministic, infer
    from tarspyro.nn import Discriminator

# The discriminator's moves for one of the generator under the Wasserstein distance, as in the
# paper.
_CRITIC_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class _Game(Method):
    """Methods with a discriminator."""

    hidden: Sequence[int]  # a setting of each method
    divergence: Literal["jensen-shannon", "least-squares", "hinge", "wasserstein"] = setting(
        "jensen-shannon", BOUND, "what the players of the game minimize"
    )

    def _divergence(self) -> "infer.Divergence":
        divergences: dict[str, type[tarspyro.infer.Divergence]] = {
            "jensen-shannon": tarspyro.infer.JensenShannon,
            "least-squares": tarspyro.infer.LeastSquares,
            "hinge": tarspyro.infer.Hinge,
            "wasserstein": tarspyro.infer.Wasserstein,
        }
        return divergences[self.divergence]()

    def _discriminator(
        self, *inputs: int | tuple[int, ...], dropout: float = 0.0
    ) -> "Discriminator":
        from torch import nn

        def leaky() -> nn.Module:
            return nn.LeakyReLU(0.2)

        return tarspyro.nn.Discriminator(
            mlp(self.hidden, *inputs, activation=leaky, dropout=dropout)
        )


@dataclass(frozen=True, kw_only=True)
class _Generating(_Game):
    """GANs, whose halves are a model and a discriminator."""

    latent: int = latent_units(16)
    hidden: Sequence[int] = hidden_layers(128, 128)
    lr: float = 5e-4

    optimizer = {"betas": (0.5, 0.999)}
    report = (reports.game,)
    figures = (pictures.curves,)

    def _generator(
        self, data: PreparedData, *inputs: int | tuple[int, ...]
    ) -> "Deterministic":
        """A network of noise. The values of images are between 0 and 1, points anywhere."""
        from torch import nn

        if data.image_shape is None:
            return tarspyro.Deterministic(decoder(self.hidden, *inputs), data.shape)
        network = mlp(self.hidden[::-1], *inputs, normalization=nn.BatchNorm1d)
        return tarspyro.Deterministic(network, data.shape, transform=nn.Sigmoid())

    def _loss(self, discriminator: "Discriminator") -> "infer.Adversarial":
        every = _CRITIC_STEPS if self.divergence == "wasserstein" else 1
        return tarspyro.infer.Adversarial(discriminator, self._divergence(), every=every)


@dataclass(frozen=True, kw_only=True)
class GAN(_Generating):
    """GAN of images, or of points in the plane."""

    name = "gan"
    title = "generative adversarial network"
    paper = "Goodfellow et al. 2014, arXiv:1406.2661"
    pair = "GAN"
    form = IMAGES_OR_POINTS
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        generator = self._generator(data, self.latent)
        model = tarspyro.models.GAN(standard_normal(self.latent), generator)
        dropout = 0.0 if data.image_shape is None else 0.3
        discriminator = self._discriminator(data.shape, dropout=dropout)
        return Built(model, None, self._loss(discriminator))


@dataclass(frozen=True, kw_only=True)
class ConditionalGAN(WithLabels, _Generating):
    """GAN of images given labels."""

    name = "conditional-gan"
    title = "conditional generative adversarial network, of images given labels"
    paper = "Mirza and Osindero 2014, arXiv:1411.1784"
    pair = "ConditionalGAN"
    form = LABELLED_IMAGES
    classes = True
    sampler = samples.OF_EACH_CLASS

    def build(self, data: PreparedData) -> Built:
        generator = self._generator(data, self.latent, data.num_classes)
        model = tarspyro.models.ConditionalGAN(standard_normal(self.latent), generator)
        discriminator = self._discriminator(data.shape, data.num_classes, dropout=0.3)
        return Built(model, None, self._loss(discriminator))


@dataclass(frozen=True, kw_only=True)
class VAEGAN(_Game):
    """VAE whose reconstructions are compared by a layer of a discriminator."""

    name = "vae-gan"
    title = "VAE-GAN, a variational autoencoder with a learned similarity"
    paper = "Larsen et al. 2015, arXiv:1512.09300"
    pair = "VAE"
    form = IMAGES
    images_alone = True

    latent: int = latent_units(16)
    hidden: Sequence[int] = hidden_layers(128, 128)
    gamma: float = setting(0.1, BOUND, "the weight of the similarity in the generator's loss")
    lr: float = 5e-4

    optimizer = {"betas": (0.5, 0.999)}
    report = (reports.reconstruction_error, reports.game)
    figures = (*pictures.WITH_CODES, pictures.manifold)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        model, guide = grey_pair(data.shape, self.latent, self.hidden)
        discriminator = self._discriminator(data.shape)
        loss = tarspyro.infer.VAEGAN(discriminator, self._divergence(), gamma=self.gamma)
        return Built(model, guide, loss)


@dataclass(frozen=True, kw_only=True)
class FactorVAE(_Game):
    """VAE whose total correlation a discriminator measures."""

    name = "factor-vae"
    title = "variational autoencoder whose units a discriminator makes independent (FactorVAE)"
    paper = "Kim and Mnih 2018, arXiv:1802.05983"
    pair = "VAE"
    form = IMAGES
    images_alone = True

    latent: int = latent_units(10)
    hidden: Sequence[int] = hidden_layers(256, 256)
    gamma: float = setting(10.0, BOUND, "the weight of the total correlation")

    report = (reports.bound, reports.active_units, reports.game)
    figures = (*pictures.WITH_CODES, pictures.manifold)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        model, guide = grey_pair(data.shape, self.latent, self.hidden)
        discriminator = self._discriminator(self.latent)
        loss = tarspyro.infer.FactorVAE(discriminator, gamma=self.gamma)
        return Built(model, guide, loss)


@dataclass(frozen=True, kw_only=True)
class AdversarialAutoencoder(_Game):
    """Autoencoder whose codes a discriminator compares with draws of the prior."""

    name = "adversarial-autoencoder"
    title = "adversarial autoencoder"
    paper = "Makhzani et al. 2015, arXiv:1511.05644"
    pair = "VAE"
    form = IMAGES

    latent: int = latent_units(2)
    hidden: Sequence[int] = hidden_layers(128, 128)
    scale: float = setting(
        0.3, PAIR, "the scale of the Normal likelihood; learned if not given"
    )
    weight: float = setting(5.0, BOUND, "the weight of the codes beside the reconstruction")

    report = (reports.reconstruction_error, reports.codes, reports.game)
    figures = (*pictures.WITH_CODES, pictures.manifold)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        model, guide = deterministic_pair(data.shape, self.latent, self.hidden, self.scale)
        discriminator = self._discriminator(self.latent)
        loss = tarspyro.infer.AdversarialAutoencoder(
            discriminator, self._divergence(), weight=self.weight
        )
        return Built(model, guide, loss)


@dataclass(frozen=True, kw_only=True)
class WassersteinAutoencoder(EarlyStopping, Method):
    """Autoencoder whose codes follow the prior by the maximum mean discrepancy. It is not a
    game, since no discriminator is trained.
    """

    name = "wasserstein-autoencoder"
    title = "Wasserstein autoencoder with the maximum mean discrepancy (WAE-MMD)"
    paper = "Tolstikhin et al. 2017, arXiv:1711.01558"
    pair = "VAE"
    form = IMAGES

    latent: int = latent_units(2)
    hidden: Sequence[int] = hidden_layers(128, 128)
    scale: float = setting(
        0.3, PAIR, "the scale of the Normal likelihood; learned if not given"
    )
    weight: float = setting(100.0, BOUND, "the weight of the codes beside the reconstruction")

    report = (reports.reconstruction_error, reports.codes)
    figures = (*pictures.WITH_CODES, pictures.manifold)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        pair = deterministic_pair(data.shape, self.latent, self.hidden, self.scale)
        return Built(*pair, tarspyro.infer.WAE(weight=self.weight))
