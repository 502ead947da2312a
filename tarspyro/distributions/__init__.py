"""What TarsPyro adds to ``pyro.distributions``."""

__all__ = ["FamilyModule", "Prior", "as_prior", "default_prior"]

from tarspyro.distributions.family import FamilyModule
from tarspyro.distributions.prior import Prior, as_prior, default_prior
