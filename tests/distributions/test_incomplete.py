"""Densities of data with gaps: sums over what is known."""

import math

import pyro.distributions as dist
import pytest
import torch

from tarspyro.distributions import Concatenate
from tarspyro.distributions.incomplete import Incomplete, has_gaps

NAN = float("nan")


def families():
    torch.manual_seed(0)
    p = torch.rand(4, 3) / 2 + 0.2
    return {
        "normal": dist.Normal(p, 1 + p),
        "gamma": dist.Gamma(1 + p, p),
        "beta": dist.Beta(1 + p, p),
        "bernoulli": dist.Bernoulli(p),
        "poisson": dist.Poisson(5 * p),
        "student": dist.StudentT(5 * p, p, p),
    }


@pytest.mark.parametrize("name", families())
def test_the_log_probability_is_that_of_what_is_known(name):
    base = families()[name]
    value = base.sample()
    known = torch.rand(4, 3) < 0.6
    gappy = torch.where(known, value, NAN)
    expected = torch.where(known, base.log_prob(value), 0.0).sum(-1)
    found = Incomplete(base.to_event(1)).log_prob(gappy)
    assert torch.allclose(found, expected)
    assert torch.allclose(Incomplete(base).to_event(1).log_prob(gappy), expected)
    full = Incomplete(base.to_event(1)).log_prob(value)
    assert torch.equal(full, base.to_event(1).log_prob(value))
    empty = Incomplete(base.to_event(1)).log_prob(torch.full((4, 3), NAN))
    assert torch.equal(empty, torch.zeros(4))


def test_gradients_of_gaps_are_zero_and_not_nan():
    loc = torch.zeros(2, 3, requires_grad=True)
    value = torch.tensor([[1.0, NAN, 2.0], [NAN, NAN, NAN]])
    Incomplete(dist.Gamma(loc.exp(), 1.0).to_event(1)).log_prob(value).sum().backward()
    assert loc.grad.isfinite().all()
    assert (loc.grad == 0).tolist() == [[False, True, False], [True, True, True]]


def mixed():
    real = dist.Normal(torch.zeros(5, 2), 1.0).to_event(1)
    label = dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])).expand([5])
    return Concatenate([real, label])


def test_blocks_of_several_families():
    p = Incomplete(mixed())
    value = torch.tensor([[0.0, NAN, 0.0, 1.0, 0.0]]).expand(5, 5)
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)) + math.log(0.3)
    assert torch.allclose(p.log_prob(value), expected.expand(5))
    value = torch.tensor([[NAN, 0.0, NAN, NAN, NAN]]).expand(5, 5)
    assert torch.allclose(p.log_prob(value), dist.Normal(0.0, 1.0).log_prob(torch.zeros(5)))
    assert p.sample().shape == (5, 5) and not p.sample().isnan().any()
    assert p.support.check(value).all()


def test_what_belongs_together_is_known_or_missing_as_a_whole():
    p = Incomplete(mixed())
    partly = torch.tensor([0.0, 0.0, NAN, 1.0, 0.0]).expand(5, 5)
    assert not p.support.check(partly).any()
    wrong = torch.tensor([NAN, 0.0, 0.0, 0.5, 0.5]).expand(5, 5)
    assert not p.support.check(wrong).any()
    gamma = Incomplete(dist.Gamma(torch.ones(3), 1.0).to_event(1))
    assert gamma.support.check(torch.tensor([1.0, NAN, 2.0]))
    assert not gamma.support.check(torch.tensor([-1.0, NAN, 2.0]))


def test_what_is_missing_in_part_is_never_a_number():
    """A vector that belongs together is not dropped in silence where one element is missing."""
    for whole in (
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        dist.Dirichlet(torch.ones(3)),
    ):
        p = Incomplete(whole)
        assert p.log_prob(torch.tensor([0.2, NAN, 0.8])).isnan()
        assert p.log_prob(torch.full((3,), NAN)) == 0
        value = torch.tensor([0.2, 0.3, 0.5])
        assert torch.equal(p.log_prob(value), whole.log_prob(value))


def test_masked_distributions_leave_out_what_either_mask_does():
    base = dist.Normal(torch.zeros(2, 3), 1.0, validate_args=False)
    value = torch.tensor([[0.0, NAN, 1.0], [NAN, 0.5, 0.0]])
    alone = base.log_prob(value).nan_to_num(0.0).sum(-1)
    rows = torch.tensor([True, False])
    found = Incomplete(base.to_event(1).mask(rows)).log_prob(value)
    assert torch.allclose(found, alone * rows)
    assert torch.allclose(
        Incomplete(base.to_event(1)).mask(rows).log_prob(value), alone * rows
    )
    assert has_gaps(Incomplete(base.to_event(1)).mask(rows))


def test_one_block_with_gaps():
    gappy = Incomplete(dist.Normal(torch.zeros(5, 2), 1.0).to_event(1))
    label = dist.OneHotCategorical(torch.tensor([0.5, 0.5])).expand([5])
    p = Concatenate([gappy, label])
    value = torch.tensor([NAN, 0.0, 1.0, 0.0]).expand(5, 4)
    assert has_gaps(p) and not has_gaps(Concatenate([label, label]))
    assert torch.allclose(
        p.log_prob(value), torch.tensor(-0.9189385 + math.log(0.5)).expand(5)
    )
    assert p.support.check(value).all()


def test_interface():
    p = Incomplete(dist.Normal(torch.zeros(3), 2.0).to_event(1))
    assert p.event_shape == (3,) and p.batch_shape == () and p.has_rsample
    assert p.expand((4,)).sample((2,)).shape == (2, 4, 3)
    assert torch.equal(p.mean, torch.zeros(3)) and torch.equal(
        p.variance, torch.full((3,), 4.0)
    )
    assert has_gaps(p) and has_gaps(p.expand((4,)).to_event(1))
    assert not has_gaps(dist.Normal(0.0, 1.0))
