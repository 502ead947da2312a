"""A griffe extension that reads the library's docstrings as Markdown.

Docstrings hold formulas in reStructuredText, for readers of the code. The functions of
``tarspyro.plot`` get a picture each, made by ``docs/scripts/pictures.py``.
"""

import re
from pathlib import Path

import griffe

PICTURES = Path(__file__).resolve().parents[1] / "pictures" / "plot"
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


def with_picture(text: str, picture: str) -> str:
    """Returns the docstring of a plot function with its picture below the first paragraph."""
    first, _, rest = text.partition("\n\n")
    return f"{first}\n\n![{Path(picture).stem}](../pictures/plot/{picture})\n\n{rest}"


def _one_line(formula: str) -> str:
    return " ".join(line.strip() for line in formula.splitlines())


class Formulas(griffe.Extension):
    """Translates every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring is None:
            return
        obj.docstring.value = as_markdown(obj.docstring.value)
        is_plot = obj.is_function and obj.path.startswith("tarspyro.plot.")
        pictures = sorted(PICTURES.glob(f"{obj.name}.*"))
        if is_plot and pictures:
            obj.docstring.value = with_picture(obj.docstring.value, pictures[0].name)
