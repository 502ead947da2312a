"""Run folders: written by ``fit``, read by ``load_run``."""

__all__ = ["History", "LoadedRun", "Run", "RunError", "load_run"]

from tarspyro.runs.folder import Run, RunError
from tarspyro.runs.history import History
from tarspyro.runs.loading import LoadedRun, load_run
