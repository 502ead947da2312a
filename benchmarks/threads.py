"""Two threads of one process: pairs of trainings, or a training and an evaluation.

Every pair has to give what each of its halves gives alone.

    python benchmarks/threads.py --pairs 200
"""

import argparse
import threading
from collections import Counter
from collections.abc import Callable

import pyro.distributions as dist
import torch

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.data import digits
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

X = digits().train.x[:80].round()
Task = Callable[[], list[float]]


def make_pair(seed: int) -> tuple[models.VAE, guides.VAE]:
    """Returns an untrained pair."""
    torch.manual_seed(seed)
    p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [8]), 64))
    return p, guides.VAE(Conditional(dist.Normal, MLP(64, [8]), 2))


def training(seed: int) -> Task:
    """Returns a training, with the losses of its steps."""
    p, q = make_pair(seed)
    return lambda: fit(p, q, X, epochs=2, batch_size=20, seed=seed, progress=False).step_losses


def evaluation(seed: int) -> Task:
    """Returns an evaluation, with the log-likelihoods."""
    p, q = make_pair(seed)
    return lambda: evaluate.log_likelihood(p, q, X[:20], num_particles=5, seed=seed).tolist()


def run_threads(tasks: list[Task]) -> list[object]:
    """Runs each task in a thread of its own; returns results and errors."""
    results: list[object] = [None] * len(tasks)

    def work(index: int) -> None:
        try:
            results[index] = tasks[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def compare(pairs: int) -> Counter[str]:
    """Counts how many pairs of threads give what their halves give alone."""
    counts: Counter[str] = Counter()
    for number in range(pairs):
        makers = (training, training if number % 2 else evaluation)
        seeds = (number % 5, 5 + number % 5)
        alone = [make(seed)() for make, seed in zip(makers, seeds, strict=True)]
        together = run_threads([make(seed) for make, seed in zip(makers, seeds, strict=True)])
        what = "two trainings" if number % 2 else "a training and an evaluation"
        counts[f"{what}: {'equal' if together == alone else 'DIFFERENT'}"] += 1
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=200)
    torch.set_num_threads(1)
    for outcome, count in sorted(compare(parser.parse_args().pairs).items()):
        print(f"{count:5d} {outcome}")
