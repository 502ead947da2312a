"""Discrete latent variables on MNIST, in Jang et al.'s set-up: affine encoder and decoder, pixels
binarized once. Gradient estimators at equal time.

    TARSPYRO_DATA=... python benchmarks/discrete_vae.py categorical   (20 x 10 classes)
    TARSPYRO_DATA=... python benchmarks/discrete_vae.py bernoulli     (200 binary units)

One layer of latent variables with a learned prior (Jang et al. 2016, arXiv:1611.01144, section
4.2; ``--prior uniform`` for another one). Their test figures are 101.5 nats for the categorical
and 105.0 for the binary layer, 107.8 and 111.5 with straight-through draws: minus the bound
with 1,000 samples of the *discrete* model. The same is computed here: the trained networks with
one-hot draws, scored by their probabilities. The report of ``gumbel-softmax`` also has the mean
weight of 1,000 relaxed samples, scored by the discrete probabilities. It bounds nothing.

``--estimator`` chooses the gradient:

- ``gumbel-softmax``: relaxed draws, and the KL between the discrete variables;
- ``straight-through``: hard draws with the gradient of the relaxed ones;
- ``gumbel-rao``: the same with the mean of ten relaxed draws;
- ``leave-one-out``: the score function, with the mean of the other particles as baseline;
- ``disarm``: antithetic pairs of particles;
- ``vimco``: the score function of the ``IWAE`` bound.

``--bound iwae`` trains the relaxed estimators on the ``IWAE`` bound too. The temperature is
max(floor, exp(-decay t)), changed every 1,000 steps.

The learning rate falls to 0 over the second half of the steps. The report has the CPU time of a
step, of the fastest 20 steps: on a shared machine others make a step up to three times slower.
For equal time, give each estimator ``--steps`` in inverse proportion to it. ``--validation``
trains on 50,000 images and reports the other 10,000, for the choice of options. Results are
written to ``benchmarks/results/``.

Differences from the paper: Adam instead of SGD with momentum 0.9 and a learning rate from a
grid, the encoder's pixels centred, and a binarization drawn here (a fixed seed).
"""

import argparse
import json
import math
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import (
    Conditional,
    Optimizer,
    data,
    evaluate,
    fit,
    guides,
    initialize_from_data,
    models,
)
from tarspyro.distributions import GumbelSigmoid, GumbelSoftmax, Prior, default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP, Standardize

# The relaxed and the discrete family of each layer, and the shape of a draw.
LAYERS = {
    "categorical": (GumbelSoftmax, dist.OneHotCategorical, (20, 10)),
    "bernoulli": (GumbelSigmoid, dist.Bernoulli, (200,)),
}
PUBLISHED = {
    "categorical": {
        "score function": 110.6,
        "MuProp": 107.0,
        "Gumbel-softmax": 101.5,
        "straight-through": 107.8,
    },
    "bernoulli": {
        "score function": 112.2,
        "MuProp": 109.7,
        "Gumbel-softmax": 105.0,
        "straight-through": 111.5,
    },
}
# The rules of the relaxed draws of each estimator; None stands for discrete draws.
ESTIMATORS = {
    "gumbel-softmax": {"score": "discrete"},
    "straight-through": {"hard": True},
    "gumbel-rao": {"hard": True, "rao_blackwell": 10},
    "leave-one-out": None,
    "disarm": None,
    "vimco": None,
}
BATCH = 100


def pair(layer, rules, prior, mean):
    """The model and the guide, of relaxed draws with some rules or of discrete ones."""
    relaxed, discrete, shape = LAYERS[layer]
    family = discrete if rules is None else relaxed
    options = {} if rules is None else {"temperature": 1.0, **rules}
    make_prior = Prior if prior == "learned" else default_prior
    likelihood = Conditional(dist.Bernoulli, MLP(shape, []), 784, validate_args=False)
    # An affine encoder of centred pixels is an affine encoder.
    encoder = nn.Sequential(Standardize(mean, 1.0), MLP(784, []))
    return (
        models.VAE(make_prior(family, shape, **options), likelihood),
        guides.VAE(Conditional(family, encoder, shape, **options)),
    )


def loss_of(arguments):
    if arguments.estimator == "disarm":
        return ELBO(arguments.particles, gradient="disarm")
    if arguments.estimator == "vimco" or arguments.bound == "iwae":
        return IWAE(arguments.particles)
    return ELBO(arguments.particles)


class Batches:
    """Batches of shuffled rows, with a clock of the process's own CPU time.

    Attributes:
        step: The number of the step that is done now.
        clock: The CPU seconds at every 20th step.
    """

    def __init__(self, x, steps):
        self.x = x
        self.steps = steps
        self.step = 0
        self.clock = []

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        self.clock.clear()
        self.step = 0
        while True:
            for rows in torch.randperm(len(self.x), generator=generator).split(BATCH):
                if self.step % 20 == 0:
                    self.clock.append(time.process_time())
                if self.step == self.steps:
                    return
                yield self.x[rows]
                self.step += 1

    def milliseconds_per_step(self):
        """The CPU time of a step, in the fastest 20: other processes make steps slower."""
        times = torch.tensor(self.clock, dtype=torch.float64).diff()
        return 1000 * times.min().item() / 20


def black_and_white(validation):
    """The training and the held-out images, the same black and white ones in every run."""
    mnist = data.mnist(validation=0)
    generator = torch.Generator().manual_seed(0)
    train, test = (
        torch.bernoulli(part.x, generator=generator) for part in (mnist.train, mnist.test)
    )
    return (train[:-10_000], train[-10_000:]) if validation else (train, test)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layer", choices=LAYERS)
    parser.add_argument("--estimator", choices=ESTIMATORS, default="gumbel-softmax")
    parser.add_argument("--bound", choices=["elbo", "iwae"], default="elbo")
    parser.add_argument("--particles", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--optimizer", choices=["Adam", "SGD"], default="Adam")
    parser.add_argument("--prior", choices=["learned", "uniform"], default="learned")
    parser.add_argument("--floor", type=float, default=0.5, help="the lowest temperature")
    parser.add_argument("--decay", type=float, default=1e-4, help="that of the temperature")
    parser.add_argument("--validation", action="store_true", help="report validation images")
    parser.add_argument(
        "--images", type=int, default=10_000, help="how many are reported, evenly spread"
    )
    parser.add_argument("--rows", help="a file for log p of each image, a tensor")
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", help="the name of the file of results; default: by options")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train, held_out = black_and_white(arguments.validation)
    held_out = held_out[:: len(held_out) // arguments.images]

    rules = ESTIMATORS[arguments.estimator]
    mean = train.mean(0)
    model, guide = pair(arguments.layer, rules, arguments.prior, mean)
    initialize_from_data(model, guide, train)
    batches = Batches(train, arguments.steps)

    def temperature(step):
        return max(arguments.floor, math.exp(-arguments.decay * (step - step % 1000)))

    schedules = {"lr": lambda step: arguments.lr * min(1.0, 2 * (1 - step / arguments.steps))}
    if rules is not None:
        schedules["temperature"] = temperature
    momentum = {"momentum": 0.9} if arguments.optimizer == "SGD" else {}
    history = fit(
        model,
        guide,
        batches,
        loss=loss_of(arguments),
        optimizer=Optimizer(getattr(torch.optim, arguments.optimizer), **momentum),
        epochs=1,
        schedules=schedules,
        seed=arguments.seed,
        device=arguments.device,
        compile=arguments.compile,
        progress=False,
    )

    # The discrete model that the relaxed one was trained for.
    discrete = pair(
        arguments.layer, None if rules is None else {"hard": True}, arguments.prior, mean
    )
    for half, trained in zip(discrete, (model, guide), strict=True):
        half.load_state_dict(trained.state_dict())
    bound = evaluate.log_likelihood(*discrete, held_out, num_particles=1000, seed=0)
    if arguments.rows:
        torch.save(bound, arguments.rows)
    single = evaluate.elbo(*discrete, held_out, seed=0)
    relaxed = {}
    if arguments.estimator == "gumbel-softmax":
        values = evaluate.log_likelihood(model, guide, held_out, num_particles=1000, seed=0)
        relaxed["the same of relaxed samples, which is no bound"] = round(
            -values.mean().item(), 2
        )
    report = {
        **{
            name: value
            for name, value in vars(arguments).items()
            if name not in ("rows", "name")
        },
        "minus log p with 1,000 samples": round(-bound.mean().item(), 2),
        "standard error over images": round(bound.std().item() / len(bound) ** 0.5, 2),
        **relaxed,
        "minus elbo": round(-(single.reconstruction - single.kl).mean().item(), 2),
        "kl": round(single.kl.mean().item(), 2),
        "loss, mean of all steps": round(history["loss"][-1], 2),
        "cpu milliseconds per step, fastest": round(batches.milliseconds_per_step(), 2),
        "cpu seconds of training": round(batches.clock[-1] - batches.clock[0], 1),
        "published": PUBLISHED[arguments.layer],
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=1))
    variant = "_iwae" if arguments.bound == "iwae" else ""
    variant += "_uniform" if arguments.prior == "uniform" else ""
    name = arguments.name or f"discrete_{arguments.layer}_{arguments.estimator}{variant}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
