"""What needs an accelerator, on a pretended one, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accelerator.pretended import SUPPORTED

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not SUPPORTED, reason="the pretended accelerator relies on parts of one version of torch"
)


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_tests_of_an_accelerator():
    command = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.accelerator.plugin",
    ]
    said = run(*command, "tests/project/test_cuda.py")
    assert " passed" in said and "no accelerator" not in said


CASES = ["adam, schedule and norm", "sgd, schedule", "adagrad", "nadam", "vae, beta"]
METHODS = ["autoencoder", "semi-supervised-vae", "gan", "vae-gan"]


def test_captured_training_is_eager_training(tmp_path):
    out = tmp_path / "captured.json"
    run(
        "benchmarks/captured.py",
        "--pretended",
        "--epochs",
        "3",
        "--out",
        str(out),
        "--only",
        *CASES,
        *METHODS,
    )
    results = json.loads(out.read_text())["cases"]
    assert list(results) == [*CASES, *METHODS]
    for name, result in results.items():
        assert result.get("difference", 1.0) < 1e-6, f"{name}: {result}"
        assert result["replays"] > 0, name


def test_no_step_leaves_the_device_or_waits_for_it(tmp_path):
    out = tmp_path / "waits.json"
    run("benchmarks/device_waits.py", "--every", "6", "--out", str(out))
    result = json.loads(out.read_text())
    assert result["cases"] > 20 and not result["faults"]


def test_all_that_an_accelerator_has_to_show(tmp_path):
    """``make gpu``, in its short form."""
    out = tmp_path / "gpu.json"
    run("benchmarks/gpu.py", "--pretended", "--short", "--seconds", "3000", "--out", str(out))
    report = json.loads(out.read_text())
    assert report["machine"] == "a pretended device"
    assert report["tests"]["passed"] >= 3 and report["tests"]["resumed exactly"]
    assert len(report["captured"]["cases"]) == 4
    (row,) = report["step_time"].values()
    assert row["tarspyro, eager"]["ms"] > 0
    assert len(report["scaling"]) == 2 and "left out" in report["processes"]
