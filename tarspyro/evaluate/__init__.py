"""What a trained pair is worth: log-likelihoods, bounds and their gaps, posteriors, codes and pictures' data."""

__all__ = [
    "Bound",
    "Estimate",
    "Filtered",
    "Gaps",
    "LogDensities",
    "LogLikelihood",
    "PosteriorKL",
    "active_units",
    "activity",
    "annealed_log_likelihood",
    "conditional_log_likelihood",
    "continuations",
    "decode",
    "elbo",
    "embed",
    "gaps",
    "log_densities",
    "log_likelihood",
    "particle_filter",
    "posterior_kl",
    "reconstruct",
    "reconstruction",
    "sample",
    "true_posterior",
]

from tarspyro.evaluate.amortization import Gaps, gaps
from tarspyro.evaluate.annealing import annealed_log_likelihood
from tarspyro.evaluate.codes import active_units, activity, decode, embed, reconstruct, sample
from tarspyro.evaluate.densities import LogDensities, log_densities
from tarspyro.evaluate.likelihood import (
    Bound,
    LogLikelihood,
    conditional_log_likelihood,
    elbo,
    log_likelihood,
    reconstruction,
)
from tarspyro.evaluate.posterior import Estimate, PosteriorKL, posterior_kl, true_posterior
from tarspyro.evaluate.sequences import Filtered, continuations, particle_filter
