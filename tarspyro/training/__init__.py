"""Training: the function ``fit`` and its parts."""

__all__ = ["Optimizer", "TensorBoard", "fit"]

from tarspyro.training.callbacks import TensorBoard
from tarspyro.training.fit import fit
from tarspyro.training.optimizers import Optimizer
