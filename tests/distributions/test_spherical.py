"""Distributions on the sphere, from dimension 2 to 512 and concentration 0.01 to 10,000.

Densities, moments and KLs are compared with scipy, closed forms and mpmath; gradients with the
derivative of an exact mean, by a quadrature over the draws' density that has no noise.
"""

import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from tarspyro import Conditional, guides, models
from tarspyro.distributions import PowerSpherical, Prior, VonMisesFisher, default_prior
from tarspyro.distributions.kl import exact_kl
from tarspyro.distributions.links import Direction, link_to
from tarspyro.infer import ELBO
from tarspyro.nn import MLP

from ..programs import assert_within, with_random_heads

F64 = torch.float64
DIMS = pytest.mark.parametrize("dim", [2, 3, 5, 32, 512])
CONCENTRATIONS = pytest.mark.parametrize("kappa", [1e-2, 1.0, 30.0, 1e4])
FAMILIES = pytest.mark.parametrize("family", [VonMisesFisher, PowerSpherical])


def direction(dim, seed=0, dtype=F64):
    loc = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return (loc / loc.norm()).to(dtype)


def scalar(value, dtype=F64):
    return torch.tensor(value, dtype=dtype)


def log_area(dim):
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def exact_mean(family, dim, kappa):
    """The mean of w, in high precision."""
    with mpmath.workdps(40):
        if family is PowerSpherical:
            return mpmath.mpf(kappa) / (mpmath.mpf(kappa) + dim - 1)
        order = mpmath.mpf(dim) / 2
        return mpmath.besseli(order, kappa) / mpmath.besseli(order - 1, kappa)


def exact_log_normalizer(family, dim, kappa):
    """The logarithm of the integral of exp(kappa (w - 1)), or of ((1 + w) / 2)^kappa."""
    with mpmath.workdps(40):
        half = mpmath.mpf(dim - 1) / 2
        equator = mpmath.log(2) + half * mpmath.log(mpmath.pi) - mpmath.loggamma(half)
        if family is PowerSpherical:
            log_beta = mpmath.log(mpmath.beta(half + kappa, half))
            return float(equator + (dim - 2) * mpmath.log(2) + log_beta)
        order = mpmath.mpf(dim) / 2 - 1
        of_order = order * mpmath.log(2 * mpmath.pi / mpmath.mpf(kappa))
        log_bessel = mpmath.log(mpmath.besseli(order, kappa))
        return float(mpmath.log(2 * mpmath.pi) + of_order + log_bessel - kappa)


@FAMILIES
@DIMS
@CONCENTRATIONS
def test_normalizer_and_mean_are_exact(family, dim, kappa):
    q = family(direction(dim), scalar(kappa))
    log_normalizer = exact_log_normalizer(family, dim, kappa)
    assert q.log_normalizer().item() == pytest.approx(log_normalizer, rel=1e-9, abs=1e-9)
    mean = exact_mean(family, dim, kappa)
    assert q.mean_height.item() == pytest.approx(float(1 - mean), rel=1e-8)
    assert torch.allclose(q.mean, float(mean) * q.loc, rtol=1e-8)


@CONCENTRATIONS
@pytest.mark.parametrize("dim", [2, 3, 5, 32])  # scipy's density is infinite for many more
def test_von_mises_fisher_is_scipy_s(dim, kappa):
    loc = direction(dim)
    truth = stats.vonmises_fisher(loc.numpy(), kappa)
    q = VonMisesFisher(loc, scalar(kappa))
    torch.manual_seed(0)
    x = torch.cat(
        [q.sample((20,)), VonMisesFisher(loc, scalar(0.0)).sample((20,)), -loc[None]]
    )
    density = torch.from_numpy(truth.logpdf(x.numpy()))
    assert torch.allclose(q.log_prob(x), density, rtol=1e-9, atol=1e-9)
    assert q.entropy().item() == pytest.approx(truth.entropy(), rel=1e-8)
    single = VonMisesFisher(loc.float(), scalar(kappa, torch.float32))
    near = x[:20]
    assert torch.allclose(single.log_prob(near.float()).double(), density[:20], atol=3e-5)


@FAMILIES
@pytest.mark.parametrize("dim", [2, 3, 6])
@pytest.mark.parametrize("kappa", [0.0, 0.7, 20.0])
def test_density_moments_and_entropy_by_quadrature_on_the_sphere(family, dim, kappa):
    # w = cos(angle) has the density p(x) |S^(d-2)| sin(angle)^(d-2) in the angle.
    q = family(torch.eye(dim, dtype=F64)[0], scalar(kappa))
    angle = torch.linspace(0, math.pi, 20_001, dtype=F64)
    x = torch.zeros(len(angle), dim, dtype=F64)
    x[:, 0] = angle.cos()
    x[:, 1] = angle.sin()
    density = q.log_prob(x)
    equator = math.exp(log_area(dim - 1)) if dim > 2 else 2.0
    mass = density.exp() * equator * angle.sin() ** (dim - 2)

    def mean(value):
        return torch.trapezoid(mass * value, angle).item()

    assert mean(1.0) == pytest.approx(1, abs=1e-6)
    assert mean(-density.clamp(min=-1e3)) == pytest.approx(q.entropy().item(), abs=1e-6)
    assert mean(x[:, 0]) == pytest.approx(q.mean[0].item(), abs=1e-6)
    variance = mean(x[:, 0] ** 2) - mean(x[:, 0]) ** 2
    assert variance == pytest.approx(q.variance[0].item(), abs=1e-6)
    across = mean(x[:, 1] ** 2) / (dim - 1)
    assert across == pytest.approx(q.variance[-1].item(), abs=1e-6)


@FAMILIES
@DIMS
@CONCENTRATIONS
def test_draws_have_the_moments_of_the_density(family, dim, kappa):
    torch.manual_seed(1)
    loc = direction(dim, dtype=torch.float32)
    q = family(loc, scalar(kappa, torch.float32))
    x = q.sample((1000,))
    assert ((x.norm(dim=-1) - 1).abs() < 1e-6).all()
    height = (x - loc).double().square().sum(-1) / 2
    assert_within(height, q.mean_height)
    other = direction(dim, 1)
    assert_within(x.double() @ other, q.mean.double() @ other, errors=4.5)
    assert_within(
        (x.double() - q.mean.double())[:, 0] ** 2, q.variance[0].double(), errors=4.5
    )


@DIMS
@CONCENTRATIONS
def test_latitudes_of_von_mises_fisher_have_the_right_distribution(dim, kappa):
    torch.manual_seed(2)
    q = VonMisesFisher(direction(dim), scalar(kappa))
    latitude = q._draw(q.concentration.expand(2000))
    grid, log_mass = q._quadrature()
    # The cumulative mass between two nodes of the quadrature, linear in their latitude.
    mass = log_mass.softmax(0)
    upper = mass.cumsum(0) - mass / 2
    position = torch.searchsorted(grid, latitude).clamp(1, len(grid) - 1)
    share = (latitude - grid[position - 1]) / (grid[position] - grid[position - 1])
    cdf = upper[position - 1] + share * (upper[position] - upper[position - 1])
    assert stats.kstest(cdf.clamp(0, 1).numpy(), "uniform").pvalue > 1e-3


@FAMILIES
@DIMS
@CONCENTRATIONS
def test_the_gradient_in_the_concentration_has_no_bias(family, dim, kappa):
    # E[f'(w) dw/dkappa] is the derivative of E[f(w)]; here for w, w^2 and exp(w).
    concentration = scalar(kappa).requires_grad_()
    q = family(direction(dim), concentration)
    latitude, log_mass = q._quadrature()
    w = torch.tanh(latitude)
    pathwise = q._slope(latitude) / torch.cosh(latitude) ** 2
    for value, derivative in ((w, 1.0), (w**2, 2 * w), (w.exp(), w.exp())):
        truth = torch.autograd.grad(
            (log_mass.softmax(0) * (value - value[48])).sum(), concentration, retain_graph=True
        )[0]
        estimate = (log_mass.softmax(0) * pathwise * derivative).sum()
        assert estimate.item() == pytest.approx(truth.item(), rel=1e-6)


@FAMILIES
@pytest.mark.parametrize(("dim", "kappa"), [(2, 1.0), (3, 50.0), (5, 2.0), (64, 1e3)])
def test_gradients_of_draws(family, dim, kappa):
    # The gradient of E[(c^T x)^2 + a^T x] in the concentration and in the direction.
    torch.manual_seed(3)
    free = direction(dim, 2).requires_grad_()
    concentration = scalar(kappa).requires_grad_()
    c, a = direction(dim, 3), direction(dim, 4)
    loc = free / free.norm()
    q = family(loc, concentration)
    height = q.mean_height
    square = q._expectation(lambda latitude: (2 * torch.sigmoid(-2 * latitude)) ** 2)
    along = 1 - 2 * height + square  # E[w^2]
    projected = loc @ c
    mean = along * projected**2 + (1 - along) * (1 - projected**2) / (dim - 1)
    mean = mean + (1 - height) * (loc @ a)
    truth = torch.autograd.grad(mean, [concentration, free], retain_graph=True)

    n = 4_000
    many = [
        one.detach().expand(n, *one.shape).requires_grad_() for one in (concentration, free)
    ]
    x = family(many[1] / many[1].norm(dim=-1, keepdim=True), many[0]).rsample()
    value = (x @ c) ** 2 + x @ a
    slopes = torch.autograd.grad(value.sum(), many)
    assert_within(slopes[0], truth[0])
    for i in range(min(dim, 5)):
        assert_within(slopes[1][:, i], truth[1][i])


def test_rejection_alone_would_be_biased():
    # The pathwise derivative of an accepted proposal, without its score, is not the gradient.
    concentration = scalar(2.0).requires_grad_()
    q = VonMisesFisher(direction(5), concentration)
    truth = torch.autograd.grad(1 - q.mean_height, concentration, retain_graph=True)[0].item()
    latitude, log_mass = q._quadrature()
    mass = log_mass.softmax(0).detach() / torch.cosh(latitude) ** 2
    shift = torch.autograd.grad(q._peak(concentration), concentration)[0]
    assert truth == pytest.approx(0.1474, abs=1e-4)
    assert (mass * shift).sum().item() != pytest.approx(truth, rel=0.05)
    assert (mass * q._slope(latitude)).sum().item() == pytest.approx(truth, rel=1e-9)


@FAMILIES
@DIMS
@CONCENTRATIONS
def test_no_draw_density_or_gradient_is_infinite(family, dim, kappa):
    torch.manual_seed(4)
    loc = direction(dim, dtype=torch.float32).requires_grad_()
    concentration = scalar(kappa, torch.float32).requires_grad_()
    q = family(loc, concentration)
    x = q.rsample((100,))
    slopes = torch.autograd.grad(q.log_prob(x).sum() + x.sum(), [loc, concentration])
    assert x.isfinite().all() and q.log_prob(x).isfinite().all()
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("pole", [0, 1], ids=["at the axis", "opposite to it"])
def test_the_first_axis_and_its_opposite_are_directions_as_others(pole):
    torch.manual_seed(5)
    loc = torch.eye(3, dtype=F64)[0] * (1 - 2 * pole)
    x = VonMisesFisher(loc, scalar(10.0)).sample((1000,))
    assert_within(x @ loc, scalar(1 / math.tanh(10) - 0.1))
    assert_within(x[:, 1], scalar(0.0))
    assert_within(x[:, 1] * x[:, 2], scalar(0.0))


@FAMILIES
@pytest.mark.parametrize("dim", [2, 3, 32, 512])
@pytest.mark.parametrize(("kappa", "prior"), [(0.5, 0.0), (40.0, 0.0), (40.0, 3.0)])
def test_kl(family, dim, kappa, prior):
    loc, other = direction(dim), direction(dim, 1)
    q = family(loc, scalar(kappa))
    p = VonMisesFisher(other, scalar(prior))
    # E[log q - log p] with the exact mean, since log p is linear in x.
    mean = float(exact_mean(family, dim, kappa))
    if prior:
        log_p = prior * (mean * (loc @ other).item() - 1)
        log_p -= exact_log_normalizer(VonMisesFisher, dim, prior)
    else:
        log_p = -log_area(dim)
    truth = -q.entropy().item() - log_p
    assert kl_divergence(q, p).item() == pytest.approx(truth, rel=1e-7, abs=1e-9)
    assert exact_kl(q.expand((4,)), p).shape == (4,)
    torch.manual_seed(6)
    x = q.sample((1000,))
    assert_within(q.log_prob(x) - p.log_prob(x), kl_divergence(q, p))


def test_kl_to_itself_and_to_the_uniform_are_zero():
    loc = direction(10)
    for kappa in (0.0, 1.0, 1e4):
        q = VonMisesFisher(loc, scalar(kappa))
        assert kl_divergence(q, q).item() == pytest.approx(0, abs=1e-9)
    for family in (VonMisesFisher, PowerSpherical):
        q = family(loc, scalar(0.0))
        uniform = default_prior(VonMisesFisher, 10).double()()
        assert kl_divergence(q, uniform).item() == pytest.approx(0, abs=1e-12)
        assert q.entropy().item() == pytest.approx(log_area(10))


def test_power_spherical_has_no_closed_kl_to_another():
    q = PowerSpherical(direction(3), scalar(2.0))
    assert exact_kl(q, PowerSpherical(direction(3, 1), scalar(1.0))) is None
    assert exact_kl(VonMisesFisher(direction(3), scalar(2.0)), q) is None


@FAMILIES
def test_shapes_expand_and_independence(family):
    torch.manual_seed(0)
    loc = torch.stack([direction(4), direction(4, 1)]).float()
    q = family(loc[None], torch.rand(3, 1))
    assert (q.batch_shape, q.event_shape) == ((3, 2), (4,))
    assert q.rsample((5, 6)).shape == (5, 6, 3, 2, 4)
    assert q.expand((7, 3, 2)).rsample().shape == (7, 3, 2, 4)
    assert type(q.expand((7, 3, 2))) is family
    for statistic in (q.mean, q.variance, q.mode):
        assert statistic.shape == (3, 2, 4)
    assert q.log_prob(q.sample((5,))).shape == (5, 3, 2)
    assert q.entropy().shape == (3, 2) and q.entropy().dtype == torch.float32
    rows = q.to_event(1)
    assert rows.log_prob(rows.sample()).shape == (3,)
    empty = family(torch.zeros(0, 3), torch.zeros(0))
    assert empty.rsample((2,)).shape == (2, 0, 3) and empty.entropy().shape == (0,)


@FAMILIES
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
def test_dtypes(family, dtype):
    q = family(direction(3, dtype=dtype), scalar(2.0, dtype), validate_args=False)
    x = q.rsample((10,))
    assert x.dtype == dtype and q.log_prob(x).isfinite().all()
    assert (x.float().norm(dim=-1) - 1).abs().max() < 0.02


@FAMILIES
def test_wrong_arguments(family):
    with pytest.raises(ValueError, match="unit vectors"):
        family(torch.tensor([1.0]), 1.0)
    with pytest.raises(ValueError, match="unit vectors"):
        family(1.0, torch.tensor(1.0))
    with pytest.raises(ValueError, match="unit vectors"):
        family([1.0, 0.0], torch.tensor(1.0))
    with pytest.raises(ValueError, match="event_shape must end in the dimension"):
        default_prior(family, 1)
    with pytest.raises(TypeError, match="concentration must be a number or a tensor"):
        family(direction(3), "high")
    with pytest.raises(ValueError, match=r"must broadcast.*\(3,\) and \(2,\)"):
        family(torch.eye(2), torch.ones(3))
    with pytest.raises(ValueError, match="loc"):
        family(torch.tensor([1.0, 1.0]), 1.0, validate_args=True)
    with pytest.raises(ValueError, match="concentration"):
        family(direction(3), scalar(-1.0), validate_args=True)
    with pytest.raises(ValueError, match="value"):
        family(direction(3), scalar(1.0), validate_args=True).log_prob(torch.ones(3))


def test_the_link_to_unit_vectors():
    link = link_to(dist.constraints.sphere)
    assert link == Direction()
    u = torch.tensor([[1e-30, 0.0], [1e30, 1e30], [0.0, 0.0], [-3.0, 4.0]], requires_grad=True)
    x = link(u)
    assert torch.allclose(x.norm(dim=-1), torch.ones(4))
    assert x[2].tolist() == [1.0, 0.0]
    (slope,) = torch.autograd.grad(x[2:].sum(), u)
    assert slope.isfinite().all()
    assert torch.equal(link.inv(x[3]), x[3])
    assert torch.autograd.gradcheck(link, torch.randn(4, 3, dtype=F64, requires_grad=True))


@FAMILIES
def test_conditional_and_priors(family):
    torch.manual_seed(0)
    q = Conditional(family, MLP(6, [8]), (2, 3))
    z = q(torch.randn(5, 6))
    assert z.batch_shape == (5,) and z.event_shape == (2, 3)
    assert (z.mean.std(0) > 0).any()  # directions depend on the context from the start
    prior = default_prior(family, (2, 3))
    assert repr(prior).startswith("VonMisesFisher(loc fixed, concentration=0)")
    assert torch.allclose(prior().entropy(), torch.tensor(2 * log_area(3)))
    assert kl_divergence(z, prior()).shape == (5,)
    learned = Prior(family, 3)
    learned().log_prob(direction(3, dtype=torch.float32)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in learned.parameters())


@FAMILIES
def test_a_recorded_draw_is_that_of_an_eager_run(family):
    def draw(loc, concentration):
        q = family(loc, concentration, validate_args=False)
        x = q.rsample()
        return torch.autograd.grad(x.sum() + q.log_prob(x).sum(), [loc, concentration])

    loc = torch.eye(3).requires_grad_()
    args = (loc, torch.ones(3).requires_grad_())
    recorded = make_fx(draw)(*args)
    torch.manual_seed(0)
    eager = draw(*args)
    torch.manual_seed(0)
    again = recorded(*args)
    assert all(map(torch.equal, eager, again))


def test_pyro_s_bound_of_a_spherical_vae_is_ours():
    torch.manual_seed(0)
    p = models.VAE(
        default_prior(VonMisesFisher, 3), Conditional(dist.Bernoulli, MLP(3, [16]), 64)
    )
    q = with_random_heads(guides.VAE(Conditional(VonMisesFisher, MLP(64, [16]), 3)))
    x = torch.rand(20, 64).round()
    losses = []
    for bound in (TraceMeanField_ELBO(), ELBO()):
        torch.manual_seed(1)
        losses.append(bound.differentiable_loss(p, q, x))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    ours, pyro_s = (torch.autograd.grad(loss, list(q.parameters())) for loss in losses)
    assert all(
        torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(ours, pyro_s, strict=True)
    )
