"""Pictures: figures without a display that draw what they say and leave everything else as it
was.
"""

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure
from torch import nn

from tarspyro import Conditional, Deterministic, guides, models, plot
from tarspyro.data import Split, digits
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tarspyro.runs import History

PNG = b"\x89PNG\r\n\x1a\n"


def make_pair(family=dist.Normal, latent=2, image=64):
    """With layers that behave differently in training and evaluation."""
    options = {"normalization": nn.BatchNorm1d, "dropout": 0.5}
    model = models.VAE(
        default_prior(family, latent),
        Conditional(dist.Bernoulli, MLP(latent, [8], **options), image),
    )
    return model, guides.VAE(Conditional(family, MLP(image, [8], **options), latent))


@pytest.fixture
def pair():
    return make_pair()


@pytest.fixture(scope="module")
def held_out():
    return digits().test[:60]


HISTORY = History(
    rows=[
        {
            "epoch": epoch,
            "loss": 30.0 - epoch,
            "elbo": epoch - 30.0,
            "validation_elbo": epoch - 31.0,
        }
        for epoch in (1, 2)
    ],
    best_epoch=2,
)
FUNCTIONS = {
    "latents": lambda pair, data, **options: plot.latents(pair[1], data, **options),
    "manifold": lambda pair, data, **options: plot.manifold(pair[0], num=3, **options),
    "reconstructions": lambda pair, data, **options: plot.reconstructions(
        *pair, data, **options
    ),
    "samples": lambda pair, data, **options: plot.samples(pair[0], num=9, **options),
    "traversal": lambda pair, data, **options: plot.traversal(pair[0], num=4, **options),
    "interpolation": lambda pair, data, **options: plot.interpolation(
        *pair, data[:2], data[2:4], num=4, **options
    ),
    "curves": lambda pair, data, **options: plot.curves(HISTORY, **options),
}
every_function = pytest.mark.parametrize("draw", FUNCTIONS.values(), ids=FUNCTIONS)


def pixels(figure):
    """The image that the first axes show."""
    return np.asarray(figure.axes[0].images[0].get_array())


def tiles(figure, rows, columns, height=8, width=8):
    """The images of a sheet, without the lines between them."""
    sheet = pixels(figure)
    assert sheet.shape[:2] == (rows * (height + 1) + 1, columns * (width + 1) + 1)
    tops, lefts = (
        (1 + (height + 1) * i for i in range(rows)),
        [1 + (width + 1) * j for j in range(columns)],
    )
    return [sheet[top : top + height, left : left + width] for top in tops for left in lefts]


def points(figure):
    """The coordinates of all points of the first axes, in the order of the data if there are
    no labels.
    """
    return np.concatenate(
        [collection.get_offsets() for collection in figure.axes[0].collections]
    )


# --- what all of them promise


@every_function
def test_returns_a_figure_that_shows_itself(draw, pair, held_out):
    figure = draw(pair, held_out)
    assert isinstance(figure, Figure) and len(figure.axes) == 1
    ax = figure.axes[0]
    assert ax.images or ax.collections or ax.lines
    picture = figure._repr_png_()
    assert picture.startswith(PNG) and len(picture) > 2000


@every_function
def test_draws_into_the_axes_that_are_given(draw, pair, held_out):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert draw(pair, held_out, ax=right) is figure
    assert figure.axes == [left, right]
    assert not left.has_data() and right.has_data()
    # a part of a figure too
    figure = Figure()
    ax = figure.subfigures(1, 2)[1].subplots()
    assert draw(pair, held_out, ax=ax) is figure and ax.has_data()


@every_function
def test_leaves_pyplot_and_its_settings_alone(draw, pair, held_out):
    settings = dict(matplotlib.rcParams)
    draw(pair, held_out)._repr_png_()
    assert not _pylab_helpers.Gcf.figs
    assert dict(matplotlib.rcParams) == settings


@every_function
def test_leaves_the_pair_and_the_random_state_alone(draw, pair, held_out):
    model, guide = pair
    model.train()
    guide.eval()
    guide.posterior.trunk.layers[1].train()
    modes = [module.training for half in pair for module in half.modules()]
    state = {
        name: tensor.clone() for half in pair for name, tensor in half.state_dict().items()
    }
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    draw(pair, held_out)
    assert [module.training for half in pair for module in half.modules()] == modes
    for half in pair:
        for name, tensor in half.state_dict().items():
            assert torch.equal(tensor, state[name]), (
                name
            )  # the running means of batch normalization too
        assert all(parameter.grad is None for parameter in half.parameters())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert not pyro.get_param_store().keys()


@every_function
def test_the_same_picture_again(draw, pair, held_out):
    first = draw(pair, held_out)._repr_png_()
    torch.rand(3)
    assert draw(pair, held_out)._repr_png_() == first


@pytest.mark.parametrize(
    "draw",
    [FUNCTIONS[name] for name in ("manifold", "reconstructions", "samples", "traversal")],
)
def test_image_shape_is_needed_where_no_square_fits(draw, held_out):
    pair = make_pair(image=60)
    data = held_out.x[:, :60]
    with pytest.raises(ValueError, match="image_shape is needed: 60 pixels .*give"):
        draw(pair, data)
    height, width = 6, 10
    sheet = pixels(draw(pair, data, image_shape=(height, width)))
    assert (sheet.shape[0] - 1) % (height + 1) == 0 and (sheet.shape[1] - 1) % (width + 1) == 0
    assert np.array_equal(pixels(draw(pair, data, image_shape=(1, height, width))), sheet)


# --- latents


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
    with pytest.raises(ValueError, match="method must be 'pca' or 'tsne', got 'umap'"):
        plot.latents(np.zeros((3, 2)), method="umap")


# --- manifold


def test_manifold_runs_through_equally_likely_steps():
    model = models.VAE(
        default_prior(dist.Normal, 2),
        lambda z: dist.Normal(dist.Normal(0, 1).cdf(z), 1.0).to_event(1),
    )
    sheet = tiles(plot.manifold(model, num=4, image_shape=(1, 2)), 4, 4, 1, 2)
    levels = [1 / 8, 3 / 8, 5 / 8, 7 / 8]
    # z[0] grows to the right, z[1] upwards
    expected = [[[first, second]] for second in levels[::-1] for first in levels]
    np.testing.assert_allclose(sheet, expected, atol=0.02)


def test_manifold_of_equal_steps():
    model = models.VAE(
        default_prior(dist.Normal, 2), lambda z: dist.Normal(z / 8 + 0.5, 1.0).to_event(1)
    )
    sheet = tiles(plot.manifold(model, num=3, extent=4.0, image_shape=(1, 2)), 3, 3, 1, 2)
    expected = [[[first, second]] for second in (1.0, 0.5, 0.0) for first in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(sheet, expected, atol=1e-6)


@pytest.mark.parametrize(
    "family", [dist.Normal, dist.Gamma, dist.Beta, dist.MultivariateNormal, dist.LogNormal]
)
def test_manifold_of_a_family(family):
    figure = plot.manifold(make_pair(family)[0], num=3)
    assert figure.axes[0].get_title() == "decoder manifold"
    assert np.ptp(np.stack(tiles(figure, 3, 3)), axis=0).max() > 0


def test_manifold_of_positive_codes_stays_in_their_support():
    seen = []

    def likelihood(z):
        seen.append(z)
        return dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(-1, 4)).to_event(1)

    plot.manifold(models.VAE(default_prior(dist.Gamma, 2), likelihood), num=5)
    assert len(seen) == 1 and seen[0].shape == (25, 2) and (seen[0] > 0).all()


def test_manifold_of_the_simplex_is_a_line():
    seen = []

    def likelihood(z):
        seen.append(z)
        return dist.Normal(z, 1.0).to_event(1)

    figure = plot.manifold(
        models.VAE(default_prior(dist.Dirichlet, 2), likelihood), num=4, image_shape=(1, 2)
    )
    torch.testing.assert_close(seen[0].sum(1), torch.ones(4))
    assert figure.axes[0].get_title() == "decoder along the simplex"
    # Dir(1, 1) is uniform on the line
    np.testing.assert_allclose(
        np.stack(tiles(figure, 1, 4, 1, 2))[:, 0, 0], [1 / 8, 3 / 8, 5 / 8, 7 / 8], atol=0.02
    )


def test_manifold_of_an_event_of_another_shape():
    model = models.VAE(
        default_prior(dist.Normal, (1, 2)),
        lambda z: dist.Normal(z.flatten(1), 1.0).to_event(1),
    )
    assert len(tiles(plot.manifold(model, num=3, image_shape=(1, 2)), 3, 3, 1, 2)) == 9


def test_manifold_of_a_function():
    def model(batch_size=1):
        with pyro.plate("data", batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample(
                "x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(-1, 4)).to_event(1)
            )

    first, *_, last = tiles(plot.manifold(model, num=3), 3, 3, 2, 2)
    np.testing.assert_allclose(first + last, 1.0, atol=0.03)  # (-z, z) and (z, -z)
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("latent", [1, 3])
def test_manifold_needs_two_dimensions(latent):
    with pytest.raises(
        ValueError, match=f"two dimensions, this one has {latent}: see traversal"
    ):
        plot.manifold(make_pair(latent=latent)[0])


def test_manifold_needs_a_prior():
    model = models.Autoencoder(Conditional(dist.Bernoulli, MLP(2, [8]), 64), 2)
    with pytest.raises(ValueError, match=r"Autoencoder has no prior that can be drawn from"):
        plot.manifold(model)


# --- reconstructions


@pytest.mark.parametrize("form", ["split", "tensor", "array", "double", "bytes"])
def test_reconstructions_stand_below_the_data(form, pair, held_out):
    x = held_out.x.round()
    data = {
        "split": Split(x, held_out.y),
        "tensor": x,
        "array": x.numpy(),
        "double": x.numpy().astype(np.float64),
        "bytes": x.numpy().astype(np.uint8),
    }[form]
    figure = plot.reconstructions(*pair, data, num=5)
    sheet = tiles(figure, 2, 5)
    np.testing.assert_array_equal(sheet[:5], x[:5].reshape(5, 8, 8))
    reconstructed = np.stack(sheet[5:])
    assert ((0 < reconstructed) & (reconstructed < 1)).all()  # means, not draws
    np.testing.assert_array_equal(
        reconstructed, np.stack(tiles(plot.reconstructions(*pair, x, num=5), 2, 5)[5:])
    )


def test_reconstructions_of_a_guide_that_knows():
    """An autoencoder that copies gives back the data."""
    model = models.Autoencoder(lambda z: dist.Normal(z, 1.0).to_event(1), 4)
    guide = guides.Autoencoder(lambda x: dist.Delta(x, event_dim=1))
    x = torch.rand(3, 4)
    sheet = tiles(
        plot.reconstructions(model, guide, x), 2, 3, 2, 2
    )  # fewer data points than columns
    np.testing.assert_allclose(sheet[:3], sheet[3:])


# --- samples


def test_samples_are_means_or_draws(pair):
    means = np.stack(tiles(plot.samples(pair[0], num=9), 3, 3))
    assert ((0 < means) & (means < 1)).all() and len(np.unique(means)) > 100
    draws = np.stack(tiles(plot.samples(pair[0], num=9, mean=False), 3, 3))
    assert set(np.unique(draws)) == {0.0, 1.0}


def test_samples_by_seed(pair):
    first, again, other = (
        pixels(plot.samples(pair[0], num=9, seed=seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_samples_that_fill_no_square(pair):
    """The places that are left over are white."""
    sheet = tiles(plot.samples(pair[0], num=7), 3, 3)
    assert (np.stack(sheet[7:]) == 1).all() and not (np.stack(sheet[:7]) == 1).any()


def test_samples_in_rows(pair):
    in_rows = tiles(plot.samples(pair[0], num=6, columns=2), 3, 2)
    square = tiles(plot.samples(pair[0], num=6), 2, 3)
    assert np.array_equal(np.stack(in_rows), np.stack(square))


def test_samples_and_reconstructions_of_a_site(held_out):
    likelihoods = [Conditional(dist.Bernoulli, MLP(2, [8]), size) for size in (64, 10)]
    p = models.JMVAE(default_prior(dist.Normal, 2), likelihoods)
    q = guides.JMVAE(Conditional(dist.Normal, MLP([64, 10], [8]), 2))
    assert len(tiles(plot.samples(p, num=4, site="x_1"), 2, 2)) == 4
    data = held_out.x[:3], torch.zeros(3, 10)
    above = tiles(plot.reconstructions(p, q, data, num=3, site="x_1"), 2, 3)[:3]
    assert np.allclose(np.stack(above).reshape(3, 64), data[0])


@pytest.mark.parametrize(
    ("event", "image_shape", "shown"),
    [
        (49, None, (7, 7)),
        (560, None, (28, 20)),  # Frey Face
        ((4, 6), None, (4, 6)),
        ((1, 4, 6), None, (4, 6)),
        ((3, 4, 6), None, (4, 6, 3)),
        (72, (3, 4, 6), (4, 6, 3)),
        (24, (1, 4, 6), (4, 6)),
        ((1, 4, 6), (6, 4), (6, 4)),
        (1, None, (1, 1)),
    ],
)
def test_shapes_of_images(event, image_shape, shown):
    size = int(np.prod(event))
    picture = (torch.arange(size) / size).reshape(
        (event,) if isinstance(event, int) else event
    )
    model = models.VAE(
        default_prior(dist.Normal, 2),
        lambda z: dist.Normal(picture.expand(len(z), *picture.shape), 1.0).to_event(
            picture.dim()
        ),
    )
    (image,) = tiles(plot.samples(model, num=1, image_shape=image_shape), 1, 1, *shown[:2])
    expected = picture.reshape(shown if len(shown) == 2 else (shown[2], *shown[:2]))
    np.testing.assert_allclose(
        image, expected if len(shown) == 2 else expected.permute(1, 2, 0), rtol=1e-6
    )


def test_an_image_shape_that_does_not_fit(pair):
    with pytest.raises(ValueError, match="image_shape must be"):
        plot.samples(pair[0], num=4, image_shape=(7, 7))


def test_values_outside_of_the_grey_scale_are_clipped():
    model = models.VAE(
        default_prior(dist.Normal, 1),
        lambda z: dist.Normal((3 * z).expand(-1, 4), 1.0).to_event(1),
    )
    sheet = pixels(plot.samples(model, num=64))
    assert sheet.min() == 0 and sheet.max() == 1


# --- traversal


def test_traversal_changes_one_unit_a_row():
    seen = []

    def likelihood(z):
        seen.append(z)
        return dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(-1, 4)).to_event(1)

    model = models.VAE(default_prior(dist.Normal, 3), likelihood)
    figure = plot.traversal(model, [1.0, 2.0, 3.0], units=[2, 0], num=5)
    codes = seen[0].reshape(2, 5, 3)
    quantiles = dist.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, 5))
    torch.testing.assert_close(codes[0, :, 2], quantiles, atol=0.1, rtol=0)
    torch.testing.assert_close(codes[1, :, 0], quantiles, atol=0.1, rtol=0)
    assert (codes[0, :, :2] == torch.tensor([1.0, 2.0])).all() and (
        codes[1, :, 1:] == torch.tensor([2.0, 3.0])
    ).all()
    assert len(tiles(figure, 2, 5, 2, 2)) == 10
    assert figure.axes[0].get_ylabel() == "units 2, 0"


def test_traversal_of_many_units_starts_at_the_median():
    seen = []

    def likelihood(z):
        seen.append(z)
        return dist.Bernoulli(logits=z[:, :1].expand(-1, 4)).to_event(1)

    model = models.VAE(default_prior(dist.Gamma, 12), likelihood)
    assert len(tiles(plot.traversal(model, num=3), 10, 3, 2, 2)) == 30
    codes = seen[0].reshape(10, 3, 12)
    assert (codes > 0).all()
    assert codes[0, 0, 5] == pytest.approx(np.log(2), abs=0.05)  # the median of Gamma(1, 1)


# --- curves


def test_curves_of_training_and_held_out_data():
    ax = plot.curves(HISTORY).axes[0]
    lines = {line.get_label(): line for line in ax.lines}
    assert lines.keys() == {"training", "held out", "best epoch"}
    assert list(lines["training"].get_xdata()) == [1, 2] and list(
        lines["training"].get_ydata()
    ) == [-29.0, -28.0]
    assert list(lines["held out"].get_ydata()) == [-30.0, -29.0]
    assert list(lines["best epoch"].get_xdata()) == [2, 2]
    assert ax.get_ylabel() == "ELBO (nats per data point)" and ax.get_xlabel() == "epoch"


def test_curves_without_validation_and_of_another_bound():
    history = History(rows=[{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}])
    ax = plot.curves(history).axes[0]
    assert [line.get_label() for line in ax.lines] == ["training"]
    assert ax.get_ylabel() == "loss (nats per data point)"


def test_curves_by_name():
    history = History(rows=[{"epoch": 1, "loss": 2.0, "elbo": -2.0, "kl": 0.5}])
    assert list(
        plot.curves(history, names=["nothing", "kl"]).axes[0].lines[0].get_ydata()
    ) == [0.5]


def test_curves_of_what_was_measured_in_some_epochs():
    """A run may be resumed with held-out data that it did not have before."""
    history = History(
        rows=[{"epoch": 1, "elbo": -3.0}, {"epoch": 2, "elbo": -2.0, "validation_elbo": -4.0}]
    )
    training, held_out = plot.curves(history).axes[0].lines
    assert list(training.get_xdata()) == [1, 2]
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([2], [-4.0])


@pytest.mark.parametrize(
    ("history", "names"),
    [(History(), ("elbo", "loss")), (HISTORY, ("accuracy",))],
    ids=["empty", "names"],
)
def test_curves_of_nothing(history, names):
    with pytest.raises(
        ValueError,
        match=rf"names must hold something measured, got .* the history has {len(history)} epochs",
    ):
        plot.curves(history, names=names)
