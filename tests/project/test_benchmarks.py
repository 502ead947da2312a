"""The benchmarks run as their commands say, in a form that takes seconds."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"

# NumPyro's half of the smallest program, in NumPy: its losses, and steps that cost nothing.
STAND_IN = """
import json, sys
import numpy as np

for line in sys.stdin:
    request = json.loads(line)
    reply = {"steps": 20, "wall": 1e-3, "cpu": 3e-3}
    if "start" in request:
        arrays = np.load(request["start"])

        def layer(x, name):
            return x @ arrays[name + ".weight"].T + arrays[name + ".bias"]

        def hidden(x, name):
            return np.maximum(layer(np.maximum(layer(x, name + ".0"), 0), name + ".2"), 0)

        x = arrays["x"]
        loc = layer(hidden(x, "q.posterior.trunk.layers"), "q.posterior.heads.loc")
        losses = []
        for seed in range(20):
            z = loc + np.random.default_rng(seed).normal(size=loc.shape)
            logits = layer(hidden(z, "p.likelihood.trunk.layers"), "p.likelihood.heads.logits")
            loss = (np.logaddexp(0, logits) - x * logits).sum() + (loc**2).sum() / 2
            losses.append(float(loss) / len(x))
        reply = {"losses": losses}
    print(json.dumps(reply), flush=True)
"""


def python_that_runs(path, program):
    """A file that runs a program whatever its arguments are."""
    path.write_text(f"#!{sys.executable}\n{program}")
    path.chmod(0o755)
    return str(path)


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
        "--numpyro",
        python_that_runs(tmp_path / "python", STAND_IN),
    ]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    for row in json.loads(out.read_text())["rows"].values():
        assert row["hand-written"]["to hand-written"] == 1.0
        assert {"tarspyro, eager", "tarspyro, compiled", "Pyro SVI", "goals"} <= row.keys()
        numpyro = row["NumPyro, steps in one scan"]
        assert (numpyro["ms"], numpyro["processor ms"]) == (0.05, 0.15)
        ours = row["tarspyro, compiled"]["ms"]
        assert row["goals"]["compiled / best of NumPyro"] == pytest.approx(
            ours / 0.05, rel=0.01
        )


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("input(); print('{\"losses\": [500.0, 500.1]}'); input()", "are not the same"),
        ("input(); raise SystemExit(3)", "ended with code 3"),
    ],
)
def test_another_program_is_not_compared(tmp_path, monkeypatch, program, message):
    monkeypatch.syspath_prepend(FOLDER)
    from contestants import elbo
    from numpyro_process import NumPyro

    tiny = elbo(784, 8, 50, 100)
    python = python_that_runs(tmp_path / "python", program)
    with closing(NumPyro(python, 1)) as process, pytest.raises(RuntimeError, match=message):
        process.load(tiny, tiny.batch())


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
