"""The evidence lower bound."""

__all__ = ["ELBO"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.util import is_identically_zero, scale_and_mask, sum_rightmost
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine import Trace
from torch import Tensor

from tarspyro.arguments import check_choice, check_number
from tarspyro.distributions.kl import exact_kl
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.enumeration import (
    Enumerated,
    Term,
    enumerated_sites,
    expectation,
    surrogate,
)
from tarspyro.infer.pairs import check_local
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import (
    PairError,
    Plates,
    Site,
    guide_terms,
    is_enumerated,
    log_prob,
    name_of,
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


class ELBO(Bound):
    r"""The evidence lower bound, with its KL term in closed form wherever that is legal.

    .. math:: \mathcal{L} = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)] - \beta \, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    A drop-in for ``pyro.infer.Trace_ELBO``: give it to ``pyro.infer.SVI``, call
    ``ELBO()(model, guide)`` for a module, or hand it to ``tarspyro.fit``. Like Pyro's bounds
    it returns minus the bound in nats, summed over the data points and multiplied by the
    plates' scales.

    A latent site's KL is taken in closed form if torch has one registered for the two
    families, the two sites have the same scale and mask, and all latent sites that the model
    draws before it are also drawn before it in the guide. The last condition makes the closed
    form exact for hierarchies in any order of the guide; where it fails, the site's term is
    log q - log p of the draw, which is unbiased always. Sites without a reparameterization get
    the score-function gradient, per data point, with the mean of the other particles as the
    baseline.

    Sites that the guide marks with ``infer={"enumerate": "parallel"}``, as
    ``pyro.infer.config_enumerate(guide)`` does, are summed out: the bound and its gradient are
    exact expectations over their values,

    .. math:: \mathcal{L} = \sum_y q(y \mid x) \, \mathbb{E}_{q(z \mid x, y)}[\log p(x, y, z) - \log q(y, z \mid x)]

    with draws of the other sites given each of them. The weighted bounds draw such sites like
    any other, and so does this one where they are marked ``"sequential"``.

    Sites of the model alone that it marks so, as ``pyro.infer.config_enumerate(model)`` does
    (mixtures, hidden Markov models), are summed out of p(x, z) by
    ``pyro.infer.TraceEnum_ELBO``. Then nothing is in closed form, and the two terms of the
    bound are not told apart.

    Arguments:
        num_particles: The number of draws from the guide, in one vectorized run.
        beta: The weight of the latent terms; it may be 0, and may be assigned between steps
            (``schedules`` of ``fit`` does). Only beta = 1 bounds log p(x). (Higgins et al.
            2017, beta-VAE, eq. 4.)
        analytic_kl: Whether to use closed forms.
        free_bits: Nats per coordinate of a factorized latent site (per site, where it does not
            factorize) below which the batch's mean KL is not reduced further. (Kingma et al.
            2016, arXiv:1606.04934, eq. 15.)
        gradient: ``"pathwise"``, or ``"stl"`` for sticking the landing: the guide's gradient
            through the draws alone, whose noise vanishes where the guide is the posterior. It
            wants a reparameterized guide, samples every KL, and runs a guide with several
            latent variables twice. (Roeder et al. 2017, arXiv:1703.09194.)
        max_plate_nesting: How many plates deep the pair is; found by a run without side
            effects if not given.
        vectorize_particles: False runs the pair once a particle, for programs that cannot take
            a plate of particles.
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
        >>> exact = dist.Normal(0.0, 2.0**0.5).log_prob(x).sum()
        >>> torch.manual_seed(0) and ELBO(num_particles=10_000).loss(model, guide, x) + exact.item() < 0.05
        True
    """

    adjustable = ("beta",)

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
        check_choice("gradient", gradient, ("pathwise", "stl"))
        if gradient == "stl" and free_bits:
            raise ValueError(
                "gradient='stl' samples the KL, and free_bits needs its mean: take one of"
                " them."
            )
        super().__init__(
            num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.beta, self.analytic_kl, self.free_bits = (
            beta,
            analytic_kl and gradient != "stl",
            free_bits,
        )
        self.gradient = gradient

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and the bound's two terms without beta and free bits, detached and
        summed over the data.

        The terms are ``"reconstruction"``, E[log p(x | z)], and ``"kl"``; the ELBO is their
        difference.
        """
        structure = self._structure(model, guide, args, kwargs)
        if structure.enumerated:
            loss = self._summed_out(model, guide, args, kwargs, structure)
            return loss, {"elbo": -loss.detach()}
        together = self.vectorize_particles and structure.vectorized is not False
        runs, particles = (1, self.num_particles) if together else (self.num_particles, 1)
        results = [
            self._run(model, guide, args, kwargs, particles, structure.nesting)
            for _ in range(runs)
        ]
        loss, reconstruction, kl = (
            _mean(values, runs) for values in zip(*results, strict=True)
        )
        return loss, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}

    def _summed_out(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        structure: Structure,
    ) -> Tensor:
        """Minus the bound of a model some of whose sites are summed out of it."""
        # A recorded beta is a tensor, and was a number in the first steps.
        annealed = not torch.is_tensor(self.beta) and self.beta != 1
        if annealed or self.free_bits or self.gradient != "pathwise":
            raise PairError(
                f"{name_of(model)} enumerates {sorted(structure.enumerated)}, which beta=1,"
                " free_bits=0 and gradient='pathwise' allow alone: leave the others out, or"
                " enumerate in the guide, infer={'enumerate': 'parallel'}."
            )
        bound: Any = TraceEnum_ELBO(
            self.num_particles, structure.nesting, vectorize_particles=self.vectorize_particles
        )
        total: Any = 0.0
        try:
            for traces in bound._get_traces(model, guide, args, kwargs):
                total = total + _compute_dice_elbo(*traces)
        except (ValueError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise PairError(
                f"{name_of(model)} cannot have its enumerated sites summed out: {reason}."
            ) from error
        loss: Tensor = -total / self.num_particles
        return loss

    def terms_per_point(
        self,
        model: Program,
        guide: Program,
        args: Sequence[Any],
        *,
        num_particles: int,
        structure: Structure,
    ) -> Tensor:
        """Returns the bound's two terms for each data point, summed over the particles: shape
        ``(2, N)``.

        Scales (of subsampling, or of ``poutine.scale``) do not enter, as in ``log_weights``;
        masks do.
        """
        check_local(model, structure)
        if structure.vectorized is False:
            runs = [
                self._terms(model, guide, args, 1, structure) for _ in range(num_particles)
            ]
            return torch.stack(runs).sum(0)
        return self._terms(model, guide, args, num_particles, structure)

    def _terms(
        self,
        model: Program,
        guide: Program,
        args: Sequence[Any],
        num_particles: int,
        structure: Structure,
    ) -> Tensor:
        nesting = structure.nesting
        traces = trace_pair(
            model,
            guide,
            args,
            {},
            num_particles=num_particles,
            plate_nesting=nesting,
            enumerate=True,
        )
        for trace in traces:
            for _, site in sample_sites(trace):
                site["scale"] = 1.0
        enumerated = enumerated_sites(*traces)
        observed, latent = self._site_terms(*traces)
        kinds = [observed, {name: term.total for name, term in latent.items()}]
        columns = []
        for place, group in enumerate(structure.groups):
            parts = []
            for terms in kinds:
                own = [
                    term for name, term in terms.items() if structure.group_of[name] == place
                ]
                parts.append(
                    [reduce_to(expectation(term, enumerated), group.dims) for term in own]
                )
            sums = [sum_of(part) if part else parts[0][0].new_zeros(()) for part in parts]
            sums = torch.broadcast_tensors(*sums)
            sizes = [sums[0].shape[dim] for dim in group.dims] if group.dims else [1]
            columns.append(torch.stack([value.reshape(sizes) for value in sums]))
        return columns[0] if len(columns) == 1 else torch.cat(columns, -1)

    def _run(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        particles: int,
        nesting: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        traces = trace_pair(
            model,
            guide,
            args,
            kwargs,
            num_particles=particles,
            plate_nesting=nesting,
            enumerate=True,
        )
        sites = enumerated_sites(*traces)
        observed, latent = self._site_terms(*traces)
        reconstruction = _mean(
            [expectation(term, sites).sum() for term in observed.values()], particles
        )
        kl = _mean(
            [expectation(term.total, sites).sum() for term in latent.values()], particles
        )
        regularizer = kl
        if self.free_bits:
            regularizer = _mean(
                [term.with_free_bits(self.free_bits, sites) for term in latent.values()],
                particles,
            )
        # At 0 the product would keep a term that may be infinite; at 1 it would only cost
        # time.
        plain = not torch.is_tensor(self.beta) and self.beta in (0, 1)
        weighted = (regularizer if self.beta else 0.0) if plain else self.beta * regularizer
        loss = weighted - reconstruction
        if self.gradient == "stl" and torch.is_grad_enabled():
            if particles > 1:
                guide = particle_plate(guide, particles, nesting)
            direct = (
                self.beta
                / particles
                * _log_guide_of_copies(guide, traces[1], sites, args, kwargs)
            )
            return loss - (direct - direct.detach()), reconstruction, kl
        scores = _score_functions(traces[1])
        if scores:
            divergences = [term.total for term in latent.values()]
            terms = [
                *observed.values(),
                *(Term(-self.beta * value, plates) for value, plates in divergences),
            ]
            through_laws = (
                surrogate(terms, scores, sites, -nesting - 1 if particles > 1 else None)
                / particles
            )
            loss = loss - (through_laws - through_laws.detach())
        return loss, reconstruction, kl

    def _site_terms(
        self, model_trace: Trace, guide_trace: Trace
    ) -> tuple[dict[str, Term], dict[str, "_KL"]]:
        """Log p of each observed site, and the KL of each latent one."""
        model_sites, guide_sites = (
            dict(sample_sites(model_trace)),
            dict(guide_terms(guide_trace)),
        )
        observed = {
            name: _scaled_log_prob(site)
            for name, site in model_sites.items()
            if site["is_observed"]
        }
        latent: dict[str, _KL] = {}
        position = {name: index for index, name in enumerate(guide_sites)}
        furthest = (
            -1
        )  # where in the guide the last of the latent sites drawn so far by the model stands
        for name, site in model_sites.items():
            if site["is_observed"]:
                continue
            analytic = self.analytic_kl and furthest < position[name]
            latent[name] = _kl(
                guide_sites[name], site, analytic=analytic, by_coordinate=self.free_bits > 0
            )
            furthest = max(furthest, position[name])
        for name, site in guide_sites.items():
            if name not in model_sites:
                latent[name] = _KL(
                    *_scaled_log_prob(site)
                )  # log q alone, of an auxiliary site or a factor
        return observed, latent


def _mean(values: Sequence[Tensor], count: int) -> Tensor:
    total = sum_of(values) if values else torch.zeros(())
    return total if count == 1 else total / count


class _KL(NamedTuple):
    """The KL of one latent site: one number a row, or one for each row and coordinate."""

    value: Tensor
    plates: Plates
    coordinates: int = 0
    scale: Any = 1.0
    mask: Any = None
    rest: Tensor | None = (
        None  # what the guide's mask leaves in where the model's does not, and the other way round
    )

    @property
    def total(self) -> Term:
        """One number a row, with the site's scale and mask."""
        total = scale_and_mask(
            sum_rightmost(self.value, self.coordinates), self.scale, self.mask
        )
        return Term(total if self.rest is None else total + self.rest, self.plates)

    def with_free_bits(self, free_bits: float, sites: Sequence[Enumerated]) -> Tensor:
        """The sum over the rows, where each coordinate's mean over the rows counts as
        ``free_bits`` at least.
        """
        rows = self.value.shape[: self.value.dim() - self.coordinates]
        weight = scale_and_mask(self.value.new_ones(rows), self.scale, self.mask)
        weighted = weight.reshape(weight.shape + (1,) * self.coordinates) * self.value
        weighted = expectation(Term(weighted, self.plates), sites, self.coordinates)
        count = expectation(Term(weight, self.plates), sites).sum()
        # Where a mask leaves no row, nothing is summed.
        least_count = torch.finfo(count.dtype).tiny
        mean = weighted.sum(list(range(weighted.dim() - self.coordinates))) / count.clamp(
            min=least_count
        )
        least = mean.clamp(min=free_bits).sum() * count
        if self.rest is None:
            return least
        return least + expectation(Term(self.rest, self.plates), sites).sum()


def _kl(guided: Site, site: Site, *, analytic: bool, by_coordinate: bool) -> _KL:
    """KL(q || p) of a latent site, in closed form if there is one, else log q - log p of the
    draw.
    """
    plates = plates_of(guided) | plates_of(site)
    scale = site["scale"]
    same_scale = scale is guided["scale"] or (
        not torch.is_tensor(scale) and scale == guided["scale"]
    )
    if analytic and same_scale:
        q = guided["fn"]
        p = site["fn"]
        value = guided["value"]
        coordinates = 0
        if by_coordinate and isinstance(q, Independent) and isinstance(p, Independent):
            if q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims:
                coordinates = q.reinterpreted_batch_ndims
                q = q.base_dist
                p = p.base_dist
        divergence = _divergence(q, p, value)
        if divergence is not None:
            mask = site["mask"]
            rest = _beside_the_mask(guided["fn"], value, guided["mask"], mask)
            return _KL(
                divergence,
                plates,
                coordinates,
                scale,
                mask,
                rest if rest is None else rest * scale,
            )
    return _KL(_scaled_log_prob(guided).value - _scaled_log_prob(site).value, plates)


def _divergence(q: Any, p: Any, value: Tensor) -> Tensor | None:
    """KL(q || p) of each row, where it is known in closed form and whatever their own masks;
    else None.
    """
    if isinstance(q, MaskedDistribution) or isinstance(p, MaskedDistribution):
        q, q_mask = _unmasked(q)
        p, p_mask = _unmasked(p)
        divergence = _divergence(q, p, value)
        if divergence is None:
            return None
        rest = _beside_the_mask(q, value, q_mask, p_mask)
        total: Tensor = scale_and_mask(divergence, mask=p_mask)
        return total if rest is None else total + rest
    if isinstance(q, Independent) and isinstance(p, Independent):
        ndims = q.reinterpreted_batch_ndims
        if ndims == p.reinterpreted_batch_ndims:
            divergence = _divergence(q.base_dist, p.base_dist, value)
            return (
                None
                if divergence is None
                else torch.as_tensor(sum_rightmost(divergence, ndims))
            )
    return exact_kl(q, p)


def _unmasked(distribution: Any) -> tuple[Any, Any]:
    """A distribution without its own mask, and that mask."""
    if isinstance(distribution, MaskedDistribution):
        return (
            distribution.base_dist,
            None if distribution._mask is True else distribution._mask,
        )
    return distribution, None


def _beside_the_mask(q: Any, value: Tensor, q_mask: Any, p_mask: Any) -> Tensor | None:
    """What the mask of q leaves in where that of p does not, and the other way round: (m_q -
    m_p) log q.

    Two masks cannot be compared without reading them back, but E[m_q log q - m_p log p] is m_p
    KL and this, which is zero where they are equal.
    """
    if q_mask is p_mask:
        return None
    density = q.log_prob(value)
    rest: Tensor = scale_and_mask(density, mask=q_mask) - scale_and_mask(density, mask=p_mask)
    return rest


def _scaled_log_prob(site: Site) -> Term:
    return Term(scale_and_mask(log_prob(site), site["scale"], site["mask"]), plates_of(site))


def _log_guide_of_copies(
    guide: Program,
    guide_trace: Trace,
    enumerated: Sequence[Enumerated],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """Log q of cut-off copies of the draws: its gradient is the part of log q's that does not
    come through them.
    """
    sites = reparameterized(guide_trace, "gradient='stl'")
    trace = rerun(
        guide,
        guide_trace,
        {name: site["value"].detach() for name, site in sites.items()},
        args,
        kwargs,
    )
    enumerated = [site.detach() for site in enumerated]
    terms = [_scaled_log_prob(site) for name, site in guide_terms(trace)]
    return sum_of(expectation(term, enumerated).sum() for term in terms)


def _score_functions(guide_trace: Trace) -> list[Term]:
    """The score functions of the draws that are not, or not wholly, reparameterized."""
    sites = [site for _, site in guide_terms(guide_trace) if not is_enumerated(site)]
    scores = [
        Term(score_function(site["fn"], site["value"]), plates_of(site)) for site in sites
    ]
    # A mask leaves a site's density out, not the fact that the site was drawn.
    return [score for score in scores if not is_identically_zero(score.value)]
