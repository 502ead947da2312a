"""Kumaraswamy and stick breaking, against exact cdfs, moments and gradients.

Concentrations are from 0.05 to 1,000, where values of draws round to 0 or 1, and the logarithms
that they carry do not.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import integrate, special, stats
from torch.distributions import kl_divergence

from tarspyro import Conditional
from tarspyro.distributions import (
    Beta,
    Kumaraswamy,
    StickBreaking,
    StickBreakingBeta,
    StickBreakingKumaraswamy,
    default_prior,
)
from tarspyro.distributions.drawing import log_and_log1m, recall
from tarspyro.distributions.kumaraswamy import log1mexp
from tarspyro.infer import ELBO
from tarspyro.nn import MLP

from ..programs import assert_within

GRID = [0.05, 0.5, 1.0, 5.0, 50.0, 1e3]
AS_FIVE_ERRORS = 5.7e-7  # the p-value of 5 standard errors: dozens of tests run at once
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
CONCENTRATION1 = pytest.mark.parametrize("a", GRID)
CONCENTRATION0 = pytest.mark.parametrize("b", GRID)


def numpy_log1mexp(log):
    """log(1 - exp(log)), in double precision; where exp(log) is too small for a double, it is
    -exp(log).
    """
    with np.errstate(divide="ignore"):
        return np.where(log > -math.log(2), np.log(-np.expm1(log)), np.log1p(-np.exp(log)))


def log1m_power(draw, a):
    """log(1 - x^a) in double precision, from the more accurate of log x and log(1 - x)."""
    log, log1m = draw.log.double().numpy(), draw.log1m.double().numpy()
    # Next to one, where single precision has no log x, 1 - x^a is a (1 - x).
    return np.where(log > -1e-30, log1m + math.log(a), numpy_log1mexp(a * log))


def of(a, b, dtype=torch.float64, *, shape=()):
    return (torch.full(shape, value, dtype=dtype) for value in (a, b))


# log(1 - exp(x)).


@DTYPES
def test_log1mexp_is_accurate_near_zero_and_far_from_it(dtype):
    eps = torch.finfo(dtype).eps
    near = -torch.logspace(-30, -5, 50, dtype=dtype)
    series = (-near.double()).log() + near.double() / 2 + near.double() ** 2 / 24
    torch.testing.assert_close(log1mexp(near).double(), series, rtol=4 * eps, atol=0)
    far = -torch.linspace(20, 80, 50, dtype=dtype)
    series = -far.double().exp() - (2 * far.double()).exp() / 2
    torch.testing.assert_close(
        log1mexp(far).double(), series, rtol=100 * eps, atol=0
    )  # of exp(80)
    middle = -torch.linspace(0.05, 5, 200, dtype=dtype)
    exact = torch.tensor(
        [math.log(1 - math.exp(value)) for value in middle.tolist()], dtype=torch.float64
    )
    # The reference subtracts from one: two hundred times less accurate than a double, and
    # enough for both.
    torch.testing.assert_close(
        log1mexp(middle).double(), exact, rtol=max(20 * eps, 200 * 2.3e-16), atol=0
    )
    assert torch.equal(
        log1mexp(log1mexp(middle)).isfinite(), torch.ones(200, dtype=torch.bool)
    )


@DTYPES
def test_log1mexp_has_the_exact_slope_and_no_infinite_one(dtype):
    x = torch.tensor(
        [-1e-20, -1e-3, -0.5, -math.log(2), -0.7, -3.0, -30.0], dtype=dtype, requires_grad=True
    )
    (slope,) = torch.autograd.grad(log1mexp(x).sum(), x)
    torch.testing.assert_close(
        slope.double(), 1 / torch.expm1(-x.detach().double()) * -1, rtol=1e-5, atol=0
    )
    x = torch.tensor(
        [-0.0, -torch.finfo(dtype).tiny, -1e4, -math.inf], dtype=dtype, requires_grad=True
    )
    values = log1mexp(x)
    (slope,) = torch.autograd.grad(values.sum(), x)
    assert values.isfinite().all() and slope.isfinite().all()


# The law of the draws.


@DTYPES
@CONCENTRATION0
@CONCENTRATION1
def test_draws_have_the_exact_distribution_function(a, b, dtype):
    """F(x) = 1 - (1 - x^a)^b, of the logarithms that draws carry."""
    draw = recall(Kumaraswamy(*of(a, b, dtype)).sample((100_000 if b < 0.1 else 20_000,)))
    assert draw.log.isfinite().all() and draw.log1m.isfinite().all()
    uniform = -np.expm1(b * log1m_power(draw, a))
    assert stats.kstest(uniform, stats.uniform.cdf).pvalue > AS_FIVE_ERRORS


@DTYPES
@CONCENTRATION0
@CONCENTRATION1
def test_draws_are_inside_and_equal_their_logarithms(a, b, dtype):
    eps = torch.finfo(dtype).eps
    x = Kumaraswamy(*of(a, b, dtype)).sample((10_000,))
    log, log1m = recall(x).log, recall(x).log1m
    assert ((x > 0) & (x < 1)).all()
    small = (log > -60) & (log < -1)
    torch.testing.assert_close(x[small], log[small].exp(), rtol=200 * eps, atol=0)
    large = log >= -1
    torch.testing.assert_close(1 - x[large], log1m[large].exp(), rtol=0, atol=4 * eps)


# The density.


@CONCENTRATION0
@CONCENTRATION1
def test_density_of_given_values_is_the_formula(a, b):
    x = torch.cat(
        [
            torch.rand(500, dtype=torch.float64),
            torch.tensor([1e-300, 1e-10, 1 - 1e-10], dtype=torch.float64),
        ]
    )
    log = x.log().numpy()
    terms = [
        math.log(a) + 0 * log,
        math.log(b) + 0 * log,
        (a - 1) * log,
        (b - 1) * numpy_log1mexp(a * log),
    ]
    off = np.abs(Kumaraswamy(*of(a, b)).log_prob(x).numpy() - sum(terms))
    assert (off <= 1e-14 * sum(map(np.abs, terms)) + 1e-14).all()
    single = Kumaraswamy(*of(a, b, torch.float32))
    terms[2:] = [(a - 1) * (log := x.float().clamp(1e-30, 1 - 1e-6).double().log().numpy())]
    terms += [(b - 1) * numpy_log1mexp(a * log)]
    off = np.abs(
        single.log_prob(x.float().clamp(1e-30, 1 - 1e-6)).double().numpy() - sum(terms)
    )
    # In single precision log x is rounded; beside one that is what is known of 1 - x.
    assert (off <= 1e-6 * sum(map(np.abs, terms)) + 1e-6).all()


@pytest.mark.parametrize("a, b", [(0.5, 0.5), (2.0, 3.0), (5.0, 1.0), (1.0, 20.0)])
def test_density_integrates_to_one(a, b):
    q = Kumaraswamy(*of(a, b))

    def density(t):  # over the log-odds of x
        x = torch.tensor(t, dtype=torch.float64).sigmoid()
        return (q.log_prob(x).exp() * x * (1 - x)).item()

    # Beyond 34 a double cannot tell x from one; the mass there is exp(-34 / 2) at most.
    assert integrate.quad(density, -50, 34, limit=200)[0] == pytest.approx(1, abs=1e-6)


@DTYPES
@CONCENTRATION0
@CONCENTRATION1
def test_density_of_own_draws_is_the_formula_in_double(a, b, dtype):
    q = Kumaraswamy(*of(a, b, dtype))
    x = q.sample((10_000,))
    draw = recall(x)
    terms = [
        math.log(a),
        math.log(b),
        (a - 1) * draw.log.double().numpy(),
        (b - 1) * log1m_power(draw, a),
    ]
    off = np.abs(q.log_prob(x).double().numpy() - sum(terms))
    assert (off <= 10 * torch.finfo(dtype).eps * (sum(map(np.abs, terms)) + 1)).all()


@DTYPES
@CONCENTRATION0
@CONCENTRATION1
def test_mean_log_density_of_own_draws_is_minus_the_entropy(a, b, dtype):
    """A sampled KL needs this. At b = 0.05 one draw in 80 has 1 - x^a < exp(-87), below tiny
    in single precision.
    """
    q = Kumaraswamy(*of(a, b, dtype))
    log_prob = q.log_prob(q.sample((400_000 if b < 0.1 else 50_000,)))
    harmonic = special.digamma(b + 1) + np.euler_gamma
    entropy = (1 - 1 / b) + (1 - 1 / a) * harmonic - math.log(a) - math.log(b)
    assert_within(log_prob, -entropy, errors=5)


@DTYPES
@CONCENTRATION0
@CONCENTRATION1
def test_the_gradient_of_an_entropy_estimate_is_exact(a, b, dtype):
    first, second = (value.requires_grad_() for value in of(a, b, dtype, shape=(50_000,)))
    q = Kumaraswamy(first, second)
    gradients = torch.autograd.grad(q.log_prob(q.rsample()).sum(), [first, second])
    exact = [value.requires_grad_() for value in of(a, b)]
    harmonic = torch.digamma(exact[1] + 1) + np.euler_gamma
    entropy = (
        (1 - 1 / exact[1]) + (1 - 1 / exact[0]) * harmonic - exact[0].log() - exact[1].log()
    )
    truth = torch.autograd.grad(-entropy, exact)
    # Where a gradient has no noise it is what its rounding makes it.
    for sampled, true in zip(gradients, truth, strict=True):
        rounding = 100 * torch.finfo(dtype).eps * (sampled.abs().mean().double() + true.abs())
        error = 5 * sampled.double().std() / len(sampled) ** 0.5
        assert (sampled.double().mean() - true).abs() <= error + rounding, (
            sampled.mean(),
            true,
            error,
        )


# Moments.


def exact_moments(a, b):
    """Mean and variance by quadrature over the log-odds of the uniform number 1 - u behind x."""

    def x(t):
        return np.exp(numpy_log1mexp(-np.logaddexp(0, -t) / b) / a)

    def mean_of(function):
        points = np.linspace(-40, 40, 21)[1:-1]
        integrand = lambda t: function(x(t)) * special.expit(t) * special.expit(-t)  # noqa: E731
        return integrate.quad(
            integrand, -45, 45, points=points, limit=500, epsabs=0, epsrel=1e-11
        )[0]

    mean = mean_of(lambda x: x)
    return mean, mean_of(lambda x: (x - mean) ** 2)


@CONCENTRATION0
@CONCENTRATION1
def test_moments_against_quadrature(a, b):
    mean, variance = exact_moments(a, b)
    q = Kumaraswamy(*of(a, b))
    # The logarithm of a moment is a difference of lgamma(1000) = 6000; the variance is that of
    # two such.
    slack = 6000 * 4e-16 * mean**2 / variance
    assert q.mean.item() == pytest.approx(mean, rel=1e-10)
    assert q.variance.item() == pytest.approx(variance, rel=1e-8 + slack)


@CONCENTRATION0
@CONCENTRATION1
def test_moments_in_single_precision(a, b):
    q, exact = Kumaraswamy(*of(a, b, torch.float32)), Kumaraswamy(*of(a, b))
    assert q.mean.dtype == q.variance.dtype == torch.float32
    assert q.mean.item() == pytest.approx(exact.mean.item(), rel=1e-3)
    assert q.variance.item() == pytest.approx(exact.variance.item(), rel=1e-2)


@pytest.mark.parametrize("a, b", [(0.3, 0.7), (2.0, 3.0), (5.0, 0.4), (0.6, 20.0)])
def test_pathwise_gradients_of_moments_are_exact(a, b):
    """Those of E[x], E[log x] and E[log(1 - x)], also through the logarithms that draws carry."""
    concentrations = [value.requires_grad_() for value in of(a, b, shape=(200_000,))]
    x = Kumaraswamy(*concentrations).rsample()
    exact = [value.requires_grad_() for value in of(a, b)]
    q = Kumaraswamy(*exact)
    harmonic = torch.digamma(exact[1] + 1) + np.euler_gamma

    def expected_log1m(a, b):
        def integrand(t):
            return (
                numpy_log1mexp(numpy_log1mexp(-np.logaddexp(0, -t) / b) / a)
                * special.expit(t)
                * special.expit(-t)
            )

        return integrate.quad(integrand, -20, 40, limit=500, epsrel=1e-12)[0]

    step = 1e-4
    slopes = (
        (expected_log1m(a + step, b) - expected_log1m(a - step, b)) / (2 * step),
        (expected_log1m(a, b + step) - expected_log1m(a, b - step)) / (2 * step),
    )
    for value, truth in (
        (x, torch.autograd.grad(q.mean, exact)),
        (recall(x).log, torch.autograd.grad(-harmonic / exact[0], exact)),
        (recall(x).log1m, torch.tensor(slopes)),
    ):
        gradients = torch.autograd.grad(value.sum(), concentrations, retain_graph=True)
        assert_within(torch.stack(gradients, -1), torch.as_tensor(truth))


# Nothing overflows.


@DTYPES
def test_a_million_draws_and_all_gradients_are_finite(dtype):
    grid = torch.tensor([0.01, *GRID], dtype=dtype)
    a, b = (
        value.flatten().repeat(20_500).requires_grad_()
        for value in torch.meshgrid(grid, grid, indexing="ij")
    )
    q = Kumaraswamy(a, b, validate_args=True)
    x = q.rsample()
    assert len(x) > 1_000_000 and ((x > 0) & (x < 1)).all()
    log, log1m = log_and_log1m(x)
    for value in (x, q.log_prob(x), log, log1m, Beta(*of(2.0, 3.0, dtype)).log_prob(x)):
        gradients = torch.autograd.grad(value.sum(), [a, b], retain_graph=True)
        for what in (value, *gradients):
            bad = ~what.isfinite()
            assert not bad.any(), (a[bad].unique(), b[bad].unique())


@DTYPES
@pytest.mark.parametrize("extreme", ["lowest", "highest"])
def test_the_rarest_uniform_numbers_are_finite(dtype, extreme, monkeypatch):
    """torch.rand is zero once in 17 million numbers in single precision, too rarely for a
    random test.
    """
    uniform = 0.0 if extreme == "lowest" else 1 - torch.finfo(dtype).eps / 2
    monkeypatch.setattr(
        torch, "rand", lambda *size, **options: torch.full(*size, uniform, **options)
    )
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, uniform))
    grid = torch.tensor([0.05, 1.0, 50.0], dtype=dtype)
    a, b = (
        value.flatten().requires_grad_() for value in torch.meshgrid(grid, grid, indexing="ij")
    )
    q = Kumaraswamy(a, b)
    x = q.rsample()
    assert torch.equal(x, q.rsample()), "the noise is the one given here"
    for value in (x, q.log_prob(x), recall(x).log, recall(x).log1m):
        assert value.isfinite().all()
        assert all(
            g.isfinite().all()
            for g in torch.autograd.grad(value.sum(), [a, b], retain_graph=True)
        )


def test_torchs_own_draws_are_zeros_and_ones_at_small_concentrations():
    """The reason for log space: two of five draws of torch are exactly one there, with an
    infinite density.
    """
    theirs = torch.distributions.Kumaraswamy(
        *of(0.05, 0.05, torch.float32), validate_args=False
    )
    x = theirs.sample((10_000,))
    assert (x == 1).float().mean() > 0.3 and (x == 0).any()
    assert (~theirs.log_prob(x).isfinite()).float().mean() > 0.3
    ours = Kumaraswamy(*of(0.05, 0.05, torch.float32))
    assert ours.log_prob(ours.sample((10_000,))).isfinite().all()


# Shapes and types.


def test_shapes():
    q = Kumaraswamy(torch.ones(3, 1), torch.full((4,), 2.0))
    assert (q.batch_shape, q.event_shape) == ((3, 4), ())
    assert q.rsample((2,)).shape == (2, 3, 4) == q.log_prob(q.rsample((2,))).shape
    wide = q.to_event(1).expand([5, 3])
    assert (wide.batch_shape, wide.event_shape) == ((5, 3), (4,)) and wide.log_prob(
        wide.rsample()
    ).shape == (5, 3)
    torch.testing.assert_close(q.expand([5, 3, 4]).mean, q.mean.expand(5, 3, 4))
    assert Kumaraswamy(2.0, 3.0).rsample((2,)).shape == (2,)
    for wrong in ((0.0, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="concentration"):
            Kumaraswamy(*map(torch.tensor, wrong))
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.full((3, 4), 1.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_single_precision(dtype):
    a, b = (value.requires_grad_() for value in of(0.3, 0.6, dtype, shape=(10_000,)))
    q = Kumaraswamy(a, b)
    x = q.rsample()
    assert x.dtype == dtype == q.mean.dtype and ((x > 0) & (x < 1)).all()
    log_prob = q.log_prob(x)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
    for value in (x.float().sum(), log_prob.sum()):
        assert all(
            g.isfinite().all() for g in torch.autograd.grad(value, [a, b], retain_graph=True)
        )


def test_a_conditional_of_it():
    q = Conditional(Kumaraswamy, MLP(6, [8]), 5)
    prior = default_prior(Kumaraswamy, 5)
    context = torch.randn(7, 6)
    assert q(context).batch_shape == (7,) and q.log_prob(q.sample(context), context).shape == (
        7,
    )
    assert q.kl(prior, context).shape == (7,) and q.mean(context).shape == (7, 5)


# Stick breaking.


def sticks(kind, a, b):
    return {"kumaraswamy": StickBreakingKumaraswamy, "beta": StickBreakingBeta}[kind](a, b)


KINDS = pytest.mark.parametrize("kind", ["kumaraswamy", "beta"])


@DTYPES
@KINDS
@pytest.mark.parametrize("classes", [2, 5, 100])
def test_pieces_sum_to_one_and_pass_their_own_validation(classes, kind, dtype):
    for a, b in ((0.05, 0.05), (1.0, 5.0), (50.0, 0.5)):
        q = sticks(kind, *of(a, b, dtype, shape=(classes - 1,)))
        pi = q.rsample((1000,))
        assert pi.shape == (1000, classes) and (pi > 0).all() and pi.isfinite().all()
        assert q.support.check(pi).all()
        assert (
            recall(pi).log.double().logsumexp(-1).abs().max()
            < 20 * classes * torch.finfo(dtype).eps
        )
        log_prob = q.log_prob(pi)
        assert log_prob.shape == (1000,) and log_prob.isfinite().all()


@KINDS
def test_pieces_are_products_of_the_breaks(kind):
    a, b = torch.tensor([0.7, 2.0, 1.0]).double(), torch.tensor([3.0, 1.5, 0.6]).double()
    q = sticks(kind, a, b)
    means = q.breaks.base_dist.mean
    expected = torch.cat([means, torch.ones(1)]) * torch.cat(
        [torch.ones(1), (1 - means).cumprod(0)]
    )
    assert_within(q.sample((200_000,)), expected)
    torch.manual_seed(3)
    v = q.breaks.sample((10,))
    torch.manual_seed(3)
    pi = q.sample((10,))
    by_hand = torch.stack(
        [
            v[:, 0],
            v[:, 1] * (1 - v[:, 0]),
            v[:, 2] * (1 - v[:, 0]) * (1 - v[:, 1]),
            (1 - v[:, 0]) * (1 - v[:, 1]) * (1 - v[:, 2]),
        ],
        -1,
    )
    torch.testing.assert_close(pi, by_hand)


def test_beta_sticks_of_matching_concentrations_are_dirichlet():
    """Breaks from Beta(alpha_k, alpha_{k+1} + ... + alpha_K); Beta(1, K - k) gives Dir(1)."""
    for classes in (2, 5, 50):
        alpha = 0.2 + 2 * torch.rand(classes, dtype=torch.float64)
        for concentration in (torch.ones(classes, dtype=torch.float64), alpha):
            later = concentration.flip(0).cumsum(0).flip(0)[1:]
            ours, exact = (
                StickBreakingBeta(concentration[:-1], later),
                torch.distributions.Dirichlet(concentration),
            )
            for points in (torch.ones(classes), torch.full((classes,), 0.3)):
                value = torch.distributions.Dirichlet(points.double()).sample((200,))
                torch.testing.assert_close(
                    ours.log_prob(value), exact.log_prob(value), rtol=1e-8, atol=1e-8
                )
            value = ours.sample((200,))
            torch.testing.assert_close(
                ours.log_prob(value), exact.log_prob(value.clone()), rtol=1e-8, atol=1e-8
            )
    uniform = StickBreakingBeta(torch.ones(4).double(), torch.arange(4, 0, -1).double())
    assert_within(uniform.sample((100_000,)), torch.full((5,), 0.2))
    torch.testing.assert_close(
        uniform.log_prob(uniform.sample((3,))), torch.full((3,), math.log(24)).double()
    )


@KINDS
def test_density_integrates_to_one_over_the_triangle(kind):
    q = sticks(kind, torch.tensor([0.8, 2.0]).double(), torch.tensor([3.0, 1.5]).double())
    t = torch.arange(-60, 60, 0.3, dtype=torch.float64)
    y = torch.stack(
        [
            *torch.meshgrid(t, t, indexing="ij"),
            torch.zeros(len(t), len(t), dtype=torch.float64),
        ],
        -1,
    )
    log = torch.log_softmax(y, -1)
    y = log.exp()
    y = y / y.sum(-1, keepdim=True)
    inside = (log > -30).all(
        -1
    )  # where the last piece is more than rounding; the mass outside is exp(-0.8 * 30)
    total = (q.log_prob(y[inside]).exp() * y[inside].prod(-1)).sum() * 0.3**2
    assert total.item() == pytest.approx(1, abs=1e-6)


@KINDS
def test_own_draws_are_scored_as_their_copies(kind):
    q = sticks(
        kind, torch.tensor([0.7, 2.0, 1.0]).double(), torch.tensor([3.0, 1.5, 1.6]).double()
    )
    pi = q.sample((2000,))
    # A copy knows its smallest pieces beside one to the last digit of one.
    inside = pi.min(-1).values > 1e-6
    assert inside.double().mean() > 0.9
    torch.testing.assert_close(
        q.log_prob(pi)[inside], q.log_prob(pi.clone())[inside], rtol=1e-8, atol=1e-8
    )


@DTYPES
@KINDS
@pytest.mark.parametrize("b", [0.1, 0.3, 0.5, 1.0, 5.0])
def test_density_of_own_draws_is_that_of_the_breaks_that_made_them(b, kind, dtype):
    """log p(pi) = sum_k log p(v_k) - sum_k log(stick before break k), also if a break takes
    nearly all.
    """
    q = sticks(kind, *of(2.0, b, dtype, shape=(4,)))
    torch.manual_seed(1)
    v = q.breaks.sample((20_000,))
    torch.manual_seed(1)
    pi = q.sample((20_000,))
    log_left = recall(v).log1m.cumsum(-1)[..., :-1].sum(-1)
    exact = (q.breaks.log_prob(v) - log_left).double()
    sizes = 1 + recall(v).log.abs().sum(-1) + recall(v).log1m.abs().sum(-1)
    off = (q.log_prob(pi) - exact).abs() / sizes
    assert off.max() < 100 * torch.finfo(dtype).eps, (
        f"{(off > 1e-3).double().mean():.1%} of the rows are off"
    )


@DTYPES
@KINDS
@pytest.mark.parametrize("b", [0.1, 0.3, 1.0])
def test_mean_log_ratio_of_own_draws_is_the_kl(b, kind, dtype):
    q, p = (
        sticks(kind, *of(2.0, b, dtype, shape=(4,))),
        sticks(kind, *of(1.0, 1.0, dtype, shape=(4,))),
    )
    pi = q.sample((20_000,))
    exact = sticks(kind, *of(2.0, b, shape=(4,))), sticks(kind, *of(1.0, 1.0, shape=(4,)))
    assert_within(q.log_prob(pi) - p.log_prob(pi), kl_divergence(*exact))


@KINDS
def test_divergence_counts_the_breaks_and_not_the_last_piece(kind):
    a, b = torch.tensor([0.7, 2.0, 1.0]).double(), torch.tensor([3.0, 1.5, 0.6]).double()
    q, p = (
        sticks(kind, a, b),
        sticks(kind, torch.ones(3).double(), torch.full((3,), 5.0).double()),
    )
    kl = kl_divergence(q, p)
    assert kl.shape == ()
    torch.testing.assert_close(kl, kl_divergence(q.breaks.base_dist, p.breaks.base_dist).sum())
    pi = q.sample((100_000,))
    assert_within(q.log_prob(pi) - p.log_prob(pi), kl)


@KINDS
def test_all_gradients_of_sticks_are_finite(kind):
    grid = torch.tensor([0.01, 0.05, 0.5, 1.0, 5.0, 50.0])
    a, b = (
        v.flatten()[:, None].expand(36, 9).clone().requires_grad_()
        for v in torch.meshgrid(grid, grid, indexing="ij")
    )
    q = sticks(kind, a, b)
    pi = q.rsample((3000,))  # a million pieces
    for value in (pi, q.log_prob(pi), recall(pi).log):
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), [a, b], retain_graph=True):
            assert gradient.isfinite().all(), (
                a[~gradient.isfinite()].unique(),
                b[~gradient.isfinite()].unique(),
            )


def test_shapes_of_sticks():
    q = StickBreakingKumaraswamy(torch.ones(3, 4), torch.full((4,), 5.0))
    assert (q.batch_shape, q.event_shape) == ((3,), (5,))
    wide = q.expand([2, 3])
    assert wide.rsample((6,)).shape == (6, 2, 3, 5) and wide.log_prob(
        wide.rsample((6,))
    ).shape == (6, 2, 3)
    assert q.to_event(1).log_prob(q.rsample()).shape == ()
    with pytest.raises(
        ValueError, match=r"breaks must be .* vectors, got the event shape \(\): add .to_event"
    ):
        StickBreaking(Kumaraswamy(torch.ones(4), torch.ones(4)))
    with pytest.raises(ValueError, match="concentration"):
        StickBreakingBeta(torch.ones(4), -torch.ones(4))
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.full((3, 5), 0.5))


@pytest.mark.parametrize("family", [StickBreakingKumaraswamy, StickBreakingBeta])
def test_a_conditional_of_sticks_has_a_break_fewer(family):
    q = Conditional(family, MLP(6, [8]), 5)
    context = torch.randn(7, 6)
    posterior = q(context)
    assert posterior.event_shape == (5,) and posterior.concentration1.shape == (7, 4)
    assert q.heads["concentration0"].out_features == 4
    pi = q.sample(context)
    assert pi.shape == (7, 5) and q.log_prob(pi, context).shape == (7,)
    assert q.kl(default_prior(family, 5), context).shape == (7,)
    deep = Conditional(family, MLP(6, [8]), (3, 5))(context)
    assert deep.event_shape == (3, 5) and deep.base_dist.concentration1.shape == (7, 3, 4)


# Gradients of bounds: the score of the Betas' rejection sampler survives the stick breaking.


def exact_bound(a, b, counts):
    """E[sum_k n_k log pi_k] - KL(q || Dir(1)-like sticks), from digammas."""
    total = torch.digamma(a + b)
    log_v, log1m_v = torch.digamma(a) - total, torch.digamma(b) - total
    left = torch.cat([torch.zeros(1).double(), log1m_v.cumsum(0)])
    log_pieces = torch.cat([log_v, torch.zeros(1).double()]) + left
    prior = torch.distributions.Beta(
        torch.ones(3).double(), torch.tensor([3.0, 2.0, 1.0]).double()
    )
    coefficients = torch.lgamma(counts.sum() + 1) - torch.lgamma(counts + 1).sum()
    kl = kl_divergence(torch.distributions.Beta(a, b), prior).sum()
    return (counts * log_pieces).sum() + coefficients - kl


@pytest.mark.parametrize("wrap", ["bare", "to_event", "masked"])
@pytest.mark.parametrize("boost", [0, 4])
@pytest.mark.parametrize(
    "bound",
    [Trace_ELBO(), ELBO(), ELBO(num_particles=2)],
    ids=["pyro", "analytic", "particles"],
)
def test_gradient_of_beta_sticks_is_unbiased(bound, boost, wrap):
    """With boost=0 the pathwise gradient is far off, so a lost score would show."""
    rows = 10_000
    counts = torch.tensor([3.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    center = torch.tensor([[1.2, 1.5, 2.0], [1.3, 1.1, 1.7]], dtype=torch.float64)
    shape = (rows, 1, 3) if wrap == "to_event" else (rows, 3)
    a, b = (value.expand(shape).clone().requires_grad_() for value in center)

    def wrapped(q):
        if wrap == "masked":
            return q.mask(torch.ones(rows, dtype=torch.bool))
        return q.to_event(1) if wrap == "to_event" else q

    def model():
        with pyro.plate("data", rows):
            later = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).expand(shape)
            pi = pyro.sample("pi", wrapped(StickBreakingBeta(torch.ones_like(later), later)))
            pi = pi.squeeze(-2) if wrap == "to_event" else pi
            pyro.sample("x", dist.Multinomial(6, probs=pi, validate_args=False), obs=counts)

    def guide():
        with pyro.plate("data", rows):
            pyro.sample("pi", wrapped(StickBreaking(Beta(a, b, boost=boost).to_event(1))))

    loss = bound.differentiable_loss(model, guide)
    gradients = torch.autograd.grad(-loss, [a, b])
    exact = [value.clone().requires_grad_() for value in center]
    truth = torch.autograd.grad(exact_bound(*exact, counts), exact)
    assert_within(
        torch.stack(gradients).reshape(2, rows, 3).transpose(0, 1), torch.stack(truth)
    )


def test_only_partly_reparameterized_breaks_bring_a_score():
    a, b = (value.requires_grad_() for value in of(1.2, 1.3, shape=(4,)))
    for breaks, has_score in (
        (Beta(a, b), True),
        (Beta(a, b, reparameterization="implicit"), False),
        (Kumaraswamy(a, b), False),
    ):
        q = StickBreaking(breaks.to_event(1))
        assert q.partly_reparameterized == has_score
        pi = q.rsample()
        assert torch.is_tensor(q.score_parts(pi).score_function) == has_score
    with pytest.raises(ValueError, match="StickBreaking"):
        pi = StickBreaking(Beta(a, b).to_event(1)).rsample()
        StickBreaking(Beta(a, b).to_event(1)).score_parts(pi * 1.0)
