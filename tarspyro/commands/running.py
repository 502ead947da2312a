"""What the commands do: list the methods, train one, and evaluate, sample from and draw what
was trained.
"""

__all__ = ["RUN_COMMANDS", "evaluate_run", "list_methods", "plot_run", "sample_run", "train"]

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from tarspyro import fit, load_run
from tarspyro.commands.material import SOURCES
from tarspyro.commands.methods import METHODS, Method, OneOf, completed
from tarspyro.commands.reports import Trained
from tarspyro.runs import LoadedRun, Run
from tarspyro.scopes import find_device


def list_methods(options: Namespace) -> None:
    """Prints every method with its paper, data, settings and command, and the data sets."""
    for name, method in METHODS.items():
        data = ", ".join(
            f"{data} ({method.epochs_of(data)} epochs)" for data in method.form.names
        )
        print(f"{name}: {method.title}")
        print(f"    paper     {method.paper}")
        print(f"    data      {data}")
        print(f"    settings  {' '.join(_shown(method.options))}")
        print(f"    command   tarspyro train {name}\n")
    print("Data sets, the first of a method being its default:")
    for name, source in SOURCES.items():
        print(f"    {name:13} {source.kind}: {source.about}")


def train(options: Namespace) -> None:
    """Trains a method on a data set; leaves a run folder with its report and pictures."""
    method = METHODS[options.method]
    data = options.data or method.form.names[0]
    run = Path(options.run or f"runs/{options.method}-{data}")
    kept: dict[str, Any] = {}
    if options.resume:
        known, trained_on, kept = _settings(Run(run).config(), run)
        if known != options.method or options.data not in (None, trained_on["name"]):
            asked = f"{options.method} on {options.data or trained_on['name']}"
            raise ValueError(
                f"{run} holds a run of {known} on {trained_on['name']}, not {asked}: give"
                " another --run."
            )
        data = trained_on["name"]
    if options.given.get("grey") and "images" not in SOURCES[data].kind:
        raise ValueError(
            f"--grey is for images, and {data} holds {SOURCES[data].kind}: leave it out."
        )
    o = completed(method, data, {**kept, **options.given})
    find_device(options.device)
    material = method.form.material(data, o)
    torch.manual_seed(o.seed)
    model, guide, loss = method.build(o, material)
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
        optimizer_options={"lr": o.lr, **method.optimizer},
        epochs=o.epochs,
        batch_size=o.batch_size,
        validation=material.validation,
        binarize=not o.grey,
        clip_norm=o.clip_norm,
        patience=getattr(o, "patience", None),
        folder=run,
        resume=options.resume,
        overwrite=options.overwrite,
        settings={
            "method": options.method,
            "data": {"name": data, "grey": o.grey},
            "options": {name: getattr(o, name) for name in method.options},
        },
        device=options.device,
        seed=o.seed,
        progress=not options.quiet,
        compile=o.compile,
    )
    trained = _trained(method, _place(load_run(run), options.device), material, o)
    _report(method, trained, run)
    _draw(method, trained, run)


def evaluate_run(options: Namespace) -> None:
    """Prints what a run is worth, and writes it to ``evaluation.json``."""
    method, trained = _open(options)
    if options.num_particles is not None:
        trained.options.likelihood_particles = options.num_particles
    _report(method, trained, Path(options.run))


def sample_run(options: Namespace) -> None:
    """Draws what the model of a run generates."""
    method, trained = _open(options)
    if method.sampler is None:
        name = trained.options.method
        reason = (
            "has no prior to sample from"
            if hasattr(trained.model, "code_shape")
            else "generates no data"
        )
        raise ValueError(
            f"{options.run} holds a method, {name}, that {reason}: see tarspyro plot"
            f" {options.run}."
        )
    out = Path(options.out or Path(options.run) / "samples.png")
    _save(method.sampler(trained, options.num, options.seed, not options.draws), out)
    print(out)


def plot_run(options: Namespace) -> None:
    """Draws the pictures of a run again."""
    method, trained = _open(options)
    _draw(method, trained, Path(options.run))


RUN_COMMANDS = {"evaluate": evaluate_run, "sample": sample_run, "plot": plot_run}


def _open(options: Namespace) -> tuple[Method, Trained]:
    """Reads a run of ``train``, with the data that it was trained on."""
    loaded = load_run(options.run, options.which)
    name, trained_on, kept = _settings(loaded.config, options.run)
    method, data = METHODS[name], trained_on["name"]
    o = completed(method, data, kept)
    o.method, o.grey = name, bool(trained_on.get("grey", o.grey))
    return method, _trained(
        method, _place(loaded, options.device), method.form.material(data, o), o
    )


def _settings(config: Mapping[str, Any], run: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The method, the data and the options that ``train`` has written down."""
    name, trained_on, kept = (
        config.get("method"),
        config.get("data"),
        config.get("options", {}),
    )
    method = METHODS.get(name) if isinstance(name, str) else None
    if method and isinstance(trained_on, dict) and isinstance(kept, dict):
        if trained_on.get("name") in method.form.names:
            return (
                name,
                trained_on,
                {setting: kept[setting] for setting in method.options if setting in kept},
            )
    raise ValueError(
        f"{run} does not say which data it was trained on: it was not made by tarspyro train."
    )


def _trained(method: Method, loaded: LoadedRun, material: Any, o: Namespace) -> Trained:
    return Trained(
        loaded.model, loaded.guide, loaded.history, material, o, method.site, method.latent
    )


def _report(method: Method, trained: Trained, run: Path) -> None:
    """Prints what the method's reports find, and writes it to the run's folder."""
    history, pixels = (
        trained.history,
        _pixels(trained.material.image_shape, trained.options.grey),
    )
    result: dict[str, Any] = {"weights": history.in_hand} | (
        {"pixels": pixels[0]} if pixels else {}
    )
    weights = f"weights: {history.in_hand} (best epoch {history.best_epoch} of {len(history)})"
    print("; ".join([weights, *pixels]))
    for report in method.reports:
        for line, entries in report(trained):
            print(line)
            result |= entries
    (run / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")


def _save(figure: Figure, path: Path) -> None:
    if path.is_symlink():
        path.unlink()  # a link in somebody else's run folder would lead out of it
    figure.savefig(path, dpi=150)


def _draw(method: Method, trained: Trained, run: Path) -> None:
    """Draws the method's pictures into the run's folder."""
    drawn = [
        name_and_figure for picture in method.pictures for name_and_figure in picture(trained)
    ]
    if method.sampler is not None:
        drawn.append(("samples", method.sampler(trained, None, 0, True)))
    for name, figure in drawn:
        _save(figure, run / f"{name}.png")
    print(f"pictures in {run}: {', '.join(f'{name}.png' for name, _ in drawn)}")


def _place(loaded: LoadedRun, device: str) -> LoadedRun:
    for half in (loaded.model, loaded.guide):
        if half is not None:
            half.to(find_device(device))
    return loaded


def _pixels(image_shape: Any, grey: bool) -> list[str]:
    if image_shape is None:
        return []
    return [
        (
            "grey pixels"
            if grey
            else "pixels binarized dynamically (held-out ones once), on the device"
        )
    ]


def _shown(options: Mapping[str, Any]) -> list[str]:
    """The options that have a value by default, as one would write them."""
    shown = []
    for name, default in options.items():
        value = default[0] if isinstance(default, OneOf) else default
        if value is None or value is False or name == "seed":
            continue
        written = (
            ""
            if value is True
            else " " + " ".join(map(str, value if isinstance(value, list) else [value]))
        )
        shown.append(f"--{name.replace('_', '-')}{written}")
    return shown
