"""The growth of a training step's time and memory: with the batch, the particles, the time
steps and the width.

    python benchmarks/scaling.py [--short] [--threads 2] [--device cpu] [--compile] [--only AXIS]
    python benchmarks/scaling.py --picture docs/scaling.png

Each point is a process of its own, so that its peak memory is its own too; in it our step and
the one written by hand take turns. The slope is that of log time, or log memory beyond what
the process holds before its first step, against the log of the size, over the upper half of
the sizes: 1 is linear growth. With ``IWAE``, "chunks" goes through eight particles at a time.
Results are written to ``benchmarks/results/scaling.json`` (``scaling_cuda.json``).
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from contestants import elbo, hand_written, iwae, measure, ours, painting, recurrent

AXES = {
    "batch": ([25, 100, 400, 1600, 6400], lambda size, **how: elbo(784, 512, 50, size)),
    "particles": (
        [1, 4, 16, 64, 256],
        lambda size, **how: iwae(784, 200, 50, 20, size, **how),
    ),
    "time steps": ([7, 14, 28, 56, 112], lambda size, **how: recurrent(64, size)),
    "steps of DRAW": ([4, 8, 16, 32, 64], lambda size, **how: painting(100, size)),
    "width": ([64, 128, 256, 512, 1024, 2048], lambda size, **how: elbo(784, size, 50, 100)),
}
RESULTS = Path(__file__).parent / "results"


def megabytes():
    """The largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def point(axis, size, kind, arguments):
    """Time and memory of one contestant at one size, measured in this process."""
    warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    program = AXES[axis][1](size, **({"chunk_size": 8} if kind == "chunks" else {}))
    step = (
        hand_written(program, arguments.device, fused=True)
        if kind == "hand-written"
        else ours(program, arguments.device, compiled=kind == "compiled")
    )
    x = program.batch().to(arguments.device)
    device = torch.get_device_module(x.device)
    counts = hasattr(device, "max_memory_allocated")
    before = megabytes()
    if counts:
        device.reset_peak_memory_stats()
        before = device.memory_allocated() / 2**20
    (times,) = measure({"": step}, x, arguments.rounds).values()
    after = device.max_memory_allocated() / 2**20 if counts else megabytes()
    return {"ms": round(statistics.median(times), 3), "megabytes": round(after - before, 1)}


def slope(sizes, values):
    """The slope of log value against log size, over the upper half of the sizes."""
    upper = [(math.log(s), math.log(max(v, 0.1))) for s, v in zip(sizes, values, strict=True)][
        len(sizes) // 2 :
    ]
    xs, ys = zip(*upper, strict=True)
    mean_x = statistics.mean(xs)
    mean_y = statistics.mean(ys)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in upper)
    return round(rise / sum((x - mean_x) ** 2 for x in xs), 2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--short", action="store_true", help="three sizes of each axis, three rounds"
    )
    parser.add_argument("--compile", action="store_true", help="measure the compiled step too")
    parser.add_argument(
        "--only", choices=AXES, help="measure this axis anew, and keep the others"
    )
    parser.add_argument(
        "--point", nargs=3, help="one measurement, in this process: axis, size, kind"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--picture", type=Path, help="only draw the stored results, to this file"
    )
    arguments = parser.parse_args()
    out = (
        arguments.out
        or RESULTS / f"scaling{'' if arguments.device == 'cpu' else '_cuda'}.json"
    )
    if arguments.picture:
        return draw(json.loads(out.read_text()), arguments.picture)
    if arguments.point:
        axis, size, kind = arguments.point
        return print(json.dumps(point(axis, int(size), kind, arguments)))
    report = {
        "torch": torch.__version__,
        "threads": arguments.threads,
        "device": arguments.device,
        "axes": {},
    }
    if arguments.only:
        report["axes"] = json.loads(out.read_text())["axes"]
    rounds = 3 if arguments.short else arguments.rounds
    options = [
        "--threads",
        str(arguments.threads),
        "--device",
        arguments.device,
        "--rounds",
        str(rounds),
    ]
    for axis in [arguments.only] if arguments.only else AXES:
        sizes = AXES[axis][0][:: 2 if arguments.short else 1]
        kinds = [
            "hand-written",
            "eager",
            *["chunks"] * (axis == "particles"),
            *["compiled"] * arguments.compile,
        ]
        entry = report["axes"][axis] = {"sizes": sizes}
        for kind in kinds:
            rows = []
            for size in sizes:
                command = [
                    sys.executable,
                    __file__,
                    "--point",
                    axis,
                    str(size),
                    kind,
                    *options,
                ]
                rows.append(
                    json.loads(
                        subprocess.run(
                            command, check=True, capture_output=True
                        ).stdout.splitlines()[-1]
                    )
                )
            entry[kind] = {name: [row[name] for row in rows] for name in rows[0]}
            entry[kind]["slopes"] = {name: slope(sizes, entry[kind][name]) for name in rows[0]}
            print(axis, kind, json.dumps(entry[kind]), flush=True)
    out.write_text(json.dumps(report, indent=1) + "\n")


def draw(report, path):
    """Time and memory against each size, on logarithmic axes."""
    from matplotlib.figure import Figure

    axes = report["axes"]
    figure = Figure(figsize=(3 * len(axes), 5), layout="constrained")
    grid = figure.subplots(2, len(axes), squeeze=False)
    for column, (axis, entry) in enumerate(axes.items()):
        for row, name in enumerate(("ms", "megabytes")):
            ax = grid[row, column]
            for kind, values in entry.items():
                if kind != "sizes":
                    slope = values["slopes"][name]
                    ax.loglog(
                        entry["sizes"],
                        values[name],
                        marker="o",
                        label=f"{kind}, slope {slope}",
                    )
            ax.set(xlabel=axis, ylabel=name if column == 0 else "")
            ax.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
