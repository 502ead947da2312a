"""Exact KLs, against enumeration, quadrature or draws; rules that ``exact_kl`` does not use."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints, kl_divergence, transforms
from torch.distributions.kl import _KL_REGISTRY

from tarspyro.distributions import (
    Beta,
    Concatenate,
    Dirichlet,
    Gamma,
    GumbelSigmoid,
    GumbelSoftmax,
    InverseGamma,
    Kumaraswamy,
    StickBreaking,
    StickBreakingBeta,
    VonMisesFisher,
)
from tarspyro.distributions.kl import exact_kl

from ..programs import assert_within


def of(*values):
    return torch.tensor(values, dtype=torch.float64)


# Families of one variable: parameters of three members each, among them those that meet the
# edges of other supports.
UNIVARIATE = {
    dist.Bernoulli: {"probs": of(0.2, 0.5, 0.9)},
    dist.Beta: {"concentration1": of(0.8, 1.0, 3.0), "concentration0": of(2.0, 1.0, 1.5)},
    dist.Binomial: {"total_count": of(3.0, 4.0, 4.0), "probs": of(0.2, 0.5, 0.9)},
    dist.Categorical: {"logits": of([0.0, 1.0, -1.0], [0.0, 0.0, 0.0], [2.0, -2.0, 0.5])},
    dist.Cauchy: {"loc": of(0.0, 0.5, -1.0), "scale": of(1.0, 0.5, 2.0)},
    dist.ContinuousBernoulli: {"probs": of(0.2, 0.55, 0.9)},
    dist.Exponential: {"rate": of(0.5, 1.0, 3.0)},
    dist.Gamma: {"concentration": of(0.7, 1.0, 4.0), "rate": of(2.0, 1.0, 3.0)},
    dist.Geometric: {"probs": of(0.2, 0.5, 0.8)},
    dist.Gumbel: {"loc": of(0.0, 0.5, -1.0), "scale": of(1.0, 0.6, 0.8)},
    dist.HalfCauchy: {"scale": of(0.5, 1.0, 2.0)},
    dist.HalfNormal: {"scale": of(0.5, 1.0, 2.0)},
    dist.InverseGamma: {"concentration": of(3.0, 1.5, 4.0), "rate": of(2.0, 1.0, 3.0)},
    dist.Laplace: {"loc": of(0.0, 0.5, -1.0), "scale": of(1.0, 0.5, 2.0)},
    dist.LogNormal: {"loc": of(0.0, 0.5, -1.0), "scale": of(1.0, 0.5, 0.7)},
    dist.Normal: {"loc": of(0.0, 0.5, -1.0), "scale": of(1.0, 0.5, 2.0)},
    dist.Pareto: {"scale": of(1.0, 0.5, 1.5), "alpha": of(3.0, 4.0, 5.0)},
    dist.Poisson: {"rate": of(0.5, 1.0, 6.0)},
    dist.Uniform: {"low": of(0.0, 0.25, -1.0), "high": of(1.0, 0.75, 2.0)},
    Beta: {"concentration1": of(0.8, 1.0, 3.0), "concentration0": of(2.0, 1.0, 1.5)},
    Gamma: {"concentration": of(0.7, 1.0, 4.0), "rate": of(2.0, 1.0, 3.0)},
    InverseGamma: {"concentration": of(3.0, 1.5, 4.0), "rate": of(2.0, 1.0, 3.0)},
    Kumaraswamy: {"concentration1": of(0.8, 1.0, 3.0), "concentration0": of(2.0, 1.0, 1.5)},
}


def members(family, index, **extra):
    """Some of the family's members."""
    return family(
        **{name: value[index] for name, value in UNIVARIATE[family].items()}, **extra
    )


def truth(q, p):
    """E_q[log q - log p] by a sum over all values or the trapezoid rule; infinite if q has
    mass outside of p's support.
    """
    values, log_weights = points_of(q)
    log_q = q.log_prob(values)
    mass = (log_q + log_weights).exp()
    inside = p.support.check(values)
    log_p = p.log_prob(torch.where(inside, values, p.sample()))
    terms = torch.where(mass > 0, mass * (torch.where(mass > 0, log_q, 0.0) - log_p), 0.0)
    outside = torch.where(inside, 0.0, mass).sum(0)
    return torch.where(outside > 1e-9, torch.inf, terms.sum(0))


def points_of(q):
    """All values of a discrete variable, or a grid of a continuous one, with the log weight of
    each.
    """
    if q.has_enumerate_support:
        return q.enumerate_support(), torch.zeros(())
    if q.support.is_discrete:
        return torch.arange(400.0, dtype=torch.float64).unsqueeze(-1), torch.zeros(())
    support, t = q.support, torch.linspace(-1, 1, 20_001, dtype=torch.float64).unsqueeze(-1)
    if support is constraints.real:
        span = 40.0 if isinstance(q, td.Cauchy) else 6.0
        points = torch.sinh(span * t)
        slopes = torch.cosh(span * t)
    elif hasattr(support, "upper_bound"):
        span = 36.0
        width = support.upper_bound - support.lower_bound
        points = support.lower_bound + width * torch.sigmoid(span * t)
        slopes = width * torch.sigmoid(span * t) * torch.sigmoid(-span * t)
    else:
        span = 45.0
        points = support.lower_bound + torch.exp(span * t)
        slopes = torch.exp(span * t).expand_as(points)
    return points, (slopes * span / 10_000).log()


def share_an_edge(q, p):
    """Whether the supports share an end and one of the ends moves, so that there is no
    derivative.
    """
    shared = torch.zeros(9, dtype=torch.bool)
    if isinstance(q, (td.Uniform, td.Pareto)) or isinstance(p, (td.Uniform, td.Pareto)):
        for name in ("lower_bound", "upper_bound"):
            if hasattr(q.support, name) and hasattr(p.support, name):
                shared |= torch.as_tensor(getattr(q.support, name) == getattr(p.support, name))
    return shared


NINE = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
RULES = [
    (q, p)
    for q, p in itertools.product(UNIVARIATE, UNIVARIATE)
    if exact_kl(members(q, 0), members(p, 0)) is not None
]
EACH_RULE = pytest.mark.parametrize(
    "q, p", RULES, ids=lambda family: family.__module__.split(".")[0] + "." + family.__name__
)


@EACH_RULE
def test_of_one_variable_against_its_definition(q, p):
    """For three members q and three members p each."""
    exact = truth(members(q, NINE[0]), members(p, NINE[1], validate_args=False))
    torch.testing.assert_close(
        exact_kl(members(q, NINE[0]), members(p, NINE[1])), exact, rtol=1e-5, atol=1e-6
    )


@EACH_RULE
def test_of_one_variable_has_the_gradient_of_its_differences(q, p):
    """For both q and p; torch's rule for all exponential families has no gradient for q."""
    nine = members(q, NINE[0]), members(p, NINE[1])
    row, column = NINE[:, exact_kl(*nine).isfinite() & ~share_an_edge(*nine)]
    if not len(row):
        return
    of_q, of_p = (
        {name: value[index].requires_grad_() for name, value in UNIVARIATE[family].items()}
        for family, index in ((q, row), (p, column))
    )

    def divergence(*values):
        named_q = dict(zip(of_q, values, strict=False))
        named_p = dict(zip(of_p, values[len(of_q) :], strict=True))
        return exact_kl(q(**named_q), p(**named_p))

    assert torch.autograd.gradcheck(divergence, (*of_q.values(), *of_p.values()))


# Families of several variables, by draws.


def lower(seed, size=3):
    """A lower triangular matrix whose determinant is not one."""
    below = torch.randn(
        size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).tril(-1)
    return 0.5 * below + torch.linspace(0.5, 1.7, size, dtype=torch.float64).diag()


LOC = of(0.5, -1.0, 2.0)
NORMAL = dist.Normal(LOC, of(0.3, 1.0, 2.0)).to_event(1)
WIDE = dist.Normal(of(0.0, 1.0, 0.0), of(0.5, 1.0, 3.0)).to_event(1)
FULL = dist.MultivariateNormal(LOC, scale_tril=lower(0))
OTHER = dist.MultivariateNormal(of(0.0, 1.0, 0.0), scale_tril=lower(1))
LOW_RANK = dist.LowRankMultivariateNormal(LOC, lower(2)[:, :1], of(0.5, 1.0, 2.0))
THIN = dist.LowRankMultivariateNormal(of(0.0, 1.0, 0.0), lower(3)[:, 2:], of(1.0, 0.5, 2.0))
MASK = torch.tensor([True, False, True])
STRETCH = transforms.AffineTransform(1.0, of(0.5, 2.0, 3.0))
LOGITS = of(0.1, 0.2, 0.7).log()
SQUARE = dist.Normal(torch.zeros(2, 3).double(), 1.0)

MULTIVARIATE = {
    "Independent": (NORMAL, WIDE),
    "Independent, Full": (NORMAL, OTHER),
    "Full, Independent": (FULL, WIDE),
    "Full": (FULL, OTHER),
    "Full, low rank": (FULL, THIN),
    "Low rank, full": (LOW_RANK, OTHER),
    "Low rank": (LOW_RANK, THIN),
    "OMTMultivariateNormal": (dist.OMTMultivariateNormal(LOC, lower(0)), OTHER),
    "Independent of independent": (NORMAL.expand([2]).to_event(1), SQUARE.to_event(2)),
    "Independent, one more dimension": (FULL.expand([2]).to_event(1), SQUARE.to_event(2)),
    "Dirichlet": (dist.Dirichlet(of(0.5, 1.0, 3.0)), dist.Dirichlet(torch.ones(3).double())),
    "Dirichlet of ours": (
        Dirichlet(of(0.5, 1.0, 3.0)),
        dist.Dirichlet(torch.ones(3).double()),
    ),
    "OneHotCategorical": (
        dist.OneHotCategorical(logits=LOGITS),
        dist.OneHotCategorical(logits=of(1.0, 0.0, 0.0)),
    ),
    "GumbelSoftmax": (
        GumbelSoftmax(LOGITS, hard=True),
        dist.OneHotCategorical(logits=of(1.0, 0.0, 0.0)),
    ),
    "GumbelSoftmax of both": (
        GumbelSoftmax(LOGITS, hard=True),
        GumbelSoftmax(of(1.0, 0.0, 0.0), hard=True),
    ),
    "GumbelSigmoid": (GumbelSigmoid(LOGITS, hard=True), dist.Bernoulli(logits=of(1.0))),
    "GumbelSigmoid of both": (
        GumbelSigmoid(LOGITS, hard=True),
        GumbelSigmoid(of(1.0), hard=True),
    ),
    "LogisticNormal": (
        dist.LogisticNormal(LOC, of(0.3, 1.0, 2.0)),
        dist.LogisticNormal(torch.zeros(3).double(), 1.0),
    ),
    "StickBreaking": (
        StickBreaking(Kumaraswamy(of(0.5, 2.0), of(3.0, 0.8)).to_event(1)),
        StickBreakingBeta(of(1.0, 1.0), of(5.0, 5.0)),
    ),
    "VonMisesFisher": (
        VonMisesFisher(of(0.6, 0.0, 0.8), of(5.0).squeeze()),
        VonMisesFisher(of(0.0, 1.0, 0.0), of(2.0).squeeze()),
    ),
    "Concatenate": (
        Concatenate([NORMAL, Dirichlet(of(0.5, 3.0))]),
        Concatenate([WIDE, Dirichlet(of(1.0, 1.0))]),
    ),
    "Transformed": (
        dist.TransformedDistribution(NORMAL, [STRETCH, transforms.SigmoidTransform()]),
        dist.TransformedDistribution(OTHER, [STRETCH, transforms.SigmoidTransform()]),
    ),
    "Transformed, independent": (
        dist.LogNormal(LOC, 1.0).to_event(1),
        dist.LogNormal(of(0.0, 0.0, 0.0), 2.0).to_event(1),
    ),
    "Masked": (dist.Normal(LOC, 2.0).mask(MASK), dist.Normal(0.0, 1.0).expand([3]).mask(MASK)),
    "Masked, to_event": (
        dist.Normal(LOC, 2.0).mask(MASK).to_event(1),
        SQUARE.mask(MASK.expand(2, 3)).to_event(1),
    ),
    "Masked, expanded": (
        dist.Normal(LOC, 2.0).mask(MASK).expand([2, 3]),
        dist.Normal(of(0.0), 1.0).expand([3]).mask(MASK).expand([2, 3]),
    ),
    "Masked by a boolean": (dist.Normal(LOC, 2.0).mask(True), dist.Normal(of(0.0), 1.0)),
    "Masked away": (dist.Normal(LOC, 2.0).mask(False), dist.Normal(of(0.0), 1.0).mask(False)),
    "Expanded": (
        dist.Normal(LOC, 2.0).expand_by([2]),
        dist.ExpandedDistribution(dist.Normal(of(0.0), 1.0), [3]),
    ),
}


@pytest.mark.parametrize("q, p", MULTIVARIATE.values(), ids=MULTIVARIATE)
def test_of_several_variables_against_draws(q, p):
    torch.manual_seed(0)
    divergence = exact_kl(q, p)
    shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
    assert divergence.shape == shape
    z = (q if q.batch_shape == shape else q.expand(shape)).sample((50_000,))
    assert_within(q.log_prob(z) - p.log_prob(z), divergence)


# What is left out.


class Skewed(dist.Normal):
    """A class of the user's with its own density and without a rule."""

    def log_prob(self, value):
        return (
            super().log_prob(value) + torch.special.log_ndtr(value) + torch.tensor(2.0).log()
        )


class Renamed(dist.Normal):
    """Another name for the same density."""


STANDARD = dist.Normal(torch.zeros(3).double(), 1.0)
DELTA = dist.Delta(LOC, log_density=of(1.0, 2.0, 3.0))
ABSOLUTE = [transforms.AbsTransform()]
LEFT_OUT = {
    "Delta": (DELTA, STANDARD),
    "Delta, to_event": (DELTA.to_event(1), STANDARD.to_event(1)),
    "Delta, full covariance": (DELTA.to_event(1), FULL),
    "Delta, masked": (DELTA.mask(MASK), STANDARD.mask(MASK)),
    "Delta in a block": (Concatenate([DELTA.to_event(1)]), Concatenate([NORMAL])),
    "one mask": (STANDARD.mask(MASK), STANDARD),
    "another mask": (STANDARD.mask(MASK), STANDARD.mask(~MASK)),
    "an equal mask": (STANDARD.mask(MASK), STANDARD.mask(MASK.clone())),
    "another view of the mask": (STANDARD.mask(MASK), STANDARD.mask(MASK.flip(0))),
    "one mask, to_event": (STANDARD.mask(MASK).to_event(1), STANDARD.to_event(1)),
    "a mask and full covariance": (STANDARD.mask(MASK).to_event(1), FULL),
    "Folded": (
        dist.FoldedDistribution(dist.Normal(LOC, 1.0)),
        dist.FoldedDistribution(STANDARD),
    ),
    "HalfNormal, Folded": (
        dist.HalfNormal(of(1.0, 1.0, 1.0)),
        dist.FoldedDistribution(STANDARD),
    ),
    "Abs": (
        dist.TransformedDistribution(NORMAL, ABSOLUTE),
        dist.TransformedDistribution(WIDE, ABSOLUTE),
    ),
    "other transforms": (
        dist.TransformedDistribution(STANDARD, transforms.AffineTransform(0.0, LOC)),
        dist.TransformedDistribution(STANDARD, transforms.AffineTransform(0.0, LOC + 1)),
    ),
    "Wishart": (
        dist.Wishart(of(5.0), torch.eye(2).double()),
        dist.Wishart(of(4.0), torch.eye(2).double()),
    ),
    "Binomial": (dist.Binomial(of(3.0), of(0.5)), dist.Binomial(of(4.0), of(0.5))),
    "ContinuousBernoulli": (dist.ContinuousBernoulli(of(0.2)), dist.Uniform(of(0.0), of(1.0))),
    "Uniform": (dist.Uniform(of(0.0), of(1.0)), dist.ContinuousBernoulli(of(0.2))),
    "own density": (Skewed(LOC, 1.0), STANDARD),
    "own density of the prior": (STANDARD, Skewed(LOC, 1.0)),
    "own density, to_event": (Skewed(LOC, 1.0).to_event(1), OTHER),
    "no rule": (dist.StudentT(LOC.abs()), STANDARD),
    "densities of relaxed variables": (GumbelSoftmax(LOGITS), GumbelSoftmax(LOC)),
    "other events": (NORMAL, SQUARE.to_event(2)),
    "other blocks": (
        Concatenate([NORMAL, Dirichlet(of(0.5, 3.0))]),
        Concatenate([Dirichlet(of(0.5, 3.0)), NORMAL]),
    ),
}


@pytest.mark.parametrize("q, p", LEFT_OUT.values(), ids=LEFT_OUT)
def test_none_without_an_exact_rule(q, p):
    assert exact_kl(q, p) is None


def test_the_rules_that_are_left_out_are_wrong():
    """Or they have no gradient: no rule is left out that a bound could use."""
    folded = (
        dist.FoldedDistribution(dist.Normal(of(2.0), of(1.0))),
        dist.FoldedDistribution(dist.Normal(of(-2.0), 1.0)),
    )
    assert kl_divergence(*folded) == 8  # and the two are the same
    assert kl_divergence(DELTA, STANDARD).equal(-STANDARD.log_prob(LOC))
    assert kl_divergence(*LEFT_OUT["ContinuousBernoulli"]).isinf()
    assert kl_divergence(*LEFT_OUT["Uniform"]).isinf()
    df = of(5.0).requires_grad_()
    prior = dist.Wishart(of(4.0).requires_grad_(), torch.eye(2).double())
    divergence = kl_divergence(dist.Wishart(df, torch.eye(2).double()), prior)
    assert torch.autograd.grad(divergence, df, allow_unused=True) == (None,)


def test_a_subclass_with_the_density_of_its_base_has_its_rule():
    torch.testing.assert_close(exact_kl(Renamed(LOC, 1.0), STANDARD), LOC**2 / 2)


def test_a_rule_for_a_class_of_the_user_is_used():
    class Own(Skewed):
        pass

    @td.register_kl(Own, Own)
    def rule(q, p):
        return q.loc - p.loc

    try:
        torch.testing.assert_close(
            exact_kl(Own(LOC, 1.0), Own(LOC, 2.0)), torch.zeros(3).double()
        )
        assert exact_kl(Own(LOC, 1.0), STANDARD) is None
    finally:
        del _KL_REGISTRY[Own, Own]


def test_a_density_and_a_probability_do_not_mix():
    with pytest.raises(
        ValueError, match="must have the same score, got score='density' and score='discrete'"
    ):
        exact_kl(GumbelSoftmax(LOGITS), dist.OneHotCategorical(logits=LOGITS))


def test_rows_that_broadcast():
    """For different supports, torch's rule returns the shape of q only."""
    assert exact_kl(
        dist.Normal(of(0.0), 1.0), dist.Exponential(torch.ones(2, 3).double())
    ).shape == (2, 3)
    bits = exact_kl(dist.Bernoulli(of(0.5)), td.Bernoulli(of([0.5, 0.2], [0.1, 0.3])))
    assert bits.shape == (2, 2)


def test_every_registered_rule_is_compared_or_left_out():
    """This fails if a later version of torch or Pyro adds a rule, which must then be checked."""
    both = [
        *MULTIVARIATE.values(),
        *LEFT_OUT.values(),
        *((members(q, 0), members(p, 0)) for q, p in RULES),
    ]
    for q_type, p_type in _KL_REGISTRY:
        assert any(isinstance(q, q_type) and isinstance(p, p_type) for q, p in both), (
            q_type,
            p_type,
        )
