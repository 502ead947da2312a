"""Supports that depend on latent variables or on the rest of the data, and are no matter of
one draw.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions.transforms import AffineTransform

from tarspyro import evaluate, fit
from tarspyro.distributions import Concatenate
from tarspyro.infer import IWAE, InputError, PairError, log_weights
from tarspyro.inputs import check_inputs

from ..programs import assert_within


def beyond(x):
    """s = x + t with t exponential: the exact posterior of s ~ Gamma(2, 1) given x ~
    Uniform(0, s).
    """
    rate = pyro.param("rate", torch.tensor(0.5), constraint=dist.constraints.positive)
    beyond = dist.TransformedDistribution(
        dist.Exponential(rate.expand(len(x))), [AffineTransform(x, 1.0)]
    )
    with pyro.plate("data", len(x)):
        pyro.sample("s", beyond)


def uniform(x):
    with pyro.plate("data", len(x)):
        s = pyro.sample("s", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Uniform(0.0 * s, s), obs=x)


def test_a_support_that_a_latent_variable_moves_is_not_judged_by_one_draw():
    torch.manual_seed(0)
    x = dist.Exponential(1.0).sample((200,))
    history = fit(
        uniform,
        beyond,
        x,
        loss=IWAE(5),
        epochs=60,
        seed=0,
        progress=False,
        lr=0.1,
    )
    truth = -x.mean().item()  # x is exponential
    assert history["loss"][-1] == pytest.approx(-truth, abs=0.02)
    pyro.get_param_store().clear()
    found = evaluate.log_likelihood(uniform, beyond, x, num_particles=2000, seed=0)
    assert found.mean().item() == pytest.approx(truth, abs=0.05)


MOVING = {
    "Uniform": lambda z: dist.Uniform(-z.exp(), z.exp()),
    "to_event": lambda z: dist.Uniform(-z.exp(), z.exp()).expand([2, len(z)]).to_event(0),
    "Pareto": lambda z: dist.Pareto(z.exp(), 3.0),
    "AffineBeta": lambda z: dist.AffineBeta(torch.ones_like(z), torch.ones_like(z), z, 1.0),
    "a block": lambda z: Concatenate([dist.Uniform(z, z + 1).unsqueeze(-1).to_event(1)]),
}


@pytest.mark.parametrize("family", ["Uniform", "Pareto", "AffineBeta", "masked"])
def test_no_family_with_a_moving_support_is_refused(family):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            q = MOVING.get(family, MOVING["Uniform"])(z)
            pyro.sample(
                "x",
                q.mask(torch.ones(len(x), dtype=torch.bool)) if family == "masked" else q,
                obs=x,
            )

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    check_inputs(model, guide, [torch.full((20,), 50.0)])


def test_counts_out_of_as_many_trials_as_a_latent_variable_says():
    def model(x):
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(3.0))
            pyro.sample("x", dist.Binomial(n, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("n", dist.Poisson(3.0))

    x = torch.arange(8.0)
    check_inputs(model, guide, [x])
    # A Poisson of which each one counts with probability one half is a Poisson.
    found = evaluate.log_likelihood(model, guide, x, num_particles=20_000, errors=True, seed=0)
    truth = dist.Poisson(1.5).log_prob(x)
    assert ((found.log_likelihood - truth).abs() < 4 * found.standard_error)[:5].all()


class Trials(nn.Module):
    """Counts out of as many trials as the data says, row by row."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, x, n):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Binomial(n, logits=self.logit), obs=x)


def test_a_support_of_each_row_is_that_of_its_own_row():
    """The first batch has few trials, and a later one more."""
    n = torch.arange(1.0, 101.0)
    x = (n / 4).floor()
    model = Trials()
    fit(
        model,
        data=(x, n),
        batch_size=10,
        epochs=50,
        shuffle=False,
        progress=False,
        lr=0.05,
    )
    assert model.logit.sigmoid().item() == pytest.approx((x.sum() / n.sum()).item(), abs=0.01)
    assert math.isfinite(
        evaluate.log_likelihood(model, lambda *data: None, (x, n)).sum().item()
    )
    with pytest.raises(
        InputError,
        match=r"x has values from 1 to 2, outside the support of Binomial \(of each row\)",
    ):
        check_inputs(
            model, lambda *data: None, [torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])]
        )


def test_a_support_that_nothing_moves_is_judged_as_before():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Gamma(z.exp(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match="outside the support of Gamma"):
        check_inputs(model, guide, [torch.tensor([1.0, -1.0])])


TABLE = torch.linspace(0, 1, 60).reshape(10, 6)
SHARES = torch.softmax(TABLE, -1)


@pytest.mark.parametrize(
    ("likelihood", "x", "remedy"),
    [
        (dist.Beta(torch.full((6,), 2.0), 3.0), TABLE, "exactly 0 and 1.*ContinuousBernoulli"),
        (dist.Beta(torch.full((6,), 2.0), 3.0), 0.5 * TABLE, r"exactly 0, .*x\.clip\(0\.001"),
        (
            dist.Gamma(torch.full((6,), 2.0), 1.0),
            TABLE,
            r"exactly 0, .*x\.clip\(min=0\.001\)",
        ),
        (
            dist.Dirichlet(torch.full((6,), 2.0)),
            torch.eye(6),
            r"exactly 0, .*\(x \+ 0\.001\) / \(x \+ 0\.001\)\.sum",
        ),
    ],
    ids=str,
)
def test_values_at_an_edge_without_a_density_are_named(likelihood, x, remedy):
    """They are in the support, where the density is zero or infinite."""
    fn = likelihood if likelihood.event_shape else likelihood.to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn, obs=x)

    assert fn.support.check(x).all() and not fn.log_prob(x).isfinite().all()
    with pytest.raises(InputError, match=remedy):
        check_inputs(model, lambda x: None, [x])


@pytest.mark.parametrize(
    ("likelihood", "x"),
    [
        (dist.Exponential(torch.ones(6)), TABLE),
        (dist.HalfNormal(torch.ones(6)), TABLE),
        (dist.ContinuousBernoulli(torch.full((6,), 0.3)), TABLE),
        (dist.Beta(torch.full((6,), 2.0), 3.0), TABLE.clamp(0.001, 0.999)),
        (dist.Gamma(torch.full((6,), 2.0), 1.0), TABLE.clamp(min=0.001)),
        (dist.Uniform(torch.zeros(6), 2.0), TABLE),
        (dist.Poisson(torch.ones(6)), TABLE.round()),
        (dist.Dirichlet(torch.full((6,), 2.0)), SHARES),
    ],
    ids=str,
)
def test_values_with_a_density_are_let_through(likelihood, x):
    fn = likelihood if likelihood.event_shape else likelihood.to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", fn, obs=x)

    check_inputs(model, lambda x: None, [x])


def test_rows_of_any_totals_under_a_multinomial_that_validates_nothing():
    def model(x, validate_args):
        probs = torch.tensor([0.2, 0.3, 0.5])
        with pyro.plate("data", len(x)):
            law = dist.Multinomial(probs=probs, validate_args=validate_args)
            pyro.sample("x", law, obs=x)

    x = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 3.0]])
    values = evaluate.log_likelihood(lambda x: model(x, False), None, x)
    exact = [dist.Multinomial(int(row.sum()), torch.tensor([0.2, 0.3, 0.5])) for row in x]
    expected = torch.stack([law.log_prob(row) for law, row in zip(exact, x, strict=True)])
    assert torch.allclose(values, expected)
    with pytest.raises(InputError, match="total_count"):
        evaluate.log_likelihood(lambda x: model(x, None), None, x)
    with pytest.raises(InputError, match="outside the support"):
        evaluate.log_likelihood(lambda x: model(x, False), None, x - 1.0)


def test_counts_up_to_the_largest_sum_of_a_batch():
    documents = torch.tensor(
        [[1.0, 0.0, 0.0], [2.0, 5.0, 0.0], [0.0, 1.0, 2.0], [9.0, 4.0, 2.0]]
    )

    def model(words):
        with pyro.plate("documents", len(words)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            most = int(words.sum(-1).max())
            pyro.sample("words", dist.Multinomial(most, logits=z), obs=words)

    def guide(words):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("documents", len(words)):
            pyro.sample("z", dist.Normal(loc + 0 * words, 1.0).to_event(1))

    fit(model, guide, documents, batch_size=2, epochs=1, progress=False)
    alone = evaluate.true_posterior(model, documents, num_samples=2, warmup=2, seed=0)
    assert alone["z"].shape == (4, 2, 3)
    wrong = torch.vstack([documents, torch.tensor([-1.0, 0.0, 9.0])])
    with pytest.raises(InputError, match="outside the support of Multinomial"):
        check_inputs(model, guide, [documents[:2]], [wrong])


ANGLES = {
    "von Mises": dist.VonMises(torch.tensor(2.5), torch.tensor(1.0)),
    "uniform": dist.Uniform(-math.pi, math.pi),
    "mixture": dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)),
        dist.VonMises(torch.tensor([2.5, 0.0]), torch.tensor([1.0, 3.0])),
    ),
}


def angle(prior, posterior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior)

    return model, guide


@pytest.mark.parametrize("prior", ANGLES)
def test_the_density_of_angles_ends_where_the_circle_closes(prior):
    x = torch.tensor([3.0, -1.0])
    pair = angle(ANGLES[prior], dist.Normal(0.9, 2.0))  # other turns of the circle have mass 2
    with pytest.raises(PairError, match="numbers from -3.14159 to 3.14159.*same support"):
        IWAE(5).loss(*pair, x)
    pair = angle(ANGLES[prior], dist.VonMises(torch.tensor(1.5), torch.tensor(0.5)))
    z = torch.linspace(-math.pi, math.pi, 4001)[:-1].unsqueeze(-1)
    joint = ANGLES[prior].log_prob(z) + dist.Normal(z, 2.0).log_prob(x)
    evidence = joint.exp().sum(0) * 2 * math.pi / 4000
    torch.manual_seed(0)
    weights = log_weights(*pair, x, num_particles=10_000).exp()
    assert_within(weights, evidence)
