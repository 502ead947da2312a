"""Calls of the library's own functions in one step of a variational autoencoder.

    python benchmarks/own_calls.py

The step is the loss of an MLP VAE (784-200-200-50) and its gradient, as ``fit`` runs it after
the first step: the structure of the pair is known, and Pyro's validation is off. The table
counts the calls of functions that are defined in the library, file by file. Comprehensions
count too, where Python makes functions of them (before 3.12).
"""

import sys
from collections import Counter
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import tarspyro
from tarspyro import Conditional, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP
from tarspyro.scopes import local_parameters

LIBRARY = Path(tarspyro.__file__).parent


def own_calls(bound):
    """Returns the calls of the library's own functions in one step, by file."""
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(50, [200, 200]), 784)
    p = models.VAE(default_prior(dist.Normal, 50), likelihood)
    q = guides.VAE(Conditional(dist.Normal, MLP(784, [200, 200]), 50))
    x = torch.rand(100, 784).round()

    calls = Counter()

    def count(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(LIBRARY):
            calls[str(path.relative_to(LIBRARY))] += 1

    with pyro.validation_enabled(False), local_parameters():
        for _ in range(2):
            bound.differentiable_loss(p, q, x).backward()
        sys.setprofile(count)
        try:
            bound.differentiable_loss(p, q, x).backward()
        finally:
            sys.setprofile(None)
    return calls


def main():
    """Prints the table."""
    calls = {"ELBO()": own_calls(ELBO()), "IWAE(5)": own_calls(IWAE(5))}
    print(f"{'file':36}", *(f"{name:>8}" for name in calls))
    for path in sorted(set().union(*calls.values())):
        print(f"{path:36}", *(f"{counted[path]:8}" for counted in calls.values()))
    print(f"{'all':36}", *(f"{counted.total():8}" for counted in calls.values()))


if __name__ == "__main__":
    main()
