"""Posteriors with an auxiliary variable, against linear Gaussian ones in closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, SemiImplicit, data, evaluate, fit, guides, load_run, models
from tarspyro.conditional import Blocks
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    ELBO,
    IWAE,
    PIWAE,
    TVO,
    Compiled,
    FDivergence,
    PairError,
    ReweightedWakeSleep,
)
from tarspyro.nn import MLP

from .programs import assert_within

SLOPE, NOISE = 0.8, 0.5  # of z given the auxiliary variable
X = torch.tensor([[0.5], [2.0], [-1.0]], dtype=torch.float64)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *values):
        return self.function(*values)


def normal(loc, scale):
    return dist.Normal(loc, scale).to_event(1)


AUXILIARY = normal(torch.zeros(1, dtype=torch.float64), 1.0)
POSTERIOR = Function(lambda psi, x: normal(x / 2 + SLOPE * psi, NOISE))
VARIANCE = SLOPE**2 + NOISE**2
EXACT = Function(
    lambda z, x: normal(SLOPE * (z - x / 2) / VARIANCE, (NOISE**2 / VARIANCE) ** 0.5)
)
WIDE = Function(lambda z, x: normal(0.3 * (z - x / 2), 0.9))


def marginal(x):
    return normal(x / 2, VARIANCE**0.5)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", normal(torch.zeros(len(x), 1, dtype=x.dtype), 1.0))
        pyro.sample("x", normal(z, 1.0), obs=x)


def guide_of(posterior):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return guide


def log_p(x):
    return normal(torch.zeros_like(x), 2**0.5).log_prob(x)


def test_the_posterior_of_the_auxiliary_variable_gives_the_density_itself():
    torch.manual_seed(0)
    for draws in (0, 1, 5):
        q = SemiImplicit(AUXILIARY, POSTERIOR, EXACT, draws)(X)
        for value in (q.rsample(), q.rsample((4,)), torch.randn(3, 1).double()):
            torch.testing.assert_close(q.log_prob(value), marginal(X).log_prob(value))


@pytest.mark.parametrize("reverse", [None, WIDE], ids=["prior", "wide"])
def test_the_estimate_falls_to_the_density(reverse):
    torch.manual_seed(0)
    gaps = []
    for draws in (1, 4, 30, 300):
        q = SemiImplicit(AUXILIARY, POSTERIOR, reverse, draws)(X[:1])
        z = q.sample((8000,))
        gaps.append((q.log_prob(z) - marginal(X[:1]).log_prob(z)).squeeze(-1))
    means = [gap.mean() for gap in gaps]
    errors = [gap.std() / len(gap) ** 0.5 for gap in gaps]
    assert means[0] > 4 * errors[0] and means[1] > 4 * errors[1]  # above it
    for k in range(3):
        assert means[k] - means[k + 1] > -4 * (errors[k] + errors[k + 1])
    assert means[0] - means[2] > 4 * (errors[0] + errors[2])
    assert abs(means[3]) < 0.02


def test_draws_are_of_the_marginal():
    torch.manual_seed(0)
    z = SemiImplicit(AUXILIARY, POSTERIOR, WIDE)(X).sample((20_000,))
    assert_within(z[..., 0], X[:, 0] / 2)
    assert_within((z - X / 2).square()[..., 0], torch.full((3,), VARIANCE).double())


def test_other_values_have_densities_without_bias():
    torch.manual_seed(0)
    q = SemiImplicit(AUXILIARY, POSTERIOR, WIDE, 3)(X[:1])
    value = torch.tensor([0.7], dtype=torch.float64)
    found = torch.stack([q.log_prob(value.clone()).exp() for _ in range(4000)])
    assert_within(found, marginal(X[:1]).log_prob(value).exp())


@pytest.mark.parametrize("reverse", [None, WIDE], ids=["prior", "wide"])
def test_bounds_stay_below_the_evidence(reverse):
    """The ELBO below that of the marginal, the weights of IWAE with p(x) as their mean."""
    torch.manual_seed(0)
    x = X[:1].expand(4000, 1)
    exact = evaluate.elbo(model, guide_of(marginal), x, num_particles=50, seed=0).elbo.mean()
    values = []
    for draws in (1, 10, 100):
        guide = guide_of(SemiImplicit(AUXILIARY, POSTERIOR, reverse, draws))
        values.append(-ELBO(5).loss(model, guide, x) / 4000)
        weights = evaluate.log_likelihood(model, guide, x, num_particles=1, seed=1).exp()
        assert_within(weights, log_p(X[:1])[0].exp())
        bound = -IWAE(10).loss(model, guide, x) / 4000
        assert values[-1] < bound < log_p(X[:1])[0] + 0.01
    assert values[0] < values[1] < values[2] + 0.01
    assert values[2] == pytest.approx(float(exact), abs=0.03)


def test_gradients_reach_all_three_networks_and_are_those_of_the_marginal():
    """With the exact reverse model, the gradient of the ELBO of the marginal."""
    torch.manual_seed(0)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    posterior = Function(lambda psi, x: normal(x / 2 + shift + SLOPE * psi, NOISE))
    reverse = Function(
        lambda z, x: normal(
            SLOPE * (z - x / 2 - shift) / VARIANCE, (NOISE**2 / VARIANCE) ** 0.5
        )
    )
    x = X[:1].expand(2000, 1)
    guide = guide_of(SemiImplicit(AUXILIARY, posterior, reverse, 2))
    found = []
    for _ in range(20):
        loss = ELBO().differentiable_loss(model, guide, x) / 2000
        found.append(-torch.autograd.grad(loss, shift)[0])
    # d/ds E[log p(x, z)] for z = x / 2 + s + noise: -(z) + (x - z) in the mean.
    assert_within(torch.stack(found), float(-X[0] / 2 + X[0] / 2))


def pair(reverse=True, draws=5):
    torch.manual_seed(0)
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [32]), 64)
    )
    posterior = SemiImplicit(
        default_prior(dist.Normal, 3),
        Conditional(dist.Normal, MLP([3, 64], [32]), 2),
        Conditional(dist.Normal, MLP([2, 64], [32]), 3) if reverse else None,
        draws,
    )
    return p, guides.VAE(posterior)


@pytest.mark.parametrize("loss", [ELBO(), IWAE(3), ELBO(3)], ids=["elbo", "iwae", "particles"])
def test_training_and_a_saved_run(loss, tmp_path):
    p, q = pair()
    x = data.digits().train.x[:300].flatten(1).round()
    history = fit(
        p, q, x, loss=loss, epochs=8, lr=3e-3, seed=0, progress=False, folder=tmp_path / "run"
    )
    assert history["loss"][-1] < history["loss"][0] - 1
    again = load_run(tmp_path / "run")
    found = evaluate.log_likelihood(again.model, again.guide, x[:20], num_particles=20, seed=0)
    assert torch.equal(found, evaluate.log_likelihood(p, q, x[:20], num_particles=20, seed=0))
    assert q.posterior.reverse.heads["loc"].weight.grad is not None


def test_a_recorded_step_is_the_eager_one():
    p, q = pair()
    x = torch.rand(6, 64).round()
    values = []
    for loss in (ELBO(2), Compiled(ELBO(2), backend="eager")):
        torch.manual_seed(1)
        loss.loss(p, q, x)
        torch.manual_seed(2)
        value = loss.differentiable_loss(p, q, x)
        values.append(value.item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


REFUSED = {
    "stl": ELBO(2, gradient="stl"),
    "dreg": IWAE(5, gradient="dreg"),
    "piwae": PIWAE(2, 2),
    "wake-sleep": ReweightedWakeSleep(5),
    "tvo": TVO(5),
    "f-divergence": FDivergence("chi2", 5),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in blocks"])
def test_losses_that_would_forget_the_auxiliary_variable_are_refused(name, wrapped):
    """Of copies of its draws it gives densities that are too small: bounds above log p(x)."""
    torch.manual_seed(0)
    posterior = SemiImplicit(AUXILIARY, POSTERIOR, WIDE, 0)
    guide = guide_of(Blocks(posterior) if wrapped else posterior)
    with pytest.raises(PairError, match="its family estimates .*: (take|train)"):
        REFUSED[name].differentiable_loss(model, guide, X)


def test_evaluations_that_would_forget_it_are_refused():
    torch.manual_seed(0)
    guide = guide_of(SemiImplicit(AUXILIARY, POSTERIOR, WIDE, 3))
    x = torch.tensor([[0.5, math.nan], [1.0, 2.0]], dtype=torch.float64)

    def wide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(torch.zeros(len(x), 1, dtype=x.dtype), 1.0))
            pyro.sample("x", normal(torch.cat([z, z], -1), 1.0), obs=x)

    def of_first(x):
        return guide(x[:, :1])

    with pytest.raises(PairError, match="'metropolis-within-gibbs' needs .*pseudo-gibbs"):
        evaluate.impute(wide, of_first, x, method="metropolis-within-gibbs")
    with pytest.raises(PairError, match="weight of a code needs .*pseudo-gibbs"):
        evaluate.impute(wide, of_first, x, method="importance")
    with pytest.raises(PairError, match="start='guide' needs .*: take start='prior'"):
        evaluate.annealed_log_likelihood(model, guide, X, start="guide")
    with pytest.raises(PairError, match=r"log q\(z \| x\) needs .*: compare pairs"):
        evaluate.log_densities(model, guide, X, {"z": torch.zeros(len(X), 5, 1)})
    with pytest.raises(PairError, match="gaps needs .*: compare log_likelihood"):
        evaluate.gaps(model, guide, X, seed=0)
    filled = evaluate.impute(wide, of_first, x, method="pseudo-gibbs", seed=0)
    assert filled.isfinite().all()
    found = evaluate.annealed_log_likelihood(model, guide, X, num_steps=50, seed=0)
    torch.testing.assert_close(found, log_p(X), atol=0.3, rtol=0)


def test_two_modes_are_found():
    """z^2 is observed, so that its sign is not known: a Normal posterior has one mode."""
    torch.manual_seed(0)
    x = torch.full((200, 1), 1.0)

    def squared(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(torch.zeros(len(x), 1), 1.0))
            pyro.sample("x", normal(z.square(), 0.5), obs=x)

    one = guides.VAE(Conditional(dist.Normal, MLP(1, [16]), 1))
    mixed = guides.VAE(
        SemiImplicit(
            default_prior(dist.Normal, 1),
            Conditional(dist.Normal, MLP([1, 1], [32]), 1),
            Conditional(dist.Normal, MLP([1, 1], [32]), 1),
            10,
        )
    )
    bounds = {}
    for name, q in {"one": one, "mixed": mixed}.items():
        fit(squared, q, x, epochs=150, batch_size=100, lr=1e-2, seed=0, progress=False)
        bounds[name] = evaluate.elbo(squared, q, x, num_particles=50, seed=0).elbo.mean()
    grid = torch.linspace(-6, 6, 20_001)
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid.square(), 0.5).log_prob(
        x[0]
    )
    evidence = (joint.logsumexp(0) + math.log(12 / 20_000)).item()
    assert bounds["one"] + 0.15 < bounds["mixed"] < evidence
    z = mixed.posterior.sample(x[:1], sample_shape=1000)
    assert 0.2 < (z > 0).float().mean() < 0.8


def test_errors():
    with pytest.raises(ValueError, match="num_draws must be at least 1"):
        SemiImplicit(AUXILIARY, POSTERIOR, None, 0)
    with pytest.raises(TypeError, match="posterior must be a torch.nn.Module"):
        SemiImplicit(AUXILIARY, lambda psi, x: None)
    with pytest.raises(TypeError, match="reverse must be a torch.nn.Module"):
        SemiImplicit(AUXILIARY, POSTERIOR, lambda z, x: None)
    with pytest.raises(TypeError, match="auxiliary must be a distribution"):
        SemiImplicit(3, POSTERIOR)
    with pytest.raises(NotImplementedError):
        SemiImplicit(AUXILIARY, POSTERIOR)(X).mean  # noqa: B018
