"""What arguments must be: each of these says in one sentence which argument is not, what it
got, and what would do.
"""

__all__ = [
    "as_count",
    "as_numbers",
    "as_seed",
    "as_shape",
    "as_sizes",
    "check_choice",
    "check_constructor",
    "check_module",
    "check_number",
    "check_positive",
    "format_value",
]

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor, nn

_LONGEST = 120  # what is shown of a value, in characters


def format_value(value: Any) -> str:
    """Returns a value as it stands in a sentence: on one line, and not for pages.

    Example:
        >>> format_value(torch.zeros(3, 1000)), format_value("MNIST")
        ('a tensor of shape (3, 1000)', "'MNIST'")
    """
    if torch.is_tensor(value) and value.dim():
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray) and value.size > 5:
        return f"an array of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def as_count(name: str, value: Any, least: int = 1) -> int:
    """Returns a whole number.

    Raises:
        TypeError: If it is none.
        ValueError: If it is less than ``least``.

    Example:
        >>> as_count("num_particles", 5)
        5
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {format_value(value)}.") from None
    if count < least:
        raise ValueError(
            f"{name} must {f'be at least {least}' if least else 'not be negative'}, got"
            f" {count}."
        )
    return count


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises unless the value is one of some words.

    Raises:
        ValueError: If it is none of them.
    """
    words = list(choices)
    if not isinstance(value, str) or value not in words:
        listed = (
            " or ".join(map(repr, words))
            if len(words) < 3
            else f"one of {', '.join(map(repr, words))}"
        )
        raise ValueError(f"{name} must be {listed}, got {format_value(value)}.")


def as_seed(value: Any) -> int:
    """Returns the seed of a generator of random numbers.

    Raises:
        TypeError: If it is no whole number.
        ValueError: If it has more than 64 bits.
    """
    seed = as_count("seed", value, -(2**63))
    if seed >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}.")
    return seed


def as_sizes(name: str, value: Any, *, at_least: int = 0) -> tuple[int, ...]:
    """Returns a list of sizes, whole numbers from 1 on.

    Raises:
        TypeError: If it is no list, or one of something else.
        ValueError: If a size is less than 1, or there are fewer than ``at_least``.

    Example:
        >>> as_sizes("hidden_features", [512, 512])
        (512, 512)
    """
    if not isinstance(value, Iterable) or isinstance(value, str) or torch.is_tensor(value):
        raise TypeError(
            f"{name} must be a list of sizes, such as [32, 64], got {format_value(value)}."
        )
    sizes = tuple(as_count(f"{name}[{index}]", size) for index, size in enumerate(value))
    if len(sizes) < at_least:
        raise ValueError(f"{name} must hold at least {at_least} of them, got {list(sizes)}.")
    return sizes


def as_numbers(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Returns numbers, in a tensor, an array or a list, as a tensor.

    Raises:
        TypeError: If they are none, or rows differ in length.

    Example:
        >>> as_numbers("scores", [1, 2, 3])
        tensor([1, 2, 3])
    """
    try:
        tensor = torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} must be numbers, in a tensor or an array, got {format_value(value)}."
        ) from None
    if tensor.is_complex() or tensor.is_meta or tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} must be real numbers in a dense tensor, got {tensor.dtype} on"
            f" {tensor.device}, {tensor.layout}."
        )
    return tensor


def as_shape(name: str, value: Any) -> Size:
    """Returns a shape, of which one dimension may be given as its size.

    Raises:
        TypeError: If it is none.
        ValueError: If a size is less than 1.

    Example:
        >>> as_shape("event_shape", 64), as_shape("event_shape", (1, 8, 8)), as_shape("event_shape", ())
        (torch.Size([64]), torch.Size([1, 8, 8]), torch.Size([]))
    """
    if (
        isinstance(value, Iterable)
        and not isinstance(value, str)
        and not torch.is_tensor(value)
    ):
        return Size(as_sizes(name, value))
    try:
        return Size([as_count(name, value)])
    except TypeError:
        raise TypeError(
            f"{name} must be a size or a tuple of sizes, such as (1, 8, 8), got"
            f" {format_value(value)}."
        ) from None


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raises unless the value is a number, also in a tensor, from ``low`` to ``high``.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is NaN, or out of range.
    """
    _check_real(name, value)
    if low <= value <= high:
        return
    if math.isfinite(high):
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value}.")
    raise ValueError(
        f"{name} must {'not be negative' if low == 0 else 'be a number'}, got {value}."
    )


def check_positive(name: str, value: Any) -> None:
    """Raises unless the value is a number above zero; see ``check_number``."""
    _check_real(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def _check_real(name: str, value: Any) -> None:
    if not isinstance(value, numbers.Real) and not (
        torch.is_tensor(value) and value.numel() == 1
    ):
        raise TypeError(f"{name} must be a number, got {format_value(value)}.")


def check_module(name: str, value: Any) -> None:
    """Raises unless the value is a module.

    Raises:
        TypeError: If it is none, such as the class of one.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {format_value(value)}.")


def check_constructor(name: str, value: Any, example: str, *arguments: Any) -> None:
    """Raises unless a module comes out when the value is called with the arguments.

    Raises:
        TypeError: If none does, as with a module, its name, or a function of tensors.

    Example:
        >>> check_constructor("activation", nn.Tanh, "torch.nn.ReLU")
        >>> check_constructor("activation", torch.tanh, "torch.nn.ReLU")
        Traceback (most recent call last):
        TypeError: activation must be the constructor of a module, such as torch.nn.ReLU, got
            <built-in method tanh ...
    """
    made: Any = None
    if callable(value) and not isinstance(value, nn.Module):
        try:
            made = value(*arguments)
        except TypeError:  # it takes something else
            made = None
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"{name} must be the constructor of a module, such as {example}, got"
            f" {format_value(value)}."
        )
