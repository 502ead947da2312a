"""Codes in the plane: where they are, and the colours of their labels."""

import sys
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tarspyro import Deterministic, guides, plot
from tarspyro.data import Split
from tarspyro.nn import MLP

from .pictures import make_pair, points


def test_latents_are_the_posterior_means(pair, held_out):
    figure = plot.latents(pair[1], held_out.x)
    pair[1].eval()
    with torch.no_grad():
        means = pair[1].posterior.mean(held_out.x)
    np.testing.assert_allclose(points(figure), means, rtol=1e-5)
    assert figure.axes[0].get_legend() is None
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("z[0]", "z[1]")


@pytest.mark.parametrize("form", ["split", "tensor and labels", "array and labels"])
def test_latents_by_label(form, pair, held_out):
    if form == "split":
        figure = plot.latents(pair[1], held_out)
    elif form == "tensor and labels":
        figure = plot.latents(pair[1], held_out.x, labels=held_out.y)
    else:
        figure = plot.latents(pair[1], held_out.x.numpy(), labels=held_out.y.tolist())
    ax = figure.axes[0]
    labels = sorted(set(held_out.y.tolist()))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        str(label) for label in labels
    ]
    pair[1].eval()
    with torch.no_grad():
        means = pair[1].posterior.mean(held_out.x).numpy()
    for label, collection in zip(labels, ax.collections, strict=True):
        np.testing.assert_allclose(
            collection.get_offsets(), means[held_out.y.numpy() == label], rtol=1e-5
        )
    assert len({tuple(collection.get_facecolor()[0]) for collection in ax.collections}) == len(
        labels
    )


def test_latents_of_data_without_labels(pair, held_out):
    figure = plot.latents(pair[1], Split(held_out.x))
    assert len(figure.axes[0].collections) == 1 and figure.axes[0].get_legend() is None


@pytest.mark.parametrize(
    "kind", [torch.tensor, np.array, list], ids=["tensor", "array", "list"]
)
def test_latents_of_codes(kind):
    codes = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    np.testing.assert_array_equal(points(plot.latents(kind(codes))), codes)
    assert len(plot.latents(kind(codes), labels=kind([0, 1, 0])).axes[0].collections) == 2
    # those of a split are taken with codes as well
    assert (
        len(
            plot.latents(kind(codes), Split(torch.zeros(3, 1), torch.tensor([1, 2, 3])))
            .axes[0]
            .collections
        )
        == 3
    )


def test_latents_of_one_dimension(held_out):
    figure = plot.latents(make_pair(latent=1)[1], held_out)
    assert len(points(figure)) == 60 and figure.axes[0].get_xlabel() == "z"
    np.testing.assert_array_equal(
        points(plot.latents(np.array([5.0, 7.0]))), [[5.0, 0.0], [7.0, 1.0]]
    )


def test_latents_of_many_dimensions_by_principal_components():
    """A plane in five dimensions is found again, up to a rotation."""
    plane = np.random.default_rng(0).normal(size=(40, 2)) * [3.0, 1.0]
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 2)))[0]
    figure = plot.latents((plane @ basis.T).reshape(40, 5, 1))
    distances = [
        np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (points(figure), plane)
    ]
    np.testing.assert_allclose(*distances, atol=1e-6)
    shares = np.sort(np.linalg.eigvalsh(np.cov(plane.T)))[::-1] / np.cov(plane.T).trace()
    assert figure.axes[0].get_xlabel() == f"PC 1 ({shares[0]:.0%} of variance)"
    assert figure.axes[0].get_ylabel() == f"PC 2 ({shares[1]:.0%} of variance)"


def test_latents_of_a_guide_with_many_dimensions(held_out):
    figure = plot.latents(make_pair(latent=4)[1], held_out)
    assert points(figure).shape == (60, 2) and figure.axes[0].get_xlabel().startswith("PC 1")


def test_latents_of_many_dimensions_by_neighborhoods():
    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.normal(size=(12, 4)), rng.normal(size=(12, 4)) + 100.0])
    figure = plot.latents(codes, method="tsne")
    assert figure.axes[0].get_xlabel() == "t-SNE 1"
    found = points(figure)
    centers = found[:12].mean(0), found[12:].mean(0)
    spread = max(
        np.linalg.norm(found[:12] - centers[0], axis=1).max(),
        np.linalg.norm(found[12:] - centers[1], axis=1).max(),
    )
    assert np.linalg.norm(centers[0] - centers[1]) > spread


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_latents_of_a_collapsed_posterior(method):
    figure = plot.latents(np.ones((20, 5)), method=method)
    assert (points(figure) == 0).all() and figure.axes[0].get_xlabel() == "no variance"


def test_latents_of_a_deterministic_guide(held_out):
    guide = guides.Autoencoder(Deterministic(MLP(64, [8]), 2))
    np.testing.assert_allclose(
        points(plot.latents(guide, held_out.x)),
        guide.encoder.mean(held_out.x).detach(),
        rtol=1e-5,
    )


def test_latents_of_a_chosen_site():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z_1", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("z_2", dist.Normal(-x, 1.0).to_event(1))

    x = torch.rand(5, 2)
    np.testing.assert_array_equal(points(plot.latents(guide, x, site="z_2")), -x)
    with pytest.raises(ValueError, match="site must be one of"):
        plot.latents(guide, x)


def test_latents_method_is_checked():
    with pytest.raises(
        ValueError, match="method must be one of 'pca', 'tsne', 'umap', got 'x'"
    ):
        plot.latents(np.zeros((3, 2)), method="x")


def test_latents_by_umap(monkeypatch):
    made = []

    class UMAP:
        def __init__(self, neighbours, **options):
            made.append((neighbours, options))

        def fit_transform(self, codes):
            return codes[:, :2] + 1

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    codes = np.random.default_rng(0).normal(size=(9, 5))
    figure = plot.latents(codes, method="umap")
    np.testing.assert_allclose(points(figure), codes[:, :2] + 1)
    assert figure.axes[0].get_xlabel() == "UMAP 1" and made[0][0] == 8


def test_latents_without_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="needs umap-learn, .* or take method='tsne'"):
        plot.latents(np.eye(4), method="umap")


def test_latents_of_chosen_units():
    codes = np.arange(12.0).reshape(3, 4)
    figure = plot.latents(codes, units=(3, 1))
    np.testing.assert_array_equal(points(figure), codes[:, [3, 1]])
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("z[3]", "z[1]")
    with pytest.raises(ValueError, match="units must be two of the 4 dimensions"):
        plot.latents(codes, units=(0, 4))


# --- labels

CODES = np.random.default_rng(0).normal(size=(60, 2))


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_numbers_on_a_scale_have_a_colour_bar(kind):
    values = np.linspace(-1, 2, 60)
    figure = plot.latents(CODES, labels=kind(values.tolist()))
    ax, bar = figure.axes
    assert ax.get_legend() is None and len(ax.collections) == 1
    np.testing.assert_allclose(ax.collections[0].get_array(), values, rtol=1e-6)
    np.testing.assert_allclose(bar.get_ylim(), (-1, 2))
    assert ax.collections[0].get_cmap().name == "viridis"
    figure = plot.latents(CODES, labels=values, limits=(0, 1), cmap="magma")
    assert figure.axes[1].get_ylim() == (0, 1)
    assert figure.axes[0].collections[0].get_cmap().name == "magma"


def test_many_whole_numbers_are_a_scale():
    assert len(plot.latents(CODES, labels=np.arange(60)).axes) == 2
    assert len(plot.latents(CODES, labels=np.arange(60) % 30).axes) == 1
    assert len(plot.latents(CODES, labels=np.arange(60.0) % 3).axes) == 1
    assert len(plot.latents(CODES, labels=np.arange(60) % 3, continuous=True).axes) == 2
    figure = plot.latents(CODES, labels=np.arange(60) / 2, continuous=False)
    assert len(figure.axes) == 1 and legend(figure)[:3] == ["0", "0.5", "1"]


WORDS = ["dog", "cat", "dog", "class 10", "class 9"] * 12


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_words_are_classes(kind):
    figure = plot.latents(CODES, labels=kind(WORDS))
    assert legend(figure) == ["cat", "class 9", "class 10", "dog"]
    np.testing.assert_allclose(
        figure.axes[0].collections[3].get_offsets(), CODES[np.array(WORDS) == "dog"]
    )


def test_booleans_and_one_hot_rows_are_classes():
    assert legend(plot.latents(CODES, labels=CODES[:, 0] > 0)) == ["False", "True"]
    y = torch.arange(60) % 4
    figure = plot.latents(CODES, labels=torch.eye(4)[y])
    assert legend(figure) == ["0", "1", "2", "3"]
    np.testing.assert_allclose(figure.axes[0].collections[2].get_offsets(), CODES[y == 2])
    # Those of a split too; other targets with several columns colour nothing.
    assert legend(plot.latents(CODES, Split(torch.zeros(60, 1), torch.eye(4)[y]))) == list(
        "0123"
    )
    targets = Split(torch.zeros(60, 1), torch.rand(60, 2))
    assert plot.latents(CODES, targets).axes[0].get_legend() is None


def test_a_column():
    figure = plot.latents(CODES, labels=np.linspace(0, 1, 60)[:, None])
    assert len(figure.axes) == 2


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["a", None, "b"], ["a", "b", "missing"]),
        (["a", float("nan"), "b"], ["a", "b", "missing"]),
        ([1, None, 2], ["1", "2", "missing"]),
        ([1.0, float("nan"), 2.0], ["1", "2", "missing"]),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), ["1", "3", "missing"]),
        ([None, None, None], ["missing"]),
    ],
)
def test_missing_labels_of_classes_are_grey(labels, names):
    figure = plot.latents(CODES[:3], labels=labels)
    assert legend(figure) == names
    grey = figure.axes[0].collections[0]
    assert to_hex(grey.get_facecolor()[0]) == "#bfbfbf" and CODES[1] in grey.get_offsets()


def test_missing_numbers_are_grey():
    values = np.linspace(0, 1, 60)
    values[:7] = np.nan
    figure = plot.latents(CODES, labels=values)
    grey, dots = figure.axes[0].collections
    assert len(grey.get_offsets()) == 7 and len(dots.get_offsets()) == 53
    assert legend(figure) == ["missing"] and figure.axes[1].get_ylim() == (values[7], 1)


def test_many_classes_have_colours_of_their_own():
    figure = plot.latents(CODES, labels=[f"class {index % 25}" for index in range(60)])
    ax = figure.axes[0]
    colors = {to_hex(dots.get_facecolor()[0]) for dots in ax.collections}
    assert len(colors) == 25 == len(legend(figure))
    assert len({len(dots.get_paths()[0].vertices) for dots in ax.collections}) > 1  # markers


def test_the_legend_of_very_many_classes_holds_the_largest():
    words = [f"w{index}" for index in range(50)] + ["w7"] * 10
    names = legend(plot.latents(CODES, labels=words))
    assert len(names) == 30 and "w7" in names and names[-1] == "and 21 more"
    names = legend(plot.latents(CODES, labels=[*words[:-1], None]))
    assert len(names) == 30 and names[-2:] == ["and 22 more", "missing"]


def test_a_class_keeps_its_colour_when_others_are_left_out():
    def color(labels, index):
        dots = plot.latents(CODES[: len(labels)], labels=labels).axes[0].collections[index]
        return to_hex(dots.get_facecolor()[0])

    assert color([0, 3, 7], 1) == color([3, 4], 0) != color([7, 8], 0)


def test_style():
    figure = plot.latents(
        CODES, labels=WORDS, s=9.0, alpha=0.2, cmap="coolwarm", figsize=(3.0, 2.0)
    )
    assert tuple(figure.get_size_inches()) == (3.0, 2.0)
    dots = figure.axes[0].collections
    assert list(dots[0].get_sizes()) == [9.0] and dots[0].get_alpha() == 0.2
    assert to_hex(dots[0].get_facecolor()[0]) == "#3b4cc0"  # the first colour of the map


def test_the_name_of_a_column_is_the_title():
    class Column(list):
        name = "age"

    figure = plot.latents(CODES, labels=Column(np.linspace(0, 1, 60)))
    assert figure.axes[1].get_ylabel() == "age"
    figure = plot.latents(CODES, labels=Column(WORDS))
    assert figure.axes[0].get_legend().get_title().get_text() == "age"
    figure = plot.latents(CODES, labels=CODES[:, 0], label_name="width (cm)")
    assert figure.axes[1].get_ylabel() == "width (cm)"


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (
            [0, 1],
            {},
            ValueError,
            r"labels must be one for each of the 60 codes, got shape \(2,\)",
        ),
        (3, {}, ValueError, r"labels must be one for each of the 60 codes, got shape \(\)"),
        (np.zeros((60, 2)), {}, ValueError, r"got shape \(60, 2\)"),
        (np.zeros(60, complex), {}, TypeError, "labels must be numbers or words, got complex"),
        (WORDS, {"continuous": True}, ValueError, "labels that are numbers, got .*'dog'"),
    ],
)
def test_labels_that_do_not_fit(labels, options, error, message):
    with pytest.raises(error, match=message):
        plot.latents(CODES, labels=labels, **options)


# --- contours and thumbnails


def test_contours_hold_the_mass_that_they_say():
    codes = np.random.default_rng(0).normal(size=(4000, 2)) * [2.0, 1.0]
    dots, contours = plot.latents(codes, contours=True).axes[0].collections
    for path, deviations in zip(contours.get_paths(), (2, 1), strict=True):
        extent = np.ptp(path.vertices, axis=0) / 2
        np.testing.assert_allclose(extent, deviations * np.array([2.0, 1.0]), rtol=0.15)


def test_each_class_has_contours():
    labels = np.array(["a", "b", "line"])[np.arange(60) % 3]
    codes = CODES.copy()
    codes[labels == "line", 1] = 0.0  # no density in the plane
    collections = plot.latents(codes, labels=labels, contours=True).axes[0].collections
    assert len(collections) == 3 + 2
    for dots, contours in zip(collections[:2], collections[3:], strict=True):
        assert to_hex(contours.get_edgecolor()[0]) == to_hex(dots.get_facecolor()[0])
    one = plot.latents(CODES, labels=CODES[:, 0], contours=True).axes[0].collections
    assert len(one) == 2


def test_thumbnails_are_images_at_their_codes_that_do_not_overlap():
    images = torch.rand(60, 16)
    ax = plot.latents(CODES, images, thumbnails=20).axes[0]
    assert 5 < len(ax.child_axes) <= 20
    inverse = ax.transData.inverted()
    boxes = []
    for frame in ax.child_axes:
        locator = frame.get_axes_locator()
        box = locator(frame, None).transformed(ax.figure.transFigure).transformed(inverse)
        center = (box.p0 + box.p1) / 2
        (index,) = np.flatnonzero(np.isclose(CODES, center).all(1))
        np.testing.assert_allclose(
            frame.images[0].get_array(), images[index].reshape(4, 4), rtol=1e-6
        )
        boxes.append(box)
    for row, box in enumerate(boxes):
        for other in boxes[:row]:
            gap = abs((box.p0 - other.p0) / (box.p1 - box.p0)).max()
            assert gap > 1 - 1e-9  # a whole width or height apart


def test_thumbnails_need_the_data():
    with pytest.raises(ValueError, match="thumbnails need the images"):
        plot.latents(CODES, thumbnails=3)
    with pytest.raises(ValueError, match="an image for each of the 60 codes, got 5"):
        plot.latents(CODES, torch.rand(5, 16), thumbnails=3)


def test_labels_are_drawn_where_they_are_asked_for():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot.latents(CODES, labels=CODES[:, 0], ax=right) is figure
    assert figure.axes[:2] == [left, right] and len(figure.axes) == 3
    figure.canvas.draw()
