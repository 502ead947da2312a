"""Pictures of a pair: its latent space, what it generates and reconstructs, how it learned."""

__all__ = [
    "active_units",
    "interpolation",
    "latents",
    "manifold",
    "reconstructions",
    "samples",
    "traversal",
]

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tarspyro import evaluate
from tarspyro.arguments import as_count, as_numbers, check_choice, check_positive, format_value
from tarspyro.data import Split
from tarspyro.distributions import has_context
from tarspyro.infer.traces import PairError, name_of
from tarspyro.inputs import as_arguments
from tarspyro.plot.figures import Shape, as_array, as_images, axes_of, sheet_of, show
from tarspyro.scopes import evaluating, preserved_rng


def latents(
    guide: Callable[..., Any] | Any,
    data: Any = None,
    *,
    labels: Any = None,
    site: str | None = None,
    method: str = "pca",
    ax: Axes | None = None,
) -> Figure:
    """Draws the posterior means of the data, coloured by label.

    Codes of more than two dimensions are projected by scikit-learn's PCA or t-SNE; the axes
    say which.

    Arguments:
        guide: The guide, or an array of codes with shape ``(N, *event)``.
        data: The data to encode; the labels of a ``Split`` are used.
        labels: One integer for each data point.
        site: Which latent variable; not needed if there is one.
        method: ``"pca"`` or ``"tsne"``.
        ax: Where to draw.

    Raises:
        ValueError: If ``method`` is neither, labels are not one for each data point, or codes
            are not finite.
    """
    check_choice("method", method, ("pca", "tsne"))
    with preserved_rng():  # the guide draws, although only its means are looked at
        codes = as_array(
            evaluate.embed(guide, data, site=site) if callable(guide) else guide, "guide"
        )
    if not codes.size or not codes.ndim:
        raise ValueError(
            f"guide must be one, or codes of shape (N, *event), got {format_value(guide)}."
        )
    if not np.isfinite(codes).all():
        raise ValueError(
            f"codes must be finite, got {int((~np.isfinite(codes)).sum())} numbers that are"
            " not."
        )
    codes = codes.reshape(len(codes), -1).astype(float)
    if labels is None and isinstance(data, Split) and data.y is not None and data.y.dim() == 1:
        labels = data.y
    labels = None if labels is None else as_array(labels, "labels")
    if labels is not None and labels.shape != codes.shape[:1]:
        raise ValueError(
            f"labels must be one for each of the {len(codes)} codes, got shape {labels.shape}."
        )
    names = ["z[0]", "z[1]"]
    if codes.shape[1] > 2:
        codes, names = _project(codes, method)
    if codes.shape[1] == 1:
        codes, names = np.column_stack([codes, np.arange(len(codes))]), ["z", "data point"]
    figure, ax = axes_of(ax, (6.4, 5.2))
    dots: dict[str, Any] = {
        "s": min(25.0, max(4.0, 6000 / len(codes))),
        "alpha": 0.7,
        "linewidths": 0,
    }
    if labels is None:
        ax.scatter(codes[:, 0], codes[:, 1], **dots)
    else:
        for label in np.unique(labels):
            chosen = codes[labels == label]
            color = f"C{int(label) % 10}"
            ax.scatter(chosen[:, 0], chosen[:, 1], color=color, label=str(label), **dots)
        ax.legend(
            markerscale=(25 / dots["s"]) ** 0.5,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
        )
    ax.set(xlabel=names[0], ylabel=names[1], title="latent space (posterior means)")
    return figure


def manifold(
    model: Callable[..., Any],
    *,
    given: Mapping[str, Any] | None = None,
    num: int = 20,
    extent: float | None = None,
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws what the model decodes from a grid over its two-dimensional latent space.

    The grid takes equally likely steps under the prior: the quantiles of each latent unit
    (Kingma and Welling 2013, Fig. 4), or with ``extent`` equal steps between plus and minus
    that value.

    Arguments:
        model: A model with a latent variable ``z`` of two dimensions that generates with
            ``batch_size``.
        given: What else the model needs, by name, in one row: ``{"y": y}`` for a
            ``ConditionalVAE``.
        num: The number of images along each side.
        extent: The half width of an equally spaced grid.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        ValueError: If z does not have two dimensions; ``traversal`` draws any number.
    """
    num = as_count("num", num)
    if extent is not None:
        check_positive("extent", extent)
    draws = _draws(model, given)
    if draws[0].numel() != 2:
        raise ValueError(
            "manifold needs a latent variable of two dimensions, this one has"
            f" {draws[0].numel()}: see traversal."
        )
    if extent is None:
        levels = (torch.arange(num) + 0.5) / num
        first, second = (torch.quantile(draws.flatten(1)[:, unit], levels) for unit in (0, 1))
    else:
        first = second = torch.linspace(-extent, extent, num)
    # Rows from top to bottom run from large to small values, as a vertical axis does.
    grid = torch.cartesian_prod(second.flip(0), first).flip(1)
    title = "decoder manifold"
    if _on_simplex(draws):
        # Points of the simplex have one degree of freedom: a line of images.
        grid, title = torch.stack([first, 1 - first], -1), "decoder along the simplex"
    images = _decode(model, grid.reshape(-1, *draws.shape[1:]), given)
    figure, ax = axes_of(ax, (6.4, 6.4))
    show(ax, sheet_of(images, num, image_shape))
    ax.set(title=title, xlabel="z[0]", ylabel="z[1]")
    return figure


def reconstructions(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    *,
    num: int = 12,
    site: str = "x",
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws data points in the upper row, and below each its reconstruction from a draw of the
    posterior.

    Arguments:
        model: The model.
        guide: The guide.
        data: The data, in any form that ``fit`` takes in memory; the first ``num`` are drawn.
        num: How many data points.
        site: The observed site to draw, the first part of the data.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    num, arguments = as_count("num", num), as_arguments(data, model)
    if arguments is None:
        raise ValueError(
            "data must be in memory: tensors, arrays, a mapping of them or a Split."
        )
    rows = tuple(part[:num] for part in arguments)
    x = rows[0]
    with preserved_rng(seed=0):
        means = evaluate.reconstruct(model, guide, rows, site=site)
    as_images("data", x, means)
    figure, ax = axes_of(ax, (max(3.0, 0.7 * num), 1.7))
    show(ax, sheet_of(torch.cat([x.cpu(), means.cpu()]), len(x), image_shape))
    ax.set_title("data (above), reconstructions (below)")
    return figure


def samples(
    model: Callable[..., Any],
    *,
    num: int = 64,
    given: Mapping[str, Any] | None = None,
    mean: bool = True,
    seed: int = 0,
    columns: int | None = None,
    site: str = "x",
    length: int | None = None,
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws a sheet of what the model generates.

    Arguments:
        model: A model that generates with ``batch_size``.
        num: How many images.
        given: What else the model needs, by name: ``{"y": y}`` for a ``ConditionalVAE``, with
            one row or ``num`` rows.
        mean: Draw the likelihood's means; otherwise draws from it.
        seed: The same seed gives the same latent variables, so that sheets of different epochs
            can be compared.
        columns: How many images stand in a row; as many as make a square if not given.
        site: The site to draw.
        length: The number of steps of a model of sequences, such as the rows of an image.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.
    """
    num = as_count("num", num)
    images = evaluate.sample(
        model, num, given=given, site=site, length=length, mean=mean, seed=seed
    )
    figure, ax = axes_of(ax, (6.4, 6.4))
    show(ax, sheet_of(images, columns or math.ceil(math.sqrt(num)), image_shape))
    ax.set_title("samples" + (" (means of the likelihood)" if mean else ""))
    return figure


def traversal(
    model: Callable[..., Any],
    code: Any = None,
    *,
    given: Mapping[str, Any] | None = None,
    codes: Any = None,
    units: Sequence[int] | None = None,
    num: int = 11,
    latent: str = "z",
    site: str = "x",
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws, one row a latent unit, what changes as the unit runs through the prior's
    quantiles.

    With the codes of data, the rows are sorted by activity, the variance of a unit's posterior
    means (Burda et al. 2015, section 2). In a hierarchy, variables between the latent one and
    the data are drawn.

    Arguments:
        model: A model that generates with ``batch_size``.
        code: The values of the other units; the prior's medians if not given.
        given: What else the model needs, by name, in one row: ``{"y": y}`` for a
            ``ConditionalVAE``.
        codes: The posterior means of some data, as ``embed`` returns them.
        units: Which units; if not given the ten most active ones, or the first ten without
            ``codes``.
        num: The number of steps.
        latent: The name of the latent variable.
        site: The observed site to draw.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        ValueError: If ``code`` or ``codes`` have another shape than the latent variable, or
            ``units`` are not its own.
    """
    num, draws = as_count("num", num), _draws(model, given, latent)
    flat = draws.flatten(1)
    center = (
        flat.median(0).values
        if code is None
        else as_numbers("code", code, flat.dtype).flatten()
    )
    if len(center) != flat.shape[1]:
        raise ValueError(
            f"code must have {flat.shape[1]} units as {latent!r} has, got {len(center)}."
        )
    order = list(range(flat.shape[1]))
    if codes is not None:
        activity = as_images("codes", codes).double().flatten(1).numpy().var(0)
        if len(activity) != len(order):
            raise ValueError(
                f"codes must have {len(order)} units as {latent!r} has, got {len(activity)}."
            )
        order = np.argsort(-activity, kind="stable").tolist()
    if not isinstance(units, Iterable | None) or torch.is_tensor(units):
        raise TypeError(f"units must be a list of whole numbers, got {format_value(units)}.")
    units = order[:10] if units is None else [as_count("units", unit, 0) for unit in units]
    if not units or max(units) >= len(order):
        raise ValueError(
            f"units must be some of the {len(order)} of {latent!r}, counted from 0, got"
            f" {units}."
        )
    levels = torch.linspace(0.02, 0.98, num)
    grid = center.repeat(len(units), num, 1)
    for row, unit in enumerate(units):
        values = torch.quantile(flat[:, unit], levels)
        if _on_simplex(draws):  # the others share what the unit leaves
            group = slice(
                unit - unit % draws.shape[-1], unit - unit % draws.shape[-1] + draws.shape[-1]
            )
            rest = grid[row, :, group].sum(-1) - grid[row, :, unit]
            grid[row, :, group] *= ((1 - values) / rest)[:, None]
        grid[row, :, unit] = values
    images = _decode(model, grid.reshape(-1, *draws.shape[1:]), given, latent, site)
    figure, ax = axes_of(ax, (0.6 * num, 0.6 * len(units) + 0.6))
    show(ax, sheet_of(images, num, image_shape))
    ax.set(title="traversal of latent units", ylabel=f"units {', '.join(map(str, units))}")
    return figure


def interpolation(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    a: Any,
    b: Any,
    *,
    num: int = 11,
    latent: str = "z",
    site: str = "x",
    image_shape: Shape = None,
    ax: Axes | None = None,
) -> Figure:
    """Draws what the model decodes along the straight line between the posterior means of two
    data points.

    Each row has its own two: the data points themselves stand at the ends, and the decoded
    means between them.

    Arguments:
        model: A model that generates with ``batch_size``.
        guide: The guide.
        a: Data points where the rows begin, with shape ``(N, *x)``.
        b: As many data points where they end.
        num: The number of decoded means of a row, those of both ends included.
        latent: The name of the latent variable.
        site: The observed site to draw.
        image_shape: The shape of an image, if it cannot be read off the data's.
        ax: Where to draw.

    Raises:
        NotImplementedError: If the guide's family has no mean in closed form.
        ValueError: If ``a`` and ``b`` differ in shape, or ``num`` is below 2.
    """
    ends = [as_images("a", a), as_images("b", b)]
    if ends[0].shape != ends[1].shape:
        raise ValueError(
            "a and b must have the same shape (N, *x), got"
            f" {[tuple(end.shape) for end in ends]}."
        )
    num = as_count("num", num, 2)
    first, last = (torch.as_tensor(evaluate.embed(guide, end, site=latent)) for end in ends)
    steps = torch.linspace(0, 1, num).reshape(-1, *[1] * (first.dim() - 1))
    codes = torch.cat(
        [
            torch.lerp(one, other, steps)
            for one, other in zip(first[:, None], last[:, None], strict=True)
        ]
    )
    images = _decode(model, codes, None, latent, site)
    as_images("a", ends[0], images)
    images = images.reshape(len(first), num, *ends[0].shape[1:])
    rows = torch.cat([ends[0][:, None], images.cpu(), ends[1][:, None]], 1)
    figure, ax = axes_of(ax, (0.6 * (num + 2), 0.6 * len(first) + 0.6))
    show(ax, sheet_of(rows.flatten(0, 1), num + 2, image_shape))
    ax.set(title="data (left and right), decoded means between them")
    return figure


def active_units(
    activities: Any, *, threshold: float = 0.01, ax: Axes | None = None
) -> Figure:
    """Draws how much the posterior mean of each latent unit moves with the data, sorted, on a
    logarithmic scale.

    Estimates below a thousandth of the threshold are drawn there.

    Arguments:
        activities: What ``evaluate.activity`` returned, or such arrays under any names.
        threshold: The variance above which a unit is active.
        ax: Where to draw.

    Raises:
        ValueError: If there is nothing to draw.
    """
    check_positive("threshold", threshold)
    layers = activities if isinstance(activities, Mapping) else {"z": activities}
    if not layers:
        raise ValueError(
            "activities must hold what evaluate.activity returned under at least one name, got"
            " none."
        )
    figure, ax = axes_of(ax, (6.4, 4.0))
    for name, values in layers.items():
        ordered = np.sort(as_array(values, f"activities of {name}"), axis=None)[::-1]
        label = f"{name}: {(ordered > float(threshold)).sum()} of {ordered.size} active"
        ax.plot(
            np.arange(1, ordered.size + 1),
            ordered.clip(min=threshold / 1000),
            ".-",
            label=label,
        )
    ax.axhline(threshold, color="0.7", linewidth=1, linestyle=":")
    ax.set(
        yscale="log",
        xlabel="unit",
        ylabel="variance of the posterior mean",
        title="activity of latent units",
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _project(codes: np.ndarray, method: str) -> tuple[np.ndarray, list[str]]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if np.ptp(codes, axis=0).max() == 0:  # a collapsed posterior
        return np.zeros((len(codes), 2)), ["no variance", "no variance"]
    if method == "pca":
        pca = PCA(2, random_state=0)
        projected = pca.fit_transform(codes)
        return projected, [
            f"PC {i + 1} ({share:.0%} of variance)"
            for i, share in enumerate(pca.explained_variance_ratio_)
        ]
    perplexity = min(30.0, (len(codes) - 1) / 3)
    return TSNE(2, random_state=0, perplexity=perplexity).fit_transform(codes), [
        "t-SNE 1",
        "t-SNE 2",
    ]


def _decode(
    model: Callable[..., Any],
    codes: torch.Tensor,
    given: Mapping[str, Any] | None = None,
    latent: str = "z",
    site: str = "x",
) -> torch.Tensor:
    with preserved_rng():  # the model draws, although only its means are looked at
        images: torch.Tensor = evaluate.decode(
            model, codes, given=given, latent=latent, site=site
        )
    return images


def _draws(
    model: Callable[..., Any],
    given: Mapping[str, Any] | None = None,
    latent: str = "z",
    num: int = 10_000,
) -> torch.Tensor:
    """Draws of a latent variable, from the prior alone if it is the prior's, whose quantiles
    make grids.
    """
    if not isinstance(latent, str):
        raise TypeError(
            f"latent must be the name of a latent variable, got {format_value(latent)}."
        )
    prior = getattr(model, "prior", None) if latent == "z" else None
    if prior is None or has_context(prior):
        try:
            draws: torch.Tensor = evaluate.sample(model, num, given=given, site=latent, seed=0)
            return draws.cpu()
        except (PairError, NotImplementedError):
            raise ValueError(
                f"{name_of(model)} has no prior that can be drawn from, as a grid needs."
            ) from None
    with preserved_rng(seed=0), evaluating(model), pyro.validation_enabled(False):
        draws = prior().sample((num,))
        return draws.cpu()


def _on_simplex(draws: torch.Tensor) -> bool:
    return draws.shape[-1] > 1 and torch.allclose(draws.sum(-1), draws.new_ones(()))
