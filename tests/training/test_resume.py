"""Runs that are stopped at any moment, in any way, and go on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from tarspyro import Conditional, Deterministic, Optimizer, fit, guides, load_run, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, Adversarial
from tarspyro.nn import MLP, Discriminator
from tarspyro.runs import Run, RunError
from tarspyro.training.checks import NonFiniteError
from tarspyro.training.interrupts import Interrupts


def pair(seed=0):
    torch.manual_seed(seed)
    options = {"normalization": nn.BatchNorm1d}
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [16], **options), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [16], **options), 2))


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """As in a terminal: what is started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def x():
    return digits().train.x[:230].round()


OPTIONS = {
    "epochs": 3,
    "batch_size": 50,
    "seed": 0,
    "progress": False,
    "binarize": True,
    "schedules": {"beta": lambda step: min(1.0, step / 8)},
}


def train(halves, data, **options):
    """Trains the pair, which keeps its last weights."""
    history = fit(*halves, data, **{**OPTIONS, **options})
    history.use("last", *halves)
    return history


def states(halves):
    return {
        f"{i}.{name}": t.clone()
        for i, half in enumerate(halves)
        for name, t in half.state_dict().items()
    }


def assert_same_run(halves, history, others, other_history):
    """Bit by bit, but for the seconds."""
    assert (
        history.step_losses == other_history.step_losses
        and history.best_epoch == other_history.best_epoch
    )
    first, second = states(halves), states(others)
    assert all(torch.equal(first[name], second[name]) for name in first)
    rows, other_rows = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in each.rows]
        for each in (history, other_history)
    )
    assert rows == other_rows
    for which in ("best", "last"):
        for half, state in history.states[which].items():
            assert all(
                torch.equal(t, other_history.states[which][half][name])
                for name, t in state.items()
            )


def stop_after(step, number=signal.SIGTERM):
    """A bound in whose given step the process gets a signal."""

    class Stopping(ELBO):
        steps = 0

        def loss_and_terms(self, model, guide, *args):
            if torch.is_grad_enabled():
                self.steps += 1
                if self.steps == step:
                    signal.raise_signal(number)
            return super().loss_and_terms(model, guide, *args)

    return Stopping()


class Noisy(TorchDataset):
    """A data set that draws noise whenever a row is read."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return (self.x[index] + 0.1 * torch.rand(64)).clamp(0, 1)


SOURCES = {
    "tensor": lambda x: x,
    "data set": Noisy,
    "loader": lambda x: DataLoader(Noisy(x), batch_size=50, shuffle=True),
    "workers": lambda x: DataLoader(
        TensorDataset(x), batch_size=50, shuffle=True, num_workers=1
    ),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("step", [1, 3, 5, 12])
def test_a_run_stopped_within_an_epoch_goes_on_exactly(source, step, x, tmp_path):
    if source == "workers" and step != 3:
        pytest.skip("workers are slow to start, one step is enough")
    options = {"validation": x[:40]}
    whole, parts = pair(), pair()
    history = train(whole, SOURCES[source](x), **options)
    with pytest.raises(SystemExit) as stopped:
        train(parts, SOURCES[source](x), loss=stop_after(step), folder=tmp_path, **options)
    assert stopped.value.code == 143
    parts = pair(seed=1)
    torch.rand(7)  # the state of the next process is another
    resumed = train(parts, SOURCES[source](x), folder=Run(tmp_path, resume=True), **options)
    assert_same_run(whole, history, parts, resumed)
    loaded = load_run(tmp_path, "last")
    assert_same_run(whole, history, (loaded.model, loaded.guide), resumed)


def test_ctrl_c_ends_after_the_step_and_says_how_to_go_on(x, tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(pair(), x, loss=stop_after(7, signal.SIGINT), folder=tmp_path / "run")
    assert "interrupted; " in (printed := capsys.readouterr().out)
    assert "holds step 7: go on with folder=Run(" in printed and "resume=True" in printed
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(train(pair(), x, folder=Run(tmp_path / "run", resume=True)).step_losses) == 15


def test_without_a_folder_ctrl_c_is_what_it_was(x):
    with pytest.raises(KeyboardInterrupt):
        train(pair(), x, loss=stop_after(7, signal.SIGINT))


def test_what_is_ignored_is_ignored_still():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received is None


def test_a_second_signal_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received is signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_a_stop_at_the_end_of_an_epoch(x, tmp_path):
    whole, parts = pair(), pair()
    history = train(whole, x)
    with pytest.raises(SystemExit):
        train(parts, x, loss=stop_after(5), folder=tmp_path)  # five batches are an epoch
    assert_same_run(whole, history, *resumed(tmp_path, x))


def resumed(folder, x, **options):
    halves = pair(seed=1)
    return halves, train(halves, x, folder=Run(folder, resume=True), **options)


def test_a_game_stopped_within_an_epoch_goes_on_exactly(x, tmp_path):
    def game():
        torch.manual_seed(0)
        model = models.GAN(default_prior(dist.Normal, 4), Deterministic(MLP(4, [16]), 64))
        return (model, None), Adversarial(Discriminator(MLP(64, [16])))

    options = {
        "schedules": {
            "lr": lambda step: (
                (signal.raise_signal(signal.SIGTERM), 1e-3)[1] if step == 6 else 1e-3
            )
        }
    }
    whole, loss = game()
    history = train(whole, x, loss=loss, schedules={"lr": lambda step: 1e-3})
    parts, loss = game()
    with pytest.raises(SystemExit):
        train(parts, x, loss=loss, folder=tmp_path, **options)
    torch.manual_seed(5)
    (model, _), again = game()
    for module in (model, again):
        for parameter in module.parameters():
            torch.nn.init.uniform_(parameter)
    go_on = train(
        (model, None),
        x,
        loss=again,
        folder=Run(tmp_path, resume=True),
        schedules={"lr": lambda step: 1e-3},
    )
    assert_same_run(whole[:1], history, (model,), go_on)
    assert all(k in history.rows[0] for k in ("generator_gradient", "discriminator_gradient"))


def test_resume_auto_begins_and_goes_on(x, tmp_path):
    whole, parts = pair(), pair()
    history = train(whole, x)
    with pytest.raises(RunError, match="no readable config.json"):
        train(pair(), x, folder=Run(tmp_path / "run", resume=True))
    train(parts, x, folder=Run(tmp_path / "run", resume="auto"), epochs=1)
    halves = pair(seed=1)
    assert_same_run(
        whole, history, halves, train(halves, x, folder=Run(tmp_path / "run", resume="auto"))
    )


def test_a_run_stopped_before_its_first_checkpoint_begins_again(x, tmp_path):
    whole, parts = pair(), pair()
    history = train(whole, x)
    train(pair(), x, folder=tmp_path, epochs=1)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert_same_run(whole, history, parts, train(parts, x, folder=Run(tmp_path, resume=True)))


def test_a_crash_between_two_files_is_mended(x, tmp_path):
    """The state is written first; the best weights that should have followed are those of an
    earlier epoch.
    """
    whole = pair()
    history = train(whole, x, folder=tmp_path / "whole")
    train(pair(), x, folder=tmp_path / "run", epochs=1)
    kept = {
        name: (tmp_path / "run" / name).read_bytes()
        for name in ("best.safetensors", "last.safetensors")
    }
    train(pair(), x, folder=Run(tmp_path / "run", resume=True), epochs=2)
    for name, content in kept.items():
        (tmp_path / "run" / name).write_bytes(content)
    halves, again = resumed(tmp_path / "run", x)
    assert_same_run(whole, history, halves, again)
    for which in ("best", "last"):
        first, second = (
            load_run(tmp_path / name, which).model.state_dict() for name in ("whole", "run")
        )
        assert all(torch.equal(t, second[name]) for name, t in first.items())
    stopped_at_two = tmp_path / "two"
    train(pair(), x, folder=stopped_at_two, epochs=2)
    (stopped_at_two / "best.safetensors").write_bytes(kept["best.safetensors"])
    halves, again = resumed(
        stopped_at_two, x, epochs=2
    )  # nothing is left to train, only to mend
    assert again.best_epoch == 2 and load_run(stopped_at_two, "best").history.best_epoch == 2
    best = load_run(stopped_at_two, "best").model.state_dict()
    assert all(torch.equal(t, best[name]) for name, t in again.states["last"]["model"].items())


def test_the_last_checkpoints_are_kept(x, tmp_path):
    train(pair(), x, folder=Run(tmp_path, checkpoint_steps=2, keep_checkpoints=3))
    names = {path.name for path in tmp_path.glob("state*")}
    assert names == {"state.safetensors", "state-1.safetensors", "state-2.safetensors"}
    steps = []
    for name in ("state", "state-1", "state-2"):
        if name != "state":
            shutil.copy(tmp_path / f"{name}.safetensors", tmp_path / "state.safetensors")
        steps.append(Run(tmp_path).load_state()[1]["progress"]["step"])
    assert steps == [15, 14, 12]  # the end of the third epoch, and every second step
    whole = pair()
    history = train(whole, x)
    assert_same_run(whole, history, *resumed(tmp_path, x))  # from step 12


# --- kill -9

KILLED = """
import os, random, signal, sys, time, warnings
sys.path.insert(0, sys.argv[1])
import torch, torch._dynamo  # which an optimizer would import in every child
from tests.training.test_resume import pair, train, states, assert_same_run, x_of
from tarspyro import load_run
from tarspyro.runs import Run
torch.set_num_threads(1)
x, folder, kills = x_of(), sys.argv[2], int(sys.argv[3])
moments = random.Random(0)
run = Run(folder, resume="auto", checkpoint_steps=2, keep_checkpoints=2)
options = {"epochs": 80, "validation": x[:40], "folder": run}
done = steps = 0
while done < kills:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        def beta(step):
            os.write(writer, b".")  # a step begins
            return min(1.0, step / 8)
        seed = done if Run(folder).has_state else 0
        train(pair(seed=seed), x, **{**options, "schedules": {"beta": beta}})
        os._exit(0)
    os.close(writer)
    for _ in range(moments.randrange(16)):  # none: while it makes ready to train
        os.read(reader, 1)
    time.sleep(moments.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == -signal.SIGKILL, f"the run ended by itself ({ended}) before it was killed {kills} times"
    os.close(reader)
    done += 1
    run = Run(folder)
    if run.has_state:  # whatever moment it was, what is there can be read
        steps = run.load_state()[1]["progress"]["step"]
        if run.load_state()[1]["progress"]["epoch"] and os.path.exists(folder + "/last.safetensors"):
            run.load_weights("last"), run.load_weights("best"), run.config()
halves, whole = pair(seed=99), pair(seed=0)
again = train(halves, x, **options)
history = train(whole, x, **{**options, "folder": None})
assert_same_run(whole, history, halves, again)
print(done, "kills,", steps, "steps at the last of them, of", len(history.step_losses))
"""


def x_of():
    return digits().train.x[:230].round()


def test_fifty_kills_leave_the_run_that_none_would_have_made(tmp_path):
    # Once there is a checkpoint, a child begins with other weights: only the checkpoint can
    # make them equal. A folder in memory, where there is one: on a disk most of the time would
    # go to waiting for it.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        dir=memory if os.access(memory, os.W_OK) else tmp_path
    ) as folder:
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(Path(__file__).parents[2]),
            f"{folder}/run",
            "50",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("50 kills, ") and int(done.stdout.split()[2]) > 100, (
        done.stdout
    )


# --- a full disk


FULL = """
import resource, signal, sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
from tarspyro.runs import Run
from tests.training.test_resume import pair, train, states, assert_same_run, x_of
x, folder, whole = x_of(), sys.argv[2], pair()
history = train(whole, x)
parts = pair()
train(parts, x, folder=folder, epochs=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))  # no file may grow further
parts = pair(seed=1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    again = train(parts, x, folder=Run(folder, resume=True))
assert_same_run(whole, history, parts, again)
print(caught[0].message)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
parts = pair(seed=1)
assert_same_run(whole, history, parts, train(parts, x, folder=Run(folder, resume=True)))
"""


def test_a_full_disk_costs_a_warning_and_no_training(tmp_path):
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        FULL,
        str(Path(__file__).parents[2]),
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        "state.safetensors could not be written (File too large). The training goes on after step 10"
        in done.stdout
    )
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_folder_that_cannot_be_written_is_told_at_once(x, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # as root, every folder can be written
    with pytest.raises(
        RunError, match=r"run could not be written \(Permission denied\): give another folder"
    ):
        train(pair(), x, folder=tmp_path / "run")


# --- steps that are not finite


class Spoiled(ELBO):
    """A bound that is, in some steps, what it should not be."""

    def __init__(self, steps, what):
        super().__init__()
        self.steps, self.what, self.step = steps, what, 0

    def loss_and_terms(self, model, guide, *args):
        loss, terms = super().loss_and_terms(model, guide, *args)
        if torch.is_grad_enabled():
            self.step += 1
            if self.step in self.steps:
                if self.what == "loss":
                    loss = loss * torch.nan
                elif self.what == "gradient":  # finite, but its slope is not
                    loss = loss + (guide.posterior.heads["loc"].bias[0] * 0).abs().sqrt()
                elif self.what == "buffer":
                    guide.posterior.trunk.layers[1].running_mean.data.fill_(torch.nan)
                    loss = loss * torch.inf
                elif self.what == "parameter":
                    with torch.no_grad():
                        guide.posterior.heads["loc"].bias.fill_(torch.inf)
                    loss = super().loss_and_terms(model, guide, *args)[0]
        return loss, terms


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("loss", r"The loss was nan at step 7 \(epoch 2, batch 2\)"),
        (
            "gradient",
            r"The gradient's norm was nan at step 7 \(epoch 2, batch 2\): the gradient of posterior\.heads",
        ),
        (
            "parameter",
            r"The loss was nan at step 7 \(epoch 2, batch 2\): the parameter posterior\.heads\.loc\.bias of ",
        ),
    ],
)
def test_what_is_not_finite_is_named_in_its_step(what, sentence, x):
    halves = pair()
    with pytest.raises(NonFiniteError, match=sentence):
        train(halves, x, loss=Spoiled({7}, what), schedules=None)
    assert all(t.isfinite().all() for t in states(halves).values())


def test_data_that_is_not_finite_is_named_with_its_batch_and_row(x):
    spoiled = x.clone()
    spoiled[107, 3] = torch.nan
    loader = DataLoader(TensorDataset(spoiled), batch_size=50)
    with pytest.raises(
        NonFiniteError,
        match=r"\(epoch 1, batch 3\): data\[0\] is not finite \(batch rows \[7\]\)",
    ):
        train(pair(), loader, binarize=False)


@pytest.mark.parametrize("what", ["loss", "gradient", "buffer", "parameter"])
def test_steps_that_are_not_finite_are_skipped(what, x, tmp_path):
    halves = pair()
    with pytest.warns(UserWarning, match="not finite|was nan|was inf|norm was") as caught:
        history = train(
            halves,
            x,
            loss=Spoiled({3, 7, 8}, what),
            optimizer=Optimizer(on_nonfinite="skip"),
            schedules=None,
            folder=tmp_path,
            epochs=4,
        )
    assert len([w for w in caught if "The step was skipped" in str(w.message)]) == 3
    assert history["skipped"] == [1, 2] and len(history.step_losses) == 20 - 3
    assert (
        all(t.isfinite().all() for t in states(halves).values())
        and history["loss"][-1] < history["loss"][0]
    )
    if what in ("buffer", "parameter"):
        assert "and the weights are those after epoch 1." in str(caught[1].message)


def test_a_skipped_step_changes_nothing(x):
    """The run is the one that a loader without that batch makes."""
    batches = list(x.split(50))
    spoiled = [*batches[:2], batches[0] * torch.nan, *batches[2:]]
    options = {
        "binarize": False,
        "optimizer": Optimizer(on_nonfinite="skip"),
        "epochs": 1,
        "schedules": None,
    }

    class Deterministically(ELBO):
        def loss_and_terms(self, model, guide, *args):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return super().loss_and_terms(model, guide, *args)

    torch.manual_seed(0)
    first, second = plain_pair(), plain_pair()
    train(first, DataLoader(batches, batch_size=None), loss=Deterministically(), **options)
    with pytest.warns(UserWarning, match="The step was skipped"):
        train(
            second, DataLoader(spoiled, batch_size=None), loss=Deterministically(), **options
        )
    assert all(
        torch.equal(a, b)
        for a, b in zip(states(first).values(), states(second).values(), strict=True)
    )


def plain_pair():
    torch.manual_seed(0)
    model = models.VAE(
        default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [16]), 64)
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(64, [16]), 2))


def test_twenty_skipped_steps_in_a_row_stop(x):
    with (
        pytest.raises(NonFiniteError, match="It was the last of 20 such steps in a row"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        train(
            pair(),
            x,
            loss=Spoiled(range(1000), "loss"),
            optimizer=Optimizer(on_nonfinite="skip"),
            epochs=20,
            schedules=None,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Optimizer(on_nonfinite="ignore"),
            "on_nonfinite must be 'stop' or 'skip', got 'ignore'",
        ),
        (lambda: Run("a", resume="yes"), "resume must be True, False or 'auto', got 'yes'"),
        (lambda: Run("a", checkpoint_steps=0), "checkpoint_steps must be at least 1, got 0"),
        (lambda: Run("a", keep_checkpoints=0), "keep_checkpoints must be at least 1, got 0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
