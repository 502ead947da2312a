"""Sites that the guide sums out: against sums written by hand, Pyro's TraceEnum_ELBO and
closed forms.
"""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from tarspyro import evaluate, guides
from tarspyro.infer import CIWAE, ELBO, IWAE, PairError, Renyi, log_weights
from tarspyro.infer.compilation.recording import record

from ..programs import assert_within

ROWS = 6


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(model, guide, supports, *args, beta=1.0):
    """The bound of each data point, by one run of the pair for every combination of values."""
    total = 0.0
    for values in itertools.product(*supports.values()):
        drawn = dict(zip(supports, values, strict=True))
        given = poutine.trace(poutine.condition(guide, drawn)).get_trace(*args)
        both = poutine.trace(poutine.condition(model, drawn)).get_trace(*args)
        given.compute_log_prob(), both.compute_log_prob()  # scaled and masked, as each site is
        nodes = [given.nodes[name] for name in supports]
        weight = sum(node["fn"].log_prob(node["value"]) for node in nodes).exp()
        value = both.nodes["x"]["log_prob"]
        for name in supports:
            value = value + beta * (
                both.nodes[name]["log_prob"] - given.nodes[name]["log_prob"]
            )
        total = total + weight * value
    return total


class Sites(nn.Module):
    """Two discrete latent variables, the second of which depends on the first, in the guide
    and in the model.
    """

    def __init__(self, num=ROWS):
        super().__init__()
        self.first, self.second = (
            nn.Parameter(randn(3, seed=1)),
            nn.Parameter(randn(3, 2, seed=2)),
        )
        self.prior_first, self.prior_second = (
            nn.Parameter(randn(2, 3, seed=3)),
            nn.Parameter(randn(2, seed=4)),
        )
        self.loc = nn.Parameter(randn(3, 2, seed=5))
        self.x = randn(num, seed=6)
        self.guide = config_enumerate(self.sample)
        self.supports = {
            "a": [torch.tensor(v) for v in range(3)],
            "b": [torch.tensor(v) for v in range(2)],
        }

    def model(self, x):  # the other way round than the guide
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Categorical(logits=self.prior_second))
            a = pyro.sample("a", dist.Categorical(logits=self.prior_first[b]))
            pyro.sample("x", dist.Normal(self.loc[a, b], 1.0), obs=x)

    def sample(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.first * x.unsqueeze(-1)))
            pyro.sample("b", dist.Categorical(logits=self.second[a] + x.unsqueeze(-1)))


def with_gradients(loss, module):
    return [
        loss.detach(),
        *torch.autograd.grad(loss, list(module.parameters()), retain_graph=True),
    ]


def assert_same(loss, other, module, sign=1.0):
    for one, two in zip(
        with_gradients(loss, module), with_gradients(sign * other, module), strict=True
    ):
        torch.testing.assert_close(one, two)


EXACT = {
    "plain": {},
    "sampled KL": {"analytic_kl": False},
    "beta": {"beta": 0.3},
    "particles": {"num_particles": 4},
    "one by one": {"num_particles": 2, "vectorize_particles": False},
}


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_several_sites_are_summed_exactly(options):
    pair = Sites()
    exact = one_by_one(
        pair.model, pair.guide, pair.supports, pair.x, beta=options.get("beta", 1.0)
    ).sum()
    assert_same(
        ELBO(**options).differentiable_loss(pair.model, pair.guide, pair.x), exact, pair, -1.0
    )


@pytest.mark.parametrize("options", [{}, {"num_particles": 3}], ids=str)
def test_equals_pyro_s_bound(options):
    pair = Sites()
    with poutine.scale(scale=2.5):
        theirs = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
            pair.model, pair.guide, pair.x
        )
        ours = ELBO(**options).differentiable_loss(pair.model, pair.guide, pair.x)
    assert_same(ours, theirs, pair)


@pytest.mark.filterwarnings("ignore:.*mask .a. in different places")
def test_scales_and_masks_of_single_sites():
    """A mask leaves a density out, and not the fact that the value was drawn; it may depend on
    the value.
    """
    pair, some = Sites(), torch.arange(ROWS) % 2 == 0

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.4):
                b = pyro.sample("b", dist.Categorical(logits=pair.prior_second))
            a = pyro.sample("a", dist.Categorical(logits=pair.prior_first[b]))
            with poutine.mask(mask=(a == 1) | some):
                pyro.sample("x", dist.Normal(pair.loc[a, b], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=some):
                a = pyro.sample("a", dist.Categorical(logits=pair.first * x.unsqueeze(-1)))
            with poutine.scale(scale=3.0):
                pyro.sample("b", dist.Categorical(logits=pair.second[a] + x.unsqueeze(-1)))

    exact = one_by_one(model, guide, pair.supports, pair.x).sum()
    assert_same(ELBO().differentiable_loss(model, guide, pair.x), exact, pair, -1.0)


def test_subsampling_estimates_the_whole_bound():
    pair = Sites(12)

    def subsampled(program):
        def run(x):
            with pyro.plate("data", 12, subsample_size=4) as rows:
                return program(x[rows])

        return run

    def model(x):
        b = pyro.sample("b", dist.Categorical(logits=pair.prior_second))
        a = pyro.sample("a", dist.Categorical(logits=pair.prior_first[b]))
        pyro.sample("x", dist.Normal(pair.loc[a, b], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        a = pyro.sample("a", dist.Categorical(logits=pair.first * x.unsqueeze(-1)))
        pyro.sample("b", dist.Categorical(logits=pair.second[a] + x.unsqueeze(-1)))

    exact = one_by_one(pair.model, pair.guide, pair.supports, pair.x).sum().item()
    bound, model, guide = ELBO(), subsampled(model), subsampled(guide)
    draws = [-bound.loss(model, guide, pair.x) for _ in range(300)]
    assert_within(draws, exact)
    assert np.std(draws) > 0


def test_nested_plates_and_sites_without_a_plate():
    """A global site, one a row, and one for each of the row's columns; all terms against sums
    written by hand.
    """
    x = randn(3, ROWS)
    logits, weight = nn.Parameter(randn(4, seed=1)), nn.Parameter(randn(2, 2, 2, seed=2))
    parameters = nn.ParameterList([logits, weight])

    def model(x):
        g = pyro.sample("g", dist.Bernoulli(0.3))
        with pyro.plate("rows", ROWS):
            a = pyro.sample("a", dist.Bernoulli(0.2 + 0.5 * g))
            with pyro.plate("columns", 3):
                b = pyro.sample("b", dist.Bernoulli(0.1 + 0.3 * a))
                pyro.sample("x", dist.Normal(weight[g.long(), a.long(), b.long()], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        g = pyro.sample("g", dist.Bernoulli(logits=logits[0]))
        with pyro.plate("rows", ROWS):
            a = pyro.sample("a", dist.Bernoulli(logits=logits[1] * x.sum(0) + g))
            with pyro.plate("columns", 3):
                pyro.sample("b", dist.Bernoulli(logits=logits[2] * x + logits[3] * a))

    def bernoulli(logit, value):
        return dist.Bernoulli(logits=torch.as_tensor(logit)).log_prob(
            torch.tensor(float(value))
        )

    def logit(probability):
        return math.log(probability / (1 - probability))

    exact = 0.0
    for g in range(2):
        inner_g = bernoulli(logit(0.3), g) - bernoulli(logits[0], g)
        for row in range(ROWS):
            for a in range(2):
                q_a = bernoulli(logits[1] * x[:, row].sum() + g, a)
                inner_a = bernoulli(logit(0.2 + 0.5 * g), a) - q_a
                for column in range(3):
                    for b in range(2):
                        q_b = bernoulli(logits[2] * x[column, row] + logits[3] * a, b)
                        value = bernoulli(logit(0.1 + 0.3 * a), b) - q_b
                        value = value + dist.Normal(weight[g, a, b], 1.0).log_prob(
                            x[column, row]
                        )
                        inner_a = inner_a + q_b.exp() * value
                inner_g = inner_g + q_a.exp() * inner_a
        exact = exact + bernoulli(logits[0], g).exp() * inner_g
    for options in ({}, {"num_particles": 2}, {"analytic_kl": False}):
        assert_same(
            ELBO(**options).differentiable_loss(model, guide, x), exact, parameters, -1.0
        )


class Mixture(nn.Module):
    """p(y) p(z | y) p(x | z, y) with Gaussians given y, so that the bound has a closed form;
    two sets of rows.
    """

    def __init__(self, family="OneHotCategorical"):
        super().__init__()
        self.family = family
        self.logits, self.map = nn.Parameter(randn(3, seed=1)), nn.Parameter(randn(3, seed=2))
        self.shift, self.log_scale = (
            nn.Parameter(randn(3, seed=3)),
            nn.Parameter(0.3 * randn(3, seed=4)),
        )
        self.loc, self.weight = nn.Parameter(randn(3, seed=5)), nn.Parameter(torch.tensor(0.7))
        self.prior_loc = nn.Parameter(randn(3, seed=7))
        self.x = randn(ROWS, seed=6)
        self.guide = config_enumerate(self.sample)

    def pick(self, values, y):
        return values[y] if self.family == "Categorical" else y @ values

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", getattr(dist, self.family)(logits=torch.zeros(3)))
            z = pyro.sample("z", dist.Normal(self.pick(self.prior_loc, y), 1.0))
            pyro.sample("x", dist.Normal(self.pick(self.loc, y) + self.weight * z, 0.6), obs=x)

    def sample(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample(
                "y", getattr(dist, self.family)(logits=self.logits * x.unsqueeze(-1))
            )
            pyro.sample(
                "z",
                dist.Normal(
                    self.pick(self.map, y) * x + self.pick(self.shift, y), self.scale(y)
                ),
            )

    def scale(self, y):
        return self.pick(self.log_scale, y).exp()

    def reconstruction(self, x):
        x = x.unsqueeze(-1)
        log_q = torch.log_softmax(self.logits * x, -1)
        loc, variance = self.map * x + self.shift, (2 * self.log_scale).exp()
        error = (x - self.loc - self.weight * loc) ** 2 + self.weight**2 * variance
        return (log_q.exp() * (-error / (2 * 0.36) - 0.5 * math.log(2 * math.pi * 0.36))).sum(
            -1
        )

    def kl(self, x):
        x = x.unsqueeze(-1)
        log_q = torch.log_softmax(self.logits * x, -1)
        loc, variance = self.map * x + self.shift, (2 * self.log_scale).exp()
        inner = 0.5 * ((loc - self.prior_loc) ** 2 + variance - 1 - variance.log())
        return (log_q.exp() * (inner + log_q + math.log(3))).sum(-1)


BOUNDS = {
    "closed-form KL": {},
    "sampled KL": {"analytic_kl": False},
    "particles": {"num_particles": 3},
    "beta": {"beta": 0.4},
    "sticking the landing": {"gradient": "stl"},
    "sticking the landing, particles": {"gradient": "stl", "num_particles": 2},
}


@pytest.mark.parametrize("family", ["OneHotCategorical", "Categorical"])
@pytest.mark.parametrize("options", BOUNDS.values(), ids=BOUNDS)
def test_draws_of_other_sites_given_each_value(options, family):
    toy = Mixture(family)
    exact = (toy.reconstruction(toy.x) - options.get("beta", 1.0) * toy.kl(toy.x)).sum()
    expected = torch.cat([entry.flatten() for entry in with_gradients(exact, toy)])
    bound, draws, x = ELBO(**options), [], toy.x.repeat(10)  # rows are cheaper than calls
    for _ in range(50):
        loss = bound.differentiable_loss(toy.model, toy.guide, x) / 10
        draws.append(-torch.cat([entry.flatten() for entry in with_gradients(loss, toy)]))
    assert_within(torch.stack(draws), expected)


def test_terms_and_free_bits():
    toy = Mixture()
    _, terms = ELBO().loss_and_terms(toy.model, toy.guide, toy.x)
    torch.testing.assert_close(terms["kl"], toy.kl(toy.x).sum())
    # The sites' mean KLs over the rows, each weighed by the guide; the floor lifts one of
    # them.
    log_q = torch.log_softmax(toy.logits * toy.x.unsqueeze(-1), -1)
    label = (log_q.exp() * (log_q + math.log(3))).sum(-1).mean().item()
    code = toy.kl(toy.x).mean().item() - label
    floor = (label + code) / 2
    loss, terms = ELBO(free_bits=floor).loss_and_terms(toy.model, toy.guide, toy.x)
    assert loss.item() + terms["reconstruction"].item() == pytest.approx(
        ROWS * (max(label, floor) + max(code, floor))
    )


def test_bound_of_each_data_point():
    pair = Sites()
    exact = one_by_one(pair.model, pair.guide, pair.supports, pair.x)
    found = evaluate.elbo(pair.model, pair.guide, pair.x, num_particles=3)
    torch.testing.assert_close(found.elbo, exact)
    toy = Mixture()
    draws = evaluate.elbo(toy.model, toy.guide, toy.x.repeat(500)).elbo.reshape(500, ROWS)
    assert_within(draws, toy.reconstruction(toy.x) - toy.kl(toy.x))


class Scored(nn.Module):
    """An enumerated site between two that are drawn and have no derivative, in two sets of
    rows; and one for all.
    """

    copies = 30  # of each row, for less noise

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(randn(5, seed=1))
        self.loc = nn.Parameter(randn(2, 2, 2, seed=2))
        self.x = randn(3, seed=3).repeat(self.copies), randn(2, seed=4).repeat(self.copies)

    def rows(self, name, x, g=None):
        with pyro.plate(name, len(x)):
            if g is None:
                u = pyro.sample(f"u_{name}", dist.Bernoulli(logits=self.logits[0] * x))
                y = pyro.sample(
                    f"y_{name}",
                    dist.Bernoulli(logits=self.logits[1] * x + u),
                    infer={"enumerate": "parallel"},
                )
                pyro.sample(
                    f"v_{name}", dist.Bernoulli(logits=self.logits[2] * x + self.logits[3] * y)
                )
            else:
                u = pyro.sample(f"u_{name}", dist.Bernoulli(0.4))
                y = pyro.sample(f"y_{name}", dist.Bernoulli(0.3))
                v = pyro.sample(f"v_{name}", dist.Bernoulli(0.2 + 0.4 * y))
                pyro.sample(
                    f"x_{name}",
                    dist.Normal(self.loc[u.long(), y.long(), v.long()] + g, 1.0),
                    obs=x,
                )

    def model(self, one, two):
        g = pyro.sample("g", dist.Bernoulli(0.5))
        self.rows("one", one, g), self.rows("two", two, g)

    def guide(self, one, two):
        pyro.sample("g", dist.Bernoulli(logits=self.logits[4]))
        self.rows("one", one), self.rows("two", two)

    def exact(self):
        def log(logits, value):
            return dist.Bernoulli(logits=logits).log_prob(torch.tensor(value))

        x, total = torch.cat(self.x), 0.0
        for g, u, y, v in itertools.product((0.0, 1.0), repeat=4):
            q_g, q_u, q_y = (
                log(self.logits[4], g),
                log(self.logits[0] * x, u),
                log(self.logits[1] * x + u, y),
            )
            q_v = log(self.logits[2] * x + self.logits[3] * y, v)
            p = dist.Normal(self.loc[int(u), int(y), int(v)] + g, 1.0).log_prob(x)
            for probs, value in ((0.4, u), (0.3, y), (0.2 + 0.4 * y, v)):
                p = p + dist.Bernoulli(probs).log_prob(torch.tensor(value))
            total = total + ((q_g + q_u + q_y + q_v).exp() * (p - q_u - q_y - q_v)).sum()
        for g in (0.0, 1.0):
            q_g = log(self.logits[4], g)
            total = total + q_g.exp() * (math.log(0.5) - q_g)
        return total


@pytest.mark.parametrize(
    "options", [{}, {"num_particles": 3}, {"analytic_kl": False}], ids=str
)
def test_draws_without_a_derivative_beside_enumerated_ones(options):
    toy = Scored()
    expected = torch.cat([entry.flatten() for entry in with_gradients(toy.exact(), toy)])
    bound, draws = ELBO(**options), []
    with pyro.validation_enabled(False):
        for _ in range(250):
            loss = bound.differentiable_loss(toy.model, toy.guide, *toy.x)
            draws.append(-torch.cat([entry.flatten() for entry in with_gradients(loss, toy)]))
    assert_within(torch.stack(draws), expected)


@pytest.mark.parametrize(
    "options", [{}, {"num_particles": 2}, {"gradient": "stl"}, {"free_bits": 0.1}], ids=str
)
def test_recorded_steps_are_the_eager_ones(options):
    toy, bound = Mixture(), ELBO(**options)
    bound.structure(toy.model, toy.guide, toy.x)
    recording = record(lambda x: bound.loss_and_terms(toy.model, toy.guide, x), (toy.x,))
    torch.manual_seed(0)
    loss, _ = bound.loss_and_terms(toy.model, toy.guide, toy.x)
    gradients = torch.autograd.grad(loss, recording.parameters)
    torch.manual_seed(0)
    recorded, _, derivatives = recording(toy.x)
    torch.testing.assert_close(recorded, loss.detach())
    for one, other in zip(derivatives, gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "bound", [IWAE(3), Renyi(0.5, 3), CIWAE(0.5, 3)], ids=lambda b: type(b).__name__
)
def test_weighted_bounds_draw_such_sites_like_any_other(bound):
    toy = Mixture()
    losses = []
    for guide in (
        toy.guide,
        poutine.infer_config(toy.guide, lambda site: {"enumerate": None}),
    ):
        torch.manual_seed(0)
        losses.append(bound.differentiable_loss(toy.model, guide, toy.x))
    assert_same(*losses, toy)
    torch.manual_seed(0)
    weights = log_weights(toy.model, toy.guide, toy.x, num_particles=2000)
    assert weights.shape == (2000, ROWS)
    x = toy.x.unsqueeze(-1)
    exact = dist.Normal(
        toy.loc + toy.weight * toy.prior_loc, (0.36 + toy.weight**2) ** 0.5
    ).log_prob(x)
    assert_within(weights.exp().detach(), (exact.logsumexp(-1) - math.log(3)).exp().detach())


def test_what_a_pair_samples_may_depend_on_its_arguments():
    """The first batch has no latent labels, the second one has, a plate deeper."""
    logits = nn.Parameter(torch.zeros(()))

    def model(x, y=None):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if y is None:
                with pyro.plate("columns", 2):
                    y = pyro.sample("y", dist.Bernoulli(0.5))
                    pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    @config_enumerate
    def guide(x, y=None):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Delta(torch.zeros(())))
            if y is None:
                with pyro.plate("columns", 2):
                    pyro.sample("y", dist.Bernoulli(logits=logits))

    bound, x = ELBO(num_particles=2), torch.zeros(2, 4)
    bound.observed = False  # of the first batch
    bound.loss(model, guide, x, torch.ones(2, 4))
    expected = 0.5 * sum(dist.Normal(float(y), 1.0).log_prob(x).sum() for y in (0, 1))
    expected = expected + dist.Normal(torch.zeros(4), 1.0).log_prob(torch.zeros(4)).sum()
    assert -bound.loss(model, guide, x) == pytest.approx(expected.item())


def outside(x, keepdim=True):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(y.sum(-1, keepdim=keepdim), 1.0), obs=torch.zeros(()))


def marked(infer):
    def guide(x, *others):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel", **infer})

    return guide


def chain(x):
    for t in pyro.markov(range(3)):
        with pyro.plate(f"data_{t}", len(x)):
            pyro.sample(f"y_{t}", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})


def test_errors():
    x = torch.zeros(3)
    with pytest.raises(PairError, match="every combination"):
        ELBO().loss(outside, marked({}), x)
    with pytest.raises(PairError, match="no pyro.plate declares"):
        ELBO().loss(lambda x: outside(x, False), marked({}), x)
    with pytest.raises(PairError, match="leave num_samples out"):
        ELBO().loss(outside, marked({"num_samples": 5}), x)
    with pytest.raises(PairError, match="pyro.markov"):
        bound = ELBO()
        bound.observed = False
        bound.loss(chain, chain, x)
    with pytest.raises(PairError, match="max_plate_nesting=1"):
        bound = ELBO(max_plate_nesting=0)
        bound.observed = False
        bound.loss(marked({}), marked({}), torch.zeros(2))


@config_enumerate
def mixture(x):
    """As in Pyro's tutorial: ``locs[k]`` takes no particles to the left of the components."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)


def test_particles_of_a_model_that_enumerates_run_one_after_another_where_they_have_to():
    x = torch.tensor([0.0, 1.0, 10.0])
    guide = guides.auto(mixture, None, x)
    bound = ELBO(20, analytic_kl=False)
    with pytest.warns(UserWarning, match="In a plate of particles, mixture"):
        bound.structure(mixture, guide, x)
    pyros = TraceEnum_ELBO(20, max_plate_nesting=1)
    values = []
    for loss in (bound, pyros):
        torch.manual_seed(0)
        values.append(loss.loss(mixture, guide, x))
    assert values[0] == pytest.approx(values[1])
