"""Captured training against eager training, on an accelerator or on a pretended one.

Each case trains the same pair twice from the same seed: step by step, and with every step a
graph that the device replays. Weights and losses have to agree, since any number that a graph
holds, and that should have changed, moves them apart.

    python benchmarks/captured.py                  # all cases on the accelerator
    python benchmarks/captured.py --pretended      # on any machine: minutes on a CPU
    python benchmarks/captured.py --pretended --only adam vae gan --epochs 4

Results are written to ``benchmarks/results/captured.json`` (``captured_pretended.json``).
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyro.distributions as dist
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from tarspyro import (  # noqa: E402
    Conditional,
    Deterministic,
    Optimizer,
    accelerators,
    fit,
    guides,
    models,
)
from tarspyro.commands.methods import METHODS  # noqa: E402
from tarspyro.commands.methods.forms import PreparedData  # noqa: E402
from tarspyro.commands.methods.method import Built  # noqa: E402
from tarspyro.data import digits  # noqa: E402
from tarspyro.distributions import default_prior  # noqa: E402
from tarspyro.infer import ELBO, IWAE, Compiled  # noqa: E402
from tarspyro.nn import MLP  # noqa: E402
from tarspyro.runs.history import History  # noqa: E402
from tarspyro.scopes import find_device  # noqa: E402
from tarspyro.training.losses import Objective  # noqa: E402

Pair = tuple[nn.Module, nn.Module]


def autoencoder(**how: Any) -> Pair:
    """A pair without noise."""
    p = models.Autoencoder(Conditional(dist.Bernoulli, MLP(2, [16], **how), 64), 2)
    return p, guides.Autoencoder(Deterministic(MLP(64, [16], **how), 2))


def vae(**how: Any) -> Pair:
    """A pair with noise."""
    prior = default_prior(dist.Normal, 2)
    p = models.VAE(prior, Conditional(dist.Bernoulli, MLP(2, [16], **how), 64))
    return p, guides.VAE(Conditional(dist.Normal, MLP(64, [16], **how), 2))


def falling(first: float, over: float) -> dict[str, Callable[[int], float]]:
    """A schedule of the learning rate."""
    return {"lr": lambda step: first / (1 + step / over)}


Case = tuple[Callable[..., Pair], Callable[[], Any], dict[str, Any]]
SGD = torch.optim.SGD
SETTINGS: dict[str, Case] = {
    "adam": (autoencoder, ELBO, {"lr": 1e-2}),
    "adam, schedule and norm": (
        autoencoder,
        ELBO,
        {"schedules": falling(1e-2, 10), "optimizer": Optimizer(clip_norm=1.0)},
    ),
    "adam, clipped": (
        autoencoder,
        ELBO,
        {"lr": 1e-2, "optimizer": Optimizer(clip_value=1e-2)},
    ),
    "adam, skipping": (autoencoder, ELBO, {"optimizer": Optimizer(on_nonfinite="skip")}),
    "sgd": (autoencoder, ELBO, {"optimizer": SGD, "lr": 1e-2}),
    "sgd, schedule": (
        autoencoder,
        ELBO,
        {"optimizer": Optimizer(SGD, momentum=0.9), "schedules": falling(1e-2, 1)},
    ),
    "rmsprop": (autoencoder, ELBO, {"optimizer": torch.optim.RMSprop}),
    "rmsprop, schedule": (
        autoencoder,
        ELBO,
        {"optimizer": torch.optim.RMSprop, "schedules": falling(1e-2, 1)},
    ),
    "adagrad": (
        autoencoder,
        ELBO,
        {"optimizer": Optimizer(torch.optim.Adagrad, lr_decay=0.1), "lr": 1e-2},
    ),
    "adamax": (autoencoder, ELBO, {"optimizer": torch.optim.Adamax, "lr": 1e-2}),
    "adadelta": (autoencoder, ELBO, {"optimizer": torch.optim.Adadelta, "lr": 1.0}),
    "nadam": (autoencoder, ELBO, {"optimizer": torch.optim.NAdam}),
    "radam": (autoencoder, ELBO, {"optimizer": torch.optim.RAdam}),
    "rprop": (autoencoder, ELBO, {"optimizer": torch.optim.Rprop}),
    "asgd": (autoencoder, ELBO, {"optimizer": torch.optim.ASGD, "lr": 1e-2}),
    # Normalization takes away what the bias before it adds: its gradient is rounding alone,
    # which Adam would blow up.
    "batch normalization": (
        functools.partial(autoencoder, normalization=nn.BatchNorm1d),
        ELBO,
        {"optimizer": torch.optim.ASGD, "lr": 1e-2},
    ),
    "vae, adam": (vae, ELBO, {"lr": 1e-2}),
    "vae, beta": (vae, ELBO, {"schedules": {"beta": lambda step: min(1.0, step / 10)}}),
    "vae, iwae": (vae, lambda: IWAE(3), {}),
    "vae, dropout": (functools.partial(vae, dropout=0.3), ELBO, {}),
    "vae, binarized": (vae, ELBO, {"binarize": True}),
    "vae, short batches": (vae, ELBO, {"batch_size": 200}),
}


@contextlib.contextmanager
def counted_replays() -> Iterator[list[object]]:
    """Counts how often graphs are replayed inside."""
    replayed: list[object] = []
    replay = accelerators.Graph.replay

    def count(graph: accelerators.Graph) -> None:
        replayed.append(graph)
        replay(graph)

    with mock.patch.object(accelerators.Graph, "replay", count):
        yield replayed


@contextlib.contextmanager
def alike() -> Iterator[None]:
    """Lets an eager and a captured training do the same but for the capture.

    Recorded operations run as they are, so that both draw the same noise, and the optimizers of
    both are of the kind that can be captured, which rounds otherwise. Convolutions on a GPU are
    of full precision and add in the same order every time.
    """
    compile = Objective.compile
    make = Optimizer.make

    def record(objective: Objective, **options: object) -> None:
        compile(objective, backend="eager", choose=False)

    def make_capturable(
        optimizer: Optimizer, player: str, parameters: list[torch.Tensor], *, captured: bool
    ) -> torch.optim.Optimizer:
        return make(optimizer, player, parameters, captured=True)

    with (
        mock.patch.object(Objective, "compile", record),
        mock.patch.object(Optimizer, "make", make_capturable),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        yield


Trained = dict[str, torch.Tensor]


def numbers_of(history: History, halves: Iterable[object]) -> Trained:
    """Returns all numbers of a training: weights, and the columns of its history."""
    found = {
        f"{number}.{name}": tensor.detach().cpu().double()
        for number, half in enumerate(halves)
        if isinstance(half, nn.Module)
        for name, tensor in half.state_dict().items()
    }
    for name in history.rows[-1]:
        if name != "seconds":
            found[name] = torch.tensor(history[name], dtype=torch.float64)
    return found


def difference(one: Trained, other: Trained) -> tuple[float, str]:
    """The largest difference of two numbers, in units of 1 or of a number above it, and where
    it is.
    """
    if one.keys() != other.keys():
        return float("inf"), ", ".join(sorted(one.keys() ^ other.keys()))
    return max(
        (float(((value - other[name]).abs() / value.abs().clamp(min=1.0)).max()), name)
        for name, value in one.items()
    )


def compare_setting(name: str, epochs: int) -> tuple[tuple[float, str], int]:
    """Returns how far a captured training is from the eager one, and its replays."""
    make, loss, how = SETTINGS[name]
    x = digits().train.x[:450].round()
    how = {"seed": 0, "progress": False, "epochs": epochs, **how}
    trained = []
    replays = 0
    for compiled in (False, True):
        torch.manual_seed(0)
        pair = list(make())
        bound = Compiled(loss(), backend="eager", choose=False) if compiled else loss()
        with counted_replays() as replayed, alike():
            history = fit(*pair, x, loss=bound, **how)
        trained.append(numbers_of(history, pair))
        replays = len(replayed)
    return difference(*trained), replays


def small_method(name: str, **chosen: object) -> tuple[Built, PreparedData]:
    """Builds a method of the command line with few units, and the first of its data sets."""
    method = METHODS[name]
    small: dict[str, object] = {"hidden": [8], "units": 8, "steps": 3, "labels": 20}
    given = {key: value for key, value in small.items() if key in method.options}
    data = method.form.names[0]
    method = method.completed(data, {**given, **chosen})
    material = method.form.load(data, method)
    return method.build(material), material


def compare_method(name: str, epochs: int) -> tuple[tuple[float, str], int]:
    """The same of a method of the command line."""
    trained = []
    replays = 0
    for compiled in (False, True):
        torch.manual_seed(0)
        built, material = small_method(name)
        data: Any = material.batches  # which a method may draw in its own way
        if isinstance(data, tuple):
            data = tuple(part[:60] for part in data)
        with counted_replays() as replayed, alike():
            history = fit(
                built.model,
                built.guide,
                data,
                loss=built.loss,
                batch_size=20,
                epochs=epochs if isinstance(data, tuple) else 1,
                binarize=material.binarize,
                seed=0,
                compile=compiled,
                progress=False,
            )
        trained.append(numbers_of(history, built))
        replays = len(replayed)
    return difference(*trained), replays


def measure(name: str, epochs: int) -> dict[str, object]:
    """Returns the result of a case, or the error that it ended with."""
    compare = compare_setting if name in SETTINGS else compare_method
    start = time.process_time()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found, replays = compare(name, epochs)
    except Exception as error:  # each case is told, whatever the others do
        if os.environ.get("TARSPYRO_TRACEBACK"):
            traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    result: dict[str, object] = {"difference": found[0], "of": found[1], "replays": replays}
    said = sorted({str(one.message) for one in warned if "eager" in str(one.message)})
    if said:
        result["warnings"] = said
    return {**result, "seconds": round(time.process_time() - start, 2)}


def main() -> None:
    """Prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pretended", action="store_true", help="on a pretended accelerator")
    parser.add_argument("--only", nargs="+", help="these cases", metavar="CASE")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="the file of the results")
    options = parser.parse_args()
    if options.pretended:
        from tests.accelerator import pretended

        pretended.install()
    suffix = "_pretended" if options.pretended else ""
    out = options.out or RESULTS / f"captured{suffix}.json"
    device = find_device("auto")
    machine = {"device": accelerators.name_of_accelerator(device), "torch": torch.__version__}
    results = {}
    for name in options.only or [*SETTINGS, *METHODS]:
        results[name] = measure(name, options.epochs)
        print(name, results[name], flush=True)
        out.write_text(json.dumps({**machine, "cases": results}, indent=1) + "\n")
    if options.pretended:
        os._exit(0)


if __name__ == "__main__":
    main()
