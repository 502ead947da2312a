"""Latent variables that are summed out: exact expectations over the values that a guide
enumerates.
"""

__all__ = ["Enumerated", "Term", "enumerated_sites", "expectation", "surrogate"]

from collections.abc import Sequence
from typing import Any, NamedTuple

from pyro.distributions import MaskedDistribution
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.infer.traces import (
    PairError,
    Plates,
    Site,
    log_prob,
    plates_of,
    reduce_to,
    sample_sites,
    sum_of,
)


class Term(NamedTuple):
    """A term of a bound, or a score: one number for each data point of its plates, and for
    each enumerated value.
    """

    value: Tensor
    plates: Plates


class Enumerated(NamedTuple):
    """A latent site whose values lie along a dimension of their own, with the guide's
    probabilities of them.
    """

    name: str
    dim: int
    probs: Tensor
    plates: Plates

    def detach(self) -> "Enumerated":
        """The same site with probabilities that have no gradient."""
        return self._replace(probs=self.probs.detach())


def enumerated_sites(model_trace: Trace, guide_trace: Trace) -> list[Enumerated]:
    """Returns the sites that a guide has enumerated, in its order.

    Scale and mask do not enter: they say how much a term counts, and not how likely a value
    is.

    Raises:
        PairError: If a dimension means two things or nothing, or the values are random
            themselves.
    """
    found: list[Enumerated] = []
    for name, site in sample_sites(guide_trace):
        dim = site["infer"].get("_enumerate_dim")
        if dim is None:
            continue
        if site["infer"].get("num_samples") is not None:
            raise PairError(
                f"The guide draws {name!r} where it should enumerate: leave num_samples out."
            )
        if any(dim == other.dim for other in found):
            raise PairError(
                f"pyro.markov gives {name!r} a dimension that another site has: leave it out"
                " of the guide."
            )
        law: Any = site["fn"]
        while isinstance(law, MaskedDistribution):
            law = law.base_dist
        found.append(
            Enumerated(name, dim, log_prob({**site, "fn": law}).exp(), plates_of(site))
        )
    if found:
        for trace in (model_trace, guide_trace):
            for name, site in sample_sites(trace):
                _check_dimensions(name, site, found)
    return found


def _check_dimensions(name: str, site: Site, sites: Sequence[Enumerated]) -> None:
    """Raises where a dimension is neither a plate's nor an enumerated site's, or is both."""
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    deepest = min(plates, default=0)
    if deepest <= sites[0].dim:
        raise PairError(
            f"The plates around {name!r} are {-deepest} deep, and {sites[0].name!r} is"
            f" enumerated in the dimension {sites[0].dim}: give the bound"
            f" max_plate_nesting={-deepest}."
        )
    shape, known = site["fn"].batch_shape, plates | {other.dim for other in sites}
    strange = [dim for dim in range(-len(shape), 0) if shape[dim] > 1 and dim not in known]
    if strange:
        raise PairError(
            f"{name!r} has a batch of shape {tuple(shape)}, whose dimension {strange[-1]} no"
            " pyro.plate declares: where sites are enumerated, keep every dimension in its"
            " place (x[..., i], sum(-1, keepdim=True))."
        )


def expectation(term: Term, sites: Sequence[Enumerated], event_ndims: int = 0) -> Tensor:
    r"""Sums the enumerated values out of a term, weighed by their probabilities.

    .. math:: \mathbb{E}_{q(y)}[f(y)] = \sum_{y_1} q(y_1) \sum_{y_2} q(y_2 \mid y_1) \dots f(y)

    The site that was drawn last is the first to go, so that what it depends on is still there.
    A term that does not depend on a site is left alone: the probabilities of its values sum to
    one.

    Arguments:
        term: The term, with ``event_ndims`` dimensions to the right of the plates'.
        sites: The enumerated sites in the guide's order.
        event_ndims: How many.

    Raises:
        PairError: If the term lies outside a plate of a site that it depends on, and so on the
            values of all of the plate's data points at once.
    """
    value = term.value
    for site in reversed(sites):
        dim = site.dim - event_ndims
        if value.dim() < -dim or value.shape[dim] == 1:
            continue
        if not site.plates <= term.plates:
            raise PairError(
                f"A site outside the plates of {site.name!r} depends on it, so that summing it"
                " out would take every combination of values: put the site inside the plates,"
                " or sample instead of enumerating."
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
    """Returns a number whose gradient is the bound's through the laws of draws without a
    derivative.

    A draw may change every term but those of other indices of the plates that both lie in.
    With particles the mean of the others is the baseline.
    """
    always = [site.dim for site in sites] + ([] if particle_dim is None else [particle_dim])
    sites = [site.detach() for site in sites]
    groups: dict[Plates, list[Tensor]] = {}
    for term in terms:
        groups.setdefault(term.plates, []).append(term.value)
    totals = []
    for plates, values in groups.items():
        kept = [*always, *(dim for _, dim in plates)]
        signal = sum_of(reduce_to(value, kept) for value in values).detach()
        if particle_dim is not None:
            signal = signal - (signal.sum(particle_dim, keepdim=True) - signal) / (
                signal.shape[particle_dim] - 1
            )
        inside, outside = (
            [s for s in sites if (s.plates <= plates) is within] for within in (True, False)
        )
        reduced = [
            reduce_to(
                expectation(score, outside),
                [*always, *(dim for _, dim in score.plates & plates)],
            )
            for score in scores
        ]
        totals.append(expectation(Term(signal * sum_of(reduced), plates), inside).sum())
    return sum_of(totals)
