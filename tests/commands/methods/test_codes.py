"""Values in the place of gaps, and reports in pieces."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import FromNetwork, IncompleteLikelihood, guides, models
from tarspyro.commands.methods import METHODS, reports
from tarspyro.commands.methods.codes import filled
from tarspyro.commands.methods.files import Contents, OwnData
from tarspyro.commands.methods.forms import PreparedData
from tarspyro.commands.methods.layout import Layout
from tarspyro.commands.methods.reports import Trained
from tarspyro.distributions import default_prior
from tarspyro.nn import WithGaps
from tarspyro.runs import History, LoadedRun

SCALE = 0.5


class Both(nn.Module):
    """x_1 and x_2 are the code with noise."""

    def __init__(self):
        super().__init__()
        self.in_shapes = ((1,),)
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        return z.expand(*z.shape[:-1], 2)


class Shifted(nn.Module):
    """The mean of the posterior, 0.3 beside the true one."""

    def __init__(self):
        super().__init__()
        self.in_shapes = ((2,), (2,))
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x, known):
        count = known.sum(-1, keepdim=True)
        variance = SCALE**2 / (count + SCALE**2)
        mean = x.sum(-1, keepdim=True) / (count + SCALE**2)
        return torch.cat([mean + 0.3 * variance.sqrt(), 1.3 * variance.sqrt()], -1)


def trained():
    likelihood = FromNetwork(Both(), lambda loc: dist.Normal(loc, SCALE).to_event(1))
    posterior = FromNetwork(
        WithGaps(Shifted(), 2), lambda h: dist.Normal(h[..., :1], h[..., 1:]).to_event(1)
    )
    model = models.VAE(default_prior(dist.Normal, 1), IncompleteLikelihood(likelihood))
    guide = guides.VAE(posterior)
    x = torch.zeros(10, 2)
    layout = Layout("Normal", "a table", "real", (2,), gaps=True)
    own = OwnData(Contents("x.npy", x), layout, (8, 1, 1), (x,), (x,), (x,))
    data = PreparedData("x.npy", "row", (2,), (x,), (x,), batches=(x,), own=own)
    return Trained(LoadedRun(model, guide, History([]), {}), data, METHODS["vae"])


@pytest.mark.parametrize("mean", [True, False])
def test_gaps_are_filled_as_the_model_says(mean):
    r"""p(x_2 | x_1) is Normal with mean x_1 / (1 + s^2) and variance s^2 + s^2 / (1 + s^2). The
    guide is wrong by a third of its scale, which the weights correct.
    """
    count = 4000
    x = torch.tensor([[1.0, torch.nan], [torch.nan, -2.0]]).repeat_interleave(count, 0)
    found = filled(trained(), x, mean=mean, seed=0)
    known = ~x.isnan()
    assert torch.equal(found[known], x[known])
    for values, seen in ((found[:count, 1], 1.0), (found[count:, 0], -2.0)):
        expected = seen / (1 + SCALE**2)
        error = values.std().item() / count**0.5
        assert abs(values.mean().item() - expected) < 4 * error + 0.005
        if not mean:
            variance = SCALE**2 + SCALE**2 / (1 + SCALE**2)
            assert values.var().item() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("rows", [1, 99, 100, 101, 1234])
def test_a_report_in_pieces_has_every_row_once(rows, monkeypatch, capsys):
    monkeypatch.setattr(reports, "_LONG", -1)
    t = trained()
    x = torch.arange(rows * 2.0).reshape(rows, 2)
    data = PreparedData("x", "row", (2,), (x,), (x,), batches=(x,))
    t = Trained(t.run, data, t.method)
    seeds = []

    def estimate(part, seed):
        seeds.append(seed)
        return part[0][:, 0]

    found = reports._in_pieces(t, "log p(x)", estimate)
    assert torch.equal(found, x[:, 0])
    assert len(set(seeds)) == len(seeds)
    told = f"log p(x) of {rows} rows with 100 particles: about"
    assert told in capsys.readouterr().out
