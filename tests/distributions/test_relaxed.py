"""Gumbel-softmax, against exact frequencies, normalized densities and gradients by quadrature.

Tests of torch's and Pyro's relaxations show where those fail, which is the reason for our own.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import RelaxedOneHotCategoricalStraightThrough
from scipy import integrate, special, stats
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from tarspyro import Conditional, fit, guides, models
from tarspyro.distributions import GumbelSigmoid, GumbelSoftmax, Prior, default_prior
from tarspyro.distributions.drawing import recall
from tarspyro.infer import ELBO, log_weights
from tarspyro.nn import MLP

from ..fresh_process import check_in_fresh_process
from ..programs import assert_within, with_random_heads

TEMPERATURES = [0.01, 0.1, 0.5, 2 / 3, 1.0, 10.0]
AS_FOUR_ERRORS = 6e-5  # the p-value of 4 standard errors
KINDS = pytest.mark.parametrize("family", [GumbelSoftmax, GumbelSigmoid])


def logits_of(*shape, seed=0, spread=1.5, dtype=torch.float64):
    return spread * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


def simplex_points(*shape, classes, seed=0):
    numbers = torch.rand(
        *shape, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.softmax(3 * numbers.log(), -1)


def exact_log_density(logits, temperature, log):
    """Maddison et al. (2016), eq. 10, in double precision from log y."""
    logits, log, classes = logits.double(), log.double(), logits.shape[-1]
    normalizer = torch.logsumexp(logits - temperature * log, -1)
    terms = (logits - (temperature + 1) * log).sum(-1)
    return (
        math.lgamma(classes)
        + (classes - 1) * math.log(temperature)
        + terms
        - classes * normalizer
    )


# The law of the draws.


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("temperature", [0.01, 2 / 3, 10.0])
def test_the_nearest_corner_is_the_class(temperature, hard):
    logits = logits_of(2, 5)
    draws = GumbelSoftmax(logits, temperature=temperature, hard=hard).sample((100_000,))
    corners = torch.nn.functional.one_hot(draws.argmax(-1), 5)
    assert_within(corners.double(), logits.softmax(-1))
    if hard:
        assert torch.equal(draws, corners.to(draws.dtype))


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("temperature", [0.01, 2 / 3, 10.0])
def test_the_nearest_bit_is_the_class(temperature, hard):
    logits = logits_of(5)
    draws = GumbelSigmoid(logits, temperature=temperature, hard=hard).sample((100_000,))
    assert_within((draws > 0.5).double(), logits.sigmoid())
    if hard:
        assert ((draws == 0) | (draws == 1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_logarithms_of_draws_have_the_exact_distribution(temperature, dtype):
    """T (log y - log(1 - y)) - logit is logistic, also if y itself has lost its digits."""
    draw = recall(
        GumbelSigmoid(
            torch.full((50_000,), 0.7, dtype=dtype), temperature=temperature
        ).sample()
    )
    noise = temperature * (draw.log - draw.log1m) - 0.7
    assert stats.kstest(noise.double().numpy(), stats.logistic.cdf).pvalue > AS_FOUR_ERRORS

    logits = torch.tensor([0.7, -1.0, 0.2], dtype=dtype)
    log = recall(GumbelSoftmax(logits, temperature=temperature).sample((50_000,))).log
    for i, j in ((0, 1), (1, 2)):
        noise = temperature * (log[:, i] - log[:, j]) - (logits[i] - logits[j])
        assert stats.kstest(noise.double().numpy(), stats.logistic.cdf).pvalue > AS_FOUR_ERRORS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_values_and_their_logarithms_agree(temperature, dtype):
    tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    y = GumbelSoftmax(logits_of(20, dtype=dtype), temperature=temperature).sample((1000,))
    log = recall(y).log
    # A logarithm of size L is known to L eps, which makes it the relative error of its
    # exponential.
    assert log.double().logsumexp(-1).abs().max() < 20 * eps * log.abs().max()
    kept = log > math.log(tiny / eps)
    torch.testing.assert_close(y[kept], log[kept].exp(), rtol=100 * eps, atol=0)
    assert (y > 0).all()

    y = GumbelSigmoid(logits_of(20, dtype=dtype), temperature=temperature).sample((1000,))
    assert ((y > 0) & (y < 1)).all()
    log, log1m = recall(y).log, recall(y).log1m
    torch.testing.assert_close(
        log.exp() + log1m.exp(), torch.ones_like(y), rtol=4 * eps, atol=0
    )
    kept = log > math.log(tiny / eps)
    torch.testing.assert_close(y[kept], log[kept].exp(), rtol=100 * eps, atol=2 * eps)


def test_entries_that_are_kept_from_vanishing_keep_their_gradient():
    """y = exp(log y) has the derivative y, also for entries at the lower limit."""
    logits = logits_of(50, dtype=torch.float32).requires_grad_()
    y = GumbelSoftmax(logits, temperature=0.01).rsample((1000,))
    assert (recall(y).log < -100).any()
    (slope,) = torch.autograd.grad(y.sum(), recall(y).log)
    torch.testing.assert_close(slope, y.detach())
    assert (slope > 0).all()


# The density.


@pytest.mark.parametrize("temperature", [0.5, 2 / 3, 1.0, 3.0])
def test_binary_density_integrates_to_one(temperature):
    q = GumbelSigmoid(torch.tensor(0.8, dtype=torch.float64), temperature=temperature)

    def density(t):  # over the log-odds of y, where it has no poles
        y = torch.tensor(t, dtype=torch.float64).sigmoid()
        return (q.log_prob(y).exp() * y * (1 - y)).item()

    # Beyond 34 a double cannot tell y from one; the mass there is exp(0.8 - 34 T), 1e-7 at
    # most.
    assert integrate.quad(density, -34, 34, limit=200)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
def test_density_of_two_classes_integrates_to_one(temperature):
    q = GumbelSoftmax(torch.tensor([0.8, -0.3], dtype=torch.float64), temperature=temperature)

    def density(t):
        y = torch.tensor([t, -t], dtype=torch.float64).sigmoid()
        return (q.log_prob(y).exp() * y.prod()).item()

    end = 20 / min(temperature, 1)
    points = (-1 / temperature, 1 / temperature)
    assert integrate.quad(density, -end, end, limit=400, points=points)[0] == pytest.approx(
        1, abs=1e-7
    )


def over_the_simplex(function, temperature):
    """Integrates over three classes, in the coordinates log(y_1 / y_3), log(y_2 / y_3)."""
    end, step = (
        40 / min(temperature, 1),
        0.4,
    )  # the trapezoid rule: its error falls exponentially with the step
    t = torch.arange(-end, end, step, dtype=torch.float64)
    y = torch.stack(
        [
            *torch.meshgrid(t, t, indexing="ij"),
            torch.zeros(len(t), len(t), dtype=torch.float64),
        ],
        -1,
    )
    y = torch.softmax(y, -1)
    return (function(y) * y.prod(-1)).sum() * step**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_density_of_three_classes_integrates_to_one(temperature):
    q = GumbelSoftmax(
        torch.tensor([0.8, -0.3, 0.1], dtype=torch.float64), temperature=temperature
    )
    total = over_the_simplex(lambda y: q.log_prob(y).exp(), temperature)
    assert total.item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 2 / 3, 1.0, 3.0])
def test_density_equals_torchs(temperature):
    logits, tau = logits_of(7, 5), torch.tensor(temperature, dtype=torch.float64)
    ours, theirs = (
        GumbelSoftmax(logits, temperature=temperature),
        torch.distributions.RelaxedOneHotCategorical(tau, logits=logits),
    )
    draws = ours.sample((100,))
    given = simplex_points(100, 7, classes=5)
    for value in (draws, draws.clone(), given, 0.5 * draws + 0.5 * given):
        torch.testing.assert_close(
            ours.log_prob(value), theirs.log_prob(value), rtol=1e-10, atol=1e-9
        )

    ours, theirs = (
        GumbelSigmoid(logits, temperature=temperature),
        torch.distributions.RelaxedBernoulli(tau, logits=logits),
    )
    given = torch.rand(100, 7, 5, dtype=torch.float64)
    for value in (given, ours.sample().clone().clamp(1e-3, 1 - 1e-3)):
        torch.testing.assert_close(
            ours.log_prob(value), theirs.log_prob(value), rtol=1e-10, atol=1e-9
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_density_of_own_draws_is_the_formula_in_log_space(temperature, dtype):
    logits = logits_of(50, dtype=dtype)
    y = GumbelSoftmax(logits, temperature=temperature).sample((2000,))
    log = recall(y).log
    off = (
        GumbelSoftmax(logits, temperature=temperature).log_prob(y)
        - exact_log_density(logits, temperature, log)
    ).abs()
    # Fifty terms are added up, each rounded to its own last digit.
    sizes = (temperature + 1) * log.abs() + logits.abs() + 4
    assert (off <= 4 * torch.finfo(dtype).eps * sizes.double().sum(-1)).all()

    logits = torch.full((20_000,), -0.6, dtype=dtype)
    y = GumbelSigmoid(logits, temperature=temperature).sample()
    pair = torch.stack([recall(y).log, recall(y).log1m], -1)
    exact = exact_log_density(
        torch.stack([logits, torch.zeros_like(logits)], -1), temperature, pair
    )
    off = (GumbelSigmoid(logits, temperature=temperature).log_prob(y) - exact).abs()
    sizes = (temperature + 1) * pair.abs() + 4
    assert (off <= 4 * torch.finfo(dtype).eps * sizes.double().sum(-1)).all()


def test_a_draw_changed_in_place_is_scored_by_its_value():
    q = GumbelSoftmax(logits_of(3, 5))
    y = q.sample()
    y.copy_(simplex_points(3, classes=5))
    torch.testing.assert_close(q.log_prob(y), q.log_prob(y.clone()))


# Nothing overflows.


@pytest.mark.parametrize(
    "dtype, entries", [(torch.float32, 1_000_000), (torch.float64, 100_000)], ids=["32", "64"]
)
@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_a_million_entries_are_finite(classes, dtype, entries):
    """Draws, log-densities and gradients are finite, and the draws pass their own validation."""
    for temperature in TEMPERATURES:
        logits = logits_of(1, classes, spread=3.0, dtype=dtype).requires_grad_()
        tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
        q = GumbelSoftmax(logits, temperature=tau, validate_args=True).expand(
            [entries // classes]
        )
        y = q.rsample()
        log_prob = q.log_prob(y)
        assert y.isfinite().all() and (y > 0).all() and log_prob.isfinite().all(), temperature
        weights = torch.linspace(-1, 1, classes, dtype=dtype)
        for loss in (log_prob.sum(), (y * weights).sum()):
            gradients = torch.autograd.grad(loss, [logits, tau], retain_graph=True)
            assert all(g.isfinite().all() for g in gradients), temperature


@pytest.mark.parametrize(
    "dtype, entries", [(torch.float32, 1_000_000), (torch.float64, 100_000)], ids=["32", "64"]
)
def test_a_million_bits_are_finite(dtype, entries):
    for temperature in TEMPERATURES:
        for logit in (-50.0, -3.0, 0.0, 10.0):
            logits = torch.full((entries // 4,), logit, dtype=dtype, requires_grad=True)
            tau = torch.tensor(temperature, dtype=dtype, requires_grad=True)
            q = GumbelSigmoid(logits, temperature=tau, validate_args=True)
            y = q.rsample()
            log_prob = q.log_prob(y)
            assert ((y > 0) & (y < 1)).all() and log_prob.isfinite().all(), temperature
            for loss in (log_prob.sum(), y.sum()):
                gradients = torch.autograd.grad(loss, [logits, tau], retain_graph=True)
                assert all(g.isfinite().all() for g in gradients), temperature


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("extreme", ["lowest", "highest"])
def test_the_rarest_uniform_numbers_are_finite(family, dtype, extreme, monkeypatch):
    """torch.rand is zero once in 17 million numbers in single precision, too rarely for a
    random test.
    """
    uniform = 0.0 if extreme == "lowest" else 1 - torch.finfo(dtype).eps / 2
    monkeypatch.setattr(
        torch, "rand", lambda *size, **options: torch.full(*size, uniform, **options)
    )
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, uniform))
    logits = logits_of(5, dtype=dtype).requires_grad_()
    for temperature in TEMPERATURES:
        q = family(logits, temperature=temperature)
        y = q.rsample()
        assert torch.equal(y, q.rsample()), "the noise is the one given here"
        log_prob = q.log_prob(y)
        assert y.isfinite().all() and (y > 0).all() and log_prob.isfinite().all()
        for value in (y, log_prob):
            assert (
                torch.autograd.grad(value.sum(), logits, retain_graph=True)[0].isfinite().all()
            )


def test_gradients_of_a_copy_at_the_smallest_entries_are_finite():
    """A copy carries no logarithms, but entries are large enough that 1 / y does not overflow."""
    q = GumbelSoftmax(logits_of(10, dtype=torch.float32), temperature=0.05)
    y = q.sample((10_000,)).clone().requires_grad_()
    log_prob = q.log_prob(y)
    (gradient,) = torch.autograd.grad(log_prob.sum(), y)
    assert log_prob.isfinite().all() and gradient.isfinite().all()


def test_torchs_own_density_is_nan_at_low_temperature():
    """The reason for log space: draws of torch have exact zeros, whose log-density is NaN."""
    logits = logits_of(10, dtype=torch.float32)
    theirs = torch.distributions.RelaxedOneHotCategorical(
        torch.tensor(0.1), logits=logits, validate_args=False
    )
    assert theirs.log_prob(theirs.sample((10_000,))).isnan().any()
    ours = GumbelSoftmax(logits, temperature=0.1)
    assert ours.log_prob(ours.sample((10_000,))).isfinite().all()


# Gradients.


def f(y):
    return torch.sin(3 * y) + y**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 2 / 3, 3.0])
def test_binary_gradients_of_an_expectation(temperature, dtype):
    """E[f(y)] and E[log q(y)], in the logit and in the temperature, against quadrature over
    the logistic noise.
    """
    logit = 0.4

    def integral(derivative):
        # E over g ~ Logistic, y = sigmoid((l + g) / T); the kink that y becomes at low
        # temperature is at g = -l
        def integrand(g):
            t = (logit + g) / temperature
            return derivative(t, special.expit(t)) * special.expit(g) * special.expit(-g)

        points = [-logit - 5 * temperature, -logit, -logit + 5 * temperature]
        return integrate.quad(integrand, -40, 40, points=points, limit=500)[0]

    def slope(t, y):  # of f in t
        return (3 * np.cos(3 * y) + 2 * y) * special.expit(t) * special.expit(-t)

    def log_slope(t, y):
        # The derivative in t of log q = log T + log s(l - T t) s(T t - l) - log y - log(1 - y),
        # at fixed l - T t = -g.
        return 2 * y - 1

    n = 200_000
    logits = torch.full((n,), logit, dtype=dtype, requires_grad=True)
    tau = torch.full((n,), temperature, dtype=dtype, requires_grad=True)
    q = GumbelSigmoid(logits, temperature=tau)
    y = q.rsample()
    for value, exact in (
        # dt/dl = 1 / T; dt/dT = -t / T
        (
            f(y),
            (
                integral(lambda t, y: slope(t, y) / temperature),
                integral(lambda t, y: -slope(t, y) * t / temperature),
            ),
        ),
        (
            q.log_prob(y),
            (
                integral(lambda t, y: log_slope(t, y) / temperature),
                integral(lambda t, y: 1 / temperature - log_slope(t, y) * t / temperature),
            ),
        ),
    ):
        gradients = torch.autograd.grad(value.sum(), [logits, tau], retain_graph=True)
        assert_within(torch.stack(gradients, -1), exact)


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_gradients_of_an_expectation_over_three_classes(temperature):
    """The sampler's gradient against that of an integral over the simplex, which only knows
    the density.
    """
    target = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)

    def values(q, y):
        return torch.stack([torch.sin(3 * y @ target), q.log_prob(y)])

    center = torch.tensor([0.8, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    q = GumbelSoftmax(center, temperature=tau)
    exact = []
    for which in range(2):
        expectation = over_the_simplex(
            lambda y, which=which: q.log_prob(y).exp() * values(q, y)[which], temperature
        )
        exact.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(expectation, [center, tau])])
        )

    logits = center.detach().expand(100_000, 3).clone().requires_grad_()
    taus = tau.detach().expand(100_000).clone().requires_grad_()
    q = GumbelSoftmax(logits, temperature=taus)
    sampled = values(q, q.rsample())
    for which in range(2):
        to_logits, to_tau = torch.autograd.grad(
            sampled[which].sum(), [logits, taus], retain_graph=True
        )
        assert_within(torch.cat([to_logits, to_tau.unsqueeze(-1)], -1), exact[which])


# Hard draws.


@pytest.mark.parametrize("temperature", [0.01, 0.5, 10.0])
def test_hard_draws_are_one_hot_and_pass_their_own_validation(temperature):
    q = GumbelSoftmax(
        logits_of(1000, 100, dtype=torch.float32),
        temperature=temperature,
        hard=True,
        validate_args=True,
    )
    z = q.rsample()
    assert ((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all()
    assert dist.OneHotCategorical.support.check(z).all()
    assert q.log_prob(z).isfinite().all()
    bits = GumbelSigmoid(
        logits_of(1000, 100, dtype=torch.float32),
        temperature=temperature,
        hard=True,
        validate_args=True,
    )
    z = bits.rsample()
    assert ((z == 0) | (z == 1)).all()
    assert bits.log_prob(z).isfinite().all()


def test_pyros_straight_through_fails_its_own_validation():
    """Pyro scores the relaxed draw behind the hard one, clamped off the simplex. This is the
    reason for our own class.
    """
    logits = logits_of(1000, 100, dtype=torch.float32, spread=3.0)
    theirs = RelaxedOneHotCategoricalStraightThrough(
        torch.tensor(0.5), logits=logits, validate_args=True
    )
    z = theirs.rsample()
    assert theirs.support.check(z._unquantize).float().mean() < 0.5
    with pytest.raises(ValueError, match="support"):
        theirs.log_prob(z)
    ours = GumbelSoftmax(logits, temperature=0.5, hard=True, validate_args=True)
    assert ours.log_prob(ours.rsample()).isfinite().all()


@KINDS
def test_hard_draws_have_the_gradient_of_soft_ones(family):
    logits, tau = (
        logits_of(50, 4).requires_grad_(),
        torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
    )
    weights, gradients = logits_of(50, 4, seed=1), []
    for hard in (False, True):
        torch.manual_seed(5)
        z = family(logits, temperature=tau, hard=hard).rsample()
        gradients.append(torch.autograd.grad((weights * z).sum(), [logits, tau]))
    assert all(g.abs().sum() > 0 for g in gradients[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_hard_draws_are_scored_by_their_value_alone():
    """Pyro's straight-through draws need an attribute that the first clone loses."""
    logits = logits_of(6, 4)
    q = GumbelSoftmax(logits, hard=True)
    z = q.rsample()
    expected = dist.OneHotCategorical(logits=logits).log_prob(z)
    for value in (z, z.clone(), z.detach(), torch.stack(list(z)), z * 1.0):
        torch.testing.assert_close(q.log_prob(value), expected)
    torch.testing.assert_close(
        GumbelSoftmax(logits[2:4], hard=True).log_prob(z[2:4]), expected[2:4]
    )
    torch.testing.assert_close(q.to_event(1).log_prob(z), expected.sum())
    z = q.expand([3, 6]).rsample()
    torch.testing.assert_close(
        q.expand([3, 6]).log_prob(z),
        dist.OneHotCategorical(logits=logits.expand(3, 6, 4)).log_prob(z),
    )

    bits = GumbelSigmoid(logits, hard=True)
    z = bits.rsample()
    expected = dist.Bernoulli(logits=logits).log_prob(z)
    for value in (z, z.clone(), z.detach()):
        torch.testing.assert_close(bits.log_prob(value), expected)
    torch.testing.assert_close(bits.to_event(2).log_prob(z), expected.sum())
    torch.testing.assert_close(
        bits.expand([3, 6, 4]).log_prob(z.expand(3, 6, 4)), expected.expand(3, 6, 4)
    )


@KINDS
def test_moments_of_hard_draws(family):
    q = family(logits_of(5), hard=True)
    discrete = dist.OneHotCategorical if family is GumbelSoftmax else dist.Bernoulli
    torch.testing.assert_close(q.mean, discrete(logits=logits_of(5)).mean)
    torch.testing.assert_close(q.variance, discrete(logits=logits_of(5)).variance)
    z = q.sample((100_000,))
    assert_within(z, q.mean)
    assert_within((z - q.mean) ** 2, q.variance)


@KINDS
def test_soft_draws_have_no_moments_in_closed_form(family):
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match=f"no {name} in closed form"):
            getattr(family(logits_of(5)), name)
    with pytest.raises(NotImplementedError, match=f"{family.__name__} has no mean"):
        Conditional(family, MLP(3, [8]), 5).mean(torch.zeros(2, 3))


def test_discrete_score_of_soft_values():
    logits = logits_of(7, 4)
    q = GumbelSoftmax(logits, score="discrete")
    for value in (q.rsample(), simplex_points(7, classes=4)):
        torch.testing.assert_close(
            q.log_prob(value), (value * torch.log_softmax(logits, -1)).sum(-1)
        )
    assert not torch.equal(q.rsample(), q.rsample().round()), "the draws stay soft"
    bits = GumbelSigmoid(logits, score="discrete")
    for value in (bits.rsample(), torch.rand(7, 4, dtype=torch.float64)):
        expected = value * logits.sigmoid().log() + (1 - value) * (1 - logits.sigmoid()).log()
        torch.testing.assert_close(bits.log_prob(value), expected)


@KINDS
def test_the_rule_of_scoring_follows_the_draws_unless_given(family):
    assert family(logits_of(5)).score == "density"
    assert family(logits_of(5), hard=True).score == "discrete"
    assert family(logits_of(5), score="discrete").score == "discrete"
    assert (
        family(logits_of(5), score="discrete")
        .expand([3, *family(logits_of(5)).batch_shape])
        .score
        == "discrete"
    )


@KINDS
def test_arguments_out_of_range(family):
    logits = logits_of(5)
    with pytest.raises(
        ValueError, match="score='density' needs soft draws.* score='discrete' with hard=True"
    ):
        family(logits, hard=True, score="density")
    with pytest.raises(ValueError, match="score must be 'density' or 'discrete', got 'exact'"):
        family(logits, score="exact")
    with pytest.raises(ValueError, match="Either logits or probs must be given, got neither"):
        family()
    with pytest.raises(ValueError, match="Either logits or probs must be given, got both"):
        family(logits, probs=logits.softmax(-1))
    with pytest.raises(ValueError, match="temperature"):
        family(logits, temperature=0.0)
    with pytest.raises(ValueError, match="logits"):
        family(torch.full((5,), math.nan))
    with pytest.raises(ValueError, match="support"):
        family(logits).log_prob(torch.full((5,), 1.5, dtype=torch.float64))


@KINDS
def test_probabilities_out_of_range_are_an_error_as_with_torch(family):
    discrete = dist.OneHotCategorical if family is GumbelSoftmax else dist.Bernoulli
    wrong = torch.tensor([-0.5, 1.5])
    for cls in (discrete, family):
        with pytest.raises(ValueError, match="probs"):
            cls(probs=wrong)


# Shapes, spellings and types.


def test_shapes():
    q = GumbelSoftmax(torch.zeros(3, 5))
    assert (q.batch_shape, q.event_shape) == ((3,), (5,))
    assert q.rsample((2, 4)).shape == (2, 4, 3, 5)
    assert q.log_prob(q.rsample((2, 4))).shape == (2, 4, 3)
    assert q.expand([7, 3]).rsample((2,)).shape == (2, 7, 3, 5)
    assert q.to_event(1).event_shape == (3, 5) and q.to_event(1).log_prob(
        q.rsample((2,))
    ).shape == (2,)
    assert GumbelSoftmax(torch.zeros(5), temperature=torch.ones(4, 1)).expand(
        [4, 3]
    ).rsample().shape == (4, 3, 5)
    assert GumbelSoftmax(torch.zeros(3, 5), temperature=torch.ones(4, 1)).batch_shape == (4, 3)
    assert q.sample((2,)).requires_grad is False

    bits = GumbelSigmoid(torch.zeros(3, 5))
    assert (bits.batch_shape, bits.event_shape) == ((3, 5), ())
    assert bits.rsample((2,)).shape == (2, 3, 5) and bits.log_prob(
        bits.rsample((2,))
    ).shape == (2, 3, 5)
    assert bits.expand([7, 3, 5]).rsample((2,)).shape == (2, 7, 3, 5)
    assert bits.to_event(1).log_prob(bits.rsample((2,))).shape == (2, 3)
    assert GumbelSigmoid(torch.zeros(3, 5), temperature=torch.ones(4, 1, 1)).batch_shape == (
        4,
        3,
        5,
    )
    assert GumbelSigmoid(0.3).rsample((2,)).shape == (2,)


@KINDS
def test_expanding_changes_no_number(family):
    logits, tau = logits_of(3, 5), torch.tensor(0.3, dtype=torch.float64)
    q = family(logits, temperature=tau, validate_args=False)
    wide = q.expand([2, *q.batch_shape])
    torch.manual_seed(1)
    expected = q.rsample((2,))
    torch.manual_seed(1)
    y = wide.rsample()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(wide.log_prob(y), q.log_prob(expected))
    assert wide._validate_args is False and type(wide) is family
    with pytest.raises(RuntimeError):
        wide.expand([3, *q.batch_shape])


@KINDS
def test_a_temperature_for_each_row(family):
    logits, taus = logits_of(3, 5), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    given = taus if family is GumbelSoftmax else taus.unsqueeze(-1)
    q = family(logits, temperature=given)
    torch.manual_seed(2)
    y = q.rsample((4,))
    for row, tau in enumerate(taus.tolist()):
        alone = family(logits[row], temperature=tau)
        torch.testing.assert_close(
            q.log_prob(y.clone())[:, row], alone.log_prob(y[:, row].clone())
        )
        torch.manual_seed(2)
        redrawn = family(logits, temperature=tau).rsample((4,))
        torch.testing.assert_close(y[:, row], redrawn[:, row])


def test_probabilities_in_place_of_logits():
    probs = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]], dtype=torch.float64)
    y = simplex_points(2, classes=3)
    torch.testing.assert_close(
        GumbelSoftmax(probs=probs).log_prob(y), GumbelSoftmax(probs.log()).log_prob(y)
    )
    torch.testing.assert_close(GumbelSoftmax(probs=probs).probs, probs)
    torch.testing.assert_close(GumbelSoftmax(5 + probs.log()).probs, probs)
    torch.testing.assert_close(
        GumbelSigmoid(probs=probs).log_prob(y), GumbelSigmoid(probs.logit()).log_prob(y)
    )
    torch.testing.assert_close(GumbelSigmoid(probs.logit()).probs, probs)
    prior = Prior(GumbelSoftmax, 3, probs=probs[0], temperature=0.5, hard=True)
    torch.testing.assert_close(prior().mean, probs[0])
    assert not list(prior.parameters())


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_single_precision(family, dtype):
    logits = (
        logits_of(10, dtype=torch.float32).to(dtype).expand(2000, 10).clone().requires_grad_()
    )
    for temperature in (0.05, 2 / 3):
        q = family(logits, temperature=temperature, validate_args=False)
        y = q.rsample()
        assert y.dtype == dtype and y.isfinite().all() and (y > 0).all()
        assert recall(y).log.dtype == torch.float32
        assert len(recall(y).log[:, 0].unique()) > 1000, (
            "noise with 8 bits would repeat itself"
        )
        log_prob = q.log_prob(y)
        assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
        gradients = [
            torch.autograd.grad(v.sum(), logits, retain_graph=True)[0]
            for v in (y.float(), log_prob)
        ]
        assert all(g.isfinite().all() for g in gradients)
    z = family(logits, hard=True, validate_args=True).rsample()
    assert (
        z.dtype == dtype
        and family(logits, hard=True, validate_args=True).log_prob(z).isfinite().all()
    )
    probs = (
        logits[0].detach().float().softmax(-1)
        if family is GumbelSoftmax
        else logits[0].detach().float().sigmoid()
    )
    assert_within(z.detach().double(), probs)


def draw_and_score(family, hard):
    def run(logits):
        q = family(logits, temperature=0.5, hard=hard, validate_args=False)
        y = q.rsample()
        return y, q.log_prob(y)

    return run


@KINDS
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_runs_under_vmap_and_make_fx(family, hard):
    logits, run = logits_of(3, 4), draw_and_score(family, hard)
    y, log_prob = torch.vmap(run, randomness="different")(logits)
    expected = family(logits, temperature=0.5, hard=hard).log_prob(y)
    torch.testing.assert_close(log_prob, expected)
    slope = torch.vmap(torch.func.grad(lambda row: run(row)[1].sum()), randomness="different")(
        logits
    )
    assert slope.shape == logits.shape and slope.isfinite().all()

    graph = make_fx(run)(logits)
    assert_same_draws(graph, run, logits)
    assert not torch.equal(graph(logits)[0], graph(logits)[0]), (
        "a graph draws anew at every call"
    )


def assert_same_draws(program, run, logits):
    torch.manual_seed(3)
    expected = run(logits)
    torch.manual_seed(3)
    torch.testing.assert_close(program(logits), expected)


def test_compiles_in_one_graph():
    check_in_fresh_process(
        "from tests.distributions.test_relaxed import check_one_graph\ncheck_one_graph()"
    )


def check_one_graph():
    for family in (GumbelSoftmax, GumbelSigmoid):
        for hard in (False, True):
            logits, run = logits_of(3, 4), draw_and_score(family, hard)
            compiled = torch.compile(run, backend="eager", fullgraph=True)
            assert_same_draws(compiled, run, logits)


# In pairs.


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("shape", [(20, 10), (3, 4, 5), (10,)], ids=str)
def test_conditional_scores_each_row(shape, hard):
    q = Conditional(GumbelSoftmax, MLP(6, [8]), shape, hard=hard)
    context = torch.randn(7, 6)
    posterior = q(context)
    assert (posterior.batch_shape, posterior.event_shape) == ((7,), shape)
    z = posterior.rsample((2,))
    log_prob = q.log_prob(z, context)
    assert log_prob.shape == (2, 7)
    logits = posterior.base_dist.logits if len(shape) > 1 else posterior.logits
    assert logits.shape == (7, *shape)
    if hard:
        assert ((z == 0) | (z == 1)).all()
        expected = dist.OneHotCategorical(logits=logits).to_event(len(shape) - 1).log_prob(z)
    else:
        blocks = exact_log_density(logits.detach(), 2 / 3, (recall(z).log).detach())
        expected = blocks.flatten(2).sum(-1).float() if len(shape) > 1 else blocks.float()
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-3)
    log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in q.parameters())


@KINDS
def test_a_learned_temperature(family):
    """A learned constant of the family stays positive and gets the gradient of the
    temperature.
    """
    q = Conditional(family, MLP(6, [8]), (4, 3), temperature=nn.Parameter(torch.tensor(0.7)))
    assert "temperature learned" in repr(q)
    context = torch.randn(5, 6)
    assert float(q(context).base_dist.temperature.detach().flatten()[0]) == pytest.approx(0.7)
    q.log_prob(q(context).rsample(), context).sum().backward()
    gradient = q.free_temperature.grad
    assert gradient.isfinite().all() and gradient.abs() > 0
    with torch.no_grad():
        q.free_temperature -= 100.0
    assert (q(context).base_dist.temperature > 0).all()


def pair(family, hard, **options):
    shape = (4, 3)
    model = models.VAE(
        default_prior(family, shape, hard=hard, **options),
        Conditional(dist.Bernoulli, MLP(shape, [8]), 16),
    )
    return model, guides.VAE(Conditional(family, MLP(16, [8]), shape, hard=hard, **options))


@KINDS
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_schedule_moves_the_temperature_of_both_halves(family, hard):
    seen = []

    class Spy(ELBO):
        def loss_and_terms(self, model, guide, *args):
            x = args[0]
            temperatures = (
                guide.posterior(x).base_dist.temperature,
                model.prior().base_dist.temperature,
            )
            seen.append([float(t.flatten()[0]) for t in temperatures])
            assert all((t == t.flatten()[0]).all() for t in temperatures)
            return super().loss_and_terms(model, guide, *args)

    model, guide = pair(family, hard)
    x = torch.rand(30, 16).round()
    fit(
        model, guide, x, loss=Spy(), epochs=2, batch_size=10, progress=False, seed=0,
        schedules={"temperature": lambda step: 1.0 - step / 10},
    )  # fmt: skip
    assert np.allclose(seen, [[1.0 - step / 10] * 2 for step in range(6)])


@pytest.mark.parametrize("options", [{}, {"hard": True}, {"score": "discrete"}], ids=str)
def test_bounds_of_a_pair_follow_its_scores(options):
    """With densities the KL is log q - log p of the draw, with discrete scores that of the
    one-hot variables in closed form.
    """
    options = {"hard": False, **options}
    model, guide = pair(GumbelSoftmax, **options)
    with_random_heads(guide)
    x = torch.rand(5, 16).round()
    terms = [ELBO().loss_and_terms(model, guide, x)[1]["kl"] for _ in range(2)]
    q, p = guide.posterior(x).base_dist, model.prior().base_dist
    discrete = options["hard"] or options.get("score") == "discrete"
    assert (terms[0] == terms[1]) == discrete
    if discrete:
        categorical = (
            dist.OneHotCategorical(logits=q.logits),
            dist.OneHotCategorical(logits=p.logits),
        )
        torch.testing.assert_close(
            terms[0], torch.distributions.kl_divergence(*categorical).sum().detach()
        )


def test_weights_of_a_relaxed_pair_are_unbiased():
    """E[w] = p(x) with densities in both halves: the relaxed model is a proper one."""
    prior = GumbelSigmoid(torch.tensor(-0.4, dtype=torch.float64), temperature=0.6)
    x = torch.tensor([0.9, 0.1, -0.6], dtype=torch.float64)
    guide_logits = torch.tensor([0.8, -0.2, -1.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", prior)
            pyro.sample("x", dist.Normal(2 * y - 1, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", GumbelSigmoid(guide_logits, temperature=0.5))

    def joint(t, n):  # over the prior's logistic noise
        y = special.expit((-0.4 + t) / 0.6)
        return stats.norm.pdf(x[n].item(), 2 * y - 1, 0.5) * stats.logistic.pdf(t)

    exact = [
        integrate.quad(joint, -40, 40, args=(n,), limit=200, points=[0.4])[0] for n in range(3)
    ]
    weights = log_weights(model, guide, x, num_particles=100_000).exp()
    assert_within(weights, exact)


def test_draws_in_half_precision_pass_their_own_validation():
    q = GumbelSoftmax(torch.randn(50, 10).bfloat16(), temperature=0.5, validate_args=True)
    assert q.log_prob(q.rsample()).isfinite().all()
