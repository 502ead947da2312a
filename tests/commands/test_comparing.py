"""Comparisons of runs by the command line."""

import re
import shutil

from tarspyro.commands import main


def test_compare_prints_paired_differences(trained, folder, capsys):
    one = str(trained[0])
    other = str(shutil.copytree(folder, folder.parent / "again"))
    assert main(["compare", one, other, "--device", "cpu", "--num-particles", "3"]) == 0
    printed = capsys.readouterr().out
    assert "+0.000 +- 0.000" in printed  # the same weights
    assert "over 360 data points" in printed and "3 particles" in printed
    number = float(re.search(rf"{re.escape(one)} +(-[0-9.]+)", printed)[1])
    assert -60 < number < -5


def test_runs_that_cannot_be_compared(trained, tmp_path, small, capsys):
    one = str(trained[0])
    assert main(["compare", one]) == 2
    assert "two run folders or more" in capsys.readouterr().err
    other = str(tmp_path / "grey")
    assert main(["train", "vae", "--data", "digits", "--run", other, "--grey", *small]) == 0
    assert main(["compare", one, other]) == 2
    assert "hold out different data" in capsys.readouterr().err
