"""A strict session: warnings are errors, validation is on, every test starts from the same
seed.
"""

import os
from pathlib import Path

import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

_SHARED = Path(__file__).parents[2] / "shared" / "data"
if "TARSPYRO_DATA" not in os.environ and _SHARED.is_dir():
    os.environ["TARSPYRO_DATA"] = str(_SHARED)

# The same few examples for everybody, unless more are asked for.
_examples = os.environ.get("TARSPYRO_EXAMPLES")
settings.register_profile(
    "tarspyro",
    max_examples=int(_examples or 60),
    derandomize=_examples is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tarspyro")


@pytest.fixture(autouse=True)
def _fresh_start():
    pyro.clear_param_store()
    torch.manual_seed(0)
    with pyro.validation_enabled(True):
        yield


@pytest.fixture
def mnist_folder():
    folder = Path(os.environ.get("TARSPYRO_DATA", ""))
    if not (folder / "mnist" / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("TARSPYRO_DATA does not name a folder with mnist/")
    return folder
