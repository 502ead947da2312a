"""Bayesian regression and networks with random weights, against closed forms."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tarspyro import (
    Conditional,
    Deterministic,
    StochasticModule,
    fit,
    guides,
    load_run,
    models,
)
from tarspyro.data import digits
from tarspyro.distributions import Prior, as_prior, default_prior
from tarspyro.infer import ELBO, IWAE, Renyi, renyi_bound
from tarspyro.nn import MLP, ConvDecoder, RandomWeights
from tarspyro.runs.description import build, describe

from ..programs import assert_within


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def likelihood(features, hidden, **fixed):
    return Conditional(dist.Normal, MLP(features, hidden), (), **fixed)


# --- a network as a function of its weights


NETWORKS = {
    "plain": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), [(3,)]),
    "conditional": (lambda: likelihood(3, [4], scale=nn.Parameter(torch.tensor(0.5))), [(3,)]),
    "two heads and inputs": (
        lambda: Conditional(dist.Normal, MLP([3, 2], [4]), 2),
        [(3,), (2,)],
    ),
    "convolutions": (
        lambda: Conditional(dist.Bernoulli, ConvDecoder(3, (1, 4, 4), [2]), (1, 4, 4)),
        [(3,)],
    ),
    "deterministic": (lambda: Deterministic(MLP(3, [4]), 2, transform=torch.tanh), [(3,)]),
}
# The leading shapes of the weights and of the inputs.
LEADS = {
    "one draw": ((), (5,)),
    "one draw, no batch": ((), ()),
    "a plate of particles": ((4, 1), (5,)),
    "groups and particles": ((2, 4, 1), (5,)),
    "shared by the particles": ((2, 1, 1), (2, 4, 5)),
    "as many draws as rows": ((5,), (5,)),
    "draws on the right": ((4,), (5, 1)),
    "draws between": ((4, 1), (2, 1, 5)),
    "draws of both": ((4, 1), (4, 5)),
}


def tensors_of(output):
    return [output] if torch.is_tensor(output) else [output.mean, output.variance]


@pytest.mark.parametrize("lead", LEADS.values(), ids=LEADS)
@pytest.mark.parametrize("case", NETWORKS.values(), ids=NETWORKS)
def test_all_draws_at_once_are_a_loop_over_the_draws(case, lead):
    network, events = case[0](), case[1]
    function = RandomWeights(network)
    random = torch.Generator().manual_seed(0)
    w = torch.randn(*lead[0], function.num_weights, generator=random).requires_grad_()
    inputs = [
        torch.randn(*lead[1], *event, generator=random).requires_grad_() for event in events
    ]
    both = torch.broadcast_shapes(*lead)
    found = function(*inputs, w)
    parts = tensors_of(found)
    assert all(part.shape[: len(both)] == both for part in parts)
    flat_w = w.expand(*both, -1).reshape(-1, w.shape[-1])
    rows = [
        x.expand(*both, *event).reshape(-1, *event)
        for x, event in zip(inputs, events, strict=True)
    ]
    for index in range(len(flat_w)):
        # The truth: the network itself with these weights in the place of its own.
        alone = copy.deepcopy(network)
        weights = [
            p for n, p in alone.named_parameters() if torch.is_tensor(found) or "." in n
        ]
        vector_to_parameters(flat_w[index].detach(), weights)
        expected = tensors_of(alone(*(row[index : index + 1] for row in rows)))
        for part, value in zip(parts, expected, strict=True):
            event = part.shape[len(both) :]
            torch.testing.assert_close(part.reshape(-1, *event)[index], value[0])
    # and its gradient in weights and inputs is that of the loop
    total = sum(part.square().sum() for part in parts)
    gradients = torch.autograd.grad(total, [w, *inputs])
    looped = 0.0
    for index in range(len(flat_w)):
        output = function(*(row[index : index + 1] for row in rows), flat_w[index])
        looped = looped + sum(part.square().sum() for part in tensors_of(output))
    for one, other in zip(gradients, torch.autograd.grad(looped, [w, *inputs]), strict=True):
        torch.testing.assert_close(one, other)


def test_the_network_is_copied_and_its_weights_are_no_parameters():
    network = likelihood(3, [4], scale=nn.Parameter(torch.tensor(0.5)))
    before = copy.deepcopy(network.state_dict())
    function = RandomWeights(network)
    assert function.num_weights == 4 * 3 + 4 + 4 + 1
    assert [tuple(p.shape) for p in function.parameters()] == [()]  # the learned scale alone
    assert torch.equal(
        function.initial,
        parameters_to_vector([*network.trunk.parameters(), *network.heads.parameters()]),
    )
    function.initial.zero_()
    x = torch.randn(5, 3)
    torch.testing.assert_close(function(x, function.initial).mean, network(x).mean)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in network.parameters())


def test_shared_weights_are_drawn_once():
    layer = nn.Linear(3, 3)
    network = nn.Sequential(layer, nn.Tanh(), layer)
    other = nn.Linear(3, 3)
    other.weight = layer.weight
    assert RandomWeights(network).num_weights == 12
    tied = RandomWeights(nn.Sequential(layer, other))
    assert tied.num_weights == 15
    w, x = torch.randn(15), torch.randn(2, 3)
    weight, bias, second = w[:9].reshape(3, 3), w[9:12], w[12:]
    torch.testing.assert_close(tied(x, w), (x @ weight.T + bias) @ weight.T + second)


def test_dropout_differs_between_draws():
    function = RandomWeights(nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)))
    x, w = torch.ones(1, 3), torch.ones(function.num_weights)
    dropped = function(x, w.expand(2, 1, -1) + torch.zeros(2, 1, 1)) == 0
    assert 0 < dropped.sum() < dropped.numel() and not torch.equal(dropped[0], dropped[1])


def test_random_weights_rejects_invalid_networks():
    with pytest.raises(TypeError, match="network must be a torch.nn.Module, got 3"):
        RandomWeights(3)
    with pytest.raises(ValueError, match="network has lazy layers"):
        RandomWeights(nn.LazyLinear(2))
    with pytest.raises(ValueError, match="network must have weights, got ReLU"):
        RandomWeights(nn.ReLU())
    function = RandomWeights(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"weights must have shape \(\*, 8\), got \(4, 7\)"):
        function(torch.zeros(4, 3), torch.zeros(4, 7))
    with pytest.raises(ValueError, match="takes 1 input"):
        RandomWeights(likelihood(3, [4]))(
            torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(21 + 5)
        )


# --- Bayesian linear regression, where all is known


class Linear:
    r"""y | x, w ~ N(w^T (x, 1), s^2) with w ~ N(0, I): posterior, evidence and predictive in
    closed form.
    """

    def __init__(self, num=24, features=3, scale=0.7):
        random = torch.Generator().manual_seed(1)
        self.x = torch.randn(num, features, generator=random)
        self.design = torch.cat([self.x, torch.ones(num, 1)], 1)
        w = torch.randn(features + 1, generator=random)
        self.y = self.design @ w + scale * torch.randn(num, generator=random)
        self.scale, self.size = scale, features + 1
        self.precision = torch.eye(self.size) + self.design.T @ self.design / scale**2
        self.mean = torch.linalg.solve(self.precision, self.design.T @ self.y) / scale**2
        self.posterior = dist.MultivariateNormal(self.mean, precision_matrix=self.precision)
        covariance = self.design @ self.design.T + scale**2 * torch.eye(num)
        self.evidence = (
            dist.MultivariateNormal(torch.zeros(num), covariance).log_prob(self.y).item()
        )

    def model(self):
        function = RandomWeights(likelihood(self.x.shape[1], [], scale=self.scale))
        return models.BayesianRegression(
            default_prior(dist.Normal, self.size), function, len(self.x)
        )

    def mean_field(self):
        """The best mean-field guide: the posterior's mean, and the diagonal of its precision
        (Bishop 2006, 10.1.2).
        """
        scale = self.precision.diagonal() ** -0.5
        family = Prior(
            dist.Normal, self.size, loc=nn.Parameter(self.mean), scale=nn.Parameter(scale)
        )
        gap = 0.5 * (self.precision.diagonal().log().sum() - torch.logdet(self.precision))
        return guides.BayesianRegression(family), self.evidence - gap.item()


@pytest.fixture(scope="module")
def linear():
    torch.set_default_dtype(torch.float64)
    return Linear()


@pytest.mark.parametrize("alpha", [-math.inf, -1.0, 0.0, 0.5, 1.0, math.inf])
def test_with_the_exact_posterior_every_bound_is_the_evidence(linear, alpha):
    p, q = linear.model(), guides.BayesianRegression(linear.posterior)
    loss = Renyi(alpha, num_particles=3, num_groups=2).loss(p, q, linear.x, linear.y)
    assert loss == pytest.approx(-linear.evidence, rel=1e-10)


def test_with_the_exact_posterior_the_elbo_is_the_evidence(linear):
    p, q = linear.model(), guides.BayesianRegression(linear.posterior)
    for loss in (ELBO(num_particles=3, analytic_kl=False), Trace_ELBO()):
        assert loss.loss(p, q, linear.x, linear.y) == pytest.approx(
            -linear.evidence, rel=1e-10
        )


def test_the_best_mean_field_guide(linear):
    """Its ELBO is known, below the evidence, and the gradient is zero there."""
    p, (q, bound) = linear.model(), linear.mean_field()
    assert bound < linear.evidence - 0.1
    losses, gradients = [], []
    for _ in range(400):
        loss = ELBO(num_particles=20).differentiable_loss(p, q, linear.x, linear.y)
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*q.parameters()])])
        )
        losses.append(loss.detach())
    assert_within(torch.stack(losses), -bound, "minus the ELBO")
    assert_within(torch.stack(gradients), torch.zeros(2 * linear.size), "the gradient")


def test_bounds_fall_with_alpha(linear):
    p, (q, elbo) = linear.model(), linear.mean_field()
    q.posterior.free_scale.data += 0.5
    draws = {alpha: [] for alpha in (-math.inf, 0.0, 0.5, 1.0)}
    for seed in range(100):
        for alpha, values in draws.items():
            torch.manual_seed(seed)
            values.append(-Renyi(alpha, num_particles=10).loss(p, q, linear.x, linear.y))
        assert sorted(draws, key=lambda alpha: -draws[alpha][-1]) == list(draws)
    for alpha in (0.0, 0.5, 1.0):
        values = torch.tensor(draws[alpha])
        assert values.mean() - 4 * values.std() / len(values) ** 0.5 < linear.evidence
    assert torch.tensor(draws[1.0]).mean() < elbo < linear.evidence


def test_a_batch_stands_for_all_data_inside_the_weight(linear):
    """The log weight is log p(w) + N / B sum log p(y | x, w) - log q(w), for any alpha."""
    p, (q, _) = linear.model(), linear.mean_field()
    x, y = linear.x[:6], linear.y[:6]
    for alpha in (-math.inf, 0.0, 0.5):
        torch.manual_seed(3)
        with pytest.warns(UserWarning, match="no bound on log p"):
            loss = Renyi(alpha, num_particles=8).loss(p, q, x, y)
        torch.manual_seed(3)
        with torch.no_grad():
            w = q.posterior().expand((1, 8, 1)).sample().reshape(8, -1)
            log_weights = p.prior().log_prob(w) - q.posterior().log_prob(w)
            mean = w @ linear.design[:6].T
            log_weights += 24 / 6 * dist.Normal(mean, linear.scale).log_prob(y).sum(1)
        assert loss == pytest.approx(-renyi_bound(log_weights, alpha).item(), rel=1e-10)


def test_the_elbo_of_the_batches_is_on_average_that_of_all_data(linear):
    p, (q, _) = linear.model(), linear.mean_field()
    losses = []
    for rows in (slice(0, 24), slice(0, 8), slice(8, 16), slice(16, 24)):
        torch.manual_seed(0)
        losses.append(ELBO().loss(p, q, linear.x[rows], linear.y[rows]))
    assert losses[0] == pytest.approx(sum(losses[1:]) / 3, rel=1e-10)


@pytest.mark.parametrize("batch_size", [24, 10, 7])
def test_the_history_is_per_data_point_of_the_whole_data_set(linear, batch_size):
    p = linear.model()
    with torch.no_grad():
        w = torch.full((linear.size,), 0.3)
        log_joint = p.prior().log_prob(w) + p.likelihood(linear.x, w).log_prob(linear.y).sum()
    start = pyro.infer.autoguide.init_to_value(values={"w": w})
    history = fit(
        p,
        AutoDelta(p, init_loc_fn=start),
        (linear.x, linear.y),
        validation=(linear.x, linear.y),
        lr=0.0,
        epochs=1,
        batch_size=batch_size,
        progress=False,
    )
    for name in ("loss", "validation_loss"):
        assert history[name][0] == pytest.approx(-log_joint.item() / 24, rel=1e-10)


def test_gradients_are_per_data_point_too(linear):
    """One step of plain gradient descent on a batch: the gradient of N / B times its sum, over
    N.
    """
    p = linear.model()
    q = guides.BayesianRegression(PointMass(torch.zeros(linear.size)))
    fit(
        p,
        q,
        (linear.x[:6], linear.y[:6]),
        optimizer=torch.optim.SGD,
        lr=1.0,
        epochs=1,
        batch_size=6,
        progress=False,
    )
    expected = 24 / 6 * linear.design[:6].T @ linear.y[:6] / linear.scale**2 / 24
    torch.testing.assert_close(q.posterior.value.detach(), expected)


class PointMass(nn.Module):
    """q(w) = delta(w - value), the maximum a posteriori estimate as a guide of the user's."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self):
        return dist.Delta(self.value, event_dim=1)


@pytest.mark.parametrize("kind", ["AutoDelta", "a guide of one's own"])
def test_maximum_a_posteriori_is_ridge_regression(linear, kind):
    p = linear.model()
    q = (
        AutoDelta(p)
        if kind == "AutoDelta"
        else guides.BayesianRegression(PointMass(torch.zeros(linear.size)))
    )
    steps = 600
    fit(
        p,
        q,
        (linear.x, linear.y),
        loss=ELBO(),
        schedules={"lr": lambda step: 0.1 * (1 - step / steps)},
        epochs=steps,
        batch_size=24,
        progress=False,
    )
    found = q(linear.x)
    found = found["w"] if kind == "AutoDelta" else found
    ridge = torch.linalg.solve(
        linear.design.T @ linear.design + linear.scale**2 * torch.eye(linear.size),
        linear.design.T @ linear.y,
    )
    torch.testing.assert_close(found.detach(), ridge, rtol=1e-5, atol=1e-5)


def test_a_full_covariance_guide_finds_the_posterior(linear):
    p = linear.model()
    q = AutoMultivariateNormal(p)
    steps = 600
    fit(
        p,
        q,
        (linear.x, linear.y),
        loss=ELBO(num_particles=20),
        schedules={"lr": lambda step: 0.05 * (1 - step / steps)},
        epochs=steps,
        batch_size=24,
        seed=0,
        progress=False,
    )
    best_mean_field = linear.evidence - linear.mean_field()[1]
    with torch.no_grad():
        assert kl_divergence(q.get_posterior(), linear.posterior) < best_mean_field / 4


@pytest.mark.filterwarnings(
    "ignore:.*one weight of all data"
)  # of which batches are subsamples
@pytest.mark.parametrize(
    "loss", [ELBO, lambda: ELBO(5), lambda: IWAE(5), lambda: Renyi(0.5, 5), Trace_ELBO]
)
@pytest.mark.parametrize(
    "guide", ["BayesianRegression", "AutoNormal", "AutoMultivariateNormal"]
)
def test_every_guide_trains_with_every_bound(loss, guide):
    x = torch.linspace(-2, 2, 40).unsqueeze(1)
    y = torch.sin(2 * x[:, 0])
    function = RandomWeights(likelihood(1, [10], scale=nn.Parameter(torch.tensor(1.0))))
    size = function.num_weights
    p = models.BayesianRegression(default_prior(dist.Normal, size), function, len(x))
    if guide == "BayesianRegression":
        loc, scale = nn.Parameter(function.initial), nn.Parameter(torch.full((size,), 0.05))
        q = guides.BayesianRegression(Prior(dist.Normal, size, loc=loc, scale=scale))
    else:
        q = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}[
            guide
        ](p, init_scale=0.05)
    history = fit(
        p,
        q,
        (x, y),
        loss=loss(),
        epochs=10,
        batch_size=16,
        lr=0.02,
        seed=0,
        progress=False,
    )
    assert history["loss"][-1] < history["loss"][0]
    assert (p.likelihood(x, function.initial).scale != 1.0).all()  # the learned noise moved
    assert p.predictive(q, x, num_samples=7).log_prob(y).shape == (40,)


def test_the_posterior_predictive(linear):
    """N(m^T x, s^2 + x^T V x), from draws of the exact posterior."""
    p, q = linear.model(), guides.BayesianRegression(linear.posterior)
    x = torch.randn(7, 3)
    design = torch.cat([x, torch.ones(7, 1)], 1)
    variance = linear.scale**2 + (design @ linear.posterior.covariance_matrix * design).sum(1)
    exact = dist.Normal(design @ linear.mean, variance**0.5)
    y = exact.sample()
    predictive = p.predictive(q, x, num_samples=20_000)
    components = predictive.component_distribution
    assert predictive.batch_shape == (7,)
    assert_within(components.mean.T, exact.mean, "mean")
    torch.testing.assert_close(predictive.mean, components.mean.mean(1))
    assert_within(
        components.log_prob(y.unsqueeze(1)).exp().T, exact.log_prob(y).exp(), "density"
    )
    torch.testing.assert_close(
        predictive.log_prob(y).exp(), components.log_prob(y.unsqueeze(1)).exp().mean(1)
    )
    assert len(pyro.get_param_store()) == 0


def test_without_targets_the_model_generates(linear):
    p = linear.model()
    assert p(torch.randn(50, 3)).shape == (50,)  # more rows than data points
    with pytest.raises(ValueError, match="num_data must be at least 1, got 0"):
        models.BayesianRegression(default_prior(dist.Normal, 4), p.likelihood, 0)


def test_a_classification():
    """The likelihood is arbitrary: here it has three classes."""
    x = torch.randn(30, 2)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    function = RandomWeights(
        Conditional(dist.Categorical, MLP(2, [8]), (), param_shapes={"logits": (3,)})
    )
    size = function.num_weights
    p = models.BayesianRegression(default_prior(dist.Normal, size), function, len(x))
    history = fit(
        p,
        AutoDelta(p),
        (x, y),
        epochs=40,
        batch_size=10,
        lr=0.05,
        progress=False,
    )
    assert history["loss"][-1] < history["loss"][0]


def test_a_run_is_read_back(tmp_path, linear):
    function = RandomWeights(likelihood(3, [4], scale=nn.Parameter(torch.tensor(1.0))))
    size = function.num_weights
    p = models.BayesianRegression(default_prior(dist.Normal, size), function, 24)
    loc, scale = nn.Parameter(function.initial), nn.Parameter(torch.full((size,), 0.05))
    q = guides.BayesianRegression(Prior(dist.Normal, size, loc=loc, scale=scale))
    fit(p, q, (linear.x, linear.y), epochs=2, folder=tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and run.model.num_data == 24
    for half, other in ((p, run.model), (q, run.guide)):
        for name, value in half.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    torch.manual_seed(0)
    first = p.predictive(q, linear.x).log_prob(linear.y)
    torch.manual_seed(0)
    assert torch.equal(run.model.predictive(run.guide, linear.x).log_prob(linear.y), first)
    assert repr(build(describe(function))) == repr(function)


# --- full variational Bayes of a variational autoencoder (Kingma and Welling 2013, appendix F)


class BayesianVAE(StochasticModule):
    """p(x, z, w) = p(w) prod_n p(x_n | z_n, w) p(z_n)."""

    factors = {"likelihood": "x | z, w", "prior": "z", "weights": "w"}

    def __init__(self, weights, prior, likelihood, num_data):
        super().__init__()
        self.weights, self.prior, self.likelihood, self.num_data = (
            as_prior(weights),
            prior,
            likelihood,
            num_data,
        )

    def forward(self, x):
        w = pyro.sample("w", self.weights())
        with pyro.plate("data", self.num_data, subsample=x):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z, w), obs=x)


class BayesianVAEGuide(StochasticModule):
    """q(z, w | x) = q(w) prod_n q(z_n | x_n)."""

    density = "q"
    factors = {"posterior": "z | x", "weights": "w"}

    def __init__(self, weights, posterior, num_data):
        super().__init__()
        self.weights, self.posterior, self.num_data = weights, posterior, num_data

    def forward(self, x):
        pyro.sample("w", self.weights())
        with pyro.plate("data", self.num_data, subsample=x):
            pyro.sample("z", self.posterior(x))


def test_a_variational_autoencoder_with_a_prior_over_the_decoders_weights():
    x = digits().train.x[:60].to(torch.get_default_dtype()).round()
    decoder = RandomWeights(Conditional(dist.Bernoulli, MLP(2, [8]), 64))
    size = decoder.num_weights
    p = BayesianVAE(
        default_prior(dist.Normal, size), default_prior(dist.Normal, 2), decoder, len(x)
    )
    loc, scale = nn.Parameter(decoder.initial), nn.Parameter(torch.full((size,), 0.05))
    weights = Prior(dist.Normal, size, loc=loc, scale=scale)
    q = BayesianVAEGuide(weights, Conditional(dist.Normal, MLP(64, [8]), 2), len(x))
    for loss in (ELBO(), IWAE(5), Renyi(0.5, 5, num_groups=2)):
        history = fit(
            p,
            q,
            x,
            loss=loss,
            epochs=10,
            batch_size=20,
            lr=0.01,
            progress=False,
        )
        assert history["loss"][-1] < history["loss"][0]
    # The nested bound: w once for a group, z once for a particle, and the data points' log
    # mean exp given w.
    torch.manual_seed(0)
    loss = IWAE(5, num_groups=3).loss(p, q, x[:20])
    torch.manual_seed(0)
    with torch.no_grad():
        w = q.weights().expand((3, 1, 1)).sample()
        z = q.posterior(x[:20]).expand((3, 5, 20)).sample()
        total = []
        for group in range(3):
            inside = p.prior().log_prob(z[group]) - q.posterior(x[:20]).log_prob(z[group])
            for particle in range(5):
                inside[particle] += decoder(z[group, particle], w[group, 0, 0]).log_prob(
                    x[:20]
                )
            nested = 60 / 20 * renyi_bound(inside, 0.0).sum()
            total.append(
                nested
                + p.weights().log_prob(w[group, 0, 0])
                - q.weights().log_prob(w[group, 0, 0])
            )
    assert loss == pytest.approx(-torch.stack(total).mean().item(), rel=1e-9)
