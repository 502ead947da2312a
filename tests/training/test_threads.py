"""Two threads of one process: each gets what it gets alone."""

import threading

import pyro.distributions as dist
import pytest
import torch

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

X = digits().train.x[:60].round()


def pair(seed):
    torch.manual_seed(seed)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 64))
    return p, guides.VAE(Conditional(dist.Normal, MLP(64, [4]), 2))


def training(seed):
    p, q = pair(seed)
    return lambda: fit(p, q, X, epochs=3, batch_size=20, seed=seed, progress=False).step_losses


def evaluation(seed):
    p, q = pair(seed)
    return lambda: evaluate.log_likelihood(p, q, X, num_particles=5, seed=seed).tolist()


@pytest.mark.parametrize("second", [training, evaluation])
def test_threads_get_what_they_get_alone(second):
    makers = [(training, 1), (second, 2), (training, 3)]
    alone = [make(seed)() for make, seed in makers]
    tasks = [make(seed) for make, seed in makers]
    state = torch.get_rng_state()
    found = [None] * len(tasks)

    def work(index):
        found[index] = tasks[index]()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
    assert torch.equal(torch.get_rng_state(), state)


def test_a_callback_may_train_another_pair():
    inner = []

    def callback(row):
        inner.append(training(5)())

    p, q = pair(1)
    history = fit(p, q, X, epochs=2, batch_size=20, seed=1, progress=False, callback=callback)
    assert inner[0] == inner[1] == training(5)()
    p, q = pair(1)
    assert (
        history.step_losses
        == fit(p, q, X, epochs=2, batch_size=20, seed=1, progress=False).step_losses
    )
