"""Deep generative models as pairs of Pyro programs: network, distribution and method are
independent choices.
"""

__all__ = [
    "Blocks",
    "Conditional",
    "Deterministic",
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

from tarspyro import data, distributions, evaluate, guides, infer, models, nn, plot
from tarspyro._version import __version__
from tarspyro.conditional import Blocks, Conditional, Deterministic, Transformed
from tarspyro.evaluate import embed
from tarspyro.modules import StochasticModule
from tarspyro.runs import load_run
from tarspyro.sequential import sequential
from tarspyro.training.callbacks import TensorBoard
from tarspyro.training.fit import fit
