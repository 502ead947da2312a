"""Codes in the plane, coloured by label."""

from __future__ import annotations

__all__ = ["latents"]

import importlib
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from tarspyro import evaluate
from tarspyro.arguments import (
    as_count,
    check_choice,
    check_finite,
    check_number,
    check_positive,
    format_value,
)
from tarspyro.data import Split
from tarspyro.evaluate.batching import in_memory
from tarspyro.plot.colors import PALETTE
from tarspyro.plot.figures import (
    ImageShape,
    as_array,
    as_images,
    axes_of,
    mass_levels,
    sheet_of,
    show,
)
from tarspyro.plot.labels import Labels, as_labels, draw_labelled, labels_of, legend_columns
from tarspyro.scopes import preserved_rng
from tarspyro.types import ArrayLike, Data, Program

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Densities of more classes than this are drawn as one.
_MOST_DENSITIES = 10
# The width of a thumbnail as a share of the axes.
_THUMBNAIL = 0.07


def latents(
    guide: Program | ArrayLike,
    data: Data | None = None,
    *,
    labels: object = None,
    label_name: str | None = None,
    site: str | None = None,
    method: str = "pca",
    units: tuple[int, int] | None = None,
    continuous: bool | None = None,
    limits: tuple[float, float] | None = None,
    contours: bool = False,
    thumbnails: int = 0,
    image_shape: ImageShape = None,
    s: float | None = None,
    alpha: float = 0.7,
    cmap: str | Colormap | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws the posterior means of the data, coloured by label.

    Classes have a legend, and more than ten of them markers too; numbers have a colour bar.
    Missing labels (None, NaN) are light grey. Codes of more than two dimensions are projected
    by PCA, t-SNE (both of scikit-learn) or UMAP (of umap-learn); the axes name the projection.

    Arguments:
        guide: The guide, or codes of shape ``(N, *event)``.
        data: The data to encode; a ``Split`` brings its labels.
        labels: For each data point a number, a word or a boolean, or a one-hot row.
        label_name: What the labels are, written at the legend or the colour bar; the name of a
            column of pandas if not given.
        site: The latent variable; not needed if there is one.
        method: ``"pca"``, ``"tsne"`` or ``"umap"``.
        units: Two dimensions of the code to draw, in place of a projection.
        continuous: Whether labels are numbers on a scale, rather than classes. If not given,
            they are if some are not whole or more than 30 differ.
        limits: The numbers at the ends of the colour bar.
        contours: Whether to draw the contours of a kernel density estimate that hold 39 % and
            86 % of its mass, for each of at most ten classes or else for all points.
        thumbnails: The largest number of data points to draw as images at their codes. They
            are chosen at random so that none overlap.
        image_shape: The shape of an image, if it cannot be read off the data's.
        s: The area of a point, in square points of print.
        alpha: The opacity of a point, from 0 to 1.
        cmap: A colour map of Matplotlib, or its name, for classes too.
        figsize: The width and height of a new figure, in inches.
        ax: Where to draw.

    Raises:
        ImportError: If umap-learn is needed and not installed.
        TypeError: If labels are none.
        ValueError: If there is no such method, if labels are not one for each data point, if
            codes are not finite, if ``units`` are not two of their dimensions, or if
            ``thumbnails`` are wanted without data.

    Example:
        >>> codes = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        >>> figure = latents(codes, labels=["cat", "dog", None])
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['cat', 'dog', 'missing']
    """
    check_choice("method", method, ("pca", "tsne", "umap"))
    check_number("alpha", alpha, 0, 1)
    if s is not None:
        check_positive("s", s)
    thumbnails = as_count("thumbnails", thumbnails, 0)
    codes = _codes_of(guide, data, site)
    if labels is None:
        labels = labels_of(data)
    chosen = None if labels is None else as_labels(labels, len(codes), continuous, label_name)
    points, (xlabel, ylabel) = _points_of(codes, method, units)
    images = _images_of(guide, data, len(points)) if thumbnails else None

    width = 6.4 + 1.3 * max(0, legend_columns(chosen) - 1)
    figure, ax = axes_of(ax, figsize or (width, 5.2))
    area = min(25.0, max(4.0, 6000 / len(points))) if s is None else s
    colors: list[str] = []
    if chosen is None:
        ax.scatter(
            points[:, 0], points[:, 1], s=area, alpha=alpha, linewidths=0, color=PALETTE[0]
        )
    else:
        style: dict[str, Any] = {"area": area, "alpha": alpha, "cmap": cmap, "limits": limits}
        colors = draw_labelled(ax, points, chosen, **style)
    if contours:
        _draw_densities(ax, points, chosen, colors)
    if images is not None:
        _draw_thumbnails(ax, points, images, thumbnails, image_shape)
    ax.set(xlabel=xlabel, ylabel=ylabel, title="latent space (posterior means)")
    return figure


def _codes_of(guide: Program | ArrayLike, data: Data | None, site: str | None) -> np.ndarray:
    """Returns codes of shape (N, D), given or encoded."""
    with preserved_rng():  # the guide draws, although only its means are read
        given = (
            evaluate.embed(guide, cast("Data", data), site=site) if callable(guide) else guide
        )
    codes = as_array(given, "guide")
    if not codes.size or not codes.ndim:
        raise ValueError(
            f"guide must be a program, or codes of shape (N, *event), got {format_value(guide)}."
        )
    check_finite("codes", codes)
    return codes.reshape(len(codes), -1).astype(float)


def _points_of(
    codes: np.ndarray, method: str, units: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[str, str]]:
    """Returns codes as points in the plane, and the labels of its axes."""
    size = codes.shape[1]
    if units is not None:
        first, second = (as_count("units", unit, 0) for unit in units)
        if max(first, second) >= size:
            raise ValueError(
                f"units must be two of the {size} dimensions of the code, counted from 0, got"
                f" {(first, second)}."
            )
        return codes[:, [first, second]], (f"z[{first}]", f"z[{second}]")
    if size == 1:
        return np.column_stack([codes, np.arange(len(codes))]), ("z", "data point")
    if size == 2:
        return codes, ("z[0]", "z[1]")
    if np.ptp(codes, axis=0).max() == 0:  # a collapsed posterior
        return np.zeros((len(codes), 2)), ("no variance", "no variance")
    return _projected(codes, method)


def _projected(codes: np.ndarray, method: str) -> tuple[np.ndarray, tuple[str, str]]:
    if method == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(2, random_state=0)
        projected = pca.fit_transform(codes)
        first, second = pca.explained_variance_ratio_
        return projected, (
            f"PC 1 ({first:.0%} of variance)",
            f"PC 2 ({second:.0%} of variance)",
        )
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(codes) - 1) / 3)
        tsne = TSNE(2, random_state=0, perplexity=perplexity)
        return tsne.fit_transform(codes), ("t-SNE 1", "t-SNE 2")
    try:
        umap = importlib.import_module("umap")
    except ImportError:
        raise ImportError(
            "method='umap' needs umap-learn, which is not installed: pip install umap-learn, or"
            " take method='tsne'."
        ) from None
    neighbours = min(15, len(codes) - 1)
    projection = umap.UMAP(neighbours, n_jobs=1, random_state=0)
    return np.asarray(projection.fit_transform(codes)), ("UMAP 1", "UMAP 2")


def _images_of(guide: object, data: Data | None, count: int) -> torch.Tensor:
    """Returns the data points as images, one for each code."""
    if data is None:
        raise ValueError("thumbnails need the images of the codes: give them as data.")
    rows: object = data.x if isinstance(data, Split) else data
    if callable(guide):
        rows = in_memory(data, guide, name="data")[0]
    images = as_images("data", cast("ArrayLike", rows))
    if len(images) != count:
        raise ValueError(
            f"data must have an image for each of the {count} codes, got {len(images)}."
        )
    return images


def _draw_densities(
    ax: Axes, points: np.ndarray, labels: Labels | None, colors: list[str]
) -> None:
    """Draws contours of the density of each class, or of all points."""
    from scipy.stats import gaussian_kde

    groups = [("0.25", points)]
    if labels is not None and 0 < len(colors) <= _MOST_DENSITIES:
        groups = [
            (color, points[labels.known & (labels.values == index)])
            for index, color in enumerate(colors)
        ]
    low = points.min(0)
    high = points.max(0)
    margin = 0.1 * (high - low)
    sides = [np.linspace(a, b, 100) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = np.stack(np.meshgrid(*sides), -1)
    for color, group in groups:
        if len(group) < 3 or np.linalg.matrix_rank(group - group.mean(0)) < 2:
            continue  # points on a line have no density in the plane
        density = gaussian_kde(group.T)(grid.reshape(-1, 2).T).reshape(grid.shape[:2])
        ax.contour(*sides, density, levels=mass_levels(density), colors=color, linewidths=1.2)


def _draw_thumbnails(
    ax: Axes, points: np.ndarray, images: torch.Tensor, num: int, image_shape: ImageShape
) -> None:
    """Draws images at their codes, in places where none overlap."""
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    box = ax.get_position()
    figure = ax.figure.figure
    aspect = box.width * figure.get_figwidth() / (box.height * figure.get_figheight())
    size = np.array([right - left, (top - bottom) * aspect]) * _THUMBNAIL
    taken: list[np.ndarray] = []
    for index in np.random.default_rng(0).permutation(len(points)):
        place = points[index]
        if any((abs(place - other) < size).all() for other in taken):
            continue
        taken.append(place)
        corner = place - size / 2
        frame = ax.inset_axes((*corner, *size), transform=ax.transData, zorder=4)
        sheet = sheet_of(images[index : index + 1], 1, image_shape)
        show(frame, sheet[1:-1, 1:-1])
        if len(taken) == num:
            break
