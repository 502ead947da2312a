"""Sweeps by the command line."""

import pytest

from tarspyro.commands import main
from tarspyro.commands.parser import parse


def test_a_sweep_trains_its_runs_and_names_the_best(tmp_path, capsys):
    folder = tmp_path / "sweep"
    command = ["sweep", "vae", "--data", "digits", "--folder", str(folder), "--device", "cpu"]
    command += ["--lr", "1e-6", "1e-2", "--hidden", "8", "--epochs", "1", "--seeds", "1"]
    assert main([*command, "--part", "1/2"]) == 0
    assert "1 of 2 runs missing" in capsys.readouterr().out
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Sweep of 2 runs, by objective" in printed
    assert "best on held-out data of the training: --lr 0.01\n" in printed
    assert "p(x, z)" not in printed
    for path in folder.iterdir():
        assert (path / "best.safetensors").exists()
        assert not (path / "evaluation.json").exists()  # the test data are unused
    assert main([*command, "--epochs", "2"]) == 2
    assert "give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["vae"], ["several values", "--lr 1e-3 3e-4"]),
        (["vae", "--lr", "0.1"], ["several values"]),
        (["vae", "--beta", "1", "2"], ["--beta changes what is measured", "tarspyro compare"]),
        (["gan", "--lr", "0.1", "0.2"], ["gan has no loss on held-out data"]),
        (["vae", "--lr", "0.1", "0.1"], ["twice"]),
        (["vae", "--part", "3/2"], ["--part", "like 2/6"]),
        (["vae", "--hidden", "8,0"], ["--hidden", "whole number from 1 up"]),
        (["vae", "--seed", "1"], ["no option --seed", "did you mean --seeds?"]),
    ],
)
def test_wrong_sweeps_are_refused(arguments, parts, tmp_path, assert_one_line):
    folder = [] if "--seed" in arguments else ["--folder", str(tmp_path / "sweep")]
    assert main(["sweep", *arguments, *folder]) == 2
    assert_one_line(*parts)
    assert not (tmp_path / "sweep").exists()


def test_lists_are_written_with_commas():
    options = parse(["sweep", "vae", "--hidden", "256", "512,512", "--part", "2/3"])
    assert options.given["hidden"] == [[256], [512, 512]]
    assert options.part == (2, 3)
