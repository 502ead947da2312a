"""The data sets of the command line."""

__all__ = ["SOURCES", "Source"]

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import tarspyro

_LOCAL = "a file in TARSPYRO_DATA"


class Source(NamedTuple):
    """A data set of the command line.

    Attributes:
        kind: The kind of data, such as images, by which methods accept it.
        load: Reads the data set.
        epochs: The default number of epochs of a training.
        about: Its contents and its origin, in a few words.
        likelihood: The family that suits its values.
    """

    kind: str
    load: Callable[[], Any]
    epochs: int
    about: str
    likelihood: Literal["Bernoulli", "Normal"] = "Bernoulli"


SOURCES = {
    "digits": Source(
        "labelled images",
        lambda: tarspyro.data.digits(flatten=False),
        300,
        "1,797 digits of 8x8 pixels, bundled",
    ),
    "mnist": Source(
        "labelled images",
        lambda: tarspyro.data.mnist(flatten=False),
        20,
        "70,000 digits of 28x28, downloaded",
    ),
    "frey_face": Source(
        "images",
        lambda: tarspyro.data.frey_face(flatten=False),
        300,
        "1,965 faces, downloaded",
        "Normal",
    ),
    "jsb_chorales": Source(
        "music",
        lambda: tarspyro.data.polyphonic_music("jsb_chorales"),
        100,
        f"382 chorales, {_LOCAL}",
    ),
    "nottingham": Source(
        "music",
        lambda: tarspyro.data.polyphonic_music("nottingham"),
        30,
        f"1,037 folk tunes, {_LOCAL}",
    ),
    "ring": Source(
        "points",
        lambda: (tarspyro.data.ring(10_000), tarspyro.data.ring(1_000, seed=1)),
        100,
        "8 Gaussians on a circle",
    ),
    "grid": Source(
        "points",
        lambda: (tarspyro.data.grid(10_000), tarspyro.data.grid(1_000, seed=1)),
        100,
        "25 Gaussians on a grid",
    ),
    "concrete": Source(
        "a table",
        lambda: tarspyro.data.uci("concrete"),
        500,
        f"1,030 mixtures and their strengths, {_LOCAL}",
    ),
    "yacht": Source(
        "a table",
        lambda: tarspyro.data.uci("yacht"),
        500,
        f"308 hulls and their resistances, {_LOCAL}",
    ),
}
