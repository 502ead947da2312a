"""Deep generative models as pairs of Pyro programs."""

__all__ = ["Conditional", "Deterministic", "StochasticModule", "__version__", "guides", "models"]

from tarspyro import guides, models
from tarspyro._version import __version__
from tarspyro.conditional import Conditional, Deterministic
from tarspyro.modules import StochasticModule
