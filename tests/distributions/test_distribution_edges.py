"""Densities at the edges of supports, and entropies, cdfs, means and modes."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch import distributions as td

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
    MixtureOfExperts,
    ProductOfExperts,
    StickBreakingBeta,
    StickBreakingKumaraswamy,
    StudentT,
)

from ..programs import assert_within


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def of(*values):
    return torch.tensor(values, dtype=torch.float64)


# At the edge.

CONCENTRATIONS = of(0.5, 1.0, 2.0)
ROWS, COLUMNS = torch.cartesian_prod(CONCENTRATIONS, CONCENTRATIONS).T
CORNERS = of([1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]).unsqueeze(1)
TRIPLES = of(
    [1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [0.5, 1.0, 1.0], [1.0, 0.5, 1.0], [3.0, 2.0, 4.0]
)

# Our family, torch's, their parameters, and values of which some lie at an edge.
EDGES = {
    "Gamma": (Gamma, td.Gamma, [ROWS, COLUMNS], of(0.0, -0.0, 1e-3, 2.0).unsqueeze(1)),
    "Beta": (Beta, td.Beta, [ROWS, COLUMNS], of(0.0, 1.0, 0.3).unsqueeze(1)),
    "Dirichlet": (Dirichlet, td.Dirichlet, [TRIPLES], CORNERS),
    "Chi2": (Chi2, td.Chi2, [of(1.0, 2.0, 4.0)], of(0.0, 1.0).unsqueeze(1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ours, theirs, parameters, values", EDGES.values(), ids=EDGES)
def test_densities_at_the_edge_are_torchs(ours, theirs, parameters, values, dtype):
    values, parameters = values.to(dtype), [parameter.to(dtype) for parameter in parameters]
    found, expected = (family(*parameters).log_prob(values) for family in (ours, theirs))
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-10
    )
    assert not found.isnan().any() and found.isinf().any() and found.isfinite().any()


@pytest.mark.parametrize("ours, theirs, parameters, values", EDGES.values(), ids=EDGES)
def test_gradients_at_the_edge_are_finite_like_torchs(ours, theirs, parameters, values):
    """Row by row, so one row cannot hide another's."""
    rows = [
        [parameter[index] for parameter in parameters] for index in range(len(parameters[0]))
    ]
    compared = 0
    for row in rows:
        for value in values.flatten(0, 1):
            gradients = []
            for family in (ours, theirs):
                leaves = [parameter.clone().requires_grad_() for parameter in row]
                gradients.append(
                    torch.autograd.grad(family(*leaves).log_prob(value).sum(), leaves)
                )
            for found, expected in zip(*gradients, strict=True):
                finite = expected.isfinite()
                compared += int(finite.sum())
                torch.testing.assert_close(found[finite], expected[finite])
                assert not found.isnan().any()
    assert compared > len(rows)


SMOOTH = {
    "Gamma(1, 2) at 0": (lambda x: Gamma(of(1.0), of(2.0)).log_prob(x), 0.0, -2.0),
    "Beta(1, 1) at 0": (lambda x: Beta(of(1.0), of(1.0)).log_prob(x), 0.0, 0.0),
    "Beta(1, 3) at 0": (lambda x: Beta(of(1.0), of(3.0)).log_prob(x), 0.0, -2.0),
    "Beta(3, 1) at 1": (lambda x: Beta(of(3.0), of(1.0)).log_prob(x), 1.0, 2.0),
    "Kumaraswamy(1, 3) at 0": (lambda x: Kumaraswamy(of(1.0), of(3.0)).log_prob(x), 0.0, -2.0),
    "Kumaraswamy(3, 1) at 1": (lambda x: Kumaraswamy(of(3.0), of(1.0)).log_prob(x), 1.0, 2.0),
    "Kumaraswamy(1, 1) at 0": (lambda x: Kumaraswamy(of(1.0), of(1.0)).log_prob(x), 0.0, 0.0),
}


@pytest.mark.parametrize("log_prob, edge, slope", SMOOTH.values(), ids=SMOOTH)
def test_slopes_at_the_edge_of_a_finite_density(log_prob, edge, slope):
    x = of(edge).requires_grad_()
    (found,) = torch.autograd.grad(log_prob(x).sum(), x)
    assert found.item() == pytest.approx(slope)


def test_slopes_of_a_dirichlet_at_a_corner():
    """Along the simplex; directions off the simplex do not matter."""
    z = of(1.0, 0.0, 0.0).requires_grad_()
    (found,) = torch.autograd.grad(Dirichlet(of(3.0, 1.0, 1.0)).log_prob(z), z)
    torch.testing.assert_close(found - found.mean(), of(2.0, 0.0, 0.0) - 2 / 3)


@pytest.mark.parametrize("a, b", [*zip(ROWS.tolist(), COLUMNS.tolist(), strict=True)])
def test_kumaraswamy_at_both_edges(a, b):
    """Torch's density is NaN there; a b x^(a - 1) (1 - x^a)^(b - 1) is 0, a b or infinite."""
    found = Kumaraswamy(of(a), of(b)).log_prob(of(0.0, 1.0))
    for value, power in zip(found.tolist(), (a, b), strict=True):
        assert value == (
            math.log(a * b) if power == 1 else math.inf if power < 1 else -math.inf
        )
    leaves = of(a).requires_grad_(), of(b).requires_grad_()
    gradients = torch.autograd.grad(Kumaraswamy(*leaves).log_prob(of(0.0, 1.0)).sum(), leaves)
    assert not any(gradient.isnan().any() for gradient in gradients)


def test_inverse_gamma_has_no_density_at_zero():
    leaves = of(0.5, 1.0, 3.0).requires_grad_(), of(2.0).requires_grad_()
    log_prob = InverseGamma(*leaves, validate_args=False).log_prob(of(0.0))
    assert (log_prob == -math.inf).all()
    assert all(
        gradient.isfinite().all() for gradient in torch.autograd.grad(log_prob.sum(), leaves)
    )


def test_relaxed_variables_at_a_corner_equal_the_smallest_draw():
    """Torch also keeps relaxed bits off the edges; draws of this library are at least 1e-292."""
    logits, corner = of(0.0, 1.0, 2.0).requires_grad_(), of([1.0, 0.0, 0.0], [0.5, 0.5, 0.0])
    kept = torch.finfo(torch.float64).tiny / torch.finfo(torch.float64).eps
    q = GumbelSoftmax(logits, temperature=0.5)
    found = q.log_prob(corner)
    torch.testing.assert_close(
        found, GumbelSoftmax(logits, temperature=0.5).log_prob(corner.clamp(min=kept))
    )
    bit, bits = of(0.3).requires_grad_(), of(0.0, 1.0)
    density = GumbelSigmoid(bit, temperature=0.5).log_prob(bits)
    low = 0.5 * math.log(kept)
    torch.testing.assert_close(
        density, of(math.log(0.5) - 0.3 - low, math.log(0.5) + 0.3 - low)
    )
    for value, leaf in ((found, logits), (density, bit)):
        assert torch.autograd.grad(value.sum(), leaf)[0].isfinite().all()


def test_a_class_that_is_impossible_and_absent_counts_nothing():
    logits = of(0.0, 1.0, -math.inf)
    hot = of([1.0, 0.0, 0.0], [0.0, 0.0, 1.0])
    expected = dist.OneHotCategorical(logits=logits).log_prob(hot)
    torch.testing.assert_close(GumbelSoftmax(logits, hard=True).log_prob(hot), expected)
    q, p = GumbelSoftmax(logits, hard=True), dist.OneHotCategorical(logits=of(1.0, 0.0, 0.0))
    torch.testing.assert_close(
        td.kl_divergence(q, p),
        td.kl_divergence(
            dist.OneHotCategorical(logits=logits),
            dist.OneHotCategorical(logits=of(1.0, 0.0, 0.0)),
        ),
    )


def test_draws_are_scored_as_before():
    """The logarithm that a draw carries is finite, however small the draw."""
    torch.manual_seed(0)
    for q in (
        Gamma(of(1e-3), of(1.0)),
        Beta(of(1e-3), of(1e-3)),
        Kumaraswamy(of(1e-2), of(1e-2)),
    ):
        assert q.log_prob(q.rsample((1000,))).isfinite().all()


# Entropies.

A, B = of(0.3, 1.0, 2.5, 40.0), of(2.0, 1.0, 0.7, 30.0)
ENTROPIES = {
    "Gamma": (Gamma(A, B), td.Gamma(A, B)),
    "Chi2": (Chi2(A), td.Chi2(A)),
    "Beta": (Beta(A, B), td.Beta(A, B)),
    "Dirichlet": (
        Dirichlet(torch.stack([A, B, A * B], -1)),
        td.Dirichlet(torch.stack([A, B, A * B], -1)),
    ),
    "InverseGamma": (InverseGamma(A, B), stats.invgamma(A.numpy(), scale=B.numpy())),
    "StudentT": (StudentT(A, 0.5, B), td.StudentT(A, 0.5, B)),
    "ProductOfExperts": (ProductOfExperts([dist.Normal(A, B)]), td.Normal(A, B)),
    "GumbelSoftmax": (
        GumbelSoftmax(torch.stack([A, B, -A], -1), hard=True),
        td.OneHotCategorical(logits=torch.stack([A, B, -A], -1)),
    ),
    "GumbelSigmoid": (GumbelSigmoid(A - B, hard=True), td.Bernoulli(logits=A - B)),
}


@pytest.mark.parametrize("q, known", ENTROPIES.values(), ids=ENTROPIES)
def test_entropies_are_known_ones(q, known):
    torch.testing.assert_close(q.entropy(), torch.as_tensor(known.entropy()))


def test_the_entropy_of_kumaraswamy_is_that_of_quadrature():
    q = Kumaraswamy(A, B)
    for index in range(4):
        one = Kumaraswamy(A[index], B[index])

        def integrand(u, one=one):
            return -one.log_prob(
                one.icdf(of(u))
            ).item()  # over the uniform number behind a draw

        exact, _ = integrate.quad(integrand, 1e-12, 1 - 1e-12, limit=500)
        assert q.entropy()[index].item() == pytest.approx(exact, rel=1e-5)


def test_entropies_in_single_precision_keep_their_digits_at_large_concentrations():
    a = torch.full((3,), 1e5)
    for ours in (Gamma, Beta, InverseGamma):
        single = ours(a.float(), a.float()).entropy()
        torch.testing.assert_close(single.double(), ours(a, a).entropy(), rtol=1e-5, atol=1e-5)


def test_the_entropy_of_blocks_is_their_sum():
    blocks = Gamma(A, B).to_event(1), Dirichlet(of(1.0, 2.0))
    expected = blocks[0].entropy() + blocks[1].entropy()
    torch.testing.assert_close(Concatenate(blocks).entropy(), expected)


def test_soft_draws_have_no_closed_forms():
    for q in (GumbelSoftmax(of(0.0, 1.0)), GumbelSigmoid(of(0.0))):
        for read in (q.entropy, lambda q=q: q.mode, lambda q=q: q.mean):
            with pytest.raises(
                NotImplementedError, match="Soft draws of .* have no .* in closed form"
            ):
                read()
    for read in (
        GumbelSigmoid(of(0.0), hard=True).cdf,
        GumbelSigmoid(of(0.0), hard=True).icdf,
    ):
        with pytest.raises(NotImplementedError, match="hard=True draws zeros and ones"):
            read(of(0.5))


# Distribution functions.

DISTRIBUTIONS = {
    "Gamma": Gamma(A, B),
    "Chi2": Chi2(A),
    "InverseGamma": InverseGamma(A, B),
    "Kumaraswamy": Kumaraswamy(A, B),
    "GumbelSigmoid": GumbelSigmoid((A - B) / 5, temperature=0.3),
    "MixtureOfExperts": MixtureOfExperts(
        [dist.Normal(A, 1.0), dist.Normal(-A, 2.0)], weights=of(0.3, 0.7)
    ),
}


@pytest.mark.parametrize("q", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_distribution_functions_are_shares_of_draws(q):
    torch.manual_seed(0)
    draws = q.sample((20_000,))
    at = draws[:3]
    assert_within((draws.unsqueeze(1) <= at).double(), q.cdf(at))


def test_the_distribution_functions_of_torchs_families():
    x = of(0.1, 0.5, 2.0, 1.5)
    torch.testing.assert_close(Gamma(A, B).cdf(x), td.Gamma(A, B).cdf(x))
    torch.testing.assert_close(
        InverseGamma(A, B).cdf(x), torch.as_tensor(stats.invgamma.cdf(x, A, scale=B))
    )


@pytest.mark.parametrize("q", [Kumaraswamy(A, B), GumbelSigmoid(A - B, temperature=0.8)])
def test_quantiles_invert_the_distribution_function(q):
    u = torch.linspace(0.05, 0.95, 7, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(q.cdf(q.icdf(u)), u.expand(7, 4))
    torch.testing.assert_close(
        q.icdf(of(0.0, 1.0).unsqueeze(1)), of(0.0, 1.0).unsqueeze(1).expand(2, 4)
    )


# Means, variances and modes.

MOMENTS = {
    "Kumaraswamy": Kumaraswamy(A, B),
    "Beta": Beta(A, B),
    "Dirichlet": Dirichlet(torch.stack([A, B, A * B], -1)),
    "InverseGamma": InverseGamma(A + 5, B),
    "StickBreakingBeta": StickBreakingBeta(torch.stack([A, B], -1), torch.stack([B, A], -1)),
    "StickBreakingKumaraswamy": StickBreakingKumaraswamy(
        torch.stack([A, B], -1), torch.stack([B, A], -1)
    ),
    "GumbelSigmoid": GumbelSigmoid(A - B, hard=True),
}


@pytest.mark.parametrize("q", MOMENTS.values(), ids=MOMENTS)
def test_means_and_variances_of_draws(q):
    torch.manual_seed(0)
    draws = q.sample((50_000,))
    assert_within(draws, q.mean, "mean")
    assert_within((draws - q.mean) ** 2, q.variance, "variance")


MODES = {
    "Gamma": Gamma(of(2.0, 5.0), of(1.0, 3.0)),
    "InverseGamma": InverseGamma(of(2.0, 0.5), of(1.0, 3.0)),
    "Beta": Beta(of(2.0, 5.0), of(3.0, 1.5)),
    "Kumaraswamy": Kumaraswamy(of(2.0, 5.0), of(3.0, 1.5)),
    "StudentT": StudentT(of(2.0, 5.0), of(3.0, 1.5)),
}


@pytest.mark.parametrize("q", MODES.values(), ids=MODES)
def test_modes_have_the_highest_density(q):
    mode = q.mode
    for factor in (0.999, 1.001):
        assert (q.log_prob(mode) > q.log_prob(mode * factor)).all()


def test_modes_at_an_edge_are_none():
    assert Kumaraswamy(of(0.5, 2.0, 1.0), of(2.0, 0.5, 1.0)).mode.isnan().all()
    torch.testing.assert_close(Kumaraswamy(of(2.0), of(1.0)).mode, of(1.0))
    assert GumbelSoftmax(of(0.0, 2.0, 1.0), hard=True).mode.equal(of(0.0, 1.0, 0.0))
    blocks = Concatenate([dist.Normal(of(1.0, 2.0), 1.0).to_event(1), Dirichlet(of(2.0, 3.0))])
    torch.testing.assert_close(blocks.mode, of(1.0, 2.0, 1 / 3, 2 / 3))
