"""Advice of ``fit``: inputs of a scale far from 1, and remedies for losses that are not finite."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import ExpTransform

from tarspyro import Autoregressive, Conditional, Optimizer, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, InputError
from tarspyro.nn import MADE, MLP, Log1p, Standardize

from ..programs import as_made

SHORT = {"epochs": 1, "batch_size": 20, "progress": False, "seed": 0}
TABLE = torch.linspace(-2, 2, 240).reshape(40, 6)


def pair(family=dist.Normal, first=(), **fixed):
    """A pair for rows of six numbers, whose encoder begins with some layers."""
    torch.manual_seed(0)
    likelihood = Conditional(family, MLP(2, [16]), 6, **fixed)
    network = nn.Sequential(*first, MLP(6, [16]))
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    # fit would standardize the inputs of new networks.
    return as_made(p, guides.VAE(Conditional(dist.Normal, network, 2)))


POSITIVE = 500 + 100 * TABLE
COUNTS = (500 * TABLE.abs()).round()


@pytest.mark.parametrize(
    ("family", "fixed", "x", "remedy"),
    [
        (dist.Normal, {"scale": 0.5}, POSITIVE, r"train on standardized data"),
        (dist.Normal, {"scale": 0.5}, COUNTS, r"train on standardized data"),
        (dist.LogNormal, {}, POSITIVE + 0.5, r"Sequential\(Standardize\.of\(x\), network\)"),
        (dist.Poisson, {}, COUNTS, r"Sequential\(Log1p\(\), Standardize"),
        (dist.Normal, {"scale": 0.5}, 0.06 * POSITIVE, r"gets inputs of scale 24,"),
    ],
)
def test_inputs_of_another_scale_are_named_with_a_remedy(family, fixed, x, remedy):
    with pytest.raises(UserWarning, match=remedy):
        fit(*pair(family, **fixed), x, **SHORT)


@pytest.mark.parametrize(
    ("family", "fixed", "x", "first"),
    [
        (dist.Normal, {"scale": 0.5}, TABLE, []),
        (dist.Normal, {"scale": 0.5}, 4 * TABLE, []),
        (dist.Normal, {"scale": 0.5}, Standardize.of(POSITIVE)(POSITIVE), []),
        (dist.Gamma, {}, POSITIVE + 0.5, [Standardize.of(POSITIVE)]),
        (dist.Poisson, {}, COUNTS, [Log1p(), Standardize.of(COUNTS.log1p())]),
        (dist.Poisson, {}, (3 * TABLE.abs()).round(), []),
    ],
)
def test_no_advice_after_the_remedy(family, fixed, x, first):
    history = fit(*pair(family, first, **fixed), x, **SHORT)
    assert len(history) == 1


def failure(p, q, x, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(FloatingPointError) as error:
            fit(p, q, x, **{**SHORT, **options})
    return str(error.value)


class Root(nn.Module):
    """A square root at zero, whose slope is infinite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return (self.weight * x).abs().sqrt()


def test_the_first_step_is_not_blamed_on_the_learning_rate():
    for options in ({}, {"lr": 10}):
        text = failure(*pair(first=[Root()], scale=0.5), TABLE, **options)
        assert "at step 1" in text
        assert "the learning rate is not the cause" in text
        assert "smaller learning rate" not in text


def test_parameters_that_overflow_before_the_first_step_are_named_with_the_scale():
    with pytest.raises(InputError, match="concentration of Gamma is NaN, infinite.*up to 499"):
        fit(*overflowing(dist.Gamma, "concentration", "rate"), POSITIVE, **SHORT)
    with pytest.raises(InputError, match=r"loc of Normal .*: look at the values"):
        fit(*pair(dist.Gamma, [Infinite()]), TABLE.abs() + 0.1, **SHORT)


def overflowing(family, *parameters):
    """A pair whose likelihood has an exponential as its link, and heads with random weights."""
    p, q = pair(family, transforms={name: ExpTransform() for name in parameters})
    for name in parameters:
        nn.init.normal_(p.likelihood.heads[name].weight)
    return p, q


class Infinite(nn.Module):
    """A layer that fails."""

    def forward(self, x):
        return x / 0


def test_raw_counts_are_blamed_on_their_scale():
    text = failure(*overflowing(dist.Poisson, "rate"), COUNTS)
    assert "at step 1" in text
    assert "gets inputs of scale" in text
    assert "smaller learning rate" not in text


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_later_steps_are_blamed_on_a_large_learning_rate(on_nonfinite):
    p, q = pair()
    adam = Optimizer(torch.optim.Adam, on_nonfinite=on_nonfinite)
    text = failure(p, q, TABLE, lr=1e3, optimizer=adam, epochs=30)
    assert "use a smaller learning rate than lr=1000, such as lr=0.001" in text


def test_pixels_drawn_for_real_numbers_are_named():
    p, q = pair(scale=0.5)
    grey = (TABLE + 2) / 4
    with pytest.raises(UserWarning, match="x as 0 and 1, and its likelihood is Normal"):
        fit(p, q, grey, binarize=True, **SHORT)
    fit(*pair(dist.Bernoulli), grey, binarize=True, **SHORT)


def test_advice_leaves_the_random_state_and_the_weights():
    p, q = pair(scale=0.5)
    before = {name: value.clone() for name, value in q.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = fit(p, q, POSITIVE, lr=0, **SHORT)["loss"]
        other = fit(p, q, POSITIVE, lr=0, **SHORT)["loss"]
    assert one == other
    assert all(torch.equal(value, before[name]) for name, value in q.state_dict().items())


def test_a_density_of_raw_numbers_is_told_to_standardize_them():
    """The start near the data is for likelihoods given latent variables."""
    torch.manual_seed(0)
    x = torch.randn(300, 4) * 50 + 1000
    p = models.Density(Autoregressive(dist.Normal, MADE(4, [32]), 4))
    with pytest.warns(UserWarning, match=r"root mean square of 1e\+03, .* x.mean"):
        raw = fit(p, None, x, epochs=1, progress=False)
    p = models.Density(Autoregressive(dist.Normal, MADE(4, [32]), 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = fit(p, None, (x - x.mean(0)) / x.std(0), epochs=1, progress=False)
    assert history["loss"][-1] < 20 < raw["loss"][-1]


def _of_one_mean(plate, scale=1.0):
    """Normal data with an unknown mean, and the family of its exact posterior."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with plate(x), pyro.poutine.scale(scale=scale):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return model, guides.auto(model, None, torch.zeros(5))


@pytest.mark.parametrize("loss", [ELBO(), Trace_ELBO()])
def test_a_latent_variable_that_batches_share_is_warned_of_and_the_remedies_are_true(loss):
    """Its posterior has the standard deviation 1 / sqrt(1 + N) for N data points."""
    x = torch.randn(400, generator=torch.Generator().manual_seed(0))
    options = {"loss": loss, "lr": 0.02, "seed": 0, "progress": False}

    def whole(x):
        return pyro.plate("data", len(x))

    pair = _of_one_mean(whole)
    with pytest.warns(
        UserWarning, match=r"shares \['mean'\] .* there were 20 data points, not 400"
    ):
        fit(*pair, x, batch_size=20, epochs=15, **options)
    assert _scale_of(pair[1], x) == pytest.approx(21**-0.5, rel=0.25)

    pair = _of_one_mean(lambda x: pyro.plate("data", 400, subsample=x))
    fit(*pair, x, batch_size=20, epochs=20, **options)
    assert _scale_of(pair[1], x[:20]) == pytest.approx(401**-0.5, rel=0.25)

    pair = _of_one_mean(whole)
    fit(*pair, x, batch_size=400, epochs=300, **options)
    assert _scale_of(pair[1], x) == pytest.approx(401**-0.5, rel=0.25)


def _scale_of(guide, x):
    return pyro.poutine.trace(guide).get_trace(x).nodes["mean"]["fn"].scale.item()


def test_latent_variables_of_data_points_and_weighted_programs_are_no_reason_to_warn():
    x = torch.zeros(20)

    def local(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = guides.auto(local, nn.Sequential(nn.Unflatten(-1, (-1, 1)), nn.Linear(1, 2)), x)
    options = {"batch_size": 5, "epochs": 1, "seed": 0, "progress": False}
    fit(local, guide, x, **options)
    scaled = _of_one_mean(lambda x: pyro.plate("data", len(x)), scale=4.0)
    fit(*scaled, x, **options)
    fit(
        *_of_one_mean(lambda x: pyro.plate("data", len(x))), x, loss=ELBO(beta=0.25), **options
    )
