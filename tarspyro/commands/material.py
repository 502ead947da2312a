"""The data sets of the command line, and the forms in which methods take them."""

__all__ = ["FORMS", "SOURCES", "Form", "Material", "Source", "listed", "shares"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tarspyro import data
from tarspyro.data import Dataset, PartlyLabelled, Split, labelled_subset
from tarspyro.inputs import binarized

Part = tuple[Tensor, ...]  # the arguments of the programs, in their order


class Source(NamedTuple):
    """A data set that the command line knows.

    Attributes:
        kind: What it is, by which forms choose it.
        load: Reads it.
        epochs: How many epochs a training takes if nothing else is said.
        about: What it holds, and where it comes from, in a few words.
        likelihood: The family that suits its values.
    """

    kind: str
    load: Callable[[], Any]
    epochs: int
    about: str
    likelihood: str = "Bernoulli"


_PUT = "a file in TARSPYRO_DATA"
SOURCES = {
    "digits": Source(
        "labelled images",
        lambda: data.digits(flatten=False),
        300,
        "1,797 digits of 8x8 pixels, bundled",
    ),
    "mnist": Source(
        "labelled images",
        lambda: data.mnist(flatten=False),
        20,
        "70,000 digits of 28x28, downloaded",
    ),
    "frey_face": Source(
        "images",
        lambda: data.frey_face(flatten=False),
        300,
        "1,965 faces, downloaded",
        "Normal",
    ),
    "jsb_chorales": Source(
        "music", lambda: data.polyphonic_music("jsb_chorales"), 100, f"382 chorales, {_PUT}"
    ),
    "nottingham": Source(
        "music", lambda: data.polyphonic_music("nottingham"), 30, f"1,037 folk tunes, {_PUT}"
    ),
    "ring": Source(
        "points",
        lambda: (data.ring(10_000), data.ring(1_000, seed=1)),
        100,
        "8 Gaussians on a circle",
    ),
    "grid": Source(
        "points",
        lambda: (data.grid(10_000), data.grid(1_000, seed=1)),
        100,
        "25 Gaussians on a grid",
    ),
    "concrete": Source(
        "a table",
        lambda: data.uci("concrete"),
        500,
        f"1,030 mixtures and their strengths, {_PUT}",
    ),
    "yacht": Source(
        "a table", lambda: data.uci("yacht"), 500, f"308 hulls and their resistances, {_PUT}"
    ),
}


@dataclass(frozen=True)
class Material:
    """A data set in the form of a method.

    Attributes:
        name: The data set's.
        unit: What a data point is called.
        shape: The shape of one x, or of one step of it.
        batches: What ``fit`` trains on.
        train: The training part as the pair sees it, as the arguments of the programs.
        test: The held-out part that judges what was trained, likewise.
        validation: What picks the best epoch; None if nothing does.
        image_shape: The shape of an image; None of other data.
        labels: The classes of the test part.
        num_classes: How many classes there are.
        sizes: How many rows have a label, and how many have none, where some have none.
        truth: What is known beside: the modes of points, the units of a regression's target.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    batches: Any
    train: Part
    test: Part
    validation: Any = None
    image_shape: tuple[int, ...] | None = None
    labels: Tensor | None = None
    num_classes: int = 0
    sizes: tuple[int, int] = (0, 0)
    truth: Any = None


class Form(NamedTuple):
    """How a method takes data.

    Attributes:
        what: What it is called.
        kinds: The kinds of data sets that can be had in this form.
        prepare: Brings a data set into it, with the options of the command.
    """

    what: str
    kinds: tuple[str, ...]
    prepare: Callable[[str, Any, Any], Material]

    @property
    def names(self) -> list[str]:
        """The data sets that can be had in this form."""
        return [name for name, source in SOURCES.items() if source.kind in self.kinds]

    def material(self, name: str, options: Any) -> Material:
        """Loads a data set; the pixels that judge are black and white, drawn once, if those of
        the training are.
        """
        material = self.prepare(name, SOURCES[name].load(), options)
        if options.grey:
            return material
        pixels = torch.Generator().manual_seed(0)
        train, test = (
            (binarized(part[0], pixels), *part[1:]) for part in (material.train, material.test)
        )
        return replace(material, train=train, test=test)


def listed(names: Sequence[str], last: str = "or") -> str:
    """Returns names as a part of a sentence: a, b or c."""
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end


def shares(dataset: Dataset) -> tuple[Split, Split, Split]:
    """Returns the parts for training, validation and testing; a missing second one is a tenth
    of the first.
    """
    if dataset.validation is not None:
        return dataset.train, dataset.validation, dataset.test
    count = len(dataset.train) * 9 // 10
    return dataset.train[:count], dataset.train[count:], dataset.test


def _images(name: str, dataset: Dataset, options: Any) -> Material:
    train, validation, test = ((part.x,) for part in shares(dataset))
    shape, labels = dataset.image_shape, dataset.test.y
    return Material(
        name, "image", shape, train, train, test, validation, image_shape=shape, labels=labels
    )


def _labelled_images(name: str, dataset: Dataset, options: Any) -> Material:
    parts: Any = [(part.x, part.y) for part in shares(dataset.one_hot())]
    train, validation, test = parts
    shape, count = dataset.image_shape, train[1].shape[1]
    material = Material(
        name,
        "image",
        shape,
        train,
        train,
        test,
        validation,
        image_shape=shape,
        num_classes=count,
    )
    return replace(material, labels=dataset.test.y)


def _few_labels(name: str, dataset: Dataset, options: Any) -> Material:
    material = _images(name, dataset, options)
    split = shares(dataset)[0]
    labelled, rest = labelled_subset(split, options.labels, options.seed)
    classes = int(split.y.max()) + 1 if split.y is not None else 0
    batches = PartlyLabelled(
        labelled,
        rest,
        batch_size=options.batch_size,
        labelled_batch_size=min(len(labelled), options.batch_size),
        num_classes=classes,
        binarize=not options.grey,
    )
    return replace(
        material, batches=batches, num_classes=classes, sizes=(len(labelled), len(rest))
    )


def _sequences(name: str, dataset: Any, options: Any) -> Material:
    if isinstance(dataset, Dataset):  # the rows of an image, from the top, are the steps
        channels, height, width = dataset.image_shape
        rows, held_out, judging = (
            (part.x.movedim(1, 2).flatten(2),) for part in shares(dataset)
        )
        shape = (channels * width,)
        return Material(
            name,
            "image",
            shape,
            rows,
            rows,
            judging,
            held_out,
            (1, height, *shape),
            dataset.test.y,
        )
    # A compiled step is made for each length: few of them.
    multiple = 32 if options.compile else 1
    batches = dataset.train.batches(options.batch_size, multiple_of=multiple)
    validation = dataset.validation.batches(
        options.batch_size, shuffle=False, multiple_of=multiple
    )
    train, test = ((part.x, part.lengths) for part in (dataset.train, dataset.test))
    return Material(
        name, "sequence", tuple(train[0].shape[2:]), batches, train, test, validation
    )


def _images_or_points(name: str, dataset: Any, options: Any) -> Material:
    if isinstance(dataset, Dataset):
        return _images(name, dataset, options)
    train, test = dataset
    return Material(
        name, "point", (2,), (train.x,), (train.x,), (test.x,), labels=test.y, truth=test
    )


def _targets(name: str, dataset: Any, options: Any) -> Material:
    if isinstance(dataset, Dataset):
        return replace(_labelled_images(name, dataset, options), validation=None)
    train, test = ((part.x, part.y) for part in (dataset.train, dataset.test))
    return Material(name, "row", tuple(train[0].shape[1:]), train, train, test, truth=dataset)


FORMS = {
    "images": Form("images", ("labelled images", "images"), _images),
    "labelled images": Form("images with labels", ("labelled images",), _labelled_images),
    "few labels": Form("images with labels", ("labelled images",), _few_labels),
    "sequences": Form(
        "music, or images row by row", ("music", "labelled images", "images"), _sequences
    ),
    "images or points": Form(
        "images, or points in the plane",
        ("labelled images", "images", "points"),
        _images_or_points,
    ),
    "targets": Form(
        "tables with a target, or images with labels", ("a table", "labelled images"), _targets
    ),
}
