"""The notebooks: their stored outputs are those of one complete run, and their code runs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

each_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS]
)


def code_cells(path):
    return [
        cell
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]


def shown_text(output):
    """Returns the text of an output, without pictures."""
    parts = [output.get("text", []), output.get("traceback", [])]
    parts += [
        value
        for kind, value in output.get("data", {}).items()
        if not kind.startswith("image/")
    ]
    return "".join("".join(part) if isinstance(part, list) else str(part) for part in parts)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_stored_outputs_are_of_one_complete_run(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output["output_type"] != "error", output["ename"]
        assert output.get("name") != "stderr", output["text"]
        assert not re.search(r"(?<![\w./:-])/\w+/\w|\b[A-Z]:\\\w", shown_text(output)), (
            shown_text(output)
        )
    assert path.stat().st_size < 1_000_000


@each_notebook
def test_stored_file_has_one_form(path):
    notebook = json.loads(path.read_text("utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    assert [cell["id"] for cell in notebook["cells"]] == [
        f"cell-{i:02d}" for i in range(len(notebook["cells"]))
    ]
    assert not any(cell["metadata"] for cell in notebook["cells"])


@each_notebook
def test_links_lead_to_pages(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    text = "".join(
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
    )
    links = re.findall(r"\]\((\.\./[^)#]+)", text)
    assert links
    for link in links:
        assert (FOLDER / link).is_file(), link


@pytest.mark.parametrize("half", [0, 1])
def test_all_run_in_fast_mode(half):
    for module in ("nbclient", "nbformat", "ipykernel"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"running notebooks needs {module}: pip install tarspyro[notebooks]")
    before = {file: file.read_bytes() for file in FOLDER.iterdir() if file.is_file()}
    # A process of its own: the warnings of Jupyter's event loops are not the library's.
    command = [
        sys.executable,
        str(FOLDER / "execute.py"),
        *map(str, NOTEBOOKS[half::2]),
        "--fast",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        path.name for path in NOTEBOOKS[half::2]
    ]
    assert before == {file: file.read_bytes() for file in FOLDER.iterdir() if file.is_file()}
