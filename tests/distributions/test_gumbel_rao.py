"""Gumbel-Rao: the gradient of straight-through draws with the mean of fewer noisy ones."""

import math

import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, guides, models
from tarspyro.distributions import GumbelSigmoid, GumbelSoftmax, default_prior
from tarspyro.infer import ELBO
from tarspyro.nn import MLP

from ..programs import assert_within

F64 = torch.float64
LOGITS = {
    GumbelSoftmax: torch.tensor([1.0, -0.5, 0.2, -3.0], dtype=F64),
    GumbelSigmoid: torch.tensor([1.0, -0.5, 0.2, -3.0], dtype=F64),
}
FAMILIES = pytest.mark.parametrize("family", LOGITS)
WEIGHTS = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=F64)


def slopes(family, rows, **options):
    """The gradients of a function of the draws that is not linear, one for each row."""
    logits = LOGITS[family].repeat(rows, 1).requires_grad_()
    z = family(logits, temperature=0.4, hard=True, **options).rsample()
    value = (z * WEIGHTS).sum(-1) ** 2 + (z * WEIGHTS).sum(-1)
    return torch.autograd.grad(value.sum(), logits)[0]


@FAMILIES
@pytest.mark.parametrize("draws", [1, 10])
def test_the_mean_of_the_gradient_is_that_of_straight_through(family, draws):
    torch.manual_seed(0)
    plain = slopes(family, 40_000)
    ours = slopes(family, 40_000, rao_blackwell=draws)
    error = ((plain.var(0) + ours.var(0)) / 40_000).sqrt()
    assert ((plain.mean(0) - ours.mean(0)).abs() < 4 * error).all()


@FAMILIES
def test_it_has_less_noise(family):
    torch.manual_seed(0)
    noise = [slopes(family, 5_000, rao_blackwell=r).var(0).sum().item() for r in (0, 1, 20)]
    assert noise[1] == pytest.approx(noise[0], rel=0.2)  # another draw of the same noise
    assert noise[2] < 0.8 * noise[0]


@FAMILIES
def test_the_draws_are_the_same(family):
    draws = []
    for options in ({}, {"rao_blackwell": 5}):
        torch.manual_seed(0)
        draws.append(family(LOGITS[family], hard=True, **options).sample((1000,)))
    assert torch.equal(*draws)


def test_perturbed_logits_have_the_draw_as_the_largest_and_follow_the_gumbel():
    torch.manual_seed(0)
    logits = LOGITS[GumbelSoftmax].expand(20_000, 4)
    q = GumbelSoftmax(logits, hard=True, rao_blackwell=1)
    corner = q.sample()
    perturbed = q._perturbed(logits, corner)[:, 0]
    assert torch.equal(perturbed.argmax(-1), corner.argmax(-1))
    # Over draws they are log-probabilities plus independent Gumbel noise.
    gumbel = perturbed - logits.log_softmax(-1)
    euler = 0.5772156649015329
    assert_within(gumbel, torch.full((4,), euler, dtype=F64))
    assert_within((gumbel - euler) ** 2, torch.full((4,), math.pi**2 / 6, dtype=F64))
    assert_within((gumbel[:, 0] - euler) * (gumbel[:, 1] - euler), 0.0)
    bits = GumbelSigmoid(logits, hard=True, rao_blackwell=1)
    bit = bits.sample()
    perturbed = bits._perturbed(logits, bit)[..., 0]
    assert torch.equal(perturbed > 0, bit > 0)
    logistic = perturbed - logits
    assert_within(logistic, torch.zeros(4, dtype=F64))
    assert_within(logistic**2, torch.full((4,), math.pi**2 / 3, dtype=F64))


@FAMILIES
def test_options_shapes_and_extremes(family):
    q = family(torch.zeros(3, 4), hard=True, rao_blackwell=2)
    assert q.expand((5, *q.batch_shape)).rao_blackwell == 2
    assert q.rsample((7,)).shape == (7, 3, 4)
    extreme = torch.tensor([-1e4, 0.0, 50.0, 1e4], requires_grad=True)
    z = family(extreme, temperature=0.1, hard=True, rao_blackwell=3).rsample((100,))
    (slope,) = torch.autograd.grad((z * torch.randn(4)).sum(), extreme)
    assert z.isfinite().all() and slope.isfinite().all()
    half = family(torch.zeros(4, dtype=torch.float16), hard=True, rao_blackwell=2).rsample()
    assert half.dtype == torch.float16
    with pytest.raises(
        ValueError, match="rao_blackwell=3 averages the gradient of hard draws"
    ):
        family(torch.zeros(4), rao_blackwell=3)
    with pytest.raises(ValueError, match="rao_blackwell"):
        family(torch.zeros(4), hard=True, rao_blackwell=-1)


@FAMILIES
def test_in_a_pair(family):
    rules = {"hard": True, "rao_blackwell": 4, "temperature": 0.5}
    p = models.VAE(
        default_prior(family, (2, 3), **rules),
        Conditional(dist.Bernoulli, MLP((2, 3), [8]), 6),
    )
    q = guides.VAE(Conditional(family, MLP(6, [8]), (2, 3), **rules))
    loss = ELBO().differentiable_loss(p, q, torch.rand(5, 6).round())
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in q.parameters())
