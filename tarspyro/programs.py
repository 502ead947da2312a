"""The networks and tensors that a program computes with."""

__all__ = ["modules_of", "tensors_of", "type_of"]

import functools
import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn


def modules_of(program: Any) -> list[nn.Module]:
    """Returns the outermost modules of a program: itself, the owner of a method, or what a
    function reads.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> modules_of(lambda x: network(x)) == modules_of(network.forward) == [network]
        True
    """
    return list(dict.fromkeys(_modules(program, set())))


def _modules(program: Any, seen: set[int]) -> Iterator[nn.Module]:
    if isinstance(program, nn.Module):
        yield program
    elif id(program) not in seen:
        seen.add(id(program))
        for part in _parts(program):
            yield from _modules(part, seen)


def _parts(program: Any) -> Iterable[Any]:
    """What a program that is no module may have modules in."""
    if isinstance(program, functools.partial):
        return [program.func, *program.args, *program.keywords.values()]
    if inspect.ismethod(program):
        return [program.__self__]
    if hasattr(program, "__wrapped__"):  # by a handler of Pyro's
        return [program.__wrapped__]
    if not inspect.isfunction(program):
        return []
    try:
        read = inspect.getclosurevars(program)
    except ValueError:  # a variable has no value yet
        return []
    found: list[Any] = []
    for value in (
        *read.nonlocals.values(),
        *read.globals.values(),
        *(program.__defaults__ or ()),
    ):
        found += (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, (list, tuple))
            else [value]
        )
    # Of other functions, those of the same file: what a library's read is none of the
    # program's.
    return [
        value
        for value in found
        if isinstance(value, (nn.Module, functools.partial))
        or inspect.ismethod(value)
        or (inspect.isfunction(value) and value.__module__ == program.__module__)
    ]


def type_of(*programs: Any) -> torch.dtype | None:
    """Returns the type of the real numbers that programs compute with, that of their
    parameters.

    None for functions without networks, which compute in the type of their data.

    Example:
        >>> type_of(nn.Linear(2, 2).double())
        torch.float64
    """
    modules = [module for program in programs for module in modules_of(program)]
    parameters = itertools.chain.from_iterable(module.parameters() for module in modules)
    buffers = itertools.chain.from_iterable(module.buffers() for module in modules)
    types = (tensor.dtype for tensor in itertools.chain(parameters, buffers))
    return next((dtype for dtype in types if dtype.is_floating_point), None)


def tensors_of(args: Sequence[Any]) -> list[torch.Tensor]:
    """Returns the arguments that are tensors."""
    return [value for value in args if torch.is_tensor(value)]
