"""``guides.auto``: exact posteriors in programs of every structure, and what it reads of them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from torch import nn
from torch.distributions import biject_to

from tarspyro import evaluate, fit, guides, load_run, models
from tarspyro.conditional import Conditional
from tarspyro.distributions import PowerSpherical, VonMisesFisher, default_prior
from tarspyro.infer import ELBO, IWAE, Compiled, PairError, check_pair, log_weights
from tarspyro.nn import MLP

from .. import pyro_programs as programs

S = 0.5  # The standard deviation of observations.


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


def set_head(guide, site, **values):
    """Sets the weight and the bias of a linear posterior's heads."""
    conditional = guide.posterior(site).conditional
    with torch.no_grad():
        for name, (weight, bias) in values.items():
            layers = conditional.heads[name].modules()
            linear = next(layer for layer in layers if isinstance(layer, nn.Linear))
            linear.weight.copy_(torch.as_tensor(weight))
            linear.bias.copy_(torch.as_tensor(bias))


def points(x):
    """p(x) = N(0, 1 + S^2) for each row."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, S), obs=x[:, 0])


def evidence_of_points(x):
    return dist.Normal(0.0, math.sqrt(1 + S**2)).log_prob(x[:, 0])


def exact_guide(model, x, **options):
    guide = guides.auto(model, nn.Identity(), x, **options)
    scale = 0.5 * math.log(S**2 / (1 + S**2))
    set_head(guide, "z", loc=([[1 / (1 + S**2)]], [0.0]), scale=([[0.0]], [scale]))
    return guide


@pytest.mark.parametrize("structure", ["mean-field", "model"])
def test_the_exact_posterior_has_constant_weights(structure):
    x = normal(5, 1)
    guide = exact_guide(points, x, structure=structure)
    for rows in (x, normal(9, 1, seed=1)):  # of another number of data points too
        weights = log_weights(points, guide, rows, num_particles=3)
        assert torch.allclose(weights, evidence_of_points(rows).expand(3, -1))


def test_rows_of_a_subsampled_plate_get_their_own_features():
    x = normal(8, 1)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, S), obs=x[rows, 0])

    guide = exact_guide(model, x)
    trace = poutine.trace(guide).get_trace(x)
    rows = trace.nodes["data"]["value"]
    with poutine.replay(trace=trace):
        model_trace = poutine.trace(model).get_trace(x)
    found = model_trace.log_prob_sum() - trace.log_prob_sum()
    assert torch.allclose(found, 8 / 3 * evidence_of_points(x[rows]).sum())


def test_a_batch_of_more_data_has_the_scale_of_the_model():
    x = normal(4, 1)

    def model(x):
        with pyro.plate("data", 100, subsample=x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, S), obs=x[:, 0])

    guide = exact_guide(model, x)
    x = normal(6, 1, seed=1)
    assert ELBO(analytic_kl=False).loss(model, guide, x) == pytest.approx(
        -100 / 6 * evidence_of_points(x).sum().item()
    )


def test_a_group_sees_the_mean_of_the_features_of_its_members():
    """u | x has the mean of x as its statistic, so the exact posterior is in the family."""
    members = 4

    def model(x):
        with pyro.plate("groups", len(x), dim=-2):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with pyro.plate("members", members, dim=-1):
                pyro.sample("x", dist.Normal(u, S), obs=x[..., 0])

    x = normal(3, members, 1)
    guide = guides.auto(model, nn.Identity(), x)
    share = members / (members + S**2)
    scale = 0.5 * math.log(S**2 / (members + S**2))
    set_head(guide, "u", loc=([[share]], [0.0]), scale=([[0.0]], [scale]))
    covariance = torch.ones(members, members) + S**2 * torch.eye(members)
    law = dist.MultivariateNormal(torch.zeros(members), covariance)
    weights = log_weights(model, guide, x, num_particles=2)
    assert torch.allclose(weights, law.log_prob(x[..., 0]).expand(2, 3))


def two_classes(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("x", dist.Normal(2.0 * y, 1.0), obs=x[:, 0])


@pytest.mark.parametrize("enumerate", [True, False])
def test_discrete_variables_are_summed_out_or_drawn(enumerate):
    """The log odds of two Normals of one scale are linear: 2 x - 2 + log(0.7 / 0.3)."""
    x = normal(6, 1)
    guide = guides.auto(two_classes, nn.Identity(), x, enumerate=enumerate)
    odds = math.log(0.7 / 0.3) - 2
    set_head(guide, "y", logits=([[0.0], [2.0]], [0.0, odds]))
    classes = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([0.0, 2.0]), 1.0)
    )
    truth = classes.log_prob(x[:, 0]).sum().item()
    assert ELBO(analytic_kl=False).loss(two_classes, guide, x) == pytest.approx(-truth)
    trace = poutine.trace(guide).get_trace(x)
    assert ("enumerate" in trace.nodes["y"]["infer"]) == enumerate


def test_variables_that_the_model_sums_out_are_left_to_it():
    x = normal(6, 1)

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            law = dist.Categorical(torch.tensor([0.3, 0.7]))
            y = pyro.sample("y", law, infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc + y, 1.0), obs=x[:, 0])

    guide = guides.auto(model, None, x)
    assert guide.sites == ["loc"]

    def by_hand(x):
        pyro.sample("loc", guide.posterior("loc").conditional())

    bound = TraceEnum_ELBO(max_plate_nesting=1)
    losses = []
    for each in (guide, by_hand):
        pyro.set_rng_seed(0)
        losses.append(bound.loss(model, each, x))
    assert losses[0] == pytest.approx(losses[1])


def test_values_that_the_prior_excludes_are_excluded():
    pair = programs.attend_infer_repeat()
    guide = guides.auto(pair.model, MLP(5, [4]), *pair.args, structure="model")
    for _ in range(5):
        trace = poutine.trace(guide).get_trace(*pair.args)
        first = trace.nodes["z_pres_0"]["value"]
        second = trace.nodes["z_pres_1"]["value"]
        assert not bool(((first == 0) & (second == 1)).any())


PROGRAMS = {
    "VAE": (programs.vae, lambda: MLP(5, [4])),
    "conditional VAE": (programs.conditional_vae, lambda: MLP([6, 6], [4])),
    "M2": (programs.m2_summed_in_the_guide, lambda: MLP(5, [4])),
    "deep Markov model": (programs.deep_markov_model, lambda: MLP((4, 3), [4])),
    "deep Markov model, masked": (
        lambda: programs.deep_markov_model(mask_by_handler=True),
        lambda: MLP((4, 3), [4]),
    ),
    "deep Markov model, annealed": (
        lambda: programs.deep_markov_model(0.3),
        lambda: MLP((4, 3), [4]),
    ),
    "AIR": (programs.attend_infer_repeat, lambda: MLP(5, [4])),
    "sparse gamma DEF": (programs.sparse_gamma_def, lambda: MLP(10, [4])),
    "ProdLDA": (programs.prodlda, lambda: MLP(5, [4])),
    "scANVI": (programs.scanvi_unlabelled, lambda: MLP(4, [4])),
    "Bayesian regression": (programs.bayesian_regression, lambda: None),
    "hierarchical regression": (programs.hierarchical_regression, lambda: None),
}


def plates_of(site):
    return {(frame.name, frame.size) for frame in site["cond_indep_stack"]}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("structure", ["mean-field", "model"])
def test_sites_are_those_of_the_guide_by_hand(name, structure):
    build, trunk = PROGRAMS[name]
    pair = build()
    guide = guides.auto(pair.model, trunk(), *pair.args, structure=structure)
    check_pair(pair.model, guide, *pair.args)
    assert math.isfinite(ELBO().loss(pair.model, guide, *pair.args))

    found = poutine.trace(guide).get_trace(*pair.args)
    by_hand = poutine.trace(pair.guide).get_trace(*pair.args)
    found.compute_log_prob()
    for site, node in found.nodes.items():
        if site not in guide.sites:
            continue
        other = by_hand.nodes[site]
        assert node["value"].shape == other["value"].shape
        assert node["scale"] == other["scale"]
        assert plates_of(node) == plates_of(other)


@pytest.mark.parametrize("by_handler", [False, True])
def test_steps_after_the_end_of_a_sequence_cost_nothing(by_handler):
    pair = programs.deep_markov_model(mask_by_handler=by_handler)
    _, _, mask, _ = pair.args
    guide = guides.auto(pair.model, MLP((4, 3), [4]), *pair.args, structure="model")
    trace = poutine.trace(guide).get_trace(*pair.args)
    trace.compute_log_prob()
    for t in range(1, 5):
        density = trace.nodes[f"z_{t}"]["log_prob"]
        assert torch.equal(density != 0, mask[:, t - 1] == 1)


def test_every_index_of_a_plate_without_data_has_its_own_posterior():
    """Sites in plates of components, beside the data and around them."""

    def model(x):
        with pyro.plate("components", 3, dim=-2):
            loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("parts", 4, dim=-2):
                z = pyro.sample("z", dist.Normal(loc[..., :1, :, 0], 1.0))
            mean = z.sum(-2, keepdim=True)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, 0])

    x = normal(5, 1)
    guide = guides.auto(model, nn.Identity(), x, structure="model")
    assert guide.formula == "q(loc, z | x) = q(loc) q(z | x, loc)"
    for parameter in guide.parameters():
        nn.init.normal_(parameter)
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()

    prior = guide.posterior("loc").conditional
    assert trace.nodes["loc"]["value"].shape == (3, 1, 2)
    law = prior().base_dist  # of shape (3, 2)
    loc = trace.nodes["loc"]["value"]
    expected = law.log_prob(loc[:, 0]).sum(-1, keepdim=True)
    assert torch.allclose(trace.nodes["loc"]["log_prob"], expected)

    conditional = guide.posterior("z").conditional
    context = loc.flatten().expand(5, -1)  # the locations of all components
    law = conditional(x, context).base_dist  # of shape (5, 4)
    expected = law.log_prob(trace.nodes["z"]["value"].T).T
    assert torch.allclose(trace.nodes["z"]["log_prob"], expected)
    assert ELBO(num_particles=3).loss(model, guide, x) > 0


def test_the_rows_of_a_subsampled_plate_of_components_have_their_parameters():
    def model(x):
        with pyro.plate("components", 6, subsample_size=2):
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc.sum(-1, keepdim=True), 1.0), obs=x[:, 0])

    guide = guides.auto(model, None, normal(5, 1))
    with torch.no_grad():
        guide.posterior("loc").conditional.free_loc.copy_(100 * torch.arange(6))
    trace = poutine.trace(guide).get_trace(normal(5, 1))
    rows, loc = (trace.nodes[name]["value"] for name in ("components", "loc"))
    assert torch.equal((loc / 100).round().long(), rows)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Uniform(1.0, 3.0),
        dist.HalfCauchy(2.0),
        dist.Pareto(2.0, 1.0),
        dist.Laplace(0.0, 1.0),
        dist.Kumaraswamy(2.0, 3.0),
        dist.Uniform(torch.tensor([-1.0, 5.0]), torch.tensor([1.0, 6.0])).to_event(1),
        dist.LKJCholesky(3, 1.0),
        dist.LogisticNormal(torch.zeros(2), torch.ones(2)),
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.Gamma(2.0, 1.0).expand([3]).to_event(1),
        dist.Dirichlet(torch.ones(3)),
        dist.Exponential(1.0),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
        ),
        dist.Poisson(3.0),
        dist.VonMises(0.0, 1.0),
        dist.SineSkewed(
            dist.VonMises(torch.zeros(1), torch.ones(1)).to_event(1), torch.tensor([0.5])
        ),
        dist.SineBivariateVonMises(0.5, -1.0, 2.0, 1.0, 0.3),
        dist.Binomial(5, torch.tensor(0.3)),
        VonMisesFisher(torch.eye(3)[0], torch.tensor(2.0)),
        PowerSpherical(torch.eye(4)[0], torch.tensor(2.0)),
    ],
    ids=lambda prior: type(getattr(prior, "base_dist", prior)).__name__,
)
def test_every_support(prior):
    def model(x):
        theta = pyro.sample("theta", prior)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            dims = tuple(range(-prior.event_dim, 0))
            loc = z.sum(dims) + theta.sum(dims) if dims else z + theta
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])

    x = normal(4, 1)
    guide = guides.auto(model, nn.Identity(), x, enumerate=False)
    check_pair(model, guide, x)
    trace = poutine.trace(guide).get_trace(x)
    for site in guide.sites:
        node = trace.nodes[site]
        assert node["fn"].event_shape == prior.event_shape
        assert bool(prior.support.check(node["value"]).all())
    assert math.isfinite(IWAE(2).loss(model, guide, x))


@pytest.mark.parametrize(
    ("prior", "median"),
    [
        (dist.Normal(150.0, 20.0), 150.0),
        (dist.Normal(0.001, 0.0001), 0.001),
        (dist.HalfCauchy(25.0), 25.0),
        (dist.LogNormal(5.0, 0.3), math.exp(5.0)),
        (dist.Gamma(3.0, 0.3), scipy.stats.gamma(3.0, scale=1 / 0.3).median()),
        (dist.Beta(20.0, 2.0), scipy.stats.beta(20.0, 2.0).median()),
        (dist.Dirichlet(torch.tensor([20.0, 20.0, 20.0])), 1 / 3),
        (dist.Uniform(100.0, 200.0).expand([2]).to_event(1), 150.0),
        (dist.Gamma(0.01, 0.01), 1.0),  # vague: its median is 6e-29
    ],
    ids=str,
)
def test_a_global_variable_starts_in_a_narrow_distribution_at_its_prior_median(prior, median):
    def model(x):
        with pyro.plate("components", 2):
            theta = pyro.sample("theta", prior)
            # Half of its draws are below the median of theta.
            child = pyro.sample(
                "child", dist.Normal(theta.sum(-1) if prior.event_dim else theta, 1.0)
            )
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(child.sum(-1, keepdim=True), 1.0), obs=x[:, 0])

    def transformed(draws):
        return biject_to(prior.support).inv(draws)

    guide = guides.auto(model, None, normal(4, 1))
    torch.manual_seed(0)
    with torch.no_grad(), pyro.plate("particles", 2000, dim=-2):
        trace = poutine.trace(guide).get_trace(normal(4, 1))
    draws = transformed(trace.nodes["theta"]["value"])
    spread = transformed(prior.sample((2000, 2))).std(0)
    truth = transformed(torch.full(prior.event_shape, median))
    # The error of the draws, and that of a median of the prior that is drawn.
    error = (1.25 * draws.std(0) / 2000**0.5).hypot(1.25 * spread.clamp(max=2) / 1000**0.5)
    assert ((draws.median(0).values - truth).abs() < 4 * error).all()
    assert (draws.std(0) < 0.15 * spread.clamp(max=1.0)).all()
    total = median * prior.event_shape.numel()
    off = trace.nodes["child"]["value"].median(0).values - total
    assert (off.abs() < 0.02 + total * 0.16).all()


def test_arrays_are_taken_as_fit_takes_them():
    """Double precision and booleans become what the model computes with."""

    def model(x, y, seen):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=y)

    x, y, seen = normal(6, 2), normal(6, seed=1), torch.arange(6) < 4
    arrays = (x.double().numpy(), y.double().numpy(), seen.numpy())
    guides_of_both = [guides.auto(model, None, *data) for data in ((x, y, seen), arrays)]
    bounds = []
    for guide in guides_of_both:
        torch.manual_seed(0)
        bounds.append(ELBO().loss(model, guide, x, y, seen))
    assert bounds[0] == bounds[1]


def test_data_that_are_missing_are_predicted_by_the_model():
    """Pyro's ``Predictive`` calls both with x alone; y | x is N(2 x, 1 + 0.1^2 x^2)."""

    def model(x, y=None):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(weight * x, 1.0), obs=y)

    guide = guides.auto(model, None, torch.zeros(4), torch.zeros(4))
    with torch.no_grad():
        guide.posterior("weight").conditional.free_loc.fill_(2.0)
    torch.manual_seed(0)
    x = torch.tensor([0.0, 1.0, 5.0])
    draws = Predictive(model, guide=guide, num_samples=2000)(x)["y"]
    variance = 1 + 0.01 * x**2
    assert ((draws.mean(0) - 2 * x).abs() < 4 * (variance / 2000).sqrt()).all()
    assert ((draws.var(0) - variance).abs() < 4 * variance * (2 / 2000) ** 0.5).all()


def test_a_local_variable_starts_at_its_prior_median():
    """And so the training begins near the data, not at 0."""
    y = 170 + 8 * normal(50, 1)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(150.0, 20.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mean, 10.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[:, 0])

    guide = guides.auto(model, nn.Tanh(), y)
    z = poutine.trace(guide).get_trace(y).nodes["z"]["fn"].mean
    assert (z - 150).abs().max() < 10


def test_a_density_on_an_interval_sums_to_one():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(1.0, 3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    x = normal(1, 1)
    guide = guides.auto(model, nn.Identity(), x)
    law = poutine.trace(guide).get_trace(x).nodes["z"]["fn"]
    points = 1 + 2 * (torch.arange(20_000) + 0.5) / 20_000
    density = law.log_prob(points).exp().detach()
    assert density.mean() * 2 == pytest.approx(1.0, abs=1e-6)


def test_only_the_guide_has_its_weights_and_statistics_stay():
    likelihood = Conditional(dist.Bernoulli, MLP(2, [8], normalization=nn.BatchNorm1d), 6)
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    x = (normal(10, 6) > 0).double()
    guide = guides.auto(p, MLP(6, [8]), x)
    own = {id(parameter) for parameter in guide.parameters()}
    assert own.isdisjoint({id(parameter) for parameter in p.parameters()})

    before = [buffer.clone() for buffer in p.buffers()]
    guide(x)
    assert p.training
    assert all(torch.equal(a, b) for a, b in zip(before, p.buffers(), strict=True))

    svi = SVI(p, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    weights = [parameter.clone() for parameter in guide.parameters()]
    svi.step(x)
    changed = [not torch.equal(a, b) for a, b in zip(weights, guide.parameters(), strict=True)]
    assert all(changed)


def test_a_compiled_step_is_the_eager_one():
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 6))
    x = (normal(10, 6) > 0).double()
    guide = guides.auto(p, MLP(6, [8]), x)
    losses = []
    for bound in (ELBO(), Compiled(ELBO(), backend=None)):
        pyro.set_rng_seed(0)
        losses.append(bound.loss(p, guide, x))
    assert losses[0] == pytest.approx(losses[1])


def test_fit_learns_and_a_run_is_loaded(tmp_path):
    torch.set_default_dtype(torch.float32)
    x = normal(200, 1).float()
    p = models.VAE(
        default_prior(dist.Normal, 1), Conditional(dist.Normal, MLP(1, []), 1, scale=0.5)
    )
    guide = guides.auto(p, MLP(1, []), x)
    fit(p, guide, x, epochs=30, lr=0.02, seed=0, progress=False, folder=tmp_path / "run")
    bound = evaluate.elbo(p, guide, x, num_particles=50).elbo.mean().item()
    assert bound > evaluate.log_likelihood(p, guide, x, num_particles=200).mean() - 0.05
    run = load_run(tmp_path / "run")
    found = evaluate.elbo(run.model, run.guide, x, num_particles=50).elbo.mean().item()
    assert found == pytest.approx(bound, abs=0.05)


def test_errors():
    x = normal(5, 1)
    with pytest.raises(PairError, match="trunk is None, and .'z'. have a distribution"):
        guides.auto(points, None, x)
    with pytest.raises(PairError, match="which do not fit the plates around 'z'"):
        guides.auto(points, MLP(1, [4]), x[:, None].expand(5, 2, 1))
    with pytest.raises(ValueError, match="structure must be"):
        guides.auto(points, MLP(1, [4]), x, structure="full")
    with pytest.raises(ValueError, match="families names 'y', which is none of .'z'."):
        guides.auto(points, MLP(1, [4]), x, families={"y": dist.Normal})
    with pytest.raises(TypeError, match="trunk must be"):
        guides.auto(points, lambda x: x, x)
    with pytest.raises(PairError, match="must return features"):
        guides.auto(points, nn.Flatten(0), x)
    with pytest.raises(PairError, match="trunk takes 2 of the model's arguments, got 1"):
        guides.auto(points, MLP([1, 1], [4]), x)

    def alone(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, 0])

    with pytest.raises(PairError, match="no latent variables"):
        guides.auto(alone, None, x)

    def shared(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, 0])

    with pytest.raises(PairError, match="shares a plate with the data"):
        guides.auto(shared, MLP(1, [4]), x)

    def growing(x):
        for t in range(x.shape[1]):
            pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(2), obs=x)

    guide = guides.auto(growing, None, x)
    with pytest.raises(PairError, match="samples 'z_1', which it did not"):
        guide(normal(5, 2))
