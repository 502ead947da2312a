"""Data and results print in a line or a few, whatever their size."""

import numpy as np
import pytest
import torch

from tarspyro import data, evaluate
from tarspyro.arguments import format_fields
from tarspyro.evaluate.posterior import Estimate, PosteriorKL

N = 5000
x = torch.arange(N * 3.0).reshape(N, 3) / (3 * N)
many = torch.linspace(-2, 4, N)
SHORT = {
    "split": (
        data.Split(x, torch.zeros(N).long()),
        f"Split of {N} rows: x (3,) float32, y int64",
    ),
    "split without labels": (data.Split(x), f"Split of {N} rows: x (3,) float32, y None"),
    "split of an array and a list": (
        data.Split(x.numpy(), [0] * N),
        f"Split of {N} rows: x (3,) float32, y int64",
    ),
    "sequences": (
        data.Sequences.padded([torch.zeros(3, 2), torch.zeros(5, 2)]),
        "Sequences: 2 of 3 to 5 steps, events (2,)",
    ),
    "equal sequences": (
        data.Sequences.padded([torch.zeros(3), torch.zeros(3)]),
        "Sequences: 2 of 3 steps, events ()",
    ),
    "no sequences": (
        data.Sequences.padded([torch.zeros(3)])[:0],
        "Sequences: none",
    ),
    "modes": (data.ring(30), "Modes: 30 points of 8 Gaussians of scale 0.02"),
}


@pytest.mark.parametrize(("value", "text"), SHORT.values(), ids=SHORT)
def test_data_prints_in_a_line(value, text):
    assert repr(value) == text


def test_data_sets_print_a_line_for_each_part():
    title, train, test = repr(data.digits()).split("\n")
    assert title == "Dataset 'digits' of images of shape (1, 8, 8)"
    assert train == "  train: Split of 1437 rows: x (64,) float32, y int64"
    assert test.startswith("  test: Split of 360 rows")
    regression = data.Regression("houses", data.Split(x), data.Split(x[:9]), 2.0, 0.5)
    assert repr(regression).split("\n")[3:] == ["  y_mean: 2", "  y_scale: 0.5"]
    music = data.SequenceDataset("jsb", *[data.Sequences.padded([x])] * 3)
    assert len(repr(music).split("\n")) == 4


def test_a_log_likelihood_prints_means_and_ranges():
    result = evaluate.LogLikelihood(many, many.numpy().clip(min=0), many)
    assert repr(result).split("\n")[:2] == [
        "LogLikelihood",
        f"  log_likelihood: shape ({N},), mean 1, from -2 to 4",
    ]
    assert result.log_likelihood is many


RESULTS = [
    evaluate.BoundEstimate(many, many, many),
    evaluate.BitsPerDimension(many, 1.0, 0.1, 0.01),
    evaluate.Gaps(many, many, many),
    evaluate.Neighbours(np.zeros((N, 5), int), np.zeros((N, 5))),
    evaluate.Canvases(torch.zeros(9, 7, 64), None),
    evaluate.LogDensities(x, x),
    evaluate.ParzenLogLikelihood(many, -1.0, 0.1, 0.3),
    PosteriorKL(Estimate(many, many), Estimate(many, many)),
]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_results_print_a_line_for_each_part(result):
    lines = repr(result).split("\n")
    assert lines[0] == type(result).__name__ and len(lines) <= 8
    assert max(map(len, lines)) <= 95
    for name in result._fields:
        assert any(line.startswith(f"  {name}: ") for line in lines)


def test_parts_of_every_kind():
    parts = {
        "flags": torch.tensor([True, False]),
        "half": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "empty": np.zeros((0, 3)),
        "gap": torch.tensor([1.0, torch.nan]),
    }
    assert format_fields("Parts", parts).split("\n")[1:] == [
        "  flags: shape (2,), from 0 to 1",
        "  half: shape (2,), mean 1.5, from 1 to 2",
        "  scalar: 2.5",
        "  empty: shape (0, 3)",
        "  gap: shape (2,), mean nan, from nan to nan",
    ]
