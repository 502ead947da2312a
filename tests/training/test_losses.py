"""Every kind of loss trains, ranks epochs, and is described in config.json."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, data, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, AdversarialAutoencoder, Compiled
from tarspyro.nn import MLP, Discriminator


def function(model, guide, x):
    return ELBO().differentiable_loss(model, guide, x)


LOSSES = {
    "none": lambda: None,
    "bound": lambda: IWAE(3),
    "function": lambda: function,
    "compiled": lambda: Compiled(ELBO(), backend="eager", choose=False),
    "Pyro, differentiable": lambda: pyro.infer.Trace_ELBO(),
    "Pyro, gradients alone": lambda: pyro.infer.ReweightedWakeSleep(num_particles=2),
    "game": lambda: AdversarialAutoencoder(Discriminator(MLP(2, [8]))),
}
DESCRIBED = {
    "none": "tarspyro.infer.ELBO",
    "compiled": "tarspyro.infer.ELBO",
    "Pyro, differentiable": "pyro.infer.Trace_ELBO",
    "Pyro, gradients alone": "pyro.infer.ReweightedWakeSleep",
    "game": "tarspyro.infer.AdversarialAutoencoder",
}


@pytest.mark.parametrize("kind", LOSSES)
def test_every_kind_of_loss_trains(kind, tmp_path):
    x = data.digits().train.x[:100].round()
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(2, [8]), 64)
    model = models.VAE(default_prior(dist.Normal, 2), likelihood)
    guide = guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))
    before = [parameter.clone() for parameter in model.parameters()]
    history = fit(
        model,
        guide,
        x,
        loss=LOSSES[kind](),
        validation=x[:20],
        epochs=2,
        folder=tmp_path,
        seed=0,
        progress=False,
    )
    assert not any(map(torch.equal, before, model.parameters()))
    assert all(value == value for row in history.rows for value in row.values())
    assert ("validation_loss" in history.rows[0]) == (kind != "game")
    if kind == "game":
        assert history.best_epoch == 2
    described = json.loads((tmp_path / "config.json").read_text())["loss"]
    assert described.get("new") == DESCRIBED.get(kind)
