"""Gaps against closed forms of a linear-Gaussian pair, conjugate pairs and exact guides."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td
from torch.distributions import kl_divergence

from tarspyro import evaluate
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
from .correlated import Correlated


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def toy(double):
    return Correlated()


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


@pytest.mark.usefixtures("double")
class TestGaps:
    def test_of_a_factorized_guide(self, toy):
        found = evaluate.gaps(toy.model, toy.guide, toy.x, seed=0)
        kl = kl_divergence(toy.as_multivariate(toy.x), toy.truth(toy.x))
        assert toy.approximation() > 0.5
        assert_within(found.approximation, toy.approximation())
        assert_within(found.amortization - (kl - toy.approximation()), 0.0)
        assert_within((found.log_likelihood - toy.log_likelihood(toy.x).detach()).exp(), 1.0)
        assert_within(found.elbo - toy.elbo(toy.x).detach(), 0.0)
        torch.testing.assert_close(
            found.approximation + found.amortization,
            found.log_likelihood - found.elbo,
            atol=1e-12,
            rtol=0,
        )

    def test_of_a_full_covariance_there_is_no_approximation(self, toy):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "z",
                    dist.MultivariateNormal(
                        toy.truth(x).loc + 0.3, scale_tril=0.4 * torch.eye(2)
                    ),
                )

        truth = toy.log_likelihood(toy.x).detach()
        found = evaluate.gaps(toy.model, guide, toy.x, log_likelihood=truth, seed=0)
        assert found.log_likelihood is truth
        with_errors = evaluate.LogLikelihood(truth, 0 * truth, 0 * truth)
        again = evaluate.gaps(
            toy.model, guide, toy.x, num_steps=1, num_particles=2, log_likelihood=with_errors
        )
        assert again.log_likelihood is truth
        shifted = dist.MultivariateNormal(toy.truth(toy.x).loc + 0.3, 0.16 * torch.eye(2))
        kl = kl_divergence(shifted, toy.truth(toy.x))
        # The best one has equal weights and no noise left but that of the search.
        assert (found.approximation.abs() < 0.01 * kl).all()
        assert_within(found.elbo - (truth - kl), 0.0)

    def test_the_log_likelihood_does_not_miss_what_the_guide_misses(self):
        """A narrow guide far away has importance weights that fall short of p(x) by more than
        the gap.
        """
        toy = LinearGaussian()

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ toy.map.T + 3.0, 0.1).to_event(1))

        found = evaluate.gaps(toy.model, guide, toy.x, num_steps=1500, seed=0)
        weighted = evaluate.log_likelihood(toy.model, guide, toy.x, seed=0)
        assert (weighted < found.best_elbo).all()
        assert_within((found.log_likelihood - toy.log_likelihood(toy.x).detach()).exp(), 1.0)

    @pytest.mark.parametrize("family", [dist.Gamma, Gamma], ids=["implicit", "rejection"])
    def test_of_a_positive_latent_variable(self, family):
        """z ~ Gamma(2, 1), x ~ Poisson(z): the posterior Gamma(2 + x, 2) is in the family."""

        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Poisson(pyro.sample("z", dist.Gamma(2.0, 1.0))), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", family(3.0 + 0 * x, 1.0 + 0 * x))

        x = torch.tensor([0.0, 1.0, 5.0])
        truth = dist.NegativeBinomial(2.0, probs=torch.tensor(0.5)).log_prob(x)
        found = evaluate.gaps(
            model, guide, x, log_likelihood=truth, num_steps=1000, num_draws=50, lr=0.1, seed=0
        )
        kl = kl_divergence(dist.Gamma(3.0, 1.0), dist.Gamma(2.0 + x, 2.0))
        assert (found.approximation.abs() < 0.01 * kl).all(), (found, kl)

    def test_of_two_sites(self):
        """Two latent variables, each with a site of its own: the guide's families are those of
        the sites.
        """

        def model(x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(0.0, 1.0))
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("b", dist.Normal(0.0 * x, 1.0))
                pyro.sample("a", dist.Normal(0.5 * x, 0.5))

        def chained(x):
            with pyro.plate("data", len(x)):
                b = pyro.sample("b", dist.Normal(0.0 * x, 1.0))
                pyro.sample("a", dist.Normal(0.5 * b, 0.5))

        x = torch.linspace(-1, 1, 50)
        precision = torch.tensor([[2.0, -1.0], [-1.0, 2.0]])
        found = evaluate.gaps(model, guide, x, seed=0)
        assert_within(
            found.approximation, 0.5 * (precision.diagonal().log().sum() - precision.logdet())
        )
        with pytest.raises(PairError, match="'a' of chained depends on another site's draw"):
            evaluate.gaps(model, chained, x)

    def test_leaves_everything_as_it_was(self, toy):
        state = torch.get_rng_state()
        before = {name: value.detach().clone() for name, value in toy.named_parameters()}
        first, again = (
            evaluate.gaps(toy.model, toy.guide, toy.x[:3], num_steps=3, seed=1)
            for _ in range(2)
        )
        assert torch.equal(first.best_elbo, again.best_elbo)
        assert torch.equal(state, torch.get_rng_state())
        for name, value in toy.named_parameters():
            assert torch.equal(value, before[name]) and value.grad is None
        arrays = evaluate.gaps(toy.model, toy.guide, toy.x[:3].numpy(), num_steps=3, seed=1)
        np.testing.assert_array_equal(arrays.amortization, first.amortization.numpy())

    def test_errors(self, toy):
        for name in ("num_steps", "num_draws"):
            with pytest.raises(ValueError, match=f"{name} must be at least 1"):
                evaluate.gaps(toy.model, toy.guide, toy.x, **{name: 0})

        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "x", dist.Normal(pyro.sample("z", dist.Uniform(-1.0, 1.0)), 1.0), obs=x
                )

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Uniform(0 * x - 1, 1.0))

        with pytest.raises(
            PairError,
            match="'z' is Uniform.*whose parameters cannot be optimized: it has no free",
        ):
            evaluate.gaps(model, guide, torch.zeros(3))
