"""The commands of the documentation are understood, and the benchmark runs those of a section."""

import re
import runpy
from pathlib import Path

import pytest

from tarspyro.commands.parser import parse

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "command-line.md").read_text()
COMMANDS = [
    line.partition("#")[0].split()
    for line in re.findall(r"^    tarspyro (.*)$", PAGE, re.MULTILINE)
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_documented_command_is_understood(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in arguments:
        if re.fullmatch(r"[\w-]+\.(csv|npy|npz)", word) or word == "pictures":
            (tmp_path / word).touch()
    if arguments[-1] in ("--help", "--version"):
        with pytest.raises(SystemExit) as stop:
            parse(arguments)
        assert stop.value.code == 0
    else:
        assert parse(arguments).command == arguments[0]


def test_the_benchmark_runs_the_documented_commands():
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "terminal.py"))
    documented = benchmark["commands"]()
    assert list(documented) == list(benchmark["MAKERS"])
    for name, lines in documented.items():
        commands = [line.split()[1] for line in lines]
        assert commands[0] == "train" and {"evaluate", "embed", "sample", "plot"} <= set(
            commands
        )
        assert name in lines[0]
