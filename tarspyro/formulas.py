"""Factorizations of programs as text and LaTeX."""

__all__ = [
    "headline",
    "latex_of",
    "parts_of",
    "split_factors",
]

import operator
import re
from typing import Any

from torch import nn


def parts_of(half: nn.Module, name: str) -> list[Any]:
    """The attributes whose product or sum a factor is."""
    return [operator.attrgetter(path)(half) for path in re.split(r" [*+] ", name)]


def split_factors(factors: Any) -> tuple[list[str], list[str]]:
    """The variables that the factors describe, and the conditions that none of them does."""
    variables: list[str] = []
    conditions: list[str] = []
    for factor in factors:
        described, _, given = factor.partition("|")
        variables += [name.strip() for name in described.split(",")]
        conditions += [name.strip() for name in given.split(",") if name.strip()]
    return variables, [name for name in dict.fromkeys(conditions) if name not in variables]


def latex_of(text: str) -> str:
    return re.sub(r"_(\w+)", r"_{\1}", text.replace(" | ", r" \mid "))


def headline(part: Any) -> str:
    headline = getattr(part, "headline", None) or repr(part).partition("\n")[0]
    return headline.replace("_", r"\_").replace(" ", r"\ ")
