"""Losses of a pair: bounds on log p(x), games, and their compilation."""

__all__ = [
    "Adversarial",
    "AdversarialAutoencoder",
    "BetaTCVAE",
    "Bound",
    "CIWAE",
    "Compiled",
    "Divergence",
    "ELBO",
    "Explanation",
    "FDivergence",
    "FIVO",
    "FactorVAE",
    "Game",
    "GaussianKernel",
    "Hinge",
    "IWAE",
    "InverseMultiquadratic",
    "JensenShannon",
    "LeastSquares",
    "ModalityKL",
    "ModalityStrata",
    "ModalitySubsets",
    "MovingAverage",
    "PIWAE",
    "InputError",
    "PairError",
    "Player",
    "RecordingError",
    "Renyi",
    "ReweightedWakeSleep",
    "SemiSupervised",
    "SiteExplanation",
    "TVO",
    "VAEGAN",
    "WAE",
    "Wasserstein",
    "WeightedBound",
    "check_pair",
    "explain",
    "log_weights",
    "mmd",
    "renyi_bound",
]

# Importing the distributions registers their KL divergences, which bounds use.
from tarspyro import distributions as _  # noqa: F401
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.bounds.explanation import Explanation, SiteExplanation, explain
from tarspyro.infer.bounds.fivo import FIVO
from tarspyro.infer.bounds.fixed_draws import TVO, FDivergence, ReweightedWakeSleep
from tarspyro.infer.bounds.importance import CIWAE, IWAE, PIWAE, Renyi, WeightedBound
from tarspyro.infer.bounds.modalities import ModalityKL, ModalityStrata, ModalitySubsets
from tarspyro.infer.bounds.reductions import renyi_bound
from tarspyro.infer.bounds.semi_supervised import SemiSupervised
from tarspyro.infer.bounds.total_correlation import BetaTCVAE
from tarspyro.infer.compilation.compiled import Compiled
from tarspyro.infer.compilation.recording import RecordingError
from tarspyro.infer.games.adversarial import Adversarial
from tarspyro.infer.games.autoencoders import WAE, AdversarialAutoencoder
from tarspyro.infer.games.average import MovingAverage
from tarspyro.infer.games.base import Game, Player
from tarspyro.infer.games.factor_vae import FactorVAE
from tarspyro.infer.games.losses import (
    Divergence,
    Hinge,
    JensenShannon,
    LeastSquares,
    Wasserstein,
)
from tarspyro.infer.games.mmd import GaussianKernel, InverseMultiquadratic, mmd
from tarspyro.infer.games.vaegan import VAEGAN
from tarspyro.infer.matching import check_pair
from tarspyro.infer.pairs import log_weights
from tarspyro.infer.traces import InputError, PairError
