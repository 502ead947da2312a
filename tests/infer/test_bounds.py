"""Importance weighted bounds against the truth: values, where the weights live, and gradients."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from tarspyro import Conditional, distributions, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import Gamma, default_prior
from tarspyro.infer import CIWAE, ELBO, IWAE, PIWAE, PairError, Renyi, log_weights, renyi_bound
from tarspyro.infer.bounds.reductions import renyi_weights, without_each
from tarspyro.nn import MLP

from ..programs import LinearGaussian, as_made, assert_within

ALPHAS = (-math.inf, -2.0, 0.0, 0.5, 1 - 1e-7, 1.0, 2.0, math.inf)


def by_hand(toy, alpha, particles, draws=400, x=None):
    """The bound of all data points, from independent draws and the densities as they are."""
    values, x = [], toy.x if x is None else x
    for _ in range(draws):
        q = toy.posterior(x)
        z = q.rsample((particles,))
        log_weights = toy.prior().log_prob(z) + toy.likelihood(z).log_prob(x) - q.log_prob(z)
        values.append(renyi_bound(log_weights, alpha).sum().detach())
    return torch.stack(values)


def assert_same_mean(one, other, errors=4.0):
    one, other = (torch.as_tensor(values, dtype=torch.float64) for values in (one, other))
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= errors * error).all(), (
        one.mean(0),
        other.mean(0),
        error,
    )


def losses(bound, model, guide, *args, draws=400):
    return torch.tensor(
        [-bound.loss(model, guide, *args) for _ in range(draws)], dtype=torch.float64
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_reduction_is_the_formula_in_double(alpha):
    log_weights = torch.randn(7, 5, dtype=torch.float64)
    w = log_weights.exp()
    if math.isinf(alpha):
        exact = (w.max(0) if alpha < 0 else w.min(0)).values.log()
    elif abs(alpha - 1) < 1e-6:
        exact = log_weights.mean(0) + (1 - alpha) / 2 * log_weights.var(0, unbiased=False)
    else:
        exact = (w ** (1 - alpha)).mean(0).log() / (1 - alpha)
    torch.testing.assert_close(renyi_bound(log_weights, alpha), exact)
    torch.testing.assert_close(
        renyi_bound(log_weights.float() - 100, alpha).double(), exact - 100, rtol=0, atol=2e-5
    )
    leaf = log_weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(renyi_bound(leaf, alpha).sum(), leaf)
    torch.testing.assert_close(renyi_weights(log_weights, alpha), gradient)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_baseline_is_the_bound_without_the_particle(alpha):
    log_weights = 3 * torch.randn(6, 5, dtype=torch.float64)
    baseline = without_each(log_weights, alpha)
    for k in range(6):
        replaced = log_weights.clone()
        replaced[k] = (log_weights.sum(0) - log_weights[k]) / 5
        torch.testing.assert_close(baseline[k], renyi_bound(replaced, alpha))


@pytest.mark.parametrize(("particles", "copies"), [(1, 5), (10, 5), (1000, 1)])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_value(alpha, particles, copies):
    toy = LinearGaussian()
    x = toy.x.repeat(copies, 1)  # rows are cheaper than calls
    ours = losses(Renyi(alpha, particles), toy.model, toy.guide, x, draws=40)
    assert_same_mean(ours, by_hand(toy, alpha, particles, 40, x))


@pytest.mark.parametrize("alpha", ALPHAS[1::2])
def test_value_of_particles_one_by_one(alpha):
    toy = LinearGaussian()
    bound = Renyi(alpha, 4, num_groups=2, vectorize_particles=False)
    assert_same_mean(
        losses(bound, toy.model, toy.guide, toy.x, draws=200), by_hand(toy, alpha, 4)
    )


def test_particles_one_by_one_have_the_gradient_of_particles_together():
    toy = LinearGaussian()

    def gradients(**how):
        bound, parameters = IWAE(3, num_groups=2, **how), [toy.weight, toy.shift]
        loss = (bound.differentiable_loss(toy.model, toy.guide, toy.x) for _ in range(150))
        return torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(one, parameters)])
                for one in loss
            ]
        )

    assert_same_mean(gradients(), gradients(vectorize_particles=False))


def test_one_by_one_a_program_may_branch_on_its_draws():
    """y ~ Bernoulli(0.3), x ~ N(2, 1) if y else N(-1, 0.5): no plate of particles could hold
    both branches.
    """
    x = torch.tensor([0.4, 1.5])

    def model(x):
        for i in pyro.plate("data", len(x)):
            y = pyro.sample(f"y_{i}", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample(
                f"x_{i}", dist.Normal(2.0, 1.0) if y else dist.Normal(-1.0, 0.5), obs=x[i]
            )

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"y_{i}", dist.Bernoulli(torch.tensor(0.5)))

    evidence = (
        0.3 * dist.Normal(2.0, 1.0).log_prob(x).exp()
        + 0.7 * dist.Normal(-1.0, 0.5).log_prob(x).exp()
    )
    assert (
        abs(IWAE(1500, vectorize_particles=False).loss(model, guide, x) + evidence.log().sum())
        < 0.1
    )


def test_a_thousand_particles_reach_the_evidence_and_negative_orders_bound_it_from_above():
    toy = LinearGaussian()
    evidence = toy.log_likelihood(toy.x).sum().item()
    below = losses(IWAE(1000), toy.model, toy.guide, toy.x, draws=50).mean()
    above = losses(Renyi(-1.0, 1000), toy.model, toy.guide, toy.x, draws=50).mean()
    assert evidence - 0.5 < below < evidence < above


def test_groups_are_averaged():
    toy = LinearGaussian()
    assert_same_mean(
        losses(IWAE(5, num_groups=3), toy.model, toy.guide, toy.x), by_hand(toy, 0.0, 5)
    )
    few, many = (
        losses(IWAE(5, groups), toy.model, toy.guide, toy.x).var() for groups in (1, 8)
    )
    assert many < few / 3


def with_extras(toy):
    def model(x):
        pyro.deterministic("note", torch.tensor(1.0))
        pyro.factor("constant", torch.tensor(2.5))
        toy.model(x)

    return model


def nested(toy, data, pixels):
    """The pair with a plate of pixels inside the plate of data points, in either order of the
    dimensions.
    """

    def model(x):
        with pyro.plate("data", len(x), dim=data):
            loc = pyro.sample("z", toy.prior()) @ toy.weight.T
            if data == -2:
                loc = loc.squeeze(-2)
            else:
                loc, x = (loc.squeeze(-3) if loc.dim() > 2 else loc).mT, x.T
            with pyro.plate("pixels", 5, dim=pixels):
                pyro.sample("x", dist.Normal(loc, toy.scale), obs=x)

    def guide(x):
        q = toy.posterior(x).base_dist
        loc, scale = (
            (q.loc.unsqueeze(1), q.scale.unsqueeze(1)) if data == -2 else (q.loc, q.scale)
        )
        with pyro.plate("data", len(x), dim=data):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


def test_sites_outside_the_plate_cost_nothing():
    """A pyro.deterministic there costs Pyro's RenyiELBO 60 nats (known fault)."""
    toy = LinearGaussian()
    assert_same_mean(
        losses(IWAE(10), with_extras(toy), toy.guide, toy.x), by_hand(toy, 0.0, 10) + 2.5
    )


@pytest.mark.parametrize(("data", "pixels"), [(-2, -1), (-1, -2)])
def test_nested_plates(data, pixels):
    toy = LinearGaussian()
    assert_same_mean(
        losses(IWAE(10), *nested(toy, data, pixels), toy.x), by_hand(toy, 0.0, 10)
    )


def test_sibling_plates_have_weights_of_their_own():
    """Pyro's RenyiELBO takes one weight for both plates, and for all their points (known
    fault).
    """
    toy = LinearGaussian()
    parts = {"labelled": toy.x[:20], "unlabelled": toy.x[20:]}

    def model():
        for name, x in parts.items():
            with pyro.plate(name, len(x)):
                z = pyro.sample(f"z_{name}", toy.prior())
                pyro.sample(f"x_{name}", toy.likelihood(z), obs=x)

    def guide():
        for name, x in parts.items():
            with pyro.plate(name, len(x)):
                pyro.sample(f"z_{name}", toy.posterior(x))

    assert_same_mean(losses(IWAE(10), model, guide), by_hand(toy, 0.0, 10))


def test_sequential_plates_have_weights_of_their_own():
    toy = LinearGaussian()

    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", toy.prior())
            pyro.sample(f"x_{i}", toy.likelihood(z), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", toy.posterior(x[i]))

    assert_same_mean(losses(IWAE(10), model, guide, toy.x, draws=60), by_hand(toy, 0.0, 10))


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_scales_stand_outside(scale):
    """Pyro's RenyiELBO has them inside the logarithm (known fault): with 10 the bound exceeds
    the evidence.
    """
    toy = LinearGaussian()
    model, guide = (poutine.scale(half, scale=scale) for half in (toy.model, toy.guide))
    assert_same_mean(losses(IWAE(10), model, guide, toy.x), scale * by_hand(toy, 0.0, 10))


def test_subsampling_is_unbiased_for_the_whole_bound():
    toy = LinearGaussian()

    def model(x):
        with pyro.plate("data", len(x), subsample_size=5) as index:
            z = pyro.sample("z", toy.prior())
            pyro.sample("x", toy.likelihood(z), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=5) as index:
            pyro.sample("z", toy.posterior(x[index]))

    assert_same_mean(losses(IWAE(10), model, guide, toy.x, draws=500), by_hand(toy, 0.0, 10))
    one_by_one = IWAE(3, num_groups=2, vectorize_particles=False)
    assert_same_mean(losses(one_by_one, model, guide, toy.x, draws=300), by_hand(toy, 0.0, 3))


def test_masks_leave_data_points_out():
    toy = LinearGaussian()
    mask = torch.arange(len(toy.x)) % 2 == 0
    model, guide = (poutine.mask(half, mask=mask) for half in (toy.model, toy.guide))
    part = LinearGaussian()
    part.x = toy.x[mask]
    assert_same_mean(losses(IWAE(10), model, guide, toy.x), by_hand(part, 0.0, 10))


class Shared(nn.Module):
    r"""mu ~ N(0, 1), z_n ~ N(mu, 1), x_n ~ N(z_n, 1), with a guide whose local half knows mu
    exactly.
    """

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = 1 + torch.randn(50, generator=generator, dtype=torch.float64)
        self.loc = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        mu = pyro.sample("mu", dist.Normal(self.loc, 0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, 0.5**0.5))

    def bound(self, x):
        """E_q[log p(mu) - log q(mu) + sum_n log p(x_n | mu)]: the nested bound, where the
        local guide is exact.
        """
        second = self.loc**2 + 0.04
        kl = 0.5 * (second - 1) - math.log(0.2)
        likelihood = -0.5 * math.log(4 * math.pi) - ((x - self.loc) ** 2 + 0.04) / 4
        return likelihood.sum() - kl


@pytest.mark.parametrize(
    "how", [{}, {"gradient": "dreg"}, {"vectorize_particles": False}], ids=str
)
def test_shared_latent_variables_have_the_nested_bound(how):
    toy = Shared()
    bound = IWAE(4, num_groups=2, **how)
    assert_within(
        losses(bound, toy.model, toy.guide, toy.x, draws=200), toy.bound(toy.x).item()
    )
    (exact,) = torch.autograd.grad(toy.bound(toy.x), toy.loc)
    draws = [
        -torch.autograd.grad(bound.differentiable_loss(toy.model, toy.guide, toy.x), toy.loc)[
            0
        ]
        for _ in range(200)
    ]
    assert_within(torch.stack(draws), exact)


def test_shared_variables_alone_make_the_data_set_one_data_point():
    x = torch.tensor([0.3, -1.0, 2.0])

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    covariance = torch.ones(3, 3) + torch.eye(3)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    assert abs(IWAE(200_000).loss(model, guide, x) + evidence) < 0.02


class Binary(nn.Module):
    """Two binary latent variables, a chain, and four data points: everything can be
    enumerated.
    """

    def __init__(self):
        super().__init__()
        self.x = torch.tensor([-1.0, 0.3, 0.9, 2.0], dtype=torch.float64)
        self.loc = nn.Parameter(torch.tensor([0.0, 0.7, 1.1, 1.5], dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([0.4, -0.3, 0.8], dtype=torch.float64))

    def probs(self, x):
        return torch.sigmoid(self.logits[0] * x), lambda a: torch.sigmoid(
            self.logits[1] + self.logits[2] * a
        )

    def model(self, x):
        half = x.new_tensor(0.5)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(half))
            b = pyro.sample("b", dist.Bernoulli(half))
            pyro.sample("x", dist.Normal(self.loc[(2 * a + b).long()], 0.8), obs=x)

    def guide(self, x):
        first, second = self.probs(x)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(first))
            pyro.sample("b", dist.Bernoulli(second(a)))

    def exact(self, alpha, particles):
        first, second = self.probs(self.x)
        table = []
        for a, b in itertools.product((0.0, 1.0), repeat=2):
            one = first if a else 1 - first
            other = second(torch.tensor(a)) if b else 1 - second(torch.tensor(a))
            log_q = one.log() + other.log()
            log_p = math.log(0.25) + dist.Normal(self.loc[int(2 * a + b)], 0.8).log_prob(
                self.x
            )
            table.append((log_q, log_p - log_q))
        total = 0.0
        for choice in itertools.product(range(4), repeat=particles):
            probability = sum(table[i][0] for i in choice).exp()
            total = (
                total
                + (
                    probability
                    * renyi_bound(torch.stack([table[i][1] for i in choice]), alpha)
                ).sum()
            )
        return total


@pytest.mark.parametrize("particles", [2, 4])
@pytest.mark.parametrize("alpha", [-math.inf, -1.0, 0.0, 0.5, 1.0])
def test_discrete_guides_have_the_exact_gradient(alpha, particles):
    """Pyro's RenyiELBO gives a discrete guide no gradient at all at alpha = 0 (known fault)."""
    toy = Binary()
    parameters = list(toy.parameters())
    exact = torch.cat(
        [g.flatten() for g in torch.autograd.grad(toy.exact(alpha, particles), parameters)]
    )
    bound = Renyi(alpha, particles, num_groups=5000)
    draws = []
    for _ in range(20):
        gradients = torch.autograd.grad(
            bound.differentiable_loss(toy.model, toy.guide, toy.x), parameters
        )
        draws.append(-torch.cat([g.flatten() for g in gradients]))
    assert_within(torch.stack(draws), exact, errors=5)


def gamma_bound(a, alpha):
    """The bound with two particles of a Gamma(a, 1.5) guide, a Gamma(2, 2) prior and a Poisson
    count of 3.

    By the trapezoidal rule over the logarithms of both draws.
    """
    t = torch.linspace(-14.0, 3.5, 1200, dtype=torch.float64)
    z = t.exp()
    log_q = dist.Gamma(a, torch.tensor(1.5, dtype=torch.float64)).log_prob(z)
    log_p = dist.Gamma(torch.full_like(a, 2.0), 2.0).log_prob(z) + dist.Poisson(z).log_prob(
        torch.full_like(z, 3.0)
    )
    log_w, mass = log_p - log_q, (log_q + t).exp() * (t[1] - t[0])
    both = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w[None, :]))
    return (mass[:, None] * mass[None, :] * renyi_bound(both, alpha)).sum()


@pytest.mark.parametrize(
    "sampler", [{"boost": 1}, {"boost": 4}, {"reparameterization": "implicit"}], ids=str
)
@pytest.mark.parametrize("alpha", [-math.inf, -1.0, 0.0, 0.5, 1.0])
def test_rejection_samplers_have_the_gradient_of_quadrature(alpha, sampler):
    """Pyro's RenyiELBO cannot train them (known fault)."""
    a = torch.full((4000,), 1.5, dtype=torch.float64, requires_grad=True)
    one = torch.ones_like(a)

    def model():
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Gamma(2 * one, 2 * one))
            pyro.sample("x", dist.Poisson(z), obs=3 * one)

    def guide():
        with pyro.plate("data", len(a)):
            pyro.sample("z", Gamma(a, 1.5 * one, **sampler))

    truth = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    value = gamma_bound(truth, alpha)
    (exact,) = torch.autograd.grad(value, truth)
    bound = Renyi(alpha, 2)
    losses = [bound.differentiable_loss(model, guide) for _ in range(10)]
    assert_within(-torch.stack(losses).detach() / len(a), value.item())
    assert_within(torch.cat([torch.autograd.grad(-loss, a)[0] for loss in losses]), exact)


class Chain(nn.Module):
    """A hierarchy of two layers with a guide in the other order."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(20, generator=generator, dtype=torch.float64)
        start = torch.tensor([0.5, 0.2, 0.4, 0.3, 0.6], dtype=torch.float64)
        self.guided, self.modelled = nn.Parameter(start), nn.Parameter(start[:2].clone())

    def model(self, x):
        with pyro.plate("data", len(x)):
            second = pyro.sample("second", dist.Normal(x.new_zeros(()), 1.0))
            first = pyro.sample("first", dist.Normal(self.modelled[0] * second, 0.9))
            pyro.sample(
                "x", dist.Normal(torch.tanh(first) + self.modelled[1] * second, 0.7), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            first = pyro.sample("first", dist.Normal(self.guided[0] * x, self.guided[1].exp()))
            pyro.sample(
                "second",
                dist.Normal(self.guided[2] * first + self.guided[3] * x, self.guided[4].exp()),
            )


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0])
def test_doubly_reparameterized_gradient_is_unbiased_for_hierarchies(alpha):
    """A hook on each draw, the usual way, is biased here."""
    toy = Chain()
    parameters = list(toy.parameters())

    def draws(gradient):
        bound = Renyi(
            alpha, 5, num_groups=80, gradient=gradient
        )  # groups are cheaper than calls
        loss = (bound.differentiable_loss(toy.model, toy.guide, toy.x) for _ in range(100))
        return torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(one, parameters)])
                for one in loss
            ]
        )

    plain, doubly = draws("pathwise"), draws("dreg")
    assert_same_mean(plain, doubly, errors=5)
    assert (doubly.var(0)[:5] < plain.var(0)[:5]).all()


def test_signal_to_noise_falls_with_the_particles_but_for_the_doubly_reparameterized_gradient():
    """(Rainforth et al. 2018, arXiv:1802.04537.)"""
    toy = LinearGaussian()

    def ratio(particles, gradient):
        bound = IWAE(particles, gradient=gradient)
        draws = torch.stack(
            [
                torch.autograd.grad(
                    bound.differentiable_loss(toy.model, toy.guide, toy.x), toy.shift
                )[0]
                for _ in range(200)
            ]
        )
        return (draws.mean(0).abs() / draws.std(0)).mean()

    assert ratio(300, "pathwise") < 0.6 * ratio(3, "pathwise")
    assert ratio(300, "dreg") > 1.5 * ratio(3, "dreg")


def test_doubly_reparameterized_gradient_of_the_elbo_vanishes_at_the_posterior():
    """Sticking the landing (Roeder et al. 2017): at the optimum there is no noise left."""
    toy = LinearGaussian()
    loc = (
        toy.x @ (toy.posterior_covariance @ toy.weight.detach().T / toy.scale**2).T
    ).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, toy.posterior_covariance))

    bound = Renyi(1.0, 3, gradient="dreg")
    (gradient,) = torch.autograd.grad(bound.differentiable_loss(toy.model, guide, toy.x), loc)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0)


def test_what_has_no_weight_for_each_data_point_is_an_error():
    toy = LinearGaussian()

    def in_no_plate(program):
        def run(x):
            z = pyro.sample(
                "z",
                (
                    toy.prior().expand([len(x)]) if program == "model" else toy.posterior(x)
                ).to_event(1),
            )
            if program == "model":
                pyro.sample("x", toy.likelihood(z).to_event(1), obs=x)

        return run

    # Without a plate there is one weight of all data.
    pair = in_no_plate("model"), in_no_plate("guide")
    assert IWAE(5).structure(*pair, toy.x).joint
    assert IWAE(5).loss(*pair, toy.x) > -toy.log_likelihood(toy.x).sum()
    with pytest.raises(PairError, match="no site lies in a plate"):
        log_weights(*pair, toy.x)

    def crossed(x):
        rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
        with rows:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with columns:
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
        if x is not None:
            with rows, columns:
                pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    assert IWAE(5).structure(crossed, lambda x: crossed(None), torch.zeros(3, 2)).joint

    def annealed(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", toy.prior())
            pyro.sample("x", toy.likelihood(z), obs=x)

    with pytest.raises(PairError, match="different scales"):
        IWAE(5).loss(annealed, toy.guide, toy.x)
    assert math.isfinite(ELBO().loss(annealed, toy.guide, toy.x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Renyi(math.nan), "alpha must be a number"),
        (lambda: IWAE(0), "num_particles must be at least 1"),
        (lambda: IWAE(5, 0), "num_groups must be at least 1"),
        (lambda: IWAE(5, gradient="stl"), "biased with several particles in a logarithm"),
        (lambda: IWAE(5, gradient="score"), "gradient must be"),
        (lambda: IWAE(5, gradient="dreg", vectorize_particles=False), "all particles at once"),
        (lambda: CIWAE(1.5), "beta must be from 0 to 1"),
        (lambda: ELBO(gradient="dreg"), "gradient must be"),
        (lambda: ELBO(gradient="stl", free_bits=0.1), "free_bits=0.1"),
        (lambda: Renyi(-math.inf, gradient="dreg"), "finite alpha"),
    ],
)
def test_arguments_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "bound", [IWAE(5, gradient="dreg"), ELBO(gradient="stl"), PIWAE(2, 2)]
)
def test_discrete_draws_are_refused_where_they_have_no_derivative(bound):
    toy = Binary()
    with pytest.raises(PairError, match="'a' is not"):
        bound.differentiable_loss(toy.model, toy.guide, toy.x)


def test_sticking_the_landing_is_unbiased_and_silent_at_the_posterior():
    """(Roeder et al. 2017.)"""
    toy = LinearGaussian()
    parameters = [toy.weight, toy.shift, toy.log_scale]
    bound = ELBO(2, beta=0.7, gradient="stl")
    exact = torch.autograd.grad(
        (0.7 * toy.kl(toy.x) - toy.reconstruction(toy.x)).sum(), parameters
    )
    draws = []
    for _ in range(600):
        gradients = torch.autograd.grad(
            bound.differentiable_loss(toy.model, toy.guide, toy.x), parameters
        )
        draws.append(torch.cat([g.flatten() for g in gradients]))
    assert_within(torch.stack(draws), torch.cat([g.flatten() for g in exact]))

    loc = (
        toy.x @ (toy.posterior_covariance @ toy.weight.detach().T / toy.scale**2).T
    ).requires_grad_()
    factor = torch.linalg.cholesky(toy.posterior_covariance).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    loss = ELBO(3, gradient="stl").differentiable_loss(toy.model, guide, toy.x)
    for gradient in torch.autograd.grad(loss, [loc, factor]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-10, rtol=0)
    loss = ELBO(3, analytic_kl=False).differentiable_loss(toy.model, guide, toy.x)
    assert torch.autograd.grad(loss, loc)[0].abs().max() > 0.1


def test_sticking_the_landing_is_unbiased_for_hierarchies():
    toy = Chain()
    parameters = list(toy.parameters())

    def draws(gradient):
        bound = ELBO(400, gradient=gradient)
        loss = (bound.differentiable_loss(toy.model, toy.guide, toy.x) for _ in range(100))
        return torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(one, parameters)])
                for one in loss
            ]
        )

    assert_same_mean(draws("pathwise"), draws("stl"), errors=5)


def test_renyi_of_order_one_sticks_the_landing_too():
    assert Renyi(1.0, 3, gradient="stl").gradient == "dreg"


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_ciwae_lies_between_the_elbo_and_the_iwae(beta):
    toy = LinearGaussian()
    bound = CIWAE(beta, 10)
    value = losses(bound, toy.model, toy.guide, toy.x)
    truth = beta * by_hand(toy, 1.0, 10) + (1 - beta) * by_hand(toy, 0.0, 10)
    assert_same_mean(value, truth)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_ciwae_has_an_unbiased_gradient_of_each_kind(beta):
    toy = Chain()
    parameters = list(toy.parameters())

    def draws(gradient):
        bound = CIWAE(beta, 5, num_groups=80, gradient=gradient)
        loss = (bound.differentiable_loss(toy.model, toy.guide, toy.x) for _ in range(75))
        return torch.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(one, parameters)])
                for one in loss
            ]
        )

    assert_same_mean(draws("pathwise"), draws("dreg"), errors=5)
    discrete = Binary()
    exact = beta * discrete.exact(1.0, 3) + (1 - beta) * discrete.exact(0.0, 3)
    exact = torch.cat(
        [g.flatten() for g in torch.autograd.grad(exact, list(discrete.parameters()))]
    )
    bound = CIWAE(beta, 3, num_groups=5000)
    scored = []
    for _ in range(20):
        loss = -bound.differentiable_loss(discrete.model, discrete.guide, discrete.x)
        scored.append(
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, list(discrete.parameters()))]
            )
        )
    assert_within(torch.stack(scored), exact, errors=5)


def test_piwae_trains_the_model_by_all_particles_and_the_guide_by_groups():
    toy = Chain()
    x = toy.x.repeat(25)  # rows are cheaper than calls

    def draws(bound, parameter):
        loss = (bound.differentiable_loss(toy.model, toy.guide, x) for _ in range(60))
        return torch.stack([torch.autograd.grad(one, parameter)[0] for one in loss])

    assert_same_mean(draws(PIWAE(3, 4), toy.modelled), draws(IWAE(12), toy.modelled))
    assert_same_mean(draws(PIWAE(3, 4), toy.guided), draws(IWAE(3, 4), toy.guided))
    values = (losses(bound, toy.model, toy.guide, toy.x) for bound in (PIWAE(3, 4), IWAE(12)))
    assert_same_mean(*values)
    shared = Shared()
    with pytest.raises(PairError, match="latent variables of data points"):
        PIWAE(2, 2).loss(shared.model, shared.guide, shared.x)


@pytest.mark.parametrize("gradient", ["pathwise", "dreg"])
def test_particles_cost_the_decoder_alone(gradient):
    """The encoder sees each data point once, the decoder each draw once."""
    seen = {"encoder": 0, "decoder": 0}
    decoder, encoder = MLP(2, [8]), MLP(64, [8])
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, decoder, 64))
    q = guides.VAE(Conditional(dist.Normal, encoder, 2))
    bound, x = IWAE(7, gradient=gradient), torch.bernoulli(torch.rand(5, 64))
    bound.loss_and_grads(p, q, x)  # the first call looks at the structure
    for name, network in (("decoder", decoder), ("encoder", encoder)):
        network.layers.register_forward_hook(
            lambda _, inputs, __, name=name: seen.update({name: seen[name] + len(inputs[0])})
        )
    bound.loss_and_grads(p, q, x)
    assert seen == {"encoder": 5, "decoder": 35}


@pytest.mark.parametrize(
    "family", ["Normal", "Laplace", "MultivariateNormal", "Kumaraswamy", "GumbelSoftmax"]
)
@pytest.mark.parametrize(
    "loss",
    [
        IWAE(3, gradient="dreg"),
        CIWAE(0.5, 3, gradient="dreg"),
        PIWAE(2, 2),
        ELBO(gradient="stl"),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_gradients_of_every_kind_train(loss, family):
    torch.manual_seed(0)
    family = getattr(distributions, family, None) or getattr(dist, family)
    p = models.VAE(default_prior(family, 4), Conditional(dist.Bernoulli, MLP(4, [16]), 64))
    q = guides.VAE(Conditional(family, MLP(64, [16]), 4))
    as_made(p, q)
    history = fit(
        p, q, digits().train[:300], loss=loss, epochs=10, binarize=True, seed=0, progress=False
    )
    assert history["loss"][-1] < history["loss"][0] - 1
