"""Pairs as JSON and back: what comes back computes the same, and a stranger's file can choose
no code to run.
"""

import functools
import json
import math
import subprocess
import sys

import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import constraints, transforms

from tarspyro import Conditional, Deterministic, guides, models
from tarspyro.distributions import Prior, default_prior
from tarspyro.infer import ELBO
from tarspyro.modules import Configurable, StochasticModule
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder
from tarspyro.runs.description import build, describe


class Residual(nn.Module):
    """A trunk as a user writes it: no base class of the library, every argument kept."""

    def __init__(self, features, inner, activation=nn.ReLU):
        super().__init__()
        self.features, self.inner, self.activation = features, inner, activation
        self.out_features = features
        self.first, self.nonlinearity = nn.Linear(features, features), activation()

    def forward(self, x):
        return x + self.inner(self.nonlinearity(self.first(x)))


class Forgetful(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.layer = nn.Linear(features, features)


class ForgetfulOption(nn.Module):
    def __init__(self, activation=nn.ReLU):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), activation())


class Variadic(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(3, size) for size in sizes))


class Block(nn.Sequential):
    """A stack of layers that the class makes itself: its items are not its arguments."""

    def __init__(self, features):
        self.features = features
        super().__init__(nn.Linear(features, features), nn.ReLU())


class Remembering(Configurable):
    def __init__(self, features, *rest, **options):
        super().__init__()
        self.layer = nn.Linear(features, sum(rest), **options)

    def forward(self, x):
        return self.layer(x)


class Positive(transforms.Transform):
    domain, codomain, bijective = constraints.real, constraints.positive, True

    def __init__(self, power):
        super().__init__()
        self.power = power

    def _call(self, x):
        return (x * self.power).exp()

    def _inverse(self, y):
        return y.log() / self.power


class Scaled(models.VAE):
    """A user's variant of a model: the same arguments, another program."""

    def forward(self, x=None, *, batch_size=1):
        with poutine.scale(scale=0.5):
            return super().forward(x, batch_size=batch_size)


class WithNumber(models.VAE):
    def __init__(self, prior, likelihood, number):
        super().__init__(prior, likelihood)
        self.number = number


def round_trip(value):
    """Through the text of a file."""
    return build(json.loads(json.dumps(describe(value))))


def assert_same_network(network, *inputs):
    """Comes back as the same classes with weights of the same names and shapes, and with them
    computes the same.
    """
    rebuilt = round_trip(network)
    call(network, inputs)  # lazy layers draw their weights
    expected = call(network, inputs)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(call(rebuilt, inputs), expected)
    assert [(name, type(layer)) for name, layer in rebuilt.named_modules()] == [
        (name, type(layer)) for name, layer in network.named_modules()
    ]
    assert repr(rebuilt) == repr(network)


def call(network, inputs):
    torch.manual_seed(1)
    with torch.no_grad():
        output = network(*inputs)
    return output if torch.is_tensor(output) else output.sample()


# --- values


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.1,
        math.inf,
        "text",
        [1, [2.5, None]],
        (1, (2,), [3]),
        torch.Size([1, 8, 8]),
        {"a": (1, 2), "b": {"tuple": [1]}, "new": "os:system", "class": {}},
        nn.ReLU,
        dist.Normal,
        [models.VAE, guides.VAE],
    ],
    ids=str,
)
def test_values_come_back(value):
    rebuilt = round_trip(value)
    assert rebuilt == value and isinstance(value, type(rebuilt))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3),
        torch.randn(3, dtype=torch.float64),
        torch.tensor(0.1, dtype=torch.bfloat16),
        torch.tensor([1, 2]),
        torch.tensor([True, False]),
        torch.tensor([math.inf, -math.inf]),
        torch.zeros(0),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_tensors_come_back_bit_by_bit(tensor):
    rebuilt = round_trip(tensor)
    assert (
        type(rebuilt) is torch.Tensor
        and rebuilt.dtype == tensor.dtype
        and torch.equal(rebuilt, tensor)
    )


def test_parameters_stay_parameters():
    parameter = nn.Parameter(torch.randn(3, dtype=torch.float64))
    rebuilt = round_trip(parameter)
    assert isinstance(rebuilt, nn.Parameter) and rebuilt.requires_grad
    assert rebuilt.dtype == torch.float64 and torch.equal(rebuilt, parameter)


@pytest.mark.parametrize(
    "value",
    [
        {1: 2},
        {(0, 1): 2},
        object(),
        torch.tensor(1j),
        torch.float32,
        dist.Normal(0.0, 1.0),
        {3},
        b"bytes",
    ],
    ids=[
        "number as key",
        "tuple as key",
        "object",
        "complex",
        "dtype",
        "distribution",
        "set",
        "bytes",
    ],
)
def test_what_json_cannot_hold_is_refused_and_not_changed(value):
    with pytest.raises(TypeError, match="cannot be written to config.json"):
        describe(value)


# --- networks


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MLP(4, [8, 5]), (3, 4)),
        (
            MLP((1, 2, 2), [8], activation=nn.Tanh, normalization=nn.BatchNorm1d, dropout=0.1),
            (3, 1, 2, 2),
        ),
        (ConvEncoder((1, 8, 8), [2, 3]), (3, 1, 8, 8)),
        (
            ConvEncoder((2, 7, 5), (2,), activation=nn.ELU, normalization=nn.BatchNorm2d),
            (3, 2, 7, 5),
        ),
        (ConvDecoder(4, (1, 8, 8), [3, 2]), (3, 4)),
        (nn.Linear(4, 3), (3, 4)),
        (nn.Linear(4, 3, bias=False), (3, 4)),
        (
            nn.Sequential(
                nn.Linear(4, 3), nn.LeakyReLU(0.3), nn.Sequential(nn.Linear(3, 2), nn.Tanh())
            ),
            (3, 4),
        ),
        (
            nn.Sequential(
                nn.Conv2d(2, 3, (3, 2), stride=2, padding=1, dilation=1, bias=False),
                nn.BatchNorm2d(3, momentum=0.3, affine=False),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.LazyLinear(5),
                nn.Dropout(0.3),
            ),
            (3, 2, 9, 9),
        ),
        (
            nn.Sequential(
                nn.Unflatten(1, (1, 2, 2)),
                nn.ConvTranspose2d(1, 2, 3, output_padding=1, stride=2),
            ),
            (3, 4),
        ),
        (nn.Conv1d(2, 2, 3, padding="same", padding_mode="circular"), (3, 2, 5)),
        (nn.GRUCell(4, 3), (3, 4)),
        (nn.GRUCell(4, 3, bias=False), (3, 4)),
        (nn.Embedding(5, 3, padding_idx=2), None),
        (nn.LayerNorm([2, 4], eps=1e-3, bias=False), (3, 2, 4)),
        (
            nn.Sequential(
                nn.PReLU(4, init=0.1), nn.Softplus(2.0), nn.Identity(), nn.Sigmoid()
            ),
            (3, 4),
        ),
        (Residual(4, Residual(4, MLP(4, [4]), nn.SiLU), activation=nn.Tanh), (3, 4)),
        (Block(4), (3, 4)),
        (Remembering(4, 2, 3, bias=False), (3, 4)),
        (nn.Sequential(Block(4), Remembering(4, 2)), (3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_networks_come_back(network, shape):
    assert_same_network(
        network, torch.tensor([0, 1, 2, 4]) if shape is None else torch.randn(shape)
    )


def test_several_inputs():
    assert_same_network(MLP([(1, 2, 2), 3], [5]), torch.randn(6, 1, 2, 2), torch.randn(6, 3))


def test_module_lists():
    layers = nn.ModuleList([nn.Linear(2, 3), nn.ReLU()])
    rebuilt = round_trip(layers)
    assert type(rebuilt) is nn.ModuleList and repr(rebuilt) == repr(layers)


def test_weights_are_not_in_the_configuration():
    assert len(json.dumps(describe(MLP(784, [500])))) < 200


# --- conditional distributions and priors

TRUNKS = {
    "mlp": lambda: MLP((1, 8, 8), [8]),
    "conv": lambda: ConvEncoder((1, 8, 8), [2, 3]),
    "torch": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 8), nn.Tanh()
    ),
    "user": lambda: nn.Sequential(nn.Linear(8, 4), Residual(4, nn.Linear(4, 4))),
    "lazy": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten()),
}
FAMILIES = {
    "Normal": (dist.Normal, {}),
    "Normal, fixed number": (dist.Normal, {"scale": 0.1}),
    "Normal, fixed tensor": (dist.Normal, {"scale": torch.tensor([0.1, 2.0])}),
    "Normal, learned constant": (
        dist.Normal,
        {"scale": nn.Parameter(torch.tensor([0.5, 0.7]))},
    ),
    "Normal, transform": (
        dist.Normal,
        {"transforms": {"scale": transforms.SoftplusTransform()}},
    ),
    "Normal, user's transform": (dist.Normal, {"transforms": {"scale": Positive(0.3)}}),
    "Normal, composed transform": (
        dist.Normal,
        {
            "transforms": {
                "scale": transforms.ComposeTransform(
                    [Positive(0.3), transforms.AffineTransform(0.1, 2.0)]
                )
            }
        },
    ),
    "MultivariateNormal": (dist.MultivariateNormal, {}),
    "Laplace": (dist.Laplace, {}),
    "Gamma": (dist.Gamma, {"rate": 2.0}),
    "Beta": (dist.Beta, {}),
    "Dirichlet": (dist.Dirichlet, {}),
    "LogNormal": (dist.LogNormal, {}),
    "Bernoulli": (dist.Bernoulli, {"validate_args": False}),
    "RelaxedBernoulli": (dist.RelaxedBernoulliStraightThrough, {"temperature": 0.4}),
    "OneHotCategorical": (dist.OneHotCategorical, {}),
    "Categorical": (dist.Categorical, {"param_shapes": {"logits": (2, 4)}}),
}


@pytest.mark.parametrize("trunk", TRUNKS.values(), ids=TRUNKS)
def test_every_trunk(trunk):
    shape = (5, 8) if trunk is TRUNKS["user"] else (5, 1, 8, 8)
    assert_same_network(Conditional(dist.Normal, trunk(), 2), torch.randn(shape))


@pytest.mark.parametrize(("family", "options"), FAMILIES.values(), ids=FAMILIES)
def test_every_family(family, options):
    conditional = Conditional(family, MLP(3, [4]), 2, **options)
    assert_same_network(conditional, torch.randn(5, 3))
    rebuilt = round_trip(conditional)
    assert rebuilt.family is family and rebuilt.headline == conditional.headline
    # fixed parameters and the starting points of learned ones are in the configuration, not
    # only in the weights
    for name, tensor in conditional.state_dict().items():
        if name.startswith(("fixed_", "free_")):
            torch.testing.assert_close(rebuilt.state_dict()[name], tensor)


def test_a_learned_constant_is_described_as_it_started():
    scale = nn.Parameter(torch.tensor(0.5))
    conditional = Conditional(dist.Normal, MLP(3, [4]), 2, scale=scale)
    before = describe(conditional)
    with torch.no_grad():
        conditional.free_scale.fill_(3.0)
    assert describe(conditional) == before


def test_deterministic():
    assert_same_network(
        Deterministic(MLP(3, [4]), (1, 2), transform=nn.Sigmoid()), torch.randn(5, 3)
    )


@pytest.mark.parametrize(
    "prior",
    [
        default_prior(dist.Gamma, 2),
        default_prior(dist.RelaxedBernoulliStraightThrough, 2, temperature=0.3),
        default_prior(dist.Categorical, (), param_shapes={"logits": (4,)}),
        Prior(dist.Normal, 2, loc=torch.tensor([1.0, 2.0])),
        Prior(dist.MultivariateNormal, 2, scale_tril=0.5),
    ],
    ids=lambda prior: prior.headline,
)
def test_priors(prior):
    assert_same_network(prior)


# --- pairs


@pytest.mark.parametrize("trunk", ["mlp", "conv", "torch"])
def test_pairs(trunk):
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64))
    q = guides.VAE(Conditional(dist.Normal, TRUNKS[trunk](), 2))
    assert_same_network(q, torch.randn(5, 1, 8, 8))
    rebuilt = round_trip(p)
    rebuilt.load_state_dict(p.state_dict())
    assert type(rebuilt) is models.VAE and repr(rebuilt) == repr(p)
    draws = []
    for model in (p, rebuilt):
        torch.manual_seed(1)
        draws.append(model(batch_size=7))
    assert torch.equal(*draws)


def test_autoencoders():
    p = round_trip(
        models.Autoencoder(
            Conditional(dist.Normal, MLP(3, [4]), (1, 2, 2), scale=0.2), code_shape=3
        )
    )
    q = round_trip(guides.Autoencoder(encoder=Deterministic(MLP((1, 2, 2), [4]), 3)))
    assert (
        type(p) is models.Autoencoder
        and p.code_shape == (3,)
        and p.likelihood.fixed_scale == pytest.approx(0.2)
    )
    assert type(q) is guides.Autoencoder and q.encoder.event_shape == (3,)


def test_a_subclass_comes_back_as_itself_and_never_as_its_parent():
    p = Scaled(
        default_prior(dist.Normal, 2), likelihood=Conditional(dist.Bernoulli, MLP(2, [8]), 64)
    )
    rebuilt = round_trip(p)
    assert type(rebuilt) is Scaled
    trace = poutine.trace(rebuilt).get_trace(torch.ones(3, 64))
    assert trace.nodes["x"]["scale"] == 0.5
    assert round_trip(WithNumber(p.prior, p.likelihood, number=7)).number == 7


@pytest.mark.parametrize(
    "loss",
    [
        ELBO(num_particles=3, beta=0.5, free_bits=0.1),
        ELBO(analytic_kl=False, max_plate_nesting=2, vectorize_particles=False),
        pyro.infer.Trace_ELBO(num_particles=4, vectorize_particles=True),
        pyro.infer.RenyiELBO(alpha=0.5, num_particles=2),
        pyro.infer.TraceMeanField_ELBO(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_bounds(loss):
    rebuilt = round_trip(loss)
    assert type(rebuilt) is type(loss)
    assert {k: v for k, v in vars(rebuilt).items() if k[0] != "_"} == {
        k: v for k, v in vars(loss).items() if k[0] != "_"
    }


# --- what cannot be described


def test_a_local_class_is_refused():
    class Local(nn.Module):
        pass

    for value in (Local, Local(), MLP(3, [4], activation=Local)):
        with pytest.raises(
            TypeError, match=r"Local is defined inside a function.*: move it to a module\.$"
        ):
            describe(value)


@pytest.mark.parametrize(
    "function",
    [lambda: nn.ReLU(), torch.sigmoid, functools.partial(nn.LeakyReLU, 0.2)],
    ids=["lambda", "torch", "partial"],
)
def test_a_function_as_argument_is_refused(function):
    with pytest.raises(
        TypeError, match="cannot be written to config.json: use a class in its place"
    ) as error:
        describe({"activation": function})
    # the sentence is compared when a run is resumed, in another process
    assert "0x" not in str(error.value)


def test_a_distribution_as_argument_is_refused_with_the_way_out():
    p = models.VAE(
        dist.Normal(torch.zeros(2), 1.0).to_event(1),
        Conditional(dist.Bernoulli, MLP(2, [8]), 64),
    )
    with pytest.raises(TypeError, match=r"tarspyro\.distributions\.Prior for a distribution"):
        describe(p)


@pytest.mark.parametrize(
    "network",
    [
        nn.LSTM(2, 3, num_layers=2, batch_first=True),
        nn.GRU(2, 3, bias=False, num_layers=2, dropout=0.5),
        nn.RNN(2, 3, nonlinearity="relu", bidirectional=True),
    ],
)
def test_recurrent_networks_are_described_in_full(network):
    again = build(json.loads(json.dumps(describe(network))))
    assert repr(again) == repr(network) and getattr(again, "nonlinearity", "") == getattr(
        network, "nonlinearity", ""
    )
    again.load_state_dict(network.state_dict())
    torch.manual_seed(0)
    x = torch.randn(4, 5, 2)
    torch.testing.assert_close(again.eval()(x)[0], network.eval()(x)[0])


@pytest.mark.parametrize(
    ("module", "argument"),
    [
        (Forgetful(3), "features"),
        (
            ForgetfulOption(nn.Tanh),
            "activation",
        ),  # built with the default it would be another network
        (Variadic(3, 3), "sizes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_an_argument_that_is_not_kept_is_named_with_the_fix(module, argument):
    fix = rf"does not keep its argument {argument}: store it as self\.{argument}, or derive .*Configurable\.$"
    with pytest.raises(TypeError, match=fix):
        describe(Conditional(dist.Normal, nn.Sequential(module, nn.Linear(3, 3)), 2))


def test_what_no_constructor_makes_is_named():
    normalized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with pytest.raises(TypeError, match="Linear has parametrizations, which its constructor"):
        describe(Conditional(dist.Normal, normalized, 2))


def test_a_half_of_the_user_that_keeps_nothing_works_by_its_base():
    class Keeper(StochasticModule):
        def __init__(self, anything):
            super().__init__()

    module = Keeper([1, 2])
    assert module.constructor_arguments == (([1, 2],), {})


# --- a stranger's configuration


HOSTILE = {
    "function": {"new": "os:system", "args": ["touch executed"], "kwargs": {}},
    "process": {"new": "subprocess:Popen", "args": [["touch", "executed"]], "kwargs": {}},
    "eval": {"class": "builtins:eval"},
    "new eval": {"new": "builtins:eval", "args": ["open('executed', 'w')"], "kwargs": {}},
    "class that is none of ours": {"class": "subprocess:Popen"},
    "function of torch": {"new": "torch.hub:load", "args": ["a", "b"], "kwargs": {}},
    "unpickler": {"new": "torch:load", "args": ["executed"], "kwargs": {}},
    "through a module": {
        "new": "torch.serialization:os.system",
        "args": ["touch executed"],
        "kwargs": {},
    },
    "class through a module": {"new": "torch.hub:sys.modules", "args": [], "kwargs": {}},
    "method": {"new": "torch.nn:Module.register_module", "args": [], "kwargs": {}},
    "module as a class": {"class": "torch:nn"},
    "distribution to build": {
        "new": "torch.distributions:Normal",
        "args": [0.0, 1.0],
        "kwargs": {},
    },
    "unknown keys": {"exec": "import os"},
    "no keys": {},
    "more keys": {"class": "torch.nn:ReLU", "new": "os:system", "args": [], "kwargs": {}},
    "more keys in a tensor": {"tensor": [1.0], "dtype": "float32", "device": "cuda"},
    "no arguments": {"new": "torch.nn:ReLU"},
    "arguments that are none": {"new": "torch.nn:ReLU", "args": 5, "kwargs": {}},
    "options that are none": {"new": "torch.nn:ReLU", "args": [], "kwargs": [1]},
    "path that is none": {"class": 7},
    "dtype of torch that is none": {"tensor": [1.0], "dtype": "load"},
    "dtype with a path": {"tensor": [1.0], "dtype": "nn.Module"},
    "dtype that is no text": {"parameter": [1.0], "dtype": {"class": "torch.nn:ReLU"}},
    "no dtype": {"tensor": [1.0]},
    "tuple that is none": {"tuple": 5},
    "dict that is none": {"dict": [1]},
}


@pytest.mark.parametrize("described", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_configuration_is_refused(described, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def called(*args, **kwargs):
        raise AssertionError("a stranger's file was obeyed")

    monkeypatch.setattr("os.system", called)
    monkeypatch.setattr(subprocess.Popen, "__init__", called)
    nested = {"new": "torch.nn:Sequential", "args": [described], "kwargs": {}}
    for value in (described, [described], {"dict": {"a": described}}, nested):
        with pytest.raises((TypeError, ImportError)):
            build(value)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_the_user_did_not_import_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "strangers_code.py").write_text(
        "open('executed', 'w')\nfrom torch.nn import ReLU\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sentence = r"uses ReLU of the module strangers_code: import strangers_code before loading the run\.$"
    for described in (
        {"class": "strangers_code:ReLU"},
        {"new": "strangers_code:ReLU", "args": [], "kwargs": {}},
    ):
        with pytest.raises(ImportError, match=sentence):
            build(described)
    assert not (tmp_path / "executed").exists() and "strangers_code" not in sys.modules


def test_scripts_of_torch_are_not_run():
    """Importing this one would run it: it has no guard around its main function."""
    with pytest.raises(ImportError):
        build({"class": "torch.utils.model_dump.__main__:main"})


@pytest.mark.parametrize(
    "path",
    [
        "torch.nn:NoSuchLayer",
        "torch.no_such_module:Layer",
        "torch.nn:",
        "",
        ":",
        "torch..nn:ReLU",
    ],
)
def test_a_class_that_is_not_there(path):
    with pytest.raises(ImportError):
        build({"class": path})


def test_a_class_of_the_user_that_is_gone(monkeypatch):
    described = describe(Block(3))
    monkeypatch.delattr(sys.modules[__name__], "Block")
    with pytest.raises(ImportError, match="has no such class: define it first"):
        build(described)
