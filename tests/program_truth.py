"""What is true of a pair, by algebra and enumeration, from the log densities of its sites
alone.

The coordinates are what the guide draws. Given its discrete draws, the log density of the
draws' law and f(u) = log p(x, z(u)) - log q(z(u)) of a linear Gaussian pair are quadratic, so
that

    ELBO = E_q[f] = sum_c q(c) (f_c(m_c) + tr(H_c S_c) / 2),        evidence = log E_q[exp f]

are exact, with whatever masks, scales and factors the programs have: log E_q[exp f] is log
p(x) for an honest pair. That the functions are quadratic is checked at a point of its own;
where they are not, there is no closed form.
"""

import dataclasses
import itertools
import math
import warnings
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample

DOUBLE = torch.float64
MOST = 4096  # values of discrete variables, all together


class Truth(NamedTuple):
    """In nats; None for what has no closed form."""

    elbo: float | None
    gradient: dict[str, torch.Tensor] | None  # of the ELBO
    evidence: float | None  # what no lower bound exceeds
    points: float | None  # log p(x), without scales: the sum over the data points
    nesting: int


class Quadratic(NamedTuple):
    r"""constant + gradient . u + u . hessian u / 2."""

    constant: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor

    def __add__(self, other):
        return Quadratic(*(a + b for a, b in zip(self, other, strict=True)))

    def __mul__(self, factor):
        return Quadratic(*(a * factor for a in self))

    def at(self, u):
        return self.constant + self.gradient @ u + u @ self.hessian @ u / 2

    def log_integral(self):
        """The log of the integral of its exponential; infinite where there is none."""
        size = len(self.gradient)
        if not size:
            return self.constant
        factor, failed = torch.linalg.cholesky_ex(-self.hessian)
        if failed:
            return self.constant + math.inf
        half = torch.linalg.solve_triangular(factor, self.gradient[:, None], upper=False)[:, 0]
        return (
            self.constant
            + half @ half / 2
            + size / 2 * math.log(2 * math.pi)
            - factor.diagonal().log().sum()
        )

    def mean_under(self, law):
        """Its expectation under the Gaussian whose log density is another one."""
        if not len(self.gradient):
            return self.constant
        covariance = torch.linalg.inv(-law.hessian)
        return self.at(covariance @ law.gradient) + (self.hessian * covariance).sum() / 2


def quadratic(value, u, graph):
    """The second-order expansion of a number at u = 0."""
    size = len(u)
    zeros = torch.zeros(size, dtype=DOUBLE)
    if not size or not value.requires_grad:
        return Quadratic(value, zeros, torch.zeros(size, size, dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(
        value, u, create_graph=True, allow_unused=True, materialize_grads=True
    )
    if not gradient.requires_grad:
        return Quadratic(value, gradient, torch.zeros(size, size, dtype=DOUBLE))
    rows = [
        torch.autograd.grad(
            entry,
            u,
            create_graph=graph,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )[0]
        for entry in gradient
    ]
    return Quadratic(value, gradient, torch.stack(rows))


def trace_of(values):
    """A trace of given draws, to replay a program with."""
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(
            name, name=name, type="sample", is_observed=False, value=value, infer={}
        )
    return trace


def sites_of(trace):
    """The sites that count."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def run(programs, draws, given=None):
    """Traces of both halves at given draws of the guide, and given values of more of the
    model's sites.
    """
    guide_trace = poutine.trace(
        poutine.replay(programs.guide, trace=trace_of(draws))
    ).get_trace(*programs.args)
    model = poutine.condition(programs.model, given) if given else programs.model
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
        *programs.args
    ), guide_trace


def unmasked(distribution):
    """The law of a draw: masks say what counts, not what is drawn."""
    if isinstance(distribution, dist.MaskedDistribution):
        return unmasked(distribution.base_dist)
    if isinstance(distribution, torch.distributions.Independent):
        return dist.Independent(
            unmasked(distribution.base_dist), distribution.reinterpreted_batch_ndims
        )
    return distribution


def total(trace, scaled=True, summed=()):
    """The log density of all sites; those that are summed out keep theirs where a mask leaves
    out what hangs on them.
    """
    values = []
    for name, site in sites_of(trace).items():
        mask = None if name in summed else site["mask"]
        log_prob = site["fn"].log_prob(site["value"])
        values.append(scale_and_mask(log_prob, site["scale"] if scaled else 1.0, mask).sum())
    return torch.as_tensor(sum(values), dtype=DOUBLE)


def is_discrete(site):
    return bool(getattr(unmasked(site["fn"]), "has_enumerate_support", False))


def is_drawn(site):
    return not site["is_observed"] and not isinstance(unmasked(site["fn"]), dist.Delta)


def configurations(sites):
    """All values of some discrete sites together."""
    spaces = []
    for site in sites.values():
        support = site["fn"].enumerate_support(expand=False).flatten().to(site["value"].dtype)
        spaces.append((site["value"].shape, support))
    count = math.prod(len(support) ** math.prod(shape) for shape, support in spaces)
    if count > MOST:
        raise TooMany(count)
    ranges = [
        itertools.product(support.tolist(), repeat=math.prod(shape))
        for shape, support in spaces
    ]
    for combination in itertools.product(*ranges):
        yield {
            name: torch.tensor(values, dtype=site["value"].dtype).reshape(shape)
            for (name, site), (shape, _), values in zip(
                sites.items(), spaces, combination, strict=True
            )
        }


class TooMany(Exception):
    """More values than there is time for."""


class NotQuadratic(Exception):
    """No closed form."""


class Case(NamedTuple):
    """The law of the draws and f, given all discrete variables."""

    law: Quadratic
    scaled: Quadratic
    unscaled: Quadratic


def cases(programs, summed, graph=True):
    """Yields the cases of each of the guide's discrete draws, one for each value of what the
    model sums out.
    """
    model_trace, guide_trace = run(programs, {})
    drawn = {name: site for name, site in sites_of(guide_trace).items() if is_drawn(site)}
    discrete = {name: site for name, site in drawn.items() if is_discrete(site)}
    continuous = {name: site["value"] for name, site in drawn.items() if name not in discrete}
    hidden = {name: site for name, site in sites_of(model_trace).items() if name in summed}
    sizes = [value.numel() for value in continuous.values()]
    test = torch.randn(sum(sizes), dtype=DOUBLE)

    def functions(u, chosen, given):
        parts = u.split(sizes) if sizes else []
        values = {
            n: part.reshape(v.shape)
            for (n, v), part in zip(continuous.items(), parts, strict=True)
        }
        model_trace, guide_trace = run(programs, {**values, **chosen}, given)
        law = [
            unmasked(site["fn"]).log_prob(site["value"]).sum()
            for n, site in sites_of(guide_trace).items()
            if n in drawn
        ]
        law = torch.as_tensor(sum(law), dtype=DOUBLE)
        scaled, unscaled = (
            total(model_trace, way, summed) - total(guide_trace, way) for way in (True, False)
        )
        return law, scaled, unscaled

    list_of_hidden = list(configurations(hidden))
    for chosen in configurations(discrete):
        found = []
        for given in list_of_hidden:
            u = torch.zeros(sum(sizes), dtype=DOUBLE, requires_grad=True)
            values = functions(u, chosen, given)
            case = Case(*(quadratic(value, u, graph) for value in values))
            if sizes:
                with torch.no_grad():
                    for form, value in zip(case, functions(test, chosen, given), strict=True):
                        if not torch.allclose(form.at(test), value, rtol=1e-6, atol=1e-6):
                            raise NotQuadratic
            found.append(case)
        yield found


def truth(pair):
    """Everything about a pair that has a closed form."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    try:
        with (
            torch.random.fork_rng(),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            pyro.clear_param_store()
            return _truth(pair)
    finally:
        torch.set_default_dtype(default)
        pyro.clear_param_store()


def _truth(pair):
    programs = pair.build(DOUBLE, full=True)
    programs.set(pair.later)
    traces = run(programs, {})
    nesting = max(
        (
            -f.dim
            for t in traces
            for s in t.nodes.values()
            for f in s.get("cond_indep_stack", ())
            if f.vectorized
        ),
        default=0,
    )
    if pair.evidence is not None:
        return Truth(None, None, pair.evidence, pair.evidence, nesting)
    try:
        found = list(cases(programs, pair.summed))
    except (NotQuadratic, TooMany):
        return Truth(None, None, None, None, nesting)
    probabilities = [row[0].law.log_integral().exp() for row in found]
    assert abs(sum(probabilities).item() - 1) < 1e-6
    elbo = gradient = None
    if not pair.summed:
        terms = [row[0].scaled.mean_under(row[0].law) for row in found]
        elbo = sum(p * term for p, term in zip(probabilities, terms, strict=True))
    elif not len(found[0][0].law.gradient) and pair.scaling in ("", "all"):
        # What is summed out is scaled as a whole.
        terms = [
            torch.stack([case.unscaled.constant for case in row]).logsumexp(0) for row in found
        ]
        elbo = sum(p * term for p, term in zip(probabilities, terms, strict=True))
        elbo = elbo * pair.constants.get("SCALE", 1.0)
    if elbo is not None:
        names, parameters = list(programs.parameters), list(programs.parameters.values())
        gradients = torch.autograd.grad(
            elbo, parameters, allow_unused=True, materialize_grads=True, retain_graph=True
        )
        gradient = dict(zip(names, gradients, strict=True))

    def evidence(kind, factor=1.0):
        forms = [
            (case.law + getattr(case, kind) * factor).log_integral()
            for row in found
            for case in row
        ]
        return torch.stack(forms).logsumexp(0).item()

    points = evidence("unscaled")
    bound = evidence("scaled")
    if pair.scaling == "all":
        bound = pair.constants["SCALE"] * points
    if pair.scaling == "given":
        bound = pair.constants["TOTAL"] / len(next(iter(pair.data.values()))) * points
    if pair.scaling == "rows":
        bound = sum(
            weight * _row_evidence(pair, row) for row, weight in enumerate(pair.data["s"])
        )
    if not pair.bounded or not math.isfinite(bound):
        bound = None
    return Truth(
        None if elbo is None else elbo.item(),
        gradient,
        bound,
        points if math.isfinite(points) else None,
        nesting,
    )


def _row_evidence(pair, row):
    """The evidence of one data point: the others count nothing."""
    one = [float(index == row) for index in range(len(pair.data["s"]))]
    programs = pair.build(DOUBLE, s=one)
    forms = [
        (case.law + case.scaled).log_integral()
        for cs in cases(programs, pair.summed, False)
        for case in cs
    ]
    return torch.stack(forms).logsumexp(0).item()


def near_the_posterior(pair):
    """The pair with the guide's tables moved to the model's posterior, a little off and a
    little wide.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(DOUBLE)
    try:
        with (
            torch.random.fork_rng(),
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(pair.seed)
            return dataclasses.replace(pair, values={**pair.values, **_tables(pair)})
    finally:
        torch.set_default_dtype(default)


def _tables(pair) -> dict[str, Any]:
    programs = pair.build(DOUBLE, full=True)
    prior = sites_of(poutine.trace(programs.model).get_trace(*programs.args))
    fixed = {
        name: site["value"]
        for name, site in prior.items()
        if is_drawn(site) and is_discrete(site)
    }
    free = {
        name: site["value"]
        for name, site in prior.items()
        if is_drawn(site) and not is_discrete(site)
    }
    if not free:
        return {}
    sizes = [value.numel() for value in free.values()]
    u = torch.zeros(sum(sizes), dtype=DOUBLE, requires_grad=True)
    values = {
        n: part.reshape(v.shape)
        for (n, v), part in zip(free.items(), u.split(sizes), strict=True)
    }
    trace = poutine.trace(
        poutine.replay(programs.model, trace=trace_of({**fixed, **values}))
    ).get_trace(*programs.args)
    form = quadratic(total(trace, scaled=False), u, False)
    # Masks may leave directions without a density.
    precision = -form.hessian.detach() + 0.02 * torch.eye(len(u), dtype=DOUBLE)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ form.gradient.detach()
    # Between the posterior's marginal and conditional deviations: what the ELBO and what
    # weights would like.
    spread = (covariance.diagonal() / precision.diagonal()).clamp(min=1e-6) ** 0.25
    at = {
        n: (m.reshape(v.shape), s.reshape(v.shape))
        for (n, v), m, s in zip(
            free.items(), mean.split(sizes), spread.split(sizes), strict=True
        )
    }
    draws = {name: m for name, (m, _) in at.items()} | fixed
    guided = sites_of(
        poutine.trace(poutine.replay(programs.guide, trace=trace_of(draws))).get_trace(
            *programs.args
        )
    )
    tables = {name: value.detach().clone() for name, value in programs.parameters.items()}
    for name, (m, s) in at.items():
        stem, _, index = name.partition("_") if f"q_{name}" not in tables else (name, "", "")
        if f"q_{stem}" not in tables or f"q_{stem}_log" not in tables or name not in guided:
            continue
        table, log = tables[f"q_{stem}"], tables[f"q_{stem}_log"]
        table, log = (table[int(index)], log[int(index)]) if index else (table, log)
        off = m - guided[name]["fn"].mean.detach() + 0.25 * s * torch.randn_like(s)
        table.add_(off.reshape(table.shape))
        log.copy_(((s * (1.0 + 0.3 * torch.rand_like(s))).log()).reshape(log.shape))
    names = [name for name in tables if name.startswith("q_")]
    return {name: _rounded(tables[name].tolist()) for name in names}


def _rounded(values):
    return (
        [_rounded(value) for value in values] if isinstance(values, list) else round(values, 3)
    )
