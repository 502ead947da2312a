"""The convolutional VAE that PyMC3's documentation shows: two latents, Normal likelihood with
sd 0.1, on MNIST.

    TARSPYRO_DATA=... python benchmarks/pymc3_convvae.py [--steps 10000]

Batches of 64 rows drawn with replacement from the 60,000 training images, grey, in [0, 1];
Adam with learning rate 1e-4; 10,000 steps. PyMC3 printed an average loss of 2.8459e7 over the
last steps, which is 474 nats of minus ELBO per image. The networks are plain torch modules:
convolutions 3x3 - 1x1 - 3x3 with 64 channels and a layer of 128 units, and the decoder's
mirror image with a sigmoid. The first layer halves the image (the strides are not stated
there).

Leaves the figures in ``benchmarks/results/`` and the pictures (manifold, test scatter, loss)
in ``--out``.
"""

import argparse
import json
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import SigmoidTransform, SoftplusTransform

from tarspyro import Conditional, data, evaluate, fit, guides, models, plot
from tarspyro.distributions import default_prior


class Decoder(nn.Module):
    """Latents to a map of features on the grid of 28x28 pixels."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 64 * 14 * 14), nn.ReLU(),
            nn.Unflatten(1, (64, 14, 14)),
            nn.ConvTranspose2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, z):
        return self.layers(z)

    def head(self, shape):
        """The last layer, from the map of features to a parameter of the image."""
        return nn.ConvTranspose2d(64, shape[0], 3, stride=2, padding=1, output_padding=1)


class Minibatches:
    """So many batches of rows drawn with replacement."""

    def __init__(self, x, batch_size, steps):
        self.x = x
        self.batch_size = batch_size
        self.steps = steps

    def __len__(self):
        return self.steps

    def __iter__(self):
        for _ in range(self.steps):
            yield self.x[torch.randint(len(self.x), (self.batch_size,))]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    mnist = data.mnist(validation=0, flatten=False)
    encoder = nn.Sequential(
        nn.Conv2d(1, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128), nn.ReLU(),
    )  # fmt: skip
    pixels = Conditional(
        dist.Normal, Decoder(), (1, 28, 28), scale=0.1, transforms={"loc": SigmoidTransform()}
    )
    model = models.VAE(default_prior(dist.Normal, 2), pixels)
    guide = guides.VAE(
        Conditional(dist.Normal, encoder, 2, transforms={"scale": SoftplusTransform()})
    )
    history = fit(
        model,
        guide,
        Minibatches(mnist.train.x, 64, arguments.steps // 100),
        epochs=100,
        lr=1e-4,
        seed=arguments.seed,
        device=arguments.device,
    )
    bound = evaluate.elbo(model, guide, mnist.test, num_particles=10, seed=0)
    report = {
        "steps": len(history.step_losses),
        "minus ELBO, mean of the last 1000 steps": round(
            sum(history.step_losses[-1000:]) / 1000, 1
        ),
        "PyMC3": 474,
        "test minus ELBO": round(-bound.elbo.mean().item(), 1),
        "test KL": round(bound.kl.mean().item(), 2),
        "seconds of training": round(sum(history["seconds"]), 1),
        "seed": arguments.seed,
        "torch": torch.__version__,
    }
    print(report)
    (Path(__file__).parent / "results" / "pymc3_convvae.json").write_text(
        json.dumps(report, indent=1) + "\n"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, figure in {
        "manifold": plot.manifold(model, num=16, extent=2.0),
        "latents": plot.latents(guide, mnist.test),
        "loss": plot.curves(history, names=["loss"]),
    }.items():
        figure.savefig(arguments.out / f"pymc3_convvae_{name}.png", dpi=80)


if __name__ == "__main__":
    main()
