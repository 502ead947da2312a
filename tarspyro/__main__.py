"""The command line: ``tarspyro list | train | evaluate | sample | plot``."""

__all__ = ["main"]

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn

import tarspyro.distributions
from tarspyro import Conditional, Deterministic, data, evaluate, fit, guides, load_run, models, plot
from tarspyro.batches import binarized
from tarspyro.data import Dataset, Split
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO
from tarspyro.modules import find_device, preserved_rng
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder
from tarspyro.runs import LoadedRun


class Method(NamedTuple):
    """What the command line knows of a method."""

    paper: str
    build: Callable[[argparse.Namespace, Dataset], tuple[Any, Any]]
    default_latent: int


def _trunks(options: argparse.Namespace, dataset: Dataset) -> tuple[nn.Module, nn.Module]:
    if options.trunk == "conv":
        channels = [32, 64]
        return ConvEncoder(dataset.image_shape, channels), ConvDecoder(
            options.latent, dataset.image_shape, channels[::-1]
        )
    return MLP(dataset.image_shape, options.hidden), MLP(options.latent, options.hidden[::-1])


def _likelihood(options: argparse.Namespace, dataset: Dataset, decoder: nn.Module) -> Conditional:
    if options.likelihood == "Bernoulli":
        # Grey values under a Bernoulli are a cross-entropy, which the user asked for with --grey.
        grey: dict[str, Any] = {"validate_args": False} if options.grey else {}
        return Conditional(dist.Bernoulli, decoder, dataset.image_shape, **grey)
    scale = nn.Parameter(torch.tensor(0.1)) if options.scale is None else options.scale
    return Conditional(dist.Normal, decoder, dataset.image_shape, scale=scale)


def _vae(options: argparse.Namespace, dataset: Dataset) -> tuple[Any, Any]:
    family = getattr(tarspyro.distributions, options.family, None) or getattr(dist, options.family, None)
    if family is None:
        raise ValueError(f"--family {options.family}: neither tarspyro.distributions nor pyro.distributions has it.")
    encoder, decoder = _trunks(options, dataset)
    model = models.VAE(default_prior(family, options.latent), _likelihood(options, dataset, decoder))
    return model, guides.VAE(Conditional(family, encoder, options.latent))


def _autoencoder(options: argparse.Namespace, dataset: Dataset) -> tuple[Any, Any]:
    encoder, decoder = _trunks(options, dataset)
    model = models.Autoencoder(_likelihood(options, dataset, decoder), options.latent)
    return model, guides.Autoencoder(Deterministic(encoder, options.latent))


METHODS = {
    "vae": Method("Kingma and Welling 2013, arXiv:1312.6114", _vae, 2),
    "autoencoder": Method("Hinton and Salakhutdinov 2006", _autoencoder, 2),
}

_EPOCHS = {"digits": 300, "mnist": 20, "frey_face": 300}
_DATA = {"digits": data.digits, "mnist": data.mnist, "frey_face": data.frey_face}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code, 2 after an error in the user's hands."""
    options = _parser().parse_args(arguments)
    try:
        _import(getattr(options, "modules", ()))
        options.command(options)
    except (ValueError, OSError, ImportError, TypeError, ArithmeticError, NotImplementedError) as error:
        print(f"tarspyro: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tarspyro: interrupted", file=sys.stderr)
        return 130
    return 0


def _import(modules: Sequence[str]) -> None:
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed script does not look beside the user
    for module in modules:
        importlib.import_module(module)


def _list(options: argparse.Namespace) -> None:
    for name, method in METHODS.items():
        print(f"{name:14} {method.paper:44} tarspyro train {name}")


def _train(options: argparse.Namespace) -> None:
    method = METHODS[options.method]
    dataset = _load_data(options.data)
    options.latent = options.latent or method.default_latent
    _check_device(options.device)
    options.likelihood = options.likelihood or ("Normal" if options.data == "frey_face" else "Bernoulli")
    options.grey = options.grey or options.likelihood != "Bernoulli"
    epochs = options.epochs or _EPOCHS[options.data]
    torch.manual_seed(options.seed)
    model, guide = method.build(options, dataset)
    print(model, guide, sep="\n")
    print(
        f"{options.data}: {len(dataset.train)} training images, {len(dataset.test)} held out, {_pixels(options.grey)}"
    )
    run = Path(options.run or f"runs/{options.method}-{options.data}")
    fit(
        model,
        guide,
        dataset.train,
        loss=ELBO(num_particles=options.num_particles, beta=options.beta),
        optimizer_options={"lr": options.lr},
        epochs=epochs,
        batch_size=options.batch_size,
        validation=dataset.validation,
        binarize=not options.grey,
        patience=options.patience,
        folder=run,
        resume=options.resume,
        overwrite=options.overwrite,
        settings={"method": options.method, "data": {"name": options.data, "grey": options.grey}},
        device=options.device,
        seed=options.seed,
        progress=not options.quiet,
    )
    loaded = _place(load_run(run), options.device)
    _report(loaded, dataset, run, options.likelihood_particles)
    _pictures(loaded, dataset, run)


def _evaluate(options: argparse.Namespace) -> None:
    loaded, dataset = _open(options)
    _report(loaded, dataset, Path(options.run), options.num_particles)


def _sample(options: argparse.Namespace) -> None:
    loaded, dataset = _open(options)
    if loaded.config["method"] == "autoencoder":
        raise ValueError(f"{options.run} holds an autoencoder, which has no prior to sample from.")
    out = Path(options.out or Path(options.run) / "samples.png")
    figure = plot.samples(
        loaded.model, num=options.num, seed=options.seed, mean=not options.draws, image_shape=dataset.image_shape
    )
    _save(figure, out)
    print(out)


def _plot(options: argparse.Namespace) -> None:
    loaded, dataset = _open(options)
    _pictures(loaded, dataset, Path(options.run))


def _open(options: argparse.Namespace) -> tuple[LoadedRun, Dataset]:
    loaded = load_run(options.run, options.which)
    trained_on = loaded.config.get("data")
    if "method" not in loaded.config or not isinstance(trained_on, dict) or trained_on.get("name") not in _DATA:
        raise ValueError(f"{options.run} does not say which data it was trained on: it was not made by tarspyro train.")
    return _place(loaded, options.device), _load_data(trained_on["name"])


def _load_data(name: str) -> Dataset:
    dataset = _DATA[name](flatten=False)
    if dataset.validation is not None:
        return dataset
    # A tenth of the training images picks the best epoch, so that the test images judge it.
    count = len(dataset.train) * 9 // 10
    return Dataset(name, dataset.train[:count], dataset.test, dataset.image_shape, dataset.train[count:])


def _report(loaded: LoadedRun, dataset: Dataset, run: Path, num_particles: int) -> None:
    """Prints the bound on training and held-out data, and the log-likelihood; writes them to the run's folder."""
    model, guide, config, history = loaded
    grey = config["data"]["grey"]
    result: dict[str, Any] = {"weights": history.in_hand, "pixels": _pixels(grey), "nats per image": {}}
    print(f"weights: {history.in_hand} (best epoch {history.best_epoch} of {len(history)}); {_pixels(grey)}")
    for part, split in (("train", dataset.train[:10_000]), ("test", dataset.test)):
        bound = evaluate.elbo(model, guide, split, num_particles=10, binarize=not grey, seed=0)
        row = {name: value.mean().item() for name, value in bound._asdict().items()}
        print(f"{part:5} ELBO {row['elbo']:9.2f} = reconstruction {row['reconstruction']:9.2f} - KL {row['kl']:.2f}")
        result["nats per image"][part] = row
    if config["method"] != "autoencoder":
        values = evaluate.log_likelihood(
            model, guide, dataset.test, num_particles=num_particles, binarize=not grey, seed=0
        )
        result |= {"log-likelihood": values.mean().item(), "particles": num_particles}
        error = values.std().item() / len(values) ** 0.5
        print(
            f"test  log p(x) {values.mean().item():.2f} +- {error:.2f} (importance weighted, {num_particles} particles)"
        )
        try:
            active = evaluate.active_units(guide, dataset.test)
            result["active units"] = int(active.sum())
            print(f"active units: {int(active.sum())} of {active.numel()}")
        except NotImplementedError as reason:
            print(f"active units: not counted ({reason})")
    (run / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")


def _pictures(loaded: LoadedRun, dataset: Dataset, run: Path) -> None:
    model, guide, config, history = loaded
    shape = dataset.image_shape
    # The encoder has seen black and white pixels, if these were what it was trained on.
    with preserved_rng(seed=0):
        x = dataset.test.x if config["data"]["grey"] else binarized(dataset.test.x)
    test = Split(x, dataset.test.y)
    drawn = {
        "reconstructions": plot.reconstructions(model, guide, test, image_shape=shape),
        "curves": plot.curves(history),
    }
    with contextlib.suppress(NotImplementedError):  # a family without a mean in closed form
        drawn["latents"] = plot.latents(guide, test)
    if config["method"] != "autoencoder":
        drawn["samples"] = plot.samples(model, image_shape=shape)
        two = model.prior().event_shape.numel() == 2
        drawn["manifold" if two else "traversal"] = (plot.manifold if two else plot.traversal)(model, image_shape=shape)
    for name, figure in drawn.items():
        _save(figure, run / f"{name}.png")
    print(f"pictures in {run}: {', '.join(f'{name}.png' for name in drawn)}")


def _save(figure: Figure, path: Path) -> None:
    if path.is_symlink():
        path.unlink()  # a link in somebody else's run folder would lead out of it
    figure.savefig(path, dpi=150)


def _place(loaded: LoadedRun, device: str) -> LoadedRun:
    for half in (loaded.model, loaded.guide):
        half.to(_check_device(device))
    return loaded


def _check_device(name: str) -> torch.device:
    try:
        return find_device(name)
    except ValueError as error:
        raise ValueError(f"--device {name}: {error}") from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def _pixels(grey: bool) -> str:
    return "grey pixels" if grey else "pixels binarized dynamically (held-out ones once), on the device"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tarspyro", description="Deep generative models as pairs of Pyro programs.")
    commands = parser.add_subparsers(required=True, metavar="list | train | evaluate | sample | plot")

    command = commands.add_parser("list", help="show the methods, their papers and a command for each")
    command.set_defaults(command=_list)

    formatter = argparse.ArgumentDefaultsHelpFormatter
    command = commands.add_parser("train", help="train a method; leaves a run folder", formatter_class=formatter)
    command.set_defaults(command=_train)
    command.add_argument("method", choices=METHODS)
    command.add_argument("--data", choices=_DATA, default="digits")
    command.add_argument("--run", help="the run folder (runs/METHOD-DATA if not given)")
    command.add_argument("--trunk", choices=("mlp", "conv"), default="mlp", help="the kind of network")
    command.add_argument(
        "--hidden", type=_count, nargs="+", default=[256, 256], help="the hidden layers of the encoder"
    )
    command.add_argument("--latent", type=_count, help="the number of latent units")
    command.add_argument("--family", default="Normal", help="the latent family, such as Normal, Gamma, Dirichlet")
    command.add_argument("--likelihood", choices=("Bernoulli", "Normal"), help="of the pixels")
    command.add_argument("--scale", type=float, help="of the Normal likelihood; learned if not given")
    command.add_argument("--grey", action="store_true", help="train on grey pixels instead of binarizing them")
    command.add_argument("--num-particles", type=_count, default=1, help="draws from the guide")
    command.add_argument("--beta", type=float, default=1.0, help="the weight of the KL term")
    command.add_argument("--epochs", type=_count)
    command.add_argument("--batch-size", type=_count, default=100)
    command.add_argument("--lr", type=float, default=1e-3)
    command.add_argument("--patience", type=_count, help="stop after so many epochs without a better one")
    command.add_argument("--likelihood-particles", type=_count, default=1000, help="for the log-likelihood at the end")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="auto")
    command.add_argument("--resume", action="store_true", help="go on with the run")
    command.add_argument("--overwrite", action="store_true", help="replace the run")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    for name, function, text in (
        ("evaluate", _evaluate, "print the bound and the log-likelihood of a run"),
        ("sample", _sample, "draw a sheet of samples from a run"),
        ("plot", _plot, "draw the pictures of a run again"),
    ):
        command = commands.add_parser(name, help=text, formatter_class=formatter)
        command.set_defaults(command=function)
        command.add_argument("run", help="the run folder")
        command.add_argument("--which", choices=("best", "last"), default="best", help="the weights to use")
        command.add_argument("--device", default="auto")
        command.add_argument(
            "--import", dest="modules", action="append", default=[], help="a module with classes of the run"
        )
        if name == "evaluate":
            command.add_argument("--num-particles", type=_count, default=1000)
        if name == "sample":
            command.add_argument("--num", type=_count, default=64)
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--draws", action="store_true", help="draw pixels instead of showing their means")
            command.add_argument("--out", help="the picture's file (samples.png in the run if not given)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
