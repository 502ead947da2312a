"""A pair of programs as JSON: classes by import path, and the arguments they were built with."""

__all__ = ["build", "describe", "describe_pair", "refers", "with_public_paths"]

import contextlib
import importlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from pyro.distributions import transforms
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.modules.lazy import LazyModuleMixin

from tarspyro.scopes import preserved_rng

# Only the public modules of these are imported because a file says so. Any other module must
# have been imported by the user already, so that a stranger's file cannot choose code to run.
_IMPORTABLE = ("tarspyro", "torch", "pyro")
# Where classes are public: their paths in a file outlive the modules that define them.
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

# Arguments that change nothing in what an object computes, or are checked when a run is
# described (the dtype).
_PASSING = ("device", "dtype", "cache_size")


# Where Pyro's flows keep an argument, if not under its own name.
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


def describe(value: Any, path: str = "#", seen: dict[int, str] | None = None) -> Any:
    """Returns the value as JSON: numbers, strings and containers, small tensors, classes, and
    objects by constructor.

    A module with parameters or buffers that stands in several places is described in the
    first. The others refer to it by its JSON pointer (RFC 6901), so that it is built as one.

    Arguments:
        value: The value.
        path: The pointer to where the description will stand.
        seen: The modules that were described before it, each with its pointer; those of the
            value are added.

    Raises:
        TypeError: If an object cannot be built again from what it keeps; the message says how
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
        if id(value) in seen:
            return {"ref": seen[id(value)]}
        args, kwargs = _arguments(value)
        described = {
            "new": _path(type(value)),
            "args": describe(list(args), f"{path}/args", seen),
            "kwargs": {
                key: describe(item, f"{path}/kwargs/{_token(key)}", seen)
                for key, item in kwargs.items()
            },
        }
        if isinstance(value, nn.Module) and any(
            True for _ in (*value.parameters(), *value.buffers())
        ):
            seen[id(value)] = path
        return described
    # No repr, which may hold an address: the sentence is compared when a run is resumed.
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


def build(described: Any, path: str = "#", built: dict[str, Any] | None = None) -> Any:
    """Returns the value that ``describe`` described, of the same classes.

    Arguments:
        described: The description.
        path: The pointer to where it stands.
        built: The objects that were built before it, by their pointers; those of the value are
            added.

    Raises:
        ImportError: If a class is not to be found, or its module is not imported yet.
        TypeError: If the description names something other than a module, a transform, a bound
            or a family, or refers to what was not built before it.
    """
    built = {} if built is None else built

    def items(values: dict[str, Any], path: str) -> dict[str, Any]:
        return {
            key: build(item, f"{path}/{_token(key)}", built) for key, item in values.items()
        }

    match described:
        case None | bool() | int() | float() | str():
            return described
        case list():
            return [
                build(item, f"{path}/{index}", built) for index, item in enumerate(described)
            ]
        case {"tuple": list(values), **rest} if not rest:
            return tuple(build(values, f"{path}/tuple", built))
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
            built[path] = cls(
                *build(args, f"{path}/args", built), **items(kwargs, f"{path}/kwargs")
            )
            return built[path]
        case {"ref": str(target), **rest} if not rest:
            if target not in built:
                raise TypeError(
                    f"The configuration refers to {target}, where nothing was built before."
                )
            return built[target]
    raise TypeError(
        f"The configuration holds something unknown, with the keys {sorted(described)}."
    )


def refers(described: Any, path: str) -> bool:
    """Whether a description refers to something below a pointer."""
    waiting = [
        described
    ]  # a stranger's file may be nested deeper than a function may call itself
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


def with_public_paths(described: Any) -> Any:
    """Returns a description with the paths that this version writes in place of an earlier one's.

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
        if isinstance(path, str) and ":" in path:
            with contextlib.suppress(
                ImportError, TypeError
            ):  # a class of the user's, for later
                renewed[key] = _path(_find(path, _NAMEABLE))
    return renewed


def describe_pair(model: Any, guide: Any) -> dict[str, Any]:
    """Returns the halves as JSON, or for each the reason why it cannot be built again from
    JSON.

    A module that both halves hold is described in the model. Such halves can be built again
    together or not at all.
    """
    halves: dict[str, Any] = {"model": model, "guide": guide}
    described: dict[str, Any] = {}
    seen: dict[int, str] = {}
    built: dict[str, Any] = {}
    for half, program in halves.items():
        if program is None:  # a model without a guide
            described[half] = None
            continue
        path, known = f"#/{half}", dict(seen)
        try:
            described[half] = describe(program, path, known)
            with preserved_rng():  # building draws initial weights
                rebuilt = build(described[half], path, built)
            # Lazy layers are described by what the first batch made of them.
            lazy = {
                name
                for name, layer in rebuilt.named_modules()
                if isinstance(layer, LazyModuleMixin)
            }
            if _structure(program, lazy) != _structure(rebuilt, lazy):
                raise TypeError(
                    f"{type(program).__name__} is not what its constructor makes, so it was"
                    " changed later"
                )
            seen = known  # a half that failed has nothing to refer to
        except Exception as error:  # constructors of the user's may raise anything, and must not stop the training
            described[half] = {"unavailable": str(error)}
    shared = _shared(model, guide)
    if shared and shared != _shared(built.get("#/model"), built.get("#/guide")):
        alone = {
            "unavailable": (
                "The halves share weights, and halves that do cannot be rebuilt one by one"
            )
        }
        described = {
            half: entry if "unavailable" in (entry or "") else alone
            for half, entry in described.items()
        }
    return described


def _structure(program: nn.Module, without: set[str]) -> list[Any]:
    """What two networks share that compute the same once they have the same weights, also
    after training.
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


def _shared(one: Any, other: Any) -> list[tuple[str, str]]:
    """The names of weights that are one tensor in two networks, or under two names in one."""
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
    """A key as a part of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"The configuration names an unknown dtype, {name!r}.")
    return dtype


def _public_names(package: str) -> dict[str, Any]:
    """The names that a package of this library, of torch or of Pyro shows to its users."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", None) if package.startswith("tarspyro") else None
    return {name: getattr(module, name, None) for name in names or vars(module)}


def _public_path(cls: type) -> str | None:
    """The public package that a class is imported from, and its name; None for a class of the user's."""
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
    return _public_path(cls) or f"{cls.__module__}:{cls.__qualname__}"


def _find(path: str, kinds: tuple[type, ...]) -> type:
    """Returns the class that ``_path`` or an earlier version of it wrote down."""
    if ":" in path:
        module_name, _, name = path.partition(":")
        found = _moved(module_name, name) or _of_module(module_name, name)
    else:
        module_name, _, name = path.rpartition(".")
        found = _public_names(module_name).get(name) if module_name in _PUBLIC else None
    if found is None:
        raise ImportError(
            f"The run uses {name} of the module {module_name}, which has no such class: "
            "define it first."
        )
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise TypeError(
            f"The configuration names {path}, which is neither a module nor a distribution."
        )
    return found


def _moved(module_name: str, name: str) -> Any:
    """The class that stood in a module of an earlier version of this library.

    Runs of version 0.1 name the module that defined a class. Where the class is public now tells
    its name, and where two packages have the same one, such as ``models`` and ``guides``, the
    package that the module was in.
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


def _of_module(module_name: str, name: str) -> Any:
    """The class of a module that is imported, or that is one of torch's or Pyro's."""
    packages = module_name.split(".")
    if packages[0] in _IMPORTABLE and not any(package.startswith("_") for package in packages):
        importlib.import_module(module_name)
    if module_name not in sys.modules:
        raise ImportError(
            f"The run uses {name} of the module {module_name}: import {module_name} before "
            "loading the run."
        )
    found: Any = sys.modules[module_name]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _arguments(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that build the object: remembered, or kept as attributes of the same
    names.
    """
    if hasattr(value, "constructor_arguments"):
        remembered: tuple[tuple[Any, ...], dict[str, Any]] = value.constructor_arguments
        return remembered
    cls, empty = type(value), inspect.Parameter.empty
    constructor: Any = cls.__init__
    if constructor is nn.Sequential.__init__:
        return tuple(value), {}
    if constructor is nn.ModuleList.__init__:
        return (list(value),), {}
    if constructor in (nn.Module.__init__, nn.Identity.__init__):
        return (), {}
    kwargs: dict[str, Any] = {}
    kept_elsewhere = _KEPT.get(cls, {})
    passing: tuple[str, ...] = _PASSING
    if isinstance(value, nn.RNNBase) and cls.__module__.partition(".")[0] == "torch":
        # Their own constructors take anything, and pass it on with the kind of cell in front.
        constructor, passing = nn.RNNBase.__init__, (*_PASSING, "mode")
        if isinstance(value, nn.RNN):
            kwargs["nonlinearity"] = value.nonlinearity
    for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
        if name in passing:
            continue
        kept = (
            kept_elsewhere[name](value)
            if name in kept_elsewhere
            else getattr(value, name, empty)
        )
        if parameter.kind is parameter.VAR_KEYWORD and isinstance(kept, dict):
            kwargs |= kept
            continue
        if name == "bias" and isinstance(parameter.default, bool):
            kept = (
                kept is not None and kept is not False
            )  # torch's layers keep the tensor under the flag's name
        # Torch and Pyro do not keep what they no longer use; of another class nothing is
        # known.
        known = (
            cls.__module__.partition(".")[0] in _IMPORTABLE and parameter.default is not empty
        )
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or (
            kept is empty and not known
        ):
            raise TypeError(
                f"{cls.__name__} does not keep its argument {name}: store it as self.{name}, "
                "or derive the class from tarspyro.modules.Configurable."
            )
        if kept is not empty and kept is not parameter.default:
            kwargs[name] = kept
    return (), kwargs
