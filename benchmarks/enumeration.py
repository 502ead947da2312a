"""The time of a training step of programs that sum discrete variables out: a mixture as the prior
of a VAE, and the hidden Markov model of Pyro's tutorial.

    python benchmarks/enumeration.py                     # --only Markov for a part of it

The mixture prior has ten components in 20 dimensions, under MLPs of 784-256-256-20 and batches of
100 images. The hidden Markov model has 16 states and 51 tones that are on or off (JSB chorales,
batches of 20 pieces, their first steps). Pyro's ``TraceEnum_ELBO``, and
``ELBO`` as written and compiled, take turns in one process, in an order drawn anew. Each step
is the loss, its gradient and Adam's update. Figures are medians of the process's CPU time on one
thread, in milliseconds; ``seconds to start`` is the first step, with what it compiles from an
empty cache or an earlier run's. Results are written to ``benchmarks/results/enumeration.json``.
"""

import argparse
import json
import random
import statistics
import time
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

from tarspyro import Conditional, data, guides
from tarspyro.infer import ELBO, Compiled
from tarspyro.nn import MLP

Pair = tuple[nn.Module, nn.Module, tuple[torch.Tensor, ...]]


class MixtureVAE(nn.Module):
    """A VAE whose prior is a mixture of Normals."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(10, 20))
        self.log_scale = nn.Parameter(torch.zeros(10, 20))
        self.logits = nn.Parameter(torch.zeros(10))
        self.decoder = Conditional(dist.Bernoulli, MLP(20, [256, 256]), 784)

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample(
                "k", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"}
            )
            z = pyro.sample("z", dist.Normal(self.loc[k], self.log_scale[k].exp()).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)


class MarkovModel(nn.Module):
    """A hidden Markov model of tones, as in Pyro's tutorial, with lengths as masks."""

    def __init__(self, num_states: int, num_tones: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(2.0 * torch.eye(num_states))
        self.tones = nn.Parameter(torch.randn(num_states, num_tones) - 2.0)

    @config_enumerate
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> None:
        tones = pyro.plate("tones", x.shape[-1], dim=-1)
        with pyro.plate("sequences", len(x), dim=-2):
            state: torch.Tensor | int = 0
            for t in pyro.markov(range(x.shape[1])):
                with pyro.poutine.mask(mask=mask[:, t, None]):
                    state = pyro.sample(
                        f"state_{t}", dist.Categorical(logits=self.transitions[state])
                    )
                    with tones:
                        logits = self.tones[torch.as_tensor(state).squeeze(-1)]
                        pyro.sample(f"x_{t}", dist.Bernoulli(logits=logits), obs=x[:, t])


class Nothing(nn.Module):
    """A guide that draws nothing."""

    def forward(self, *batch: torch.Tensor) -> None:
        pass


def mixture() -> Pair:
    """The VAE and its guide, with a batch of images of random pixels."""
    guide = guides.VAE(Conditional(dist.Normal, MLP(784, [256, 256]), 20))
    return MixtureVAE(), guide, ((torch.rand(100, 784) < 0.2).float(),)


def markov(steps: int) -> Pair:
    """The hidden Markov model, with the first steps of chorales."""
    pieces = data.polyphonic_music("jsb_chorales").train[:20]
    x = pieces.x[:, :steps]
    x = x[..., x.flatten(0, 1).any(0)]
    mask = torch.arange(steps) < pieces.lengths.unsqueeze(1)
    return MarkovModel(16, x.shape[-1]), Nothing(), (x, mask)


PROGRAMS = {
    "VAE with a mixture prior": (mixture, 1),
    "hidden Markov model, T = 10": (lambda: markov(10), 2),
    "hidden Markov model, T = 25": (lambda: markov(25), 2),
}


def losses(nesting):
    """The bounds, by the names of the report."""
    return {
        "Pyro": TraceEnum_ELBO(max_plate_nesting=nesting),
        "TarsPyro": ELBO(),
        "TarsPyro, compiled": Compiled(ELBO(), choose=False),
    }


def trainer(made, loss):
    """A function that takes a step and returns its loss."""
    torch.manual_seed(0)
    model, guide, batch = made()
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=1e-3)

    def step():
        optimizer.zero_grad()
        if isinstance(loss, TraceEnum_ELBO):
            # Its ``loss_and_grads`` leaves out parameters that Pyro's store does not have.
            value = loss.differentiable_loss(model, guide, *batch)
            value.backward()
        else:
            value = loss.loss_and_grads(model, guide, *batch)
        optimizer.step()
        return torch.as_tensor(value).item()

    return step


def measure(made, nesting, rounds):
    """Medians of a step of each bound, how long the first took, and its loss."""
    steps = {name: trainer(made, loss) for name, loss in losses(nesting).items()}
    report = {}
    for name, step in steps.items():
        start = time.perf_counter()
        torch.manual_seed(1)
        loss = step()
        seconds = time.perf_counter() - start
        report[name] = {"loss": round(loss, 3), "seconds to start": round(seconds, 2)}
        step()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name in random.sample([*steps], len(steps)):
            start = time.process_time()
            steps[name]()
            times[name].append(1e3 * (time.process_time() - start))
    for name, row in times.items():
        report[name]["milliseconds"] = round(statistics.median(row), 2)
    return report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--only", default="", help="a part of a program's name")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    path = arguments.out / "enumeration.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for name, (made, nesting) in PROGRAMS.items():
        if arguments.only in name:
            with pyro.validation_enabled(False):
                report[name] = measure(made, nesting, arguments.rounds)
            print(name, json.dumps(report[name]), flush=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
