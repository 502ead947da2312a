"""A pair and data to draw."""

import pytest

from tarspyro.data import digits

from .pictures import make_pair


@pytest.fixture
def pair():
    return make_pair()


@pytest.fixture(scope="module")
def held_out():
    return digits().test[:60]
