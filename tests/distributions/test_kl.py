"""Closed forms of the KL, against Monte Carlo or quadrature; accuracy in single precision."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special
from torch import distributions as td
from torch import nn
from torch.distributions import kl_divergence
from torch.distributions.kl import _KL_REGISTRY

from tarspyro import Conditional
from tarspyro.distributions import (
    Beta,
    Chi2,
    Concatenate,
    Dirichlet,
    Gamma,
    GumbelSigmoid,
    GumbelSoftmax,
    InverseGamma,
    Kumaraswamy,
    StickBreaking,
    StickBreakingBeta,
    StickBreakingKumaraswamy,
    StudentT,
    VonMisesFisher,
    default_prior,
)
from tarspyro.infer import ELBO
from tarspyro.nn import MLP

from ..programs import assert_within, with_random_heads


def of(*values):
    return torch.tensor(values, dtype=torch.float64)


def matrix(seed):
    """A lower triangular matrix whose determinant is not one."""
    below = torch.randn(
        3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).tril(-1)
    return 0.5 * below + of(0.5, 1.0, 1.7).diag()


SMALL = of(0.05, 7.0)
NORMAL = dist.Normal(of(0.5, -1.0, 2.0), of(0.3, 1.0, 2.0))
FULL = dist.MultivariateNormal(of(0.5, -1.0, 2.0), scale_tril=matrix(0))
CATEGORIES = of(0.1, 0.2, 0.7).log()
BITS = of(-2.0, 0.3, 4.0)
DIRECTIONS = nn.functional.normalize(matrix(2), dim=-1)[:2]

# A guide's distribution and a prior's.
PAIRS = {
    "Normal": (NORMAL, dist.Normal(of(0.0), of(1.5))),
    "Normal, to_event": (
        NORMAL.to_event(1),
        dist.Normal(torch.zeros(3).double(), 1.0).to_event(1),
    ),
    "MultivariateNormal": (
        FULL,
        dist.MultivariateNormal(of(0.0, 1.0, 0.0), scale_tril=matrix(1)),
    ),
    "MultivariateNormal, Normal": (
        FULL,
        dist.Normal(of(0.0, 1.0, 0.0), of(0.5, 1.0, 3.0)).to_event(1),
    ),
    "Normal, MultivariateNormal": (
        NORMAL.to_event(1),
        dist.MultivariateNormal(of(0.0, 1.0, 0.0), scale_tril=matrix(1)),
    ),
    "Laplace": (dist.Laplace(of(0.5, -1.0), of(0.3, 2.0)), dist.Laplace(of(0.0), of(1.0))),
    "LogNormal": (
        dist.LogNormal(of(0.5, -1.0), of(0.3, 1.0)),
        dist.LogNormal(of(0.0), of(1.0)),
    ),
    "Bernoulli": (dist.Bernoulli(logits=BITS), dist.Bernoulli(logits=of(0.0, 0.0, 0.0))),
    "Categorical": (
        dist.Categorical(logits=CATEGORIES),
        dist.Categorical(logits=of(0.0, 0.0, 0.0)),
    ),
    "OneHotCategorical": (
        dist.OneHotCategorical(logits=CATEGORIES),
        dist.OneHotCategorical(logits=of(1.0, 0.0, 0.0)),
    ),
    "Gamma": (Gamma(SMALL, of(2.0, 0.1)), Gamma(of(1.0), of(1.0))),
    "Gamma, small prior": (Gamma(SMALL, of(2.0)), Gamma(of(0.05), of(0.5))),
    "Gamma, Pyro's": (Gamma(of(3.0), of(2.0)), dist.Gamma(of(1.0), of(1.0))),
    "Beta": (Beta(SMALL, SMALL.flip(0)), Beta(of(1.0), of(1.0))),
    "Beta, both small": (Beta(of(0.05, 0.05), of(0.05, 1.0)), Beta(of(0.4), of(0.05))),
    "Beta, Pyro's": (Beta(of(2.0), of(3.0)), dist.Beta(of(1.0), of(1.0))),
    "Dirichlet": (Dirichlet(of(0.05, 7.0, 1.0)), Dirichlet(torch.ones(3).double())),
    "Dirichlet, small": (
        Dirichlet(torch.full((3,), 0.05).double()),
        Dirichlet(of(0.05, 0.4, 1.0)),
    ),
    "Dirichlet, Pyro's": (
        Dirichlet(of(0.5, 1.0, 3.0)),
        dist.Dirichlet(torch.ones(3).double()),
    ),
    "Chi2": (Chi2(of(0.1, 7.0)), Chi2(of(2.0))),
    "Chi2, Gamma": (Chi2(of(7.0)), Gamma(of(1.0), of(1.0))),
    "InverseGamma": (InverseGamma(SMALL, of(2.0)), InverseGamma(of(1.0), of(1.0))),
    "InverseGamma, Pyro's": (
        dist.InverseGamma(of(3.0), of(2.0)),
        dist.InverseGamma(of(1.0), of(1.0)),
    ),
    "HalfCauchy": (dist.HalfCauchy(of(0.5, 2.0)), dist.HalfCauchy(of(1.0))),
    "Kumaraswamy": (Kumaraswamy(of(0.1, 3.0), of(0.2, 50.0)), Kumaraswamy(of(1.0), of(1.0))),
    "Kumaraswamy, other powers": (
        Kumaraswamy(of(0.3, 2.0, 3.0), of(0.5, 5.0, 0.4)),
        Kumaraswamy(of(2.5), of(3.0)),
    ),
    "Kumaraswamy, Beta": (Kumaraswamy(of(0.1, 3.0), of(0.2, 50.0)), Beta(of(1.5), of(4.0))),
    "Kumaraswamy, Pyro's Beta": (
        Kumaraswamy(of(0.7, 2.0), of(3.0)),
        dist.Beta(of(1.0), of(5.0)),
    ),
    "StickBreakingKumaraswamy": (
        StickBreakingKumaraswamy(of(0.5, 1.0, 2.0), of(3.0, 1.5, 0.8)),
        StickBreakingKumaraswamy(of(1.0, 1.0, 1.0), of(5.0, 5.0, 5.0)),
    ),
    "StickBreakingKumaraswamy, StickBreakingBeta": (
        StickBreakingKumaraswamy(of(0.5, 2.0), of(3.0, 0.8)),
        StickBreakingBeta(of(1.0, 1.0), of(2.0, 1.0)),
    ),
    "StickBreakingBeta": (
        StickBreakingBeta(of(0.05, 2.0), of(3.0, 0.05)),
        StickBreakingBeta(of(1.0, 1.0), of(5.0, 5.0)),
    ),
    "GumbelSoftmax, hard": (
        GumbelSoftmax(CATEGORIES, hard=True),
        GumbelSoftmax(of(1.0, 0.0, 0.0), hard=True),
    ),
    "GumbelSoftmax, OneHotCategorical": (
        GumbelSoftmax(CATEGORIES, hard=True),
        dist.OneHotCategorical(logits=of(1.0, 0.0, 0.0)),
    ),
    "GumbelSigmoid, hard": (GumbelSigmoid(BITS, hard=True), GumbelSigmoid(of(1.0), hard=True)),
    "GumbelSigmoid, Bernoulli": (
        GumbelSigmoid(BITS, hard=True),
        dist.Bernoulli(logits=of(1.0)),
    ),
    "VonMisesFisher": (
        VonMisesFisher(DIRECTIONS, of(0.3, 20.0)),
        VonMisesFisher(DIRECTIONS.flip(0), of(2.0)),
    ),
    "Concatenate": (
        Concatenate([NORMAL.to_event(1), Gamma(SMALL, of(2.0)).to_event(1)]),
        Concatenate(
            [
                dist.Normal(torch.zeros(3).double(), 1.0).to_event(1),
                Gamma(torch.ones(2).double(), of(1.0)).to_event(1),
            ]
        ),
    ),
    "to_event of a score carrier": (
        Gamma(SMALL, of(2.0)).to_event(1),
        Gamma(of(1.0, 1.0), of(1.0)).to_event(1),
    ),
}
EACH = pytest.mark.parametrize("q, p", PAIRS.values(), ids=PAIRS)


@EACH
def test_against_a_million_draws(q, p):
    kl = kl_divergence(q, p)
    assert kl.shape == torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    ratios = []
    for _ in range(50):  # small tables stay in the cache
        z = q.sample((20_000,))
        ratios.append(q.log_prob(z) - p.log_prob(z))
    assert_within(torch.cat(ratios), kl)


@EACH
def test_of_equal_distributions_is_zero(q, p):
    torch.testing.assert_close(
        kl_divergence(q, q), torch.zeros(q.batch_shape).double(), rtol=0, atol=1e-12
    )


def test_every_closed_form_of_ours_is_among_them():
    ours = [
        key
        for key, rule in _KL_REGISTRY.items()
        if rule.__module__ == "tarspyro.distributions.kl"
    ]
    assert len(ours) >= 13
    for q_type, p_type in ours:
        covered = any(
            issubclass(type(q), q_type) and issubclass(type(p), p_type)
            for q, p in PAIRS.values()
        )
        assert covered, (q_type, p_type)


DEFAULTS = {
    "Normal": (dist.Normal, 2, {}),
    "MultivariateNormal": (dist.MultivariateNormal, 2, {}),
    "Laplace": (dist.Laplace, 2, {}),
    "LogNormal": (dist.LogNormal, 2, {}),
    "Gamma": (Gamma, 2, {}),
    "Pyro's Gamma": (dist.Gamma, 2, {}),
    "Beta": (Beta, 2, {}),
    "Pyro's Beta": (dist.Beta, 2, {}),
    "Dirichlet": (Dirichlet, 3, {}),
    "Pyro's Dirichlet": (dist.Dirichlet, 3, {}),
    "Chi2": (Chi2, 2, {}),
    "InverseGamma": (InverseGamma, 2, {}),
    "Kumaraswamy": (Kumaraswamy, 2, {}),
    "StickBreakingKumaraswamy": (StickBreakingKumaraswamy, 4, {}),
    "StickBreakingBeta": (StickBreakingBeta, 4, {}),
    "Bernoulli": (dist.Bernoulli, 2, {}),
    "Categorical": (dist.Categorical, 2, {"param_shapes": {"logits": (2, 4)}}),
    "OneHotCategorical": (dist.OneHotCategorical, (2, 3), {}),
    "GumbelSoftmax": (GumbelSoftmax, (2, 3), {"hard": True}),
    "GumbelSoftmax, discrete": (GumbelSoftmax, (2, 3), {"score": "discrete"}),
    "GumbelSigmoid": (GumbelSigmoid, 2, {"hard": True}),
}


@pytest.mark.parametrize("family, shape, options", DEFAULTS.values(), ids=DEFAULTS)
def test_of_a_conditional_to_its_default_prior(family, shape, options):
    """One number for each row, summed over the event, as a bound uses it."""
    q = with_random_heads(Conditional(family, MLP(4, [8]), shape, **options))
    prior, context = default_prior(family, shape, **options), torch.randn(5, 4)
    kl = q.kl(prior, context)
    assert kl.shape == (5,) and (kl > 0).all()
    kl.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in q.parameters())
    if options.get("score") == "discrete" or family in (dist.Gamma, dist.Beta, dist.Dirichlet):
        return  # draws that are not those of the score, and Pyro's draws, which round to 0 and 1
    posterior = q(context)
    z = posterior.sample((20_000,))
    assert_within(
        (posterior.log_prob(z) - prior().log_prob(z)).detach(), kl.detach(), errors=5
    )


def test_one_number_for_each_row():
    """Batch dimensions are kept and broadcast, and events are summed."""
    q = Gamma(torch.rand(5, 3).double() + 0.5, torch.rand(3).double() + 0.5)
    p = Gamma(of(1.0), of(1.0))
    kl = kl_divergence(q, p)
    assert kl.shape == (5, 3)
    wide = p.expand([5, 3])
    torch.testing.assert_close(kl_divergence(q.to_event(1), wide.to_event(1)), kl.sum(-1))
    torch.testing.assert_close(kl_divergence(q.to_event(2), wide.to_event(2)), kl.sum())
    for row in range(5):
        torch.testing.assert_close(
            kl_divergence(Gamma(q.concentration[row], q.rate[row]), p), kl[row]
        )
    sticks = StickBreakingBeta(
        torch.rand(5, 3).double() + 0.5, torch.rand(5, 3).double() + 0.5
    )
    prior = StickBreakingBeta(torch.ones(3).double(), torch.ones(3).double())
    assert kl_divergence(sticks, prior).shape == (5,)
    assert kl_divergence(
        Dirichlet(torch.rand(5, 3).double() + 0.5), Dirichlet(torch.ones(3).double())
    ).shape == (5,)
    full = dist.MultivariateNormal(torch.zeros(5, 3).double(), torch.eye(3).double())
    assert kl_divergence(
        full, dist.Normal(torch.zeros(3).double(), 1.0).to_event(1)
    ).shape == (5,)
    soft = GumbelSoftmax(torch.randn(5, 2, 3), score="discrete").to_event(1)
    hot = dist.OneHotCategorical(logits=torch.zeros(2, 3)).to_event(1)
    assert kl_divergence(soft, hot).shape == (5,)


FAMILIES = {
    "Gamma": lambda a, b: Gamma(a, b),
    "InverseGamma": lambda a, b: InverseGamma(a, b),
    "Beta": lambda a, b: Beta(a, b),
    "Dirichlet": lambda a, b: Dirichlet(torch.stack([a, b, a * b], -1)),
    "Kumaraswamy": lambda a, b: Kumaraswamy(a, b),
    "GumbelSigmoid": lambda a, b: GumbelSigmoid(a.log() - b, hard=True),
    "GumbelSoftmax": lambda a, b: GumbelSoftmax(torch.stack([a.log(), b, a], -1), hard=True),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_is_never_negative(family):
    """Random parameters from 0.01 to 100, and close pairs, for which large numbers cancel."""
    parameters = 10 ** (4 * torch.rand(4, 20_000, dtype=torch.float64) - 2)
    parameters[2:, :10_000] = parameters[:2, :10_000] * (
        1 + 1e-3 * torch.rand(2, 10_000, dtype=torch.float64)
    )
    kl = kl_divergence(family(*parameters[:2]), family(*parameters[2:]))
    assert kl.isfinite().all()
    assert (kl >= -1e-9).all(), kl.min()


# Kumaraswamy, by quadrature.


def log1mexp(log):
    with np.errstate(divide="ignore"):
        return np.where(log > -math.log(2), np.log(-np.expm1(log)), np.log1p(-np.exp(log)))


# The trapezoid rule over the log-odds of u = (1 - x^a)^b, where the integrand is smooth and
# falls like exp(-|t|).
ODDS = np.arange(-60, 60, 0.01)


def kumaraswamy_kl(a, b, log_density):
    """E_q[log q(x) - log p(x)], with log p computed from log x and log(1 - x)."""
    log_power = -np.logaddexp(0, -ODDS) / b  # log(1 - x^a)
    log = log1mexp(log_power) / a
    # Next to one, 1 - x is (1 - x^a) / a to the last digit.
    log1m = np.where(
        log_power < -50, log_power - math.log(a), log1mexp(np.minimum(log, -1e-300))
    )
    log_q = math.log(a) + math.log(b) + (a - 1) * log + (b - 1) * log_power
    return (
        np.sum((log_q - log_density(log, log1m)) * special.expit(ODDS) * special.expit(-ODDS))
        * 0.01
    )


def log_beta(alpha, beta):
    return lambda log, log1m: (
        (alpha - 1) * log + (beta - 1) * log1m - special.betaln(alpha, beta)
    )


@pytest.mark.parametrize("alpha, beta", [(1.0, 5.0), (0.3, 0.5), (4.0, 2.0)])
def test_kumaraswamy_to_beta_against_quadrature(alpha, beta):
    """The published series (Nalisnick and Smyth 2017) does not converge in any number of terms
    at b = 0.05.
    """
    for a in (0.05, 0.3, 1.0, 4.0, 50.0):
        for b in (0.05, 0.3, 1.0, 4.0, 50.0):
            exact = kumaraswamy_kl(a, b, log_beta(alpha, beta))
            ours = kl_divergence(Kumaraswamy(of(a), of(b)), Beta(of(alpha), of(beta))).item()
            assert ours == pytest.approx(exact, rel=1e-6, abs=1e-9), (a, b)


def test_kumaraswamy_to_kumaraswamy_against_quadrature():
    for alpha, beta in ((1.0, 1.0), (0.3, 0.5), (4.0, 20.0)):
        for a in (0.05, 0.3, 1.0, 4.0, 50.0):
            for b in (0.05, 0.3, 1.0, 4.0, 50.0):

                def log_density(log, log1m, alpha=alpha, beta=beta):
                    # log(1 - x^alpha), which next to one is log(1 - x) + log(alpha)
                    power = np.where(
                        log1m < -50,
                        log1m + math.log(alpha),
                        log1mexp(np.minimum(alpha * log, -1e-300)),
                    )
                    return math.log(alpha * beta) + (alpha - 1) * log + (beta - 1) * power

                exact = kumaraswamy_kl(a, b, log_density)
                p = Kumaraswamy(of(alpha), of(beta))
                ours = kl_divergence(Kumaraswamy(of(a), of(b)), p).item()
                assert ours == pytest.approx(exact, rel=1e-6, abs=1e-9), (a, b, alpha, beta)


@pytest.mark.parametrize("a, b, value", [(0.5, 0.8, 1.897), (1.5, 2.0, 1.399)])
def test_kumaraswamy_to_beta_at_two_known_points(a, b, value):
    kl = kl_divergence(Kumaraswamy(of(a), of(b)), Beta(of(1.0), of(5.0)))
    assert kl.item() == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("prior", ["beta", "kumaraswamy"])
def test_kumaraswamy_in_single_precision(prior):
    """Down to b = 0.05, where (1 - x^a) is less than the smallest single number in one draw of
    80.
    """
    a, b = torch.meshgrid(*[torch.tensor([0.05, 0.3, 1.0, 4.0, 50.0])] * 2, indexing="ij")
    a, b = a.flatten(), b.flatten()
    cls = Beta if prior == "beta" else Kumaraswamy
    single = kl_divergence(Kumaraswamy(a, b), cls(torch.tensor(1.5), torch.tensor(5.0)))
    double = kl_divergence(Kumaraswamy(a.double(), b.double()), cls(of(1.5), of(5.0)))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_gradients_of_kumaraswamy_divergences_equal_differences():
    a, b = (
        value.requires_grad_() for value in (of(0.1, 1.0, 3.0, 40.0), of(0.2, 5.0, 0.4, 30.0))
    )
    for p in (Beta(of(1.5), of(4.0)), Kumaraswamy(of(2.5), of(3.0))):
        assert torch.autograd.gradcheck(
            lambda a, b, p=p: kl_divergence(Kumaraswamy(a, b), p), (a, b)
        )


# Single precision at large concentrations.

LARGE = {
    "Gamma": (lambda cls, a, b: cls(a, b), Gamma, td.Gamma),
    "Beta": (lambda cls, a, b: cls(a, b), Beta, td.Beta),
    "Dirichlet": (
        lambda cls, a, b: cls(torch.stack([a, b, a + b], -1)),
        Dirichlet,
        td.Dirichlet,
    ),
}


@pytest.mark.parametrize("build, ours, theirs", LARGE.values(), ids=LARGE)
def test_single_precision_at_ten_thousand_is_better_than_torchs(build, ours, theirs):
    """For close pairs torch subtracts two lgamma(1e4) = 8e4, which leaves noise of 1e-2; the
    KL may be 1e-2 itself.
    """
    numbers = (1e4 * (1 + 0.1 * torch.rand(4, 1000))).float()

    def divergences(cls, dtype):
        q, p = (build(cls, *pair.to(dtype)) for pair in numbers.split(2))
        return kl_divergence(q, p).double()

    exact = divergences(ours, torch.float64)
    torch.testing.assert_close(exact, divergences(theirs, torch.float64), rtol=1e-6, atol=1e-8)
    off, torchs = ((divergences(cls, torch.float32) - exact).abs() for cls in (ours, theirs))
    assert off.mean() < torchs.mean() / 10 and off.max() < torchs.max() / 10


@pytest.mark.parametrize("build, ours, theirs", LARGE.values(), ids=LARGE)
def test_single_precision_at_ten_thousand_against_the_default_prior(build, ours, theirs):
    """The KL of a confident posterior: (a - 1)(digamma(a) - log a) must not cancel either."""
    numbers = (10 ** (2 + 2 * torch.rand(2, 1000))).float()

    def divergences(cls, dtype):
        a, b = numbers.to(dtype)
        return kl_divergence(
            build(cls, a, b), build(cls, torch.ones_like(a), torch.ones_like(b))
        ).double()

    exact = divergences(ours, torch.float64)
    torch.testing.assert_close(exact, divergences(theirs, torch.float64), rtol=1e-6, atol=1e-8)
    off, torchs = (
        (divergences(cls, torch.float32) - exact).abs() / exact for cls in (ours, theirs)
    )
    assert off.max() < torchs.max()
    assert off.max() < 1e-5, off.max()


# Refusals.


def test_a_density_and_a_probability_do_not_mix():
    logits, bits = torch.zeros(5, 3), torch.zeros(5)
    dense, discrete = GumbelSoftmax(logits), GumbelSoftmax(logits, hard=True)
    dense_bit, discrete_bit = GumbelSigmoid(bits), GumbelSigmoid(bits, score="discrete")
    for q, p in (
        (dense, discrete),
        (discrete, dense),
        (dense, dist.OneHotCategorical(logits=logits)),
        (dense_bit, discrete_bit),
        (discrete_bit, dense_bit),
        (dense_bit, dist.Bernoulli(logits=bits)),
        (dense.to_event(1), discrete.to_event(1)),
    ):
        with pytest.raises(
            ValueError,
            match="must have the same score, got score=.* a density cannot be compared",
        ):
            kl_divergence(q, p)
    for q in (dense, dense_bit, dense.to_event(1)):
        with pytest.raises(NotImplementedError, match="no closed form"):
            kl_divergence(q, q)


def test_a_bound_refuses_the_mixture_and_samples_the_densities():
    def program(distribution):
        def run():
            with pyro.plate("data", 5):
                pyro.sample("z", distribution)

        return run

    dense, discrete = (
        GumbelSoftmax(torch.zeros(5, 3)),
        GumbelSoftmax(torch.zeros(5, 3), hard=True),
    )

    def model(prior):
        def run():
            program(prior)()
            pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=torch.zeros(()))

        return run

    with pytest.raises(ValueError, match="must have the same score"):
        ELBO().loss(model(dense), program(discrete))
    other = GumbelSoftmax(torch.ones(5, 3), temperature=0.5)
    _, terms = ELBO().loss_and_terms(model(dense), program(other))
    _, more = ELBO().loss_and_terms(model(dense), program(other))
    assert terms["kl"] != more["kl"]  # log q - log p of a draw


def test_without_a_closed_form_it_raises():
    normal = dist.Normal(torch.zeros(3), 1.0)
    full = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    for q, p in (
        (StudentT(torch.tensor(3.0)), StudentT(torch.tensor(4.0))),
        (Beta(torch.ones(3), torch.ones(3)), Kumaraswamy(torch.ones(3), torch.ones(3))),
        (full, dist.Laplace(torch.zeros(3), 1.0).to_event(1)),
        (full, dist.Normal(torch.zeros(2, 3), 1.0).to_event(2)),
        (
            StickBreaking(Beta(torch.ones(3), torch.ones(3)).to_event(1)),
            Dirichlet(torch.ones(4)),
        ),
        (normal.to_event(1), GumbelSoftmax(torch.zeros(3))),
    ):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)
