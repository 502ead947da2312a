"""Bounds: how a pair is trained."""

__all__ = ["ELBO", "IWAE", "PairError", "Renyi", "check_pair", "log_weights", "renyi_bound"]

from tarspyro.infer.bounds import IWAE, Renyi, renyi_bound
from tarspyro.infer.elbo import ELBO
from tarspyro.infer.traces import PairError, check_pair, log_weights
