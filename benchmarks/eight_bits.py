"""8-bit images: bits per dimension of a PixelCNN, a VAE and a PixelVAE.

    TARSPYRO_DATA=... python benchmarks/eight_bits.py frey    # Frey Face, 28 x 20
    python benchmarks/eight_bits.py shapes                    # colour images, 32 x 32

Frey Face has 1,769 frames to train on and 196 to test; the colour images are the 500 and 100 of
``colour_images.py``. All have a mixture of five discretized logistic distributions for each
pixel and channel. The PixelCNN has five gated layers of 16 channels with a first window of 7 x
7; the VAE 16 latent variables and convolutions of 32 and 64 channels; the PixelVAE the VAE's
networks and two gated layers of 16 channels. Adam with batches of 20 and as many epochs for
each. The PixelCNN's figure is exact, the others are bounds from 100 draws. A uniform
distribution of the 256 levels has 8 bits.
"""

import argparse
import json
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from colour_images import shapes

from tarspyro import Autoregressive, Conditional, data, evaluate, fit, guides, models
from tarspyro.distributions import DiscretizedLogisticMixture, default_prior
from tarspyro.nn import ConvDecoder, ConvEncoder, PixelCNN

LATENT = 16
EPOCHS = {"frey": 40, "shapes": 60}
RATES = {"pixelcnn": 3e-3, "vae": 1e-3, "pixel-vae": 1e-3}


def images(name):
    """Training and test images in [0, 1], multiples of 1/255."""
    if name == "shapes":
        return shapes(500, seed=0).float() / 255, shapes(100, seed=1).float() / 255
    frey = data.frey_face(flatten=False)
    return frey.train.x, frey.test.x


def pair(method, shape):
    if method == "pixelcnn":
        trunk = PixelCNN(shape, 16, 5, kernel_size=[7, 3, 3, 3, 3], gated=True)
        return models.Density(Autoregressive(DiscretizedLogisticMixture, trunk, shape)), None
    decoder = ConvDecoder(LATENT, shape, [64, 32])
    if method == "vae":
        likelihood = Conditional(DiscretizedLogisticMixture, decoder, shape)
    else:
        trunk = PixelCNN(shape, 16, 2, gated=True, context=decoder)
        likelihood = Autoregressive(DiscretizedLogisticMixture, trunk, shape)
    encoder = ConvEncoder(shape, [32, 64])
    p = models.VAE(default_prior(dist.Normal, LATENT), likelihood)
    return p, guides.VAE(Conditional(dist.Normal, encoder, LATENT))


def trial(method, train, test, epochs, seed):
    torch.manual_seed(seed)
    p, q = pair(method, tuple(train.shape[1:]))
    start = time.perf_counter()
    fit(p, q, train, epochs=epochs, batch_size=20, lr=RATES[method], seed=seed)
    seconds = time.perf_counter() - start
    found = {"seconds": round(seconds, 1)}
    for name, part in {"test": test, "training": train[:100]}.items():
        bits = evaluate.bits_per_dim((p, q), part, num_particles=100, seed=0)
        found[f"{name}, bits per dimension"] = round(bits.mean, 4)
        found[f"{name}, standard error"] = round(bits.standard_error, 4)
    if q is not None:
        found["KL"] = round(evaluate.elbo(p, q, test, seed=0).kl.mean().item(), 2)
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=EPOCHS)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--method", choices=RATES, action="append", help="one, or all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    train, test = images(arguments.data)
    epochs = arguments.epochs or EPOCHS[arguments.data]
    report = {"images": [len(train), len(test)], "epochs": epochs, "torch": torch.__version__}
    for method in arguments.method or RATES:
        report[method] = trial(method, train, test, epochs, arguments.seed)
        print(method, json.dumps(report[method]), flush=True)
    name = f"eight_bits_{arguments.data}.json"
    out = arguments.out or Path(__file__).parent / "results" / name
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
