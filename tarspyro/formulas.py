"""Factorizations of programs as text and LaTeX."""

__all__ = [
    "headline",
    "latex_of",
    "parts_of",
    "split_factors",
]

import operator
import re
from collections.abc import Iterable

from torch import nn


def parts_of(program: nn.Module, name: str) -> list[object]:
    """Returns the attributes whose product or sum is a factor.

    Arguments:
        program: A model or a guide.
        name: The factor's key in ``factors``, such as ``"posterior * prior"``.
    """
    return [operator.attrgetter(path)(program) for path in re.split(r" [*+] ", name)]


def split_factors(factors: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns the variables that have a factor, and the conditions that have none.

    Example:
        >>> split_factors(["x | z, y", "z"])
        (['x', 'z'], ['y'])
    """
    variables: list[str] = []
    conditions: list[str] = []
    for factor in factors:
        described, _, given = factor.partition("|")
        variables += [name.strip() for name in described.split(",")]
        conditions += [name.strip() for name in given.split(",") if name.strip()]
    return variables, [name for name in dict.fromkeys(conditions) if name not in variables]


def latex_of(text: str) -> str:
    """Returns a formula such as ``p(x_1 | z)`` in LaTeX."""
    return re.sub(r"_(\w+)", r"_{\1}", text.replace(" | ", r" \mid "))


def headline(part: object) -> str:
    """Returns the first line of a module's description, with its signs escaped for LaTeX."""
    headline = getattr(part, "headline", None) or repr(part).partition("\n")[0]
    return str(headline).replace("_", r"\_").replace(" ", r"\ ")
