"""The independence of trunk, latent family, likelihood and loss: each changes by one edit."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from tarspyro import Conditional, distributions, evaluate, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, TVO, FDivergence, ReweightedWakeSleep
from tarspyro.nn import MLP, ConvDecoder, ConvEncoder

from ..programs import as_made

IMAGE = (1, 8, 8)

TRUNKS = {
    "mlp": lambda: (MLP(IMAGE, [32]), MLP(2, [32])),
    "conv": lambda: (ConvEncoder(IMAGE, [8, 16]), ConvDecoder(2, IMAGE, [16, 8])),
}
FAMILIES = [
    "Normal",
    "MultivariateNormal",
    "Laplace",
    "Gamma",
    "Beta",
    "Dirichlet",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
]
# Pyro's RenyiELBO and TraceMeanField_ELBO take no partly reparameterized guide, so these have
# the other losses.
ADDED_FAMILIES = [
    "Gamma",
    "InverseGamma",
    "Chi2",
    "StudentT",
    "Beta",
    "Dirichlet",
    "GumbelSoftmax",
    "GumbelSigmoid",
    "Kumaraswamy",
    "StickBreakingBeta",
    "StickBreakingKumaraswamy",
    "VonMisesFisher",
    "PowerSpherical",
]
LIKELIHOODS = {
    "Bernoulli on binary pixels": (dist.Bernoulli, {}, {"binarize": True}),
    "Bernoulli on grey pixels": (dist.Bernoulli, {"validate_args": False}, {}),
    "Normal with learned scale": (dist.Normal, {"scale": 1.0}, {}),
    "Normal with scale=0.1": (dist.Normal, {"scale": 0.1}, {}),
}
LOSSES = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "RenyiELBO": lambda: RenyiELBO(
        alpha=0.0, num_particles=2, vectorize_particles=True, max_plate_nesting=1
    ),
    "ELBO": ELBO,
    "IWAE": lambda: IWAE(num_particles=2),
}

# These take the draws as given, whatever their family.
FIXED_DRAWS = {
    "ReweightedWakeSleep": lambda: ReweightedWakeSleep(5),
    "TVO": lambda: TVO(5, 3),
    "FDivergence": lambda: FDivergence("jensen-shannon", 5),
    "FDivergence, chi2": lambda: FDivergence("chi2", 5),
}


def run(trunk, family, likelihood, loss):
    """The one script, with its parts as arguments."""
    torch.manual_seed(0)
    data = digits(flatten=False)
    encoder, decoder = TRUNKS[trunk]()
    pixels, fixed, how = LIKELIHOODS[likelihood]
    if likelihood == "Normal with learned scale":
        fixed = {"scale": nn.Parameter(torch.tensor(1.0))}
    p = models.VAE(default_prior(family, 2), Conditional(pixels, decoder, IMAGE, **fixed))
    q = guides.VAE(Conditional(family, encoder, 2))
    as_made(p, q)
    history = fit(
        p,
        q,
        data.train[:300],
        loss={**LOSSES, **FIXED_DRAWS}[loss](),
        epochs=3,
        seed=0,
        progress=False,
        **how,
    )
    test = data.test[:50]
    bound = evaluate.elbo(p, q, test, seed=0, **how).elbo
    log_likelihood = evaluate.log_likelihood(p, q, test, num_particles=5, seed=0, **how)
    return p, q, history, bound, log_likelihood


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_combination_trains_and_evaluates(trunk, family, likelihood, loss):
    check(*run(trunk, getattr(dist, family), likelihood, loss))


@pytest.mark.parametrize("loss", ["Trace_ELBO", "ELBO", "IWAE"])
@pytest.mark.parametrize("family", ADDED_FAMILIES)
@pytest.mark.parametrize("trunk", TRUNKS)
def test_so_do_the_families_that_tarspyro_adds(trunk, family, loss):
    if (family, loss) == ("StudentT", "IWAE"):
        pytest.skip(
            "draws with such tails need more than three epochs to improve a bound of two particles"
        )
    check(*run(trunk, getattr(distributions, family), "Bernoulli on binary pixels", loss))


@pytest.mark.parametrize("loss", FIXED_DRAWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_so_do_the_objectives_of_fixed_draws(family, loss):
    check(*run("mlp", getattr(dist, family), "Bernoulli on binary pixels", loss))


def check(p, q, history, bound, log_likelihood):
    assert all(math.isfinite(value) for value in history["loss"])
    assert history["loss"][-1] < history["loss"][0]
    assert bound.shape == log_likelihood.shape == (50,)
    assert log_likelihood.isfinite().all()
    assert all(p.grad is not None for p in [*p.parameters(), *q.parameters()])
