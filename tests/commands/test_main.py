"""Exit codes and errors of the command line."""

import json
import subprocess
import sys

import pytest

from tarspyro.commands import main
from tarspyro.commands.running import RUN_COMMANDS


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (NotImplementedError(), "NotImplementedError"),
    ],
    ids=["lines", "nothing"],
)
def test_an_error_is_one_line_whatever_it_says(error, line, monkeypatch, capsys):
    def fail(*args, **options):
        raise error

    monkeypatch.setitem(RUN_COMMANDS, "train", fail)
    assert main(["train", "vae"]) == 2
    assert capsys.readouterr().err == f"tarspyro: {line}\n"


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(RUN_COMMANDS, "train", interrupt)
    assert main(["train", "vae"]) == 130
    assert capsys.readouterr().err == "tarspyro: interrupted\n"


# Arguments that are answered without PyTorch, with their exit codes.
LIGHT = {
    "--help": 0,
    "train --help": 0,
    "train vae --help": 0,
    "sample --help": 0,
    "list": 0,
    "--version": 0,
    "completion bash": 0,
    "train vae --data nowhere.csv": 2,
    "": 2,
    "trian": 2,
    "train vea": 2,
    "train vae --lattent 3": 2,
    "train vae --loss iwea": 2,
    "train vae --data digit": 2,
    "train gan --family Gamma": 2,
}
HEAVY = ("torch", "pyro", "numpy", "matplotlib", "sklearn", "tqdm")


def test_help_and_usage_errors_do_not_wait_for_torch():
    """A new process answers with the standard library alone."""
    code = f"""
import json, sys
from tarspyro.commands import main

found = {{}}
for text in {list(LIGHT)}:
    try:
        code = main(text.split())
    except SystemExit as stop:
        code = stop.code
    found[text] = code, [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(found), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stderr.splitlines()[-1])
    assert found == {text: [code, []] for text, code in LIGHT.items()}
