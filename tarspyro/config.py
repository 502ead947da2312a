"""A pair of programs as JSON: classes by import path, and the arguments they were built with."""

__all__ = ["build", "describe"]

import importlib
import inspect
import sys
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

# Only these are imported because a file says so. Any other module must have been imported by the user already, so
# that a stranger's file cannot choose code to run.
_IMPORTABLE = ("tarspyro", "torch", "pyro")
_BUILDABLE = (nn.Module, Transform, ELBO)
_NAMEABLE = (*_BUILDABLE, Distribution)


def describe(value: Any) -> Any:
    """Returns the value as JSON: numbers, strings and containers, small tensors, classes, and objects by constructor.

    Raises:
        TypeError: If an object cannot be built again from what it keeps; the message says how to change that.

    Example:
        >>> from tarspyro.nn import MLP
        >>> build(describe(MLP((1, 8, 8), [32], activation=nn.Tanh)))
        MLP(64 -> 32, Tanh)
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [describe(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [describe(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): describe(item) for key, item in value.items()}}
    if isinstance(value, Tensor):
        kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
        return {kind: value.detach().cpu().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, type):
        return {"class": _path(value)}
    if isinstance(value, _BUILDABLE):
        args, kwargs = _arguments(value)
        return {
            "new": _path(type(value)),
            "args": [describe(item) for item in args],
            "kwargs": describe(kwargs)["dict"],
        }
    raise TypeError(
        f"{value!r} cannot be written to config.json: use a class in its place, such as torch.nn.ReLU for a function "
        "or tarspyro.distributions.Prior for a distribution."
    )


def build(described: Any) -> Any:
    """Returns the value that ``describe`` described, of the same classes.

    Raises:
        ImportError: If a class is not to be found, or its module is not imported yet.
        TypeError: If the description names something other than a module, a transform, a bound or a family.
    """
    if isinstance(described, list):
        return [build(item) for item in described]
    if not isinstance(described, dict):
        return described
    if "tuple" in described:
        return tuple(build(item) for item in described["tuple"])
    if "dict" in described:
        return {key: build(item) for key, item in described["dict"].items()}
    if "tensor" in described or "parameter" in described:
        dtype = getattr(torch, str(described["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"The configuration names an unknown dtype, {described['dtype']!r}.")
        if "tensor" in described:
            return torch.tensor(described["tensor"], dtype=dtype)
        return nn.Parameter(torch.tensor(described["parameter"], dtype=dtype))
    if "class" in described:
        return _find(described["class"], _NAMEABLE)
    if "new" in described:
        cls = _find(described["new"], _BUILDABLE)
        return cls(*build(described["args"]), **{key: build(item) for key, item in described["kwargs"].items()})
    raise TypeError(f"The configuration holds something unknown, with the keys {sorted(described)}.")


def _path(cls: type) -> str:
    if "<locals>" in cls.__qualname__:
        raise TypeError(
            f"{cls.__qualname__} is defined inside a function, where no import finds it: move it to a module."
        )
    return f"{cls.__module__}:{cls.__qualname__}"


def _find(path: str, kinds: tuple[type, ...]) -> type:
    module_name, _, name = path.partition(":")
    if module_name.partition(".")[0] in _IMPORTABLE:
        importlib.import_module(module_name)
    if module_name not in sys.modules:
        raise ImportError(
            f"The run uses {name} of the module {module_name}: import {module_name} before loading the run."
        )
    found: Any = sys.modules[module_name]
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ImportError(f"The run uses {name} of the module {module_name}, which has no such class: define it first.")
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise TypeError(f"The configuration names {path}, which is neither a module nor a distribution.")
    return found


def _arguments(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that build the object: remembered, or kept as attributes of the same names."""
    if hasattr(value, "constructor_arguments"):
        args, kwargs = value.constructor_arguments
        return args, kwargs
    if isinstance(value, (nn.Sequential, nn.ModuleList)):
        return (tuple(value), {}) if isinstance(value, nn.Sequential) else ((list(value),), {})
    kwargs = {}
    for name, parameter in inspect.signature(type(value).__init__).parameters.items():
        if name == "self" or parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if name in ("device", "dtype", "cache_size"):
            continue
        kept = getattr(value, name, inspect.Parameter.empty)
        if name == "bias" and isinstance(value, nn.Module):
            kept = kept is not None  # torch's layers keep the tensor under the flag's name
        if kept is not inspect.Parameter.empty and kept is not parameter.default:
            kwargs[name] = kept
        elif kept is inspect.Parameter.empty and parameter.default is inspect.Parameter.empty:
            raise TypeError(
                f"{type(value).__name__} does not keep its argument {name}: store it as self.{name}, "
                "or derive the class from tarspyro.modules.Configurable."
            )
    return (), kwargs
