"""Tests on the accelerator of this machine: placement, no synchronization inside a step, and
the same numbers as on the CPU.

``tests/accelerator`` runs them on a pretended one.
"""

import contextlib
import gc
import math
import warnings
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from tarspyro import (
    Conditional,
    Deterministic,
    Optimizer,
    Run,
    accelerators,
    embed,
    evaluate,
    fit,
    fit_prior,
    guides,
    models,
)
from tarspyro.accelerators import accelerator
from tarspyro.data import digits
from tarspyro.distributions import (
    Beta,
    Chi2,
    Dirichlet,
    Gamma,
    GumbelSigmoid,
    GumbelSoftmax,
    Kumaraswamy,
    PowerSpherical,
    VonMisesFisher,
    default_prior,
)
from tarspyro.infer import ELBO, IWAE, PIWAE, Adversarial, Compiled, Renyi
from tarspyro.nn import MLP, Backward, Discriminator
from tarspyro.scopes import local_parameters
from tarspyro.training.checks import NonFiniteError
from tarspyro.training.losses import Objective
from tarspyro.training.state import TrainingState
from tarspyro.training.trainer import Trainer

DEVICE = accelerator()
MODULE = torch.get_device_module(DEVICE or "cpu")
IS_CUDA = DEVICE == "cuda"
pytestmark = pytest.mark.skipif(
    DEVICE is None or not hasattr(MODULE, "set_sync_debug_mode"),
    reason="no accelerator that tells when it waits",
)


def needs_compiler(backend):
    """A compiler that writes code for CUDA."""
    return pytest.param(backend, marks=pytest.mark.skipif(not IS_CUDA, reason="no CUDA"))


def pair():
    torch.manual_seed(0)
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [32]), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [32]), 2))


@contextlib.contextmanager
def refused_waits():
    """An operation that waits for the device is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        MODULE.set_sync_debug_mode("error")
    try:
        yield
    finally:
        MODULE.set_sync_debug_mode("default")


SAMPLERS = {
    "Gamma": lambda a: Gamma(a, 2 * a),
    "Gamma, implicit": lambda a: Gamma(a, 2 * a, reparameterization="implicit"),
    "Beta": lambda a: Beta(a, 2 * a),
    "Dirichlet": lambda a: Dirichlet(a.expand(3)),
    "GumbelSoftmax": lambda a: GumbelSoftmax(a.expand(3), temperature=0.5),
    "GumbelSigmoid": lambda a: GumbelSigmoid(a, temperature=0.5),
    "Kumaraswamy": lambda a: Kumaraswamy(a, 2 * a),
    "Chi2": lambda a: Chi2(a),
    "VonMisesFisher": lambda a: VonMisesFisher(torch.eye(3, device=a.device)[0], a),
    "PowerSpherical": lambda a: PowerSpherical(torch.eye(3, device=a.device)[0], a),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_samplers_draw_on_the_device_without_waiting_for_it(make):
    with pyro.validation_enabled(False):
        a = torch.tensor(0.5, device=DEVICE, requires_grad=True)
        with refused_waits():
            q = make(a)
            z = q.rsample((100_000,))
            (q.log_prob(z).mean() + z.mean()).backward()
    assert z.device.type == DEVICE and z.isfinite().all() and a.grad.isfinite()
    on_cpu = make(torch.tensor(0.5)).sample((100_000,))
    error = (z.var(0) / len(z) + on_cpu.to(DEVICE).var(0) / len(z)).sqrt()
    assert ((z.mean(0) - on_cpu.to(DEVICE).mean(0)).abs() < 4 * error).all()


def test_samplers_can_be_captured_as_a_graph():
    a = torch.full((1000,), 0.5, device=DEVICE, requires_grad=True)

    def step():
        z = Gamma(a, torch.ones((), device=DEVICE), validate_args=False).rsample()
        return z, torch.autograd.grad(z.sum(), a)[0]

    stream = MODULE.Stream()
    with MODULE.stream(stream):
        step()
    MODULE.synchronize()
    graph = MODULE.CUDAGraph()
    with MODULE.graph(graph):
        z, gradient = step()
    graph.replay()
    first = z.clone()
    graph.replay()
    assert not torch.equal(first, z) and z.isfinite().all() and gradient.isfinite().all()


def test_trains_and_evaluates_where_the_parameters_are():
    data = digits()
    model, guide = pair()
    history = fit(
        model,
        guide,
        data.train,
        epochs=5,
        binarize=True,
        validation=data.test,
        seed=0,
        progress=False,
    )
    assert (
        next(model.parameters()).device.type == DEVICE
        and model.prior().base_dist.loc.device.type == DEVICE
    )
    assert history["elbo"][-1] > history["elbo"][0]
    codes = embed(guide, data.test)
    assert codes.device == data.test.x.device
    on_gpu = evaluate.log_likelihood(
        model, guide, data.test.x.round(), num_particles=2000, seed=0
    )
    on_cpu = evaluate.log_likelihood(
        model.cpu(), guide.cpu(), data.test.x.round(), num_particles=2000, seed=0
    )
    assert abs(on_gpu.mean() - on_cpu.mean()) < 0.05


def test_inference_is_measured_where_the_parameters_are():
    x = digits().test.x[:20].round()
    model, guide = (half.to(DEVICE) for half in pair())
    weighted = evaluate.log_likelihood(
        model, guide, x, num_particles=2000, errors=True, seed=0
    )
    for start in ("prior", "guide"):
        annealed = evaluate.annealed_log_likelihood(
            model, guide, x, num_steps=50, num_leapfrog=5, start=start, errors=True, seed=0
        )
        assert annealed.log_likelihood.device == x.device
        error = (annealed.standard_error**2 + weighted.standard_error**2).sqrt()
        assert ((annealed.log_likelihood - weighted.log_likelihood).abs() < 5 * error).all()
    found = evaluate.gaps(model, guide, x, num_steps=50, seed=0)
    assert found.approximation.device == x.device and found.amortization.isfinite().all()
    draws = evaluate.true_posterior(model, x[:2], num_samples=20, warmup=20, seed=0)
    kl = evaluate.posterior_kl(model, guide, x[:2], draws, seed=0)
    assert draws["z"].device == kl.posterior_to_guide.value.device == x.device


def test_a_step_does_not_wait_for_the_device():
    model, guide = (half.to(DEVICE) for half in pair())
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    objective = Objective(ELBO(), model, guide)
    objective.add_players([*model.parameters()], [*guide.parameters()])
    trainer = Trainer(objective, TrainingState(objective.halves, [optimizer]))
    x = torch.rand(100, 64, device=DEVICE).round()
    trainer.step((x,))  # the first step of a shape validates, which reads values back
    with refused_waits(), pyro.validation_enabled(False):
        for _ in range(10):
            trainer.step((x,))


BOUNDS = {
    "ELBO, stl": lambda: ELBO(gradient="stl"),
    "IWAE": lambda: IWAE(5, num_groups=2),
    "IWAE, dreg": lambda: IWAE(5, gradient="dreg"),
    "VR-max": lambda: Renyi(-math.inf, 5),
    "PIWAE": lambda: PIWAE(2, 2),
}


@pytest.mark.parametrize("make", BOUNDS.values(), ids=BOUNDS)
def test_bounds_run_on_the_device_without_waiting_for_it(make):
    model, guide = (half.to(DEVICE) for half in pair())
    bound, x = make(), torch.rand(20, 64, device=DEVICE).round()
    with local_parameters(), pyro.validation_enabled(False):
        bound.differentiable_loss(
            model, guide, x
        )  # the structure is found by a run of its own
        with refused_waits():
            loss = bound.differentiable_loss(model, guide, x)
            loss.backward()
    assert loss.device.type == DEVICE and all(
        parameter.grad is not None for parameter in guide.parameters()
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager", needs_compiler("inductor")])
def test_compiled_steps_train_on_the_device(backend):
    model, guide = pair()
    loss = Compiled(ELBO(), choose=False, backend=backend)
    history = fit(
        model,
        guide,
        digits().train.x,
        loss=loss,
        epochs=5,
        binarize=True,
        seed=0,
        progress=False,
    )
    assert (
        history["loss"][-1] < history["loss"][0]
        and next(model.parameters()).device.type == DEVICE
    )


@pytest.mark.parametrize("backend", ["eager", needs_compiler("inductor")])
def test_a_captured_step_trains_as_the_eager_one(backend, monkeypatch):
    """No noise in the pair: parameters, schedules, clipping and the optimizer's count of steps
    must agree.
    """
    replayed = []
    replay = MODULE.CUDAGraph.replay

    def count(graph):
        replayed.append(graph)
        replay(graph)

    monkeypatch.setattr(MODULE.CUDAGraph, "replay", count)
    trained = []
    for loss in (ELBO(), Compiled(ELBO(), backend=backend, choose=False)):
        torch.manual_seed(0)
        p = models.Autoencoder(Conditional(dist.Bernoulli, MLP(2, [32]), 64), 2).to(DEVICE)
        q = guides.Autoencoder(Deterministic(MLP(64, [32]), 2)).to(DEVICE)
        history = fit(
            p,
            q,
            digits().train.x[:450].round(),
            loss=loss,
            epochs=10,
            schedules={"lr": lambda step: 1e-2 / (1 + step / 10)},
            optimizer=Optimizer(clip_norm=1.0),
            device=DEVICE,
            seed=0,
            progress=False,
        )
        trained.append(([*p.parameters(), *q.parameters()], history["loss"]))
        assert bool(replayed) == isinstance(loss, Compiled)
    (eager, losses), (captured, same_losses) = trained
    torch.testing.assert_close(
        torch.tensor(same_losses), torch.tensor(losses), rtol=1e-4, atol=1e-4
    )
    for one, other in zip(eager, captured, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_captured_step_draws_fresh_noise():
    p, q = (half.to(DEVICE) for half in pair())
    bound = Compiled(ELBO(), backend="eager", choose=False)
    x = digits().train.x[:100].round().to(DEVICE)
    parameters = [*p.parameters(), *q.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    losses = []
    with local_parameters(), pyro.validation_enabled(False):
        for _ in range(20):
            loss, _ = bound.accumulate_gradients(p, q, x, update=optimizer.step)
            losses.append(loss.item())
            for parameter in parameters:
                parameter.grad = None
    assert len(set(losses)) == 20


def noiseless(seed=0):
    torch.manual_seed(seed)
    p = models.Autoencoder(Conditional(dist.Bernoulli, MLP(2, [16]), 64), 2)
    return p, guides.Autoencoder(Deterministic(MLP(64, [16]), 2))


def train(pair, loss, **how):
    x = digits().train.x[:450].round()
    return fit(*pair, x, loss=loss, **{"seed": 0, "progress": False, "epochs": 3, **how})


def weights(pair):
    return [
        parameter.detach().cpu().clone() for half in pair for parameter in half.parameters()
    ]


def recorded(**how):
    return Compiled(ELBO(), backend="eager", **{"choose": False, **how})


@pytest.fixture
def replayed(monkeypatch):
    """The graphs that were replayed, in their order."""
    found = []
    replay = accelerators.Graph.replay
    monkeypatch.setattr(
        accelerators.Graph, "replay", lambda graph: (found.append(id(graph)), replay(graph))
    )
    return found


@pytest.mark.parametrize("make", [ELBO, recorded], ids=["eager", "captured"])
def test_a_resumed_training_is_exact(make, tmp_path):
    """Noise of the device, optimizer and order go on where they were."""
    whole = pair()
    train(whole, make(), binarize=True, epochs=4)
    stopped = pair()
    train(stopped, make(), binarize=True, epochs=2, folder=tmp_path / "run")
    torch.rand(5, device=DEVICE)
    train(stopped, make(), binarize=True, epochs=4, folder=Run(tmp_path / "run", resume=True))
    for one, other in zip(weights(whole), weights(stopped), strict=True):
        assert torch.equal(one, other)


def test_one_compiled_loss_trains_twice(replayed):
    """The second training has an optimizer of its own, whose learning rate is zero."""
    loss = recorded()
    halves = noiseless()
    train(halves, loss, lr=1e-2)
    before = weights(halves)
    first = len(replayed)
    train(halves, loss, lr=0.0)
    assert 0 < first < len(replayed)
    for one, other in zip(before, weights(halves), strict=True):
        assert torch.equal(one, other)


def test_graphs_are_dropped_with_their_training(replayed):
    loss = recorded()
    train(noiseless(), loss)
    gc.collect()
    assert replayed and not [o for o in gc.get_objects() if type(o) is accelerators.Graph]


def test_a_captured_step_has_the_scale_of_its_call(replayed):
    p, q = (half.to(DEVICE) for half in noiseless())
    x = digits().train.x[:100].round().to(DEVICE)
    loss = recorded()
    norms = {}
    with local_parameters(), pyro.validation_enabled(False):
        for scale in [1.0] * 8 + [3.0] * 2:
            loss.accumulate_gradients(p, q, x, scale=scale, update=do_nothing)
            gradient = torch.cat([w.grad.flatten() for w in p.parameters()])
            norms[scale] = gradient.norm().item()
            for parameter in (*p.parameters(), *q.parameters()):
                parameter.grad = None
    assert len(replayed) >= 4
    assert norms[3.0] == pytest.approx(3 * norms[1.0], rel=1e-5)


def do_nothing():
    pass


@pytest.mark.filterwarnings("ignore:Compiled, a step takes")
def test_replays_are_timed_before_the_choice(replayed):
    """As many as of the eager steps, and one that is not counted."""
    at_choice = []
    loss = recorded(choose=True, report=lambda line: at_choice.append((line, len(replayed))))
    train(noiseless(), loss, epochs=8)
    line, count = at_choice[-1]
    # If the eager steps are faster, the replays end there.
    assert (count if "instead of" in line else len(replayed)) == 6


def test_a_game_has_its_columns_when_captured(replayed):
    rows = []
    for compiled in (False, True):
        torch.manual_seed(0)
        p = models.GAN(default_prior(dist.Normal, 2), Deterministic(MLP(2, [8]), 64))
        game = Adversarial(Discriminator(MLP(64, [8])))
        x = digits().train.x[:200]
        with_backend = recorded_games() if compiled else contextlib.nullcontext()
        with with_backend:
            history = fit(
                p, None, x, loss=game, seed=0, epochs=6, progress=False, compile=compiled
            )
        rows.append({k: v for k, v in history.rows[-1].items() if k != "seconds"})
    assert replayed and rows[0].keys() == rows[1].keys()
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)


@contextlib.contextmanager
def recorded_games():
    """``compile=True`` without a compiler."""
    compile = Objective.compile
    with mock.patch.object(
        Objective, "compile", lambda self, **how: compile(self, backend="eager", choose=False)
    ):
        yield


@pytest.mark.skipif(DEVICE is None or MODULE.device_count() < 2, reason="one device")
def test_another_device_than_the_current_one(replayed):
    """It is the current one meanwhile, for graphs and random states."""
    trained = []
    try:
        for current in (0, 1):
            MODULE.set_device(current)
            halves = pair()
            train(halves, recorded(), device=f"{DEVICE}:0", binarize=True)
            assert {w.device.index for half in halves for w in half.parameters()} == {0}
            assert MODULE.current_device() == current
            trained.append(weights(halves))
    finally:
        MODULE.set_device(0)
    assert replayed
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [ELBO, recorded], ids=["eager", "captured"])
def test_a_loss_that_is_not_finite_is_described_with_its_batch(make):
    """It is read up to fifty steps later."""
    x = torch.zeros(400, 1)
    x[230] = 5.0
    zero = torch.zeros((), device=DEVICE)
    one = torch.ones((), device=DEVICE)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, one))
            spread = one + zero * (4.0 - x).sqrt()  # NaN for the row that is 5
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), spread).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", lambda: torch.zeros((), device=DEVICE))
            pyro.sample("z", dist.Normal(loc, one))

    with pytest.raises(NonFiniteError) as e:
        fit(model, guide, x, loss=make(), shuffle=False, seed=0, progress=False)
    assert "loss was nan at step 3 (epoch 1, batch 3): with the weights after" in str(e.value)
    assert "log-probability of x is not finite (batch rows [30])" in str(e.value)


def sequence_pair():
    """Of eight steps; the guide reads them backwards with a network of cuDNN's."""
    torch.manual_seed(0)
    model = models.DeepMarkovModel(
        default_prior(dist.Normal, 2),
        Conditional(dist.Normal, MLP(2, [8]), 2),
        Conditional(dist.Bernoulli, MLP(2, [8]), 8),
    )
    guide = guides.DeepMarkovModel(
        Conditional(dist.Normal, MLP(6, [8]), 2),
        Conditional(dist.Normal, MLP([6, 2], [8]), 2),
        Backward(nn.GRU(8, 6)),
    )
    return model, guide


needs_addresses = pytest.mark.skipif(
    not IS_CUDA, reason="tensors of a pretended device have no address"
)


@pytest.mark.parametrize("sequences", [False, pytest.param(True, marks=needs_addresses)])
def test_a_new_pair_starts_where_it_does_on_the_cpu(sequences):
    """Near the data; elsewhere the first loss of the sequences is twice as large."""
    x = digits().train.x[:400].round()
    first = []
    for device in ("cpu", DEVICE):
        halves = sequence_pair() if sequences else pair()
        given = x.unflatten(-1, (8, 8)) if sequences else x
        history = fit(*halves, given, epochs=1, device=device, seed=0, progress=False)
        first.append(history["loss"][0])
    assert first[0] == pytest.approx(first[1], rel=0.05)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_recurrent_pair_is_compiled(backend, replayed):
    """A warning that it goes on eagerly is an error here."""
    x = digits().train.x[:400].round().unflatten(-1, (8, 8))
    history = fit(
        *sequence_pair(),
        x,
        loss=Compiled(ELBO(), backend=backend, choose=False),
        epochs=3,
        seed=0,
        progress=False,
    )
    assert replayed and history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("kind", ["gmm", "flow"])
def test_a_fitted_prior_is_where_the_codes_are(kind):
    for device in ("cpu", DEVICE):
        codes = torch.randn(200, 2).to(device)
        prior = fit_prior(codes, kind, components=2, layers=1, epochs=1)
        assert prior().log_prob(codes).device == codes.device


def test_functions_are_evaluated_where_the_weights_are():
    """The weights that they read, or those of the other half."""
    p, q = (half.to(DEVICE) for half in pair())
    x = digits().test.x[:20].round()

    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", p.prior())

    for model, guide in ((p, prior), (lambda x: p(x), prior), (p, lambda x: q(x))):
        found = evaluate.log_likelihood(model, guide, x, num_particles=5000, seed=0)
        assert found.device == x.device and found.isfinite().all()
    drawn = evaluate.sample(lambda x=None, batch_size=1: p(x, batch_size=batch_size), 3)
    assert drawn.shape == (3, 64)


@pytest.mark.parametrize("make", [ELBO, recorded], ids=["eager", "captured"])
def test_half_precision(make):
    halves = pair()
    history = train(halves, make(), autocast=torch.bfloat16, binarize=True)
    assert history["loss"][-1] < history["loss"][0]
    assert all(w.dtype is torch.float32 for half in halves for w in half.parameters())
