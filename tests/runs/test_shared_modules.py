"""Modules that stand in several places, or in both halves: described once, and one module when
they come back.
"""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import Conditional, Run, StochasticModule, fit, guides, load_run, models
from tarspyro.distributions import VampPrior, default_prior
from tarspyro.infer import ELBO
from tarspyro.modules import Configurable
from tarspyro.nn import MLP
from tarspyro.runs import RunError
from tarspyro.runs.description import build, describe, refers
from tarspyro.scopes import local_parameters

X = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)).round()


class Twice(Configurable):
    """A trunk that runs what it is given, one after the other."""

    def __init__(self, first, second, extra=None):
        super().__init__()
        self.first, self.second, self.extra = first, second, extra
        self.out_features = 4

    def forward(self, x):
        return self.second(self.first(x))


class TopDown(StochasticModule):
    """A guide that holds the model's own conditional, as that of a ladder VAE does."""

    density, factors = "q", {"posterior": "z | x"}

    def __init__(self, posterior, likelihood):
        super().__init__()
        self.posterior, self.likelihood = posterior, likelihood

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample(
                "z", self.posterior(x + 0 * self.likelihood.mean(torch.zeros(len(x), 2)))
            )


def vamp_pair(hidden=(4,), **how):
    posterior = Conditional(dist.Normal, MLP(6, hidden, **how), 2)
    likelihood = Conditional(dist.Bernoulli, MLP(2, [4]), 6)
    return models.VAE(VampPrior(posterior, (5, 6)), likelihood), guides.VAE(posterior)


def ladder_pair():
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 6))
    return p, TopDown(Conditional(dist.Normal, MLP(6, [4]), 2), p.likelihood)


def common(p, q):
    return {id(parameter) for parameter in p.parameters()} & {
        id(parameter) for parameter in q.parameters()
    }


def train(pair, folder, **options):
    return fit(
        *pair,
        X,
        **{
            "epochs": 1,
            "batch_size": 20,
            "seed": 0,
            "progress": False,
            "folder": folder,
            **options,
        },
    )


# --- within one object


def test_a_module_in_two_places_comes_back_as_one():
    layer = nn.Linear(4, 4)
    described = describe(nn.Sequential(layer, nn.Tanh(), layer))
    assert described["args"][2] == {"ref": "#/args/0"}
    back = build(json.loads(json.dumps(described)))
    assert back[0] is back[2] and back[0] is not layer


def test_a_module_in_containers_and_behind_strange_names():
    layer = nn.Linear(4, 4)
    for extra in ([layer], (layer,), {"a/b~c": layer}, {"a/b~c": [(layer,)]}):
        found = describe(Twice(layer, nn.Tanh(), extra))
        assert json.dumps(found).count("torch.nn.Linear") == 1
        back = build(json.loads(json.dumps(found)))
        inside = back.extra
        while not isinstance(inside, nn.Module):
            inside = next(iter(inside.values())) if isinstance(inside, dict) else inside[0]
        assert inside is back.first
    # and in the other order: what is first described inside a container
    back = build(describe([{"dict": 1}, ({"a/b~c": layer},), Twice(layer, nn.Tanh())]))
    assert back[1][0]["a/b~c"] is back[2].first


def test_pointers_are_those_of_the_standard():
    """RFC 6901, section 3: a tilde and a slash in a name are written ~0 and ~1."""
    layer = nn.Linear(4, 4)
    described = describe({"a/b~c": layer, "again": layer})
    assert described["dict"]["again"] == {"ref": "#/dict/a~1b~0c"}


def test_what_has_no_weights_is_described_wherever_it_stands():
    """Configurations that were written before references existed stay what a new description
    gives.
    """
    activation = nn.Tanh()
    network = nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 4), activation)
    assert not refers(describe(network), "#")


def test_buffers_alone_are_shared_too():
    prior = default_prior(dist.Normal, 2)
    first, second = build(describe([prior, prior]))
    assert first is second


HOSTILE = {
    "forward": [{"ref": "#/1"}, {"new": "torch.nn:Tanh", "args": [], "kwargs": {}}],
    "itself": {"new": "torch.nn:Sequential", "args": [{"ref": "#"}], "kwargs": {}},
    "a value that is no object": [1, {"ref": "#/0"}],
    "a file": {"ref": "file:///etc/passwd"},
    "more than a reference": [
        {"new": "torch.nn:Tanh", "args": [], "kwargs": {}},
        {"ref": "#/0", "args": []},
    ],
    "no text": {"ref": 0},
}


@pytest.mark.parametrize("described", HOSTILE.values(), ids=HOSTILE)
def test_a_reference_reaches_only_what_was_built_before(described):
    with pytest.raises(TypeError):
        build(described)


# --- in both halves


@pytest.mark.parametrize("make", [vamp_pair, ladder_pair])
def test_halves_that_share_come_back_sharing(make, tmp_path):
    pair = make()
    train(pair, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    shared = pair[0].prior.posterior if make is vamp_pair else pair[0].likelihood
    assert text.count('"tarspyro.Conditional"') == 2  # and not three
    run = load_run(tmp_path / "run")
    back = run.model.prior.posterior if make is vamp_pair else run.model.likelihood
    assert back is (run.guide.posterior if make is vamp_pair else run.guide.likelihood)
    assert back is not shared and len(common(run.model, run.guide)) == len(common(*pair)) > 0
    for half, other in zip(pair, (run.model, run.guide), strict=True):
        for (name, one), two in zip(
            half.state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(one, two), name
    # and going on with it keeps them together
    train((run.model, run.guide), Run(tmp_path / "run", resume=True), epochs=2)
    for one, two in zip(
        back.parameters(),
        (run.guide.posterior if make is vamp_pair else back).parameters(),
        strict=True,
    ):
        assert one is two


def test_resuming_equals_the_uninterrupted_run(tmp_path):
    results = []
    for folder, epochs in ((tmp_path / "one", [2]), (tmp_path / "two", [1, 2])):
        for number, count in enumerate(epochs):
            torch.manual_seed(0)
            pair = vamp_pair()
            history = train(pair, Run(folder, resume=number > 0), epochs=count)
        results.append((history.step_losses, pair[0].state_dict()))
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name])


def test_one_half_alone_cannot_be_given(tmp_path):
    pair = vamp_pair()
    train(pair, tmp_path / "run")
    for given in ({"model": pair[0]}, {"guide": pair[1]}):
        with pytest.raises(
            RunError,
            match="halves that share modules: pass both, model=... and guide=..., or neither",
        ):
            load_run(tmp_path / "run", **given)
    run = load_run(tmp_path / "run", model=pair[0], guide=pair[1])
    assert (run.model, run.guide) == pair


class Unkept(nn.Module):
    """A likelihood that no file can describe."""

    def __init__(self, network):
        super().__init__()
        self.inside = network

    def forward(self, z):
        return self.inside(z)


@pytest.mark.parametrize("half", ["model", "guide"])
def test_halves_that_share_are_rebuilt_together_or_not_at_all(half, tmp_path):
    """With only one of them rebuilt, the shared module would quietly become two."""
    p, q = vamp_pair()
    if half == "model":
        p = models.VAE(p.prior, Unkept(p.likelihood))
    else:
        q = guides.VAE(Unkept(q.posterior))
    train((p, q), tmp_path / "run")
    with pytest.raises(RunError, match="cannot rebuild its model"):
        load_run(tmp_path / "run")
    other = {"guide": q} if half == "guide" else {"model": p}
    with pytest.raises(RunError, match="share weights"):
        load_run(tmp_path / "run", **other)
    assert load_run(tmp_path / "run", model=p, guide=q).model is p


def test_what_was_shared_after_the_halves_were_built_is_noticed(tmp_path):
    """The constructors would make two networks, which the next step of a training would tell
    apart.
    """
    p, q = vamp_pair()
    p = models.VAE(default_prior(dist.Normal, 2), p.likelihood)
    q.posterior.heads["scale"] = q.posterior.heads["loc"]
    train((p, q), tmp_path / "within")
    with pytest.raises(RunError, match="cannot rebuild its guide .*changed later"):
        load_run(tmp_path / "within")
    p, q = ladder_pair()
    q = TopDown(q.posterior, Conditional(dist.Bernoulli, MLP(2, [4]), 6))
    q.likelihood = p.likelihood
    train((p, q), tmp_path / "across")
    with pytest.raises(RunError, match="share weights"):
        load_run(tmp_path / "across")


def test_pairs_that_share_nothing_are_described_as_ever(tmp_path):
    p, q = vamp_pair()
    p = models.VAE(default_prior(dist.Normal, 2), p.likelihood)
    train((p, q), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"] == describe(p) and config["guide"] == describe(q)
    assert not refers(config["guide"], "#")


def test_a_configuration_from_before_references_still_loads(tmp_path):
    """Halves that share were then described each in full."""
    pair = vamp_pair()
    train(pair, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "guide": describe(pair[1])}))
    run = load_run(tmp_path / "run")
    assert torch.equal(run.guide.posterior.mean(X), pair[1].posterior.mean(X))


def test_a_shared_module_is_trained_by_svi_as_by_any_optimizer():
    """Each half registers it under a name of its own: it must be one parameter, and take one
    step.
    """
    results = []
    for how in ("svi", "torch"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        p, q = vamp_pair()
        torch.manual_seed(1)
        if how == "svi":
            svi = pyro.infer.SVI(p, q, pyro.optim.SGD({"lr": 1e-3}), ELBO())
            losses = [svi.step(X) for _ in range(3)]
        else:
            parameters = list(
                {
                    id(parameter): parameter
                    for half in (p, q)
                    for parameter in half.parameters()
                }.values()
            )
            optimizer, losses = torch.optim.SGD(parameters, lr=1e-3), []
            for _ in range(3):
                with local_parameters():
                    loss = ELBO().differentiable_loss(p, q, X)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        results.append((losses, q.posterior.heads["loc"].weight.detach()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1])
