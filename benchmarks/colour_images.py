"""A convolutional VAE on 500 colour images, beside the same networks in plain PyTorch.

    python benchmarks/colour_images.py               (three seeds, a few minutes each)
    python benchmarks/colour_images.py --seeds 1
    python benchmarks/colour_images.py --seeds 1 --epochs 150

The images, of 32 x 32 pixels, are circles, squares and triangles on coloured grounds, drawn by
this script from a fixed seed: 500 to train on and 100 to validate. Both VAEs have 16 latent
variables, a Normal likelihood of scale 0.1, two convolutions of stride 2 with 32 and 64
channels and their mirror image, Adam with learning rate 1e-3, batches of 10, and 25 epochs. The
library's pair starts as the library starts it, the hand-written one as torch does.

A third VAE has a ``DiscretizedLogistic`` in place of the Normal, so that its log-likelihood is
a probability of the bytes, in bits per dimension; a uniform distribution of the levels has 8.

Leaves the figures in ``results/colour_images.json`` (with another number of epochs, in a file
whose name has it) and a picture of the first seed beside them: in rows, images, then samples of
the library's VAE, of the hand-written one, and of the third (means of pixels).
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.distributions import DiscretizedLogistic, default_prior
from tarspyro.nn import ConvDecoder, ConvEncoder

SHAPE = (3, 32, 32)
LATENT = 16
SCALE = 0.1
BATCH = 10
LR = 1e-3
DRAWS = 10
COLOURS = np.array([[200, 60, 60], [60, 160, 80], [60, 80, 200], [230, 200, 60]], np.uint8)
RESULTS = Path(__file__).parent / "results"


def shapes(count, seed):
    """Images as bytes: a circle, a square or a triangle of a few colours on soft grounds."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32] + 0.5
    images = np.empty((count, *SHAPE), np.uint8)
    for image in images:
        ground = rng.integers(112, 208, 3)
        colour = COLOURS[rng.integers(len(COLOURS))]
        radius = rng.uniform(6, 10)
        y, x = rng.uniform(radius, 32 - radius, 2)
        down, right = rows - y, np.abs(columns - x)
        inside = [
            down**2 + right**2 < radius**2,
            np.maximum(np.abs(down), right) < 0.85 * radius,
            (np.abs(down) < radius) & (right < (down + radius) / 2),
        ][rng.integers(3)]
        image[:] = np.where(inside, colour[:, None, None], ground[:, None, None])
    return torch.from_numpy(images)


class Plain(nn.Module):
    """The VAE by hand: the same layers, as torch starts them."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.loc = nn.Linear(64 * 8 * 8, LATENT)
        self.log_scale = nn.Linear(64 * 8 * 8, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 64 * 8 * 8), nn.Unflatten(1, (64, 8, 8)), nn.ReLU(),
            nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
            nn.Conv2d(32, 3, 3, padding=1),
        )  # fmt: skip

    def elbo(self, x):
        """The ELBO of each image in nats, from one draw and the KL in closed form."""
        h = self.encoder(x)
        loc = self.loc(h)
        log_scale = self.log_scale(h)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        error = ((x - self.decoder(z)) / SCALE).square() / 2
        constant = math.log(SCALE) + math.log(2 * math.pi) / 2
        kl = ((2 * log_scale).exp() + loc.square() - 1) / 2 - log_scale
        return -(error + constant).flatten(1).sum(1) - kl.sum(1)


def plain(x, validation, seed, epochs):
    """The hand-written VAE, trained, with its validation ELBO."""
    torch.manual_seed(seed)
    vae = Plain()
    optimizer = torch.optim.Adam(vae.parameters(), LR)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            (-vae.elbo(x[rows]).mean()).backward()
            optimizer.step()
    with torch.no_grad():
        bounds = torch.stack([vae.elbo(validation) for _ in range(DRAWS)]).mean(0)
    return vae, bounds


def pair(x, seed, epochs, family, **fixed):
    """The library's VAE with a likelihood, trained; and the first loss."""
    torch.manual_seed(seed)
    decoder = ConvDecoder(LATENT, SHAPE, [64, 32])
    p = models.VAE(
        default_prior(dist.Normal, LATENT), Conditional(family, decoder, SHAPE, **fixed)
    )
    q = guides.VAE(Conditional(dist.Normal, ConvEncoder(SHAPE, [32, 64]), LATENT))
    options = {"epochs": epochs, "batch_size": BATCH, "lr": LR, "progress": False}
    history = fit(p, q, x, seed=seed, **options)
    return p, q, history.step_losses[0]


def trial(x, validation, seed, epochs):
    """The figures of one seed, and samples."""
    figures = {}
    start = time.perf_counter()
    p, q, first = pair(x, seed, epochs, dist.Normal, scale=SCALE)
    figures["seconds"] = time.perf_counter() - start
    bound = evaluate.elbo(p, q, validation, num_particles=DRAWS, seed=0).elbo
    figures["elbo"] = bound.mean().item()
    figures["elbo, standard error"] = bound.std().item() / len(bound) ** 0.5
    figures["first loss"] = first
    rows = [evaluate.sample(p, 12, mean=True, seed=seed)]

    start = time.perf_counter()
    vae, bound = plain(x, validation, seed, epochs)
    figures["plain PyTorch: seconds"] = time.perf_counter() - start
    figures["plain PyTorch: elbo"] = bound.mean().item()
    figures["plain PyTorch: elbo, standard error"] = bound.std().item() / len(bound) ** 0.5
    with torch.no_grad():
        rows.append(vae.decoder(torch.randn(12, LATENT)))

    p, q, first = pair(x, seed, epochs, DiscretizedLogistic)
    bits = evaluate.bits_per_dim((p, q), validation, num_particles=50, seed=0)
    figures["discretized logistic: bits per dimension"] = bits.mean
    figures["discretized logistic: bits, standard error"] = bits.standard_error
    figures["discretized logistic: first loss"] = first
    rows.append(evaluate.sample(p, 12, mean=True, seed=seed))
    return {name: round(value, 3) for name, value in figures.items()}, rows


def sheet(rows):
    """Images in rows, as one image."""
    from PIL import Image

    framed = [nn.functional.pad(row.clamp(0, 1), (1, 1, 1, 1), value=1.0) for row in rows]
    lines = torch.cat([torch.cat([*row], -1) for row in framed], -2)
    pixels = (lines.permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(pixels).resize(
        (2 * pixels.shape[1], 2 * pixels.shape[0]), Image.Resampling.NEAREST
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many starts (default: 3)")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    images = shapes(500, seed=0)
    held_out = shapes(100, seed=1)
    x = images.float() / 255
    validation = held_out.float() / 255

    name = "colour_images"
    if arguments.epochs != 25:
        name += f"_{arguments.epochs}epochs"
    report = {
        "images": 500,
        "validation images": 100,
        "epochs": arguments.epochs,
        "torch": torch.__version__,
        "seeds": {},
    }
    for seed in range(arguments.seeds):
        report["seeds"][seed], rows = trial(x, validation, seed, arguments.epochs)
        print(seed, json.dumps(report["seeds"][seed], indent=1), flush=True)
        if seed == 0:
            arguments.out.mkdir(parents=True, exist_ok=True)
            sheet([validation[:12], *rows]).save(arguments.out / f"{name}.png")
    (arguments.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
