"""The tests of what changed since the last commit, one path a line.

    python docs/scripts/changed_tests.py             (of the working tree against HEAD)
    python docs/scripts/changed_tests.py origin/main (against another commit)

The folders of ``tests`` mirror the library. The tests of ``tarspyro/infer/bounds/elbo.py`` are
``tests/infer/bounds/test_elbo.py``, or the first of these that exists: a file of this name in a
folder above, then the folder with the longest path in common. Its doctests are run too.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Tests of files outside the library.
_OTHERS = {
    "README.md": "test_readme.py",
    "benchmarks": "test_benchmarks.py",
    "docs": "test_docs.py",
    "mkdocs.yml": "test_docs.py",
    "notebooks": "test_notebooks.py",
    "pyproject.toml": "test_packaging.py",
    "setup.py": "test_packaging.py",
}


def changed_files(commit: str = "HEAD") -> list[Path]:
    """Returns the files that differ from a commit, and those that git does not know yet."""
    lines = []
    for command in (
        ["git", "diff", "--name-only", "--diff-filter=d", commit],
        ["git", "ls-files", "--others", "--exclude-standard"],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        lines += done.stdout.splitlines()
    return [Path(line) for line in lines]


def selected_for(file: Path, root: Path = ROOT) -> list[Path]:
    """Returns the tests of a file: test files or folders, and the file for its doctests."""
    first = file.parts[0]
    if first == "tests":
        return [_own_tests(file)] if file.suffix == ".py" else []
    if first in ("models", "guides"):
        file = Path("tarspyro", file)
    if file.parts[0] == "tarspyro":
        return [*_mirrored(file, root), file] if file.suffix == ".py" else []
    if first in _OTHERS:
        return [Path("tests", "project", _OTHERS[first])]
    return []


def _own_tests(file: Path) -> Path:
    """A test file itself, or the folder of a file that its tests share."""
    return file if file.name.startswith("test_") else file.parent


def _mirrored(file: Path, root: Path) -> list[Path]:
    folder = file.parent.relative_to("tarspyro")
    if folder == Path("guides"):
        folder = Path("models")  # a pair has one test
    tests = Path("tests")
    above = [tests / folder, *(tests / parent for parent in folder.parents)]

    for place in above:
        if (root / place / f"test_{file.stem}.py").is_file():
            return [place / f"test_{file.stem}.py"]
    for place in above:
        if place != tests and (root / place).is_dir():
            return [place]
    return []


def main(arguments: Iterable[str]) -> None:
    """Prints the tests, without files in folders that are printed too."""
    found = {test for file in changed_files(*arguments) for test in selected_for(file)}
    found.add(Path("tests", "project", "test_layers.py"))
    for test in sorted(found):
        if not found & set(test.parents):
            print(test)


if __name__ == "__main__":
    main(sys.argv[1:])
