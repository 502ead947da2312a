"""The time of one training step: ours, eager and compiled, Pyro's SVI, and PyTorch written by
hand, plain and compiled; with ``--numpyro``, NumPyro's too.

    python benchmarks/step_time.py [--rounds 20] [--threads 2] [--device cpu] [--only MLP]
    python benchmarks/step_time.py --numpyro .venv-jax/bin/python --cold --long

The contestants of a program take turns: in a round each takes the steps of a tenth of a second,
in an order drawn anew, and figures are medians over the rounds. Ratios are taken round by round,
so that a change of the machine's load hits both sides. NumPyro runs in a process of its own,
which waits while the others run; times are of the clock and of each process's own processor
time. The programs are in ``contestants.py`` and ``numpyro_steps.py``. Results are written to
``benchmarks/results/step_time.json`` (``step_time_cuda.json``), the picture with ``--picture``
from there.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import pyro
import torch
from contestants import (
    adversarial,
    convolutional,
    elbo,
    gamma,
    hand_written,
    iwae,
    ours,
    painting,
    ratio,
    recurrent,
    recurrent_pair,
    svi,
    take_turns,
    turn_of,
)
from numpyro_process import started

from tarspyro.accelerators import name_of_accelerator
from tarspyro.memory import keep_freed_memory

PROGRAMS = {
    "MLP VAE 784-512-512-50, batch 100": elbo(784, 512, 50, 100),
    "IWAE K=50, 784-200-200-50, batch 20": iwae(784, 200, 50, 20, 50),
    "convolutional VAE, batch 64": convolutional(64),
    "VRNN T=28, batch 64": recurrent(64, 28),
    "VRNN T=28, batch 64, the library's pair": recurrent_pair(64, 28),
    "DRAW T=10, batch 100": painting(100, 10),
    "Gamma VAE 784-512-512-50, batch 100": gamma(784, 512, 50, 100),
    "MLP GAN 64-256-256-784, batch 100": adversarial(784, 256, 64, 100),
    "MLP VAE 784-8-8-50, batch 100 (host cost)": elbo(784, 8, 50, 100),
}
LONG = {"VRNN T=112, batch 64": recurrent(64, 112)}
HAND = "hand-written"
HAND_COMPILED = "hand-written, torch.compile"
EAGER = "tarspyro, eager"
COMPILED = "tarspyro, compiled"
PYRO = "Pyro SVI"
NUMPYRO = {"NumPyro, a jitted step": "step", "NumPyro, steps in one scan": "scan"}
BEST_OF_NUMPYRO = "best of NumPyro"
GOALS = {
    "eager / hand-written": (EAGER, HAND),
    "compiled / hand-written": (COMPILED, HAND),
    "compiled / hand-written torch.compile": (COMPILED, HAND_COMPILED),
    "compiled / Pyro": (COMPILED, PYRO),
    "compiled / best of NumPyro": (COMPILED, BEST_OF_NUMPYRO),
}
RESULTS = Path(__file__).parent / "results"


def contestants_of(program, x, device, left_out=(), numpyro=None):
    """The turns of all contestants of a program, compiled, with the seconds that this took."""
    makers = {
        HAND: lambda: hand_written(program, device),
        "hand-written, fused Adam": lambda: hand_written(program, device, fused=True),
        HAND_COMPILED: lambda: hand_written(program, device, compiled=True, fused=True),
        EAGER: lambda: ours(program, device),
        "tarspyro, recorded, not compiled": lambda: ours(
            program, device, compiled=True, backend="eager"
        ),
        COMPILED: lambda: ours(program, device, compiled=True),
    }
    if program.pyro_bound is not None:
        makers[PYRO] = lambda: svi(program, device)
    turns = {}
    start_up = {}
    for name, make in makers.items():
        if name in left_out:
            continue
        start = time.perf_counter()
        turns[name] = turn_of(make(), x)
        turns[name](2)
        start_up[name] = round(time.perf_counter() - start, 1)
    for name, contestant in NUMPYRO.items() if numpyro else ():
        start = time.perf_counter()
        turns[name] = numpyro.turn(contestant)
        turns[name](2)
        start_up[name] = round(time.perf_counter() - start, 1)
    return turns, start_up


def goals_of(times):
    """The ratios that have goals, from the times of each contestant in each round."""
    ways = [name for name in NUMPYRO if name in times]
    if ways:
        best = min(ways, key=lambda name: statistics.median(times[name]))
        times = {**times, BEST_OF_NUMPYRO: times[best]}
    return {
        goal: round(ratio(times, one, other), 3)
        for goal, (one, other) in GOALS.items()
        if one in times and other in times
    }


@contextlib.contextmanager
def empty_cache():
    """An empty cache for PyTorch's compiler, whose headers are compiled and lie elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        torch.compile(torch.sin)(torch.ones(64))
        yield


def main():
    keep_freed_memory()  # for all contestants of this process, as ``fit`` does
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--without-compiler", action="store_true", help="leave out what is compiled"
    )
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="NAME", help="contestants to leave out"
    )
    parser.add_argument("--only", default="", help="programs whose names contain this")
    parser.add_argument(
        "--numpyro", metavar="PYTHON", help="the Python of an environment that has NumPyro"
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="let PyTorch's compiler find nothing of earlier runs",
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help="add the VRNN of 112 steps, which compiles for minutes",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--picture", type=Path, help="only draw the stored results, to this file"
    )
    arguments = parser.parse_args()
    out = (
        arguments.out
        or RESULTS / f"step_time{'' if arguments.device == 'cpu' else '_cuda'}.json"
    )
    if arguments.picture:
        return draw(json.loads(out.read_text()), arguments.picture)
    if arguments.numpyro and arguments.device != "cpu":
        parser.error("NumPyro is compared on the CPU: leave --device or --numpyro out")
    warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    report = json.loads(out.read_text()) if out.exists() and arguments.only else {"rows": {}}
    report |= {
        "machine": _machine(arguments.device),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
    }
    programs = PROGRAMS | LONG if arguments.long else PROGRAMS
    with (
        empty_cache() if arguments.cold else contextlib.nullcontext(),
        started(arguments.numpyro, arguments.threads) as numpyro,
    ):
        for name, program in programs.items():
            if arguments.only not in name:
                continue
            pyro.clear_param_store()
            row = row_of(program, arguments, numpyro if program.numpyro else None)
            report["rows"][name] = row
            print(name)
            for contestant, entry in row.items():
                print(f"  {contestant:34} {json.dumps(entry)}", flush=True)
            out.write_text(json.dumps(report, indent=1) + "\n")


def row_of(program, arguments, numpyro):
    """The figures of a program."""
    x = program.batch().to(arguments.device)
    losses = numpyro.load(program, x) if numpyro else None
    left_out = set(arguments.without)
    if arguments.without_compiler:
        left_out |= {HAND_COMPILED, COMPILED}
    turns, start_up = contestants_of(program, x, arguments.device, left_out, numpyro)
    costs = take_turns(turns, arguments.rounds)
    wall = {name: [cost.ms for cost in values] for name, values in costs.items()}
    cpu = {name: [cost.cpu_ms for cost in values] for name, values in costs.items()}
    row = {
        name: {
            "ms": round(statistics.median(wall[name]), 3),
            "processor ms": round(statistics.median(cpu[name]), 3),
            "to hand-written": round(ratio(wall, name, HAND), 3),
            "processor, to hand-written": round(ratio(cpu, name, HAND), 3),
            "first two steps, s": start_up[name],
        }
        for name in costs
    }
    row["goals"] = goals_of(wall)
    row["goals, processor"] = goals_of(cpu)
    if losses:
        row["loss at the start"] = losses
    return row


def draw(report, path):
    """Bars of the ratios to PyTorch written by hand."""
    from tarspyro.plot.figures import axes_of

    rows = report["rows"]
    shown = [HAND_COMPILED, EAGER, COMPILED, PYRO]
    figure, ax = axes_of(None, (9, 4))
    for index, name in enumerate(shown):
        heights = [row.get(name, {}).get("to hand-written", 0.0) for row in rows.values()]
        ax.bar([place + index / 5 for place in range(len(rows))], heights, 1 / 5, label=name)
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.set_xticks(
        [place + 0.3 for place in range(len(rows))],
        [name.partition(",")[0] for name in rows],
        rotation=20,
        horizontalalignment="right",
    )
    ax.set_ylabel("time of a step,\nhand-written PyTorch = 1")
    ax.legend(frameon=False)
    figure.savefig(path, dpi=120)


def _machine(device: str) -> str:
    if device != "cpu":
        return name_of_accelerator(torch.device(device))
    return (
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
