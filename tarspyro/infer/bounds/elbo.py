"""The evidence lower bound."""

__all__ = ["ELBO", "kl_is_exact"]

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Distribution

from tarspyro.arguments import as_count, check_choice, check_number
from tarspyro.distributions.kl import exact_kl, unmasked
from tarspyro.infer.bounds.antithetic import antithetic_pair, disarm_score
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.enumeration import (
    Enumerated,
    Term,
    enumerated_sites,
    expectation,
    surrogate,
)
from tarspyro.infer.pairs import check_local, check_vectorized
from tarspyro.infer.structure import Structure
from tarspyro.infer.summation import summed_out
from tarspyro.infer.traces import (
    PairError,
    Plates,
    Site,
    guide_terms,
    is_enumerated,
    log_prob,
    particle_plate,
    plates_of,
    reduce_to,
    reparameterized,
    rerun,
    sample_sites,
    score_function,
    sum_of,
    trace_pair,
)
from tarspyro.types import Program

# The mask of a site or of a distribution: True or a tensor of truth values; None for no mask.
Mask: TypeAlias = Tensor | bool | None


class ELBO(Bound):
    r"""The evidence lower bound, with its KL term in closed form wherever that is exact.

    .. math:: \mathcal{L} = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)] -
              \beta \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    A drop-in for ``pyro.infer.Trace_ELBO``: give it to ``pyro.infer.SVI``, call
    ``ELBO()(model, guide)`` for a module, or hand it to ``tarspyro.fit``. Like Pyro's bounds
    it returns minus the bound in nats, summed over the data points and multiplied by the
    plates' scales.

    The KL of a latent site is in closed form under three conditions: torch has one registered
    for the two families; the two sites have the same scale and mask; and all latent sites that
    the model draws before it are also drawn before it in the guide. The last condition makes
    the closed form exact for hierarchies in any order of the guide. Otherwise the site's term
    is log q - log p of the draw, which is always unbiased. Sites without a reparameterization
    get the score-function gradient, per data point, with the mean of the other particles as
    the baseline.

    Sites that the guide marks with ``infer={"enumerate": "parallel"}``, as
    ``pyro.infer.config_enumerate(guide)`` does, are summed out: the bound and its gradient are
    exact expectations over their values,

    .. math:: \mathcal{L} = \sum_y q(y \mid x) \,
              \mathbb{E}_{q(z \mid x, y)}[\log p(x, y, z) - \log q(y, z \mid x)]

    with draws of the other sites given each value. Sites marked ``"sequential"`` are drawn like
    any other. The weighted bounds, such as ``IWAE``, draw all marked sites.

    Sites of the model alone that it marks so, as ``pyro.infer.config_enumerate(model)`` does
    (mixtures, hidden Markov models), are summed out of p(x, z), as in
    ``pyro.infer.TraceEnum_ELBO``. If the prior of a latent variable depends on them, the two
    terms have two such sums,

    .. math:: \log p(x \mid z) = \log \sum_k p(k) \, p(z \mid k) \, p(x \mid z, k)
              - \log \sum_k p(k) \, p(z \mid k),

    and its KL is sampled. The KLs of other latent variables stay in closed form. Weighted bounds
    and ``evaluate.log_likelihood`` sum these sites out inside each weight.

    Arguments:
        num_particles: The number of draws from the guide, in one vectorized run.
        beta: The weight of the latent terms. It may be 0, and may be assigned between steps, as
            ``schedules`` of ``fit`` does. Only beta = 1 bounds log p(x). (Higgins et al. 2017,
            beta-VAE, eq. 4.)
        analytic_kl: Whether to use closed forms.
        free_bits: Nats for each coordinate of a factorized latent site (for the whole site, if
            it does not factorize) below which the batch's mean KL is not reduced further.
            (Kingma et al. 2016, arXiv:1606.04934, eq. 15.)
        gradient: ``"pathwise"``, or ``"stl"`` for sticking the landing: the guide's gradient
            goes through the draws alone, and its noise vanishes when the guide is the
            posterior. It needs a reparameterized guide, samples every KL, and runs a guide with
            several latent variables twice. (Roeder et al. 2017, arXiv:1703.09194.) Or
            ``"disarm"`` for a guide with one Bernoulli or categorical site, any number of
            units: particles are antithetic pairs, whose difference has less noise than a
            leave-one-out baseline. It needs an even number of particles. (Dong et al. 2020,
            arXiv:2006.10680; for classes Dong et al. 2021, arXiv:2106.08056.)
        max_plate_nesting: How many dimensions the pair's plates take; found by a run without
            side effects if not given.
        vectorize_particles: False runs the pair once for each particle, for programs that
            cannot take a plate of particles.
        retain_graph: Passed on to ``backward`` by ``loss_and_grads``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.tensor([0.0, 2.0])
        >>> exact = dist.Normal(0.0, 2.0**0.5).log_prob(x).sum().item()
        >>> _ = torch.manual_seed(0)
        >>> ELBO(num_particles=10_000).loss(model, guide, x) + exact < 0.05
        True
    """

    adjustable: tuple[str, ...] = ("beta",)

    def __init__(
        self,
        num_particles: int = 1,
        beta: float = 1.0,
        analytic_kl: bool = True,
        free_bits: float = 0.0,
        gradient: str = "pathwise",
        *,
        max_plate_nesting: int | float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
    ) -> None:
        check_number("beta", beta, 0)
        check_number("free_bits", free_bits, 0)
        check_choice("gradient", gradient, ("pathwise", "stl", "disarm"))
        num_particles = as_count("num_particles", num_particles)
        if gradient == "disarm" and (num_particles % 2 or not vectorize_particles):
            raise ValueError(
                "gradient='disarm' runs antithetic pairs of particles at once: take an even"
                f" num_particles and vectorize_particles=True, got {num_particles} and"
                f" {vectorize_particles}."
            )
        if gradient == "stl" and free_bits:
            raise ValueError(
                f"gradient='stl' samples the KL, and free_bits={free_bits} needs its mean: leave"
                " one of them out."
            )
        super().__init__(
            num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.beta = beta
        self.analytic_kl = analytic_kl and gradient != "stl"
        self.free_bits = free_bits
        self.gradient = gradient

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and the bound's two terms without beta and free bits.

        The terms are ``"reconstruction"``, E[log p(x | z)], and ``"kl"``, both detached and
        summed over the data. The ELBO is their difference.
        """
        structure = self.structure(model, guide, *args, **kwargs)
        if self.vectorize_particles and structure.vectorized is not False:
            loss, terms = self._estimate(
                model, guide, args, kwargs, self.num_particles, structure
            )
        else:
            runs = [
                self._estimate(model, guide, args, kwargs, 1, structure)
                for _ in range(self.num_particles)
            ]
            loss = sum_of(loss for loss, _ in runs) / len(runs)
            terms = {
                name: sum_of(terms[name] for _, terms in runs) / len(runs)
                for name in runs[0][1]
            }
        return loss, {name: term.detach() for name, term in terms.items()}

    def further(
        self, guide_sites: Mapping[str, Site], kl: Tensor, particles: int
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns what a subclass adds to the loss, and its terms, summed over the data.

        Arguments:
            guide_sites: The sites of a run of the guide, with their draws.
            kl: The KL of this run, summed over the data.
            particles: How many particles the run has, in a plate of their own.
        """
        return 0.0, {}

    def _estimate(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        particles: int,
        structure: Structure,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its terms, from one run of the pair."""
        nesting = structure.nesting
        if self.gradient == "disarm":
            model_trace, guide_trace = antithetic_pair(
                model, guide, args, kwargs, particles, structure
            )
        else:
            model_trace, guide_trace = trace_pair(
                model,
                guide,
                args,
                kwargs,
                num_particles=particles,
                plate_nesting=nesting,
                enumerate=True,
                enumerate_model=bool(structure.enumerated),
            )
        if structure.enumerated:
            model_trace = summed_out(model, model_trace, guide_trace, split=True)
        model_sites = dict(sample_sites(model_trace))
        guide_sites = dict(guide_terms(guide_trace))
        enumerated = enumerated_sites(model_sites, guide_sites)
        observed, latent = self._site_terms(model_sites, guide_sites)

        divergences = {name: term.total for name, term in latent.items()}
        terms_of = (observed.values(), divergences.values())
        reconstruction, kl = _expected_sums(terms_of, enumerated, particles)
        loss = self._regularizer(kl, latent, enumerated, particles) - reconstruction
        further, further_terms = self.further(guide_sites, kl, particles)
        loss = loss + further if further_terms else loss
        terms = {"reconstruction": reconstruction, "kl": kl, **further_terms}

        if self.gradient == "stl" and torch.is_grad_enabled():
            if particles > 1:
                guide = particle_plate(guide, particles, nesting)
            log_guide = _log_guide_of_copies(guide, guide_trace, enumerated, args, kwargs)
            direct = self.beta / particles * log_guide
            return loss - (direct - direct.detach()), terms

        if self.gradient == "disarm":
            scores = [disarm_score(guide_sites, particles, nesting)]
        else:
            scores = _score_functions(guide_sites)
        if scores:
            parts = list(observed.values())
            for value, plates in divergences.values():
                parts.append(Term(-self.beta * value, plates))
            particle_dim = -nesting - 1 if particles > 1 else None
            through_scores = surrogate(parts, scores, enumerated, particle_dim) / particles
            loss = loss - (through_scores - through_scores.detach())
        return loss, terms

    def _regularizer(
        self,
        kl: Tensor,
        latent: Mapping[str, "_KL"],
        enumerated: Sequence[Enumerated],
        particles: int,
    ) -> Tensor | float:
        """Returns beta times the KL, with free bits."""
        if self.free_bits:
            terms = [
                term.with_free_bits(self.free_bits, enumerated) for term in latent.values()
            ]
            kl = sum_of(terms) if terms else kl
            kl = kl if particles == 1 else kl / particles
        weight = self._weight_of_kl()
        if torch.is_tensor(weight):
            return weight * kl
        if weight == 0:
            return 0.0  # The product would be NaN if the KL is infinite.
        return kl if weight == 1 else weight * kl

    def _weight_of_kl(self) -> float | Tensor:
        return self.beta

    def _site_terms(
        self, model_sites: Mapping[str, Site], guide_sites: Mapping[str, Site]
    ) -> tuple[dict[str, Term], dict[str, "_KL"]]:
        """Returns log p of each observed site, and the KL of each latent one."""
        observed: dict[str, Term] = {}
        latent: dict[str, _KL] = {}
        position_of = dict(zip(guide_sites, range(len(guide_sites)), strict=True))
        # The last position in the guide of the latent sites that the model has drawn so far.
        furthest = -1
        for name, site in model_sites.items():
            if site["is_observed"]:
                observed[name] = _scaled_log_prob(site)
                continue
            if name not in guide_sites:
                # log p(z) of the sites inside a sum; their log q are terms of their own.
                if self.free_bits:
                    raise PairError(
                        f"free_bits={self.free_bits} needs the KL of each latent variable, and"
                        " the priors of those that depend on what the model enumerates are one"
                        " sum: take free_bits=0, or enumerate in the guide,"
                        " infer={'enumerate': 'parallel'}."
                    )
                value, plates = _scaled_log_prob(site)
                latent[name] = _KL(-value, plates)
                continue
            position = position_of[name]
            latent[name] = _kl(
                guide_sites[name],
                site,
                analytic=self.analytic_kl and furthest < position,
                by_coordinate=self.free_bits > 0,
            )
            furthest = max(furthest, position)
        for name, site in guide_sites.items():
            if name not in model_sites:
                # An auxiliary variable or a factor of the guide has no part in log p.
                latent[name] = _KL(*_scaled_log_prob(site))
        return observed, latent

    def _check(self, model: Program, guide: Program, structure: Structure) -> None:
        if self.gradient == "disarm":
            check_vectorized(
                model, guide, structure, "gradient='disarm'", "take gradient='pathwise'"
            )

    def terms_per_point(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        *,
        num_particles: int,
        structure: Structure,
    ) -> Tensor:
        """Returns the bound's two terms for each data point, summed over the particles.

        The shape is ``(2, N)``. As in ``log_weights``, the scales of subsampling and of
        ``poutine.scale`` are left out, and masks count.
        """
        check_local(model, structure)
        if structure.vectorized is False:
            runs = [
                self._point_terms(model, guide, args, 1, structure)
                for _ in range(num_particles)
            ]
            return torch.stack(runs).sum(0)
        return self._point_terms(model, guide, args, num_particles, structure)

    def _point_terms(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        num_particles: int,
        structure: Structure,
    ) -> Tensor:
        model_trace, guide_trace = trace_pair(
            model,
            guide,
            args,
            {},
            num_particles=num_particles,
            plate_nesting=structure.nesting,
            enumerate=True,
            enumerate_model=bool(structure.enumerated),
        )
        if structure.enumerated:
            model_trace = summed_out(model, model_trace, guide_trace, split=True)
        for trace in (model_trace, guide_trace):
            for _, site in sample_sites(trace):
                site["scale"] = 1.0
        model_sites = dict(sample_sites(model_trace))
        guide_sites = dict(guide_terms(guide_trace))
        place_of = {
            name: structure.group(name, site)
            for name, site in (*guide_sites.items(), *model_sites.items())
        }
        enumerated = enumerated_sites(model_sites, guide_sites)
        observed, latent = self._site_terms(model_sites, guide_sites)
        divergences = {name: term.total for name, term in latent.items()}

        columns = []
        for place, group in enumerate(structure.groups):
            parts = []
            for terms in (observed, divergences):
                own = [
                    reduce_to(expectation(term, enumerated), group.dims)
                    for name, term in terms.items()
                    if place_of[name] == place
                ]
                parts.append(own)
            sums = _or_zeros([sum_of(part) if part else None for part in parts])
            sums = list(torch.broadcast_tensors(*sums))
            sizes = [sums[0].shape[dim] for dim in group.dims] if group.dims else [1]
            columns.append(torch.stack([value.reshape(sizes) for value in sums]))
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)


def _expected_sums(
    parts: Iterable[Iterable[Term]], enumerated: Sequence[Enumerated], particles: int
) -> list[Tensor]:
    """Returns the sum of each part's terms over the data, and their mean over particles and
    enumerated values.
    """
    totals: list[Tensor | None] = []
    for terms in parts:
        sums = [expectation(term, enumerated).sum() for term in terms]
        total = sum_of(sums) if sums else None
        totals.append(total if total is None or particles == 1 else total / particles)
    return _or_zeros(totals)


def _or_zeros(values: Sequence[Tensor | None]) -> list[Tensor]:
    """Returns tensors with zeros for those that are missing, on the device of the others."""
    zero = next((value.new_zeros(()) for value in values if value is not None), None)
    if zero is None:
        zero = torch.zeros(())
    return [zero if value is None else value for value in values]


class _KL(NamedTuple):
    """The KL divergence of one latent site.

    Attributes:
        value: One number for each row, or one for each row and coordinate.
        plates: The plates around the site.
        coordinates: How many dimensions on the right are coordinates.
        scale: The scale of the site.
        mask: The mask of the site.
        rest: The correction for different masks of guide and model, one number for each row;
            None if the masks are the same.
        exact: Whether the value is the closed form.
    """

    value: Tensor
    plates: Plates
    coordinates: int = 0
    scale: Tensor | float = 1.0
    mask: Mask = None
    rest: Tensor | None = None
    exact: bool = False

    @property
    def total(self) -> Term:
        """One number for each row, with the site's scale and mask."""
        rows = sum_rightmost(self.value, self.coordinates)
        total: Tensor = scale_and_mask(rows, self.scale, self.mask)
        return Term(total if self.rest is None else total + self.rest, self.plates)

    def with_free_bits(self, free_bits: float, enumerated: Sequence[Enumerated]) -> Tensor:
        """Returns the sum over the rows, where the mean of each coordinate over the rows counts
        as at least ``free_bits``.
        """
        rows = self.value.shape[: self.value.dim() - self.coordinates]
        weight = scale_and_mask(self.value.new_ones(rows), self.scale, self.mask)
        weighted = weight.reshape(weight.shape + (1,) * self.coordinates) * self.value
        weighted = expectation(Term(weighted, self.plates), enumerated, self.coordinates)
        count = expectation(Term(weight, self.plates), enumerated).sum()

        summed = weighted.sum(list(range(weighted.dim() - self.coordinates)))
        # A mask may leave no row at all; the sum is then zero.
        mean = summed / count.clamp(min=torch.finfo(count.dtype).tiny)
        least = mean.clamp(min=free_bits).sum() * count
        if self.rest is None:
            return least
        return least + expectation(Term(self.rest, self.plates), enumerated).sum()


def _kl(guided: Site, site: Site, *, analytic: bool, by_coordinate: bool) -> _KL:
    """Returns KL(q || p) of a latent site.

    It is log q - log p of the draw if there is no closed form.
    """
    plates = plates_of(guided) | plates_of(site)
    scale = site["scale"]
    same_scale = scale is guided["scale"] or (
        not torch.is_tensor(scale) and scale == guided["scale"]
    )
    if analytic and same_scale:
        q = guided["fn"]
        p = site["fn"]
        coordinates = 0
        if by_coordinate and isinstance(q, Independent) and isinstance(p, Independent):
            if q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims:
                coordinates = q.reinterpreted_batch_ndims
                q = q.base_dist
                p = p.base_dist
        divergence = _divergence(q, p, guided["value"])
        if divergence is not None:
            mask = site["mask"]
            rest = None
            if guided["mask"] is not mask:
                rest = _beside_the_mask(guided["fn"], guided["value"], guided["mask"], mask)
                rest = rest * scale
            return _KL(divergence, plates, coordinates, scale, mask, rest, exact=True)
    return _KL(_scaled_log_prob(guided).value - _scaled_log_prob(site).value, plates)


def kl_is_exact(
    model_sites: Mapping[str, Site], guide_sites: Mapping[str, Site], name: str
) -> tuple[bool, str]:
    """Returns whether the KL of a latent site is in closed form, and why it is not.

    ``ELBO`` samples it for the same three reasons.
    """
    site = model_sites[name]
    guided = guide_sites[name]
    order = list(guide_sites)
    for earlier, other in model_sites.items():
        if earlier == name:
            break
        after = earlier in guide_sites and order.index(earlier) > order.index(name)
        if after and not other["is_observed"]:
            return (
                False,
                f"the guide draws {earlier!r}, which the model draws before, after it",
            )
    term = _kl(guided, site, analytic=True, by_coordinate=False)
    if term.exact:
        return True, ""
    if _divergence(guided["fn"], site["fn"], guided["value"]) is None:
        return False, "no closed form"
    return False, "its scales differ in model and guide"


def _divergence(q: Distribution, p: Distribution, value: Tensor) -> Tensor | None:
    """Returns KL(q || p) of each row in closed form, whatever their own masks; None if there is
    none.
    """
    if isinstance(q, MaskedDistribution) or isinstance(p, MaskedDistribution):
        q, q_mask = unmasked(q)
        p, p_mask = unmasked(p)
        divergence = _divergence(q, p, value)
        if divergence is None:
            return None
        total: Tensor = scale_and_mask(divergence, mask=p_mask)
        if q_mask is p_mask:
            return total
        return total + _beside_the_mask(q, value, q_mask, p_mask)
    if isinstance(q, Independent) and isinstance(p, Independent):
        ndims = q.reinterpreted_batch_ndims
        if ndims == p.reinterpreted_batch_ndims:
            divergence = _divergence(q.base_dist, p.base_dist, value)
            if divergence is None:
                return None
            return torch.as_tensor(sum_rightmost(divergence, ndims))
    return exact_kl(q, p)


def _beside_the_mask(q: Distribution, value: Tensor, q_mask: Mask, p_mask: Mask) -> Tensor:
    """Returns (m_q - m_p) log q of each row, for different masks m_q and m_p.

    Two masks cannot be compared without reading them back from the device. But
    E[m_q log q - m_p log p] is m_p times the KL plus this, which is zero where the masks agree.
    """
    density = q.log_prob(value)
    rest: Tensor = scale_and_mask(density, mask=q_mask) - scale_and_mask(density, mask=p_mask)
    return rest


def _scaled_log_prob(site: Site) -> Term:
    density = scale_and_mask(log_prob(site), site["scale"], site["mask"])
    return Term(density, plates_of(site))


def _log_guide_of_copies(
    guide: Program,
    guide_trace: Trace,
    enumerated: Sequence[Enumerated],
    args: Sequence[object],
    kwargs: Mapping[str, object],
) -> Tensor:
    """Returns log q of detached copies of the draws.

    Its gradient is the part of log q's gradient that does not come through the draws.
    """
    sites = reparameterized(guide_trace, "gradient='stl'")
    copies = {name: site["value"].detach() for name, site in sites.items()}
    trace = rerun(guide, guide_trace, copies, args, kwargs)
    detached = [site.detach() for site in enumerated]
    terms = [_scaled_log_prob(site) for _, site in guide_terms(trace)]
    return sum_of(expectation(term, detached).sum() for term in terms)


def _score_functions(guide_sites: Mapping[str, Site]) -> list[Term]:
    """Returns the score functions of the draws that are not, or only in part, reparameterized.

    They have no mask: it leaves out a site's density, and the site is drawn all the same.
    """
    scores = []
    for site in guide_sites.values():
        if not is_enumerated(site):
            score = score_function(site["fn"], site["value"])
            if score is not None:
                scores.append(Term(score, plates_of(site)))
    return scores
