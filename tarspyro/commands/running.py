"""The commands that compute: train a method; evaluate, sample from, draw and use a run."""

__all__ = [
    "RUN_COMMANDS",
    "embed_run",
    "evaluate_run",
    "fit_run",
    "impute_run",
    "open_run",
    "pictures_of",
    "plot_run",
    "sample_run",
    "train",
    "versions",
    "write_report",
]

import io
import json
import platform
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch

from tarspyro import Optimizer, __version__, fit, load_run
from tarspyro.commands.methods import METHODS
from tarspyro.commands.methods.codes import check_codes, codes_of, filled
from tarspyro.commands.methods.files import (
    Contents,
    Reading,
    open_file,
    without_padding,
)
from tarspyro.commands.methods.forms import Part, PreparedData
from tarspyro.commands.methods.layout import Layout
from tarspyro.commands.methods.method import Method
from tarspyro.commands.methods.reports import Trained
from tarspyro.commands.methods.sources import SOURCES
from tarspyro.commands.methods.writing import write_codes, write_filled, write_samples
from tarspyro.commands.reuse import made_of
from tarspyro.runs import History, LoadedRun, Run
from tarspyro.runs.history import has_best_epoch
from tarspyro.scopes import find_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def train(options: Namespace) -> None:
    """Trains a method on a data set; leaves a run folder with its report and pictures."""
    run, prepared, method, _ = fit_run(options)
    loaded = _moved(load_run(run), options.device)
    trained = Trained(loaded, prepared, method, progress=not options.quiet)
    write_report(trained, run)
    _draw(trained, run)


def fit_run(options: Namespace) -> tuple[Path, PreparedData, Method, History]:
    """Trains a method on a data set, without a report.

    Returns the run folder, the data, the method with its settings and the history.
    """
    method = METHODS[options.method]
    data = options.data or method.form.names[0]
    run = Path(options.run or f"runs/{options.method}-{Path(data).stem}")

    kept: dict[str, object] = {}
    layout: Layout | None = None
    if options.resume:
        data, layout, kept = _resumed(options, run)
    elif (run / "config.json").exists() and not options.overwrite:
        raise ValueError(
            f"{run} holds a run already: --resume goes on with it, --overwrite replaces it, and"
            " --run names another folder."
        )

    _check_options(options, data)
    chosen = method.completed(data, {**kept, **options.given})
    find_device(options.device)
    prepared = method.form.load(_path(data), chosen, layout)
    chosen = chosen.settled(prepared)
    torch.manual_seed(chosen.seed)
    model, guide, loss = chosen.build(prepared)

    print(*(half for half in (model, guide) if half is not None), sep="\n")
    _print_data(data, prepared, chosen)
    history = fit(
        model,
        guide,
        prepared.batches,
        loss=loss,
        optimizer=Optimizer(torch.optim.Adam, clip_norm=chosen.clip_norm, **method.optimizer),
        lr=chosen.lr,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        validation=prepared.validation,
        binarize=prepared.binarize,
        patience=getattr(chosen, "patience", None),
        folder=Run(
            run,
            resume=options.resume,
            overwrite=options.overwrite,
            settings=_settings_of(data, prepared, chosen),
        ),
        device=options.device,
        seed=chosen.seed,
        progress=not options.quiet,
        compile=chosen.compile,
    )
    return run, prepared, chosen, history


def _path(data: str) -> str:
    """Returns the path of a file for every folder that a command may be given in."""
    return data if data in SOURCES else str(Path(data).expanduser().resolve())


def _settings_of(data: str, prepared: PreparedData, method: Method) -> dict[str, object]:
    """Returns the entries of a run's configuration beside the pair and the training."""
    trained_on: dict[str, object] = {"name": _path(data), "grey": method.grey}
    if prepared.layout is not None:
        trained_on["layout"] = prepared.layout.described()
    options = {name: getattr(method, name) for name in method.options}
    return {
        "method": method.name,
        "data": trained_on,
        "options": options,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of what computes, by name."""
    return {
        "tarspyro": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }


def _check_options(options: Namespace, data: str) -> None:
    """Raises a ``ValueError`` if an option is not for the data."""
    if data not in SOURCES:
        return
    source = SOURCES[data]
    if options.given.get("grey") and "images" not in source.kind:
        raise ValueError(
            f"--grey is for images, and {data} holds {source.kind}: leave it out."
        )
    for name in ("rows", "target", "size", "without"):
        if options.given.get(name) is not None:
            raise ValueError(
                f"--{name} is for files of your own, not for {data}: leave it out."
            )


def _print_data(data: str, prepared: PreparedData, method: Method) -> None:
    """Prints a summary of the training part, and its conversion."""
    train, test = prepared.sizes_of_parts
    counts = f"{train} training {prepared.unit}s, {test} held out"
    pixels = _pixels(prepared, method.grey)
    if prepared.own is None:
        print(", ".join([f"{data}: {counts}", *pixels]))
        return

    own = prepared.own
    layout = own.layout
    words = f"{Path(data).name}: {layout.extent}, {layout.sentence}"
    named = getattr(method, "likelihood", None)
    if named is not None:
        flag = "" if layout.family == "Blocks" else " (--likelihood names another)"
        words += f" -> {layout.likelihood}{flag}"
    for line in (words, *own.contents.notes, own.sentence):
        print(line)
    if prepared.binarize:
        print(f"{pixels[0]} (--grey keeps them grey)")
    steps = -(-train // method.batch_size)
    print(f"{_counted(method.epochs, 'epoch')} of {_counted(steps, 'step')}")


def _counted(number: int, word: str) -> str:
    """Returns a number with what it counts, such as "1 step" and "2 steps"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def _resumed(options: Namespace, run: Path) -> tuple[str, Layout | None, dict[str, object]]:
    """Returns the data set and the options of the run to resume.

    Raises:
        ValueError: If the command names another method or data set.
    """
    method, trained_on, kept = _settings(Run(run).config(), run)
    data: str = trained_on["name"]
    other = options.data is not None and _path(options.data) != data
    if method != options.method or other:
        asked = f"{options.method} on {options.data or data}"
        raise ValueError(
            f"{run} holds a run of {method} on {data}, not {asked}: give another --run."
        )
    return data, _layout(trained_on), kept


def evaluate_run(options: Namespace) -> None:
    """Prints the report of a run, and writes it to ``evaluation.json``."""
    trained = _open(options)
    if options.num_particles is not None:
        method = replace(trained.method, likelihood_particles=options.num_particles)
        trained = replace(trained, method=method)
    write_report(trained, Path(options.run))


def sample_run(options: Namespace) -> None:
    """Writes samples of the model of a run, as a picture or as numbers."""
    out = Path(options.out or Path(options.run) / "samples.png")
    _check_suffix(out, (".png", ".npz", ".csv"))
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

    layout = trained.data.layout
    if out.suffix == ".png":
        figure = sampler.picture(trained, options.num, options.seed, not options.draws)
        if options.out:
            figure.savefig(out, dpi=150)
        else:
            _save(figure, out.parent, out.name)
    else:
        # A mean is a picture of a sample for an image alone.
        mean = trained.data.image_shape is not None and not options.draws
        samples = sampler.draw(trained, options.num, options.seed, mean)
        sequences = trained.method.form.sequences and trained.data.image_shape is None
        write_samples(out, samples, layout, samples["x"].shape[1] if sequences else None)
    print(out)


def embed_run(options: Namespace) -> None:
    """Writes the codes of data points."""
    out = Path(options.out)
    _check_suffix(out, (".npz", ".csv"))
    trained = _open(options)
    check_codes(trained)
    part, contents = _given_part(trained, options.data)
    codes = torch.cat([codes_of(trained, piece).cpu() for piece in part])
    lengths = None if contents is None else contents.lengths
    layout = trained.data.layout
    labels = None
    if contents is not None and contents.y is not None and layout is not None:
        classes = layout.classes or contents.classes
        labels = [classes[int(y)] if classes else f"{y:g}" for y in contents.y.tolist()]
    write_codes(out, codes, lengths, labels)
    shape = "x".join(map(str, codes.shape[1:]))
    print(f"{out}: codes of {len(codes)} {trained.data.unit}s, {shape} each")


def impute_run(options: Namespace) -> None:
    """Writes a file with its gaps filled."""
    out = Path(options.out)
    _check_suffix(out, (".npz", ".csv"))
    trained = _open(options)
    layout = trained.data.layout
    method = trained.method
    check_codes(trained)
    if layout is None or len(trained.data.test) > 1:
        raise ValueError(
            f"{options.run} cannot fill gaps: train a method of x alone, such as vae, on a file"
            " with gaps."
        )
    contents = open_file(_path(options.data), _reading(method), layout)
    x = layout.apply(contents.rows(torch.arange(len(contents))))
    gaps = int(x.isnan().sum())
    if not gaps:
        raise ValueError(
            f"{options.data} has no gaps: no cell is empty, and no number is NaN."
        )
    done = filled(trained, x, mean=not options.draws, seed=options.seed)
    write_filled(out, contents, layout, layout.undo(done))
    how = "draws" if options.draws else "means"
    print(f"{out}: {len(x)} rows, {gaps / x.numel():.0%} of the values filled with {how}")


def plot_run(options: Namespace) -> None:
    """Draws the pictures of a run again."""
    _draw(_open(options), Path(options.run))


def _report_run(options: Namespace) -> None:
    """Writes the page of a run, by a module that imports this one."""
    from tarspyro.commands.reporting import report_run

    report_run(options)


def _sweep(options: Namespace) -> None:
    """Trains a grid of settings, by a module that imports this one."""
    from tarspyro.commands.sweeps import sweep_method

    sweep_method(options)


def _compare_runs(options: Namespace) -> None:
    """Compares runs, by a module that imports this one."""
    from tarspyro.commands.comparing import compare_runs

    compare_runs(options)


RUN_COMMANDS = {
    "train": train,
    "evaluate": evaluate_run,
    "sample": sample_run,
    "plot": plot_run,
    "embed": embed_run,
    "impute": impute_run,
    "compare": _compare_runs,
    "report": _report_run,
    "sweep": _sweep,
}


def _check_suffix(out: Path, suffixes: Sequence[str]) -> None:
    if out.suffix not in suffixes:
        raise ValueError(f"--out {out}: its name ends in none of {', '.join(suffixes)}.")


def _reading(method: Method) -> Reading:
    """Returns how another file than the training's is read."""
    size = None if method.size is None else tuple(method.size)
    return Reading(size=size, sequences=method.form.sequences)


def _given_part(t: Trained, data: str | None) -> tuple[Sequence[Part], Contents | None]:
    """Returns the data that a command is to use, in pieces, and the file that it comes from.

    It is all rows of a file, in their order, or the test part of a data set.
    """
    layout = t.data.layout
    if layout is None:
        if data is None:
            return [t.data.test], None
        if data not in t.method.form.names:
            raise ValueError(
                f"the run was trained on {t.data.name}: give a data set of its kind, not {data}."
            )
        return [t.method.form.load(data, t.method).test], None

    reading = _reading(t.method)
    if data is None and t.data.own is not None:
        reading = replace(
            reading, rows=t.method.rows, target=getattr(t.method, "target", None)
        )
    contents = open_file(_path(data or t.data.name), reading, layout)
    pieces: list[Part] = []
    for rows in torch.arange(len(contents)).split(10_000):
        pieces.append(_piece(t, contents, layout, rows))
    return pieces, contents


def _piece(t: Trained, contents: Contents, layout: Layout, rows: torch.Tensor) -> Part:
    """Returns some rows of a file as the arguments of the guide."""
    x = layout.apply(contents.rows(rows))
    if contents.lengths is not None:
        return without_padding(x, contents.lengths[rows]), contents.lengths[rows]
    if t.method.form.sequences:  # images, row by row
        return (x.movedim(1, 2).flatten(2),)
    if len(t.data.test) == 1:
        return (x,)
    if contents.y is None:
        raise ValueError(
            f"{contents.path} has no labels, which {t.method.name} needs: give a table with the"
            " column of the training, or images in a folder for each class."
        )
    return x, torch.nn.functional.one_hot(contents.y, t.data.num_classes).to(x.dtype)


def _open(options: Namespace) -> Trained:
    """Reads the run of a command."""
    return open_run(options, options.run)


def open_run(options: Namespace, run: str) -> Trained:
    """Reads a run of ``train``, with the data that it was trained on.

    Arguments:
        options: The options of the command, with ``which`` and ``device``.
        run: The folder of the run.
    """
    loaded = load_run(run, options.which)
    name, trained_on, kept = _settings(loaded.config, run)
    method = METHODS[name].completed(trained_on["name"], kept)
    method = replace(method, grey=bool(trained_on.get("grey", method.grey)))
    data = method.form.load(trained_on["name"], method, _layout(trained_on))
    return Trained(_moved(loaded, options.device), data, method)


def _layout(trained_on: Mapping[str, Any]) -> Layout | None:
    """Returns how the values of a run's file became x; None for a data set."""
    return Layout.read(trained_on["layout"]) if "layout" in trained_on else None


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
        of_a_file = isinstance(trained_on.get("layout"), dict)
        if trained_on.get("name") in method.form.names or of_a_file:
            known = {setting: kept[setting] for setting in method.options if setting in kept}
            return method.name, trained_on, known
    raise ValueError(
        f"{run} does not say which data it was trained on: it was not made by tarspyro train."
    )


# --- the report


def write_report(trained: Trained, run: Path) -> list[str]:
    """Prints what the method's reports find, and writes it to the run's folder.

    Returns the lines.
    """
    history = trained.history
    result: dict[str, object] = {"weights": history.in_hand}
    pixels = _pixels(trained.data, trained.method.grey)
    if pixels:
        result["pixels"] = pixels[0]

    weights = f"weights: last (epoch {len(history)})"
    if has_best_epoch(history.rows):
        weights = (
            f"weights: {history.in_hand} (best epoch {history.best_epoch} of {len(history)})"
        )
    lines = ["; ".join([weights, *pixels])]
    print(lines[0])
    for report in trained.method.report:
        for line, entries in report(trained):
            print(line)
            lines.append(line)
            result |= entries
    particles = trained.method.likelihood_particles
    found = made_of(run, history.in_hand, _path(trained.data.name), particles)
    result |= {"lines": lines, "made of": found}
    content = json.dumps(result, indent=1) + "\n"
    Run(run).write("evaluation.json", content.encode())
    return lines


# --- pictures


def _draw(trained: Trained, run: Path) -> None:
    """Draws the method's pictures into the run's folder."""
    drawn = pictures_of(trained)
    for name, figure in drawn:
        _save(figure, run, f"{name}.png")
    print(f"pictures in {run}: {', '.join(f'{name}.png' for name, _ in drawn)}")


def pictures_of(trained: Trained) -> "list[tuple[str, Figure]]":
    """Returns the method's pictures with their names."""
    method = trained.method
    drawn = [pair for draw in method.figures for pair in draw(trained)]
    if method.sampler is not None:
        drawn.append(("samples", method.sampler.picture(trained, None, 0, True)))
    return drawn


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


def _pixels(data: PreparedData, grey: bool) -> list[str]:
    """Returns the phrase on the pixels; none for other data."""
    if data.binarize:
        return ["pixels binarized dynamically (held-out ones once), on the device"]
    if data.layout is not None and data.layout.units is not None:
        return [data.layout.units]
    if data.image_shape is None:
        return []
    return ["grey pixels"] if grey else []
