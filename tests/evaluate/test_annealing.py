"""Annealed importance sampling against closed forms: unbiased on the scale of p(x), for any
path and support.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import evaluate
from tarspyro.distributions import GumbelSoftmax, VonMisesFisher
from tarspyro.infer import PairError

from ..programs import LinearGaussian, assert_within


@pytest.fixture(autouse=True)
def _double():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(default)


@pytest.fixture
def toy():
    return LinearGaussian()


class GammaPoisson:
    """z ~ Gamma(2, 1), x | z ~ Poisson(z): x is negative binomial, z | x ~ Gamma(2 + x, 2)."""

    x = torch.tensor([0.0, 1.0, 4.0])

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(1.5 + x, 1.0))

    def log_likelihood(self):
        return dist.NegativeBinomial(2.0, probs=torch.tensor(0.5)).log_prob(self.x)


class DirichletMultinomial:
    """z on the simplex, whose unconstrained space has a dimension less."""

    x = torch.tensor([[3.0, 0.0, 2.0], [1.0, 1.0, 3.0]])
    prior = torch.tensor([0.8, 1.5, 2.0])

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(self.prior))
            pyro.sample("x", dist.Multinomial(5, z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(1.0 + x / 2))

    def log_likelihood(self):
        return dist.DirichletMultinomial(self.prior, 5).log_prob(self.x)


class Nested:
    """m ~ N(0, 1) of a data point, z_j | m ~ N(m, 1) and x_j | z_j ~ N(z_j, 1) inside another
    plate; two sites.
    """

    x = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 1.5]])

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(m, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2):
            m = pyro.sample("m", dist.Normal(x.mean(-1, keepdim=True) / 2, 0.7))
            with pyro.plate("inner", 3, dim=-1):
                pyro.sample("z", dist.Normal((x + m) / 2, 0.8))

    def log_likelihood(self):
        return dist.MultivariateNormal(torch.zeros(3), 2 * torch.eye(3) + 1.0).log_prob(self.x)


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize(
    "pair", [GammaPoisson(), DirichletMultinomial(), Nested()], ids=lambda p: type(p).__name__
)
def test_the_mean_weight_is_unbiased_for_the_likelihood(pair, start):
    options = {"num_steps": 15, "num_leapfrog": 3, "num_chains": 400, "start": start}
    x = torch.cat([pair.x] * 5)  # rows are cheaper than calls
    draws = [
        evaluate.annealed_log_likelihood(pair.model, pair.guide, x, seed=s, **options)
        for s in range(5)
    ]
    draws = torch.stack(draws).reshape(25, len(pair.x))
    assert_within((draws - pair.log_likelihood()).exp(), torch.ones(len(pair.x)))


class SupportOfTheData:
    """z ~ U(0, x) and x | z ~ N(z, 1): the support of z is another one in each batch."""

    x = torch.tensor([0.5, 2.0, 7.0])

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(x), x))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(torch.zeros_like(x), x))


@pytest.mark.parametrize(
    "pair, start, batches",
    [
        pytest.param(DirichletMultinomial(), "guide", 1, id="DirichletMultinomial"),
        pytest.param(Nested(), "prior", 1, id="Nested"),
        pytest.param(SupportOfTheData(), "guide", 2, id="SupportOfTheData"),
    ],
)
def test_compiled_steps_are_the_eager_ones(pair, start, batches):
    calls = []

    def model(x):
        calls.append(len(x))
        return pair.model(x)

    x = torch.cat([pair.x] * 67)[: 100 * batches]  # batches of 100, none like the other
    options = {"num_steps": 4, "num_leapfrog": 3, "num_chains": 5, "start": start, "seed": 0}
    eager = evaluate.annealed_log_likelihood(model, pair.guide, x, **options)
    runs = len(calls)
    compiled = evaluate.annealed_log_likelihood(model, pair.guide, x, compile=True, **options)
    torch.testing.assert_close(compiled, eager)
    assert len(calls) - runs < runs, "compiled steps do not run the program"


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_mean_weight_is_unbiased_with_many_dimensions(toy, start):
    options = {"num_steps": 20, "num_leapfrog": 3, "num_chains": 100, "start": start}
    x = toy.x.repeat(5, 1)
    draws = [
        evaluate.annealed_log_likelihood(toy.model, toy.guide, x, seed=s, **options)
        for s in range(5)
    ]
    ratios = (
        torch.stack(draws).reshape(25, len(toy.x)) - toy.log_likelihood(toy.x).detach()
    ).exp()
    assert_within(ratios.mean(1), 1.0)  # the data points' weights are independent


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_the_estimate_is_within_its_standard_error(toy, start):
    estimate = evaluate.annealed_log_likelihood(
        toy.model,
        toy.guide,
        toy.x,
        num_steps=200,
        num_chains=30,
        num_leapfrog=5,
        start=start,
        errors=True,
        seed=0,
    )
    off = (estimate.log_likelihood - toy.log_likelihood(toy.x).detach()).abs()
    assert (off < 5 * estimate.standard_error).all()  # 5: fifty comparisons at once
    assert (
        (estimate.effective_sample_size > 1) & (estimate.effective_sample_size <= 30)
    ).all()


def test_more_steps_make_better_weights(toy):
    sizes = [
        evaluate.annealed_log_likelihood(
            toy.model, toy.guide, toy.x, num_steps=steps, num_leapfrog=5, errors=True, seed=0
        ).effective_sample_size.mean()
        for steps in (10, 50, 250)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_it_sees_what_the_guide_misses():
    """x = z^2 + noise has posteriors with two modes; the guide knows one, and its weights are
    equal.
    """
    noise, x = 0.5, torch.tensor([3.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z**2, noise), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), 0.16))

    grid = torch.linspace(-8, 8, 200_001)
    truth = (
        dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid**2, noise).log_prob(x)
    ).logsumexp(0)
    truth = truth + math.log(16 / 200_000)
    weighted = evaluate.log_likelihood(
        model, guide, x, num_particles=1000, errors=True, seed=0
    )
    annealed = evaluate.annealed_log_likelihood(
        model, guide, x, num_steps=100, num_chains=300, errors=True, seed=0
    )
    assert abs(annealed.log_likelihood - truth) < 4 * annealed.standard_error
    assert abs(weighted.log_likelihood - (truth - math.log(2))) < 0.1, (
        "half of the mass is missing"
    )


def test_seeds_and_what_is_left_alone(toy):
    state, options = torch.get_rng_state(), {"num_steps": 5, "num_chains": 2}
    first, again, other = (
        evaluate.annealed_log_likelihood(toy.model, toy.guide, toy.x, seed=seed, **options)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert not first.requires_grad and toy.weight.grad is None
    array = evaluate.annealed_log_likelihood(
        toy.model, toy.guide, toy.x.numpy(), seed=1, **options
    )
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, first.numpy())


def test_chains_come_in_chunks(toy):
    x = toy.x.repeat(2, 1)  # a batch of 100: one chunk is 100 chains
    estimate = evaluate.annealed_log_likelihood(
        toy.model,
        toy.exact_posterior_guide,
        x,
        num_steps=1,
        num_leapfrog=1,
        num_chains=230,
        start="guide",
    )
    torch.testing.assert_close(estimate, toy.log_likelihood(x).detach())


class Program:
    """z from a distribution, inside the data's plate or not."""

    def __init__(self, prior, inside=True, name="z"):
        self.prior, self.inside, self.name = prior, inside, name

    def __call__(self, x):
        plate = pyro.plate("data", len(x))
        if not self.inside:
            z = pyro.sample(self.name, self.prior)
        with plate:
            z = pyro.sample(self.name, self.prior) if self.inside else z
            pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=x)


NORMAL = dist.Normal(0.0, 1.0)


@pytest.mark.parametrize(
    "model, message",
    [
        (
            Program(dist.Bernoulli(0.5)),
            "'z' is Bernoulli, and gradients need continuous.*log_likelihood",
        ),
        (Program(dist.Delta(torch.tensor(0.5))), "'z' is Delta"),
        (Program(NORMAL, inside=False), "'z' lies outside the plate of the data.*pyro.plate"),
        (Program(dist.ImproperUniform(dist.constraints.real, (), ())), "start='guide'"),
        (
            Program(NORMAL, name="w"),
            r"only the model samples \['w'\]; only the guide samples \['z'\]",
        ),
    ],
    ids=["discrete", "delta", "outside", "improper", "unpaired"],
)
def test_programs_that_cannot_be_annealed(model, message):
    def guide(x):
        if not model.inside:
            return pyro.sample("z", NORMAL)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", model.prior if message.startswith("'z' is") else NORMAL)

    with pytest.raises(PairError, match=message):
        evaluate.annealed_log_likelihood(
            model, guide, torch.zeros(3), num_steps=2, num_chains=2
        )


def test_relaxed_draws_are_continuous():
    class Relaxed(nn.Module):
        def __init__(self, **rules):
            super().__init__()
            self.rules = rules

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z",
                    GumbelSoftmax(
                        logits=torch.zeros(3), temperature=torch.tensor(0.7), **self.rules
                    ),
                )
                pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(torch.ones(3)))

    estimate = evaluate.annealed_log_likelihood(
        Relaxed(), guide, torch.zeros(2), num_steps=50, num_chains=50, errors=True, seed=0
    )
    weighted = evaluate.log_likelihood(
        Relaxed(), guide, torch.zeros(2), num_particles=20_000, errors=True, seed=0
    )
    error = (estimate.standard_error**2 + weighted.standard_error**2).sqrt()
    assert ((estimate.log_likelihood - weighted.log_likelihood).abs() < 4 * error).all()


@pytest.mark.parametrize("name", ["num_steps", "num_chains", "num_leapfrog"])
def test_numbers_out_of_range(toy, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        evaluate.annealed_log_likelihood(toy.model, toy.guide, toy.x, **{name: 0})


def test_other_arguments_out_of_range(toy):
    with pytest.raises(ValueError, match="start must be 'prior' or 'guide'"):
        evaluate.annealed_log_likelihood(toy.model, toy.guide, toy.x, start="posterior")
    with pytest.raises(ValueError, match="at least 2"):
        evaluate.annealed_log_likelihood(
            toy.model, toy.guide, toy.x, num_chains=1, errors=True
        )


class SphericalNormal:
    """Two points of the sphere, uniform in the prior, and x | z a Normal around each: the
    evidence is the normalizer of the von Mises-Fisher posterior.
    """

    scale = 0.6
    x = torch.tensor(
        [[[1.0, 0.5, -0.2], [0.1, 0.0, 0.3]], [[-0.4, 2.0, 0.0], [0.7, 0.7, 0.7]]]
    )

    def model(self, x):
        loc = torch.tensor([0.0, 0.0, 1.0], dtype=x.dtype)
        with pyro.plate("data", len(x)):
            uniform = VonMisesFisher(loc, 0.0).expand([2]).to_event(1)
            z = pyro.sample("z", uniform)
            pyro.sample("x", dist.Normal(z, self.scale).to_event(2), obs=x)

    def guide(self, x):
        length = x.norm(dim=-1, keepdim=True)
        with pyro.plate("data", len(x)):
            pyro.sample("z", VonMisesFisher(x / length, 1.0).to_event(1))

    def log_likelihood(self):
        kappa = self.x.norm(dim=-1) / self.scale**2
        log_mean = torch.log(torch.sinh(kappa) / kappa)  # of exp(x . z / scale^2)
        squares = self.x.square().sum(-1) + 1
        normal = -1.5 * math.log(2 * math.pi * self.scale**2)
        return (log_mean - squares / 2 / self.scale**2 + normal).sum(-1)


class Angle:
    """An angle of a circle, whose likelihood jumps where the circle closes."""

    x = torch.tensor([3.0, -1.0, 4.0])
    prior = dist.VonMises(torch.tensor(2.5), torch.tensor(1.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior)
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(torch.tensor(2.0), torch.tensor(0.8)))

    def log_likelihood(self):
        z = torch.linspace(-math.pi, math.pi, 4001).unsqueeze(-1)
        joint = self.prior.log_prob(z) + dist.Normal(z, 2.0).log_prob(self.x)
        return torch.trapezoid(joint.exp(), dx=2 * math.pi / 4000, dim=0).log()


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("pair", [SphericalNormal(), Angle()], ids=["sphere", "circle"])
def test_points_of_a_sphere_and_angles_of_a_circle(pair, start):
    rows = len(pair.x)
    found = evaluate.annealed_log_likelihood(
        pair.model,
        pair.guide,
        pair.x.repeat(100, *[1] * (pair.x.dim() - 1)),
        num_steps=10,
        num_chains=10,
        num_leapfrog=3,
        start=start,
        seed=0,
    )
    # Averages of weights are without bias.
    weights = (found - pair.log_likelihood().repeat(100)).exp().unflatten(0, (100, rows))
    assert_within(weights, torch.ones(rows))


def test_a_mixture_of_normals_is_unconstrained():
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])),
        dist.Normal(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 1.0])),
    )

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", mixture)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", mixture)

    x = torch.tensor([0.5]).repeat(200)
    found = evaluate.annealed_log_likelihood(
        model, guide, x, num_steps=10, num_chains=10, num_leapfrog=3, seed=0
    )
    spreads = torch.tensor([0.5**2 + 1, 2.0]).sqrt()
    parts = dist.Normal(torch.tensor([-1.0, 2.0]), spreads).log_prob(torch.tensor(0.5)).exp()
    evidence = 0.3 * parts[0] + 0.7 * parts[1]
    assert_within(found.exp(), evidence)


def nested(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Uniform(1.0, 3.0))
        b = pyro.sample("b", dist.Uniform(0.0, a))
        pyro.sample("x", dist.Normal(b, 0.5), obs=x)


def nested_guide(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Uniform(1.0, 3.0))
        pyro.sample("b", dist.Uniform(0.0, a))


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_a_support_that_depends_on_another_latent_variable_is_refused(start):
    x = torch.tensor([0.4, 1.2])
    with pytest.raises(PairError, match="support of 'b' depends on .*a \\* pyro.sample"):
        evaluate.annealed_log_likelihood(nested, nested_guide, x, num_steps=2, start=start)
    with pytest.raises(PairError, match="support of 'b' depends"):
        evaluate.true_posterior(nested, x, num_samples=2, warmup=2)

    def remedied(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Uniform(1.0, 3.0))
            u = pyro.sample("u", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Normal(a * u, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Uniform(1.0, 3.0))
            pyro.sample("u", dist.Uniform(0.0, 1.0))

    a = torch.linspace(1.0, 3.0, 2001).unsqueeze(-1)
    inside = dist.Normal(0.0, 1.0).cdf((a - x) / 0.5) - dist.Normal(0.0, 1.0).cdf(-x / 0.5)
    evidence = torch.trapezoid(inside / a / 2, dx=1e-3, dim=0)
    found = evaluate.annealed_log_likelihood(
        remedied,
        guide,
        x.repeat(200),
        num_steps=10,
        num_chains=10,
        num_leapfrog=3,
        start=start,
    )
    assert_within(found.exp().unflatten(0, (200, 2)), evidence)
