"""The benchmarks run as their commands say, in a form that takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_step_time(tmp_path):
    out = tmp_path / "step_time.json"
    command = [
        sys.executable,
        str(FOLDER / "step_time.py"),
        "--rounds",
        "2",
        "--threads",
        "1",
        "--only",
        "host cost",
    ]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    for row in json.loads(out.read_text())["rows"].values():
        assert row["hand-written"]["to hand-written"] == 1.0
        assert {"tarspyro, eager", "tarspyro, compiled", "Pyro SVI", "goals"} <= row.keys()


def test_import_time(tmp_path):
    out = tmp_path / "import_time.json"
    command = [sys.executable, str(FOLDER / "import_time.py"), "--rounds", "1"]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert rows["import pyro"]["processor, over import pyro"] == 0
    assert rows["tarspyro --help"]["processor"] < rows["import pyro"]["processor"]


def test_results_are_kept_with_their_commands():
    readme = (FOLDER / "README.md").read_text()
    for script in FOLDER.glob("*.py"):
        if "__main__" not in script.read_text():
            continue  # a part of others
        assert f"python benchmarks/{script.name}" in readme
    for name in ("step_time", "mnist_vae", "mnist_autoencoder", "pymc3_convvae"):
        assert (FOLDER / "results" / f"{name}.json").exists()
