"""The numbers of trainings: what a batch counts for, in which type, under which loss, and what
a compiled step holds.
"""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.contrib.gp
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import nn

from tarspyro import (
    Conditional,
    Deterministic,
    Run,
    distributions,
    evaluate,
    fit,
    guides,
    load_run,
    models,
)
from tarspyro.distributions import default_prior
from tarspyro.infer import (
    CIWAE,
    ELBO,
    IWAE,
    VAEGAN,
    Compiled,
    ModalityKL,
    RecordingError,
    Renyi,
)
from tarspyro.nn import MLP, Discriminator
from tarspyro.scopes import local_parameters
from tests.programs import as_made

STILL = {
    "optimizer": torch.optim.SGD,
    "lr": 0.0,
    "progress": False,
    "shuffle": False,
}


def vae(latent=2, features=6, **how):
    p = models.VAE(
        default_prior(dist.Normal, latent),
        Conditional(dist.Normal, MLP(latent, [8], **how), features),
    )
    return p, guides.VAE(Conditional(dist.Normal, MLP(features, [8], **how), latent))


# ---- What a batch counts for
# ----------------------------------------------------------------------------------------


def standard():
    return dist.Normal(pyro.param("loc", lambda: torch.zeros(())), 1.0)


def cost(*values):
    """Minus the log density of all values."""
    return -sum(dist.Normal(0.0, 1.0).log_prob(value).sum().item() for value in values)


def one_plate(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", standard(), obs=x)


def subsample(x):
    with pyro.plate("data", 1000, subsample=x):
        pyro.sample("x", standard(), obs=x)


def its_own_subsample(x):
    with pyro.plate("data", len(x), subsample_size=3) as rows:
        pyro.sample("x", standard(), obs=0 * x[rows])


def no_plate(x):
    pyro.sample("x", standard().expand([len(x)]).to_event(1), obs=x)


def sequential(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", standard(), obs=x[i])


def pixels_as_many_as_rows(x):
    with pyro.plate("pixels", 4, dim=-1), pyro.plate("data", len(x), dim=-2):
        pyro.sample("x", standard(), obs=x)


def pixels_outermost(x):
    with pyro.plate("pixels", 4, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", standard(), obs=x.T)


def a_plate_for_each_site(x):
    with pyro.plate("codes", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", standard(), obs=x + 0 * z)


def side_by_side(x, y, u):
    with pyro.plate("labelled", len(x)):
        pyro.sample("x", standard(), obs=x)
        pyro.sample("y", standard(), obs=y)
    with pyro.plate("unlabelled", len(u)):
        pyro.sample("u", standard(), obs=u)


def side_by_side_in_other_dimensions(x, u):
    with pyro.plate("labelled", len(x), dim=-1):
        pyro.sample("x", standard(), obs=x)
    with pyro.plate("unlabelled", len(u), dim=-2):
        pyro.sample("u", standard(), obs=u.unsqueeze(-1))


def side_by_side_subsampled(x, u):
    with pyro.plate("labelled", 50, subsample=x):
        pyro.sample("x", standard(), obs=x)
    with pyro.plate("unlabelled", 1000, subsample=u):
        pyro.sample("u", standard(), obs=u)


def pairs_of_rows(x, y):
    with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", len(x), dim=-1):
        pyro.sample("distance", standard(), obs=x.unsqueeze(-1) + y)


def codes_of(x):
    with pyro.plate("codes", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def rows(count, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


X, Y, U = rows(10), rows(10, seed=1), rows(10, seed=2)
PIXELS = rows(10, 4)
# The model, the data, and for every batch the sum of its costs and how many data points these
# are.
ARRANGEMENTS = {
    "one plate": (one_plate, X, [(cost(X[a:b]), b - a) for a, b in ((0, 4), (4, 8), (8, 10))]),
    "subsample": (subsample, X, [(cost(X[a:b]), b - a) for a, b in ((0, 4), (4, 8), (8, 10))]),
    "no plate": (no_plate, X, [(cost(X[a:b]), b - a) for a, b in ((0, 4), (4, 8), (8, 10))]),
    "sequential": (
        sequential,
        X,
        [(cost(X[a:b]), b - a) for a, b in ((0, 4), (4, 8), (8, 10))],
    ),
    "pixels": (
        pixels_as_many_as_rows,
        PIXELS,
        [(cost(PIXELS[a:b]), b - a) for a, b in ((0, 4), (4, 8), (8, 10))],
    ),
    "pixels outermost": (
        pixels_outermost,
        PIXELS,
        [(cost(PIXELS[a:b]), b - a) for a, b in ((0, 4), (4, 8), (8, 10))],
    ),
    "its own subsample": (its_own_subsample, X[:8], [(cost(torch.zeros(1)), 1)] * 2),
    "side by side": (
        side_by_side,
        (X, Y, U),
        [(cost(X[a:b], Y[a:b], U[a:b]), 2 * (b - a)) for a, b in ((0, 4), (4, 8), (8, 10))],
    ),
    "other dimensions": (
        side_by_side_in_other_dimensions,
        (X, U),
        [(cost(X[a:b], U[a:b]), 2 * (b - a)) for a, b in ((0, 4), (4, 8), (8, 10))],
    ),
    "both subsampled": (
        side_by_side_subsampled,
        (X, U),
        [
            (50 * cost(X[a:b]) / (b - a) + 1000 * cost(U[a:b]) / (b - a), 1050)
            for a, b in ((0, 4), (4, 8), (8, 10))
        ],
    ),
    "pairs of rows": (
        pairs_of_rows,
        (X, Y),
        [(cost(X[a:b, None] + Y[a:b]), b - a) for a, b in ((0, 4), (4, 8), (8, 10))],
    ),
    "batches of several lengths": (
        side_by_side,
        [(X[:4], Y[:4], U[:4]), (X[4:5], Y[4:5], U[4:10]), (X[5:10], Y[5:10], U[:1])],
        [
            (cost(X[:4], Y[:4], U[:4]), 8),
            (cost(X[4:5], Y[4:5], U[4:10]), 7),
            (cost(X[5:], Y[5:], U[:1]), 6),
        ],
    ),
    "parts that are not given": (
        lambda x, u=None: one_plate(x) if u is None else side_by_side(x, x, u),
        [(X[:3], None), (X[3:5], U[:5])],
        [(cost(X[:3]), 3), (cost(X[3:5], X[3:5], U[:5]), 7)],
    ),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_batch_counts_for_what_it_holds(name):
    pyro.clear_param_store()
    model, data, batches = ARRANGEMENTS[name]
    history = fit(model, None, data, batch_size=4, epochs=1, validation=data, **STILL)
    means = [total / count for total, count in batches]
    assert history.step_losses == pytest.approx(means, rel=1e-5)
    held = {"its own subsample": [4, 4], "both subsampled": [8, 8, 4]}.get(
        name, [count for _, count in batches]
    )
    exact = np.average(means, weights=held)
    assert history["loss"] == pytest.approx([exact], rel=1e-5)
    assert history["validation_loss"] == pytest.approx([exact], rel=1e-5)


def test_a_plate_of_codes_holds_no_data():
    pyro.clear_param_store()
    history = fit(
        a_plate_for_each_site,
        codes_of,
        (X,),
        loss=pyro.infer.Trace_ELBO(),
        batch_size=4,
        epochs=1,
        **STILL,
    )
    assert history["loss"] == pytest.approx([cost(X) / 10], rel=1e-5)


def test_the_gradient_of_a_short_batch_is_as_long_as_the_others():
    """The last batch of a semi-supervised pair: one row with a label, and one without."""
    pyro.clear_param_store()
    parts = tuple(torch.full((5,), value) for value in (1.0, 2.0, 3.0))
    how = {**STILL, "lr": 0.1, "batch_size": 4, "epochs": 1}
    fit(side_by_side, None, parts, **how)
    loc = 0.0
    for _ in range(2):
        loc += 0.1 * ((1 - loc) + (2 - loc) + (3 - loc)) / 2
    assert pyro.param("loc").item() == pytest.approx(loc, rel=1e-5)


def test_a_semi_supervised_pair_and_its_validation():
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP([2, 3], [8]), 6)
    p = models.SemiSupervisedVAE(
        default_prior(dist.Normal, 2), default_prior(dist.OneHotCategorical, 3), likelihood
    )
    q = guides.SemiSupervisedVAE(
        Conditional(dist.OneHotCategorical, MLP(6, [8]), 3),
        Conditional(dist.Normal, MLP([6, 3], [8]), 2),
    )
    x, u, y = (
        rows(110, 6).sign().relu(),
        rows(110, 6, seed=1).sign().relu(),
        torch.eye(3)[torch.arange(110) % 3],
    )
    as_made(p, q)
    exact = ELBO(num_particles=300).loss(p, q, x, y, u) / 220
    history = fit(
        p,
        q,
        (x, y, u),
        loss=ELBO(20),
        batch_size=100,
        epochs=1,
        validation=(x, y, u),
        seed=0,
        **STILL,
    )
    assert history["loss"] == pytest.approx([exact], abs=0.02)
    assert history["validation_loss"] == pytest.approx([exact], abs=0.02)
    assert history.step_losses == pytest.approx(
        [exact] * 2, rel=0.1
    )  # 0.5 where the second was said to be of 200


def test_shares_of_processes_count_for_what_they_hold():
    """Plates side by side, in batches that two processes cannot share equally: what one
    process does alone.
    """
    code = """
    import sys; sys.path.insert(0, sys.argv[1])
    from tests.together import *
    from tests.training.test_training_numbers import side_by_side, rows
    import json

    def task(rank):
        pyro.clear_param_store()
        data = tuple(rows(8, seed=seed).double() for seed in range(3))
        options = {"optimizer": torch.optim.SGD, "lr": 0.1, "progress": False, "shuffle": False}
        history = fit(side_by_side, None, data, batch_size=5, epochs=2, validation=data, **options)
        return history.rows, history.step_losses, pyro.param("loc").item()

    alone, (first, second) = task(0), together(2, task)
    print(json.dumps([alone, first, second]))
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(Path(__file__).parents[2])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone, first, second = json.loads(done.stdout)
    assert first[1:] == second[1:]
    assert first[1] == pytest.approx(alone[1], rel=1e-6) and first[2] == pytest.approx(
        alone[2], rel=1e-6
    )
    for row, again, other in zip(first[0], second[0], alone[0], strict=True):
        for name in ("loss", "validation_loss", "elbo"):
            assert row[name] == again[name] == pytest.approx(other[name], rel=1e-6)


# ---- Types
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_epoch_means_are_sums_in_single_precision(dtype):
    torch.manual_seed(0)
    p, q = (half.to(dtype) for half in vae())
    history = fit(p, q, rows(4000, 6), batch_size=20, epochs=1, seed=0, **STILL)
    assert history["loss"][0] == pytest.approx(np.mean(history.step_losses), rel=1e-5)


def test_an_epoch_in_half_precision_is_resumed_exactly(tmp_path):
    def trained(folder, stop=None, **how):
        torch.manual_seed(0)
        p, q = (half.bfloat16() for half in vae())

        def rate(step):
            if step == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return 1e-3

        how = {"batch_size": 20, "epochs": 1, "seed": 0, "progress": False, **how}
        return fit(p, q, rows(400, 6), folder=folder, schedules={"lr": rate}, **how)

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", stop=13)
    assert trained(Run(tmp_path / "stopped", resume=True))["loss"] == whole["loss"]


@pytest.mark.parametrize(
    "of_data", [torch.float64, torch.float32, torch.float16, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_data_get_the_type_of_the_parameters(dtype, of_data):
    torch.manual_seed(0)
    p, q = (half.to(dtype) for half in vae())
    x = rows(20, 6).abs().to(of_data)
    seen = []
    p.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    for data in (
        x,
        x.numpy(),
        torch.utils.data.TensorDataset(x),
        torch.utils.data.DataLoader(x, 20),
    ):
        history = fit(p, q, data, epochs=1, progress=False, seed=0)
        assert math.isfinite(history["loss"][0])
    assert set(seen) == {dtype}
    assert all(
        parameter.dtype is dtype and parameter.grad.dtype is dtype
        for parameter in p.parameters()
    )
    assert evaluate.log_likelihood(p, q, x, num_particles=4, seed=0).dtype is dtype


def exact_double(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(1e6 + 1e-3 * z, x.new_tensor(1e-3)), obs=x)


def exact_posterior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - 1e6) / 2e-3, x.new_tensor(0.5**0.5)))


def test_double_precision_of_a_pair_of_functions_stays():
    """Rows of about a million that differ in the ninth digit: single precision knows four
    values of them.
    """
    x = torch.tensor([1e6 + 1e-3, 1e6 - 2e-3], dtype=torch.float64)
    exact = dist.Normal(x.new_tensor(1e6), 2**0.5 * 1e-3).log_prob(x)
    torch.testing.assert_close(
        evaluate.log_likelihood(exact_double, exact_posterior, x, num_particles=10), exact
    )

    def with_a_parameter(x):
        scale = pyro.param("scale", lambda: x.new_tensor(0.5**0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - 1e6) / 2e-3, scale))

    pyro.clear_param_store()
    history = fit(exact_double, with_a_parameter, x.numpy(), loss=IWAE(5), epochs=1, **STILL)
    assert history["loss"] == pytest.approx([-exact.mean().item()], rel=1e-9)


def test_functions_that_run_networks_get_the_type_of_these():
    torch.manual_seed(0)
    decoder, encoders = nn.Linear(2, 6), [nn.Linear(6, 2)]

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x, encoder):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    q = partial(guide, encoder=encoders[0])
    x = rows(20, 6).double().numpy()
    history = fit(
        pyro.poutine.scale(model, scale=1.0), q, x, epochs=30, progress=False, seed=0
    )
    assert history["loss"][-1] < history["loss"][0]


def test_a_compiled_step_in_double_precision_is_the_eager_one():
    torch.manual_seed(0)
    x, results = rows(30, 6).double(), []
    first = [half.double() for half in vae()]
    for loss in (ELBO(beta=0.3), Compiled(ELBO(beta=0.3), backend="eager", choose=False)):
        p, q = copy.deepcopy(first)
        history = fit(p, q, x, loss=loss, batch_size=10, epochs=3, seed=0, progress=False)
        results.append((history["loss"], [parameter.detach() for parameter in p.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_half_precision_with_too_small_a_range_is_refused():
    with pytest.raises(ValueError, match="autocast must be torch.bfloat16, got torch.float16"):
        fit(*vae(), rows(20, 6), autocast=torch.float16)
    history = fit(*vae(), rows(20, 6), autocast=torch.bfloat16, epochs=1, progress=False)
    assert math.isfinite(history["loss"][0])


# ---- Modes, and the best epoch
# --------------------------------------------------------------------------------------


def test_a_frozen_layer_stays_frozen():
    torch.manual_seed(0)
    p, q = vae(normalization=nn.BatchNorm1d)
    q.posterior.trunk.eval().requires_grad_(False)
    before = copy.deepcopy(q.posterior.trunk.state_dict())
    moving = copy.deepcopy(p.state_dict())
    fit(
        p,
        q,
        rows(40, 6),
        validation=rows(20, 6),
        batch_size=20,
        epochs=2,
        progress=False,
        seed=0,
    )
    after = q.posterior.trunk.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not q.posterior.trunk.training and q.training and p.training
    assert all(
        not torch.equal(moving[name], value)
        for name, value in p.state_dict().items()
        if "running" in name
    )


def test_a_half_in_evaluation_mode_is_said_to_stay_in_it():
    torch.manual_seed(0)
    p, q = vae(normalization=nn.BatchNorm1d)
    q.eval()
    before = copy.deepcopy(
        [value for name, value in q.state_dict().items() if "running" in name]
    )
    with pytest.warns(
        UserWarning, match=r"The guide, guides.VAE, is in evaluation mode and stays in it"
    ):
        fit(p, q, rows(40, 6), batch_size=20, epochs=2, progress=False, seed=0)
    after = [value for name, value in q.state_dict().items() if "running" in name]
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))
    p, q = vae()
    p.eval()  # where the mode makes no difference, there is nothing to say
    fit(p, q, rows(40, 6), batch_size=20, epochs=1, progress=False, seed=0)


def test_statistics_move_with_the_steps_alone():
    """The runs that find out about a pair leave them: one step of a layer on the data itself
    is one of its momentum.
    """
    torch.manual_seed(0)
    p, q = vae()
    layer = nn.BatchNorm1d(6)
    q.posterior.trunk = nn.Sequential(layer, q.posterior.trunk)
    x = 5 + rows(20, 6)
    fit(p, q, x, validation=x[:7], batch_size=20, epochs=1, progress=False, seed=0)
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean(0))
    assert layer.num_batches_tracked == 1


def test_with_free_bits_on_schedule_the_bound_tells_the_best_epoch():
    torch.manual_seed(0)
    schedules = {
        "free_bits": lambda step: 5.0 - step
    }  # every epoch the loss is smaller by more than it is trained
    history = fit(
        *vae(),
        rows(20, 6),
        loss=ELBO(),
        schedules=schedules,
        batch_size=20,
        epochs=4,
        progress=False,
    )
    assert history["objective"] == history["elbo"]
    assert history.best_epoch == 1 + int(np.argmax(history["elbo"]))


def test_epochs_under_other_values_are_not_compared(tmp_path):
    """Each order is another bound: the lower, the larger. Of the last, which stays, the best
    epoch counts.
    """
    torch.manual_seed(0)
    p, q = vae()
    schedules = {
        "alpha": lambda step: [-3.0, 0.0, 0.0, 0.9, 0.9][step],
        "lr": lambda step: [0, 0, 0, 0, 0.5][step],
    }
    how = {
        "schedules": schedules,
        "batch_size": 20,
        "progress": False,
        "seed": 0,
        "patience": 3,
    }
    history = fit(p, q, rows(20, 6), loss=Renyi(0.0, 5), epochs=5, folder=tmp_path, **how)
    losses = history["loss"]
    assert losses[0] < losses[1] < losses[3]
    assert history["stage"] == [1, 2, 2, 3, 3]
    assert history.best_epoch == 4 + int(losses[4] < losses[3])
    assert load_run(tmp_path).history.best_epoch == history.best_epoch
    assert len(history) == 5


def test_a_temperature_that_is_annealed_makes_the_newest_epoch_the_best():
    torch.manual_seed(0)
    family = distributions.GumbelSoftmax
    p = models.VAE(
        default_prior(family, 3, temperature=1.0), Conditional(dist.Normal, MLP(3, [8]), 6)
    )
    q = guides.VAE(Conditional(family, MLP(6, [8]), 3, temperature=1.0))
    schedules = {"temperature": lambda step: 1.0 / (1 + step)}
    history = fit(
        p, q, rows(20, 6), schedules=schedules, batch_size=20, epochs=3, progress=False, seed=0
    )
    assert history.best_epoch == 3


# ---- Losses of Pyro
# -------------------------------------------------------------------------------------------------


class Point(nn.Module):
    """The guide of a point, or of a Normal around it."""

    def __init__(self, scale=None):
        super().__init__()
        self.network, self.scale = nn.Linear(4, 2), scale

    def forward(self, x, observations=None):
        loc = self.network(x if not observations else observations["x"])
        family = dist.Delta(loc) if self.scale is None else dist.Normal(loc, self.scale)
        with pyro.plate("data", len(loc)):
            pyro.sample("z", family.to_event(1))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(2, 4)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(self.network(z), 1.0).to_event(1),
                obs=x,
                infer={"was_observed": True},
            )


def of_modules():
    return Decoder(), Point(0.5)


def of_stochastic_modules():
    return vae(2, 4)


def of_functions():
    def model(x):
        weight = pyro.param("weight", lambda: 0.1 * torch.eye(2, 4))
        scale = pyro.param(
            "scale", lambda: torch.ones(()), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(z @ weight, scale).to_event(1),
                obs=x,
                infer={"was_observed": True},
            )

    def guide(x, observations=None):
        weight = pyro.param("back", lambda: 0.1 * torch.eye(4, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 0.5).to_event(1))

    return model, guide


LOSSES = {
    "Trace_ELBO": pyro.infer.Trace_ELBO,
    "Trace_ELBO, particles": partial(
        pyro.infer.Trace_ELBO, num_particles=2, vectorize_particles=True
    ),
    "TraceGraph_ELBO": pyro.infer.TraceGraph_ELBO,
    "TraceMeanField_ELBO": pyro.infer.TraceMeanField_ELBO,
    "TraceEnum_ELBO": partial(
        pyro.infer.TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False
    ),
    "TraceTMC_ELBO": partial(
        pyro.infer.TraceTMC_ELBO, max_plate_nesting=1, strict_enumeration_warning=False
    ),
    "RenyiELBO": partial(pyro.infer.RenyiELBO, num_particles=3),
    "ReweightedWakeSleep": partial(
        pyro.infer.ReweightedWakeSleep, num_particles=3, max_plate_nesting=1
    ),
    "ReweightedWakeSleep, one by one": partial(
        pyro.infer.ReweightedWakeSleep, num_particles=3, vectorize_particles=False
    ),
    "Trace_MMD": lambda: pyro.infer.Trace_MMD(kernel=pyro.contrib.gp.kernels.RBF(2)),
    "EnergyDistance": pyro.infer.EnergyDistance,
}


def parameters_of(*halves):
    return [
        parameter
        for half in halves
        if isinstance(half, nn.Module)
        for parameter in half.parameters()
    ]


@pytest.mark.parametrize("pair", [of_modules, of_stochastic_modules, of_functions])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_pyro_trains(name, pair):
    pyro.clear_param_store()
    torch.manual_seed(0)
    p, q = pair()
    before = [parameter.detach().clone() for parameter in parameters_of(p, q)]
    x = rows(50, 4) @ rows(4, 4, seed=1)
    how = {
        "batch_size": 20,
        "epochs": 6,
        "progress": False,
        "seed": 0,
        "lr": 1e-2,
    }
    as_made(*(half for half in (p, q) if isinstance(half, nn.Module)))
    history = fit(p, q, x, validation=x, loss=LOSSES[name](), **how)
    assert (
        history["loss"][-1] < history["loss"][0]
        and history["validation_loss"][-1] < history["validation_loss"][0]
    )
    assert all(
        not torch.equal(*both) for both in zip(before, parameters_of(p, q), strict=True)
    )
    if pair is of_functions:
        assert all(pyro.param(one).isfinite().all() for one in ("weight", "scale", "back"))
    pyro.clear_param_store()


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name not in ("Trace_MMD", "EnergyDistance")]
)
def test_the_gradient_is_that_of_svi(name):
    """A guide that draws a point has no noise: one step is the one that SVI makes."""
    torch.manual_seed(0)
    x, first = rows(10, 4), (Decoder(), Point())
    p, q = copy.deepcopy(first)
    how = {**STILL, "lr": 0.1, "epochs": 1, "batch_size": 10}
    ignored = "mean field|does not depend|is_auxiliary"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ignored)
        history = fit(p, q, x, loss=LOSSES[name](), **how)
    other_p, other_q = copy.deepcopy(first)

    def model(x):
        pyro.module("model", other_p)
        return other_p(x)

    def guide(x):
        pyro.module("guide", other_q)
        return other_q(x)

    pyro.clear_param_store()
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.filterwarnings("ignore", ignored)
        svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.1 / 10}), LOSSES[name]())
        loss = svi.step(x)
    pyro.clear_param_store()
    assert history["loss"] == pytest.approx(
        [(loss[0] if isinstance(loss, tuple) else loss) / 10], rel=1e-5
    )
    for one, other in zip(parameters_of(p, q), parameters_of(other_p, other_q), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_wake_sleep_has_two_losses():
    torch.manual_seed(0)
    p, q = of_modules()
    loss = pyro.infer.ReweightedWakeSleep(num_particles=3, insomnia=0.5, max_plate_nesting=1)
    history = fit(
        p, q, rows(20, 4), validation=rows(20, 4), loss=loss, epochs=2, progress=False, seed=0
    )
    assert {"loss", "guide_loss", "validation_guide_loss"} <= history.rows[0].keys()


def test_an_automatic_guide_under_a_loss_that_finds_parameters_in_the_store():
    pyro.clear_param_store()

    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    guide = pyro.infer.autoguide.AutoNormal(model)
    how = {"epochs": 200, "progress": False, "seed": 0, "lr": 5e-2}
    fit(
        model, guide, torch.full((50,), 3.0), loss=pyro.infer.RenyiELBO(num_particles=3), **how
    )
    assert guide.median()["loc"].item() == pytest.approx(3.0, abs=0.2)
    pyro.clear_param_store()


@pytest.mark.parametrize("name", ["TraceEnum_ELBO", "TraceGraph_ELBO"])
def test_a_discrete_site_in_the_guide(name):
    """The guide of slope 2 is the posterior; summed out, its bound is the evidence."""
    centres = torch.tensor([-2.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(centres[k], 1.0), obs=x)

    def guide(x, start):
        slope = pyro.param("slope", lambda: torch.tensor(start))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=torch.stack([-slope * x, slope * x], -1)))

    x = torch.linspace(-3, 3, 40)
    loss = getattr(pyro.infer, name)(max_plate_nesting=1)
    for start in (0.0, 2.0):
        pyro.clear_param_store()
        q = partial(guide, start=start)
        q = config_enumerate(q) if name == "TraceEnum_ELBO" else q
        rate = {"lr": 0.02 if start == 0 else 0.0}
        history = fit(
            model, q, x, validation=x, loss=loss, epochs=20, progress=False, seed=0, **rate
        )
        if start == 0.0:
            assert pyro.param("slope").item() > 0.2
        elif name == "TraceEnum_ELBO":
            exact = (
                -(
                    dist.Normal(centres, 1.0).log_prob(x.unsqueeze(-1)).logsumexp(-1)
                    - math.log(2)
                )
                .mean()
                .item()
            )
            assert history["validation_loss"] == pytest.approx([exact] * 20, rel=1e-5)
    pyro.clear_param_store()


@pytest.mark.parametrize(
    "name",
    ["JitTrace_ELBO", "JitTraceEnum_ELBO", "JitTraceGraph_ELBO", "JitTraceMeanField_ELBO"],
)
def test_losses_that_torch_compiles_are_refused(name):
    with pytest.raises(TypeError, match=f"loss is a {name}, .* use pyro.infer.{name[3:]}"):
        fit(*vae(), rows(10, 6), loss=getattr(pyro.infer, name)())
    with pytest.raises(TypeError, match="no value"):
        fit(*vae(), rows(10, 6), loss=pyro.infer.TraceTailAdaptive_ELBO())


# ---- Compiled steps
# -------------------------------------------------------------------------------------------------


def same_step(compiled, bound, p, q, *arguments):
    """A compiled step has the loss and the gradients of the eager one, from the same noise."""
    found = []
    parameters = parameters_of(p, q)
    for loss in (compiled, bound):
        torch.manual_seed(1)
        for parameter in parameters:
            parameter.grad = None
        with local_parameters():
            value = loss.loss_and_grads(p, q, *arguments)
        found.append(
            (
                value,
                [
                    None if parameter.grad is None else parameter.grad
                    for parameter in parameters
                ],
            )
        )
    (one, first), (other, second) = found
    assert one == pytest.approx(other, rel=1e-5)
    for ours, theirs in zip(first, second, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    return one


def compiled_of(bound, **how):
    return Compiled(bound, backend="eager", choose=False, **how)


def test_what_is_frozen_and_unfrozen():
    torch.manual_seed(0)
    (p, q), bound, x = vae(), ELBO(), rows(20, 6)
    compiled = compiled_of(bound)
    same_step(compiled, bound, p, q, x)
    for half in (q, q.posterior.heads["loc"], p.likelihood.trunk):
        half.requires_grad_(False)
        same_step(compiled, bound, p, q, x)
        half.requires_grad_(True)
        same_step(compiled, bound, p, q, x)


def test_two_trainings_with_one_compiled_bound():
    """The encoder rests in the first, and moves in the second: the weights are those of eager
    steps.
    """
    results = []
    for loss in (ELBO(), compiled_of(ELBO())):
        torch.manual_seed(0)
        p, q = vae()
        how = {"loss": loss, "epochs": 3, "batch_size": 20, "progress": False, "seed": 0}
        q.requires_grad_(False)
        before = [parameter.clone() for parameter in q.parameters()]
        fit(p, q, rows(20, 6), **how)
        assert all(torch.equal(*both) for both in zip(before, q.parameters(), strict=True))
        q.requires_grad_(True)
        fit(p, q, rows(20, 6), **how)
        assert all(not torch.equal(*both) for both in zip(before, q.parameters(), strict=True))
        results.append(parameters_of(p, q))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_an_encoder_that_a_callback_freezes_rests():
    torch.manual_seed(0)
    p, q = vae()
    frozen = []

    def freeze(row):
        q.requires_grad_(False)
        frozen[:] = [parameter.clone() for parameter in q.parameters()]

    loss = compiled_of(ELBO())
    how = {"batch_size": 20, "progress": False, "seed": 0, "optimizer": torch.optim.SGD}
    fit(p, q, rows(20, 6), loss=loss, epochs=1, callback=freeze, **how)
    svi = pyro.infer.SVI(p, q, pyro.optim.Adam({"lr": 0.1}), loss)
    for _ in range(3):
        svi.step(rows(20, 6))
    assert all(torch.equal(*both) for both in zip(frozen, q.parameters(), strict=True))
    q.requires_grad_(True)
    for _ in range(2):
        svi.step(rows(20, 6))
    assert all(not torch.equal(*both) for both in zip(frozen, q.parameters(), strict=True))
    pyro.clear_param_store()


def test_svi_finds_the_parameters_of_a_step_that_never_ran_eagerly():
    torch.manual_seed(0)
    p, q = vae()
    svi = pyro.infer.SVI(p, q, pyro.optim.Adam({"lr": 0.1}), compiled_of(ELBO()))
    for _ in range(3):
        before = [parameter.clone() for parameter in parameters_of(p, q)]
        svi.step(rows(20, 6))
        assert all(
            not torch.equal(*both) for both in zip(before, parameters_of(p, q), strict=True)
        )
    pyro.clear_param_store()


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_callback_freezes_rests_and_what_it_unfreezes_moves(compiled):
    torch.manual_seed(0)
    p, q = vae()
    q.requires_grad_(False)
    seen = [[parameter.clone() for parameter in parameters_of(p, q)]]

    def change(row):
        seen.append([parameter.clone() for parameter in parameters_of(p, q)])
        p.requires_grad_(row["epoch"] != 1)
        q.requires_grad_(row["epoch"] == 1)

    loss = compiled_of(ELBO()) if compiled else ELBO()
    how = {"epochs": 3, "batch_size": 10, "progress": False, "seed": 0}
    history = fit(p, q, rows(20, 6), loss=loss, callback=change, **how)
    count = len(list(p.parameters()))
    for epoch, of_model in enumerate((True, False, True)):
        pairs = list(zip(seen[epoch], seen[epoch + 1], strict=True))
        assert all(torch.equal(*both) != of_model for both in pairs[:count])
        assert all(torch.equal(*both) == of_model for both in pairs[count:])
    assert len(history) == 3


class Indirect:
    """A pair of functions, whose networks only they know."""

    def __init__(self):
        self.networks = {
            "decoder": nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5)),
            "encoder": nn.Linear(6, 2),
        }

    def pair(self):
        this = self

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample(
                    "x", dist.Normal(this.networks["decoder"](z), 1.0).to_event(1), obs=x
                )

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(this.networks["encoder"](x), 1.0).to_event(1))

        return model, guide


def test_modes_and_frozen_networks_that_functions_run():
    torch.manual_seed(0)
    indirect, bound, x = Indirect(), ELBO(), rows(20, 6)
    (model, guide), compiled, networks = (
        indirect.pair(),
        compiled_of(bound),
        nn.ModuleDict(indirect.networks),
    )

    def check():
        found = []
        for loss in (compiled, bound):
            networks.zero_grad()
            torch.manual_seed(1)
            value = loss.loss_and_grads(model, guide, x)
            found.append((value, [p.grad for p in networks.parameters()]))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
        for one, other in zip(found[0][1], found[1][1], strict=True):
            assert (one is None) == (other is None)

    check()
    networks.eval()
    check()
    networks["encoder"].requires_grad_(False)
    check()
    networks.train().requires_grad_(True)
    check()


def test_attributes_of_a_bound_inside_a_bound():
    torch.manual_seed(0)
    prior = default_prior(dist.Normal, 2)
    p = models.MVAE(prior, [Conditional(dist.Normal, MLP(2, [4]), 3) for _ in range(2)])
    q = guides.MVAE([Conditional(dist.Normal, MLP(3, [4]), 2) for _ in range(2)], prior)
    bound = ModalityKL(ELBO(), alpha=0.5)
    compiled, x = compiled_of(bound), (rows(8, 3), rows(8, 3, seed=1))
    same_step(compiled, bound, p, q, *x)
    changes = [
        (bound.bound, "free_bits", 2.0),
        (bound.bound, "analytic_kl", False),
        (bound, "alpha", 0.1),
    ]
    for owner, name, value in changes:
        setattr(owner, name, value)
        same_step(compiled, bound, p, q, *x)


def test_attributes_of_a_games_bound_and_divergence():
    def losses(compile, free_bits):
        torch.manual_seed(0)
        p = models.VAE(default_prior(dist.Normal, 2), Deterministic(MLP(2, [8]), 6))
        q = guides.VAE(Conditional(dist.Normal, MLP(6, [8]), 2))
        game = VAEGAN(Discriminator(MLP(6, [8])), gamma=0.1)
        player = game.players(list(p.parameters()), list(q.parameters()))[1]
        loss = compiled_of(player.loss) if compile else player.loss
        found = []
        for bits in (0.0, free_bits, 0.0):
            game.bound.free_bits = bits
            torch.manual_seed(1)
            with local_parameters():
                found.append(loss.loss_and_grads(p, q, rows(20, 6)))
        return found

    eager, compiled = losses(False, 3.0), losses(True, 3.0)
    assert compiled == pytest.approx(eager, rel=1e-5)
    assert eager[0] != eager[1]


def test_numbers_of_modules_take_effect():
    torch.manual_seed(0)
    (p, q), bound, x = vae(dropout=0.5), ELBO(), rows(20, 6)
    compiled = compiled_of(bound)
    start = same_step(compiled, bound, p, q, x)
    for module in p.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert same_step(compiled, bound, p, q, x) != start


SCHEDULED = {
    "alpha": (
        lambda: Renyi(0.5, 2),
        lambda step: step / 40,
    ),  # passes 1, where the formula is another one
    "beta": (lambda: CIWAE(0.5, 2), lambda step: step / 100),
    "free_bits": (ELBO, lambda step: step / 50),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_schedules_of_any_attribute_cost_no_compilation(name):
    make, schedule = SCHEDULED[name]
    lines, histories = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        loss = compiled_of(make(), report=lines.append) if compiled else make()
        how = {
            "epochs": 5,
            "batch_size": 20,
            "progress": False,
            "seed": 0,
            "schedules": {name: schedule},
        }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            histories.append(fit(*vae(), rows(200, 6), loss=loss, **how))
    assert [str(warning.message) for warning in caught] == [
        f"{name} keeps changing, and a compiled step holds its value: models.VAE goes on eagerly while it does."
    ]
    assert sum("compiling" in line for line in lines) <= 2
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-6)


def test_a_schedule_that_has_ended_is_compiled():
    torch.manual_seed(0)
    lines = []
    how = {"epochs": 4, "batch_size": 20, "progress": False, "seed": 0}
    schedules = {"free_bits": lambda step: min(step / 10, 1.0)}
    with pytest.warns(UserWarning, match="free_bits keeps changing"):
        fit(
            *vae(),
            rows(100, 6),
            loss=compiled_of(ELBO(), report=lines.append),
            schedules=schedules,
            **how,
        )
    assert (
        sum("compiling" in line for line in lines) == 2
    )  # the first step's, and that of the last value


def test_stairs_are_compiled_a_few_times():
    torch.manual_seed(0)
    lines = []
    how = {"epochs": 20, "batch_size": 10, "progress": False, "seed": 0}
    schedules = {"free_bits": lambda step: step // 10 / 100}
    with pytest.warns(UserWarning, match="free_bits keeps changing") as caught:
        fit(
            *vae(),
            rows(100, 6),
            loss=compiled_of(ELBO(), report=lines.append),
            schedules=schedules,
            **how,
        )
    assert len(caught) == 1 and sum("compiling" in line for line in lines) == 4


# Programs of which no graph of operations exists: each changes what a decoder says of x.


def mask_by_index(self, h, x):
    return h + x[x > 0].mean()


def counted(self, h, x):
    return h + (x > 0).nonzero().float().mean()


def item(self, h, x):
    return h * x.sum().item()


def branch(self, h, x):
    return 2 * h if x.sum() > 0 else h


def by_numpy(self, h, x):
    return h + torch.from_numpy(np.sort(x.detach().numpy(), 0))


def by_list(self, h, x):
    return h + sum(x[0].tolist())


def parameter_as_number(self, h, x):
    return h * float(self.factor)


def parameter_as_list(self, h, x):
    return h * torch.tensor(self.bias.tolist())


def buffer_as_number(self, h, x):
    return h * self.count.item()


def buffer_in_a_branch(self, h, x):
    return 2 * h if self.count > 0 else h


def buffers_compared(self, h, x):
    return 2 * h if torch.equal(self.count, self.other) else h


def caught_by_the_program(self, h, x):
    try:
        return h * x.sum().item()
    except RuntimeError:
        return h


def distinct(self, h, x):
    return h + x.round().unique().sum()


def packed(self, h, x):
    lengths = (x > 0).sum(1).clamp(min=1)
    sequences = nn.utils.rnn.pack_padded_sequence(
        x.unsqueeze(-1), lengths.cpu(), batch_first=True, enforce_sorted=False
    )
    return h + self.recurrent(sequences)[1][0]


def data_dependent_loop(self, h, x):
    for i in range(int(x.abs().max())):
        h = h + i
    return h


READING = [
    mask_by_index,
    counted,
    item,
    branch,
    by_numpy,
    by_list,
    parameter_as_number,
    parameter_as_list,
    buffer_as_number,
    buffer_in_a_branch,
    buffers_compared,
    caught_by_the_program,
    distinct,
    packed,
    data_dependent_loop,
]


class Reading(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.network, self.change = nn.Linear(2, 4), change
        self.recurrent = nn.GRU(1, 4, batch_first=True)
        self.factor, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(4))
        self.register_buffer("count", torch.tensor(3.0))
        self.register_buffer("other", torch.tensor(3.0))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            h = self.change(self, self.network(z) * self.factor, x)
            pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("change", READING, ids=lambda change: change.__name__)
def test_a_program_that_reads_values_is_named_by_the_line(change):
    torch.manual_seed(0)
    p, q, x = Reading(change), Point(0.5), rows(10, 4)
    line = r"^test_training_numbers\.py, line \d+, reads a value back: .*"
    with pytest.raises(RecordingError, match=line) as caught:
        compiled_of(ELBO()).loss_and_grads(p, q, x)
    number = int(str(caught.value).partition("line ")[2].partition(",")[0])
    first = change.__code__.co_firstlineno
    assert first < number <= max(end for *_, end in change.__code__.co_lines() if end)
    with pytest.warns(UserWarning, match="goes on eagerly"):
        same_step(compiled_of(ELBO(), fallback=True), ELBO(), p, q, x)


def test_training_of_a_program_that_reads_values_goes_on():
    torch.manual_seed(0)
    p, q = Reading(mask_by_index), Point(0.5)
    for parameter in (p.bias, *p.recurrent.parameters()):
        parameter.requires_grad_(False)
    eager = fit(
        *copy.deepcopy((p, q)), rows(40, 4), epochs=5, batch_size=10, progress=False, seed=0
    )
    with pytest.warns(
        UserWarning, match=r"test_training_numbers.py, line \d+, reads a value back"
    ) as caught:
        compiled = fit(
            p, q, rows(40, 4), epochs=5, batch_size=10, progress=False, seed=0, compile=True
        )
    assert len(caught) == 1
    assert compiled["loss"] == eager["loss"]
