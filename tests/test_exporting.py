"""Exported halves, loaded in a process that has neither Pyro nor this library."""

import importlib.util
import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, export, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

LOADING = """
import sys
sys.modules["pyro"] = sys.modules["tarspyro"] = None  # any import of them fails
import torch
folder = sys.argv[1]
for name in ("encoder", "decoder"):
    program = torch.export.load(f"{folder}/{name}.pt2").module()
    inputs = torch.load(f"{folder}/{name}.inputs")
    with torch.no_grad():
        outputs = {key: value.clone() for key, value in program(**inputs).items()}
    torch.save(outputs, f"{folder}/{name}.outputs")
"""


@pytest.fixture
def pair():
    torch.manual_seed(0)
    p = models.VAE(default_prior(dist.Normal, 3), Conditional(dist.Bernoulli, MLP(3, [8]), 6))
    q = guides.VAE(Conditional(dist.Normal, MLP(6, [8]), 3))
    return p, q


def test_outputs_are_equal_in_a_fresh_process(pair, tmp_path):
    p, q = pair
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    z = torch.randn(4, 3)
    state = torch.get_rng_state()
    assert export(q, tmp_path / "encoder.pt2", x=x) == ["z_mean", "z_scale"]
    assert export(p, tmp_path / "decoder.pt2", z=z, x=x) == ["x_log_density", "x_mean"]
    assert torch.equal(state, torch.get_rng_state()) and p.training and q.training
    x = 1 - x
    z = z + 1
    torch.save({"x": x}, tmp_path / "encoder.inputs")
    torch.save({"z": z, "x": x}, tmp_path / "decoder.inputs")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOADING, str(tmp_path)], check=True)

    posterior = q.posterior(x)
    found = torch.load(tmp_path / "encoder.outputs")
    assert torch.allclose(found["z_mean"], posterior.mean, atol=1e-5)
    assert torch.allclose(found["z_scale"], posterior.stddev, atol=1e-5)
    likelihood = p.likelihood(z)
    found = torch.load(tmp_path / "decoder.outputs")
    assert torch.allclose(found["x_mean"], likelihood.mean, atol=1e-5)
    assert torch.allclose(found["x_log_density"], likelihood.log_prob(x), atol=1e-5)


def test_what_cannot_be_exported_is_refused(pair, tmp_path):
    _, q = pair
    with pytest.raises(ValueError, match="must end in .pt2 or .onnx"):
        export(q, tmp_path / "encoder.bin", x=torch.zeros(1, 6))
    with pytest.raises(ValueError, match="an example of each input"):
        export(q, tmp_path / "encoder.pt2")
    with pytest.raises(TypeError, match="half must be a module"):
        export(lambda x: x, tmp_path / "encoder.pt2", x=torch.zeros(1, 6))


def test_onnx_names_its_package(pair, tmp_path):
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
        assert export(pair[1], tmp_path / "encoder.onnx", x=torch.zeros(1, 6))
        return
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript"):
        export(pair[1], tmp_path / "encoder.onnx", x=torch.zeros(1, 6))
