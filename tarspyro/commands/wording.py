"""Errors of the library in the words of the command line: options in place of arguments."""

__all__ = ["in_options"]

import re
from collections.abc import Iterable

# Arguments of the library that options of the same meaning set.
_NAMED = {"num_samples": "--num", "folder": "--run", "device": "--device", "run": "--run"}


def in_options(sentence: str, names: Iterable[str]) -> str:
    """Returns a sentence with the options of a command in place of Python's arguments.

    Arguments:
        sentence: The sentence.
        names: The names of the settings that the command has.

    Example:
        >>> in_options("lr must be positive, got -1.0.", ["lr"])
        '--lr must be positive, got -1.0.'
        >>> in_options("scale them to one size, size=(32, 48).", ["size"])
        'scale them to one size, --size 32 48.'
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    for name, flag in {**flags, **_NAMED}.items():
        word = rf"(?<![\w.'\"-]){name}"
        sentence = re.sub(rf"{word}=\((\d+), (\d+)\)", rf"{flag} \1 \2", sentence)
        sentence = re.sub(rf"{word}=(?=[\w.'-])", f"{flag} ", sentence)
        if "_" in name:
            sentence = re.sub(rf"{word}\b", flag, sentence)
        else:
            sentence = re.sub(rf"^{name}(?= (must|is|has)\b)", flag, sentence)
    if "without" in flags:
        sentence = re.sub(
            r"(the column '([^']*)'.*leave (?:the column|it) out)\b",
            r"\1, --without '\2'",
            sentence,
        )
    return sentence
