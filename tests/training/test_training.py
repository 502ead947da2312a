"""fit: equal to a loop written by hand, exact resume, schedules, clipping, validation, and a
state left as it was.
"""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from tarspyro import (
    Conditional,
    Deterministic,
    Optimizer,
    evaluate,
    fit,
    guides,
    load_run,
    models,
)
from tarspyro.data import Split, digits
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, Compiled, PairError
from tarspyro.nn import MLP
from tarspyro.runs import Run, RunError
from tarspyro.training.checks import NonFiniteError
from tests.programs import as_made


def pair(seed=0, **options):
    torch.manual_seed(seed)
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [16], **options), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [16], **options), 2))


@pytest.fixture(scope="module")
def x():
    return digits().train.x[:230].round()


def train(model, guide, data, **options):
    return fit(model, guide, data, **{"epochs": 2, "progress": False, "seed": 0, **options})


def weights(*programs):
    return [p.detach().clone() for program in programs for p in program.parameters()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_equals_the_loop_written_by_hand(x):
    """The same draws, the same Adam: every loss of every step."""
    model, guide = as_made(*pair())
    history = train(
        model,
        guide,
        x,
        shuffle=False,
        lr=1e-2,
        optimizer=Optimizer(torch.optim.Adam, foreach=False),
    )
    by_hand_model, by_hand_guide = pair()
    encoder, decoder = by_hand_guide.posterior, by_hand_model.likelihood
    optimizer = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=1e-2)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.randint(2**62, ())  # the draw that seeds the order of the data
        for _ in range(2):
            for batch in x.split(100):
                features = encoder.trunk(batch)
                loc, scale = (
                    encoder.heads["loc"](features),
                    encoder.heads["scale"](features).exp(),
                )
                z = loc + scale * torch.randn(loc.shape)
                logits = decoder.heads["logits"](decoder.trunk(z))
                cross_entropy = nn.functional.binary_cross_entropy_with_logits(
                    logits, batch, reduction="sum"
                )
                kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum()
                loss = (cross_entropy + kl) / len(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    assert history.step_losses == pytest.approx(losses, rel=1e-5)
    for a, b in zip(weights(model, guide), weights(by_hand_model, by_hand_guide), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        None,
        ELBO(num_particles=3),
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(alpha=0.0, num_particles=2, vectorize_particles=True, max_plate_nesting=1),
        lambda model, guide, x: ELBO().differentiable_loss(model, guide, x),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_any_bound_trains_and_the_store_stays_empty(loss, x):
    model, guide = as_made(*pair())
    history = train(model, guide, x, loss=loss, epochs=4, validation=x[:50], lr=1e-2)
    assert history["loss"][-1] < history["loss"][0] - 1
    assert len(history["validation_loss"]) == 4
    assert not list(pyro.get_param_store().keys())


def test_the_seed_decides_everything_and_disturbs_nothing(x):
    results = []
    for _ in range(2):
        model, guide = pair()
        torch.manual_seed(5)
        state = torch.get_rng_state()
        results.append(
            (train(model, guide, x, binarize=True).step_losses, weights(model, guide))
        )
        assert torch.equal(state, torch.get_rng_state())
        assert torch.distributions.Distribution._validate_args is True
    assert results[0][0] == results[1][0] and equal(results[0][1], results[1][1])
    model, guide = pair()
    assert train(model, guide, x, seed=1).step_losses != results[0][0]


def test_a_second_pair_starts_from_its_own_fresh_weights(x):
    first, second = pair(), pair()
    train(*first, x)
    fresh = weights(*pair())
    assert equal(weights(*second), fresh)
    history = train(*second, x)
    assert equal(weights(*first), weights(*second))
    assert not equal(weights(*second), fresh) and len(history) == 2


def test_the_last_short_batch_counts_by_its_rows(x):
    model, guide = pair()
    history = train(model, guide, x, epochs=1, lr=0.0)
    assert history.rows[0]["steps"] == 3 == len(history.step_losses)
    expected = np.average(history.step_losses, weights=[100, 100, 30])
    assert history["loss"][0] == pytest.approx(expected)
    assert history["elbo"][0] == pytest.approx(history["reconstruction"][0] - history["kl"][0])
    assert history["elbo"][0] == pytest.approx(-history["loss"][0])


def test_every_row_is_seen_once_an_epoch_in_a_new_order(x):
    seen = []

    def model(rows):
        with pyro.plate("data", len(rows)):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=rows)

    def guide(rows):
        if torch.is_grad_enabled():
            seen.append(rows)
        with pyro.plate("data", len(rows)):
            pyro.sample("z", dist.Normal(rows / 2, 1.0))

    data = torch.arange(10.0)
    train(model, guide, data, batch_size=4)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == data.tolist()
    assert first.tolist() != second.tolist()


def test_the_callback_sees_every_row_and_changes_nothing(x, tmp_path):
    """It may draw, evaluate the pair and write into its row; the epoch's checkpoint is there
    before it.
    """
    plain = pair()
    history = train(*plain, x, epochs=3)
    observed, seen = pair(), []

    def look(row):
        seen.append(dict(row))
        torch.randn(7)
        evaluate.log_likelihood(*observed, x[:20], num_particles=2)
        assert Run(tmp_path).load_state()[1]["progress"]["epoch"] == row["epoch"]
        row.clear()

    watched = train(*observed, x, epochs=3, folder=tmp_path, callback=look)
    assert seen == watched.rows and [row["epoch"] for row in seen] == [1, 2, 3]
    assert watched.step_losses == history.step_losses and equal(
        weights(*plain), weights(*observed)
    )


def test_a_callback_of_a_resumed_run_sees_the_new_rows_alone(x, tmp_path):
    seen = []
    train(*pair(), x, epochs=1, folder=tmp_path)
    train(*pair(), x, epochs=3, folder=Run(tmp_path, resume=True), callback=seen.append)
    assert [row["epoch"] for row in seen] == [2, 3]


# Data in every form.


class Rows(TorchDataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.numpy(),
        lambda x: x.double().numpy(),
        lambda x: (x,),
        lambda x: {"x": x},
        lambda x: Split(x, torch.zeros(len(x))),
        lambda x: TensorDataset(x),
        Rows,
        lambda x: DataLoader(Rows(x), batch_size=100),
        lambda x: DataLoader(TensorDataset(x), batch_size=100),
        lambda x: list(x.split(50)) + [],
    ],
    ids="array double tuple mapping Split TensorDataset Dataset DataLoader DataLoader-of-tuples list".split(),
)
def test_forms_of_data(form, x):
    model, guide = pair()
    data = form(x)
    if isinstance(data, list):
        data = DataLoader(data, batch_size=None)
    history = train(model, guide, data)
    assert history["loss"][1] < history["loss"][0] < 60


def test_a_loader_is_looked_at_once_before_the_first_epoch(x):
    class Counting:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield from x.split(100)

    loader = Counting()
    train(*pair(), loader, epochs=2)
    assert loader.passes == 3


# Schedules, clipping, stopping.


def test_schedules_reach_the_learning_rate_the_loss_and_fixed_parameters(x):
    rates, betas, temperatures = [], [], []

    class Spy(ELBO):
        def loss_and_terms(self, model, guide, *args):
            betas.append(self.beta)
            temperatures.append(guide.posterior.fixed_temperature.item())
            return super().loss_and_terms(model, guide, *args)

    class SpyAdam(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    torch.manual_seed(0)
    model = models.VAE(
        default_prior(dist.RelaxedBernoulli, 2), Conditional(dist.Bernoulli, MLP(2, [16]), 64)
    )
    guide = guides.VAE(Conditional(dist.RelaxedBernoulli, MLP(64, [16]), 2))
    history = train(
        model,
        guide,
        x,
        loss=Spy(),
        optimizer=SpyAdam,
        schedules={
            "lr": lambda step: 0.1 / (step + 1),
            "beta": lambda s: s / 10,
            "temperature": lambda s: 1 - s / 10,
        },
    )
    steps = range(6)
    assert rates == pytest.approx([0.1 / (step + 1) for step in steps])
    assert betas == pytest.approx([step / 10 for step in steps]), "beta starts at exactly 0"
    assert temperatures == pytest.approx([1 - step / 10 for step in steps])
    # the objective that picks the best epoch is the bound itself, not the annealed loss
    assert history["objective"] == history["elbo"]


def test_an_unknown_schedule_is_an_error(x):
    with pytest.raises(ValueError, match="schedules has 'gamma'"):
        train(*pair(), x, schedules={"gamma": lambda step: 1.0})
    for wrong in (None, "0.1", [0.1]):
        with pytest.raises(TypeError, match=r"schedules\['lr'\] must return a number, got"):
            train(*pair(), x, schedules={"lr": lambda step, wrong=wrong: wrong})


def test_sparse_gradients_train():
    table = nn.Embedding(5, 1, sparse=True)

    def model(rows, x):
        pyro.module("table", table)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(table(rows).squeeze(-1), 1.0), obs=x)

    rows, x = torch.arange(5).repeat(20), torch.arange(5.0).repeat(20)
    fit(
        model,
        data=(rows, x),
        optimizer=torch.optim.SGD,
        lr=1.0,
        epochs=40,
        progress=False,
    )
    torch.testing.assert_close(
        table.weight.detach().squeeze(), torch.arange(5.0), atol=0.1, rtol=0
    )


@pytest.mark.parametrize("option", ["clip_norm", "clip_value"])
def test_clipping(option, x):
    norms = []

    class SpySGD(torch.optim.SGD):
        def step(self, closure=None):
            gradient = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])
            norms.append((gradient.norm().item(), gradient.abs().max().item()))
            return super().step(closure)

    train(*pair(), x, epochs=1, optimizer=Optimizer(SpySGD, **{option: 0.01}))
    for norm, largest in norms:
        assert (norm if option == "clip_norm" else largest) == pytest.approx(0.01, rel=1e-4)


def test_early_stopping_keeps_the_best(x):
    model, guide = pair()
    history = train(
        model,
        guide,
        x,
        epochs=50,
        validation=x[:50],
        patience=2,
        schedules={"lr": lambda step: 1e-2 if step < 12 else 0.5},
    )
    assert len(history) < 50 and history.best_epoch == len(history) - 2
    assert history.in_hand == "best"
    assert max(history["objective"]) == history["objective"][history.best_epoch - 1]
    best = {k: v for k, v in history.states["best"]["model"].items()}
    assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())
    history.use("last", model, guide)
    assert not all(torch.equal(best[k], v) for k, v in model.state_dict().items())


def test_held_out_data_is_judged_in_evaluation_mode_with_the_same_noise(x):
    model, guide = pair(normalization=nn.BatchNorm1d, dropout=0.5)
    history = train(
        model,
        guide,
        x,
        validation=x[:30],
        lr=0.0,
        epochs=1,
        binarize=True,
    )
    model2, guide2 = pair(normalization=nn.BatchNorm1d, dropout=0.5)
    history2 = train(
        model2,
        guide2,
        x,
        validation=x[:30],
        lr=0.0,
        epochs=1,
        seed=9,
        binarize=True,
    )
    assert history["validation_elbo"][0] == pytest.approx(
        history2["validation_elbo"][0], abs=0.5
    )
    assert model.training


def test_held_out_pixels_are_the_same_every_epoch_whatever_the_guide_draws(x):
    """A rejection sampler consumes a varying amount of randomness between the batches."""
    seen = []
    model = models.VAE(
        default_prior(dist.Gamma, 2), Conditional(dist.Bernoulli, MLP(2, [16]), 64)
    )
    guide = guides.VAE(Conditional(dist.Gamma, MLP(64, [16]), 2))
    guide.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]) if not module.training else None
    )
    train(model, guide, x / 2, validation=x / 2, binarize=True, epochs=2)
    # Runs that find the structure for a new shape come in between, and the watch for a
    # collapse runs on a batch of 100 rows after each epoch.
    end = 1 + max(i for i, batch in enumerate(seen) if len(batch) == 30)
    second = seen[end - 3 : end]
    first = [batch for batch in seen[: end - 3] if batch.ndim == 2]
    assert [len(batch) for batch in second] == [100, 100, 30]
    assert all(any(torch.equal(a, b) for b in first) for a in second)


def test_validation_of_pyro_runs_on_the_first_step_of_every_shape_alone(x):
    flags = []

    class Spy(ELBO):
        def loss_and_terms(self, model, guide, *args):
            flags.append((len(args[0]), torch.distributions.Distribution._validate_args))
            return super().loss_and_terms(model, guide, *args)

    train(*pair(), x, loss=Spy(), epochs=2)
    assert flags == [
        (100, True),
        (100, False),
        (30, True),
        (100, False),
        (100, False),
        (30, False),
    ]


# Programs that are not modules.


def test_plain_functions_with_their_own_parameters(x):
    decoder, encoder = nn.Linear(2, 64), nn.Linear(64, 2)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    before = [decoder.weight.clone(), encoder.weight.clone()]
    history = train(model, guide, x, epochs=5, lr=1e-2)
    assert history["loss"][-1] < history["loss"][0]
    assert not torch.equal(before[0], decoder.weight) and not torch.equal(
        before[1], encoder.weight
    )
    assert not torch.equal(pyro.param("scale"), torch.ones(2))


def test_the_parameters_of_functions_are_kept_and_restored_too(x, tmp_path):
    """Best weights, the last good epoch, and resuming are the same for halves that are not
    modules.
    """

    def pair():
        torch.manual_seed(0)
        decoder = nn.Linear(2, 64)

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(x):
            weight = pyro.param("weight", torch.zeros(64, 2))
            scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))

        return decoder, model, guide

    options = {
        "validation": x[:50],
        "schedules": {"lr": lambda step: 0.01 if step < 6 else 2.0},
    }
    decoder, model, guide = pair()
    history = train(model, guide, x, epochs=4, **options)
    assert history.best_epoch < 4 and history.in_hand == "best"
    best = history.states["best"]["params"]
    assert set(best) == {"decoder$$$weight", "decoder$$$bias", "weight", "scale"}
    assert torch.equal(best["decoder$$$weight"], decoder.weight) and torch.equal(
        best["weight"], pyro.param("weight")
    )
    history.use("last", model, guide)
    assert not torch.equal(best["decoder$$$weight"], decoder.weight)

    pyro.clear_param_store()
    decoder, model, guide = pair()
    broken = {**options, "schedules": {"lr": lambda step: 0.01 if step < 4 else 1e30}}
    with pytest.raises(NonFiniteError, match="weights are those after epoch 1"):
        train(model, guide, x, epochs=4, optimizer=torch.optim.SGD, **broken)
    assert decoder.weight.isfinite().all() and pyro.param("weight").isfinite().all()

    finals = []
    for parts in ([4], [2, 4]):
        pyro.clear_param_store()
        folder = tmp_path / str(len(parts))
        for epochs in parts:
            decoder, model, guide = pair()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run = Run(folder, resume=epochs != parts[0])
                train(model, guide, x, epochs=epochs, folder=run)
        finals.append(
            [
                decoder.weight.detach().clone(),
                pyro.param("weight").clone(),
                pyro.param("scale").clone(),
            ]
        )
    assert equal(*finals)


def test_autoguides(x):
    from pyro.infer.autoguide import AutoNormal

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64))

        def forward(self, x):
            bias = pyro.sample("bias", dist.Normal(torch.zeros(64), 1.0).to_event(1))
            with pyro.plate("data", 230, subsample=x):
                pyro.sample("x", dist.Bernoulli(logits=self.weight + bias).to_event(1), obs=x)

    for _ in range(2):  # a second guide does not find the first one's values in the store
        model = Bias()
        history = train(model, AutoNormal(model), x, epochs=20, lr=0.05)
        assert history["loss"][-1] < history["loss"][0] - 5


def test_autoencoder_trains(x):
    torch.manual_seed(0)
    model = models.Autoencoder(Conditional(dist.Bernoulli, MLP(4, [32]), 64), 4)
    guide = guides.Autoencoder(Deterministic(MLP(64, [32]), 4))
    history = train(*as_made(model, guide), x, epochs=10, lr=1e-2)
    assert history["kl"] == [0.0] * 10
    assert history["loss"][-1] < history["loss"][0] - 10


# What would not be trained.


def test_a_network_that_no_optimizer_holds_is_an_error(x):
    decoder = nn.Linear(2, 64)
    _, guide = pair()

    def model(x):  # decoder is neither an attribute nor registered
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    with pytest.raises(PairError, match=r"would not be trained \(shapes \((64, 2|64,)\)"):
        train(model, guide, x)


def test_a_parameter_that_the_loss_does_not_reach_is_named(x):
    model, guide = pair()
    model.extra = nn.Linear(3, 3)
    with pytest.warns(UserWarning, match="models.VAE.extra.weight"):
        train(model, guide, x, epochs=1)


def test_frozen_parameters_stay(x):
    model, guide = pair()
    model.likelihood.trunk.requires_grad_(False)
    before = weights(model.likelihood.trunk)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, guide, x, epochs=1)
    assert equal(before, weights(model.likelihood.trunk))


# A loss that is not finite.


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_site(x, tmp_path):
    model, guide = pair()
    data = x.clone()

    class Cracked(nn.Module):
        """A decoder that breaks on the third row after some steps."""

        def __init__(self, trunk):
            super().__init__()
            self.trunk, self.out_features, self.calls = trunk, trunk.out_features, 0

        def forward(self, z):
            h = self.trunk(z)
            if torch.is_grad_enabled() or self.calls > 6:
                self.calls += 1
            if self.calls > 6:
                h = h + torch.where(torch.arange(len(h)) == 2, math.nan, 0.0)[:, None]
            return h

    model.likelihood.trunk = Cracked(model.likelihood.trunk)
    with pytest.raises(NonFiniteError) as error:
        train(model, guide, data, epochs=5, folder=tmp_path / "run")
    message = str(error.value)
    assert (
        "step 6 (epoch 2, batch 3)" in message
        and "log-probability of x" in message
        and "rows [2]" in message
    )
    assert "weights are those after epoch 1" in message
    from tarspyro.runs import Run

    stored = Run(tmp_path / "run").load_weights("last")
    assert all(torch.equal(stored["model"][k], v) for k, v in model.state_dict().items()), (
        "in hand = the last good epoch"
    )
    assert all(v.isfinite().all() for v in model.state_dict().values())


def test_a_step_that_breaks_the_weights_is_named(x):
    model, guide = as_made(*pair())
    with pytest.raises(NonFiniteError, match="step 2 .*is not finite"):
        train(model, guide, x, optimizer=torch.optim.SGD, lr=1e30)
    assert equal(weights(model, guide), weights(*pair())), (
        "nothing of the broken epoch is left"
    )


def test_weights_that_the_last_step_of_an_epoch_spoils_are_not_kept(x, tmp_path):
    model, guide = pair()
    spoiled = {"lr": lambda step: 1e-3 if step < 2 else math.inf}
    with pytest.raises(
        NonFiniteError, match="not finite after step 3.*weights are those after epoch 2"
    ):
        train(model, guide, x[:100], epochs=5, schedules=spoiled, folder=tmp_path / "run")
    assert all(p.isfinite().all() for p in weights(model, guide))


class Causal(nn.Module):
    """Attention with a mask of minus infinity, as torch makes it, in a buffer."""

    def __init__(self, spoils=False):
        super().__init__()
        self.spoils = spoils
        self.embed = nn.Linear(8, 8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        self.register_buffer("mask", mask)

    def forward(self, x):
        if self.training and self.spoils:
            self.mask[0, 0] = -math.inf  # the first row then sees nothing
        h = self.embed(x.unflatten(-1, (8, 8)))
        return self.attention(h, src_mask=self.mask, is_causal=True).flatten(-2)


def test_a_mask_of_minus_infinity_is_no_weight_that_went_wrong(x, tmp_path):
    model, _ = pair()
    guide = guides.VAE(Conditional(dist.Normal, Causal(), 2))
    history = train(model, guide, x[:100], folder=tmp_path / "run")
    assert all(map(math.isfinite, history["loss"]))
    assert guide.posterior.trunk.mask.isneginf().any()
    model, guide = pair()[0], guides.VAE(Conditional(dist.Normal, Causal(spoils=True), 2))
    with pytest.raises(NonFiniteError, match="step 1|mask is not finite"):
        train(model, guide, x[:100])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_traced_networks_train_and_compile(x, tmp_path):
    torch.manual_seed(0)
    trunk = torch.jit.trace(nn.Sequential(nn.Linear(64, 16), nn.Tanh()), x[:3])
    start = weights(trunk)
    model, _ = pair()
    guide = guides.VAE(Conditional(dist.Normal, trunk, 2))
    train(model, guide, x)
    assert not equal(start, weights(trunk))
    # A network that torch has not traced computes the same.
    plain = nn.Sequential(nn.Linear(64, 16), nn.Tanh())
    plain.load_state_dict(trunk.state_dict())
    codes = evaluate.embed(guide, x)
    guide.posterior.trunk = plain
    assert torch.allclose(codes, evaluate.embed(guide, x), atol=1e-6)

    guide = guides.VAE(Conditional(dist.Normal, trunk, 2))
    loss = Compiled(ELBO(), backend="eager", choose=False)
    history = train(pair()[0], guide, x, loss=loss, folder=tmp_path / "run")
    assert all(map(math.isfinite, history["loss"]))
    with pytest.raises(RunError, match="is made by torch.jit, not by a constructor"):
        load_run(tmp_path / "run")


def test_bounds_without_a_differentiable_loss_stop_too(x):
    model, guide = pair()
    with pytest.raises(NonFiniteError, match="step 2"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro's own remark on NaN
        train(
            model,
            guide,
            x,
            loss=TraceGraph_ELBO(),
            optimizer=torch.optim.SGD,
            lr=1e30,
        )


# Runs.


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(optimizer, x, tmp_path):
    options = {
        "binarize": True,
        "validation": x[:40],
        "optimizer": Optimizer(
            optimizer, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {})
        ),
        "schedules": {"beta": lambda step: min(1.0, step / 8)},
    }
    whole = pair(normalization=nn.BatchNorm1d)
    history = train(*whole, x, epochs=4, **options)
    history.use("last", *whole)
    for epochs in (1, 2, 4):
        parts = pair(
            seed=epochs, normalization=nn.BatchNorm1d
        )  # other initial weights: the checkpoint replaces them
        if epochs == 1:
            parts = pair(normalization=nn.BatchNorm1d)
        run = Run(tmp_path / "run", resume=epochs > 1)
        resumed = train(*parts, x, epochs=epochs, folder=run, **options)
        resumed.use("last", *parts)
    assert equal(weights(*whole), weights(*parts))
    assert all(
        torch.equal(a, b) for a, b in zip(whole[0].buffers(), parts[0].buffers(), strict=True)
    )
    assert resumed.step_losses == history.step_losses
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.rows]
    assert drop == [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


def test_resuming_something_else_is_an_error(x, tmp_path):
    train(*pair(), x, folder=tmp_path / "run")
    other = pair()[0], guides.VAE(Conditional(dist.Laplace, MLP(64, [16]), 2))
    with pytest.raises(RunError, match="another guide"):
        train(*other, x, folder=Run(tmp_path / "run", resume=True))
    with pytest.raises(RunError, match="holds a run already"):
        train(*pair(), x, folder=tmp_path / "run")
    with pytest.raises(RunError, match="no readable config.json"):
        train(*pair(), x, folder=Run(tmp_path / "nothing", resume=True))
    content = (tmp_path / "run" / "state.safetensors").read_bytes()
    (tmp_path / "run" / "state.safetensors").write_bytes(content[:-5])
    with pytest.raises(
        RunError,
        match="state.safetensors is corrupted.*best.safetensors and last.safetensors may",
    ):
        train(*pair(), x, folder=Run(tmp_path / "run", resume=True))


def test_an_interrupt_says_how_to_go_on(x, tmp_path, capsys):
    class Interrupting(ELBO):
        steps = 0

        def loss_and_terms(self, model, guide, *args):
            self.steps += torch.is_grad_enabled()
            if self.steps == 5:
                raise KeyboardInterrupt
            return super().loss_and_terms(model, guide, *args)

    with pytest.raises(KeyboardInterrupt):
        train(*pair(), x, loss=Interrupting(), epochs=3, folder=tmp_path / "run")
    printed = capsys.readouterr().out
    assert "holds epoch 1: go on with folder=Run(" in printed and "resume=True" in printed
    history = train(*pair(), x, epochs=3, folder=Run(tmp_path / "run", resume=True))
    assert len(history) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"lr": -1.0}, "lr must not be negative, got -1"),
    ],
)
def test_arguments(options, message, x):
    with pytest.raises(ValueError, match=message):
        fit(*pair(), x, **{"progress": False, **options})


def test_progress_says_which_weights_are_kept(x, capsys):
    fit(*pair(), x, epochs=2, validation=x[:20])
    captured = capsys.readouterr()
    assert "restored the best weights (epoch " in captured.out
    assert " of 2)" in captured.out
    assert "6/6" in captured.err and "elbo=" in captured.err
