"""Former arguments of fit, and suggestions for unknown ones."""

import inspect
import warnings

import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, Optimizer, Run, data, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP


@pytest.fixture(scope="module")
def x():
    return data.digits().train.x[:200].round()


def pair():
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(2, [8]), 64)
    model = models.VAE(default_prior(dist.Normal, 2), likelihood)
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))


def losses(x, *, warn=None, **options):
    """The losses of every step, and the messages of warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        options = {"epochs": 2, "seed": 0, "progress": False, **options}
        history = fit(*pair(), x, **options)
    if warn is not None:
        assert [warning.category for warning in caught] == [DeprecationWarning]
        assert caught[0].filename == __file__  # where the user called
        assert warn in str(caught[0].message)
    return history.step_losses


def test_fit_has_at_most_twenty_arguments():
    parameters = inspect.signature(fit).parameters.values()
    assert sum(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters) <= 20


@pytest.mark.parametrize(
    ("former", "new", "replacement"),
    [
        (
            {"optimizer_options": {"lr": 0.01}},
            {"lr": 0.01},
            "optimizer_options={'lr': 0.01} is now lr=0.01.",
        ),
        (
            {"optimizer_options": {"lr": 0.01, "eps": 1e-4}},
            {"lr": 0.01, "optimizer": Optimizer(torch.optim.Adam, eps=1e-4)},
            "is now lr=0.01, optimizer=Optimizer(torch.optim.Adam, eps=0.0001).",
        ),
        (
            {"clip_norm": 0.1, "clip_value": 0.01},
            {"optimizer": Optimizer(clip_norm=0.1, clip_value=0.01)},
            "clip_norm=0.1, clip_value=0.01 are now optimizer=Optimizer(torch.optim.Adam,"
            " clip_norm=0.1, clip_value=0.01).",
        ),
        (
            {"on_nonfinite": "skip", "optimizer": torch.optim.SGD},
            {"optimizer": Optimizer(torch.optim.SGD, on_nonfinite="skip")},
            "is now optimizer=Optimizer(torch.optim.SGD, on_nonfinite='skip').",
        ),
        (
            {"keep": "best"},
            {},
            "keep='best' is now history.use('best', model, guide), to be called after fit.",
        ),
        (
            {"resume": False},
            {},
            "resume=False is now folder=Run('runs/a', resume=False)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_former_argument_does_what_its_replacement_does(former, new, replacement, x):
    assert losses(x, warn=replacement, **former) == losses(x, **new)


def test_keep_decides_on_the_weights(x):
    ascent = {"lr": lambda step: 1e-2 if step < 2 else -1e-2}
    options = {"schedules": ascent, "validation": x[:50]}
    for keep in ("best", "last"):
        model, guide = pair()
        with pytest.warns(DeprecationWarning, match=f"history.use\\('{keep}'"):
            history = fit(
                model, guide, x, epochs=2, seed=0, progress=False, keep=keep, **options
            )
        state = history.states[keep]["model"]
        assert history.in_hand == keep and history.best_epoch == 1
        assert all(
            torch.equal(value, state[name]) for name, value in model.state_dict().items()
        )


def test_former_arguments_of_the_run(x, tmp_path):
    former = {"checkpoint_steps": 1, "keep_checkpoints": 2, "settings": {"note": 1}}
    replacement = f"are now folder=Run('{tmp_path}', "
    losses(x, warn=replacement, folder=tmp_path, epochs=1, **former)
    assert Run(tmp_path).config()["note"] == 1
    assert (tmp_path / "state-1.safetensors").exists()
    replacement = f"resume=True is now folder=Run('{tmp_path}', resume=True)."
    assert len(losses(x, warn=replacement, folder=tmp_path, resume=True)) == 4
    again = {"folder": str(tmp_path), "overwrite": True, "epochs": 1}
    replacement = f"overwrite=True is now folder=Run('{tmp_path}', overwrite=True)."
    assert len(losses(x, warn=replacement, **again)) == 2


def test_former_streams(x):
    new = losses(data.Stream(iter(x.split(50)), steps_per_epoch=2))
    replacement = "steps_per_epoch=2 is now data=Stream(..., steps_per_epoch=2)."
    assert losses(iter(x.split(50)), steps_per_epoch=2, warn=replacement) == new


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"learning_rate": 0.1}, "lr"),
        ({"batchsize": 10}, "batch_size"),
        ({"epoch": 10}, "epochs"),
        ({"validation_data": 0}, "validation"),
        ({"verbose": 0}, "progress"),
        ({"callbacks": []}, "callback"),
        ({"random_state": 0}, "seed"),
        ({"max_epochs": 0}, "epochs"),
        ({"weight_decay": 0.1}, "optimizer=Optimizer(torch.optim.AdamW, weight_decay=...)"),
        ({"gradient_clip_val": 1.0}, "optimizer=Optimizer(clip_norm=...)"),
        ({"clipnorm": 1.0}, "optimizer=Optimizer(clip_norm=...)"),
        ({"checkpoint_step": 1}, "folder=Run(..., checkpoint_steps=...)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_unknown_argument_gets_a_suggestion(options, meant, x):
    with pytest.raises(TypeError) as caught:
        fit(*pair(), x, **options)
    name = next(iter(options))
    assert str(caught.value) == f"fit() has no argument {name!r}: did you mean {meant}?"


def test_an_argument_like_no_other_gets_the_list(x):
    with pytest.raises(TypeError, match="no argument 'qqq': its arguments are model, guide, "):
        fit(*pair(), x, qqq=1)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"keep": "first"}, ValueError, "keep must be 'best' or 'last', got 'first'"),
        ({"resume": True}, ValueError, r"resume=True needs .* folder=Run\('runs/a'"),
        ({"resume": "yes"}, ValueError, "resume must be True, False or 'auto', got 'yes'"),
        ({"optimizer_options": 3}, TypeError, "optimizer_options must be a mapping"),
        ({"clip_norm": 0}, ValueError, "clip_norm must be positive, got 0"),
        (
            {"optimizer": Optimizer(), "clip_norm": 1.0},
            TypeError,
            "an Optimizer and clip_norm: give these to the Optimizer",
        ),
        (
            {"folder": Run("runs/a"), "resume": True},
            TypeError,
            "a Run and resume: give these to the Run",
        ),
    ],
)
def test_errors_of_former_arguments(options, kind, message, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(kind, match=message):
            fit(*pair(), x, progress=False, **options)
