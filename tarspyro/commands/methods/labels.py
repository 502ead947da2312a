"""``conditional-vae``, ``cmma`` and ``semi-supervised-vae``, of images with labels."""

__all__ = ["CMMA", "ConditionalVAE", "SemiSupervisedVAE"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import FEW_LABELS, LABELLED_IMAGES, PreparedData
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
    DATA,
    PAIR,
    hidden_layers,
    latent_units,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class ConditionalVAE(WithLabels, Variational):
    """VAE of images given labels."""

    name = "conditional-vae"
    title = "conditional variational autoencoder, of images given labels"
    paper = "Sohn, Lee and Yan 2015"
    pair = "ConditionalVAE"
    form = LABELLED_IMAGES
    classes = True

    latent: int = latent_units(10)
    hidden: Sequence[int] = hidden_layers(256, 256)
    prior: Literal["standard", "learned"] = setting(
        "standard", PAIR, "the prior of the latent variable"
    )

    report = (reports.bound, reports.likelihood_of("x | y"), reports.active_units)
    figures = (*pictures.WITH_CODES, pictures.analogies)
    sampler = samples.OF_EACH_CLASS

    def build(self, data: PreparedData) -> Built:
        x = data.shape
        y = data.num_classes
        z = self.latent
        prior = (
            standard_normal(z)
            if self.prior == "standard"
            else normal(decoder(self.hidden, y), z)
        )
        likelihood = self.observed(data, decoder(self.hidden, z, y))
        return Built(
            tarspyro.models.ConditionalVAE(prior, likelihood),
            tarspyro.guides.ConditionalVAE(normal(encoder(self.hidden, x, y), z)),
            self.bound(),
        )


@dataclass(frozen=True, kw_only=True)
class CMMA(WithLabels, Variational):
    """CMMA, whose labels act on images through the prior alone."""

    name = "cmma"
    title = "conditional multimodal autoencoder, of images given labels"
    paper = "Pandey and Dukkipati 2016, arXiv:1603.01801"
    pair = "CMMA"
    form = LABELLED_IMAGES
    classes = True

    latent: int = latent_units(16)
    hidden: Sequence[int] = hidden_layers(256, 256)

    report = (reports.bound, reports.likelihood_of("x | y"), reports.active_units)
    figures = (pictures.reconstructions, pictures.latents, pictures.curves)
    sampler = samples.OF_EACH_CLASS

    def build(self, data: PreparedData) -> Built:
        x = data.shape
        y = data.num_classes
        z = self.latent
        prior = normal(decoder(self.hidden, y), z)
        likelihood = self.observed(data, decoder(self.hidden, z))
        return Built(
            tarspyro.models.CMMA(prior, likelihood),
            tarspyro.guides.CMMA(normal(encoder(self.hidden, x, y), z)),
            self.bound(),
        )


@dataclass(frozen=True, kw_only=True)
class SemiSupervisedVAE(WithLabels, Variational):
    """M2, with few labels among many images."""

    name = "semi-supervised-vae"
    title = "semi-supervised variational autoencoder (M2), of few labels among many images"
    paper = "Kingma et al. 2014, arXiv:1406.5298"
    pair = "SemiSupervisedVAE"
    form = FEW_LABELS
    classes = True
    latent_site = "z"

    latent: int = latent_units(10)
    hidden: Sequence[int] = hidden_layers(256)
    labels: int = setting(100, DATA, "how many training images keep their labels")
    classifier_weight: float = setting(
        5.0, BOUND, "the weight of the classifier's own loss, alpha in the paper"
    )
    likelihood_particles: int = 100

    report = (reports.bound, reports.likelihood_of("x"), reports.classification)
    figures = (*pictures.WITH_CODES, pictures.analogies)
    sampler = samples.OF_EACH_CLASS

    def build(self, data: PreparedData) -> Built:
        import pyro.distributions as dist

        x = data.shape
        y = data.num_classes
        z = self.latent
        labelled, unlabelled = data.sizes
        classifier = categorical(encoder(self.hidden, x), y)
        model = tarspyro.models.SemiSupervisedVAE(
            standard_normal(z),
            tarspyro.distributions.default_prior(dist.OneHotCategorical, y),
            self.observed(data, decoder(self.hidden, z, y)),
            num_labelled=labelled,
            num_unlabelled=unlabelled,
        )
        guide = tarspyro.guides.SemiSupervisedVAE(
            classifier,
            normal(encoder(self.hidden, x, y), z),
            num_labelled=labelled,
            num_unlabelled=unlabelled,
        )
        loss = tarspyro.infer.SemiSupervised(self.bound(), alpha=self.classifier_weight)
        return Built(model, guide, loss)
