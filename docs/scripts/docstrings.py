"""Reads the library's docstrings as Markdown: their formulas are in reStructuredText, for
those who read the code.
"""

import re
from typing import Any

import griffe

_BLOCK = re.compile(r"^\.\. math:: (.*(?:\n[ ]{2,}\S.*)*)", flags=re.MULTILINE)
_INDENTED = re.compile(r"^([ ]+)\.\. math:: (.*(?:\n\1[ ]{2,}\S.*)*)", flags=re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


def as_markdown(text: str) -> str:
    r"""Returns a docstring with dollars around its formulas, and its example as a section.

    Example:
        >>> as_markdown("Of size :math:`B`.\n\n.. math:: a\n          + b")
        'Of size $B$.\n\n$$a + b$$'
    """
    text = _BLOCK.sub(lambda found: f"$${_one_line(found[1])}$$", text)
    text = _INDENTED.sub(lambda found: f"{found[1]}$${_one_line(found[2])}$$", text)
    text = _INLINE.sub(lambda found: f"${found[1]}$", text)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _one_line(formula: str) -> str:
    return " ".join(line.strip() for line in formula.splitlines())


class Formulas(griffe.Extension):
    """Translates every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
