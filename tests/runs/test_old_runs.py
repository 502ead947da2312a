"""Runs of version 0.1, whose files name modules that have moved: they load, evaluate and go on to the same digits.

Each folder of ``version_0_1`` was trained for one of two epochs; ``expected.json`` holds the command, and what the
same version measured when it went on. All of them on the first 40 or 90 digits, with one thread.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from tarspyro import data, load_run
from tarspyro.commands import main, running
from tarspyro.commands.methods.sources import SOURCES
from tarspyro.data import Dataset
from tarspyro.runs.description import describe

FOLDER = Path(__file__).parent / "version_0_1"
RUNS = sorted(path.name for path in FOLDER.iterdir())
PACKAGES = [
    "tarspyro",
    *(f"tarspyro.{n}" for n in ("models", "guides", "infer", "distributions", "nn")),
]


def paths_in(described):
    """The paths of classes in a description."""
    if isinstance(described, list):
        return [path for part in described for path in paths_in(part)]
    if not isinstance(described, dict):
        return []
    own = [described[key] for key in ("new", "class") if isinstance(described.get(key), str)]
    return own + [path for part in described.values() for path in paths_in(part)]


@pytest.fixture
def run(request, tmp_path, monkeypatch):
    """A copy of an old run, with the data that it was trained on."""
    digits = data.digits(flatten=False)
    rows = 90 if request.param == "semi-supervised-vae" else 40
    few = Dataset("digits", digits.train[:rows], digits.test[:20], digits.image_shape)
    monkeypatch.setitem(SOURCES, "digits", SOURCES["digits"]._replace(load=lambda: few))
    monkeypatch.setattr(
        running, "_draw", lambda *_: None
    )  # pictures take long, and show nothing here
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Path(shutil.copytree(FOLDER / request.param, tmp_path / "run"))
    torch.set_num_threads(before)


def numbers(run, name):
    return json.loads((run / name).read_text())


def assert_close(found, expected):
    """Seven digits are those of single precision: sums may run in another order.

    Version 0.1 did not write down what an evaluation has printed, and from what it was made.
    """
    assert found.keys() - {"seconds", "lines", "made of"} == expected.keys() - {"seconds"}
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_close(found[name], value)
        elif isinstance(value, float) and name != "seconds":
            assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name
        elif name != "seconds":
            assert found[name] == value, name


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_an_old_run_evaluates_and_goes_on_to_the_same_digits(run, capsys):
    expected = numbers(run, "expected.json")
    first = numbers(run, "evaluation.json")
    assert any(":" in path for path in paths_in(json.loads((run / "config.json").read_text())))
    assert main(["evaluate", str(run)]) == 0, capsys.readouterr().err
    assert_close(numbers(run, "evaluation.json"), first)
    assert main([*expected["arguments"], "--run", str(run), "--resume"]) == 0, (
        capsys.readouterr().err
    )
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for found, row in zip(rows, expected["metrics"], strict=True):
        assert_close(found, row)
    assert_close(numbers(run, "evaluation.json"), expected["evaluation"])


@pytest.mark.parametrize("name", RUNS)
def test_what_is_written_now_are_paths_of_public_packages(name):
    loaded = load_run(FOLDER / name)
    for half in (loaded.model, loaded.guide):
        for path in paths_in(describe(half)):
            package, _, class_name = path.rpartition(".")
            assert ":" not in path, path
            module = importlib.import_module(package)
            assert isinstance(getattr(module, class_name), type)
            if path.startswith("tarspyro"):
                assert package in PACKAGES and class_name in module.__all__, path


def test_every_public_module_is_written_by_its_public_path():
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, nn.Module):
                path = describe(value)["class"]
                found, _, written = path.rpartition(".")
                assert getattr(importlib.import_module(found), written) is value
                assert written in importlib.import_module(found).__all__
