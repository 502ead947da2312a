"""Pictures of gaps and posteriors: they draw the numbers that they were given, and leave
everything as it was.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure

from tarspyro import Conditional, evaluate, guides, models, plot
from tarspyro.data import Split
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

GAPS = {
    "VAE": evaluate.Gaps(
        torch.tensor([-80.0, -90.0]),
        torch.tensor([-82.0, -93.0]),
        torch.tensor([-83.0, -96.0]),
    ),
    "IWAE": evaluate.Gaps(
        np.array([-81.0, -88.0]), np.array([-82.0, -89.0]), np.array([-85.0, -92.0])
    ),
}


def test_gaps_are_stacked_means_with_standard_errors():
    figure = plot.gaps(GAPS)
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(
        heights, [2.5, 1.0, 2.0, 3.0]
    )  # approximation of both, then amortization
    assert [bar.get_y() for bar in ax.patches] == [0.0, 0.0, 2.5, 1.0]
    (first, _) = ax.collections[0].get_segments()
    np.testing.assert_allclose(
        first[:, 1], [2.0, 3.0]
    )  # 2.5 with the standard error 0.5 of the gaps 2 and 3
    assert "nats per data point" in ax.get_ylabel()
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "VAE\nlog p(x) = -85.0",
        "IWAE\nlog p(x) = -84.5",
    ]


def test_gaps_are_drawn_where_they_are_asked_for():
    outer = Figure()
    ax = outer.add_subplot()
    assert plot.gaps(GAPS, ax=ax) is outer
    with pytest.raises(ValueError, match="pairs must hold"):
        plot.gaps({})


def pair(latent):
    model = models.VAE(
        default_prior(dist.Normal, latent), Conditional(dist.Bernoulli, MLP(latent, [8]), 6)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(6, [8]), latent))


@pytest.fixture
def x():
    return (torch.arange(12).reshape(2, 6) % 3 == 0).float()


def test_posteriors_of_two_dimensions_have_contours(x):
    model, guide = pair(2)
    state = torch.get_rng_state()
    figure = plot.posteriors(
        model, guide, Split(x), num_samples=20, warmup=20, num_grid=15, names=["one", "two"]
    )
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert [ax.get_title() for ax in figure.axes] == ["one", "two"]
    for ax in figure.axes:
        assert len(ax.collections) == 3  # dots, and the contours of two densities
        assert ax.collections[0].get_offsets().shape == (20, 2)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("z[0]", "z[1]")
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == [
        "p(z | x)",
        "q(z | x)",
    ]


def test_posteriors_draw_the_draws_that_are_given_on_the_axes_that_are_asked_for(x):
    model, guide = pair(2)
    draws = {"z": torch.randn(2, 50, 2)}
    figure = plot.posteriors(model, guide, x.numpy(), draws=draws, units=(1, 0), num_grid=15)
    dots = figure.axes[1].collections[0].get_offsets()
    np.testing.assert_array_equal(dots, draws["z"][1].flip(-1))
    assert figure.axes[1].get_xlabel() == "z[1]"


def test_the_contours_hold_the_mass_that_they_say():
    """Of a Gaussian, those of one and two standard deviations; the guide here is the exact
    posterior.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.5])).to_event(1)
            )
            pyro.sample("x", dist.Normal(0.0 * z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 0.5])).to_event(1))

    draws = {"z": torch.tensor([[[5.0, 2.5], [-5.0, -2.5]]])}  # the corners of the grid
    figure = plot.posteriors(model, guide, torch.zeros(1, 2), draws=draws, num_grid=101)
    for contours in figure.axes[0].collections[1:]:
        extents = [path.vertices.max(0) for path in contours.get_paths()]
        np.testing.assert_allclose(
            extents, [[2.0, 1.0], [1.0, 0.5]], atol=10 / 100
        )  # within a cell of the grid


def test_posteriors_of_more_dimensions_are_draws(x):
    model, guide = pair(3)
    figure = plot.posteriors(model, guide, x, num_samples=5, warmup=5, units=(2, 0))
    assert all(len(ax.collections) == 2 for ax in figure.axes)
    assert figure.legends[0].get_texts()[1].get_text() == "draws of q(z | x)"
    with pytest.raises(ValueError, match="units must be two of the 3 dimensions of z"):
        plot.posteriors(model, guide, x, draws={"z": torch.zeros(2, 5, 3)}, units=(0, 3))
    with pytest.raises(ValueError, match="site must be one of"):
        plot.posteriors(model, guide, x, draws={"z": torch.zeros(2, 5, 3)}, site="w")


def test_posteriors_of_data_in_several_parts():
    """Those of a ConditionalVAE, and of a model with an argument that may be left out."""

    def model(x, mask=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            likelihood = dist.Normal(z, 0.1)
            if mask is not None:
                likelihood = likelihood.mask(mask.bool())
            pyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(x, mask=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.1).to_event(1))

    parts = {"x": torch.full((2, 2), 3.0), "mask": torch.zeros(2, 2)}
    options = {"num_samples": 50, "warmup": 20, "num_grid": 15}
    figure = plot.posteriors(model, guide, parts, **options)
    dots = np.concatenate([ax.collections[0].get_offsets() for ax in figure.axes])
    assert (
        np.abs(dots.mean(0)).max() < 1.5
    )  # nothing is known, so these are draws of the prior

    likelihood = Conditional(dist.Bernoulli, MLP([2, 3], [8]), 6)
    p = models.ConditionalVAE(default_prior(dist.Normal, 2), likelihood)
    q = guides.ConditionalVAE(Conditional(dist.Normal, MLP([6, 3], [8]), 2))
    figure = plot.posteriors(p, q, (torch.ones(2, 6), torch.eye(3)[:2]), **options)
    assert all(len(ax.collections) == 3 for ax in figure.axes)
