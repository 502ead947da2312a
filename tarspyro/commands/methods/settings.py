"""Settings of a method: typed fields of its dataclass, which are options of the command line."""

__all__ = [
    "BOUND",
    "DATA",
    "GROUPS",
    "PAIR",
    "REPORT",
    "TRAINING",
    "Setting",
    "hidden_layers",
    "latent_layers",
    "latent_units",
    "setting",
    "settings_of",
]

import dataclasses
import functools
import types
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

# The groups of options in the help of a method, in their order.
DATA = "the data"
PAIR = "the pair"
BOUND = "the loss"
TRAINING = "the training"
REPORT = "the report"
GROUPS = (DATA, PAIR, BOUND, TRAINING, REPORT)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a method, as an option of the command line needs it.

    Attributes:
        name: The name of the dataclass's field.
        kind: The type of a value: ``bool``, ``int``, ``float`` or ``str``.
        several: Whether the option takes several values.
        choices: The values that it may have; empty if any value of its type will do.
        least: The smallest value of a whole number, if there is one.
        positive: Whether a real number must be above zero.
        group: The group of options that it belongs to.
        help: A phrase that says what it is.
    """

    name: str
    kind: type
    several: bool
    choices: tuple[str, ...]
    least: int | None
    positive: bool
    group: str
    help: str

    @property
    def flag(self) -> str:
        """The option, such as ``--batch-size``."""
        return f"--{self.name.replace('_', '-')}"


def setting(
    default: T,
    group: str,
    help: str,
    *,
    choices: Sequence[str] = (),
    least: int | None = 1,
    positive: bool = False,
) -> T:
    """Returns a field of a method's dataclass that is also an option of the command line.

    The type of the option follows from the field's annotation. A subclass changes the default
    alone by an ordinary assignment, ``lr: float = 3e-3``.

    Arguments:
        default: The default; None for a setting that is off, or that the data set decides.
        group: The group of options that it belongs to.
        help: A phrase that says what it is.
        choices: The values that it may have, if not all that its ``Literal`` names.
        least: The smallest value of a whole number; None if there is none.
        positive: Whether a real number must be above zero.
    """
    metadata = {
        "group": group,
        "help": help,
        "choices": tuple(choices),
        "least": least,
        "positive": positive,
    }
    return dataclasses.field(default=default, metadata=metadata)


_LATENT = "the number of latent units; of several layers, the one nearest the data first"


def latent_units(default: int) -> int:
    """Returns the field ``latent`` of methods with one latent variable."""
    return setting(default, PAIR, _LATENT)


def latent_layers(*default: int) -> Sequence[int]:
    """Returns the field ``latent`` of methods with layers of latent variables."""
    return setting(default, PAIR, _LATENT)


def hidden_layers(*default: int) -> Sequence[int]:
    """Returns the field ``hidden``."""
    return setting(default, PAIR, "the sizes of a network's hidden layers, an encoder's first")


@functools.cache
def settings_of(*owners: type) -> tuple[Setting, ...]:
    """Returns the settings that classes declare, each where it is declared first."""
    found: dict[str, Setting] = {}

    for owner in owners:
        fields = getattr(owner, "__dataclass_fields__", {})
        for name in vars(owner).get("__annotations__", {}):
            if name in fields and fields[name].metadata and name not in found:
                found[name] = _described(fields[name])

    return tuple(found.values())


def _described(field: "dataclasses.Field[Any]") -> Setting:
    annotation: Any = field.type
    if get_origin(annotation) in (Union, types.UnionType):  # a setting may be None: it is off
        (annotation,) = (a for a in get_args(annotation) if a is not type(None))

    choices = field.metadata["choices"]
    several = get_origin(annotation) is Sequence
    if several:
        (annotation,) = get_args(annotation)
    if get_origin(annotation) is Literal:
        choices = choices or get_args(annotation)
        annotation = str

    return Setting(
        name=field.name,
        kind=annotation,
        several=several,
        choices=choices,
        least=field.metadata["least"],
        positive=field.metadata["positive"],
        group=field.metadata["group"],
        help=field.metadata["help"],
    )
