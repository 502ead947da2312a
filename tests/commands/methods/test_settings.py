"""Settings of methods: fields of a dataclass that become options of the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pytest

from tarspyro import models
from tarspyro.commands import METHODS, main
from tarspyro.commands.methods.autoencoders import VAE
from tarspyro.commands.methods.method import Built, Method
from tarspyro.commands.methods.networks import categorical, encoder
from tarspyro.commands.methods.settings import PAIR, TRAINING, setting
from tarspyro.commands.methods.sources import SOURCES
from tarspyro.infer import ELBO


@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """A method as a contributor would add it."""

    name = "mine"
    title = "a classifier of mine"
    paper = "nowhere"
    pair = "Classifier"
    form = METHODS["classifier"].form
    report = METHODS["classifier"].report
    figures = METHODS["classifier"].figures

    layers: Sequence[int] = setting((8, 4), PAIR, "the sizes of the layers")
    kind: Literal["wide", "deep"] = setting("deep", PAIR, "the kind of network")
    bias: float | None = setting(None, PAIR, "a constant")
    warm: bool = setting(True, TRAINING, "whether to start warm")
    lr: float = 0.25

    def build(self, data):
        return Built(
            models.Classifier(categorical(encoder(self.layers, data.shape), 10)), None, ELBO()
        )


def described(method):
    return {setting.name: setting for setting in method.settings}


def test_types_follow_from_annotations():
    settings = described(Mine())
    assert settings["layers"].kind is int and settings["layers"].several
    assert settings["kind"].choices == ("wide", "deep")
    assert settings["bias"].kind is float and not settings["bias"].choices
    assert settings["warm"].kind is bool
    assert settings["layers"].flag == "--layers"
    assert settings["layers"].least == 1 and settings["seed"].least is None


def test_a_new_default_keeps_the_description():
    assert described(Mine())["lr"] == described(VAE())["lr"]
    assert Mine().options["lr"] == 0.25


def test_settings_of_all_methods_are_described_alike():
    """An option that several methods have means the same in all of them."""
    found = {}
    for method in METHODS.values():
        for item in method.settings:
            expected = found.setdefault(item.name, item)
            assert (item.kind, item.group) == (expected.kind, expected.group), item.name


def test_methods_are_default_instances():
    for name, method in METHODS.items():
        assert method.name == name and method == type(method)()
    assert replace(VAE(), latent=3).options["latent"] == 3


def test_the_data_set_decides_on_settings_that_are_not_given():
    chosen = VAE().completed("frey_face", {})
    assert (chosen.likelihood, chosen.grey) == ("Normal", True)
    assert chosen.epochs == SOURCES["frey_face"].epochs
    given = VAE().completed("frey_face", {"likelihood": "Bernoulli", "epochs": 3})
    assert (given.likelihood, given.grey, given.epochs) == ("Bernoulli", False, 3)


def test_a_new_method_is_one_dataclass(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "mine", Mine())
    with pytest.raises(SystemExit):
        main(["train", "mine", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--layers N [N ...] the sizes of the layers (default: 8 4)" in words
    assert "--kind {wide,deep} the kind of network (default: deep)" in words
    assert "--warm, --no-warm whether to start warm (default: yes)" in words
    assert "--lr X the learning rate of Adam (default: 0.25)" in words

    run = tmp_path / "run"
    options = ["--epochs", "1", "--layers", "6", "--no-warm", "--quiet"]
    assert main(["train", "mine", "--run", str(run), *options]) == 0
    assert "MLP(64 -> 6, ReLU)" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    assert "accuracy" in capsys.readouterr().out
