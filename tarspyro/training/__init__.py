"""Training: the function ``fit``, and the parts that it is made of."""

__all__ = ["TensorBoard", "fit"]

from tarspyro.training.callbacks import TensorBoard
from tarspyro.training.fit import fit
