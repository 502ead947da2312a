"""Sheets of samples and reconstructions hold the images that they say."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, guides, models, plot
from tarspyro.data import Split
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

from .pictures import pixels, tiles


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
