"""Splits and data sets: their parts, their shapes, their labels."""

import torch

from tarspyro import data
from tarspyro.data import Dataset, Split


def test_a_split_is_sliced_with_its_labels():
    split = Split(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    part = split[4:]
    assert len(split) == 6 and len(part) == 2
    assert part.x.tolist() == [[8.0, 9.0], [10.0, 11.0]] and part.y.tolist() == [4, 5]
    assert Split(split.x)[:3].y is None


def test_reshape_keeps_pixels_and_labels():
    digits = data.digits()
    split = digits.test.reshape(1, 8, 8)
    assert split.x.shape == (360, 1, 8, 8) and torch.equal(split.y, digits.test.y)
    assert torch.equal(split.reshape(64).x, digits.test.x)


def test_reshape_takes_every_part():
    parts = [Split(torch.rand(n, 4)) for n in (5, 3, 2)]
    dataset = Dataset("tiny", parts[0], parts[1], (1, 2, 2), parts[2]).reshape(1, 2, 2)
    assert [part.x.shape for part in (dataset.train, dataset.test, dataset.validation)] == [
        (5, 1, 2, 2),
        (3, 1, 2, 2),
        (2, 1, 2, 2),
    ]
    assert dataset.name == "tiny" and dataset.image_shape == (1, 2, 2)
    assert data.digits().reshape(8, 8).validation is None
