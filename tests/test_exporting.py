"""Exported halves, loaded in a process that has neither Pyro nor this library."""

import importlib.util
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from tarspyro import Conditional, export, guides, models
from tarspyro.distributions import (
    GumbelSigmoid,
    GumbelSoftmax,
    VonMisesFisher,
    default_prior,
)
from tarspyro.infer.traces import PairError
from tarspyro.nn import MLP, Backward, Recurrence

MISSING = [
    package
    for package in ("onnx", "onnxscript", "onnxruntime")
    if importlib.util.find_spec(package) is None
]
LOADING = """
import sys
sys.modules["pyro"] = sys.modules["tarspyro"] = None  # any import of them fails
import torch
folder = sys.argv[1]
for name, inputs in torch.load(f"{folder}/inputs").items():
    if name.endswith(".onnx"):
        import onnxruntime
        session = onnxruntime.InferenceSession(f"{folder}/{name}")
        names = [output.name for output in session.get_outputs()]
        assert [i.name for i in session.get_inputs()] == list(inputs)
        values = session.run(names, {key: value.numpy() for key, value in inputs.items()})
        outputs = {key: torch.as_tensor(value) for key, value in zip(names, values)}
    else:
        program = torch.export.load(f"{folder}/{name}").module()
        with torch.no_grad():
            outputs = {key: value.clone() for key, value in program(**inputs).items()}
    torch.save(outputs, f"{folder}/{name}.outputs")
"""


def loaded(folder, inputs):
    """The outputs of exported files, by file, in a process of their own."""
    torch.save(inputs, folder / "inputs")
    subprocess.run([sys.executable, "-W", "ignore", "-c", LOADING, str(folder)], check=True)
    return {name: torch.load(folder / f"{name}.outputs") for name in inputs}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-5), name


@pytest.fixture
def pair():
    torch.manual_seed(0)
    p = models.VAE(default_prior(dist.Normal, 3), Conditional(dist.Bernoulli, MLP(3, [8]), 6))
    q = guides.VAE(Conditional(dist.Normal, MLP(6, [8]), 3))
    return p, q


@pytest.mark.parametrize(
    "ending",
    [
        "pt2",
        pytest.param(
            "onnx",
            marks=pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
        ),
    ],
)
def test_outputs_are_equal_in_a_fresh_process(pair, tmp_path, ending):
    p, q = pair
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    z = torch.randn(4, 3)
    encoder = f"encoder.{ending}"
    decoder = f"decoder.{ending}"
    state = torch.get_rng_state()
    found = export(q, tmp_path / encoder, draws=True, x=x[:1])
    assert found.inputs == {"x": ("rows", 6), "z_noise": ("rows", 3)}
    assert found.outputs == {name: ("rows", 3) for name in ("z_mean", "z_scale", "z")}
    found = export(p, tmp_path / decoder, z=z[:1], x=x[:1])
    assert found.outputs == {
        "z_log_density": ("rows",),
        "x_mean": ("rows", 6),
        "x_log_density": ("rows",),
    }
    assert torch.equal(state, torch.get_rng_state()) and p.training and q.training

    noise = torch.randn(4, 3)
    outputs = loaded(
        tmp_path, {encoder: {"x": x, "z_noise": noise}, decoder: {"z": z, "x": x}}
    )
    posterior = q.posterior(x)
    drawn = posterior.mean + posterior.stddev * noise
    expected = {"z_mean": posterior.mean, "z_scale": posterior.stddev, "z": drawn}
    assert_equal(outputs[encoder], expected)
    likelihood = p.likelihood(z)
    expected = {
        "z_log_density": p.prior().log_prob(z),
        "x_mean": likelihood.mean,
        "x_log_density": likelihood.log_prob(x),
    }
    assert_equal(outputs[decoder], expected)


def test_a_guide_of_sequences(tmp_path):
    """A sequential guide, any number of rows, and draws of every step."""
    torch.manual_seed(1)
    q = guides.VRNN(
        Recurrence(nn.GRUCell(4 + 2, 5)), Conditional(dist.Normal, MLP([4, 5], [6]), 2)
    )
    x = torch.randn(5, 2, 4)
    export(q, tmp_path / "q.pt2", draws=True, x=x)
    noise = {f"z_{t}_noise": torch.randn(5, 2) for t in range(2)}
    outputs = loaded(tmp_path, {"q.pt2": {"x": x, **noise}})["q.pt2"]
    state = q.cell.initial(5)
    for t in range(2):
        posterior = q.posterior(x[:, t], q.cell.hidden(state))
        z = posterior.mean + posterior.stddev * noise[f"z_{t}_noise"]
        assert torch.allclose(outputs[f"z_{t}"], z, atol=1e-5)
        state = q.cell(state, x[:, t], z)


def test_a_guide_that_reads_sequences_backwards(tmp_path):
    torch.manual_seed(1)
    first = Conditional(dist.Normal, MLP(5, [6]), 2)
    posterior = Conditional(dist.Normal, MLP([5, 2], [6]), 2)
    q = guides.DeepMarkovModel(first, posterior, Backward(nn.GRU(4, 5, batch_first=True)))
    x = torch.randn(3, 2, 4)
    export(q, tmp_path / "q.pt2", x=x[:1])
    outputs = loaded(tmp_path, {"q.pt2": {"x": x}})["q.pt2"]
    features = q.encoder(x)
    mean = q.first(features[:, 0]).mean
    assert torch.allclose(outputs["z_0_mean"], mean, atol=1e-5)
    mean = q.posterior(features[:, 1], mean).mean
    assert torch.allclose(outputs["z_1_mean"], mean, atol=1e-5)


def test_a_generator_draws_from_uniform_noise(tmp_path):
    class Mixture(nn.Module):
        def forward(self, batch_size=1):
            with pyro.plate("data", batch_size):
                k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
                z = pyro.sample("z", dist.Laplace(k.float(), 0.5))
                return pyro.sample("x", dist.Bernoulli(logits=z))

    found = export(Mixture(), tmp_path / "p.pt2", draws=True)
    assert list(found.inputs) == ["k_uniform", "z_uniform", "x_uniform"]
    rows = 2000
    noise = {name: torch.rand(rows, *shape[1:]) for name, shape in found.inputs.items()}
    program = torch.export.load(tmp_path / "p.pt2").module()
    outputs = program(**noise)
    k = outputs["k"].long()
    shares = torch.bincount(k, minlength=3) / rows
    expected = torch.tensor([0.2, 0.5, 0.3])
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / rows).sqrt()).all()
    deviations = outputs["z"] - k
    assert abs(float(deviations.mean())) < 4 * 0.5 * (2 / rows) ** 0.5
    assert abs(float(deviations.abs().mean()) - 0.5) < 4 * 0.5 / rows**0.5
    assert torch.allclose(outputs["x_mean"], outputs["z"].sigmoid(), atol=1e-5)
    assert torch.equal(outputs["x"], (noise["x_uniform"] < outputs["x_mean"]).float())


@pytest.mark.parametrize(
    "family, fixed",
    [
        (VonMisesFisher, {}),
        (GumbelSigmoid, {"temperature": 0.5, "hard": True, "rao_blackwell": 2}),
        (GumbelSoftmax, {"temperature": 0.5, "hard": True, "rao_blackwell": 2}),
    ],
    ids=["VonMisesFisher", "GumbelSigmoid", "GumbelSoftmax"],
)
def test_draws_that_take_many_random_numbers(family, fixed, tmp_path):
    torch.manual_seed(0)
    q = guides.VAE(Conditional(family, MLP(6, [8]), 3, **fixed))
    file = tmp_path / "q.pt2"
    inputs, _ = export(q, file, draws=True, x=torch.zeros(1, 6))
    rows = 20_000
    noise = {
        name: torch.randn(rows, *shape[1:])
        if "noise" in name
        else torch.rand(rows, *shape[1:])
        for name, shape in inputs.items()
    }
    noise["x"] = torch.ones(rows, 6)
    z = torch.export.load(file).module()(**noise)["z"]
    own = q.posterior(torch.ones(1, 6)).sample((rows,))[:, 0]
    deviation = (z.mean(0) - own.mean(0)).abs()
    assert (deviation < 4 * ((z.var(0) + own.var(0)) / rows).sqrt()).all()


def test_what_cannot_be_exported_is_refused(pair, tmp_path):
    _, q = pair
    with pytest.raises(ValueError, match="must end in .pt2 or .onnx"):
        export(q, tmp_path / "encoder.bin", x=torch.zeros(1, 6))
    with pytest.raises(ValueError, match="an example of each input"):
        export(q, tmp_path / "encoder.pt2")
    with pytest.raises(ValueError, match="x must have a row"):
        export(q, tmp_path / "encoder.pt2", x=torch.zeros(0, 6))
    with pytest.raises(TypeError, match="half must be a module"):
        export(lambda x: x, tmp_path / "encoder.pt2", x=torch.zeros(1, 6))

    with pytest.raises(TypeError, match="x must be numbers"):
        export(q, tmp_path / "encoder.pt2", x=None)
    with pytest.raises(PairError, match="neither an argument nor a latent variable 'w'"):
        export(q, tmp_path / "encoder.pt2", x=torch.zeros(1, 6), w=torch.zeros(1, 6))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export(q, tmp_path / "none" / "encoder.pt2", x=torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"got \(1, 5\)[^\n]*$"):
        export(q, tmp_path / "encoder.pt2", x=torch.zeros(2, 5))

    class OfRows(nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                return pyro.sample("z", dist.Normal(x / float(len(x)), 1.0))

    with pytest.raises(PairError, match="z_mean depends on"):
        export(OfRows(), tmp_path / "q.pt2", x=torch.ones(2))

    class OfGamma(nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                return pyro.sample("z", dist.Gamma(x, 1.0))

    with pytest.raises(NotImplementedError, match="draws of z are no function of given noise"):
        export(OfGamma(), tmp_path / "q.pt2", draws=True, x=torch.ones(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(len(MISSING) == 0, reason="ONNX is installed")
def test_onnx_names_its_package(pair, tmp_path):
    with pytest.raises(ModuleNotFoundError, match="pip install onnx onnxscript"):
        export(pair[1], tmp_path / "encoder.onnx", x=torch.zeros(1, 6))


class Encoder(nn.Module):
    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, x):
        posterior = self.q.posterior(x)
        return posterior.mean, posterior.stddev, posterior.rsample()


class Decoder(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, z, x):
        likelihood = self.p.likelihood(z)
        return likelihood.mean, likelihood.log_prob(x)


def test_the_parts_of_a_half_compile_without_a_break(pair):
    p, q = pair
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    torch.manual_seed(2)
    # PyTorch turns validation off at the first compilation of a process, and only then.
    pyro.enable_validation(False)
    mean, scale, z = torch.compile(Encoder(q), fullgraph=True, backend="eager")(x)
    torch.manual_seed(2)
    for found, expected in zip((mean, scale, z), Encoder(q)(x), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    z = z.detach()
    found = torch.compile(Decoder(p), fullgraph=True, backend="eager")(z, x)
    for value, expected in zip(found, Decoder(p)(z, x), strict=True):
        assert torch.allclose(value, expected, atol=1e-6)


def test_functional_transforms_of_a_half(pair):
    p, _ = pair
    decoder = Decoder(p)
    z = torch.randn(4, 3)
    x = torch.bernoulli(torch.full((4, 6), 0.5))
    mean = decoder(z, x)[0]

    # The Jacobian of the mean, against finite differences.
    jacobian = vmap(jacrev(lambda one: decoder(one[None], x[:1])[0][0]))(z)
    assert jacobian.shape == (4, 6, 3)
    step = 1e-3 * torch.eye(3)[1]
    difference = (decoder(z + step, x)[0] - decoder(z - step, x)[0]) / 2e-3
    assert torch.allclose(jacobian[..., 1], difference, atol=1e-3)

    # Other weights, and an ensemble of them.
    weights = {name: value.detach() for name, value in decoder.named_parameters()}
    halved = {name: value / 2 for name, value in weights.items()}
    pairs = {name: torch.stack([weights[name], halved[name]]) for name in weights}
    both = vmap(lambda w: functional_call(decoder, w, (z, x))[0])(pairs)
    assert torch.allclose(both[0], mean, atol=1e-6)
    assert torch.allclose(both[1], functional_call(decoder, halved, (z, x))[0], atol=1e-6)
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    assert torch.equal(decoder(z, x)[0], mean)  # its own weights stay

    # The gradient of each row's density in the weights, whose sum is that of the sum.
    def density(w, one, of):
        return functional_call(decoder, w, (one[None], of[None]))[1].sum()

    rows = vmap(torch.func.grad(density), in_dims=(None, 0, 0))(weights, z, x)
    decoder(z, x)[1].sum().backward()
    for name, value in decoder.named_parameters():
        gradient = value.grad if value.grad is not None else torch.zeros_like(value)
        assert torch.allclose(rows[name].sum(0), gradient, atol=1e-5), name
