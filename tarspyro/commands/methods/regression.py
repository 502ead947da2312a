"""``bayesian-regression`` and ``classifier``, of targets given inputs."""

__all__ = ["BayesianRegression", "Classifier"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tarspyro.commands.methods import pictures, reports
from tarspyro.commands.methods.forms import LABELLED_IMAGES, TARGETS, PreparedData
from tarspyro.commands.methods.method import Built, EarlyStopping, Method, WithBound
from tarspyro.commands.methods.settings import hidden_layers

if TYPE_CHECKING:
    from tarspyro import Conditional


@dataclass(frozen=True, kw_only=True)
class BayesianRegression(WithBound, Method):
    """Bayesian neural network of a number, whose noise is learned, or of a class."""

    name = "bayesian-regression"
    title = "Bayesian neural network, of a number or of a class"
    paper = "Kingma and Welling 2013, arXiv:1312.6114, appendix F"
    pair = "BayesianRegression"
    form = TARGETS

    hidden: Sequence[int] = hidden_layers(50)

    report = (reports.predictions,)
    figures = (pictures.regression, pictures.curves)

    def build(self, data: PreparedData) -> Built:
        import math

        import pyro.distributions as dist
        import torch
        from torch import nn

        from tarspyro import guides, models
        from tarspyro.commands.methods.networks import standard_normal
        from tarspyro.distributions import Prior
        from tarspyro.nn import RandomWeights

        network = RandomWeights(self._target(data))
        size = network.num_weights
        loc = nn.Parameter(0.1 * torch.randn(size))
        scale = nn.Parameter(torch.full((size,), math.exp(-5)))
        posterior = Prior(dist.Normal, size, loc=loc, scale=scale)
        return Built(
            models.BayesianRegression(standard_normal(size), network, len(data.train[0])),
            guides.BayesianRegression(posterior),
            self.bound(),
        )

    def _target(self, data: PreparedData) -> "Conditional":
        import pyro.distributions as dist
        import torch
        from torch import nn

        from tarspyro import Conditional
        from tarspyro.commands.methods.networks import encoder

        trunk = encoder(self.hidden, data.shape)
        if data.num_classes:
            return Conditional(dist.OneHotCategorical, trunk, data.num_classes)
        return Conditional(dist.Normal, trunk, (), scale=nn.Parameter(torch.tensor(1.0)))


@dataclass(frozen=True, kw_only=True)
class Classifier(EarlyStopping, Method):
    """Classifier, trained by maximum likelihood."""

    name = "classifier"
    title = "classifier, without latent variables"
    paper = "maximum likelihood"
    pair = "Classifier"
    form = LABELLED_IMAGES
    epochs_on = {"digits": 100}

    hidden: Sequence[int] = hidden_layers(256, 256)

    report = (reports.classes,)
    figures = (pictures.curves,)

    def build(self, data: PreparedData) -> Built:
        import pyro.distributions as dist

        from tarspyro import Conditional, models
        from tarspyro.commands.methods.networks import encoder
        from tarspyro.infer import ELBO

        trunk = encoder(self.hidden, data.shape)
        classifier = Conditional(dist.OneHotCategorical, trunk, data.num_classes)
        return Built(models.Classifier(classifier), None, ELBO())
