"""Sweeps: trainings over a grid of settings and several seeds, compared on held-out data."""

__all__ = ["Sweep", "SweepRun", "sweep"]

import importlib.util
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarspyro.arguments import as_count, format_value
from tarspyro.runs import History

# Trains one run: called with settings, seed and folder.
Train = Callable[..., History]

_RESULT = "sweep.json"


@dataclass(frozen=True)
class SweepRun:
    """A finished run of a sweep.

    Attributes:
        settings: The settings of the grid.
        seed: The seed.
        score: The held-out measure at the best epoch, larger is better; NaN if the training
            ended in numbers that are not finite.
        epoch: The best epoch.
        folder: The run's folder.
    """

    settings: Mapping[str, Any]
    seed: int
    score: float
    epoch: int
    folder: Path


class Sweep:
    """The finished runs of a sweep. In print, a table with the best settings first.

    A row has the mean over the seeds with its standard error, and the mean difference from the
    best settings with its standard error, which is that of differences between runs of the same
    seed.

    Attributes:
        runs: The finished runs.
        missing: The number of runs that are not finished.
        measure: The column of the histories that is compared.
    """

    def __init__(self, runs: Sequence[SweepRun], missing: int, measure: str) -> None:
        self.runs = list(runs)
        self.missing = missing
        self.measure = measure

    @property
    def best(self) -> dict[str, Any]:
        """The settings with the largest mean over the seeds.

        Raises:
            ValueError: If runs are missing, or no setting has finite scores alone.
        """
        if self.missing:
            raise ValueError(
                f"{self.missing} runs of the sweep are missing: the best settings are known when"
                " all have ended."
            )
        settings, scores = self._ranked()[0]
        if not math.isfinite(_mean(scores.values())):
            raise ValueError("no settings of the sweep trained to finite numbers: lower lr.")
        return dict(settings)

    def __repr__(self) -> str:
        unfinished = f", {self.missing} missing" if self.missing else ""
        lines = [f"Sweep of {len(self.runs)} runs{unfinished}, by {self.measure}"]
        ranked = self._ranked()
        rows = [["settings", "mean", "s.e.", "difference", "s.e.", "seeds"]]
        for settings, scores in ranked:
            first = ranked[0][1]
            shared = [seed for seed in scores if seed in first]
            apart = [scores[seed] - first[seed] for seed in shared]
            own = [_number(_mean(scores.values())), _number(_error(list(scores.values())))]
            other = [_number(_mean(apart)), _number(_error(apart))]
            best = first is scores
            rows.append(
                [_name(settings), *own, *(["", ""] if best else other), str(len(scores))]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def _ranked(self) -> list[tuple[Mapping[str, Any], dict[int, float]]]:
        """Returns settings with their scores by seed, the best first."""
        found: dict[str, tuple[Mapping[str, Any], dict[int, float]]] = {}
        for run in self.runs:
            found.setdefault(_name(run.settings), (run.settings, {}))[1][run.seed] = run.score

        def rank(entry: tuple[Mapping[str, Any], dict[int, float]]) -> float:
            mean = _mean(entry[1].values())
            return -mean if math.isfinite(mean) else math.inf

        return sorted(found.values(), key=rank)


def sweep(
    train: Train,
    grid: Mapping[str, Sequence[Any]],
    folder: str | Path,
    *,
    seeds: int | Sequence[int] = 3,
    fixed: Mapping[str, Any] | None = None,
    measure: str = "objective",
    num_jobs: int = 1,
    part: tuple[int, int] = (1, 1),
) -> Sweep:
    """Trains with all combinations of some settings and seeds, and compares them.

    All settings get the same seeds, so that runs of one seed see the same initial noise, order
    and division of the data, and are compared in pairs. They are judged by held-out data of
    their training at the best epoch, so that test data are left for the settings that are
    chosen.

    Each run has a folder of its own in ``folder``. A sweep that is called again trains what is
    not finished. So a cluster's array divides it: task k of n calls it with ``part=(k, n)``,
    and the last call, without ``part``, returns the whole table.

    Arguments:
        train: A function that trains one run and returns its history. It is called with the
            settings by name, ``seed=`` and ``folder=``, the path for ``fit(folder=...)``.
        grid: The values of each setting: numbers, texts, or lists of them.
        folder: Where the runs are.
        seeds: The number of seeds, from 0, or the seeds.
        fixed: More arguments of ``train``, the same for all runs.
        measure: The column of the histories to compare, larger is better. The objective is
            that of the bound, which is comparable between runs of the same bound; others are
            compared by a column that they share, such as ``"validation_elbo"``.
        num_jobs: The number of runs at a time, in processes, if joblib is installed; one after
            another if not.
        part: Which part of the runs to train, (k, n) for the k-th of n.

    Raises:
        TypeError: If ``train`` returns no history.
        ValueError: If an argument is out of range, a run has no held-out data or no such
            column, or the folder holds a sweep with other fixed settings.

    Example:
        >>> import tempfile
        >>> from tarspyro.runs import History
        >>> def train(lr, seed, folder):
        ...     score = -10 - abs(lr - 0.01) + 0.1 * seed
        ...     row = {"epoch": 1, "validation_elbo": score, "objective": score}
        ...     return History(rows=[row], best_epoch=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = sweep(train, {"lr": [0.1, 0.01]}, folder, seeds=2)
        >>> found.best
        {'lr': 0.01}
        >>> found
        Sweep of 4 runs, by objective
        settings     mean   s.e.  difference   s.e.  seeds
        lr=0.01    -9.950  0.050                         2
        lr=0.1    -10.040  0.050      -0.090  0.000      2
    """
    if not callable(train):
        raise TypeError(f"train must be a function, got {format_value(train)}.")
    _check_grid(grid)
    fixed = dict(fixed or {})
    all_seeds = _seeds(seeds)
    num_jobs = as_count("num_jobs", num_jobs)
    k, parts = part
    if not 1 <= k <= parts:
        raise ValueError(f"part must be (k, n) with k from 1 to n, got {part}.")
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    # Settings change first, so that every part has runs of each seed.
    planned = [
        (settings, seed, Path(folder) / _name({**settings, "seed": seed}, "_"))
        for seed in all_seeds
        for settings in combinations
    ]
    mine = [
        (train, settings, seed, place, fixed, measure)
        for settings, seed, place in planned[k - 1 :: parts]
        if _result(place, fixed, measure) is None
    ]
    _run_all(mine, num_jobs)
    found = [
        SweepRun(settings, seed, result["score"], result["epoch"], place)
        for settings, seed, place in planned
        if (result := _result(place, fixed, measure)) is not None
    ]
    return Sweep(found, len(planned) - len(found), measure)


def _check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    """Raises a ``ValueError`` unless each setting has different values."""
    if not grid:
        raise ValueError(
            "grid must name a setting with its values, such as {'lr': [1e-3, 3e-4]}."
        )
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(
                f"grid must have a list of values for {name}, got {format_value(values)}."
            )
        if len({str(value) for value in values}) < len(values):
            raise ValueError(f"grid has a value of {name} twice: {list(values)}.")


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        return list(range(as_count("seeds", seeds)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different numbers, got {format_value(seeds)}.")
    return list(seeds)


def _run_all(planned: Sequence[tuple[Any, ...]], num_jobs: int) -> None:
    if num_jobs == 1 or len(planned) < 2 or importlib.util.find_spec("joblib") is None:
        for arguments in planned:
            _run(*arguments)
        return
    import joblib

    joblib.Parallel(n_jobs=num_jobs)(joblib.delayed(_run)(*each) for each in planned)


def _run(
    train: Train,
    settings: Mapping[str, Any],
    seed: int,
    folder: Path,
    fixed: Mapping[str, Any],
    measure: str,
) -> None:
    """Trains one run and writes its result."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        history = train(**settings, **fixed, seed=seed, folder=folder)
    except ArithmeticError as error:  # numbers that are not finite: these settings are bad
        score = math.nan
        epoch = 0
        reason = " ".join(str(error).split())
    else:
        score, epoch = _score(history, measure)
        reason = ""
    result = {
        "settings": dict(settings),
        "seed": seed,
        "fixed": fixed,
        "measure": measure,
        "score": score,
        "epoch": epoch,
        "reason": reason,
    }
    new = folder / f"{_RESULT}.{os.getpid()}"
    new.write_text(json.dumps(result, indent=1, default=str), encoding="utf-8")
    new.replace(folder / _RESULT)


def _score(history: object, measure: str) -> tuple[float, int]:
    """Returns the measure at the best epoch, and this epoch."""
    if not isinstance(history, History):
        raise TypeError(
            f"train must return the history of fit, got {format_value(history)}: end it with"
            " return fit(...)."
        )
    row = next((row for row in history.rows if row.get("epoch") == history.best_epoch), {})
    if not any(name.startswith("validation_") for name in row):
        raise ValueError(
            "the runs of a sweep are compared on held-out data, and this one has none at its best"
            " epoch: give fit validation=."
        )
    if measure not in row:
        raise ValueError(
            f"measure must be a column of the history, got {measure!r}: it has"
            f" {', '.join(history.columns)}."
        )
    return float(row[measure]), history.best_epoch


def _result(folder: Path, fixed: Mapping[str, Any], measure: str) -> dict[str, Any] | None:
    """Returns the result of a finished run; None if it is not finished.

    Raises:
        ValueError: If it is the result of something else.
    """
    try:
        found: dict[str, Any] = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    for name, asked in (("fixed", fixed), ("measure", measure)):
        if found[name] != json.loads(json.dumps(asked, default=str)):
            raise ValueError(
                f"{folder} is of a sweep with {name}={found[name]}, not {asked}: give another"
                " folder."
            )
    return found


def _name(settings: Mapping[str, Any], sign: str = "=") -> str:
    """Returns settings as text, with a sign between name and value."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        text = "x".join(map(str, values))
        words.append(f"{name}{sign}{text}".replace(os.sep, "_"))
    return ",".join(words)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _error(values: Sequence[float]) -> float:
    """Returns the standard error of a mean."""
    if len(values) < 2:
        return math.nan
    return float(statistics.stdev(values) / math.sqrt(len(values)))


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
