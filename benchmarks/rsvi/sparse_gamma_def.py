"""The sparse gamma deep exponential family on abstracts of NIPS papers, as a pair of Pyro
programs.

    # 2,600 iterations: 20 minutes on one core
    TARSPYRO_DATA=... python benchmarks/rsvi/sparse_gamma_def.py
    # 100 iterations; only prints
    TARSPYRO_DATA=... python benchmarks/rsvi/sparse_gamma_def.py --short

Naesseth, Ruiz, Linderman and Blei (2017, arXiv:1610.05683, section 5.2), after Ranganath et
al. (2015): three layers of 100, 40 and 15 Gamma variables for each of 305 documents, and
Poisson counts of 5,715 words. 623,375 latent variables, each with a Gamma of its own in the
guide; one draw and the whole data an iteration.

``PUBLISHED`` is the ELBO of the authors' run (B = 2, their step sizes with eta = 0.05).
Writes ``benchmarks/results/rsvi_nips_*.json``, named by the options; ``--figure`` draws all of
them, and the published curve, into ``rsvi_nips.png``.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn
from torch.nn.functional import softplus

from tarspyro.distributions import Gamma
from tarspyro.infer import ELBO

RESULTS = Path(__file__).parents[1] / "results"
LAYERS = (100, 40, 15)
LOWEST = {"shape": 1e-3, "mean": 1e-4}
PUBLISHED = {
    0: -82.702e6,
    100: -24.71e6,
    200: -15.46e6,
    500: -6.17e6,
    1000: -2.965e6,
    2000: -2.187e6,
    2600: -2.151e6,
    5000: -2.157e6,
    20_000: -2.070e6,
}
LEVELS = {-6.17e6: "500", -2.965e6: "1,000", -2.187e6: "2,000", -2.041e6: "the best of 68,901"}


def data():
    """Word counts, a row a document."""
    with np.load(
        Path(os.environ["TARSPYRO_DATA"]) / "nips_abstracts" / "nips_train.npz"
    ) as file:
        return torch.as_tensor(file["counts"], dtype=torch.get_default_dtype())


def model(counts):
    """Each layer's mean is the layer above times its weights; shapes of 0.1 make both sparse."""
    documents, words = counts.shape
    sizes = (words, *LAYERS)
    weights = [
        pyro.sample(
            f"w_{layer}", Gamma(0.1, 0.3).expand(sizes[layer : layer + 2][::-1]).to_event(2)
        )
        for layer in range(len(LAYERS))
    ]
    with pyro.plate("documents", documents):
        z = pyro.sample(f"z_{len(LAYERS)}", Gamma(0.1, 0.1).expand(sizes[-1:]).to_event(1))
        for layer in reversed(range(1, len(LAYERS))):
            z = pyro.sample(
                f"z_{layer}", Gamma(0.1, 0.1 / product(z, weights[layer])).to_event(1)
            )
        pyro.sample("x", dist.Poisson(product(z, weights[0])).to_event(1), obs=counts)


def product(z, weights):
    """The matrix product; a plate of particles leaves weights a dimension of size 1, where z
    has the documents.
    """
    return z @ weights.reshape(weights.shape[:-3] + weights.shape[-2:])


class Guide(nn.Module):
    """A Gamma of its own for every latent variable, by shape and mean, each the softplus of a
    parameter.

    The sites stand in the model's order, so that ``ELBO`` takes every layer's KL given the
    layer above in closed form.
    """

    def __init__(self, counts, seed=123, **sampler):
        super().__init__()
        documents, words = counts.shape
        sizes = (words, *LAYERS)
        local = {f"z_{layer}": (documents, size) for layer, size in enumerate(LAYERS, start=1)}
        shared = {f"w_{layer}": sizes[layer : layer + 2][::-1] for layer in range(len(LAYERS))}
        self.sampler = sampler
        self.raw = nn.ParameterDict()
        # The authors' initial values: one stream of numbers for all shapes, then for all
        # means, the layers first.
        source = np.random.RandomState(seed)
        for kind, start in (("shape", 0.5), ("mean", 0.0)):
            for name, size in (local | shared).items():
                noise = torch.as_tensor(source.normal(size=size), dtype=counts.dtype)
                self.raw[f"{kind}_{name}"] = nn.Parameter(start + 0.1 * noise)
        self.local = list(local)[::-1]
        self.shared = list(shared)

    def shape_and_mean(self, name):
        return softplus(self.raw[f"shape_{name}"]), softplus(self.raw[f"mean_{name}"])

    def posterior(self, name):
        shape, mean = self.shape_and_mean(name)
        return Gamma(shape, shape / mean, **self.sampler)

    def forward(self, counts):
        for name in self.shared:
            pyro.sample(name, self.posterior(name).to_event(2))
        with pyro.plate("documents", len(counts)):
            for name in self.local:
                pyro.sample(name, self.posterior(name).to_event(1))

    @torch.no_grad()
    def truncate(self):
        """Keeps shapes and means above the authors' bounds."""
        for name, parameter in self.raw.items():
            parameter.clamp_(min=math.log(math.expm1(LOWEST[name.partition("_")[0]])))


class PaperSteps(torch.optim.Optimizer):
    r"""The paper's step sizes, :math:`\eta n^{-1/2} / (1 + \sqrt{s_n})` with :math:`s_n = 0.1
    g_n^2 + 0.9 s_{n-1}`.
    """

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.iteration = 0

    @torch.no_grad()
    def step(self):
        self.iteration += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                square = self.state[parameter].setdefault(
                    "square", torch.zeros_like(parameter)
                )
                square.mul_(0.9).addcmul_(parameter.grad, parameter.grad, value=0.1)
                parameter.addcdiv_(
                    parameter.grad, 1 + square.sqrt(), value=-group["lr"] / self.iteration**0.5
                )


OPTIMIZERS = {"paper": PaperSteps, "adam": torch.optim.Adam}


def train(guide, counts, optimizer, iterations, num_particles=1):
    """Yields the ELBO, estimated by the draws that the next gradient is made of: after 0, 1,
    2, ... iterations.
    """
    elbo = ELBO(num_particles, max_plate_nesting=1)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = elbo.differentiable_loss(model, guide, counts)
        yield -loss.item()
        loss.backward()
        optimizer.step()
        guide.truncate()
    yield -elbo.loss(model, guide, counts)


def first_reached(elbo):
    """Where each level is passed: the first iteration above it, and the first with none below
    it any more.
    """
    return {
        f"{level:.4g}": {
            "published": published,
            "first": next((n for n, value in enumerate(elbo) if value >= level), None),
            "for good": (
                1 + max(n for n, value in enumerate(elbo) if value < level)
                if elbo[-1] >= level
                else None
            ),
        }
        for level, published in LEVELS.items()
    }


@torch.no_grad()
def paper_elbo(guide, counts, draws):
    """The bound as the paper estimates it, log p of a draw plus the entropy in closed form;
    one number a draw.
    """
    values = []
    for _ in range(draws):
        guide_trace = poutine.trace(guide).get_trace(counts)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(counts)
        entropy = sum(
            guide_trace.nodes[name]["fn"].entropy().sum()
            for name in guide.local + guide.shared
        )
        values.append(model_trace.log_prob_sum() + entropy)
    return torch.stack(values)


def figure(paths):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for path in paths:
        report = json.loads(path.read_text())
        axes.loglog(
            np.array(report["iteration"]) + 1, -np.array(report["elbo"]), label=report["label"]
        )
    axes.loglog(
        [n + 1 for n in PUBLISHED],
        [-elbo for elbo in PUBLISHED.values()],
        "ko--",
        label="published (RSVI, B=2)",
    )
    axes.set(xlabel="iteration + 1", ylabel="minus ELBO, one draw")
    axes.set_title("Sparse gamma DEF, 305 NIPS abstracts x 5,715 words", fontsize=10)
    axes.legend(fontsize=8, title="step sizes, rate, gradient", title_fontsize=8)
    return drawing


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizer", choices=["paper", "adam"], default="paper")
    parser.add_argument(
        "--lr",
        type=float,
        default=1.0,
        help="the paper's eta (n^-1/2 is applied), or Adam's rate",
    )
    parser.add_argument(
        "--reparameterization", choices=["implicit", "rejection"], default="implicit"
    )
    parser.add_argument("--boost", type=int, default=8, help="B, for the rejection sampler")
    parser.add_argument(
        "--particles",
        type=int,
        default=1,
        help="with two, the other one's bound is the baseline",
    )
    parser.add_argument("--iterations", type=int, default=2600)
    parser.add_argument(
        "--short", action="store_true", help="100 iterations; nothing is written without --out"
    )
    parser.add_argument(
        "--seed", type=int, default=123, help="of the initial values and of the draws"
    )
    parser.add_argument(
        "--out", type=Path, help="results/rsvi_nips_*.json, named by the options, if not given"
    )
    parser.add_argument(
        "--figure", action="store_true", help="train nothing; draw the runs in results/"
    )
    arguments = parser.parse_args()
    if arguments.figure:
        figure(sorted(RESULTS.glob("rsvi_nips_*.json"))).savefig(
            RESULTS / "rsvi_nips.png", dpi=100
        )
        return
    rejection = arguments.reparameterization == "rejection"
    sampler = {"reparameterization": arguments.reparameterization} | (
        {"boost": arguments.boost} if rejection else {}
    )
    words = [
        arguments.optimizer,
        f"{arguments.lr:g}",
        f"B{arguments.boost}" if rejection else "implicit",
    ]
    words += [f"{arguments.particles}particles"] * (arguments.particles > 1)
    torch.manual_seed(arguments.seed)
    # Validation would read back half a million values at every site.
    pyro.enable_validation(False)
    counts = data()
    guide = Guide(counts, arguments.seed, **sampler)
    optimizer = OPTIMIZERS[arguments.optimizer](guide.parameters(), lr=arguments.lr)
    start = time.perf_counter()
    elbo = []
    iterations = 100 if arguments.short else arguments.iterations
    for n, value in enumerate(
        train(guide, counts, optimizer, iterations, arguments.particles)
    ):
        elbo.append(value)
        if n % 50 == 0:
            print(
                f"iteration {n}: ELBO {value:.5g}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    seconds = time.perf_counter() - start
    final = paper_elbo(guide.double(), counts.double(), 20)
    kept = [n for n in range(len(elbo)) if n <= 100 or n % 10 == 0]
    report = {
        "label": ", ".join(words),
        "iterations": iterations,
        "seed": arguments.seed,
        "torch": torch.__version__,
        "levels": first_reached(elbo),
        "final elbo, the paper's estimator": (
            f"{final.mean():.5g} +- {final.std() / len(final) ** 0.5:.1g} (20 draws)"
        ),
        "seconds": round(seconds, 1),
        "iteration": kept,
        "elbo": [float(f"{elbo[n]:.5g}") for n in kept],
    }
    print({key: value for key, value in report.items() if key not in ("iteration", "elbo")})
    if arguments.out or not arguments.short:
        out = arguments.out or RESULTS / f"rsvi_nips_{'_'.join(words)}.json"
        # A line for each entry, the long lists too.
        lines = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in report.items())
        out.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
