"""The command that trains a grid of settings and several seeds: ``tarspyro sweep``."""

__all__ = ["sweep_method"]

import contextlib
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import tarspyro
from tarspyro.commands.methods import METHODS
from tarspyro.commands.methods.settings import BOUND, DATA
from tarspyro.commands.running import fit_run
from tarspyro.runs import History, Run


def sweep_method(options: Namespace) -> None:
    """Trains a method with all combinations of the settings that got several values.

    Raises:
        ValueError: If no setting got several values, or one that changes what is measured.
    """
    method = METHODS[options.method]
    if "patience" not in method.options:
        raise ValueError(
            f"{method.name} has no loss on held-out data by which settings could be compared:"
            " train each with tarspyro train."
        )
    grid = {name: values for name, values in options.given.items() if _is_varied(values)}
    for setting in method.settings:
        if setting.name in grid and setting.group in (BOUND, DATA):
            raise ValueError(
                f"{setting.flag} changes what is measured, so its values cannot be compared by the"
                " held-out loss: give it once, or train each value and use tarspyro compare."
            )
    if not grid:
        raise ValueError("sweep needs a setting with several values, such as --lr 1e-3 3e-4.")
    data = options.data or method.form.names[0]
    folder = Path(options.folder or f"sweeps/{method.name}-{Path(data).stem}")
    given = {name: _first(v) for name, v in options.given.items() if name not in grid}
    fixed = {"method": method.name, "data": data, "device": options.device, "given": given}
    found = tarspyro.sweep(
        _train,
        grid,
        folder,
        seeds=options.seeds,
        fixed=fixed,
        num_jobs=options.jobs,
        part=options.part,
    )
    print(found)
    if found.missing:
        number = f"{found.missing} of {found.missing + len(found.runs)} runs missing"
        print(f"{folder}: {number}; the same command without --part trains them")
        return
    best = found.best
    runs = [run.folder for run in found.runs if run.settings == best]
    print(f"best on held-out data of the training: {_as_typed(best)}")
    print(f"its runs: {' '.join(map(str, runs))}")
    print(f"the test data are unused so far: tarspyro evaluate {runs[0]}")


def _is_varied(values: object) -> bool:
    return isinstance(values, list) and len(values) > 1


def _first(values: Any) -> Any:
    return values[0] if isinstance(values, list) else values


def _train(
    *,
    method: str,
    data: str,
    device: str,
    given: dict[str, Any],
    seed: int,
    folder: Path,
    **settings: Any,
) -> History:
    """Trains one run, or goes on with it, and prints nothing."""
    resume = (folder / "config.json").exists() and Run(folder).has_state
    options = Namespace(
        method=method,
        data=data,
        run=str(folder),
        resume=resume,
        overwrite=not resume,
        device=device,
        quiet=True,
        given={**given, **settings, "seed": seed},
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return fit_run(options)[-1]


def _as_typed(settings: dict[str, Any]) -> str:
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)
