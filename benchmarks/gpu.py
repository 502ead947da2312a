"""All that an accelerator has to show, by one command and in less than eight minutes.

    make gpu                                            # or: python benchmarks/gpu.py
    python benchmarks/gpu.py --short                    # two minutes
    python benchmarks/gpu.py --pretended --short        # on any machine

- the tests of accelerators, exact resume among them,
- captured training against eager training,
- times of a step, against PyTorch written by hand, and their growth: the rows that fit,
- two processes, through NCCL on CUDA, if the machine has two devices.

Everything goes to one file, ``benchmarks/results/gpu_NAME.json``, with the name of the device.
It is written after each part. A part that fails, or that the time does not suffice for, says so
in its place, and the command then ends with an error.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SECONDS = 460.0
SHORT_CASES = ["adam, schedule and norm", "sgd, schedule", "vae, beta", "gan"]
SHORT_TESTS = "twice or scale or (resumed and captured)"

# In the order of their weight. Of the short form the first of each.
ROWS = [
    "MLP VAE 784-512",
    "host cost",
    "IWAE",
    "convolutional",
    "VRNN",
    "DRAW",
    "Gamma",
    "GAN",
]
POINTS = [
    (axis, size, kind)
    for axis, sizes in (("batch", (25, 400, 6400)), ("particles", (4, 64)), ("width", (2048,)))
    for size in sizes
    for kind in ("eager", "hand-written")
]
Result = dict[str, object]


class Session:
    """A run of all parts.

    Arguments:
        device: The device.
        pretended: Whether it is a pretended one.
        short: Whether to run the short form.
        seconds: The time that there is.
    """

    def __init__(self, device: str, pretended: bool, short: bool, seconds: float) -> None:
        self.device = device
        self.pretended = pretended
        self.short = short
        self.end = time.monotonic() + seconds
        self.folder = Path(tempfile.mkdtemp())

    def run(self, script: str, *arguments: object, most: float = 1.0) -> str:
        """Runs a script on the device; returns what it prints.

        Arguments:
            script: The script, or ``-m`` and then a module.
            arguments: Its arguments.
            most: The largest part of the remaining time that it may take.
        """
        own = [str(argument) for argument in arguments]
        launch = ["-m", "tests.accelerator.launch"] if self.pretended else []
        head = [script] if script == "-m" else [*launch, str(ROOT / "benchmarks" / script)]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, *head, *own],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
            timeout=max(most * (self.end - time.monotonic()), 1.0),
        )
        if done.returncode and script != "-m":
            lines = done.stderr.strip().splitlines() or ["no reason"]
            raise RuntimeError(lines[-1][:300])
        return done.stdout

    # --- parts

    def tests(self) -> Result:
        """The tests of accelerators, by their outcome."""
        out = self.folder / "tests.xml"
        plugin = ["-p", "tests.accelerator.plugin"] if self.pretended else []
        chosen = ["-k", SHORT_TESTS] if self.short else []
        self.run(
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *chosen),
            "tests/project/test_cuda.py",
            f"--junitxml={out}",
            most=0.5,
        )
        outcomes: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
        for case in ElementTree.parse(out).iter("testcase"):
            found = {child.tag for child in case}
            failed = bool(found & {"failure", "error"})
            outcome = "failed" if failed else "skipped" if "skipped" in found else "passed"
            outcomes[outcome].append(case.get("name", ""))
        resumed = [name for name in outcomes["passed"] if "resumed" in name]
        if outcomes["failed"] or not resumed:
            raise RuntimeError(f"failed: {outcomes['failed']}, resumed exactly: {resumed}")
        counts = {outcome: len(names) for outcome, names in outcomes.items()}
        return {**counts, "resumed exactly": resumed}

    def captured(self) -> Result:
        """Captured training against eager training."""
        out = self.folder / "captured.json"
        short = ["--epochs", 3, "--only", *SHORT_CASES] if self.short else []
        cut = False
        try:
            self.run("captured.py", "--out", out, *short, most=0.5)
        except subprocess.TimeoutExpired:
            cut = True
        cases = json.loads(out.read_text())["cases"]
        # Kernels of a device may add in another order from run to run.
        limit = 1e-6 if self.pretended else 1e-3
        apart = {
            name: case for name, case in cases.items() if case.get("difference", 1.0) > limit
        }
        result: Result = {"cases": cases, "apart by at most": limit}
        if apart:
            result["failed"] = f"apart by more than {limit:g}: {[*apart]}"
        elif cut:
            result["failed"] = f"the time sufficed for {len(cases)} cases"
        return result

    def step_time(self) -> Result:
        """Milliseconds of a step, of each contestant of each program."""
        out = self.folder / "step_time.json"
        rows: Result = {}
        options = ["--without-compiler"] if self.pretended else []
        start = time.monotonic()
        end = start + 0.75 * (self.end - start)
        for name in self._fitting(ROWS, 1 if self.short else len(ROWS), end):
            rounds = 2 if self.short else 10
            left = end - time.monotonic()
            try:
                self.run(
                    *("step_time.py", "--device", self.device, "--rounds", rounds),
                    *("--threads", 1, "--only", "host cost" if self.pretended else name),
                    *("--out", out, *options),
                    most=left / (left + self.end - end),
                )
            except subprocess.TimeoutExpired:
                rows[name] = f"left out after {left:.0f} s: the time does not suffice"
                break
            rows |= json.loads(out.read_text())["rows"]
        return rows

    def scaling(self) -> Result:
        """Milliseconds and memory of a step by its size."""
        rows: Result = {}
        for axis, size, kind in self._fitting(
            POINTS, 2 if self.short else len(POINTS), self.end
        ):
            said = self.run(
                *("scaling.py", "--device", self.device, "--threads", 1, "--rounds", 3),
                *("--point", axis, size, kind),
            )
            rows[f"{axis} {size}, {kind}"] = json.loads(said.splitlines()[-1])
        return rows

    def processes(self) -> Result:
        """Steps a second of one process and of two."""
        if self.pretended or torch.accelerator.device_count() < 2:
            return {"left out": "the machine has one device"}
        self.run(
            *("processes.py", "--sizes", 1, 2, "--rounds", 1, "--steps", 200),
            *("--device", self.device, "--out", self.folder),
        )
        found: Result = json.loads((self.folder / "processes.json").read_text())
        return found

    def _fitting(  # type: ignore[type-arg]
        self, items: list, most: int, end: float
    ) -> Iterator:
        """Yields items while there is time for one more before the end."""
        slowest = 0.0
        for item in items[:most]:
            if time.monotonic() + 1.2 * slowest > end:
                return
            start = time.monotonic()
            yield item
            slowest = max(slowest, time.monotonic() - start)


def machine_of(device: str, pretended: bool) -> dict[str, object]:
    """What the results were made with."""
    if pretended:
        name = "a pretended device"
    else:
        from tarspyro.accelerators import name_of_accelerator

        name = name_of_accelerator(torch.device(device))
    return {
        "machine": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "when": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Runs all parts and writes their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretended", action="store_true", help="on a pretended accelerator")
    parser.add_argument("--short", action="store_true", help="a few cases and rows")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="the time that there is"
    )
    parser.add_argument("--out", type=Path, help="the file of the results")
    options = parser.parse_args()
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None and not options.pretended:
        sys.exit("This machine has no accelerator; --pretended runs on any machine.")
    device = "gpu" if options.pretended or found is None else found.type
    report = machine_of(device, options.pretended)
    name = re.sub(r"\W+", "_", str(report["machine"])).strip("_").lower()
    out = options.out or RESULTS / f"gpu_{name}.json"
    session = Session(device, options.pretended, options.short, options.seconds)
    failed = []
    for part in (
        session.tests,
        session.captured,
        session.step_time,
        session.scaling,
        session.processes,
    ):
        start = time.monotonic()
        try:
            result = part()
        except Exception as error:  # the other parts have their say
            result = {"failed": f"{type(error).__name__}: {error}"}
        report[part.__name__] = result
        if result.get("failed"):
            failed.append(part.__name__)
        print(f"{part.__name__}: {time.monotonic() - start:.0f} s", flush=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
