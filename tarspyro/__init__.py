"""Deep generative models as pairs of Pyro programs: network, distribution and method are
independent choices.

The public names are imported when they are first used (PEP 562), so that ``import tarspyro``
and the help of the command line do not wait for PyTorch.
"""

__all__ = [
    "Autoregressive",
    "Blocks",
    "Conditional",
    "Deterministic",
    "FromNetwork",
    "IncompleteLikelihood",
    "Optimizer",
    "Run",
    "SemiImplicit",
    "StochasticModule",
    "TensorBoard",
    "Transformed",
    "VectorQuantized",
    "__version__",
    "data",
    "distributions",
    "embed",
    "evaluate",
    "export",
    "fit",
    "fit_prior",
    "guides",
    "infer",
    "initialize_from_data",
    "load_run",
    "models",
    "nn",
    "plot",
    "sequential",
    "sweep",
]

import importlib
import sys
import warnings
from typing import TYPE_CHECKING

from tarspyro._version import __version__

if TYPE_CHECKING:
    from tarspyro import data, distributions, evaluate, guides, infer, models, nn, plot
    from tarspyro.autoregressive import Autoregressive
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
    from tarspyro.quantized import VectorQuantized
    from tarspyro.runs import Run, load_run
    from tarspyro.semi_implicit import SemiImplicit
    from tarspyro.sequences import sequential
    from tarspyro.sweeping import sweep
    from tarspyro.training.callbacks import TensorBoard
    from tarspyro.training.fit import fit
    from tarspyro.training.optimizers import Optimizer
    from tarspyro.training.priors import fit_prior
    from tarspyro.training.start import initialize_from_data

if "ipykernel" in sys.modules:
    # In a notebook without ipywidgets, the first import of tqdm warns, and Pyro imports it. The
    # bars are then those of a terminal, which need no advice.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("tqdm.auto")

# The module that defines each public name. All other public names are packages.
_DEFINED_IN = {
    "Autoregressive": "autoregressive",
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
    "SemiImplicit": "semi_implicit",
    "VectorQuantized": "quantized",
    "embed": "evaluate",
    "export": "exporting",
    "fit": "training.fit",
    "fit_prior": "training.priors",
    "initialize_from_data": "training.start",
    "load_run": "runs",
    "sequential": "sequences",
    "sweep": "sweeping",
}


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(
            f"module 'tarspyro' has no attribute {name!r}",
            name=name,
            obj=sys.modules[__name__],
        )

    if name not in _DEFINED_IN:
        return importlib.import_module(f"tarspyro.{name}")

    value = getattr(importlib.import_module(f"tarspyro.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
