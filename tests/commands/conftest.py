"""One trained run for the tests of the commands, and what an error looks like."""

import shutil
from pathlib import Path

import pytest
import requests

from tarspyro.commands import main

SMALL = [
    "--hidden",
    "8",
    "--epochs",
    "1",
    "--quiet",
    "--likelihood-particles",
    "2",
    "--batch-size",
    "400",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, **options):
        raise OSError("no network in tests")

    monkeypatch.setattr(requests, "get", refuse)


@pytest.fixture(scope="session")
def small():
    """Options of a training that takes a second."""
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One run of the command for many tests, which must not change it, and what it printed."""
    folder = tmp_path_factory.mktemp("cli") / "runs" / "vae"
    arguments = ["train", "vae", "--data", "digits", "--run", str(folder), *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(
            "builtins.print",
            lambda *args, sep=" ", **options: printed.append(sep.join(map(str, args))),
        )
        assert main([*arguments, "--epochs", "2"]) == 0
    return folder, "\n".join(printed)


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the run."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture
def training_alone(monkeypatch):
    """Leaves out the report and the pictures, which take longer than a small training."""
    monkeypatch.setattr("tarspyro.commands.running.write_report", lambda *args: None)
    monkeypatch.setattr("tarspyro.commands.running._draw", lambda *args: None)


@pytest.fixture
def assert_one_line(capsys):
    """Checks that an error is one line for the user, and no traceback; returns the output."""

    def check(*parts):
        output, errors = capsys.readouterr()
        assert errors.startswith("tarspyro: ") and errors.endswith("\n"), errors
        assert errors.count("\n") == 1, errors
        for part in parts:
            assert part in errors
        return output

    return check
