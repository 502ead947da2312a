"""Gamma and related distributions, from concentration 1e-4 to 1e4.

In this order, the tests show that

- draws, and the logarithms that they carry, follow their distributions, also if values underflow;
- densities and moments equal those of scipy, and nothing is infinite or NaN;
- gradients of bounds equal closed forms, for each bound and each wrapper of a distribution;
- draws carry their logarithm and score until they are changed;
- both slopes behind the gradients agree with high precision;
- draws work under torch's function transforms and in the rest of the library.

Tolerances are 4 standard errors, or 5 where dozens of means are compared; they are not tuned.
"""

import copy
import math
import pickle
from decimal import Decimal, localcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from scipy import special, stats
from torch import distributions as td
from torch.fx.experimental.proxy_tensor import make_fx

from tarspyro import Conditional, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import (
    Beta,
    Chi2,
    Dirichlet,
    Gamma,
    InverseGamma,
    StudentT,
    default_prior,
)
from tarspyro.distributions.drawing import recall
from tarspyro.distributions.rejection import (
    _acceptance_slope,
    _implicit_slope,
    stirling_remainder,
)
from tarspyro.infer import ELBO
from tarspyro.nn import MLP

from ..fresh_process import check_in_fresh_process
from ..programs import as_made, assert_within

F64 = torch.float64
GRID = (1e-4, 1e-3, 0.05, 0.5, 1.5, 10.0, 1e3, 1e4)
PAIRS = [(a, a) for a in GRID] + [
    (1e-4, 1.5),
    (1.5, 1e-3),
    (0.5, 1e4),
    (1e3, 0.05),
    (10.0, 1e-4),
    (1e4, 10.0),
]
TRIPLES = [(a, a, a) for a in GRID] + [(1e-4, 1.5, 1e3), (10.0, 0.05, 0.5), (1e4, 1e-3, 1.5)]
SAMPLERS = {
    "boost 1": {"boost": 1},
    "boost 4": {"boost": 4},
    "implicit": {"reparameterization": "implicit"},
}
RATE, LOC, SCALE = 2.5, 1.0, 2.0

# How to make each family from a tensor of parameters, and the parameters to take.
FAMILIES = {
    "Gamma": (lambda a, **how: Gamma(a, torch.full_like(a, RATE), **how), GRID),
    "Chi2": (lambda a, **how: Chi2(a, **how), GRID),
    "InverseGamma": (lambda a, **how: InverseGamma(a, torch.full_like(a, RATE), **how), GRID),
    "StudentT": (
        lambda a, **how: StudentT(
            a, torch.full_like(a, LOC), torch.full_like(a, SCALE), **how
        ),
        GRID,
    ),
    "Beta": (lambda a, **how: Beta(a[..., 0], a[..., 1], **how), PAIRS),
    "Dirichlet": (lambda a, **how: Dirichlet(a, **how), TRIPLES),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_sampler = pytest.mark.parametrize("how", SAMPLERS.values(), ids=SAMPLERS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])


def seeded(seed=0):
    torch.manual_seed(seed)


def doubles(tensor):
    return tensor.detach().double().numpy()


def score_parts(distribution, sample_shape=()):
    value = distribution.rsample(sample_shape)
    return value, distribution.score_parts(value)


# Distribution.

DRAWS = 20_000
KS_TESTS = (4 * len(GRID) + len(PAIRS) + 3 * len(TRIPLES)) * len(SAMPLERS) * 2


def assert_follows(x, cdf, what, low=-math.inf, high=math.inf):
    """Kolmogorov-Smirnov; with limits, the supremum over what lies between them, which errs
    towards acceptance.

    The level is 1e-3 for all the comparisons of this file together.
    """
    x, n = np.sort(x), len(x)
    inside = np.flatnonzero((x > low) & (x < high))
    exact = cdf(x[inside])
    gaps = [exact - inside / n, (inside + 1) / n - exact]
    gaps += [
        [abs((x <= limit).mean() - cdf(np.array([limit]))[0])]
        for limit in (low, high)
        if math.isfinite(limit)
    ]
    gap = max(np.max(values, initial=0.0) for values in gaps)
    p = stats.kstwo.sf(gap, n)
    assert p > 1e-3 / KS_TESTS, (
        f"{what}: the distribution functions are {gap:.3g} apart, p = {p:.2g}"
    )


def log_gamma_cdf(a):
    """P(log g <= y) with g ~ Gamma(a, 1); below y = -40, where F(g) = g^a / Gamma(a + 1) up to
    O(g), in log space.
    """

    def cdf(y):
        tiny = np.exp(a * np.minimum(y, -40.0) - special.gammaln(a + 1))
        return np.where(y < -40, tiny, special.gammainc(a, np.exp(np.maximum(y, -40.0))))

    return cdf


def logit_beta_cdf(a, b):
    """P(log z - log(1 - z) <= y) with z ~ Beta(a, b); F(z) = z^a / (a B(a, b)) up to O(b z)
    where z is below e^-40.
    """

    def lower(a, b, y):
        tiny = np.exp(a * np.minimum(y, -40.0) - np.log(a) - special.betaln(a, b))
        return np.where(
            y < -40, tiny, special.betainc(a, b, special.expit(np.clip(y, -40.0, 0.0)))
        )

    return lambda y: np.where(
        y <= 0, lower(a, b, np.minimum(y, 0.0)), 1 - lower(b, a, np.minimum(-y, 0.0))
    )


def student_cdf(df):
    def cdf(t):
        tail = 0.5 * special.betainc(df / 2, 0.5, df / (df + t**2))
        return np.where(t < 0, tail, 1 - tail)

    return cdf


@each_dtype
@each_sampler
@each_family
def test_draws_follow_the_distribution(family, how, dtype):
    seeded()
    make, table = FAMILIES[family]
    parameters = torch.tensor(table, dtype=dtype)
    q = make(parameters, **how)
    z = q.rsample((DRAWS,))
    assert z.shape == (DRAWS, *q.batch_shape, *q.event_shape) and z.dtype == dtype
    draw, values, exact = recall(z), doubles(z), doubles(parameters)
    finfo = torch.finfo(dtype)
    if family != "StudentT":
        # The exponential rounds: up to |log z| units in the last place.
        assert values.min() >= finfo.tiny / finfo.eps * (1 - 1e3 * finfo.eps)
        log = doubles(draw.log)
        ordinary = (values > 10 * finfo.tiny / finfo.eps) & (
            values < 0.1 * finfo.eps**2 / finfo.tiny
        )
        off = np.abs(np.log(values) - log)[ordinary]
        assert (off <= 8 * finfo.eps * (1 + np.abs(log[ordinary]))).all(), (
            "the draw is not what its logarithm says"
        )
    for i, parameter in enumerate(exact):
        what = f"{family}({parameter}), {how}, {dtype}"
        if family == "Gamma":
            assert_follows(log[:, i] + math.log(RATE), log_gamma_cdf(parameter), what)
        elif family == "Chi2":
            assert_follows(log[:, i] - math.log(2), log_gamma_cdf(parameter / 2), what)
        elif family == "InverseGamma":
            assert_follows(math.log(RATE) - log[:, i], log_gamma_cdf(parameter), what)
        elif family == "StudentT":
            # No logarithm to remember; far out it is cut off, where floating point would end.
            far = 1e15 if dtype == torch.float32 else 1e140
            assert_follows(
                (values[:, i] - LOC) / SCALE, student_cdf(parameter), what, -far, far
            )
        elif family == "Beta":
            assert_follows(
                log[:, i] - doubles(draw.log1m)[:, i], logit_beta_cdf(*parameter), what
            )
            assert values[:, i].max() < 1
        else:
            # Near z = 1 the logarithm has absolute precision only: look at what can be told
            # apart.
            high = -1e-3 if dtype == torch.float32 else -1e-9
            total = parameter.sum()
            for k, a in enumerate(
                parameter[: len(set(parameter))]
            ):  # of three that are alike, the first
                logit_cdf = logit_beta_cdf(a, total - a)
                cdf = lambda y, F=logit_cdf: F(y - np.log(-np.expm1(y)))  # noqa: E731
                assert_follows(log[:, i, k], cdf, f"{what}, share {k}", high=high)


@each_family
def test_boost_has_no_effect_on_the_implicit_derivative(family):
    make, table = FAMILIES[family]
    parameters = torch.tensor(table)
    draws = []
    for boost in (0, 1, 4):
        seeded()
        draws.append(
            make(parameters, boost=boost, reparameterization="implicit").rsample((10,))
        )
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[1], draws[2])


@each_dtype
def test_draws_without_augmentation_follow_the_distribution(dtype):
    seeded()
    a = torch.tensor([1.0, 1.5, 10.0, 1e3, 1e4], dtype=dtype)
    log = doubles(recall(Gamma(a, torch.ones_like(a), boost=0).rsample((DRAWS,))).log)
    for i, concentration in enumerate(doubles(a)):
        assert_follows(
            log[:, i], log_gamma_cdf(concentration), f"Gamma({concentration}), boost=0"
        )


# Densities, moments, shapes.


def scipy_log_prob(family, p, x):
    """In double precision; of Beta and Dirichlet at the point of the simplex that the numbers
    are closest to.
    """
    if family == "Gamma":
        return stats.gamma.logpdf(x, p, scale=1 / RATE)
    if family == "Chi2":
        return stats.gamma.logpdf(x, p / 2, scale=2)
    if family == "InverseGamma":
        return stats.invgamma.logpdf(x, p, scale=RATE)
    if family == "StudentT":
        return stats.t.logpdf(x, p, LOC, SCALE)
    if family == "Beta":
        return stats.beta.logpdf(x, *p)
    x = x / x.sum(-1, keepdims=True)
    return (
        special.gammaln(p.sum()) - special.gammaln(p).sum() + special.xlogy(p - 1, x).sum(-1)
    )


def ordinary_values(family, parameters):
    """Values without logarithms, in the range of scipy."""
    make, _ = FAMILIES[family]
    z = make(parameters).rsample((50,)).detach().clone()
    assert recall(z) is None
    return z if family != "StudentT" else z.clamp(-1e15, 1e15)


@each_family
def test_log_prob_is_scipys(family):
    seeded()
    make, table = FAMILIES[family]
    parameters = torch.tensor(table, dtype=F64)
    z = ordinary_values(family, parameters)
    ours = doubles(make(parameters).log_prob(z))
    for i, parameter in enumerate(doubles(parameters)):
        exact = scipy_log_prob(family, parameter, doubles(z)[:, i])
        # scipy's own rounding: the terms that cancel are as large as a log a.
        rounding = 4e-15 * np.sum(parameter * (1 + np.abs(np.log(parameter))))
        off = np.abs(ours[:, i] - exact)
        assert (off <= 1e-10 * (1 + np.abs(exact)) + rounding).all(), (
            f"{family}({parameter}): {off.max()}"
        )


@each_family
def test_log_prob_is_accurate_in_single_precision(family):
    """Around the mode of a large concentration, terms of 1e5 cancel: in single precision 1e-2
    is lost.

    Without that cancellation what is left is the rounding of log z itself (1e-6 near log z =
    9), times the slope of the log-density in it, a (1 - z / mean), some hundreds at a = 1e4:
    2e-4, or a few times that where several count.
    """
    seeded()
    make, table = FAMILIES[family]
    parameters = torch.tensor(table)
    z = ordinary_values(family, parameters)
    ours = make(parameters).log_prob(z)
    assert ours.dtype == torch.float32
    worst = {}
    for i, parameter in enumerate(doubles(parameters)):
        exact = scipy_log_prob(family, parameter, doubles(z)[:, i])
        worst[table[i]] = (np.abs(doubles(ours)[:, i] - exact) / (1 + np.abs(exact))).max()
    assert max(worst.values()) < 1e-3, worst


def test_torchs_own_density_loses_digits():
    """The reason for a density of our own; if this fails, torch's can be used."""
    seeded()
    a, rate = torch.tensor(1e4), torch.tensor(1.0)
    z = Gamma(a, rate).rsample((1000,)).detach().clone()
    exact = torch.from_numpy(stats.gamma.logpdf(doubles(z), 1e4))
    ours, torchs = (
        (q.log_prob(z) - exact).abs().max() for q in (Gamma(a, rate), td.Gamma(a, rate))
    )
    assert ours < 1e-3 and torchs > 5e-3


@each_dtype
@pytest.mark.parametrize("family", ["Gamma", "Chi2", "InverseGamma", "Beta", "Dirichlet"])
def test_log_prob_of_a_draw_below_the_floor_uses_its_logarithm(family, dtype):
    seeded()
    make, _ = FAMILIES[family]
    size = {"Beta": (2,), "Dirichlet": (3,)}.get(family, ())
    q = make(torch.full(size, 1e-4, dtype=dtype))
    z = q.rsample((1000,))
    a, log = float(torch.tensor(1e-4, dtype=dtype)), doubles(recall(z).log)
    assert np.abs(log).max() > 1000, "no floating-point number has such a logarithm"
    if family == "Dirichlet":
        exact = special.gammaln(3 * a) - 3 * special.gammaln(a) + (a - 1) * log.sum(-1)
    elif family == "Beta":
        exact = (a - 1) * (log + doubles(recall(z).log1m)) - special.betaln(a, a)
    else:
        a, rate = (a / 2, 0.5) if family == "Chi2" else (a, RATE)
        log_gamma = -log if family == "InverseGamma" else log
        exact = (
            a * math.log(rate)
            - special.gammaln(a)
            + (a - 1) * log_gamma
            - rate * np.exp(log_gamma)
        )
        exact = exact + 2 * log_gamma if family == "InverseGamma" else exact
    np.testing.assert_allclose(
        doubles(q.log_prob(z)), exact, rtol=20 * torch.finfo(dtype).eps, atol=1e-9
    )


@pytest.mark.parametrize("family", ["Gamma", "Chi2", "Beta", "Dirichlet"])
def test_gradients_pass_the_lower_limit_of_draws(family):
    """A draw at the lower limit has the derivative of the exact one: its logarithm that of the
    exact logarithm.
    """
    seeded()
    make, _ = FAMILIES[family]
    size = {"Beta": (2,), "Dirichlet": (3,)}.get(family, ())
    parameters = torch.full((1000, *size), 1e-3, requires_grad=True)
    z = make(parameters).rsample()
    (gradient,) = torch.autograd.grad(z.log().sum(), parameters, retain_graph=True)
    (exact,) = torch.autograd.grad(recall(z).log.sum(), parameters)
    assert exact.abs().max() > 1e3
    torch.testing.assert_close(
        gradient, exact, rtol=1e-4, atol=1e-3 * exact.abs().max().item()
    )


@each_family
def test_mean_and_variance_are_scipys(family):
    parameters = torch.tensor(FAMILIES[family][1], dtype=F64)
    if family == "StudentT":
        parameters = parameters[
            parameters > 1
        ]  # without a mean torch says NaN, scipy infinity
    q = FAMILIES[family][0](parameters)
    for i, p in enumerate(doubles(parameters)):
        exact = {
            "Gamma": lambda p: stats.gamma(p, scale=1 / RATE).stats("mv"),
            "Chi2": lambda p: stats.chi2(p).stats("mv"),
            "InverseGamma": lambda p: stats.invgamma(p, scale=RATE).stats("mv"),
            "StudentT": lambda p: stats.t(p, LOC, SCALE).stats("mv"),
            "Beta": lambda p: stats.beta(*p).stats("mv"),
            "Dirichlet": lambda p: (stats.dirichlet(p).mean(), stats.dirichlet(p).var()),
        }[family](p)
        ours = (doubles(q.mean)[i], doubles(q.variance)[i])
        if family == "InverseGamma" and p <= 2:
            assert ours[1] == math.inf and (ours[0] == math.inf) == (
                p <= 1
            )  # scipy: infinite or NaN
            ours, exact = ours[:1], exact[:1]
            if p <= 1:
                continue
        np.testing.assert_allclose(ours, exact, rtol=1e-12, err_msg=f"{family}({p})")


@each_sampler
@each_family
def test_shapes(family, how):
    seeded()
    make, _ = FAMILIES[family]
    event = {"Dirichlet": (3,)}.get(family, ())
    parameter = {"Dirichlet": (3,), "Beta": (2,)}.get(family, ())
    q = make(torch.full((4, *parameter), 1.5), **how)
    one = make(torch.full(parameter, 1.5), **how)
    expanded = one.expand([5, 4])
    assert type(expanded) is type(one)
    assert (expanded.boost, expanded.reparameterization) == (one.boost, one.reparameterization)
    cases = {
        "a batch": (q, (4,), event),
        "a scalar": (one, (), event),
        "expand": (expanded, (5, 4), event),
        "expand of a batch": (q.expand([5, 4]), (5, 4), event),
        "to_event": (q.expand([5, 4]).to_event(1), (5,), (4, *event)),
        "to_event(2)": (q.expand([5, 4]).to_event(2), (), (5, 4, *event)),
        "to_event, expand": (q.to_event(1).expand([5]), (5,), (4, *event)),
        "mask": (q.mask(True), (4,), event),
        "mask, expand": (q.mask(torch.ones(4).bool()).expand([5, 4]), (5, 4), event),
        "expand_by": (q.expand_by([5]), (5, 4), event),
    }
    for what, (each, batch, shape) in cases.items():
        assert each.batch_shape == batch and each.event_shape == shape, what
        for sample_shape in ((), (2, 3)):
            z = each.rsample(sample_shape)
            assert z.shape == (*sample_shape, *batch, *shape), what
            assert each.log_prob(z).shape == (*sample_shape, *batch), what
            assert each.sample(sample_shape).shape == z.shape, what


def test_parameters_broadcast():
    a, b = torch.ones(3, 1), torch.ones(2)
    for q in (
        Gamma(a, b),
        Gamma(a, 2.0),
        InverseGamma(a, b),
        Beta(a, b),
        Beta(2.0, b),
        StudentT(a, b, 1.0),
    ):
        z = q.rsample((4,))
        assert q.log_prob(z).shape == z.shape == (4, *q.batch_shape)
    assert (
        Gamma(a, b).batch_shape
        == InverseGamma(a, b).batch_shape
        == Beta(a, b).batch_shape
        == (3, 2)
    )
    assert Gamma(2.0, 3.0).batch_shape == Chi2(torch.tensor(2.0)).batch_shape == ()


# Nothing is ever infinite.

SAFE = [(c, 1_000_000, {}) for c in (1e-4, 0.05)] + [(c, 100_000, {}) for c in (1.5, 1e4)]
SAFE += [
    (1e-4, 100_000, {"boost": 1}),
    (1e-4, 100_000, SAMPLERS["implicit"]),
    (0.05, 100_000, SAMPLERS["implicit"]),
]


@pytest.mark.parametrize(("concentration", "count", "how"), SAFE, ids=str)
@each_family
def test_nothing_overflows_in_single_precision(family, concentration, count, how):
    """A million Gamma variables at difficult concentrations; each row has its own parameters
    and gradient.
    """
    seeded()
    make, _ = FAMILIES[family]
    size = {"Beta": (2,), "Dirichlet": (3,)}.get(family, ())
    parameters = torch.full(
        (count // (size or (1,))[0], *size), concentration, requires_grad=True
    )
    q = make(parameters, **how)
    z = q.rsample()
    log_prob = q.log_prob(z)
    found = {"draws": z, "log-probabilities": log_prob}
    (found["gradients of log_prob"],) = torch.autograd.grad(
        log_prob.sum(), parameters, retain_graph=True
    )
    (found["gradients of the draws"],) = torch.autograd.grad(z.sum(), parameters)
    bad = {what: int((~values.isfinite()).sum()) for what, values in found.items()}
    assert not any(bad.values()), f"not finite, of {len(parameters)}: {bad}"


@each_sampler
@each_family
def test_a_uniform_number_may_be_zero(family, how, monkeypatch):
    """One in 17 million is in single precision, too few for the test above; its logarithm is
    infinite.
    """
    for name in ("rand", "rand_like"):
        original = getattr(torch, name)
        monkeypatch.setattr(
            torch,
            name,
            lambda *args, f=original, **options: torch.zeros_like(f(*args, **options)),
        )
    parameters = small(family, torch.float32)
    q = FAMILIES[family][0](parameters, **how)
    z = q.rsample()
    log_prob = q.log_prob(z)
    (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
    assert z.isfinite().all() and log_prob.isfinite().all() and gradient.isfinite().all()


def poisson_elbo_gradient(family, concentration, rows=100_000):
    """The gradient for each row of a bound with a count of 5, in single precision."""
    a = torch.full((rows,), concentration, requires_grad=True)

    def model():
        with pyro.plate("data", rows):
            z = pyro.sample("z", family(torch.tensor(2.0), torch.tensor(2.0)))
            pyro.sample("x", dist.Poisson(z), obs=torch.tensor(5.0).expand(rows))

    def guide():
        with pyro.plate("data", rows):
            pyro.sample("z", family(a, torch.tensor(1.5)))

    loss = Trace_ELBO().differentiable_loss(model, guide)
    return loss, torch.autograd.grad(loss, a)[0]


@pytest.mark.parametrize("concentration", [0.01, 0.05, 0.1])
def test_counts_under_small_concentrations(concentration):
    """The derivative 5 / z of 5 log z overflows for torch's Gamma, whose z reaches 1e-38."""
    seeded()
    loss, gradient = poisson_elbo_gradient(Gamma, concentration)
    assert loss.isfinite() and gradient.isfinite().all()
    _, torchs = poisson_elbo_gradient(dist.Gamma, concentration)
    assert not torchs.isfinite().all(), (
        "torch's Gamma has learned it: say so in the documentation"
    )


# Gradients.

ROWS = 20_000
CONCENTRATIONS = (0.05, 0.5, 1.5, 10.0, 1000.0)
BOUNDS = {
    "Trace_ELBO": Trace_ELBO,
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(
        max_plate_nesting=1, strict_enumeration_warning=False
    ),
    "ELBO": ELBO,
    "ELBO, sampled": lambda: ELBO(analytic_kl=False),
    "ELBO, particles": lambda: ELBO(num_particles=2, analytic_kl=False),
}
# Each takes concentrations (rows,) and gives a distribution of the rows, with an event of two
# of them or none.
WRAPPERS = {
    "plain": lambda make, a: make(a),
    "to_event": lambda make, a: make(a.unsqueeze(-1).expand(-1, 2)).to_event(1),
    "mask(True)": lambda make, a: make(a).mask(True),
    "mask(ones)": lambda make, a: make(a).mask(torch.ones(len(a)).bool()),
    "expand": lambda make, a: make(a.unsqueeze(-1)).expand([len(a), 2]).to_event(1),
    "to_event, mask": lambda make, a: (
        make(a.unsqueeze(-1).expand(-1, 2)).to_event(1).mask(torch.ones(len(a)).bool())
    ),
    "mask, to_event": lambda make, a: (
        make(a.unsqueeze(-1).expand(-1, 2)).mask(True).to_event(1)
    ),
    "to_event, expand": lambda make, a: (
        make(a[:1, None].expand(1, 2)).to_event(1).expand([len(a)])
    ),
}
PAIRED = {"to_event", "expand", "to_event, mask", "mask, to_event", "to_event, expand"}


def gamma_gradients(make, wrapper, bound, concentrations, rows=ROWS):
    """The gradients of z ~ Gamma(2, 2), x ~ Poisson(z) = 3 and a guide Gamma(a, 1.5): shape
    (rows, concentrations).
    """
    many = rows * len(concentrations)
    a = torch.tensor(concentrations, dtype=F64).repeat(rows).requires_grad_()
    two, three = torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64)
    event = (2,) if wrapper in PAIRED else ()

    def model():
        with pyro.plate("data", many):
            z = pyro.sample("z", dist.Gamma(two, two).expand(event).to_event(len(event)))
            pyro.sample(
                "x", dist.Poisson(z).to_event(len(event)), obs=three.expand(many, *event)
            )

    def guide():
        with pyro.plate("data", many):
            pyro.sample("z", WRAPPERS[wrapper](make, a))

    loss = bound().differentiable_loss(model, guide)
    return -torch.autograd.grad(loss, a)[0].reshape(rows, len(concentrations)) / (
        2 if event else 1
    )


def exact_gamma_gradient(concentrations):
    a = torch.tensor(concentrations, dtype=F64, requires_grad=True)
    rate = torch.tensor(1.5, dtype=F64)
    log_z, z = torch.digamma(a) - rate.log(), a / rate
    log_joint = (2 - 1) * log_z - 2 * z + 3 * log_z - z
    entropy = a - rate.log() + torch.lgamma(a) + (1 - a) * torch.digamma(a)
    return torch.autograd.grad((log_joint + entropy).sum(), a)[0]


def gamma_guide(**how):
    return lambda a: Gamma(a, torch.tensor(1.5, dtype=F64), **how)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("wrapper", ["plain", "to_event"])
@each_sampler
def test_gradients_of_bounds_are_the_closed_form(how, wrapper, bound):
    seeded()
    rows = ROWS // 2 if bound == "ELBO, particles" else ROWS
    gradients = gamma_gradients(
        gamma_guide(**how), wrapper, BOUNDS[bound], CONCENTRATIONS, rows
    )
    assert_within(
        gradients, exact_gamma_gradient(CONCENTRATIONS), f"{how}, {wrapper}, {bound}", errors=5
    )


LARGE = (1.0, 1.5, 10.0)  # where no augmentation is needed, and so where the score weighs most


@pytest.mark.parametrize("bound", ["Trace_ELBO", "TraceEnum_ELBO", "ELBO, sampled"])
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "to_event, expand"])
def test_no_wrapper_loses_the_score(wrapper, bound):
    """Without augmentation the pathwise part is off by 9 %, which this number of rows shows."""
    seeded()
    gradients = gamma_gradients(gamma_guide(boost=0), wrapper, BOUNDS[bound], LARGE)
    assert_within(gradients, exact_gamma_gradient(LARGE), f"{wrapper}, {bound}", errors=5)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_score_is_the_score(wrapper):
    """It equals that of the plain distribution for the same random numbers."""
    size = 1 if wrapper == "to_event, expand" else 6
    leaf = torch.linspace(0.5, 2.0, size, dtype=F64).requires_grad_()
    a = leaf.expand(6)
    weights = torch.linspace(1.0, 2.0, 6, dtype=F64)
    seeded()
    z, parts = score_parts(WRAPPERS[wrapper](gamma_guide(boost=1), a))
    seeded()
    value, expected = score_parts(
        gamma_guide(boost=1)(a if z.dim() == 1 else a.unsqueeze(-1).expand(6, 2))
    )
    assert torch.equal(z, value)
    for part, whole in zip(parts, expected, strict=True):
        whole = whole if z.dim() == 1 else whole.sum(-1)
        assert part.shape == whole.shape == (6,)
        torch.testing.assert_close(part, whole)
        one, other = (
            torch.autograd.grad((weights * each).sum(), leaf, retain_graph=True)[0]
            for each in (part, whole)
        )
        assert one.abs().min() > 0
        torch.testing.assert_close(one, other)


def test_a_mask_leaves_the_score():
    """Masked rows have no density but are sampled, and terms that depend on the draw need its
    score.
    """
    seeded()
    a = torch.full((4,), 1.5, dtype=F64, requires_grad=True)
    keep = torch.tensor([True, False, True, False])
    z, parts = score_parts(gamma_guide(boost=1)(a).mask(keep))
    (slopes,) = torch.autograd.grad(parts.score_function.sum(), a, retain_graph=True)
    assert (slopes != 0).all()
    assert (parts.log_prob[~keep] == 0).all() and (parts.entropy_term[~keep] == 0).all()
    none = gamma_guide(boost=1)(a).mask(False)
    parts = none.score_parts(none.rsample())
    (slopes,) = torch.autograd.grad(parts.score_function.sum(), a)
    assert (slopes != 0).all() and (parts.log_prob == 0).all()


@pytest.mark.parametrize("bound", ["Trace_ELBO", "ELBO, sampled"])
@pytest.mark.parametrize("mask", ["of the distribution", "of a handler"])
def test_masking_the_latent_variable_alone_keeps_the_gradient_of_the_likelihood(mask, bound):
    """E[log N(3; z, 0.1)] over Gamma(1.5, 1): -(a (a + 1) - 6 a + 9) / 0.02, by a."""
    seeded()
    rows, nothing = 200_000, torch.zeros(200_000).bool()
    a = torch.full((rows,), 1.5, dtype=F64, requires_grad=True)
    two, three, narrow = (torch.tensor(number, dtype=F64) for number in (2.0, 3.0, 0.1))

    def latent(q):
        if mask == "of the distribution":
            return pyro.sample("z", q.mask(nothing))
        with poutine.mask(mask=nothing):
            return pyro.sample("z", q)

    def model():
        with pyro.plate("data", rows):
            z = latent(dist.Gamma(two, two).expand([rows]))
            pyro.sample("x", dist.Normal(z, narrow), obs=three.expand(rows))

    def guide():
        with pyro.plate("data", rows):
            latent(Gamma(a, torch.tensor(1.0, dtype=F64), boost=0))

    loss = BOUNDS[bound]().differentiable_loss(model, guide)
    assert_within(-torch.autograd.grad(loss, a)[0], -(2 * 1.5 + 1 - 6) / 0.02)


def test_pyros_rejection_sampler_is_biased_in_an_event_and_ours_is_not():
    seeded()
    exact, rate = exact_gamma_gradient((1.5,)), torch.tensor(1.5, dtype=F64)
    run = lambda make: gamma_gradients(make, "to_event", Trace_ELBO, (1.5,), 5 * ROWS)  # noqa: E731
    pyros = run(lambda a: RejectionGamma(a, rate.expand(a.shape)))
    with pytest.raises(AssertionError, match="is not"):
        assert_within(pyros, exact)
    assert_within(run(gamma_guide(boost=0)), exact)


@pytest.mark.parametrize("how", [{"boost": 0}, {"boost": 1}], ids=str)
def test_the_pathwise_derivative_alone_is_biased(how):
    """d/da E[log z] = trigamma(a) needs the pathwise part and the score."""
    seeded()
    a = torch.full((20 * ROWS,), 1.5, dtype=F64, requires_grad=True)
    z, parts = score_parts(Gamma(a, torch.tensor(1.0, dtype=F64), **how))
    (pathwise,) = torch.autograd.grad(z.log().sum(), a, retain_graph=True)
    (score,) = torch.autograd.grad((z.log().detach() * parts.score_function).sum(), a)
    exact = torch.polygamma(1, torch.tensor(1.5, dtype=F64))
    with pytest.raises(AssertionError, match="is not"):
        assert_within(pathwise, exact)
    assert_within(pathwise + score, exact)


@pytest.mark.parametrize("bound", ["Trace_ELBO", "ELBO", "ELBO, sampled"])
@pytest.mark.parametrize("event_dim", [0, 1])
@pytest.mark.parametrize("how", [*SAMPLERS.values(), {"boost": 0}], ids=[*SAMPLERS, "boost 0"])
def test_beta_gradients_are_the_closed_form(how, event_dim, bound):
    """z ~ Beta(2, 3), 3 of 5 tosses; the guide Beta(a, 1.3 a), with the derivative in both of
    its parameters.
    """
    seeded()
    concentrations = LARGE if how.get("boost") == 0 else CONCENTRATIONS
    first = torch.tensor(concentrations, dtype=F64)
    many = ROWS * len(first)
    parameters = torch.stack([first, 1.3 * first], -1).repeat(ROWS, 1).requires_grad_()
    two, three = torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64)
    size = (1,) * event_dim

    def model():
        with pyro.plate("data", many):
            z = pyro.sample("z", dist.Beta(two, three).expand(size).to_event(event_dim))
            tosses = dist.Binomial(
                5, logits=z.log() - torch.log1p(-z)
            )  # by probs, torch clamps and loses gradients
            pyro.sample("x", tosses.to_event(event_dim), obs=three.expand(many, *size))

    def guide():
        a, b = parameters.reshape(many, *size, 2).unbind(-1)
        with pyro.plate("data", many):
            pyro.sample("z", Beta(a, b, **how).to_event(event_dim))

    loss = BOUNDS[bound]().differentiable_loss(model, guide)
    gradients = -torch.autograd.grad(loss, parameters)[0].reshape(ROWS, len(first), 2)
    p = torch.stack([first, 1.3 * first], -1).requires_grad_()
    (a, b), total = p.unbind(-1), p.sum(-1)
    log_z, log1m = (torch.digamma(each) - torch.digamma(total) for each in (a, b))
    log_normalizer = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(total)
    entropy = log_normalizer - (a - 1) * log_z - (b - 1) * log1m
    (exact,) = torch.autograd.grad(
        ((2 - 1 + 3) * log_z + (3 - 1 + 2) * log1m + entropy).sum(), p
    )
    assert_within(gradients, exact, f"{how}, {bound}", errors=5)


@pytest.mark.parametrize("bound", ["Trace_ELBO", "ELBO", "ELBO, sampled"])
@pytest.mark.parametrize("how", [*SAMPLERS.values(), {"boost": 0}], ids=[*SAMPLERS, "boost 0"])
def test_dirichlet_gradients_are_the_closed_form(how, bound):
    """z ~ Dirichlet(2, 1, 3), counts (3, 0, 2); the guide Dirichlet(c (1, 1.5, 2))."""
    seeded()
    rows = ROWS // 2
    concentrations = LARGE if how.get("boost") == 0 else CONCENTRATIONS
    table = torch.tensor(concentrations, dtype=F64).unsqueeze(-1) * torch.tensor(
        [1.0, 1.5, 2.0], dtype=F64
    )
    many = rows * len(table)
    parameters = table.repeat(rows, 1).requires_grad_()
    prior, counts = (
        torch.tensor([2.0, 1.0, 3.0], dtype=F64),
        torch.tensor([3.0, 0.0, 2.0], dtype=F64),
    )

    def model():
        with pyro.plate("data", many):
            z = pyro.sample("z", dist.Dirichlet(prior))
            pyro.sample("x", dist.Multinomial(5, logits=z.log()), obs=counts.expand(many, 3))

    def guide():
        with pyro.plate("data", many):
            pyro.sample("z", Dirichlet(parameters, **how))

    loss = BOUNDS[bound]().differentiable_loss(model, guide)
    gradients = -torch.autograd.grad(loss, parameters)[0].reshape(rows, len(table), 3)
    p = table.clone().requires_grad_()
    log_z = torch.digamma(p) - torch.digamma(p.sum(-1, keepdim=True))
    log_normalizer = torch.lgamma(p).sum(-1) - torch.lgamma(p.sum(-1))
    elbo = ((prior - 1 + counts - (p - 1)) * log_z).sum(-1) + log_normalizer
    (exact,) = torch.autograd.grad(elbo.sum(), p)
    assert_within(gradients, exact, f"{how}, {bound}", errors=5)


@pytest.mark.parametrize("how", [*SAMPLERS.values(), {"boost": 0}], ids=[*SAMPLERS, "boost 0"])
@pytest.mark.parametrize("family", ["Chi2", "InverseGamma", "StudentT"])
def test_gradients_of_related_families_are_the_closed_form(family, how):
    """E[log z] of Chi2 and InverseGamma, and E[log(1 + t^2 / df)] of StudentT at a fixed df,
    of 3 (4 of a score).
    """
    seeded()
    a = torch.full((10 * ROWS,), 3.0, dtype=F64, requires_grad=True)
    make, _ = FAMILIES[family]
    z, parts = score_parts(make(a, **how))
    three = torch.tensor(3.0, dtype=F64, requires_grad=True)
    if family == "StudentT":
        t = (z - LOC) / SCALE
        f = t**2 / (1 + t**2)
        # By quadrature, over the angle: t = tan(x).
        x = torch.linspace(-math.pi / 2, math.pi / 2, 20_001, dtype=F64)[1:-1]
        density = td.StudentT(three).log_prob(x.tan()).exp() / x.cos() ** 2
        expectation = (density * x.sin() ** 2).sum() * (x[1] - x[0])
    else:
        f = z.log()
        sign, shape = (1, three / 2) if family == "Chi2" else (-1, three)
        expectation = sign * torch.digamma(shape)
    (exact,) = torch.autograd.grad(expectation, three)
    (gradients,) = torch.autograd.grad((f + f.detach() * parts.score_function).sum(), a)
    assert_within(gradients, exact)


@pytest.mark.parametrize("concentration", [0.5, 1.5, 10.0])
def test_eight_augmentations_have_the_variance_of_the_implicit_derivative(
    concentration,
):
    """Within a tenth, give or take 4 standard errors of the ratio, which are 4 % at most."""
    variances, errors = [], []
    for how in ({"boost": 8}, SAMPLERS["implicit"]):
        seeded()
        gradients = gamma_gradients(
            gamma_guide(**how), "plain", Trace_ELBO, (concentration,), 10 * ROWS
        )
        squares = (gradients - gradients.mean()) ** 2
        variances.append(squares.mean())
        errors.append(squares.std() / len(squares) ** 0.5 / squares.mean())
    ratio = variances[0] / variances[1]
    error = ratio * math.hypot(*errors)
    assert error < 0.01
    assert abs(ratio - 1) <= 0.1 + 4 * error, f"{ratio} +- {error}"


# What a draw remembers.


def small(family, dtype=F64):
    size = {"Beta": (2,), "Dirichlet": (3,)}.get(family, ())
    return torch.full((5, *size), 1.5, dtype=dtype, requires_grad=True)


def same_score(one, other, parameters):
    slopes = [
        torch.autograd.grad(parts.score_function.sum(), parameters, retain_graph=True)[0]
        for parts in (one, other)
    ]
    assert slopes[0].abs().max() > 0
    assert torch.equal(*slopes)
    torch.testing.assert_close(one.log_prob, other.log_prob)


@each_family
def test_a_replayed_draw_brings_its_score(family):
    seeded()
    parameters = small(family)
    guide = lambda: pyro.sample("z", FAMILIES[family][0](parameters).to_event(1))  # noqa: E731
    first = poutine.trace(guide).get_trace()
    second = poutine.trace(poutine.replay(guide, trace=first)).get_trace()
    sites = [trace.nodes["z"] for trace in (first, second)]
    assert sites[0]["value"] is sites[1]["value"] and sites[0]["fn"] is not sites[1]["fn"]
    same_score(*(site["fn"].score_parts(site["value"]) for site in sites), parameters)


@each_family
def test_a_detached_draw_has_the_whole_score(family):
    seeded()
    parameters = small(family)
    q = FAMILIES[family][0](parameters)
    for value in (q.rsample().detach(), q.sample()):
        parts = q.score_parts(value)
        torch.testing.assert_close(parts.score_function, q.log_prob(value))
        torch.testing.assert_close(parts.log_prob, q.log_prob(value))
        assert type(parts.entropy_term) is int and parts.entropy_term == 0


@each_family
def test_a_computed_value_is_refused(family):
    seeded()
    parameters = small(family)
    q = FAMILIES[family][0](parameters)
    for wrapped in (q, q.to_event(1), q.mask(True)):
        with pytest.raises(
            ValueError, match=r"detach it, or use reparameterization='implicit'"
        ):
            wrapped.score_parts(q.rsample() * 1)
    implicit = FAMILIES[family][0](parameters, reparameterization="implicit")
    assert implicit.score_parts(implicit.rsample() * 1).score_function == 0


@each_family
def test_a_draw_changed_in_place_forgets(family):
    seeded()
    parameters = small(family)
    q = FAMILIES[family][0](parameters)
    z = q.rsample()
    assert recall(z) is not None
    z.mul_(1.0)
    assert recall(z) is None
    with pytest.raises(ValueError, match="value must be a draw of .* detach it"):
        q.score_parts(z)
    with torch.no_grad():
        z = q.sample()
        assert recall(z) is not None
        z[0] = z[1]
    assert recall(z) is None


@each_family
def test_the_implicit_derivative_has_no_score(family):
    seeded()
    parameters = small(family)
    q = FAMILIES[family][0](parameters, reparameterization="implicit")
    z, parts = score_parts(q)
    assert type(parts.score_function) is int and parts.score_function == 0
    torch.testing.assert_close(parts.entropy_term, q.log_prob(z))
    _, parts = score_parts(q.to_event(1).mask(True))
    assert type(parts.score_function) is int and parts.score_function == 0


@pytest.mark.parametrize("boost", [0, 1, 4])
def test_the_score_is_zero_on_average(boost):
    seeded()
    concentrations = LARGE if boost == 0 else CONCENTRATIONS
    a = torch.tensor(concentrations, dtype=F64).repeat(10 * ROWS, 1).requires_grad_()
    _, parts = score_parts(Gamma(a, torch.tensor(1.0, dtype=F64), boost=boost))
    assert (parts.score_function == 0).all(), "a surrogate: zero, with a gradient"
    assert_within(
        torch.autograd.grad(parts.score_function.sum(), a)[0],
        torch.zeros(len(concentrations)),
        errors=4,
    )


# The two slopes, and Stirling's remainder, against high precision.

_BERNOULLI = [
    1 / Decimal(6),
    -1 / Decimal(30),
    1 / Decimal(42),
    -1 / Decimal(30),
    5 / Decimal(66),
]
_BERNOULLI += [-691 / Decimal(2730), 7 / Decimal(6), -3617 / Decimal(510)]


def decimal_stirling_remainder(x):
    """In 50 digits; by the series from x = 60 on, where its 8 terms leave 1e-30, and by the
    recurrence below.
    """
    if x < 60:
        step = (x + Decimal(0.5)) * ((x + 1) / x).ln() - 1
        return decimal_stirling_remainder(x + 1) + step
    return sum(
        b / (2 * n * (2 * n - 1) * x ** (2 * n - 1)) for n, b in enumerate(_BERNOULLI, start=1)
    )


def decimal_log_pi(d, epsilon):
    """The log-density of the accepted noise, from its definition, up to a constant."""
    third = 1 / Decimal(3)
    root = (9 * d).sqrt()
    h = d * (1 + epsilon / root) ** 3
    a = d + third
    lgamma = decimal_stirling_remainder(a) + (a - Decimal(0.5)) * a.ln() - a
    return (a - 1) * h.ln() - h - lgamma + (3 * d * (1 + epsilon / root) ** 2 / root).ln()


SLOPES = [
    (d, t)
    for d in (0.7, 1.0, 3.0, 7.99, 8.01, 30.0, 1e3, 1e4, 1e6)
    for t in (-0.6, -0.11, -0.0999, -0.01, 0.0, 0.003, 0.05, 0.0999, 0.1001, 0.5, 2.0)
]


@each_dtype
def test_the_scores_slope_is_the_derivative_of_the_log_density(dtype):
    """Relative to 1e-5 (the expansion at d = 8 has 3e-6), in single precision to 2e-3; the
    terms are of order 10.
    """
    d, t = torch.tensor(SLOPES, dtype=dtype).unbind(-1)
    epsilon = t * 3 * d.sqrt()
    ours = doubles(_acceptance_slope(epsilon, d))
    for i in range(len(SLOPES)):
        with localcontext() as context:
            context.prec = 50
            at, noise = Decimal(d[i].item()), Decimal(epsilon[i].item())
            step = at * Decimal(10) ** -10
            exact = float(
                (decimal_log_pi(at + step, noise) - decimal_log_pi(at - step, noise))
                / (2 * step)
            )
        size = abs(exact) + 1 / (
            36 * d[i].item() ** 2
        )  # where it crosses zero, its size nearby
        tolerance = 1e-5 if dtype == F64 else 2e-3
        assert abs(ours[i] - exact) <= tolerance * size, (
            f"d={d[i]}, t={t[i]}: {ours[i]} is not {exact}"
        )


def test_the_scores_slope_is_accurate_in_single_precision():
    """At d = 1e4 the terms are of order 10 and their sum of order 1e-10, at the noise that is
    really drawn.
    """
    seeded()
    epsilon, d = torch.randn(10_000), torch.tensor(1e4)
    single = _acceptance_slope(epsilon, d).double()
    double = _acceptance_slope(epsilon.double(), d.double())
    assert double.abs().max() < 1e-7
    assert ((single - double).norm() / double.norm()).item() < 1e-4


def test_the_implicit_slope_is_that_of_scipys_quantile():
    """To 1e-3, about the error of the fit in torch's kernel."""
    checked = 0
    for a in (1e-3, 0.05, 0.5, 1.5, 10.0, 100.0, 1e3):
        for p in (0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
            step = 1e-4 * a
            below, z, above = (
                special.gammaincinv(a + shift, p) for shift in (-step, 0.0, step)
            )
            if below < 1e-290:
                continue
            numeric = (math.log(above) - math.log(below)) / (2 * step)
            ours = _implicit_slope(
                torch.tensor(a, dtype=F64), torch.tensor(math.log(z), dtype=F64)
            ).item()
            assert abs(ours / numeric - 1) < 1e-3, f"a={a}, p={p}: {ours} is not {numeric}"
            checked += 1
    assert checked > 35
    # Where no quantile is a number any more: log z = (log p + log Gamma(a + 1)) / a, by a.
    a, log_z, step = 1e-3, -5000.0, 1e-9
    log_p = a * log_z - special.gammaln(a + 1)
    numeric = np.diff([(log_p + special.gammaln(a + s + 1)) / (a + s) for s in (-step, step)])[
        0
    ] / (2 * step)
    ours = _implicit_slope(torch.tensor(a, dtype=F64), torch.tensor(log_z, dtype=F64)).item()
    assert abs(ours / numeric - 1) < 1e-6


@each_dtype
def test_stirlings_remainder(dtype):
    """Against scipy where that has digits left, against 50 digits everywhere."""
    x = torch.tensor(
        [1e-4, 1e-2, 0.5, 1.0, 1.5, 3.0, 7.99, 8.01, 10.0, 50.0, 1e3, 1e4, 1e6], dtype=dtype
    )
    ours, at = doubles(stirling_remainder(x)), doubles(x)
    eps = torch.finfo(dtype).eps
    lost = 8 * np.finfo(float).eps * (1 + at * np.abs(np.log(at)))
    scipys = special.loggamma(at) - (at - 0.5) * np.log(at) + at - 0.5 * math.log(2 * math.pi)
    rounding = (
        40 * eps * (1 + np.abs(np.log(at)))
    )  # below x = 8 the terms, up to 16, do cancel
    assert (np.abs(ours - scipys) <= 2e-11 + lost + rounding).all()
    with localcontext() as context:
        context.prec = 50
        exact = np.array([float(decimal_stirling_remainder(Decimal(value))) for value in at])
    assert (
        np.abs(ours - exact)
        <= np.where(at > 8, 1e-9 * exact + 4 * eps * exact, 2e-11 + rounding)
    ).all()


# torch's transformations.


def surrogate(a, boost=1):
    """Has the gradient of E[log z] in a, through operations that must not lose the score."""
    q = Gamma(a, torch.ones((), dtype=a.dtype), boost=boost, validate_args=False)
    z, parts = score_parts(q)
    return z.log() + z.log().detach() * parts.score_function


def log_prob_of_a_draw(a):
    q = Gamma(a, torch.ones((), dtype=a.dtype), validate_args=False)
    return q.log_prob(q.rsample())


def test_vmap_draws_differently_in_each_row():
    seeded()
    a = torch.tensor([0.05, 1.5, 1.5, 1.5, 1000.0])
    draw = lambda a: Gamma(a, torch.ones(()), validate_args=False).rsample((2,))  # noqa: E731
    z = torch.vmap(draw, randomness="different")(a)
    assert z.shape == (5, 2) and len(z.unique()) == 10
    assert torch.vmap(log_prob_of_a_draw, randomness="different")(a).isfinite().all()
    dirichlet = lambda a: Dirichlet(a, validate_args=False).rsample()  # noqa: E731
    shares = torch.vmap(dirichlet, randomness="different")(torch.full((4, 3), 0.5))
    torch.testing.assert_close(shares.sum(-1), torch.ones(4))


TRANSFORMED = {
    "vmap of grad": lambda f, a: torch.vmap(torch.func.grad(f), randomness="different")(
        a.detach()
    ),
    "grad of vmap": lambda f, a: torch.func.grad(
        lambda a: torch.vmap(f, randomness="different")(a).sum()
    )(a.detach()),
    "autograd of vmap": lambda f, a: torch.autograd.grad(
        torch.vmap(f, randomness="different")(a).sum(), a
    )[0],
}


@pytest.mark.parametrize("how", TRANSFORMED)
def test_gradients_under_vmap(how):
    """With the score of a draw. As a detached value it would get its whole log-density, 30 %
    off.
    """
    seeded()
    a = torch.full((2 * ROWS,), 1.5, dtype=F64, requires_grad=True)
    exact = torch.polygamma(1, torch.tensor(1.5, dtype=F64))
    assert_within(TRANSFORMED[how](surrogate, a), exact, how)


@pytest.mark.parametrize("how", [{}, SAMPLERS["implicit"]], ids=str)
@each_family
def test_recordings_are_the_run(family, how):
    """The same seed gives the same value and gradient, also for other parameters than the
    recorded ones.
    """
    make, _ = FAMILIES[family]

    def run(parameters):
        z, parts = score_parts(make(parameters, validate_args=False, **how))
        return (
            z.sum() + 3 * torch.as_tensor(parts.score_function).sum() + parts.log_prob.sum()
        ) * parts.log_prob.sum()

    seeded()
    pyro.enable_validation(
        False
    )  # torch's StudentT validates a part of itself whatever it is told
    recording = make_fx(run)(small(family))
    other = small(family).detach().mul(2).requires_grad_()
    results = []
    for f in (run, recording):
        seeded(1)
        value = f(other)
        results.append((value, torch.autograd.grad(value, other)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-12, atol=0.0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=0.0)


def test_compiles_in_one_graph():
    check_in_fresh_process(
        "from tests.distributions.test_gamma import FAMILIES, check_one_graph\n"
        "for family in FAMILIES: check_one_graph(family)"
    )


def check_one_graph(family):
    make, _ = FAMILIES[family]

    def run(parameters):
        q = make(parameters, validate_args=False)
        z = q.rsample()
        return z, q.log_prob(z)

    results = []
    pyro.enable_validation(
        False
    )  # torch's StudentT validates a part of itself whatever it is told
    for f in (run, torch.compile(run, fullgraph=True, backend="eager")):
        seeded()
        parameters = small(family)
        z, log_prob = f(parameters)
        results.append(
            (z, log_prob, torch.autograd.grad((z.sum() + log_prob.sum()), parameters)[0])
        )
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@each_sampler
@each_family
def test_half_precision(family, how):
    """Parameters and draws are in bfloat16, computations and the log-probability in single
    precision.
    """
    seeded()
    parameters = small(family, torch.bfloat16)
    q = FAMILIES[family][0](parameters, **how)
    z = q.rsample((20,))
    assert z.dtype == torch.bfloat16 and z.isfinite().all()
    log_prob = q.log_prob(z)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
    (gradient,) = torch.autograd.grad(log_prob.sum() + z.float().sum(), parameters)
    assert gradient.isfinite().all() and gradient.dtype == torch.bfloat16
    assert q.log_prob(z.detach().clone()).dtype == torch.float32


@pytest.mark.parametrize("size", [1000, 50_000])
def test_shares_of_many_are_on_the_simplex(size):
    """Validation needs a sum within 1e-6 of one, in single precision too, as with torch's own
    draws.
    """
    seeded()
    q = Dirichlet(torch.full((size,), 0.1))
    z = q.rsample((50,))
    assert q.log_prob(z).isfinite().all()


# The objects.


@each_family
def test_pickle_and_deepcopy(family):
    parameters = torch.tensor(FAMILIES[family][1])
    for q in (
        FAMILIES[family][0](parameters, boost=3),
        FAMILIES[family][0](parameters, boost=3).to_event(1),
    ):
        draws = []
        for each in (q, copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
            assert type(each) is type(q)
            seeded()
            draws.append(each.rsample((3,)))
        assert torch.equal(draws[0], draws[1]) and torch.equal(draws[0], draws[2])


@each_family
def test_arguments_out_of_range(family):
    make, _ = FAMILIES[family]
    parameters = torch.full_like(small(family), 0.4).detach()
    for boost in (-1, True, 1.5, None):
        with pytest.raises(ValueError, match="boost must be an integer of at least 0"):
            make(parameters, boost=boost)
    with pytest.raises(
        ValueError,
        match="reparameterization must be 'rejection' or 'implicit', got 'pathwise'",
    ):
        make(parameters, reparameterization="pathwise")
    with pytest.raises(
        ValueError, match="boost=0 needs concentrations of at least 1, got .* boost=1 or more"
    ):
        make(parameters, boost=0)
    make(parameters, boost=0, reparameterization="implicit")
    make(2.5 * parameters + 1, boost=0)
    with pytest.raises(ValueError, match="Expected parameter"):
        make(-parameters)


CLOSED = ["Gamma", "Chi2", "InverseGamma", "Beta", "Dirichlet"]


@pytest.mark.parametrize("family", CLOSED)
def test_kl_is_the_mean_log_ratio(family):
    seeded()
    make, _ = FAMILIES[family]
    size = {"Beta": (2,), "Dirichlet": (3,)}.get(family, ())
    powers = torch.arange(1, 1 + math.prod(size), dtype=F64).reshape(size).sqrt()
    rows = torch.tensor([0.3, 1.5, 40.0], dtype=F64).reshape(3, *(1 for _ in size))
    q, p = make(rows * powers), make((rows * 0.8 + 0.1) * torch.ones(size, dtype=F64))
    z = q.sample((2 * ROWS,))
    assert_within(q.log_prob(z) - p.log_prob(z), td.kl_divergence(q, p))
    torch.testing.assert_close(
        td.kl_divergence(q, q), torch.zeros(3, dtype=F64), rtol=0.0, atol=1e-12
    )
    if family not in ("InverseGamma", "Chi2"):
        theirs = getattr(td, family)
        if family == "Beta":
            plain = [theirs(each.concentration1, each.concentration0) for each in (q, p)]
        else:
            plain = [
                theirs(*(getattr(each, name) for name in theirs.arg_constraints))
                for each in (q, p)
            ]
        torch.testing.assert_close(
            td.kl_divergence(q, p), td.kl_divergence(*plain), rtol=1e-9, atol=1e-10
        )


# The library around them.

SHAPES = {"Dirichlet": (2, 3)}


@pytest.mark.parametrize("how", [{"boost": 8}, SAMPLERS["implicit"]], ids=str)
@pytest.mark.parametrize("family", [Gamma, Chi2, InverseGamma, StudentT, Beta, Dirichlet])
def test_conditionals_and_priors(family, how):
    seeded()
    shape = SHAPES.get(family.__name__, (3,))
    q = Conditional(family, MLP(4, [8]), shape, **how)
    posterior = q(torch.randn(5, 4))
    prior = default_prior(family, shape, **how)()
    for distribution, batch in ((posterior, (5,)), (prior, ())):
        assert distribution.batch_shape == batch and distribution.event_shape == shape
        base = distribution.base_dist if hasattr(distribution, "base_dist") else distribution
        assert type(base) is family
        assert all(getattr(base, name) == value for name, value in how.items())
    z, parts = score_parts(posterior)
    assert (
        (parts.score_function.shape == (5,)) if "boost" in how else (parts.score_function == 0)
    )
    loss = (
        parts.entropy_term - prior.log_prob(z) + torch.as_tensor(parts.score_function)
    ).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in q.parameters())


@pytest.mark.parametrize("bound", [Trace_ELBO, ELBO])
@pytest.mark.parametrize("family", [Gamma, Dirichlet])
def test_an_autoencoder_trains(family, bound):
    seeded()
    shape = 4 if family is Dirichlet else 2
    p = models.VAE(
        default_prior(family, shape), Conditional(dist.Bernoulli, MLP(shape, [32]), 64)
    )
    q = guides.VAE(Conditional(family, MLP(64, [32]), shape, boost=8))
    as_made(p, q)
    history = fit(
        p,
        q,
        digits().train[:300],
        loss=bound(),
        epochs=2,
        batch_size=30,
        seed=0,
        progress=False,
        binarize=True,
    )
    assert all(math.isfinite(value) for value in history["loss"])
    assert history["loss"][-1] < history["loss"][0]
