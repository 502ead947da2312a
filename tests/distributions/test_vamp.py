"""The VampPrior: density, draws, gradients, and pairs with it."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, distributions, evaluate, fit, guides, load_run, models
from tarspyro.distributions import VampPrior
from tarspyro.infer import ELBO, IWAE, Renyi, check_pair
from tarspyro.nn import MLP, ConvEncoder
from tarspyro.scopes import local_parameters

from ..infer.test_compiled import assert_same_step
from ..programs import assert_within

FAMILIES = {
    "Normal": (dist.Normal, (3,), {}),
    "Normal, one number": (dist.Normal, (), {}),
    "Normal, a matrix": (dist.Normal, (2, 3), {}),
    "MultivariateNormal": (dist.MultivariateNormal, (3,), {}),
    "Laplace": (dist.Laplace, (3,), {}),
    "Gamma": (distributions.Gamma, (3,), {}),
    "Dirichlet": (distributions.Dirichlet, (3,), {}),
    "GumbelSoftmax": (distributions.GumbelSoftmax, (3,), {"temperature": 0.7}),
    "Kumaraswamy": (distributions.Kumaraswamy, (3,), {}),
}
BOUNDS = {
    "ELBO": ELBO,
    "ELBO, 3 particles": lambda: ELBO(3),
    "IWAE": lambda: IWAE(5),
    "Renyi": lambda: Renyi(0.5, 5),
    "IWAE, dreg": lambda: IWAE(5, gradient="dreg"),
}


def posterior_of(family="Normal", data=6):
    cls, shape, options = FAMILIES[family]
    posterior = Conditional(cls, MLP(data, [8]), shape, **options)
    with torch.no_grad():  # components that differ
        for parameter in posterior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return posterior


def pair(family="Normal", components=4, data=6):
    posterior = posterior_of(family, data)
    likelihood = Conditional(dist.Bernoulli, MLP(math.prod(posterior.event_shape), [8]), data)
    return models.VAE(
        VampPrior(posterior, torch.rand(components, data)), likelihood
    ), guides.VAE(posterior)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the density


@pytest.mark.parametrize("lead", [(), (7,), (2, 7)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_density_is_the_mean_of_the_components(family, lead, double):
    posterior = posterior_of(family)
    prior = VampPrior(posterior, torch.rand(5, 6))
    z = posterior(torch.rand(*lead, 6)).sample()
    if family == "Kumaraswamy":  # 1 - z^a has few digits at the edges
        z = z.clamp(1e-6, 1 - 1e-6)
    one_by_one = torch.stack([posterior(u).log_prob(z) for u in prior.pseudo_inputs])
    found = prior().expand(lead).log_prob(z)
    assert found.shape == lead
    torch.testing.assert_close(found, one_by_one.exp().mean(0).log())
    if (
        family != "Normal, one number"
    ):  # torch's mixture takes no components without an event here
        weights = dist.Categorical(logits=torch.zeros(5))
        torch.testing.assert_close(
            found, dist.MixtureSameFamily(weights, posterior(prior.pseudo_inputs)).log_prob(z)
        )


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01, 1e-3])
def test_five_hundred_narrow_components_keep_their_digits(scale):
    """Expanded squares cancel: in single precision, 200 nats are lost at a scale of 0.001."""
    generator = torch.Generator().manual_seed(0)
    loc = 3 * torch.randn(500, 40, generator=generator)
    scales = scale * (0.5 + torch.rand(500, 40, generator=generator))

    class Table(nn.Module):
        def forward(self, u):
            rows = u[..., 0].long()
            return dist.Normal(loc[rows], scales[rows]).to_event(1)

    prior = VampPrior(Table(), torch.arange(500.0)[:, None], bounds=None)
    z = loc[:100] + scales[:100] * torch.randn(100, 40, generator=generator)
    differences = (z.double()[:, None] - loc.double()) / scales.double()
    each = -0.5 * differences.square().sum(-1) - (
        scales.double().log() + 0.5 * math.log(2 * math.pi)
    ).sum(-1)
    expected = each.logsumexp(-1) - math.log(500)
    torch.testing.assert_close(prior().log_prob(z).double(), expected, rtol=1e-6, atol=1e-4)
    far = prior().log_prob(1e4 * torch.ones(2, 40))  # where every density underflows
    assert far.isfinite().all()


def test_draws_too_small_for_a_number_keep_their_logarithm():
    """At a concentration of 0.001 a Gamma draw often underflows, and its log-density does not."""

    class Small(nn.Module):
        def forward(self, u):
            return distributions.Gamma(1e-3 * u, torch.ones_like(u)).to_event(1)

    prior = VampPrior(Small(), torch.tensor([[1.0], [1.0], [1.0]]), bounds=None)
    component = prior.posterior(torch.ones(50, 1))
    z = component.rsample()
    assert (z < 1e-25).any()
    torch.testing.assert_close(prior().log_prob(z), component.log_prob(z))


def test_a_context_belongs_to_every_component(double):
    posterior = Conditional(dist.Normal, MLP([6, 2], [8]), 3)
    prior = VampPrior(posterior, torch.rand(5, 6))
    y = torch.randn(7, 2)
    for lead in ((7,), (4, 7)):
        z = torch.randn(*lead, 3)
        expected = torch.stack(
            [posterior(u.expand(7, 6), y).log_prob(z) for u in prior.pseudo_inputs]
        )
        torch.testing.assert_close(
            prior(y).expand(lead).log_prob(z), expected.exp().mean(0).log()
        )
    draws = prior(y).sample((4000,))
    assert draws.shape == (4000, 7, 3)
    assert_within(draws, prior(y).mean, "the mean given a context")


# --- draws


@pytest.mark.parametrize("family", ["Normal", "Gamma", "Dirichlet", "Normal, a matrix"])
def test_draws_follow_the_mixture(family, double):
    prior = VampPrior(posterior_of(family), torch.rand(3, 6))
    mixture = prior()
    draws = mixture.sample((4000,))
    assert draws.shape == (4000, *mixture.event_shape)
    assert_within(draws, mixture.mean, "the mean")
    components = prior.posterior(prior.pseudo_inputs)
    assert_within(
        draws.square(),
        (components.variance + components.mean.square()).mean(0),
        "the second moment",
    )
    # the entropy, which sees more than moments: E[-log p] by the components' own draws
    own = components.sample((4000,))
    expected = mixture.log_prob(own)
    assert (
        abs(expected.mean() - mixture.log_prob(draws).mean())
        < 4 * (expected.mean(1).var() / 4000 + mixture.log_prob(draws).var() / 4000).sqrt()
    )


def test_every_row_draws_a_component_of_its_own():
    class Far(nn.Module):
        def forward(self, u):
            return dist.Normal(u, 1e-3).to_event(1)

    prior = VampPrior(Far(), torch.arange(4.0)[:, None], bounds=None)
    rows = prior().expand((4000,)).sample().round().squeeze(-1)
    share = torch.stack([(rows == k).double() for k in range(4)], -1)
    assert_within(share, torch.full((4,), 0.25), "the shares of the components")
    assert prior().sample().shape == (1,) and prior().sample((2, 3)).shape == (2, 3, 1)


def test_drawing_encodes_the_chosen_pseudo_inputs_alone():
    """Ten thousand draws of five hundred components each would need too much memory."""
    seen = []

    class Watched(nn.Module):
        def forward(self, u):
            seen.append(u.shape[:-1].numel())
            return dist.Normal(u, 1.0).to_event(1)

    VampPrior(Watched(), (50, 2))().sample((20,))
    assert seen == [50, 20]


# --- pseudo-inputs


def test_initial_pseudo_inputs():
    rows = torch.rand(5, 1, 4, 4)
    posterior = Conditional(dist.Normal, ConvEncoder((1, 4, 4), [2]), 2)
    prior = VampPrior(posterior, rows)
    assert torch.equal(prior.pseudo_inputs, rows) and prior.free_pseudo_inputs is not rows
    assert prior().log_prob(torch.zeros(3, 2)).shape == (3,)
    torch.manual_seed(0)
    near_black = VampPrior(
        posterior_of(), (4000, 6), bounds=(-1.0, 1.0)
    ).pseudo_inputs.detach()
    assert_within(near_black, torch.full((6,), -0.9), "the mean")
    assert abs(near_black.std() - 0.02) < 4 * 0.02 / (2 * near_black.numel()) ** 0.5
    assert_within(
        VampPrior(posterior_of(), (4000, 6), bounds=None).pseudo_inputs.detach(),
        torch.zeros(6),
        "the mean",
    )


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 2.0), None])
def test_pseudo_inputs_stay_in_the_range_of_the_data(bounds):
    p, q = pair()
    p = models.VAE(VampPrior(q.posterior, torch.rand(4, 6), bounds=bounds), p.likelihood)
    x = torch.rand(40, 6).round()
    fit(p, q, x, epochs=3, batch_size=10, lr=0.3, seed=0, progress=False)
    found, free = p.prior.pseudo_inputs.detach(), p.prior.free_pseudo_inputs.detach()
    assert not torch.equal(free, torch.rand(4, 6))
    if bounds is None:
        assert found.min() < 0 and found.max() > 1
    else:
        assert (
            free.min() < bounds[0] and free.max() > bounds[1]
        )  # the training pushed them out
        assert found.min() == bounds[0] and found.max() == bounds[1]


def test_the_prior_s_term_teaches_pseudo_inputs_and_encoder(double):
    posterior = posterior_of()
    prior = VampPrior(posterior, torch.rand(4, 6))
    z = torch.randn(7, 3)
    loss = prior().expand((7,)).log_prob(z).sum()
    parameters = list(prior.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    # the truth by finite differences along a direction
    directions = [torch.randn_like(parameter) for parameter in parameters]
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
            values.append(prior().expand((7,)).log_prob(z).sum())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(step * direction)
    slope = sum(
        (gradient * direction).sum()
        for gradient, direction in zip(gradients, directions, strict=True)
    )
    torch.testing.assert_close((values[0] - values[1]) / 2e-5, slope, rtol=1e-6, atol=1e-6)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


# --- in a pair


class Line(nn.Module):
    """A network of one number, for quadrature."""

    out_features = 1

    def forward(self, x):
        return x


def line_pair():
    """One latent and one observed number, both real, so each integral is a sum over a grid."""
    posterior = Conditional(dist.Normal, Line(), 1, scale=nn.Parameter(torch.tensor(0.6)))
    with torch.no_grad():
        posterior.heads["loc"].weight.fill_(0.7)
        posterior.heads["loc"].bias.fill_(0.1)
    likelihood = Conditional(dist.Normal, Line(), 1, scale=0.5)
    with torch.no_grad():
        likelihood.heads["loc"].weight.fill_(1.2)
    prior = VampPrior(posterior, torch.tensor([[-1.5], [0.2], [2.0]]), bounds=None)
    return (
        models.VAE(prior, likelihood),
        guides.VAE(posterior),
        torch.tensor([[-2.0], [0.0], [0.5], [3.0]]),
    )


GRID = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]


def on_grid(p, q, x):
    """log p(z), log p(x | z) and log q(z | x) on a grid of z, one row for each data point."""
    likelihood = torch.stack([p.likelihood(GRID).log_prob(row) for row in x])
    guide = torch.stack([q.posterior(row).log_prob(GRID) for row in x])
    return p.prior().log_prob(GRID), likelihood, guide


def test_the_sampled_divergence_is_that_of_quadrature(double):
    p, q, x = line_pair()
    prior, _, guide = on_grid(p, q, x)
    step = (GRID[1] - GRID[0]).item()
    assert (prior.exp().sum() * step).item() == pytest.approx(1.0, abs=1e-8)
    exact = (guide.exp() * (guide - prior)).sum(1) * step
    found = torch.stack([evaluate.elbo(p, q, x).kl for _ in range(500)])
    assert found.std(0).min() > 0.01  # no closed form: every run draws
    assert_within(found, exact, "the divergence")
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(q.posterior(x), p.prior())


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_lie_below_the_likelihood(bound, double):
    p, q, x = line_pair()
    prior, likelihood, _ = on_grid(p, q, x)
    exact = ((prior + likelihood).logsumexp(1) + math.log((GRID[1] - GRID[0]).item())).sum()
    loss = BOUNDS[bound]()
    with torch.no_grad():
        values = torch.tensor([-loss.loss(p, q, x.repeat(100, 1)) / 100 for _ in range(40)])
    assert values.mean() < exact - 4 * values.std() / 40**0.5
    many = evaluate.log_likelihood(p, q, x, num_particles=20_000, errors=True)
    assert (
        abs(many.log_likelihood.sum() - exact) < 4 * many.standard_error.square().sum().sqrt()
    )


@pytest.mark.parametrize("bound", ["ELBO", "ELBO, stl", "IWAE", "IWAE, dreg"])
def test_gradients_of_shared_weights_equal_quadrature(bound, double):
    """Both halves hold the encoder: estimators that drop the guide's own score must keep the
    prior's.
    """
    p, q, x = line_pair()
    loss = {**BOUNDS, "ELBO, stl": lambda: ELBO(gradient="stl")}[bound]()
    parameters = [*p.prior.parameters()]
    found = gradients_of(loss, p, q, x, parameters)
    if bound.startswith("ELBO"):
        prior, likelihood, guide = on_grid(p, q, x)
        exact = (guide.exp() * (guide - prior - likelihood)).sum() * (GRID[1] - GRID[0]).item()
        for value, truth in zip(found, torch.autograd.grad(exact, parameters), strict=True):
            assert_within(value, truth, bound)
    else:  # the truth is the other estimator, which has an error too
        for value, other in zip(
            found, gradients_of(IWAE(5), p, q, x, parameters), strict=True
        ):
            error = ((value.var(0) + other.var(0)) / len(value)).sqrt()
            assert ((value.mean(0) - other.mean(0)).abs() < 4 * error).all()


def gradients_of(loss, p, q, x, parameters, repeats=100, copies=50):
    """Estimates of a loss's gradient, each from a number of copies of the data."""
    rows = x.repeat(copies, 1)
    with local_parameters():
        draws = [
            torch.autograd.grad(loss.differentiable_loss(p, q, rows) / copies, parameters)
            for _ in range(repeats)
        ]
    return [torch.stack(values) for values in zip(*draws, strict=True)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if len(FAMILIES[name][1]) == 1])
def test_every_family_trains_generates_and_comes_back(family, tmp_path):
    p, q = pair(family)
    x = torch.rand(60, 6).round()
    check_pair(p, q, x)
    history = fit(
        p, q, x, epochs=2, batch_size=20, seed=0, progress=False, folder=tmp_path / "run"
    )
    assert all(map(math.isfinite, history["elbo"]))
    assert p(batch_size=5).shape == (5, 6)
    assert evaluate.log_likelihood(p, q, x, num_particles=10).isfinite().all()
    run = load_run(tmp_path / "run", "last")
    assert run.model.prior.posterior is run.guide.posterior
    assert torch.equal(run.model.prior.pseudo_inputs, p.prior.pseudo_inputs)
    assert repr(run.model) == repr(p)
    assert (tmp_path / "run" / "config.json").stat().st_size < 6000  # no weights in it


RECORDED = [("Normal", name) for name in BOUNDS]
RECORDED += [
    (family, name)
    for family in ("Gamma", "Dirichlet", "GumbelSoftmax")
    for name in ("ELBO", "IWAE")
]


@pytest.mark.parametrize(("family", "bound"), RECORDED)
def test_recorded_steps_are_the_eager_ones(family, bound):
    p, q = pair(family)
    assert_same_step(BOUNDS[bound](), p, q, torch.rand(6, 6).round())


def test_it_learns_clusters():
    """The data have three groups: with one pseudo-input each, the prior's term falls below
    that of N(0, 1).
    """
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[1.0, 0, 0, 1, 0, 0], [0.0, 1, 0, 0, 1, 0], [0.0, 0, 1, 0, 0, 1]])
    x = torch.bernoulli(0.9 * centers.repeat(200, 1) + 0.05, generator=generator)
    found = {}
    for kind in ("standard", "vamp"):
        torch.manual_seed(0)
        posterior = Conditional(dist.Normal, MLP(6, [16]), 2)
        prior = (
            VampPrior(posterior, x[:12])
            if kind == "vamp"
            else distributions.default_prior(dist.Normal, 2)
        )
        p, q = (
            models.VAE(prior, Conditional(dist.Bernoulli, MLP(2, [16]), 6)),
            guides.VAE(posterior),
        )
        fit(
            p,
            q,
            x,
            epochs=120,
            batch_size=100,
            lr=0.01,
            seed=0,
            progress=False,
        )
        found[kind] = evaluate.log_likelihood(p, q, x, num_particles=200, seed=0)
    difference = found["vamp"] - found["standard"]
    assert difference.mean() > 4 * difference.std() / len(x) ** 0.5


def test_printing():
    p, _ = pair()
    assert (
        "prior: p(z) = mixture of 4 posteriors, each Normal(loc, scale) of shape (3,)"
        " from MLP(6 -> 8, ReLU)" in repr(p)
    )
    assert r"mixture\ of\ 4\ posteriors" in p._repr_latex_()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda q: VampPrior(lambda x: x, (5, 6)),
            TypeError,
            "posterior must be a module",
        ),
        (
            lambda q: VampPrior(q, ()),
            ValueError,
            r"pseudo_inputs must be a tensor \(K, \*x\) or its shape.* got shape \(\)",
        ),
        (lambda q: VampPrior(q, (0, 6)), ValueError, r"K of at least 1, got shape \(0, 6\)"),
        (
            lambda q: VampPrior(q, (5, 6), bounds=(1.0, 0.0)),
            ValueError,
            r"bounds must be \(low, high\)",
        ),
        (
            lambda q: VampPrior(q, (5, 7))(),
            ValueError,
            r"takes inputs of shape \(\*, 6\), got \(5, 7\)",
        ),
    ],
)
def test_errors_name_a_fix(call, error, message):
    with pytest.raises(error, match=message):
        call(posterior_of())
