"""The listing of all methods."""

import shlex
import subprocess
import sys

from tarspyro import models
from tarspyro.commands import METHODS, main
from tarspyro.commands.methods.sources import SOURCES


def test_list(capsys):
    assert main(["list"]) == 0
    listing = capsys.readouterr().out
    blocks = dict(block.split(": ", 1) for block in listing.split("\n\n")[:-1])
    assert list(blocks) == list(METHODS)
    for name, method in METHODS.items():
        assert method.title in blocks[name] and method.paper in blocks[name]
        assert f"tarspyro train {name}\n" in blocks[name] + "\n"
        assert all(data in blocks[name] for data in method.form.names)
    assert "--latent 2 --hidden 256 256 --family Normal" in blocks["vae"]
    assert "digits (300 epochs)" in blocks["vae"] and "digits (100 epochs)" in blocks["vrnn"]
    assert blocks["vae"].count("own data  images or a table") == 1
    assert all(source.about in listing for source in SOURCES.values())


def test_a_reader_may_have_enough():
    command = [sys.executable, "-m", "tarspyro", "list"]
    found = subprocess.run(
        f"{shlex.join(command)} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.stdout.count("\n") == 1 and not found.stderr


def test_no_method_of_the_library_is_missing():
    # Captions have no form on the command line.
    assert {method.pair for method in METHODS.values()} == {*models.__all__} - {"AlignDRAW"}


def test_python_m_tarspyro():
    done = subprocess.run(
        [sys.executable, "-m", "tarspyro", "list"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "vae" in done.stdout and "arXiv:1312.6114" in done.stdout and done.stderr == ""
