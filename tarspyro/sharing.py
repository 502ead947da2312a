"""Results that model and guide share: a recurrence that both run is computed once."""

__all__ = ["computed_once", "sharing"]

import contextlib
import contextvars
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

_Method = TypeVar("_Method", bound=Callable[..., Any])

# A key that is equal for tensors with equal values, or for calls with equal results.
_Key: TypeAlias = tuple[Hashable, ...]

# Modules of these packages compute a function of their arguments and parameters, unless they
# draw noise or keep statistics. Other modules may do anything.
_KNOWN = ("torch.nn.modules.", "tarspyro.nn.")
_CHANGING = (_DropoutNd, _NormBase, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


class _Results:
    """The results of a run, and the tensors that they were computed from."""

    def __init__(self) -> None:
        # The arguments are kept, because the id of a freed tensor may be given to a new one.
        self.kept: dict[_Key, tuple[tuple[Any, ...], Any, Hashable]] = {}
        self.parts: dict[nn.Module, list[nn.Module] | None] = {}

    def call(
        self, method: Callable[..., Any], module: nn.Module, args: tuple[Any, ...]
    ) -> Any:
        """Returns the result of a method, from an earlier call with equal arguments if there is
        one.
        """
        if module not in self.parts:
            self.parts[module] = _parts_of(module)
        parts = self.parts[module]
        if parts is None:
            return method(module, *args)

        weights = [
            tensor
            for part in parts
            for tensors in (part._parameters, part._buffers)
            for tensor in tensors.values()
        ]
        weight_keys = tuple(map(_key_of_weight, weights))
        args_keys = tuple(map(_key_of, args))
        key = (method, module, torch.is_grad_enabled(), weight_keys, args_keys)
        if key in self.kept:
            _, result, before = self.kept[key]
            if before == _key_of(result):  # It was not changed in place.
                return result
        result = method(module, *args)
        self.kept[key] = ((weights, args), result, _key_of(result))
        return result


_results: contextvars.ContextVar[_Results | None] = contextvars.ContextVar(
    "results", default=None
)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Keeps the results of methods that are ``computed_once``, until the end of the context."""
    token = _results.set(_Results())
    try:
        yield
    finally:
        _results.reset(token)


def computed_once(method: _Method) -> _Method:
    """Returns a method of a module that takes its result from an earlier call, inside
    ``sharing``.

    That is, if the arguments and the parameters are the same tensors, unchanged, and the module
    and its parts draw no noise, keep no statistics, and have no hooks. A guide and a model that
    share a recurrence then compute each of its steps once, forward and backward.

    Example:
        >>> class Twice(nn.Module):
        ...     __module__ = "tarspyro.nn.example"
        ...
        ...     @computed_once
        ...     def forward(self, x):
        ...         print("computed")
        ...         return 2 * x
        >>> x = torch.zeros(3)
        >>> with sharing():
        ...     first, second = Twice(), Twice()
        ...     same = first(x) is first(x)
        computed
        >>> same
        True
    """

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any) -> Any:
        if torch.compiler.is_compiling():  # TorchDynamo does not support context variables.
            return method(self, *args)
        results = _results.get()
        return method(self, *args) if results is None else results.call(method, self, args)

    return run  # type: ignore[return-value]


def _parts_of(module: nn.Module) -> list[nn.Module] | None:
    """Returns a module and its parts; None if a call may do more than compute a result."""
    parts = list(module.modules())
    for part in parts:
        known = type(part).__module__.startswith(_KNOWN)
        hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
        if not known or hooks or isinstance(part, _CHANGING):
            return None
    return parts


def _key_of_weight(weight: Tensor | None) -> Hashable:
    """Returns a key that is equal for the same parameter with the same numbers."""
    return weight if weight is None else (id(weight), weight._version, weight.requires_grad)


def _key_of(value: Any) -> Hashable:
    """Returns a key that is equal for tensors that are the same numbers in memory.

    Two views of a tensor are different objects, as ``x[:, 0]`` in the model and in the guide.
    """
    if isinstance(value, tuple):
        return tuple(map(_key_of, value))
    if not isinstance(value, Tensor):
        return id(value) if not isinstance(value, int) else value
    base = value._base if value._is_view() else value
    place = (value.storage_offset(), value.shape, value.stride(), value.dtype)
    return id(base), value._version, value.requires_grad, *place
