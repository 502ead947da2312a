"""Bounds and games: how a pair is trained."""

__all__ = [
    "Adversarial",
    "CIWAE",
    "Compiled",
    "Divergence",
    "ELBO",
    "FIVO",
    "Game",
    "Hinge",
    "IWAE",
    "JensenShannon",
    "LeastSquares",
    "ModalityKL",
    "ModalitySubsets",
    "PIWAE",
    "PairError",
    "Player",
    "RecordingError",
    "Renyi",
    "Wasserstein",
    "check_pair",
    "log_weights",
    "renyi_bound",
]

from tarspyro.infer.adversarial import Adversarial
from tarspyro.infer.bounds import CIWAE, IWAE, PIWAE, Renyi
from tarspyro.infer.compiled import Compiled
from tarspyro.infer.divergences import Divergence, Hinge, JensenShannon, LeastSquares, Wasserstein
from tarspyro.infer.elbo import ELBO
from tarspyro.infer.fivo import FIVO
from tarspyro.infer.games import Game, Player
from tarspyro.infer.modalities import ModalityKL, ModalitySubsets
from tarspyro.infer.recording import RecordingError
from tarspyro.infer.reductions import renyi_bound
from tarspyro.infer.traces import PairError, check_pair, log_weights
