"""The ELBO against closed forms: values, gradients, hierarchies, discrete and partly
reparameterized guides.
"""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import RejectionGamma
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from tarspyro import Conditional, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, PairError, check_pair, log_weights
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder

from ..programs import LinearGaussian, assert_within

BOUNDS = {
    "analytic": {},
    "sampled": {"analytic_kl": False},
    "particles": {"num_particles": 7},
    "particles, sampled": {"num_particles": 7, "analytic_kl": False},
    "loop": {"num_particles": 3, "vectorize_particles": False},
}


@pytest.mark.parametrize("options", BOUNDS.values(), ids=BOUNDS)
def test_value_is_the_closed_form(options):
    toy = LinearGaussian()
    x = toy.x.repeat(5, 1)  # rows are cheaper than calls
    draws = [-ELBO(**options).loss(toy.model, toy.guide, x) for _ in range(80)]
    assert_within(draws, toy.elbo(x).sum().item())


@pytest.mark.parametrize("options", BOUNDS.values(), ids=BOUNDS)
def test_gradient_is_the_closed_form(options):
    toy = LinearGaussian()
    parameters, x = list(toy.parameters()), toy.x.repeat(5, 1)
    exact = torch.autograd.grad(toy.elbo(x).sum(), parameters)
    draws = []
    for _ in range(80):
        loss = ELBO(**options).differentiable_loss(toy.model, toy.guide, x)
        draws.append(torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert_within(torch.stack(draws), torch.cat([g.flatten() for g in exact]))


def test_terms_are_the_closed_forms():
    toy = LinearGaussian()
    terms = [ELBO().loss_and_terms(toy.model, toy.guide, toy.x)[1] for _ in range(400)]
    assert_within(
        [t["reconstruction"].item() for t in terms], toy.reconstruction(toy.x).sum().item()
    )
    torch.testing.assert_close(terms[0]["kl"], toy.kl(toy.x).sum())


def test_analytic_kl_leaves_no_noise_in_the_kl():
    toy = LinearGaussian()
    assert (
        len(
            {
                ELBO().loss_and_terms(toy.model, toy.guide, toy.x)[1]["kl"].item()
                for _ in range(3)
            }
        )
        == 1
    )


def test_full_covariance_kl_against_monte_carlo():
    q = Conditional(dist.MultivariateNormal, MLP(4, [8]), 3)
    prior = default_prior(dist.MultivariateNormal, 3)()
    context = torch.randn(2, 4)
    closed = q.kl(prior, context).detach()
    posterior = q(context)
    z = posterior.sample((100_000,))
    assert_within((posterior.log_prob(z) - prior.log_prob(z)).detach(), closed)
    # the formula of the notes: (tr S + m'm - k - log det S) / 2
    covariance, loc = posterior.covariance_matrix, posterior.loc
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    formula = 0.5 * (trace + (loc**2).sum(-1) - 3 - covariance.logdet())
    torch.testing.assert_close(closed, formula.detach())


def test_beta_zero_half_and_schedule():
    toy = LinearGaussian()
    loss = ELBO()
    values = {}
    for beta in (0.0, 0.5, 1.0):
        loss.beta = beta
        torch.manual_seed(1)
        values[beta] = loss.loss(toy.model, toy.guide, toy.x)
    kl = toy.kl(toy.x).sum().item()
    assert values[1.0] - values[0.0] == pytest.approx(kl)
    assert values[1.0] - values[0.5] == pytest.approx(kl / 2)


def test_free_bits_keep_the_mean_kl_of_each_coordinate():
    toy = LinearGaussian()
    q = toy.posterior(toy.x).base_dist
    per_unit = (0.5 * (q.loc**2 + q.variance - 1 - q.variance.log())).mean(0)
    floor = per_unit.mean().item()  # between the two, so that one coordinate is lifted
    torch.manual_seed(1)
    loss, terms = ELBO(free_bits=floor).loss_and_terms(toy.model, toy.guide, toy.x)
    expected = per_unit.clamp(min=floor).sum() * len(toy.x)
    assert loss.item() + terms["reconstruction"].item() == pytest.approx(expected.item())
    torch.testing.assert_close(terms["kl"], toy.kl(toy.x).sum())
    (gradient,) = torch.autograd.grad(
        ELBO(free_bits=100.0).differentiable_loss(toy.model, toy.guide, toy.x), toy.map
    )
    torch.manual_seed(1)
    (pure,) = torch.autograd.grad(
        ELBO(free_bits=100.0, beta=0.0).differentiable_loss(toy.model, toy.guide, toy.x),
        toy.map,
    )
    assert gradient.shape == pure.shape


def test_free_bits_with_particles_equal_those_without():
    toy = LinearGaussian()
    kl_only = []
    for particles in (1, 4):
        loss, terms = ELBO(particles, free_bits=5.0).loss_and_terms(
            toy.model, toy.guide, toy.x
        )
        kl_only.append(loss.item() + terms["reconstruction"].item())
    assert kl_only[0] == pytest.approx(kl_only[1])


def test_agrees_with_pyro_on_scales_and_masks():
    toy = LinearGaussian()
    mask = torch.arange(len(toy.x)) % 2 == 0

    def subsampled(program):
        def scaled(x):
            with poutine.scale(scale=0.1), poutine.mask(mask=mask):
                return program(x)

        return scaled

    draws = [
        -ELBO().loss(subsampled(toy.model), subsampled(toy.guide), toy.x) for _ in range(400)
    ]
    assert_within(draws, 0.1 * toy.elbo(toy.x)[mask].sum().item())


def test_a_masked_latent_site_was_drawn_all_the_same():
    """Without its density in the bound a discrete site still decides what the likelihood is."""
    torch.manual_seed(0)
    rows, x = 20_000, torch.tensor(0.7)
    logits = torch.full((rows,), 0.4, requires_grad=True)

    def model():
        with pyro.plate("data", rows):
            with poutine.mask(mask=torch.zeros(rows, dtype=torch.bool)):
                z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(rows))

    def guide():
        with pyro.plate("data", rows), poutine.mask(mask=torch.zeros(rows, dtype=torch.bool)):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    (gradient,) = torch.autograd.grad(-ELBO().differentiable_loss(model, guide), logits)
    probs = torch.sigmoid(torch.tensor(0.4))
    likelihoods = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(x)
    assert_within(gradient, probs * (1 - probs) * (likelihoods[1] - likelihoods[0]))


def test_a_scale_in_the_model_alone_is_not_ignored():
    """Pyro's TraceMeanField_ELBO takes the guide's scale only (known fault)."""
    toy = LinearGaussian()

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", toy.prior())
            pyro.sample("x", toy.likelihood(z), obs=x)

    q = toy.posterior(toy.x).base_dist
    cross = -0.5 * (q.loc**2 + q.variance + math.log(2 * math.pi)).sum()
    exact = toy.reconstruction(toy.x).sum() + 0.1 * cross + q.entropy().sum()
    draws = [-ELBO().loss(model, toy.guide, toy.x) for _ in range(400)]
    assert_within(draws, exact.item())


def test_plate_subsampling_estimates_the_whole_bound():
    toy = LinearGaussian()

    def model(x):
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            z = pyro.sample("z", toy.prior())
            pyro.sample("x", toy.likelihood(z), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            pyro.sample("z", toy.posterior(x[rows]))

    draws = [-ELBO().loss(model, guide, toy.x) for _ in range(600)]
    assert_within(draws, toy.elbo(toy.x).sum().item())


# Hierarchies: p(z2) p(z1 | z2) p(x | z1), all Gaussian in one dimension; the ELBO of a chained
# guide by quadrature.


def _hierarchy(bottom_up):
    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z_2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z_1", dist.Normal(0.8 * z2, 0.6))
            pyro.sample("x", dist.Normal(z1, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if bottom_up:
                z1 = pyro.sample("z_1", dist.Normal(0.5 * x, 0.7))
                pyro.sample("z_2", dist.Normal(0.9 * z1, 0.5))
            else:
                z2 = pyro.sample("z_2", dist.Normal(0.4 * x, 0.8))
                pyro.sample("z_1", dist.Normal(0.3 * x + 0.5 * z2, 0.5))

    return model, guide


def _exact_hierarchy_elbo(x, bottom_up):
    """Joint Gaussian moments of (z1, z2) under the guide give every expectation."""
    if bottom_up:
        m1, v1 = 0.5 * x, 0.7**2
        m2, v2, cov = 0.9 * m1, 0.9**2 * v1 + 0.5**2, 0.9 * v1
        entropy = 0.5 * math.log(2 * math.pi * math.e * v1) + 0.5 * math.log(
            2 * math.pi * math.e * 0.5**2
        )
    else:
        m2, v2 = 0.4 * x, 0.8**2
        m1, v1, cov = 0.3 * x + 0.5 * m2, 0.25 * v2 + 0.25, 0.5 * v2
        entropy = 0.5 * math.log(2 * math.pi * math.e * v2) + 0.5 * math.log(
            2 * math.pi * math.e * 0.25
        )

    def expected(mean, variance, scale):
        return -0.5 * math.log(2 * math.pi * scale**2) - (mean**2 + variance) / (2 * scale**2)

    return (
        expected(m2, v2, 1.0)
        + expected(m1 - 0.8 * m2, v1 + 0.64 * v2 - 1.6 * cov, 0.6)
        + expected(x - m1, v1, 0.5)
        + entropy
    )


@pytest.mark.parametrize("bottom_up", [True, False], ids=["bottom-up guide", "top-down guide"])
def test_hierarchies_have_the_right_bound_in_any_order_of_the_guide(bottom_up):
    """Closed-form KLs are biased when the guide draws a parent after its child; Pyro's
    mean-field bound takes them.
    """
    model, guide = _hierarchy(bottom_up)
    x = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    draws = [-ELBO(num_particles=50).loss(model, guide, x) for _ in range(200)]
    assert_within(draws, _exact_hierarchy_elbo(x, bottom_up).sum().item())


# Guides without a reparameterization, by enumeration.


class Switch(nn.Module):
    """z ~ Bernoulli, x | z ~ Normal: four data points, two latent bits each."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(
            torch.tensor(
                [[0.3, -1.0], [1.2, 0.1], [-0.5, 0.4], [0.0, 2.0]], dtype=torch.float64
            )
        )
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.x = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)

    def log_joint(self, z):
        prior = dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)).log_prob(z).sum(-1)
        return prior + dist.Normal(z @ self.weight, 1.0).log_prob(self.x)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z",
                dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)).expand([2]).to_event(1),
            )
            pyro.sample("x", dist.Normal(z @ self.weight, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Bernoulli(logits=self.logits.repeat(len(x) // 4, 1)).to_event(1)
            )

    def elbo(self):
        total = 0.0
        for bits in itertools.product([0.0, 1.0], repeat=2):
            z = torch.tensor(bits, dtype=torch.float64).expand(4, 2)
            log_q = dist.Bernoulli(logits=self.logits).log_prob(z).sum(-1)
            total = total + (log_q.exp() * (self.log_joint(z) - log_q)).sum()
        return total


@pytest.mark.parametrize(
    "options", [{}, {"num_particles": 4}, {"analytic_kl": False}], ids=str
)
def test_discrete_guides_get_the_exact_gradient(options):
    toy, copies = Switch(), 25  # rows are cheaper than calls
    parameters = list(toy.parameters())
    exact = torch.cat(
        [g.flatten() for g in torch.autograd.grad(copies * toy.elbo(), parameters)]
    )
    draws = []
    for _ in range(160):
        loss = ELBO(**options).differentiable_loss(toy.model, toy.guide, toy.x.repeat(copies))
        draws.append(torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert_within(torch.stack(draws), exact)


@pytest.mark.parametrize("event_dim", [0, 1])
def test_rejection_samplers_keep_their_correction_inside_to_event(event_dim):
    """``to_event`` throws away the score parts of Pyro's rejection samplers: 9 % off (known
    fault).
    """
    concentration = torch.full((200,), 1.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor(0.7, dtype=torch.float64)

    def model():
        z = pyro.sample(
            "z",
            dist.Gamma(torch.full((200,), 2.0, dtype=torch.float64), 1.0).to_event(event_dim),
        )
        pyro.sample("x", dist.Normal(z, 1.0).to_event(event_dim), obs=x.expand(200))

    def guide():
        pyro.sample(
            "z",
            RejectionGamma(concentration, torch.ones(200, dtype=torch.float64)).to_event(
                event_dim
            ),
        )

    def plated(program):
        def inside():
            with pyro.plate("data", 200):
                program()

        return inside if event_dim == 0 else program

    draws = []
    for _ in range(400):
        loss = ELBO(analytic_kl=False).differentiable_loss(plated(model), plated(guide))
        draws.append(-torch.autograd.grad(loss, concentration)[0])
    draws = torch.stack(draws)
    draws = draws.flatten() if event_dim == 0 else draws.mean(1)

    def elbo(a):
        # E_q[log p(z) - log q(z) + log p(x | z)] for q = Gamma(a, 1)
        second = a * (a + 1)
        log_lik = -0.5 * math.log(2 * math.pi) - 0.5 * (x**2 - 2 * x * a + second)
        return (2 - a) * torch.digamma(a) + torch.lgamma(a) + log_lik

    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(elbo(a), a)
    assert_within(draws, exact.item())


# The library's own pair.


def vae(trunk="mlp"):
    if trunk == "conv":
        encoder, decoder = ConvEncoder((1, 8, 8), [4, 8]), ConvDecoder(2, (1, 8, 8), [8, 4])
    else:
        encoder, decoder = (
            MLP((1, 8, 8), [16], normalization=nn.BatchNorm1d),
            MLP(2, [16], normalization=nn.BatchNorm1d),
        )
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, decoder, (1, 8, 8))
    )
    return model, guides.VAE(Conditional(dist.Normal, encoder, 2))


@pytest.mark.parametrize("trunk", ["mlp", "conv"])
def test_particles_are_folded_into_the_batch(trunk):
    """Pyro's vectorized particles break convolutions and batch normalization (known fault)."""
    model, guide = vae(trunk)
    x = torch.rand(10, 1, 8, 8).round()
    calls = []
    guide.posterior.trunk.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    loss = ELBO(num_particles=5).differentiable_loss(model, guide, x)
    assert calls[-1] == 10, (
        "the encoder sees each data point once, whatever the number of particles"
    )
    loss.backward()
    assert all(p.grad is not None for p in [*model.parameters(), *guide.parameters()])


def test_guessing_the_plates_leaves_no_mark():
    """Pyro's guess draws noise and moves the statistics of batch normalization (known fault)."""
    model, guide = vae()
    x = torch.rand(10, 1, 8, 8).round()
    before, state = (
        torch.get_rng_state(),
        {k: v.clone() for k, v in guide.state_dict().items()},
    )
    log_weights(model.eval(), guide.eval(), x, num_particles=1)
    torch.set_rng_state(before)
    model.train(), guide.train()
    assert ELBO().structure(model, guide, x).nesting == 1
    assert ELBO(num_particles=2).structure(model, guide, x).vectorized
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[k], v) for k, v in guide.state_dict().items())
    assert model.training and guide.training


def test_one_bound_serves_pairs_of_different_depth():
    toy, bound = LinearGaussian(), ELBO(num_particles=3)
    bound.loss(toy.model, toy.guide, toy.x)
    x = torch.rand(6, 4).double()

    def model(x):
        with pyro.plate("columns", 4, dim=-1), pyro.plate("rows", 6, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("columns", 4, dim=-1), pyro.plate("rows", 6, dim=-2):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum().item()
    draws = [-bound.loss(model, guide, x) for _ in range(100)]
    assert_within(draws, exact)


def test_is_a_drop_in_for_svi_and_for_torch_optimizers():
    x = torch.rand(20, 1, 8, 8).round()
    torch.manual_seed(3)
    model, guide = vae("conv")
    start = {
        k: v.clone() for k, v in [*model.state_dict().items(), *guide.state_dict().items()]
    }
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO())
    torch.manual_seed(4)
    losses = [svi.step(x) for _ in range(3)]

    torch.manual_seed(3)
    model2, guide2 = vae("conv")
    module = ELBO()(model2, guide2)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    torch.manual_seed(4)
    for expected in losses:
        optimizer.zero_grad()
        loss = module(x)
        loss.backward()
        optimizer.step()
        assert loss.item() == expected
    after = dict([*model.state_dict().items(), *guide.state_dict().items()])
    after2 = dict([*model2.state_dict().items(), *guide2.state_dict().items()])
    assert all(torch.equal(after[k], after2[k]) for k in after)
    assert any(not torch.equal(start[k], after[k]) for k in after)


def test_second_pair_in_one_process_starts_from_its_own_weights_under_svi():
    x = torch.rand(20, 1, 8, 8).round()
    for _ in range(2):
        model, guide = vae("conv")
        before = [p.detach().clone() for p in model.parameters()]
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        svi.step(x)
        moved = [
            not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
        ]
        assert all(moved), "Pyro's store handed an earlier instance's weights to this one"


def test_log_weights_are_those_of_single_data_points():
    toy = LinearGaussian()
    weights = log_weights(toy.model, toy.exact_posterior_guide, toy.x, num_particles=3)
    assert weights.shape == (3, 50)
    # with the exact posterior every weight is log p(x_n)
    torch.testing.assert_close(weights, toy.log_likelihood(toy.x).expand(3, 50))
    with poutine.scale(scale=0.1):
        scaled = log_weights(toy.model, toy.exact_posterior_guide, toy.x)
    torch.testing.assert_close(scaled, toy.log_likelihood(toy.x).unsqueeze(0))


def test_a_deterministic_site_outside_the_plate_changes_nothing():
    """It costs Pyro's RenyiELBO 60 nats (known fault)."""
    toy = LinearGaussian()

    def model(x):
        pyro.deterministic("twice", 2 * toy.weight)
        toy.model(x)

    weights = log_weights(model, toy.exact_posterior_guide, toy.x, num_particles=2)
    torch.testing.assert_close(weights, toy.log_likelihood(toy.x).expand(2, 50))


def test_what_has_no_weight_per_data_point_says_so():
    toy = LinearGaussian()

    def model(x):
        z = pyro.sample(
            "z", dist.Normal(torch.zeros(50, 2, dtype=torch.float64), 1.0).to_event(2)
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", toy.likelihood(z), obs=x)

    def guide(x):
        pyro.sample("z", toy.posterior(x).to_event(1))

    with pytest.raises(
        PairError,
        match=r"no weight for each data point, because its data points share \['z'\]",
    ):
        log_weights(model, guide, toy.x)


def test_check_pair_names_the_sites_that_do_not_match():
    toy = LinearGaussian()

    def other(x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", toy.posterior(x))

    with pytest.raises(
        PairError, match=r"only the model samples \['z'\]; only the guide samples \['w'\]"
    ):
        check_pair(toy.model, other, toy.x)
    with pytest.raises(PairError, match="observes nothing"):
        check_pair(
            lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)),
            lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)),
            0,
        )
    with pytest.raises(PairError, match=r"only the model samples \['z'\]"):
        ELBO().loss(toy.model, lambda x: None, toy.x)


def test_arguments_out_of_range():
    for options in ({"num_particles": 0}, {"beta": -1.0}, {"free_bits": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ELBO(**options)
