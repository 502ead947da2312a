"""Mistakes of beginners get a sentence that helps: ``docs/mistakes.md`` shows them.

``python -m tests.project.test_mistakes`` writes the page anew.
"""

import contextlib
import functools
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot
import pyro
import pytest
import torch

from .mistakes import CHAPTERS, SETUP

FILE = Path(__file__).parents[2] / "docs" / "mistakes.md"
MISTAKES = [mistake for mistakes in CHAPTERS.values() for mistake in mistakes]

HEAD = """# Mistakes of beginners

What people write when they begin, what the library says to it, and what works. Every error is one sentence: what is
wrong, with its name and its value, and after the colon what to do. The same sentences, sorted by argument, are on the
page of [error messages](errors.md).

All examples begin with these lines. Their training is short, since only the sentences matter here.
"""

# The longest text that Python shows below an error, in lines.
LONGEST_TRACEBACK = 80


@contextlib.contextmanager
def empty_folder() -> Iterator[None]:
    """Runs what is inside in an empty folder, which is removed afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def run(code: str) -> None:
    """Runs code after the lines with which all examples begin, in an empty folder.

    Warnings are errors.
    """
    with (
        empty_folder(),
        warnings.catch_warnings(),
        pyro.validation_enabled(True),
    ):
        warnings.simplefilter("error")
        pyro.clear_param_store()
        torch.manual_seed(0)
        names: dict[str, object] = {}
        exec(SETUP, names)
        try:
            exec(compile(code, "your_file.py", "exec"), names)
        finally:
            matplotlib.pyplot.close("all")


@functools.cache
def answer(code: str) -> tuple[str, str, int]:
    """Returns the name of the error, its message, and the number of lines of its traceback."""
    try:
        run(code)
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).splitlines()
        return type(error).__name__, str(error), len(lines)
    raise AssertionError(f"nothing is said to {code}")


def escaped(text: str) -> str:
    """Returns text whose signs mean nothing in Markdown."""
    return re.sub(r"([*_`\[\]])", r"\\\1", text).replace("<", "&lt;")


def render() -> str:
    """Returns the page."""
    lines = [HEAD, f"```python\n{SETUP.strip()}\n```\n"]
    for chapter, mistakes in CHAPTERS.items():
        lines.append(f"## {chapter}\n")
        for mistake in mistakes:
            kind, text, _ = answer(mistake.code)
            text = re.sub(r"batch rows \[.*?\]", "batch rows [...]", text)
            said = f"> **{kind}**: {escaped(text)}"
            lines.append(f"### {mistake.title}\n")
            lines.append(f"```python\n{mistake.code.strip()}\n```\n\n{said}\n")
            if mistake.fixed is not None:
                lines.append(f"This works:\n\n```python\n{mistake.fixed.strip()}\n```\n")
    return "\n".join(lines)


def test_there_are_sixty_mistakes_or_more():
    assert len({mistake.title for mistake in MISTAKES}) == len(MISTAKES) >= 60


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_the_sentence_names_what_is_wrong_and_the_remedy(mistake):
    kind, text, lines = answer(mistake.code)
    assert kind == mistake.kind
    for word in mistake.words:
        assert word in text
    assert "\n" not in text and 20 < len(text) < 500
    assert lines < LONGEST_TRACEBACK


FIXED = [mistake for mistake in MISTAKES if mistake.fixed is not None]


@pytest.mark.parametrize("mistake", FIXED, ids=lambda mistake: mistake.title)
def test_the_remedy_works(mistake):
    run(mistake.fixed)


def test_the_page_shows_what_is_said():
    assert FILE.read_text("utf-8") == render()


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    FILE.write_text(render(), "utf-8")
