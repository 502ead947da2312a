"""FactorVAE: a discriminator measures the total correlation of the codes."""

__all__ = ["FactorVAE"]

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tarspyro.arguments import check_module, check_number
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.bounds.total_correlation import latent_site
from tarspyro.infer.games.base import Game, LossAndTerms, Player
from tarspyro.infer.traces import Site, guide_terms, trace_pair
from tarspyro.types import Program


class FactorVAE(Game):
    r"""A VAE whose total correlation, the dependence of the code's units, has a weight.

    .. math:: \max_{p, q} & \; \mathrm{ELBO} - \gamma \, \mathbb{E}_{q(z)}[D(z)] \\
              \min_D & \; -\tfrac{1}{2} \mathbb{E}_{q(z)}[\log \sigma(D(z))]
              - \tfrac{1}{2} \mathbb{E}_{\bar q(z)}[\log \sigma(-D(z))], \qquad
              \bar q(z) = \prod_u q(z_u)

    The best discriminator is the logarithm of the density ratio of q(z) and the product of its
    marginals, whose mean is the total correlation. A draw of the product is a batch of codes in
    which each unit is shuffled over the data points on its own. In contrast to ``BetaTCVAE``
    this needs no densities, so the units need not be independent given x.

    The pair moves first. The history has ``autoencoder_loss`` with its terms
    ``reconstruction``, ``kl`` and ``total_correlation``, and ``discriminator_loss`` with
    ``real`` and ``fake``, the mean outputs for codes and for shuffled codes.

    Arguments:
        discriminator: A network from a code to one score, such as
            ``nn.Discriminator(MLP(10, [1000] * 6))``. Shuffled codes have the shape of codes.
        gamma: The weight of the total correlation, 35 in the paper for sprites; may be
            scheduled.
        num_particles: The number of draws from the guide for each data point.

    Raises:
        TypeError: If ``discriminator`` is not a module.
        ValueError: If gamma is negative.
        PairError: In ``fit``, if the guide has not one reparameterized latent site, in one
            plate, or a loss does not run.

    References:
        Kim and Mnih (2018), Disentangling by Factorising, arXiv:1802.05983, Algorithm 2.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, fit, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP, Discriminator
        >>> likelihood = Conditional(dist.Normal, MLP(2, [16]), 3, scale=0.5)
        >>> p = models.VAE(default_prior(dist.Normal, 2), likelihood)
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(3, [16]), 2))
        >>> loss = FactorVAE(Discriminator(MLP(2, [16])), gamma=5.0)
        >>> x = torch.randn(200, 3)
        >>> history = fit(p, q, x, loss=loss, epochs=2, seed=0, progress=False)
        >>> sorted(name for name in history.rows[0] if name.endswith("_loss"))
        ['autoencoder_loss', 'discriminator_loss']
    """

    adjustable = ("gamma",)

    has_likelihood = True

    def __init__(
        self, discriminator: nn.Module, gamma: float = 35.0, *, num_particles: int = 1
    ) -> None:
        super().__init__()
        check_module("discriminator", discriminator)
        check_number("gamma", gamma, 0)
        self.discriminator = discriminator
        self.gamma = gamma
        self._bound = _Penalized(self, num_particles)

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        return [
            self.player("autoencoder", self.autoencoder_loss, [*model, *guide]),
            self.player(
                "discriminator", self.discriminator_loss, self.discriminator.parameters()
            ),
        ]

    def autoencoder_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns minus the ELBO plus gamma times the estimated total correlation."""
        return self._bound.loss_and_terms(model, guide, *args, **kwargs)

    def discriminator_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns the loss of telling codes from codes with shuffled units."""
        with torch.no_grad():
            _, trace = trace_pair(model, guide, args, kwargs)
            site = latent_site(dict(guide_terms(trace)), "FactorVAE")
        codes = site["value"]
        of_codes = self._score(codes, site)
        of_shuffled = self._score(_shuffled(codes), site)
        loss = site["scale"] * (softplus(-of_codes) + softplus(of_shuffled)).sum() / 2
        terms = {
            "real": site["scale"] * of_codes.detach().sigmoid().sum(),
            "fake": site["scale"] * of_shuffled.detach().sigmoid().sum(),
        }
        return loss, terms

    def prepare(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        self._bound.prepare(model, guide, args, kwargs)

    def _score(self, codes: Tensor, site: Site) -> Tensor:
        """Returns D of each code, the mean if it has several outputs."""
        rows = codes.reshape(-1, *site["fn"].event_shape)
        score: Tensor = self.discriminator(rows).reshape(len(rows), -1).mean(1)
        return score


class _Penalized(ELBO):
    """The ELBO of a game, minus gamma times the discriminator's total correlation."""

    def __init__(self, game: FactorVAE, num_particles: int) -> None:
        super().__init__(num_particles)
        self.game = game

    def further(
        self, guide_sites: Mapping[str, Site], kl: Tensor, particles: int
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        site = latent_site(guide_sites, "FactorVAE")
        score = self.game._score(site["value"], site)
        correlation = site["scale"] * score.sum() / particles
        return self.game.gamma * correlation, {"total_correlation": correlation}


def _shuffled(codes: Tensor) -> Tensor:
    """Returns codes whose units are each shuffled over the data points."""
    units = codes.flatten(1)
    order = torch.rand_like(units).argsort(0)
    return units.gather(0, order).reshape(codes.shape)
