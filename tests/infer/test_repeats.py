"""Repeated operations computed at once: the values and gradients are those of the program."""

import random

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, guides, models
from tarspyro.infer import ELBO, IWAE, Compiled
from tarspyro.infer.compilation.graphs import count_products
from tarspyro.infer.compilation.recording import record
from tarspyro.nn import MLP, Recurrence
from tarspyro.scopes import local_parameters


def vrnn(latent=2, features=3, hidden=5):
    cell = Recurrence(nn.GRUCell(features + latent, hidden))
    prior = Conditional(dist.Normal, MLP(hidden, [4]), latent)
    likelihood = Conditional(dist.Bernoulli, MLP([latent, hidden], [4]), features)
    posterior = Conditional(dist.Normal, MLP([features, hidden], [4]), latent)
    return models.VRNN(cell, prior, likelihood), guides.VRNN(cell, posterior)


def walk_pair():
    """A random walk whose recurrence has no matrix product, and a mean-field guide."""
    network = nn.Linear(2, 2)

    def model(x):
        z = torch.zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 1.0).to_event(1))
                logits = network(z)
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits).to_event(1), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                loc = pyro.param(f"loc_{t}", torch.full((2,), 0.1 * t))
                pyro.sample(f"z_{t}", dist.Normal(loc + x[:, t], 0.5).to_event(1))

    return model, guide, network


def gradients(bound, model, guide, *data, seed=0):
    pyro.set_rng_seed(seed)
    parameters = [*model.parameters(), *guide.parameters()]
    for parameter in parameters:
        parameter.grad = None
    loss = bound.loss_and_grads(model, guide, *data)
    return loss, [
        parameter.grad.clone() for parameter in {id(p): p for p in parameters}.values()
    ]


@pytest.mark.parametrize(
    "bound",
    [ELBO(), ELBO(2, analytic_kl=False), IWAE(3), IWAE(2, vectorize_particles=False)],
    ids=["ELBO", "ELBO, sampled", "IWAE", "IWAE, one by one"],
)
@pytest.mark.parametrize("lengths", [None, torch.tensor([4, 3, 1, 4])], ids=["full", "padded"])
def test_steps_of_a_sequence_are_the_eager_ones(bound, lengths):
    torch.manual_seed(0)
    model, guide = vrnn()
    x = torch.rand(4, 4, 3).round()
    data = (x,) if lengths is None else (x, lengths)
    loss, expected = gradients(bound, model, guide, *data)
    compiled = Compiled(bound, backend="eager", choose=False)
    its_loss, found = gradients(compiled, model, guide, *data)
    assert its_loss == pytest.approx(loss, rel=1e-5)
    for gradient, other in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_a_recurrence_without_products_is_kept_in_order():
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide, _ = walk_pair()
    x = torch.rand(4, 7, 2).round()
    pyro.set_rng_seed(1)
    loss = ELBO().loss_and_grads(model, guide, x)
    pyro.set_rng_seed(1)
    compiled = Compiled(ELBO(), backend="eager", choose=False)
    assert compiled.loss_and_grads(model, guide, x) == pytest.approx(loss, rel=1e-5)


def recorded(model, guide, x):
    with local_parameters():
        bound = ELBO()
        bound.loss(model, guide, x)
        return record(lambda x: bound.loss_and_terms(model, guide, x), (x,)).graph


def products_of(length):
    torch.manual_seed(0)
    return count_products(recorded(*vrnn(), torch.rand(4, length, 3).round()))


@pytest.mark.parametrize("stack", [torch.broadcast_tensors, torch.atleast_2d])
def test_densities_are_computed_at_once_if_the_program_returns_its_steps(stack):
    # Broadcasting returns tensors of equal shapes themselves, so that all that comes later, the
    # densities too, is recorded as reading its results.
    torch.manual_seed(0)
    x = torch.rand(4, 6, 2).round()
    network = nn.Linear(2, 2)

    def program(returns):
        def model(x):
            steps = []
            with pyro.plate("data", len(x)):
                for t in range(x.shape[1]):
                    z = pyro.sample(f"z_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    likelihood = dist.Bernoulli(logits=network(z)).to_event(1)
                    steps.append(pyro.sample(f"x_{t}", likelihood, obs=x[:, t]))
            return torch.stack(stack(*steps), 1) if returns else None

        return model

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                pyro.sample(f"z_{t}", dist.Normal(x[:, t], 0.5).to_event(1))

    returning, other = (
        recorded(program(returns), guide, x).graph.nodes for returns in (True, False)
    )
    assert len(returning) == len(other)


def test_prior_and_decoder_run_once_for_all_steps():
    # A further step costs what the recurrence does: three layers of the posterior and two
    # products of the cell, and at most two products for the gradients of each.
    recurrence = 5 + 10
    of_five = products_of(5)
    assert products_of(6) - of_five == recurrence
    # The three layers of the prior and the two of the decoder run once.
    assert of_five <= 5 * recurrence + 5 + 10


def steps(generator, length):
    """A random function of repeated steps, with states, layers, lists, draws and sums."""
    layers = [nn.Linear(4, 4) for _ in range(3)]
    chosen = [generator.choice(KINDS) for _ in range(generator.randint(2, 6))]
    reads = [(generator.random(), generator.random()) for _ in chosen]
    kept = generator.random()

    def function(x):
        state = torch.zeros(len(x), 4)
        results = []
        for t in range(length):
            values = [x[:, t], state]
            for kind, (first, second) in zip(chosen, reads, strict=True):
                one = values[int(first * len(values))]
                other = values[int(second * len(values))]
                values.append(kind(one, other, layers))
            state = values[int(kept * len(values))]
            results.append(values[-1].sum(-1))
        total = results[0]
        for result in results[1:]:
            total = total + result
        return total.mean(), {"last": results[-1].sum()}

    return function


KINDS = [
    lambda a, b, layers: layers[0](a),
    lambda a, b, layers: layers[1](a).tanh() * b,
    lambda a, b, layers: torch.cat([a[..., :2], b[..., 2:]], -1),
    lambda a, b, layers: (a + 2 * b).chunk(2, -1)[1].repeat(1, 2),
    lambda a, b, layers: a - b,
    lambda a, b, layers: torch.where(a > 0, a, layers[2](b)),
    lambda a, b, layers: a + 0.1 * torch.randn_like(a),
    lambda a, b, layers: a / (1 + b.square()),
]


@pytest.mark.parametrize("seed", range(30))
def test_random_functions(seed):
    function = steps(random.Random(seed), length=random.Random(seed).randint(4, 7))
    torch.manual_seed(seed)
    x = torch.rand(3, 7, 4)
    recording = record(function, (x,))
    torch.manual_seed(1)
    loss, terms, found = recording(x)
    torch.manual_seed(1)
    exact, exact_terms = function(x)
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["last"], exact_terms["last"], rtol=1e-5, atol=1e-6)
    if recording.parameters:
        expected = torch.autograd.grad(exact, recording.parameters)
        torch.testing.assert_close(found, [*expected], rtol=1e-4, atol=1e-6)
