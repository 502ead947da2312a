"""The picture of a guide's calibration."""

import numpy as np
import pytest

from tarspyro import evaluate, plot

from ..exact_pairs import exact, planted


def check(pair):
    return evaluate.check_guide(
        pair.model, pair.guide, pair.data, num_simulations=400, annealing=False, seed=0
    )


def test_lines_of_an_exact_guide_stay_in_the_band():
    (ax,) = plot.calibration(check(exact("linear Gaussian", 0))).axes
    _, *lines = ax.get_lines()
    band = np.log(2 * len(lines) / 0.01) / (2 * 400)
    assert [line.get_label() for line in lines] == ["z[0]", "z[1]", "log p(x, z)"]
    assert all(np.abs(line.get_ydata()).max() < band**0.5 for line in lines)
    assert ax.get_title() == "guide: calibrated"


def test_the_line_of_a_narrow_guide_rises_and_falls():
    (ax,) = plot.calibration(check(planted("linear Gaussian", "scale 0.8", 0))).axes
    line = ax.get_lines()[1]
    above = np.interp([0.15, 0.85], line.get_xdata(), line.get_ydata())
    assert above[0] > 0.02 and above[1] < -0.02
    assert ax.get_title() == "guide: too narrow"


def test_other_things_are_refused():
    with pytest.raises(TypeError, match="a result of evaluate.check_guide"):
        plot.calibration({"z": [0.5]})
