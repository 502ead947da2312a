"""Pictures of the latent space draw the codes that they say."""

import json
import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.infer import PairError
from tarspyro.nn import MLP

from .pictures import make_pair, tiles


def ticks(figure, axis):
    """The labels of the ticks of the first axes."""
    return [text.get_text() for text in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


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
    codes = seen[-1]  # the one before is a single code, whose shape is compared
    assert len(seen) == 2 and codes.shape == (25, 2) and (codes > 0).all()


def test_manifold_of_the_simplex_is_a_line():
    seen = []

    def likelihood(z):
        seen.append(z)
        return dist.Normal(z, 1.0).to_event(1)

    figure = plot.manifold(
        models.VAE(default_prior(dist.Dirichlet, 2), likelihood), num=4, image_shape=(1, 2)
    )
    torch.testing.assert_close(seen[-1].sum(1), torch.ones(4))
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
        ValueError, match=f"two dimensions, got one of {latent}: take traversal"
    ):
        plot.manifold(make_pair(latent=latent)[0])


def test_manifold_needs_a_prior():
    model = models.Autoencoder(Conditional(dist.Bernoulli, MLP(2, [8]), 64), 2)
    with pytest.raises(ValueError, match=r"Autoencoder has no prior that can be drawn from"):
        plot.manifold(model)


def test_traversal_changes_one_unit_a_row():
    seen = []

    def likelihood(z):
        seen.append(z)
        return dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(-1, 4)).to_event(1)

    model = models.VAE(default_prior(dist.Normal, 3), likelihood)
    figure = plot.traversal(model, [1.0, 2.0, 3.0], units=[2, 0], num=5)
    codes = seen[-1].reshape(2, 5, 3)
    quantiles = dist.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, 5))
    torch.testing.assert_close(codes[0, :, 2], quantiles, atol=0.1, rtol=0)
    torch.testing.assert_close(codes[1, :, 0], quantiles, atol=0.1, rtol=0)
    assert (codes[0, :, :2] == torch.tensor([1.0, 2.0])).all() and (
        codes[1, :, 1:] == torch.tensor([2.0, 3.0])
    ).all()
    assert len(tiles(figure, 2, 5, 2, 2)) == 10
    assert ticks(figure, "y") == ["z[2]", "z[0]"]


def test_traversal_of_many_units_starts_at_the_median():
    seen = []

    def likelihood(z):
        seen.append(z)
        return dist.Bernoulli(logits=z[:, :1].expand(-1, 4)).to_event(1)

    model = models.VAE(default_prior(dist.Gamma, 12), likelihood)
    assert len(tiles(plot.traversal(model, num=3), 10, 3, 2, 2)) == 30
    codes = seen[-1].reshape(10, 3, 12)
    assert (codes > 0).all()
    assert codes[0, 0, 5] == pytest.approx(np.log(2), abs=0.05)  # the median of Gamma(1, 1)


def watching(seen, latent=3, pixels=4):
    """A pair whose codes are what the data say, and a decoder that writes down what it gets."""

    def likelihood(z):
        seen.append(z)
        return dist.Bernoulli(
            logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], pixels)
        ).to_event(1)

    model = models.VAE(default_prior(dist.Normal, latent), likelihood)
    guide = guides.VAE(lambda x: dist.Normal(10 * x[..., :latent], 1.0).to_event(1))
    return model, guide


def test_interpolation_runs_straight_between_the_posterior_means():
    seen = []
    model, guide = watching(seen)
    a, b = torch.rand(2, 4), torch.rand(2, 4)
    figure = plot.interpolation(model, guide, a, b, num=5)
    codes = seen[-1].reshape(2, 5, 3)
    for row in range(2):
        for step in range(5):
            expected = 10 * (a[row, :3] + (b[row, :3] - a[row, :3]) * step / 4)
            torch.testing.assert_close(codes[row, step], expected)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    assert sheet.shape == (2 * 3 + 1, 7 * 3 + 1)  # the data at both ends
    np.testing.assert_allclose(sheet[1:3, 1:3], a[0].reshape(2, 2), rtol=1e-6)
    np.testing.assert_allclose(sheet[4:6, -3:-1], b[1].reshape(2, 2), rtol=1e-6)
    np.testing.assert_allclose(sheet[1, 4], torch.sigmoid(codes[0, 0].sum()), rtol=1e-5)


def test_interpolation_is_between_as_many_data_points():
    model, guide = watching([])
    with pytest.raises(
        ValueError,
        match=r"a and b must have the same shape \(N, \*x\), got \[\(2, 4\), \(1, 4\)\]",
    ):
        plot.interpolation(model, guide, torch.rand(2, 4), torch.rand(1, 4))
    with pytest.raises(ValueError, match="num must be at least 2, got 1"):
        plot.interpolation(model, guide, torch.rand(2, 4), torch.rand(2, 4), num=1)


def test_traversal_begins_with_the_most_active_units():
    seen = []
    model, _ = watching(seen)
    codes = torch.tensor([0.1, 3.0, 1.0]) * torch.randn(200, 3)
    figure = plot.traversal(model, codes=codes, num=3)
    assert ticks(figure, "y") == ["z[1]", "z[2]", "z[0]"]
    rows = seen[-1].reshape(3, 3, 3)
    assert (rows.std(1).argmax(1) == torch.tensor([1, 2, 0])).all()
    chosen = plot.traversal(model, codes=codes, units=[0], num=3)
    assert ticks(chosen, "y") == ["z[0]"]
    with pytest.raises(ValueError, match="codes must have 3 units as 'z' has, got 2"):
        plot.traversal(model, codes=codes[:, :2])


def hierarchy(x=None, *, batch_size=1):
    with pyro.plate("data", batch_size if x is None else len(x)):
        top = pyro.sample("z_2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        z = pyro.sample(
            "z_1", dist.Normal(5.0 + top.expand(*top.shape[:-1], 2), 0.1).to_event(1)
        )
        pyro.sample("label", dist.Bernoulli(logits=z[..., 0]))
        return pyro.sample(
            "image",
            dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(-1, 4)).to_event(1),
            obs=x,
        )


def test_traversal_of_a_hierarchy():
    figure = plot.traversal(hierarchy, latent="z_1", site="image", num=3)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    # z_1 has the mean 5 and the variance 1.01 under the model, and the other unit stays at its
    # median
    quantiles = 5 + math.sqrt(1.01) * dist.Normal(0.0, 1.0).icdf(
        torch.tensor([0.02, 0.5, 0.98])
    )
    expected = torch.sigmoid(5 + quantiles)
    for row in range(2):
        np.testing.assert_allclose(sheet[1 + 3 * row, 1::3], expected, atol=2e-4)
    assert ticks(figure, "y") == ["z_1[0]", "z_1[1]"]
    other = plot.traversal(hierarchy, latent="z_2", site="image", num=3)
    assert ticks(other, "y") == ["z_2[0]"]


def values(figure, axis):
    """The numbers at an axis, and the numbers of the images of 2 x 2 pixels that have them."""
    places = getattr(figure.axes[0], f"get_{axis}ticks")()
    texts = [text.replace("−", "-") for text in ticks(figure, axis)]
    return [float(text) for text in texts], [(place - 1.5) / 3 for place in places]


def test_values_stand_at_the_images_of_a_manifold():
    likelihood = watching([], latent=2)[0].likelihood
    model = models.VAE(default_prior(dist.Normal, 2), likelihood)
    figure = plot.manifold(model, num=5, extent=4.0)
    assert values(figure, "x") == ([-4, -2, 0, 2, 4], [0, 1, 2, 3, 4])
    assert values(figure, "y") == ([4, 2, 0, -2, -4], [0, 1, 2, 3, 4])
    figure = plot.manifold(model, num=20)
    assert len(ticks(figure, "x")) == 5  # not one for each of many images


def test_values_stand_below_the_images_of_a_traversal():
    figure = plot.traversal(watching([])[0], num=5)
    found, places = values(figure, "x")
    np.testing.assert_allclose(found, [-2.05, 0.0, 2.05], atol=0.1)
    assert places == [0, 2, 4]
    assert figure.axes[0].get_xlabel() == "value of the unit"


def test_units_of_other_ranges_have_ranges_of_their_own():
    def model(batch_size=1):
        with pyro.plate("data", batch_size):
            scale = torch.tensor([1.0, 100.0])
            z = pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))
            logits = z.sum(-1, keepdim=True).expand(-1, 4)
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1))

    figure = plot.traversal(model, num=5)
    assert ticks(figure, "x") == ["2 %", "26 %", "50 %", "74 %", "98 %"]
    assert figure.axes[0].get_xlabel() == "quantile of the prior"
    assert ticks(figure, "y")[0].startswith("z[0]: −2")
    assert ticks(figure, "y")[1].startswith("z[1]: −2") and "e+02" in ticks(figure, "y")[1]


def named(words=None, *, batch_size=1):
    with pyro.plate("data", batch_size if words is None else len(words)):
        code = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = torch.cat([code, -code], -1)
        return pyro.sample("words", dist.Normal(mean, 0.1).to_event(1), obs=words)


def named_guide(words):
    with pyro.plate("data", len(words)):
        pyro.sample("code", dist.Normal(words[..., :2], 0.1).to_event(1))


def test_variables_of_any_names():
    names = {"latent": "code", "site": "words"}
    sheet = plot.manifold(named, num=3, extent=1.0, image_shape=(2, 2), **names)
    assert sheet.axes[0].get_xlabel() == "code[0]"
    page = plot.explore(named, named_guide, torch.rand(20, 4), **names).page
    content = json.loads(re.search(r'\{"shape".*\}', page)[0])
    assert content["codes"]["rows"] == 20
    with pytest.raises(ValueError, match="latent must be 'code' or 'words', got 'z'"):
        plot.manifold(named)


def test_a_model_that_cannot_generate_says_so():
    def model(x):
        return named(x)

    with pytest.raises(PairError, match="model cannot generate without data: give it"):
        plot.traversal(model, torch.zeros(2), latent="code", site="words")
