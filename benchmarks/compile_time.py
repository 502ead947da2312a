"""The time in which a training step of a sequence is recorded and compiled, for different lengths.

    python benchmarks/compile_time.py        # VRNN of 28 and 112 steps, DRAW of 10 and 64
                                             # and, with attention, of 16 and 64
    python benchmarks/compile_time.py --only "VRNN 28"

Each row is a new process, whose compiler finds nothing of earlier runs but its headers. The
seconds are those of ``Compiled`` from the first step to the second: recording, finding the
recurrences, and compiling. Then come 20 compiled steps, of which the median is taken. Results are
written to ``benchmarks/results/compile_time.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROWS = {
    **{"VRNN 28": 28, "VRNN 112": 112, "DRAW 10": 10, "DRAW 64": 64},
    **{"attention 16": 16, "attention 64": 64},
}
RESULTS = Path(__file__).parent / "results"


def measured(name: str, threads: int) -> dict[str, float]:
    """The figures of a row, in this process."""
    import pyro
    import torch
    from contestants import painting, recurrent
    from draw_mnist import attention

    from tarspyro.infer import Compiled

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    steps = ROWS[name]
    program = recurrent(64, steps) if "VRNN" in name else painting(100, steps)
    p, q = attention(steps, 5, 5) if "attention" in name else program.pair()
    x = program.batch()
    torch.compile(lambda a: (2 * a).sin().sum())(torch.ones(100))  # the compiler's own start
    bound = Compiled(program.bound(), choose=False)
    pyro.clear_param_store()
    bound.loss_and_grads(p, q, x)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        bound.loss_and_grads(p, q, x)
        times.append(1e3 * (time.perf_counter() - start))
    assert bound.last_compilation is not None
    return {
        "recording and compiling, s": round(bound.last_compilation, 1),
        "ms per step": round(statistics.median(times), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", help="measure this row here, and print it")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measured(arguments.row, arguments.threads)))
        return
    out = RESULTS / "compile_time.json"
    report = json.loads(out.read_text()) if out.exists() else {}
    for name in ROWS:
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--row", name]
            command += ["--threads", str(arguments.threads)]
            run = subprocess.run(
                command,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
                capture_output=True,
                text=True,
                check=True,
            )
        report[name] = json.loads(run.stdout.splitlines()[-1])
        print(name, report[name], flush=True)
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
