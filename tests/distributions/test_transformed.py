"""Transformed distributions, against quadrature and Jacobians, and pairs with flows."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from torch import nn

from tarspyro import (
    Conditional,
    Transformed,
    distributions,
    evaluate,
    fit,
    guides,
    load_run,
    models,
)
from tarspyro.distributions import Prior, VampPrior, default_prior
from tarspyro.infer import ELBO, IWAE, PairError, RecordingError, Renyi, check_pair
from tarspyro.nn import MLP, ConvEncoder
from tarspyro.runs.description import build, describe
from tarspyro.scopes import local_parameters

from ..infer.test_compiled import assert_same_step
from ..programs import assert_within

INVERTIBLE = {
    "affine coupling": lambda: T.affine_coupling(2, [8]),
    "affine autoregressive": lambda: T.affine_autoregressive(2, [8]),
    "spline": lambda: T.Spline(2, count_bins=4),
    "spline coupling": lambda: T.spline_coupling(2, hidden_dims=[8], count_bins=4),
    "spline autoregressive": lambda: T.spline_autoregressive(2, [8], count_bins=4),
    "householder": lambda: T.Householder(2),
    "the inverse of an autoregressive one": lambda: T.affine_autoregressive(2, [8]).inv,
    "plain ones": lambda: T.ComposeTransform(
        [T.AffineTransform(0.3, 2.0), T.Permute(torch.tensor([1, 0]))]
    ),
    "composed modules": lambda: T.ComposeTransformModule(
        [T.affine_coupling(2, [8]), T.Spline(2)]
    ),
}
ONE_WAY = {"planar": lambda: T.Planar(2), "radial": lambda: T.Radial(2)}
CONDITIONAL = {
    "conditional planar": lambda: T.conditional_planar(2, 6, [8]),
    "conditional radial": lambda: T.conditional_radial(2, 6, [8]),
    "conditional coupling": lambda: T.conditional_affine_coupling(2, 6, [8]),
    "conditional autoregressive": lambda: T.conditional_affine_autoregressive(2, 6, [8]),
    "conditional spline": lambda: T.conditional_spline(2, 6, [8], count_bins=4),
    "conditional spline autoregressive": lambda: T.conditional_spline_autoregressive(
        2, 6, [8], count_bins=4
    ),
}
WITHOUT_INVERSE = [*ONE_WAY, "conditional planar", "conditional radial"]
ALL = {**INVERTIBLE, **ONE_WAY, **CONDITIONAL}
BOUNDS = {
    "ELBO": ELBO,
    "ELBO, 3 particles": lambda: ELBO(3),
    "ELBO, stl": lambda: ELBO(gradient="stl"),
    "IWAE": lambda: IWAE(5),
    "IWAE, dreg": lambda: IWAE(5, gradient="dreg"),
    "Renyi": lambda: Renyi(0.5, 5),
}


def flow(name, base=None, count=2):
    torch.manual_seed(0)
    made = Transformed(
        base or Conditional(dist.Normal, MLP(6, [8]), 2), [ALL[name]() for _ in range(count)]
    )
    with torch.no_grad():
        for parameter in made.transforms.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def pair(name, **how):
    posterior = flow(name, **how)
    prior, likelihood = (
        default_prior(dist.Normal, 2),
        Conditional(dist.Bernoulli, MLP(2, [8]), 6),
    )
    return models.VAE(prior, likelihood), guides.VAE(posterior)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_jacobian(q, x):
    """The image of one x and its density, from autograd's Jacobian of all transforms together."""

    def push(x):
        for transform in q.transforms:
            x = transform(x)
        return x

    determinant = torch.autograd.functional.jacobian(push, x).det().abs().log()
    return push(x), q.base_dist.log_prob(x) - determinant


# --- the density


@pytest.mark.parametrize("name", ALL)
def test_the_density_of_a_draw_is_that_of_the_jacobian(name, double):
    q = flow(name)(torch.rand(6))
    for _ in range(3):
        torch.manual_seed(1)
        z = q.rsample()
        torch.manual_seed(1)
        x = q.base_dist.rsample().detach()
        image, density = by_jacobian(q, x)
        torch.testing.assert_close(z, image)
        torch.testing.assert_close(q.log_prob(z), density)


@pytest.mark.parametrize(
    "name", [*INVERTIBLE, *(name for name in CONDITIONAL if name not in WITHOUT_INVERSE)]
)
def test_the_density_of_any_value_is_that_of_its_origin(name, double):
    """The origin by the inverse, checked forwards; the density from autograd's Jacobian."""
    q = flow(name)(torch.rand(6))
    for value in 2 * torch.randn(3, 2):
        origin = value
        for transform in q.transforms[::-1]:
            origin = transform.inv(origin)
        image, density = by_jacobian(q, origin.detach().clone())
        torch.testing.assert_close(image, value, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(q.log_prob(value), density, atol=1e-6, rtol=1e-6)
    z = q.rsample((5,))
    torch.testing.assert_close(
        q.log_prob(z), q.log_prob(z.clone())
    )  # remembered, and inverted


@pytest.mark.parametrize(
    "name", ["affine coupling", "affine autoregressive", "conditional coupling", "plain ones"]
)
def test_the_density_integrates_to_one(name, double):
    q = flow(name)(torch.rand(6))
    with torch.no_grad():
        draws = q.sample((1000,))
        low, high = draws.min(0).values, draws.max(0).values
        sides = [
            torch.linspace(a, b, 401)
            for a, b in zip(2 * low - high, 2 * high - low, strict=True)
        ]
        total = q.log_prob(torch.cartesian_prod(*sides)).exp().sum()
    cell = (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0])
    assert (total * cell).item() == pytest.approx(
        1.0, abs=3e-3
    )  # of a grid over three times the range of a thousand draws


@pytest.mark.parametrize("name", WITHOUT_INVERSE)
def test_own_draws_are_scored_without_an_inverse(name, double):
    """By the law of large numbers E_q[f / q] is the integral of f, here a narrow Gaussian."""
    q = flow(name)(torch.rand(6))
    z = q.sample((20_000,))
    target = dist.Normal(z.mean(0), z.std(0) / 2).to_event(1)
    with torch.no_grad():
        weights = (target.log_prob(z) - q.log_prob(z)).exp()
    assert_within(weights, 1.0, name)


@pytest.mark.parametrize("name", [*ONE_WAY, "affine coupling", "conditional planar"])
def test_every_draw_is_scored_and_not_the_latest_alone(name):
    """Pyro's transforms cache one call, so only the second of two draws has a (cheap) density."""
    q = flow(name)(torch.rand(4, 6))
    first = q.rsample()
    alone = q.log_prob(first)
    second = q.rsample()
    q.log_prob(second)
    torch.testing.assert_close(q.log_prob(first), alone)
    # of another flow it is no draw, whatever it remembers
    other = flow(name, count=1)(torch.rand(4, 6))
    if name in WITHOUT_INVERSE:
        with pytest.raises(
            NotImplementedError,
            match=r"has no inverse, so the flow scores its own draws only.*\.inv",
        ):
            other.log_prob(first)
    else:
        assert not torch.allclose(other.log_prob(first), alone)


def test_a_draw_made_without_gradients_is_scored_with_them(double):
    """Its log-determinant was computed without gradients, and must be computed again."""
    made = flow("affine coupling")
    q = made(torch.rand(4, 6))
    z = q.sample()
    losses = q.log_prob(z).sum(), q.log_prob(z.clone()).sum()
    found, expected = (
        torch.autograd.grad(loss, [*made.parameters()], retain_graph=True) for loss in losses
    )
    assert any(gradient.abs().sum() > 0 for gradient in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    planar = flow("planar")(torch.rand(4, 6))
    with torch.no_grad():
        planar.log_prob(planar.sample())
    with pytest.raises(NotImplementedError, match="Planar has no inverse"):
        planar.log_prob(planar.sample())


@pytest.mark.parametrize(
    "name",
    ["affine coupling", "affine autoregressive", "conditional autoregressive", "spline"],
)
def test_particles_and_rows(name):
    made = flow(name)
    x = torch.rand(7, 6)
    q = made(x).expand((3, 7))
    z = q.rsample()
    assert z.shape == (3, 7, 2) and q.log_prob(z).shape == (3, 7)
    rows = torch.stack([made(row).log_prob(z[:, n].detach()) for n, row in enumerate(x)], 1)
    torch.testing.assert_close(q.log_prob(z.detach()), rows)


def test_rows_of_a_conditional_flow_have_draws_of_their_own():
    """All rows have the same base, but not the same draws."""
    made = Transformed(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [T.conditional_planar(2, 6, [8])]
    )
    q = made(torch.rand(6).expand(50, 6))
    assert q.batch_shape == (50,) and q.rsample()[:, 0].std() > 0.1


def test_events_of_more_dimensions(double):
    made = Transformed(
        Prior(dist.Normal, (3, 2)), [T.AffineTransform(0.0, 2.0), T.affine_coupling(2, [8])]
    )
    q = made()
    z = q.rsample((4,))
    assert q.event_shape == (3, 2) and q.log_prob(z).shape == (4,)
    x = q.base_dist.rsample()

    def push(x):
        return q.transforms[1](q.transforms[0](x))

    jacobian = torch.autograd.functional.jacobian(push, x).reshape(6, 6)
    expected = q.base_dist.log_prob(x) - jacobian.det().abs().log()
    torch.testing.assert_close(q.log_prob(push(x)), expected)


def test_the_score_of_a_rejection_sampler_passes_through():
    """A Gamma base has a score beside its pathwise gradient; Pyro's wrapper would drop it
    silently.
    """
    made = Transformed(
        Conditional(distributions.Gamma, MLP(6, [8]), 2), [T.AffineTransform(0.0, 3.0)]
    )
    x = torch.rand(200, 6)
    scores = []
    for module in (made, made.base):
        torch.manual_seed(0)
        q = module(x)
        scores.append(q.score_parts(q.rsample()).score_function)
    assert scores[0].shape == (200,)
    found, expected = (
        torch.autograd.grad(score.sum(), [*made.base.heads["concentration"].parameters()])
        for score in scores
    )
    assert any(gradient.abs().sum() > 0 for gradient in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_transforms_keep_no_graph_so_that_pairs_can_be_copied():
    for name in ALL:
        p, q = pair(name)
        ELBO().differentiable_loss(p, q, torch.rand(5, 6).round()).backward()
        copied = copy.deepcopy(q)
        assert copied(torch.rand(5, 6)).shape == (5, 2)
        assert {id(a) for a in copied.parameters()}.isdisjoint(
            {id(a) for a in q.parameters()}
        ), name


# --- as a module


def test_it_is_a_conditional_distribution():
    made = flow("conditional planar")
    x = torch.rand(5, 6)
    assert made.condition(x).batch_shape == (5,)
    assert made.sample(x.numpy()).shape == (5, 2)
    assert flow("spline").log_prob(torch.zeros(5, 2), x).shape == (5,)
    with pytest.raises(
        NotImplementedError, match="TransformedDistribution has no mean in closed form"
    ):
        made.mean(x)
    _, q = pair("spline")
    assert evaluate.embed(q, x, num_samples=3).shape == (3, 5, 2)


def test_a_trunk_makes_the_context_of_conditional_transforms():
    images = torch.rand(3, 5, 1, 4, 4)
    trunk = ConvEncoder((1, 4, 4), [2])
    context = trunk.out_features
    made = Transformed(
        Prior(dist.Normal, 2), [T.conditional_affine_coupling(2, context, [8])], trunk=trunk
    )
    q = made(images)
    assert q.batch_shape == (3, 5)
    beside = Transformed(
        Prior(dist.Normal, 2), [T.conditional_affine_coupling(2, context, [8])]
    )
    beside.transforms[0].load_state_dict(made.transforms[0].state_dict())
    z = torch.randn(3, 5, 2)
    torch.testing.assert_close(q.log_prob(z), beside(trunk(images)).log_prob(z))
    two = Transformed(Prior(dist.Normal, 2), [T.conditional_affine_coupling(2, 5, [8])])
    assert two(torch.rand(4, 3), torch.rand(4, 2)).batch_shape == (4,)


def test_tensors_of_plain_transforms_move_with_the_module():
    made = Transformed(
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        [
            T.AffineTransform(torch.ones(2), torch.full((2,), 2.0)),
            T.affine_coupling(2, [8]).inv,
        ],
    ).double()
    q = made()
    assert q.rsample().dtype == torch.float64 and q.transforms[0].loc.dtype == torch.float64


def test_printing():
    p, q = pair("planar", count=8)
    assert repr(q).endswith(
        "Normal(loc, scale) of shape (2,) from MLP(6 -> 8, ReLU), through 8 Planar"
    )
    both = Transformed(Prior(dist.Normal, 2), [T.Planar(2), T.Radial(2)])
    assert both.headline == "Normal(loc, scale) of shape (2,), through Planar, Radial"
    assert r"through\ 8\ Planar" in q._repr_latex_() and Transformed(
        both, []
    ).headline.endswith("through nothing")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: Transformed(3, []),
            TypeError,
            "base must be a Conditional, a Prior or a distribution, got 3",
        ),
        (
            lambda: Transformed(Prior(dist.Normal, 2), [torch.tanh]),
            TypeError,
            "transforms must be those of pyro",
        ),
        (
            lambda: Transformed(Prior(dist.Normal, 2), [T.conditional_planar(2, 6)])(),
            ValueError,
            "need a context",
        ),
    ],
)
def test_errors_name_a_fix(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- in a pair


@pytest.mark.parametrize("name", ALL)
def test_posteriors_train_and_come_back(name, tmp_path):
    p, q = pair(name)
    x = torch.rand(40, 6).round()
    check_pair(p, q, x)
    before = [parameter.detach().clone() for parameter in q.parameters()]
    fit(p, q, x, epochs=1, batch_size=20, seed=0, progress=False, folder=tmp_path / "run")
    assert not any(torch.equal(*both) for both in zip(before, q.parameters(), strict=True))
    found = evaluate.log_likelihood(p, q, x, num_particles=10, seed=0)
    assert found.isfinite().all()
    run = load_run(tmp_path / "run", "last")
    assert repr(run.guide) == repr(q)
    torch.testing.assert_close(
        evaluate.log_likelihood(run.model, run.guide, x, num_particles=10, seed=0), found
    )


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", ["planar", "affine coupling", "conditional autoregressive"])
def test_recorded_steps_are_the_eager_ones(name, bound):
    p, q = pair(name)
    x = torch.rand(6, 6).round()
    rescored = "dreg" in bound or "stl" in bound  # copies of the draws, which remember nothing
    if rescored and name == "planar":
        with pytest.raises(NotImplementedError, match="pathwise gradient in a guide"):
            BOUNDS[bound]().differentiable_loss(p, q, x)
    elif (
        rescored and name == "conditional autoregressive"
    ):  # Pyro's inverse reads an index back
        with pytest.raises(RecordingError, match="reads a value back"):
            assert_same_step(BOUNDS[bound](), p, q, x)
    else:
        assert_same_step(BOUNDS[bound](), p, q, x)
        copy.deepcopy(q)


PRIORS = {
    "coupling": (lambda: [T.affine_coupling(2, [8])], True),
    "spline coupling": (lambda: [T.spline_coupling(2, hidden_dims=[8], count_bins=4)], True),
    "inverse autoregressive": (lambda: [T.affine_autoregressive(2, [8]).inv], True),
    "inverse planar": (lambda: [T.Planar(2).inv, T.Planar(2).inv], False),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_train_and_come_back(name, tmp_path):
    transforms, generates = PRIORS[name][0](), PRIORS[name][1]
    posterior = Conditional(dist.Normal, MLP(6, [8]), 2)
    p = models.VAE(
        Transformed(default_prior(dist.Normal, 2), transforms),
        Conditional(dist.Bernoulli, MLP(2, [8]), 6),
    )
    q = guides.VAE(posterior)
    x = torch.rand(40, 6).round()
    fit(p, q, x, epochs=2, batch_size=20, seed=0, progress=False, folder=tmp_path / "run")
    run = load_run(tmp_path / "run", "last")
    z = torch.randn(5, 2)
    assert torch.equal(run.model.prior().log_prob(z), p.prior().log_prob(z))
    if generates:
        assert p(batch_size=3).shape == (3, 6)
        with torch.no_grad():
            draws = p.prior().sample((5,))
            torch.testing.assert_close(
                p.prior().log_prob(draws), p.prior().log_prob(draws.clone())
            )
    else:
        with pytest.raises(PairError, match="no prior that can be drawn from"):
            evaluate.sample(p, 3)


def test_planar_without_an_inverse_is_refused_as_a_prior():
    p = models.VAE(
        Transformed(default_prior(dist.Normal, 2), [T.Planar(2)]),
        Conditional(dist.Bernoulli, MLP(2, [8]), 6),
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(6, [8]), 2))
    with pytest.raises(
        NotImplementedError,
        match=r"Planar has no inverse, so the flow scores its own draws only.*\.inv in a prior",
    ):
        ELBO().loss(p, q, torch.rand(4, 6).round())


def test_a_mixture_of_flow_posteriors(double):
    posterior = flow("affine autoregressive")
    prior = VampPrior(posterior, torch.rand(3, 6))
    z = torch.randn(5, 2)
    expected = (
        torch.stack([posterior(u).log_prob(z) for u in prior.pseudo_inputs])
        .exp()
        .mean(0)
        .log()
    )
    torch.testing.assert_close(prior().log_prob(z), expected)
    p, q = (
        models.VAE(prior, Conditional(dist.Bernoulli, MLP(2, [8]), 6)),
        guides.VAE(posterior),
    )
    x = torch.rand(5, 6).round()
    # the prior scores the draw, and draws itself, before the guide's own density is asked for
    trace = pyro.poutine.trace(q).get_trace(x)
    p(x)
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(
        trace.nodes["z"]["fn"].log_prob(z), trace.nodes["z"]["fn"].log_prob(z.clone())
    )
    coupled = flow("affine coupling")
    p, q = models.VAE(VampPrior(coupled, torch.rand(3, 6)), p.likelihood), guides.VAE(coupled)
    assert_same_step(ELBO(), p, q, x)


# --- what a flow is for


class Bent(nn.Module):
    """z ~ N(0, I), x | z ~ N(z_2 - z_1^2, 0.3): for one x, a posterior in the shape of a
    parabola.
    """

    out_features = 1

    def forward(self, z):
        return z[..., 1:] - z[..., :1] ** 2


def bent_pair(transforms):
    likelihood = Conditional(dist.Normal, Bent(), 1, scale=0.3)
    with torch.no_grad():
        likelihood.heads["loc"].weight.fill_(1.0)
    likelihood.requires_grad_(False)
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    return p, guides.VAE(Transformed(Prior(dist.Normal, 2), transforms))


def exact_bent(p, x):
    side = torch.linspace(-7, 7, 1001)
    grid = torch.cartesian_prod(side, side)
    joint = p.prior().log_prob(grid) + p.likelihood(grid).log_prob(x)
    return (joint.logsumexp(0) + 2 * (side[1] - side[0]).log()).item()


FLOWS = {
    "none, a diagonal Normal": list,
    "planar": lambda: [T.Planar(2) for _ in range(4)],
    "autoregressive": lambda: [T.affine_autoregressive(2, [16])],
}


def test_flow_posteriors_beat_a_diagonal_normal_and_stay_below_the_truth():
    x = torch.tensor([[-1.5]])
    found, errors = {}, {}
    for name, transforms in FLOWS.items():
        torch.manual_seed(0)
        p, q = bent_pair(transforms())
        fit(
            p,
            q,
            x.repeat(64, 1),
            epochs=300,
            batch_size=64,
            seed=0,
            progress=False,
            lr=0.02,
        )
        with torch.no_grad():
            torch.manual_seed(1)
            rows = torch.cat(
                [
                    evaluate.elbo(p, q, x.repeat(1000, 1), analytic_kl=False).elbo
                    for _ in range(5)
                ]
            )
        found[name], errors[name] = rows.mean().item(), (rows.std() / len(rows) ** 0.5).item()
    exact = exact_bent(p, x[0])
    plain = found["none, a diagonal Normal"]
    for name, value in found.items():
        assert value < exact + 4 * errors[name], name
        if name != "none, a diagonal Normal":
            assert (
                value
                > plain
                + 4 * (errors[name] ** 2 + errors["none, a diagonal Normal"] ** 2) ** 0.5
            )
    assert (
        exact - found["autoregressive"] < (exact - plain) / 2
    )  # more than half of the gap is gone


def test_bounds_of_a_flow_lie_below_the_truth():
    torch.manual_seed(0)
    p, q = bent_pair([T.affine_autoregressive(2, [16])])
    x = torch.tensor([[-1.5]])
    exact = exact_bent(p, x[0])
    for name in ("ELBO", "IWAE", "Renyi"):
        with torch.no_grad(), local_parameters():
            values = torch.tensor(
                [-BOUNDS[name]().loss(p, q, x.repeat(100, 1)) / 100 for _ in range(20)]
            )
        assert values.mean() < exact - 4 * values.std() / 20**0.5, name
    weighted = evaluate.log_likelihood(
        p, q, x.repeat(10, 1), num_particles=20_000, errors=True, seed=0
    )
    assert (
        abs(weighted.log_likelihood.mean() - exact)
        < 4 * weighted.standard_error.mean() / 10**0.5
    )


def test_descriptions_of_pyros_flows():
    for name, make in ALL.items():
        made = make()
        if isinstance(made, nn.Module):
            back = build(describe(made))
            assert type(back) is type(made)
            back.load_state_dict(made.state_dict())
            assert repr(back) == repr(made), name
    custom = T.SplineCoupling(
        3, 1, pyro.nn.DenseNN(1, [5], [2 * 6, 2 * 6, 2 * 5]), 6, 4.0, "quadratic", True
    )
    back = build(describe(custom))
    back.load_state_dict(custom.state_dict())
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    assert torch.equal(back(x), custom(x)) and back.identity
    clipped = T.ConditionalAffineCoupling(
        1, pyro.nn.ConditionalDenseNN(1, 2, [4], [1, 1]), log_scale_max_clip=0.5
    )
    assert build(describe(clipped)).kwargs == {"log_scale_max_clip": 0.5}
