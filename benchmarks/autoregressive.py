"""Autoregressive densities of binary MNIST, and PixelVAE beside a VAE: test nats an image, the
time of a draw, and the time of a training step.

    # MADE 784-500-784, and the same network in plain PyTorch: 85 epochs of batches of 100
    TARSPYRO_DATA=... python benchmarks/autoregressive.py made
    TARSPYRO_DATA=... python benchmarks/autoregressive.py plain-made
    # The same with direct connections from the pixels to the outputs
    TARSPYRO_DATA=... python benchmarks/autoregressive.py direct-made
    # A PixelCNN of five layers of 16 channels, 10 epochs
    TARSPYRO_DATA=... python benchmarks/autoregressive.py pixelcnn
    # The same with windows of 7 x 7 in the first layer and of 5 x 5 in the others, or of 7 x 7
    TARSPYRO_DATA=... python benchmarks/autoregressive.py wide-pixelcnn --compile
    TARSPYRO_DATA=... python benchmarks/autoregressive.py wider-pixelcnn --compile --decay
    # PixelVAE, and a VAE with the same encoder
    TARSPYRO_DATA=... python benchmarks/autoregressive.py pixel-vae
    TARSPYRO_DATA=... python benchmarks/autoregressive.py vae
    # 64 images of 28 x 28: draws that keep what earlier pixels computed, and whole passes
    python benchmarks/autoregressive.py draws
    # A step against the same network by hand, eager and compiled
    python benchmarks/autoregressive.py steps

``--epochs`` is the number of epochs in all; with ``--folder`` a run is resumed there.
``--decay`` lets the learning rate fall to 0 over the second half. ``--static`` draws the pixels
of the training images once instead of anew for each batch. Test pixels are drawn once, from a
seed of their own. Figures are written to ``benchmarks/results/autoregressive_METHOD.json``.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import pyro.distributions as dist
import torch
from contestants import Program, hand_written, measure, ours, ratio
from torch import nn

from tarspyro import Autoregressive, Conditional, Run, data, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO
from tarspyro.infer.traces import no_guide
from tarspyro.inputs import binarized
from tarspyro.nn import MADE, ConvDecoder, ConvEncoder, PixelCNN

IMAGE = (1, 28, 28)
LATENT = 16
EPOCHS = {
    "made": 85,
    "direct-made": 85,
    "plain-made": 85,
    "pixelcnn": 10,
    "wide-pixelcnn": 10,
    "wider-pixelcnn": 10,
    "pixel-vae": 10,
    "vae": 10,
}
WINDOWS = {"pixelcnn": 3, "wide-pixelcnn": [7, 5, 5, 5, 5], "wider-pixelcnn": 7}
RATES = {**dict.fromkeys(WINDOWS, 3e-3), "pixel-vae": 3e-3}
PUBLISHED = {
    "made": "88.40 with 8,000 units on fixed pixels (paper), 84.87 on new ones (reproduction)",
    "pixelcnn": "81.30 (paper), 81.45 (reproduction, 15 blocks, 457 epochs)",
    "pixel-vae": "80.64 (paper)",
}


class PlainMADE(nn.Module):
    """A MADE as a PyTorch user writes it; its loss is summed over a batch."""

    def __init__(self, pixels=784, hidden=500):
        super().__init__()
        self.hidden = nn.Linear(pixels, hidden)
        self.out = nn.Linear(hidden, pixels)
        degrees = torch.randint(1, pixels, (hidden,))
        inputs = torch.arange(1, pixels + 1)
        self.register_buffer("first", (degrees[:, None] >= inputs).float())
        self.register_buffer("last", (inputs[:, None] > degrees).float())

    def logits(self, x):
        hidden = nn.functional.linear(x, self.hidden.weight * self.first, self.hidden.bias)
        weight = self.out.weight * self.last
        return nn.functional.linear(hidden.relu(), weight, self.out.bias)

    def forward(self, x):
        loss = nn.functional.binary_cross_entropy_with_logits
        return loss(self.logits(x), x, reduction="sum")


class PlainPixelCNN(nn.Module):
    """The same convolutions as the library's, with the loss by hand."""

    def __init__(self, channels=16, layers=5):
        super().__init__()
        self.trunk = PixelCNN(IMAGE, channels, layers)
        self.head = self.trunk.causal_head(torch.Size(IMAGE), torch.Size())

    def forward(self, x):
        loss = nn.functional.binary_cross_entropy_with_logits
        return loss(self.head(self.trunk.features(x, None, 0)), x, reduction="sum")


def density(trunk, shape=IMAGE):
    return models.Density(Autoregressive(dist.Bernoulli, trunk, shape))


def pair(method):
    if method == "made":
        return density(MADE(IMAGE, [500])), None
    if method == "direct-made":
        return density(MADE(IMAGE, [500], direct_connections=True)), None
    if method in WINDOWS:
        return density(PixelCNN(IMAGE, 16, 5, kernel_size=WINDOWS[method])), None
    decoder = ConvDecoder(LATENT, IMAGE, [32, 16])
    likelihood = Conditional(dist.Bernoulli, decoder, IMAGE)
    if method == "pixel-vae":
        likelihood = Autoregressive(
            dist.Bernoulli, PixelCNN(IMAGE, 16, 2, context=decoder), IMAGE
        )
    encoder = ConvEncoder(IMAGE, [16, 32])
    return models.VAE(default_prior(dist.Normal, LATENT), likelihood), guides.VAE(
        Conditional(dist.Normal, encoder, LATENT)
    )


def images(static):
    mnist = data.mnist(flatten=False)
    train = mnist.train.x
    if static:
        train = binarized(train, torch.Generator().manual_seed(0))
    return train, binarized(mnist.test.x, torch.Generator().manual_seed(1))


def train_plain(train, epochs, static):
    """The epochs of a PyTorch user, with Adam and batches of 100."""
    model = PlainMADE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(100):
            x = train[rows].flatten(1)
            x = x if static else torch.bernoulli(x)
            optimizer.zero_grad()
            loss = model(x) / len(x)
            loss.backward()
            optimizer.step()
    return model, time.perf_counter() - start


def nats(method, arguments):
    """Trains, and returns the figures of the test images."""
    train, test = images(arguments.static)
    train = train[: arguments.rows]
    test = test[: arguments.test_rows]
    epochs = arguments.epochs or EPOCHS[method]
    row = {"epochs": epochs, "static": arguments.static, "published": PUBLISHED.get(method)}
    if method == "plain-made":
        model, seconds = train_plain(train, epochs, arguments.static)
        with torch.no_grad():
            losses = [model(x.flatten(1)).item() for x in test.split(100)]
        return row | {"-log p": sum(losses) / len(test), "seconds": seconds}

    model, guide = pair(method)
    rate = RATES.get(method, 1e-3)
    steps = epochs * len(train) // 100
    row["decay"] = arguments.decay
    with tempfile.TemporaryDirectory() as folder:
        where = arguments.folder or Path(folder)
        known = (where / "config.json").exists()
        history = fit(
            model,
            guide,
            train,
            epochs=epochs,
            lr=rate,
            schedules={"lr": lambda step: rate * min(1.0, 2 - 2 * step / steps)}
            if arguments.decay
            else None,
            binarize=not arguments.static,
            folder=Run(where, resume=known, overwrite=True),
            compile=arguments.compile,
            seed=arguments.seed,
        )
    row["seconds"] = sum(history["seconds"])
    if guide is None:
        return row | {"-log p": -evaluate.log_likelihood(model, None, test).mean().item()}
    bound = evaluate.elbo(model, guide, test, num_particles=5, seed=0)
    count = arguments.particles
    log_p = evaluate.log_likelihood(model, guide, test, num_particles=count, seed=0)
    row |= {"-elbo": -bound.elbo.mean().item(), "kl": bound.kl.mean().item()}
    return row | {"-log p": -log_p.mean().item(), "particles": count}


def draws(arguments):
    """Seconds of 64 images: with what earlier pixels computed, and by a whole pass for each of
    the 784 pixels, of which a round times 28. Both take turns.
    """
    rows = {}
    for name, trunk in {
        "MADE": MADE(IMAGE, [500]),
        "PixelCNN": PixelCNN(IMAGE, 16, 5),
    }.items():
        p = Autoregressive(dist.Bernoulli, trunk, IMAGE).eval()
        kept = []
        whole = []
        with torch.no_grad():
            for _ in range(arguments.rounds):
                start = time.perf_counter()
                images = p().sample((64,))
                kept.append(time.perf_counter() - start)
                start = time.perf_counter()
                for _ in range(28):
                    p.heads["logits"](p.trunk(images))
                whole.append(28 * (time.perf_counter() - start))
        one = statistics.median(kept)
        other = statistics.median(whole)
        rows[name] = {"kept, s": one, "784 passes, s": other, "ratio": other / one}
    return rows


def steps(arguments):
    """The time of a step to that of the same network by hand."""
    warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
    random.seed(0)
    programs = {
        "MADE 784-500-784": (PlainMADE, lambda: density(MADE(784, [500]), 784), (100, 784)),
        "PixelCNN, 5 x 16": (
            PlainPixelCNN,
            lambda: density(PixelCNN(IMAGE, 16, 5)),
            (20, *IMAGE),
        ),
    }
    rows = {}
    for name, (by_hand, model, shape) in programs.items():
        program = Program(
            by_hand,
            lambda model=model: (model(), no_guide),
            ELBO,
            None,
            lambda shape=shape: torch.rand(shape).round(),
        )
        contestants = {
            "hand-written": hand_written(program, "cpu"),
            "eager": ours(program, "cpu"),
            "compiled": ours(program, "cpu", compiled=True),
        }
        times = measure(contestants, program.batch(), arguments.rounds)
        rows[name] = {"hand-written, ms": statistics.median(times["hand-written"])}
        for contestant in ("eager", "compiled"):
            rows[name][contestant] = ratio(times, contestant, "hand-written")
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=[*EPOCHS, "draws", "steps"])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--decay", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--folder", type=Path, help="write the run here, and resume it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=60_000, help="of training")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    others = {"draws": draws, "steps": steps}
    if arguments.method in others:
        report = others[arguments.method](arguments)
    else:
        report = nats(arguments.method, arguments)
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), **report}
    print(json.dumps(report, indent=1))
    kind = arguments.method + "_static" * arguments.static + "_decay" * arguments.decay
    folder = Path(__file__).parent / "results"
    out = arguments.out or folder / f"autoregressive_{kind}.json"
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
