"""Many ways to hand in a wrong pair: one clear sentence, the same from every door."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import (
    block_autoregressive,
    neural_autoregressive,
    planar,
    radial,
    sylvester,
)
from torch import nn

from tarspyro import Conditional, embed, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, InputError, PairError, ReweightedWakeSleep
from tarspyro.nn import MLP

# --- programs of one plate, a statement a site
# ----------------------------------------------------------------------


def program(name, *statements, size=len, plate=True):
    """A function that runs the statements, each with the data and the values before it, inside
    the data's plate.
    """

    def run(x):
        values: dict[str, Any] = {}
        if plate:
            with pyro.plate("data", size(x)):
                for statement in statements:
                    statement(x, values)
        else:
            for statement in statements:
                statement(x, values)

    run.__name__ = run.__qualname__ = name
    return run


def draw(name, law, **infer):
    def statement(x, values):
        value = pyro.sample(name, law, infer=infer)
        values[name] = value.sum(-1) if law.event_dim else value

    return statement


def see(name="x", width=3, law=None):
    """The data is Normal around a sum of all that was drawn."""

    def statement(x, values):
        total = sum(values.values(), torch.zeros(len(x)))
        mean = total.unsqueeze(-1) + pyro.param(
            "shift", torch.zeros(width)
        )  # what there is to train
        pyro.sample(name, dist.Normal(mean, 1.0).to_event(1) if law is None else law, obs=x)

    return statement


def of(family, *parameters, width=2):
    """A family with independent elements in an event."""
    return family(*(torch.full((width,), value) for value in parameters)).to_event(1)


def model(*latent, **options):
    return program("model", *latent, see(), **options)


def guide(*latent, **options):
    return program("guide", *latent, **options)


NORMAL = of(dist.Normal, 0.0, 1.0)
GAMMA = of(dist.Gamma, 2.0, 1.0)
BETA = of(dist.Beta, 2.0, 2.0)
UNIFORM = of(dist.Uniform, 0.0, 1.0)
BERNOULLI = of(dist.Bernoulli, 0.5)
POISSON = of(dist.Poisson, 1.0)
DIRICHLET = dist.Dirichlet(torch.ones(2))
CATEGORICAL = dist.Categorical(torch.ones(3))
ONE_HOT = dist.OneHotCategorical(torch.ones(3))

Z = draw("z", NORMAL)
W = draw("w", NORMAL)
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
Y = torch.ones(5, 2)


def matched(prior, posterior):
    """A pair with one latent variable of two laws."""
    return model(draw("z", prior)), guide(draw("z", posterior))


def twice(x, values):
    for _ in range(2):
        pyro.sample("z", NORMAL)


def with_condition(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", NORMAL)
        pyro.sample(
            "x",
            dist.Normal((z * y).sum(-1, keepdim=True) + torch.zeros(3), 1.0).to_event(1),
            obs=x,
        )


def guide_with_condition(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("z", of(dist.Normal, 0.0, 1.0))


def vae(latent=2, width=3):
    likelihood = Conditional(dist.Normal, MLP(latent, [4]), width, scale=1.0)
    return models.VAE(default_prior(dist.Normal, latent), likelihood)


def encoder(latent=2, width=3, family=dist.Normal):
    return guides.VAE(Conditional(family, MLP(width, [4]), latent))


# --- the table
# ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A wrong pair, and what its sentence must contain."""

    model: Any
    guide: Any
    words: tuple[str, ...]
    data: Any = X
    error: tuple[type[Exception], ...] = (PairError,)
    embed: bool = False  # whether the guide alone shows what is wrong
    without: tuple[str, ...] = ()  # doors that do not take part


def case(pair, *words, **options):
    return Case(*pair, words, **options)


DATA = {"error": (InputError, PairError)}
KIND = {"error": (TypeError,)}

# A bound wants two programs. In other places None stands for a guide without latent variables.
BOUNDS = (
    "SVI, ELBO",
    "SVI, IWAE",
    "ELBO.loss",
    "IWAE.loss",
    "ELBO.differentiable_loss",
    "IWAE.differentiable_loss",
)
EVALUATIONS = ("log_likelihood", "elbo", "impute", "gaps")
OTHERS = ("fit", "fit, IWAE", *EVALUATIONS)

CASES = {
    # sites that only one half has
    "swapped halves": case((guide(Z), model(Z)), "observes nothing", embed=False),
    "swapped modules": case((encoder(), vae()), "observes nothing"),
    "misspelt in the guide": case((model(Z), guide(draw("Z", NORMAL))), "'z'", "'Z'"),
    "misspelt in the model": case((model(draw("zz", NORMAL)), guide(Z)), "'zz'", "'z'"),
    "first site missing in the guide": case((model(Z, W), guide(W)), "'z'"),
    "last site missing in the guide": case((model(Z, W), guide(Z)), "'w'"),
    "site missing in the model": case((model(Z), guide(Z, W)), "'w'"),
    "guide draws nothing": case((model(Z), guide()), "'z'", embed=True),
    "guide of another data set": case((model(Z, W), guide(draw("a", NORMAL), draw("b", NORMAL))), "'z'", "'a'"),
    "auxiliary noise without a partner": case((model(Z), guide(draw("e", NORMAL, is_auxiliary=True), Z)), "'e'"),
    "a layer as the guide": case((model(Z), nn.Linear(3, 2)), "'z'", embed=True),
    # supports
    "Normal for a Gamma": case(matched(GAMMA, NORMAL), "'z'", "Gamma", "Normal"),
    "Normal for a Beta": case(matched(BETA, NORMAL), "'z'", "Beta", "Normal"),
    "Normal for a Uniform": case(matched(UNIFORM, NORMAL), "'z'", "Uniform", "Normal"),
    "Normal for a Dirichlet": case(matched(DIRICHLET, NORMAL), "'z'", "Dirichlet", "Normal"),
    "Gamma for a Normal": case(matched(NORMAL, GAMMA), "'z'", "Gamma", "Normal"),
    "Beta for a Gamma": case(matched(GAMMA, BETA), "'z'", "Gamma", "Beta"),
    "Beta for a Dirichlet": case(matched(DIRICHLET, BETA), "'z'", "Dirichlet", "Beta"),
    "Normal for a Bernoulli": case(matched(BERNOULLI, NORMAL), "'z'", "Bernoulli", "Normal"),
    "Bernoulli for a Normal": case(matched(NORMAL, BERNOULLI), "'z'", "Bernoulli", "Normal"),
    "Poisson for a Bernoulli": case(matched(BERNOULLI, POISSON), "'z'", "Bernoulli", "Poisson"),
    "Categorical for one of four": case(matched(dist.Categorical(torch.ones(4)), CATEGORICAL), "'z'", "Categorical"),
    "Categorical for one-hot": case(matched(ONE_HOT, CATEGORICAL), "'z'", "Categorical"),
    "one-hot for Categorical": case(matched(CATEGORICAL, ONE_HOT), "'z'", "Categorical"),
    "Gamma encoder of a Normal prior": case((vae(), encoder(family=dist.Gamma)), "'z'", "Gamma", "Normal"),
    # shapes of events and plates
    "three latents for two": case(matched(NORMAL, of(dist.Normal, 0.0, 1.0, width=3)), "'z'", "2", "3"),
    "two latents for three": case(matched(of(dist.Normal, 0.0, 1.0, width=3), NORMAL), "'z'", "2", "3"),
    "an encoder of three for a decoder of two": case((vae(), encoder(latent=3)), "'z'", "2", "3"),
    "one latent for two": case(matched(NORMAL, dist.Normal(0.0, 1.0)), "'z'", "2"),
    "to_event missing in the guide": case(matched(of(dist.Normal, 0.0, 1.0, width=5), dist.Normal(torch.zeros(5), 1.0)), "'z'", "event"),
    "to_event missing in the model": case(matched(dist.Normal(torch.zeros(5), 1.0), of(dist.Normal, 0.0, 1.0, width=5)), "'z'", "event"),
    "a plate of another size": case((model(Z), guide(Z, size=lambda x: 2 * len(x))), "10", "5"),
    "a plate of half the size": case((model(Z), guide(Z, size=lambda x: len(x) // 2)), "'data'", "2", "5"),
    "no plate in the guide": case((model(Z), guide(Z, plate=False)), "'z'", "plate"),
    "no plate in the model": case((program("model", Z, see(), plate=False), guide(Z)), "'z'", "plate"),
    "a name used twice": case((model(Z), guide(twice)), "'z'", embed=True, **DATA),
    # what is observed
    "a model that observes nothing": case((program("model", Z), guide(Z)), "observes nothing"),
    "obs= forgotten": case((program("model", Z, draw("x", of(dist.Normal, 0.0, 1.0, width=3))), guide(Z)), "'x'"),
    "the model twice": case((model(Z), model(Z)), "'x'", embed=True),
    "the guide twice": case((guide(Z), guide(Z)), "observes nothing"),
    "a guide that observes": case((model(Z), guide(Z, see())), "'x'", embed=True),
    # data and arguments
    "one row in place of a batch": case((vae(), encoder()), "x", "(3,)", data=X[0], embed=True, **DATA),
    "rows of another width": case((vae(), encoder(width=4)), "(4,)", data=torch.zeros(5, 4), **DATA),
    "an encoder of another width": case((vae(), encoder(width=4)), "(5, 3)", embed=True, **DATA),
    "an argument missing": case((with_condition, guide_with_condition), "y", error=(TypeError, ValueError)),
    "an argument too many": case((model(Z), guide(Z)), "2", data=(X, Y), error=(TypeError, ValueError)),
    "halves of other arguments": case((with_condition, guide(Z)), "guide", data=(X, Y), error=(TypeError, ValueError)),
    # kinds of things
    "the class of a model": case((models.VAE, encoder()), "model", **KIND),
    "the class of a guide": case((vae(), guides.VAE), "guide", embed=True, **KIND),
    "a distribution as the model": case((NORMAL, guide(Z)), "model", **KIND),
    "a string as the guide": case((model(Z), "guide"), "guide", embed=True, **KIND),
    "no guide": case((model(Z), None), "guide is None", "['z']", without=BOUNDS),
    "no guide of a bound": case((model(Z), None), "guide", "None", without=OTHERS, **KIND),
}  # fmt: skip


# --- the doors
# ------------------------------------------------------------------------------------------------------


def arguments(data):
    return data if isinstance(data, tuple) else (data,)


def svi(loss):
    def step(p, q, data):
        pyro.infer.SVI(p, q, pyro.optim.Adam({"lr": 0.0}), loss).step(*arguments(data))

    return step


def imputed(p, q, data):
    x = arguments(data)[0]
    mask = torch.ones_like(x).bool()
    mask[..., 0] = False
    evaluate.impute(p, q, data, mask, num_rounds=1)


DOORS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "fit": lambda p, q, data: fit(p, q, data, epochs=1, progress=False),
    "fit, IWAE": lambda p, q, data: fit(p, q, data, loss=IWAE(3), epochs=1, progress=False),
    "SVI, ELBO": svi(ELBO()),
    "SVI, IWAE": svi(IWAE(3)),
    "ELBO.loss": lambda p, q, data: ELBO().loss(p, q, *arguments(data)),
    "IWAE.loss": lambda p, q, data: IWAE(3).loss(p, q, *arguments(data)),
    "ELBO.differentiable_loss": lambda p, q, data: ELBO(2).differentiable_loss(
        p, q, *arguments(data)
    ),
    "IWAE.differentiable_loss": lambda p, q, data: IWAE(3).differentiable_loss(
        p, q, *arguments(data)
    ),
    "log_likelihood": lambda p, q, data: evaluate.log_likelihood(p, q, data, num_particles=10),
    "elbo": lambda p, q, data: evaluate.elbo(p, q, data),
    "impute": imputed,
    "gaps": lambda p, q, data: evaluate.gaps(
        p, q, data, num_particles=4, num_steps=2, num_draws=2
    ),
    "embed": lambda p, q, data: embed(q, data),
}


@functools.cache
def answer(name, door):
    """The error that a door raises, or None."""
    wrong = CASES[name]
    pyro.clear_param_store()
    torch.manual_seed(0)
    try:
        DOORS[door](wrong.model, wrong.guide, wrong.data)
    except Exception as error:
        return error
    finally:
        pyro.clear_param_store()
    return None


def doors_of(name):
    wrong = CASES[name]
    return [
        door
        for door in DOORS
        if (wrong.embed or door != "embed") and door not in wrong.without
    ]


@pytest.mark.parametrize(
    ("name", "door"), [(name, door) for name in CASES for door in doors_of(name)]
)
def test_one_clear_sentence(name, door):
    wrong, error = CASES[name], answer(name, door)
    assert error is not None, "no error"
    assert isinstance(error, wrong.error), f"{type(error).__name__}: {error}"
    text = str(error)
    assert "\n" not in text, text
    assert len(text) <= 300, text
    missing = [word for word in wrong.words if word not in text]
    if door != "embed":  # which knows neither the model nor what it wants
        assert not missing, f"{missing} not in {text!r}"


@pytest.mark.parametrize("name", CASES)
def test_the_same_sentence_from_all_doors(name):
    sentences = {door: str(answer(name, door)) for door in doors_of(name) if door != "embed"}
    for door in set(sentences) & {*EVALUATIONS}:  # they call the data x
        sentences[door] = re.sub("^x has (?=\\d+ parts)", "data has ", sentences[door])
    assert "None" not in sentences.values(), [
        door for door, text in sentences.items() if text == "None"
    ]
    assert len(set(sentences.values())) == 1, "\n".join(
        f"{door}: {text}" for door, text in sentences.items()
    )


def test_the_pairs_would_be_right_otherwise():
    """What is changed in the table is all that is wrong with them."""
    for p, q, data in [
        (model(Z), guide(Z), X),
        (model(Z, W), guide(W, Z), X),
        (vae(), encoder(), X),
        (with_condition, guide_with_condition, (X, Y)),
        matched(GAMMA, GAMMA) + (X,),
        matched(ONE_HOT, ONE_HOT) + (X,),
    ]:
        for door in ("SVI, ELBO", "IWAE.loss", "log_likelihood", "elbo"):
            DOORS[door](p, q, data)


def test_two_sites_of_one_name():
    def model(x):
        for t in range(2):
            with pyro.plate("data", len(x)):
                z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in range(2):
                pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))

    def repeating(x):
        with pyro.plate("data", len(x)):
            for t in range(2):
                z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, t])

    x = torch.zeros(5, 2)
    with pytest.raises(PairError, match=r"'data' is made twice.*once, before the loop"):
        fit(model, guide, x, progress=False)
    with pytest.raises(PairError, match=r"two sites of a run are named 'x'.*f'x_\{t\}'"):
        fit(repeating, guide, x, progress=False)


@pytest.mark.parametrize(
    "make", [planar, radial, sylvester, block_autoregressive, neural_autoregressive]
)
def test_flows_of_pyro_that_know_their_own_draws_alone(make):
    """As TransformedDistributions of a program's own, which raise a KeyError."""
    torch.manual_seed(0)
    flow = make(2)
    normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def program(latent):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", latent)
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        return model

    def guide_with(latent):
        def guide(x):
            pyro.module("flow", flow)
            with pyro.plate("data", len(x)):
                pyro.sample("z", latent)

        return guide

    x = torch.zeros(5, 2)
    flowing = dist.TransformedDistribution(normal, [flow])
    model, guide = program(normal), guide_with(flowing)
    for loss in (ELBO(), IWAE(2)):
        fit(model, guide, x, loss=loss, epochs=1, progress=False)
    assert evaluate.log_likelihood(model, guide, x, num_particles=3).isfinite().all()
    for loss in (IWAE(2, gradient="dreg"), ReweightedWakeSleep(2)):
        with pytest.raises(PairError, match="needs the density of a given 'z'"):
            fit(model, guide, x, loss=loss, epochs=1, progress=False)
    prior = program(flowing), guide_with(normal)
    for run in (fit, evaluate.log_likelihood, evaluate.check_guide):
        with pytest.raises(PairError, match=r"density of its own draws alone .*\.inv where"):
            run(*prior, x)

    def density(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            pyro.sample("x", flowing, obs=x)

    with pytest.raises(PairError, match="'x' from a flow that knows the density of its own"):
        fit(density, lambda x: None, x, progress=False)
