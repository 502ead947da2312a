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
from tarspyro.commands.methods.files import OwnData, load_own
from tarspyro.commands.methods.layout import Layout
from tarspyro.commands.methods.sources import SOURCES

if TYPE_CHECKING:
    from torch import Tensor

    from tarspyro.commands.methods.labels import SemiSupervisedVAE
    from tarspyro.commands.methods.method import Method
    from tarspyro.data import Dataset, Modes, Regression, SequenceDataset, Split
    from tarspyro.data.rows import LazyRows

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
        binarize: Whether grey pixels are the probabilities of black and white ones.
        own: The file that the data comes from, if it is the user's own.
    """

    name: str
    unit: str
    shape: tuple[int, ...]
    train: Part
    test: Part
    batches: "Part | tuple[LazyRows] | Iterable[Part]"
    validation: Part | Iterable[Part] | None = None
    image_shape: tuple[int, ...] | None = None
    labels: "Tensor | None" = None
    num_classes: int = 0
    sizes: tuple[int, int] = (0, 0)
    modes: "Modes | None" = None
    regression: "Regression | None" = None
    binarize: bool = False
    own: OwnData | None = None

    @property
    def layout(self) -> Layout | None:
        """The layout of the user's own file; None for a data set of the library."""
        return None if self.own is None else self.own.layout

    @property
    def sizes_of_parts(self) -> tuple[int, int]:
        """The number of data points that train, and that are held out for the evaluation."""
        own = self.own
        as_needed = own is not None and own.as_needed is not None
        train = own.sizes[0] if own is not None and as_needed else len(self.train[0])
        return train, len(self.test[0])


@dataclass(frozen=True)
class Form:
    """A form in which methods take data.

    Attributes:
        title: The noun for such data, in messages.
        kinds: The kinds of data sets that have this form.
        prepare: Brings a data set into this form; called with its name, what its source
            loads, and the method.
        prepare_own: Brings a file of the user's own into this form.
        own: The noun for such files, in messages.
        sequences: Whether the form is that of sequences.
    """

    title: str
    kinds: tuple[str, ...]
    prepare: Callable[[str, Any, "Method"], PreparedData]
    prepare_own: Callable[[OwnData, "Method"], PreparedData]
    own: str
    sequences: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the data sets that have this form."""
        return [name for name, source in SOURCES.items() if source.kind in self.kinds]

    def load(self, name: str, method: "Method", layout: Layout | None = None) -> PreparedData:
        """Loads a data set for a method.

        If the pixels of the training are binarized, those of the evaluation are too: once,
        with a seed of their own.

        Arguments:
            name: The name of a data set, or the path of a file or a folder.
            method: The method, with its settings.
            layout: Of a file, the layout of the training that is gone on with.
        """
        if name in SOURCES:
            data = self.prepare(name, SOURCES[name].load(), method)
            data = replace(data, binarize=not method.grey)
        else:
            own = load_own(name, method, layout, sequences=self.sequences)
            pixels = own.layout.family == "Bernoulli" and own.layout.values != "binary"
            data = self.prepare_own(own, method)
            data = replace(data, binarize=pixels and not method.grey, own=own)
        if not data.binarize:
            return data

        import torch

        from tarspyro.inputs import binarized

        generator = torch.Generator().manual_seed(0)
        train, test = (
            (binarized(part[0], generator), *part[1:]) for part in (data.train, data.test)
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


# --- files of the user's own


def _own(own: OwnData, method: "Method") -> PreparedData:
    """Images, or rows of a table; their labels are for the pictures alone."""
    layout = own.layout
    image = layout.kind == "images"
    train, validation, test = (part[:1] for part in (own.train, own.validation, own.test))
    labels = own.test[1] if own.contents.y is not None else None
    return PreparedData(
        own.contents.path,
        "image" if image else "row",
        layout.shape,
        train,
        test,
        batches=train if own.as_needed is None else (own.as_needed,),
        validation=validation,
        image_shape=layout.shape if image else None,
        labels=labels if labels is not None and _are_classes(labels) else None,
    )


def _are_classes(labels: "Tensor") -> bool:
    """Whether labels are whole numbers of which there are few."""
    return bool((labels == labels.round()).all()) and len(labels.unique()) <= 20


def _own_with_labels(own: OwnData, method: "Method") -> PreparedData:
    from torch.nn.functional import one_hot

    count = len(own.layout.classes)

    def with_labels(part: Part) -> Part:
        return part[0], one_hot(part[1], count).to(part[0].dtype)

    train = with_labels(own.train)
    return replace(
        _own(own, method),
        train=train,
        test=with_labels(own.test),
        batches=train,
        validation=with_labels(own.validation),
        labels=own.test[1],
        num_classes=count,
    )


def _own_few_labels(own: OwnData, method: "Method") -> PreparedData:
    method = cast("SemiSupervisedVAE", method)
    data = _own(own, method)
    split = tarspyro.data.Split(*own.train)
    # Each class has the same number of labelled rows.
    assert split.y is not None, "a file without labels has been refused"
    least = int(split.y.bincount().min())
    each = min(method.labels // len(own.layout.classes), max(1, least // 2))
    if each < 1:
        raise ValueError(
            f"--labels {method.labels} leaves no label for some of the"
            f" {len(own.layout.classes)} classes: give more."
        )
    count = each * len(own.layout.classes)
    labelled, unlabelled = tarspyro.data.labelled_subset(split, count, method.seed)
    pixels = own.layout.family == "Bernoulli" and own.layout.values != "binary"
    classes = len(own.layout.classes)
    batches = tarspyro.data.PartlyLabelled(
        labelled,
        unlabelled,
        batch_size=min(len(unlabelled), method.batch_size),
        labelled_batch_size=min(len(labelled), method.batch_size),
        num_classes=classes,
        binarize=pixels and not method.grey,
    )
    return replace(
        data,
        batches=batches,
        labels=own.test[1],
        num_classes=classes,
        sizes=(len(labelled), len(unlabelled)),
    )


def _own_sequences(own: OwnData, method: "Method") -> PreparedData:
    layout = own.layout
    if layout.kind == "images":
        return _own_rows_of_images(own, method)

    multiple = 32 if method.compile else 1
    train = tarspyro.data.Sequences(*own.train)
    validation = tarspyro.data.Sequences(*own.validation)
    return PreparedData(
        own.contents.path,
        "sequence",
        layout.shape,
        own.train,
        own.test,
        batches=train.batches(method.batch_size, multiple_of=multiple),
        validation=validation.batches(method.batch_size, shuffle=False, multiple_of=multiple),
    )


def _own_rows_of_images(own: OwnData, method: "Method") -> PreparedData:
    channels, height, width = own.layout.shape
    shape = (channels * width,)
    train, validation, test = (
        (part[0].movedim(1, 2).flatten(2),) for part in (own.train, own.validation, own.test)
    )
    return replace(
        _own(own, method),
        shape=shape,
        train=train,
        test=test,
        batches=train,
        validation=validation,
        image_shape=(1, height, *shape),
    )


def _own_targets(own: OwnData, method: "Method") -> PreparedData:
    if own.layout.classes:
        return replace(_own_with_labels(own, method), validation=None)

    import torch

    y = torch.cat([part[1] for part in (own.train, own.validation)]).double()
    mean = y.mean().item()
    scale = y.std().item() or 1.0

    def standardized(part: Part) -> "Split":
        return tarspyro.data.Split(part[0].flatten(1), ((part[1] - mean) / scale).float())

    # Without early stopping the rows that would validate train too.
    both = tuple(torch.cat(parts) for parts in zip(own.train, own.validation, strict=True))
    train = standardized(both)
    test = standardized(own.test)
    regression = tarspyro.data.Regression(own.contents.path, train, test, mean, scale)
    rows = _with_labels(train)
    shape = tuple(rows[0].shape[1:])
    return PreparedData(
        own.contents.path,
        "row",
        shape,
        rows,
        _with_labels(test),
        batches=rows,
        regression=regression,
    )


IMAGES = Form("images", ("labelled images", "images"), _images, _own, "images or a table")
LABELLED_IMAGES = Form(
    "images with labels",
    ("labelled images",),
    _labelled_images,
    _own_with_labels,
    "images or a table, with labels",
)
FEW_LABELS = Form(
    "images with labels",
    ("labelled images",),
    _few_labels,
    _own_few_labels,
    "images or a table, with labels",
)
SEQUENCES = Form(
    "music, or images row by row",
    ("music", "labelled images", "images"),
    _sequences,
    _own_sequences,
    "sequences, or images row by row",
    sequences=True,
)
IMAGES_OR_POINTS = Form(
    "images, or points in the plane",
    ("labelled images", "images", "points"),
    _images_or_points,
    _own,
    "images or a table",
)
TARGETS = Form(
    "tables with a target, or images with labels",
    ("a table", "labelled images"),
    _targets,
    _own_targets,
    "images or a table, with a target",
)
