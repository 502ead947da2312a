"""Conditional and Prior: every family from its own declaration, the uniform interface, errors."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformedDistribution, transforms
from torch import nn
from torch.distributions import SoftplusTransform

from tarspyro import Conditional, Deterministic, evaluate, fit, guides, models
from tarspyro.distributions import Prior, as_prior, default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder

FAMILIES = {
    "Normal": (dist.Normal, (2,), {}),
    "Normal image": (dist.Normal, (1, 4, 4), {"scale": 0.1}),
    "Laplace": (dist.Laplace, (2,), {}),
    "LogNormal": (dist.LogNormal, (2,), {}),
    "StudentT": (dist.StudentT, (2,), {}),
    "Logistic": (dist.Logistic, (2,), {}),
    "VonMises": (dist.VonMises, (2,), {}),
    "MultivariateNormal": (dist.MultivariateNormal, (3,), {}),
    "LowRankMultivariateNormal": (
        dist.LowRankMultivariateNormal,
        (3,),
        {"param_shapes": {"cov_factor": (3, 2)}},
    ),
    "Gamma": (dist.Gamma, (2,), {}),
    "Beta": (dist.Beta, (2,), {}),
    "Kumaraswamy": (dist.Kumaraswamy, (2,), {}),
    "Dirichlet": (dist.Dirichlet, (3,), {}),
    "five Dirichlets": (dist.Dirichlet, (5, 3), {}),
    "Poisson": (dist.Poisson, (2,), {}),
    "NegativeBinomial": (dist.NegativeBinomial, (2,), {"total_count": 5}),
    "Binomial": (dist.Binomial, (2,), {"total_count": 16}),
    "Bernoulli": (dist.Bernoulli, (1, 4, 4), {}),
    "ContinuousBernoulli": (dist.ContinuousBernoulli, (2,), {}),
    "Categorical": (dist.Categorical, (), {"param_shapes": {"logits": (10,)}}),
    "OneHotCategorical": (dist.OneHotCategorical, (4,), {}),
    "RelaxedBernoulli": (dist.RelaxedBernoulli, (2,), {}),
    "RelaxedOneHotCategorical": (
        dist.RelaxedOneHotCategorical,
        (20, 10),
        {"temperature": 0.5},
    ),
}


@pytest.mark.parametrize(("family", "shape", "options"), FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("lead", [(5,), (3, 5)], ids=str)
def test_shapes_of_every_family(family, shape, options, lead):
    conditional = Conditional(family, MLP(4, [8]), shape, **options)
    distribution = conditional(
        0.1 * torch.randn(*lead, 4)
    )  # tame: Pyro's Kumaraswamy has NaN near 0 and 1
    assert distribution.batch_shape == lead and distribution.event_shape == shape
    value = distribution.sample()
    log_prob = distribution.log_prob(value)
    assert log_prob.shape == lead and log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(p.grad is not None for p in conditional.parameters())


@pytest.mark.parametrize("name", [n for n, (f, _, _) in FAMILIES.items() if f not in (
    dist.StudentT, dist.Logistic, dist.VonMises, dist.Poisson, dist.NegativeBinomial, dist.Binomial, dist.Kumaraswamy,
    dist.ContinuousBernoulli, dist.LowRankMultivariateNormal)])  # fmt: skip
def test_default_prior_has_the_shape_of_its_posterior(name):
    family, shape, options = FAMILIES[name]
    posterior = Conditional(family, MLP(4, [8]), shape, **options)(torch.zeros(4))
    shapes = {key: value for key, value in options.items() if key == "param_shapes"}
    prior = default_prior(family, shape, **shapes)()
    assert prior.event_shape == posterior.event_shape and prior.batch_shape == ()
    assert prior.log_prob(prior.sample()).shape == ()


@pytest.mark.parametrize(
    ("family", "shape", "log_prob"),
    [
        (dist.Normal, 2, lambda z: dist.Normal(0.0, 1.0).log_prob(z).sum(-1)),
        (dist.Gamma, 2, lambda z: -z.sum(-1)),
        (dist.Beta, 2, lambda z: torch.zeros(len(z))),
        (dist.Dirichlet, 3, lambda z: torch.full((len(z),), 2.0).log()),
        (dist.MultivariateNormal, 3, lambda z: dist.Normal(0.0, 1.0).log_prob(z).sum(-1)),
        (dist.OneHotCategorical, 4, lambda z: torch.full((len(z),), 0.25).log()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_default_priors_are_what_they_say(family, shape, log_prob):
    prior = default_prior(family, shape)()
    z = prior.sample((20,))
    torch.testing.assert_close(prior.log_prob(z), log_prob(z))


def test_the_network_s_numbers_become_the_parameters():
    conditional = Conditional(dist.Normal, MLP(4, [8]), 3)
    context = torch.randn(6, 4)
    features = conditional.trunk(context)
    distribution = conditional(context).base_dist
    torch.testing.assert_close(distribution.loc, conditional.heads["loc"](features))
    torch.testing.assert_close(distribution.scale, conditional.heads["scale"](features).exp())


def test_transforms_replace_the_default():
    conditional = Conditional(
        dist.Normal, MLP(4, [8]), 3, transforms={"scale": SoftplusTransform()}
    )
    context = torch.randn(6, 4)
    expected = nn.functional.softplus(conditional.heads["scale"](conditional.trunk(context)))
    torch.testing.assert_close(conditional(context).base_dist.scale, expected)


def test_fixed_numbers_are_constants_that_travel_with_the_module():
    conditional = Conditional(dist.Normal, MLP(4, [8]), 3, scale=0.1)
    assert set(conditional.heads) == {"loc"}
    assert (
        "fixed_scale" in conditional.state_dict() and not conditional.fixed_scale.requires_grad
    )
    assert (
        conditional.double()(torch.zeros(1, 4).double()).base_dist.scale.dtype == torch.float64
    )


def test_transforms_replace_the_default_of_a_learned_constant():
    """exp(v / 2): what is learned is the logarithm of a variance."""
    half = transforms.ComposeTransform(
        [transforms.AffineTransform(0.0, 0.5), transforms.ExpTransform()]
    )
    scale = torch.nn.Parameter(torch.tensor(3.0))
    for module in (
        Conditional(dist.Normal, MLP(4, [8]), 3, scale=scale, transforms={"scale": half}),
        Prior(dist.Normal, 3, loc=0.0, scale=scale, transforms={"scale": half}),
    ):
        distribution = (
            module(torch.randn(2, 4)) if isinstance(module, Conditional) else module()
        )
        torch.testing.assert_close(module.free_scale.detach(), torch.tensor(9.0).log())
        assert torch.allclose(distribution.stddev, torch.tensor(3.0))


def test_a_parameter_is_a_learned_constant_in_its_domain():
    conditional = Conditional(
        dist.Normal, MLP(4, [8]), 3, scale=nn.Parameter(torch.tensor(0.1))
    )
    assert conditional(torch.zeros(1, 4)).base_dist.scale.flatten()[0].item() == pytest.approx(
        0.1
    )
    optimizer = torch.optim.SGD(conditional.parameters(), lr=10.0)
    conditional.log_prob(torch.zeros(1, 3), torch.zeros(1, 4)).sum().neg().backward()
    optimizer.step()  # a step far beyond zero for an unconstrained scale
    assert (conditional(torch.zeros(1, 4)).base_dist.scale >= 0).all()


def test_a_context_of_particles_goes_through_any_network():
    trunk = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 16),
        nn.Tanh(),
    )
    conditional = Conditional(dist.Normal, trunk.eval(), 2)
    x = torch.randn(3, 5, 1, 8, 8)
    both = conditional(x)
    torch.testing.assert_close(both.mean[1], conditional(x[1]).mean)


def test_a_trunk_that_does_not_tell_its_size_is_asked_at_the_first_call():
    class Trunk(nn.Module):
        def forward(self, x):
            return x.repeat(1, 3)

    conditional = Conditional(dist.Normal, Trunk(), 2)
    assert conditional(torch.zeros(4, 5)).event_shape == (2,)
    assert conditional.heads["loc"][1].in_features == 15


@pytest.mark.parametrize(
    "trunk",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8)),
        lambda: nn.Sequential(MLP((1, 8, 8), [8]), nn.Dropout(0.1)),
        lambda: nn.Sequential(nn.Dropout(0.1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()),
        lambda: nn.Sequential(MLP((1, 8, 8), [8]), nn.Linear(8, 6), nn.GLU(), nn.Dropout(0.1)),
    ],
)
def test_trunks_that_change_shapes_on_the_way(trunk):
    assert Conditional(dist.Normal, trunk(), 2)(torch.randn(5, 1, 8, 8)).batch_shape == (5,)


def test_decoder_heads_are_convolutions():
    conditional = Conditional(dist.Normal, ConvDecoder(2, (1, 8, 8), [8, 4]), (1, 8, 8))
    assert isinstance(conditional.heads["loc"][0], nn.Conv2d)
    flat = Conditional(dist.Bernoulli, ConvDecoder(2, (1, 8, 8), [8, 4]), 64)
    assert flat(torch.zeros(3, 2)).event_shape == (64,)


def test_drops_into_pyro_s_conditional_flows():
    base = Conditional(dist.Normal, MLP(3, [8]), 2)
    flow = ConditionalTransformedDistribution(base, [transforms.conditional_planar(2, 3, [8])])
    conditioned = flow.condition(torch.randn(5, 3))
    assert conditioned.log_prob(conditioned.sample()).shape == (5,)


# Tars' uniform interface.


def test_interface_in_tensors_and_arrays():
    q = Conditional(dist.Normal, MLP(4, [8], dropout=0.5), 2)
    prior, x = default_prior(dist.Normal, 2), np.random.default_rng(0).normal(size=(5, 4))
    q.train()
    for result, shape in (
        (q.sample(x), (5, 2)),
        (q.sample(x, sample_shape=(3,)), (3, 5, 2)),
        (q.mean(x), (5, 2)),
        (q.log_prob(np.zeros((5, 2)), x), (5,)),
        (q.kl(prior, x), (5,)),
    ):
        assert isinstance(result, np.ndarray) and result.shape == shape
    np.testing.assert_array_equal(q.mean(x), q.mean(x))  # evaluation mode: no dropout
    assert q.training
    assert q.mean(torch.zeros(5, 4)).requires_grad


@pytest.mark.parametrize(
    ("family", "mean"),
    [
        (dist.Gamma, lambda d: d.concentration / d.rate),
        (dist.Beta, lambda d: d.concentration1 / (d.concentration1 + d.concentration0)),
        (dist.Dirichlet, lambda d: d.concentration / d.concentration.sum(-1, True)),
    ],
)
def test_the_mean_is_the_mean(family, mean):
    """Tars returned the first parameter (known fault)."""
    conditional, context = Conditional(family, MLP(4, [8]), 3), torch.randn(5, 4)
    distribution = conditional(context)
    torch.testing.assert_close(
        conditional.mean(context), mean(getattr(distribution, "base_dist", distribution))
    )


def test_log_prob_sums_every_event_dimension():
    """Tars averaged the channels of images (known fault)."""
    conditional = Conditional(dist.Normal, MLP(4, [8]), (3, 2, 2), scale=1.0)
    x, context = torch.randn(5, 3, 2, 2), torch.randn(5, 4)
    expected = dist.Normal(conditional.mean(context), 1.0).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(conditional.log_prob(x, context), expected)


@pytest.mark.parametrize(
    "family", [dist.Dirichlet, dist.OneHotCategorical, dist.Beta, dist.MultivariateNormal]
)
def test_kl_is_one_number_a_row(family):
    """Pixyz sums it over the batch (known fault)."""
    conditional, context = Conditional(family, MLP(4, [8]), 3), torch.randn(5, 4)
    prior = default_prior(family, 3)
    together = conditional.kl(prior, context)
    torch.testing.assert_close(
        together, torch.cat([conditional.kl(prior, row[None]) for row in context])
    )


def test_kl_of_two_conditionals_and_of_a_distribution():
    q, p, context = (
        Conditional(dist.Normal, MLP(4, [8]), 2),
        Conditional(dist.Normal, MLP(4, [8]), 2),
        torch.randn(5, 4),
    )
    assert (q.kl(q, context).abs() < 1e-6).all() and (q.kl(p, context) > 0).all()
    assert q.kl(dist.Normal(torch.zeros(2), 1.0).to_event(1), context).shape == (5,)


def test_deterministic_puts_all_probability_on_the_output():
    f = Deterministic(MLP(4, [8]), (2, 3), transform=nn.Sigmoid())
    x = torch.randn(5, 4)
    assert f(x).event_shape == (2, 3) and f(x).batch_shape == (5,)
    torch.testing.assert_close(f.sample(x), f.mean(x))
    assert ((f.mean(x) > 0) & (f.mean(x) < 1)).all()
    assert f.mean(np.zeros((5, 4))).shape == (5, 2, 3)


def test_priors():
    learned = Prior(dist.Gamma, 3)
    assert {n for n, _ in learned.named_parameters()} == {"free_concentration", "free_rate"}
    torch.testing.assert_close(learned().mean, torch.ones(3))
    given = as_prior(dist.Normal(torch.zeros(2), 1.0).to_event(1))
    assert given.double()().mean.dtype == torch.float64
    matrix = Prior(dist.MultivariateNormal, 3, loc=0.0, scale_tril=2.0)()
    torch.testing.assert_close(matrix.covariance_matrix, 4 * torch.eye(3))
    assert default_prior(
        dist.RelaxedBernoulli, 2, temperature=0.3
    )().base_dist.temperature.item() == pytest.approx(0.3)


def test_printing_shows_families_and_networks():
    assert str(Conditional(dist.Normal, MLP(4, [8]), 2, scale=0.1)) == (
        "Normal(loc, scale=0.1) of shape (2,) from MLP(4 -> 8, ReLU)"
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Conditional(dist.Normal, MLP(2, [3]), 2, sigma=1.0),
            ValueError,
            "no parameter 'sigma': did you mean scale",
        ),
        (
            lambda: Conditional(dist.Normal, MLP(2, [3]), 2, scale=-1.0),
            ValueError,
            "outside the domain of Normal's scale",
        ),
        (
            lambda: Conditional(torch.distributions.Normal, MLP(2, [3]), 2),
            TypeError,
            "pyro.distributions",
        ),
        (lambda: Conditional("Normal", MLP(2, [3]), 2), TypeError, "pyro.distributions"),
        (
            lambda: Conditional(dist.Normal, lambda x: x, 2),
            TypeError,
            "trunk must be a torch.nn.Module",
        ),
        (lambda: Conditional(dist.Uniform, MLP(2, [3]), 2), ValueError, "depend"),
        (
            lambda: Conditional(dist.Binomial, MLP(2, [3]), 2),
            ValueError,
            "fix it, total_count=",
        ),
        (
            lambda: Conditional(dist.Categorical, MLP(2, [3]), ()),
            ValueError,
            "param_shapes={'logits'",
        ),
        (
            lambda: Conditional(dist.Dirichlet, MLP(2, [3]), ()),
            ValueError,
            "event_shape must have at least 1 dimension",
        ),
        (
            lambda: Conditional(dist.Normal, MLP(2, [3]), 2)(torch.zeros(5, 3)),
            ValueError,
            r"\(\*, 2\), got \(5, 3\)",
        ),
        (
            lambda: Conditional(dist.RelaxedBernoulli, MLP(2, [3]), 2).mean(torch.zeros(5, 2)),
            NotImplementedError,
            "no mean",
        ),
        (lambda: Deterministic(torch.relu, 2), TypeError, "trunk must be"),
        (lambda: default_prior(dist.VonMises, 2), ValueError, "default prior.* got VonMises"),
        (lambda: as_prior(dist.Normal), TypeError, "prior must be"),
        (lambda: as_prior(3.0), TypeError, "prior must be"),
    ],
)
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "trunk", [MLP(6, [16], activation=nn.Softplus), ConvEncoder((1, 8, 8), [4, 8])]
)
def test_scales_start_the_same_for_every_context(trunk):
    torch.manual_seed(0)
    conditional = Conditional(dist.Normal, trunk, 3)
    normal = conditional(100 * torch.randn(5, *trunk.in_shapes[0]))
    assert (normal.stddev == 1).all() and normal.mean.std(0).min() > 0
    normal.stddev.log().sum().backward()
    assert any(
        weight.grad is not None and weight.grad.any()
        for weight in conditional.heads["scale"].parameters()
    )


def test_a_chain_of_normals_starts_in_the_range_of_numbers():
    torch.manual_seed(0)
    links = [
        Conditional(dist.Normal, MLP(50, [300], activation=nn.Softplus), 50) for _ in range(8)
    ]
    value = torch.randn(100, 50)
    for link in links:
        value = link(value).sample()
    assert value.abs().max() < 1e4


class PixelDecoder(nn.Module):
    """A decoder that makes an image of one pixel of a vector, as DCGAN's does."""

    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(2, 8, 4)
        self.second = nn.ConvTranspose2d(8, 1, 4, 2, 1)

    def forward(self, z):
        return self.second(self.first(z[:, :, None, None]).relu())


@pytest.mark.parametrize("bound", [ELBO(), IWAE(3)], ids=["ELBO", "IWAE"])
def test_a_decoder_whose_convolutions_come_first_takes_vectors(bound):
    torch.manual_seed(0)
    x = torch.rand(12, 1, 8, 8).round()
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, PixelDecoder(), (1, 8, 8))
    )
    q = guides.VAE(Conditional(dist.Normal, MLP((1, 8, 8), [16]), 2))
    history = fit(p, q, x, loss=bound, epochs=1, progress=False)
    assert math.isfinite(history["loss"][-1])
    assert evaluate.log_likelihood(p, q, x, num_particles=3).isfinite().all()


class Mixture(nn.Module):
    """A mixture of two Normals around the code."""

    def forward(self, z):
        weights = dist.Categorical(torch.tensor([0.3, 0.7]))
        locs = torch.stack([z - 2.0, z + 1.0], -2)
        return dist.MixtureSameFamily(weights, dist.Normal(locs, 1.0).to_event(1))


def test_a_mixture_is_a_module_that_returns_it():
    """The remedy of the refusal; log p(x) is that of the mixture of N(-2, 2) and N(1, 2)."""
    with pytest.raises(ValueError, match="write a module that returns the distribution"):
        Conditional(dist.MixtureSameFamily, MLP(1, [4]), 1)
    p = models.VAE(default_prior(dist.Normal, 1), Mixture())
    q = guides.VAE(Prior(dist.Normal, 1, loc=0.0, scale=1.5))
    x = torch.tensor([[-1.5], [0.0], [2.0]])
    logs = [dist.Normal(loc, 2**0.5).log_prob(x[:, 0]) for loc in (-2.0, 1.0)]
    exact = torch.logaddexp(logs[0] + math.log(0.3), logs[1] + math.log(0.7))
    found = evaluate.log_likelihood(p, q, x, num_particles=4000, errors=True, seed=0)
    off = (found.log_likelihood - exact).abs()
    assert (off < 4 * found.standard_error).all()
