"""Particles in chunks: the bound and the gradient of all particles together, with a chunk in
memory at a time.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, distributions, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.infer import CIWAE, ELBO, IWAE, Compiled, PairError, Renyi
from tarspyro.infer.bounds.gradient_estimators import pathwise
from tarspyro.infer.weights import joined, weigh_in_chunks
from tarspyro.nn import MLP
from tarspyro.scopes import local_parameters

BOUNDS = {
    "IWAE": lambda **how: IWAE(7, **how),
    "IWAE, groups": lambda **how: IWAE(7, 2, **how),
    "Renyi": lambda **how: Renyi(0.5, 7, **how),
    "VR-max": lambda **how: Renyi(-float("inf"), 7, **how),
    "CIWAE": lambda **how: CIWAE(0.3, 7, **how),
}


def pair(family="Normal"):
    torch.manual_seed(0)
    family = getattr(distributions, family, None) or getattr(dist, family)
    p = models.VAE(default_prior(family, 3), Conditional(dist.Bernoulli, MLP(3, [8]), 64))
    return p, guides.VAE(Conditional(family, MLP(64, [8]), 3))


def loss_and_gradients(bound, p, q, x, seed=1):
    parameters = [*p.parameters(), *q.parameters()]
    torch.manual_seed(seed)
    with local_parameters():
        loss = bound.differentiable_loss(p, q, x)
    return loss.detach(), torch.autograd.grad(loss, parameters), torch.rand(())


@pytest.mark.parametrize("family", ["Normal", "Gamma", "GumbelSoftmax"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_one_chunk_is_the_bound(bound, family):
    p, q = pair(family)
    x = torch.bernoulli(torch.rand(5, 64))
    loss, gradients, after = loss_and_gradients(BOUNDS[bound](), p, q, x)
    same, others, same_after = loss_and_gradients(BOUNDS[bound](chunk_size=7), p, q, x)
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(gradients, others, rtol=1e-4, atol=1e-5)
    assert after == same_after  # the random state goes on as if there had been one run


@pytest.mark.parametrize("family", ["Normal", "Gamma"])
@pytest.mark.parametrize("bound", BOUNDS)
def test_chunks_have_the_gradient_of_their_particles_together(bound, family):
    p, q = pair(family)
    x = torch.bernoulli(torch.rand(5, 64))
    chunked = BOUNDS[bound](chunk_size=3)
    torch.manual_seed(1)
    with local_parameters(), pyro.validation_enabled(False):
        structure = chunked.structure(p, q, x)
        weights = joined(
            list(weigh_in_chunks(p, q, (x,), {}, chunked.num_groups, 7, 3, structure))
        )
        assert weights.groups[0].log_joint.shape == (chunked.num_groups, 7, 5)
        together = -pathwise(chunked, weights)
    gradients = torch.autograd.grad(together, [*p.parameters(), *q.parameters()])
    loss, others, _ = loss_and_gradients(chunked, p, q, x)
    torch.testing.assert_close(loss, together.detach())
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-5)


def test_chunks_take_the_same_rows_of_a_subsampled_plate():
    seen = []

    def model(x):
        with pyro.plate("data", 100, subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 100, subsample_size=5) as rows:
            seen.append(rows)
            pyro.sample("z", dist.Normal(x[rows] / 2, 1.0))

    IWAE(6, chunk_size=2).loss(model, guide, torch.arange(100.0))
    # Runs that find the structure come first.
    assert all(torch.equal(rows, seen[-1]) for rows in seen[-3:])


def test_a_chunk_is_forgotten_before_the_next_one():
    """What autograd saves for the way back is that of one chunk, however many there are."""
    p, q = pair()
    x = torch.bernoulli(torch.rand(50, 64))

    def most(bound):
        alive, peak = 0, 0

        class Saved:
            def __init__(self, tensor):
                nonlocal alive, peak
                self.tensor = tensor
                alive += tensor.numel()
                peak = max(peak, alive)

            def __del__(self):
                nonlocal alive
                alive -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            loss_and_gradients(bound, p, q, x)
        return peak

    assert most(IWAE(64, chunk_size=4)) < 1.2 * most(IWAE(8, chunk_size=4))
    assert most(IWAE(64)) > 10 * most(IWAE(64, chunk_size=4))


def test_training_in_chunks():
    p, q = pair()
    history = fit(
        p,
        q,
        digits().train.x[:300],
        loss=IWAE(6, chunk_size=4),
        epochs=3,
        binarize=True,
        seed=0,
        progress=False,
    )
    assert history["loss"][-1] < history["loss"][0]


def test_what_chunks_cannot_do():
    for wrong, message in (
        ({"chunk_size": 0}, "at least 1"),
        ({"chunk_size": 2, "gradient": "dreg"}, "pathwise"),
        ({"chunk_size": 2, "vectorize_particles": False}, "vectorize_particles"),
    ):
        with pytest.raises(ValueError, match=message):
            IWAE(4, **wrong)
    with pytest.raises(ValueError, match="no recorded step can"):
        Compiled(IWAE(4, chunk_size=2))
    assert Compiled(ELBO()).original.num_particles == 1

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(PairError, match=r"data points share \['w'\]"):
        IWAE(4, chunk_size=2).loss(model, guide, torch.zeros(3))
