"""Keys of steps: everything in a step that is not an input of its graph.

Steps with equal keys share a recording. A key has two parts. Its kind is what changes
rarely: the programs, the shapes of the data, the modes and the tensors of all modules. Its
constants are the numbers and words among their attributes. A constant that changes at every
step, such as a scheduled one, would ask for a recording each time; ``ConstantHistory`` finds
such constants.
"""

__all__ = [
    "TRIALS",
    "ConstantHistory",
    "StepKey",
    "StepKeys",
    "device_of",
    "dtype_of",
    "modules_within",
]

import functools
import operator
import types
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from tarspyro.infer.bounds.base import Bound
from tarspyro.programs import modules_of
from tarspyro.types import Program

Constants: TypeAlias = tuple[tuple[str, Hashable], ...]

TRIALS = 5  # the steps of each kind that tell which is faster
MAX_CONSTANTS = 4  # values of the same constants for which steps are compiled
_PLAIN = (bool, int, float, str, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, functools.partial, type)


class StepKey(NamedTuple):
    """The key of a step.

    Attributes:
        place: Programs and shapes.
        kind: Programs, shapes, modes, tensors and hooks.
        constants: Numbers and words among the attributes, by name.
    """

    place: tuple[Hashable, ...]
    kind: tuple[Hashable, ...]
    constants: Constants


class StepKeys:
    """The keys of the steps of a bound.

    As long as nothing has changed since the last step, the key is the same object.

    Arguments:
        bound: The bound.
    """

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self._contents: dict[tuple[Program, ...], _Contents] = {}
        self._made_of: tuple[object, ...] = ()
        self._key: StepKey | None = None

    def of(
        self,
        model: Program,
        guide: Program,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        device: torch.device,
    ) -> StepKey:
        """Returns the key of a step with a pair and data on a device."""
        data = [
            (value.shape, value.dtype, value.device) if torch.is_tensor(value) else repr(value)
            for value in (*args, *kwargs.values())
        ]
        cast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        place = (model, guide, *data, *kwargs)
        settings = _settings(self.bound.settings, self.bound.adjustable)
        contents = self._contents_of((model, guide, *self.bound.programs))
        if contents.lazy:  # a run gives lazy layers their shapes
            self.bound.prepare(model, guide, tuple(args), kwargs)
            contents = self._contents_of((model, guide, *self.bound.programs))
        made_of = (place, cast, settings, contents)
        if self._key is None or self._made_of != made_of:
            kind = (*place, cast, *contents.states)
            self._key = StepKey(place, kind, (*settings, *contents.numbers))
            self._made_of = made_of
        return self._key

    def _contents_of(self, programs: tuple[Program, ...]) -> "_Contents":
        """The contents of programs, the same object as in the last step if nothing changed."""
        contents = self._contents.get(programs)
        if contents is None or contents.have_changed():
            contents = self._contents[programs] = _Contents(programs)
        return contents


class _Contents:
    """The tensors, modes, numbers, words and functions in the modules of programs.

    Arguments:
        programs: The programs.

    Attributes:
        states: The modes and tensors of the modules of each program.
        numbers: The numbers and words among their attributes, by name.
        lazy: Whether there are tensors that wait for a first run to get their shapes.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        self._functions = [each for each in programs if not isinstance(each, nn.Module)]
        self._read = [modules_of(each) for each in self._functions]
        self._modules: list[nn.Module] = []
        self.states: list[Hashable] = []
        self.numbers: list[tuple[str, Hashable]] = []
        for program in programs:
            modules = list(modules_within(program))
            self._modules += modules
            self.states.append(tuple([_state(module) for module in modules]))
            for module in modules:
                self.numbers += _plain_attributes(module)
        self._attributes = [_public_attributes(module) for module in self._modules]
        self._parts = _parts(self._modules)
        self._identities = list(map(id, self._parts))
        self.lazy = any(torch.is_tensor(part) and is_lazy(part) for part in self._parts)
        self._trained = _trained(self._modules)

    def have_changed(self) -> bool:
        """Whether the modules hold something else now."""
        return (
            list(map(id, _parts(self._modules))) != self._identities
            or _trained(self._modules) != self._trained
            or any(attributes.have_changed() for attributes in self._attributes)
            or [modules_of(each) for each in self._functions] != self._read
        )


class _Attributes(NamedTuple):
    """The public attributes of a module, such as its mode, and their values."""

    of: dict[str, Any]
    number: int  # of all attributes
    values_in: Callable[[dict[str, Any]], object]
    values: object
    held: list[tuple[list[Any] | dict[Any, Any], Hashable]]  # lists, and what they held

    def have_changed(self) -> bool:
        """Whether there are other attributes now, or other values."""
        try:
            return (
                len(self.of) != self.number
                or self.values_in(self.of) != self.values
                or any(_plain(part) != before for part, before in self.held)
            )
        except Exception:  # as of a tensor in place of another, whose entries are compared
            return True


def _nothing(attributes: object) -> None:
    """The values of no attributes."""


def _public_attributes(module: nn.Module) -> _Attributes:
    attributes = vars(module)
    # Without tensors, which would be kept in memory.
    public = [
        name
        for name, value in attributes.items()
        if name[0] != "_" and not torch.is_tensor(value)
    ]
    # Those of a traced module lie elsewhere, and cannot be changed.
    values_in = operator.itemgetter(*public) if public else _nothing
    held = [
        (attributes[name], _plain(attributes[name]))
        for name in public
        if type(attributes[name]) in (list, dict) and name not in _NOT_READ
    ]
    return _Attributes(attributes, len(attributes), values_in, values_in(attributes), held)


def _parts(modules: Sequence[nn.Module]) -> list[object]:
    """The tensors, the modules and the hooks that modules hold."""
    return [
        part
        for module in modules
        for held in (module._parameters, module._buffers, module._modules, *_hooks(module))
        for part in held.values()
    ]


def _trained(modules: Sequence[nn.Module]) -> list[bool]:
    """Whether each parameter of modules is trained."""
    return [
        parameter is not None and parameter.requires_grad
        for module in modules
        for parameter in module._parameters.values()
    ]


class ConstantHistory:
    """The constants in successive steps of one kind: whether they stay the same for long
    enough to compile a step with them.
    """

    def __init__(self) -> None:
        self.constants: Constants | None = None
        self.calls = 0  # steps in a row with these constants
        self.brief = 0  # how many constants in a row lasted for a single step
        self.compiled = 0  # how many constants a step was compiled for
        self.changed: list[str] = []

    def add(self, constants: Constants) -> None:
        """Adds the constants of a step."""
        if constants == self.constants:
            self.calls += 1
            self.brief = 0
            return
        if self.constants is not None:
            before = set(self.constants)
            changed = [name for name, value in constants if (name, value) not in before]
            self.changed = list(dict.fromkeys(changed))
            if self.calls == 1:
                self.brief += 1
        self.constants = constants
        self.calls = 1

    @property
    def keeps_changing(self) -> bool:
        """Whether steps run eagerly until further notice."""
        too_many = self.calls > TRIALS and self.compiled >= MAX_CONSTANTS
        return self.brief >= TRIALS or too_many

    @property
    def steady(self) -> bool:
        """Whether a step with the newest constants is worth a compilation."""
        if not self.compiled:
            return True
        return self.calls > TRIALS and self.compiled < MAX_CONSTANTS


def modules_within(program: Program) -> Iterator[nn.Module]:
    """Yields all modules of a program: its own, or those that a function reads."""
    for module in modules_of(program):
        yield from module.modules()


def device_of(args: Sequence[object]) -> torch.device:
    """Returns the device of the data."""
    for value in args:
        if torch.is_tensor(value):
            return value.device
    return torch.device("cpu")


def dtype_of(args: Sequence[object]) -> torch.dtype:
    """Returns the type of numbers that meet the data: double precision stays double."""
    if any(torch.is_tensor(value) and value.dtype is torch.float64 for value in args):
        return torch.float64
    return torch.get_default_dtype()


def _state(module: nn.Module) -> tuple[Hashable, ...]:
    """The mode of a module, the identities of its hooks and tensors, and which of them are
    trained.
    """
    parameters = module._parameters
    buffers = module._buffers
    hooks = [id(hook) for held in _hooks(module) for hook in held.values()]
    if not parameters and not buffers:
        return module.training, *hooks
    trained = [
        parameter is not None and parameter.requires_grad for parameter in parameters.values()
    ]
    tensors = *map(id, parameters.values()), *trained, *map(id, buffers.values())
    return module.training, *hooks, *tensors


def _hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """The hooks before and after the module's ``forward``."""
    return module._forward_pre_hooks, module._forward_hooks


def _plain_attributes(module: nn.Module) -> list[tuple[str, Hashable]]:
    """The numbers, words, functions and classes among the attributes of a module."""
    found = []
    for name, value in vars(module).items():
        if name[0] != "_" and name not in _NOT_READ:
            constant = _plain(value)
            if constant is not None or value is None:
                found.append((name, constant))
    return found


# Attributes that no program reads: a mode is a part of the state.
_NOT_READ = ("training", "constructor_arguments")


def _plain(value: object) -> Hashable:
    """A number, a word, a function or a class as it is, lists and dictionaries by what they hold of
    these, and None for anything else.
    """
    if type(value) in _PLAIN_TYPES or isinstance(value, _FUNCTIONS):
        return value
    if type(value) in (list, tuple):
        return tuple([_plain(part) for part in value])  # type: ignore[attr-defined]
    if type(value) is dict:
        return tuple([(str(key), _plain(part)) for key, part in value.items()])
    return None


def _settings(settings: object, adjustable: Collection[str]) -> list[tuple[str, Hashable]]:
    """The attributes of a loss without the adjustable ones, which are inputs of the graph."""
    return [
        (name, _as_constant(value, adjustable))
        for name, value in vars(settings).items()
        if name[0] != "_" and name != "constructor_arguments" and name not in adjustable
    ]


def _as_constant(value: object, adjustable: Collection[str]) -> Hashable:
    """A value that can be compared and hashed; of a bound or a module its attributes."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return type(value), *(_as_constant(part, adjustable) for part in value)
    if isinstance(value, dict):
        parts = ((name, _as_constant(part, adjustable)) for name, part in value.items())
        return dict, *parts
    if isinstance(value, (Bound, nn.Module)):
        return id(value), *_settings(value, adjustable)
    return id(value)
