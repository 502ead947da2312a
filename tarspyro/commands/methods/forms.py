"""Forms of data: data sets as the arguments of a method's programs."""

__all__ = [
    "FEW_LABELS",
    "IMAGES",
    "IMAGES_OR_POINTS",
    "LABELLED_IMAGES",
    "SEQUENCES",
    "TARGETS",
    "Form",
    "Part",
    "PreparedData",
    "as_list",
]

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import tarspyro
from tarspyro.commands.methods.sources import SOURCES

if TYPE_CHECKING:
    from torch import Tensor

    from tarspyro.commands.methods.labels import SemiSupervisedVAE
    from tarspyro.commands.methods.method import Method
    from tarspyro.data import Dataset, Modes, Regression, SequenceDataset, Split

# The arguments of the programs, in their order.
Part = tuple["Tensor", ...]


@dataclass(frozen=True)
class PreparedData:
    """A data set in the form of a method.

    Attributes:
        name: The name of the data set.
        unit: The noun for a data point, such as image.
        shape: The shape of one x, or of one step of a sequence.
        train: The training part, as the arguments of the programs.
        test: The held-out part on which the trained pair is evaluated.
        batches: The training data as ``fit`` takes it.
        validation: The part that selects the best epoch; None if there is none.
        image_shape: The shape of an image; None for other data.
        labels: The classes of the test part, of shape (N,).
        num_classes: The number of classes.
        sizes: The number of labelled and of unlabelled rows, if some have no label.
        modes: The mixture of Gaussians that points were drawn from.
        regression: The data set of a regression, with the units of its target.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    train: Part
    test: Part
    batches: Part | Iterable[Part]
    validation: Part | Iterable[Part] | None = None
    image_shape: tuple[int, ...] | None = None
    labels: "Tensor | None" = None
    num_classes: int = 0
    sizes: tuple[int, int] = (0, 0)
    modes: "Modes | None" = None
    regression: "Regression | None" = None


@dataclass(frozen=True)
class Form:
    """A form in which methods take data.

    Attributes:
        title: The noun for such data, in messages.
        kinds: The kinds of data sets that have this form.
        prepare: Brings a data set into this form; called with its name, what its source
            loads, and the method.
    """

    title: str
    kinds: tuple[str, ...]
    prepare: Callable[[str, Any, "Method"], PreparedData]

    @property
    def names(self) -> list[str]:
        """The names of the data sets that have this form."""
        return [name for name, source in SOURCES.items() if source.kind in self.kinds]

    def load(self, name: str, method: "Method") -> PreparedData:
        """Loads a data set for a method.

        If the pixels of the training are binarized, those of the evaluation are too: once,
        with a seed of their own.
        """
        data = self.prepare(name, SOURCES[name].load(), method)
        if method.grey:
            return data

        import torch

        from tarspyro.inputs import binarized

        pixels = torch.Generator().manual_seed(0)
        train, test = (
            (binarized(part[0], pixels), *part[1:]) for part in (data.train, data.test)
        )
        return replace(data, train=train, test=test)


def as_list(names: Sequence[str], last: str = "or") -> str:
    """Returns names as a part of a sentence: a, b or c."""
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end


def _splits(dataset: "Dataset") -> "tuple[Split, Split, Split]":
    """Returns the training, the validation and the test part; a tenth of the training part
    validates if there is no validation part.
    """
    if dataset.validation is not None:
        return dataset.train, dataset.validation, dataset.test

    count = len(dataset.train) * 9 // 10
    return dataset.train[:count], dataset.train[count:], dataset.test


def _images(name: str, dataset: "Dataset", method: "Method") -> PreparedData:
    train, validation, test = ((split.x,) for split in _splits(dataset))
    return PreparedData(
        name,
        "image",
        dataset.image_shape,
        train,
        test,
        batches=train,
        validation=validation,
        image_shape=dataset.image_shape,
        labels=dataset.test.y,
    )


def _labelled_images(name: str, dataset: "Dataset", method: "Method") -> PreparedData:
    train, validation, test = (_with_labels(split) for split in _splits(dataset.one_hot()))
    return PreparedData(
        name,
        "image",
        dataset.image_shape,
        train,
        test,
        batches=train,
        validation=validation,
        image_shape=dataset.image_shape,
        labels=dataset.test.y,
        num_classes=train[1].shape[1],
    )


def _few_labels(name: str, dataset: "Dataset", method: "Method") -> PreparedData:
    method = cast("SemiSupervisedVAE", method)
    train = _splits(dataset)[0]
    labelled, unlabelled = tarspyro.data.labelled_subset(train, method.labels, method.seed)
    num_classes = 0 if train.y is None else int(train.y.max()) + 1

    batches = tarspyro.data.PartlyLabelled(
        labelled,
        unlabelled,
        batch_size=method.batch_size,
        labelled_batch_size=min(len(labelled), method.batch_size),
        num_classes=num_classes,
        binarize=not method.grey,
    )
    return replace(
        _images(name, dataset, method),
        batches=batches,
        num_classes=num_classes,
        sizes=(len(labelled), len(unlabelled)),
    )


def _sequences(
    name: str, dataset: "Dataset | SequenceDataset", method: "Method"
) -> PreparedData:
    if isinstance(dataset, tarspyro.data.Dataset):
        return _rows_of_images(name, dataset)

    # Compilation makes a step for each length of a batch: with multiples of 32 there are few.
    multiple = 32 if method.compile else 1
    batches = dataset.train.batches(method.batch_size, multiple_of=multiple)
    validation = dataset.validation.batches(
        method.batch_size, shuffle=False, multiple_of=multiple
    )
    train, test = ((part.x, part.lengths) for part in (dataset.train, dataset.test))
    return PreparedData(
        name,
        "sequence",
        tuple(train[0].shape[2:]),
        train,
        test,
        batches=batches,
        validation=validation,
    )


def _rows_of_images(name: str, dataset: "Dataset") -> PreparedData:
    """Images as sequences, whose steps are their rows from the top."""
    channels, height, width = dataset.image_shape
    train, validation, test = (
        (split.x.movedim(1, 2).flatten(2),) for split in _splits(dataset)
    )
    shape = (channels * width,)
    return PreparedData(
        name,
        "image",
        shape,
        train,
        test,
        batches=train,
        validation=validation,
        image_shape=(1, height, *shape),
        labels=dataset.test.y,
    )


def _images_or_points(
    name: str, dataset: "Dataset | tuple[Modes, Modes]", method: "Method"
) -> PreparedData:
    if isinstance(dataset, tarspyro.data.Dataset):
        return _images(name, dataset, method)

    train, test = dataset
    return PreparedData(
        name,
        "point",
        (2,),
        (train.x,),
        (test.x,),
        batches=(train.x,),
        labels=test.y,
        modes=test,
    )


def _targets(name: str, dataset: "Dataset | Regression", method: "Method") -> PreparedData:
    if isinstance(dataset, tarspyro.data.Dataset):
        return replace(_labelled_images(name, dataset, method), validation=None)

    train, test = (_with_labels(split) for split in (dataset.train, dataset.test))
    shape = tuple(train[0].shape[1:])
    return PreparedData(name, "row", shape, train, test, batches=train, regression=dataset)


def _with_labels(split: "Split") -> "tuple[Tensor, Tensor]":
    assert split.y is not None, "only data sets with labels or targets have this form"
    return split.x, split.y


IMAGES = Form("images", ("labelled images", "images"), _images)
LABELLED_IMAGES = Form("images with labels", ("labelled images",), _labelled_images)
FEW_LABELS = Form("images with labels", ("labelled images",), _few_labels)
SEQUENCES = Form(
    "music, or images row by row", ("music", "labelled images", "images"), _sequences
)
IMAGES_OR_POINTS = Form(
    "images, or points in the plane",
    ("labelled images", "images", "points"),
    _images_or_points,
)
TARGETS = Form(
    "tables with a target, or images with labels", ("a table", "labelled images"), _targets
)
