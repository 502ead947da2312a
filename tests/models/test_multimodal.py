"""Multimodal pairs, against a linear Gaussian model with known densities."""

import contextlib
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import kl_divergence

from tarspyro import Conditional, distributions, evaluate, fit, guides, load_run, models
from tarspyro.data import Split, digits
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    ELBO,
    IWAE,
    Compiled,
    ModalityKL,
    ModalityStrata,
    ModalitySubsets,
    PairError,
    Renyi,
    check_pair,
    log_weights,
)
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP

from ..infer.test_compiled import assert_same_step
from ..programs import assert_within

BOUNDS = {
    "ELBO": ELBO,
    "ELBO, sampled": lambda: ELBO(analytic_kl=False),
    "IWAE": lambda: IWAE(3),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "Renyi": lambda: Renyi(0.5, 3),
}
FAMILIES = {
    "Normal": dist.Normal,
    "Gamma": distributions.Gamma,
    "Dirichlet": distributions.Dirichlet,
    "GumbelSoftmax": distributions.GumbelSoftmax,
}
GUIDES = ("JMVAE-zero", "JMVAE-kl", "product", "mixture")
each_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
each_guide = pytest.mark.parametrize("kind", GUIDES)
two_or_three = pytest.mark.parametrize("count", [2, 3])


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def subsets(count):
    return [
        s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)
    ]


def linear(weight, scale, bias=0.0):
    """A Conditional that is Normal with a linear location and fixed scales."""
    made = Conditional(dist.Normal, MLP(weight.shape[1], []), weight.shape[0], scale=scale)
    with torch.no_grad():
        made.heads["loc"].weight.copy_(weight)
        made.heads["loc"].bias.fill_(bias)
    return made


class Exact:
    r"""z ~ N(0, I_2) and x_m | z ~ N(W_m z, s_m^2 I), with orthogonal columns of W_m.

    A likelihood is then, as a function of z, a Normal expert with independent coordinates, so
    that the product of the experts and the prior is the posterior of every subset.
    """

    sizes, scales = (4, 3, 5), (0.7, 1.1, 0.9)

    def __init__(self, count=2, num=30, experts="product", shift=0.0, widen=1.0):
        random = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
        self.count, z = count, draw(num, 2)
        self.weights = [
            torch.linalg.qr(draw(size, 2))[0] * torch.tensor([1.5, 0.6])
            for size in self.sizes[:count]
        ]
        self.scale = self.scales[:count]
        self.x = [
            z @ w.T + s * draw(num, len(w))
            for w, s in zip(self.weights, self.scale, strict=True)
        ]
        likelihoods = [linear(w, s) for w, s in zip(self.weights, self.scale, strict=True)]
        self.model = models.MVAE(default_prior(dist.Normal, 2), likelihoods)
        self.guide = guides.MVAE(self.posteriors(shift, widen), self.model.prior, experts)
        self.joint_model = models.JMVAE(default_prior(dist.Normal, 2), likelihoods)

    def posteriors(self, shift=0.0, widen=1.0):
        pairs = zip(self.weights, self.scale, strict=True)
        return [
            linear(w.T / w.square().sum(0).unsqueeze(1), widen * s / w.norm(dim=0), shift)
            for w, s in pairs
        ]

    def posterior(self, subset, x=None):
        """p(z | x_m for m in the subset)."""
        x = self.x if x is None else x
        precision = 1 + sum(
            self.weights[m].square().sum(0) / self.scale[m] ** 2 for m in subset
        )
        loc = sum(x[m] @ self.weights[m] / self.scale[m] ** 2 for m in subset) / precision
        return dist.Normal(loc, precision.rsqrt()).to_event(1)

    def joint_guide(self):
        """The exact posteriors of all modalities and of each: a JMVAE-kl after perfect
        training.
        """
        alone = [
            Function(lambda x, m=m: self.posterior([m], {m: x})) for m in range(self.count)
        ]
        return guides.JMVAE(lambda *x: self.posterior(range(self.count), x), alone)

    def log_p(self, subset):
        if not subset:
            return torch.zeros(len(self.x[0]))
        weight = torch.cat([self.weights[m] for m in subset])
        noise = torch.cat([torch.full((self.sizes[m],), self.scale[m] ** 2) for m in subset])
        x = torch.cat([self.x[m] for m in subset], 1)
        return dist.MultivariateNormal(
            torch.zeros(len(noise)), weight @ weight.T + noise.diag()
        ).log_prob(x)

    def only(self, subset):
        return tuple(self.x[m] if m in subset else None for m in range(self.count))

    def names(self, subset):
        return [f"x_{m + 1}" for m in subset]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *x):
        return self.function(*x)


# --- what the pairs compute


@two_or_three
def test_the_product_of_experts_is_the_posterior_of_every_subset(double, count):
    toy = Exact(count)
    for subset in subsets(count):
        q = poutine.trace(toy.guide).get_trace(*toy.only(subset)).nodes["z"]["fn"]
        exact = toy.posterior(subset)
        torch.testing.assert_close(q.mean, exact.mean)
        torch.testing.assert_close(q.variance, exact.variance.expand_as(q.variance))
        torch.testing.assert_close(evaluate.embed(toy.guide, toy.only(subset)), exact.mean)


@pytest.mark.parametrize("bound", list(BOUNDS.values())[1:], ids=list(BOUNDS)[1:])
@two_or_three
def test_with_the_exact_posterior_every_bound_of_every_subset_is_log_p(double, bound, count):
    toy = Exact(count)
    for subset in subsets(count):
        loss = bound().loss(toy.model, toy.guide, *toy.only(subset))
        assert loss == pytest.approx(-toy.log_p(subset).sum().item(), rel=1e-9)


def test_the_posterior_depends_on_the_given_modalities(double):
    """An earlier library used the guide of the first modality for every marginal."""
    toy = Exact(3)
    q = toy.joint_guide()
    for subset in [(0,), (1,), (2,), (0, 1, 2)]:
        data = toy.only(subset)
        loss = ELBO(analytic_kl=False).loss(toy.joint_model, q, *data)
        assert loss == pytest.approx(-toy.log_p(subset).sum().item(), rel=1e-9)
    with pytest.raises(ValueError, match="posterior has no trunk with in_shapes.* give zeros"):
        q(toy.x[0], toy.x[1], None)


def test_missing_inputs_are_zeros(double):
    posterior = Conditional(dist.Normal, MLP([4, 3], [5]), 2)
    x, y = torch.randn(6, 4), torch.randn(6, 3)
    zero, kl = guides.JMVAE(posterior), guides.JMVAE(posterior, Exact().posteriors())
    torch.testing.assert_close(
        evaluate.embed(zero, (x, None)), posterior(x, torch.zeros(6, 3)).mean
    )
    torch.testing.assert_close(
        evaluate.embed(zero, (None, y)), posterior(torch.zeros(6, 4), y).mean
    )
    torch.testing.assert_close(evaluate.embed(kl, (None, y)), kl.posteriors[1](y).mean)
    torch.testing.assert_close(evaluate.embed(kl, (x, y)), posterior(x, y).mean)
    mask = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]] * 2)
    for q in (zero, kl):
        torch.testing.assert_close(
            evaluate.embed(q, (x, y, mask)),
            posterior(x * mask[:, :1], y * mask[:, 1:]).mean.detach(),
        )


@two_or_three
def test_a_mask_makes_every_row_the_pair_of_its_modalities(double, count):
    """Rows of all kinds in one batch; the data behind a false entry of the mask have no
    effect.
    """
    toy = Exact(count)
    rows = torch.arange(len(toy.x[0]))
    mask = torch.stack([(rows >> m) % 2 for m in range(count)], 1)
    exact = torch.stack(
        [toy.log_p([m for m in range(count) if row[m]])[n] for n, row in enumerate(mask)]
    )
    for rubbish in (0.0, 1e30):
        x = [
            torch.where(mask[:, m : m + 1] > 0, value, rubbish)
            for m, value in enumerate(toy.x)
        ]
        weights = log_weights(toy.model, toy.guide, *x, mask, num_particles=4)
        torch.testing.assert_close(weights, exact.expand(4, -1))
        for bound in (IWAE(3), IWAE(3, gradient="dreg"), ELBO(analytic_kl=False)):
            loss = bound.differentiable_loss(toy.model, toy.guide, *x, mask)
            torch.testing.assert_close(loss, -exact.sum())
            loss.backward()
    gradients = [p.grad for half in (toy.model, toy.guide) for p in half.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    none = torch.zeros(len(rows), count)
    assert ELBO().loss(toy.model, toy.guide, *toy.x, none) == 0


def test_masked_values_may_be_outside_the_support():
    p, q = pair("product")
    x, y = batch(9)
    mask = torch.tensor([[1, 1], [1, 0], [0, 1]]).repeat(3, 1)
    y = torch.where(mask[:, 1:] > 0, y, 7.0)
    fit(p, q, (x, y, mask), epochs=2, progress=False)  # with every check
    found = evaluate.log_likelihood(p, q, (x, y, mask), num_particles=5, seed=0)
    alone = evaluate.log_likelihood(p, q, (x, None), num_particles=1000, seed=0)
    assert found.isfinite().all()
    exact = evaluate.log_likelihood(
        p, q, (x, y, mask), num_particles=1000, errors=True, seed=0
    )
    off = (exact.log_likelihood - alone)[mask[:, 1] == 0].abs()
    assert (off < 6 * exact.standard_error[mask[:, 1] == 0]).all()


@two_or_three
def test_the_mixture_is_that_of_the_experts_that_are_present(double, count):
    toy = Exact(count, experts="mixture")
    z = torch.randn(len(toy.x[0]), 2)
    densities = [
        expert(x).log_prob(z) for expert, x in zip(toy.guide.posteriors, toy.x, strict=True)
    ]
    mask = torch.tensor([[n >> m & 1 for m in range(count)] for n in range(30)])
    q = poutine.trace(toy.guide).get_trace(*toy.x, mask).nodes["z"]["fn"]
    for n, row in enumerate(mask):
        here = [densities[m][n] for m in range(count) if row[m]]
        expected = (
            torch.stack(here).logsumexp(0) - np.log(len(here))
            if here
            else toy.model.prior().log_prob(z)[n]
        )
        torch.testing.assert_close(q.log_prob(z)[n], expected)
    whole = poutine.trace(toy.guide).get_trace(*toy.x).nodes["z"]["fn"]
    torch.testing.assert_close(
        whole.log_prob(z), torch.stack(densities).logsumexp(0) - np.log(count)
    )


def test_bounds_of_the_mixture_against_a_grid(double):
    """The ELBO is the mean over both experts, scored by the whole mixture. With K draws the
    bound is tighter.
    """
    p = models.MVAE(
        default_prior(dist.Normal, 1), [linear(torch.tensor([[w]]), 0.8) for w in (1.0, -0.5)]
    )
    q = guides.MVAE(
        [linear(torch.tensor([[w]]), s) for w, s in ((0.7, 0.6), (-0.9, 0.9))],
        p.prior,
        "mixture",
    )
    x = torch.tensor([[0.9]]), torch.tensor([[0.4]])
    z = torch.linspace(-8, 8, 4001).reshape(-1, 1, 1)
    log_p = p.prior().log_prob(z) + sum(
        f(z).log_prob(v) for f, v in zip(p.likelihoods, x, strict=True)
    )
    log_q = torch.stack(
        [f(v).log_prob(z) for f, v in zip(q.posteriors, x, strict=True)]
    ).logsumexp(0) - np.log(2)
    step = (z[1] - z[0]).item()
    elbo = (log_q.exp() * (log_p - log_q)).sum().item() * step
    exact = log_p.logsumexp(0).item() + np.log(step)
    many = [value.expand(4000, 1) for value in x]
    draws = log_weights(p, q, *many)[0]
    assert_within(draws, elbo)
    assert_within(log_weights(p, q, *many, num_particles=50).exp().mean(0), np.exp(exact))
    assert elbo < -IWAE(5).loss(p, q, *many) / 4000 < exact


def narrow_and_wide(mixture="mixture"):
    p = models.MVAE(
        default_prior(dist.Normal, 1), [linear(torch.tensor([[w]]), 0.8) for w in (1.0, -0.5)]
    )
    experts = [linear(torch.tensor([[w]]), s) for w, s in ((0.7, 0.6), (-0.9, 0.9))]
    return p, guides.MVAE(experts, p.prior, mixture)


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("missing", [False, True])
def test_the_bound_of_single_experts(double, particles, missing):
    """The mean over the experts of a logarithm of draws of one expert, by hand; in rows that
    lack a modality, of the other one.
    """
    torch.manual_seed(0)
    p, q = narrow_and_wide()
    x = torch.tensor([[0.9]]).expand(6000, 1), torch.tensor([[0.4]]).expand(6000, 1)
    mask = torch.ones(6000, 2, dtype=torch.bool)
    if missing:
        mask[::3, 0] = False
    by_hand = []
    experts = [f(v) for f, v in zip(q.posteriors, x, strict=True)]
    present = mask.double() / mask.sum(1, keepdim=True)
    for m, expert in enumerate(experts):
        z = expert.sample((particles,))
        log_p = p.prior().log_prob(z)
        for k in range(2):
            log_p = log_p + torch.where(mask[:, k], p.likelihoods[k](z).log_prob(x[k]), 0.0)
        log_q = torch.stack([e.log_prob(z) for e in experts], -1)
        log_w = log_p - (log_q + present.log()).logsumexp(-1)
        by_hand.append(present[:, m] * (log_w.logsumexp(0) - np.log(particles)))
    exact = torch.stack(by_hand).sum(0)
    given = (*x, mask) if missing else x
    bound = ModalityStrata(IWAE(particles))
    found = torch.tensor([-bound.loss(p, q, *given) / 6000 for _ in range(20)])
    difference = found.mean() - exact.mean()
    error = (found.var() / 20 + exact.var() / 6000).sqrt()
    assert abs(difference) < 4 * error
    if particles > 1 and not missing:  # the whole mixture in one logarithm is another bound
        whole = -IWAE(particles).loss(p, q, *given) / 6000
        assert whole > exact.mean() + 4 * error


def test_each_expert_is_drawn_from_once(double):
    p, q = narrow_and_wide()
    x = torch.full((50, 1), 0.9), torch.full((50, 1), 0.4)
    drawn = poutine.trace(q).get_trace(*x).nodes["z"]["fn"]
    levels = torch.rand(50)
    first = drawn.at(levels / 2).sample((2000,))
    second = drawn.at((levels + 1) / 2).sample((2000,))
    assert_within(first[..., 0].flatten(), 0.7 * 0.9)
    assert_within(second[..., 0].flatten(), -0.9 * 0.4)
    assert torch.equal(drawn.at(levels).log_prob(first[0]), drawn.log_prob(first[0]))


def test_compiled_strata_are_those_of_the_eager_step():
    torch.manual_seed(0)
    p, q = narrow_and_wide()
    x = torch.randn(8, 1), torch.randn(8, 1)
    values = []
    for loss in (ModalityStrata(IWAE(3)), Compiled(ModalityStrata(IWAE(3)), backend="eager")):
        torch.manual_seed(1)
        loss.loss(p, q, *x)
        torch.manual_seed(2)
        values.append(loss.differentiable_loss(p, q, *x).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_strata_of_batches_of_several_sizes(double):
    p, q = narrow_and_wide()
    loss = ModalityStrata(IWAE(2))
    for size in (5, 3, 5):
        assert np.isfinite(loss.loss(p, q, torch.zeros(size, 1), torch.zeros(size, 1)))


def test_strata_need_a_mixture(double):
    p, q = narrow_and_wide("product")
    with pytest.raises(ValueError, match="guide must draw from a MixtureOfExperts"):
        ModalityStrata(IWAE(2)).loss(p, q, torch.zeros(3, 1), torch.zeros(3, 1))


@two_or_three
def test_the_mixture_of_products_has_all_subsets(double, count):
    toy = Exact(count, experts="mixture-of-products")
    z = torch.randn(30, 2)
    each = [toy.posterior(s).log_prob(z) for s in subsets(count) if s]
    found = poutine.trace(toy.guide).get_trace(*toy.x).nodes["z"]["fn"].log_prob(z)
    torch.testing.assert_close(found, torch.stack(each).logsumexp(0) - np.log(len(each)))

    mask = torch.ones(30, count, dtype=torch.bool)
    mask[::2, 0] = False
    rows = poutine.trace(toy.guide).get_trace(*toy.x, mask).nodes["z"]["fn"].log_prob(z)
    rest = [toy.posterior(s).log_prob(z) for s in subsets(count) if s and 0 not in s]
    lacking = torch.stack(rest).logsumexp(0) - np.log(len(rest))
    torch.testing.assert_close(rows, torch.where(mask[:, 0], found, lacking))


def test_gradients_of_product_and_mixture(double):
    """Against finite differences of the expected bound with the same noise; for the mixture,
    of the exact ELBO on a grid.
    """
    for kind in ("product", "mixture"):
        toy = Exact(2, num=1, experts=kind, shift=0.3, widen=1.3)
        parameter = toy.guide.posteriors[0].heads["loc"].bias
        x = [value.expand(20_000, -1) for value in toy.x]

        def value(shift, toy=toy, kind=kind, parameter=parameter):
            with torch.no_grad():
                parameter += shift
                q = poutine.trace(toy.guide).get_trace(*toy.x).nodes["z"]["fn"]
                grid = torch.cartesian_prod(*[torch.linspace(-6, 6, 301)] * 2).unsqueeze(1)
                pairs = zip(toy.model.likelihoods, toy.x, strict=True)
                log_p = toy.model.prior().log_prob(grid) + sum(
                    f(grid).log_prob(v) for f, v in pairs
                )
                log_q = q.log_prob(grid)
                parameter -= shift
                return (log_q.exp() * (log_p - log_q)).sum() * 0.04**2

        step = torch.tensor([1e-4, 0.0])
        exact = (value(step) - value(-step)) / 2e-4
        draws = []
        for _ in range(20):
            loss = ELBO(analytic_kl=False).differentiable_loss(toy.model, toy.guide, *x)
            draws.append(-torch.autograd.grad(loss, parameter)[0][0] / len(x[0]))
        assert_within(torch.stack(draws), exact, kind)


# --- log-likelihoods


@two_or_three
@pytest.mark.parametrize("kind", ["product", "mixture"])
def test_joint_marginal_and_conditional_log_likelihoods(double, count, kind):
    toy = Exact(count, num=8, experts=kind, shift=0.1, widen=1.2)
    for observed in subsets(count):
        for size in range(len(observed)):
            for given in itertools.combinations(observed, size):
                of = [m for m in observed if m not in given]
                found = evaluate.multimodal_log_likelihood(
                    toy.model,
                    toy.guide,
                    toy.x,
                    of=toy.names(of),
                    given=toy.names(given),
                    num_particles=3000,
                    errors=True,
                    seed=0,
                )
                exact = toy.log_p(observed) - toy.log_p(given)
                assert (
                    (found.log_likelihood - exact).abs() < 4 * found.standard_error
                ).all(), (of, given)
                assert found.standard_error.max() < 0.2


def test_log_likelihoods_are_exact_with_exact_posteriors(double):
    toy = Exact(2)
    options = {"num_particles": 2, "errors": True}
    for q, p in ((toy.guide, toy.model), (toy.joint_guide(), toy.joint_model)):
        joint = evaluate.multimodal_log_likelihood(p, q, toy.x, **options)
        torch.testing.assert_close(joint.log_likelihood, toy.log_p([0, 1]))
        torch.testing.assert_close(
            evaluate.log_likelihood(p, q, tuple(toy.x), num_particles=2), toy.log_p([0, 1])
        )
        marginal = evaluate.multimodal_log_likelihood(p, q, toy.x, of="x_2", **options)
        torch.testing.assert_close(marginal.log_likelihood, toy.log_p([1]))
        torch.testing.assert_close(
            evaluate.log_likelihood(p, q, (None, toy.x[1]), num_particles=2), toy.log_p([1])
        )
        # The conditional one subtracts log p of what is given.
        found = evaluate.multimodal_log_likelihood(p, q, toy.x, given="x_1", **options)
        torch.testing.assert_close(found.log_likelihood, toy.log_p([0, 1]) - toy.log_p([0]))
        torch.testing.assert_close(found.effective_sample_size, torch.full((30,), 2.0))
        array = evaluate.multimodal_log_likelihood(
            p, q, [x.numpy() for x in toy.x], of="x_1", given="x_2", num_particles=2
        )
        np.testing.assert_allclose(array, toy.log_p([0, 1]) - toy.log_p([1]))


def test_the_guide_of_all_modalities_may_serve_a_marginal(double):
    toy = Exact(2, num=8)
    exact = evaluate.multimodal_log_likelihood(
        toy.model,
        toy.guide,
        toy.x,
        of="x_1",
        encoded=["x_1", "x_2"],
        num_particles=20_000,
        errors=True,
        seed=0,
    )
    assert ((exact.log_likelihood - toy.log_p([0])).abs() < 4 * exact.standard_error).all()
    assert (
        exact.standard_error > 1e-3
    ).all()  # unlike with its own guide, which is exact here


def test_the_terms_of_a_conditional_log_likelihood_have_draws_of_their_own(double):
    """With shared draws the errors would not add up."""
    toy = Exact(2, num=8, shift=0.3)
    joint, marginal, conditional = (
        evaluate.multimodal_log_likelihood(
            toy.model, toy.guide, toy.x, num_particles=20, errors=True, **options
        )
        for options in (
            {"seed": 0},
            {"of": "x_1", "seed": 1},
            {"of": "x_2", "given": "x_1", "seed": 0},
        )
    )
    torch.testing.assert_close(
        conditional.log_likelihood, joint.log_likelihood - marginal.log_likelihood
    )
    torch.testing.assert_close(
        conditional.standard_error, joint.standard_error.hypot(marginal.standard_error)
    )


def test_log_likelihoods_reject_invalid_arguments():
    p, q = pair("product")
    data = batch(3)
    for options, message in (
        ({"of": "y"}, r"of must name modalities \(x_1, x_2\), got 'y'"),
        ({"given": ["x_1", "x_3"]}, "given must name modalities"),
        ({"encoded": "z"}, "encoded must name modalities"),
        ({"of": "x_1", "given": "x_1"}, "of must name modalities that are not given"),
        ({"given": ["x_1", "x_2"]}, "of must name modalities that are not given"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.multimodal_log_likelihood(p, q, data, num_particles=2, **options)


@each_guide
def test_evaluations_leave_dropout_out(kind):
    """An earlier library left dropout on in evaluation."""
    p, q = pair(kind, dropout=0.5)
    data = batch(5)
    for given in (data, (data[0], None)):
        assert torch.equal(evaluate.embed(q, given), evaluate.embed(q, given))
    first, again = (
        evaluate.multimodal_log_likelihood(p, q, data, given="x_2", num_particles=3, seed=0)
        for _ in range(2)
    )
    assert torch.equal(first, again) and p.training and q.training


# --- losses beside one bound


@two_or_three
def test_modality_kl_sums_the_kls_of_the_modalities(double, count):
    """It sums over modalities and rows, as in the paper; an earlier library averaged over
    modalities.
    """
    toy = Exact(count)
    q = toy.joint_guide()
    exact = sum(
        kl_divergence(toy.posterior(range(count)), toy.posterior([m])).sum()
        for m in range(count)
    )
    inner = ELBO(analytic_kl=False)
    for mask in ([], [torch.ones(30, count)]):
        loss, terms = ModalityKL(inner, 0.3).loss_and_terms(
            toy.joint_model, toy.guide, *toy.x, *mask
        )
        torch.testing.assert_close(terms["modality_kl"], exact)
        torch.testing.assert_close(loss, -toy.log_p(range(count)).sum() + 0.3 * exact)
        torch.testing.assert_close(terms["bound"], toy.log_p(range(count)).sum())
    torch.testing.assert_close(
        ModalityKL(inner, 0.0).loss(toy.joint_model, q, *toy.x), -terms["bound"].item()
    )
    only = ModalityKL(inner).loss_and_terms(toy.joint_model, toy.guide, *toy.only([0]))[1]
    assert only["modality_kl"] == 0


def test_modality_kl_of_rows_that_lack_a_modality(double):
    toy = Exact(3)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1]]).repeat(10, 1)
    exact = 0.0
    for n, row in enumerate(mask):
        here = [m for m in range(3) if row[m]]
        x = [value[n] for value in toy.x]
        exact += sum(
            kl_divergence(toy.posterior(here, x), toy.posterior([m], x)) for m in here
        )
    terms = ModalityKL(ELBO()).loss_and_terms(toy.model, toy.guide, *toy.x, mask)[1]
    torch.testing.assert_close(terms["modality_kl"], exact)


def test_modality_kl_is_sampled_without_a_closed_form(double):
    toy = Exact(2, num=3, experts="mixture")
    many = [value.repeat(100, 1) for value in toy.x]
    terms = [
        ModalityKL(ELBO()).loss_and_terms(toy.model, toy.guide, *many)[1]["modality_kl"]
        for _ in range(50)
    ]
    z = poutine.trace(toy.guide).get_trace(*toy.x).nodes["z"]["fn"].sample((100_000,))
    alone = [
        expert(x).log_prob(z) for expert, x in zip(toy.guide.posteriors, toy.x, strict=True)
    ]
    joint = torch.stack(alone).logsumexp(0) - np.log(2)
    exact = (2 * joint - alone[0] - alone[1]).mean(0).sum()
    assert_within(torch.stack(terms) / 100, exact)


def test_modality_kl_teaches_the_single_guides_alone_nothing_else(double):
    """Its gradient is that of the closed form, in the joint guide and in the single guides."""
    q = guides.JMVAE(
        Conditional(dist.Normal, MLP([4, 3], []), 2), Exact().posteriors(0.2, 1.5)
    )
    toy = Exact(2)
    parameters = list(q.parameters())
    joint = q.posterior(*toy.x)
    exact = sum(
        kl_divergence(joint, single(x)).sum()
        for single, x in zip(q.posteriors, toy.x, strict=True)
    )
    loss = 0.5 * exact
    torch.manual_seed(3)
    with_kl = ModalityKL(IWAE(3), 0.5).differentiable_loss(toy.joint_model, q, *toy.x)
    torch.manual_seed(3)
    without = IWAE(3).differentiable_loss(toy.joint_model, q, *toy.x)
    torch.testing.assert_close(with_kl, without + loss)
    found = torch.autograd.grad(with_kl, parameters)
    expected = torch.autograd.grad(without + loss, parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@two_or_three
def test_modality_subsets_add_the_bounds_of_all_and_of_each(double, count):
    toy = Exact(count)
    loss, terms = ModalitySubsets(IWAE(2)).loss_and_terms(toy.model, toy.guide, *toy.x)
    joint = toy.log_p(range(count)).sum()
    torch.testing.assert_close(loss, -joint - sum(toy.log_p([m]).sum() for m in range(count)))
    torch.testing.assert_close(terms["bound"], joint)
    # Of one modality the second term would be the first again.
    loss = ModalitySubsets(IWAE(2)).loss(toy.model, toy.guide, *toy.only([1]))
    assert loss == pytest.approx(-toy.log_p([1]).sum().item())


def test_random_subsets_are_uniform_and_drawn_for_every_row(double):
    toy = Exact(3, num=5)
    many = [value.repeat(2000, 1) for value in toy.x]
    bound = ModalitySubsets(ELBO(analytic_kl=False), num_subsets=2)
    further = bound.loss(toy.model, toy.guide, *many)
    further += (
        2000 * (toy.log_p([0, 1, 2]) + sum(toy.log_p([m]) for m in range(3))).sum().item()
    )
    values = torch.stack(
        [toy.log_p(subset) for subset in subsets(3)]
    )  # the seven that are not empty
    spread = (2 * 2000 * values.var(0, unbiased=False).sum()) ** 0.5
    assert abs(further + 2 * 2000 * values.mean(0).sum().item()) < 4 * spread
    # Where rows lack a modality, a subset never has it.
    mask = torch.tensor([[1.0, 0.0, 0.0]]).repeat(5, 1)
    loss = ModalitySubsets(ELBO(analytic_kl=False), 1).loss(toy.model, toy.guide, *toy.x, mask)
    log_p = toy.log_p([0])
    parts = (
        -loss - 2 * log_p.sum()
    )  # the bounds of all and of each, of which that of x_1 alone counts
    assert (
        min(
            abs(parts - sum(c)) for c in itertools.product(*[(0.0, v) for v in log_p.tolist()])
        )
        < 1e-6
    )


def test_schedules_and_terms_reach_the_history():
    p, q = pair("JMVAE-kl")
    history = fit(
        p,
        q,
        batch(),
        loss=ModalityKL(ELBO(), 0.1),
        schedules={"beta": lambda step: 0.5, "alpha": lambda step: 0.2},
        lr=0.0,
        epochs=1,
        progress=False,
        seed=0,
    )
    row = history.rows[0]
    assert row["elbo"] == pytest.approx(row["reconstruction"] - row["kl"])
    assert row["bound"] == pytest.approx(row["reconstruction"] - 0.5 * row["kl"], rel=1e-5)
    assert row["loss"] == pytest.approx(-row["bound"] + 0.2 * row["modality_kl"], rel=1e-5)
    history = fit(p, q, batch(), loss=ModalityKL(IWAE(2), 0.1), epochs=1, progress=False)
    assert {"bound", "modality_kl"} <= history.rows[0].keys() and "elbo" not in history.rows[0]


def test_losses_reject_invalid_arguments():
    for make, message in (
        (lambda: ModalityKL(ELBO(), -1.0), "alpha must not be negative, got -1.0"),
        (lambda: ModalitySubsets(ELBO(), -1), "num_subsets must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(
        TypeError, match="bound must be one of tarspyro.infer, .*got Trace_ELBO"
    ):
        ModalityKL(pyro.infer.Trace_ELBO())
    with pytest.raises(ValueError, match="chunk_size runs every chunk twice"):
        Compiled(ModalityKL(IWAE(4, chunk_size=2)))


# --- what is missing


@pytest.mark.parametrize("num_rounds", [0, 3])
def test_imputed_draws_have_the_law_of_the_chain(double, num_rounds):
    """With the exact posterior as guide, the first draw already follows p(x_2 | x_1), and
    later draws too.
    """
    toy = Exact(2, num=2)
    many = toy.x[0].repeat_interleave(5000, 0)
    found = evaluate.impute_modalities(
        toy.model, toy.guide, (many, None), num_rounds=num_rounds, seed=0
    )
    assert torch.equal(found["x_1"], many)
    x_2 = found["x_2"].reshape(2, 5000, -1).transpose(0, 1)
    code = toy.posterior([0])
    assert_within(x_2, code.mean @ toy.weights[1].T)
    centred = x_2 - code.mean @ toy.weights[1].T
    covariance = toy.weights[1] @ code.variance.diag_embed() @ toy.weights[1].T + toy.scale[
        1
    ] ** 2 * torch.eye(3)
    assert_within(centred.unsqueeze(-1) * centred.unsqueeze(-2), covariance.expand(2, 3, 3))


def test_resampling_corrects_the_zeros_of_the_first_round(double):
    """The guide starts from zeros. Its mean after each round follows a known linear recursion
    to the exact mean.
    """
    toy = Exact(2, num=1)
    gains = [
        toy.posterior([0, 1], [torch.eye(4), torch.zeros(4, 3)]),
        toy.posterior([0, 1], [torch.zeros(3, 4), torch.eye(3)]),
    ]
    posterior = Conditional(
        dist.Normal, MLP([4, 3], []), 2, scale=toy.posterior([0, 1]).base_dist.scale[0].clone()
    )
    with torch.no_grad():
        posterior.heads["loc"].weight.copy_(torch.cat([gain.mean for gain in gains]).T)
        posterior.heads["loc"].bias.zero_()
    q = guides.JMVAE(posterior)
    many = toy.x[0].expand(4000, -1)
    right = (toy.posterior([0]).mean @ toy.weights[1].T)[0]
    x_2, distances = torch.zeros(1, 3), []
    for num_rounds in range(5):
        x_2 = posterior(toy.x[0], x_2).mean.detach() @ toy.weights[1].T
        found = evaluate.impute_modalities(
            toy.joint_model, q, (many, None), num_rounds=num_rounds, seed=0
        )["x_2"]
        assert_within(found, x_2[0])
        distances.append((x_2[0] - right).norm().item())
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.2 * distances[0]


def test_imputed_means_rows_and_arrays(double):
    toy = Exact(3, num=6)
    means = evaluate.impute_modalities(
        toy.model, toy.guide, [toy.x[0].numpy(), None, None], mean=True, seed=0
    )
    assert isinstance(means["x_2"], np.ndarray) and means["x_3"].shape == (6, 5)
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]]).repeat(3, 1)
    filled = evaluate.impute_modalities(
        toy.model, toy.guide, (*toy.x, mask), num_rounds=1, seed=0
    )
    for m, value in enumerate(toy.x):
        kept = (filled[f"x_{m + 1}"] == value).all(1)
        assert torch.equal(kept, mask[:, m].bool())
    with pytest.raises(ValueError, match="num_rounds must not be negative, got -1"):
        evaluate.impute_modalities(toy.model, toy.guide, toy.x, num_rounds=-1)


def test_coherence_counts_agreement(double):
    """In one dimension, with classes by sign, agreement is a quadrant probability, 1/2 +
    asin(correlation) / pi.
    """
    weights, scales = (1.0, -2.0), (0.5, 1.0)
    p = models.MVAE(
        default_prior(dist.Normal, 1),
        [linear(torch.tensor([[w]]), s) for w, s in zip(weights, scales, strict=True)],
    )
    experts = [
        linear(torch.tensor([[1 / w]]), s / abs(w))
        for w, s in zip(weights, scales, strict=True)
    ]
    q = guides.MVAE(experts, p.prior)
    x = [value.detach() for value in p(batch_size=8000)]
    classifiers = [
        lambda value: (value[:, 0] > 0).long(),
        lambda value: (value[:, 0] < 0).long(),
    ]
    shares = evaluate.coherence(p, q, x, classifiers, num_samples=8000, mean=False, seed=0)
    correlation = 2.0 / (1.25 * 5.0) ** 0.5
    exact = 0.5 + np.arcsin(correlation) / np.pi
    error = (exact * (1 - exact) / 8000) ** 0.5
    assert shares.keys() == {"x_1, x_2", "x_2 | x_1", "x_1 | x_2"}
    # The guide is exact, so that a pair of a data point and its other half, drawn anew, has
    # the law of the model.
    for name, share in shares.items():
        assert abs(share - exact) < 4 * error, name
    classes = classifiers[0](x[0])
    labelled = evaluate.coherence(
        p, q, x, classifiers, labels=classes, num_samples=10, mean=False, seed=0
    )
    assert (
        labelled["x_2 | x_1"] == shares["x_2 | x_1"]
        and labelled["x_1 | x_2"] != shares["x_1 | x_2"]
    )
    by_mean = evaluate.coherence(p, q, x, classifiers, num_samples=2000, seed=0)
    assert by_mean["x_1, x_2"] == 1  # both means have the sign of z
    with pytest.raises(
        ValueError, match="classifiers must be one for each of the 2 modalities, got 1"
    ):
        evaluate.coherence(p, q, x, classifiers[:1])


@each_guide
def test_rows_with_nothing_observed_are_draws_of_the_model(kind):
    """Their log-likelihood is 0, and imputed values have the right support."""
    p, q = pair(kind)
    x, y = batch(6)
    mask = torch.tensor([[1, 1], [0, 0], [1, 0]]).bool().repeat(2, 1)
    found = evaluate.log_likelihood(
        p, q, (x, y, mask), num_particles=4000, errors=True, seed=0
    )
    empty = ~mask.any(1)
    assert (found.log_likelihood[empty].abs() <= 4 * found.standard_error[empty] + 1e-5).all()
    assert (found.log_likelihood[~empty] < -10).all()
    filled = evaluate.impute_modalities(p, q, (x, y, mask), num_rounds=1, seed=0)
    assert torch.equal(filled["x_2"].sum(1), torch.ones(6)) and set(
        filled["x_1"].unique().tolist()
    ) == {0.0, 1.0}
    for loss in (loss_of(kind, ELBO()), loss_of(kind, IWAE(2))):
        assert np.isfinite(
            fit(p, q, (x, y, mask), loss=loss, epochs=1, progress=False)["loss"]
        ).all()
    with pytest.raises(ValueError, match="x is empty: it has no rows"):
        evaluate.impute_modalities(p, q, (None, None))


# --- any family, any bound


def pair(kind="product", family=dist.Normal, latent=3, **network):
    likelihoods = [
        Conditional(dist.Bernoulli, MLP(latent, [16], **network), 64),
        Conditional(dist.OneHotCategorical, MLP(latent, [8], **network), 10),
    ]
    posteriors = [Conditional(family, MLP(size, [16], **network), latent) for size in (64, 10)]
    prior = default_prior(family, latent)
    if kind in ("product", "mixture"):
        p = models.MVAE(prior, likelihoods)
        return p, guides.MVAE(posteriors, p.prior, kind)
    joint = Conditional(family, MLP([64, 10], [16], **network), latent)
    return models.JMVAE(prior, likelihoods), guides.JMVAE(
        joint, posteriors if kind == "JMVAE-kl" else None
    )


def batch(rows=200):
    split = digits().train[:200].one_hot()
    return split.x[:rows].round(), split.y[:rows]


def loss_of(kind, bound):
    return {
        "JMVAE-kl": lambda: ModalityKL(bound, 0.1),
        "product": lambda: ModalitySubsets(bound, 1),
    }.get(kind, lambda: bound)()


@each_bound
@each_guide
def test_trains_generates_and_judges(kind, bound):
    p, q = pair(kind)
    data = batch()
    check_pair(p, q, *data)
    for given in (data, (data[0], None), (None, data[1])):
        check_pair(p, q, *given)
    options = {
        "lr": 1e-2,
        "batch_size": 50,
        "seed": 0,
        "progress": False,
    }
    history = fit(p, q, data, loss=loss_of(kind, bound()), epochs=3, **options)
    assert history["loss"][-1] < history["loss"][0]
    few = tuple(part[:10] for part in data)
    scores = evaluate.multimodal_log_likelihood(
        p, q, few, of="x_1", given="x_2", num_particles=10
    )
    assert scores.shape == (10,) and scores.isfinite().all()
    assert [tuple(x.shape) for x in p(batch_size=4)] == [(4, 64), (4, 10)]
    drawn = evaluate.sample(p, 4, site=["x_1", "x_2"], seed=0)
    assert torch.equal(drawn["x_2"].sum(1), torch.ones(4)) and drawn["x_1"].shape == (4, 64)


@pytest.mark.parametrize("family", list(FAMILIES.values())[1:], ids=list(FAMILIES)[1:])
@pytest.mark.parametrize(
    "bound",
    [ELBO, lambda: IWAE(3), lambda: IWAE(3, gradient="dreg")],
    ids=["ELBO", "IWAE", "dreg"],
)
def test_other_families_train_with_both_guides(family, bound):
    p, q = pair("JMVAE-kl", family)
    data = batch()
    loss = ModalityKL(bound(), 0.1)
    partly = (
        getattr(loss.bound, "gradient", "") == "dreg"
        and family is not distributions.GumbelSoftmax
    )
    with (
        pytest.raises(PairError, match="reparameterized")
        if partly
        else contextlib.nullcontext()
    ):
        history = fit(
            p,
            q,
            data,
            loss=loss,
            epochs=3,
            lr=1e-2,
            batch_size=50,
            progress=False,
        )
        assert history["loss"][-1] < history["loss"][0] and history["modality_kl"][-1] < np.inf
    assert evaluate.log_likelihood(p, q, (None, data[1][:5]), num_particles=5).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("JMVAE-zero", "Renyi"),
        ("JMVAE-kl", "ELBO"),
        ("JMVAE-kl", "IWAE, dreg"),
        ("product", "ELBO"),
        ("mixture", "ELBO, sampled"),
        ("mixture", "IWAE, dreg"),
    ],
)
def test_recorded_steps_are_the_eager_ones(kind, bound):
    p, q = pair(kind)
    assert_same_step(loss_of(kind, BOUNDS[bound]()), p, q, *batch(6))


@pytest.mark.parametrize(
    "loss", [ModalityKL(ELBO()), ModalitySubsets(IWAE(2), 1)], ids=["KL", "subsets"]
)
def test_recorded_steps_take_masks_and_missing_modalities(loss):
    p, q = pair("product")
    mask = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]).repeat(2, 1)
    assert_same_step(loss, p, q, *batch(6), mask)


def test_compiled_steps_follow_schedules_and_draw_subsets_anew():
    p, q = pair("product")
    data = batch(50)
    inner = ModalitySubsets(ELBO(), 1)
    loss = Compiled(inner, backend="eager", choose=False)
    inner.beta = 0.0
    torch.manual_seed(0)
    without = [loss.loss_and_terms(p, q, *data)[0].item() for _ in range(3)]
    inner.beta = 50.0
    torch.manual_seed(0)
    with_kl = [loss.loss_and_terms(p, q, *data)[0].item() for _ in range(3)]
    assert len(set(without)) == 3 and all(b > a for a, b in zip(without, with_kl, strict=True))
    with pytest.warns(UserWarning, match="does not depend"):
        history = fit(
            p, q, (data[0], None), loss=loss, epochs=2, batch_size=20, progress=False
        )
    assert np.isfinite(history["loss"]).all()


@each_guide
def test_run_folders_restore_the_pair(tmp_path, kind):
    p, q = pair(kind)
    data = batch()
    loss = loss_of(kind, ELBO())
    fit(p, q, data, loss=loss, epochs=1, folder=tmp_path / "run", seed=0, progress=False)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and repr(run.guide) == repr(q)
    few = tuple(part[:20] for part in data)
    scores = [
        evaluate.multimodal_log_likelihood(*halves, few, given="x_2", num_particles=5, seed=0)
        for halves in ((p, q), (run.model, run.guide))
    ]
    assert torch.equal(*scores)


def test_the_prior_may_be_learned():
    p, _ = pair("product")
    p = models.MVAE(distributions.Prior(dist.Normal, 3), list(p.likelihoods))
    q = guides.MVAE(
        [Conditional(dist.Normal, MLP(size, [16]), 3) for size in (64, 10)], p.prior
    )
    assert q.prior is p.prior
    fit(p, q, batch(), loss=ModalitySubsets(ELBO()), epochs=2, progress=False)
    assert all(parameter.abs().max() > 0 for parameter in p.prior.parameters())


# --- data and formulas


def test_formulas():
    p, q = pair("product")
    assert (
        p.formula == "p(x_1, x_2, z) = p(x_1 | z) p(x_2 | z) p(z)"
        and q.formula == "q(z | x_1, x_2)"
    )
    assert "q(z | x_1, x_2) ∝ Normal(loc, scale)" in repr(q) and repr(q).count(" * ") == 2 * 2
    _, mixed = pair("mixture")
    assert (
        repr(mixed).count(" + ") == 1 * 2
        and " + " in mixed._repr_latex_()
        and r"\propto" in mixed._repr_latex_()
    )
    _, joint = pair("JMVAE-kl")
    assert (
        joint.formula == "q(z | x_1, x_2)"
        and "posteriors.1: q_2(z | x_2) = Normal" in repr(joint)
    )
    assert guides.JMVAE(lambda *x: None).formula == "q(z | x)"


def test_the_number_of_modalities_is_checked():
    p, q = pair("product")
    x, y = batch(5)
    for call in (
        lambda: p(x),
        lambda: q(x),
        lambda: p(x, y, y, y),
        lambda: q(x, y, None, None),
    ):
        with pytest.raises(
            ValueError,
            match="MVAE takes 2 modalities, and after them a mask where rows lack some, got",
        ):
            call()
    with pytest.raises(InputError, match="MVAE takes 2 modalities"):
        fit(
            p, q, Split(x, y), progress=False
        )  # of which a model that names no arguments gets x
    for mask in (torch.ones(5), torch.ones(5, 3)):
        with pytest.raises(ValueError, match=r"The mask must be of shape \(rows, 2\), got"):
            p(x, y, mask)
    for mask in (torch.full((5, 2), 0.5), 2 * torch.ones(5, 2), -torch.ones(5, 2)):
        for call in (
            lambda mask=mask: fit(p, q, (x, y, mask), progress=False),
            lambda mask=mask: evaluate.log_likelihood(p, q, (x, y, mask), num_particles=2),
            lambda mask=mask: evaluate.impute_modalities(p, q, (x, y, mask)),
        ):
            with pytest.raises(
                ValueError, match="The mask must hold booleans, or zeros and ones"
            ):
                call()
    with pytest.raises(ValueError, match="MVAE takes 2 modalities"):
        evaluate.impute_modalities(p, q, (x,))
    with pytest.raises(InputError, match="grey values"):
        evaluate.impute_modalities(p, q, (0.5 * x, None))
    for half, data in ((q, (None, None)), (pair("JMVAE-zero")[1], (None, None))):
        with pytest.raises(ValueError, match="at least one modality to infer z, got none"):
            half(*data)
    with pytest.raises(ValueError, match="experts must be one of 'product', .* got 'sum'"):
        guides.MVAE([], default_prior(dist.Normal, 2), "sum")
    with pytest.raises(TypeError, match="likelihoods must be a list of modules"):
        models.JMVAE(default_prior(dist.Normal, 2), p.likelihoods[0])
    with pytest.raises(ValueError, match="experts must be one or more Normal"):
        pair("product", distributions.Gamma)[1](x, y)


def test_missing_modalities_are_not_sites():
    p, q = pair("product")
    x, y = batch(5)
    before = x.clone(), y.clone()
    trace = poutine.trace(p).get_trace(x, None)
    assert "x_2" not in trace.nodes and trace.nodes["x_1"]["is_observed"]
    mask = torch.tensor([[1, 0]] * 5)
    completed = p(x, y, mask)
    assert torch.equal(completed[0], x) and not torch.equal(
        completed[1], y
    )  # rows without y get a draw of it
    q(x, y, mask)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert p(x, None)[1] is None


def test_fit_takes_a_modality_that_is_none():
    p, q = pair("product")
    x, y = batch()
    before = [parameter.clone() for parameter in p.likelihoods[1].parameters()]
    with pytest.warns(UserWarning, match="The loss does not depend on"):
        fit(
            p, q, (x, None), validation=(x[:20], None), epochs=2, batch_size=60, progress=False
        )
    after = list(p.likelihoods[1].parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    with pytest.raises(InputError, match="which is None: leave out binarize=True"):
        fit(p, q, (None, y), binarize=True, progress=False)
    with pytest.raises(ValueError, match="data is empty: it has no rows"):
        fit(p, q, (None, None), progress=False)
    batches = [(x[:50], None), (x[50:], None)]
    with pytest.warns(UserWarning, match="does not depend"):
        fit(p, q, batches, epochs=1, progress=False)


# --- CMMA


def test_cmma_is_exact_and_has_one_kl(double):
    """z | y ~ N(Ay, I), x | z ~ N(Wz, s^2 I): p(x | y) = N(WAy, WW^T + s^2 I). An earlier
    version had two KLs.
    """
    toy = Exact(1, num=20)
    weight, scale, x = toy.weights[0], toy.scale[0], toy.x[0]
    y, transfer = torch.randn(20, 3), torch.randn(2, 3)
    p = models.CMMA(linear(transfer, 1.0), linear(weight, scale))
    covariance = weight @ weight.T + scale**2 * torch.eye(4)
    exact = dist.MultivariateNormal(y @ transfer.T @ weight.T, covariance).log_prob(x)
    precision = 1 + weight.square().sum(0) / scale**2

    def posterior(x, y):
        return dist.Normal(
            (x @ weight / scale**2 + y @ transfer.T) / precision, precision.rsqrt()
        ).to_event(1)

    q = guides.CMMA(posterior)
    for bound in (ELBO(analytic_kl=False), IWAE(3), Renyi(0.5, 3)):
        assert bound.loss(p, q, x, y) == pytest.approx(-exact.sum().item(), rel=1e-9)
    kl = ELBO().loss_and_terms(p, q, x, y)[1]["kl"]
    torch.testing.assert_close(kl, kl_divergence(posterior(x, y), p.prior(y)).sum())
    torch.testing.assert_close(
        evaluate.conditional_log_likelihood(p, q, x, y, num_particles=2), exact
    )
    draws = torch.stack([p(y=y[:2]).detach() for _ in range(2000)])
    assert_within(draws, y[:2] @ transfer.T @ weight.T)


@each_bound
def test_cmma_trains_and_records(tmp_path, bound):
    x, y = batch()
    p = models.CMMA(
        Conditional(dist.Normal, MLP(10, [8]), 3),
        Conditional(dist.Bernoulli, MLP(3, [16]), 64),
    )
    q = guides.CMMA(Conditional(dist.Normal, MLP([64, 10], [16]), 3))
    if bound in (ELBO, BOUNDS["IWAE, dreg"]):
        assert_same_step(bound(), p, q, x[:6], y[:6])
    options = {
        "epochs": 3,
        "batch_size": 50,
        "lr": 1e-2,
        "seed": 0,
        "progress": False,
    }
    history = fit(p, q, (x, y), loss=bound(), folder=tmp_path / "run", **options)
    assert history["loss"][-1] < history["loss"][0]
    assert p(y=torch.eye(10)).shape == (10, 64) and p(
        y=torch.eye(10)[:1], batch_size=4
    ).shape == (4, 64)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and repr(run.guide) == repr(q)


def test_cmma_rejects_invalid_arguments():
    likelihood = Conditional(dist.Bernoulli, MLP(3, [16]), 64)
    with pytest.raises(ValueError, match=r"prior must be p\(z \| y\), such as Conditional"):
        models.CMMA(default_prior(dist.Normal, 3), likelihood)
    p = models.CMMA(Conditional(dist.Normal, MLP(10, [8]), 3), likelihood)
    with pytest.raises(ValueError, match=r"y must be given.* models.CMMA .* model\(x, y\)"):
        p(batch_size=3)
    assert p.formula == "p(x, z | y) = p(x | z) p(z | y)"
