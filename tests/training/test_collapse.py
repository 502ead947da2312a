"""The alarm of a collapsed posterior."""

import warnings

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, data, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP
from tarspyro.training.collapse import CollapseAlarm, _Look

OPTIONS = {"epochs": 2, "batch_size": 28, "lr": 3e-3, "binarize": True, "seed": 0}


class Deaf(nn.Module):
    """A trunk that leaves the code out."""

    def __init__(self, size):
        super().__init__()
        self.out_features = size
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, z):
        return self.bias.expand(*z.shape[:-1], -1)


def pair(trunk=None, units=4):
    torch.manual_seed(0)
    decoder = MLP(units, [32]) if trunk is None else trunk
    p = models.VAE(default_prior(dist.Normal, units), Conditional(dist.Bernoulli, decoder, 64))
    q = guides.VAE(Conditional(dist.Normal, MLP(64, [32]), units))
    return p, q


def train(p, q, **options):
    return fit(p, q, data.digits().train, progress=False, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    "trunk, loss", [(Deaf(8), ELBO()), (Deaf(8), IWAE(3)), (None, ELBO(beta=100.0))]
)
def test_a_collapse_is_alarmed_after_two_epochs(trunk, loss):
    with pytest.warns(UserWarning, match="The posterior has collapsed: after 2 epochs"):
        train(*pair(trunk), loss=loss, lr=1e-2)


def test_what_trains_well_is_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(*pair(), loss=ELBO())
        train(*pair(Deaf(8)), lr=1e-2, schedules={"beta": lambda step: 0.001})


NONE, SOME = (0.2, 0.1), (0.4, 0.1)  # gains from the own code, with standard errors


@pytest.mark.parametrize(
    "seen, alarm",
    [
        ([(0.8, NONE), (0.4, NONE)], "after 2 epochs"),
        ([(0.8, NONE), (0.9, NONE), (0.4, NONE)], "after 3 epochs"),  # slowly
        ([(0.4, NONE), (0.5, SOME), (0.4, NONE)], None),  # the code was of use
        ([(0.4, NONE), (0.3, SOME), (0.0, NONE)], None),
        ([(0.4, NONE), (0.02, SOME)], "after 2 epochs"),
        ([(0.4, NONE), (0.5, NONE), (0.6, SOME)], None),  # it begins to be used
        ([(0.4, (0.2, 0.3)), (0.3, (0.2, 0.3))], None),  # too few data points to tell
        ([(0.4, (0.0, 0.0)), (0.5, (0.0, 0.0))], "after 2 epochs"),  # the decoder is deaf
        ([(1.6, NONE), (1.4, NONE), (0.9, NONE)], "after 3 epochs"),  # from a large one
    ],
)
def test_a_useless_code_is_looked_at_until_its_kl_falls(monkeypatch, seen, alarm):
    values = iter(seen)

    def look(self, batches):
        kl, (gain, error) = next(values)
        return _Look(kl, gain, error)

    monkeypatch.setattr(CollapseAlarm, "_look", look)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(*pair(), epochs=len(seen))
    found = [str(w.message) for w in caught if "collapsed" in str(w.message)]
    assert len(found) == (alarm is not None)
    assert all(alarm in message for message in found)


def test_equal_rows_need_no_code_of_their_own():
    p, q = pair(units=2)
    row = data.digits().train.x[:1].round()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(p, q, row.repeat(200, 1), epochs=12, batch_size=20, lr=1e-2, progress=False)


def test_a_code_without_use_is_found_whatever_its_kl():
    """IWAE leaves a KL to a code that the decoder does not read."""
    with pytest.warns(
        UserWarning, match=r"collapsed: after 2 epochs .* \(gain 0 \+- 0 nats\)"
    ):
        train(*pair(Deaf(8), units=8), loss=IWAE(5))


def test_the_remedy_revives_the_units():
    p, q = pair()
    with pytest.warns(UserWarning, match="collapsed"):
        train(p, q, loss=ELBO(beta=100.0), lr=1e-2)
    p, q = pair()
    history = train(p, q, loss=ELBO(free_bits=0.25), lr=1e-2, epochs=6)
    assert history["kl"][-1] > 4 * 0.25 * 0.8


def test_the_alarm_changes_no_digit(monkeypatch):
    with_alarm = train(*pair())
    monkeypatch.setattr(CollapseAlarm, "__call__", lambda self, row: None)
    without = train(*pair())
    assert with_alarm["loss"] == without["loss"]
