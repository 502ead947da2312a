"""Bad input gets one clear sentence before the first step, and loses nothing."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader

from tarspyro import Conditional, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import PairError
from tarspyro.infer.traces import InputError
from tarspyro.nn import MLP, ConvEncoder


def pair(likelihood=dist.Bernoulli, shape=64, encoder=None, **fixed):
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(likelihood, MLP(2, [16]), shape, **fixed)
    )
    return model, guides.VAE(Conditional(dist.Normal, encoder or MLP(shape, [16]), 2))


x = digits().train.x[:120]
image = (1, 8, 8)
with_nan = x.round()
with_nan[17, 3] = math.nan

one_grey_row = x.round()
one_grey_row[-1, 20] = 0.5

CASES = {
    "one grey row after the first batch": (pair, one_grey_row, {}, "grey values"),
    "one grey row, validation": (pair, x.round(), {"validation": one_grey_row}, "grey values"),
    "NaN to binarize": (
        pair,
        with_nan,
        {"binarize": True},
        "NaN values in 1 of 120",
    ),
    "bytes": (pair, x * 255, {}, "values from 0 to 255.*divide by 255"),
    "bytes of dtype uint8": (pair, (x * 255).to(torch.uint8), {}, "divide by 255"),
    "bytes to binarize": (
        pair,
        x * 255,
        {"binarize": True},
        "binarize=True needs pixels between 0 and 1.*divide by 255",
    ),
    "grey under Bernoulli": (
        pair,
        x,
        {},
        "binarize=True, or accept the cross-entropy.*validate_args=False",
    ),
    "bytes where grey is accepted": (
        lambda: pair(validate_args=False),
        x * 255,
        {},
        "divide by 255",
    ),
    "negative under Gamma": (
        lambda: pair(dist.Gamma),
        x - 1,
        {},
        "outside the support of Gamma",
    ),
    "NaN": (pair, with_nan, {}, "NaN values in 1 of 120 rows, first in row 17"),
    "infinite": (lambda: pair(dist.Normal), x / 0, {}, "NaN and infinite"),
    "labels for data": (pair, digits().train.y[:120], {}, "which look like labels"),
    "labels among the inputs": (
        pair,
        (x.round(), digits().train.y[:120]),
        {},
        "2 parts but models.VAE takes 1",
    ),
    "too few pixels": (
        pair,
        x.round()[:, :50],
        {},
        r"rows of shape \(50,\), but the likelihood draws \(64,\)",
    ),
    "images for vectors": (
        pair,
        x.round().reshape(-1, 1, 8, 8),
        {},
        r"x.reshape\(len\(x\), 64\)",
    ),
    "no channel axis": (
        lambda: pair(shape=image),
        x.round().reshape(-1, 8, 8),
        {},
        r"no channel axis.*x\[:, None\]",
    ),
    "encoder of another size": (
        lambda: pair(encoder=MLP(32, [4])),
        x.round(),
        {},
        r"posterior\(x\) got x of shape \(100, 64\).*\(\*, 32\), got \(100, 64\)",
    ),
    "parts of different length": (pair, (x.round(), x[:5]), {}, "differ in length"),
    "empty": (pair, x[:0], {}, "no rows"),
    "an unknown name": (
        pair,
        {"images": x.round()},
        {},
        "'images', which models.VAE does not take",
    ),
    "a mapping without parts": (
        pair,
        {},
        {},
        r"data has no parts: give a mapping with \['x'\]",
    ),
    "not data at all": (pair, 3, {}, "data must be tensors"),
    "an exhausted iterator": (
        pair,
        iter([x.round()]),
        {},
        "iterator, which can be read once",
    ),
    "NaN in the validation data": (
        pair,
        x.round(),
        {"validation": with_nan},
        "NaN values in 1 of 120",
    ),
    "grey validation data": (pair, x.round(), {"validation": x}, "grey values"),
    "validation of bytes": (
        pair,
        x.round(),
        {"validation": x * 255, "binarize": True},
        "binarize=True needs",
    ),
}


@pytest.mark.parametrize(("build", "data", "options", "message"), CASES.values(), ids=CASES)
def test_bad_data_gets_one_sentence_and_changes_nothing(build, data, options, message):
    model, guide = build()
    before = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as error:
        fit(model, guide, data, **{"progress": False, **options})
    assert "\n" not in str(error.value)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [*model.parameters(), *guide.parameters()], strict=True)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert torch.distributions.Distribution._validate_args is True


@pytest.mark.parametrize(
    ("build", "data", "options"),
    [
        (pair, x, {"binarize": True}),
        (lambda: pair(validate_args=False), x, {}),
        (lambda: pair(dist.Normal, scale=0.1), x, {}),
        (lambda: pair(dist.ContinuousBernoulli), x, {}),
        (pair, x.round().numpy().astype(np.float64), {}),
        (
            lambda: pair(shape=image, encoder=ConvEncoder(image, [4])),
            x.round().reshape(-1, 1, 8, 8),
            {},
        ),
    ],
)
def test_good_data_passes(build, data, options):
    assert math.isfinite(fit(*build(), data, epochs=1, progress=False, **options)["loss"][0])


def test_bytes_to_binarize_from_a_loader():
    with pytest.raises(
        InputError, match="divide by 255"
    ):  # reading the loader may draw its order: no state is compared
        fit(*pair(), DataLoader(x * 255, 60), binarize=True, progress=False)


def test_the_caller_s_validation_is_off_and_the_check_still_sees():
    with pyro.validation_enabled(False), pytest.raises(InputError, match="grey values"):
        fit(*pair(), x, progress=False)


def test_sites_that_do_not_match():
    model, _ = pair()
    guide = guides.Autoencoder(Conditional(dist.Normal, MLP(64, [8]), 2))
    assert fit(model, guide, x.round(), epochs=1, progress=False)  # the same sites: a pair

    def other(x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(
        PairError, match=r"other does not pair with models.VAE: only the model samples \['z'\]"
    ):
        fit(model, other, x.round(), progress=False)


def test_latent_shapes_that_do_not_match():
    model, _ = pair()
    guide = guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 3))
    with pytest.raises(
        PairError,
        match=r"'z' has an event of shape \(2,\) in models.VAE \(Normal\) and \(3,\) in guides",
    ):
        fit(model, guide, x.round(), progress=False)


def test_nothing_to_train():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(PairError, match="no parameters to train"):
        fit(model, guide, torch.zeros(5), progress=False)


def test_a_part_that_is_never_called_is_refused_and_the_remedies_are_true():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 16)

        def forward(self, x):
            return self.layer(x).relu()

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.posterior = Conditional(dist.Normal, Network(), 2)
            self.spare = Conditional(dist.Normal, Network(), 2)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.posterior(x))

    model, guide = pair()[0], Guide()
    options = {"epochs": 1, "progress": False}
    refused = pytest.raises(PairError, match="Guide does not call the layer of 'spare.heads")
    with refused:
        fit(model, guide, x.round(), **options)
    guide.spare(x)
    with pytest.warns(UserWarning, match="does not depend on Guide.spare"):
        fit(model, guide, x.round(), **options)
    del guide.spare
    fit(model, guide, x.round(), **options)
