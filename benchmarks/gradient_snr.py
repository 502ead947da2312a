"""The signal-to-noise ratio of the guide's gradient against the number of particles, on
Rainforth et al.'s model.

    python benchmarks/gradient_snr.py [--draws 4000]     (15 minutes on a core)

z ~ N(mu, I), x | z ~ N(z, I) in 20 dimensions, q(z | x) = N(A x + b, 2/3 I), with the
parameters moved from their optima by normal noise of standard deviation 0.01; sixteen data
points. (Rainforth et al. 2018, arXiv:1802.04537, section 4.) The ratio is that of the mean
gradient to its standard deviation over independent draws, both in root mean square over the
entries of b for the guide and of mu for the model, without what the mean's own noise adds. The
guide's falls as K^(-1/2) for the pathwise gradient of the importance weighted bound, and rises
for the doubly reparameterized one (Tucker et al. 2018, arXiv:1810.04152). Results are written
to ``benchmarks/results/`` as json and png.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn

from tarspyro.infer import ELBO, IWAE, PIWAE

DIMENSIONS = 20
PARTICLES = (1, 4, 16, 64, 256, 1024)
ESTIMATORS = {
    "IWAE(K), pathwise": lambda k: IWAE(k),
    "IWAE(K), dreg": lambda k: IWAE(k, gradient="dreg"),
    "ELBO, K particles": lambda k: ELBO(k, analytic_kl=False),
    "PIWAE(sqrt K, sqrt K)": lambda k: PIWAE(math.isqrt(k), math.isqrt(k)),
}


class Toy(nn.Module):
    """The pair, near its optimum for data from z ~ N(mu*, I)."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def near(optimum):
            return nn.Parameter(
                optimum + 0.01 * torch.randn(optimum.shape, generator=generator)
            )

        centre = torch.randn(DIMENSIONS, generator=generator)
        self.x = centre + math.sqrt(2) * torch.randn(16, DIMENSIONS, generator=generator)
        self.mu = near(self.x.mean(0))
        self.weight = near(torch.eye(DIMENSIONS) / 2)
        self.bias = near(self.x.mean(0) / 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(x @ self.weight.T + self.bias, math.sqrt(2 / 3)).to_event(1)
            )


def signal_to_noise(bound, draws):
    """The ratios of the guide's and of the model's gradient."""
    toy = Toy()
    torch.manual_seed(0)
    gradients = {"guide": [], "model": []}
    for _ in range(draws):
        loss = bound.differentiable_loss(toy.model, toy.guide, toy.x)
        guide, model = torch.autograd.grad(loss, [toy.bias, toy.mu])
        gradients["guide"].append(guide)
        gradients["model"].append(model)
    ratios = {}
    for half, values in gradients.items():
        mean = torch.stack(values).double().mean(0)
        variance = torch.stack(values).double().var(0)
        ratios[half] = (
            ((mean**2 - variance / draws).sum().clamp(min=0) / variance.sum()).sqrt().item()
        )
    return ratios


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=4000)
    draws = parser.parse_args().draws
    report = {
        "draws": draws,
        "particles": PARTICLES,
        "torch": torch.__version__,
        "ratios": {},
        "slopes": {},
    }
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = dict(zip(("guide", "model"), figure.subplots(1, 2), strict=True))
    for name, bound in ESTIMATORS.items():
        ratios = [signal_to_noise(bound(k), draws) for k in PARTICLES]
        report["ratios"][name] = {
            half: [round(one[half], 4) for one in ratios] for half in axes
        }
        for half, ax in axes.items():
            values = [one[half] for one in ratios]
            slope = np.polyfit(np.log(PARTICLES[1:]), np.log(values[1:]), 1)[0]
            report["slopes"][f"{name}, {half}"] = round(slope, 2)
            ax.loglog(PARTICLES, values, marker="o", label=f"{name}: K^{slope:.2f}")
        print(name, report["ratios"][name], flush=True)
    for half, ax in axes.items():
        ax.set(
            xlabel="particles in all",
            ylabel="signal to noise",
            title=f"gradient of the {half}'s mean",
        )
        ax.legend(frameon=False, fontsize=8)
    folder = Path(__file__).parent / "results"
    figure.savefig(folder / "gradient_snr.png", dpi=110)
    (folder / "gradient_snr.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
