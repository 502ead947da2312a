"""Sprites: every combination of factors once, and images that show them."""

import math

import pytest
import torch

from tarspyro import data
from tarspyro.data import Sprites, sprites


def test_every_combination_once_the_same_in_each_run():
    found = sprites(size=16, orientations=2, positions=3)
    assert isinstance(found, Sprites)
    assert len(found) == 3 * 4 * 2 * 3 * 3 == len(torch.unique(found.factors, dim=0))
    assert found.x.shape == (216, 1, 16, 16)
    assert set(found.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found.x, sprites(size=16, orientations=2, positions=3).x)
    assert len(found.names) == found.factors.shape[1] == 5
    assert found.names[found.categorical[0]] == "shape"


def test_areas_are_those_of_the_shapes():
    found = sprites(size=128, scales=2, orientations=3, positions=1)
    area = found.x.sum((1, 2, 3))
    for (shape, scale, *_), pixels in zip(found.factors.tolist(), area.tolist(), strict=True):
        reach = 0.24 * 128 * (0.75, 1.0)[scale]
        # (2 * 0.7)^2, pi / 2, and that of the heart: 3.6595 / 1.3^2, by quadrature.
        expected = (1.96, math.pi / 2, 3.6595 / 1.69)[shape] * reach**2
        assert pixels == pytest.approx(expected, rel=0.05)


def test_positions_and_turns():
    found = sprites(size=64, scales=1, orientations=4, positions=4)
    factors, x = found.factors, found.x[:, 0]
    places = torch.arange(64.0) + 0.5
    mass = x.sum((1, 2))
    across = (x.sum(1) * places).sum(1) / mass
    down = (x.sum(2) * places).sum(1) / mass
    symmetric = factors[:, 0] < 2
    for centre, column in ((across, 3), (down, 4)):
        expected = 64 * (0.24 + 0.52 * (factors[:, column] + 0.5) / 4)
        assert (centre - expected)[symmetric].abs().max() < 0.3
    # A quarter turn of a centred shape is that of its image, counter-clockwise.
    centred = sprites(size=64, scales=1, orientations=4, positions=1).x
    for shape in centred.reshape(3, 4, 64, 64):
        for turn in range(4):
            differing = (torch.rot90(shape[0], turn) != shape[turn]).float().mean()
            assert differing < 0.01


def test_no_shape_reaches_the_edge():
    x = sprites(size=32, scales=1, orientations=7, positions=6).x
    assert x[..., [0, -1], :].sum() == x[..., [0, -1]].sum() == 0


def test_wrong_arguments():
    with pytest.raises(ValueError, match="shapes must be from 1 to 3, got 4"):
        sprites(shapes=4)
    with pytest.raises(ValueError, match="positions"):
        sprites(positions=0)
    with pytest.raises(TypeError, match="size"):
        data.sprites(size=32.5)
