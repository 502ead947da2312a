"""MNIST, binarized dynamically, with one, two and five layers of latent variables; chains
against the ladder.

    TARSPYRO_DATA=... python benchmarks/hierarchical_vae.py one-layer --bound iwae --particles 5
    TARSPYRO_DATA=... python benchmarks/hierarchical_vae.py two-layers --bound iwae --particles 5
    TARSPYRO_DATA=... python benchmarks/hierarchical_vae.py chain
    TARSPYRO_DATA=... python benchmarks/hierarchical_vae.py ladder --batch-norm --warm-up 2
    python benchmarks/hierarchical_vae.py table

``one-layer`` and ``two-layers`` are the IWAE paper's: 784-200-200-50, and
784-200-200-100-100-100-50, and back, tanh, exp for the scale, batches of 20, Adam with eps =
1e-4, its falling learning rate; the guide of two layers is chained on draws. (Burda et al.
2015, arXiv:1509.00519, section 5 and table 1.) In full ``--epochs 3280 --evaluations 5000``.

``chain`` and ``ladder`` have five layers of 64, 32, 16, 8 and 4 variables; between them
networks of two hidden layers of 512, 256, 128, 64 and 32 units, leaky ReLU of slope 0.1,
softplus for the scale, batches of 256, Adam at 1e-3. ``--batch-norm`` normalizes the hidden
layers, ``--warm-up`` raises beta from 0 to 1 over so many epochs. (Sonderby et al. 2016,
arXiv:1602.02282, section 3, where the normalization is of the means and variances too.) In
full ``--epochs 2000 --warm-up 200 --evaluations 5000``, which the paper follows with more
epochs on an importance weighted bound.

Every run writes minus log p by importance sampling on the test images, binarized once, minus
the ELBO, and the activity of all latent units to ``benchmarks/results/``; ``table`` prints
what is there, and draws the activities.
"""

import argparse
import json
from pathlib import Path

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.distributions.transforms import ExpTransform, SoftplusTransform

from tarspyro import Conditional, Optimizer, Run, data, evaluate, fit, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP, initialize

from mnist_iwae import rate  # isort: skip

RESULTS = Path(__file__).parent / "results"
LATENTS = (64, 32, 16, 8, 4)
HIDDEN = (512, 256, 128, 64, 32)
# Minus log p after the full schedules, by network and number of particles: the IWAE paper's
# table 1.
REFERENCE = {
    "one-layer": {1: 86.76, 5: 85.54, 50: 84.78},
    "two-layers": {1: 85.33, 5: 83.89, 50: 82.90},
}


class Leaky(nn.LeakyReLU):
    """The slope that the ladder's paper takes."""

    def __init__(self):
        super().__init__(0.1)


def trunk(in_features, hidden, **how):
    made = MLP(in_features, hidden, **how)
    # Glorot's initial weights after rectifiers too: with He's the plain chain of five layers
    # starts at 1e33 nats.
    initialize(made.layers)
    return made


def network(in_features, hidden, size, *, family=dist.Normal, transform=None, **how):
    transforms = {"scale": transform} if family is dist.Normal else None
    return Conditional(family, trunk(in_features, hidden, **how), size, transforms=transforms)


def iwae_pair(layers):
    """The IWAE paper's networks of one or two stochastic layers."""
    how = {"activation": nn.Tanh, "transform": ExpTransform()}
    first = 50 if layers == 1 else 100
    posteriors = [network(784, [200, 200], first, **how), network(100, [100, 100], 50, **how)][
        :layers
    ]
    conditionals = [network(50, [100, 100], 100, **how)][: layers - 1]
    likelihood = network(first, [200, 200], 784, family=dist.Bernoulli, **how)
    p = models.HierarchicalVAE(default_prior(dist.Normal, 50), conditionals, likelihood)
    return p, guides.HierarchicalVAE(posteriors)


def deep_pair(ladder, batch_norm):
    """Five layers, with a guide of either kind for the same model."""
    how = {
        "activation": Leaky,
        "transform": SoftplusTransform(),
        "normalization": nn.BatchNorm1d if batch_norm else None,
    }
    conditionals = [
        network(above, [hidden] * 2, size, **how)
        for size, above, hidden in zip(LATENTS, LATENTS[1:], HIDDEN[1:], strict=False)
    ]
    likelihood = network(LATENTS[0], [HIDDEN[0]] * 2, 784, family=dist.Bernoulli, **how)
    prior = default_prior(dist.Normal, LATENTS[-1])
    if not ladder:
        below = (784, *LATENTS)
        posteriors = [
            network(below[i], [HIDDEN[i]] * 2, size, **how) for i, size in enumerate(LATENTS)
        ]
        return models.HierarchicalVAE(prior, conditionals, likelihood), guides.HierarchicalVAE(
            posteriors
        )
    widths = (784, *HIDDEN)
    only = {name: how[name] for name in ("activation", "normalization")}
    encoders = [trunk(widths[i], [width] * 2, **only) for i, width in enumerate(HIDDEN)]
    posteriors = [
        network(width, [], size, **how) for width, size in zip(HIDDEN, LATENTS, strict=True)
    ]
    p = models.LadderVAE(prior, conditionals, likelihood)
    return p, guides.LadderVAE(encoders, posteriors, p.conditionals)


def train(options):
    torch.manual_seed(options.seed)
    mnist = data.mnist(validation=0)
    images = mnist.train.x[: options.rows]
    test = mnist.test.x[: options.test_rows]
    paper = options.network in ("one-layer", "two-layers")
    if paper:
        p, q = iwae_pair(1 if options.network == "one-layer" else 2)
    else:
        p, q = deep_pair(options.network == "ladder", options.batch_norm)
    with torch.no_grad():
        p.likelihood.heads["logits"].bias.copy_(
            torch.logit(images.mean(0).clamp(0.001, 0.999))
        )
    batch = 20 if paper else 256
    steps = -(-len(images) // batch)
    schedules = {}
    if paper:
        schedules["lr"] = lambda step: rate(step, steps)
    if options.warm_up:
        schedules["beta"] = lambda step: min(1.0, step / (options.warm_up * steps))
    loss = (
        ELBO(options.particles)
        if options.bound == "elbo"
        else IWAE(options.particles, gradient=options.gradient)
    )
    name = f"hierarchical_{options.network}_{options.bound}_{options.particles}"
    name += "_dreg" * (options.gradient == "dreg") + "_bn" * options.batch_norm
    name += f"_warm{options.warm_up}" * (options.warm_up > 0) + f"_seed{options.seed}" * (
        options.seed > 0
    )
    name += f"_{options.epochs}epochs" * (paper and options.epochs != 13)
    history = fit(
        p,
        q,
        images,
        loss=loss,
        optimizer=Optimizer(torch.optim.Adam, eps=1e-4 if paper else 1e-8),
        schedules=schedules,
        epochs=options.epochs,
        batch_size=batch,
        binarize=True,
        folder=Run(
            Path(options.folder) / name, resume=options.resume, overwrite=not options.resume
        ),
        seed=options.seed,
        device=options.device,
        compile=options.compile,
        progress=False,
    )
    judged = {"binarize": True, "seed": 0}
    likelihood = evaluate.log_likelihood(
        p, q, test, num_particles=options.evaluations, **judged
    )
    bound = evaluate.elbo(p, q, test, **judged)
    activities = evaluate.activity(q, test.round())
    activities = activities if isinstance(activities, dict) else {"z_1": activities}
    kept = {
        key: value
        for key, value in vars(options).items()
        if key not in ("resume", "folder", "results")
    }
    report = {
        **kept,
        "torch": torch.__version__,
        "minus log p": round(-likelihood.mean().item(), 2),
        "standard error over images": round(
            likelihood.std().item() / len(likelihood) ** 0.5, 2
        ),
        "minus elbo": round(-bound.elbo.mean().item(), 2),
        "kl": round(bound.kl.mean().item(), 2),
        "active units": {
            site: int((values > 0.01).sum()) for site, values in activities.items()
        },
        "reference, full schedule": REFERENCE.get(options.network, {}).get(options.particles),
        "seconds of training": round(sum(history["seconds"]), 1),
        "activity": {
            site: [round(v, 6) for v in values.tolist()] for site, values in activities.items()
        },
    }
    print(
        json.dumps({key: value for key, value in report.items() if key != "activity"}),
        flush=True,
    )
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


def table(results):
    """Prints the results in a folder, and draws the activities of their units side by side."""
    rows = {
        path.stem: json.loads(path.read_text())
        for path in sorted(results.glob("hierarchical_*.json"))
    }
    if not rows:
        raise SystemExit(f"There are no results in {results} yet: train a network first.")
    print(
        "| run | epochs | minus log p | minus ELBO | active units, from z_1"
        " |\n|---|---|---|---|---|"
    )
    for name, row in rows.items():
        units = " + ".join(map(str, row["active units"].values()))
        run = name.removeprefix("hierarchical_")
        print(
            f"| {run} | {row['epochs']} | {row['minus log p']:.2f} | {row['minus elbo']:.2f} |"
            f" {units} |"
        )
    columns = min(3, len(rows))
    figure = Figure(
        figsize=(6.4 * columns, 4 * -(-len(rows) // columns)), layout="constrained"
    )
    for index, (name, row) in enumerate(rows.items()):
        ax = figure.add_subplot(-(-len(rows) // columns), columns, index + 1)
        plot.active_units(
            {site: torch.tensor(values) for site, values in row["activity"].items()}, ax=ax
        )
        ax.set_title(f"{name.removeprefix('hierarchical_')}: {row['minus log p']:.2f}")
    figure.savefig(results / "hierarchical_vae.png", dpi=80)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "network", choices=["one-layer", "two-layers", "chain", "ladder", "table"]
    )
    parser.add_argument("--bound", choices=["elbo", "iwae"], default="elbo")
    parser.add_argument("--particles", type=int, default=1)
    parser.add_argument(
        "--gradient",
        choices=["pathwise", "dreg"],
        default="pathwise",
        help="of the bound iwae",
    )
    parser.add_argument("--batch-norm", action="store_true", help="of chain and ladder")
    parser.add_argument(
        "--warm-up", type=int, default=0, help="over how many epochs beta goes from 0 to 1"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=13,
        help="13 and 40 are whole stages of the IWAE paper's rate",
    )
    parser.add_argument("--rows", type=int, default=60_000, help="how many images to train on")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument(
        "--evaluations", type=int, default=1000, help="how many draws estimate log p"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--folder", default="runs", help="where the run is kept")
    parser.add_argument(
        "--results", default=RESULTS, type=Path, help="where the figures are written"
    )
    options = parser.parse_args()
    if options.network == "table":
        table(options.results)
    else:
        train(options)


if __name__ == "__main__":
    main()
