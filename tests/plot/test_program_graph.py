"""The picture of a program's graph: sites, arrows and plates are those of the program."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch

from tarspyro import Conditional, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

RADIUS = 0.3


def nested(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3, dim=-2):
        b = pyro.sample("b", dist.Normal(w, 1.0))
        with pyro.plate("data", 5, dim=-1):
            z = pyro.sample("z", dist.Laplace(b, 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)


def patches(figure, kind):
    return [patch for patch in figure.axes[0].patches if isinstance(patch, kind)]


def places(figure):
    """The centres of the sites by their names: a circle's label stands in its middle."""
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    return {texts[tuple(circle.center)]: circle for circle in patches(figure, Ellipse)}


def edges(figure):
    """The pairs of sites that arrows lead from and to."""
    where = {tuple(circle.center): name for name, circle in places(figure).items()}
    arrows = patches(figure, FancyArrowPatch)
    return {tuple(where[tuple(end)] for end in arrow._posA_posB) for arrow in arrows}


def test_sites_arrows_and_plates_are_those_of_the_program():
    figure = plot.graph(nested, torch.zeros(3, 5))
    found = places(figure)
    assert found.keys() == {"$w$", "$b$", "$z$", "$x$"}
    assert edges(figure) == {("$w$", "$b$"), ("$b$", "$z$"), ("$z$", "$x$"), ("$w$", "$x$")}
    assert all(found[start].center[1] > found[end].center[1] for start, end in edges(figure))
    assert [
        name for name, circle in found.items() if circle.get_facecolor()[:3] != (1, 1, 1)
    ] == ["$x$"]
    families = [text.get_text() for text in figure.axes[0].texts]
    assert families.count("Normal") == 3 and families.count("Laplace") == 1
    data, groups = sorted(patches(figure, FancyBboxPatch), key=lambda box: box.get_width())
    inside = {
        box: {n for n, c in found.items() if box.get_bbox().contains(*c.center)}
        for box in (data, groups)
    }
    assert inside == {data: {"$z$", "$x$"}, groups: {"$b$", "$z$", "$x$"}}
    assert groups.get_bbox().contains(*data.get_bbox().min) and groups.get_bbox().contains(
        *data.get_bbox().max
    )


def test_no_two_sites_stand_in_one_place():
    likelihood = Conditional(dist.Bernoulli, MLP([2, 3], [4]), 6)
    label_prior = default_prior(dist.OneHotCategorical, 3)
    p = models.SemiSupervisedVAE(default_prior(dist.Normal, 2), label_prior, likelihood)
    x = torch.zeros(3, 6)
    figure = plot.graph(p, x, torch.eye(3), x)
    centers = [complex(*circle.center) for circle in patches(figure, Ellipse)]
    assert len(centers) == 6
    assert all(abs(a - b) > 2 * RADIUS for i, a in enumerate(centers) for b in centers[:i])
    assert r"$y_{\mathrm{unlabelled}}$" in places(figure)


def test_drawing_leaves_the_program_and_the_random_state_alone():
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4], dropout=0.5), 6)
    )
    before = torch.get_rng_state()
    plot.graph(p, torch.zeros(3, 6))
    assert torch.equal(torch.get_rng_state(), before) and p.training


def test_a_program_without_sites_is_an_error():
    with pytest.raises(ValueError, match="program has no sample sites"):
        plot.graph(lambda: None)
