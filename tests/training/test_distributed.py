"""Trainings of several processes: what they do together is what one would do alone."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch

from tarspyro import load_run
from tarspyro.runs import Run
from tarspyro.training.distributed import Processes

ROOT = Path(__file__).parents[2]


def run(code, *arguments, launcher=(), timeout=240):
    """Runs code in a process of its own, which forks others: this one may have threads, which
    do not survive a fork.
    """
    head = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom tests.together import *\nfrom tarspyro.runs import Run\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_process_tells_itself():
    alone = Processes()
    parameter = torch.zeros(3, requires_grad=True)
    parameter.grad = torch.ones(3)
    numbers = torch.tensor([2.0])
    assert alone.average([parameter], numbers, 5) is numbers and alone.first
    assert alone.share(7) == slice(0, 7)
    alone.wait(), alone.vary_noise(), alone.check_equal("x", 3)
    assert alone.gather(torch.ones(2))[0].tolist() == [1, 1]


def test_many_do_what_one_does(tmp_path):
    """Weights, losses and measurements, in double precision; rows without overlap; noise of
    each one's own.
    """
    printed = run(
        """
        import itertools, json
        alone = trained(validation=rows(70))
        report = {}
        for size in (2, 4):
            others = together(size, lambda rank: trained(rank, seed=rank, validation=rows(70)))
            for other in others:
                assert all((other["weights"][n] == others[0]["weights"][n]).all() for n in alone["weights"])
                assert other["rows"] == others[0]["rows"] and other["step_losses"] == others[0]["step_losses"]
            report[size] = {
                "weights": max(float(abs(others[0]["weights"][n] - w).max()) for n, w in alone["weights"].items()),
                "losses": max(abs(a - b) / a for a, b in zip(alone["step_losses"], others[0]["step_losses"])),
                "rows": max(
                    abs(row[k] - value) / max(1, abs(value))
                    for row, other in zip(others[0]["rows"], alone["rows"]) for k, value in other.items()
                ),
            }
            for step in range(-10, 0):  # before the steps there were checks
                x = alone["seen"][step][0]
                parts = [other["seen"][step][0] for other in others]
                if len(x) > 1:  # of a single row, the others have a copy that does not count
                    assert (x == __import__("numpy").concatenate(parts)).all()
                noise = [other["seen"][step][1] for other in others]
                assert all((a != b).all() for a, b in itertools.combinations(noise, 2))
        print(json.dumps(report))
        """
    )
    for size, differences in json.loads(printed).items():
        assert all(value < 1e-9 for value in differences.values()), (size, differences)


def test_a_run_of_two_is_stopped_by_one_and_goes_on_exactly(tmp_path):
    run(
        """
        import os, signal
        folder = sys.argv[1]
        options = {"folder": folder, "optimizer": torch.optim.Adam, "lr": 1e-2, "epochs": 3}
        whole = together(2, lambda rank: trained(rank, **{**options, "folder": None}))

        def stopped(rank):
            def rate(step):
                if step == 7 and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return 1e-2
            return trained(rank, schedules={"lr": rate}, **options)

        ended = together(2, stopped)
        assert [type(error).__name__ for error in ended] == ["SystemExit"] * 2, ended
        assert [error.code for error in ended] == [143] * 2
        resumed = together(2, lambda rank: trained(rank, seed=5, **{**options, "folder": Run(folder, resume=True)}))
        for a, b in zip(whole, resumed):
            assert a["step_losses"] == b["step_losses"], (a["step_losses"], b["step_losses"])
            assert all((a["weights"][n] == b["weights"][n]).all() for n in a["weights"])
            # What was drawn after the stop is what would have been drawn.
            assert all((m == n).all() for (_, m), (_, n) in zip(a["seen"][-7:], b["seen"][-7:]))
        # One process goes on with what two have begun.
        alone = trained(**{**options, "folder": Run(folder, resume=True), "epochs": 4})
        assert len(alone["rows"]) == 4
        for row, other in zip(alone["rows"], whole[0]["rows"]):  # sums over an interrupted epoch are rounded otherwise
            assert row.keys() == other.keys() and all(abs(row[k] - other[k]) < 1e-9 for k in row)
        """,
        tmp_path,
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "state.safetensors",
    }
    assert Run(tmp_path).load_state()[1]["progress"]["epoch"] == 4


def test_a_process_that_dies_ends_the_others_with_a_sentence(tmp_path):
    printed = run(
        """
        import os
        def dying(rank):
            def rate(step):
                if step == 8 and rank == 2:
                    os._exit(1)
                return 1e-2
            return trained(rank, schedules={"lr": rate}, folder=Run(sys.argv[1], checkpoint_steps=3))

        ended = together(4, dying)
        print([type(error).__name__ for error in ended], str(ended[0]))
        """,
        tmp_path,
    )
    assert "['ProcessError', 'ProcessError', 'NoneType', 'ProcessError']" in printed
    assert "Another process of the training has died or does not answer" in printed
    assert f"Training stopped; {tmp_path} holds step 6: go on with" in printed
    assert Run(tmp_path).load_state()[1]["progress"]["step"] == 6


def test_what_one_cannot_use_all_skip(tmp_path):
    printed = run(
        """
        import warnings
        x, noise = rows(200)
        noise = noise.clone()
        noise[60] = torch.nan  # a row of the second batch, and of one process
        warnings.simplefilter("ignore")
        from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

        def task(rank, on_nonfinite):
            data = TensorDataset(x, noise)
            sampler = DistributedSampler(data, shuffle=True)
            loader = DataLoader(data, 25, sampler=sampler)
            return trained(rank, data=loader, optimizer=Optimizer(torch.optim.SGD, on_nonfinite=on_nonfinite, momentum=0.9))

        skipped = together(2, task, "skip")
        assert all((skipped[0]["weights"][n] == skipped[1]["weights"][n]).all() for n in skipped[0]["weights"])
        assert skipped[0]["rows"] == skipped[1]["rows"]
        first, second = (torch.cat([torch.as_tensor(x) for x, _ in run["seen"][:4]]) for run in skipped)
        later = torch.cat([torch.as_tensor(x) for x, _ in skipped[0]["seen"][4:8]])
        assert len(first) == 100 and not (first == later).all()  # another order in another epoch
        print([row["skipped"] for row in skipped[0]["rows"]], [len(run["step_losses"]) for run in skipped])
        print([str(error) for error in together(2, task, "stop")])
        """
    )
    assert "[1, 1] [6, 6]" in printed
    assert printed.count("The loss was nan at step") == 2


def test_processes_must_do_the_same(tmp_path):
    printed = run(
        """
        def task(rank):
            x, noise = rows(100)
            from torch.utils.data import DataLoader, TensorDataset
            return trained(rank, data=DataLoader(TensorDataset(x, noise), 20 + 20 * rank))

        print([str(error) for error in together(2, task)])
        """
    )
    assert (
        printed.count(
            "The number of batches of an epoch must be the same in all processes, got [5, 3]"
        )
        == 2
    )


def test_streams_that_end_at_different_times_and_pairs_that_differ(tmp_path):
    """Both processes are told, and none waits for the other."""
    printed = run(
        """
        from torch import nn
        from tarspyro.data import Stream

        def of_streams(rank):
            def batches():
                x, noise = rows(200)
                for start in range(0, 40 + 80 * rank, 20):
                    yield x[start : start + 20], noise[start : start + 20]

            return trained(rank, data=Stream(batches(), steps_per_epoch=4))

        def of_widths(rank):
            halves = Halves()
            model, guide = halves.parts()
            if rank:
                model.extra = nn.Linear(3, 3)
            return fit(model, guide, rows(), **OPTIONS)

        def of_data(rank):
            x, noise = rows(200)
            return trained(rank, data=(x + rank * (1 - 2 * x), noise))

        for task in (of_streams, of_widths, of_data):
            print([str(found) for found in together(2, task)])
        """
    )
    assert printed.count("1 of 2 processes have a next batch, and the others have none") == 2
    assert printed.count("The parameters must be the same in all processes, and differ") == 2
    assert printed.count("The training data must be the same in all processes") == 2


def test_games_compiled_steps_and_statistics(tmp_path):
    """Adversaries, recorded steps and Pyro's own bounds exchange gradients the same way;
    buffers are the first's.
    """
    run(
        """
        from pyro.infer import Trace_ELBO
        from tarspyro import Deterministic, models
        from tarspyro.distributions import default_prior
        from tarspyro.infer import Adversarial, Compiled
        from tarspyro.nn import Discriminator

        alone = trained(loss=Trace_ELBO())
        others = together(2, lambda rank: trained(rank, loss=Trace_ELBO()))
        assert max(float(abs(others[0]["weights"][n] - w).max()) for n, w in alone["weights"].items()) < 1e-9
        recorded = Compiled(ELBO(analytic_kl=False), backend="eager", choose=False)
        others = together(2, lambda rank: trained(rank, loss=recorded))
        assert max(float(abs(others[0]["weights"][n] - w).max()) for n, w in alone["weights"].items()) < 1e-9

        def game(rank):
            torch.manual_seed(rank)
            p = models.GAN(default_prior(dist.Normal, 2), Deterministic(MLP(2, [8]), 64))
            loss = Adversarial(Discriminator(MLP(64, [8])))
            history = fit(p, None, rows()[0], loss=loss, epochs=1, batch_size=50, seed=0, progress=False)
            return [t.numpy() for m in (p, loss) for t in m.state_dict().values()], history.rows[0]["real"]

        (first, real), (second, other) = together(2, game)
        assert all((a == b).all() for a, b in zip(first, second)) and real == other

        options = {"pair_options": {"normalization": nn.BatchNorm1d}, "data": rows(200)}
        first, second = together(2, lambda rank: trained(rank, **options))
        assert all((first["weights"][n] == second["weights"][n]).all() for n in first["weights"])
        """
    )


def test_torchrun_starts_the_script_that_runs_alone(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import pyro.distributions as dist
            from tarspyro import Conditional, Run, fit, guides, models
            from tarspyro.data import digits
            from tarspyro.distributions import default_prior
            from tarspyro.nn import MLP

            p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64))
            q = guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))
            for epochs in (1, 2):
                history = fit(p, q, digits().train.x[:200].round(), epochs=epochs, folder=Run("run", resume="auto"), seed=0)
            print("loss", history["loss"])
            """
        )
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("loss")]
    assert len(lines) == 2 and lines[0] == lines[1]
    assert (done.stdout + done.stderr).count(
        "kept the last weights"
    ) == 2  # of two trainings, and one process
    assert len(load_run(tmp_path / "run").history) == 2
