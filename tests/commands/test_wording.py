"""Errors in the words of the command line."""

import pytest

from tarspyro.commands import main
from tarspyro.commands.wording import in_options

NAMES = ["lr", "num_particles", "scale", "size", "without", "family"]


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("lr must be positive.", "--lr must be positive."),
        ("The rate lr must be positive.", "The rate lr must be positive."),
        ("It needs num_particles of 2 or more.", "It needs --num-particles of 2 or more."),
        ("give num_particles=2.", "give --num-particles 2."),
        ("Normal's scale=0 is not positive.", "Normal's --scale 0 is not positive."),
        ("one size, size=(32, 48).", "one size, --size 32 48."),
        (
            "the column 'day': leave the column out.",
            "the column 'day': leave the column out, --without 'day'.",
        ),
        ("device must be one.", "--device must be one."),
        ("The family of x is Normal.", "The family of x is Normal."),
    ],
)
def test_options_in_place_of_arguments(sentence, told):
    assert in_options(sentence, NAMES) == told


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--lr", "-1"], "--lr: must be a number above 0"),
        (["--beta", "-1"], "--beta must"),
        (["--clip-norm", "-1"], "--clip-norm"),
    ],
)
def test_errors_of_a_training(options, part, tmp_path, small, assert_one_line):
    assert main(["train", "vae", "--run", str(tmp_path / "run"), *small, *options]) == 2
    assert_one_line(part)


def test_a_run_that_is_there(folder, small, assert_one_line):
    assert main(["train", "vae", "--run", str(folder), *small]) == 2
    assert_one_line("--resume", "--overwrite", "--run")
