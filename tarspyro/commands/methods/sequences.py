"""``vrnn`` and ``deep-markov-model``, of sequences."""

__all__ = ["VRNN", "DeepMarkovModel"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import SEQUENCES, PreparedData
from tarspyro.commands.methods.method import Built, Loss, Variational
from tarspyro.commands.methods.networks import decoder, encoder, mlp, normal, standard_normal
from tarspyro.commands.methods.settings import (
    BOUND,
    PAIR,
    hidden_layers,
    latent_units,
    setting,
)

if TYPE_CHECKING:
    from torch import nn

    from tarspyro import Conditional


@dataclass(frozen=True, kw_only=True)
class _Sequential(Variational):
    """Methods of sequences, whose bound may be that of a particle filter."""

    latent: int = latent_units(16)
    hidden: Sequence[int] = hidden_layers(64)
    units: int = setting(
        64, PAIR, "the hidden units of the recurrence, or the channels of its maps"
    )
    loss: Loss = setting("elbo", BOUND, "the bound", choices=("elbo", "iwae", "renyi", "fivo"))
    likelihood_particles: int = 100
    lr: float = 3e-3

    form = SEQUENCES
    epochs_on = {"digits": 100}
    report = (reports.bound, reports.filtered)
    figures = (pictures.continuations, pictures.curves)
    sampler = samples.SEQUENCES

    def _steps(self, data: PreparedData, trunk: "nn.Module") -> "nn.Module":
        """Returns the likelihood of a step. Under a Bernoulli its initial probabilities are
        the frequencies of the data.
        """
        import torch

        steps = self.observed(data, trunk)
        if self.likelihood != "Bernoulli":
            return steps

        x, *lengths = data.train
        length = lengths[0] if lengths else torch.full((len(x),), x.shape[1])
        inside = torch.arange(x.shape[1]) < length[:, None]
        frequencies = x[inside].mean(0)
        bias = cast("Conditional", steps).heads["logits"].bias
        assert isinstance(bias, torch.Tensor), "the heads of a Conditional are linear"
        with torch.no_grad():
            bias.copy_(torch.logit(frequencies, 1e-3))
        return steps


@dataclass(frozen=True, kw_only=True)
class VRNN(_Sequential):
    """Variational recurrent neural network."""

    name = "vrnn"
    title = "variational recurrent neural network, of sequences"
    paper = "Chung et al. 2015, arXiv:1506.02216"
    pair = "VRNN"

    def build(self, data: PreparedData) -> Built:
        from torch import nn

        (x,) = data.shape
        z = self.latent
        h = self.units
        cell = tarspyro.nn.Recurrence(nn.GRUCell(x + z, h))
        prior = normal(encoder(self.hidden, h), z)
        likelihood = self._steps(data, decoder(self.hidden, z, h))
        posterior = normal(encoder(self.hidden, x, h), z)
        return Built(
            tarspyro.models.VRNN(cell, prior, likelihood),
            tarspyro.guides.VRNN(cell, posterior),
            self.bound(),
        )


@dataclass(frozen=True, kw_only=True)
class DeepMarkovModel(_Sequential):
    """Deep Markov model, whose guide reads the sequence from its end."""

    name = "deep-markov-model"
    title = "deep Markov model, of sequences"
    paper = "Krishnan, Shalit and Sontag 2017, arXiv:1609.09869"
    pair = "DeepMarkovModel"

    def build(self, data: PreparedData) -> Built:
        from torch import nn

        (x,) = data.shape
        z = self.latent
        h = self.units
        model = tarspyro.models.DeepMarkovModel(
            standard_normal(z),
            self._transition(z),
            self._steps(data, decoder(self.hidden, z)),
        )
        encoder = tarspyro.nn.Backward(nn.GRU(x, h))
        guide = tarspyro.guides.DeepMarkovModel(
            self._transition(h), self._transition(h, z), encoder
        )
        return Built(model, guide, self.bound())

    def _transition(self, *inputs: int) -> "Conditional":
        from torch import nn

        return normal(mlp(self.hidden, *inputs, activation=nn.Tanh), self.latent)
