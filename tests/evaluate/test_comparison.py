"""Comparisons of linear Gaussian pairs, whose true difference is known."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import evaluate
from tarspyro.evaluate.comparison import Comparison


def pair(scale, wide=1.0):
    """z ~ N(0, 1), x | z ~ N(z, s^2), with the exact posterior, or one that is wider."""
    variance = 1 / (1 + scale**-2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(variance * x / scale**2, wide * variance**0.5))

    return model, guide


def true_difference(first, second, data=1.0):
    """E[log p_1(x) - log p_2(x)] for x from the pair of scale ``data``."""
    square = 1 + data**2
    means = [
        -0.5 * (math.log(2 * math.pi * (1 + s**2)) + square / (1 + s**2))
        for s in (first, second)
    ]
    return means[0] - means[1]


def draw(count, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (1 + scale**2) ** 0.5 * torch.randn(count, generator=generator)


def test_differences_are_paired():
    x = draw(500, 0)
    found = evaluate.compare({"one": pair(1.0), "two": pair(1.1)}, x, num_particles=5)
    exact = [dist.Normal(0.0, (1 + s**2) ** 0.5).log_prob(x).double() for s in (1.0, 1.1)]
    difference = exact[1] - exact[0]
    (gap,) = found.differences.values()
    assert gap.value == pytest.approx(float(difference.mean()), abs=1e-5)
    assert gap.standard_error == pytest.approx(float(difference.std()) / 500**0.5, rel=1e-3)
    assert gap.standard_error < found["one"].standard_error / 5
    assert gap.high - gap.low == pytest.approx(2 * 1.9647 * gap.standard_error, rel=1e-4)
    assert found.difference("one", "two").value == -gap.value


def test_intervals_cover_the_true_difference():
    true = true_difference(1.3, 1.0)
    covered = 0
    for seed in range(60):
        found = evaluate.compare(
            {"a": pair(1.0, 1.2), "b": pair(1.3, 1.2)}, draw(100, seed), num_particles=50
        )
        gap = found.difference("b")
        covered += gap.low <= true <= gap.high
    assert abs(covered / 60 - 0.95) < 4 * (0.95 * 0.05 / 60) ** 0.5


@pytest.mark.parametrize("freedom, right", [(3, 3.1824), (9, 2.2622), (99, 1.9842)])
def test_quantiles_are_those_of_the_table(freedom, right):
    values = torch.randn(freedom + 1, generator=torch.Generator().manual_seed(0)).double()
    found = Comparison({"a": torch.zeros_like(values), "b": values}, "a")
    gap = found.difference("b")
    assert (gap.high - gap.value) / gap.standard_error == pytest.approx(right, rel=1e-4)


def test_the_result_is_a_mapping_the_best_first():
    found = evaluate.compare(
        {"worse": pair(3.0), "better": pair(1.0)}, draw(200, 1).numpy(), num_particles=5
    )
    assert list(found) == ["better", "worse"] and found.best == "better" and len(found) == 2
    value, error = found["better"]
    assert value == found["better"].value and error > 0
    lines = repr(found).splitlines()
    assert lines[1].startswith("better") and "+- " in lines[1]
    assert lines[-1] == "nats per data point, over 200 data points"
    assert "<th>log p(x)</th>" in found._repr_html_()
    assert list(
        evaluate.compare(
            {"a": pair(1.0), "b": pair(2.0)}, np.zeros(3), baseline="b", num_particles=2
        ).differences
    ) == ["a"]


def test_pixels_are_the_same_for_every_pair():
    def bernoulli(logit):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Bernoulli(logits=logit + 0 * z), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))

        return model, guide

    pairs = {"a": bernoulli(0.5), "b": bernoulli(0.5)}
    found = evaluate.compare(pairs, torch.full((50,), 0.5), binarize=True, num_particles=2)
    assert found.difference("b").value == pytest.approx(0.0, abs=1e-6)


def test_what_is_no_comparison_is_refused():
    with pytest.raises(ValueError, match="at least two names"):
        evaluate.compare({"a": pair(1.0)}, torch.zeros(5))
    with pytest.raises(TypeError, match=r"pairs\['b'\] must be a tuple"):
        evaluate.compare({"a": pair(1.0), "b": pair(1.0)[0]}, torch.zeros(5))
    with pytest.raises(ValueError, match="at least 2 data points"):
        evaluate.compare({"a": pair(1.0), "b": pair(2.0)}, torch.zeros(1))
    with pytest.raises(ValueError, match="baseline must be"):
        evaluate.compare({"a": pair(1.0), "b": pair(2.0)}, torch.zeros(5), baseline="c")
