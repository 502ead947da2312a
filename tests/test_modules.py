"""StochasticModule: names in Pyro's store, copies, printing, generation; the library's pairs
as plain Pyro programs.
"""

import copy
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import spline_coupling
from pyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch import nn

from tarspyro import (
    Conditional,
    Deterministic,
    StochasticModule,
    evaluate,
    fit,
    guides,
    models,
)
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, MovingAverage
from tarspyro.modules import copy_modules
from tarspyro.nn import MLP
from tarspyro.scopes import evaluating, local_parameters, own_store, preserved_rng


def pair():
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))


class _Flow(nn.Module):
    """A prior whose flow keeps the values of its last call, as Pyro's invertible ones do."""

    def __init__(self):
        super().__init__()
        self.flow = spline_coupling(2, count_bins=4)

    def forward(self, x):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


class _Near(nn.Module):
    def __init__(self):
        super().__init__()
        self.near = nn.Linear(2, 2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.near(x), 0.8).to_event(1))


def test_copies_of_modules_that_keep_results_of_a_graph():
    flow = _Flow()
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    flow(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(flow)

    copied = copy_modules({"model": flow, "again": flow})
    assert copied["model"] is copied["again"]
    assert torch.equal(copied["model"].flow(x), flow.flow(x))
    for copy_of, weight in zip(copied["model"].parameters(), flow.parameters(), strict=True):
        assert copy_of is not weight and copy_of.requires_grad and torch.equal(copy_of, weight)


def test_trainings_and_averages_of_modules_that_keep_results_of_a_graph():
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    model = _Flow()
    guide = _Near()
    model(x)
    MovingAverage(model).update(model)
    for _ in range(2):
        history = fit(model, guide, x, batch_size=20, lr=1e-6, progress=False)
    losses = torch.tensor([ELBO().loss(model, guide, x) for _ in range(100)]) / len(x)
    assert abs(history["loss"][-1] - losses.mean()) < 4 * losses.std()


def test_a_module_that_cannot_be_copied_is_trained():
    model = _Flow()
    model.draws = torch.Generator()
    model.names = (name for name in "ab")
    x = torch.zeros(40, 2)
    history = fit(model, _Near(), x, batch_size=20, lr=1e-3, progress=False)
    assert history["loss"][0] < 10


def test_printing_shows_the_factorization():
    model, guide = pair()
    assert str(model).splitlines() == [
        "VAE: p(x, z) = p(x | z) p(z)",
        "  likelihood: p(x | z) = Bernoulli(logits) of shape (64,) from MLP(2 -> 8, ReLU)",
        "  prior: p(z) = Normal(loc=0, scale=1) of shape (2,)",
    ]
    assert str(guide).startswith("VAE: q(z | x)\n  posterior: q(z | x) = Normal(loc, scale)")
    assert model.latex == r"p(x, z) = p(x \mid z) \, p(z)"
    assert model._repr_latex_() == (
        r"$$\begin{aligned} & p(x, z) = p(x \mid z) \, p(z) \\ "
        r"& p(x \mid z) = \mathrm{Bernoulli(logits)\ of\ shape\ (64,)} \\ "
        r"& p(z) = \mathrm{Normal(loc=0,\ scale=1)\ of\ shape\ (2,)} \end{aligned}$$"
    )
    assert guide._repr_latex_().count(r"q(z \mid x)") == 1


def test_conditions_and_indices_in_the_formula():
    class Two(StochasticModule):
        factors = {"a": "x | z_1, y", "b": "z_1 | z_2", "c": "z_2"}

    assert Two().formula == "p(x, z_1, z_2 | y) = p(x | z_1, y) p(z_1 | z_2) p(z_2)"
    assert r"z_{1} \mid z_{2}" in Two().latex


def test_a_module_without_factors_prints_like_any_other():
    class Bare(StochasticModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

    assert "Linear(in_features=1" in str(Bare())


def test_every_instance_and_copy_has_its_own_name():
    model, _ = pair()
    twin = copy.deepcopy(model)
    assert len({model.pyro_name, twin.pyro_name, pair()[0].pyro_name, model.pyro_name}) == 3
    assert str(twin) == str(model)
    model(batch_size=1), twin(batch_size=1)
    store = pyro.get_param_store()
    name = "likelihood.heads.logits.weight"
    assert store[f"{model.pyro_name}$$${name}"] is not store[f"{twin.pyro_name}$$${name}"]
    assert (
        dict(twin.likelihood.heads.named_parameters())["logits.weight"]
        is not model.likelihood.heads["logits"].weight
    )


def test_the_store_is_left_alone_with_local_parameters():
    model, _ = pair()
    with local_parameters():
        model(batch_size=3)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize(
    "wrong", ["x", 3.0, [0.0], torch.tensor(1.0).numpy(), torch.tensor(1.0)]
)
def test_arguments_are_checked_at_a_call_and_at_a_bound_s_first_run(wrong):
    model, guide = pair()
    message = "VAE takes tensors with a row for each data point, got"
    for call in (model, guide, lambda x: ELBO().loss(model, guide, x)):
        with pytest.raises(TypeError, match=message):
            call(wrong)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model(batch_size=0)


def test_generation_and_conditions():
    model, guide = pair()
    assert model(batch_size=7).shape == (7, 64) and model().shape == (1, 64)
    z = torch.randn(5, 2)
    trace = poutine.trace(poutine.condition(model, {"z": z})).get_trace(batch_size=5)
    torch.testing.assert_close(trace.nodes["x"]["fn"].mean, model.likelihood.mean(z))
    draws = Predictive(model, num_samples=3)(batch_size=4)
    assert draws["x"].shape == (3, 4, 64)
    assert guide(torch.zeros(4, 64)).shape == (4, 2)


def test_an_autoencoder_decodes_codes_and_cannot_be_drawn_from():
    model = models.Autoencoder(Conditional(dist.Bernoulli, MLP(2, [8]), 64), 2)
    guide = guides.Autoencoder(Deterministic(MLP(64, [8]), 2))
    z = guide(torch.rand(5, 64))
    torch.testing.assert_close(z, guide(torch.rand(5, 64)) * 0 + z)
    assert pyro.condition(model, {"z": z})(batch_size=5).shape == (5, 64)
    with pytest.raises(NotImplementedError):
        model(batch_size=5)


def test_the_graph_is_drawn_from_the_program():
    model, _ = pair()
    from pyro.infer.inspect import get_dependencies

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dependencies = get_dependencies(model, model_args=(torch.rand(3, 64).round(),))[
            "prior_dependencies"
        ]
    assert set(dependencies["x"]) == {"x", "z"} and set(dependencies["z"]) == {"z"}


def test_evaluating_gives_back_every_module_s_mode():
    model, _ = pair()
    model.train()
    model.likelihood.trunk.eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert model.training and not model.likelihood.trunk.training
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training


def test_preserved_rng():
    state = torch.get_rng_state()
    with preserved_rng(seed=1):
        first = torch.randn(3)
    with preserved_rng(seed=1):
        torch.testing.assert_close(first, torch.randn(3))
    with preserved_rng():
        torch.randn(3)
    assert torch.equal(state, torch.get_rng_state())


def test_moving_a_pair_moves_its_prior():
    model, guide = pair()
    model.double(), guide.double()
    x = torch.rand(4, 64).round().double()
    assert guide(x).dtype == torch.float64 and model(batch_size=2).dtype == torch.float64
    given = models.VAE(dist.Normal(torch.zeros(2), 1.0).to_event(1), model.likelihood).double()
    assert given.prior().base_dist.loc.dtype == torch.float64


def test_own_store_keeps_what_functions_declare_and_forgets_what_modules_register():
    pyro.param("before", torch.zeros(2))
    layer = nn.Linear(2, 2)
    pyro.module("layer", layer)
    with own_store():
        store = pyro.get_param_store()
        assert set(store.keys()) == {"before"}
        pyro.param("before")
        pyro.param("inside", torch.ones(1), constraint=dist.constraints.positive)
        pyro.module("layer", nn.Linear(2, 2))
        with torch.no_grad():
            pyro.param("before").add_(3.0)
    assert set(pyro.get_param_store().keys()) == {
        "before",
        "inside",
        "layer$$$weight",
        "layer$$$bias",
    }
    assert pyro.param("before").tolist() == [3.0, 3.0] and pyro.param("inside").item() == 1.0
    assert pyro.param("layer$$$weight") is layer.weight


def test_lazy_layers_register_under_svi():
    torch.manual_seed(0)
    guide = guides.VAE(
        Conditional(dist.Normal, nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), 2)
    )
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), (1, 8, 8))
    )
    x = torch.rand(5, 1, 8, 8).round()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    svi.step(x)
    before = guide.posterior.heads["loc"][1].weight.detach().clone()
    svi.step(x)
    assert not torch.equal(before, guide.posterior.heads["loc"][1].weight)


def in_a_plate(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


# Pyro's store has one entry for the parameters of all automatic guides of a class.
def test_an_evaluation_leaves_no_parameters_for_another_guide_of_the_class():
    x = torch.linspace(-2.0, 2.0, 10)
    settings = {"lr": 0.05, "seed": 0, "progress": False}
    other = AutoNormal(in_a_plate)
    fit(in_a_plate, other, x, epochs=1, **settings)
    evaluate.elbo(in_a_plate, other, x, seed=0)
    guide = AutoNormal(in_a_plate)
    fit(in_a_plate, guide, x, epochs=200, **settings)
    before = guide.locs.z.clone()
    found = evaluate.log_likelihood(in_a_plate, guide, x, num_particles=500, seed=0)
    torch.testing.assert_close(guide.locs.z, before, rtol=0, atol=0)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    assert not any(name.startswith("AutoNormal") for name in pyro.get_param_store())


def test_a_parameter_that_a_function_declares_by_a_module_s_class_is_kept():
    def model(x):
        loc = pyro.param("loc", nn.Parameter(torch.zeros(())))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        bias = pyro.param("bias", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + bias, 0.7))

    x = torch.linspace(2.0, 4.0, 10)
    fit(model, guide, x, epochs=90, lr=0.1, seed=0, progress=False)
    assert abs(pyro.param("loc").item() - 3) < 0.2  # the mean of x
    found = evaluate.log_likelihood(model, guide, x, num_particles=500, seed=0)
    exact = dist.Normal(pyro.param("loc").item(), 2**0.5).log_prob(x)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.1)
    pyro.clear_param_store()
