"""The time of one training step: ours, Pyro's SVI, and PyTorch written by hand, on the same networks.

    python benchmarks/step_time.py [--rounds 40] [--steps 20] [--threads 2] [--device cpu]

All contestants run in one process and take turns: a round is a few steps of each, in an order drawn anew, and the
figure is the median over the rounds. Ratios to the hand-written loop are taken round by round, so that a change of
the machine's load hits both sides. Results are written to ``benchmarks/results/step_time.json``.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from tarspyro import Conditional, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO
from tarspyro.modules import local_parameters
from tarspyro.nn import MLP
from tarspyro.trainer import Trainer

Step = Callable[[torch.Tensor], object]


class HandWrittenVAE(nn.Module):
    """The VAE as a PyTorch user writes it, with the KL in closed form."""

    def __init__(self, pixels, hidden, latent):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.loc, self.log_scale = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, pixels)
        )

    def forward(self, x):
        h = self.encoder(x)
        loc, log_scale = self.loc(h), self.log_scale(h)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        reconstruction = nn.functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        return (reconstruction + kl) / len(x)


def hand_written(pixels, hidden, latent, device, **options) -> Step:
    vae = HandWrittenVAE(pixels, hidden, latent).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, **options)

    def step(x):
        optimizer.zero_grad()
        loss = vae(x)
        loss.backward()
        optimizer.step()
        return loss

    return step


def pair(pixels, hidden, latent, device):
    model = models.VAE(
        default_prior(dist.Normal, latent), Conditional(dist.Bernoulli, MLP(latent, [hidden, hidden]), pixels)
    )
    guide = guides.VAE(Conditional(dist.Normal, MLP(pixels, [hidden, hidden]), latent))
    return model.to(device), guide.to(device)


def ours(pixels, hidden, latent, device) -> Step:
    """The step that ``fit`` runs, its bookkeeping included."""
    model, guide = pair(pixels, hidden, latent, device)
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)  # as fit chooses
    trainer = Trainer({"model": model, "guide": guide}, ELBO(), parameters, optimizer, schedules={})

    def step(x):
        with local_parameters(), pyro.validation_enabled(False):
            return trainer.step((x,))

    return step


def svi(pixels, hidden, latent, device) -> Step:
    """Pyro as its tutorial writes it: a PyroModule-free VAE, ``pyro.module`` in both halves, default validation."""
    model, guide = pair(pixels, hidden, latent, device)
    inference = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())

    def step(x):
        with pyro.validation_enabled(True):
            return inference.step(x)

    return step


def measure(contestants: dict[str, Step], x: torch.Tensor, rounds: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds a step of every contestant in every round."""
    synchronize = torch.cuda.synchronize if x.is_cuda else lambda: None
    for step in contestants.values():
        for _ in range(10):
            step(x)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                contestants[name](x)
            synchronize()
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_time.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    report = {"machine": _machine(arguments.device), "threads": arguments.threads, "rows": {}}
    for program, (hidden, steps) in {
        "MLP VAE 784-512-512-50, batch 100": (512, arguments.steps),
        "MLP VAE 784-8-8-50, batch 100 (host cost)": (8, 5 * arguments.steps),
    }.items():
        sizes = (784, hidden, 50, arguments.device)
        contestants = {
            "hand-written": hand_written(*sizes),
            "hand-written, fused Adam": hand_written(*sizes, fused=True),
            "tarspyro, eager": ours(*sizes),
            "Pyro SVI, Trace_ELBO": svi(*sizes),
        }
        x = torch.rand(100, 784, device=arguments.device).round()
        times = measure(contestants, x, arguments.rounds, steps)
        print(program)
        row = report["rows"][program] = {}
        for name, values in times.items():
            ratio = statistics.median(v / h for v, h in zip(values, times["hand-written"], strict=True))
            row[name] = {"ms": round(statistics.median(values), 3), "to hand-written": round(ratio, 3)}
            print(f"  {name:26} {row[name]['ms']:8.3f} ms   {row[name]['to hand-written']:.3f} of hand-written")
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
