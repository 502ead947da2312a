"""MNIST given its labels, in Tars' set-up; and given one, two or three of its quadrants, as
Sohn et al. (2015) do.

    # 1 epoch: half a minute on one core
    TARSPYRO_DATA=... python benchmarks/conditional_vae.py labels
    TARSPYRO_DATA=... python benchmarks/conditional_vae.py labels --epochs 20 --compile
    # 50 epochs: 20 minutes on one core
    TARSPYRO_DATA=... python benchmarks/conditional_vae.py quadrants --given 1
    # 300 epochs
    TARSPYRO_DATA=... python benchmarks/conditional_vae.py quadrants --given 1 --full --compile
    # with the importance weighted bound of 10 draws in place of the ELBO
    TARSPYRO_DATA=... python benchmarks/conditional_vae.py quadrants --given 1 --particles 10

Grey pixels under a Bernoulli (a cross-entropy), 50,000 training images, batches of 100, Adam.

labels: 784-512-512-64 ReLU, the one-hot label beside the input of both networks, prior N(0,
I). Tars (Theano) printed a test log-likelihood, importance weighted with k = 10, of -106.34
after epoch 1.

quadrants: the given pixels are the condition y, the missing ones x. A baseline network y -> x,
500-500 ReLU, is trained first and then held still; its prediction is a further input of the
prior and the recognition network. All of these and the generation network p(x | z, y) have
500-500 ReLU, and z has 50 dimensions. The weights are those of the epoch that does best on the
10,000 validation images; the learning rate falls from 1e-3 to 0 over the second half. The
figure is minus log p(x | y) of the missing pixels, by importance sampling with 100 draws;
beside it the paper's Monte Carlo estimate, with 100 draws from the prior network. References:
Sohn et al., test; and Pyro's tutorial, whose figure is minus an ELBO (200 latents, 50 epochs
at most).
"""

import argparse
import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional, StochasticModule, data, evaluate, fit, guides, models
from tarspyro.data import Split, quadrants
from tarspyro.distributions import default_prior
from tarspyro.infer import IWAE
from tarspyro.nn import MLP

TARS = {1: -106.34}
# Minus log p(x | y) on the test images: of the baseline, by Monte Carlo, by importance
# sampling; and Pyro's tutorial.
PAPER = {1: (99.75, 68.39, 63.91), 2: (62.18, 45.34, 44.73), 3: (25.99, 20.96, 20.95)}
PYRO = {1: (100.4, 71.8), 2: (61.9, 51.0), 3: (25.4, 24.2)}
LATENT = 50
HIDDEN = [500, 500]


class Baseline(StochasticModule):
    """A network that predicts x from y, without a latent variable."""

    factors = {"likelihood": "x | y"}

    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, x=None, y=None):
        with pyro.plate("data", len(y)):
            return pyro.sample("x", self.likelihood(y), obs=x)


class WithPrediction(nn.Module):
    """A network whose further input is what the baseline predicts from y, its last input."""

    def __init__(self, baseline, network):
        super().__init__()
        self.baseline = baseline.requires_grad_(False)
        self.network = network
        self.in_shapes = network.in_shapes[:-1]
        self.out_features = network.out_features

    def forward(self, *inputs):
        return self.network(*inputs, self.baseline(inputs[-1]).mean)


def nothing(x, y):
    """The guide of a model without latent variables."""


def label_pair():
    p = models.ConditionalVAE(
        default_prior(dist.Normal, 64),
        Conditional(dist.Bernoulli, MLP([64, 10], [512, 512]), 784, validate_args=False),
    )
    return p, guides.ConditionalVAE(Conditional(dist.Normal, MLP([784, 10], [512, 512]), 64))


def quadrant_pair(baseline, missing, given):
    prior = WithPrediction(baseline, MLP([given, missing], HIDDEN))
    recognition = WithPrediction(baseline, MLP([missing, given, missing], HIDDEN))
    generation = MLP([LATENT, given], HIDDEN)
    p = models.ConditionalVAE(
        Conditional(dist.Normal, prior, LATENT),
        Conditional(dist.Bernoulli, generation, missing, validate_args=False),
    )
    return p, guides.ConditionalVAE(Conditional(dist.Normal, recognition, LATENT))


def labels(arguments, mnist):
    mnist = mnist.one_hot()
    p, q = label_pair()
    history = fit(
        p,
        q,
        mnist.train[: arguments.rows],
        epochs=arguments.epochs,
        seed=arguments.seed,
        device=arguments.device,
        compile=arguments.compile,
    )
    test = mnist.test[: arguments.rows]
    score = evaluate.conditional_log_likelihood(p, q, test.x, test.y, num_particles=10, seed=0)
    return {
        "epochs": arguments.epochs,
        "train elbo": round(history["elbo"][-1], 2),
        "test log p(x | y), k = 10": mean(score),
        "standard error over images": error(score),
        "test reconstruction": mean(evaluate.reconstruction(p, q, test, seed=0)),
        "tars": TARS.get(arguments.epochs),
        "seconds of training": round(sum(history["seconds"]), 1),
    }


def completion(arguments, mnist):
    train, validation, test = (
        Split(*quadrants(part.x[: arguments.rows], arguments.given))
        for part in (mnist.train, mnist.validation, mnist.test)
    )
    missing = train.x.shape[1]
    given = train.y.shape[1]

    def trained(model, guide, loss=None):
        batches = -(-len(train) // 100)
        return fit(
            model,
            guide,
            train,
            validation=validation,
            loss=loss,
            epochs=arguments.epochs,
            schedules={
                "lr": lambda step: 1e-3 * min(1.0, 2 - 2 * step / (batches * arguments.epochs))
            },
            seed=arguments.seed,
            device=arguments.device,
            compile=arguments.compile,
        )

    baseline = Baseline(
        Conditional(dist.Bernoulli, MLP(given, HIDDEN), missing, validate_args=False)
    )
    seconds = sum(trained(baseline, nothing)["seconds"])
    alone = -baseline.likelihood.log_prob(test.x.numpy(), test.y.numpy()).mean()
    p, q = quadrant_pair(baseline.likelihood, missing, given)
    history = trained(p, q, IWAE(arguments.particles) if arguments.particles > 1 else None)
    row = {
        "given quadrants": arguments.given,
        "particles of the bound": arguments.particles,
        "epochs": arguments.epochs,
        "best epoch": history.best_epoch,
        "baseline": round(float(alone), 2),
    }
    from_prior = guides.ConditionalVAE(lambda x, y: p.prior(y))
    for method, guide in (("importance sampling", q), ("Monte Carlo", from_prior)):
        score = evaluate.conditional_log_likelihood(
            p, guide, test.x, test.y, num_particles=100, seed=0
        )
        row[f"test, {method}"] = -mean(score)
        row[f"test, {method}, standard error over images"] = error(score)
    row["test, minus elbo"] = -mean(evaluate.elbo(p, q, test, seed=0).elbo)
    paper = PAPER[arguments.given]
    pyro_s = PYRO[arguments.given]
    return {
        **row,
        "paper, test": dict(
            zip(("baseline", "Monte Carlo", "importance sampling"), paper, strict=True)
        ),
        "Pyro's tutorial": dict(zip(("baseline", "minus elbo"), pyro_s, strict=True)),
        "seconds of training": round(seconds + sum(history["seconds"]), 1),
    }


def mean(score):
    return round(score.mean().item(), 2)


def error(score):
    return round(score.std().item() / len(score) ** 0.5, 2)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("condition", choices=["labels", "quadrants"])
    parser.add_argument(
        "--given", type=int, choices=[1, 2, 3], default=1, help="how many quadrants are given"
    )
    parser.add_argument(
        "--epochs", type=int, help="1 for labels, 50 for quadrants, if not given"
    )
    parser.add_argument("--full", action="store_true", help="300 epochs")
    parser.add_argument(
        "--particles", type=int, default=1, help="draws of the bound: the ELBO, or IWAE"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--rows",
        type=int,
        help="so many rows of each part only, to try it; no results are written",
    )
    arguments = parser.parse_args()
    if arguments.epochs is None:
        arguments.epochs = (
            300 if arguments.full else {"labels": 1, "quadrants": 50}[arguments.condition]
        )
    torch.manual_seed(arguments.seed)
    row = {"labels": labels, "quadrants": completion}[arguments.condition](
        arguments, data.mnist()
    )
    print(json.dumps(row, indent=1))
    if arguments.rows is not None:
        return
    name = f"conditional_vae_{arguments.condition}"
    if arguments.condition == "quadrants":
        name += f"_{arguments.given}"
    if arguments.particles > 1:
        name += f"_iwae{arguments.particles}"
    if arguments.epochs not in (1, 50):
        name += f"_{arguments.epochs}epochs"
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
