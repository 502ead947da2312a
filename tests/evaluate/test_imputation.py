"""Imputation against conditional Gaussians and enumeration."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import (
    Conditional,
    IncompleteLikelihood,
    data,
    evaluate,
    fit,
    guides,
    load_run,
    models,
)
from tarspyro.distributions import (
    Concatenate,
    Dirichlet,
    Gamma,
    GumbelSoftmax,
    Incomplete,
    default_prior,
)
from tarspyro.infer import ELBO, IWAE, PairError, Renyi
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP

from ..programs import LinearGaussian, assert_within

MASK = torch.tensor([1, 1, 0, 1, 0]).bool()


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


METHODS = ["pseudo-gibbs", "metropolis-within-gibbs", "importance"]


def conditional_normal(toy, x, mask=MASK):
    """p(x_m | x_o) of the linear Gaussian model."""
    covariance = (
        toy.weight @ toy.weight.T + toy.scale**2 * torch.eye(5, dtype=torch.float64)
    ).detach()
    gain = covariance[~mask][:, mask] @ covariance[mask][:, mask].inverse()
    spread = covariance[~mask][:, ~mask] - gain @ covariance[mask][:, ~mask]
    return torch.distributions.MultivariateNormal(x[:, mask] @ gain.T, spread)


def assert_has_law(drawn, law):
    """Draws of shape (S, N, D) have the mean and the covariance of the law, of batch shape N."""
    assert_within(drawn, law.mean, "mean")
    centred = drawn - law.mean
    assert_within(
        centred.unsqueeze(-1) * centred.unsqueeze(-2), law.covariance_matrix, "covariance"
    )


# --- imputations have the right law
def test_pseudo_gibbs_with_the_exact_posterior():
    toy = LinearGaussian()
    x = toy.x[:2].where(MASK, torch.nan)  # what is missing is not there to be looked at
    drawn = evaluate.impute(
        toy.model, toy.exact_posterior_guide, x, MASK, num_rounds=30, num_samples=4000, seed=0
    )
    assert torch.equal(drawn[..., MASK], x[:, MASK].expand(4000, 2, 3))
    assert_has_law(drawn[..., ~MASK], conditional_normal(toy, toy.x[:2]))


@pytest.mark.parametrize("method", ["metropolis-within-gibbs", "importance"])
def test_corrected_methods_with_a_wrong_guide(method):
    """The guide is shifted and too wide; pseudo-Gibbs believes it, the others do not."""
    toy = LinearGaussian(shift=0.1)
    x, law = toy.x[:2], conditional_normal(toy, toy.x[:2])
    many = (
        {"num_rounds": 150, "num_samples": 2000}
        if method != "importance"
        else {"num_rounds": 3}
    )
    if (
        method == "importance"
    ):  # choices of one run share their particles, so rows of their own
        rows = evaluate.impute(
            toy.model,
            toy.guide,
            x.repeat(600, 1),
            MASK,
            method=method,
            num_particles=200,
            seed=0,
            **many,
        )
        drawn = rows.unflatten(0, (600, 2))
    else:
        drawn = evaluate.impute(toy.model, toy.guide, x, MASK, method=method, seed=0, **many)
    assert_has_law(drawn[..., ~MASK], law)
    pseudo = evaluate.impute(
        toy.model, toy.guide, x, MASK, num_rounds=60, num_samples=2000, seed=0
    )[..., ~MASK]
    with pytest.raises(AssertionError):
        assert_has_law(pseudo, law)


@pytest.mark.parametrize("method", METHODS)
def test_means_are_those_of_the_conditional(method):
    toy = LinearGaussian()
    x, mask = toy.x[:20], torch.rand(20, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    options = {"num_samples": 1000} if method != "importance" else {"num_particles": 1000}
    found = evaluate.impute(
        toy.model,
        toy.exact_posterior_guide,
        x,
        mask,
        method=method,
        mean=True,
        num_rounds=30,
        seed=0,
        **options,
    )
    assert found.shape == x.shape
    for row, observed, value in zip(found, mask, x, strict=True):
        torch.testing.assert_close(row[observed], value[observed])
        if not observed.all():
            law = conditional_normal(toy, value[None], observed)
            # A mean over as many chains as draws: its error is at most that of the draws.
            error = law.variance.sqrt()[0] / 1000**0.5 if observed.any() else 1 / 1000**0.5
            assert ((row[~observed] - law.mean[0]).abs() < 4 * 2 * error + 1e-6).all()


def test_compiled_rounds_have_the_law_of_the_eager_ones():
    """A wrong guide is corrected by Metropolis' rule; an exact one needs no correction."""
    toy = LinearGaussian(shift=0.1)
    runs = []

    def guide(x):
        runs.append(len(x))
        return toy.guide(x)

    options = {"num_rounds": 150, "num_samples": 2000, "seed": 0}
    method = "metropolis-within-gibbs"
    drawn = evaluate.impute(
        toy.model, guide, toy.x[:2], MASK, method=method, compile=True, **options
    )
    assert torch.equal(drawn[..., MASK], toy.x[:2, MASK].expand(2000, 2, 3))
    assert_has_law(drawn[..., ~MASK], conditional_normal(toy, toy.x[:2]))
    assert len(runs) < 150, "compiled rounds do not run the program"

    options["num_rounds"] = 30
    drawn = evaluate.impute(
        toy.model, toy.exact_posterior_guide, toy.x[:2], MASK, compile=True, **options
    )
    assert_has_law(drawn[..., ~MASK], conditional_normal(toy, toy.x[:2]))


def test_the_start_is_near_and_the_rounds_forget_it():
    """Codes of the prior would give a mean of 0; one of fifty that is chosen by its weight is
    near already.
    """
    toy = LinearGaussian()
    right, distances = conditional_normal(toy, toy.x[:1]).mean[0], []
    for num_rounds in (0, 16):
        drawn = evaluate.impute(
            toy.model,
            toy.exact_posterior_guide,
            toy.x[:1],
            MASK,
            num_rounds=num_rounds,
            num_samples=4000,
            seed=0,
        )
        distances.append((drawn[..., ~MASK].mean((0, 1)) - right).norm().item())
    assert distances[0] < 0.2 * right.norm() and distances[1] < 0.05 * right.norm()


# --- a model of binary elements, of which everything can be summed
class Binary:
    """One of two prototypes of four binary elements; the guide is a poor one."""

    prototypes = torch.tensor(
        [[0.9, 0.8, 0.2, 0.3], [0.2, 0.1, 0.7, 0.8]], dtype=torch.float64
    )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3)).long()
            pyro.sample("x", dist.Bernoulli(self.prototypes[z]).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * (x[:, 3] > 0.5)))

    states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)

    def log_joint(self):
        """log p(x) of all sixteen x."""
        each = dist.Bernoulli(self.prototypes).to_event(1).log_prob(self.states.unsqueeze(1))
        return (each + torch.tensor([0.7, 0.3]).log()).logsumexp(1)

    def given(self, seen, trust):
        """log p(x | seen) of all sixteen x."""
        noise = (trust * (self.states == seen) + (1 - trust) / 2).log().sum(1)
        return (self.log_joint() + noise).log_softmax(0)


TRUST = {
    "a mask": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    "noise": torch.tensor([0.6, 0.6, 0.6, 0.6]),
    "a mask and noise": torch.tensor([1.0, 0.0, 0.5, 0.3]),
}


@pytest.mark.parametrize(
    "method, compile",
    [
        pytest.param("metropolis-within-gibbs", False, id="metropolis"),
        pytest.param("metropolis-within-gibbs", True, id="metropolis compiled"),
        pytest.param("importance", False, id="importance"),
    ],
)
@pytest.mark.parametrize("trust", TRUST.values(), ids=TRUST)
def test_discrete_codes_and_noisy_elements_against_enumeration(trust, method, compile):
    toy, seen = Binary(), torch.tensor([1.0, 0.0, 1.0, 1.0])
    many = seen.where(trust > 0, torch.nan).repeat(2000, 1)
    found = evaluate.impute(
        toy.model,
        toy.guide,
        many,
        trust,
        method=method,
        num_rounds=15,
        num_particles=50,
        seed=0,
        compile=compile,
    )
    truth = toy.given(seen, trust).exp()
    indicators = (found.unsqueeze(1) == toy.states).all(-1).double()
    assert_within(indicators, truth)
    # A mean has the expectations of the draws.
    mean = evaluate.impute(
        toy.model,
        toy.guide,
        seen[None],
        trust,
        method=method,
        num_rounds=20,
        num_samples=4000,
        num_particles=4000,
        mean=True,
        seed=0,
    )[0]
    assert_within(found, truth @ toy.states)
    assert ((mean - truth @ toy.states).abs() < 4 * 0.5 / 4000**0.5).all()


@pytest.mark.parametrize("trust", TRUST.values(), ids=TRUST)
def test_log_likelihood_of_the_truth_against_enumeration(trust):
    toy, seen = Binary(), torch.tensor([1.0, 0.0, 1.0, 1.0])
    options = {} if set(trust.tolist()) <= {0.0, 1.0} else {"corrupted": seen}
    exact = toy.given(seen, trust)
    possible = exact.isfinite()
    result = evaluate.imputation_log_likelihood(
        toy.model,
        toy.guide,
        toy.states[possible],
        trust,
        errors=True,
        num_particles=4000,
        seed=0,
        **options,
    )
    off = (result.log_likelihood - exact[possible]).abs()
    assert (off < 4 * result.standard_error).all() and (result.standard_error < 0.05).all()


# --- the log-likelihood of the truth
def test_log_likelihood_of_the_truth_of_a_linear_gaussian():
    toy = LinearGaussian(shift=0.1)
    exact = conditional_normal(toy, toy.x).log_prob(toy.x[:, ~MASK])
    found = evaluate.imputation_log_likelihood(
        toy.model, toy.guide, toy.x, MASK, num_particles=500, errors=True, seed=0
    )
    off = (found.log_likelihood - exact) / found.standard_error
    assert off.abs().max() < 4 and 0.5 < off.std() < 1.5  # the errors are as large as they say
    again = evaluate.imputation_log_likelihood(
        toy.model, toy.guide, toy.x.numpy(), MASK, num_particles=500, seed=0
    )
    assert isinstance(again, np.ndarray)
    np.testing.assert_array_equal(again, found.log_likelihood.numpy())


def test_log_likelihood_is_exact_in_expectation():
    """The mean of both likelihoods, not of their logarithms, is right with only two particles."""
    toy = LinearGaussian(num=1)
    observed = torch.distributions.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64),
        (toy.weight @ toy.weight.T + 0.25 * torch.eye(5, dtype=torch.float64)).detach()[MASK][
            :, MASK
        ],
    )
    rows = toy.x.expand(4000, -1)
    difference = evaluate.imputation_log_likelihood(
        toy.model, toy.guide, rows, MASK, num_particles=2, seed=0
    )
    complete = evaluate.log_likelihood(toy.model, toy.guide, rows, num_particles=2, seed=0)
    assert_within(
        (complete - difference).exp(), observed.log_prob(toy.x[:, MASK]).exp().item()
    )


def test_the_truth_is_not_looked_at():
    """What stands where elements are missing changes neither the draws nor the likelihood of
    what is observed.
    """
    toy = LinearGaussian()
    x, other = toy.x[:5], toy.x[:5].where(MASK, 1e3)
    for method in METHODS:
        one, two = (
            evaluate.impute(toy.model, toy.guide, v, MASK, method=method, seed=0)
            for v in (x, other)
        )
        assert torch.equal(one, two)


def test_nothing_and_everything_missing():
    toy = LinearGaussian()
    assert torch.equal(
        evaluate.impute(toy.model, toy.guide, toy.x, torch.ones(5), seed=0), toy.x
    )
    none = evaluate.imputation_log_likelihood(
        toy.model,
        toy.exact_posterior_guide,
        toy.x,
        torch.ones(5),
        num_particles=210,
        errors=True,
        seed=0,
    )
    assert (
        none.log_likelihood.abs() < 4 * none.standard_error
    ).all() and none.standard_error.max() < 0.05
    drawn = evaluate.impute(
        toy.model,
        toy.exact_posterior_guide,
        toy.x[:1],
        torch.zeros(5),
        num_samples=4000,
        num_rounds=1,
        seed=0,
    )
    covariance = (
        toy.weight @ toy.weight.T + 0.25 * torch.eye(5, dtype=torch.float64)
    ).detach()
    law = torch.distributions.MultivariateNormal(
        torch.zeros(1, 5, dtype=torch.float64), covariance
    )
    assert_has_law(drawn, law)


# --- any pair
def pair(family=dist.Normal, likelihood=dist.Bernoulli, event=(16,)):
    torch.manual_seed(0)
    size = math.prod(event)
    p = models.VAE(default_prior(family, 3), Conditional(likelihood, MLP(3, [8]), event))
    return p, guides.VAE(Conditional(family, MLP(size if len(event) == 1 else event, [8]), 3))


def hierarchy():
    torch.manual_seed(0)
    p = models.HierarchicalVAE(
        default_prior(dist.Normal, 2),
        [Conditional(dist.Normal, MLP(2, [8]), 3)],
        Conditional(dist.Bernoulli, MLP(3, [8]), 16),
    )
    return p, guides.HierarchicalVAE(
        [Conditional(dist.Normal, MLP(16, [8]), 3), Conditional(dist.Normal, MLP(3, [8]), 2)]
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "family", [dist.Normal, Gamma, Dirichlet, GumbelSoftmax], ids=lambda f: f.__name__
)
def test_families_of_codes(family, method):
    p, q = pair(family)
    x = torch.bernoulli(torch.full((7, 16), 0.5))
    mask = data.random_pixels(x, 0.5, seed=0)
    found = evaluate.impute(
        p, q, x, mask, method=method, num_samples=3, num_particles=5, num_rounds=3, seed=0
    )
    assert found.shape == (3, 7, 16) and torch.equal(found[:, mask], x[mask].expand(3, -1))
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert (
        evaluate.imputation_log_likelihood(p, q, x, mask, num_particles=5, seed=0)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("method", METHODS)
def test_hierarchies_and_conditions(method):
    x = torch.bernoulli(torch.full((4, 16), 0.5))
    found = evaluate.impute(
        *hierarchy(), x, data.lower_half(x), method=method, num_rounds=4, num_particles=3
    )
    assert torch.equal(found[:, :8], x[:, :8])
    p = models.ConditionalVAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP([2, 3], [8]), 16)
    )
    q = guides.ConditionalVAE(Conditional(dist.Normal, MLP([16, 3], [8]), 2))
    y = torch.eye(3)[[0, 1, 2, 0]]
    found = evaluate.impute(
        p, q, (x, y), data.lower_half(x), method=method, num_rounds=4, num_particles=3
    )
    assert torch.equal(found[:, :8], x[:, :8])


def test_shapes_arrays_seeds_and_random_state():
    p, q = pair(likelihood=dist.Bernoulli, event=(1, 4, 4))
    x = torch.bernoulli(torch.full((5, 1, 4, 4), 0.5))
    before = torch.get_rng_state()
    found = evaluate.impute(p, q, x, data.lower_half(x), seed=3)
    assert torch.equal(before, torch.get_rng_state()) and found.shape == x.shape
    array = evaluate.impute(p, q, x.numpy(), data.lower_half(x).numpy(), seed=3, num_samples=1)
    assert isinstance(array, np.ndarray) and array.shape == (1, 5, 1, 4, 4)
    np.testing.assert_array_equal(array[0], found.numpy())
    assert p.training and q.training


ERRORS = {
    "method": ({"method": "gibbs"}, ValueError, "method must be one of 'pseudo-gibbs'"),
    "rounds": ({"num_rounds": -1}, ValueError, "num_rounds must not be negative, got -1"),
    "samples": ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
    "particles": ({"num_particles": 0}, ValueError, "num_particles must be at least 1, got 0"),
    "shape": (
        {"mask": torch.ones(3)},
        ValueError,
        r"of the shape of x, \(6, 5\), or of a row, got \(3,\)",
    ),
    "range": (
        {"mask": 2 * torch.ones(5)},
        ValueError,
        "mask must hold booleans, .*probabilities.*got numbers from 2 to 2",
    ),
    "noise": (
        {"mask": torch.full((5,), 0.5)},
        ValueError,
        "for a Bernoulli 'x' of zeros and ones",
    ),
    "site": ({"site": "y"}, PairError, r"observes \['x'\] and no 'y'"),
    "NaN in the mask": (
        {"mask": torch.full((5,), torch.nan)},
        ValueError,
        "mask must hold booleans, .*probabilities.*got numbers from nan to nan",
    ),
    "NaN": ({"x": torch.full((6, 5), torch.nan, dtype=torch.float64)}, InputError, "NaN"),
    "size": (
        {"x": torch.zeros(6, 4, dtype=torch.float64), "mask": torch.ones(4)},
        InputError,
        "rows of shape",
    ),
}


@pytest.mark.parametrize("change, error, message", ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(change, error, message):
    toy = LinearGaussian(num=6)
    options = {"x": toy.x, "mask": MASK, **change}
    with pytest.raises(error, match=message):
        evaluate.impute(toy.model, toy.guide, options.pop("x"), options.pop("mask"), **options)


def test_elements_that_the_likelihood_leaves_out_are_as_good_as_missing():
    """A mask inside the likelihood, of each element or of the whole row, is one on what is
    observed too.
    """
    toy = LinearGaussian(num=10)
    kept = torch.tensor([1, 0, 1, 1, 1]).bool()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", toy.prior())
            elements = dist.Normal(z @ toy.weight.T, toy.scale).mask(kept).to_event(1)
            pyro.sample("x", elements.mask(x[:, 0] > 0), obs=x)

    def guide(x):  # of bounded weights, also where nothing is left
        with pyro.plate("data", len(x)):
            pyro.sample("z", toy.prior())

    found = evaluate.imputation_log_likelihood(
        model, guide, toy.x, MASK, num_particles=10_000, errors=True, seed=0
    )
    covariance = (toy.weight @ toy.weight.T + toy.scale**2 * torch.eye(5)).detach()
    of_all, of_observed = (
        torch.distributions.MultivariateNormal(
            torch.zeros(int(m.sum())), covariance[m][:, m]
        ).log_prob(toy.x[:, m])
        for m in (kept, kept & MASK)
    )
    exact = (of_all - of_observed).where(toy.x[:, 0] > 0, 0)
    assert ((found.log_likelihood - exact).abs() <= 4 * found.standard_error + 1e-9).all()
    assert found.standard_error.max() < 0.5


@pytest.mark.parametrize("family", [dist.LogNormal, Gamma], ids=lambda f: f.__name__)
def test_missing_elements_may_stand_outside_the_support(family):
    """Zeros, which take the place of what is missing at first, are no positive numbers."""
    torch.manual_seed(0)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(family, MLP(2, [8]), 16))
    q = guides.VAE(
        Conditional(dist.Normal, MLP(16, [8], activation=torch.nn.Tanh), 2)
    )  # of bounded codes
    x = torch.rand(4, 16) + 0.1
    mask = data.random_pixels(x, 0.5, seed=0)
    for method in METHODS:
        found = evaluate.impute(
            p, q, x.where(mask, -1), mask, method=method, num_rounds=2, num_particles=5, seed=0
        )
        assert (found > 0).all() and torch.equal(found[mask], x[mask])
    assert (
        evaluate.imputation_log_likelihood(p, q, x, mask, num_particles=5, seed=0)
        .isfinite()
        .all()
    )
    with pytest.raises(InputError, match="outside|support"):
        evaluate.impute(p, q, -x, mask)


def test_errors_of_the_likelihood():
    p, q = pair(dist.Normal, dist.OneHotCategorical)
    x = torch.eye(16)
    with pytest.raises(PairError, match="OneHotCategorical does not factorize"):
        evaluate.impute(p, q, x, torch.arange(16) < 8)
    p, q = pair()
    with pytest.raises(
        ValueError, match="corrupted and probabilities in mask must be given together"
    ):
        evaluate.imputation_log_likelihood(p, q, x, torch.full((16,), 0.5), num_particles=2)
    with pytest.raises(InputError, match="grey values"):
        evaluate.impute(p, q, 0.5 * x, torch.ones(16))
    noise, options = torch.full((16,), 0.5), {"num_particles": 2}
    for corrupted, message in (
        (0.5 * x, "for a Bernoulli 'x' of zeros and ones"),  # noise that leaves the support
        (
            x[:4],
            r"corrupted must be of the shape of x, \(16, 16\), or of a row, got \(4, 16\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.imputation_log_likelihood(p, q, x, noise, corrupted=corrupted, **options)
    # What is known for certain and is not so is impossible.
    certain = torch.cat([torch.ones(1), noise[1:]])
    found = evaluate.imputation_log_likelihood(p, q, x, certain, corrupted=1 - x, **options)
    assert (found == -math.inf).all()
    several = models.MVAE(p.prior, [p.likelihood, p.likelihood])
    with pytest.raises(ValueError, match="x must not be None"):
        evaluate.impute(
            several,
            guides.MVAE([q.posterior] * 2, p.prior),
            (None, x),
            torch.ones(16),
            site="x_2",
        )
    auto = models.Autoencoder(Conditional(dist.Bernoulli, MLP(3, [8]), 16), 3)
    with pytest.raises(PairError, match="no prior that can be drawn from"):
        evaluate.impute(auto, q, x, torch.ones(16))


# --- a trained pair
@pytest.mark.parametrize(
    "loss",
    [ELBO(), IWAE(3), Renyi(0.5, 3), IWAE(3, gradient="dreg")],
    ids=["ELBO", "IWAE", "Renyi", "dreg"],
)
def test_trained_pairs_impute_better_than_the_mean_image(loss, tmp_path):
    digits = data.digits()
    torch.manual_seed(0)
    p = models.VAE(
        default_prior(dist.Normal, 4), Conditional(dist.Bernoulli, MLP(4, [64]), 64)
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(64, [64]), 4))
    options = {
        "loss": loss,
        "epochs": 3,
        "batch_size": 25,
        "binarize": True,
        "lr": 3e-3,
    }
    fit(p, q, digits.train, folder=tmp_path, seed=0, progress=False, **options)
    run = load_run(tmp_path)
    x = torch.bernoulli(digits.test.x[:100], generator=torch.Generator().manual_seed(0))
    mask = data.lower_half(x)
    found = evaluate.imputation_log_likelihood(
        run.model, run.guide, x, mask, num_particles=50, seed=0
    )
    same = evaluate.imputation_log_likelihood(p, q, x, mask, num_particles=50, seed=0)
    torch.testing.assert_close(found, same)
    mean_image = dist.Bernoulli(digits.train.x.mean(0).clamp(0.01, 0.99)).log_prob(x)
    assert found.mean() > mean_image.where(~mask, 0).sum(1).mean() + 1


# --- masks
def test_masks_of_images():
    flat, image = torch.zeros(3, 784), torch.zeros(3, 1, 28, 28)
    for mask in (data.lower_half, lambda x: data.off_grid(x, 4)):
        assert torch.equal(mask(flat).reshape(3, 1, 28, 28), mask(image))
    assert (
        data.lower_half(image)[:, :, :14].all() and not data.lower_half(image)[:, :, 14:].any()
    )
    for step, side in ((4, 7), (2, 14)):
        assert (data.off_grid(flat, step).sum(1) == side**2).all()
    assert (data.off_grid(torch.zeros(2, 560), 4, image_shape=(28, 20)).sum(1) == 35).all()
    assert torch.equal(
        data.random_pixels(flat, 0.3, seed=1), data.random_pixels(flat, 0.3, seed=1)
    )
    assert (
        abs(data.random_pixels(flat, 0.3, seed=1).float().mean() - 0.7)
        < 4 * (0.21 / 2352) ** 0.5
    )
    with pytest.raises(ValueError, match="image_shape is needed: 560 pixels are no square"):
        data.lower_half(torch.zeros(2, 560))
    with pytest.raises(ValueError, match="image_shape must be that of the images"):
        data.lower_half(flat, image_shape=(28, 20))
    with pytest.raises(
        ValueError, match="step must be between 1 and 28, the side of the images, got 29"
    ):
        data.off_grid(flat, 29)
    with pytest.raises(ValueError, match="missing must be from 0 to 1, got 1.5"):
        data.random_pixels(flat, 1.5)


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


# --- gaps, as NaN


def gappy_pair():
    """A linear Gaussian pair that integrates gaps out, whose guide is exact with gaps."""
    toy = LinearGaussian()

    def p(x):
        weight, scale = toy.weight.detach(), toy.scale
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
            pyro.sample("x", Incomplete(dist.Normal(z @ weight.T, scale).to_event(1)), obs=x)

    def q(x):
        weight, scale = toy.weight.detach(), toy.scale
        seen.append(x.isnan().any().item())
        known = (~x.isnan()).to(x.dtype)
        eye = torch.eye(weight.shape[1])
        precision = eye + torch.einsum("nd,dk,dl->nkl", known, weight, weight) / scale**2
        covariance = precision.inverse()
        mean = covariance @ ((x.nan_to_num(0.0) * known) @ weight / scale**2)[..., None]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean[..., 0], covariance))

    seen = []
    return toy, p, q, seen


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_what_is_missing(method):
    toy, p, q, seen = gappy_pair()
    x = toy.x[:1].where(MASK, torch.nan).repeat(2000, 1)
    filled = evaluate.impute(p, q, x, method=method, num_rounds=2, seed=0)
    assert torch.equal(filled[:, MASK], x[:, MASK]) and not filled.isnan().any()
    assert any(seen)  # the guide sees the gaps, not what was drawn there
    assert_has_law(filled[:, None, ~MASK], conditional_normal(toy, toy.x[:1]))
    several = evaluate.impute(p, q, x[:3].numpy(), method=method, num_samples=4, seed=0)
    assert isinstance(several, np.ndarray) and several.shape == (4, 3, 5)


def test_a_mask_of_nan_is_that_of_nan():
    toy = LinearGaussian()
    x = toy.x[:4].where(MASK, torch.nan)
    wanted = evaluate.impute(toy.model, toy.guide, x, MASK, seed=0)
    assert torch.equal(evaluate.impute(toy.model, toy.guide, x, seed=0), wanted)
    complete = toy.x[:4]
    assert torch.equal(evaluate.impute(toy.model, toy.guide, complete, seed=0), complete)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_columns_are_filled_with_values_of_their_kind(method):
    """Each column tells z, so that the filled values follow from what is known."""

    def p(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5)).unsqueeze(-1)
            blocks = [
                dist.Normal(4 * z, 0.1).to_event(1),
                dist.Poisson(20 * z + 0.01).to_event(1),
                dist.Bernoulli(z).to_event(1),
                dist.OneHotCategorical(torch.cat([1 - z, 0 * z, z], -1)),
            ]
            pyro.sample("x", Incomplete(Concatenate(blocks)), obs=x)

    def q(x):
        told = x[:, [0, 1, 2, 5]].nan_to_num(0.0) / torch.tensor([4.0, 20.0, 1.0, 1.0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.998 * (told.amax(1) > 0.5) + 0.001))

    rows = torch.tensor([[0, 0, 0, 1, 0, 0], [4.0, 20, 1, 0, 0, 1]])
    x = rows.repeat_interleave(30, 0)
    gaps = torch.zeros(60, 6, dtype=torch.bool)
    gaps[torch.arange(60), torch.arange(60) % 3] = True
    gaps[:, 3:] = (torch.arange(60) % 4 == 0)[:, None]
    filled = evaluate.impute(
        p, q, x.masked_fill(gaps, torch.nan), method=method, num_particles=50, seed=0
    )
    assert ((filled[:, 0] - x[:, 0]).abs() < 0.5).all()
    assert (filled[:, 1] == filled[:, 1].round()).all()
    assert ((filled[:, 1] > 5) == (x[:, 1] > 5)).all()
    assert torch.equal(filled[:, 2:], x[:, 2:])


def test_a_category_that_is_missing_in_part_is_refused():
    def p(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Incomplete(dist.OneHotCategorical(torch.ones(3))), obs=x)

    def q(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(PairError, match="OneHotCategorical does not factorize"):
        evaluate.impute(p, q, torch.tensor([[1.0, torch.nan, 0.0]]))


def test_a_network_that_sees_nan_is_told_of_the_gaps():
    x = torch.tensor([[0.5, torch.nan], [0.1, 0.2]])
    p = models.VAE(
        default_prior(dist.Normal, 1),
        IncompleteLikelihood(Conditional(dist.Normal, MLP(1, [4]), 2)),
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(2, [4]), 1))
    doors = (
        lambda: fit(p, q, x, epochs=1, progress=False),
        lambda: evaluate.log_likelihood(p, q, x, num_particles=2),
        lambda: evaluate.embed(q, x),
        lambda: evaluate.reconstruct(p, q, x),
    )
    for door in doors:
        with pytest.raises(InputError, match="WithGaps"):
            door()
    whole = models.VAE(default_prior(dist.Normal, 1), Conditional(dist.Normal, MLP(1, [4]), 2))
    with pytest.raises(
        InputError, match="NaN values in 1 of 2 rows.*: drop .*IncompleteLikelihood"
    ):
        fit(whole, q, x, epochs=1, progress=False)
    # A guide that takes no gaps sees what is drawn in their place.
    assert not evaluate.impute(p, q, x, seed=0).isnan().any()


@pytest.mark.parametrize("method", METHODS)
def test_chains_that_diverge_begin_again_with_a_warning(method):
    """A guide that answers large values with larger codes drives the rounds to infinity."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            both = torch.stack([z, z], -1).exp()
            pyro.sample("x", dist.Normal(both, 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(3 * x.mean(-1), 0.1))

    x = torch.tensor([[1.0, math.nan]] * 4)
    with pytest.warns(
        UserWarning, match="left the finite numbers and began again.*num_rounds=1"
    ):
        found = evaluate.impute(
            model, guide, x, method=method, mean=True, num_particles=5000, seed=0
        )
    assert not found.isnan().any()
    if method == "importance":
        z = torch.linspace(-3, 3, 100_001)
        log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.exp(), 0.1).log_prob(
            x[0, 0]
        )
        true = (log_joint.softmax(0) * z.exp()).sum()
        # Of 5,000 codes 238 are the prior's; about a tenth of these are near z = 0.
        assert (found[:, 1] - true).abs().max() < 4 * 0.1 / 24**0.5


@pytest.mark.parametrize(
    "function",
    [
        lambda z: torch.softmax(z, 1),  # over the rows, in a plate of particles
        lambda z: torch.stack([z[row] for row in range(len(z))])[: len(z), :2],
    ],
    ids=["a dimension from the left", "row by row"],
)
def test_a_program_that_takes_no_plate_of_particles_has_no_weights_of_codes(function):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(function(z), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    x = torch.tensor([[0.9, 0.4], [0.1, 0.8], [0.2, 0.2]])
    mask = torch.tensor([True, False])
    message = "cannot run in a plate of particles"
    with pytest.raises(PairError, match=message):
        evaluate.imputation_log_likelihood(model, guide, x, mask, num_particles=3)
    with pytest.raises(PairError, match=message):
        evaluate.impute(model, guide, x, mask, method="importance", num_particles=3)
    with pytest.raises(PairError, match=message):
        evaluate.gaps(model, guide, x, num_particles=3)
    assert evaluate.impute(model, guide, x, mask, num_rounds=2).shape == x.shape
    assert evaluate.check_guide(model, guide, x, num_simulations=100).gap is None
