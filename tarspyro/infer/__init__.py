"""Bounds: how a pair is trained."""

__all__ = ["ELBO", "PairError", "check_pair", "log_weights"]

from tarspyro.infer.elbo import ELBO
from tarspyro.infer.traces import PairError, check_pair, log_weights
