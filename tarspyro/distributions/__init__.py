"""Distributions beyond those of ``pyro.distributions``."""

__all__ = [
    "Beta",
    "BetaBinomial",
    "Binomial",
    "Chi2",
    "CodePrior",
    "Concatenate",
    "Dirichlet",
    "DirichletMultinomial",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "FamilyModule",
    "Gamma",
    "GammaPoisson",
    "GumbelSigmoid",
    "GumbelSoftmax",
    "Incomplete",
    "InverseGamma",
    "Kumaraswamy",
    "LowRankMultivariateNormal",
    "MixtureOfExperts",
    "Multinomial",
    "NegativeBinomial",
    "NormalMixture",
    "Poisson",
    "PowerSpherical",
    "Prior",
    "ProductOfExperts",
    "StickBreaking",
    "StickBreakingBeta",
    "StickBreakingKumaraswamy",
    "StudentT",
    "VampPrior",
    "VonMisesFisher",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "as_conditional",
    "as_discrete",
    "as_prior",
    "default_prior",
    "has_context",
]

from tarspyro.distributions import kl as _kl  # noqa: F401  registers the KL divergences
from tarspyro.distributions.coded import CodePrior
from tarspyro.distributions.counts import (
    BetaBinomial,
    Binomial,
    DirichletMultinomial,
    GammaPoisson,
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from tarspyro.distributions.dirichlet import Beta, Dirichlet
from tarspyro.distributions.experts import Concatenate, MixtureOfExperts, ProductOfExperts
from tarspyro.distributions.family import FamilyModule
from tarspyro.distributions.gamma import Chi2, Gamma, InverseGamma, StudentT
from tarspyro.distributions.incomplete import Incomplete
from tarspyro.distributions.kumaraswamy import (
    Kumaraswamy,
    StickBreaking,
    StickBreakingBeta,
    StickBreakingKumaraswamy,
)
from tarspyro.distributions.logistic import DiscretizedLogistic, DiscretizedLogisticMixture
from tarspyro.distributions.low_rank import LowRankMultivariateNormal
from tarspyro.distributions.mixture import NormalMixture
from tarspyro.distributions.prior import (
    Prior,
    as_conditional,
    as_prior,
    default_prior,
    has_context,
)
from tarspyro.distributions.relaxed import GumbelSigmoid, GumbelSoftmax, as_discrete
from tarspyro.distributions.spherical import PowerSpherical, VonMisesFisher
from tarspyro.distributions.vamp import VampPrior
