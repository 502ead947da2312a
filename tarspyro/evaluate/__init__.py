"""Evaluation of trained pairs: log-likelihoods, bounds, posteriors, codes, samples."""

__all__ = [
    "BitsPerDimension",
    "BoundEstimate",
    "Canvases",
    "Comparison",
    "Coverage",
    "Decomposition",
    "Diagnosis",
    "Difference",
    "Disentanglement",
    "Estimate",
    "Filtered",
    "Gaps",
    "GuideCheck",
    "LogDensities",
    "LogLikelihood",
    "Neighbours",
    "ParzenLogLikelihood",
    "PosteriorKL",
    "PrecisionRecall",
    "SiteCheck",
    "Symptom",
    "UnitCheck",
    "accuracy",
    "active_units",
    "activity",
    "agreement",
    "annealed_log_likelihood",
    "anomaly_score",
    "arithmetic",
    "auroc",
    "bits_per_dim",
    "canvases",
    "check_guide",
    "classify",
    "coherence",
    "compare",
    "conditional_log_likelihood",
    "continuations",
    "decode",
    "diagnose",
    "disentanglement",
    "elbo",
    "embed",
    "frechet_distance",
    "gaps",
    "knn_accuracy",
    "linear_probe",
    "imputation_log_likelihood",
    "impute",
    "impute_modalities",
    "log_densities",
    "log_likelihood",
    "mode_coverage",
    "multimodal_log_likelihood",
    "nearest_neighbours",
    "particle_filter",
    "parzen_log_likelihood",
    "posterior_kl",
    "precision_recall",
    "reconstruct",
    "reconstruction",
    "sample",
    "true_posterior",
]

import sys
import warnings

from tarspyro.evaluate.amortization import Gaps, gaps
from tarspyro.evaluate.annealing import annealed_log_likelihood
from tarspyro.evaluate.anomalies import anomaly_score, auroc
from tarspyro.evaluate.bits import BitsPerDimension, bits_per_dim
from tarspyro.evaluate.calibration import GuideCheck, SiteCheck, UnitCheck, check_guide
from tarspyro.evaluate.classification import accuracy, classify
from tarspyro.evaluate.codes import active_units, activity, embed
from tarspyro.evaluate.comparison import Comparison, Difference, compare
from tarspyro.evaluate.densities import LogDensities, log_densities
from tarspyro.evaluate.diagnosis import Decomposition, Diagnosis, Symptom, diagnose
from tarspyro.evaluate.disentangling import Disentanglement, disentanglement
from tarspyro.evaluate.imputation import imputation_log_likelihood, impute
from tarspyro.evaluate.latent_space import Neighbours, arithmetic, nearest_neighbours
from tarspyro.evaluate.likelihood import (
    BoundEstimate,
    LogLikelihood,
    conditional_log_likelihood,
    elbo,
    log_likelihood,
    reconstruction,
)
from tarspyro.evaluate.multimodal import (
    coherence,
    impute_modalities,
    multimodal_log_likelihood,
)
from tarspyro.evaluate.painting import Canvases, canvases
from tarspyro.evaluate.parzen import ParzenLogLikelihood, parzen_log_likelihood
from tarspyro.evaluate.posterior import Estimate, PosteriorKL, posterior_kl, true_posterior
from tarspyro.evaluate.representation import knn_accuracy, linear_probe
from tarspyro.evaluate.sample_quality import (
    Coverage,
    PrecisionRecall,
    agreement,
    frechet_distance,
    mode_coverage,
    precision_recall,
)
from tarspyro.evaluate.sampling import decode, reconstruct, sample
from tarspyro.evaluate.sequences import Filtered, continuations, particle_filter


def __getattr__(name: str) -> type[BoundEstimate]:
    if name == "Bound":
        warnings.warn(
            "evaluate.Bound is now evaluate.BoundEstimate: import that.",
            DeprecationWarning,
            stacklevel=2,
        )
        return BoundEstimate
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__]
    )
