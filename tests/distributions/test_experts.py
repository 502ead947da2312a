"""Products and mixtures of experts and concatenated blocks, against quadrature, enumeration
and closed forms.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import kl_divergence

from tarspyro import Conditional
from tarspyro.distributions import (
    Beta,
    Concatenate,
    Dirichlet,
    Gamma,
    MixtureOfExperts,
    ProductOfExperts,
)
from tarspyro.distributions.drawing import recall
from tarspyro.distributions.transformed import TransformedDistribution
from tarspyro.infer import ELBO
from tarspyro.nn import MLP

from ..programs import assert_within

GRID = torch.arange(
    -20, 20, 0.01, dtype=torch.float64
)  # the trapezoid rule over it is exact for smooth densities
BOUNDS = pytest.mark.parametrize(
    "bound",
    [Trace_ELBO(), ELBO(analytic_kl=False), ELBO(), ELBO(num_particles=2)],
    ids=["pyro", "sampled", "analytic", "particles"],
)


def integral(values):
    return values.sum(-1) * 0.01


def experts_of(locs, scales, event_dim=0):
    return [
        dist.Normal(loc, scale).to_event(event_dim)
        for loc, scale in zip(locs, scales, strict=True)
    ]


def numbers(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def some_experts(*shape, event_dim=0):
    return experts_of(2 * numbers(*shape), (0.5 * numbers(*shape, seed=1)).exp(), event_dim)


# The product.


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("with_prior", [False, True], ids=["", "prior"])
def test_product_is_the_normalized_product(count, with_prior):
    experts = some_experts(count, 3)
    prior = dist.Normal(torch.zeros(3).double(), 1.0) if with_prior else None
    factors = sum(
        e.log_prob(GRID[:, None]) for e in [*experts, *([prior] if with_prior else [])]
    )
    expected = factors - integral(factors.exp().T).log()
    torch.testing.assert_close(
        ProductOfExperts(experts, prior).log_prob(GRID[:, None]), expected
    )


def test_product_leaves_masked_experts_out_row_by_row():
    experts, prior = some_experts(3, 8), dist.Normal(0.5 * torch.ones(8).double(), 2.0)
    mask = torch.tensor([[bool(row >> expert & 1) for row in range(8)] for expert in range(3)])
    q = ProductOfExperts(experts, prior, mask)
    assert (q.batch_shape, q.event_shape) == ((8,), ())
    for row in range(8):
        present = [e for e, here in zip(experts, mask[:, row], strict=True) if here]
        factors = sum(e.log_prob(GRID[:, None])[:, row] for e in [*present, prior])
        expected = factors - integral(factors.exp()).log()
        torch.testing.assert_close(q.log_prob(GRID[:, None])[:, row], expected)
    torch.testing.assert_close(q.mean[0], prior.mean[0])  # the prior alone
    mask[2, 0] = True  # without a prior one has to remain
    without = ProductOfExperts(experts, mask=mask)
    torch.testing.assert_close(
        without.mean[:2], torch.stack([experts[2].mean[0], experts[0].mean[1]])
    )


@pytest.mark.parametrize("what", ["loc", "scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 1e-30, 1e30])
def test_parameters_of_masked_experts_touch_neither_value_nor_gradient(what, value):
    """The encoder of a missing modality may return anything."""
    parameters = {"loc": numbers(2, 4).float(), "scale": numbers(2, 4, seed=1).exp().float()}
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    parameters[what] = torch.where(mask, parameters[what], value).requires_grad_()
    other = "scale" if what == "loc" else "loc"
    parameters[other] = parameters[other].requires_grad_()
    experts = [
        dist.Normal(loc, scale, validate_args=False)
        for loc, scale in zip(*parameters.values(), strict=True)
    ]
    q = ProductOfExperts(experts, dist.Normal(torch.zeros(4), 1.0), mask)
    assert q.mean.isfinite().all() and q.variance.isfinite().all()
    gradients = torch.autograd.grad(
        q.log_prob(q.rsample()).sum() + q.mean.sum(), list(parameters.values())
    )
    for gradient in gradients:
        assert gradient.isfinite().all(), gradient
        assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).all()


@pytest.mark.parametrize("event_dim", [0, 1, 2])
def test_product_has_the_events_of_its_experts(event_dim):
    experts = some_experts(3, 5, 2, 4, event_dim=event_dim)
    prior = dist.Normal(torch.zeros(2, 4).double(), 1.0).to_event(event_dim)
    mask = numbers(3, *experts[0].batch_shape, seed=2) > 0
    q = ProductOfExperts(experts, prior, mask)
    assert (q.batch_shape, q.event_shape) == (experts[0].batch_shape, experts[0].event_shape)
    z = q.rsample((6,))
    assert z.shape == (6, 5, 2, 4) and q.log_prob(z).shape == (6, *q.batch_shape)
    flat_mask = mask.reshape(mask.shape + (1,) * event_dim).expand(3, 5, 2, 4)
    flat = ProductOfExperts(
        some_experts(3, 5, 2, 4), dist.Normal(torch.zeros(2, 4).double(), 1.0), flat_mask
    )
    torch.testing.assert_close(q.mean, flat.mean)
    torch.testing.assert_close(q.log_prob(z), flat.to_event(event_dim).log_prob(z))


def test_experts_and_prior_broadcast():
    experts = [
        dist.Normal(torch.zeros(5, 3), 1.0).to_event(1),
        dist.Normal(torch.ones(3), 1.0).to_event(1),
    ]
    q = ProductOfExperts(experts, dist.Normal(torch.zeros(3), 1.0).to_event(1))
    assert q.batch_shape == (5,)
    torch.testing.assert_close(q.mean, torch.full((5, 3), 1 / 3))
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    q = ProductOfExperts([experts[1], experts[1]], mask=mask)
    assert q.batch_shape == (5,) and q.sample().shape == (5, 3)
    torch.testing.assert_close(q.variance[1:3, 0], torch.tensor([0.5, 1.0]))


def test_product_expands_and_has_the_kl_of_a_normal():
    q = ProductOfExperts(some_experts(3, 5, 2, event_dim=1))
    wide = q.expand([4, 5])
    assert wide.batch_shape == (4, 5) and wide.rsample((6,)).shape == (6, 4, 5, 2)
    torch.testing.assert_close(wide.mean, q.mean.expand(4, 5, 2))
    assert q.to_event(1).event_shape == (5, 2)
    prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
    kl = kl_divergence(q, prior)
    torch.testing.assert_close(
        kl, 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).sum(-1)
    )
    z = q.sample((100_000,))
    assert_within(q.log_prob(z) - prior.log_prob(z), kl)
    torch.testing.assert_close(kl_divergence(wide, prior), kl.expand(4, 5))


@pytest.mark.parametrize("bound", [Trace_ELBO(), ELBO()], ids=["pyro", "ours"])
def test_gradient_of_a_product_guide_is_exact(bound):
    """The experts of q(z | x, y) are separate; z ~ N(0, 1), x | z ~ N(z, 1)."""
    rows = 20_000
    center = torch.tensor(
        [0.5, -1.0, 0.3, 0.9], dtype=torch.float64
    )  # two locations, two scales
    parameters = center.expand(rows, 4).clone().requires_grad_()

    def guide_at(p):
        return ProductOfExperts(
            [dist.Normal(p[..., 0], p[..., 2].exp()), dist.Normal(p[..., 1], p[..., 3].exp())]
        )

    def model():
        with pyro.plate("data", rows):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.2).double().expand(rows))

    def guide():
        with pyro.plate("data", rows):
            pyro.sample("z", guide_at(parameters))

    (gradient,) = torch.autograd.grad(-bound.differentiable_loss(model, guide), parameters)
    exact = center.clone().requires_grad_()
    q = guide_at(exact)
    elbo = -0.5 * ((1.2 - q.mean) ** 2 + q.variance) - 0.5 * (
        q.mean**2 + q.variance - 1 - q.variance.log()
    )
    assert_within(gradient, torch.autograd.grad(elbo, exact)[0])


# The mixture.


@pytest.mark.parametrize("with_prior", [False, True], ids=["", "prior"])
@pytest.mark.parametrize("weighting", ["equal", "given", "per row"])
def test_mixture_density_is_torchs(weighting, with_prior):
    experts = some_experts(3 - with_prior, 5, 2, event_dim=1)
    prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1) if with_prior else None
    weights = {
        "equal": None,
        "given": torch.tensor([0.2, 0.5, 0.3]).double(),
        "per row": numbers(3, 5, seed=3).softmax(0),
    }[weighting]
    q = MixtureOfExperts(experts, prior, weights)
    members = [*experts, *([prior.expand([5])] if with_prior else [])]
    rows = torch.full((3,), 1 / 3).double() if weights is None else weights
    rows = rows.reshape(3, -1).T.expand(5, 3)
    components = dist.Normal(
        torch.stack([e.mean for e in members], 1), torch.stack([e.stddev for e in members], 1)
    ).to_event(1)
    theirs = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(rows), components
    )
    z = 3 * numbers(100, 5, 2, seed=4)
    torch.testing.assert_close(q.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(q.mean, theirs.mean)
    torch.testing.assert_close(q.variance, theirs.variance)


@pytest.mark.parametrize("event_dim", [0, 1, 2])
def test_mixture_draws_have_its_moments_and_its_shapes(event_dim):
    q = MixtureOfExperts(some_experts(3, 3, 2, 2, event_dim=event_dim))
    z = q.sample((50_000,))
    assert z.shape == (50_000, 3, 2, 2) and not z.requires_grad
    assert (q.batch_shape, q.event_shape) == (
        (3, 2, 2)[: 3 - event_dim],
        (3, 2, 2)[3 - event_dim :],
    )
    assert q.log_prob(z).shape == (50_000, *q.batch_shape)
    assert q.support.check(z).shape == (50_000, *q.batch_shape)
    assert_within(z, q.mean, errors=5)
    assert_within((z - q.mean) ** 2, q.variance, errors=5)


def test_one_expert_draws_a_whole_row():
    """The experts are far apart in two coordinates; no draw mixes their coordinates."""
    far = torch.tensor([[-100.0, -100.0], [0.0, 0.0], [100.0, 100.0]], dtype=torch.float64)
    weights = torch.tensor(
        [[0.2, 0.1, 0.0], [0.5, 0.0, 1.0], [0.3, 0.9, 0.0]], dtype=torch.float64
    )  # three rows
    q = MixtureOfExperts(
        experts_of(far[:, None].expand(3, 3, 2), torch.ones(3).double(), 1), weights=weights
    )
    z = q.sample((50_000,))
    chosen = (z / 100).round()
    assert torch.equal(chosen[..., 0], chosen[..., 1])
    for expert in range(3):
        assert_within((chosen[..., 0] == expert - 1).double(), weights[expert])


@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per row"])
def test_mixture_expands(per_row):
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    q = MixtureOfExperts(
        some_experts(3, 5, 2, event_dim=1),
        weights=numbers(3, 5).softmax(0) if per_row else weights,
    )
    wide = q.expand([4, 5])
    assert (wide.batch_shape, wide.event_shape) == ((4, 5), (2,))
    z = wide.rsample((6,))
    assert z.shape == (6, 4, 5, 2)
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    torch.testing.assert_close(wide.mean, q.mean.expand(4, 5, 2))
    torch.testing.assert_close(wide.variance, q.variance.expand(4, 5, 2))
    assert q.to_event(1).log_prob(q.sample((6,))).shape == (6,)
    assert_within(wide.expand([20_000, 4, 5]).sample(), wide.mean, errors=5)


def test_weights_of_a_larger_batch_than_the_experts():
    """With the same experts in each row and different weights, the mixture has the rows of its
    weights.
    """
    weights = numbers(2, 5).softmax(0)
    q = MixtureOfExperts(some_experts(2, 3, event_dim=1), weights=weights)
    assert (q.batch_shape, q.event_shape) == ((5,), (3,))
    assert q.sample((7,)).shape == (7, 5, 3) and q.log_prob(q.sample()).shape == (5,)


def test_pathwise_gradient_with_fixed_weights_is_exact():
    """E[z^2 + sin z] = sum_m w_m (mu_m^2 + s_m^2 + exp(-s_m^2 / 2) sin mu_m)."""
    rows, weights = 100_000, torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    centers = torch.tensor([[-1.0, 0.5, 2.0], [0.3, 1.0, 0.7]], dtype=torch.float64)
    locs, scales = (
        center[:, None].expand(3, rows).clone().requires_grad_() for center in centers
    )
    q = MixtureOfExperts(experts_of(locs, scales), weights=weights)
    assert q.has_rsample
    z = q.rsample()
    gradients = torch.autograd.grad((z**2 + z.sin()).sum(), [locs, scales])
    loc, scale = (center.clone().requires_grad_() for center in centers)
    exact = (weights * (loc**2 + scale**2 + torch.exp(-(scale**2) / 2) * loc.sin())).sum()
    for gradient, truth in zip(
        gradients, torch.autograd.grad(exact, [loc, scale]), strict=True
    ):
        assert_within(gradient.T, truth)


@BOUNDS
@pytest.mark.parametrize("learned", [False, True], ids=["fixed weights", "learned weights"])
def test_gradient_of_a_mixture_guide_is_exact(bound, learned):
    rows = 50_000
    center = torch.tensor(
        [[0.3, -0.8, 0.1], [-1.0, 0.5, 1.5], [-0.5, 0.2, -0.2]], dtype=torch.float64
    )
    parameters = center[:, :, None].expand(3, 3, rows).clone().requires_grad_()

    def guide_at(p):
        logits = p[0] if learned else p[0].detach()
        return MixtureOfExperts(experts_of(p[1], p[2].exp()), weights=logits.softmax(0))

    assert guide_at(parameters).has_rsample == (not learned)

    def model():
        with pyro.plate("data", rows):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=torch.tensor(1.2).double().expand(rows))

    def guide():
        with pyro.plate("data", rows):
            pyro.sample("z", guide_at(parameters))

    (gradient,) = torch.autograd.grad(-bound.differentiable_loss(model, guide), parameters)
    exact = center.clone().requires_grad_()
    log_q = guide_at(exact).log_prob(GRID)
    joint = dist.Normal(0.0, 1.0).log_prob(GRID) + dist.Normal(GRID, 0.7).log_prob(
        torch.tensor(1.2).double()
    )
    (truth,) = torch.autograd.grad(integral(log_q.exp() * (joint - log_q)), exact)
    assert_within(gradient.movedim(-1, 0), truth)


def test_an_expert_without_weight_changes_nothing():
    experts, weights = some_experts(3, 5), torch.tensor([0.4, 0.0, 0.6], dtype=torch.float64)
    q = MixtureOfExperts(experts, weights=weights)
    rest = MixtureOfExperts([experts[0], experts[2]], weights=weights[[0, 2]])
    z = numbers(7, 5)
    torch.testing.assert_close(q.log_prob(z), rest.log_prob(z))
    torch.testing.assert_close(q.variance, rest.variance)


@pytest.mark.parametrize("family", [ProductOfExperts, MixtureOfExperts])
def test_experts_out_of_range(family):
    normal = dist.Normal(torch.zeros(3), 1.0)
    for experts in ([], [dist.Laplace(torch.zeros(3), 1.0)], [normal, normal.to_event(1)]):
        with pytest.raises(
            ValueError,
            match="experts must be one or more Normal distributions with the same event_dim",
        ):
            family(experts)
    with pytest.raises(ValueError, match="with the same event_dim"):
        family([normal.to_event(1)], dist.Normal(0.0, 1.0))
    name, wrong = (
        ("mask", torch.ones(3, 3).bool())
        if family is ProductOfExperts
        else ("weights", torch.ones(3, 3))
    )
    with pytest.raises(
        ValueError, match=rf"{name} must be of shape \(experts, \*batch_shape\) with 2 experts"
    ):
        family([normal, normal], **{name: wrong})


def test_mixtures_count_the_prior_among_the_weights():
    normal = dist.Normal(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="with 3 experts"):
        MixtureOfExperts([normal, normal], normal, weights=torch.ones(2) / 2)
    torch.testing.assert_close(
        MixtureOfExperts([normal, normal], normal).weights, torch.full((3,), 1 / 3)
    )


# Blocks side by side.


def normal_block(size=2, batch=()):
    return dist.Normal(numbers(*batch, size), 0.5).to_event(1)


def gamma_block(size=3, batch=(), **options):
    return Gamma(
        numbers(*batch, size, seed=1).exp(), torch.full((size,), 2.0).double(), **options
    ).to_event(1)


def label_block(size=4, batch=()):
    return dist.OneHotCategorical(logits=numbers(*batch, size, seed=2))


def test_density_is_the_sum_of_the_blocks():
    blocks = [
        normal_block(batch=(5,)),
        gamma_block(batch=(5,)),
        label_block(batch=(5,)),
        Dirichlet(torch.ones(3).double()),
    ]
    q = Concatenate(blocks)
    assert (q.batch_shape, q.event_shape) == ((5,), (12,))
    z = q.sample((7,))
    assert z.shape == (7, 5, 12)
    copy = z.clone()
    expected = sum(
        block.log_prob(part)
        for block, part in zip(blocks, copy.split([2, 3, 4, 3], -1), strict=True)
    )
    torch.testing.assert_close(q.log_prob(copy), expected)
    torch.testing.assert_close(q.log_prob(z), expected)
    torch.testing.assert_close(q.mean, torch.cat([b.mean.expand(5, -1) for b in blocks], -1))
    torch.testing.assert_close(
        q.variance, torch.cat([b.variance.expand(5, -1) for b in blocks], -1)
    )
    assert_within(q.sample((50_000,)), q.mean, errors=5)


def test_draws_carry_the_draws_of_their_blocks():
    """A Gamma draw of 1e-300 is zero in single precision; its logarithm is kept."""
    concentration = torch.full((3,), 1e-3, requires_grad=True)
    blocks = [
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        Gamma(concentration, torch.ones(3)).to_event(1),
    ]
    q = Concatenate(blocks)
    z = q.rsample((1000,))
    normal, gamma = recall(z).parts
    assert recall(gamma).log.min() < -200 and torch.equal(z, torch.cat([normal, gamma], -1))
    torch.testing.assert_close(
        q.log_prob(z), blocks[0].log_prob(normal) + blocks[1].log_prob(gamma)
    )
    assert (q.log_prob(z) - q.log_prob(z.clone())).abs().max() > 10
    with torch.no_grad():
        z += 1.0
    torch.testing.assert_close(
        q.log_prob(z), q.log_prob(z.clone())
    )  # changed in place, nothing is remembered


def test_draws_of_others_are_cut_at_the_own_blocks():
    """Of blocks of other sizes, and of a flow, whose draws know other parts."""
    torch.manual_seed(0)
    one = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    three = dist.Laplace(torch.ones(3), 1.0).to_event(1)
    flow = TransformedDistribution(
        dist.Normal(torch.zeros(4), 1.0).to_event(1), [dist.transforms.Planar(4)]
    )
    prior = Concatenate([three, one])
    for posterior in (Concatenate([one, three]), flow):
        z = posterior.rsample((5,))
        expected = three.log_prob(z[:, :3]) + one.log_prob(z[:, 3:])
        torch.testing.assert_close(prior.log_prob(z), expected)


def test_blocks_of_real_numbers_are_a_vector_of_them():
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    assert Concatenate([normal, normal]).support is dist.constraints.real_vector
    mixed = Concatenate([normal, dist.OneHotCategorical(torch.ones(3))]).support
    assert repr(mixed) == "IndependentConstraint(Real(), 1) and OneHot()"


def test_blocks_expand_and_reshape():
    q = Concatenate([normal_block(), gamma_block(batch=(5,))])
    assert q.has_rsample and q.batch_shape == (5,)
    wide = q.expand([4, 5])
    z = wide.rsample((6,))
    assert z.shape == (6, 4, 5, 5)
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    event = q.to_event(1)
    assert event.event_shape == (5, 5)
    z = event.rsample((6,))
    torch.testing.assert_close(event.log_prob(z), q.log_prob(z).sum(-1))
    assert not Concatenate([normal_block(), label_block()]).has_rsample


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)], ids=str)
def test_support_is_the_product_of_the_supports(batch):
    q = Concatenate(
        [normal_block(batch=batch), gamma_block(batch=batch), label_block(batch=batch)]
    )
    assert q.support.event_dim == 1
    z = q.sample((7,))
    inside = q.support.check(z)
    assert inside.shape == (7, *batch) and inside.all()
    z = q.sample()
    assert q.support.check(z).shape == batch
    for column, wrong in ((0, math.nan), (2, -1.0), (6, 0.5)):
        spoiled = z.clone()
        spoiled[(*[0] * len(batch), column)] = wrong
        inside = q.support.check(spoiled)
        assert inside.shape == batch and int((~inside).sum()) == 1


def test_values_outside_the_support_are_an_error():
    q = Concatenate([normal_block(), gamma_block()])
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.tensor([0.0, 0.0, 1.0, -1.0, 1.0]).double())


BLOCKS = {
    "gamma": (
        1,
        lambda p, boost: Gamma(p[..., :1].exp(), p[..., 1:2].exp(), boost=boost).to_event(1),
    ),
    "beta": (
        1,
        lambda p, boost: Beta(p[..., :1].exp(), p[..., 1:2].exp(), boost=boost).to_event(1),
    ),
}


def block_moments(name, p):
    """The mean and variance of the block, and its KL against Gamma(1, 1) or Beta(1, 1), by
    torch's own formulas.
    """
    cls = torch.distributions.Gamma if name == "gamma" else torch.distributions.Beta
    q = cls(p[0].exp(), p[1].exp())
    one = torch.ones((), dtype=torch.float64)
    return q.mean, q.variance, kl_divergence(q, cls(one, one))


@BOUNDS
@pytest.mark.parametrize("event", [False, True], ids=["", "to_event"])
@pytest.mark.parametrize("name", BLOCKS)
def test_gradient_of_a_rejection_sampled_and_a_normal_block(name, event, bound):
    """z = (g, n), x | z ~ N(g + n, 1). Without augmentations, so a lost score would show."""
    rows = 40_000
    center = torch.tensor([0.05, 0.2, -0.4, -0.5], dtype=torch.float64)
    parameters = center.expand(rows, 4).clone().requires_grad_()
    _, block = BLOCKS[name]

    def blocks_at(p, boost=0):
        p = p.unsqueeze(-2) if event else p
        q = Concatenate(
            [block(p, boost), dist.Normal(p[..., 2:3], p[..., 3:].exp()).to_event(1)]
        )
        return q.to_event(1) if event else q

    zeros = torch.zeros(rows, 4, dtype=torch.float64)
    prior = blocks_at(zeros, 4)

    def model():
        with pyro.plate("data", rows):
            z = pyro.sample("z", prior)
            z = z.squeeze(-2) if event else z
            pyro.sample(
                "x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(4.0).double().expand(rows)
            )

    def guide():
        with pyro.plate("data", rows):
            pyro.sample("z", blocks_at(parameters))

    (gradient,) = torch.autograd.grad(-bound.differentiable_loss(model, guide), parameters)
    exact = center.clone().requires_grad_()
    mean, variance, kl = block_moments(name, exact)
    loc, scale = exact[2], exact[3].exp()
    elbo = -0.5 * ((4.0 - mean - loc) ** 2 + variance + scale**2) - kl
    elbo = elbo - 0.5 * (loc**2 + scale**2 - 1 - (scale**2).log())
    assert_within(gradient, torch.autograd.grad(elbo, exact)[0])


@BOUNDS
def test_gradient_with_a_block_that_has_no_reparameterization(bound):
    """z = (n, label), x | z ~ N(n + w label, 1): by enumeration of the labels."""
    rows, effects = 40_000, torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    center = torch.tensor([0.4, -0.3, 0.2, -0.5, 0.7], dtype=torch.float64)
    parameters = center.expand(rows, 5).clone().requires_grad_()

    def blocks_at(p):
        return Concatenate(
            [
                dist.Normal(p[..., :1], p[..., 1:2].exp()).to_event(1),
                dist.OneHotCategorical(logits=p[..., 2:]),
            ]
        )

    def model():
        with pyro.plate("data", rows):
            z = pyro.sample("z", blocks_at(torch.zeros(rows, 5, dtype=torch.float64)))
            pyro.sample(
                "x",
                dist.Normal(z[..., 0] + z[..., 1:] @ effects, 1.0),
                obs=torch.ones(rows).double(),
            )

    def guide():
        with pyro.plate("data", rows):
            pyro.sample("z", blocks_at(parameters))

    (gradient,) = torch.autograd.grad(-bound.differentiable_loss(model, guide), parameters)
    exact = center.clone().requires_grad_()
    loc, scale, log_probs = exact[0], exact[1].exp(), exact[2:].log_softmax(-1)
    likelihood = -0.5 * ((1 - loc - effects) ** 2 + scale**2)
    elbo = (log_probs.exp() * (likelihood - log_probs - math.log(3))).sum()
    elbo = elbo - 0.5 * (loc**2 + scale**2 - 1 - (scale**2).log())
    assert_within(gradient, torch.autograd.grad(elbo, exact)[0])


def test_divergence_is_the_sum_over_the_blocks():
    q = Concatenate(
        [normal_block(batch=(5,)), gamma_block(batch=(5,)), label_block(batch=(5,))]
    )
    p = Concatenate(
        [
            dist.Normal(torch.zeros(2).double(), 1.0).to_event(1),
            Gamma(torch.ones(3).double(), torch.ones(3).double()).to_event(1),
            dist.OneHotCategorical(probs=torch.full((4,), 0.25).double()),
        ]
    )
    kl = kl_divergence(q, p)
    assert kl.shape == (5,)
    torch.testing.assert_close(
        kl, sum(kl_divergence(a, b) for a, b in zip(q.blocks, p.blocks, strict=True))
    )
    z = q.sample((100_000,))
    assert_within(q.log_prob(z) - p.log_prob(z), kl)
    torch.testing.assert_close(
        kl_divergence(q.to_event(1), p.expand([5]).to_event(1)), kl.sum()
    )


def test_blocks_out_of_range():
    with pytest.raises(
        ValueError,
        match=r"blocks must be distributions over vectors, got .*add .to_event\(1\)",
    ):
        Concatenate([dist.Normal(torch.zeros(3), 1.0)])
    q, p = (
        Concatenate([normal_block(2), normal_block(3)]),
        Concatenate([normal_block(3), normal_block(2)]),
    )
    with pytest.raises(NotImplementedError, match=r"\[2, 3\] and \[3, 2\]"):
        kl_divergence(q, p)
    with pytest.raises(NotImplementedError):
        kl_divergence(Concatenate([gamma_block(3)]), Concatenate([label_block(3)]))
    with pytest.raises(RuntimeError):
        Concatenate([normal_block(batch=(5,)), gamma_block(batch=(4,))])


def test_the_experts_of_a_conditional_pair():
    """Two encoders, one of which may be missing, as in a multimodal guide."""
    first, second = (Conditional(dist.Normal, MLP(6, [8]), 3) for _ in range(2))
    x, y = torch.randn(10, 6), torch.randn(10, 6)
    mask = torch.tensor(np.array([[True] * 10, [True] * 5 + [False] * 5]))
    prior = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    for family, options in ((ProductOfExperts, {"mask": mask}), (MixtureOfExperts, {})):
        q = family([first(x), second(y)], prior, **options)
        assert (q.batch_shape, q.event_shape) == ((10,), (3,))
        q.log_prob(q.rsample()).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in first.parameters())
