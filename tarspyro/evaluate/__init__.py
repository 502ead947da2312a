"""What a trained pair is worth: log-likelihoods, bounds and their gaps, posteriors, codes and pictures' data."""

__all__ = [
    "Bound",
    "Estimate",
    "Gaps",
    "LogDensities",
    "LogLikelihood",
    "PosteriorKL",
    "accuracy",
    "active_units",
    "annealed_log_likelihood",
    "classify",
    "decode",
    "elbo",
    "embed",
    "gaps",
    "log_densities",
    "log_likelihood",
    "posterior_kl",
    "reconstruct",
    "sample",
    "true_posterior",
]

from tarspyro.evaluate.amortization import Gaps, gaps
from tarspyro.evaluate.annealing import annealed_log_likelihood
from tarspyro.evaluate.classes import accuracy, classify
from tarspyro.evaluate.codes import active_units, decode, embed, reconstruct, sample
from tarspyro.evaluate.densities import LogDensities, log_densities
from tarspyro.evaluate.likelihood import Bound, LogLikelihood, elbo, log_likelihood
from tarspyro.evaluate.posterior import Estimate, PosteriorKL, posterior_kl, true_posterior
