"""The calls of the library's own functions that one step costs."""

import importlib.util
from pathlib import Path

import pytest

from tarspyro.infer import ELBO, IWAE

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "own_calls.py"


@pytest.mark.parametrize(
    ("bound", "limit"), [(ELBO(), 110), (IWAE(5), 130)], ids=["ELBO", "IWAE"]
)
def test_a_step_has_few_calls_of_our_own(bound, limit):
    spec = importlib.util.spec_from_file_location("own_calls", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    calls = script.own_calls(bound)
    assert 0 < calls.total() <= limit, calls
