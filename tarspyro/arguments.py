"""Argument validators that name the argument, the value and a fix."""

__all__ = [
    "as_count",
    "as_module_list",
    "as_numbers",
    "as_seed",
    "as_shape",
    "as_sizes",
    "check_choice",
    "check_constructor",
    "check_finite",
    "check_lengths",
    "check_method",
    "check_module",
    "check_names",
    "check_number",
    "check_positive",
    "format_fields",
    "constructor_parameters",
    "format_value",
    "suggestion",
    "too_many_parts",
    "unknown_name",
    "printable",
    "is_array",
    "numpy_of",
]

import contextlib
import difflib
import inspect
import math
import numbers
import operator
from array import array as array_of_numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor, nn

_LONGEST = 120  # The longest text of a value in a message, in characters.


def printable(text: str) -> str:
    r"""Returns a text without characters that command a terminal, such as escape sequences.

    Example:
        >>> printable("a\x1b[31m red\n word")
        'a\\x1b[31m red word'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def format_value(value: object) -> str:
    """Returns a short text of a value for a message, on one line.

    Example:
        >>> format_value(torch.zeros(3, 1000)), format_value("MNIST")
        ('a tensor of shape (3, 1000)', "'MNIST'")
    """
    if isinstance(value, Tensor) and value.dim():
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray) and value.size > 5:
        return f"an array of shape {value.shape}"
    if isinstance(value, nn.Module) and "\n" in repr(value):
        return f"a module {type(value).__name__}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def format_fields(name: str, fields: Mapping[str, object]) -> str:
    """Returns a result as text, a line for each of its parts: of arrays the mean and range.

    Arguments:
        name: What the result is.
        fields: Its parts by name: numbers, arrays, None, or results that print themselves.

    Example:
        >>> print(format_fields("Estimate", {"value": torch.tensor([1.0, 2.0, 6.0]), "k": 5}))
        Estimate
          value: shape (3,), mean 3, from 1 to 6
          k: 5
    """
    lines = [f"{key}: {_format_part(value)}" for key, value in fields.items()]
    return "\n".join([name, *("\n".join(lines).splitlines())]).replace("\n", "\n  ")


def _format_part(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if not isinstance(value, (Tensor, np.ndarray)):
        return repr(value)
    tensor = torch.as_tensor(value).detach()
    numbers = tensor.double()
    if not tensor.dim():
        return f"{numbers.item():.5g}"
    shape = f"shape {tuple(tensor.shape)}"
    if not tensor.numel():
        return shape
    mean = f"mean {numbers.mean():.5g}, " if tensor.is_floating_point() else ""
    return f"{shape}, {mean}from {numbers.min():.5g} to {numbers.max():.5g}"


def suggestion(
    name: str, names: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> str:
    """Returns the end of a sentence that names what was probably meant by an unknown name.

    Arguments:
        name: The unknown name.
        names: The known names.
        elsewhere: Names that other libraries use, with what they are called here.

    Example:
        >>> suggestion("batchsize", ["epochs", "batch_size"])
        'did you mean batch_size?'
        >>> suggestion("k", ["num_particles"], {"k": "num_particles"})
        'did you mean num_particles?'
    """
    meant = {**(elsewhere or {}), **{known: known for known in names}}
    plain = {_plain(known): text for known, text in meant.items()}
    close = difflib.get_close_matches(_plain(name), plain, n=1)
    if close:
        return f"did you mean {plain[close[0]]}?"
    return f"its arguments are {', '.join(names)}."


def unknown_name(module: str, name: str, names: Iterable[str]) -> AttributeError:
    """Returns the error of a name that a module does not have, with the name that was meant.

    Python's own suggestion may be a module of this library, such as ``vae``, in place of the
    class ``VAE``.

    Arguments:
        module: The name of the module.
        name: The unknown name.
        names: The public names of the module.

    Example:
        >>> unknown_name("tarspyro.models", "Vae", ["GAN", "VAE"])
        AttributeError("module 'tarspyro.models' has no attribute 'Vae': did you mean VAE?")
    """
    plain = {_plain(known): known for known in names}
    close = difflib.get_close_matches(_plain(name), plain, n=1)
    hint = f": did you mean {plain[close[0]]}?" if close and name[:1] != "_" else ""
    message = f"module {module!r} has no attribute {name!r}{hint}"
    # An object without attributes of such names keeps Python from a suggestion of its own.
    return AttributeError(message, name=name, obj=None)


def _plain(name: str) -> str:
    """A name without capitals and underscores, which are easily mistaken."""
    return name.lower().replace("_", "")


def check_names(
    cls: type,
    given: Iterable[str],
    elsewhere: Mapping[str, str] | None = None,
    *,
    passes_on: bool = False,
) -> None:
    """Raises unless the constructor of a class has arguments of all given names.

    Arguments:
        cls: The class.
        given: The names.
        elsewhere: Names that other libraries use, with what they are called here.
        passes_on: Whether the classes of this library pass on ``**options`` to the constructor
            of their base class. Else a constructor with ``**options`` takes any name.

    Raises:
        TypeError: If it has no argument of a name.
    """
    given = list(given)
    if not given:
        return
    known: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = constructor_parameters(base)
        known += [
            parameter.name
            for parameter in parameters
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
        if not (passes_on and base.__module__.startswith("tarspyro.")):
            return
    for name in given:
        if name not in known:
            meant = {k: v for k, v in (elsewhere or {}).items() if v in known}
            what = suggestion(name, list(dict.fromkeys(known)), meant)
            raise TypeError(f"{cls.__name__}() has no argument {name!r}: {what}")


def constructor_parameters(cls: type) -> list[inspect.Parameter]:
    """Returns the parameters of the constructor of a class, without ``self``."""
    for base in cls.__mro__:
        if "__init__" in vars(base):
            return list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
    return []


def as_count(
    name: str, value: object, least: int = 1, most: int | None = None, most_is: str = ""
) -> int:
    """Returns a whole number of at least ``least``.

    Arguments:
        name: The name of the argument.
        value: Its value.
        least: The smallest number that is allowed.
        most: The largest number that is allowed, if there is one.
        most_is: What the largest number is, for the message.

    Raises:
        TypeError: If the value is not a whole number.
        ValueError: If it is out of range.

    Example:
        >>> as_count("num_particles", 5)
        5
        >>> as_count("k", 7, most=4, most_is="the number of codes")
        Traceback (most recent call last):
        ValueError: k must be between 1 and 4, the number of codes, got 7.
    """
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {format_value(value)}.") from None
    if most is not None and not least <= count <= most:
        meaning = f", {most_is}" if most_is else ""
        raise ValueError(
            f"{name} must be between {least:,} and {most:,}{meaning}, got {count}."
        )
    if count < least:
        wanted = f"be at least {least}" if least else "not be negative"
        raise ValueError(f"{name} must {wanted}, got {count}.")
    return count


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raises unless the value is one of some words.

    Raises:
        ValueError: If it is not.
    """
    words = list(choices)
    if not isinstance(value, str) or value not in words:
        several = len(words) > 2
        listed = (", " if several else " or ").join(map(repr, words))
        listed = f"one of {listed}" if several else listed
        raise ValueError(f"{name} must be {listed}, got {format_value(value)}.")


def as_seed(value: object) -> int:
    """Returns the seed of a random number generator.

    Raises:
        TypeError: If the value is not a whole number.
        ValueError: If it has more than 64 bits.
    """
    seed = as_count("seed", value, -(2**63))
    if seed >= 2**64:
        raise ValueError(f"seed must be below 2**64, got {seed}.")
    return seed


def as_sizes(name: str, value: object, *, at_least: int = 0) -> tuple[int, ...]:
    """Returns sizes, which are whole numbers of at least 1.

    Raises:
        TypeError: If the value is not a list of whole numbers.
        ValueError: If a size is less than 1, or there are fewer than ``at_least``.

    Example:
        >>> as_sizes("hidden_features", [512, 512])
        (512, 512)
    """
    if not isinstance(value, Iterable) or isinstance(value, (str, Tensor)):
        raise TypeError(
            f"{name} must be a list of sizes, such as [32, 64], got {format_value(value)}."
        )
    sizes = tuple(as_count(f"{name}[{index}]", size) for index, size in enumerate(value))
    if len(sizes) < at_least:
        raise ValueError(f"{name} must have at least {at_least} sizes, got {list(sizes)}.")
    return sizes


def numpy_of(values: Tensor) -> np.ndarray:
    """Returns a tensor as an array; bfloat16, which NumPy lacks, as single precision.

    Example:
        >>> numpy_of(torch.ones(2, dtype=torch.bfloat16)).dtype
        dtype('float32')
    """
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def as_numbers(name: str, value: object, dtype: torch.dtype | None = None) -> Tensor:
    """Returns the numbers of a tensor, an array, a table or a list as a tensor.

    An array may be of any layout and byte order; one that cannot be written to is copied. A
    masked or missing value becomes NaN. Objects of other libraries are read by NumPy.

    Raises:
        TypeError: If the value does not hold real numbers, or its rows differ in length.

    Example:
        >>> as_numbers("scores", [1, 2, 3])
        tensor([1, 2, 3])
        >>> as_numbers("scores", np.array([1.0, 2.0], ">f8")[::-1], torch.float32)
        tensor([2., 1.])
    """
    try:
        tensor = value if isinstance(value, Tensor) else _as_tensor(value, dtype)
        tensor = tensor if dtype is None else tensor.to(dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            f"{name} must be numbers, in a tensor or an array, got {_described(value)}"
            f"{_about_words(name, value)}."
        ) from None
    if tensor.is_complex() or tensor.is_meta or tensor.layout is not torch.strided:
        raise TypeError(
            f"{name} must be real numbers in a dense tensor, got {tensor.dtype} on"
            f" {tensor.device}, {tensor.layout}."
        )
    return tensor


def _as_tensor(value: object, dtype: torch.dtype | None) -> Tensor:
    """Returns numbers that are not in a tensor as one."""
    if isinstance(value, np.ndarray):
        return _from_array(value)
    if value is None or isinstance(value, (str, bytes)):
        raise TypeError
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, Tensor) for part in value):
            return torch.stack([as_numbers("a row", part) for part in value])
        if any(map(is_array, value)):
            return _from_array(np.stack([_asarray(part) for part in value]))
    elif is_array(value):
        return _from_array(_asarray(value))
    try:
        return torch.as_tensor(value, dtype=dtype)
    except (TypeError, RuntimeError):  # a list may hold None for what is missing
        return _from_array(np.array(value, dtype=object))


def is_array(value: object) -> bool:
    """Returns whether NumPy reads a value as an array: arrays, tables, images, buffers.

    Example:
        >>> is_array(np.zeros(3)), is_array([0.0, 0.0, 0.0])
        (True, False)
    """
    buffers = (memoryview, array_of_numbers)
    interfaces = ("__array__", "__array_interface__")
    return isinstance(value, buffers) or any(hasattr(value, name) for name in interfaces)


def _asarray(value: object) -> np.ndarray:
    """Returns the values of a table, an image or an array of another library."""
    if hasattr(value, "to_numpy") and hasattr(value, "isna"):  # pandas has missing values
        columns: Any = value
        if columns.isna().to_numpy().any():
            dtypes = columns.dtypes
            numeric = all(
                _kind(dtype) in "biuf" for dtype in np.ravel(np.array(dtypes, object))
            )
            # Without a copy, pandas 3 hands out a view that it then fails to write to.
            array: np.ndarray = columns.to_numpy(
                dtype=float if numeric else object, copy=True, na_value=math.nan
            )
            return array
    return np.asarray(value)


def _from_array(array: np.ndarray) -> Tensor:
    """Returns an array as a tensor, which shares its memory if torch can."""
    if isinstance(array, np.ma.MaskedArray):
        gaps = np.ma.getmaskarray(array)
        array = np.where(gaps, math.nan, array.data) if gaps.any() else array.data
    if array.dtype == object:
        if any(isinstance(entry, (str, bytes)) for entry in array.flat):
            raise TypeError
        if array.ndim == 1 and any(isinstance(entry, (list, np.ndarray)) for entry in array):
            return _from_array(np.stack([np.asarray(entry) for entry in array]))
        array = array.astype(float)  # None becomes NaN
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch computes with few unsigned numbers
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = np.asarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array)


def _about_words(name: str, value: object) -> str:
    """Returns the end of a sentence about words in place of numbers."""
    words = _words_of(value)
    if words is None or not words.size:
        return ""
    try:
        words.astype(float)
    except ValueError:
        numbers = "np.unique(words, return_inverse=True)[1]"
    else:
        return ": these are numbers in words, np.array(words).astype(float)"
    if name == "y" or "labels" in name:
        return f": turn words into numbers, {numbers}"
    if words.ndim > 1:
        return ": for a table with words, read it with tarspyro.data.read_table(text or path)"
    return (
        ": turn words into one-hot vectors,"
        f" torch.nn.functional.one_hot(torch.as_tensor({numbers})).float()"
    )


def _words_of(value: object) -> np.ndarray | None:
    """Returns words in an array or a list as an array; None for all else."""
    if getattr(value, "ndim", 0) == 1 and hasattr(value, "to_numpy"):
        value = list(np.asarray(value))
    array: np.ndarray | None = value if isinstance(value, np.ndarray) else None
    if isinstance(value, (list, tuple)):
        with contextlib.suppress(ValueError):  # its rows differ in length
            array = np.array(value)
    return array if array is not None and array.dtype.kind in "US" else None


def _described(value: object) -> str:
    """Returns a description of a value without numbers, for a message."""
    dtypes = getattr(value, "dtypes", None)
    if dtypes is not None and hasattr(value, "columns"):
        pairs = zip(value.columns, dtypes, strict=True)
        wordy = [name for name, dtype in pairs if _kind(dtype) not in "biuf"]
        if wordy:
            return (
                f"a table whose column {wordy[0]!r} holds none: leave it out, or read the table"
                " with tarspyro.data.read_table(frame.to_csv(index=False))"
            )
    if isinstance(value, np.ndarray) and value.dtype.names:
        return f"an array with the named fields {', '.join(value.dtype.names)}"
    words = _words_of(value)
    if words is not None and words.size:
        return f"words such as {str(words.flat[0])!r}"
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        return f"an array of {value.dtype} of shape {value.shape}"
    return format_value(value)


def _kind(dtype: object) -> str:
    """Returns NumPy's letter for the kind of a type, also of pandas' and of polars' own."""
    kind = getattr(dtype, "kind", None)
    if isinstance(kind, str):
        return kind
    is_numeric = getattr(dtype, "is_numeric", None)
    return "f" if is_numeric is None or is_numeric() else "O"


def as_shape(name: str, value: object) -> Size:
    """Returns a shape, given as sizes or as the one size of a vector.

    Raises:
        TypeError: If the value is neither a size nor a tuple of sizes.
        ValueError: If a size is less than 1.

    Example:
        >>> as_shape("event_shape", 64), as_shape("event_shape", (1, 8, 8))
        (torch.Size([64]), torch.Size([1, 8, 8]))
    """
    if isinstance(value, Iterable) and not isinstance(value, (str, Tensor)):
        return Size(as_sizes(name, value))
    try:
        return Size([as_count(name, value)])
    except TypeError:
        raise TypeError(
            f"{name} must be a size or a tuple of sizes, such as (1, 8, 8), got"
            f" {format_value(value)}."
        ) from None


def check_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raises unless the value is a number from ``low`` to ``high``, or a tensor of one number.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is NaN, or out of range.
    """
    number = _as_real(name, value)
    if low <= number <= high:
        return
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, got {value}.")
    if math.isfinite(high):
        raise ValueError(f"{name} must be from {low:g} to {high:g}, got {value}.")
    wanted = "not be negative" if low == 0 else "be a number"
    raise ValueError(f"{name} must {wanted}, got {value}.")


def check_positive(name: str, value: object) -> None:
    """Raises unless the value is a number above zero, or a tensor of one.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not positive.
    """
    number = _as_real(name, value)
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, got {value}.")
    if not number > 0:
        raise ValueError(f"{name} must be positive, got {value}.")


def _as_real(name: str, value: object) -> Any:
    """Returns a number or a tensor of one number as it is.

    Raises:
        TypeError: If the value is neither.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {format_value(value)}.")
    return value


def check_finite(name: str, values: Tensor | np.ndarray) -> None:
    """Raises unless all numbers are finite.

    Raises:
        ValueError: If one of them is NaN or infinite.
    """
    count = int((~torch.as_tensor(values).isfinite()).sum())
    if count:
        raise ValueError(f"{name} must be finite, got {count} numbers that are not.")


def check_lengths(lengths: Tensor, size: int, num_steps: int | None = None) -> None:
    """Raises unless each of some sequences has its number of steps.

    Arguments:
        lengths: How many steps each sequence has.
        size: The number of sequences.
        num_steps: How many steps a sequence can have at most.

    Raises:
        TypeError: If ``lengths`` is not a tensor.
        ValueError: If there is not one whole number for each sequence. Where Pyro's validation
            is on, also if one of them is out of range.
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(
            f"lengths must be a tensor of {size} whole numbers, got {format_value(lengths)}."
        )
    if lengths.shape != (size,) or lengths.is_floating_point():
        raise ValueError(
            f"lengths must be integers of shape ({size},), one for each sequence, got"
            f" {lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    if not is_validation_enabled():  # Reading values makes the device wait.
        return
    if bool((lengths < 1).any()):
        raise ValueError(f"lengths must be at least 1, got {int(lengths.min())}.")
    if num_steps is not None and bool((lengths > num_steps).any()):
        raise ValueError(
            f"lengths must be at most {num_steps}, the number of steps, got"
            f" {int(lengths.max())}."
        )


def check_method(name: str, value: object, method: str, what: str) -> None:
    """Raises unless the value can be called and has a method.

    Arguments:
        name: The name of the argument.
        value: Its value.
        method: The name of the method.
        what: What such values are, with an example.

    Raises:
        TypeError: If it cannot, or has none.
    """
    if isinstance(value, type) or not callable(value) or not hasattr(value, method):
        raise TypeError(f"{name} must be {what}, got {format_value(value)}.")


def check_module(name: str, value: object) -> None:
    """Raises unless the value is a module.

    Raises:
        TypeError: If it is not, such as the class of a module.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        made = f"{value.__name__}(...)"
        raise TypeError(
            f"{name} must be a torch.nn.Module, got the class {value.__name__}: give an"
            f" instance, {made}."
        )
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {format_value(value)}.")
    traced = isinstance(value, torch.jit.ScriptModule)  # its modules are elsewhere
    if "_modules" not in vars(value) and not traced:
        raise TypeError(
            f"{name} is a {type(value).__name__} whose __init__ does not call"
            " super().__init__(): call it in the first line."
        )


def too_many_parts(name: str, count: int, who: str, names: Sequence[str]) -> str:
    """Returns the sentence about data with more parts than a program takes.

    Arguments:
        name: The name of the data.
        count: The number of its parts.
        who: The name of the program.
        names: The names of its arguments.
    """
    return (
        f"{name} has {count} parts but {who} takes {len(names)} ({', '.join(names)}): leave out"
        " the extra parts, such as the labels."
    )


def as_module_list(name: str, value: object) -> nn.ModuleList:
    """Returns modules, such as the layers of a hierarchy, as a ``torch.nn.ModuleList``.

    Raises:
        TypeError: If the value is not a list of modules.
    """
    if isinstance(value, Iterable) and not isinstance(value, Tensor):
        listed = list(value)
        if all(isinstance(part, nn.Module) for part in listed):
            return nn.ModuleList(listed)
    raise TypeError(
        f"{name} must be a list of modules, such as [Conditional(...), ...], got"
        f" {format_value(value)}."
    )


def check_constructor(name: str, value: object, example: str, *arguments: object) -> None:
    """Raises unless the value, called with the arguments, returns a module.

    Raises:
        TypeError: If it does not, such as a module, its name, or a function of tensors.

    Example:
        >>> check_constructor("activation", nn.Tanh, "torch.nn.ReLU")
        >>> check_constructor("activation", "ReLU", "nn.ReLU")
        Traceback (most recent call last):
        TypeError: activation must be the constructor of a module, such as nn.ReLU, got 'ReLU'.
    """
    made: object = None
    if callable(value) and not isinstance(value, nn.Module):
        try:
            made = value(*arguments)
        except TypeError:  # It takes other arguments.
            made = None
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"{name} must be the constructor of a module, such as {example}, got"
            f" {format_value(value)}."
        )
