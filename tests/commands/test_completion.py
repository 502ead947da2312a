"""Completion for the shell."""

import shutil
import subprocess

import pytest

from tarspyro.commands import METHODS, main


def complete(script, shell, *words):
    """What a shell offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _tarspyro; printf '%s\\n' ${{COMPREPLY[@]}}"
    done = subprocess.run(
        [shell, "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_methods_and_options(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert complete(script, "bash", "tarspyro", "tr") == ["train"]
    found = complete(script, "bash", "tarspyro", "train", "v")
    assert found == ["vae", "vrnn", "vq-vae", "vae-gan"]
    assert complete(script, "bash", "tarspyro", "train", "gan", "--div") == ["--divergence"]
    assert complete(script, "bash", "tarspyro", "train", "vae", "--div") == []
    assert complete(script, "bash", "tarspyro", "embed", "runs/a", "--o") == ["--out"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_all_methods(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(f" {name}" in script or f"'{name}" in script for name in METHODS)
    assert "divergence" in script and ("bashcompinit" in script) == (shell == "zsh")


def test_another_shell_is_one_line(assert_one_line):
    assert main(["completion", "csh"]) == 2
    assert_one_line("bash, zsh or fish")
