"""Trainings of several processes on one machine, for tests: forks of one process, connected by
gloo.
"""

import os
import pickle
import sys
import tempfile
import traceback
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch._dynamo  # which an optimizer would import in every child
import torch.distributed as distributed
from torch import nn

from tarspyro import Conditional, Optimizer, fit
from tarspyro.data import digits
from tarspyro.infer import ELBO
from tarspyro.nn import MLP


def together(size, task, *arguments):
    """Runs a task in so many processes; returns what each returned, or the error that it ended
    with.
    """
    folder = Path(tempfile.mkdtemp())
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                distributed.init_process_group(
                    "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
                )
                found = task(rank, *arguments)
            except (Exception, SystemExit) as error:
                found = error
                if os.environ.get("TRACEBACKS"):
                    traceback.print_exc()
            (folder / str(rank)).write_bytes(pickle.dumps(found))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    files = [folder / str(rank) for rank in range(size)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


class Given(dist.Normal):
    """A Normal whose draw is made of noise that is given."""

    def __init__(self, loc, scale, noise):
        super().__init__(loc, scale)
        self.noise = noise

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise

    def expand(self, batch_shape, _instance=None):
        return self


class Halves:
    """A pair on rows of data and of the noise of their draws."""

    def __init__(self, seed=0, **options):
        torch.manual_seed(seed)
        self.likelihood = Conditional(dist.Bernoulli, MLP(2, [16], **options), 64)
        self.posterior = Conditional(dist.Normal, MLP(64, [16], **options), 2)
        self.seen = []

    def parts(self):
        likelihood, posterior, seen = self.likelihood, self.posterior, self.seen

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.likelihood = likelihood

            def forward(self, x, noise):
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                    pyro.sample("x", self.likelihood(z), obs=x)

        class Guide(nn.Module):
            def __init__(self):
                super().__init__()
                self.posterior = posterior

            def forward(self, x, noise):
                if torch.is_grad_enabled() and type(x) is torch.Tensor:
                    seen.append((x.clone(), torch.rand(3)))
                normal = self.posterior(x).base_dist
                with pyro.plate("data", len(x)):
                    pyro.sample("z", Given(normal.loc, normal.scale, noise).to_event(1))

        return Model(), Guide()


def rows(count=201):
    """Data, of which the last batch of fifty has a single row, and noise."""
    noise = torch.randn(
        count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    return digits().train.x[:count].round().double(), noise


OPTIONS = {
    "epochs": 2,
    "batch_size": 50,
    "seed": 0,
    "progress": False,
    "optimizer": Optimizer(torch.optim.SGD, momentum=0.9),
    "lr": 0.1,
    "loss": ELBO(analytic_kl=False),
}


def trained(rank=0, data=None, seed=0, pair_options=None, **options):
    """Trains a pair; returns its weights, the history, what it saw, and the random state
    afterwards.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that only a mistake can make a difference
    halves = Halves(seed, **(pair_options or {}))
    model, guide = halves.parts()
    history = fit(model, guide, rows() if data is None else data, **{**OPTIONS, **options})
    weights = {
        f"{i}.{name}": t.numpy()
        for i, half in enumerate((model, guide))
        for name, t in half.state_dict().items()
    }
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    return {
        "weights": weights,
        "step_losses": history.step_losses,
        "rows": drop,
        "seen": [(x.numpy(), noise.numpy()) for x, noise in halves.seen],
    }


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
