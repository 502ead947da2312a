"""The short form of ``benchmarks/soak.py``: sixty signals at random moments."""

import subprocess
import sys
from pathlib import Path

SHORT = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import soak, torch
torch.set_num_threads(1)
warnings.simplefilter("ignore")
names = [
    "optimizer Adam", "optimizer Adagrad", "bound IWAE", "data: loader with a generator",
    "option: validation, binarize", "option: schedule of beta", "game",
    "network: batch normalization", "optimizer Adam that skips", "option: no seed",
]
kinds = soak.kinds()
assert len(kinds) >= 47
sent, differing = soak.soak(60, {name: kinds[name] for name in names})
print(sum(sent.values()), len(sent), differing)
"""


def test_sixty_signals_leave_what_none_would_have_left():
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(benchmarks)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "60 4 []\n"
