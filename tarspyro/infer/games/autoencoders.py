"""Adversarial and Wasserstein (MMD) autoencoders."""

__all__ = ["WAE", "AdversarialAutoencoder"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from tarspyro.arguments import check_number, check_positive
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.games.adversarial import AdversarialGame
from tarspyro.infer.games.base import LossAndTerms, Player
from tarspyro.infer.games.draws import Rows, check_conditions, conditions_of
from tarspyro.infer.games.losses import Divergence
from tarspyro.infer.games.masks import both, counted_rows, observed_rows
from tarspyro.infer.games.mmd import InverseMultiquadratic, mmd
from tarspyro.infer.matching import check_pair
from tarspyro.infer.traces import (
    PairError,
    log_prob,
    name_of,
    sample_sites,
    sum_of,
    trace_pair,
)
from tarspyro.scopes import evaluating, preserved_rng
from tarspyro.types import Program


@dataclass
class _Codes(Rows):
    """Codes of a batch, as many draws of the prior, and the reconstruction of the data.

    A row counts if neither half masks its latent variable, and something of it is observed.
    """

    encoded: Tensor
    drawn: Tensor
    reconstruction: Tensor  # log p(x | z), summed


def _encode(
    model: Program,
    guide: Program,
    latent: str,
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> _Codes:
    model_trace, guide_trace = trace_pair(model, guide, args, kwargs)
    sites = dict(sample_sites(model_trace))
    guided = dict(sample_sites(guide_trace))
    if latent not in guided:
        raise PairError(
            f"{name_of(guide)} draws no {latent!r}: latent must be one of {sorted(guided)}."
        )
    encoded = guided[latent]
    if not encoded["fn"].has_rsample:
        raise PairError(
            f"{name_of(guide)} draws {latent!r} without a derivative: take a Normal, or a"
            " Deterministic."
        )

    observed = [site for site in sites.values() if site["is_observed"]]
    terms = [
        scale_and_mask(log_prob(site), site["scale"], site["mask"]).sum() for site in observed
    ]
    prior = sites[latent]["fn"]
    return _Codes(
        site=sites[latent],
        size=len(encoded["value"]),
        counted=both(observed_rows(sites[latent], observed), counted_rows(encoded)),
        conditions=conditions_of((site["value"] for site in observed), args, kwargs),
        encoded=encoded["value"],
        drawn=prior.rsample() if prior.has_rsample else prior.sample(),
        reconstruction=sum_of(terms),
    )


class AdversarialAutoencoder(AdversarialGame):
    r"""An adversarial autoencoder: a discriminator tells codes of the data from draws of the
    prior.

    .. math:: \min_{p, q} & \; \mathbb{E}_x \mathbb{E}_{q(z \mid x)}
              [-\log p(x \mid z) + \lambda \, \mathcal{L}_G(z)] \\
              \min_D & \; \mathbb{E}_{p(z)}[\mathcal{L}_D(z)]
              + \mathbb{E}_x \mathbb{E}_{q(z \mid x)}[\mathcal{L}_D(z)]

    The ELBO's KL divergence draws each q(z | x) to the prior. Here the aggregate posterior
    :math:`\mathbb{E}_x[q(z \mid x)]` comes to follow the prior, of which only draws are
    needed. The pair is that of a VAE; the guide may also be ``Deterministic``. The paper takes
    a step for each term of the first loss; here one step takes both, as in the Wasserstein
    autoencoder of Tolstikhin et al. (2017, Algorithm 1). Data that no site observes, such as
    the label of a ``ConditionalVAE``, are conditions of the discriminator too: D(z, y).

    The discriminator moves first. The history has ``autoencoder_loss``, its term
    ``reconstruction``, and the discriminator's columns as with ``Adversarial``: ``real`` is
    its output for draws of the prior, ``fake`` that for codes.

    Arguments:
        discriminator: A network from a code (and conditions) to its score, such as
            ``nn.Discriminator``.
        divergence: The losses of both sides, such as ``Hinge()``; ``JensenShannon()`` if not
            given.
        latent: The latent site.
        weight: The weight lambda of the generator's loss beside the reconstruction; may be
            scheduled.
        patience: See ``Adversarial``.

    Raises:
        TypeError: If ``discriminator`` is not a module, or ``divergence`` is of another type.
        ValueError: If the weight is not positive.
        PairError: In ``fit``, if the halves do not match, or the guide draws nothing at the
            site, or its draws there have no gradients.

    References:
        Makhzani et al. (2015), Adversarial Autoencoders, arXiv:1511.05644.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, Deterministic, fit, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP, Discriminator
        >>> likelihood = Conditional(dist.Normal, MLP(2, [16]), 3, scale=0.5)
        >>> p = models.VAE(default_prior(dist.Normal, 2), likelihood)
        >>> q = guides.VAE(Deterministic(MLP(3, [16]), 2))
        >>> loss = AdversarialAutoencoder(Discriminator(MLP(2, [16])))
        >>> x = torch.randn(200, 3)
        >>> history = fit(p, q, x, loss=loss, epochs=2, seed=0, progress=False)
        >>> sorted(name for name in history.rows[0] if "_loss" in name)
        ['autoencoder_loss', 'discriminator_loss']
    """

    adjustable = ("weight",)

    has_likelihood = True

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
        self.latent = latent
        self.weight = weight

    def players(self, model: list[Tensor], guide: list[Tensor]) -> list[Player]:
        return [
            self.discriminator_player(self.discriminator_loss),
            self.player("autoencoder", self.autoencoder_loss, [*model, *guide]),
        ]

    def discriminator_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns the loss of telling draws of the prior from codes."""
        with torch.no_grad():
            codes = _encode(model, guide, self.latent, args, kwargs)
        return self.detection_loss(codes.drawn, [codes.encoded], codes)

    def autoencoder_loss(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns minus the reconstruction term plus the weighted generator's loss of codes."""
        codes = _encode(model, guide, self.latent, args, kwargs)
        loss = self.weight * self.fooling_loss([codes.encoded], codes) - codes.reconstruction
        return loss, {"reconstruction": codes.reconstruction.detach()}

    def check(self, model: Program, guide: Program, *args: object, **kwargs: object) -> None:
        """Checks before the first step that the halves match and codes have gradients.

        Raises:
            PairError: If they do not, or a player's loss does not run.
        """
        check_pair(model, guide, *args, **kwargs)
        with preserved_rng(), evaluating(model, guide):
            _encode(model, guide, self.latent, args, kwargs)
            check_conditions(model, args, kwargs)
        self.rehearse(model, guide, *args, **kwargs)


class WAE(Bound):
    r"""The Wasserstein autoencoder with the maximum mean discrepancy between the codes of a
    batch and draws of the prior.

    .. math:: \mathcal{L} = \mathbb{E}_x \mathbb{E}_{q(z \mid x)}[-\log p(x \mid z)]
              + \lambda \, \mathrm{MMD}_k(\mathbb{E}_x[q(z \mid x)], p(z))

    This loss has the interface of a bound, but is no bound on log p(x). With a Normal
    likelihood of fixed scale s the first term is the squared error over 2 s^2, the cost of the
    paper. The estimate of the discrepancy is unbiased (see ``mmd``) and is multiplied by the
    number of data points, as all losses are; for a batch of a single row it is left out. Rows
    count if their latent variable is not masked and something of them is observed. The history
    has ``mmd``, the mean discrepancy, and ``reconstruction``.

    Arguments:
        weight: The weight lambda, 10 in the paper for MNIST; may be scheduled.
        kernel: ``InverseMultiquadratic()`` if not given, or ``GaussianKernel()``, or any
            function of two matrices.
        latent: The latent site.

    Raises:
        ValueError: If the weight is negative.
        PairError: If the guide draws nothing at the site, or its draws have no gradients.

    References:
        Tolstikhin et al. (2017), Wasserstein Auto-Encoders, arXiv:1711.01558, Algorithm 2.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, Deterministic, fit, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> likelihood = Conditional(dist.Normal, MLP(2, [16]), 3, scale=0.5)
        >>> p = models.VAE(default_prior(dist.Normal, 2), likelihood)
        >>> q = guides.VAE(Deterministic(MLP(3, [16]), 2))
        >>> x = torch.randn(200, 3)
        >>> history = fit(p, q, x, loss=WAE(), epochs=2, seed=0, progress=False)
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
        self.weight = weight
        self.kernel = kernel or InverseMultiquadratic()
        self.latent = latent

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> LossAndTerms:
        """Returns the loss and its terms, summed over the data points."""
        codes = _encode(model, guide, self.latent, args, kwargs)
        loss = -codes.reconstruction
        terms = {"reconstruction": codes.reconstruction.detach()}
        if len(codes.drawn) > 1:
            count = codes.total(torch.ones_like(codes.drawn.flatten(1)[:, 0]))
            discrepancy = count * mmd(codes.encoded, codes.drawn, self.kernel, codes.counted)
            loss = loss + self.weight * discrepancy
            terms["mmd"] = discrepancy.detach()
        return loss, terms
