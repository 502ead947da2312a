"""The arguments of the command line: usage errors of one line, and help."""

import re

import pytest

from tarspyro.commands import METHODS, main


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["train"],
        ["train", "no-such-method"],
        ["train", "vae", "--data", "cifar"],
        ["train", "vae", "--epochs", "0"],
        ["train", "vae", "--epochs", "many"],
        ["train", "vae", "--latent", "-2"],
        ["train", "vae", "--hidden", "8", "0"],
        ["train", "vae", "--likelihood-particles", "0"],
        ["evaluate"],
        ["evaluate", "run", "--which", "first"],
        ["sample", "run", "--num", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, assert_one_line):
    assert main(arguments) == 2
    assert assert_one_line("see tarspyro", "--help)") == ""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["COMMAND"]),
        (["train"], ["METHOD", "tarspyro train --help"]),
        (["train", "vea"], ["no method 'vea'", "did you mean vae?", "tarspyro train --help"]),
        (["trian"], ["no command 'trian'", "did you mean train?", "tarspyro --help"]),
        (["vae"], ["no command 'vae'", "did you mean tarspyro train vae?"]),
        (
            ["dance"],
            [
                "no command 'dance'",
                "list, train, sweep, evaluate, sample, plot, embed, impute, compare, report or completion",
            ],
        ),
        (["train", "xyz"], ["'xyz'", "tarspyro list"]),
        (["train", "vae", "extra"], ["argument extra"]),
        (
            ["train", "vae", "--famly", "Gamma"],
            ["no option --famly", "did you mean --family?"],
        ),
        (
            ["train", "gan", "--family", "Gamma"],
            ["--family does not apply to gan", "--divergence", "train gan --help"],
        ),
        (
            ["train", "autoencoder", "--beta", "2"],
            ["--beta does not apply to autoencoder", "--trunk"],
        ),
        (["train", "draw", "--hidden=3"], ["--hidden does not apply to draw", "--units"]),
        (["train", "gan", "--patience", "3"], ["--patience does not apply to gan"]),
        (["train", "vae", "--loss", "fivo"], ["--loss", "elbo", "iwae", "renyi", "tvo"]),
        (["train", "vae", "--loss", "iwea"], ["--loss", "'iwea'", "did you mean iwae?"]),
        (["train", "vae", "--data", "minst"], ["'minst'", "did you mean mnist?"]),
        (["evaluate", "run", "--which", "lats"], ["--which", "'lats'", "did you mean last?"]),
        (["train", "vae", "--lr", "fast"], ["--lr: must be a number, got 'fast'"]),
        (["train", "vae", "--lr", "-1"], ["--lr: must be a number above 0, got '-1'"]),
        (["train", "vae", "--lr", "nan"], ["--lr: must be a number above 0, got 'nan'"]),
        (["train", "vae", "--seed", "1.5"], ["--seed: must be a whole number, got '1.5'"]),
        (["train", "vae", "--latent", "3", "4"], ["argument 4"]),
        (["train", "ladder-vae", "--latent"], ["--latent", "at least one"]),
        (
            ["train", "vae", "--data", "cifar"],
            ["'cifar'", "images: digits, mnist or frey_face"],
        ),
        (
            ["train", "vae", "--data", "ring"],
            ["ring holds points", "vae takes images: digits, mnist or frey_face"],
        ),
        (
            ["train", "cmma", "--data", "frey_face"],
            ["frey_face holds images", "with labels: digits or mnist"],
        ),
        (["train", "draw", "--data", "nottingham"], ["holds music"]),
        (
            ["train", "vrnn", "--data", "yacht"],
            ["holds a table", "jsb_chorales or nottingham"],
        ),
        (
            ["sample", "run", "--nun", "3"],
            ["no option --nun", "did you mean --num?", "tarspyro sample --help"],
        ),
    ],
    ids=lambda value: " ".join(value) if value[:1] in (["train"], ["sample"]) else "",
)
def test_usage_is_told_in_a_line(arguments, parts, assert_one_line):
    assert main(arguments) == 2
    assert assert_one_line(*parts) == ""


@pytest.mark.parametrize(
    "arguments", [[], ["list"], ["train"], ["evaluate"], ["sample"], ["plot"]], ids=" ".join
)
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    output = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: tarspyro" in output
    assert f"tarspyro {' '.join(arguments)}".strip() in output.partition("example")[2]


@pytest.mark.parametrize("name", METHODS)
def test_help_of_a_method(name, capsys):
    """It shows the options that apply, those alone, and what they are if they are not given."""
    with pytest.raises(SystemExit) as stop:
        main(["train", name, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    for setting, default in METHODS[name].options.items():
        assert re.search(rf"\W--{setting.replace('_', '-')}\W", words)
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert f"(default: {default})" in words
    assert ("--family" in words) == ("family" in METHODS[name].options)
    assert ("--patience" in words) == ("patience" in METHODS[name].options)
    assert f"tarspyro train {name} --data" in words.partition("examples:")[2]
