"""Polyphonic music by a variational recurrent network, trained by the ELBO, IWAE or FIVO
(Maddison et al. 2017).

    # 20 initial weights: minutes on one core
    TARSPYRO_DATA=... python benchmarks/vrnn_music.py untrained
    # 200 epochs of JSB chorales
    TARSPYRO_DATA=... python benchmarks/vrnn_music.py fivo --record
    # 2,000 epochs
    TARSPYRO_DATA=... python benchmarks/vrnn_music.py fivo --full --record

The authors' set-up: an LSTM of 32 units, z of 32 dimensions, networks of one hidden layer of
32 ReLU, features of x (less the training mean, where the recurrence reads it) and of z by
networks of their own, 88 Bernoullis whose bias is the training mean's, scales softplus(a +
0.25), and a guide that sees x_t and h and whose mean is the prior's plus its own. Weights
start as Glorot and Bengio (2010) draw them. The one difference: their recurrence makes a step
on zeros before the first, ours starts at zero, which is the same before training.

All sequences at their full length; Adam, whose rate falls to 0 over the second half; the
weights are those of the epoch with the best bound on the validation part. Bounds are in nats
for each step: that of each sequence, summed, and divided by the steps of all of them.
References: the printed values of the authors' code before training, with 4 particles; and
Table 1 of the VSMC-PRC paper, which repeated the experiment with 5 and 8 particles (JSB and
Nottingham).
"""

import argparse
import json
import math
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import AffineTransform, ComposeTransform, SoftplusTransform

from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.data import polyphonic_music
from tarspyro.infer import ELBO, FIVO, IWAE, Compiled
from tarspyro.nn import MLP, Recurrence

UNTRAINED = {"elbo": -12.199, "iwae": -11.981, "fivo": -11.580}
REPEATED = {
    ("jsb_chorales", 5): {"elbo": -8.69, "iwae": -8.01, "fivo": -7.51},
    ("jsb_chorales", 8): {"elbo": -8.69, "iwae": -8.32, "fivo": -7.40},
    ("nottingham", 5): {"elbo": -3.87, "iwae": -3.12, "fivo": -3.07},
    ("nottingham", 8): {"elbo": -3.87, "iwae": -3.87, "fivo": -2.99},
}
SIZES = {"jsb_chorales": 32, "nottingham": 64}
BOUNDS = {"elbo": ELBO, "iwae": IWAE, "fivo": FIVO}
NOTES = 88


class Features(nn.Module):
    """A network whose first input is replaced by features of it."""

    def __init__(self, features, network):
        super().__init__()
        self.features = features
        self.network = network
        self.in_shapes = ((features[0].in_features,), *network.in_shapes[1:])
        self.out_features = network.out_features

    def forward(self, first, *others):
        return self.network(self.features(first), *others)


class Both(nn.Module):
    """Features of x, less its mean, and of z, side by side."""

    def __init__(self, of_x, of_z, mean):
        super().__init__()
        self.of_x = of_x
        self.of_z = of_z
        self.register_buffer("mean", mean)
        self.in_shapes = ((of_x[0].in_features,), (of_z[0].in_features,))

    def forward(self, x, z):
        return torch.cat([self.of_x(x - self.mean), self.of_z(z)], -1)


class Residual(nn.Module):
    """A Normal whose mean is that of the prior and a correction."""

    def __init__(self, prior, correction):
        super().__init__()
        self.prior = prior
        self.correction = correction

    def forward(self, x, h):
        prior = self.prior(h).base_dist
        own = self.correction(x, h).base_dist
        return dist.Normal(prior.loc + own.loc, own.scale).to_event(1)


def pair(mean, size):
    of_x, of_z = (
        nn.Sequential(nn.Linear(inputs, size), nn.ReLU(), nn.Linear(size, size))
        for inputs in (NOTES, size)
    )
    scale = {"scale": ComposeTransform([AffineTransform(0.25, 1.0), SoftplusTransform()])}
    cell = Recurrence(nn.LSTMCell(2 * size, size), Both(of_x, of_z, mean))
    prior = Conditional(dist.Normal, MLP(size, [size]), size, transforms=scale)
    likelihood = Conditional(dist.Bernoulli, Features(of_z, MLP([size, size], [size])), NOTES)
    correction = Conditional(
        dist.Normal, Features(of_x, MLP([size, size], [size])), size, transforms=scale
    )
    p = models.VRNN(cell, prior, likelihood)
    q = guides.VRNN(cell, Residual(prior, correction))
    with torch.no_grad():
        for layer in [*p.modules(), *q.modules()]:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.LSTMCell):
                bound = math.sqrt(6 / (layer.input_size + 5 * layer.hidden_size))
                for name, parameter in layer.named_parameters():
                    nn.init.zeros_(parameter) if "bias" in name else nn.init.uniform_(
                        parameter, -bound, bound
                    )
                layer.bias_ih[size : 2 * size] = 1.0  # the forget gate
        likelihood.heads["logits"].bias.copy_(torch.logit(mean, 1e-4))
    return p, q


def bounds(p, q, part, particles):
    """The three bounds in nats a step, with their standard errors over sequences."""
    row = {}
    for name, (count, threshold) in {
        "elbo": (1, 0.0),
        "iwae": (particles, 0.0),
        "fivo": (particles, 0.5),
    }.items():
        found = evaluate.particle_filter(
            p, q, part, num_particles=count, threshold=threshold, seed=0
        ).log_likelihood
        steps = part.lengths.to(found.dtype)
        total = found.sum() / steps.sum()
        error = (found - total * steps).std() * len(found) ** 0.5 / steps.sum()
        row[name] = {
            "nats a step": round(total.item(), 3),
            "standard error": round(error.item(), 3),
        }
        row[name]["nats a sequence"] = round(found.mean().item(), 2)
    return row


def untrained(arguments, music):
    rows = []
    for seed in range(arguments.seeds):
        torch.manual_seed(seed)
        p, q = pair(music.train.mean(), SIZES[arguments.data])
        rows.append(bounds(p, q, music.test[: arguments.rows], 4))
    found = {
        name: torch.tensor([row[name]["nats a step"] for row in rows]) for name in UNTRAINED
    }
    return {
        "initial weights": len(rows),
        "particles": 4,
        "mean": {name: round(values.mean().item(), 3) for name, values in found.items()},
        "lowest": {name: round(values.min().item(), 3) for name, values in found.items()},
        "highest": {name: round(values.max().item(), 3) for name, values in found.items()},
        "the authors' code": UNTRAINED,
    }


def trained(arguments, music):
    parts = {
        name: getattr(music, name)[: arguments.rows]
        for name in ("train", "validation", "test")
    }
    p, q = pair(music.train.mean(), SIZES[arguments.data])
    # Compiled steps are made for each shape: few of them.
    multiple = 32 if arguments.compile or arguments.record else 1
    batches = {
        name: part.batches(arguments.batch_size, multiple_of=multiple)
        for name, part in parts.items()
    }
    batches["validation"].shuffle = False
    total = len(batches["train"]) * arguments.epochs
    loss = BOUNDS[arguments.bound](num_particles=arguments.particles)
    history = fit(
        p,
        q,
        batches["train"],
        loss=Compiled(loss, backend="eager") if arguments.record else loss,
        validation=batches["validation"],
        epochs=arguments.epochs,
        lr=arguments.rate,
        schedules={"lr": lambda step: arguments.rate * min(1.0, 2 - 2 * step / total)},
        seed=arguments.seed,
        device=arguments.device,
        compile=arguments.compile,
    )
    steps_of = {name: part.steps / len(part) for name, part in parts.items()}
    kept = range(0, len(history), max(1, len(history) // 200))
    return {
        "data": arguments.data,
        "bound": arguments.bound,
        "particles": arguments.particles,
        "epochs": arguments.epochs,
        "steps": history.rows[-1]["steps"],
        "best epoch": history.best_epoch,
        "test, as many particles": bounds(p, q, parts["test"], arguments.particles),
        "test, 128 particles": bounds(p, q, parts["test"], 128),
        "repeated experiment": REPEATED.get((arguments.data, arguments.particles)),
        "seconds of training": round(sum(history["seconds"]), 1),
        "curves, nats a step": {
            "epoch": [1 + index for index in kept],
            "training": [
                round(-history["loss"][index] / steps_of["train"], 3) for index in kept
            ],
            "validation": [
                round(-history["validation_loss"][index] / steps_of["validation"], 3)
                for index in kept
            ],
        },
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bound", choices=["untrained", *BOUNDS])
    parser.add_argument("--data", choices=list(SIZES), default="jsb_chorales")
    parser.add_argument("--particles", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="200 if not given")
    parser.add_argument("--full", action="store_true", help="2,000 epochs")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3, help="the learning rate at first")
    parser.add_argument("--seeds", type=int, default=20, help="how many initial weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the steps, minutes for each of their lengths",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="record the steps, and run them without a compiler",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--rows",
        type=int,
        help="so many sequences of each part only, to try it; no results are written",
    )
    arguments = parser.parse_args()
    if arguments.epochs is None:
        arguments.epochs = 2000 if arguments.full else 200
    torch.manual_seed(arguments.seed)
    row = (untrained if arguments.bound == "untrained" else trained)(
        arguments, polyphonic_music(arguments.data)
    )
    print(
        json.dumps(
            {name: value for name, value in row.items() if not name.startswith("curves")},
            indent=1,
        )
    )
    if arguments.rows is not None:
        return
    name = f"vrnn_{arguments.data}_{arguments.bound}"
    if arguments.bound != "untrained":
        name += f"_{arguments.particles}" + (
            f"_{arguments.epochs}epochs" if arguments.epochs != 200 else ""
        )
    if arguments.seed:
        name += f"_seed{arguments.seed}"
    report = {
        "seed": arguments.seed,
        "compile": arguments.compile,
        "torch": torch.__version__,
        **row,
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
