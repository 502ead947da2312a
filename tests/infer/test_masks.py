"""Masks of one half of a pair, and of both."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from tarspyro import evaluate
from tarspyro.infer import ELBO, IWAE, PairError

UNLIKE = "mask '.*' in different places.*mask it in both alike"


def imputing(alike):
    """A pair whose model draws what ``obs_mask`` leaves unobserved."""

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.3 * x * seen, 0.9))
            with poutine.mask(mask=~seen if alike else True):
                pyro.sample("x_unobserved", dist.Normal(z, 1.2))

    return model, guide


@pytest.fixture
def data():
    x = torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(10) % 3 != 0


@pytest.fixture
def evidence(data):
    x, seen = data
    return dist.Normal(0.0, 2**0.5).log_prob(x)[seen].sum().item()


def test_what_is_masked_alike_has_a_bound_on_the_evidence(data, evidence):
    torch.manual_seed(0)
    pair = imputing(alike=True)
    draws = torch.tensor([-IWAE(500).loss(*pair, *data) for _ in range(20)])
    error = draws.std() / len(draws) ** 0.5
    assert evidence - 0.1 < draws.mean() < evidence + 4 * error
    estimate = evaluate.log_likelihood(*pair, data, num_particles=5000, errors=True, seed=0)
    off = (estimate.log_likelihood.sum() - evidence).abs()
    assert off < 4 * estimate.standard_error.square().sum().sqrt()


@pytest.mark.parametrize("bound", [ELBO(), IWAE(5)], ids=["ELBO", "IWAE"])
def test_what_one_half_masks_has_none(bound, data, evidence):
    pair = imputing(alike=False)
    with pytest.warns(UserWarning, match=UNLIKE):
        value = -bound.loss(*pair, *data)
    assert value > evidence  # as the missing terms of log p - log q are those of log p
    with pytest.raises(PairError, match=UNLIKE):
        evaluate.log_likelihood(*pair, data)


FIRST, BOTH = torch.tensor([True, False]), torch.tensor([True, True])


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (FIRST, FIRST.clone(), True),
        (None, BOTH, True),
        (True, None, True),
        (FIRST, None, False),
        (FIRST, BOTH, False),
        (None, False, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["handler", "event"])
def test_masks_are_compared_by_their_values(one, other, alike, place):
    def half(mask, observed):
        def run(x):
            with pyro.plate("data", 2):
                law = dist.Normal(torch.zeros(2, 2), 1.0)
                if place == "event":  # the second element of each row
                    law = law if mask is None else law.mask(mask)
                    z = pyro.sample("z", law.to_event(1))
                else:  # the second row
                    with poutine.mask(mask=True if mask is None else mask):
                        z = pyro.sample("z", law.to_event(1))
                if observed:
                    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        return run

    pair = half(one, True), half(other, False)
    bound = ELBO()
    if alike:
        bound.loss(*pair, torch.zeros(2, 2))
    else:
        with pytest.warns(UserWarning, match=UNLIKE):
            bound.loss(*pair, torch.zeros(2, 2))


def test_a_factor_may_stand_for_a_prior_that_is_masked(data):
    """z ~ N(1, 1) by a factor: its ELBO at the posterior is the evidence, without a warning."""
    x, _ = data

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 9.0).mask(False))
            pyro.factor("prior", dist.Normal(1.0, 1.0).log_prob(z))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + 1) / 2, 0.5**0.5))

    evidence = dist.Normal(1.0, 2**0.5).log_prob(x)
    assert abs(-ELBO(analytic_kl=False).loss(model, guide, x) - evidence.sum()) < 1e-6
    torch.testing.assert_close(
        evaluate.log_likelihood(model, guide, x, num_particles=3), evidence
    )


def test_masks_of_every_batch_are_compared():
    """The first hundred rows, which are a batch, have nothing masked."""
    x = torch.linspace(-1.0, 1.0, 200)
    there = torch.arange(200) < 150

    def model(x, there):
        with pyro.plate("data", len(x)), poutine.mask(mask=there):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, there, everywhere=True):
        with pyro.plate("data", len(x)), poutine.mask(mask=there | everywhere):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    for evaluation in (evaluate.log_likelihood, evaluate.elbo):
        with pytest.raises(PairError, match="mask 'z' in different places"):
            evaluation(model, guide, (x, there), num_particles=5)

    alike = functools.partial(guide, everywhere=False)
    found = evaluate.log_likelihood(model, alike, (x, there), num_particles=5)
    truth = torch.where(there, dist.Normal(0.0, 2**0.5).log_prob(x), 0.0)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=0)
