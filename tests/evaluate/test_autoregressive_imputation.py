"""Imputation by autoregressive likelihoods, against enumeration."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Autoregressive, Conditional, evaluate, guides, models
from tarspyro.infer import PairError
from tarspyro.nn import MADE, MLP, PixelCNN

STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)))
CODES = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
FIRST = torch.tensor([1, 1, 1, 0, 0, 0], dtype=torch.bool)
LAST = torch.tensor([0, 0, 0, 1, 0, 1], dtype=torch.bool)
SEEN = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
METHODS = ("pseudo-gibbs", "metropolis-within-gibbs", "importance")


def scaled(module, scale=0.8):
    for weight in module.parameters():
        nn.init.normal_(weight, 0.0, scale)
    return module.eval()


def pair(trunk=None):
    """A pair of two bits and six pixels; its guide is a poor one."""
    torch.manual_seed(0)
    trunk = MADE(6, [16], context=MLP(2, [8])) if trunk is None else trunk
    p = models.VAE(
        Autoregressive(dist.Bernoulli, MADE(2, [4]), 2),
        Autoregressive(dist.Bernoulli, trunk, 6),
    )
    q = guides.VAE(Conditional(dist.Bernoulli, MLP(6, [8]), 2))
    return scaled(p), scaled(q, 0.3)


@torch.no_grad()
def joint(p):
    """log p(x, z) of all x and z."""
    return p.likelihood(CODES).log_prob(STATES.unsqueeze(1)) + p.prior().log_prob(CODES)


def given(log_p, known):
    """p(x | x_o) of all x."""
    agree = (STATES[:, known] == SEEN[known]).all(1)
    return log_p.where(agree, -torch.inf).double().softmax(0)


def assert_frequencies(found, truth):
    indicators = (found.unsqueeze(1) == STATES).all(-1).double().mean(0)
    error = (truth * (1 - truth) / len(found)).sqrt()
    assert ((indicators - truth).abs() < 4 * error + 1e-9).all()


@pytest.mark.parametrize("known", [FIRST, LAST], ids=["in order", "out of order"])
def test_chains_tend_to_the_conditional_distribution(known):
    p, q = pair()
    found = evaluate.impute(
        p,
        q,
        SEEN.where(known, torch.nan)[None],
        known,
        method="metropolis-within-gibbs",
        num_samples=2000,
        seed=0,
    )
    assert_frequencies(found[:, 0], given(joint(p).logsumexp(1), known))


@pytest.mark.parametrize("known", [FIRST, LAST], ids=["in order", "out of order"])
def test_weighted_draws_have_the_conditional_distribution(known):
    p, q = pair()
    options = {"method": "importance", "num_particles": 20_000, "seed": 0}
    x = SEEN.where(known, torch.nan)[None]
    found = evaluate.impute(p, q, x, known, num_samples=2000, **options)
    truth = given(joint(p).logsumexp(1), known)
    assert_frequencies(found[:, 0], truth)
    mean = evaluate.impute(p, q, x, known, mean=True, **options)[0]
    assert (mean - truth.float() @ STATES).abs().max() < 4 * 0.5 / 2000**0.5


@pytest.mark.parametrize("known", [FIRST, LAST], ids=["in order", "out of order"])
def test_log_likelihood_of_the_truth_against_enumeration(known):
    p, q = pair()
    found = evaluate.imputation_log_likelihood(
        p, q, SEEN[None], known, num_particles=5000, errors=True, seed=0
    )
    truth = given(joint(p).logsumexp(1), known)[(STATES == SEEN).all(1)].log()
    error = (found.log_likelihood - truth).abs()
    assert (error < 4 * found.standard_error + 1e-5).all()


def test_a_density_is_exact_in_order_and_estimated_out_of_order():
    p = models.Density(scaled(Autoregressive(dist.Bernoulli, MADE(6, [16]), 6)))
    with torch.no_grad():
        log_p = p.likelihood().log_prob(STATES)
    exact = given(log_p, FIRST)[(STATES == SEEN).all(1)].log().float()
    found = evaluate.imputation_log_likelihood(p, None, SEEN[None], FIRST, num_particles=2)
    torch.testing.assert_close(found, exact)

    x = SEEN[None]
    with pytest.raises(PairError, match="which pseudo-Gibbs cannot draw: take method="):
        evaluate.impute(p, None, x, LAST)
    for method in METHODS[1:]:
        drawn = evaluate.impute(
            p,
            None,
            x,
            LAST,
            method=method,
            num_samples=2000,
            num_particles=20_000,
            seed=0,
        )
        assert_frequencies(drawn[:, 0], given(log_p, LAST))


@pytest.mark.parametrize("method", METHODS)
def test_images_by_all_methods(method):
    """Lower halves of a PixelCNN in double precision."""
    torch.manual_seed(0)
    trunk = PixelCNN((1, 3, 4), 4, 2, context=MLP(2, [8]))
    p = models.VAE(
        dist.Normal(torch.zeros(2).double(), 1.0).to_event(1),
        Autoregressive(dist.Normal, trunk, (1, 3, 4)),
    ).double()
    q = guides.VAE(Conditional(dist.Normal, MLP((1, 3, 4), [8]), 2)).double()
    x = torch.randn(12, 1, 3, 4).double()
    upper = (torch.arange(3) < 2).reshape(3, 1).expand(1, 3, 4)
    options = {"method": method, "num_rounds": 2, "num_particles": 10, "seed": 0}
    found = evaluate.impute(p, q, x.where(upper, torch.nan), upper, **options)
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    assert found.where(upper, 0.0).equal(x.where(upper, 0.0))
    mean = evaluate.impute(p, q, x, upper, num_samples=3, mean=True, **options)
    assert mean.shape == x.shape


def test_classes_and_vectors():
    torch.manual_seed(0)
    classes = Autoregressive(
        dist.Categorical,
        MADE(4, [8], num_classes=3, context=2),
        4,
        param_shapes={"logits": (4, 3)},
    )
    p = models.VAE(dist.Normal(torch.zeros(2), 1.0).to_event(1), classes)
    q = guides.VAE(Conditional(dist.Normal, MLP(4, [8]), 2))
    x = torch.tensor([[0.0, 1.0, 2.0, 1.0]])
    for known in (torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 1, 0])):
        found = evaluate.impute(p, q, x, known, method="importance", num_samples=5, seed=0)
        assert found[:, 0, known.bool()].equal(x[:, known.bool()].expand(5, 2))
        assert found.max() <= 2

    vectors = Autoregressive(
        dist.OneHotCategorical,
        MADE((2, 3), [8], order=torch.tensor([[0, 0, 0], [1, 1, 1]]), context=2),
        (2, 3),
    )
    p = models.VAE(dist.Normal(torch.zeros(2), 1.0).to_event(1), vectors)
    q = guides.VAE(Conditional(dist.Normal, MLP((2, 3), [8]), 2))
    x = torch.eye(3)[None, :2]
    found = evaluate.impute(p, q, x, torch.tensor([[1, 1, 1], [0, 0, 0]]), seed=0)
    assert found[0, 0].equal(x[0, 0])
    assert found[0, 1].sum() == 1
    with pytest.raises(PairError, match="draws vectors as a whole"):
        evaluate.impute(p, q, x, torch.tensor([[1, 1, 1], [0, 1, 0]]), seed=0)


def test_what_cannot_be_drawn_is_refused():
    p, q = pair()
    with pytest.raises(PairError, match="which pseudo-Gibbs cannot draw"):
        evaluate.impute(p, q, SEEN[None], LAST)
    with pytest.raises(ValueError, match="mask holds probabilities, which are for Bernoulli"):
        evaluate.impute(p, q, SEEN[None], torch.full((6,), 0.7))
    p, q = pair(MADE(6, [16], order="random", num_masks=3, context=MLP(2, [8])))
    evaluate.impute(p, q, SEEN[None], torch.ones(6))
    with pytest.raises(PairError, match="is a mixture of several masks"):
        evaluate.impute(p, q, SEEN[None], FIRST, method="importance")
