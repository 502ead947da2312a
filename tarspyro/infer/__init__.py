"""Bounds and games: how a pair is trained."""

__all__ = [
    "Adversarial",
    "AdversarialAutoencoder",
    "CIWAE",
    "Compiled",
    "Divergence",
    "ELBO",
    "FIVO",
    "Game",
    "GaussianKernel",
    "Hinge",
    "IWAE",
    "InverseMultiquadratic",
    "JensenShannon",
    "LeastSquares",
    "ModalityKL",
    "ModalitySubsets",
    "PIWAE",
    "InputError",
    "PairError",
    "Player",
    "RecordingError",
    "Renyi",
    "SemiSupervised",
    "VAEGAN",
    "WAE",
    "Wasserstein",
    "check_pair",
    "log_weights",
    "mmd",
    "renyi_bound",
]

from tarspyro.infer.adversarial import Adversarial
from tarspyro.infer.bounds import CIWAE, IWAE, PIWAE, Renyi
from tarspyro.infer.check import check_pair
from tarspyro.infer.compiled import Compiled
from tarspyro.infer.discrepancy import GaussianKernel, InverseMultiquadratic, mmd
from tarspyro.infer.divergences import Divergence, Hinge, JensenShannon, LeastSquares, Wasserstein
from tarspyro.infer.elbo import ELBO
from tarspyro.infer.fivo import FIVO
from tarspyro.infer.games import Game, Player
from tarspyro.infer.modalities import ModalityKL, ModalitySubsets
from tarspyro.infer.pairs import log_weights
from tarspyro.infer.recording import RecordingError
from tarspyro.infer.reductions import renyi_bound
from tarspyro.infer.semi_supervised import SemiSupervised
from tarspyro.infer.traces import InputError, PairError
from tarspyro.infer.vaegan import VAEGAN
from tarspyro.infer.wasserstein_autoencoders import WAE, AdversarialAutoencoder
