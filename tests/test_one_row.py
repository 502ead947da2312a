"""One row in place of a batch is refused in the same sentence by whatever takes data."""

import matplotlib.pyplot
import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, evaluate, fit, guides, infer, models, plot
from tarspyro.distributions import default_prior
from tarspyro.infer import InputError
from tarspyro.nn import MLP

TABLE = torch.linspace(-2, 2, 240).reshape(40, 6)
X = TABLE[0]
Z = {"z": torch.zeros(6, 3, 2)}
P = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Normal, MLP(2, [8]), 6))
Q = guides.VAE(Conditional(dist.Normal, MLP(6, [8]), 2))
# A posterior that starts as the prior depends on no data.
torch.nn.init.normal_(next(Q.posterior.heads.parameters()))
DRAWS = {"num_samples": 2, "warmup": 2}


def classifier(x):
    with pyro.plate("data", len(x)):
        logits = torch.stack([x.sum(-1), -x.sum(-1)], -1)
        pyro.sample("y", dist.OneHotCategorical(logits=logits))


DOORS = {
    "fit": lambda x: fit(P, Q, x, epochs=1, progress=False),
    "validation": lambda x: fit(P, Q, TABLE, validation=x, epochs=1, progress=False),
    "loss": lambda x: infer.ELBO().loss(P, Q, torch.as_tensor(x)),
    "activity": lambda x: evaluate.activity(Q, x),
    "anomaly_score": lambda x: evaluate.anomaly_score(P, Q, x),
    "arithmetic": lambda x: evaluate.arithmetic(P, Q, x, TABLE, TABLE),
    "bits_per_dim": lambda x: evaluate.bits_per_dim((P, Q), x),
    "compare": lambda x: evaluate.compare({"a": (P, Q), "b": (P, Q)}, x),
    "diagnose": lambda x: evaluate.diagnose(P, Q, x),
    "elbo": lambda x: evaluate.elbo(P, Q, x),
    "embed": lambda x: evaluate.embed(Q, x),
    "draws of embed": lambda x: evaluate.embed(Q, x, num_samples=3),
    "impute": lambda x: evaluate.impute(P, Q, x, torch.arange(6) > 2),
    "log_densities": lambda x: evaluate.log_densities(P, Q, x, Z),
    "log_likelihood": lambda x: evaluate.log_likelihood(P, Q, x),
    "nearest_neighbours": lambda x: evaluate.nearest_neighbours(Q, TABLE, x),
    "reconstruct": lambda x: evaluate.reconstruct(P, Q, x),
    "reconstruction": lambda x: evaluate.reconstruction(P, Q, x),
    "true_posterior": lambda x: evaluate.true_posterior(P, x, **DRAWS),
    "plot.explore": lambda x: plot.explore(P, Q, x),
    "plot.imputations": lambda x: plot.imputations(x, x > 0, x),
    "plot.interpolation": lambda x: plot.interpolation(P, Q, x, x),
    "plot.latents": lambda x: plot.latents(Q, x),
    "plot.neighbours": lambda x: plot.neighbours(Q, x, TABLE),
    "plot.posteriors": lambda x: plot.posteriors(P, Q, x, **DRAWS),
    "plot.reconstructions": lambda x: plot.reconstructions(P, Q, x),
    "plot.samples": lambda x: plot.samples(P, data=x),
    "plot.traversal": lambda x: plot.traversal(P, codes=x[:2]),
    "decode": lambda x: evaluate.decode(P, x[:2]),
    "classify": lambda x: evaluate.classify(classifier, x),
}


@pytest.mark.parametrize("container", ["tensor", "array"])
@pytest.mark.parametrize("door", DOORS)
def test_one_row_in_place_of_a_batch(door, container):
    x = X if container == "tensor" else X.numpy()
    with pytest.raises(InputError, match=r", which is one .*: add a dimension, \w+\[None\]\."):
        DOORS[door](x)
    matplotlib.pyplot.close("all")


def test_rows_of_single_numbers_are_no_rows_of_vectors():
    with pytest.raises(
        InputError, match=r"rows of shape \(\), but the likelihood draws \(6,\)"
    ):
        evaluate.reconstruct(P, Q, TABLE[:, 0])


def test_rows_of_single_numbers_are_rows_of_single_numbers():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    assert evaluate.reconstruct(model, guide, X).shape == (6,)
    assert evaluate.embed(guide, X, num_samples=3).shape == (3, 6)
    assert evaluate.true_posterior(model, X[:2], **DRAWS)["z"].shape == (2, 2)
