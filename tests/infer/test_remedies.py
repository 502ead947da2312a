"""Remedies in messages run as they stand, on tensors and on arrays."""

import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, fit, guides, models
from tarspyro.distributions import Gamma, default_prior
from tarspyro.infer import ELBO, IWAE, PIWAE, InputError, PairError
from tarspyro.nn import MLP

SHORT = {"epochs": 1, "batch_size": 40, "progress": False, "seed": 0}
TABLE = torch.linspace(-2, 2, 240).reshape(40, 6)
PIXELS = (torch.arange(2560) % 3 == 0).float().reshape(40, 64)
COUNTS = (torch.arange(240) % 7).float().reshape(40, 6)
COLOUR = torch.linspace(0, 1, 40 * 8 * 8 * 3).reshape(40, 8, 8, 3)
# The code of a remedy begins with one of these, and ends with the sentence or before a comma.
CODE = r"((?:torch|\(?x)[\w. ]*[\[(/+-].*?)(?:, and use.*)?\.$"


def pair(family, shape, **fixed):
    likelihood = Conditional(family, MLP(2, [8]), shape, **fixed)
    posterior = Conditional(dist.Normal, MLP(shape, [8]), 2)
    return models.VAE(default_prior(dist.Normal, 2), likelihood), guides.VAE(posterior)


CASES = {
    "one row": (dist.Normal, 6, TABLE[0]),
    "channels last": (dist.Normal, (3, 8, 8), COLOUR),
    "vectors of channels, channels last": (dist.Normal, (3, 64), COLOUR),
    "vectors for images": (dist.Bernoulli, (1, 8, 8), PIXELS),
    "no channel axis": (dist.Bernoulli, (1, 8, 8), PIXELS.reshape(40, 8, 8)),
    "labels": (dist.OneHotCategorical, 3, torch.arange(40) % 3),
    "zeros and ones": (dist.Beta, 64, PIXELS),
    "zeros": (dist.Gamma, 6, TABLE.clamp(min=0)),
    "negative numbers": (dist.Gamma, 6, TABLE),
    "sums": (dist.Dirichlet, 6, 1 + COUNTS),
    "zeros of a simplex": (dist.Dirichlet, 6, torch.eye(6).repeat(7, 1)),
    "classes from 1": (dist.Categorical, 6, COUNTS + 1),
}


@pytest.mark.parametrize("container", ["tensor", "array"])
@pytest.mark.parametrize("case", CASES)
def test_the_code_of_a_remedy_runs(case, container):
    family, shape, x = CASES[case]
    x = x if container == "tensor" else x.numpy()
    fixed = {"param_shapes": {"logits": (6, 7)}} if family is dist.Categorical else {}
    with pytest.raises(InputError) as found:
        fit(*pair(family, shape, **fixed), x, **SHORT)
    sentence = str(found.value).rpartition(": ")[2]
    code = re.search(CODE, sentence)
    assert code is not None, sentence
    mended = eval(code[1], {"x": x, "torch": torch})
    assert np.isfinite(fit(*pair(family, shape, **fixed), mended, **SHORT)["elbo"][0])


def test_moved_axes_mix_no_channels():
    marked = torch.arange(3.0).expand(40, 8, 8, 3)
    with pytest.raises(InputError) as found:
        fit(*pair(dist.Normal, (3, 64)), marked, **SHORT)
    code = re.search(CODE, str(found.value).rpartition(": ")[2])
    mended = eval(code[1], {"x": marked, "torch": torch})
    assert torch.equal(mended, torch.arange(3.0)[:, None].expand(40, 3, 64))


@pytest.mark.parametrize("loss", [IWAE(2, gradient="dreg"), ELBO(gradient="stl"), PIWAE(2, 2)])
def test_a_bound_that_refuses_draws_by_rejection_names_the_other_sampler(loss):
    def run(how):
        def guide(x):
            with pyro.plate("data", len(x)):
                concentration = pyro.param("concentration", torch.tensor(2.0))
                pyro.sample("z", Gamma(concentration, 1.0, **how))

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", Gamma(1.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        pyro.clear_param_store()
        return loss.loss_and_grads(model, guide, torch.ones(3))

    with pytest.raises(PairError, match="by rejection: .*reparameterization='implicit'"):
        run({})
    assert math.isfinite(run({"reparameterization": "implicit"}))
