"""Bounds: how a pair is trained."""

__all__ = [
    "CIWAE",
    "Compiled",
    "ELBO",
    "FIVO",
    "IWAE",
    "ModalityKL",
    "ModalitySubsets",
    "PIWAE",
    "PairError",
    "RecordingError",
    "Renyi",
    "check_pair",
    "log_weights",
    "renyi_bound",
]

from tarspyro.infer.bounds import CIWAE, IWAE, PIWAE, Renyi
from tarspyro.infer.compiled import Compiled
from tarspyro.infer.elbo import ELBO
from tarspyro.infer.fivo import FIVO
from tarspyro.infer.modalities import ModalityKL, ModalitySubsets
from tarspyro.infer.recording import RecordingError
from tarspyro.infer.reductions import renyi_bound
from tarspyro.infer.traces import PairError, check_pair, log_weights
