"""Numbers of ``evaluate`` against truth: gaps, distances, imputation."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td

from tarspyro import data, evaluate
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
    StickBreakingKumaraswamy,
    StudentT,
)
from tarspyro.infer import PairError

from ..programs import LinearGaussian, assert_within


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Gaps.

ROWS = torch.tensor([0.5, 1.0, 2.0])
VECTORS = torch.stack([ROWS, ROWS.flip(0), 0.3 * ROWS], -1)
LOGITS = VECTORS.log()
NORMAL = dist.Normal(VECTORS, 0.5).to_event(1)
MASK = torch.tensor([True, False, True])
FACTOR = torch.tensor([[0.5, 0.0, 0.0], [0.3, 1.0, 0.0], [0.2, -0.4, 2.0]])
UNITS = {"scale": 0.5, "loc": 0.1}

# Distributions of three data points, with options that are not their families' defaults.
FAMILIES = {
    "GumbelSoftmax": GumbelSoftmax(LOGITS, temperature=0.2),
    "GumbelSoftmax, temperatures": GumbelSoftmax(LOGITS, temperature=ROWS),
    "GumbelSoftmax, discrete": GumbelSoftmax(LOGITS, temperature=0.2, score="discrete"),
    "GumbelSoftmax, to_event": GumbelSoftmax(
        torch.stack([LOGITS, -LOGITS], 1), temperature=0.2
    ).to_event(1),
    "GumbelSigmoid": GumbelSigmoid(LOGITS, temperature=0.2).to_event(1),
    "RelaxedOneHotCategorical": dist.RelaxedOneHotCategorical(
        torch.tensor(0.9), logits=LOGITS
    ),
    "RelaxedBernoulli": dist.RelaxedBernoulli(torch.tensor(0.9), probs=0.2 * VECTORS).to_event(
        1
    ),
    "Gamma": Gamma(ROWS, ROWS, boost=2),
    "Gamma, implicit": Gamma(ROWS, ROWS, reparameterization="implicit"),
    "InverseGamma": InverseGamma(ROWS + 1, ROWS, boost=7),
    "InverseGamma of Pyro": dist.InverseGamma(ROWS + 1, ROWS),
    "Chi2": Chi2(ROWS, boost=2),
    "Beta": Beta(ROWS, ROWS.flip(0)),
    "Dirichlet": Dirichlet(VECTORS),
    "Kumaraswamy": Kumaraswamy(ROWS, ROWS),
    "StudentT": StudentT(ROWS + 2, 0.1, 0.5),
    "StudentT of Pyro": dist.StudentT(ROWS + 2, 0.1, 0.5),
    "sticks": StickBreakingKumaraswamy(VECTORS, VECTORS),
    "blocks": Concatenate([NORMAL, GumbelSoftmax(LOGITS, temperature=0.3)]),
    "product of experts": ProductOfExperts(
        [NORMAL, dist.Normal(0.0 * VECTORS, 2.0).to_event(1)]
    ),
    "AffineBeta": dist.AffineBeta(ROWS + 1, ROWS + 2, -1.0, 3.0),
    "Pareto": dist.Pareto(ROWS, ROWS + 2),
    "MultivariateNormal": dist.MultivariateNormal(VECTORS, scale_tril=FACTOR),
    "MultivariateNormal, covariance": dist.MultivariateNormal(VECTORS, FACTOR @ FACTOR.T),
    "LowRankMultivariateNormal": dist.LowRankMultivariateNormal(
        VECTORS, FACTOR[:, :1], torch.ones(3)
    ),
    "mixture": dist.MixtureSameFamily(
        dist.Categorical(logits=LOGITS), dist.Normal(VECTORS, 0.3)
    ),
    "masked": dist.Normal(ROWS, 0.5).mask(MASK),
    "masked, to_event": dist.Normal(VECTORS, 0.5).mask(MASK).to_event(1),
    "transformed": dist.TransformedDistribution(
        dist.Normal(ROWS, 0.5), [td.AffineTransform(1.0, ROWS), td.ExpTransform()]
    ),
    "planar flow": dist.TransformedDistribution(
        NORMAL, [td.SigmoidTransform(), td.AffineTransform(0.0, VECTORS, 1)]
    ),
    "folded": dist.FoldedDistribution(dist.Normal(ROWS, 0.5)),
    "AsymmetricLaplace": dist.AsymmetricLaplace(ROWS, 0.5, 2.0),
    "SkewLogistic": dist.SkewLogistic(ROWS, 0.5, 2.0),
    "VonMises": dist.VonMises(ROWS, 3.0),
    "ProjectedNormal": dist.ProjectedNormal(VECTORS),
}


@pytest.mark.parametrize("q", FAMILIES.values(), ids=FAMILIES)
def test_gaps_start_at_the_guide(q):
    """A latent variable that the data does not depend on, whose posterior the guide has: no
    draw differs from log p(x).
    """

    def program(x, observed):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)
            if observed:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.zeros(3)
    found = evaluate.gaps(
        lambda x: program(x, True),
        lambda x: program(x, False),
        x,
        num_steps=1,
        num_particles=50,
        lr=1e-6,
        seed=0,
    )
    truth = dist.Normal(0.0, 1.0).log_prob(x)
    torch.testing.assert_close(found.best_elbo, truth, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.elbo, truth, rtol=0, atol=2e-3)


def relaxed(hard):
    """A class out of three, whose logits are those of the exact posterior were it discrete."""

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", GumbelSoftmax(torch.zeros(3), temperature=0.2, hard=hard))
            pyro.sample("x", dist.Normal(y @ torch.tensor([2.0, 0.0, -2.0]), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            logits = torch.stack([2 * x, 0 * x, -2 * x], -1)
            pyro.sample("y", GumbelSoftmax(logits, temperature=0.2, hard=hard))

    return model, guide


@pytest.mark.parametrize("hard", [False, True])
def test_gaps_of_a_relaxed_class_have_no_amortization_at_the_start(hard):
    """3 to 4 nats at the temperature 2/3, which is not the guide's."""
    x = torch.tensor([1.8, -1.5])
    found = evaluate.gaps(
        *relaxed(hard), x, num_steps=1, num_particles=20_000, lr=1e-6, seed=0
    )
    assert (found.amortization.abs() < 0.2).all()


def test_gaps_leave_masked_sites_out():
    """Where a latent variable is masked in both halves, it has neither prior nor posterior."""
    mask = torch.tensor([True, False])

    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(mask, z, 0.0), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(0.5 * x, 0.5**0.5))

    x = torch.tensor([1.0, 1.0])
    found = evaluate.gaps(model, guide, x, num_steps=1, lr=1e-6, num_particles=50, seed=0)
    truth = dist.Normal(0.0, torch.tensor([2.0, 1.0]).sqrt()).log_prob(x)
    torch.testing.assert_close(found.best_elbo, truth, rtol=0, atol=1e-4)


def test_gaps_refuse_what_cannot_be_made_again():
    class Kept(dist.TorchDistribution):
        """A family whose default is not what it was made of."""

        arg_constraints = {"loc": td.constraints.real}
        support = td.constraints.real
        has_rsample = True

        def __init__(self, loc, wide=False):
            self.loc = loc
            self.normal = dist.Normal(loc, 2.0 if wide else 1.0)
            super().__init__(self.normal.batch_shape)

        def expand(self, batch_shape, _instance=None):
            new = Kept(self.loc.expand(batch_shape))
            new.normal = self.normal.expand(batch_shape)
            return new

        def rsample(self, sample_shape=()):
            return self.normal.rsample(sample_shape)

        def log_prob(self, value):
            return self.normal.log_prob(value)

    def pair(prior, q):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", q(x))

        return model, guide

    normal, interval = dist.Normal(0.0, 1.0), dist.Uniform(-1.0, 1.0)
    refused = {
        "cannot be rebuilt from its attributes": (normal, lambda x: Kept(x, wide=True)),
        "no free parameters": (interval, lambda x: dist.Uniform(0 * x - 1, 1.0)),
        "does not keep its experts": (
            normal,
            lambda x: MixtureOfExperts([dist.Normal(x, 1.0), dist.Normal(-x, 1.0)]),
        ),
    }
    for message, (prior, q) in refused.items():
        with pytest.raises(PairError, match=message):
            evaluate.gaps(*pair(prior, q), torch.zeros(3), num_steps=1)


# Distances.

GRID = torch.randint(0, 10, (300, 2), generator=torch.Generator().manual_seed(0))
WIDER = torch.randint(0, 12, (300, 2), generator=torch.Generator().manual_seed(1))
AS_FEATURES = {
    "integers": lambda grid: grid,
    "far away": lambda grid: grid.double() + 1e6 + 0.3,
    "tenths": lambda grid: 0.1 * grid.double(),
    "tenths in single precision": lambda grid: (0.1 * grid).float(),
    "ninths, far away, in single precision": lambda grid: (grid / 9 + 100).float(),
}


@pytest.mark.parametrize("features", AS_FEATURES.values(), ids=AS_FEATURES)
def test_ties_of_precision_and_recall_are_those_of_the_integers(features):
    """On a grid most of the distances are equal to others, by matrix products only nearly."""

    def share(x, y):
        squares = (x[:, None] - x[None]).square().sum(-1)
        radii = squares.kthvalue(4, dim=1).values
        return ((y[:, None] - x[None]).square().sum(-1) <= radii).any(1).double().mean().item()

    found = evaluate.precision_recall(features(GRID), features(WIDER))
    assert 0.5 < share(GRID, WIDER) < 0.9
    assert found == (share(GRID, WIDER), share(WIDER, GRID))


def test_a_point_beside_a_neighbourhood_is_not_in_it():
    data, samples = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.00001], [1.99999]])
    assert evaluate.precision_recall(data, samples, k=1).precision == 0.5


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_numbers_far_from_the_origin_have_the_distances_that_they_have(offset):
    """Every sum is exact here: the same numbers, moved."""
    torch.manual_seed(0)
    x, y = (torch.randint(-8, 8, (50, 20)).double() / 8 for _ in range(2))
    moved, other = x + offset, y + offset
    found = evaluate.parzen_log_likelihood(moved, other, scales=0.5).log_likelihood
    torch.testing.assert_close(
        found, evaluate.parzen_log_likelihood(x, y, scales=0.5).log_likelihood
    )
    assert evaluate.mode_coverage(moved, moved[:5], scale=1e-9) == (5, 0.1)
    labels = (x[:, 0] > 0).long()
    own = evaluate.knn_accuracy(moved, labels, moved + 1 / 64, labels, k=1)
    assert own == 1.0


def test_the_density_of_narrow_modes_is_exact():
    modes = data.ring(100, scale=1e-3, seed=0)
    at = (
        modes.means.repeat(10, 1) + 1e-3
    )  # more than 25 rows, from which on torch multiplies matrices
    expected = -1.0 - math.log(len(modes.means) * 2 * math.pi * 1e-6)
    # The points themselves are rounded, by 1e-4 of the scale.
    torch.testing.assert_close(
        modes.log_prob(at), torch.full((len(at),), expected), rtol=0, atol=1e-3
    )


# Imputation.


@pytest.mark.parametrize("observed", range(5))
def test_imputation_is_right_where_little_is_observed(observed, double):
    """One element of five: a round keeps 0.97 of what was off before, and 20 of them 0.5. So
    the start must be right.
    """
    toy, mask = LinearGaussian(), torch.arange(5) == observed
    x = toy.x[:2].where(mask, torch.nan)
    drawn = evaluate.impute(
        toy.model, toy.exact_posterior_guide, x, mask, num_samples=4000, seed=0
    )[..., ~mask]
    covariance = (toy.weight @ toy.weight.T + toy.scale**2 * torch.eye(5)).detach()
    gain = covariance[~mask][:, mask] / covariance[mask][:, mask]
    assert_within(drawn, toy.x[:2, mask] @ gain.T, "mean")
    centred = drawn - toy.x[:2, mask] @ gain.T
    spread = covariance[~mask][:, ~mask] - gain @ covariance[mask][:, ~mask]
    assert_within(
        centred.unsqueeze(-1) * centred.unsqueeze(-2), spread.expand(2, 4, 4), "covariance"
    )


def test_imputation_of_nothing_that_is_observed_draws_from_the_model(double):
    toy = LinearGaussian()
    drawn = evaluate.impute(
        toy.model,
        toy.exact_posterior_guide,
        toy.x[:1],
        torch.zeros(5),
        num_samples=4000,
        seed=0,
    )
    covariance = (toy.weight @ toy.weight.T + toy.scale**2 * torch.eye(5)).detach()
    assert_within(drawn, torch.zeros(1, 5), "mean")
    assert_within(drawn.unsqueeze(-1) * drawn.unsqueeze(-2), covariance[None], "covariance")
