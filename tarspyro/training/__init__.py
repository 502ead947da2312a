"""Training: the function ``fit`` and its parts."""

__all__ = ["Optimizer", "TensorBoard", "fit", "initialize_from_data"]

from tarspyro.training.callbacks import TensorBoard
from tarspyro.training.fit import fit
from tarspyro.training.optimizers import Optimizer
from tarspyro.training.start import initialize_from_data
