"""The command that compares runs on the data that they hold out."""

__all__ = ["compare_runs"]

from argparse import Namespace
from collections.abc import Sequence

import torch

from tarspyro import evaluate
from tarspyro.commands.methods.reports import Trained
from tarspyro.commands.running import open_run


def compare_runs(options: Namespace) -> None:
    """Prints the log-likelihoods of several runs, and their differences from the first.

    Raises:
        ValueError: If the runs hold out different data, or one of them has no guide.
    """
    folders: Sequence[str] = options.runs
    if len(set(folders)) < 2:
        raise ValueError(f"compare needs two run folders or more, got {' '.join(folders)}.")
    runs = {folder: open_run(options, folder) for folder in folders}
    first = runs[folders[0]]
    for folder, run in runs.items():
        if run.run.guide is None:
            raise ValueError(
                f"{folder} holds a method without a guide, {run.method.name}, that has no"
                " log-likelihood to compare."
            )
        if not _have_same_data(first, run):
            raise ValueError(
                f"{folders[0]} and {folder} hold out different data ({first.data.name} and"
                f" {run.data.name}, or other pixels or seeds): train them on the same."
            )
    particles = options.num_particles or first.method.likelihood_particles
    pairs = {folder: (run.model, run.guide) for folder, run in runs.items()}
    print(evaluate.compare(pairs, first.data.test, num_particles=particles))
    print(f"importance weighted, {particles} particles; the same data and noise for every run")


def _have_same_data(one: Trained, other: Trained) -> bool:
    """Whether two runs hold out the same rows, with the same pixels."""
    if len(one.data.test) != len(other.data.test):
        return False
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one.data.test, other.data.test, strict=True)
    )
