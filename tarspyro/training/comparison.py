"""Comparison of a resumed run's settings and data with those of the run."""

__all__ = ["check_settings", "describe_batches", "describe_loss", "describe_optimizer"]

import contextlib
import hashlib
import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tarspyro.arguments import format_value
from tarspyro.data import Stream
from tarspyro.runs.description import describe
from tarspyro.runs.folder import RunError
from tarspyro.sources import Part
from tarspyro.training.batches import Batches
from tarspyro.training.optimizers import Optimizer
from tarspyro.types import Json

# So many numbers of a data set are compared. They come from rows all over it.
_COMPARED = 1 << 20

# What a resumed run may change; it then takes effect.
_FREE = ("epochs", "lr")


def describe_batches(batches: Batches | None) -> Json:
    """Returns a description that recognizes data: shapes and a digest, or a number of batches.

    Data in memory are recognized by their values, data sets by their rows, and loaders by
    their batches. Of a stream nothing is known.
    """
    if batches is None:
        return None
    if batches.parts is not None:
        rows = [None if part is None else part[:1] for part in batches.parts]
        return {
            "shapes": [
                None if part is None or row is None else [len(part), *row.shape[1:]]
                for part, row in zip(batches.parts, rows, strict=True)
            ],
            "sha256": _digest(batches.parts),
        }
    if isinstance(batches.source, Stream):
        return "a stream"
    return {"batches": len(batches)}


def _digest(parts: Sequence[Tensor | Part | None]) -> str:
    """The SHA-256 of rows that are spread over the data."""
    digest = hashlib.sha256()
    for part in parts:
        if part is not None and part[:1].numel():
            count = min(len(part), max(2, _COMPARED // part[:1].numel()))
            rows = torch.linspace(0, len(part) - 1, count).round().long()
            values = part[rows.to(part.device)].detach().cpu().contiguous()
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe_loss(loss: object, scheduled: Collection[str] = ()) -> Json:
    """Returns a loss as a class of a library with its arguments; None if it is a function.

    A class of the user stands for the class that it derives from, so that a bound that counts
    or stops something is still the same bound.

    Arguments:
        loss: The loss.
        scheduled: The names of attributes that change during a training.
    """
    for cls in type(loss).__mro__:
        if cls.__module__.partition(".")[0] in ("tarspyro", "pyro"):
            return {"class": cls.__qualname__, "arguments": _arguments(loss, cls, scheduled)}
    return None


def _arguments(loss: object, cls: type, scheduled: Collection[str]) -> Json:
    """The arguments that a loss keeps as attributes, as far as JSON describes them."""
    described: dict[str, Json] = {}
    for name in inspect.signature(cls).parameters:
        if hasattr(loss, name) and name not in scheduled:
            # JSON does not describe all of them, such as functions.
            with contextlib.suppress(TypeError):
                described[name] = describe(getattr(loss, name))
    return described


def describe_optimizer(optimizer: Optimizer) -> Json:
    """Returns the class of an optimizer, and its options but for learning rates."""
    options = {
        **optimizer.options,
        **{
            name: {key: value for key, value in own.items() if key != "lr"}
            for name, own in optimizer.of_players.items()
        },
    }
    options.pop("lr")
    shown = ", ".join(f"{name}={value!r}" for name, value in options.items() if value != {})
    return f"{optimizer.name}({shown})"


def check_settings(
    folder: Path, stored: Mapping[str, object], now: Mapping[str, object]
) -> None:
    """Raises a ``RunError`` if a resumed run would silently be another one.

    Arguments:
        folder: The run folder.
        stored: The settings in its configuration. An earlier version wrote fewer of them.
        now: The settings of this training. A seed of None goes on with the run's.
    """
    now = json.loads(json.dumps(now))
    for name, value in now.items():
        if name in _FREE or name not in stored or stored[name] == value:
            continue
        if name == "seed" and value is None:
            continue
        if name in ("data", "validation"):
            raise RunError(
                f"{folder} holds a run with other {_NOUNS[name]}"
                f" ({_size(stored[name])} there, {_size(value)} here): resume it with the same,"
                " or train in another folder."
            )
        if name == "loss":
            if _is_same_loss(stored[name], value):
                continue
            raise RunError(
                f"{folder} holds a run with another loss ({_loss(stored[name])} there,"
                f" {_loss(value)} here): resume it with the same, or train in another folder."
            )
        raise RunError(
            f"{folder} holds a run with {name}={format_value(stored[name])}, and this training"
            f" has {name}={format_value(value)}: resume it with the same, or train in another"
            " folder."
        )


_NOUNS = {"data": "data", "validation": "held-out data"}


def _size(described: object) -> str:
    """Data that was described, for a sentence."""
    if described is None:
        return "none"
    if isinstance(described, dict):
        if "shapes" in described:
            shapes = described["shapes"]
            values = str(described.get("sha256"))[:6]
            return f"shapes {format_value(shapes)} with digest {values}"
        return f"{described.get('batches')} batches"
    return str(described)


def _loss(described: object) -> str:
    """A loss that was described, for a sentence."""
    if not isinstance(described, dict):
        return "a function"
    arguments = described.get("arguments")
    named = arguments.items() if isinstance(arguments, dict) else ()
    shown = [
        f"{name}={value}" for name, value in named if isinstance(value, (int, float, str))
    ]
    return f"{described.get('class')}({', '.join(shown)})"


def _is_same_loss(stored: object, now: object) -> bool:
    """Whether two losses are the same, by their descriptions."""
    if not isinstance(stored, dict) or not isinstance(now, dict):
        return True  # of functions nothing is known
    if stored.get("class") != now.get("class"):
        return False
    then = stored.get("arguments") or {}
    return all(value == then.get(name, value) for name, value in now["arguments"].items())
