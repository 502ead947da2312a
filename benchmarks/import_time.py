"""The time of imports and of answers of the command line, each in a new process.

    python benchmarks/import_time.py [--rounds 15]

The commands take turns, in an order drawn anew in each round. A first round, in which Python
compiles the files, is not counted. For each command there are the seconds on the clock and
those of the processor, which a busy machine changes less. Differences to ``import pyro`` are
taken round by round. Medians go to ``benchmarks/results/import_time.json``.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

IMPORTS = {
    "import pyro": "import pyro",
    "import pyro, then tarspyro": "import pyro, tarspyro",
    "the names of the quick start": (
        "import pyro; from tarspyro import Conditional, evaluate, fit, guides, models"
    ),
    "every public name": "import pyro; from tarspyro import *",
}
# The variable would keep Python from writing bytecode.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
ANSWERS = {
    "tarspyro --help": ["--help"],
    "tarspyro train --help": ["train", "--help"],
    "tarspyro train vae --help": ["train", "vae", "--help"],
    "tarspyro list": ["list"],
    "tarspyro trian": ["trian"],
    "tarspyro train vea": ["train", "vea"],
    "tarspyro train vae --lattent 3": ["train", "vae", "--lattent", "3"],
}


def commands() -> dict[str, list[str]]:
    """Returns the arguments of Python for every row."""
    imports = {name: ["-W", "ignore", "-c", code] for name, code in IMPORTS.items()}
    answers = {name: ["-m", "tarspyro", *arguments] for name, arguments in ANSWERS.items()}
    return imports | answers


def seconds(arguments: list[str]) -> tuple[float, float]:
    """Returns the time of a new process, on the clock and of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, check=False, env=ENVIRONMENT
    )
    clock = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 2), done.stderr.decode()
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, processor


def measure(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Returns the times of every row in every round."""
    rows = commands()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for arguments in rows.values():
        seconds(arguments)

    for _ in range(rounds):
        for name in random.sample(list(rows), len(rows)):
            times[name].append(seconds(rows[name]))
    return times


def medians(times: dict[str, list[tuple[float, float]]], name: str) -> dict[str, float]:
    """Returns what the table says of a row."""
    row = {}
    pyro = times["import pyro"]
    for index, kind in enumerate(("clock", "processor")):
        row[kind] = statistics.median(pair[index] for pair in times[name])
        if name in IMPORTS:
            over = (a[index] - b[index] for a, b in zip(times[name], pyro, strict=True))
            row[f"{kind}, over import pyro"] = statistics.median(over)
    return {key: round(value, 3) for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--out", default=str(Path(__file__).parent / "results" / "import_time.json")
    )
    options = parser.parse_args()

    times = measure(options.rounds)
    rows = {name: medians(times, name) for name in times}
    for name, row in rows.items():
        print(f"{name:32}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()))

    about = {"python": platform.python_version(), "machine": platform.machine()}
    Path(options.out).write_text(
        json.dumps({**about, "rounds": options.rounds, "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
