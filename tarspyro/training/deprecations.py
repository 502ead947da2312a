"""Former arguments of ``fit`` with their replacements, and suggestions for unknown ones."""

__all__ = ["Renewed", "renew"]

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tarspyro.arguments import check_choice, format_value, suggestion
from tarspyro.data import Stream
from tarspyro.runs.folder import Run
from tarspyro.training.checks import warn_user
from tarspyro.training.optimizers import Optimizer, OptimizerClass
from tarspyro.types import Data

# Arguments that moved into the optimizer, and into the run.
_OF_OPTIMIZER = ("clip_norm", "clip_value", "on_nonfinite")
_OF_RUN = ("resume", "overwrite", "settings", "checkpoint_steps", "keep_checkpoints")
_FORMER = (*_OF_OPTIMIZER, *_OF_RUN, "optimizer_options", "keep", "steps_per_epoch")

# The names that scikit-learn, Keras, Lightning and others give to arguments of ``fit``.
_ELSEWHERE = {
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "criterion": "loss",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "max_iter": "epochs",
    "validation_data": "validation",
    "val_data": "validation",
    "val_dataloaders": "validation",
    "callbacks": "callback",
    "verbose": "progress",
    "enable_progress_bar": "progress",
    "random_state": "seed",
    "early_stopping": "patience",
    "n_iter_no_change": "patience",
    "accelerator": "device",
    "precision": "autocast",
    "scheduler": "schedules",
    "lr_scheduler": "schedules",
    "default_root_dir": "folder",
    "train_dataloaders": "data",
    "x": "data",
    "X": "data",
    "weight_decay": "optimizer=Optimizer(torch.optim.AdamW, weight_decay=...)",
    "momentum": "optimizer=Optimizer(torch.optim.SGD, momentum=...)",
    "betas": "optimizer=Optimizer(torch.optim.Adam, betas=...)",
    "gradient_clip_val": "optimizer=Optimizer(clip_norm=...)",
    "clipnorm": "optimizer=Optimizer(clip_norm=...)",
    "clipvalue": "optimizer=Optimizer(clip_value=...)",
    "ckpt_path": "folder=Run(..., resume=True)",
}


class Renewed(NamedTuple):
    """Arguments of ``fit`` that took over what former arguments said."""

    optimizer: Optimizer | OptimizerClass
    folder: Run | str | Path | None
    data: Data | None
    keep: str | None


def renew(
    former: Mapping[str, Any],
    names: Collection[str],
    optimizer: Optimizer | OptimizerClass,
    folder: Run | str | Path | None,
    data: Data | None,
) -> Renewed:
    """Moves former arguments of ``fit`` to their new places, each with a warning.

    Arguments:
        former: The arguments that ``fit`` has no parameters for.
        names: The names of the parameters of ``fit``.
        optimizer: See ``fit``.
        folder: See ``fit``.
        data: See ``fit``.

    Raises:
        TypeError: If an argument was never one of ``fit``.
    """
    for name in former:
        if name not in _FORMER:
            raise TypeError(f"fit() has no argument {name!r}: {_suggestion(name, names)}")
    optimizer = _with_optimizer_options(former, optimizer)
    folder = _with_run_options(former, folder)
    keep = former.get("keep")
    if keep is not None:
        check_choice("keep", keep, ("best", "last"))
        _warn({"keep": keep}, f"history.use({keep!r}, model, guide), to be called after fit")
    steps = former.get("steps_per_epoch")
    if steps is not None:
        data = Stream(data, steps)  # type: ignore[arg-type]
        _warn({"steps_per_epoch": steps}, f"data=Stream(..., steps_per_epoch={steps})")
    return Renewed(optimizer, folder, data, keep)


def _suggestion(name: str, names: Collection[str]) -> str:
    """The end of a sentence that names the argument that was probably meant."""
    of_run = {option: f"folder=Run(..., {option}=...)" for option in _OF_RUN}
    of_optimizer = {
        option: f"optimizer=Optimizer(..., {option}=...)" for option in _OF_OPTIMIZER
    }
    return suggestion(name, names, {**of_run, **of_optimizer, **_ELSEWHERE})


def _with_optimizer_options(
    former: Mapping[str, Any], optimizer: Optimizer | OptimizerClass
) -> Optimizer | OptimizerClass:
    """The optimizer with the former arguments that belong to it."""
    moved = {name: former[name] for name in _OF_OPTIMIZER if name in former}
    given = {name: former[name] for name in ("optimizer_options", *moved) if name in former}
    if not given:
        return optimizer
    options = former.get("optimizer_options") or {}
    if not isinstance(options, Mapping):
        raise TypeError(
            f"optimizer_options must be a mapping by name, got {format_value(options)}."
        )
    if isinstance(optimizer, Optimizer):
        raise TypeError(
            f"fit() got an Optimizer and {', '.join(given)}: give these to the Optimizer."
        )
    renewed = Optimizer(optimizer, **moved, **options)
    rate = renewed.options.get("lr")
    rest = {name: value for name, value in {**options, **moved}.items() if name != "lr"}
    parts = [] if rate is None else [f"lr={rate!r}"]
    if rest or rate is None:
        package = "torch.optim." if hasattr(torch.optim, renewed.name) else ""
        parts.append(f"optimizer=Optimizer({package}{renewed.name}{_listed(rest)})")
    _warn(given, ", ".join(parts))
    return renewed


def _with_run_options(
    former: Mapping[str, Any], folder: Run | str | Path | None
) -> Run | str | Path | None:
    """The run folder with the former arguments that belong to it."""
    given = {name: former[name] for name in _OF_RUN if name in former}
    if not given:
        return folder
    if isinstance(folder, Run):
        raise TypeError(f"fit() got a Run and {', '.join(given)}: give these to the Run.")
    if folder is None:
        renewed = Run("runs/a", **given)  # checks the arguments
        if renewed.resume:
            raise ValueError(
                f"resume={given['resume']!r} needs the folder of a run: give"
                f" folder=Run('runs/a', resume={given['resume']!r})."
            )
        _warn(given, f"folder=Run('runs/a'{_listed(given)}); without a folder it does nothing")
        return None
    _warn(given, f"folder=Run({str(folder)!r}{_listed(given)})")
    return Run(folder, **given)


def _listed(options: Mapping[str, object]) -> str:
    """Options as the further arguments of a call."""
    return "".join(f", {name}={format_value(value)}" for name, value in options.items())


def _warn(given: Mapping[str, object], replacement: str) -> None:
    """Warns that some arguments of ``fit`` have a replacement."""
    verb = "is" if len(given) == 1 else "are"
    warn_user(
        f"{_listed(given).removeprefix(', ')} {verb} now {replacement}.", DeprecationWarning
    )
