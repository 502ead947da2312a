"""Modules and tensors that a program uses."""

__all__ = [
    "PROGRAM_ERRORS",
    "device_of",
    "have_rows",
    "layers_of",
    "modules_of",
    "noting_first_inputs",
    "parameters_read",
    "tensors_of",
    "type_of",
]

import contextlib
import functools
import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence

import pyro
import torch
from torch import nn

# The errors that a program may raise on arguments that it does not take. Those of pairs derive
# from them.
PROGRAM_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
)


def modules_of(program: object) -> list[nn.Module]:
    """Returns the outermost modules of a program.

    They are the program itself, the owner of a method or the modules among its attributes, or
    the modules that a function reads.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> modules_of(lambda x: network(x)) == modules_of(network.forward) == [network]
        True
    """
    return list(dict.fromkeys(_modules(program, set())))


def layers_of(*programs: object) -> list[nn.Module]:
    """Returns the modules of programs, with all of their parts."""
    return [
        part
        for program in programs
        for module in modules_of(program)
        for part in module.modules()
    ]


def _modules(program: object, seen: set[int]) -> Iterator[nn.Module]:
    if isinstance(program, nn.Module):
        yield program
    elif id(program) not in seen:
        seen.add(id(program))
        for part in _parts(program):
            yield from _modules(part, seen)


def _parts(program: object) -> Iterable[object]:
    """Returns the objects in which a program that is no module may have modules."""
    if isinstance(program, functools.partial):
        return [program.func, *program.args, *program.keywords.values()]
    if inspect.ismethod(program):
        return [program.__self__]
    if hasattr(program, "__wrapped__"):  # A handler of Pyro's wraps it.
        return [program.__wrapped__]
    # The functions of a library read modules that are not the program's, so only functions of
    # the same file count.
    return [
        value
        for value in _values_read(program)
        if isinstance(value, (nn.Module, functools.partial))
        or inspect.ismethod(value)
        or (inspect.isfunction(value) and value.__module__ == program.__module__)
    ]


def _values_read(program: object) -> Iterator[object]:
    """Yields the values of a function's variables, or of an object's attributes."""
    if inspect.isfunction(program):
        try:
            read = inspect.getclosurevars(program)
        except ValueError:  # A variable has no value yet.
            return
        defaults = program.__defaults__ or ()
        values = [*read.nonlocals.values(), *read.globals.values(), *defaults]
    else:
        values = list(getattr(program, "__dict__", {}).values())
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def device_of(*programs: object) -> torch.device | None:
    """Returns the device of the first of the programs' parameters and buffers; None if they have
    none.

    Example:
        >>> device_of(lambda x: x, nn.Linear(2, 2))
        device(type='cpu')
    """
    return next((tensor.device for tensor in _state_of(programs)), None)


def type_of(*programs: object) -> torch.dtype | None:
    """Returns the floating-point type of the programs' parameters and buffers.

    None says that they have none: functions without networks compute in the type of their data.

    Example:
        >>> type_of(nn.Linear(2, 2).double())
        torch.float64
    """
    types = (tensor.dtype for tensor in _state_of(programs))
    return next((dtype for dtype in types if dtype.is_floating_point), None)


def _state_of(programs: Sequence[object]) -> Iterator[torch.Tensor]:
    """Yields all parameters of the programs' modules, and then their buffers."""
    modules = [module for program in programs for module in modules_of(program)]
    for module in modules:
        yield from module.parameters()
    for module in modules:
        yield from module.buffers()


def parameters_read(*programs: object) -> list[torch.Tensor]:
    """Returns the parameters of the programs' modules, and those of Pyro's store."""
    modules = [module for program in programs for module in modules_of(program)]
    found: list[torch.Tensor] = [one for module in modules for one in module.parameters()]
    found += [one for _, one in pyro.get_param_store().named_parameters()]
    return list({id(one): one for one in found}.values())


def have_rows(sizes: Collection[int], *programs: object) -> bool:
    """Returns whether a parameter has a dimension that holds one of the numbers of rows.

    Parameters of single rows have one for each row of a batch or of all the data, perhaps with
    the numbers of a row side by side. The weights of torch's layers are none, whatever the
    width of a layer.

    Example:
        >>> rows = nn.ParameterList([torch.zeros(100, 3)])
        >>> have_rows({100}, rows), have_rows({60}, rows), have_rows({100}, nn.Linear(100, 3))
        (True, False, False)
    """
    weights = {
        id(weight)
        for layer in layers_of(*programs)
        if type(layer).__module__.startswith("torch.nn.")
        and not isinstance(layer, (nn.ParameterList, nn.ParameterDict))
        for weight in layer.parameters(recurse=False)
    }
    return any(
        size % rows == 0
        for one in parameters_read(*programs)
        if id(one) not in weights
        for size in one.shape
        for rows in sizes
        if rows
    )


def tensors_of(args: Sequence[object]) -> list[torch.Tensor]:
    """Returns the arguments that are tensors."""
    return [value for value in args if isinstance(value, torch.Tensor)]


@contextlib.contextmanager
def noting_first_inputs(program: object) -> Iterator[list[torch.Tensor]]:
    """Gives a list, which afterwards has the inputs of the first layer with weights that ran.

    It stays empty if the program is not a module.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> with noting_first_inputs(network) as inputs:
        ...     _ = network(torch.ones(3, 2, 2))
        >>> [tuple(value.shape) for value in inputs]
        [(3, 4)]
    """
    found: list[torch.Tensor] = []

    def note(layer: nn.Module, inputs: tuple[object, ...]) -> None:
        if not found:
            found.extend(tensors_of(inputs))

    handles = [
        layer.register_forward_pre_hook(note)
        for layer in (program.modules() if isinstance(program, nn.Module) else ())
        if any(weight.dim() > 1 for weight in layer.parameters(recurse=False))
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
