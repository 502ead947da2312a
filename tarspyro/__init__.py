"""Deep generative models as pairs of Pyro programs: network, distribution and method are
independent choices.

The public names are imported when they are first used (PEP 562), so that ``import tarspyro``
and the help of the command line do not wait for PyTorch.
"""

__all__ = [
    "Blocks",
    "Conditional",
    "Deterministic",
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
from tarspyro.conditional import Blocks, Conditional, Deterministic, Transformed
from tarspyro.evaluate import embed
from tarspyro.modules import StochasticModule
from tarspyro.runs import Run, load_run
from tarspyro.sequential import sequential
from tarspyro.training.callbacks import TensorBoard
from tarspyro.training.fit import fit
from tarspyro.training.optimizers import Optimizer
