"""Antithetic pairs of binary draws, and their gradient, DisARM."""

__all__ = ["antithetic_pair", "disarm_score"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Bernoulli, Distribution, Independent, MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from tarspyro.infer.bounds.enumeration import Term
from tarspyro.infer.traces import (
    PairError,
    Site,
    guide_terms,
    is_factor,
    particle_plate,
    plates_of,
    trace_pair,
)
from tarspyro.types import Program


def antithetic_pair(
    model: Program,
    guide: Program,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    particles: int,
    nesting: int,
) -> tuple[Trace, Trace]:
    """Runs the guide, whose second half of particles mirrors the first, then the model.

    A Bernoulli unit of a particle is one if a uniform number u is below its probability, that of
    the mirrored particle if 1 - u is.

    Returns:
        The trace of the model, and that of the guide.

    Raises:
        PairError: If the guide draws anything but one Bernoulli site.
    """

    def mirrored(*args: object, **kwargs: object) -> object:
        with _Antithetic(-nesting - 1):
            return particle_plate(guide, particles, nesting)(*args, **kwargs)

    in_plate = particle_plate(model, particles, nesting)
    model_trace, guide_trace = trace_pair(in_plate, mirrored, args, kwargs)
    _check(guide_trace)
    return model_trace, guide_trace


def _check(guide_trace: Trace) -> None:
    """Raises unless a guide draws one Bernoulli site."""
    drawn = _drawn(dict(guide_terms(guide_trace)))
    families = {name: _innermost(site["fn"]) for name, site in drawn.items()}
    if len(drawn) != 1 or not all(isinstance(one, Bernoulli) for one in families.values()):
        found = ", ".join(f"{name!r} ({type(one).__name__})" for name, one in families.items())
        raise PairError(
            "gradient='disarm' needs a guide that draws one Bernoulli site, and it draws"
            f" {found or 'nothing'}: put all units into one site, or take gradient='pathwise'."
        )
    for name, site in drawn.items():
        if site["infer"].get("enumerate") == "parallel":
            raise PairError(
                f"gradient='disarm' draws {name!r}, which the guide enumerates: take"
                " gradient='pathwise'."
            )


def _drawn(guide_sites: Mapping[str, Site]) -> dict[str, Site]:
    return {
        name: site
        for name, site in guide_sites.items()
        if not site["is_observed"] and not is_factor(site)
    }


class _Antithetic(Messenger):
    """Draws Bernoulli sites in antithetic pairs."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def _pyro_sample(self, msg: Any) -> None:
        family = _innermost(msg["fn"])
        if msg["is_observed"] or msg["done"] or not isinstance(family, Bernoulli):
            return
        probs = family.probs.expand(msg["fn"].batch_shape + msg["fn"].event_shape).detach()
        dim = self.dim - msg["fn"].event_dim
        u = torch.rand_like(probs.narrow(dim, 0, probs.shape[dim] // 2))
        msg["value"] = (torch.cat([u, 1 - u], dim) < probs).to(probs.dtype)
        msg["done"] = True


def disarm_score(guide_sites: Mapping[str, Site], particles: int, nesting: int) -> Term:
    r"""Returns numbers that take the place of the score function of antithetic draws.

    .. math:: \nabla_\alpha \mathbb{E}[f(b)] = \mathbb{E}\Big[ \tfrac{1}{2}
              \big( f(b) - f(\tilde b) \big) (b - \tilde b) \, \sigma(|\alpha|) \Big], \qquad
              b = [u < \sigma(\alpha)], \; \tilde b = [1 - u < \sigma(\alpha)]

    (Dong et al. 2020, arXiv:2006.10680, eq. 7.) The numbers of a pair are opposite, so the mean
    of the other particles, which ``surrogate`` subtracts as a baseline, multiplies the gradient
    by K / (K - 1). This factor is taken out here.
    """
    (site,) = _drawn(guide_sites).values()
    value = site["value"]
    ndims = site["fn"].event_dim
    mirrored = value.roll(particles // 2, -nesting - 1 - ndims)
    logits = _innermost(site["fn"]).logits
    slope = (value - mirrored) * logits.detach().abs().sigmoid()
    score: Tensor = (slope * logits).sum(list(range(-ndims, 0))) if ndims else slope * logits
    return Term(score * ((particles - 1) / particles), plates_of(site))


def _innermost(distribution: Distribution) -> Any:
    while isinstance(distribution, Independent | MaskedDistribution):
        distribution = distribution.base_dist
    return distribution
