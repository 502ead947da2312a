"""Pictures of a trained pair: functions that yield figures, each with the name of its file."""

__all__ = [
    "WITH_CODES",
    "Drawn",
    "analogies",
    "canvases",
    "continuations",
    "curves",
    "images_from_labels",
    "latents",
    "manifold",
    "of_each_class",
    "reconstructions",
    "regression",
    "samples",
    "sequences",
    "sheet",
    "units",
]

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import tarspyro
from tarspyro.commands.methods.reports import (
    Trained,
    first_rows,
    one_hot_labels,
    predicted,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from tarspyro import models

# The name of a file without its suffix, and the figure.
Drawn = tuple[str, "Figure"]


def curves(t: Trained) -> Iterator[Drawn]:
    """Draws the learning curves."""
    yield "curves", tarspyro.plot.curves(t.history)


def reconstructions(t: Trained) -> Iterator[Drawn]:
    """Draws test images and their reconstructions; of a table nothing."""
    if t.data.image_shape is None:
        return
    figure = tarspyro.plot.reconstructions(
        t.model,
        t.guide,
        t.data.test,
        site=t.method.site,
        image_shape=t.data.image_shape,
    )
    yield "reconstructions", figure


def latents(t: Trained) -> Iterator[Drawn]:
    """Draws the codes of the test images, unless the family has no mean in closed form."""
    part = first_rows(t.data.test, 2000)
    labels = None if t.data.labels is None else t.data.labels[:2000]
    try:
        figure = tarspyro.plot.latents(t.guide, part, labels=labels, site=t.method.latent_site)
    except NotImplementedError:
        return
    yield "latents", figure


# The pictures of every method with a code.
WITH_CODES = (reconstructions, latents, curves)


def manifold(t: Trained) -> Iterator[Drawn]:
    """Draws the images that codes decode to: a grid of two latent units, or one row for each
    of several.
    """
    model = cast("models.VAE", t.model)
    shape = t.data.image_shape
    if shape is None:
        return
    if model.prior().event_shape.numel() == 2:
        yield "manifold", tarspyro.plot.manifold(model, image_shape=shape)
    else:
        figure = tarspyro.plot.traversal(model, site=t.method.site, image_shape=shape)
        yield "traversal", figure


def units(t: Trained) -> Iterator[Drawn]:
    """Draws the activity of the latent units of each layer."""
    activity = tarspyro.evaluate.activity(t.guide, t.data.test)
    yield "active_units", tarspyro.plot.active_units(activity)


def canvases(t: Trained) -> Iterator[Drawn]:
    """Draws the steps in which test images, and images of the model alone, are painted."""
    import torch

    shape = t.data.image_shape
    classes = t.data.num_classes
    given = {"y": torch.eye(classes)[torch.arange(6) % classes]} if classes else None
    figure = tarspyro.plot.canvases(t.model, t.guide, t.data.test, image_shape=shape)
    yield "canvases", figure
    yield "painting", tarspyro.plot.canvases(t.model, given=given, image_shape=shape)


def analogies(t: Trained) -> Iterator[Drawn]:
    """Draws test images, and beside each the images of its code with every label."""
    import torch

    if t.data.image_shape is None:
        return
    count = 8
    classes = t.data.num_classes
    x = t.data.test[0][:count]
    z = tarspyro.evaluate.embed(t.guide, (x, one_hot_labels(t, count)))
    given = {"y": torch.eye(classes).repeat(len(x), 1)}
    images = tarspyro.evaluate.decode(t.model, z.repeat_interleave(classes, 0), given=given)
    rows = torch.cat([x[:, None], images.reshape(len(x), classes, *x.shape[1:])], 1)
    title = "test images, and their codes with every label"
    yield "analogies", sheet(t, rows.flatten(0, 1), classes + 1, title)


def images_from_labels(t: Trained) -> Iterator[Drawn]:
    """Draws images given labels, a row for each label."""
    import torch

    if t.data.image_shape is None:
        return
    columns = 12
    labels = torch.eye(t.data.num_classes).repeat_interleave(columns, 0)
    images = tarspyro.evaluate.impute_modalities(
        t.model, t.guide, (None, labels), mean=True, seed=0
    )
    title = "images from labels, a row for each"
    yield "images_from_labels", sheet(t, images["x_1"], columns, title)


def continuations(t: Trained) -> Iterator[Drawn]:
    """Draws continuations of the first half of test sequences."""
    if t.data.image_shape is None and _is_binary(t):
        yield "continuation", _continued_music(t)
    elif t.data.image_shape is None:
        yield "continuation", _continued_series(t)
    else:
        yield "continuations", _continued_images(t)


def _continued_music(t: Trained) -> "Figure":
    import torch

    x, lengths = t.data.test
    length = int(lengths[0])
    known = max(1, length // 2)
    total = length + 1 if length == known else length
    rest = tarspyro.evaluate.continuations(t.model, t.guide, x[:1, :known], total, seed=0)
    piece = torch.cat([x[0, :known], rest[0, 0]])
    title = "a piece, from the line on the model's"
    return tarspyro.plot.piano_roll(piece, known=known, title=title)


def _is_binary(t: Trained) -> bool:
    """Whether a sequence is a piano roll."""
    return t.data.layout is None or t.data.layout.values == "binary"


def _continued_series(t: Trained) -> "Figure":
    """A series, and draws of how it may go on from its middle."""
    import torch

    x, *lengths = t.data.test
    length = int(lengths[0][0]) if lengths else x.shape[1]
    known = max(1, length // 2)
    total = max(length, known + 1)
    rest = tarspyro.evaluate.continuations(
        t.model, t.guide, x[:1, :known], total, num_samples=4, seed=0
    )
    drawn = [torch.cat([x[0, :known], part[0]]) for part in rest]
    title = "a test sequence (black), from the line on draws of the model"
    return _series(t, [x[0, :length]], drawn, title, known)


def _series(
    t: Trained,
    data: "Sequence[Tensor]",
    drawn: "Sequence[Tensor]",
    title: str,
    known: int | None = None,
) -> "Figure":
    """Draws series of some features, one below the other, in the units of the data."""
    count = min(6, t.data.shape[0])
    figure = tarspyro.plot.Picture(figsize=(7.0, 1.6 * count + 0.6), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    for feature, ax in enumerate(axes):
        for values, color in [*((v, "C0") for v in drawn), *((v, "black") for v in data)]:
            raw = values.cpu() if t.data.layout is None else t.data.layout.undo(values.cpu())
            ax.plot(raw[:, feature].numpy(), color=color, linewidth=1)
        if known is not None:
            ax.axvline(known - 0.5, color="0.7", linewidth=1)
    axes[0].set_title(title, fontsize="medium")
    axes[-1].set_xlabel("step")
    return figure


def _continued_images(t: Trained) -> "Figure":
    import torch

    (x,) = t.data.test
    count = 10
    length = x.shape[1]
    beginnings = x[:count, : length // 2]
    rest = tarspyro.evaluate.continuations(
        t.model, t.guide, beginnings, length, num_samples=4, seed=0
    )
    drawn = torch.cat([beginnings.expand(len(rest), *beginnings.shape), rest], 2)
    images = torch.cat([x[None, :count], drawn]).flatten(0, 1)
    title = "test images, and below how their upper halves may go on"
    return sheet(t, images, len(beginnings), title)


def regression(t: Trained) -> Iterator[Drawn]:
    """Draws predictions against targets. For classes it draws nothing."""
    from tarspyro.plot.figures import axes_of

    units = t.data.regression
    if units is None:
        return

    _, mean = predicted(t)
    mean = units.y_mean + units.y_scale * mean
    y = units.y_mean + units.y_scale * t.data.test[1]
    figure, ax = axes_of(None, (4.8, 4.8))
    ax.plot(y.numpy(), mean.numpy(), ".")
    ax.axline((y.mean().item(), y.mean().item()), slope=1, color="0.7", linewidth=1)
    ax.set(xlabel="target", ylabel="mean of the prediction", title="test rows")
    yield "predictions", figure


# --- samples of the model


def samples(t: Trained, num: int | None, seed: int, mean: bool) -> "Figure":
    """Draws a sheet of images, a cloud of points, or the distributions of a table's columns."""
    from tarspyro.plot.figures import axes_of

    if t.data.image_shape is not None:
        return tarspyro.plot.samples(
            t.model,
            num=num or 64,
            seed=seed,
            mean=mean,
            site=t.method.site,
            image_shape=t.data.image_shape,
        )

    drawn = tarspyro.evaluate.sample(t.model, num or 1000, seed=seed, site=t.method.site).cpu()
    if t.data.layout is not None:
        return _columns(t, drawn)
    figure, ax = axes_of(None, (4.8, 4.8))
    for points, color in ((t.data.test[0], "0.8"), (drawn, "C0")):
        ax.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=3, color=color)
    ax.set(title="samples (data in grey)", aspect="equal")
    return figure


def _columns(t: Trained, drawn: "Tensor") -> "Figure":
    """Draws the distributions of a table's first columns, of samples and of the data."""
    import numpy as np

    layout = t.data.layout
    assert layout is not None, "only a file has columns"
    data = layout.undo(t.data.train[0][:10_000].flatten(1)).double().numpy()
    samples = layout.undo(drawn.flatten(1)).double().numpy()
    count = min(12, data.shape[1])
    rows = -(-count // 4)
    figure = tarspyro.plot.Picture(figsize=(9.0, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, min(4, count), squeeze=False).flatten()
    for ax in axes[count:]:
        ax.set_axis_off()
    for column in range(count):
        known = data[:, column][~np.isnan(data[:, column])]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        edges = np.linspace(low, high if high > low else low + 1.0, 21)
        for values, color in ((known, "0.8"), (samples[:, column], "C0")):
            weights = np.full(len(values), 1 / max(1, len(values)))
            filled = color != "C0"
            kind = "stepfilled" if filled else "step"
            ax = axes[column]
            ax.hist(
                np.clip(values, edges[0], edges[-1]),
                edges,
                weights=weights,
                color=color,
                histtype=kind,
            )
        axes[column].set_title(layout.names[column], fontsize="small")
        axes[column].set_yticks([])
    figure.suptitle("samples (data in grey)", fontsize="medium")
    return figure


def of_each_class(t: Trained, num: int | None, seed: int, mean: bool) -> "Figure":
    """Draws a sheet of images with a row for each class. The number of images is rounded up
    to fill the rows. Of a table it draws the columns.
    """
    import torch

    if t.data.image_shape is None:
        y = torch.eye(t.data.num_classes).repeat(-(-1000 // t.data.num_classes), 1)
        drawn = tarspyro.evaluate.sample(t.model, len(y), given={"y": y}, seed=seed)
        return _columns(t, drawn.cpu())
    classes = t.data.num_classes
    columns = 10 if num is None else -(-num // classes)
    figure = tarspyro.plot.samples(
        t.model,
        num=classes * columns,
        given={"y": torch.eye(classes).repeat_interleave(columns, 0)},
        columns=columns,
        seed=seed,
        mean=mean,
        image_shape=t.data.image_shape,
    )
    figure.axes[0].set_ylabel("a row for each class")
    return figure


def sequences(t: Trained, num: int | None, seed: int, mean: bool) -> "Figure":
    """Draws a sheet of images, or pieces of music one below the other. Of music the notes are
    drawn, since a mean is no piece.
    """
    length = t.data.test[0].shape[1]
    if t.data.image_shape is not None:
        return tarspyro.plot.samples(
            t.model,
            num=num or 64,
            seed=seed,
            mean=mean,
            length=length,
            image_shape=t.data.image_shape,
        )

    count = num or 4
    pieces = tarspyro.evaluate.sample(t.model, count, length=min(length, 100), seed=seed)
    if not _is_binary(t):
        return _series(t, [], list(pieces), "samples")
    figure = tarspyro.plot.Picture(figsize=(9.0, 2.4 * count), layout="constrained")
    axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    for piece, ax in zip(pieces, axes, strict=True):
        tarspyro.plot.piano_roll(piece, ax=ax)
    return figure


def sheet(t: Trained, images: "Tensor", columns: int, title: str) -> "Figure":
    """Draws images in rows of so many columns."""
    from tarspyro.plot.figures import axes_of, sheet_of, show

    rows = -(-len(images) // columns)
    figure, ax = axes_of(None, (0.55 * columns, 0.55 * rows + 0.4))
    show(ax, sheet_of(images, columns, t.data.image_shape))
    ax.set_title(title, fontsize="medium")
    return figure
