"""DRAW on MNIST, binarized dynamically: with and without attention, convolutional, and a VAE
with as many epochs.

    TARSPYRO_DATA=... python benchmarks/draw_mnist.py vae
    TARSPYRO_DATA=... python benchmarks/draw_mnist.py whole
    TARSPYRO_DATA=... python benchmarks/draw_mnist.py attention
    TARSPYRO_DATA=... python benchmarks/draw_mnist.py convolutional
    python benchmarks/draw_mnist.py table

``whole`` reads and writes the whole image; ``attention`` reads and writes through 12 x 12
filters (``--read``, ``--write``). Both have LSTMs of 256 units and a z of 100 in each step.
(Gregor et al. 2015, arXiv:1502.04623, table 3.) ``convolutional`` has maps of 32 x 7 x 7, a z
of 4 x 7 x 7 and a learned prior. (Gregor et al. 2016, arXiv:1604.08772.) ``vae`` is a
784-400-400-100-400-400-784. All are trained on 60,000 images in batches of 100 by Adam at
1e-3, with gradients clipped to a norm of 5.

The short form, the default, takes 10 steps and 8 epochs. The full form, towards the paper's
80.97 and 87.40,

    python benchmarks/draw_mnist.py attention --full --compile --device cuda
    python benchmarks/draw_mnist.py whole --full --compile --device cuda

takes 64 steps and 400 epochs, and reads through 2 x 2 filters and writes through 5 x 5. With 10
steps these would read 80 numbers in all.

A run writes minus the ELBO on the test images, binarized once, and with ``--particles`` minus
log p by importance sampling to ``benchmarks/results/``, with a picture of canvases and an
animation; ``table`` prints what is there.
"""

import argparse
import json
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional, Optimizer, Run, data, evaluate, fit, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import (
    MLP,
    AttentionRead,
    AttentionWrite,
    Canvas,
    ConvLSTMCell,
    ConvRead,
    ConvWrite,
    FeatureMap,
    IdentityTrunk,
    Read,
    Recurrence,
    Write,
)

RESULTS = Path(__file__).parent / "results"
IMAGE = (1, 28, 28)
HIDDEN = 256
LATENT = 100
# Minus the bound with 64 steps, table 3 of the paper.
PAPER = {"whole": 87.40, "attention": 80.97}


def vae():
    likelihood = Conditional(dist.Bernoulli, MLP(LATENT, [400, 400]), 784)
    p = models.VAE(default_prior(dist.Normal, LATENT), likelihood)
    return p, guides.VAE(Conditional(dist.Normal, MLP(784, [400, 400]), LATENT))


def whole(steps):
    return draw(Read(IMAGE), Write(HIDDEN, IMAGE), steps)


def attention(steps, read, write):
    return draw(
        AttentionRead(HIDDEN, IMAGE, read), AttentionWrite(HIDDEN, IMAGE, write), steps
    )


def draw(read, write, steps):
    canvas = Canvas(Recurrence(nn.LSTMCell(LATENT, HIDDEN)), write)
    likelihood = Conditional(dist.Bernoulli, IdentityTrunk(IMAGE), 784)
    encoder = Recurrence(nn.LSTMCell(read.out_features + HIDDEN, HIDDEN))
    posterior = Conditional(dist.Normal, MLP(HIDDEN, []), LATENT)
    p = models.DRAW(default_prior(dist.Normal, LATENT), canvas, likelihood, steps)
    return p, guides.DRAW(posterior, encoder, read, canvas, likelihood, steps)


def convolutional(steps):
    hidden = (32, 7, 7)
    code = (4, 7, 7)
    canvas = Canvas(Recurrence(ConvLSTMCell(4, hidden)), ConvWrite(hidden, IMAGE))
    likelihood = Conditional(dist.Bernoulli, IdentityTrunk(IMAGE), 784)
    encoder = Recurrence(ConvLSTMCell(16 + 32, hidden))
    read = ConvRead(IMAGE, 16, stride=4)
    prior, posterior = (Conditional(dist.Normal, FeatureMap(hidden), code) for _ in range(2))
    p = models.ConvDRAW(prior, canvas, likelihood, steps)
    return p, guides.ConvDRAW(posterior, encoder, read, canvas, likelihood, steps)


def pair(options):
    if options.kind == "vae":
        return vae()
    if options.kind == "attention":
        return attention(options.steps, options.read, options.write)
    return whole(options.steps) if options.kind == "whole" else convolutional(options.steps)


def name_of(options):
    name = f"draw_mnist_{options.kind}"
    if options.kind == "attention":
        name += f"_{options.read}_{options.write}"
    return name if options.kind == "vae" else f"{name}_T{options.steps}"


def train(options):
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    mnist = data.mnist(validation=0)
    images = mnist.train.x[: options.rows]
    test = mnist.test.x[: options.test_rows]
    p, q = pair(options)
    name = name_of(options)
    history = fit(
        p,
        q,
        images,
        lr=1e-3,
        optimizer=Optimizer(torch.optim.Adam, clip_norm=options.clip),
        epochs=options.epochs,
        batch_size=100,
        binarize=True,
        folder=Run(
            Path(options.folder) / name,
            resume=options.resume,
            overwrite=not options.resume,
            checkpoint_steps=100,
        ),
        seed=options.seed,
        device=options.device,
        compile=options.compile,
        progress=False,
    )
    judged = {"binarize": True, "seed": 0}
    bound = evaluate.elbo(p, q, test, **judged)
    report = {
        "kind": options.kind,
        "steps": None if options.kind == "vae" else options.steps,
        "read": options.read if options.kind == "attention" else None,
        "write": options.write if options.kind == "attention" else None,
        "epochs": options.epochs,
        "training images": len(images),
        "test images": len(test),
        "seed": options.seed,
        "compiled": options.compile,
        "torch": torch.__version__,
        "device": options.device,
        "parameters": sum(part.numel() for part in {*p.parameters(), *q.parameters()}),
        "minus elbo": round(-bound.elbo.mean().item(), 2),
        "standard error over images": round(bound.elbo.std().item() / len(test) ** 0.5, 2),
        "kl": round(bound.kl.mean().item(), 2),
        "training loss by epoch": [round(loss, 2) for loss in history["loss"]],
        "seconds of training": round(sum(history["seconds"]), 1),
        "paper, 64 steps": PAPER.get(options.kind),
    }
    if options.particles:
        log_p = evaluate.log_likelihood(p, q, test, num_particles=options.particles, **judged)
        report |= {
            "particles": options.particles,
            "minus log p": round(-log_p.mean().item(), 2),
        }
    print(json.dumps(report), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.kind == "vae":
        return
    some = test[:6].round()
    plot.canvases(p, num=6).savefig(options.results / f"{name}_generated.png", dpi=80)
    plot.canvases(p, q, some).savefig(options.results / f"{name}_reconstructed.png", dpi=80)
    plot.animation(options.results / f"{name}.gif", p, num=25)


def table(results):
    rows = [json.loads(path.read_text()) for path in sorted(results.glob("draw_mnist_*.json"))]
    if not rows:
        raise SystemExit(f"There are no results in {results} yet: train a pair first.")
    print(
        "| pair | T | epochs | minus ELBO | KL | training | paper, T = 64"
        " |\n|---|---|---|---|---|---|---|"
    )
    for row in sorted(rows, key=lambda row: -row["minus elbo"]):
        paper = f"{row['paper, 64 steps']:.2f}" if row["paper, 64 steps"] else ""
        minutes = f"{row['seconds of training'] / 60:.1f} min"
        figures = f"{row['minus elbo']:.2f} | {row['kl']:.2f} | {minutes} | {paper}"
        print(f"| {row['kind']} | {row['steps'] or ''} | {row['epochs']} | {figures} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "kind", choices=["vae", "whole", "attention", "convolutional", "table"]
    )
    parser.add_argument("--steps", type=int, help="T; 10, in full 64")
    parser.add_argument("--read", type=int, help="filters along a side; 12, in full 2")
    parser.add_argument("--write", type=int, help="filters along a side; 12, in full 5")
    parser.add_argument("--epochs", type=int, help="8, in full 400")
    parser.add_argument("--full", action="store_true", help="the paper's set-up")
    parser.add_argument(
        "--particles",
        type=int,
        default=0,
        help="how many draws estimate log p; none by default",
    )
    parser.add_argument(
        "--clip", type=float, default=5.0, help="the norm to which gradients are clipped"
    )
    parser.add_argument("--rows", type=int, default=60_000, help="how many images to train on")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--folder", default="runs", help="where the run is kept")
    parser.add_argument(
        "--results", default=RESULTS, type=Path, help="where the figures are written"
    )
    options = parser.parse_args()
    options.steps = options.steps or (64 if options.full else 10)
    options.read = options.read or (2 if options.full else 12)
    options.write = options.write or (5 if options.full else 12)
    options.epochs = options.epochs or (400 if options.full else 8)
    if options.kind == "table":
        table(options.results)
    else:
        train(options)


if __name__ == "__main__":
    main()
