"""The order of the rows: parameters of single rows meet their own rows, or the user is told."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch.utils.data import TensorDataset

from tarspyro import Conditional, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, PairError
from tarspyro.nn import MLP, GaussianNoise

X = torch.linspace(-3.0, 3.0, 20)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


# Pyro's automatic guides have parameters for each row of the plate: SVI gives them all rows in
# their order at every step, and so does fit if a batch has all rows.
@pytest.mark.parametrize("container", [lambda x: x, TensorDataset])
def test_parameters_of_rows_learn_from_their_own_rows(container):
    guide = AutoNormal(local)
    fit(local, guide, container(X), epochs=300, lr=0.05, seed=0, progress=False)
    # The posterior mean is 0.8 x. In a new order in each epoch all means were near 0.
    torch.testing.assert_close(guide.median(X)["z"], 0.8 * X, rtol=0, atol=0.3)


def rows_of_a_function(x):
    loc = pyro.param("loc", torch.zeros(5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0))


# Pyro's forum and numpyro #1739: such guides in batches.
@pytest.mark.parametrize(
    "guide", [AutoNormal(local), AutoDiagonalNormal(local), rows_of_a_function]
)
def test_parameters_of_rows_in_batches_are_named(guide):
    settings = {"epochs": 1, "batch_size": 5, "lr": 0.0, "seed": 0, "progress": False}
    with pytest.warns(UserWarning, match=r"place in its batch.*batch_size=20"):
        fit(local, guide, X, **settings)
    torch.testing.assert_close(pyro.param("loc", torch.zeros(5)).detach(), torch.zeros(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(local, guides.auto(local, MLP((), [4]), X[:5]), X, **settings)


def noisy(x):
    weight = pyro.param("weight", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(weight * x + torch.randn(len(x)), 1.0))
        pyro.sample("w", dist.Normal(z, 1.0))


def of_two(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def pair_with(posterior, likelihood, **settings):
    prior = default_prior(dist.Normal, 2)
    return models.VAE(prior, likelihood), guides.VAE(posterior, **settings)


@pytest.mark.parametrize("kind", ["noise", "dropout", "corruption", "shared", "one row"])
def test_programs_of_exchangeable_rows_are_not_named(kind):
    posterior = Conditional(dist.Normal, MLP(4, [8], dropout=0.5), 2)
    likelihood = Conditional(dist.Normal, MLP(2, [8]), 4, scale=0.5)
    x = torch.randn(20, 4)
    pair, data = pair_with(posterior, likelihood), x
    if kind == "noise":
        pair, data = (of_two, noisy), x[:, 0]
    elif kind == "corruption":
        pair = pair_with(posterior, likelihood, corruption=GaussianNoise(0.5))
    elif kind == "shared":
        pair, data = (shared, AutoNormal(shared)), x[:, 0]
    settings = {"epochs": 1, "batch_size": 1 if kind == "one row" else 5, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(*pair, data, **settings)


def shared(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 20, subsample=x):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def indexed(rows):
    with pyro.plate("data", len(X), subsample=rows):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=X[rows])


# Pyro #3468: the automatic guide drew rows of its own, and the model took the data of others.
def test_a_guide_that_draws_other_rows_than_the_model_is_given_is_refused():
    rows = torch.arange(len(X))
    settings = {"epochs": 200, "batch_size": 5, "lr": 0.05, "seed": 0, "progress": False}
    with pytest.raises(PairError, match="create_plates=lambda rows: pyro.plate"):
        fit(indexed, AutoNormal(indexed), rows, **settings)
    with pytest.raises(PairError, match="draws rows of the plate 'data'"):
        ELBO().loss(indexed, AutoNormal(lambda _: indexed(rows[:5])), rows[:5])

    def plates(rows):
        return pyro.plate("data", len(X), subsample=rows)

    guide = AutoNormal(indexed, create_plates=plates)
    fit(indexed, guide, rows, **settings)
    torch.testing.assert_close(guide.median(rows)["z"], 0.8 * X, rtol=0, atol=0.5)
