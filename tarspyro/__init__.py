"""Deep generative models as pairs of Pyro programs: network, distribution and method are
independent choices.

The public names are imported when they are first used (PEP 562), so that ``import tarspyro``
and the help of the command line do not wait for PyTorch.
"""

__all__ = [
    "Blocks",
    "Conditional",
    "Deterministic",
    "FromNetwork",
    "IncompleteLikelihood",
    "Optimizer",
    "Run",
    "StochasticModule",
    "TensorBoard",
    "Transformed",
    "__version__",
    "data",
    "distributions",
    "embed",
    "evaluate",
    "export",
    "fit",
    "guides",
    "infer",
    "load_run",
    "models",
    "nn",
    "plot",
    "sequential",
]

import importlib
from typing import TYPE_CHECKING

from tarspyro._version import __version__

if TYPE_CHECKING:
    from tarspyro import data, distributions, evaluate, guides, infer, models, nn, plot
    from tarspyro.conditional import (
        Blocks,
        Conditional,
        Deterministic,
        FromNetwork,
        IncompleteLikelihood,
        Transformed,
    )
    from tarspyro.evaluate import embed
    from tarspyro.exporting import export
    from tarspyro.modules import StochasticModule
    from tarspyro.runs import Run, load_run
    from tarspyro.sequences import sequential
    from tarspyro.training.callbacks import TensorBoard
    from tarspyro.training.fit import fit
    from tarspyro.training.optimizers import Optimizer

# The module that defines each public name. All other public names are packages.
_DEFINED_IN = {
    "Blocks": "conditional",
    "Conditional": "conditional",
    "Deterministic": "conditional",
    "FromNetwork": "conditional",
    "IncompleteLikelihood": "conditional",
    "Optimizer": "training.optimizers",
    "Run": "runs",
    "StochasticModule": "modules",
    "TensorBoard": "training.callbacks",
    "Transformed": "conditional",
    "embed": "evaluate",
    "export": "exporting",
    "fit": "training.fit",
    "load_run": "runs",
    "sequential": "sequences",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'tarspyro' has no attribute {name!r}")

    if name not in _DEFINED_IN:
        return importlib.import_module(f"tarspyro.{name}")

    value = getattr(importlib.import_module(f"tarspyro.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
