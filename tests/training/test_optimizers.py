"""The class Optimizer: options, players, partial classes, clipping."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, Optimizer, data, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import AdversarialAutoencoder
from tarspyro.nn import MLP, Discriminator


@pytest.fixture(scope="module")
def x():
    return data.digits().train.x[:200].round()


def pair():
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(2, [8]), 64)
    model = models.VAE(default_prior(dist.Normal, 2), likelihood)
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))


def losses(x, **options):
    options = {"epochs": 2, "seed": 0, "progress": False, **options}
    return fit(*pair(), x, **options).step_losses


def test_a_class_a_partial_and_an_optimizer_are_the_same(x):
    adamw = torch.optim.AdamW
    expected = losses(x, optimizer=Optimizer(adamw, weight_decay=0.5), lr=1e-2)
    partial = functools.partial(adamw, weight_decay=0.5)
    assert losses(x, optimizer=partial, lr=1e-2) == expected
    assert losses(x, optimizer=Optimizer(partial), lr=1e-2) == expected
    assert losses(x, optimizer=Optimizer(adamw, weight_decay=0.5, lr=1e-2)) == expected
    assert losses(x, optimizer=functools.partial(partial, lr=1e-2)) == expected
    assert losses(x, optimizer=adamw, lr=1e-2) != expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"amsgrad": True, "weight_decay": 0.1},
        {"betas": (0.5, 0.9), "eps": 1e-3, "maximize": True},
    ],
)
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_steps_are_those_of_torch(x, cls, options):
    class Own(cls):  # not Adam itself, so that ``fit`` calls its ``step``
        steps = 0

        def step(self, closure=None):
            Own.steps += 1
            return super().step(closure)

    how = {"schedules": {"lr": lambda step: 1e-2 / (1 + step)}, "epochs": 3}
    expected = losses(x, optimizer=Optimizer(Own, fused=True, **options), **how)
    assert losses(x, optimizer=Optimizer(cls, **options), **how) == expected
    assert Own.steps == len(expected)


def test_fused_steps_take_parameters_of_two_types(x):
    class Own(torch.optim.Adam):
        pass

    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(64))
        shift = pyro.param("shift", lambda: torch.zeros((), dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + shift.float(), 1.0).to_event(1), obs=x)

    how = {"epochs": 3, "lr": 0.1, "seed": 0, "progress": False}
    found = []
    for cls in (Own, torch.optim.Adam):
        pyro.clear_param_store()  # which holds what the first training has found
        found.append(fit(model, None, x, optimizer=Optimizer(cls, fused=True), **how))
    expected, found = found
    assert found.step_losses == expected.step_losses
    assert found.step_losses[-1] < found.step_losses[0]


def test_the_learning_rate_is_given_once(x):
    assert losses(x, optimizer=Optimizer(lr=1e-2), lr=1e-2) == losses(x, lr=1e-2)
    message = "lr=0.01 of fit and lr=0.1 of the optimizer differ"
    with pytest.raises(ValueError, match=message):
        losses(x, optimizer=Optimizer(lr=0.1), lr=1e-2)


def test_options_of_a_player_are_for_it_alone(x):
    codes, weights = Discriminator(MLP(2, [8])), []
    game = AdversarialAutoencoder(codes)
    before = [parameter.clone() for parameter in codes.parameters()]
    model, guide = pair()
    still = Optimizer(torch.optim.SGD, discriminator={"lr": 0.0})
    weights = [parameter.clone() for parameter in guide.parameters()]
    fit(model, guide, x, loss=game, optimizer=still, lr=0.1, epochs=1, progress=False)
    assert all(map(torch.equal, before, codes.parameters()))
    assert not all(map(torch.equal, weights, guide.parameters()))
    with pytest.raises(ValueError, match="options for 'critic', .*: the players are "):
        fit(model, guide, x, loss=game, optimizer=Optimizer(critic={"lr": 1.0}))


def test_representation():
    adam = Optimizer(torch.optim.AdamW, weight_decay=0.1, clip_norm=5.0, on_nonfinite="skip")
    shown = "Optimizer(AdamW, weight_decay=0.1, clip_norm=5.0, on_nonfinite='skip')"
    assert repr(adam) == shown


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Optimizer("adam"), TypeError, "class of a torch optimizer.* got 'adam'"),
        (
            lambda: Optimizer(torch.optim.Adam([torch.zeros(1)])),
            TypeError,
            "optimizer must be the class of a torch optimizer",
        ),
        (lambda: Optimizer(clip_norm=0.0), ValueError, "clip_norm must be positive, got 0"),
        (lambda: Optimizer(clip_value="x"), TypeError, "clip_value must be a number, got 'x'"),
        (lambda: Optimizer(on_nonfinite="go"), ValueError, "'stop' or 'skip', got 'go'"),
    ],
)
def test_errors(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "kind"), [({"nesterovv": True}, TypeError), ({"eps": -1.0}, ValueError)]
)
def test_options_that_do_not_suit_the_class(options, kind, x):
    with pytest.raises(kind, match="optimizer has options that do not suit Adam: "):
        losses(x, optimizer=Optimizer(torch.optim.Adam, **options))


class Words(torch.nn.Module):
    """A likelihood of labels by an embedding."""

    def __init__(self, sparse):
        super().__init__()
        self.table = torch.nn.Embedding(5, 3, sparse=sparse)

    def forward(self, y, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.table(y), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_sparse_gradients_are_refused_before_the_first_step(optimizer):
    y = torch.arange(20) % 5
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    settings = {"optimizer": optimizer, "epochs": 1, "progress": False, "seed": 0}
    with pytest.raises(ValueError, match=f"{optimizer.__name__} takes no sparse.*sparse=True"):
        fit(Words(True), lambda y, x: None, (y, values), **settings)
    fit(Words(False), lambda y, x: None, (y, values), **settings)
