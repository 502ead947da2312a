"""Limits of what a stranger's configuration may build."""

__all__ = ["check_entries", "count_objects", "limited_numbers"]

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tarspyro.types import Json

# Functions that make a tensor of the size that their first arguments give.
_SIZED = (
    "empty",
    "zeros",
    "ones",
    "full",
    "rand",
    "randn",
    "randint",
    "normal",
    "empty_strided",
)


class _Limit(TorchFunctionMode):
    """Counts the numbers of the tensors that are made, the large ones before they are made."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._check(_numbers_of(getattr(func, "__name__", ""), args, kwargs))
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and made._base is None:
            self.left -= made.numel()
            self._check(0)
        return made

    def _check(self, numbers: float) -> None:
        if numbers > self.left:
            raise ValueError(
                "it describes far more numbers than the weights file of the run holds"
            )


def _numbers_of(name: str, args: Any, kwargs: Any) -> float:
    """Returns the number of elements that a function makes, as far as its arguments give it."""
    numbers = [argument for argument in args if isinstance(argument, (int, float))]
    numbers += [value for value in kwargs.values() if isinstance(value, (int, float))]
    match name:
        case "eye":
            return math.prod(numbers[:2]) * (1 if len(numbers) > 1 else numbers[0])
        case "arange" | "linspace" | "logspace":
            return max(map(abs, numbers), default=0)
        case "repeat" | "repeat_interleave":
            tensor = args[0]
            rest = [n for part in args[1:] for n in _flat(part) if isinstance(n, (int, float))]
            return float(tensor.numel() * math.prod(rest))
    if name in _SIZED:
        sizes = [
            part for part in (*args, kwargs.get("size")) if isinstance(part, (list, tuple))
        ]
        return max(
            (math.prod(_flat(size)) for size in sizes),
            default=math.prod(argument for argument in args if isinstance(argument, int)),
        )
    return 0


def _flat(part: Any) -> list[Any]:
    return list(part) if isinstance(part, (list, tuple)) else [part]


@contextlib.contextmanager
def limited_numbers(numbers: int) -> Iterator[None]:
    """Raises a ``ValueError`` inside when tensors with more numbers than that are made."""
    with _Limit(numbers):
        yield


def count_objects(described: Json) -> int:
    """Returns how many objects a description builds."""
    count = 0
    # A stranger's file may be nested deeper than Python's recursion goes.
    waiting = [described]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            count += "new" in part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return count


def check_entries(program: object, most: int) -> None:
    """Raises a ``ValueError`` if the state of a module has more entries than that.

    A module may stand in several places, and a module that holds it twice in several more. So
    a few lines describe millions of entries, which are counted here without listing them.
    """
    if isinstance(program, nn.Module) and _entries(program, {}) > most:
        raise ValueError(f"its modules have more than {most} entries in all their places")


def _entries(module: nn.Module, known: dict[int, int]) -> int:
    """The number of entries of a module's state, at most."""
    if id(module) not in known:
        own = len(module._parameters) + len(module._buffers)
        children = (child for child in module._modules.values() if child is not None)
        known[id(module)] = own + sum(_entries(child, known) for child in children)
    return known[id(module)]
