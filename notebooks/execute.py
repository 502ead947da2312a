"""Runs notebooks and stores their outputs: ``python notebooks/execute.py [NAMES...] [--fast]
[--check]``.

A stored notebook is the result of a full run in a fresh kernel, from the first cell to the
last. Short test runs with ``--fast`` share one kernel. Everything that differs from run to run
or between machines is removed (times, identifiers, stderr, the version of the interpreter), so
that a diff shows only changes of content.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbclient.util import run_sync
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Absolute, of two parts or more, and not the end of a URL or of a relative path.
_PATH = re.compile(r"(?<![\w./:-])/[\w.-]+/[^\s'\"<>]*|\b[A-Z]:\\[^\s'\"<>]*")


def execute(
    notebook: NotebookNode,
    *,
    fast: bool = False,
    timeout: int = 600,
    kernel: AsyncKernelManager | None = None,
) -> list[str]:
    """Runs all cells in place, and removes everything that differs from run to run.

    The kernel works in a temporary folder, so that a notebook leaves no files behind.

    Arguments:
        notebook: The notebook.
        fast: Whether to set ``TARSPYRO_FAST``, so that notebooks train for a few steps only.
        timeout: How many seconds a cell may take.
        kernel: A kernel that may have run other notebooks. Its names are deleted, its imported
            modules stay. A fresh kernel if not given.

    Returns:
        The output of the cells to stderr.

    Raises:
        CellExecutionError: If a cell fails.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    environment = {**os.environ, "TARSPYRO_FAST": "1" if fast else ""}
    # One thread: the networks are small, threads that wait for a shared core make the run up to
    # ten times longer, and the last digits of a sum depend on the number of threads.
    environment.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=timeout,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        with client.setup_kernel(env=environment):
            forget = f"import os\nos.chdir({folder!r})\n%reset -f"
            cells = [*notebook.cells]
            client.execute_cell(nbformat.v4.new_code_cell(forget), -1, store_history=False)
            notebook.cells[:] = cells  # the client has replaced the last cell by that one
            client.reset_execution_trackers()
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(
                    cell, index, execution_count=client.code_cells_executed + 1
                )
    return normalize(notebook)


def normalize(notebook: NotebookNode) -> list[str]:
    """Brings an executed notebook into a form that depends on neither run nor machine.

    Returns:
        The output to stderr, which is removed.
    """
    errors = []
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        cell.metadata = NotebookNode()
        if cell.cell_type != "code":
            continue
        kept: list[NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                errors.append(output.text)
                continue
            if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
                # The kernel splits the printed text of a cell at arbitrary points.
                kept[-1].text += output.text
                continue
            if "metadata" in output:
                output.metadata = NotebookNode()
            kept.append(output)
        cell.outputs = kept
    return errors


def problems(notebook: NotebookNode) -> Iterator[str]:
    """Yields the problems of a stored notebook: cells that did not run, errors, local paths."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "its cells were not run in order, from the first to the last"
    for number, cell in enumerate(cells, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {number} failed: {output.ename}"
            for path in _PATH.findall(_text(output)):
                yield f"code cell {number} shows a path of the machine: {path}"


def _text(output: NotebookNode) -> str:
    shown = [
        value
        for kind, value in output.get("data", {}).items()
        if not kind.startswith("image/")
    ]
    return "\n".join(
        str(part) for part in (output.get("text", ""), *output.get("traceback", []), *shown)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the notebooks that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="such as 01_vae or a path; all notebooks if none",
    )
    parser.add_argument(
        "--fast", action="store_true", help="train for a few steps only; implies --check"
    )
    parser.add_argument("--check", action="store_true", help="run and report, write nothing")
    options = parser.parse_args(arguments)
    failed = False
    # Half of a short run would go into a kernel's imports.
    kernel = AsyncKernelManager(kernel_name="python3") if options.fast else None
    for path in [_find(name) for name in options.names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        found = []
        if options.check or options.fast:
            found += [f"{path.name} as stored: {problem}" for problem in problems(notebook)]
        start = time.perf_counter()
        try:
            for line in execute(notebook, fast=options.fast, kernel=kernel):
                print(line, end="", file=sys.stderr)
        except CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            failed = True
            continue
        found += [f"{path.name}: {problem}" for problem in problems(notebook)]
        if not (options.check or options.fast or found):
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")
        print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
        failed |= bool(found)
    if kernel is not None:
        run_sync(kernel.shutdown_kernel)(now=True)
    return int(failed)


def _find(name: str) -> Path:
    for path in (Path(name), FOLDER / name, FOLDER / f"{name}.ipynb"):
        if path.is_file():
            return path
    known = ", ".join(path.stem for path in sorted(FOLDER.glob("*.ipynb")))
    raise SystemExit(f"There is no notebook {name}; there are {known}.")


if __name__ == "__main__":
    sys.exit(main())
