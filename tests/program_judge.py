"""What the library says of a pair, against what is true of it.

Every quantity is the mean of independent calls, and its error is estimated from them. Where it
is more than the threshold away from the truth, ten times as many fresh calls decide. The
threshold of m numbers that are compared together is Bonferroni's for 4 standard errors of one
(6.3e-5 / m on both sides); the first look has the t distribution's for its few calls at 1e-3 /
m. So a comparison that is right is called wrong with a probability of about 1e-3 * 6e-5 =
6e-8: of the 20,000 comparisons of 2,000 pairs, 0.001 are expected to be.
"""

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from scipy import stats

from tarspyro import evaluate
from tarspyro.infer import ELBO, IWAE, PairError, Renyi, log_weights

from .program_truth import sites_of, trace_of, truth

CALLS, PARTICLES, FINAL = 8, 24, 10
RIGHT, BOUND, REFUSED, NEEDLESS, SKIPPED, FAILED = (
    "right", "between the ELBO and the evidence", "refused", "needlessly refused", "not compared", "FAILED",
)  # fmt: skip
OURS = (
    "vectorize_particles",
    "one by one",
    "particle",
    "in different places",
)  # what our own warnings about single particles, and about masks in one half, say
# Programs that mix the rows of a plate, which says that they are independent: no weights of
# theirs are judged.
FALSE_PLATES = ("mixed over the rows", "neighbours", "a weight that starts at zero, rows")
BATCHES = ("subsampl", "scale")  # and those about shared latent variables of a batch


@dataclass(frozen=True)
class Finding:
    quantity: str
    verdict: str
    detail: str = ""


@dataclass
class Verdict:
    """Everything that was found about a pair."""

    pair: object
    truth: object
    findings: list[Finding] = field(default_factory=list)

    @property
    def failures(self):
        plain = [f for f in self.findings if f.verdict == NEEDLESS and self.pair.plain]
        return [f for f in self.findings if f.verdict == FAILED] + plain

    @property
    def outcome(self):
        """One word for the whole pair."""
        counts = Counter(finding.verdict for finding in self.findings)
        if self.failures:
            return FAILED
        return next(
            (verdict for verdict in (NEEDLESS, RIGHT, BOUND, REFUSED) if counts[verdict]),
            SKIPPED,
        )

    def report(self):
        lines = [
            f"seed {self.pair.seed}: {self.pair.kind}, {', '.join(self.pair.features)} ({self.pair.structure})"
        ]
        if self.truth is not None:
            lines.append(f"  {self.truth._replace(gradient=None)}")
        lines += [f"  {f.quantity:16} {f.verdict:24} {f.detail}" for f in self.findings]
        return "\n".join(lines)


class Wrong(Exception):
    """What is not a refusal and not a number that is right."""


def judge(pair, quantities=None):
    """Compares all that the library says of a pair with its truth."""
    with pyro.validation_enabled(True):
        known = None if pair.wrong else truth(pair)
        verdict = Verdict(pair, known)
        for quantity, look in QUANTITIES.items():
            if quantities is None or quantity in quantities:
                pyro.clear_param_store()
                torch.manual_seed(pair.seed)
                verdict.findings.append(_finding(pair, known, quantity, look))
        pyro.clear_param_store()
    return verdict


def _finding(pair, known, quantity, look):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result, detail = look(pair, known)
        except Wrong as error:
            result, detail = FAILED, str(error)
        except PairError as error:
            result, detail = REFUSED, str(error)
            if not pair.wrong and FAMILY[quantity] not in pair.refusable:
                result = NEEDLESS
            if "\n" in str(error) or len(str(error)) > 400:
                result, detail = FAILED, f"not one sentence: {str(error)[:400]!r}"
        except Exception as error:
            first = str(error).partition("\n")[0]
            result, detail = FAILED, f"{type(error).__name__}: {first[:300]}"
    strange = [
        str(w.message).partition("\n")[0][:200] for w in caught if not _expected(pair, w)
    ]
    if strange and result != FAILED:
        result, detail = FAILED, f"warned: {strange[0]} ({result})"
    return Finding(quantity, result, detail)


def _expected(pair, warning):
    text = str(warning.message)
    if any(word in text for word in OURS):
        return True
    return pair.scaling in ("size", "given") and any(word in text for word in BATCHES)


# --- statistics
# ------------------------------------------------------------------------------------------------------


def measure(draw, count):
    """The mean of independent calls, and its standard error: a row of numbers each."""
    values = torch.stack(
        [
            torch.atleast_1d(torch.as_tensor(draw(), dtype=torch.float64)).detach()
            for _ in range(count)
        ]
    )
    if not values.isfinite().all():
        raise Wrong(f"not finite: {values[~values.isfinite()][0].item()}")
    return values.mean(0), values.std(0) / count**0.5


def compare(draw, low, high, low_error=0.0, high_error=0.0, calls=CALLS):
    """Whether the mean of the calls lies between two values, each known up to a standard
    error.
    """
    for count in (calls, FINAL * calls):
        mean, error = measure(draw, count)
        level = 1e-3 if count == calls else 6.3e-5
        threshold = stats.t.isf(level / 2 / len(mean), count - 1)
        rounding = 2e-5 * (1 + mean.abs())
        below = (low - mean) / ((error**2 + low_error**2).sqrt() * threshold + rounding)
        above = (mean - high) / ((error**2 + high_error**2).sqrt() * threshold + rounding)
        worst = torch.maximum(below, above)
        if worst.max() <= 1:
            return f"{_few(mean)} +- {_few(error)}"
    index = int(worst.argmax())
    bounds = [float(torch.as_tensor(v).expand_as(mean)[index]) for v in (low, high)]
    wanted = (
        f"{bounds[0]:.4f}"
        if bounds[0] == bounds[1]
        else f"{bounds[0]:.4f} ... {bounds[1]:.4f}"
    )
    where = f" (entry {index} of {len(mean)})" if len(mean) > 1 else ""
    raise Wrong(f"{mean[index]:.4f} +- {error[index]:.4f} for {wanted}{where}")


def _few(values):
    return f"{values[0]:.4f}" if len(values) == 1 else f"[{len(values)} numbers]"


# --- the quantities
# --------------------------------------------------------------------------------------------------


def programs_of(pair, bound=None):
    """The pair, with parameters as they are after a first call, which the bound has seen."""
    programs = pair.build()
    if pair.later:
        if bound is not None:
            bound.loss(programs.model, programs.guide, *programs.args)
        programs.set(pair.later)
    return programs


def _expect_refusal(pair, draw):
    if pair.wrong:
        raise Wrong(f"a number for a wrong pair: {float(torch.as_tensor(draw()).sum()):.4f}")


def _is_noise(pair):
    """Whether all that is wrong is noise without a partner, which the ELBO may count as Pyro's
    does.
    """
    return pair.wrong and pair.features == ("noise without a partner",)


def reference(pair, known, programs):
    """Pyro's own estimate of the ELBO, with its standard error."""
    loss = (
        TraceEnum_ELBO
        if pair.summed or any("enumerates" in f for f in pair.features)
        else Trace_ELBO
    )
    options = {
        "max_plate_nesting": 1 if known is None else known.nesting,
        "vectorize_particles": not pair.one_by_one,
        "num_particles": PARTICLES * 4,
    }
    if pair.one_by_one:
        options["num_particles"] = 10
    bound = loss(**options)
    mean, error = measure(
        lambda: -bound.loss(programs.model, programs.guide, *programs.args), 20
    )
    return float(mean), float(error)


def expected_elbo(pair, known, programs):
    if known is not None and known.elbo is not None:
        return known.elbo, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return reference(pair, known, programs)
        except Exception as error:
            raise NoReference from error


class NoReference(Exception):
    """Pyro has no number either."""


def _elbo(bound):
    def look(pair, known):
        particles = 10 if pair.one_by_one else PARTICLES
        loss = bound(particles)
        programs = programs_of(pair, loss)

        def draw():
            return -loss.loss(programs.model, programs.guide, *programs.args)

        if not _is_noise(pair):
            _expect_refusal(pair, draw)
        draw()  # so that a refusal comes before the reference
        try:
            value, error = expected_elbo(pair, known, programs)
        except NoReference as reason:
            return (
                SKIPPED,
                f"Pyro: {type(reason.__cause__).__name__}: {str(reason.__cause__)[:80]}",
            )
        return RIGHT, compare(draw, value, value, error, error) + f" for {value:.4f}"

    return look


def own_weights(pair, known, count):
    """Log weights of data points, [count, *points], by a plate of particles around both
    halves; None if they have none.

    Where all sites have plates in common, their indices are the data points, and everything
    else is summed.
    """
    if (
        pair.structure != "local"
        or pair.kind == "naive"
        or pair.one_by_one
        or pair.summed
        or pair.scaling in ("data", "latent")
    ):
        return None
    programs = pair.build(full=True)
    programs.set(pair.later)
    traces = []
    draws: dict = {}
    for program in (programs.guide, programs.model):
        inside = pyro.plate("own", count, dim=-known.nesting - 1)(
            poutine.replay(program, trace=trace_of(draws))
        )
        traces.append(poutine.trace(inside).get_trace(*programs.args))
        draws = {
            name: site["value"]
            for name, site in traces[0].nodes.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
    signed = [
        (site, sign)
        for trace, sign in zip(traces, (-1, 1), strict=True)
        for site in sites_of(trace).values()
    ]
    frames = [
        {f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name != "own"}
        for site, _ in signed
    ]
    names = [
        {f.name for f in site["cond_indep_stack"] if f.name != "own"} for site, _ in signed
    ]
    common = sorted(set.intersection(*frames)) if frames else []
    if not common or not set.intersection(*names):
        return None
    kept = {-known.nesting - 1, *common}
    total = 0.0
    for site, sign in signed:
        value = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        value = value.expand((1,) * (known.nesting + 1 - value.dim()) + value.shape)
        others = [dim for dim in range(-known.nesting - 1, 0) if dim not in kept]
        total = total + sign * (value.sum(others, keepdim=True) if others else value)
    return total.reshape([count, *(total.shape[dim] for dim in common)]).detach()


def own_bound(pair, known, particles, alpha, groups=300):
    """The bound of that order, by those weights: its mean over groups of particles, and its
    standard error.
    """
    weights = own_weights(pair, known, groups * particles)
    if weights is None:
        return None
    weights = weights.double().unflatten(0, (groups, particles))
    bound = (((1 - alpha) * weights).logsumexp(1) - math.log(particles)) / (1 - alpha)
    scale = torch.tensor(1.0)
    if pair.scaling == "all":
        scale = torch.tensor(pair.constants["SCALE"])
    if pair.scaling == "given":
        scale = torch.tensor(pair.constants["TOTAL"] / len(next(iter(pair.data.values()))))
    if pair.scaling == "rows":
        scale = torch.tensor(pair.data["s"])
    values = (bound * scale).flatten(1).sum(1)
    return float(values.mean()), float(values.std()) / groups**0.5


def _bound(make, particles, alpha):
    def look(pair, known):
        loss = make(3 if pair.one_by_one else PARTICLES // 2)
        programs = programs_of(pair, loss)

        def draw():
            return -loss.loss(programs.model, programs.guide, *programs.args)

        _expect_refusal(pair, draw)
        draw()
        if pair.features[0] in FALSE_PLATES:
            return SKIPPED, "rows of a plate that depend on each other"
        if pair.scaling in ("size", "given") and pair.structure == "shared":
            # The mean over batches of the logarithm of a scaled estimate is no bound.
            return SKIPPED, "no bound"
        try:
            low, error = expected_elbo(pair, known, programs)
        except NoReference:
            low, error = -math.inf, 0.0
        high = math.inf if known.evidence is None else known.evidence
        with pyro.validation_enabled(False):
            own = own_bound(pair, known, particles, alpha)
        if own is not None:
            text = compare(draw, own[0], own[0], own[1], own[1]) + f" for {own[0]:.4f}"
            compare(draw, low, high, error)
            return RIGHT, text
        return BOUND, compare(draw, low, high, error) + f" in {low:.4f} ... {high:.4f}"

    return look


def _log_likelihood(pair, known):
    if len({value.shape[0] for value in pair.build().args}) > 1:
        return SKIPPED, "the parts of the data differ in length"
    particles = 50 if pair.one_by_one else 500
    programs = programs_of(pair)
    one = evaluate.log_likelihood(
        programs.model, programs.guide, programs.args, num_particles=particles, errors=True
    )
    _expect_refusal(pair, lambda: one.log_likelihood)
    return _points(
        pair,
        known,
        lambda k: evaluate.log_likelihood(
            programs.model, programs.guide, programs.args, num_particles=k
        ),
        particles,
    )


def _log_weights(pair, known):
    particles = 50 if pair.one_by_one else 500
    programs = programs_of(pair)

    def estimate(k):
        weights = log_weights(programs.model, programs.guide, *programs.args, num_particles=k)
        return weights.logsumexp(0) - math.log(k)

    first = estimate(2)
    _expect_refusal(pair, lambda: first)
    return _points(pair, known, estimate, particles)


def _points(pair, known, estimate, particles):
    if (
        pair.features[0] in FALSE_PLATES
        or known.points is None
        or pair.scaling == "size"
        or not pair.bounded
        and pair.scaling not in ("given", "latent")
    ):
        return SKIPPED, "no truth"

    def draw():
        return torch.as_tensor(estimate(particles)).double().sum()

    with pyro.validation_enabled(False):
        weights = own_weights(pair, known, 6_000)
    if weights is not None and weights.dim() == 2 and pair.kind in ("gaussian", "discrete"):
        one_by_one(lambda: torch.as_tensor(estimate(particles)), weights)
    # The logarithm of a mean of weights lies below its expectation by half of its variance.
    mean, error = measure(draw, CALLS)
    variance = float(error**2) * CALLS
    slack = 2 * variance + 1e-3
    improper = any(
        feature in ("mask fn model", "mask fn guide", "mask fn different")
        for feature in pair.features
    )
    if variance > 0.5 or improper or pair.kind not in ("gaussian", "discrete"):
        # Weights of a guide that is far from the posterior may have no variance that one could
        # measure.
        low = -math.inf if known.elbo is None or pair.scaling else known.elbo
        return BOUND, compare(
            draw, low, known.points
        ) + f" in {low:.4f} ... {known.points:.4f}"
    return RIGHT, compare(
        draw, known.points - slack, known.points
    ) + f" for {known.points:.4f}"


def one_by_one(draw, weights):
    """Compares every data point with its own weights: the sum alone would not see two of them
    exchanged.
    """
    own = weights.logsumexp(0) - math.log(len(weights))
    error = ((2 * (weights - own)).exp().mean(0) - 1).clamp(min=0).sqrt() / len(weights) ** 0.5
    first = draw()
    if first.shape != own.shape:
        raise Wrong(f"{tuple(first.shape)} numbers for data points {tuple(own.shape)}")
    noise = 10 * error.double() + 0.3
    compare(draw, own - noise, own + noise)


def _gradient(make):
    def look(pair, known):
        if known is None:
            raise PairError("left out")
        if known.gradient is None or any("has_rsample=False" in f for f in pair.features):
            return SKIPPED, "no closed form"
        loss = make(8 if pair.one_by_one else 2 * PARTICLES)
        programs = programs_of(pair, loss)
        names = list(programs.parameters)
        parameters = [programs.parameters[name] for name in names]
        if not parameters:
            return SKIPPED, "no parameters"

        def draw():
            value = loss.differentiable_loss(programs.model, programs.guide, *programs.args)
            gradients = torch.autograd.grad(
                value, parameters, allow_unused=True, materialize_grads=True
            )
            return -torch.cat([gradient.flatten() for gradient in gradients])

        exact = torch.cat([known.gradient[name].flatten() for name in names])
        try:
            return RIGHT, compare(draw, exact, exact)
        except Wrong as error:
            entries = [
                name for name in names for _ in range(programs.parameters[name].numel())
            ]
            index = str(error).partition("(entry ")[2].partition(" of")[0]
            raise Wrong(f"{error}: {entries[int(index)] if index else entries[0]}") from error

    return look


QUANTITIES = {
    "elbo": _elbo(lambda n: ELBO(n)),
    "elbo sampled": _elbo(lambda n: ELBO(n, analytic_kl=False)),
    "iwae 1": _elbo(lambda n: IWAE(1, n)),
    "iwae 8": _bound(lambda n: IWAE(8, n), 8, 0.0),
    "renyi": _bound(lambda n: Renyi(0.5, 4, n), 4, 0.5),
    "log_likelihood": _log_likelihood,
    "log_weights": _log_weights,
    "elbo gradient": _gradient(lambda n: ELBO(n)),
    "iwae gradient": _gradient(lambda n: IWAE(1, n)),
}
FAMILY = {
    "elbo": "elbo", "elbo sampled": "elbo", "elbo gradient": "elbo", "iwae 1": "weights", "iwae 8": "weights",
    "renyi": "weights", "iwae gradient": "weights", "log_likelihood": "points", "log_weights": "points",
}  # fmt: skip
