"""Sweeps: which runs are trained, how they are compared, and what is refused."""

import importlib.util
import json
import math

import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, fit, guides, models, sweep
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tarspyro.runs import History

NOISE = (0.0, 3.0, -2.0, 7.0)


def history(score, **columns):
    row = {"epoch": 1, "validation_elbo": score, "objective": score, **columns}
    return History(rows=[{"epoch": 2, "objective": 1e9}, row], best_epoch=1)


def train(seed, folder, lr, latent=2, shift=0.0):
    """A training whose noise is that of its seed; larger ``lr`` and ``latent`` are better."""
    with open(folder / "calls", "a") as calls:
        calls.write("x")
    return history(lr + latent + shift + NOISE[seed], validation_other=-lr)


def test_settings_are_compared_in_pairs_of_the_same_seed(tmp_path):
    found = sweep(train, {"lr": [0.1, 0.3], "latent": [2, 4]}, tmp_path, seeds=4)
    assert len(found.runs) == 16 and found.missing == 0
    assert found.best == {"lr": 0.3, "latent": 4}
    assert {run.folder for run in found.runs} == {
        path.parent for path in tmp_path.glob("*/calls")
    }
    assert sorted({run.seed for run in found.runs}) == [0, 1, 2, 3]
    first, *others = repr(found).splitlines()[2:]
    assert first.split()[:2] == ["lr=0.3,latent=4", "6.300"]
    spread = torch.tensor(NOISE).std().item() / 2
    assert float(first.split()[2]) == pytest.approx(spread, abs=1e-3)
    # The noise of a seed is the same for all settings, so differences have no error.
    assert [line.split()[3:5] for line in others] == [
        ["-0.200", "0.000"],
        ["-2.000", "0.000"],
        ["-2.200", "0.000"],
    ]
    by_other = sweep(
        train, {"lr": [0.1, 0.3]}, tmp_path / "other", seeds=[1], measure="validation_other"
    )
    assert by_other.best == {"lr": 0.1}


def test_parts_of_an_array_share_the_runs_and_finished_ones_stay(tmp_path):
    grid = {"lr": [0.1, 0.3, 0.2]}
    one = sweep(train, grid, tmp_path, seeds=2, part=(1, 2))
    assert (len(one.runs), one.missing) == (3, 3) and "3 missing" in repr(one)
    with pytest.raises(ValueError, match="3 runs of the sweep are missing"):
        _ = one.best
    two = sweep(train, grid, tmp_path, seeds=2, part=(2, 2))
    whole = sweep(train, grid, tmp_path, seeds=2)
    assert two.missing == whole.missing == 0
    assert whole.best == {"lr": 0.3}
    assert all((run.folder / "calls").read_text() == "x" for run in whole.runs)
    with pytest.raises(ValueError, match="of a sweep with fixed="):
        sweep(train, grid, tmp_path, seeds=2, fixed={"shift": 1.0})
    with pytest.raises(ValueError, match="of a sweep with measure="):
        sweep(train, grid, tmp_path, seeds=2, measure="validation_elbo")


def test_a_training_that_diverges_ranks_last(tmp_path):
    def diverging(seed, folder, lr):
        if lr > 1:
            raise FloatingPointError("the loss is NaN")
        return history(lr)

    found = sweep(diverging, {"lr": [10.0, 0.1]}, tmp_path, seeds=1)
    assert found.best == {"lr": 0.1}
    assert any(math.isnan(run.score) for run in found.runs)
    reason = json.loads((tmp_path / "lr_10.0,seed_0" / "sweep.json").read_text())["reason"]
    assert reason == "the loss is NaN"
    none = sweep(diverging, {"lr": [10.0]}, tmp_path, seeds=1)
    with pytest.raises(ValueError, match="no settings of the sweep trained"):
        _ = none.best


@pytest.mark.skipif(importlib.util.find_spec("joblib") is None, reason="needs joblib")
def test_processes_give_what_one_after_another_gives(tmp_path):
    grid = {"lr": [0.1, 0.3]}
    one = sweep(train, grid, tmp_path / "a", seeds=2)
    two = sweep(train, grid, tmp_path / "b", seeds=2, num_jobs=2)
    assert repr(one) == repr(two)


def test_wrong_arguments(tmp_path):
    grid = {"lr": [0.1]}
    with pytest.raises(ValueError, match="grid must name a setting"):
        sweep(train, {}, tmp_path)
    with pytest.raises(ValueError, match="grid must have a list of values for lr"):
        sweep(train, {"lr": 0.1}, tmp_path)
    with pytest.raises(ValueError, match="has a value of lr twice"):
        sweep(train, {"lr": [0.1, 0.1]}, tmp_path)
    with pytest.raises(ValueError, match="seeds must be"):
        sweep(train, grid, tmp_path, seeds=0)
    with pytest.raises(ValueError, match="seeds must be different"):
        sweep(train, grid, tmp_path, seeds=[1, 1])
    with pytest.raises(ValueError, match=r"part must be \(k, n\)"):
        sweep(train, grid, tmp_path, part=(3, 2))
    with pytest.raises(TypeError, match="train must be a function"):
        sweep(None, grid, tmp_path)
    with pytest.raises(TypeError, match="return fit"):
        sweep(lambda **_: None, grid, tmp_path)
    with pytest.raises(ValueError, match="give fit validation="):
        sweep(
            lambda **_: History(rows=[{"epoch": 1, "objective": 1.0}], best_epoch=1),
            grid,
            tmp_path,
        )
    with pytest.raises(ValueError, match="measure must be a column"):
        sweep(lambda **_: history(1.0), grid, tmp_path, measure="elbow")


def test_a_sweep_of_trainings_finds_the_better_rate(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(60, 1) @ torch.randn(1, 4) + 0.1 * torch.randn(60, 4)

    def trained(lr, seed, folder):
        torch.manual_seed(seed)
        likelihood = Conditional(dist.Normal, MLP(1, [4]), 4, scale=0.3)
        p = models.VAE(default_prior(dist.Normal, 1), likelihood)
        q = guides.VAE(Conditional(dist.Normal, MLP(4, [4]), 1))
        return fit(
            p,
            q,
            x[12:],
            lr=lr,
            seed=seed,
            folder=folder,
            validation=x[:12],
            epochs=3,
            progress=False,
        )

    found = sweep(trained, {"lr": [1e-6, 1e-2]}, tmp_path, seeds=2)
    assert found.best == {"lr": 1e-2}
    assert all((run.folder / "best.safetensors").exists() for run in found.runs)
