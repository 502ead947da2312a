"""``hierarchical-vae`` and ``ladder-vae``, with layers of latent variables."""

__all__ = ["HierarchicalVAE", "LadderVAE"]

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import IMAGES, PreparedData
from tarspyro.commands.methods.method import Built, Variational
from tarspyro.commands.methods.networks import mlp, normal, seeing, standard_normal
from tarspyro.commands.methods.settings import PAIR, hidden_layers, latent_layers, setting

if TYPE_CHECKING:
    from torch import nn

    from tarspyro import Conditional
    from tarspyro.nn import MLP


@dataclass(frozen=True, kw_only=True)
class _Layers(Variational):
    """Methods with layers of latent variables, the one nearest the data first."""

    latent: Sequence[int]
    hidden: Sequence[int]

    form = IMAGES
    whole_input = True
    latent_site = "z_1"
    report = (reports.bound, reports.likelihood_of("x"), reports.active_units)
    figures = (*pictures.WITH_CODES, pictures.units)
    sampler = samples.PLAIN

    def _network(self, *inputs: int | tuple[int, ...]) -> "MLP":
        """A network between latent variables. Its features are bounded, so that scales stay in
        the range of numbers.
        """
        from torch import nn

        return mlp(self.hidden, *inputs, activation=nn.Tanh)

    def _between(self) -> "list[Conditional]":
        """The distributions p(z_k | z_{k + 1})."""
        return [normal(self._network(above), below) for below, above in pairwise(self.latent)]


@dataclass(frozen=True, kw_only=True)
class HierarchicalVAE(_Layers):
    """Hierarchical VAE, whose guide runs from the data up."""

    name = "hierarchical-vae"
    title = "variational autoencoder with layers of latent variables"
    paper = "Burda et al. 2015, arXiv:1509.00519"
    pair = "HierarchicalVAE"

    latent: Sequence[int] = latent_layers(16, 8)
    hidden: Sequence[int] = hidden_layers(256)
    chain: Literal["samples", "means"] = setting(
        "samples", PAIR, "what a layer of the guide passes on"
    )

    def build(self, data: PreparedData) -> Built:
        networks = [seeing(data, self._network), *map(self._network, self.latent[:-1])]
        posteriors = [
            normal(network, z) for network, z in zip(networks, self.latent, strict=True)
        ]
        model = tarspyro.models.HierarchicalVAE(
            standard_normal(self.latent[-1]),
            self._between(),
            self.observed(data, self._network(self.latent[0])),
        )
        guide = tarspyro.guides.HierarchicalVAE(posteriors, chain=self.chain)
        return Built(model, guide, self.bound())


@dataclass(frozen=True, kw_only=True)
class LadderVAE(_Layers):
    """Ladder VAE, whose guide corrects the layers of the model from the top down."""

    name = "ladder-vae"
    title = "ladder variational autoencoder"
    paper = "Sonderby et al. 2016, arXiv:1602.02282"
    pair = "LadderVAE"

    latent: Sequence[int] = latent_layers(16, 8)
    hidden: Sequence[int] = hidden_layers(256)

    def build(self, data: PreparedData) -> Built:
        width = self.hidden[-1]
        encoders: list[nn.Module] = [seeing(data, self._network)]
        encoders += [self._network(width) for _ in self.latent[1:]]
        posteriors = [normal(mlp([], width), z) for z in self.latent]
        model = tarspyro.models.LadderVAE(
            standard_normal(self.latent[-1]),
            self._between(),
            self.observed(data, self._network(self.latent[0])),
        )
        guide = tarspyro.guides.LadderVAE(encoders, posteriors, list(model.conditionals))
        return Built(model, guide, self.bound())
