"""Estimates are drawn with the standard errors that they have."""

import numpy as np
import pytest
import torch

from tarspyro import evaluate, plot
from tarspyro.evaluate.posterior import Estimate


def rows(figure):
    """For each row the value, the end of its bar of one standard error, and its text."""
    ax = figure.axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    bars = [
        line for line in ax.lines if line.get_linewidth() > 3 and len(line.get_xdata()) == 2
    ]
    values = {dot.get_ydata()[0]: dot.get_xdata()[0] for dot in dots}
    ends = {bar.get_ydata()[0]: bar.get_xdata()[1] for bar in bars}
    texts = [text.get_text() for text in ax.texts]
    names = [label.get_text() for label in ax.get_yticklabels()]
    return [
        (name, values[row], ends.get(row), text)
        for row, (name, text) in enumerate(zip(names, texts, strict=True))
    ]


def test_pairs_and_values():
    figure = plot.compare({"VAE": (-97.314, 0.12), "IWAE": [-95.8, 0.011], "exact": -93.5})
    assert rows(figure) == [
        ("VAE", -97.314, pytest.approx(-97.194), "−97.31 ± 0.12"),
        ("IWAE", -95.8, pytest.approx(-95.789), "−95.800 ± 0.011"),
        ("exact", -93.5, None, "−93.5"),
    ]
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the first on top
    assert (
        figure.axes[0].get_xlabel().startswith("log p(x) (nats per data point)\nbars: 1 and 2")
    )


def test_sorted_beside_a_reference():
    figure = plot.compare(
        {"a": 1.0, "b": 3.0, "c": 2.0}, sort=True, reference=2.5, quantity="h"
    )
    assert [row[0] for row in rows(figure)] == ["b", "c", "a"]
    assert list(figure.axes[0].lines[-1].get_xdata()) == [2.5, 2.5]
    assert figure.axes[0].get_xlabel() == "h"


POINTS = torch.tensor([1.0, 2.0, 6.0])
ERROR = POINTS.std().item() / 3**0.5


@pytest.mark.parametrize(
    ("given", "value", "error"),
    [
        (POINTS, 3.0, ERROR),
        (POINTS.numpy(), 3.0, ERROR),
        (POINTS.tolist(), 3.0, ERROR),
        (evaluate.LogLikelihood(POINTS, POINTS, POINTS), 3.0, ERROR),
        (evaluate.BoundEstimate(POINTS, POINTS, POINTS), 3.0, ERROR),
        (Estimate(POINTS, POINTS), 3.0, ERROR),
        (Estimate(np.float64(2.0), np.float64(0.5)), 2.0, 0.5),
        (evaluate.ParzenLogLikelihood(POINTS, 7.0, 0.25, 1.0), 7.0, 0.25),
        ({"value": 2.0, "standard_error": 0.5}, 2.0, 0.5),
        (torch.tensor(2.0), 2.0, None),
    ],
)
def test_results_of_evaluate(given, value, error):
    ((_, drawn, end, _),) = rows(plot.compare({"a": given}))
    assert drawn == pytest.approx(value)
    assert end == (None if error is None else pytest.approx(value + error))


@pytest.mark.parametrize(
    ("estimates", "error", "message"),
    [
        ({}, ValueError, "estimates must hold at least one"),
        ([1.0], ValueError, "estimates must hold at least one"),
        ({"a": "b"}, TypeError, r"estimates\['a'\] must be a value, a pair"),
        ({"a": None}, TypeError, r"estimates\['a'\] must be a value, a pair"),
        ({"a": (1.0, float("nan"))}, ValueError, r"estimates\['a'\] must be a finite number"),
        ({"a": torch.zeros(0)}, ValueError, r"estimates\['a'\] must be a finite number"),
    ],
)
def test_what_cannot_be_drawn(estimates, error, message):
    with pytest.raises(error, match=message):
        plot.compare(estimates)
