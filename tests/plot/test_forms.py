"""Points, tables and series are drawn in their own way; the shape says which."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from tarspyro import Autoregressive, Conditional, data, evaluate, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import MADE, MLP


def copying(size, scale=0.1):
    """An autoencoder that gives back the data, as far as it is a vector."""
    model = models.Autoencoder(lambda z: dist.Normal(z, scale).to_event(1), size)
    return model, guides.Autoencoder(lambda x: dist.Delta(x, event_dim=1))


def generating(*shape, scale=1.0):
    """A model of values 3 z[0] and 5 z[1] in turn."""
    size = int(np.prod(shape))

    def likelihood(z):
        means = torch.stack([3 * z[..., 0], 5 * z[..., 1]], -1).repeat(1, -(-size // 2))
        return dist.Normal(means[:, :size].reshape(-1, *shape), scale).to_event(len(shape))

    return models.VAE(default_prior(dist.Normal, 2), likelihood)


def texts(labels):
    return [label.get_text() for label in labels]


@pytest.mark.parametrize(
    ("shape", "options", "kind"),
    [
        ((2,), {}, "points"),
        ((2,), {"form": "table"}, "table"),
        ((1,), {}, "table"),
        ((), {}, "table"),
        ((3,), {}, "table"),
        ((4,), {}, "table"),  # a square, but with values outside of [0, 1]
        ((4,), {"form": "images"}, "images"),
        ((4,), {"image_shape": (2, 2)}, "images"),
        ((49,), {}, "images"),
        ((49,), {"names": [str(i) for i in range(49)]}, "table"),
        ((31,), {}, "series"),
        ((20, 2), {}, "series"),
        ((20, 2), {"form": "images"}, "images"),
        ((4, 4), {}, "images"),
        ((20, 20), {}, "images"),
        ((1, 20, 2), {}, "images"),
    ],
)
def test_the_form_follows_the_shape(shape, options, kind):
    figure = plot.samples(generating(*shape), num=9, **options)
    ax = figure.axes[0]
    found = {
        "images": len(ax.images) == 1,
        "points": len(ax.collections) == 1,
        "table": bool(ax.patches),
        "series": len(ax.lines) == 9,
    }
    assert [name for name in found if found[name]] == [kind]


def test_samples_of_points_are_draws_in_front_of_the_data():
    model = generating(2)
    x = torch.randn(50, 2)
    figure = plot.samples(model, data=x)
    grey, dots = figure.axes[0].collections
    np.testing.assert_allclose(grey.get_offsets(), x, rtol=1e-6)
    expected = evaluate.sample(model, 1000, seed=0)
    np.testing.assert_allclose(dots.get_offsets(), expected, rtol=1e-6)
    assert texts(figure.axes[0].get_legend().get_texts()) == ["data", "samples"]
    means = plot.samples(model, num=7, mean=True).axes[0]
    expected = evaluate.sample(model, 7, mean=True, seed=0)
    np.testing.assert_allclose(means.collections[0].get_offsets(), expected, rtol=1e-6)
    assert means.get_title() == "samples (means of the likelihood)"


def test_an_autoregressive_likelihood_has_draws_and_no_means():
    likelihood = Autoregressive(dist.Bernoulli, MADE((1, 4, 4), [8]), (1, 4, 4))
    figure = plot.samples(models.Density(likelihood), num=4)
    assert figure.axes[0].get_title() == "samples"


def test_samples_of_a_table_are_histograms_with_names():
    figure = plot.samples(generating(3), num=500, names=["age", "height", "age again"])
    assert texts(ax.title for ax in figure.axes) == ["age", "height", "age again"]
    drawn = evaluate.sample(generating(3), 500, seed=0)
    for ax, column in zip(figure.axes, drawn.T, strict=True):
        (outline,) = ax.patches
        heights, edges = np.histogram(column, bins=24, density=True)
        outer = outline.get_path().vertices
        assert outer[:, 0].min() == pytest.approx(edges[0], rel=1e-5)
        assert outer[:, 1].max() == pytest.approx(heights.max(), rel=1e-5)


def test_a_table_brings_its_names_and_gaps():
    table = data.read_table("age,smokes\n30.5,yes\n,no\n41.5,no\n20.5,no")
    figure = plot.samples(generating(2), data=table, num=50)
    assert texts(ax.title for ax in figure.axes[:2]) == ["age", "smokes"]
    assert texts(figure.legends[0].get_texts()) == ["data", "samples"]


def test_few_values_are_shares():
    model = models.VAE(
        default_prior(dist.Normal, 2),
        lambda z: (
            dist.Bernoulli(torch.tensor([0.25, 1.0, 0.0])).expand_by(z.shape[:1]).to_event(1)
        ),
    )
    x = torch.tensor([[0.0, 1.0, 0.0]]).repeat(4, 1)
    first, second, third = plot.samples(model, data=x, num=400).axes[:3]
    assert [bar.get_height() for bar in first.patches] == [1.0, 0.0]
    assert texts(first.get_xticklabels()) == ["0", "1"]
    ones = evaluate.sample(model, 400, mean=False, seed=0)[:, 0].mean().item()
    np.testing.assert_allclose(first.lines[0].get_ydata(), [1 - ones, ones], rtol=1e-5)
    assert texts(second.get_xticklabels()) == ["1"] and texts(third.get_xticklabels()) == ["0"]


def test_samples_of_series_are_lines_for_each_channel():
    model = generating(20, 2)
    figure = plot.samples(model, num=3)
    drawn = evaluate.sample(model, 3, mean=False, seed=0)
    for channel, ax in enumerate(figure.axes):
        for line, series in zip(ax.lines, drawn, strict=True):
            np.testing.assert_allclose(line.get_ydata(), series[:, channel], rtol=1e-6)
    assert figure.axes[-1].get_xlabel() == "step"


def test_data_is_no_background_of_images():
    with pytest.raises(ValueError, match="data is drawn behind points and tables, got images"):
        plot.samples(generating(49), data=torch.zeros(3, 49))


@pytest.mark.parametrize(
    ("form", "shape"), [("points", (3,)), ("table", (8, 3)), ("series", (2, 8, 3))]
)
def test_a_form_needs_its_shape(form, shape):
    with pytest.raises(ValueError, match=rf"form='{form}' needs data points of shape"):
        plot.samples(generating(*shape), num=3, form=form)


def test_names_are_one_for_each_column():
    with pytest.raises(ValueError, match="names must be one for each of the 3 columns"):
        plot.samples(generating(3), num=3, names=["age"])
    with pytest.raises(ValueError, match="form must be one of 'images', .* got 'lines'"):
        plot.samples(generating(3), num=3, form="lines")


def test_points_are_joined_to_their_reconstructions():
    x = torch.randn(9, 2)
    figure = plot.reconstructions(*copying(2), x, num=5)
    joined, grey, dots = figure.axes[0].collections
    np.testing.assert_allclose(grey.get_offsets(), x[:5], rtol=1e-6)
    np.testing.assert_allclose(dots.get_offsets(), x[:5], rtol=1e-6)
    np.testing.assert_allclose(joined.get_segments()[3], torch.stack([x[3], x[3]]), rtol=1e-6)


def test_columns_of_a_table_against_their_reconstructions():
    x = torch.randn(40, 7)
    figure = plot.reconstructions(*copying(7), x, names=list("abcdefg"))
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert texts(ax.title for ax in shown) == list("abcdefg")
    for column, ax in enumerate(shown):
        expected = torch.stack([x[:, column]] * 2, 1)
        np.testing.assert_allclose(ax.collections[0].get_offsets(), expected, rtol=1e-6)


def test_series_beneath_their_reconstructions():
    x = torch.randn(9, 40)
    figure = plot.reconstructions(*copying(40), x)
    assert len(figure.axes) == 4
    for series, ax in zip(x, figure.axes, strict=False):
        for line in ax.lines:
            np.testing.assert_allclose(line.get_ydata(), series, rtol=1e-6)


def test_padding_is_not_drawn():
    def likelihood(z):
        return dist.Normal(z[..., :1].unsqueeze(-1).expand(-1, 5, 3), 1.0).to_event(2)

    def model(x=None, lengths=None, batch_size=1):
        return models.VAE(default_prior(dist.Normal, 2), likelihood)(x, batch_size=batch_size)

    def guide(x, lengths=None):
        encoder = guides.VAE(lambda x: dist.Normal(x[:, 0, :2], 1.0).to_event(1))
        return encoder(x)

    sequences = data.Sequences.padded([torch.ones(3, 3), torch.ones(5, 3)])
    figure = plot.reconstructions(model, guide, sequences)
    assert len(figure.axes) == 6  # two series of three channels
    assert {len(line.get_ydata()) for ax in figure.axes[:3] for line in ax.lines} == {3}
    assert {len(line.get_ydata()) for ax in figure.axes[3:] for line in ax.lines} == {5}


def quantiles(num):
    return dist.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, num))


def test_traversal_of_points_is_a_path_for_each_unit():
    ax = plot.traversal(generating(2), num=5).axes[0]
    paths = {line.get_label(): line for line in ax.lines if len(line.get_xdata()) == 5}
    assert list(paths) == ["z[0]", "z[1]"]
    np.testing.assert_allclose(paths["z[0]"].get_xdata(), 3 * quantiles(5), atol=0.3)
    np.testing.assert_allclose(paths["z[1]"].get_ydata(), 5 * quantiles(5), atol=0.5)
    np.testing.assert_allclose(paths["z[1]"].get_xdata(), 0.0, atol=0.15)  # stays


def test_traversal_of_a_table_is_lines_over_its_columns():
    figure = plot.traversal(generating(4), units=[1, 0], num=5, names=list("abcd"))
    first, second, bar = figure.axes
    assert [first.get_ylabel(), second.get_ylabel()] == ["z[1]", "z[0]"]
    assert texts(second.get_xticklabels()) == list("abcd")
    assert len(first.lines) == 5 and bar.get_ylim() == (2, 98)
    np.testing.assert_allclose(
        [line.get_ydata()[1] for line in first.lines], 5 * quantiles(5), atol=0.5
    )
    np.testing.assert_allclose(
        [line.get_ydata()[2] for line in second.lines], 3 * quantiles(5), atol=0.3
    )
    colors = [tuple(line.get_color()) for line in first.lines]
    assert (
        colors == [tuple(line.get_color()) for line in second.lines] and len(set(colors)) == 5
    )


def test_traversal_of_single_numbers_is_that_of_a_table_with_one_column():
    figure = plot.traversal(generating(), units=[0], num=5)
    panel = figure.axes[0]
    assert len(panel.lines) == 5
    heights = [line.get_ydata()[0] for line in panel.lines]
    np.testing.assert_allclose(heights, 3 * quantiles(5), atol=0.3)


def test_traversal_of_series_has_a_panel_for_each_channel():
    figure = plot.traversal(generating(20, 2), num=3)
    assert len(figure.axes) == 2 * 2 + 1
    assert all(len(line.get_xdata()) == 20 for ax in figure.axes[:4] for line in ax.lines)


def test_manifold_of_points_is_a_mesh():
    ax = plot.manifold(generating(2), num=4, extent=1.0).axes[0]
    assert len(ax.lines) == 8
    along_second, along_first = ax.lines[0], ax.lines[4]
    np.testing.assert_allclose(along_second.get_xdata(), -3.0, rtol=1e-6)
    np.testing.assert_allclose(along_first.get_ydata(), 5.0, rtol=1e-6)
    assert texts(ax.get_legend().get_texts()) == ["along z[1]", "along z[0]"]


@pytest.mark.parametrize("shape", [(2,), (3,), (20, 2)])
def test_every_form_is_drawn_into_the_axes_that_are_given(shape):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot.samples(generating(*shape), num=5, ax=right) is figure
    assert not left.has_data() and not left.child_axes
    assert right.has_data() or all(panel.has_data() for panel in right.child_axes)
    assert right.get_title().startswith("samples")
    plot.traversal(generating(*shape), num=3, ax=left)
    assert left.has_data() or all(panel.has_data() for panel in left.child_axes)
    figure.canvas.draw()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pairs_of_another_precision_take_arrays(dtype):
    likelihood = Conditional(dist.Normal, MLP(2, [8]), 5)
    p = models.VAE(default_prior(dist.Normal, 2), likelihood).to(dtype)
    q = guides.VAE(Conditional(dist.Normal, MLP(5, [8]), 2)).to(dtype)
    x = np.random.default_rng(0).normal(size=(30, 5))
    expected = np.float32 if dtype == torch.bfloat16 else np.float64
    found = (
        evaluate.embed(q, x),
        evaluate.reconstruct(p, q, x),
        evaluate.log_likelihood(p, q, x, num_particles=3),
        q.posterior.mean(x),
    )
    assert [values.dtype for values in found] == [expected] * 4
    for figure in (plot.reconstructions(p, q, x), plot.samples(p), plot.traversal(p)):
        assert figure.axes
    assert plot.manifold(p, num=3, image_shape=(1, 5)).axes


def test_classes_have_a_most_probable_value_in_place_of_a_mean():
    network = nn.Linear(2, 12)

    def likelihood(z):
        return dist.Categorical(logits=network(z).unflatten(-1, (4, 3))).to_event(1)

    tokens = torch.randint(3, (20, 4))
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    encoder = nn.Sequential(nn.Embedding(3, 5), nn.Flatten(-2))
    q = guides.VAE(Conditional(dist.Normal, encoder, 2))
    codes = torch.randn(6, 2)
    expected = network(codes).unflatten(-1, (4, 3)).argmax(-1)
    assert torch.equal(evaluate.decode(p, codes), expected)
    means = evaluate.sample(p, 6, mean=True)
    for found in (means, evaluate.reconstruct(p, q, tokens)):
        assert found.dtype == torch.int64 and found.min() >= 0 and found.max() <= 2
    assert plot.reconstructions(p, q, tokens).axes  # tokens reach the embedding as they are
