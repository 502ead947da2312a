"""Checks in a process of their own, in which coverage counts no lines: TorchDynamo cannot trace a
function whose lines are counted.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def check_in_fresh_process(code: str) -> None:
    """Fails with the error of the code, if it ends with one."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
