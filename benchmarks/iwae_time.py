"""The time of one step of the importance weighted bound: ours, Pyro's RenyiELBO, and PyTorch written by hand.

    python benchmarks/iwae_time.py [--rounds 30] [--steps 5] [--threads 2] [--device cpu]

The networks, the batch and the rules are those of ``step_time.py``: all contestants take turns in one process, the
figure is the median over the rounds, and ratios to the hand-written loop are taken round by round. Both hand-written
loops run the encoder once and the decoder on all draws together; one asks for the fused Adam, as ours does. Results are
written to ``benchmarks/results/iwae_time.json``.
"""

import argparse
import json
import math
import platform
import statistics
from pathlib import Path

import pyro
import torch
from pyro.infer import SVI, RenyiELBO
from step_time import HandWrittenVAE, measure, pair
from torch import nn

from tarspyro.infer import IWAE, Compiled
from tarspyro.modules import local_parameters
from tarspyro.trainer import Trainer

SIZES = {"784-512-512-50, batch 100": (784, 512, 50, 100), "784-200-200-50, batch 20": (784, 200, 50, 20)}


class HandWrittenIWAE(HandWrittenVAE):
    """The importance weighted autoencoder as a PyTorch user writes it."""

    def forward(self, x, particles):
        h = self.encoder(x)
        loc, log_scale = self.loc(h), self.log_scale(h)
        noise = torch.randn(particles, *loc.shape, device=loc.device)
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z)
        log_likelihood = -nn.functional.binary_cross_entropy_with_logits(
            logits, x.expand_as(logits), reduction="none"
        ).sum(-1)
        log_weights = log_likelihood + (log_scale + (noise**2 - z**2) / 2).sum(-1)
        return -(log_weights.logsumexp(0) - math.log(particles)).mean()


def hand_written(size, particles, device, **options):
    autoencoder = HandWrittenIWAE(*size).to(device)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-3, **options)

    def step(x):
        optimizer.zero_grad()
        loss = autoencoder(x, particles)
        loss.backward()
        optimizer.step()
        return loss

    return step


def ours(size, particles, device, gradient, compiled=False):
    """The step that ``fit`` runs, its bookkeeping included."""
    model, guide = pair(*size, device)
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)  # as fit chooses
    bound = IWAE(particles, gradient=gradient)
    bound = Compiled(bound, choose=False) if compiled else bound
    trainer = Trainer({"model": model, "guide": guide}, bound, parameters, optimizer, schedules={})

    def step(x):
        with local_parameters(), pyro.validation_enabled(False):
            return trainer.step((x,))

    return step


def renyi(size, particles, device, vectorize):
    model, guide = pair(*size, device)
    bound = RenyiELBO(alpha=0, num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
    inference = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), bound)

    def step(x):
        with pyro.validation_enabled(True):
            return inference.step(x)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    report = {"torch": torch.__version__, "machine": platform.machine(), **vars(arguments), "steps of": {}}
    for name, (pixels, hidden, latent, batch) in SIZES.items():
        size, x = (pixels, hidden, latent), torch.bernoulli(torch.rand(batch, pixels)).to(arguments.device)
        for particles in (1, 5, 50):
            contestants = {
                "hand-written": hand_written(size, particles, arguments.device),
                "hand-written, fused Adam": hand_written(size, particles, arguments.device, fused=True),
                "ours": ours(size, particles, arguments.device, "pathwise"),
                "ours, dreg": ours(size, particles, arguments.device, "dreg"),
                "ours, compiled": ours(size, particles, arguments.device, "pathwise", compiled=True),
                "ours, dreg, compiled": ours(size, particles, arguments.device, "dreg", compiled=True),
                "RenyiELBO, vectorized": renyi(size, particles, arguments.device, True),
                "RenyiELBO, loop": renyi(size, particles, arguments.device, False),
            }
            pyro.clear_param_store()
            # Fifty particles take long enough for a step alone to be a measurement.
            times = measure(contestants, x, arguments.rounds, arguments.steps if particles < 50 else 1)
            rows = {
                contestant: {
                    "milliseconds": round(statistics.median(values), 2),
                    "to hand-written": round(
                        statistics.median(a / b for a, b in zip(values, times["hand-written"], strict=True)), 3
                    ),
                }
                for contestant, values in times.items()
            }
            report["steps of"][f"{name}, {particles} particles"] = rows
            print(name, particles, json.dumps(rows, indent=1), flush=True)
    path = Path(__file__).parent / "results" / f"iwae_time{'' if arguments.device == 'cpu' else '_cuda'}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
