"""Discrete latent variables on MNIST, in Jang et al.'s set-up: linear 784-200-784, pixels
binarized once.

    TARSPYRO_DATA=... python benchmarks/discrete_vae.py categorical   (20 x 10 classes)
    TARSPYRO_DATA=... python benchmarks/discrete_vae.py bernoulli     (200 binary units)

One layer of latent variables, an affine encoder and an affine decoder, trained with
Gumbel-softmax draws at the temperature max(0.5, exp(-r t)), r = 1e-4, changed every 1,000
steps, and the KL between the discrete variables (Jang et al. 2016, arXiv:1611.01144, section
4.2). Their test figures are 101.5 nats for the categorical and 105.0 for the binary layer,
107.8 and 111.5 with straight-through draws (``--hard``): minus the bound with 1,000 samples of
the *discrete* model. The same is computed here: the trained networks with one-hot draws,
scored by their probabilities.

The default is the short form, 100 epochs (60,000 steps); ``--epochs 800`` is about the length
of theirs. Differences: Adam instead of SGD with momentum from a grid, and a binarization drawn
here (a fixed seed). The learning rate falls to 0 over the second half. Results are written to
``benchmarks/results/``.
"""

import argparse
import json
import math
from pathlib import Path

import pyro.distributions as dist
import torch

from tarspyro import Conditional, data, evaluate, fit, guides, models
from tarspyro.distributions import GumbelSigmoid, GumbelSoftmax, default_prior
from tarspyro.nn import MLP

LAYERS = {"categorical": (GumbelSoftmax, (20, 10)), "bernoulli": (GumbelSigmoid, (200,))}
PUBLISHED = {
    "categorical": {"Gumbel-softmax": 101.5, "straight-through": 107.8},
    "bernoulli": {"Gumbel-softmax": 105.0, "straight-through": 111.5},
}
BATCH = 100


def pair(layer, hard):
    """The model and the guide; hard ones share their parameters' names with soft ones."""
    family, shape = LAYERS[layer]
    rules = {"hard": hard, "score": "discrete"}
    model = models.VAE(
        default_prior(family, shape, **rules),
        Conditional(dist.Bernoulli, MLP(shape, []), 784, validate_args=False),
    )
    return model, guides.VAE(Conditional(family, MLP(784, []), shape, **rules))


def discrete(layer, model, guide):
    """The discrete model that the relaxed one was trained for."""
    hard = pair(layer, True)
    for half, trained in zip(hard, (model, guide), strict=True):
        half.load_state_dict(trained.state_dict())
    return hard


def temperature(step):
    return max(0.5, math.exp(-1e-4 * (step - step % 1000)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layer", choices=LAYERS)
    parser.add_argument(
        "--hard", action="store_true", help="straight-through draws in training"
    )
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--test", type=int, default=10_000, help="how many test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    mnist = data.mnist(validation=0)
    # Once, with its own seed: the same black and white images in every run.
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.bernoulli(part.x, generator=generator) for part in (mnist.train, mnist.test)
    )
    model, guide = pair(arguments.layer, arguments.hard)
    total = arguments.epochs * math.ceil(len(train) / BATCH)
    history = fit(
        model,
        guide,
        train,
        epochs=arguments.epochs,
        batch_size=BATCH,
        schedules={
            "temperature": temperature,
            "lr": lambda step: arguments.lr * min(1.0, 2 * (1 - step / total)),
        },
        seed=arguments.seed,
        device=arguments.device,
    )
    held_out = test[: arguments.test]
    hard_model, hard_guide = discrete(arguments.layer, model, guide)
    bound = evaluate.log_likelihood(
        hard_model, hard_guide, held_out, num_particles=1000, seed=0
    )
    single = evaluate.elbo(hard_model, hard_guide, held_out, seed=0)
    report = {
        "layer": arguments.layer,
        "straight-through": arguments.hard,
        "epochs": arguments.epochs,
        "learning rate": arguments.lr,
        "train, relaxed elbo": round(history["elbo"][-1], 2),
        "test, minus log p with 1,000 samples": round(-bound.mean().item(), 2),
        "standard error over images": round(bound.std().item() / len(bound) ** 0.5, 2),
        "test images": len(held_out),
        "test, minus elbo": round(-(single.reconstruction - single.kl).mean().item(), 2),
        "published": PUBLISHED[arguments.layer][
            "straight-through" if arguments.hard else "Gumbel-softmax"
        ],
        "seconds of training": round(sum(history["seconds"]), 1),
        "seed": arguments.seed,
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=1))
    variant = ("_hard" if arguments.hard else "") + (
        f"_{arguments.epochs}" if arguments.epochs != 100 else ""
    )
    path = Path(__file__).parent / "results" / f"discrete_{arguments.layer}{variant}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
