"""Reweighted wake-sleep, f-divergences and the thermodynamic objective, against enumeration."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from tarspyro import Conditional, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    ELBO,
    IWAE,
    TVO,
    Compiled,
    FDivergence,
    PairError,
    Renyi,
    ReweightedWakeSleep,
)
from tarspyro.infer.bounds.fixed_draws import _DIVERGENCES
from tarspyro.nn import MLP

from ..programs import LinearGaussian, assert_within

F64 = torch.float64
VALUES = 3
X = torch.tensor([0.3, 1.4], dtype=F64)
MEANS = torch.tensor([-1.0, 0.5, 1.5], dtype=F64)
PRIOR = torch.tensor([0.2, -0.3, 0.1], dtype=F64)
GUIDE = torch.tensor([[0.5, 0.0, -0.4], [-0.2, 0.3, 0.1]], dtype=F64)

# The functions f(t) of the divergences, and t f'(t) - f(t) by hand.
DIVERGENCES = {
    "inclusive-kl": (lambda t: t * t.log(), lambda t: t),
    "exclusive-kl": (lambda t: -t.log(), lambda t: t.log() - 1),
    "chi2": (lambda t: (t - 1) ** 2, lambda t: t**2 - 1),
    "hellinger": (lambda t: (t.sqrt() - 1) ** 2, lambda t: t.sqrt() - 1),
    "jensen-shannon": (
        lambda t: (t * t.log() - (1 + t) * ((1 + t) / 2).log()) / 2,
        lambda t: ((1 + t) / 2).log() / 2,
    ),
    "total-variation": (lambda t: (t - 1).abs() / 2, lambda t: (t - 1).sign() / 2),
    "cubic": (lambda t: t**3, lambda t: 2 * t**3),
}
each_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def f_divergence(name, *numbers):
    """The bound of that name; the last one is a function of one's own."""
    own = {"cubic": lambda log_t: (3 * log_t).exp()}
    return FDivergence(own.get(name, name), *numbers)


class Pair:
    """A categorical z and a Normal x, each of many rows with parameters of its own, so that one
    run gives independent gradients.
    """

    def __init__(self, rows):
        self.x = X.repeat_interleave(rows)
        repeated = (PRIOR.expand(2, VALUES), MEANS.expand(2, VALUES), GUIDE)
        self.parameters = [
            one.repeat_interleave(rows, 0).clone().requires_grad_() for one in repeated
        ]

    def model(self, x):
        prior, means, _ = self.parameters
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=prior))
            mean = means.gather(-1, z.reshape(-1, len(x)).T).T.reshape(z.shape)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.parameters[2]))

    def gradients(self, bound):
        loss = bound.differentiable_loss(self.model, self.guide, self.x)
        return [-slope for slope in torch.autograd.grad(loss, self.parameters)]


class Exact:
    """The same pair, enumerated."""

    def __init__(self):
        self.parameters = [
            one.clone().requires_grad_()
            for one in (PRIOR.repeat(2, 1), MEANS.repeat(2, 1), GUIDE)
        ]
        prior, means, guide = self.parameters
        density = dist.Normal(means, 1.0).log_prob(X[:, None])
        self.log_joint = prior.log_softmax(-1) + density
        self.log_guide = guide.log_softmax(-1)
        self.log_evidence = self.log_joint.logsumexp(-1)

    def tuples(self, count):
        """Log p, log q and the probability of each tuple of draws, the tuples first."""
        picked = torch.tensor(list(itertools.product(range(VALUES), repeat=count)))
        log_joint = self.log_joint.T[picked]
        log_guide = self.log_guide.T[picked]
        return log_joint, log_guide, log_guide.sum(1).exp()

    def expected(self, beta):
        """E[log w] under the path's distribution at beta."""
        path = (beta * self.log_joint + (1 - beta) * self.log_guide).softmax(-1)
        return (path * (self.log_joint - self.log_guide)).sum(-1)

    def gradients(self, value):
        return torch.autograd.grad(
            value.sum(), self.parameters, retain_graph=True, allow_unused=True
        )


def assert_gradients(found, truth, rows):
    for slope, exact in zip(found, truth, strict=True):
        slope = slope.reshape(2, rows, VALUES)
        for point in range(2):
            assert_within(slope[point], exact[point])


@pytest.mark.parametrize("particles", [2, 4])
def test_reweighted_wake_sleep_has_the_expected_gradients(particles):
    torch.manual_seed(0)
    exact = Exact()
    log_joint, log_guide, probability = exact.tuples(particles)
    log_weights = log_joint - log_guide
    # The model's gradient is that of the importance weighted bound.
    bound = (probability.detach() * (log_weights.logsumexp(1) - math.log(particles))).sum(0)
    truth = list(exact.gradients(bound)[:2])
    shares = log_weights.detach().softmax(1)
    wake = (probability.detach() * (shares * exact.tuples(particles)[1]).sum(1)).sum(0)
    truth.append(exact.gradients(wake)[2])
    pair = Pair(3000)
    assert_gradients(pair.gradients(ReweightedWakeSleep(particles)), truth, 3000)


def test_its_guide_approaches_the_other_divergence():
    torch.manual_seed(0)
    exact = Exact()
    posterior = (exact.log_joint - exact.log_evidence[:, None]).exp().detach()
    truth = exact.gradients((posterior * exact.log_guide).sum(-1))[2]
    slope = Pair(30).gradients(ReweightedWakeSleep(3000))[2]
    assert_gradients([slope], [truth], 30)


def test_its_loss_is_the_importance_weighted_bound():
    pair = Pair(5)
    torch.manual_seed(0)
    ours = ReweightedWakeSleep(7, num_groups=2).loss(pair.model, pair.guide, pair.x)
    torch.manual_seed(0)
    assert ours == pytest.approx(IWAE(7, num_groups=2).loss(pair.model, pair.guide, pair.x))


@each_divergence
@pytest.mark.parametrize("particles", [2, 4])
def test_f_divergences_have_the_expected_gradients(name, particles):
    torch.manual_seed(0)
    exact = Exact()
    log_joint, log_guide, probability = exact.tuples(particles)
    log_weights = log_joint - log_guide
    evidence = log_weights.logsumexp(1) - math.log(particles)
    truth = list(exact.gradients((probability.detach() * evidence).sum(0))[:2])
    signal = DIVERGENCES[name][1]((log_weights - evidence[:, None]).exp()).detach()
    scores = log_guide - log_guide.mean(1, keepdim=True)
    approach = (probability.detach() * (signal * scores).sum(1)).sum(0) / (particles - 1)
    truth.append(exact.gradients(approach)[2])
    assert_gradients(Pair(3000).gradients(f_divergence(name, particles)), truth, 3000)


@each_divergence
def test_with_many_particles_the_guide_descends_the_divergence(name):
    torch.manual_seed(0)
    exact = Exact()
    log_posterior = (exact.log_joint - exact.log_evidence[:, None]).detach()
    ratio = (log_posterior - exact.log_guide).exp()
    divergence = (exact.log_guide.exp() * DIVERGENCES[name][0](ratio)).sum(-1)
    truth = exact.gradients(-divergence)[2]
    slope = Pair(30).gradients(f_divergence(name, 3000))[2]
    assert_gradients([slope], [truth], 30)


def test_the_exclusive_divergence_is_that_of_the_elbo_without_bias():
    torch.manual_seed(0)
    exact = Exact()
    truth = exact.gradients(exact.expected(0.0))[2]
    slope = Pair(3000).gradients(FDivergence("exclusive-kl", 2))[2]
    assert_gradients([slope], [truth], 3000)


def test_its_loss_is_the_importance_weighted_bound_too():
    pair = Pair(5)
    torch.manual_seed(0)
    ours = FDivergence("chi2", 7, num_groups=2).loss(pair.model, pair.guide, pair.x)
    torch.manual_seed(0)
    assert ours == pytest.approx(IWAE(7, num_groups=2).loss(pair.model, pair.guide, pair.x))


def cubo(exact, order):
    """The chi upper bound (1/n) log E_q[w^n], enumerated."""
    log_weights = exact.log_joint - exact.log_guide
    return (order * log_weights + exact.log_guide).logsumexp(-1) / order


@pytest.mark.parametrize("order", [1.5, 2, 3])
def test_renyi_of_order_one_minus_n_is_the_chi_upper_bound(order):
    torch.manual_seed(0)
    exact = Exact()
    truth = cubo(exact, order)
    assert (exact.expected(0.0) < exact.log_evidence).all()  # the ELBO
    assert (exact.log_evidence < truth).all()
    pair = Pair(30)
    bound = Renyi(1.0 - order, 3000)
    draws = [bound.loss(pair.model, pair.guide, pair.x) / -30 for _ in range(10)]
    assert_within(draws, truth.sum().item())
    assert_gradients(pair.gradients(bound), exact.gradients(truth), 30)


def test_the_chi_divergence_descends_the_chi_upper_bound():
    exact = Exact()
    bound = cubo(exact, 2)
    divergence = (2 * (bound - exact.log_evidence.detach())).expm1()
    torch.manual_seed(0)
    slope = Pair(30).gradients(FDivergence("chi2", 3000))[2]
    assert_gradients([slope], [exact.gradients(-divergence)[2]], 30)
    # The direction is that of the bound; the divergence only weighs the data points.
    toward = exact.gradients(-bound)[2]
    weighed = 2 * (1 + divergence.detach())[:, None] * toward
    torch.testing.assert_close(exact.gradients(-divergence)[2], weighed)


def gaussian_cubo(toy, order):
    """The chi upper bound of the linear Gaussian model, in closed form.

    The exponent of q^(1 - n) p(x, z)^n is the quadratic -z'Az/2 + b'z - c/2 in z.
    """
    identity = torch.eye(2, dtype=F64)
    q = toy.posterior(toy.x).base_dist
    precision = q.scale[0] ** -2
    weight = toy.weight / toy.scale
    x = toy.x / toy.scale
    a = order * (identity + weight.T @ weight) + (1 - order) * precision.diag()
    b = order * x @ weight + (1 - order) * precision * q.loc
    c = order * x.square().sum(-1) + (1 - order) * (precision * q.loc.square()).sum(-1)
    log_constant = order * (-3.5 * math.log(2 * math.pi) - 5 * math.log(toy.scale))
    log_constant += (1 - order) * (precision.log().sum() / 2 - math.log(2 * math.pi))
    quadratic = (b @ a.inverse() * b).sum(-1) - c
    return (log_constant + math.log(2 * math.pi) - a.logdet() / 2 + quadratic / 2) / order


def test_elbo_and_chi_bound_of_a_linear_gaussian_model_enclose_its_evidence():
    torch.manual_seed(0)
    toy = LinearGaussian()
    truth = gaussian_cubo(toy, 1.5)
    evidence = toy.log_likelihood(toy.x)
    assert (toy.reconstruction(toy.x) - toy.kl(toy.x) < evidence).all()
    assert (evidence < truth).all()
    bound = Renyi(-0.5, 10_000)
    draws = [-bound.loss(toy.model, toy.guide, toy.x) for _ in range(40)]
    assert_within(draws, truth.sum().item())
    parameters = [toy.shift, toy.log_scale]
    slopes = []
    for _ in range(40):
        loss = -bound.differentiable_loss(toy.model, toy.guide, toy.x)
        slopes.append(torch.cat(torch.autograd.grad(loss, parameters)))
    exact = torch.cat(torch.autograd.grad(truth.sum(), parameters))
    assert_within(torch.stack(slopes), exact)


@pytest.mark.parametrize("particles", [2, 5])
def test_one_partition_is_the_elbo_without_bias(particles):
    torch.manual_seed(0)
    exact = Exact()
    pair = Pair(3000)
    truth = exact.gradients(exact.expected(0.0))
    assert_gradients(pair.gradients(TVO(particles, num_partitions=1)), truth, 3000)
    torch.manual_seed(0)
    ours = TVO(particles, num_partitions=1).loss(pair.model, pair.guide, pair.x)
    torch.manual_seed(0)
    elbo = ELBO(particles, analytic_kl=False).loss(pair.model, pair.guide, pair.x)
    assert ours == pytest.approx(elbo)


@pytest.mark.parametrize("integration", ["left", "right"])
@pytest.mark.parametrize("partitions", [1, 2, 5])
def test_values_and_gradients_of_the_riemann_sums(integration, partitions):
    torch.manual_seed(1)
    bound = TVO(3000, partitions, 0.1, integration)
    exact = Exact()
    steps = list(itertools.pairwise(bound.betas))
    assert len(steps) == partitions and bound.betas[0] == 0 and bound.betas[-1] == 1
    side = 0 if integration == "left" else 1
    value = sum((b - a) * exact.expected((a, b)[side]) for a, b in steps)
    gap = (value - exact.log_evidence) * (1 if integration == "right" else -1)
    assert (gap > 0).all()  # a lower and an upper bound
    pair = Pair(30)
    assert_gradients(pair.gradients(bound), exact.gradients(value), 30)
    draws = [bound.loss(pair.model, pair.guide, pair.x) / -30 for _ in range(10)]
    assert_within(draws, value.sum().item())


def test_more_partitions_are_tighter():
    exact = Exact()
    gaps = []
    for partitions in (1, 3, 10, 100):
        betas = TVO(2, partitions, 0.02).betas
        left = sum((b - a) * exact.expected(a) for a, b in itertools.pairwise(betas))
        gaps.append((exact.log_evidence - left).sum().item())
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.1 * gaps[0]


def test_hierarchical_and_reparameterized_draws_are_taken_as_given():
    scale = torch.tensor(0.5, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(x / 3, scale))
            pyro.sample("z", dist.Normal((x + y) / 2, scale))

    # Given the draws, the guide's gradient is the weighted mean of its scores.
    torch.manual_seed(0)
    x = torch.randn(4)
    bound = ReweightedWakeSleep(6)
    torch.manual_seed(0)
    loss = bound.differentiable_loss(model, guide, x)
    (slope,) = torch.autograd.grad(-loss, scale)
    torch.manual_seed(0)
    with pyro.plate("particles", 6, dim=-2):
        drawn = poutine.trace(guide).get_trace(x)
    y, z = (drawn.nodes[name]["value"].detach() for name in "yz")
    log_q = dist.Normal(x / 3, scale).log_prob(y) + dist.Normal((x + y) / 2, scale).log_prob(z)
    log_p = dist.Normal(0.0, 1.0).log_prob(y) + dist.Normal(y, 1.0).log_prob(z)
    log_p = log_p + dist.Normal(z, 1.0).log_prob(x)
    shares = (log_p - log_q).detach().softmax(0)
    (truth,) = torch.autograd.grad((shares * log_q).sum(), scale)
    assert slope.item() == pytest.approx(truth.item(), rel=1e-5)


def test_impossible_draws_do_no_harm():
    likelihood = dist.Bernoulli

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("x", likelihood(z), obs=x)  # x is z

    logits = torch.zeros(50, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    torch.manual_seed(0)
    x = torch.ones(50)
    divergences = [FDivergence(name, 20) for name in DIVERGENCES if name != "cubic"]
    for bound in (ReweightedWakeSleep(20), TVO(20, 2), *divergences):
        loss = bound.differentiable_loss(model, guide, x)
        (slope,) = torch.autograd.grad(-loss, logits)
        assert loss.isfinite() and slope.isfinite().all() and slope.mean() > 0.05

    likelihood = dist.Delta  # whose density is 0, not nearly 0
    for bound in (ReweightedWakeSleep(20), *divergences):
        loss = bound.differentiable_loss(model, guide, x)
        (slope,) = torch.autograd.grad(-loss, logits)
        assert loss.isfinite() and slope.isfinite().all() and slope.mean() > 0.05
    # Where all draws are impossible, there is nothing to follow.
    loss = FDivergence("exclusive-kl", 20).differentiable_loss(model, guide, 2 * x)
    (slope,) = torch.autograd.grad(-loss, logits)
    assert loss.item() == math.inf and (slope == 0).all()


@pytest.mark.parametrize(
    "bound",
    [ReweightedWakeSleep(4), TVO(4, 3), FDivergence("jensen-shannon", 4)],
    ids=["rws", "tvo", "f"],
)
@pytest.mark.parametrize("family", [dist.Normal, dist.Bernoulli])
def test_they_train_and_compile(bound, family):
    torch.manual_seed(0)
    p = models.VAE(default_prior(family, 3), Conditional(dist.Bernoulli, MLP(3, [16]), 8))
    q = guides.VAE(Conditional(family, MLP(8, [16]), 3))
    x = (torch.rand(200, 1) < 0.5).float().repeat(1, 8)
    history = fit(p, q, x, loss=bound, epochs=8, lr=3e-2, seed=0, progress=False)
    assert history["loss"][-1] < history["loss"][0] - 0.5
    values = []
    for one in (bound, Compiled(bound)):
        torch.manual_seed(1)
        values.append(one.differentiable_loss(p, q, x[:20]).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda t: t**2, "convex in t, and is given log t"),
        (lambda t: t * t.log(), "convex in t, and is given log t"),
        (lambda log_t: log_t, "convex in t"),  # concave
        (
            lambda log_t: 1.0,
            "a tensor with a number for each log t, which has derivatives, got 1",
        ),
        (lambda log_t: log_t.exp().sum(), "a tensor with a number for each log t"),
        (lambda log_t: log_t.detach(), "which has derivatives"),
    ],
)
def test_a_function_that_is_no_divergence_is_refused(f, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FDivergence(f)


@pytest.mark.parametrize("f", [*_DIVERGENCES.values(), lambda log_t: (40 * log_t).exp()])
def test_convex_functions_are_accepted(f):
    with torch.no_grad():
        assert FDivergence(f).f is f


def test_wrong_arguments_and_pairs():
    with pytest.raises(ValueError, match="num_particles"):
        ReweightedWakeSleep(1)
    with pytest.raises(ValueError, match="num_particles"):
        TVO(1)
    with pytest.raises(ValueError, match="f must be one of 'inclusive-kl', .*got 'kl'"):
        FDivergence("kl")
    with pytest.raises(
        TypeError, match="f must be a name or a function of log t, got 2: take"
    ):
        FDivergence(2)
    with pytest.raises(ValueError, match="num_particles"):
        FDivergence("chi2", 1)
    with pytest.raises(ValueError, match="first_beta"):
        TVO(4, first_beta=1.5)
    with pytest.raises(ValueError, match="first_beta must lie between 0 and 1, got 1"):
        TVO(4, first_beta=1)
    with pytest.raises(ValueError, match="integration"):
        TVO(4, integration="middle")
    with pytest.raises(TypeError, match="gradient"):
        TVO(4, gradient="dreg")
    with pytest.raises(TypeError, match="num_partitions"):
        TVO(4, 2.5)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(PairError, match="share"):
        TVO(4).loss(model, guide, torch.randn(3))


def test_the_thermodynamic_objective_of_impossible_draws_is_that_of_the_elbo():
    """The left sum contains the ELBO, which is -inf where the model cannot make a draw."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("x", dist.Delta(z), obs=x)

    logits = torch.zeros(50, requires_grad=True)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    torch.manual_seed(0)
    for side, finite in (("left", False), ("right", True)):
        bound = TVO(20, 2, integration=side)
        loss = bound.differentiable_loss(model, guide, torch.ones(50))
        (slope,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() == finite and not loss.isnan() and slope.isfinite().all()
