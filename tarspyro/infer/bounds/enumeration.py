"""Exact expectations over the latent variables that a guide enumerates."""

__all__ = ["Enumerated", "Term", "enumerated_sites", "expectation", "surrogate"]

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from tarspyro.infer.traces import (
    PairError,
    Plates,
    Site,
    log_prob,
    plates_of,
    reduce_to,
    sum_of,
    without_masks,
)


class Term(NamedTuple):
    """A term of a bound, or a score function.

    Attributes:
        value: One number for each data point of the plates, and for each enumerated value.
        plates: The plates around the term's site.
    """

    value: Tensor
    plates: Plates


class Enumerated(NamedTuple):
    """A latent site whose values lie along a dimension of their own.

    Attributes:
        name: The name of the site.
        dim: The dimension of its values, counted from the right.
        probs: The guide's probabilities of the values.
        plates: The plates around the site.
    """

    name: str
    dim: int
    probs: Tensor
    plates: Plates

    def detach(self) -> "Enumerated":
        """Returns the same site with probabilities that have no gradient."""
        return self._replace(probs=self.probs.detach())


def enumerated_sites(
    model_sites: Mapping[str, Site], guide_sites: Mapping[str, Site]
) -> list[Enumerated]:
    """Returns the sites that a guide has enumerated, in the guide's order.

    The probabilities are without scale and mask, which weight a term, and do not change how
    likely a value is.

    Raises:
        PairError: If a dimension belongs to two sites or to none, or the guide draws the values
            at random.
    """
    found: list[Enumerated] = []
    for name, site in guide_sites.items():
        dim = site["infer"].get("_enumerate_dim")
        if dim is None:
            continue
        if site["infer"].get("num_samples") is not None:
            raise PairError(
                f"The guide draws {name!r} where it should enumerate: leave num_samples out."
            )
        if any(dim == other.dim for other in found):
            raise PairError(
                f"pyro.markov gives {name!r} the dimension of another site: leave it out of the"
                " guide."
            )
        probs = log_prob({**site, "fn": without_masks(site["fn"])}).exp()
        found.append(Enumerated(name, dim, probs, plates_of(site)))
    if found:
        for sites in (model_sites, guide_sites):
            for name, site in sites.items():
                _check_dimensions(name, site, found)
    return found


def _check_dimensions(name: str, site: Site, sites: Sequence[Enumerated]) -> None:
    """Raises if a dimension belongs to no plate and no enumerated site, or to both."""
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    deepest = min(plates, default=0)
    if deepest <= sites[0].dim:
        raise PairError(
            f"The plates around {name!r} are {-deepest} deep, and {sites[0].name!r} is"
            f" enumerated in the dimension {sites[0].dim}: give the bound"
            f" max_plate_nesting={-deepest}."
        )
    shape = site["fn"].batch_shape
    known = plates | {other.dim for other in sites}
    strange = [dim for dim in range(-len(shape), 0) if shape[dim] > 1 and dim not in known]
    if strange:
        raise PairError(
            f"{name!r} has a batch of shape {tuple(shape)}, and no pyro.plate declares its"
            f" dimension {strange[-1]}: where sites are enumerated, keep every dimension in its"
            " place (x[..., i], sum(-1, keepdim=True))."
        )


def expectation(term: Term, sites: Sequence[Enumerated], event_ndims: int = 0) -> Tensor:
    r"""Sums the enumerated values out of a term, weighed by their probabilities.

    .. math:: \mathbb{E}_{q(y)}[f(y)] = \sum_{y_1} q(y_1) \sum_{y_2} q(y_2 \mid y_1) \dots f(y)

    The site that was drawn last is summed first, because its probabilities depend on the
    others. A term that does not depend on a site stays as it is, because the probabilities of
    the site's values sum to one.

    Arguments:
        term: The term, with ``event_ndims`` dimensions to the right of the plates'.
        sites: The enumerated sites in the guide's order.
        event_ndims: The number of the term's own dimensions.

    Raises:
        PairError: If the term depends on a site and lies outside a plate of it, so that it
            depends on the values of all the plate's data points at once.
    """
    value = term.value
    for site in reversed(sites):
        dim = site.dim - event_ndims
        if value.dim() < -dim or value.shape[dim] == 1:
            continue
        if not site.plates <= term.plates:
            raise PairError(
                f"A site outside the plates of {site.name!r} depends on it, so summing it out"
                " would take every combination of values: put the site inside the plates, or"
                " sample instead of enumerating."
            )
        probs = site.probs.reshape(site.probs.shape + (1,) * event_ndims)
        value = (value * probs).sum(dim, keepdim=True)
    return value


def surrogate(
    terms: Sequence[Term],
    scores: Sequence[Term],
    sites: Sequence[Enumerated],
    particle_dim: int | None,
) -> Tensor:
    """Returns a number whose gradient is the score-function part of the bound's gradient.

    A draw may change every term, except terms of other indices of a plate that holds both. With
    several particles, the mean of the others is the baseline.

    Arguments:
        terms: The terms of the bound.
        scores: The score functions of the draws.
        sites: The enumerated sites in the guide's order.
        particle_dim: The dimension of the particles; None if there is one.
    """
    always = [site.dim for site in sites]
    if particle_dim is not None:
        always.append(particle_dim)
    sites = [site.detach() for site in sites]
    groups: dict[Plates, list[Tensor]] = {}
    for term in terms:
        groups.setdefault(term.plates, []).append(term.value)

    totals = []
    for plates, values in groups.items():
        kept = [*always, *(dim for _, dim in plates)]
        signal = sum_of(reduce_to(value, kept) for value in values).detach()
        if particle_dim is not None:
            others = signal.sum(particle_dim, keepdim=True) - signal
            signal = signal - others / (signal.shape[particle_dim] - 1)

        inside = [site for site in sites if site.plates <= plates]
        outside = [site for site in sites if not site.plates <= plates]
        reduced = []
        for score in scores:
            common = [*always, *(dim for _, dim in score.plates & plates)]
            reduced.append(reduce_to(expectation(score, outside), common))
        totals.append(expectation(Term(signal * sum_of(reduced), plates), inside).sum())
    return sum_of(totals)
