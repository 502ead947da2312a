"""Every invertible flow of Pyro as the prior, the posterior and the likelihood of a program."""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from pyro import poutine
from torch import nn

from tarspyro import evaluate, fit
from tarspyro.infer import ELBO, IWAE, PairError, log_weights

DIM = 3

# They have a density at any value, in real numbers.
TWO_WAY = [
    "affine_autoregressive",
    "affine_coupling",
    "batchnorm",
    "householder",
    "leaky_relu",
    "matrix_exponential",
    "permute",
    "spline",
    "spline_autoregressive",
    "spline_coupling",
]
# They have one at their own draws alone.
ONE_WAY = [
    "block_autoregressive",
    "neural_autoregressive",
    "planar",
    "polynomial",
    "radial",
    "sylvester",
]


def flow_named(name):
    torch.manual_seed(0)
    make = getattr(flows, name)
    return make() if name == "leaky_relu" else make(DIM)


def flowing(base, flow):
    base = base.to_event(1)
    return base if flow is None else dist.TransformedDistribution(base, [flow])


class Model(nn.Module):
    def __init__(self, flow=None):
        super().__init__()
        self.flow = flow
        self.decoder = nn.Linear(DIM, 4)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", flowing(dist.Normal(torch.zeros(DIM), 1.0), self.flow))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self, flow=None):
        super().__init__()
        self.flow = flow
        self.encoder = nn.Linear(4, 2 * DIM)

    def forward(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", flowing(dist.Normal(loc, log_scale.exp()), self.flow))


class Density(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow
        self.loc = nn.Parameter(torch.zeros(DIM))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", flowing(dist.Normal(self.loc, 1.0), self.flow), obs=x)


def check(model, guide):
    """Both bounds train the pair, and its weights are those of Pyro's traces."""
    x = torch.randn(8, 4)
    for loss in (ELBO(2), IWAE(3)):
        history = fit(model, guide, x, loss=loss, epochs=1, batch_size=4, progress=False)
        assert all(torch.tensor(history["loss"]).isfinite())
    model.eval()
    guide.eval()
    torch.manual_seed(1)
    guide_trace = poutine.trace(guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    for trace in (guide_trace, model_trace):
        trace.compute_log_prob()
    nodes = model_trace.nodes
    truth = (
        nodes["x"]["log_prob"] + nodes["z"]["log_prob"] - guide_trace.nodes["z"]["log_prob"]
    )
    torch.manual_seed(1)
    found = log_weights(model, guide, x, num_particles=1)
    torch.testing.assert_close(found[0], truth)


@pytest.mark.filterwarnings("ignore:.*one after another")
@pytest.mark.parametrize("name", TWO_WAY)
def test_as_a_prior(name):
    check(Model(flow_named(name)), Guide())


@pytest.mark.filterwarnings("ignore:.*one after another")
@pytest.mark.parametrize("name", TWO_WAY + ONE_WAY)
def test_as_a_posterior(name):
    check(Model(), Guide(flow_named(name)))


@pytest.mark.parametrize("name", TWO_WAY)
def test_as_a_likelihood(name):
    density = Density(flow_named(name))
    x = torch.randn(8, DIM)
    fit(density, None, x, epochs=1, batch_size=4, progress=False)
    found = evaluate.log_likelihood(density, None, x)
    density.eval()
    law = dist.TransformedDistribution(
        dist.Normal(density.loc, 1.0).to_event(1), [density.flow]
    )
    torch.testing.assert_close(found, law.log_prob(x).detach())


@pytest.mark.parametrize("name", ONE_WAY)
def test_one_way_flows_have_no_density_at_given_values(name):
    flow = flow_named(name)
    message = "knows the density of its own draws alone"
    with pytest.raises(PairError, match=message):
        fit(Model(flow), Guide(), torch.randn(40, 4), progress=False)
    with pytest.raises(PairError, match=message):
        fit(Density(flow), None, torch.randn(40, DIM), progress=False)
