"""Autoencoders whose codes all together follow the prior: the adversarial one, and that with a
discrepancy.
"""

__all__ = ["AdversarialAutoencoder", "WAE"]

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from tarspyro.arguments import check_number, check_positive
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.games.adversarial import AdversarialGame, check_conditions, conditions_of
from tarspyro.infer.games.base import Player
from tarspyro.infer.games.losses import Divergence
from tarspyro.infer.games.masks import both, counted_rows, observed_rows
from tarspyro.infer.games.mmd import InverseMultiquadratic, mmd
from tarspyro.infer.matching import check_pair
from tarspyro.infer.traces import (
    PairError,
    Site,
    log_prob,
    name_of,
    sample_sites,
    sum_of,
    trace_pair,
)
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program


class _Codes(NamedTuple):
    """Codes of a batch, as many draws of the prior, and what the model makes of the codes.

    A row counts if neither half masks its latent variable, and something of it is observed.
    """

    site: Site
    encoded: Tensor
    drawn: Tensor
    counted: Tensor | None  # which rows do
    conditions: tuple[Tensor, ...]  # the rest of the data, which no site observes
    reconstruction: Tensor  # log p(x | z), summed

    def total(self, values: Tensor) -> Tensor:
        """Adds up the rows that count, with the site's scale; of several numbers in a row the
        mean.
        """
        rows = (
            values
            if values.shape == (len(self.encoded),)
            else values.reshape(len(self.encoded), -1).mean(1)
        )
        scaled: Tensor = scale_and_mask(rows, self.site["scale"], self.counted)
        return scaled.sum()


def _codes(
    model: Program, guide: Program, latent: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> _Codes:
    model_trace, guide_trace = trace_pair(model, guide, args, kwargs)
    sites, guided = dict(sample_sites(model_trace)), dict(sample_sites(guide_trace))
    if latent not in guided:
        raise PairError(
            f"{name_of(guide)} draws no {latent!r}: latent must be one of {sorted(guided)}."
        )
    if not guided[latent]["fn"].has_rsample:
        raise PairError(
            f"{name_of(guide)} draws {latent!r} without a derivative: take a Normal, or a"
            " Deterministic."
        )
    observed = [site for site in sites.values() if site["is_observed"]]
    terms = [
        scale_and_mask(log_prob(site), site["scale"], site["mask"]).sum() for site in observed
    ]
    conditions = conditions_of((site["value"] for site in observed), args, kwargs)
    prior = sites[latent]["fn"]
    drawn = prior.rsample() if prior.has_rsample else prior.sample()
    counted = both(observed_rows(sites[latent], observed), counted_rows(guided[latent]))
    return _Codes(
        sites[latent], guided[latent]["value"], drawn, counted, conditions, sum_of(terms)
    )


class AdversarialAutoencoder(AdversarialGame):
    r"""An adversarial autoencoder: a discriminator tells codes of the data from draws of the
    prior.

    .. math:: \min_{p, q} & \; \mathbb{E}_x \mathbb{E}_{q(z \mid x)}[-\log p(x \mid z) + \lambda \, \mathcal{L}_G(z)] \\
              \min_D & \; \mathbb{E}_{p(z)}[\mathcal{L}_D(z)] + \mathbb{E}_x \mathbb{E}_{q(z
              \mid x)}[\mathcal{L}_D(z)]

    In place of the ELBO's KL of each q(z | x) it is the codes of all data together,
    :math:`\mathbb{E}_x[q(z \mid x)]`, that come to follow the prior, of which only draws are
    needed. The pair is that of a VAE; the guide may also be ``Deterministic``. The paper has a
    step for each term of the first loss, which here is one, as in the Wasserstein autoencoder
    of Tolstikhin et al. (2017, Algorithm 1). What no site observes, such as the label of a
    ``ConditionalVAE``, is a condition of the discriminator too: D(z, y).

    The discriminator moves first. The history has ``autoencoder_loss``, its term
    ``reconstruction``, and the discriminator's as with ``Adversarial``: ``real`` are its
    outputs for draws of the prior, ``fake`` those for codes.

    Arguments:
        discriminator: A network from a code (and conditions) to its score, such as
            ``nn.Discriminator``.
        divergence: ``JensenShannon()`` if not given, or another of this module.
        latent: The latent site.
        weight: The weight lambda of the codes beside the reconstruction; may be scheduled.
        patience: See ``Adversarial``.

    Raises:
        TypeError: If ``discriminator`` or ``divergence`` is none.
        ValueError: If the weight is not positive.
        PairError: In ``fit``, if the halves do not match, or the guide draws nothing at the
            site, or without a derivative.

    References:
        Makhzani et al. (2015), Adversarial Autoencoders, arXiv:1511.05644.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, Deterministic, fit, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP, Discriminator
        >>> p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [16]), 3, scale=0.5))
        >>> q = guides.VAE(Deterministic(MLP(3, [16]), 2))
        >>> loss = AdversarialAutoencoder(Discriminator(MLP(2, [16])))
        >>> history = fit(p, q, torch.randn(200, 3), loss=loss, epochs=2, seed=0, progress=False)
        >>> sorted(name for name in history.rows[0] if "_loss" in name)
        ['autoencoder_loss', 'discriminator_loss']
    """

    adjustable = ("weight",)

    def __init__(
        self,
        discriminator: nn.Module,
        divergence: Divergence | None = None,
        *,
        latent: str = "z",
        weight: float = 1.0,
        patience: int | None = 1000,
    ) -> None:
        super().__init__(discriminator, divergence, patience)
        check_positive("weight", weight)
        self.latent, self.weight = latent, weight

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        return [
            self.against(self.discriminator_loss),
            self.player("autoencoder", self.autoencoder_loss, [*model, *guide]),
        ]

    def discriminator_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of telling draws of the prior from codes."""
        with torch.no_grad():
            codes = _codes(model, guide, self.latent, args, kwargs)
        return self.tell_apart(codes.drawn, [codes.encoded], codes.conditions, codes.total)

    def autoencoder_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the reconstruction term, and the loss of codes that do not pass for draws of
        the prior.
        """
        codes = _codes(model, guide, self.latent, args, kwargs)
        unconvinced = self.convince([codes.encoded], codes.conditions, codes.total)
        return self.weight * unconvinced - codes.reconstruction, {
            "reconstruction": codes.reconstruction.detach()
        }

    def check(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> None:
        """Raises a ``PairError`` unless the halves match and the guide's codes have a
        derivative.
        """
        check_pair(model, guide, *args, **kwargs)
        with preserved_rng(), evaluating(model, guide):
            _codes(model, guide, self.latent, args, kwargs)
            check_conditions(model, args, kwargs)
        self.rehearse(model, guide, *args, **kwargs)


class WAE(Bound):
    r"""The Wasserstein autoencoder with the maximum mean discrepancy of a batch's codes and
    draws of the prior.

    .. math:: \mathcal{L} = \mathbb{E}_x \mathbb{E}_{q(z \mid x)}[-\log p(x \mid z)]
              + \lambda \, \mathrm{MMD}_k(\mathbb{E}_x[q(z \mid x)], p(z))

    A loss with the interface of a bound, but no bound on log p(x). With a Normal likelihood of
    fixed scale s the first term is the squared error over 2 s^2, the cost of the paper. The
    estimate of the discrepancy is unbiased (``mmd``) and is multiplied by the number of data
    points, as all losses are; a batch of a single row has none, and counts its reconstruction
    alone. Rows whose latent variable is masked, or all of whose observations are, are not
    there. The history has the mean of the discrepancy, ``mmd``, and ``reconstruction``.

    Arguments:
        weight: The weight lambda, 10 in the paper for MNIST; may be scheduled.
        kernel: ``InverseMultiquadratic()`` if not given, or ``GaussianKernel()``, or any
            function of two matrices.
        latent: The latent site.

    Raises:
        ValueError: If the weight is negative.
        PairError: If the guide draws nothing at the site, or without a derivative.

    References:
        Tolstikhin et al. (2017), Wasserstein Auto-Encoders, arXiv:1711.01558, Algorithm 2.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, Deterministic, fit, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [16]), 3, scale=0.5))
        >>> q = guides.VAE(Deterministic(MLP(3, [16]), 2))
        >>> history = fit(p, q, torch.randn(200, 3), loss=WAE(), epochs=2, seed=0, progress=False)
        >>> history["loss"][1] < history["loss"][0]
        True
    """

    adjustable = ("weight",)

    def __init__(
        self,
        weight: float = 10.0,
        kernel: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        latent: str = "z",
    ) -> None:
        check_number("weight", weight, 0)
        super().__init__(1)
        self.weight, self.kernel, self.latent = (
            weight,
            kernel or InverseMultiquadratic(),
            latent,
        )

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its terms, summed over the data points."""
        codes = _codes(model, guide, self.latent, args, kwargs)
        terms = {"reconstruction": codes.reconstruction.detach()}
        loss = -codes.reconstruction
        if len(codes.drawn) > 1:
            count = codes.total(torch.ones_like(codes.drawn.flatten(1)[:, 0]))
            discrepancy = count * mmd(codes.encoded, codes.drawn, self.kernel, codes.counted)
            terms["mmd"] = discrepancy.detach()
            loss = loss + self.weight * discrepancy
        return loss, terms
