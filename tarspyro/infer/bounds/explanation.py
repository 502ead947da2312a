"""Explanation of a bound on a pair: weights, plates, scales, gradients and closed forms."""

__all__ = ["Explanation", "SiteExplanation", "explain"]

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro.infer
import torch
from pyro.distributions import Independent
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.elbo import ELBO, kl_is_exact
from tarspyro.infer.bounds.fivo import FIVO
from tarspyro.infer.bounds.importance import CIWAE, PIWAE, Renyi, WeightedBound
from tarspyro.infer.bounds.jacobians import wrong_jacobians
from tarspyro.infer.matching import run_pair
from tarspyro.infer.pairs import structure_of
from tarspyro.infer.structure import SHARED, Structure
from tarspyro.infer.traces import (
    PairError,
    Site,
    check_program,
    elements_of,
    guide_terms,
    is_delta,
    is_factor,
    own_scale,
    plates_of,
    sample_sites,
    score_function,
)
from tarspyro.scopes import kept_buffers, local_parameters, preserved_rng
from tarspyro.types import Program

_LOWER = "a lower bound on log p(x)"
_NONE = "no bound on log p(x)"


class SiteExplanation(NamedTuple):
    """The explanation of one site.

    Attributes:
        name: The name of the site.
        role: ``"observed"``, ``"latent"``, ``"auxiliary"`` (drawn by the guide alone) or
            ``"factor"``.
        model: The family in the model; empty if it is not there.
        guide: The family in the guide; empty if it is not there.
        plates: The plates around it.
        scale: The scale of its density, with its part that subsampling is the reason of.
        weight: Whose weight it is in: that of a data point, of all data, or of what data points
            share.
        gradient: How the gradient goes through its draw, and why.
        kl: Whether its KL is in closed form, and why not.
    """

    name: str
    role: str
    model: str = ""
    guide: str = ""
    plates: str = ""
    scale: str = ""
    weight: str = ""
    gradient: str = ""
    kl: str = ""


@dataclass(frozen=True)
class Explanation:
    """The result of ``explain``: printed as text, shown as a table in a notebook.

    Attributes:
        bound: The name of the bound.
        kind: ``"a lower bound on log p(x)"`` or ``"no bound on log p(x)"``, and why.
        weights: Which data points have a weight.
        sites: How the bound treats each site, in the order of the model.
        findings: What is wrong, or better known; empty if nothing is.
    """

    bound: str
    kind: str
    weights: str
    sites: tuple[SiteExplanation, ...]
    findings: tuple[str, ...] = ()

    @property
    def is_lower_bound(self) -> bool:
        """Whether the expectation of the value is at most log p(x)."""
        return self.kind.startswith(_LOWER)

    def __str__(self) -> str:
        columns = self._columns()
        rows = [columns, *([str(row[name]) for name in columns] for row in self._rows())]
        widths = [max(len(row[place]) for row in rows) for place in range(len(columns))]
        lines = [f"{self.bound}: {self.kind}", f"weights: {self.weights}", ""]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        if self.findings:
            lines += ["", *(f"! {finding}" for finding in self.findings)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _rows(self) -> list[dict[str, str]]:
        return [site._asdict() for site in self.sites]

    def _columns(self) -> list[str]:
        """Returns the columns in which some site has something."""
        rows = self._rows()
        return [name for name in SiteExplanation._fields if any(row[name] for row in rows)]

    def _repr_html_(self) -> str:
        columns = self._columns()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = ""
        for row in self._rows():
            cells = "".join(f"<td>{html.escape(row[name])}</td>" for name in columns)
            body += f"<tr>{cells}</tr>"
        findings = "".join(f"<li>{html.escape(finding)}</li>" for finding in self.findings)
        return (
            f"<p><b>{html.escape(self.bound)}</b>: {html.escape(self.kind)}<br>"
            f"weights: {html.escape(self.weights)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            + (f"<ul>{findings}</ul>" if findings else "")
        )


def explain(
    bound: pyro.infer.ELBO, model: Program, guide: Program, *args: object, **kwargs: object
) -> Explanation:
    """Explains how a bound, of this library or of Pyro, treats a model and its guide.

    It tells which data points have weights and by which plates, what is shared, where scales
    and masks sit, how the gradient goes through each draw, which KLs are in closed form, and
    whether the value is a bound on log p(x). It finds a Jacobian that was left out, a scale
    inside a logarithm, and a plate that holds nothing.

    The pair runs a few times; random state, parameters and statistics stay as they are.

    Arguments:
        bound: The bound, such as ``ELBO()`` or ``pyro.infer.RenyiELBO()``.
        model: The model.
        guide: The guide.
        args: The arguments that both are called with, such as a batch of data.
        kwargs: The keyword arguments that both are called with.

    Raises:
        TypeError: If ``bound`` is no bound.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> explain(ELBO(), model, guide, torch.zeros(3))
        ELBO: a lower bound on log p(x)
        weights: a weight for each index of 'data' (3)
        <BLANKLINE>
        name  role      model   guide   plates  scale  weight      gradient  kl
        z     latent    Normal  Normal  data    1      data point  pathwise  closed form
        x     observed  Normal          data    1      data point
    """
    settings: Any = getattr(bound, "settings", bound)
    if not isinstance(settings, pyro.infer.ELBO):
        raise TypeError(
            f"bound must be a bound such as ELBO() or IWAE(5), got {format_value(bound)}: games"
            " have players with losses of their own."
        )
    check_program("model", model)
    check_program("guide", guide)
    with (
        preserved_rng(),
        local_parameters(),
        kept_buffers(model, guide),
        torch.no_grad(),
        pyro.validation_enabled(False),
    ):
        model_trace, guide_trace = run_pair(model, guide, args, kwargs)
        read = _Reading(settings, model, guide, args, kwargs, model_trace, guide_trace)
        return read.explanation()


class _Reading:
    """The explanation of a bound, built from the traces of a pair."""

    def __init__(
        self,
        bound: Any,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        model_trace: Trace,
        guide_trace: Trace,
    ) -> None:
        self.bound = bound
        self.name = type(bound).__name__
        self.particles = int(getattr(bound, "num_particles", 1))
        self.model_trace = model_trace
        self.guide_trace = guide_trace
        self.modelled = dict(sample_sites(model_trace))
        self.guided = dict(guide_terms(guide_trace))
        self.findings: list[str] = []
        self.structure: Structure | None = None
        try:
            self.structure = structure_of(
                model, guide, args, kwargs, particles=2, observed=False
            )
        except PairError as error:
            self.findings.append(str(error))
        self.wrong = wrong_jacobians(guide, args, kwargs, guide_trace, model_trace)
        self.findings += self.wrong

    def explanation(self) -> Explanation:
        names = list(dict.fromkeys([*self.modelled, *self.guided]))
        sites = tuple(self._site(name) for name in names)
        kind, reason = self._kind()
        self.findings += self._empty_plates()
        return Explanation(
            self.name,
            f"{kind}: {reason}" if reason else kind,
            self._weights(),
            sites,
            tuple(dict.fromkeys(self.findings)),
        )

    @property
    def _is_weighted(self) -> bool:
        """Whether the weights are in a logarithm, and more than one of them."""
        weighted = isinstance(self.bound, WeightedBound | FIVO | pyro.infer.RenyiELBO)
        return weighted and self.particles > 1

    @property
    def _is_of_pyro(self) -> bool:
        return not isinstance(self.bound, Bound)

    @property
    def _is_joint(self) -> bool:
        """Whether there is one weight of all data."""
        if self.structure is None:
            return True
        if isinstance(self.bound, pyro.infer.RenyiELBO):
            return not self._kept_plates()
        return self.structure.joint

    def _kept_plates(self) -> set[str]:
        """Returns the plates for whose indices Pyro's RenyiELBO has weights.

        They are those that all sites of the model share, ``pyro.deterministic`` too.
        """
        nodes: dict[str, Any] = self.model_trace.nodes
        plates = []
        for site in nodes.values():
            if site["type"] == "sample" and not site_is_subsample(site):
                plates.append({frame.name for frame in site["cond_indep_stack"]})
        return set.intersection(*plates) if plates else set()

    def _mixed_weights(self) -> str:
        """Returns why the weights of Pyro's RenyiELBO are not those of data points."""
        assert self.structure is not None
        kept = self._kept_plates()
        if not isinstance(self.bound, pyro.infer.RenyiELBO) or not kept:
            return ""
        for name, site in self.guided.items():
            outside = kept - {frame.name for frame in site["cond_indep_stack"]}
            if outside and not is_delta(site):
                plate = sorted(outside)[0]
                self.findings.append(
                    f"{self.name} subtracts the density of {name!r}, which is outside the plate"
                    f" {plate!r}, in the weight of each index of this plate: take"
                    f" tarspyro.infer.{_ours(self.name)}."
                )
                return f"the density of {name!r} is counted more than once"
        if self.structure.joint:
            self.findings.append(
                f"{self.name} has a weight for each index of {sorted(kept)}, and data points"
                f" depend on each other: take tarspyro.infer.{_ours(self.name)}."
            )
            return "data points that depend on each other have weights of their own"
        return ""

    def _weights(self) -> str:
        if self.structure is None:
            return "unknown, because model and guide do not match"
        if self._is_joint:
            return "one weight of all data"
        sizes = []
        frames = {
            frame.name: frame for site in self.modelled.values() for frame in _frames(site)
        }
        for group in self.structure.groups:
            for name, _ in sorted(group.plates):
                frame = frames.get(name)
                if frame is not None:
                    whole = frame.full_size or frame.size
                    part = f"{frame.size} of {whole}" if whole != frame.size else f"{whole}"
                    sizes.append(part)
        return f"{self.structure} ({', '.join(dict.fromkeys(sizes))})"

    def _site(self, name: str) -> SiteExplanation:
        site = self.modelled.get(name)
        guided = self.guided.get(name)
        either = site if site is not None else guided
        assert either is not None
        role = "latent" if guided is not None else "observed"
        if is_factor(either):
            role = "factor"
        elif site is None:
            role = "auxiliary"
        elif guided is None and not site["is_observed"]:
            role = "latent"
        drawn = guided is not None and not is_factor(either)
        return SiteExplanation(
            name,
            role,
            "" if site is None else _family(site),
            "" if guided is None else _family(guided),
            ", ".join(sorted(plate for plate, _ in plates_of(either))),
            _scale_text(site, guided),
            self._weight_of(name),
            self._gradient(name, guided) if drawn and guided is not None else "",
            self._kl(name) if role == "latent" else "",
        )

    def _weight_of(self, name: str) -> str:
        if self.structure is None:
            return ""
        if self._is_joint:
            return "all data"
        place = self.structure.group_of.get(name)
        if place is None:
            return "its plate's"
        return "shared" if place == SHARED else "data point"

    def _gradient(self, name: str, site: Site) -> str:
        if is_delta(site):
            return "pathwise: a function of parameters and other draws"
        enumerated = site["infer"].get("enumerate") == "parallel"
        if enumerated and isinstance(self.bound, ELBO | pyro.infer.TraceEnum_ELBO):
            return "exact: summed out"
        score = score_function(site["fn"], site["value"])
        estimator = getattr(self.bound, "gradient", "pathwise")
        if site["fn"].has_rsample and score is None:
            return estimator if self.structure is not None else "pathwise"
        if site["fn"].has_rsample:
            self._check_rejection(name, site)
            return "pathwise and score: drawn by rejection"
        if isinstance(self.bound, pyro.infer.RenyiELBO):
            self.findings.append(
                f"{self.name} gives {name!r} no gradient or a biased one, because its draw is"
                " not reparameterized: take tarspyro.infer.Renyi, or a reparameterized family."
            )
            return "biased score: not reparameterized"
        if isinstance(self.bound, pyro.infer.TraceMeanField_ELBO):
            self.findings.append(
                f"{self.name} leaves out the gradient through the draw of {name!r}, which is"
                " not reparameterized: take ELBO() or pyro.infer.Trace_ELBO()."
            )
            return "biased: not reparameterized"
        baseline = ", baseline from the other particles" if self.particles > 1 else ""
        return f"score: not reparameterized{'' if self._is_of_pyro else baseline}"

    def _check_rejection(self, name: str, site: Site) -> None:
        if self._is_of_pyro and isinstance(site["fn"], Independent):
            self.findings.append(
                f"{self.name} leaves out the score of {name!r}, which is drawn by rejection,"
                " because to_event() drops it: its gradient is biased. Take tarspyro.infer.ELBO."
            )

    def _kl(self, name: str) -> str:
        if name not in self.guided:
            return "summed out"
        if isinstance(self.bound, ELBO):
            if not self.bound.analytic_kl:
                return "sampled: analytic_kl=False or gradient='stl'"
            exact, reason = kl_is_exact(self.modelled, self.guided, name)
            return "closed form" if exact else f"sampled: {reason}"
        if isinstance(self.bound, pyro.infer.TraceMeanField_ELBO):
            exact, reason = kl_is_exact(self.modelled, self.guided, name)
            if exact:
                return "closed form"
            if "no closed form" in reason:
                return "sampled: no closed form"
            return f"closed form, but wrong: {reason}"
        return "inside the weight"

    def _kind(self) -> tuple[str, str]:
        """Returns whether the value is a bound, and why not."""
        if self.structure is None:
            return _NONE, "model and guide do not match"
        if self.wrong:
            return _NONE, "a density lacks its Jacobian"
        reasons = (
            self._other_objective,
            self._scales,
            self._orders,
            self._mixed_weights,
        )
        for look in reasons:
            reason = look()
            if reason:
                return _NONE, reason
        if self._is_weighted and self._is_joint and not self.structure.joint:
            self.findings.append(
                f"{self.name} has one weight of all data, although data points have weights of"
                f" their own: a much looser bound. Take tarspyro.infer.{_ours(self.name)}."
            )
        return _LOWER, ""

    def _other_objective(self) -> str:
        """Returns why the bound is none whatever the pair, or an empty text."""
        bound = self.bound
        if isinstance(bound, ELBO) and float(bound.beta) < 1:
            return f"beta is {float(bound.beta):g}, so less than the whole KL is subtracted"
        alpha = getattr(bound, "alpha", 0.0)
        if (
            isinstance(bound, Renyi | pyro.infer.RenyiELBO)
            and self.particles > 1
            and alpha < 0
        ):
            return f"alpha is {alpha:g}, an upper bound only for infinitely many particles"
        known = (ELBO, Renyi, CIWAE, PIWAE, FIVO, pyro.infer.RenyiELBO, *_LOWER_OF_PYRO)
        return "" if isinstance(bound, known) else f"{self.name} is another objective"

    def _scales(self) -> str:
        """Returns why scales forbid a bound, or an empty text."""
        assert self.structure is not None
        sites = [*self.modelled.values(), *self.guided.values()]
        inside = isinstance(self.bound, _LOGARITHMS_OF_PYRO) and _has_scales(sites)
        if self._is_weighted and not self._is_of_pyro and not self._have_common_scales():
            own = {_shown_scale(site) for site in sites if not is_factor(site)}
            if not self._is_joint or len(own) > 1:
                return "its sites have different scales, so it refuses this pair"
            inside = True  # The scales of subsamples belong into the weight of all data.
        if inside and self.particles > 1:
            self.findings.append(
                f"{self.name} has the scale of a subsample, or of poutine.scale, inside a"
                " logarithm, where it is an exponent of the weight."
            )
            return "a scale is inside the logarithm"
        scales = {
            name: (_shown_scale(site), _shown_scale(self.guided[name]))
            for name, site in self.modelled.items()
            if name in self.guided
        }
        for name, (p, q) in scales.items():
            if p != q:
                return f"{name!r} has scale {p:g} in the model and {q:g} in the guide"
        observed = [
            _shown_scale(site) for site in self.modelled.values() if site["is_observed"]
        ]
        latent = [p for p, _ in scales.values()]
        if observed and latent and min(latent) < max(observed):
            return f"the KL has scale {min(latent):g} and the likelihood {max(observed):g}"
        if observed and (min(observed) != max(observed) or observed[0] != 1):
            self.findings.append("The bound is one of a likelihood with a scale of its own.")
        return ""

    def _have_common_scales(self) -> bool:
        """Whether the sites of each weight have one scale."""
        assert self.structure is not None
        scales: dict[int, list[Tensor | float]] = {}
        for sites in (self.modelled, self.guided):
            for name, site in sites.items():
                place = self.structure.group_of.get(name, SHARED)
                scales.setdefault(place, []).append(site["scale"])
        scales.pop(SHARED, None)
        return all(map(_are_equal, scales.values()))

    def _orders(self) -> str:
        """Returns why Pyro's closed forms are no bound, or an empty text."""
        if not isinstance(self.bound, pyro.infer.TraceMeanField_ELBO):
            return ""
        for name, site in self.modelled.items():
            if site["is_observed"] or name not in self.guided:
                continue
            exact, reason = kl_is_exact(self.modelled, self.guided, name)
            if not exact and "no closed form" not in reason:
                return f"the KL of {name!r} is taken in closed form, and {reason}"
        return ""

    def _empty_plates(self) -> list[str]:
        """Returns a sentence for each plate that holds no site of either half."""
        held = set()
        entered = []
        for trace in (self.model_trace, self.guide_trace):
            nodes: dict[str, Any] = trace.nodes
            for name, site in nodes.items():
                if site["type"] != "sample":
                    continue
                if site_is_subsample(site):
                    entered.append(name)
                else:
                    held |= {frame.name for frame in site["cond_indep_stack"]}
        return [
            f"The plate {name!r} holds no site: indent the sites that belong to it."
            for name in entered
            if name not in held
        ]


_LOWER_OF_PYRO = (
    pyro.infer.Trace_ELBO,
    pyro.infer.TraceGraph_ELBO,
    pyro.infer.TraceEnum_ELBO,
    pyro.infer.TraceMeanField_ELBO,
    pyro.infer.TraceTMC_ELBO,
)
_LOGARITHMS_OF_PYRO = (pyro.infer.RenyiELBO, pyro.infer.TraceTMC_ELBO)


def _ours(name: str) -> str:
    return "Renyi" if name == "RenyiELBO" else name


def _frames(site: Site) -> list[Any]:
    return list(site["cond_indep_stack"])


def _family(site: Site) -> str:
    distribution = elements_of(site["fn"])
    masked = "masked " if site["mask"] is not None and site["mask"] is not True else ""
    return masked + type(distribution).__name__.lstrip("_")


def _shown_scale(site: Site) -> float:
    """Returns the scale of a site without that of subsampled plates, as a number to show."""
    scale = own_scale(site)
    if isinstance(scale, Tensor):
        return float(scale.double().mean())
    return round(float(scale), 9)


def _has_scales(sites: Sequence[Site]) -> bool:
    """Whether a site has a scale, be it of a subsample or of its own."""
    return any(
        bool((torch.as_tensor(site["scale"]) != 1).any())
        for site in sites
        if not is_factor(site)
    )


def _are_equal(scales: Sequence[Tensor | float]) -> bool:
    """Whether all scales are the same."""
    first, *others = (torch.as_tensor(scale).double() for scale in scales)
    return all(other.shape == first.shape and bool((other == first).all()) for other in others)


def _scale_text(site: Site | None, guided: Site | None) -> str:
    texts = []
    for half in (site, guided):
        if half is None:
            continue
        scale = half["scale"]
        text = "by data point" if isinstance(scale, Tensor) and scale.numel() > 1 else ""
        text = text or f"{float(scale):g}"
        if any(frame.full_size not in (None, frame.size) for frame in _frames(half)):
            text += " (subsample)"
        texts.append(text)
    return texts[0] if len(set(texts)) == 1 else " in p, ".join(texts) + " in q"
