"""``jmvae`` and ``mvae``, of images and labels."""

__all__ = ["JMVAE", "MVAE"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import LABELLED_IMAGES, PreparedData
from tarspyro.commands.methods.method import Built, Variational, WithLabels
from tarspyro.commands.methods.networks import (
    categorical,
    decoder,
    encoder,
    normal,
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
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class _Multimodal(WithLabels, Variational):
    """Methods of two modalities, x_1 the image and x_2 the label."""

    latent: int
    hidden: Sequence[int]

    form = LABELLED_IMAGES
    classes = True
    site = "x_1"
    report = (reports.bound, reports.likelihood_of("x, y"), reports.labels_from_images)
    figures = (*pictures.WITH_CODES, pictures.images_from_labels)
    sampler = samples.PLAIN

    def _modalities(self, data: PreparedData) -> "tuple[list[nn.Module], list[nn.Module]]":
        """The likelihoods of image and label, and the posteriors given one of them."""
        x = data.shape
        y = data.num_classes
        z = self.latent
        label = categorical(decoder(self.hidden, z), y)
        given_image = normal(encoder(self.hidden, x), z)
        given_label = normal(encoder(self.hidden, y), z)
        image = self.observed(data, decoder(self.hidden, z))
        return [image, label], [given_image, given_label]


@dataclass(frozen=True, kw_only=True)
class JMVAE(_Multimodal):
    """JMVAE, with a posterior of its own for each modality."""

    name = "jmvae"
    title = "joint multimodal variational autoencoder (JMVAE-kl), of images and labels"
    paper = "Suzuki et al. 2016, arXiv:1611.01891"
    pair = "JMVAE"

    latent: int = latent_units(16)
    hidden: Sequence[int] = hidden_layers(256, 256)
    modality_weight: float = setting(
        0.1, BOUND, "the weight of the KLs to the posteriors given one modality"
    )

    def build(self, data: PreparedData) -> Built:
        likelihoods, singles = self._modalities(data)
        joint = normal(encoder(self.hidden, data.shape, data.num_classes), self.latent)
        return Built(
            tarspyro.models.JMVAE(standard_normal(self.latent), likelihoods),
            tarspyro.guides.JMVAE(joint, singles),
            tarspyro.infer.ModalityKL(self.bound(), alpha=self.modality_weight),
        )


@dataclass(frozen=True, kw_only=True)
class MVAE(_Multimodal):
    """MVAE: a product of experts is trained on subsets of the modalities too. A mixture sees
    each modality by itself already; all particles of a logarithm come from one expert.
    """

    name = "mvae"
    title = (
        "multimodal variational autoencoder, a product or a mixture of experts, of images and"
        " labels"
    )
    paper = (
        "Wu and Goodman 2018, arXiv:1802.05335; mixture: Shi et al. 2019, arXiv:1911.03393;"
        " mixture-of-products: Sutter et al. 2021, arXiv:2105.02470"
    )
    pair = "MVAE"

    latent: int = latent_units(16)
    hidden: Sequence[int] = hidden_layers(256, 256)
    experts: Literal["product", "mixture", "mixture-of-products"] = setting(
        "product", PAIR, "how the posteriors of the modalities are combined"
    )

    def build(self, data: PreparedData) -> Built:
        likelihoods, experts = self._modalities(data)
        model = tarspyro.models.MVAE(standard_normal(self.latent), likelihoods)
        return Built(
            model,
            tarspyro.guides.MVAE(experts, model.prior, self.experts),
            self._loss(),
        )

    def _loss(self) -> "tarspyro.infer.Bound":
        if self.experts == "product":
            return tarspyro.infer.ModalitySubsets(self.bound())
        if self.experts == "mixture" and self.loss != "elbo":
            return tarspyro.infer.ModalityStrata(self.bound())
        return self.bound()
