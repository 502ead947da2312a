"""A recurrence that both halves run is computed once, with the numbers of two runs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, FIVO, IWAE, Renyi
from tarspyro.nn import (
    MLP,
    AttentionRead,
    AttentionWrite,
    Canvas,
    IdentityTrunk,
    Read,
    Recurrence,
    Write,
)

IMAGE = (1, 4, 4)
STEPS = 3


class TwiceRecurrence(Recurrence):
    """A recurrence of another package, which is computed twice."""


class TwiceCanvas(Canvas):
    """The same for a canvas."""


def vrnn(recurrence=Recurrence, cell=nn.GRUCell, trunk=None, **options):
    torch.manual_seed(0)
    cell = recurrence(cell(6, 5), None if trunk is None else trunk(), **options)
    prior = Conditional(dist.Normal, MLP(5, [4]), 2)
    p = models.VRNN(cell, prior, Conditional(dist.Bernoulli, MLP([2, 5], [4]), 4))
    return p, guides.VRNN(cell, Conditional(dist.Normal, MLP([4, 5], [4]), 2))


def draw(recurrence=Recurrence, canvas=Canvas, attention=False):
    torch.manual_seed(0)
    write = AttentionWrite(5, IMAGE, 3) if attention else Write(5, IMAGE)
    read = AttentionRead(5, IMAGE, 3) if attention else Read(IMAGE)
    canvas = canvas(recurrence(nn.LSTMCell(2, 5)), write)
    likelihood = Conditional(dist.Bernoulli, IdentityTrunk(IMAGE), 16)
    encoder = Recurrence(nn.LSTMCell(read.out_features + 5, 5))
    p = models.DRAW(default_prior(dist.Normal, 2), canvas, likelihood, STEPS)
    posterior = Conditional(dist.Normal, MLP(5, []), 2)
    return p, guides.DRAW(posterior, encoder, read, canvas, likelihood, STEPS)


PAIRS = {
    "VRNN": (vrnn, lambda: vrnn(TwiceRecurrence), (6, STEPS, 4)),
    "VRNN, LSTM": (
        lambda: vrnn(cell=nn.LSTMCell, learn_initial=True),
        lambda: vrnn(TwiceRecurrence, nn.LSTMCell, learn_initial=True),
        (6, STEPS, 4),
    ),
    "VRNN, trunk": (
        lambda: vrnn(trunk=lambda: MLP([4, 2], [6])),
        lambda: vrnn(TwiceRecurrence, trunk=lambda: MLP([4, 2], [6])),
        (6, STEPS, 4),
    ),
    "DRAW": (draw, lambda: draw(TwiceRecurrence, TwiceCanvas), (6, 16)),
    "DRAW, attention": (
        lambda: draw(attention=True),
        lambda: draw(TwiceRecurrence, TwiceCanvas, attention=True),
        (6, 16),
    ),
}
BOUNDS = {
    "ELBO": ELBO(),
    "ELBO, three draws": ELBO(num_particles=3),
    "ELBO, stl": ELBO(gradient="stl"),
    "IWAE": IWAE(4),
    "IWAE, dreg": IWAE(4, gradient="dreg"),
    "IWAE, one by one": IWAE(3, vectorize_particles=False),
    "Renyi": Renyi(0.5, 3),
}
SEQUENCES = {name: PAIRS[name] for name in PAIRS if name.startswith("VRNN")}


@pytest.fixture
def calls(monkeypatch):
    """How often PyTorch's recurrent cells are called."""
    counts = []
    for cell in (nn.GRUCell, nn.LSTMCell):
        plain = cell.forward

        def forward(self, *args, plain=plain):
            counts.append(self)
            return plain(self, *args)

        monkeypatch.setattr(cell, "forward", forward)
    return counts


def loss_and_gradients(bound, pair, x):
    p, q = pair
    torch.manual_seed(1)
    loss = bound.differentiable_loss(p, q, x)
    loss.backward()
    names = dict(p.named_parameters(prefix="p")) | dict(q.named_parameters(prefix="q"))
    return loss, {name: value.grad for name, value in names.items()}


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
@pytest.mark.parametrize("once, twice, shape", PAIRS.values(), ids=PAIRS)
def test_bounds_and_gradients_are_those_of_two_runs(once, twice, shape, bound, calls):
    x = torch.rand(shape).round()
    found, gradients = loss_and_gradients(bound, once(), x)
    counted = len(calls)
    expected, right = loss_and_gradients(bound, twice(), x)
    assert counted < len(calls) - counted
    torch.testing.assert_close(found, expected)
    assert gradients.keys() == right.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.9])
@pytest.mark.parametrize("once, twice, shape", SEQUENCES.values(), ids=SEQUENCES)
def test_particles_keep_a_shared_state_when_they_are_resampled(
    once, twice, shape, threshold, calls
):
    x = torch.rand(shape).round()
    assert counted(calls, once(), x, FIVO(4, threshold)) == STEPS
    found, gradients = loss_and_gradients(FIVO(4, threshold), once(), x)
    expected, right = loss_and_gradients(FIVO(4, threshold), twice(), x)
    torch.testing.assert_close(found, expected)
    for name, value in gradients.items():
        torch.testing.assert_close(value, right[name], rtol=1e-4, atol=1e-6)


def counted(calls, pair, x, bound=BOUNDS["ELBO"]):
    """The calls of a step, after the first one, which checks the pair."""
    bound.loss(*pair, x)
    calls.clear()
    bound.loss(*pair, x)
    return len(calls)


def test_each_step_is_computed_once(calls):
    assert counted(calls, vrnn(), torch.rand(6, STEPS, 4).round()) == STEPS
    # The encoder's and the decoder's.
    assert counted(calls, draw(), torch.rand(6, 16).round()) == 2 * STEPS


@pytest.mark.parametrize(
    "part", [{"dropout": 0.5}, {"normalization": nn.BatchNorm1d}], ids=lambda part: str(*part)
)
def test_noise_and_statistics_are_those_of_two_runs(part, calls):
    x = torch.rand(6, STEPS, 4).round()
    pairs = [
        vrnn(recurrence, trunk=lambda: MLP([4, 2], [6], **part))
        for recurrence in (Recurrence, TwiceRecurrence)
    ]
    losses = [loss_and_gradients(ELBO(), pair, x)[0] for pair in pairs]
    assert torch.equal(*losses)
    for one, other in zip(pairs[0][0].buffers(), pairs[1][0].buffers(), strict=True):
        assert torch.equal(one, other)
    assert counted(calls, pairs[0], x) == 2 * STEPS


def test_hooks_are_called_by_both_halves():
    p, q = vrnn()
    seen = []
    p.cell.cell.register_forward_hook(lambda *_: seen.append(1))
    assert counted(seen, (p, q), torch.rand(6, STEPS, 4).round()) == 2 * STEPS


def test_weights_and_states_that_change_between_the_halves():
    """A model with other weights, or a guide that changes a state in place, computes anew."""
    x = torch.rand(6, STEPS, 4).round()
    for change in ("weights", "state"):
        losses = []
        for recurrence in (Recurrence, TwiceRecurrence):
            p, q = vrnn(recurrence)

            def guide(x, q=q, change=change):
                data = pyro.plate("data", len(x))
                state = q.cell.initial(len(x))
                for t in range(x.shape[1]):
                    with data:
                        z = pyro.sample(f"z_{t}", q.posterior(x[:, t], state))
                    state = q.cell(state, x[:, t], z)
                    if change == "state":
                        state += 1.0
                if change == "weights":
                    q.cell.cell.bias_hh.data = q.cell.cell.bias_hh.data + 1.0
                    q.cell.cell.weight_hh *= 0.5

            torch.manual_seed(1)
            with torch.no_grad():
                losses.append(ELBO().loss(p, guide, x))
        assert losses[0] == losses[1]


def test_trainings_and_evaluations_are_those_of_two_runs():
    x = torch.rand(40, STEPS, 4).round()
    found = []
    for recurrence in (Recurrence, TwiceRecurrence):
        p, q = vrnn(recurrence)
        history = fit(p, q, x, loss=FIVO(3), epochs=2, seed=0, progress=False)
        weights = evaluate.log_likelihood(p, q, x, num_particles=5, seed=0)
        found.append((torch.tensor(history["loss"]), weights))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "features",
    [lambda x, t: x[:, t], lambda x, t: x[:, 0] * t, lambda x, t: (x[:, 0], x[:, 0].T)[t % 2]],
    ids=["views", "temporary tensors", "transposed views"],
)
def test_steps_of_different_inputs_are_different(features):
    x = torch.rand(6, 40, 6)

    def states(recurrence):
        torch.manual_seed(0)
        cell = recurrence(nn.GRUCell(6, 5))
        found = []

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))
            start = cell.initial(len(x))
            found.extend(cell(start, features(x, t)).sum().item() for t in range(40))

        def model(x):
            guide(x)
            family = dist.Normal(0.0, 1.0).expand([6]).to_event(1)
            with pyro.plate("rows", len(x)):
                pyro.sample("x", family, obs=x[:, 0])

        with torch.no_grad():
            ELBO().loss(model, guide, x)
        return found

    assert states(Recurrence) == states(TwiceRecurrence)
