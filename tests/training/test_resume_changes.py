"""What a resumed run may change, what it may not, and states that are not its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tarspyro import Conditional, Optimizer, fit, guides, load_run, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP
from tarspyro.runs import Run, RunError
from tarspyro.training.checks import NonFiniteError

X = digits().train.x[:50].round()


def pair(seed=0, width=4, family=dist.Bernoulli, **network):
    torch.manual_seed(seed)
    likelihood = Conditional(family, MLP(2, [width], **network), 64)
    posterior = Conditional(dist.Normal, MLP(64, [width], **network), 2)
    return models.VAE(default_prior(dist.Normal, 2), likelihood), guides.VAE(posterior)


OPTIONS = {"epochs": 1, "batch_size": 20, "seed": 0, "progress": False}


def train(folder, halves=None, data=X, **options):
    return fit(*(halves or pair(1)), data, folder=folder, **{**OPTIONS, **options})


def go_on(folder, halves=None, **options):
    return train(Run(folder, resume=True), halves, **{"epochs": 2, **options})


CHANGES = {
    "batch_size": ({"batch_size": 10}, "batch_size=20, and this training has batch_size=10"),
    "seed": ({"seed": 5}, "seed=0, and this training has seed=5"),
    "shuffle": ({"shuffle": False}, "shuffle=True"),
    "binarize": ({"binarize": True}, "binarize=False"),
    "bound": ({"loss": IWAE(5)}, r"another loss \(ELBO.* there, IWAE"),
    "beta": ({"loss": ELBO(beta=4.0)}, "another loss .*beta=1.* there, .*beta=4.0"),
    "class": ({"optimizer": torch.optim.SGD}, r"'Adam\(\)', .*'SGD\(\)'"),
    "option": ({"optimizer": Optimizer(torch.optim.Adam, amsgrad=True)}, "amsgrad=True"),
    "rows": ({"data": X.flip(0)}, "other data"),
    "fewer": ({"data": X[:40]}, r"other data .*50, 64.*40, 64"),
    "held-out": ({"validation": X[:20]}, r"other held-out data \(none there"),
    "autocast": ({"autocast": torch.bfloat16}, "autocast=None"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    train(folder, pair(0))
    return folder


@pytest.fixture
def run(begun, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in begun.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_resumed_run_may_not_change(name, run):
    changed, sentence = CHANGES[name]
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(RunError, match=sentence):
        go_on(run, **changed)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_options_of_an_older_run_are_compared_with_its_state(run):
    config = json.loads((run / "config.json").read_text())
    config["training"] = {"epochs": 1, "batch_size": 20, "binarize": False, "seed": 0}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="the optimizer's amsgrad were False and are True"):
        go_on(run, optimizer=Optimizer(torch.optim.Adam, amsgrad=True))
    with pytest.raises(RunError, match="is not a state of this training"):
        go_on(run, optimizer=torch.optim.SGD)
    assert len(go_on(run)) == 2


def test_a_schedule_of_the_learning_rate_goes_on(tmp_path):
    options = {"schedules": {"lr": lambda step: 0.1 * 0.5**step}}
    whole = train(None, pair(0), epochs=3, **options)
    train(tmp_path, pair(0), epochs=1, **options)
    assert go_on(tmp_path, epochs=3, **options).step_losses == whole.step_losses


def test_a_schedule_that_gives_another_value(tmp_path):
    train(tmp_path, pair(0), schedules={"beta": lambda step: 0.5})
    with pytest.raises(RunError, match=r"schedules gave \{'beta': 0.5\} .*\{'beta': 0.25\}"):
        go_on(tmp_path, schedules={"beta": lambda step: 0.25})


def test_a_learning_rate_that_is_given_takes_effect(begun, run, tmp_path):
    kept = go_on(run).step_losses
    assert json.loads((run / "config.json").read_text())["training"]["lr"] == [1e-3]
    results = []
    for number, given in enumerate(
        [{"lr": 0.1}, {"optimizer": Optimizer(torch.optim.Adam, lr=0.1)}]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in begun.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        results.append(go_on(folder, **given).step_losses)
        assert json.loads((folder / "config.json").read_text())["training"]["lr"] == [0.1]
        # The next one goes on with it without being told, and with another one if it is.
        third = go_on(folder, epochs=3)
        assert len(third) == 3 and Run(folder).load_state()[1]["rates"] == [0.1]
    first_two = 4  # a new rate shows from the second step on
    assert results[0] == results[1] and results[0][:first_two] == kept[:first_two]
    assert results[0][first_two:] != kept[first_two:]


# --- states that are not its own


def changed_state(run, change):
    """Writes the state of a run anew, with a digest, after a change of its parts."""
    tensors, values = Run(run).load_state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors, values)
    Run(run).save_state(tensors, {k: v for k, v in values.items() if k != "format"})


def _shape_of_moment(tensors, values):
    tensors["optimizer.0.exp_avg"] = torch.zeros(1_000_000)


def _small_moment(tensors, values):
    tensors["optimizer.0.exp_avg_sq"] = torch.zeros(1)


def _type_of_moment(tensors, values):
    tensors["optimizer.0.exp_avg"] = tensors["optimizer.0.exp_avg"].double()


def _without(name):
    def change(tensors, values):
        (tensors if name in tensors else values).pop(name)

    return change


def _value(*path_and_value):
    *path, value = path_and_value

    def change(tensors, values):
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = value

    return change


def _tensor(name, value):
    return lambda tensors, values: tensors.update({name: value})


def _half(tensors, values):
    for name in [name for name in tensors if name.startswith("weights.guide.")]:
        del tensors[name]


STATES = {
    "a long moment": _shape_of_moment,
    "a short moment": _small_moment,
    "another type": _type_of_moment,
    "no moment": _without("optimizer.0.exp_avg"),
    "another parameter": _tensor("optimizer.77.exp_avg", torch.zeros(2)),
    "no guide": _half,
    "a discriminator": _tensor("weights.loss.w", torch.zeros(2)),
    "no order": _without("rng.now.0.order"),
    "another order": _tensor("rng.now.0.order", torch.zeros(3, dtype=torch.uint8)),
    "no random state": _tensor("rng.now.0.cpu", torch.zeros(5056, dtype=torch.uint8)),
    "no progress": _without("progress"),
    "negative step": _value("progress", "step", -3),
    "unknown counter": _value("progress", "colour", 3),
    "shapes": _value("progress", "shapes", [1]),
    "no rows": _value("rows", []),
    "best epoch": _value("best_epoch", 99),
    "no groups": _value("optimizer", "param_groups", []),
    "rate": _value("optimizer", "param_groups", [{"lr": "fast", "params": [0]}]),
    "rates": _value("rates", ["fast"]),
    "losses": _without("step_losses"),
    "sums": _value("rows_of_sums", {"loss": 3}),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_of_something_else_changes_nothing(name, run):
    changed_state(run, STATES[name])
    halves = pair(7)
    before = [tensor.clone() for half in halves for tensor in half.state_dict().values()]
    with pytest.raises(RunError, match="is not a state of this training") as error:
        go_on(run, halves)
    assert "\n" not in str(error.value)
    after = [tensor for half in halves for tensor in half.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_parameter_of_a_function_that_has_grown(tmp_path):
    def halves(count):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(z[:, None].expand(-1, 3), 1.0).to_event(1), obs=x)

        def guide(x):
            loc = pyro.param("loc", lambda: torch.zeros(count))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc.mean(), 1.0).expand([len(x)]))

        return model, guide

    data = torch.ones(20, 3)
    train(tmp_path, halves(1), data)
    pyro.clear_param_store()
    with pytest.raises(RunError, match=r"params.loc has the shape \(1000,\), .* \(1,\)"):
        go_on(tmp_path, halves(1000), data=data)


def test_a_missing_state_is_not_a_new_start(run):
    (run / "state.safetensors").unlink()
    best = (run / "best.safetensors").read_bytes()
    for resume in (True, "auto"):
        with pytest.raises(RunError, match=r"holds weights but no state\.safetensors"):
            train(Run(run, resume=resume))
    assert (run / "best.safetensors").read_bytes() == best


def test_weights_without_a_half_are_not_loaded(run):
    content = (run / "best.safetensors").read_bytes()
    states = Run(run).load_weights("best")
    Run(run).save_weights("best", {"model": states["model"]}, epoch=1)
    assert (run / "best.safetensors").read_bytes() != content
    with pytest.raises(RunError, match="do not fit .*lacks guide"):
        load_run(run)


# --- one writer


def test_a_folder_has_one_writer(tmp_path):
    refused = []

    def callback(row):
        with pytest.raises(RunError, match="is being written by another training") as error:
            go_on(tmp_path, pair(3))
        refused.append(str(error.value))

    train(tmp_path, pair(0), callback=callback)
    assert len(refused) == 1 and len(go_on(tmp_path)) == 2


# --- held-out data


def test_a_held_out_loss_that_is_not_finite_names_the_row(tmp_path):
    rows = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    held_out = rows.clone()
    held_out[33, 0] = 1e25  # finite, but its log-probability is not
    halves = pair(0, family=dist.Normal)
    with pytest.raises(
        NonFiniteError,
        match=r"held-out loss was (nan|inf) after epoch 1, in batch 2 .*starts at row 20: .*rows \[13\]",
    ):
        train(tmp_path, halves, rows, validation=held_out)
    assert not (tmp_path / "best.safetensors").exists()


def test_a_last_batch_of_one_row_under_batch_normalization(tmp_path):
    # The library's own layers take such a batch, torch's do not.
    halves = pair(0, normalization=lambda channels: nn.BatchNorm1d(channels))
    before = [tensor.clone() for half in halves for tensor in half.state_dict().values()]
    with pytest.raises(ValueError, match="leaves 1 row for the last batch of an epoch"):
        train(tmp_path, halves, X[:41])
    after = [tensor for half in halves for tensor in half.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(train(tmp_path / "a", halves, X[:42]).step_losses) == 3
    assert len(train(tmp_path / "b", pair(0), X[:41]).step_losses) == 3
    own = pair(0, normalization=nn.BatchNorm1d)
    assert len(train(tmp_path / "c", own, X[:41]).step_losses) == 3


# --- loaders


class Drawing(torch.utils.data.Dataset):
    """A data set with a generator of its own."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return (X[index] + 0.1 * torch.rand(64, generator=self.generator)).clamp(0, 1)


LOADERS = {
    "generator": lambda seed: DataLoader(
        TensorDataset(X), 20, shuffle=True, generator=torch.Generator().manual_seed(seed)
    ),
    "sampler": lambda seed: DataLoader(
        TensorDataset(X),
        20,
        sampler=torch.utils.data.RandomSampler(
            X, replacement=True, generator=torch.Generator().manual_seed(seed)
        ),
    ),
    "data set": lambda seed: DataLoader(Drawing(seed), 20, shuffle=True),
}


@pytest.mark.parametrize("name", LOADERS)
def test_generators_of_loaders_go_on(name, tmp_path):
    class Stopping(ELBO):
        steps = 0

        def loss_and_terms(self, *args):
            if torch.is_grad_enabled():
                self.steps += 1
                if self.steps == 5:
                    raise KeyboardInterrupt
            return super().loss_and_terms(*args)

    options = {"epochs": 3, "binarize": True}
    whole = train(None, pair(0), LOADERS[name](1), **options)
    with pytest.raises(KeyboardInterrupt):
        train(
            Run(tmp_path, checkpoint_steps=1),
            pair(0),
            LOADERS[name](1),
            loss=Stopping(),
            **options,
        )
    resumed = go_on(tmp_path, data=LOADERS[name](2), **options)
    assert resumed.step_losses == whole.step_losses


def test_persistent_workers_are_refused_in_a_run(tmp_path):
    loader = DataLoader(TensorDataset(X), 20, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers=True, whose workers"):
        train(tmp_path, pair(0), loader)


# --- signals, screens and disks

# Where tabulate is installed, TorchDynamo imports it at the end, and Python then forgets that the
# process ends by an interrupt: its status would be 1.
GROUP = """
import os, signal, sys, time
sys.modules["tabulate"] = None
sys.path.insert(0, sys.argv[1])
import torch
from torch.utils.data import DataLoader, Dataset
from tests.training.test_resume_changes import X, pair, train
class Slow(Dataset):
    def __len__(self):
        return 50
    def __getitem__(self, index):
        time.sleep(0.01)
        return X[index]
steps = 0
def beta(step):
    if step == 4:
        os.killpg(0, getattr(signal, sys.argv[3]))
        time.sleep(0.3)
    return 1.0
signal.signal(signal.SIGINT, signal.default_int_handler)
loader = DataLoader(Slow(), 10, num_workers=2, multiprocessing_context="fork")
train(sys.argv[2], pair(0), loader, epochs=3, schedules={"beta": beta})
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_the_whole_group_keeps_its_checkpoint(number, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", GROUP, str(Path(__file__).parents[2]), folder, number]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,
    )
    assert "holds step 5: go on with" in done.stdout, done.stderr[-2000:]
    progress = Run(folder).load_state()[1]["progress"]
    assert progress["step"] == 5
    expected = {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": -2}
    assert done.returncode == expected[number]


CLOSED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tests.training.test_resume_changes import X, pair, train
reader, writer = os.pipe()
os.dup2(writer, 1)
os.dup2(writer, 2)
os.close(writer)
os.close(reader)  # from now on nobody reads what is printed
history = train(sys.argv[2], pair(0), epochs=2, progress=True)
with open(sys.argv[2] + ".done", "w") as file:
    file.write(str(len(history)))
os._exit(0)
"""


def test_a_closed_pipe_ends_no_training(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", CLOSED, str(Path(__file__).parents[2]), str(folder)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0
    assert Path(f"{folder}.done").read_text() == "2"
    assert len(load_run(folder).history) == 2


def test_a_disk_that_becomes_read_only_ends_no_training(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    def callback(row):
        monkeypatch.setattr(Path, "replace", refuse)

    folder = Run(tmp_path, checkpoint_steps=1, keep_checkpoints=3)
    with pytest.warns(UserWarning, match="Read-only file system"):
        history = train(folder, pair(0), epochs=2, callback=callback)
    assert len(history) == 2
    monkeypatch.undo()
    assert Run(tmp_path).load_state()[1]["progress"]["epoch"] == 1
    assert go_on(tmp_path).step_losses == history.step_losses


def test_links_and_pipes_are_neither_read_nor_written(run, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes((run / "state.safetensors").read_bytes())
    (run / "state.safetensors").unlink()
    (run / "state.safetensors").symlink_to(outside)
    with pytest.raises(RunError, match="it is a link"):
        go_on(run)
    (run / "evaluation.json").symlink_to(outside)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    before = outside.read_bytes()
    Run(run).write("evaluation.json", b"{}")
    Run(run).write("metrics.jsonl", b"")
    assert outside.read_bytes() == before
    assert (run / "evaluation.json").read_bytes() == b"{}"


def test_folders_that_have_no_name():
    for name in ("", "a\0b", "x" * 300):
        with pytest.raises(ValueError, match="folder"):
            Run(name)
    assert Run("~/a").folder == Path.home() / "a"


KILLED_WITH_A_LOCK = """
import os, signal, torch
from torch import nn
from tqdm.auto import tqdm
from tarspyro import fit, guides, models
from tests.training.test_resume import pair, x_of
torch.set_num_threads(1)
lock = tqdm.get_lock()
child = os.fork()
if child == 0:
    lock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
for progress in (False, True):
    p, q = pair(seed=0)
    fit(p, q, x_of(), epochs=1, progress=progress)
print("trained")
"""


def test_a_process_killed_within_another_progress_bar_blocks_no_training():
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WITH_A_LOCK],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.endswith("trained\n"), done.stderr[-2000:]
