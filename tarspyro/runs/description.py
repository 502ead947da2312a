"""Descriptions of programs as JSON: public paths of classes, and constructor arguments."""

__all__ = ["build", "describe", "describe_pair", "refers", "with_public_paths"]

import contextlib
import importlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

import torch
from pyro.distributions import transforms
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.modules.lazy import LazyModuleMixin

from tarspyro.arguments import printable
from tarspyro.scopes import preserved_rng
from tarspyro.types import Json, Program

# A file may name public modules of these libraries, which are then imported. The user has to
# import any other module first, so that a stranger's file cannot choose code to run.
_IMPORTABLE = ("tarspyro", "torch", "pyro")
# The packages in which classes are public. Public paths outlive the modules that define them.
_PUBLIC = (
    "tarspyro",
    "tarspyro.models",
    "tarspyro.guides",
    "tarspyro.infer",
    "tarspyro.distributions",
    "tarspyro.nn",
    "torch.nn",
    "torch.distributions",
    "pyro.distributions",
    "pyro.distributions.transforms",
    "pyro.nn",
    "pyro.infer",
)
# Names of classes in the files of earlier versions, and their names now.
_RENAMED = {"Unchanged": "IdentityTrunk"}
_BUILDABLE = (nn.Module, Transform, ELBO)
_NAMEABLE = (*_BUILDABLE, Distribution)

# Arguments that do not change what an object computes. The dtype is one of them, because the
# description of a pair is compared with the pair.
_PASSING = ("device", "dtype", "cache_size")

# How to read the arguments that Pyro's flows do not keep under their own names.
_KEPT: dict[type, dict[str, Callable[[Any], Any]]] = {
    transforms.AffineCoupling: {"hypernet": attrgetter("nn")},
    transforms.ConditionalAffineCoupling: {"hypernet": attrgetter("nn")},
    transforms.AffineAutoregressive: {"autoregressive_nn": attrgetter("arn")},
    transforms.ConditionalAffineAutoregressive: {"autoregressive_nn": attrgetter("nn")},
    transforms.SplineCoupling: {
        "input_dim": lambda flow: flow.split_dim + flow.upper_spline.input_dim,
        "hypernet": attrgetter("upper_spline.nn"),
        **{
            name: attrgetter(f"upper_spline.{name}")
            for name in ("count_bins", "bound", "order")
        },
    },
    transforms.SplineAutoregressive: {
        "autoregressive_nn": attrgetter("arn"),
        **{
            name: attrgetter(f"spline.{name}")
            for name in ("input_dim", "count_bins", "bound", "order")
        },
    },
    transforms.ConditionalSplineAutoregressive: {"autoregressive_nn": attrgetter("nn")},
    type(transforms.ExpTransform().inv): {"transform": attrgetter("inv")},
    type(transforms.ConditionalPlanar(nn.Identity()).inv): {"transform": attrgetter("inv")},
}


def describe(value: object, path: str = "#", seen: dict[int, str] | None = None) -> Json:
    """Returns a value as JSON.

    The value may be a number, a string, a container, a small tensor, a class, or an object that
    is described by its constructor. A module with weights that stands in several places is
    described in the first. The other places refer to it by its JSON pointer (RFC 6901), so that
    it is built once.

    Arguments:
        value: The value.
        path: The pointer to the description.
        seen: The modules that were described before, each with its pointer. The modules of
            the value are added.

    Raises:
        TypeError: If an object does not keep the arguments that built it. The message says how
            to change that.

    Example:
        >>> from tarspyro.nn import MLP
        >>> build(describe(MLP((1, 8, 8), [32], activation=nn.Tanh)))
        MLP(64 -> 32, Tanh)
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    seen = {} if seen is None else seen
    if isinstance(value, list):
        return [describe(item, f"{path}/{index}", seen) for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": describe(list(value), f"{path}/tuple", seen)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {
            "dict": {
                key: describe(item, f"{path}/dict/{_token(key)}", seen)
                for key, item in value.items()
            }
        }
    if isinstance(value, Tensor) and not value.is_complex():
        kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
        return {
            kind: value.detach().cpu().tolist(),
            "dtype": str(value.dtype).removeprefix("torch."),
        }
    if isinstance(value, type):
        return {"class": _path(value)}
    if isinstance(value, _BUILDABLE):
        return _describe_object(value, path, seen)
    # A repr may hold an address, and this sentence is compared when a run is resumed.
    function = getattr(value, "__qualname__", None)
    name = (
        f"The function {function}"
        if function
        else f"An object of the class {type(value).__qualname__}"
    )
    raise TypeError(
        f"{name} cannot be written to config.json: use a class in its place, such as"
        " torch.nn.ReLU for a function or tarspyro.distributions.Prior for a distribution."
    )


def _describe_object(value: object, path: str, seen: dict[int, str]) -> Json:
    """An object by its constructor, or a reference if it was described before."""
    if id(value) in seen:
        return {"ref": seen[id(value)]}
    args, kwargs = _arguments(value)
    described: dict[str, Json] = {
        "new": _path(type(value)),
        "args": describe(list(args), f"{path}/args", seen),
        "kwargs": {
            key: describe(item, f"{path}/kwargs/{_token(key)}", seen)
            for key, item in kwargs.items()
        },
    }
    if isinstance(value, nn.Module):
        has_weights = any(True for _ in (*value.parameters(), *value.buffers()))
        if has_weights:
            seen[id(value)] = path
    return described


def build(
    described: object, path: str = "#", built: dict[str, object] | None = None
) -> object:
    """Builds the value that ``describe`` described, of the same classes.

    Arguments:
        described: The description.
        path: The pointer to the description.
        built: The objects that were built before, by their pointers. The objects of the value
            are added.

    Raises:
        ImportError: If a class is not found, or its module is not imported yet.
        TypeError: If the description names something other than a module, a transform, a bound
            or a family, or refers to an object that was not built before.
    """
    built = {} if built is None else built

    def items(values: dict[str, Json], path: str) -> dict[str, object]:
        return {
            key: build(item, f"{path}/{_token(key)}", built) for key, item in values.items()
        }

    def elements(values: list[Json], path: str) -> list[object]:
        return [build(item, f"{path}/{index}", built) for index, item in enumerate(values)]

    match described:
        case None | bool() | int() | float() | str():
            return described
        case list():
            return elements(described, path)
        case {"tuple": list(values), **rest} if not rest:
            return tuple(elements(values, f"{path}/tuple"))
        case {"dict": dict(values), **rest} if not rest:
            return items(values, f"{path}/dict")
        case {"tensor": numbers, "dtype": str(dtype), **rest} if not rest:
            return torch.tensor(numbers, dtype=_dtype(dtype))
        case {"parameter": numbers, "dtype": str(dtype), **rest} if not rest:
            return nn.Parameter(torch.tensor(numbers, dtype=_dtype(dtype)))
        case {"class": str(name), **rest} if not rest:
            return _find(name, _NAMEABLE)
        case {
            "new": str(name),
            "args": list(args),
            "kwargs": dict(kwargs),
            **rest,
        } if not rest:
            cls = _find(name, _BUILDABLE)
            positional = elements(args, f"{path}/args")
            built[path] = cls(*positional, **items(kwargs, f"{path}/kwargs"))
            return built[path]
        case {"ref": str(target), **rest} if not rest:
            if target not in built:
                raise TypeError(
                    f"The configuration refers to {target}, which was not built before."
                )
            return built[target]
    keys = sorted(described) if isinstance(described, dict) else described
    raise TypeError(f"The configuration has an unknown part, with the keys {keys}.")


def refers(described: Json, path: str) -> bool:
    """Whether a description refers to an object below a pointer."""
    # A stranger's file may be nested deeper than Python's recursion goes.
    waiting = [described]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            target = part.get("ref")
            if isinstance(target, str) and target.startswith(f"{path}/"):
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False


def with_public_paths(described: Json) -> Json:
    """Returns a description with the paths of this version in place of an earlier one's.

    Example:
        >>> with_public_paths({"class": "pyro.distributions.torch:Normal"})
        {'class': 'pyro.distributions.Normal'}
    """
    if isinstance(described, list):
        return [with_public_paths(part) for part in described]
    if not isinstance(described, dict):
        return described
    renewed = {key: with_public_paths(part) for key, part in described.items()}
    for key in ("new", "class"):
        path = renewed.get(key)
        if isinstance(path, str) and (":" in path or path.rpartition(".")[2] in _RENAMED):
            # A class of the user may be imported later.
            with contextlib.suppress(ImportError, TypeError):
                renewed[key] = _path(_find(path, _NAMEABLE))
    return renewed


def describe_pair(model: Program, guide: Program | None) -> dict[str, Json]:
    """Returns both halves as JSON, or for a half the reason why JSON cannot describe it.

    A module that both halves share is described in the model. Such halves can be built again
    only together.
    """
    halves = {"model": model, "guide": guide}
    described: dict[str, Json] = {}
    seen: dict[int, str] = {}
    built: dict[str, object] = {}
    for half, program in halves.items():
        if program is None:  # a model without a guide
            described[half] = None
            continue
        known = dict(seen)
        try:
            described[half] = describe(program, f"#/{half}", known)
            _check_rebuilt(program, described[half], f"#/{half}", built)
            seen = known  # of a half that failed there is nothing to refer to
        except Exception as error:
            # A constructor of the user may raise anything, and must not stop the training.
            described[half] = {"unavailable": str(error)}
    shared = _shared(model, guide)
    if shared and shared != _shared(built.get("#/model"), built.get("#/guide")):
        for half, entry in described.items():
            if not (isinstance(entry, dict) and "unavailable" in entry):
                described[half] = {"unavailable": _SHARING}
    return described


_SHARING = "The halves share weights, and halves that do cannot be rebuilt one by one"


def _check_rebuilt(
    program: Program, described: Json, path: str, built: dict[str, object]
) -> None:
    """Raises a ``TypeError`` unless a description builds the same network.

    Arguments:
        program: The network.
        described: Its description.
        path: The pointer to it.
        built: What was built before, see ``build``.
    """
    with preserved_rng():  # building draws initial weights
        rebuilt = build(described, path, built)
    if not (isinstance(program, nn.Module) and isinstance(rebuilt, nn.Module)):
        raise TypeError(f"{type(program).__name__} is not a module")
    # The first batch gives a lazy layer its size, so its description is another one.
    lazy = {
        name for name, layer in rebuilt.named_modules() if isinstance(layer, LazyModuleMixin)
    }
    if _structure(program, lazy) != _structure(rebuilt, lazy):
        raise TypeError(
            f"{type(program).__name__} is not what its constructor makes, so it was changed"
            " later"
        )


def _structure(program: nn.Module, without: set[str]) -> list[object]:
    """The layers and weights of a network; two with equal ones compute the same.

    Arguments:
        program: The network.
        without: The names of layers to leave out.
    """
    layers = [
        (name, type(layer), layer.extra_repr())
        for name, layer in program.named_modules()
        if name not in without
    ]
    weights = [
        (name, tensor.shape, tensor.dtype)
        for name, tensor in program.state_dict().items()
        if name.rpartition(".")[0] not in without
    ]
    return [layers, weights, _shared(program, program)]


def _shared(one: object, other: object) -> list[tuple[str, str]]:
    """The names of the weights that two networks share, or that one network has twice."""
    if not (isinstance(one, nn.Module) and isinstance(other, nn.Module)):
        return []
    names: defaultdict[int, list[str]] = defaultdict(list)
    for name, tensor in one.state_dict(keep_vars=True).items():
        names[id(tensor)].append(name)
    pairs = [
        (first, name)
        for name, tensor in other.state_dict(keep_vars=True).items()
        for first in names[id(tensor)]
    ]
    return [(first, name) for first, name in pairs if one is not other or first != name]


def _token(key: str) -> str:
    """A key, escaped for a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"The configuration names an unknown dtype, {name!r}.")
    return dtype


def _public_names(package: str) -> dict[str, object]:
    """The public names of a package of this library, of torch or of Pyro."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None) if package.startswith("tarspyro") else None
    return {name: getattr(module, name, None) for name in names or vars(module)}


def _public_path(cls: type) -> str | None:
    """The public path of a class; None for a class of the user."""
    library = cls.__module__.partition(".")[0]
    for package in _PUBLIC:
        if (
            package.partition(".")[0] == library
            and _public_names(package).get(cls.__name__) is cls
        ):
            return f"{package}.{cls.__name__}"
    return None


def _path(cls: type) -> str:
    if "<locals>" in cls.__qualname__:
        raise TypeError(
            f"{cls.__qualname__} is defined inside a function, where no import finds it: "
            "move it to a module."
        )
    if cls.__module__ == "torch.nn.utils.parametrize":
        raise TypeError(
            f"{cls.__name__.removeprefix('Parametrized')} has parametrizations, which its"
            " constructor does not make"
        )
    return _public_path(cls) or f"{cls.__module__}:{cls.__qualname__}"


def _find(path: str, kinds: tuple[type, ...]) -> type:
    """Returns the class of a path, which this version or an earlier one wrote.

    Raises:
        ImportError: If there is no such class.
        TypeError: If it is not one of the kinds.
    """
    found: object
    if ":" in path:
        module_name, _, name = path.partition(":")
        found = _moved(module_name, name) or _of_module(module_name, name)
    else:
        module_name, _, name = path.rpartition(".")
        if module_name.startswith("tarspyro"):
            name = _RENAMED.get(name, name)
        found = _public_names(module_name).get(name) if module_name in _PUBLIC else None
    if found is None:
        raise ImportError(
            printable(
                f"The run uses {name} of the module {module_name}, which has no such class:"
                " define it first."
            )
        )
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise TypeError(
            f"The configuration names {path}, which is neither a module nor a distribution."
        )
    return found


def _moved(module_name: str, name: str) -> object:
    """The class that was in a module of an earlier version of this library; None if none.

    Runs of version 0.1 name the module that defined a class. The class is found by its name in
    the public packages. Of two with the same name, such as in ``models`` and ``guides``, it is
    the one in the package of the module.
    """
    if module_name.partition(".")[0] != "tarspyro":
        return None
    name = _RENAMED.get(name, name)
    before = ".".join(module_name.split(".")[:2])
    packages = [package for package in _PUBLIC if package.startswith("tarspyro")]
    for package in sorted(packages, key=lambda package: package != before):
        if isinstance(_public_names(package).get(name), type):
            return _public_names(package)[name]
    return None


def _of_module(module_name: str, name: str) -> object:
    """The class of a module that is imported, or belongs to torch or Pyro; None if none."""
    packages = module_name.split(".")
    if packages[0] in _IMPORTABLE and not any(package.startswith("_") for package in packages):
        importlib.import_module(module_name)
    if module_name not in sys.modules:
        raise ImportError(
            printable(
                f"The run uses {name} of the module {module_name}: import {module_name} before"
                " loading the run."
            )
        )
    found: object = sys.modules[module_name]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _arguments(value: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments that build an object.

    A class of this library remembers them. Other classes keep each as an attribute of the same
    name.

    Raises:
        TypeError: If the object does not keep an argument.
    """
    if hasattr(value, "constructor_arguments"):
        remembered: tuple[tuple[object, ...], dict[str, object]] = value.constructor_arguments
        return remembered
    for maker, module in (("jit", "torch.jit."), ("compile", "torch._dynamo.")):
        if type(value).__module__.startswith(module):
            raise TypeError(
                f"{type(value).__name__} is made by torch.{maker}, not by a constructor"
            )
    constructor = cast(Callable[..., None], type(value).__init__)
    if isinstance(value, nn.Sequential) and constructor is nn.Sequential.__init__:
        return tuple(value), {}
    if isinstance(value, nn.ModuleList) and constructor is nn.ModuleList.__init__:
        return (list(value),), {}
    if constructor in (nn.Module.__init__, nn.Identity.__init__):
        return (), {}
    kwargs: dict[str, object] = {}
    ignored: tuple[str, ...] = _PASSING
    if isinstance(value, nn.RNNBase) and type(value).__module__.partition(".")[0] == "torch":
        # Their own constructors take anything, and pass it on after the kind of the cell.
        constructor = nn.RNNBase.__init__
        ignored = (*_PASSING, "mode")
        if isinstance(value, nn.RNN):
            kwargs["nonlinearity"] = value.nonlinearity
    for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
        if parameter.name not in ignored:
            kwargs |= _argument(value, parameter)
    return (), kwargs


def _argument(value: object, parameter: inspect.Parameter) -> dict[str, object]:
    """The value of one argument of an object's constructor, empty if it is the default."""
    cls = type(value)
    name = parameter.name
    missing = inspect.Parameter.empty
    elsewhere = _KEPT.get(cls, {})
    kept = elsewhere[name](value) if name in elsewhere else getattr(value, name, missing)
    if parameter.kind is parameter.VAR_KEYWORD and isinstance(kept, dict):
        return kept
    if name == "bias" and isinstance(parameter.default, bool):
        # Layers of torch keep the tensor under the name of the flag.
        kept = kept is not None and kept is not False
    # Torch and Pyro do not keep what they no longer use. Another class may.
    optional = (
        cls.__module__.partition(".")[0] in _IMPORTABLE and parameter.default is not missing
    )
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if variadic or (kept is missing and not optional):
        raise TypeError(
            f"{cls.__name__} does not keep its argument {name}: store it as self.{name}, or"
            " derive the class from tarspyro.modules.Configurable."
        )
    return {} if kept is missing or kept is parameter.default else {name: kept}
