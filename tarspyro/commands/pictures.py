"""The pictures of a trained pair: functions that yield figures, each with the name of its
file.
"""

__all__ = ["Drawn", "Sampler"]

from collections.abc import Callable, Iterator

import torch
from matplotlib.figure import Figure
from torch import Tensor

from tarspyro import evaluate, plot
from tarspyro.commands.reports import Trained, first, labels_as_vectors, predicted
from tarspyro.plot.figures import Picture, axes_of, sheet_of, show

Drawn = tuple[str, Figure]
Sampler = Callable[
    [Trained, int | None, int, bool], Figure
]  # how many, the seed, and whether means are drawn


def curves(t: Trained) -> Iterator[Drawn]:
    """Draws the learning curves."""
    yield "curves", plot.curves(t.history)


def reconstructions(t: Trained) -> Iterator[Drawn]:
    """Draws test images and their reconstructions."""
    shape = t.material.image_shape
    yield (
        "reconstructions",
        plot.reconstructions(
            t.model, t.guide, t.material.test, site=t.site, image_shape=shape
        ),
    )


def latents(t: Trained) -> Iterator[Drawn]:
    """Draws the codes of the test images, unless the family has no mean in closed form."""
    part, labels = first(t.material.test, 2000), t.material.labels
    try:
        figure = plot.latents(
            t.guide, part, labels=None if labels is None else labels[:2000], site=t.latent
        )
    except NotImplementedError:
        return
    yield "latents", figure


def manifold(t: Trained) -> Iterator[Drawn]:
    """Draws what the model decodes: from a grid of two latent units, or as each of several
    changes.
    """
    shape = t.material.image_shape
    if t.model.prior().event_shape.numel() == 2:
        yield "manifold", plot.manifold(t.model, image_shape=shape)
    else:
        yield "traversal", plot.traversal(t.model, site=t.site, image_shape=shape)


def units(t: Trained) -> Iterator[Drawn]:
    """Draws the activity of the latent units of each layer."""
    yield "active_units", plot.active_units(evaluate.activity(t.guide, t.material.test))


def canvases(t: Trained) -> Iterator[Drawn]:
    """Draws how test images are painted, step by step, and images that the model paints by
    itself.
    """
    shape, classes = t.material.image_shape, t.material.num_classes
    given = {"y": torch.eye(classes)[:6]} if classes else None
    yield "canvases", plot.canvases(t.model, t.guide, t.material.test, image_shape=shape)
    yield "painting", plot.canvases(t.model, given=given, image_shape=shape)


def analogies(t: Trained) -> Iterator[Drawn]:
    """Draws test images, and beside each its code with every label."""
    count, classes = 8, t.material.num_classes
    x = t.material.test[0][:count]
    z = evaluate.embed(t.guide, (x, labels_as_vectors(t, count)))
    given = {"y": torch.eye(classes).repeat(len(x), 1)}
    images = evaluate.decode(t.model, z.repeat_interleave(classes, 0), given=given)
    rows = torch.cat([x[:, None], images.reshape(len(x), classes, *x.shape[1:])], 1)
    yield (
        "analogies",
        _sheet(
            t, rows.flatten(0, 1), classes + 1, "test images, and their codes with every label"
        ),
    )


def images_from_labels(t: Trained) -> Iterator[Drawn]:
    """Draws images that follow from labels, a row for each."""
    columns = 12
    labels = torch.eye(t.material.num_classes).repeat_interleave(columns, 0)
    images = evaluate.impute_modalities(t.model, t.guide, (None, labels), mean=True, seed=0)[
        "x_1"
    ]
    yield (
        "images_from_labels",
        _sheet(t, images, columns, "images from labels, a row for each"),
    )


def continuations(t: Trained) -> Iterator[Drawn]:
    """Draws how the first half of test sequences may go on."""
    x, *lengths = t.material.test
    if lengths:
        length = int(lengths[0][0])
        known = max(1, length // 2)
        rest = evaluate.continuations(
            t.model, t.guide, x[:1, :known], length + (length == known), seed=0
        )
        piece = torch.cat([x[0, :known], rest[0, 0]])
        yield (
            "continuation",
            plot.piano_roll(piece, known=known, title="a piece, from the line on the model's"),
        )
        return
    count, known, length = 10, x.shape[1] // 2, x.shape[1]
    beginnings = x[:count, :known]
    rest = evaluate.continuations(t.model, t.guide, beginnings, length, num_samples=4, seed=0)
    drawn = torch.cat([beginnings.expand(len(rest), *beginnings.shape), rest], 2)
    sheet = torch.cat([x[None, :count], drawn]).flatten(0, 1)
    yield (
        "continuations",
        _sheet(
            t,
            sheet,
            len(beginnings),
            "test images, and below how their upper halves may go on",
        ),
    )


def regression(t: Trained) -> Iterator[Drawn]:
    """Draws predictions against targets; of classes there is nothing to draw."""
    truth = t.material.truth
    if truth is None:
        return
    _, mean = predicted(t)
    y, mean = (truth.y_mean + truth.y_scale * values for values in (t.material.test[1], mean))
    figure, ax = axes_of(None, (4.8, 4.8))
    ax.plot(y.numpy(), mean.numpy(), ".")
    ax.axline((y.mean().item(), y.mean().item()), slope=1, color="0.7", linewidth=1)
    ax.set(xlabel="target", ylabel="mean of the prediction", title="test rows")
    yield "predictions", figure


# --- what the model generates


def samples(t: Trained, num: int | None, seed: int, mean: bool) -> Figure:
    """Draws a sheet of images, or a cloud of points."""
    if t.material.image_shape is not None:
        shape = t.material.image_shape
        return plot.samples(
            t.model, num=num or 64, seed=seed, mean=mean, site=t.site, image_shape=shape
        )
    drawn = evaluate.sample(t.model, num or 1000, seed=seed).cpu()
    figure, ax = axes_of(None, (4.8, 4.8))
    for points, color in ((t.material.test[0], "0.8"), (drawn, "C0")):
        ax.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=3, color=color)
    ax.set(title="samples (data in grey)", aspect="equal")
    return figure


def of_each_class(t: Trained, num: int | None, seed: int, mean: bool) -> Figure:
    """Draws a sheet of images with a row for each class; the number is that of all, rounded up
    to fill the rows.
    """
    classes = t.material.num_classes
    columns = 10 if num is None else -(-num // classes)
    figure = plot.samples(
        t.model,
        num=classes * columns,
        given={"y": torch.eye(classes).repeat_interleave(columns, 0)},
        columns=columns,
        seed=seed,
        mean=mean,
        image_shape=t.material.image_shape,
    )
    figure.axes[0].set_ylabel("a row for each class")
    return figure


def sequences(t: Trained, num: int | None, seed: int, mean: bool) -> Figure:
    """Draws a sheet of images, or pieces of music one below the other: their notes are drawn,
    since means are none.
    """
    shape, x = t.material.image_shape, t.material.test[0]
    if shape is not None:
        return plot.samples(
            t.model, num=num or 64, seed=seed, mean=mean, length=x.shape[1], image_shape=shape
        )
    count = num or 4
    pieces = evaluate.sample(t.model, count, length=min(x.shape[1], 100), seed=seed)
    figure = Picture(figsize=(9.0, 2.4 * count), layout="constrained")
    for piece, ax in zip(pieces, figure.subplots(count, 1, squeeze=False)[:, 0], strict=True):
        plot.piano_roll(piece, ax=ax)
    return figure


def _sheet(t: Trained, images: Tensor, columns: int, title: str) -> Figure:
    rows = -(-len(images) // columns)
    figure, ax = axes_of(None, (0.55 * columns, 0.55 * rows + 0.4))
    show(ax, sheet_of(images, columns, t.material.image_shape))
    ax.set_title(title, fontsize="medium")
    return figure
