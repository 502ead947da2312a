"""``jmvae`` and ``mvae``, of images and labels."""

__all__ = ["JMVAE", "MVAE"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tarspyro.commands.methods import pictures, reports
from tarspyro.commands.methods.forms import LABELLED_IMAGES, PreparedData
from tarspyro.commands.methods.method import Built, Variational
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
class _Multimodal(Variational):
    """Methods of two modalities, x_1 the image and x_2 the label."""

    latent: int
    hidden: Sequence[int]

    form = LABELLED_IMAGES
    site = "x_1"
    report = (reports.bound, reports.likelihood_of("x, y"), reports.labels_from_images)
    figures = (
        pictures.reconstructions,
        pictures.latents,
        pictures.curves,
        pictures.images_from_labels,
    )
    sampler = staticmethod(pictures.samples)

    def _modalities(self, data: PreparedData) -> "tuple[list[nn.Module], list[nn.Module]]":
        """The likelihoods of image and label, and the posteriors given one of them."""
        import pyro.distributions as dist

        from tarspyro import Conditional
        from tarspyro.commands.methods.networks import decoder, encoder, normal

        x = data.shape
        y = data.num_classes
        z = self.latent
        label = Conditional(dist.OneHotCategorical, decoder(self.hidden, z), y)
        given_image = normal(encoder(self.hidden, x), z)
        given_label = normal(encoder(self.hidden, y), z)
        image = self.observed(x, decoder(self.hidden, z))
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
        from tarspyro import guides, models
        from tarspyro.commands.methods.networks import encoder, normal, standard_normal
        from tarspyro.infer import ModalityKL

        likelihoods, singles = self._modalities(data)
        joint = normal(encoder(self.hidden, data.shape, data.num_classes), self.latent)
        return Built(
            models.JMVAE(standard_normal(self.latent), likelihoods),
            guides.JMVAE(joint, singles),
            ModalityKL(self.bound(), alpha=self.modality_weight),
        )


@dataclass(frozen=True, kw_only=True)
class MVAE(_Multimodal):
    """MVAE: a product of experts is trained on subsets of the modalities too. A mixture sees
    each modality by itself already.
    """

    name = "mvae"
    title = (
        "multimodal variational autoencoder, a product or a mixture of experts, of images and"
        " labels"
    )
    paper = "Wu and Goodman 2018, arXiv:1802.05335; mixture: Shi et al. 2019, arXiv:1911.03393"
    pair = "MVAE"

    latent: int = latent_units(16)
    hidden: Sequence[int] = hidden_layers(256, 256)
    experts: Literal["product", "mixture"] = setting(
        "product", PAIR, "how the posteriors of the modalities are combined"
    )

    def build(self, data: PreparedData) -> Built:
        from tarspyro import guides, models
        from tarspyro.commands.methods.networks import standard_normal
        from tarspyro.infer import ModalitySubsets

        likelihoods, experts = self._modalities(data)
        model = models.MVAE(standard_normal(self.latent), likelihoods)
        bound = self.bound()
        return Built(
            model,
            guides.MVAE(experts, model.prior, self.experts),
            ModalitySubsets(bound) if self.experts == "product" else bound,
        )
