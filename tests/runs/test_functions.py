"""Runs of methods and functions, whose modules are no halves of a pair."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Run, evaluate, fit, infer, load_run
from tarspyro.runs.folder import RunError


class Networks:
    """An encoder with running statistics and dropout, and a decoder, in an object of its own."""

    def __init__(self):
        torch.manual_seed(0)
        layers = (nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
        self.encoder = nn.Sequential(*layers)
        self.decoder = nn.Linear(2, 4)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


class Owner(nn.Module):
    """The same networks, in a module with two methods."""

    def __init__(self):
        super().__init__()
        networks = Networks()
        self.encoder, self.decoder = networks.encoder, networks.decoder

    model = Networks.model
    guide = Networks.guide


def closures():
    """The same networks, which two functions read."""
    networks = Networks()
    encoder, decoder = networks.encoder, networks.decoder

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    networks.model, networks.guide = model, guide
    return networks


MAKERS = pytest.mark.parametrize("make", [Networks, Owner, closures])
X = 3 * torch.randn(60, 4, generator=torch.Generator().manual_seed(1)) + 5


def trained(pair, **options):
    settings = {"epochs": 2, "batch_size": 20, "seed": 0, "lr": 0.01, "progress": False}
    return fit(pair.model, pair.guide, X, **{**settings, **options})


def buffers(pair):
    return {name: buffer.clone() for name, buffer in pair.encoder.named_buffers()}


def declare(pair):
    pyro.clear_param_store()
    pair.model(X)
    pair.guide(X)


@MAKERS
def test_steps_alone_change_running_statistics(make):
    pair = make()
    trained(pair, validation=X[:30])
    assert pair.encoder[1].num_batches_tracked == 2 * 3


@MAKERS
def test_evaluations_use_evaluation_mode(make):
    pair = make()
    trained(pair)
    before = buffers(pair)
    codes = evaluate.embed(pair.guide, X)
    pair.encoder.eval()
    expected = pair.encoder(X)
    pair.encoder.train()
    assert torch.allclose(codes, expected)
    evaluate.log_likelihood(pair.model, pair.guide, X, num_particles=3)
    infer.explain(infer.ELBO(), pair.model, pair.guide, X)
    assert pair.encoder.training and pair.encoder[2].training
    torch.testing.assert_close(buffers(pair), before)


@MAKERS
def test_runs_hold_running_statistics(make, tmp_path):
    pair, again = make(), make()
    trained(pair, folder=tmp_path / "run")
    declare(again)
    load_run(tmp_path / "run", model=again.model, guide=again.guide)
    torch.testing.assert_close(buffers(again), buffers(pair))
    bounds = [evaluate.elbo(each.model, each.guide, X, seed=0).elbo for each in (pair, again)]
    assert torch.equal(*bounds)


@MAKERS
def test_a_resumed_run_goes_on_with_running_statistics(make, tmp_path):
    whole, half, rest = make(), make(), make()
    trained(whole, epochs=4)
    trained(half, folder=tmp_path / "run")
    trained(rest, epochs=4, folder=Run(tmp_path / "run", resume=True))
    torch.testing.assert_close(buffers(rest), buffers(whole), rtol=0, atol=0)


@MAKERS
def test_the_best_weights_have_their_running_statistics(make):
    pair = make()
    history = trained(pair, lr=0.1)
    first = buffers(pair)
    trained(pair)
    history.use("last", pair.model, pair.guide)
    torch.testing.assert_close(buffers(pair), first)


@MAKERS
def test_weights_of_another_module_in_the_store_are_refused(make, tmp_path):
    pair, other = make(), make()
    trained(pair, folder=tmp_path / "run")
    declare(pair)
    with pytest.raises(RunError, match=r"those of another module under this name: call pyro"):
        load_run(tmp_path / "run", model=other.model, guide=other.guide)
    pyro.clear_param_store()
