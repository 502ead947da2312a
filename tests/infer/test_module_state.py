"""What modules do with tensors and hooks of their own as they run: compiled or not, a step is the
same.
"""

import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, Compiled, RecordingError
from tarspyro.nn import MLP

STEPS = 6


class MeanOfBatches(nn.Module):
    """A layer minus a running mean, whose buffers take other tensors or change in place."""

    def __init__(self, in_place):
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.in_place = in_place
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        h = self.linear(x)
        if self.training:
            mean = 0.9 * self.mean + 0.1 * h.reshape(-1, 8).mean(0).detach()
            if self.in_place:
                self.count.add_(1)
                self.mean.copy_(mean)
            else:
                self.count = self.count + 1
                self.mean = mean
        return torch.tanh(h - self.mean)


class MeanWithoutBuffers(nn.Module):
    """The same with a plain attribute."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.mean = torch.zeros(8)

    def forward(self, x):
        h = self.linear(x)
        self.mean = 0.9 * self.mean + 0.1 * h.reshape(-1, 8).mean(0).detach()
        return torch.tanh(h - self.mean)


class KeepsItsOutput(nn.Module):
    """A layer whose last output can be looked at."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)

    def forward(self, x):
        self.output = self.linear(x).tanh()
        return self.output


def pair(trunk):
    torch.manual_seed(0)
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [8]), 3, scale=1.0)
    )
    return p, guides.VAE(Conditional(dist.Normal, trunk, 2))


def rows(count=10 * STEPS):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


def train(p, q, loss=None, **options):
    options = {"epochs": 1, "batch_size": 10, "seed": 0, "progress": False, **options}
    fit(p, q, rows(), loss=loss or ELBO(), **options)
    return torch.cat([each.detach().flatten() for each in q.state_dict().values()])


def recorded(**options):
    return Compiled(ELBO(), backend="eager", choose=False, **options)


def make(trunk, *args):
    torch.manual_seed(1)
    return trunk(*args)


@pytest.mark.parametrize("loss", [ELBO, lambda: IWAE(3)], ids=["ELBO", "IWAE"])
@pytest.mark.parametrize("in_place", [False, True])
def test_what_fit_tries_beforehand_leaves_no_trace(in_place, loss):
    trunk = make(MeanOfBatches, in_place)
    train(*pair(trunk), loss=loss())
    assert trunk.count == STEPS


def test_buffers_of_both_kinds_train_alike():
    anew = train(*pair(make(MeanOfBatches, False)))
    in_place = train(*pair(make(MeanOfBatches, True)))
    compiled = train(*pair(make(MeanOfBatches, True)), loss=recorded())
    torch.testing.assert_close(anew, in_place)
    torch.testing.assert_close(compiled, in_place)


@pytest.mark.parametrize(
    ("make_trunk", "message"),
    [
        (lambda: MeanOfBatches(False), r"'count' .* graph cannot: change it in place"),
        (MeanWithoutBuffers, r"'mean' .* graph cannot: make it a buffer, and change it"),
    ],
)
def test_state_that_a_graph_cannot_follow_is_refused(make_trunk, message):
    trunk = make(make_trunk)
    with pytest.raises(RecordingError, match=message):
        train(*pair(trunk), loss=recorded())
    assert type(trunk.mean) is torch.Tensor


def test_without_a_graph_the_training_is_the_eager_one():
    eager = train(*pair(make(MeanOfBatches, False)))
    with pytest.warns(UserWarning, match="goes on eagerly"):
        fallen_back = train(*pair(make(MeanOfBatches, False)), loss=recorded(fallback=True))
    torch.testing.assert_close(fallen_back, eager)


def test_tensors_that_are_others_at_every_step_are_told():
    eager = train(*pair(make(MeanOfBatches, False)), epochs=2)
    with pytest.warns(UserWarning, match="other tensors, modes or hooks .* in place"):
        compiled = train(*pair(make(MeanOfBatches, False)), epochs=2, compile=True)
    torch.testing.assert_close(compiled, eager)


def test_an_output_that_a_layer_keeps_hinders_nothing():
    trunk = make(KeepsItsOutput)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p, q = pair(trunk)
        compiled = train(p, q, loss=recorded())
    torch.testing.assert_close(compiled, train(*pair(make(KeepsItsOutput))))
    assert type(trunk.output) is torch.Tensor
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate.log_likelihood(p, q, rows(100), num_particles=2000, seed=0, compile=True)
    assert type(trunk.output) is torch.Tensor


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_seen(kind):
    def in_two_parts(loss):
        trunk = make(MLP, 3, [8])
        p, q = pair(trunk)
        train(p, q, loss=loss)
        hooked = [module for module in trunk.modules() if isinstance(module, nn.Linear)][0]
        handle = getattr(hooked, kind)(
            lambda module, inputs, *output: output[0] * 0.5 if output else (inputs[0] * 0.5,)
        )
        train(p, q, loss=loss)
        handle.remove()
        return train(p, q, loss=loss)

    torch.testing.assert_close(in_two_parts(recorded()), in_two_parts(ELBO()))


def test_modes_that_take_turns_are_compiled_once_each():
    p, q = pair(make(MeanOfBatches, True))
    lines = []
    loss = recorded(report=lines.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(20):
            q.train(step % 2 == 0)
            loss.loss_and_grads(p, q, rows(10))
    assert sum(line.startswith("compiling the step") for line in lines) == 2
    assert q.posterior.trunk.count == 10
