"""The short form of ``benchmarks/hostile.py``: every fourth of its cases, and the worst."""

import subprocess
import sys
from pathlib import Path

SHORT = """
import sys
sys.path.insert(0, sys.argv[1])
import hostile, torch
torch.set_num_threads(1)
cases = hostile.cases()
assert len(cases) >= 100
chosen = dict(list(cases.items())[::4])
worst = [
    "config: 2^40 entries", "config: two large layers", "state: a long moment",
    "best.safetensors is a hole of 50 GB", "config: escape sequences",
    "weights: a hole of 32 GB with a header",
]
chosen |= {name: cases[name] for name in worst}
outcomes = hostile.attack({n: c for n, c in chosen.items() if "MATLAB" not in n})
print({name: outcome for name, outcome in outcomes.items() if outcome != "refused"})
"""


def test_hostile_folders_and_files_are_refused(tmp_path):
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHORT, str(benchmarks)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "{}\n"
