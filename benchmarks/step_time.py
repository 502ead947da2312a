"""The time of one training step: ours, eager and compiled, Pyro's SVI, and PyTorch written by
hand, plain and compiled.

    python benchmarks/step_time.py [--rounds 20] [--threads 2] [--device cpu] [--only MLP]

All contestants of a program run in one process and take turns: in a round each takes the steps
of a tenth of a second, in an order drawn anew, and figures are medians over the rounds. Ratios
are taken round by round, so that a change of the machine's load hits both sides. The programs
are in ``contestants.py``. Results are written to ``benchmarks/results/step_time.json``
(``step_time_cuda.json``), the picture with ``--picture`` from there.
"""

import argparse
import json
import platform
import random
import statistics
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
    measure,
    ours,
    painting,
    ratio,
    recurrent,
    svi,
)

from tarspyro.accelerators import name_of_accelerator

PROGRAMS = {
    "MLP VAE 784-512-512-50, batch 100": elbo(784, 512, 50, 100),
    "IWAE K=50, 784-200-200-50, batch 20": iwae(784, 200, 50, 20, 50),
    "convolutional VAE, batch 64": convolutional(64),
    "VRNN T=28, batch 64": recurrent(64, 28),
    "DRAW T=10, batch 100": painting(100, 10),
    "Gamma VAE 784-512-512-50, batch 100": gamma(784, 512, 50, 100),
    "MLP GAN 64-256-256-784, batch 100": adversarial(784, 256, 64, 100),
    "MLP VAE 784-8-8-50, batch 100 (host cost)": elbo(784, 8, 50, 100),
}
HAND = "hand-written"
HAND_COMPILED = "hand-written, torch.compile"
EAGER = "tarspyro, eager"
COMPILED = "tarspyro, compiled"
PYRO = "Pyro SVI"
GOALS = {
    "eager / hand-written": (EAGER, HAND),
    "compiled / hand-written": (COMPILED, HAND),
    "compiled / hand-written torch.compile": (COMPILED, HAND_COMPILED),
    "compiled / Pyro": (COMPILED, PYRO),
}
RESULTS = Path(__file__).parent / "results"


def contestants_of(program, device, compiler=True):
    """All contestants of a program, compiled, with the seconds that this took."""
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
    if not compiler:
        del makers[HAND_COMPILED], makers[COMPILED]
    x = program.batch().to(device)
    steps = {}
    start_up = {}
    for name, make in makers.items():
        start = time.perf_counter()
        steps[name] = make()
        steps[name](x), steps[name](x)
        start_up[name] = round(time.perf_counter() - start, 1)
    return steps, start_up, x


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--without-compiler", action="store_true", help="leave out what is compiled"
    )
    parser.add_argument("--only", default="", help="programs whose names contain this")
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
    for name, program in PROGRAMS.items():
        if arguments.only not in name:
            continue
        pyro.clear_param_store()
        compiler = not arguments.without_compiler
        steps, start_up, x = contestants_of(program, arguments.device, compiler)
        times = measure(steps, x, arguments.rounds)
        row = report["rows"][name] = {
            contestant: {
                "ms": round(statistics.median(values), 3),
                "to hand-written": round(ratio(times, contestant, HAND), 3),
                "first two steps, s": start_up[contestant],
            }
            for contestant, values in times.items()
        }
        row["goals"] = {
            goal: round(ratio(times, one, other), 3)
            for goal, (one, other) in GOALS.items()
            if one in times and other in times
        }
        print(name)
        for contestant, entry in row.items():
            print(f"  {contestant:34} {json.dumps(entry)}", flush=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


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
        [place + 0.3 for place in range(len(rows))], [name.partition(",")[0] for name in rows]
    )
    ax.tick_params(axis="x", labelrotation=15)
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
