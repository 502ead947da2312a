"""The code of the README runs as printed: the quick start, each edit, each command."""

import ast
import re
import warnings
from pathlib import Path

import matplotlib.pyplot
import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
(QUICK_START,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
EDITS = dict(re.findall(r"^\| (the [^|]*) \| `(.*)` \|$", README, flags=re.MULTILINE))


def test_at_most_900_words():
    assert len(README.split()) <= 900


def test_quick_start(capsys):
    names = {}
    torch.manual_seed(0)
    exec(QUICK_START, names)
    printed = capsys.readouterr().out
    assert "p(x, z) = p(x | z) p(z)" in printed
    assert -28 < float(re.search(r"tensor\((-[\d.]+)\)", printed).group(1)) < -20
    assert names["figure"].axes
    matplotlib.pyplot.close("all")


def edited(code, line):
    """The code with the assignments of a line in place of those to the same names."""
    for statement in ast.parse(line).body:
        name = statement.targets[0].id
        new = ast.get_source_segment(line, statement)
        code, count = re.subn(
            rf"^{name} = .*$", lambda found, new=new: new, code, flags=re.MULTILINE
        )
        assert count == 1, f"the quick start assigns {name} {count} times"
    return code


def test_edits_cover_the_three_decisions():
    assert {"the network of q", "the latent family", "the likelihood", "the bound"} <= set(
        EDITS
    )


@pytest.mark.parametrize("line", EDITS.values(), ids=EDITS.keys())
def test_each_edit_of_the_table_runs(line, capsys):
    code = edited(QUICK_START, line).replace("epochs=20", "epochs=1, progress=False")
    names = {}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Less than the whole data: what is tested is that the line fits.
        exec(code.replace("digits.train,", "digits.train[:300],"), names)
    assert names["log_p"].isfinite().all()
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/command-line.md"])
def test_commands_exist(page, tmp_path, monkeypatch):
    from tarspyro.commands.parser import parse

    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text("utf-8")
    lines = re.findall(r"^    tarspyro (.*?)(?:  +#.*)?$", text, flags=re.MULTILINE)
    assert lines
    for name in re.findall(r"--data (\w+\.\w+|pictures)\b", text):
        (tmp_path / name).touch()  # the reader's own data
    for line in lines:
        if line.endswith(("--help", "--version")):
            with pytest.raises(SystemExit, match="^0$"):
                parse(line.split())
        else:
            assert parse(line.split()).command


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target
