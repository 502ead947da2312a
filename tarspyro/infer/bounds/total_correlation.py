"""The KL of a batch of codes in three parts, and ``BetaTCVAE``, which weighs them."""

__all__ = [
    "BetaTCVAE",
    "information_and_correlation",
    "latent_site",
    "log_densities",
    "log_sampling_weights",
]

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tarspyro.arguments import as_count, check_choice, check_number
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.traces import (
    PairError,
    Site,
    drawn_of,
    elements_of,
    is_enumerated,
    plates_of,
    score_function,
)


class BetaTCVAE(ELBO):
    r"""The ELBO with a weight for each part of its KL, for codes with independent units.

    .. math:: \mathcal{L} = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)] - \alpha \, I_q(x; z)
              - \beta \, \mathrm{KL}\Big(q(z) \,\Big\|\, \prod_u q(z_u)\Big)
              - \gamma \sum_u \mathrm{KL}(q(z_u) \,\|\, p(z_u)), \qquad
              q(z) = \frac{1}{N} \sum_{n=1}^N q(z \mid x_n)

    The parts are the information of the code, the total correlation of its units, and the
    distance of each unit from its prior; their sum is the KL. With all weights 1 this is the
    ELBO. The whole KL is in closed form where ``ELBO`` has it, so only the difference of the
    weights to gamma is estimated:

    .. math:: \mathcal{L} = \mathbb{E}[\log p(x \mid z)] - \gamma \, \mathrm{KL}
              - (\alpha - \gamma) \, I_q(x; z) - (\beta - \gamma) \, \mathrm{TC}(z)

    The aggregated posterior q(z) of a code is estimated from a batch of B data points, in
    which the code's own, n, counts 1 / N and each other one (N - 1) / (N (B - 1)):

    .. math:: \hat q(z) = \frac{1}{N} q(z \mid x_n)
              + \frac{N - 1}{N} \, \frac{1}{B - 1} \sum_{m \neq n} q(z \mid x_m)

    This is unbiased, and exact if the batch is the data set; its logarithm is too small in the
    mean. It is the mean of the paper's minibatch-stratified estimates (appendix C.2) over the
    order of the batch. ``weighting="minibatch"`` gives each term 1 / (N B), the paper's
    minibatch-weighted estimate (eq. S4), which is biased by up to log B.

    The history has ``mutual_information``, ``total_correlation`` and ``dimension_wise`` beside
    ``reconstruction`` and ``kl``. (Chen et al. 2018, arXiv:1802.04942, eq. 4.)

    Arguments:
        data_size: N, the number of training data points.
        beta: The weight of the total correlation, 6 in the paper for sprites; may be scheduled.
        alpha: The weight of the information; may be scheduled.
        gamma: The weight of the distances from the prior; may be scheduled.
        weighting: ``"stratified"``, or ``"minibatch"``.
        num_particles: The number of draws from the guide.
        max_plate_nesting: See ``ELBO``.
        vectorize_particles: See ``ELBO``.
        retain_graph: See ``ELBO``.

    Raises:
        TypeError: If ``data_size`` is not a whole number.
        ValueError: If an argument is out of range.
        PairError: When called, if the guide has not one reparameterized latent site of
            independent units, in one plate.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, fit, guides, models
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> x = torch.randn(200, 3)
        >>> likelihood = Conditional(dist.Normal, MLP(2, [16]), 3, scale=0.5)
        >>> p = models.VAE(default_prior(dist.Normal, 2), likelihood)
        >>> q = guides.VAE(Conditional(dist.Normal, MLP(3, [16]), 2))
        >>> loss = BetaTCVAE(len(x), beta=6.0)
        >>> history = fit(p, q, x, loss=loss, epochs=2, seed=0, progress=False)
        >>> parts = ("mutual_information", "total_correlation", "dimension_wise")
        >>> abs(sum(history[part][-1] for part in parts) - history["kl"][-1]) < 1e-4
        True
    """

    adjustable = ("beta", "alpha", "gamma")

    def __init__(
        self,
        data_size: int,
        beta: float = 6.0,
        alpha: float = 1.0,
        gamma: float = 1.0,
        weighting: str = "stratified",
        num_particles: int = 1,
        *,
        max_plate_nesting: int | float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        check_number("alpha", alpha, 0)
        check_number("gamma", gamma, 0)
        check_choice("weighting", weighting, ("stratified", "minibatch"))
        super().__init__(
            num_particles,
            beta,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.data_size = as_count("data_size", data_size)
        self.alpha = alpha
        self.gamma = gamma
        self.weighting = weighting

    def further(
        self, guide_sites: Mapping[str, Site], kl: Tensor, particles: int
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns the weighted differences of the parts, and the parts."""
        site = latent_site(guide_sites, "BetaTCVAE")
        density = log_densities(site, "BetaTCVAE")
        log_weights = log_sampling_weights(
            density.shape[-2], self.data_size, self.weighting, like=density
        )
        own = density.sum(-1).diagonal(dim1=-2, dim2=-1)
        parts = information_and_correlation(density, own, log_weights)
        scale = site["scale"] / particles
        information, correlation = (scale * part.sum() for part in parts)
        loss = (self.alpha - self.gamma) * information
        loss = loss + (self.beta - self.gamma) * correlation
        return loss, {
            "mutual_information": information,
            "total_correlation": correlation,
            "dimension_wise": kl - information - correlation,
        }

    def _weight_of_kl(self) -> float | Tensor:
        return self.gamma


def latent_site(guide_sites: Mapping[str, Site], wanted_by: str) -> Site:
    """Returns the only latent site of a guide, which lies in one plate and has no mask.

    Raises:
        PairError: If there is no such site, or its draws have no gradients.
    """
    drawn = drawn_of(guide_sites.items())
    if len(drawn) != 1:
        raise PairError(
            f"{wanted_by} needs one latent site, and the guide draws {sorted(drawn)}: put all"
            " units into one site, or train with ELBO(beta=...)."
        )
    ((name, site),) = drawn.items()
    if [dim for _, dim in plates_of(site)] != [-1]:
        raise PairError(
            f"{wanted_by} compares the codes of data points, and {name!r} does not lie in one"
            " plate of them: put it inside pyro.plate('data', len(x)) alone."
        )
    if site["mask"] is not None:
        raise PairError(
            f"{wanted_by} compares the codes of all data points, and {name!r} is masked: leave"
            " the mask out, or train with ELBO(beta=...)."
        )
    by_rejection = score_function(site["fn"], site["value"]) is not None
    if site["fn"].has_rsample and by_rejection:
        raise PairError(
            f"{wanted_by} needs draws with a pathwise gradient alone, and {name!r} is drawn by"
            " rejection: give the guide's Conditional reparameterization='implicit'."
        )
    if is_enumerated(site) or not site["fn"].has_rsample:
        raise PairError(
            f"{wanted_by} needs reparameterized draws, and {name!r} is not: take a"
            " reparameterized family in the guide, such as Normal."
        )
    return site


def log_densities(site: Site, wanted_by: str) -> Tensor:
    """Returns log q(z_mu | x_n) of each unit u, of shape ``[..., m, n, u]``.

    Raises:
        PairError: If the units are not independent.
    """
    units = elements_of(site["fn"])
    if units.event_shape:
        raise PairError(
            f"{wanted_by} needs independent units, and {site['name']!r} is drawn from a"
            f" {type(units).__name__} over vectors: take a family of single numbers, such as"
            " Normal."
        )
    value = site["value"]
    ndims = site["fn"].event_dim
    # Every code meets the distributions of all data points: m becomes the first dimension.
    codes = value.movedim(-ndims - 1, 0).unsqueeze(-ndims - 1)
    density: Tensor = units.log_prob(codes)
    density = density.flatten(-ndims) if ndims else density.unsqueeze(-1)
    return density.movedim(0, -3)


def log_sampling_weights(batch: int, data_size: int, weighting: str, like: Tensor) -> Tensor:
    """Returns the logarithms of the weights of data point n in the mixture q(z) of code m.

    Raises:
        ValueError: If the batch is larger than the data set.
    """
    if batch > data_size:
        raise ValueError(
            f"data_size must be at least the size of a batch, {batch}, got {data_size}: give the"
            " number of training data points."
        )
    if weighting == "minibatch":
        return like.new_full((batch, batch), -math.log(data_size * batch))
    if batch == 1:
        return like.new_zeros((1, 1))
    others = (data_size - 1) / (data_size * (batch - 1))
    weights = like.new_full((batch, batch), math.log(others))
    own = torch.eye(batch, dtype=torch.bool, device=like.device)
    return weights.masked_fill(own, -math.log(data_size))


def information_and_correlation(
    density: Tensor, own: Tensor, log_weights: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Returns the information and the total correlation of each code, estimates in nats.

    .. math:: \log q(z \mid x) - \log q(z), \qquad \log q(z) - \sum_u \log q(z_u)

    Arguments:
        density: log q(z_mu | x_n), of shape ``[..., M, N, units]``.
        own: log q(z_m | x_m) of each code given its own data point, of shape ``[..., M]``.
        log_weights: The logarithms of the weights of data points, which broadcast to
            ``[M, N]``.

    Returns:
        Two tensors of shape ``[..., M]``.
    """
    whole = (density.sum(-1) + log_weights).logsumexp(-1)
    units = (density + log_weights.unsqueeze(-1)).logsumexp(-2).sum(-1)
    return own - whole, whole - units
