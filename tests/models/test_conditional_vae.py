"""The conditional VAE, against a linear Gaussian model and quadrature."""

import contextlib
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from tarspyro import Conditional, distributions, evaluate, fit, guides, load_run, models, plot
from tarspyro.data import Split, digits, join_quadrants, quadrants
from tarspyro.distributions import Prior, as_prior, default_prior, has_context
from tarspyro.infer import ELBO, IWAE, PairError, Renyi, check_pair, log_weights
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP
from tarspyro.training.batches import Batches

from ..infer.test_compiled import assert_same_step
from ..programs import assert_within

BOUNDS = {
    "ELBO": ELBO,
    "ELBO, 3 particles": lambda: ELBO(3),
    "ELBO, sampled": lambda: ELBO(analytic_kl=False),
    "IWAE": lambda: IWAE(3),
    "IWAE, dreg": lambda: IWAE(3, gradient="dreg"),
    "Renyi": lambda: Renyi(0.5, 3),
}
FAMILIES = {
    "Normal": dist.Normal,
    "Gamma": distributions.Gamma,
    "Dirichlet": distributions.Dirichlet,
    "GumbelSoftmax": distributions.GumbelSoftmax,
}
each_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
either_prior = pytest.mark.parametrize("conditional", [True, False], ids=["p(z | y)", "p(z)"])


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Exact:
    r"""z | y ~ N(Ay, I_2), x | z, y ~ N(Wz + By, s^2 I_5): all in closed form given y.

    .. math:: p(x \mid y) = N(x; (WA + B)y, WW^T + s^2 I)
    """

    def __init__(self, conditional=True, num=40, shift=0.0, widen=1.0):
        random = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
        self.weight, self.direct, self.map, self.scale = (
            draw(5, 2),
            draw(5, 3),
            draw(2, 3) * conditional,
            0.6,
        )
        self.y = draw(num, 3)
        z = self.y @ self.map.T + draw(num, 2)
        self.x = z @ self.weight.T + self.y @ self.direct.T + self.scale * draw(num, 5)
        likelihood = Conditional(dist.Normal, MLP([2, 3], []), 5, scale=self.scale)
        prior = default_prior(dist.Normal, 2)
        if conditional:
            prior = Conditional(dist.Normal, MLP(3, []), 2, scale=1.0)
            self.set(prior, self.map)
        self.set(likelihood, torch.cat([self.weight, self.direct], 1))
        self.model = models.ConditionalVAE(prior, likelihood)
        self.covariance = (
            torch.eye(2) + self.weight.T @ self.weight / self.scale**2
        ).inverse()
        from_x = self.covariance @ self.weight.T / self.scale**2
        from_y = self.covariance @ self.map - from_x @ self.direct
        self.gain = torch.cat([from_x, from_y], 1)
        self.mean_field = Conditional(
            dist.Normal,
            MLP([5, 3], []),
            2,
            scale=widen * self.covariance.diagonal().sqrt().clone(),
        )
        self.set(self.mean_field, self.gain, shift)
        self.guide = guides.ConditionalVAE(self.mean_field)

    @staticmethod
    def set(conditional, weight, bias=0.0):
        with torch.no_grad():
            conditional.heads["loc"].weight.copy_(weight)
            conditional.heads["loc"].bias.fill_(bias)

    def posterior(self, x, y):
        return dist.MultivariateNormal(torch.cat([x, y], -1) @ self.gain.T, self.covariance)

    def log_likelihood(self):
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(5)
        return dist.MultivariateNormal(self.y @ self.mean.T, covariance).log_prob(self.x)

    @property
    def mean(self):
        return self.weight @ self.map + self.direct

    def terms(self):
        """The reconstruction and the KL of each data point under the mean-field guide,
        differentiable.
        """
        q, p = self.mean_field(self.x, self.y).base_dist, self.model.prior(self.y).base_dist
        head = self.model.likelihood.heads["loc"]
        weight, direct = head.weight[:, :2], head.weight[:, 2:]
        error = (self.x - q.loc @ weight.T - self.y @ direct.T - head.bias).square().sum(-1)
        error = error + (q.variance @ weight.square().T).sum(-1)
        reconstruction = -error / (2 * self.scale**2) - 2.5 * math.log(
            2 * math.pi * self.scale**2
        )
        kl = 0.5 * ((q.loc - p.loc).square() + q.variance - 1 - q.variance.log()).sum(-1)
        return reconstruction, kl

    def parameters(self):
        return [*self.model.parameters(), *self.guide.parameters()]


# --- what the pair computes


# With a closed-form KL the other term alone is sampled, so the first two bounds are noisy
# here.
@pytest.mark.parametrize("bound", list(BOUNDS.values())[2:], ids=list(BOUNDS)[2:])
@either_prior
def test_with_the_exact_posterior_every_bound_is_log_p_of_x_given_y(
    double, bound, conditional
):
    toy = Exact(conditional)
    loss = bound().loss(toy.model, guides.ConditionalVAE(toy.posterior), toy.x, toy.y)
    assert loss == pytest.approx(-toy.log_likelihood().sum().item(), rel=1e-9)


@pytest.mark.parametrize("num_particles", [1, 3])
@either_prior
def test_elbo_and_gradient_are_the_closed_forms(double, num_particles, conditional):
    """Several draws of a data point share its y and its KL, which has one row for each data
    point.
    """
    toy = Exact(conditional, num=10, shift=0.2, widen=1.3)
    reconstruction, kl = toy.terms()
    exact = torch.autograd.grad((reconstruction - kl).sum(), toy.parameters())
    values, draws = [], []
    for _ in range(300):
        loss, terms = ELBO(num_particles).loss_and_terms(toy.model, toy.guide, toy.x, toy.y)
        torch.testing.assert_close(terms["kl"], kl.sum().detach())
        values.append(terms["reconstruction"])
        draws.append(
            torch.cat([-g.flatten() for g in torch.autograd.grad(loss, toy.parameters())])
        )
    assert_within(torch.stack(values), reconstruction.sum().detach(), "reconstruction")
    assert_within(torch.stack(draws), torch.cat([g.flatten() for g in exact]), "gradient")


def test_pyro_s_own_bound_agrees(double):
    toy = Exact()
    guide = guides.ConditionalVAE(toy.posterior)
    assert Trace_ELBO().loss(toy.model, guide, toy.x, toy.y) == pytest.approx(
        -toy.log_likelihood().sum().item()
    )


@either_prior
def test_conditional_log_likelihood_is_exact_with_the_exact_posterior(double, conditional):
    toy = Exact(conditional)
    found = evaluate.conditional_log_likelihood(
        toy.model, guides.ConditionalVAE(toy.posterior), toy.x, toy.y, num_particles=2
    )
    torch.testing.assert_close(found, toy.log_likelihood())


@either_prior
def test_conditional_log_likelihood_by_importance_sampling(double, conditional):
    toy = Exact(conditional, shift=0.2, widen=1.3)
    found = evaluate.conditional_log_likelihood(
        toy.model, toy.guide, toy.x, toy.y, num_particles=5000, errors=True, seed=0
    )
    off = (found.log_likelihood - toy.log_likelihood()).abs()
    assert (off < 4 * found.standard_error).all() and off.max() < 0.2
    other = evaluate.log_likelihood(
        toy.model, toy.guide, (toy.x, toy.y), num_particles=5000, seed=0
    )
    torch.testing.assert_close(found.log_likelihood, other)
    # y matters: given the conditions of other rows the data is less likely
    wrong = evaluate.conditional_log_likelihood(
        toy.model, toy.guide, toy.x, toy.y.flip(0), num_particles=100
    )
    assert wrong.mean() < found.log_likelihood.mean() - 1


def test_monte_carlo_from_the_prior_agrees_and_is_noisier(double):
    """With p(z | y) as the guide it is the Monte Carlo estimate of Sohn et al., with the same
    mean.
    """
    toy = Exact(num=10)
    sampled = {
        name: evaluate.conditional_log_likelihood(
            toy.model, guide, toy.x, toy.y, num_particles=20_000, errors=True, seed=0
        )
        for name, guide in {
            "prior": guides.ConditionalVAE(lambda x, y: toy.model.prior(y)),
            "posterior": toy.guide,
        }.items()
    }
    for found in sampled.values():
        assert (
            (found.log_likelihood - toy.log_likelihood()).abs() < 4 * found.standard_error
        ).all()
    assert (
        sampled["prior"].standard_error.mean() > 2 * sampled["posterior"].standard_error.mean()
    )


def test_reconstruction_is_its_closed_form_and_no_likelihood(double):
    """E_q[log p(x | z, y)], a conditional likelihood in Tars, exceeds log p(x | y) by about
    the KL.
    """
    toy = Exact(num=20, shift=0.2, widen=1.3)
    reconstruction, kl = (term.detach() for term in toy.terms())
    draws = torch.stack(
        [
            evaluate.reconstruction(toy.model, toy.guide, (toy.x, toy.y), num_particles=5)
            for _ in range(200)
        ]
    )
    assert_within(draws, reconstruction)
    assert (reconstruction > toy.log_likelihood()).all() and (
        reconstruction - kl < toy.log_likelihood()
    ).all()


def test_annealed_importance_sampling_takes_the_condition(double):
    toy = Exact(num=3, shift=0.2, widen=1.3)
    found = evaluate.annealed_log_likelihood(
        toy.model, toy.guide, (toy.x, toy.y), num_chains=100, num_steps=50, errors=True, seed=0
    )
    assert (
        (found.log_likelihood - toy.log_likelihood()).abs() < 4 * found.standard_error
    ).all()
    assert found.standard_error.max() < 0.15


@pytest.mark.parametrize(
    "family",
    [distributions.Gamma, distributions.Dirichlet],
    ids=lambda family: family.__name__,
)
def test_other_families_against_quadrature(double, family):
    """With one latent dimension, p(x | y) is a sum over a grid."""
    size = 1 if family is distributions.Gamma else 2
    p = models.ConditionalVAE(
        Conditional(family, MLP(3, []), size),
        Conditional(dist.Normal, MLP([size, 3], [4]), 2, scale=0.7),
    )
    q = guides.ConditionalVAE(lambda x, y: p.prior(y))  # with bounded weights
    y = 0.5 * torch.randn(4, 3)
    x = p(y=y).detach()
    with torch.no_grad():
        if size == 1:  # z = exp(t)
            t = torch.linspace(-40, 8, 40_001)
            z, log_jacobian = t.exp().unsqueeze(-1), t
        else:  # z = (sigmoid(t), sigmoid(-t))
            t = torch.linspace(-40, 40, 40_001)
            log_z = torch.stack(
                [-torch.nn.functional.softplus(-t), -torch.nn.functional.softplus(t)], -1
            )
            z, log_jacobian = log_z.exp(), log_z.sum(-1)
        z = z.unsqueeze(1)
        log_joint = p.prior(y).log_prob(z) + p.likelihood(z.expand(-1, 4, -1), y).log_prob(x)
        exact = (log_joint + log_jacobian.unsqueeze(-1)).logsumexp(0) + (t[1] - t[0]).log()
    found = evaluate.conditional_log_likelihood(
        p, q, x, y, num_particles=20_000, errors=True, seed=0
    )
    assert ((found.log_likelihood - exact).abs() < 4 * found.standard_error).all()
    assert found.standard_error.max() < 0.05


def test_a_weight_belongs_to_one_data_point_and_the_loss_to_all(double):
    """The loss per data point is a mean over all rows, including the last, shorter batch."""
    toy = Exact(num=25)
    guide = guides.ConditionalVAE(toy.posterior)
    assert log_weights(toy.model, guide, toy.x, toy.y, num_particles=7).shape == (7, 25)
    history = fit(
        toy.model,
        guide,
        (toy.x, toy.y),
        loss=ELBO(analytic_kl=False),
        lr=0.0,
        epochs=1,
        batch_size=10,
        progress=False,
    )
    assert history["loss"][0] == pytest.approx(-toy.log_likelihood().mean().item(), rel=1e-9)


# --- any family, any bound


def pair(family=dist.Normal, conditional=True, latent=3):
    prior = (
        Conditional(family, MLP(10, [8]), latent)
        if conditional
        else default_prior(family, latent)
    )
    p = models.ConditionalVAE(prior, Conditional(dist.Bernoulli, MLP([latent, 10], [16]), 64))
    return p, guides.ConditionalVAE(Conditional(family, MLP([64, 10], [16]), latent))


def binary():
    split = digits().train[:200].one_hot()
    return Split(split.x.round(), split.y)


@each_bound
@each_family
def test_trains_and_generates(bound, family):
    p, q = pair(family)
    data = binary()
    check_pair(p, q, data.x, data.y)
    partly = bound is BOUNDS["IWAE, dreg"] and family in (
        distributions.Gamma,
        distributions.Dirichlet,
    )
    with (
        pytest.raises(PairError, match="reparameterized")
        if partly
        else contextlib.nullcontext()
    ):
        history = fit(
            p,
            q,
            data,
            loss=bound(),
            epochs=3,
            lr=1e-2,
            batch_size=50,
            seed=0,
            progress=False,
        )
        assert history["loss"][-1] < history["loss"][0]
    scores = evaluate.conditional_log_likelihood(
        p, q, data.x[:10], data.y[:10], num_particles=10
    )
    assert scores.shape == (10,) and scores.isfinite().all()
    assert p(y=torch.eye(10)).shape == (10, 64)


@each_bound
@either_prior
def test_recorded_steps_are_the_eager_ones(bound, conditional):
    p, q = pair(conditional=conditional)
    data = binary()
    assert_same_step(bound(), p, q, data.x[:6], data.y[:6])


@pytest.mark.parametrize("family", list(FAMILIES.values())[1:], ids=list(FAMILIES)[1:])
def test_recorded_steps_of_other_families(family):
    p, q = pair(family)
    data = binary()
    assert_same_step(IWAE(3), p, q, data.x[:6], data.y[:6])


@either_prior
def test_run_folders_restore_the_pair(tmp_path, conditional):
    p, q = pair(conditional=conditional)
    data = binary()
    fit(p, q, data, epochs=1, folder=tmp_path / "run", seed=0, progress=False)
    run = load_run(tmp_path / "run")
    assert repr(run.model) == repr(p) and repr(run.guide) == repr(q)
    scores = [
        evaluate.conditional_log_likelihood(
            *halves, data.x[:20], data.y[:20], num_particles=5, seed=0
        )
        for halves in ((p, q), (run.model, run.guide))
    ]
    assert torch.equal(*scores)
    assert torch.equal(
        evaluate.sample(p, 10, given={"y": torch.eye(10)}, seed=0),
        evaluate.sample(run.model, 10, given={"y": torch.eye(10)}, seed=0),
    )


# --- the formula


def test_formulas_say_whether_the_prior_depends_on_y():
    p, q = pair()
    assert p.formula == "p(x, z | y) = p(x | z, y) p(z | y)" and q.formula == "q(z | x, y)"
    assert p.latex == r"p(x, z \mid y) = p(x \mid z, y) \, p(z \mid y)"
    plain, _ = pair(conditional=False)
    assert plain.formula == "p(x, z | y) = p(x | z, y) p(z)"
    assert "prior: p(z) = Normal(loc=0, scale=1)" in repr(
        plain
    ) and "prior: p(z | y) = Normal(loc, scale)" in repr(p)


def test_has_context():
    assert not has_context(as_prior(dist.Normal(0.0, 1.0)))
    assert not has_context(Prior(dist.Normal, 2))  # learned, and still the same for every y
    assert has_context(Conditional(dist.Normal, MLP(3, []), 2)) and has_context(
        lambda y: dist.Normal(y, 1.0)
    )


# --- generation


def test_generation_follows_each_row_of_y(double):
    toy = Exact()
    y = torch.eye(3)
    draws = torch.stack([toy.model(y=y) for _ in range(2000)]).detach()
    assert_within(draws, y @ toy.mean.T, "the mean of x given y")
    covariance = toy.weight @ toy.weight.T + toy.scale**2 * torch.eye(5)
    centred = draws - y @ toy.mean.T
    assert_within(
        centred.unsqueeze(-1) * centred.unsqueeze(-2),
        covariance.expand(3, 5, 5),
        "the covariance",
    )


def test_one_row_of_y_stands_for_a_batch(double):
    toy = Exact()
    y = toy.y[:1]
    assert toy.model(y=y, batch_size=4).shape == (4, 5) and toy.model(y=y).shape == (1, 5)
    draws = torch.stack([toy.model(y=y, batch_size=2) for _ in range(2000)]).detach()
    assert_within(draws, (y @ toy.mean.T).expand(2, 5))
    assert (draws[:, 0] != draws[:, 1]).all()  # each has its own z


def test_sample_and_decode_are_given_y(double):
    toy = Exact()
    y = torch.eye(3)
    z = torch.randn(3, 2)
    expected = z @ toy.weight.T + y @ toy.direct.T
    torch.testing.assert_close(evaluate.decode(toy.model, z, given={"y": y}), expected)
    torch.testing.assert_close(
        evaluate.decode(toy.model, z, given={"y": y[:1].numpy()}),
        z @ toy.weight.T + toy.direct[:, 0],
    )
    array = evaluate.decode(toy.model, z.numpy(), given={"y": y.numpy()})
    np.testing.assert_allclose(array, expected)
    draws = evaluate.sample(toy.model, 3000, given={"y": y[1:2]}, seed=0)
    assert_within(draws.detach(), toy.mean[:, 1])
    means = evaluate.sample(toy.model, 3, given={"y": y}, mean=True, seed=0)
    codes = evaluate.sample(toy.model, 3, given={"y": y}, site="z", seed=0)
    torch.testing.assert_close(means, codes @ toy.weight.T + y @ toy.direct.T)
    for function, first in ((evaluate.sample, 4), (evaluate.decode, torch.zeros(4, 2))):
        with pytest.raises(
            ValueError, match=r"given\['y'\] must have 4 rows or one row for all, got 3"
        ):
            function(toy.model, first, given={"y": y})


def test_embedding_and_reconstructing_take_both_parts(double):
    toy = Exact(num=5)
    torch.testing.assert_close(
        evaluate.embed(toy.guide, (toy.x, toy.y)), torch.cat([toy.x, toy.y], 1) @ toy.gain.T
    )
    assert evaluate.reconstruct(toy.model, toy.guide, (toy.x, toy.y)).shape == (5, 5)


@either_prior
def test_pictures_are_given_y(conditional):
    p, q = pair(conditional=conditional, latent=2)
    data = binary()
    y = torch.eye(10)
    for figure in (
        plot.samples(p, num=10, given={"y": y}),
        plot.manifold(p, given={"y": y[3:4]}, num=3),
        plot.traversal(p, given={"y": y[3:4]}, num=3),
        plot.reconstructions(p, q, data, num=4),
        plot.latents(q, data),
    ):
        figure.canvas.draw()
    with pytest.raises(ValueError, match="y must be given"):
        plot.samples(p)


# --- conditions


def test_a_missing_condition_is_named():
    p, q = pair()
    for call in (p, lambda: p(batch_size=3), lambda: evaluate.sample(p, 3)):
        with pytest.raises(
            ValueError, match=r"y must be given.* ConditionalVAE has no .*\(x, y\)"
        ):
            call()
    with pytest.raises(ValueError, match="because ConditionalGAN has no distribution of y"):
        models.ConditionalGAN(p.prior, p.likelihood)()
    with pytest.raises(InputError, match="y must be given"):
        fit(p, q, binary().x, progress=False)


@pytest.mark.parametrize("rows", [10, 20])
def test_integer_labels_are_refused(rows):
    """Ten labels would be taken for one vector of ten numbers, shared by all data points."""
    p, q = pair()
    x, labels = binary().x[:rows], digits().train.y[:rows]
    with pytest.raises(
        InputError,
        match=rf"got torch.int64 of shape \({rows},\): give labels as one-hot vectors",
    ):
        fit(p, q, (x, labels), progress=False)
    with pytest.raises(ValueError, match="one-hot"):
        p(y=labels)
    fit(p, q, Split(x, labels).one_hot(10), epochs=1, progress=False)


def test_one_hot():
    data = digits()
    encoded = data.one_hot()
    for part, labels in ((encoded.train, data.train.y), (encoded.test, data.test.y)):
        assert part.y.shape == (len(labels), 10) and torch.equal(part.y.argmax(1), labels)
        assert torch.equal(part.y.sum(1), torch.ones(len(labels)))
    assert torch.equal(encoded.train.x, data.train.x) and encoded.validation is None
    split = Split(torch.zeros(3, 2), torch.tensor([0, 2, 1]))
    assert split.one_hot(4).y.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    with pytest.raises(
        ValueError, match="num_classes is 2, for labels from 0 to 1, but they are from 0 to 2"
    ):
        split.one_hot(2)
    with pytest.raises(ValueError, match=r"needs integer labels y of shape \(N,\), got none"):
        Split(torch.zeros(3, 2)).one_hot()
    with pytest.raises(ValueError, match=r"got torch.float32 of shape \(3, 4\)"):
        split.one_hot(4).one_hot()


def test_shuffling_keeps_data_and_condition_together():
    x = torch.arange(100.0).reshape(100, 1)
    batches = Batches((x, 10 * x), pair()[0], 7, torch.device("cpu"))
    rows = [torch.cat(both, 1) for both, _ in batches.epoch(torch.Generator().manual_seed(0))]
    seen = torch.cat(rows)
    assert torch.equal(seen[:, 1], 10 * seen[:, 0]) and not torch.equal(seen[:, 0], x[:, 0])
    assert torch.equal(seen[:, 0].sort().values, x[:, 0])


def test_an_observed_variable_is_not_a_condition(double):
    def joint(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 3, 3**-0.5))

    x, y = torch.randn(2, 5)
    with pytest.raises(
        PairError, match="joint observes y at the site 'y', so that its weights are those of p"
    ):
        evaluate.conditional_log_likelihood(joint, guide, x, y)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, []), 5))
    q = guides.VAE(Conditional(dist.Normal, MLP(5, []), 2))
    with pytest.raises(ValueError, match="data has 2 parts but models.VAE takes 1"):
        evaluate.conditional_log_likelihood(p, q, torch.randn(5, 5), torch.randn(5, 3))


def test_the_check_of_the_condition_leaves_the_random_state():
    p, q = pair()
    data = binary()[:5]
    torch.manual_seed(3)
    one = evaluate.conditional_log_likelihood(p, q, data.x, data.y, num_particles=3)
    torch.manual_seed(3)
    assert torch.equal(one, evaluate.log_likelihood(p, q, (data.x, data.y), num_particles=3))
    grey = digits().test.one_hot()[:5]
    assert evaluate.conditional_log_likelihood(
        p, q, grey.x, grey.y, num_particles=3, binarize=True
    ).shape == (5,)
    with pytest.raises(InputError, match="grey values"):
        evaluate.conditional_log_likelihood(p, q, grey.x, grey.y)


# --- quadrants


@pytest.mark.parametrize("given", [1, 2, 3])
def test_quadrants_are_these(given):
    image = torch.rand(2, 1, 28, 28)
    parts = {
        "lower left": image[:, 0, 14:, :14],
        "upper left": image[:, 0, :14, :14],
        "upper right": image[:, 0, :14, 14:],
        "lower right": image[:, 0, 14:, 14:],
    }
    flat = [part.flatten(1) for part in parts.values()]
    for x in (image, image.flatten(1)):
        missing, known = quadrants(x, given)
        assert torch.equal(known, torch.cat(flat[:given], 1)) and torch.equal(
            missing, torch.cat(flat[given:], 1)
        )
        assert torch.equal(join_quadrants(missing, known), image.flatten(1))


def test_quadrants_reject_invalid_arguments():
    for given in (0, 4, 1.5):
        with pytest.raises(
            (ValueError, TypeError),
            match="given must be (between 1 and 3|a whole number), got",
        ):
            quadrants(torch.zeros(2, 16), given)
    for size in (9, 8, 560):
        with pytest.raises(
            ValueError, match=f"square images with an even side, got images of {size} pixels"
        ):
            quadrants(torch.zeros(2, size), 1)


def test_quadrants_are_completed_better_than_without_them():
    """Given three quadrants, the fourth is more likely than under a model whose inputs are
    zeros.
    """
    train, test = (quadrants(part.x.round(), 3) for part in (digits().train, digits().test))
    scores = []
    for use in (1.0, 0.0):
        torch.manual_seed(0)
        p = models.ConditionalVAE(
            Conditional(dist.Normal, MLP(48, [32]), 4),
            Conditional(dist.Bernoulli, MLP([4, 48], [32]), 16),
        )
        q = guides.ConditionalVAE(Conditional(dist.Normal, MLP([16, 48], [32]), 4))
        fit(
            p,
            q,
            (train[0], use * train[1]),
            epochs=10,
            seed=0,
            lr=3e-3,
            progress=False,
        )
        scores.append(
            evaluate.conditional_log_likelihood(
                p, q, test[0], use * test[1], num_particles=50, seed=0
            )
        )
    gain = scores[0] - scores[1]
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5
