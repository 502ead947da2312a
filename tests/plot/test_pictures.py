"""All pictures: figures without a display that leave everything else as it was."""

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure

from tarspyro import models, plot
from tarspyro.distributions import default_prior

from .pictures import HISTORY, make_pair, pixels, tiles

PNG = b"\x89PNG\r\n\x1a\n"


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


@pytest.mark.parametrize("name", ["manifold", "reconstructions", "samples", "traversal"])
def test_images_that_are_no_squares_need_their_shape(name, held_out):
    pair = make_pair(image=60)
    data = held_out.x[:, :60]
    draw = FUNCTIONS[name]
    if name == "manifold":
        with pytest.raises(ValueError, match="image_shape is needed: 60 pixels .*give"):
            draw(pair, data)
    else:  # without it they are series
        figure = draw(pair, data)
        assert not figure.axes[0].images and len(figure.axes[0].lines[0].get_xdata()) == 60
    height, width = 6, 10
    sheet = pixels(draw(pair, data, image_shape=(height, width)))
    assert (sheet.shape[0] - 1) % (height + 1) == 0 and (sheet.shape[1] - 1) % (width + 1) == 0
    assert np.array_equal(pixels(draw(pair, data, image_shape=(1, height, width))), sheet)


@pytest.mark.parametrize(
    ("event", "image_shape", "shown"),
    [
        (49, None, (7, 7)),
        (560, None, (28, 20)),  # Frey Face
        ((4, 6), None, (4, 6)),
        ((1, 4, 6), None, (4, 6)),
        ((3, 4, 6), None, (4, 6, 3)),
        ((5, 6, 3), None, (5, 6, 3)),  # as Pillow and Matplotlib store them
        ((5, 6, 1), None, (5, 6)),
        (90, (5, 6, 3), (5, 6, 3)),
        (72, (3, 4, 6), (4, 6, 3)),
        (24, (1, 4, 6), (4, 6)),
        ((1, 4, 6), (6, 4), (6, 4)),
        (1, (1, 1), (1, 1)),
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
    expected = picture.reshape(shown)
    if len(shown) == 3 and shown not in (event, image_shape):  # channels first
        expected = picture.reshape(shown[2], *shown[:2]).permute(1, 2, 0)
    np.testing.assert_allclose(image, expected, rtol=1e-6)


@pytest.mark.parametrize("draw", [plot.samples, plot.traversal, plot.manifold])
def test_images_without_channels_are_refused(draw):
    model = models.VAE(
        default_prior(dist.Normal, 2),
        lambda z: dist.Normal(torch.zeros(len(z), 2, 5, 6), 1.0).to_event(3),
    )
    with pytest.raises(ValueError, match=r"1, 3 or 4 channels, .* got shape \(2, 5, 6\)"):
        draw(model)
    draw(model, image_shape=(10, 6))  # what the sentence says


def test_an_image_shape_that_does_not_fit(pair):
    with pytest.raises(ValueError, match="image_shape must be"):
        plot.samples(pair[0], num=4, image_shape=(7, 7))


def test_images_of_bytes_are_shown_on_their_own_scale():
    picture = torch.tensor([[0.0, 51.0], [102.0, 255.0]])
    model = models.VAE(
        default_prior(dist.Normal, 1),
        lambda z: dist.Normal(picture.expand(len(z), 2, 2), 1.0).to_event(2),
    )
    (image,) = tiles(plot.samples(model, num=1), 1, 1, 2, 2)
    np.testing.assert_allclose(image, picture / 255, rtol=1e-6)


def test_values_outside_of_the_grey_scale_are_clipped():
    model = models.VAE(
        default_prior(dist.Normal, 1),
        lambda z: dist.Normal((3 * z).expand(-1, 4), 1.0).to_event(1),
    )
    sheet = pixels(plot.samples(model, num=64, form="images"))
    assert sheet.min() == 0 and sheet.max() == 1
