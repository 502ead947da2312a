"""Run folders: what a training leaves, and how it is read back."""

__all__ = ["History", "LoadedRun", "Run", "RunError", "load_run"]

from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import History
from tarspyro.runs.loading import LoadedRun, load_run
