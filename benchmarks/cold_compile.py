"""Where the time of a cold compilation goes: the first two compiled steps of a training.

    python benchmarks/cold_compile.py                # every program, each in a new process
    python benchmarks/cold_compile.py --only "VRNN T=28"

The steps are those of ``step_time.py --cold``: PyTorch's compiler finds nothing of earlier runs
but its headers. Each stage has the seconds that it took of this process's thread on the
processor, without those of the stages that it calls, and the seconds of the C++ compilers that
ended meanwhile. A processor's seconds are not those of the clock, which others at work on the
machine add to. Then come compiled steps, of which the median and the least are taken. Results are
written to ``benchmarks/results/cold_compile.json``.
"""

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
COMPILATION = "tarspyro.infer.compilation"
# The functions of each stage.
STAGES = {
    "recording before the derivative": [(f"{COMPILATION}.recording", "record")],
    "recording with the derivative": [(f"{COMPILATION}.recording", "record_as_it_stands")],
    "checking the recording": [(f"{COMPILATION}.recording", "_agrees")],
    "repetitions": [(f"{COMPILATION}.repeats", "RepeatedOperations.__init__")],
    "simplification": [(f"{COMPILATION}.steps", "simplified")],
    "recurrences": [(f"{COMPILATION}.steps", "in_parts")],
    "trial of the parts": [(f"{COMPILATION}.recurrences", "_InParts.compile")],
    "AOTAutograd": [(f"{COMPILATION}.steps", "_compile_part")],
    "Inductor's graph passes": [
        ("torch._inductor.compile_fx", "_recursive_joint_graph_passes"),
        ("torch._inductor.compile_fx", "_recursive_post_grad_passes"),
        ("torch._inductor.compile_fx", "_recursive_pre_grad_passes"),
    ],
    "Inductor, besides": [("torch._inductor.compile_fx", "compile_fx_inner")],
    "Inductor's lowering": [("torch._inductor.graph", "GraphLowering.run")],
    "Inductor's fusion": [("torch._inductor.graph", "GraphLowering._update_scheduler")],
    "Inductor's code": [("torch._inductor.graph", "GraphLowering.codegen")],
    "waiting for C++": [("torch._inductor.async_compile", "AsyncCompile.wait")],
}


class Stages:
    """The processor's time of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = ["steps, and the rest"]
        self._since = time.thread_time()
        for stage, functions in STAGES.items():
            for module, name in functions:
                self._watch(stage, importlib.import_module(module), name)

    def _watch(self, stage: str, owner: object, name: str) -> None:
        *path, name = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        function = getattr(owner, name, None)
        if function is None:
            return  # another version

        @functools.wraps(function)
        def watched(*args: object, **kwargs: object) -> object:
            self._switch()
            self._running.append(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        setattr(owner, name, watched)
        for module in list(sys.modules.values()):
            if vars(module).get(name) is function:
                setattr(module, name, watched)

    def _switch(self) -> None:
        now = time.thread_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def take(self) -> dict[str, float]:
        """Returns the seconds until now."""
        self._switch()
        return {stage: round(seconds, 2) for stage, seconds in self.seconds.items()}


def measured(name: str, threads: int) -> dict[str, object]:
    """The figures of a program, in this process."""
    import pyro
    import torch
    from contestants import ours, turn_of
    from step_time import LONG, PROGRAMS, empty_cache

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    program = (PROGRAMS | LONG)[name]
    x = program.batch()
    with empty_cache():
        pyro.clear_param_store()
        import torch._inductor.compile_fx

        stages = Stages()
        start, clock = os.times(), time.perf_counter()
        turn = turn_of(ours(program, "cpu", compiled=True), x)
        turn(2)
        end = os.times()
        figures: dict[str, object] = {
            "this process, s": round(end.user + end.system - start.user - start.system, 1),
            "C++ compilers, s": round(
                end.children_user
                + end.children_system
                - start.children_user
                - start.children_system,
                1,
            ),
            "clock, s": round(time.perf_counter() - clock, 1),
            "stages, s": stages.take(),
        }
        turn(10)
        times = [turn(1).ms for _ in range(40)]
    figures["ms per step"] = round(statistics.median(times), 2)
    figures["least ms per step"] = round(min(times), 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="programs whose names contain this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", help="measure this program here, and print it")
    parser.add_argument("--out", type=Path, default=RESULTS / "cold_compile.json")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measured(arguments.row, arguments.threads)))
        return
    from step_time import LONG, PROGRAMS

    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in PROGRAMS | LONG:
        if arguments.only not in name:
            continue
        command = [sys.executable, __file__, "--row", name]
        command += ["--threads", str(arguments.threads)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        report[name] = json.loads(run.stdout.splitlines()[-1])
        print(name, json.dumps(report[name], indent=1), flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
