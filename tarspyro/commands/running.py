"""The commands that compute: train a method; evaluate, sample from and draw a run."""

__all__ = ["RUN_COMMANDS", "evaluate_run", "plot_run", "sample_run", "train"]

import io
import json
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tarspyro import Optimizer, fit, load_run
from tarspyro.commands.methods import METHODS
from tarspyro.commands.methods.reports import Trained
from tarspyro.commands.methods.sources import SOURCES
from tarspyro.runs import LoadedRun, Run
from tarspyro.scopes import find_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def train(options: Namespace) -> None:
    """Trains a method on a data set; leaves a run folder with its report and pictures."""
    method = METHODS[options.method]
    data = options.data or method.form.names[0]
    run = Path(options.run or f"runs/{options.method}-{data}")

    kept: dict[str, object] = {}
    if options.resume:
        data, kept = _resumed(options, run)

    if options.given.get("grey") and "images" not in SOURCES[data].kind:
        raise ValueError(
            f"--grey is for images, and {data} holds {SOURCES[data].kind}: leave it out."
        )

    o = method.completed(data, {**kept, **options.given})
    find_device(options.device)
    material = method.form.load(data, o)
    torch.manual_seed(o.seed)
    model, guide, loss = o.build(material)

    print(*(half for half in (model, guide) if half is not None), sep="\n")
    counts = (
        f"{len(material.train[0])} training {material.unit}s, {len(material.test[0])} held out"
    )
    print(", ".join([f"{data}: {counts}", *_pixels(material.image_shape, o.grey)]))

    fit(
        model,
        guide,
        material.batches,
        loss=loss,
        optimizer=Optimizer(torch.optim.Adam, clip_norm=o.clip_norm, **method.optimizer),
        lr=o.lr,
        epochs=o.epochs,
        batch_size=o.batch_size,
        validation=material.validation,
        binarize=not o.grey,
        patience=getattr(o, "patience", None),
        folder=Run(
            run,
            resume=options.resume,
            overwrite=options.overwrite,
            settings={
                "method": options.method,
                "data": {"name": data, "grey": o.grey},
                "options": {name: getattr(o, name) for name in method.options},
            },
        ),
        device=options.device,
        seed=o.seed,
        progress=not options.quiet,
        compile=o.compile,
    )

    trained = Trained(_moved(load_run(run), options.device), material, o)
    _report(trained, run)
    _draw(trained, run)


def _resumed(options: Namespace, run: Path) -> tuple[str, dict[str, object]]:
    """Returns the data set and the options of the run to resume.

    Raises:
        ValueError: If the command names another method or data set.
    """
    method, trained_on, kept = _settings(Run(run).config(), run)
    data = trained_on["name"]
    if method != options.method or options.data not in (None, data):
        asked = f"{options.method} on {options.data or data}"
        raise ValueError(
            f"{run} holds a run of {method} on {data}, not {asked}: give another --run."
        )
    return data, kept


def evaluate_run(options: Namespace) -> None:
    """Prints the report of a run, and writes it to ``evaluation.json``."""
    trained = _open(options)
    if options.num_particles is not None:
        method = replace(trained.method, likelihood_particles=options.num_particles)
        trained = replace(trained, method=method)
    _report(trained, Path(options.run))


def sample_run(options: Namespace) -> None:
    """Draws samples of the model of a run into a picture."""
    trained = _open(options)
    sampler = trained.method.sampler
    if sampler is None:
        reason = (
            "has no prior to sample from"
            if hasattr(trained.model, "code_shape")
            else "generates no data"
        )
        raise ValueError(
            f"{options.run} holds a method, {trained.method.name}, that {reason}: see tarspyro"
            f" plot {options.run}."
        )

    figure = sampler(trained, options.num, options.seed, not options.draws)
    if options.out:
        figure.savefig(options.out, dpi=150)
    else:
        _save(figure, Path(options.run), "samples.png")
    print(options.out or Path(options.run) / "samples.png")


def plot_run(options: Namespace) -> None:
    """Draws the pictures of a run again."""
    _draw(_open(options), Path(options.run))


RUN_COMMANDS = {
    "train": train,
    "evaluate": evaluate_run,
    "sample": sample_run,
    "plot": plot_run,
}


def _open(options: Namespace) -> Trained:
    """Reads a run of ``train``, with the data that it was trained on."""
    loaded = load_run(options.run, options.which)
    name, trained_on, kept = _settings(loaded.config, options.run)
    method = METHODS[name].completed(trained_on["name"], kept)
    method = replace(method, grey=bool(trained_on.get("grey", method.grey)))
    data = method.form.load(trained_on["name"], method)
    return Trained(_moved(loaded, options.device), data, method)


def _settings(
    config: Mapping[str, Any], run: object
) -> tuple[str, dict[str, Any], dict[str, object]]:
    """Returns the method, the data and the settings that ``train`` wrote to a run.

    Raises:
        ValueError: If the run was made by something else.
    """
    name = config.get("method")
    trained_on = config.get("data")
    kept = config.get("options", {})
    method = METHODS.get(name) if isinstance(name, str) else None

    if method and isinstance(trained_on, dict) and isinstance(kept, dict):
        if trained_on.get("name") in method.form.names:
            known = {setting: kept[setting] for setting in method.options if setting in kept}
            return method.name, trained_on, known
    raise ValueError(
        f"{run} does not say which data it was trained on: it was not made by tarspyro train."
    )


def _report(trained: Trained, run: Path) -> None:
    """Prints what the method's reports find, and writes it to the run's folder."""
    history = trained.history
    result: dict[str, object] = {"weights": history.in_hand}
    pixels = _pixels(trained.data.image_shape, trained.method.grey)
    if pixels:
        result["pixels"] = pixels[0]

    weights = f"weights: {history.in_hand} (best epoch {history.best_epoch} of {len(history)})"
    print("; ".join([weights, *pixels]))
    for report in trained.method.report:
        for line, entries in report(trained):
            print(line)
            result |= entries
    content = json.dumps(result, indent=1) + "\n"
    Run(run).write("evaluation.json", content.encode())


def _draw(trained: Trained, run: Path) -> None:
    """Draws the method's pictures into the run's folder."""
    method = trained.method
    drawn = [pair for draw in method.figures for pair in draw(trained)]
    if method.sampler is not None:
        drawn.append(("samples", method.sampler(trained, None, 0, True)))

    for name, figure in drawn:
        _save(figure, run, f"{name}.png")
    print(f"pictures in {run}: {', '.join(f'{name}.png' for name, _ in drawn)}")


def _save(figure: "Figure", run: Path, name: str) -> None:
    """Saves a picture in a run's folder, where a link or a pipe may stand in its place."""
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    Run(run).write(name, picture.getvalue())


def _moved(loaded: LoadedRun, device: str) -> LoadedRun:
    """Moves the pair of a run to a device."""
    for half in (loaded.model, loaded.guide):
        if half is not None:
            half.to(find_device(device))
    return loaded


def _pixels(image_shape: tuple[int, ...] | None, grey: bool) -> list[str]:
    """Returns the phrase on the pixels; none for other data."""
    if image_shape is None:
        return []
    if grey:
        return ["grey pixels"]
    return ["pixels binarized dynamically (held-out ones once), on the device"]
