"""Hierarchical and ladder VAEs, against a linear Gaussian model in closed form."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from tarspyro import Conditional, distributions, evaluate, fit, guides, load_run, models, plot
from tarspyro.distributions import Prior, default_prior
from tarspyro.infer import ELBO, IWAE, Compiled, PairError, Renyi, check_pair, log_weights
from tarspyro.infer.bounds import elbo
from tarspyro.nn import MLP

from ..infer.test_compiled import PARTLY, assert_same_step
from ..programs import as_made, assert_within

GUIDES = ("samples", "means", "ladder")
BOUNDS = {
    "ELBO": ELBO,
    "ELBO, 5 draws": lambda: ELBO(5),
    "IWAE": lambda: IWAE(5),
    "IWAE, dreg": lambda: IWAE(5, gradient="dreg"),
    "Renyi": lambda: Renyi(0.5, 5),
}
each_guide = pytest.mark.parametrize("kind", GUIDES)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trained(model, guide, x):
    """The parameters that ``fit`` gives its optimizer."""
    given = []

    class Recorder(torch.optim.SGD):
        def __init__(self, parameters, **options):
            super().__init__(parameters, lr=0.0)
            given.extend(p for group in self.param_groups for p in group["params"])

        def step(self, closure=None):
            pass

    fit(model, guide, x, epochs=1, optimizer=Recorder, seed=0, progress=False)
    return given


# --- two layers, linear and Gaussian


def linear(weight, bias, scale, family=dist.Normal):
    """N(weight c + bias, scale), all learned."""
    weight, bias = torch.as_tensor(weight), torch.as_tensor(bias)
    name = "scale" if family is dist.Normal else "scale_tril"
    made = Conditional(
        family,
        MLP(weight.shape[1], []),
        len(weight),
        **{name: nn.Parameter(torch.as_tensor(scale))},
    )
    with torch.no_grad():
        made.heads["loc"].weight.copy_(weight)
        made.heads["loc"].bias.copy_(bias)
    return made


def of(conditional):
    """The weight, the bias and the standard deviations of a linear conditional."""
    head = conditional.heads["loc"]
    zero = conditional(torch.zeros(1, head.in_features)).base_dist
    return head.weight, head.bias, zero.scale.reshape(-1)


class LinearHierarchy:
    r"""z_2 ~ N(0, 1), z_1 ~ N(A z_2 + a, S_1), x ~ N(W z_1 + w, S) with x and z_1 in the
    plane, W diagonal.

    The posterior is p(z_2 | x) p(z_1 | z_2, x), whose second factor is the product of p(z_1 |
    z_2) with the likelihood as a function of z_1, and p(z_1 | x) p(z_2 | z_1): a ladder and a
    chain on draws can both be exact.
    """

    def __init__(self, ladder=False):
        self.w = torch.tensor([0.8, -1.3])
        likelihood = linear(self.w.diag(), [0.2, -0.4], [0.5, 0.7])
        between = linear([[1.1], [-0.7]], [0.3, 0.1], [0.6, 0.9])
        family = models.LadderVAE if ladder else models.HierarchicalVAE
        self.model = family(default_prior(dist.Normal, 1), [between], likelihood)
        self.x = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-1.2, 0.8]])
        (_, a, s1), (_, b, s) = of(between), of(likelihood)
        # Moments of (z_2, z_1, x), from the top.
        up = torch.tensor([[1.0], *between.heads["loc"].weight.tolist()])
        noise = torch.diag(torch.cat([torch.zeros(1), s1**2]))
        prior = up @ up.T + noise
        down = torch.cat([torch.zeros(2, 1), self.w.diag()], 1)
        self.evidence = dist.MultivariateNormal(
            (self.w * a + b).detach(), (down @ prior @ down.T + (s**2).diag()).detach()
        )
        gain = torch.linalg.solve(self.evidence.covariance_matrix, down @ prior).T.detach()
        mean = torch.cat([torch.zeros(1), a]).detach()
        self.posterior = (
            gain,
            mean - gain @ self.evidence.loc,
            (prior - gain @ down @ prior).detach(),
        )

    def guide(self, kind):
        """A guide that differs from the posterior."""
        top, bottom = (
            linear([[0.4, -0.3]], [0.1], [0.8]),
            linear([[0.6, 0.1], [-0.2, -0.5]], [0.1, 0.2], [0.7, 0.6]),
        )
        if kind != "ladder":
            return guides.HierarchicalVAE([bottom, top], chain=kind)
        encoders = [nn.Linear(2, 2), nn.Linear(2, 2)]
        return guides.LadderVAE(encoders, [bottom, top], self.model.conditionals)

    def exact_guide(self, kind):
        """The exact posterior as a guide."""
        gain, shift, covariance = self.posterior
        if kind == "samples":
            below = linear(
                gain[1:],
                shift[1:],
                torch.linalg.cholesky(covariance[1:, 1:]),
                dist.MultivariateNormal,
            )
            # p(z_2 | z_1) of the prior
            (a_weight, a, s1), one = of(self.model.conditionals[0]), torch.ones(1, 1)
            back = torch.linalg.solve(
                a_weight @ a_weight.T + (s1**2).diag(), a_weight
            ).T.detach()
            scale = (one - back @ a_weight).detach().reshape(1).sqrt()
            return guides.HierarchicalVAE([below, linear(back, -(back @ a).detach(), scale)])
        _, b, s = of(self.model.likelihood)
        likelihood = linear(
            (1 / self.w).diag(), (-b / self.w).detach(), (s / self.w.abs()).detach()
        )
        top = linear(gain[:1], shift[:1], covariance[0, :1].sqrt())
        return guides.LadderVAE(
            [nn.Identity(), nn.Identity()], [likelihood, top], self.model.conditionals
        )

    def moments(self, q):
        """The mean and covariance of (z_1, z_2) under the guide, one row for each data point,
        differentiable.
        """
        (a_weight, a, s1) = of(self.model.conditionals[0])
        (e, e0, bottom), (f, f0, top) = (of(posterior) for posterior in q.posteriors)
        if isinstance(q, guides.LadderVAE):
            below = q.encoders[0](self.x)
            m2 = q.encoders[1](below) @ f.T + f0
            variance = 1 / (bottom**-2 + s1**-2)
            k = (variance * s1**-2).unsqueeze(1) * a_weight
            m1 = variance * (bottom**-2 * (below @ e.T + e0) + s1**-2 * a) + m2 @ k.T
            cross = k * top**2
            c11, c22 = cross @ k.T + variance.diag(), (top**2).diag()
        else:
            m1 = self.x @ e.T + e0
            m2 = m1 @ f.T + f0
            c11, c22, cross = (bottom**2).diag(), (top**2).diag(), torch.zeros(2, 1)
            if q.chain == "samples":
                c22, cross = c22 + f @ c11 @ f.T, c11 @ f.T
        return torch.cat([m1, m2], 1), torch.cat(
            [torch.cat([c11, cross], 1), torch.cat([cross.T, c22], 1)]
        )

    def elbo(self, q):
        """The bound and its term E[log p(x | z_1)] in closed form, one number for each data
        point.
        """
        mean, covariance = self.moments(q)
        (a_weight, a, s1), (w, b, s) = (
            of(self.model.conditionals[0]),
            of(self.model.likelihood),
        )

        def expected(residual, rows, scale):
            spread = (rows @ covariance @ rows.T).diagonal()
            return (
                -0.5 * (2 * math.pi * scale**2).log() - (residual**2 + spread) / (2 * scale**2)
            ).sum(1)

        to_x = torch.cat([w, torch.zeros(2, 1)], 1)
        to_z1 = torch.cat([torch.eye(2), -a_weight], 1)
        to_z2 = torch.eye(3)[2:]
        entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
        reconstruction = expected(self.x - mean @ to_x.T - b, to_x, s)
        prior = expected(mean @ to_z1.T - a, to_z1, s1) + expected(
            mean @ to_z2.T, to_z2, torch.ones(1)
        )
        return reconstruction + prior + entropy, reconstruction


def toy(kind):
    toy = LinearHierarchy(ladder=kind == "ladder")
    return toy, toy.model, toy.guide(kind)


OPTIONS = {
    "closed forms": {},
    "sampled": {"analytic_kl": False},
    "particles": {"num_particles": 4},
}


@each_guide
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_bound_and_its_gradient_are_the_closed_forms(kind, options, double):
    """The bound has the entropy of each layer; shared parameters get the gradients of both
    halves.
    """
    case, p, q = toy(kind)
    case.x = case.x.repeat(4, 1)
    parameters = trained(p, q, case.x)
    value, reconstruction = (term.sum() for term in case.elbo(q))
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
    values, terms, gradients = [], [], []
    for _ in range(120):
        loss, parts = ELBO(**options).loss_and_terms(p, q, case.x)
        values.append(-loss.item())
        terms.append([parts["reconstruction"].item(), parts["kl"].item()])
        gradients.append(
            torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters)])
        )
    assert_within(values, value.item(), "value")
    assert_within(terms, [reconstruction.item(), (reconstruction - value).item()], "terms")
    assert_within(torch.stack(gradients), exact, "gradient")


@pytest.mark.parametrize("kind", ["samples", "ladder"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_with_the_exact_posterior_every_bound_is_the_evidence(kind, bound, double):
    case = LinearHierarchy(ladder=kind == "ladder")
    q = case.exact_guide(kind)
    loss = BOUNDS[bound]()
    if isinstance(loss, ELBO):
        loss.analytic_kl = False  # a closed form leaves the noise of the other terms
    evidence = case.evidence.log_prob(case.x)
    assert loss.loss(case.model, q, case.x) == pytest.approx(-evidence.sum().item(), rel=1e-10)
    estimate = evaluate.log_likelihood(case.model, q, case.x, num_particles=3, errors=True)
    torch.testing.assert_close(estimate.log_likelihood, evidence)
    assert (estimate.standard_error < 1e-6).all()


@each_guide
def test_importance_weights_are_unbiased(kind, double):
    """In Tars they were not: densities were conditioned on draws, and draws on means."""
    case, p, q = toy(kind)
    with torch.no_grad():
        weights = log_weights(p, q, case.x, num_particles=200_000).exp()
    assert_within(weights, case.evidence.log_prob(case.x).exp())


@each_guide
def test_the_bounds_are_ordered(kind, double):
    case, p, q = toy(kind)
    exact = case.evidence.log_prob(case.x).sum().item()
    bounds = [
        -bound.loss(p, q, case.x.repeat(5000, 1)) / 5000
        for bound in (ELBO(), Renyi(0.5, 10), IWAE(10))
    ]
    assert (
        bounds == sorted(bounds)
        and bounds[-1] < exact < -Renyi(-1.0, 500).loss(p, q, case.x.repeat(50, 1)) / 50
    )


@each_guide
def test_the_doubly_reparameterized_gradient_is_that_of_the_bound(kind, double):
    case, p, q = toy(kind)
    parameters = trained(p, q, case.x)
    draws = {}
    for gradient in ("pathwise", "dreg"):
        loss = IWAE(4, gradient=gradient)
        draws[gradient] = torch.stack(
            [
                torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(
                            loss.differentiable_loss(p, q, x), parameters
                        )
                    ]
                )
                for x in [case.x.repeat(100, 1)] * 60
            ]
        )
    assert_within(draws["dreg"] - draws["pathwise"], torch.zeros(draws["dreg"].shape[1]))


@each_guide
def test_closed_forms_are_used_only_if_exact(kind, double, monkeypatch):
    case, p, q = toy(kind)
    taken = []

    def spy(one, other):
        taken.append(tuple(one.batch_shape[1:]))
        return torch.distributions.kl_divergence(one, other)

    monkeypatch.setattr(elbo, "exact_kl", spy)
    ELBO().loss(p, q, case.x)
    # Chained on draws, q(z_1 | x) is drawn before z_2, which p(z_1 | z_2) hangs on: no closed
    # form given z_2.
    assert taken == ([(1,)] if kind == "samples" else [(1,), (2,)])


@each_guide
def test_sites_of_the_model(kind, double):
    case, p, q = toy(kind)
    check_pair(p, q, case.x)
    trace = poutine.trace(q).get_trace(case.x)
    order = [name for name in trace.nodes if name.startswith("z_")]
    assert order == (["z_1", "z_2"] if kind == "samples" else ["z_2", "z_1"])
    draws = q(case.x)
    assert [draw.shape for draw in draws] == [(3, 2), (3, 1)]


def test_on_means_the_layers_are_independent_and_no_network_sees_a_draw(double):
    case, _, q = toy("means")
    seen = []
    for posterior in q.posteriors:
        posterior.trunk.register_forward_hook(
            lambda module, inputs, output: seen.append(inputs[0])
        )
    with pyro.plate("particles", 7, dim=-2):
        trace = poutine.trace(q).get_trace(case.x)
    torch.testing.assert_close(seen[0], case.x)
    torch.testing.assert_close(seen[1], q.posteriors[0].mean(case.x))
    assert trace.nodes["z_1"]["value"].shape == (7, 3, 2)
    # The density of the draw is that of the distribution that it was drawn from.
    torch.testing.assert_close(trace.nodes["z_2"]["fn"].mean[0], q.posteriors[1].mean(seen[1]))


def test_the_merge_is_weighted_by_precisions(double):
    case, p, q = toy("ladder")
    trace = poutine.trace(q).get_trace(case.x)
    z2 = trace.nodes["z_2"]["value"]
    up, down = (
        q.posteriors[0](q.encoders[0](case.x)).base_dist,
        p.conditionals[0](z2).base_dist,
    )
    variance = 1 / (up.scale**-2 + down.scale**-2)
    merged = trace.nodes["z_1"]["fn"]
    torch.testing.assert_close(merged.variance, variance.expand(3, 2))
    torch.testing.assert_close(
        merged.mean, variance * (up.loc / up.scale**2 + down.loc / down.scale**2)
    )
    top = q.posteriors[1](q.encoders[1](q.encoders[0](case.x)))
    torch.testing.assert_close(trace.nodes["z_2"]["fn"].mean, top.mean)


# --- what the two halves of a ladder share


def test_shared_parameters_are_trained_once(double):
    case, p, q = toy("ladder")
    parameters = trained(p, q, case.x)
    assert len(parameters) == len({id(parameter) for parameter in parameters})
    shared = {id(parameter) for parameter in p.conditionals.parameters()}
    assert shared and shared <= {id(parameter) for parameter in q.parameters()}
    total = len(list(p.parameters())) + len(list(q.parameters()))
    assert len(parameters) == total - len(shared)


def test_svi_trains_shared_parameters_as_torch_does(double):
    """A parameter with two names in Pyro's store must not be updated twice in a step."""
    losses, states = [], []
    for pyros in (True, False):
        torch.manual_seed(0)
        pyro.clear_param_store()
        case, p, q = toy("ladder")
        torch.manual_seed(1)
        if pyros:
            svi = SVI(p, q, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
            losses.append([svi.step(case.x) for _ in range(5)])
        else:
            optimizer = torch.optim.Adam(trained(p, q, case.x), lr=0.01)
            losses.append([])
            for _ in range(5):
                loss = Trace_ELBO().differentiable_loss(p, q, case.x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
        states.append({**p.state_dict(), **q.state_dict()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])


# --- with networks


def pair(kind, name="Normal", sizes=(4, 3, 2), normalization=None):
    """Several layers on 16 pixels."""
    family = getattr(distributions, name, None) or getattr(dist, name)
    # Exponentials of draws of exponentials, and so on, would soon be out of range: tanh keeps
    # them in it.
    how = {"activation": nn.Tanh, "normalization": normalization}

    def conditional(given, hidden, size):
        return Conditional(family, MLP(given, hidden, **how), size)

    between = [
        conditional(above, [6], size) for size, above in zip(sizes, sizes[1:], strict=False)
    ]
    likelihood = Conditional(dist.Bernoulli, MLP(sizes[0], [8], **how), 16)
    method = "LadderVAE" if kind == "ladder" else "HierarchicalVAE"
    p = getattr(models, method)(default_prior(family, sizes[-1]), between, likelihood)
    below = (16, *sizes)
    if kind == "ladder":
        widths = (16, 8, 7, 6)
        encoders = [MLP(widths[i], [widths[i + 1]], **how) for i in range(len(sizes))]
        posteriors = [conditional(widths[i + 1], [], size) for i, size in enumerate(sizes)]
        return p, guides.LadderVAE(encoders, posteriors, p.conditionals)
    posteriors = [conditional(below[i], [8], size) for i, size in enumerate(sizes)]
    return p, guides.HierarchicalVAE(posteriors, chain=kind)


def pixels(num=60):
    random = torch.Generator().manual_seed(0)
    pattern = torch.bernoulli(torch.full((2, 16), 0.5), generator=random)
    rows = pattern[torch.randint(2, (num,), generator=random)]
    return (rows + torch.bernoulli(torch.full((num, 16), 0.1), generator=random)) % 2


CASES = [(kind, "Normal") for kind in GUIDES]
CASES += [("samples", family) for family in ("Gamma", "Dirichlet", "GumbelSoftmax", "Laplace")]
CASES += [("means", family) for family in ("Gamma", "Dirichlet", "Laplace")]
# The rejection samplers are not wholly reparameterized, as dreg needs.
CASES = [
    (*case, bound)
    for case in CASES
    for bound in BOUNDS
    if "dreg" not in bound or case[1] not in PARTLY
]


@pytest.mark.parametrize(("kind", "family", "bound"), CASES)
def test_every_family_trains_with_every_bound(kind, family, bound):
    p, q = pair(kind, family)
    x = pixels()
    before = evaluate.log_likelihood(p, q, x, num_particles=50, seed=0)
    options = {
        "lr": 0.02,
        "epochs": 5,
        "batch_size": 30,
        "seed": 0,
        "progress": False,
    }
    history = fit(*as_made(p, q), x, loss=BOUNDS[bound](), **options)
    assert history["loss"][-1] < history["loss"][0]
    after = evaluate.log_likelihood(p, q, x, num_particles=50, seed=0)
    assert after.mean() > before.mean()
    assert p(batch_size=5).shape == (5, 16)
    assert evaluate.sample(p, 5, mean=True, seed=0).shape == (5, 16)


def test_a_family_without_a_mean_cannot_pass_it_on():
    _, q = pair("means", "GumbelSoftmax")
    with pytest.raises(NotImplementedError, match="no mean in closed form"):
        q(pixels())


@each_guide
@pytest.mark.parametrize("bound", ["ELBO", "IWAE, dreg"])
def test_recorded_steps_are_the_eager_ones(kind, bound):
    p, q = pair(kind, sizes=(3, 2), normalization=nn.BatchNorm1d)
    assert_same_step(BOUNDS[bound](), p, q, pixels(6))


def test_a_compiled_ladder_trains_as_it_does_eagerly():
    steps = []
    for loss in (ELBO(), Compiled(ELBO(), backend="eager")):
        torch.manual_seed(0)
        p, q = pair("ladder", sizes=(3, 2))
        steps.append(
            fit(
                p, q, pixels(), loss=loss, epochs=3, batch_size=20, seed=0, progress=False
            ).step_losses
        )
    assert steps[0] == pytest.approx(steps[1], rel=1e-4)


@each_guide
def test_a_run_is_read_back(kind, tmp_path):
    p, q = pair(kind, normalization=nn.BatchNorm1d)
    x = pixels()
    history = fit(p, q, x, epochs=2, batch_size=20, folder=tmp_path / "run", progress=False)
    history.use("best", p, q)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and repr(run.guide) == repr(q)
    assert type(run.guide) is type(q) and getattr(run.guide, "chain", None) == getattr(
        q, "chain", None
    )
    for half, other in ((p, run.model), (q, run.guide)):
        for name, value in half.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    estimates = [
        evaluate.log_likelihood(*halves, x, num_particles=5, seed=0)
        for halves in ((p, q), run[:2])
    ]
    torch.testing.assert_close(*estimates)


def test_batch_normalization_warm_up_and_a_learned_prior():
    p, q = pair("ladder", normalization=nn.BatchNorm1d)
    p = models.LadderVAE(Prior(dist.Normal, 2), p.conditionals, p.likelihood)
    betas = []

    def warm_up(step):
        betas.append(min(1.0, step / 4))
        return betas[-1]

    x = pixels()
    before = [parameter.clone() for parameter in p.prior.parameters()]
    history = fit(
        p,
        q,
        x,
        schedules={"beta": warm_up},
        epochs=20,
        batch_size=30,
        lr=0.02,
        progress=False,
    )
    assert betas[:6] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert history["elbo"][-1] > history["elbo"][0]
    assert all(
        not torch.equal(*both) for both in zip(before, p.prior.parameters(), strict=True)
    )
    # One layer of statistics for both halves, moved by each run of the network.
    assert q.conditionals[0].trunk.layers[1] is p.conditionals[0].trunk.layers[1]


def test_images_and_one_layer():
    """With one layer, all three are the VAE."""
    x = pixels().reshape(-1, 1, 4, 4)
    likelihood = Conditional(dist.Bernoulli, MLP(2, [8]), (1, 4, 4))
    posterior = Conditional(dist.Normal, MLP((1, 4, 4), [8]), 2)
    vae = models.VAE(default_prior(dist.Normal, 2), likelihood), guides.VAE(posterior)
    ladder = guides.LadderVAE([nn.Flatten()], [posterior], [])
    for p, q in (
        (
            models.HierarchicalVAE(default_prior(dist.Normal, 2), [], likelihood),
            guides.HierarchicalVAE([posterior]),
        ),
        (models.LadderVAE(default_prior(dist.Normal, 2), [], likelihood), ladder),
    ):
        assert p.formula == "p(x, z_1) = p(x | z_1) p(z_1)" and q.formula == "q(z_1 | x)"
        estimates = [
            evaluate.elbo(*halves, x, num_particles=3, seed=0).elbo for halves in (vae, (p, q))
        ]
        torch.testing.assert_close(*estimates)


def test_formulas():
    p, q = pair("samples")
    assert p.formula == "p(x, z_1, z_2, z_3) = p(x | z_1) p(z_1 | z_2) p(z_2 | z_3) p(z_3)"
    assert q.formula == "q(z_1, z_2, z_3 | x) = q(z_1 | x) q(z_2 | z_1) q(z_3 | z_2)"
    assert (
        pair("means")[1].formula == "q(z_1, z_2, z_3 | x) = q(z_1 | x) q(z_2 | x) q(z_3 | x)"
    )
    _, q = pair("ladder")
    assert q.formula == "q(z_3, z_2, z_1 | x) = q(z_3 | x) q(z_2 | z_3, x) q(z_1 | z_2, x)"
    merged = (
        "posteriors.0 * conditionals.0: q(z_1 | z_2, x) ∝ Normal(loc, scale) of shape (4,)"
        " from MLP(8) * "
    )
    assert merged + "Normal(loc, scale) of shape (4,) from MLP(3 -> 6, Tanh)" in repr(q)
    assert (
        r"q(z_{1} \mid z_{2}, x) \propto" in q._repr_latex_()
        and r" \cdot " in q._repr_latex_()
    )
    assert r"p(z_{1} \mid z_{2}) = \mathrm" in p._repr_latex_()


def test_errors():
    likelihood, prior = (
        Conditional(dist.Bernoulli, MLP(4, [8]), 16),
        default_prior(dist.Normal, 2),
    )
    with pytest.raises(
        TypeError, match=r"conditionals must be a list of modules, .* got Normal"
    ):
        models.HierarchicalVAE(prior, Conditional(dist.Normal, MLP(2, [4]), 4), likelihood)
    with pytest.raises(TypeError, match="conditionals must be a list of modules"):
        models.LadderVAE(prior, [dist.Normal], likelihood)
    with pytest.raises(ValueError, match=r"posteriors must hold at least q\(z_1 \| x\)"):
        guides.HierarchicalVAE([])
    with pytest.raises(ValueError, match="chain must be 'samples' or 'means', got 'mean'"):
        guides.HierarchicalVAE([Conditional(dist.Normal, MLP(16, [8]), 2)], chain="mean")
    with pytest.raises(
        ValueError, match="encoders, posteriors and conditionals must have .* got 1, 1 and 1"
    ):
        guides.LadderVAE([nn.Identity()], [likelihood], [likelihood])
    p, q = pair("ladder", "Laplace")
    with pytest.raises(ValueError, match="experts must be one or more Normal"):
        q(pixels())
    (p, _), (_, q) = pair("samples"), pair("samples", sizes=(4, 3))
    with pytest.raises(PairError, match=r"only the model samples \['z_3'\]"):
        check_pair(p, q, pixels())
    with pytest.raises(
        ValueError, match=r"latent must be one of 'z_1', 'z_2', 'z_3', got 'z'"
    ):
        evaluate.decode(p, torch.zeros(5, 4))


# --- codes and active units


def noisy_chain():
    """q(z_1 | x) with much noise, three quarters of which q(z_2 | z_1) passes on."""
    return guides.HierarchicalVAE(
        [linear([[0.3, -0.2]], [0.5], [1.2]), linear([[0.9], [0.0]], [0.1, 0.2], [0.4, 0.6])]
    )


def test_activity_is_the_variance_of_posterior_means_without_the_noise_of_draws(double):
    q, num, draws = noisy_chain(), 20_000, 2
    x = torch.randn(num, 2)
    exact = {"z_1": (x @ torch.tensor([[0.3], [-0.2]])).var(0)}
    exact["z_2"] = torch.stack([0.9**2 * exact["z_1"][0], torch.zeros(())])
    found = evaluate.activity(q, x, num_particles=draws)
    assert list(found) == ["z_1", "z_2"]
    torch.testing.assert_close(found["z_1"], exact["z_1"])
    # Means m_i, and noise of the variance v / S on each: (m_i + e_i)^2 - s_i^2 / S against
    # m_i^2.
    v = (0.9 * 1.2) ** 2 / draws
    error = math.sqrt((4 * exact["z_2"][0] * v + 2 * v**2 + 2 * v**2 / (draws - 1)) / num)
    assert v > 20 * error  # what would be left without the correction
    assert abs(found["z_2"][0] - exact["z_2"][0]) < 4 * error
    assert abs(found["z_2"][1]) < 1e-12
    torch.testing.assert_close(
        evaluate.activity(q, x, site="z_2", num_particles=draws), found["z_2"]
    )


def test_active_units_by_layer(double):
    q, x = noisy_chain(), torch.randn(500, 2)
    units = evaluate.active_units(q, x)
    assert {name: part.tolist() for name, part in units.items()} == {
        "z_1": [True],
        "z_2": [True, False],
    }
    arrays = evaluate.active_units(q, x.numpy())
    assert all(isinstance(part, np.ndarray) for part in arrays.values())
    assert evaluate.active_units(q, x, site="z_2").tolist() == [True, False]
    assert evaluate.active_units(q, x, threshold=10.0)["z_2"].tolist() == [False, False]
    with pytest.raises(ValueError, match="num_particles must be at least 2"):
        evaluate.activity(q, x, num_particles=1)
    with pytest.raises(ValueError, match=r"site must be one of \['z_1', 'z_2'\], got 'z'"):
        evaluate.active_units(q, x, site="z")


@each_guide
def test_independent_layers_have_their_own_means(kind, double):
    case, _, q = toy(kind)
    means = {name: evaluate.embed(q, case.x, site=name) for name in ("z_1", "z_2")}
    exact = case.moments(q)[0].detach()
    error = (
        case.moments(q)[1].diagonal().detach().sqrt() / 10
    )  # of means over 100 draws, at most
    for name, columns in (("z_1", slice(0, 2)), ("z_2", slice(2, 3))):
        assert ((means[name] - exact[:, columns]).abs() < 4 * error[columns]).all()
        assert torch.equal(means[name], evaluate.embed(q, case.x, site=name)), (
            "the same at every call"
        )
    if kind == "means":
        torch.testing.assert_close(means["z_2"], exact[:, 2:], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="site must be one of"):
        evaluate.embed(q, case.x)


@each_guide
def test_codes_are_draws_of_the_marginal_posterior(kind, double):
    """A single draw of the layer below, shared by all draws, would lose its noise."""
    case, _, q = toy(kind)
    mean, covariance = (moment.detach() for moment in case.moments(q))
    for name, columns in (("z_1", slice(0, 2)), ("z_2", slice(2, 3))):
        draws = evaluate.embed(q, case.x, site=name, num_samples=20_000)
        assert_within(draws, mean[:, columns])
        spread = (draws - mean[:, columns]) ** 2
        assert_within(spread, covariance.diagonal()[columns].expand(3, -1))


@each_guide
def test_one_layer_fixed(kind, double):
    """E[x | z_1] is the likelihood's mean; given z_2, z_1 is sampled."""
    case, p, _ = toy(kind)
    z1 = torch.randn(4, 2)
    torch.testing.assert_close(
        evaluate.decode(p, z1, latent="z_1"), p.likelihood.mean(z1).detach()
    )
    z2 = torch.full((50_000, 1), 0.7)
    (a_weight, a, _), (w, b, _) = of(p.conditionals[0]), of(p.likelihood)
    exact = (w @ (a_weight[:, 0] * 0.7 + a) + b).detach()
    assert_within(evaluate.decode(p, z2, latent="z_2"), exact)


def test_the_picture_of_active_units():
    activities = {"z_1": torch.tensor([0.5, 0.002, 2.0]), "z_2": np.array([-0.001, 0.02])}
    figure = plot.active_units(activities)
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["z_1: 2 of 3 active", "z_2: 1 of 2 active"]
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, [2.0, 0.5, 0.002, 0.02, 1e-5], rtol=1e-6)
    assert [bar.get_alpha() for bar in ax.patches] == [None, None, 0.35, None, 0.35]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "3", "1", "2"]
    assert (
        plot.active_units(np.array([1.0, 0.1])).axes[0].get_legend().get_texts()[0].get_text()
        == "z: 2 of 2 active"
    )
    with pytest.raises(ValueError, match="activities must hold"):
        plot.active_units({})
