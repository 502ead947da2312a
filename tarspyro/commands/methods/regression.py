"""``bayesian-regression`` and ``classifier``, of targets given inputs."""

__all__ = ["BayesianRegression", "Classifier"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tarspyro
from tarspyro.commands.methods import pictures, reports
from tarspyro.commands.methods.forms import LABELLED_IMAGES, TARGETS, PreparedData
from tarspyro.commands.methods.method import (
    Built,
    EarlyStopping,
    Method,
    WithBound,
    WithLabels,
)
from tarspyro.commands.methods.networks import (
    categorical,
    encoder,
    standard_normal,
    with_scale,
)
from tarspyro.commands.methods.settings import hidden_layers

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class BayesianRegression(WithLabels, WithBound, Method):
    """Bayesian neural network of a number, whose noise is learned, or of a class."""

    name = "bayesian-regression"
    title = "Bayesian neural network, of a number or of a class"
    paper = "Kingma and Welling 2013, arXiv:1312.6114, appendix F"
    pair = "BayesianRegression"
    form = TARGETS
    codes = False

    hidden: Sequence[int] = hidden_layers(50)

    report = (reports.predictions,)
    figures = (pictures.regression, pictures.curves)

    def build(self, data: PreparedData) -> Built:
        import pyro.distributions as dist
        import torch
        from torch import nn

        network = tarspyro.nn.RandomWeights(self._target(data))
        size = network.num_weights
        loc = nn.Parameter(0.1 * torch.randn(size))
        scale = nn.Parameter(torch.full((size,), math.exp(-5)))
        posterior = tarspyro.distributions.Prior(dist.Normal, size, loc=loc, scale=scale)
        return Built(
            tarspyro.models.BayesianRegression(
                standard_normal(size), network, len(data.train[0])
            ),
            tarspyro.guides.BayesianRegression(posterior),
            self.bound(),
        )

    def _target(self, data: PreparedData) -> "nn.Module":
        trunk = encoder(self.hidden, data.shape)
        if data.num_classes:
            return categorical(trunk, data.num_classes)
        return with_scale(trunk, (), None, initial=1.0)


@dataclass(frozen=True, kw_only=True)
class Classifier(WithLabels, EarlyStopping, Method):
    """Classifier, trained by maximum likelihood."""

    name = "classifier"
    title = "classifier, without latent variables"
    paper = "maximum likelihood"
    pair = "Classifier"
    form = LABELLED_IMAGES
    classes = True
    epochs_on = {"digits": 100}

    hidden: Sequence[int] = hidden_layers(256, 256)

    report = (reports.classes,)
    figures = (pictures.curves,)

    def build(self, data: PreparedData) -> Built:

        trunk = encoder(self.hidden, data.shape)
        classifier = categorical(trunk, data.num_classes)
        return Built(tarspyro.models.Classifier(classifier), None, tarspyro.infer.ELBO())
