"""Trainings of many kinds that get KILL, TERM, INT and HUP at random moments and are resumed.

In the end each of them has to be bit by bit what it would have been without a signal: losses,
history and weights.

    python benchmarks/soak.py --signals 1000
"""

import argparse
import contextlib
import functools
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
import torch._dynamo  # which an optimizer would import in every child
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from tarspyro import Conditional, Deterministic, Optimizer, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import CIWAE, ELBO, IWAE, Adversarial, Renyi
from tarspyro.nn import MLP, Discriminator
from tarspyro.runs import History, Run

X = digits().train.x[:50].round()
EPOCHS = 5
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Kind = Callable[[int], tuple[tuple[nn.Module, nn.Module | None], dict[str, Any]]]


def vae(
    seed: int, family: Any = dist.Bernoulli, **network: Any
) -> tuple[nn.Module, nn.Module]:
    """Returns an untrained pair."""
    torch.manual_seed(seed)
    p = models.VAE(
        default_prior(dist.Normal, 2), Conditional(family, MLP(2, [4], **network), 64)
    )
    return p, guides.VAE(Conditional(dist.Normal, MLP(64, [4], **network), 2))


def with_options(**options: Any) -> Kind:
    """Returns a training of a VAE with arguments of ``fit``; functions make them anew."""

    def make(seed: int) -> tuple[tuple[nn.Module, nn.Module | None], dict[str, Any]]:
        return vae(seed), {name: _made(value) for name, value in options.items()}

    return make


def with_network(**network: Any) -> Kind:
    """Returns a training of a VAE with other networks."""
    return lambda seed: (vae(seed, **network), {})


class _Anew:
    """A value that every training makes anew."""

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def _made(value: object) -> object:
    return value.make() if isinstance(value, _Anew) else value


def _loader(**options: Any) -> _Anew:
    def make() -> object:
        if "generator" in options:
            generator = torch.Generator().manual_seed(3)
            return DataLoader(TensorDataset(X), 20, **{**options, "generator": generator})
        return DataLoader(TensorDataset(X), 20, **options)

    return _Anew(make)


def _game(seed: int) -> tuple[tuple[nn.Module, nn.Module | None], dict[str, Any]]:
    torch.manual_seed(seed)
    p = models.GAN(default_prior(dist.Normal, 2), Deterministic(MLP(2, [4]), 64))
    return (p, None), {"loss": Adversarial(Discriminator(MLP(64, [4])))}


def kinds() -> dict[str, Kind]:
    """Returns the kinds of training by name."""
    optimizers = [
        *(optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop, optim.Adagrad, optim.Adadelta),
        *(optim.Adamax, optim.NAdam, optim.RAdam, optim.Rprop, optim.ASGD, optim.Adafactor),
    ]
    variants = {
        "SGD with momentum": Optimizer(optim.SGD, momentum=0.9),
        "SGD, Nesterov": Optimizer(optim.SGD, momentum=0.9, nesterov=True),
        "Adam, amsgrad": Optimizer(optim.Adam, amsgrad=True),
        "Adam, weight decay": Optimizer(optim.Adam, weight_decay=1e-2),
        "Adam, clipped norm": Optimizer(optim.Adam, clip_norm=1.0),
        "Adam, clipped values": Optimizer(optim.Adam, clip_value=0.1),
        "Adam that skips": Optimizer(optim.Adam, on_nonfinite="skip"),
        "RMSprop, centred": Optimizer(optim.RMSprop, centered=True, momentum=0.5),
    }
    bounds = {
        "ELBO of 3 particles": ELBO(num_particles=3),
        "sampled KL": ELBO(analytic_kl=False),
        "beta": ELBO(beta=2.0),
        "IWAE": IWAE(3),
        "Renyi": Renyi(0.5, 3),
        "CIWAE": CIWAE(0.5, 3),
    }
    sources = {
        "loader": _loader(shuffle=True),
        "loader in order": _loader(),
        "loader with a generator": _loader(shuffle=True, generator=True),
        "loader that drops the last": _loader(shuffle=True, drop_last=True),
        "data set": _Anew(lambda: TensorDataset(X)),
    }
    options: dict[str, dict[str, Any]] = {
        "default": {},
        "binarize": {"binarize": True},
        "validation": {"validation": X[:20]},
        "validation, binarize": {"validation": X[:20], "binarize": True},
        "patience": {"validation": X[:20], "patience": 3},
        "in order": {"shuffle": False},
        "batches of 7": {"batch_size": 7},
        "one batch": {"batch_size": 50},
        "schedule of beta": {"schedules": {"beta": lambda step: min(1.0, step / 8)}},
        "schedule of lr": {"schedules": {"lr": lambda step: 1e-3 * 0.9**step}},
        "no seed": {"seed": None},
        "bfloat16": {"autocast": torch.bfloat16},
    }
    networks: dict[str, dict[str, Any]] = {
        "batch normalization": {"normalization": nn.BatchNorm1d},
        "layer normalization": {"normalization": nn.LayerNorm},
        "Tanh": {"activation": nn.Tanh},
        "continuous Bernoulli": {"family": dist.ContinuousBernoulli},
    }
    return {
        **{f"optimizer {o.__name__}": with_options(optimizer=o) for o in optimizers},
        **{f"optimizer {name}": with_options(optimizer=o) for name, o in variants.items()},
        **{f"bound {name}": with_options(loss=loss) for name, loss in bounds.items()},
        **{f"data: {name}": with_options(data=source) for name, source in sources.items()},
        **{f"option: {name}": with_options(**given) for name, given in options.items()},
        **{f"network: {name}": with_network(**given) for name, given in networks.items()},
        "game": _game,
    }


def train(kind: Kind, seed: int, folder: Run | None, **more: Any) -> tuple[History, Any]:
    """Trains a pair of a kind; returns the history and the weights."""
    (p, q), options = kind(seed)
    data = options.pop("data", X)
    given = {"epochs": EPOCHS, "batch_size": 20, "seed": 0, "progress": False, **options}
    if given["seed"] is None:
        torch.manual_seed(0)
    history = fit(p, q, data, folder=folder, **given, **more)
    return history, history.states["last"]


def same(history: History, weights: Any, other: History, other_weights: Any) -> bool:
    """Returns whether two trainings are the same bit by bit, but for their seconds."""
    rows, other_rows = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in each.rows]
        for each in (history, other)
    )
    return (
        history.step_losses == other.step_losses
        and rows == other_rows
        and weights.keys() == other_weights.keys()
        and all(
            torch.equal(tensor, other_weights[half][name])
            for half, state in weights.items()
            for name, tensor in state.items()
        )
    )


def _note(writer: int, row: dict[str, float]) -> None:
    """Tells the parent that an epoch is over."""
    os.write(writer, b".")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def interrupted(kind: Kind, folder: Path, moments: random.Random, most: int) -> Counter[str]:
    """Trains a kind in children that get signals; returns how many of each.

    After so many signals, or when a child has come to the end by itself, it is over.
    """
    sent: Counter[str] = Counter()
    run = Run(folder, resume="auto", checkpoint_steps=2, keep_checkpoints=2)
    while sum(sent.values()) < most:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = 1
            try:
                with _silent():
                    os.write(writer, b".")
                    train(
                        kind,
                        seed=0 if not run.has_state else moments.randrange(1, 99),
                        folder=run,
                        callback=functools.partial(_note, writer),
                    )
                status = 0
            except (KeyboardInterrupt, SystemExit):
                status = 3
            finally:
                os._exit(status)
        os.close(writer)
        for _ in range(moments.randrange(1, 3)):
            os.read(reader, 1)
        time.sleep(moments.uniform(0, 0.08))
        number = moments.choice(SIGNALS)
        os.kill(child, number)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.close(reader)
        if ended == 0:
            break
        if ended not in (3, -number):
            raise RuntimeError(f"the child ended with {ended} after {number.name}")
        sent[number.name] += 1
    return sent


def soak(
    signals: int, chosen: dict[str, Kind], seed: int = 0
) -> tuple[Counter[str], list[str]]:
    """Sends so many signals to trainings of the kinds in turn.

    Returns:
        How many of each signal, and the names of the trainings that were not the same.
    """
    moments = random.Random(seed)
    sent: Counter[str] = Counter()
    differing: list[str] = []
    # A folder in memory, where there is one: on a disk most of the time would go to waiting.
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    while sum(sent.values()) < signals:
        for name, kind in chosen.items():
            with tempfile.TemporaryDirectory(dir=place) as folder, _silent():
                whole = train(kind, seed=0, folder=None)
                most = min(6, signals - sum(sent.values()))
                sent += interrupted(kind, Path(folder) / "run", moments, most)
                run = Run(Path(folder) / "run", resume="auto")
                if not same(*whole, *train(kind, 0 if not run.has_state else 5, run)):
                    differing.append(name)
            if sum(sent.values()) >= signals:
                break
    return sent, differing


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--signals", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    everything = kinds()
    counts, different = soak(given.signals, everything, given.seed)
    print(f"{len(everything)} kinds of training, {dict(counts)}")
    print(f"{sum(counts.values())} signals; not the same: {different or 'none'}")
    sys.exit(bool(different))
