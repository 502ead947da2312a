"""MNIST in Tars' set-up: grey pixels, 50,000 training images, 784-512-512-64 ReLU networks,
batches of 100, Adam.

    # 20 epochs: 3 minutes on two CPU cores
    TARSPYRO_DATA=... python benchmarks/mnist_vae.py vae
    # The same, with a falling learning rate
    TARSPYRO_DATA=... python benchmarks/mnist_vae.py vae --decay
    # 10 epochs: 1 minute
    TARSPYRO_DATA=... python benchmarks/mnist_vae.py autoencoder

Tars (Theano) printed for the VAE a test log-likelihood, importance weighted with k = 10, of
-125.6 after epoch 1, -99.86 after 10 and -97.56 after 20; for the autoencoder 57.58 nats of
test reconstruction loss after epoch 10. "Bernoulli on grey pixels" is the cross-entropy of the
grey values, so these numbers do not compare with those of binarized MNIST. The figures are
written to ``benchmarks/results/``.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pyro.distributions as dist
import torch

from tarspyro import Conditional, Deterministic, Run, data, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

TARS = {"vae": {1: -125.55, 10: -99.86, 20: -97.56}, "autoencoder": {1: -76.53, 10: -57.58}}


def pair(method):
    likelihood = Conditional(dist.Bernoulli, MLP(64, [512, 512]), 784, validate_args=False)
    if method == "autoencoder":
        return models.Autoencoder(likelihood, 64), guides.Autoencoder(
            Deterministic(MLP(784, [512, 512]), 64)
        )
    return models.VAE(default_prior(dist.Normal, 64), likelihood), guides.VAE(
        Conditional(dist.Normal, MLP(784, [512, 512]), 64)
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=TARS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--decay",
        action="store_true",
        help="let the learning rate fall to 0 over the second half",
    )
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    mnist = data.mnist()
    model, guide = pair(arguments.method)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for epoch, tars in TARS[arguments.method].items():
            history = fit(
                model,
                guide,
                mnist.train,
                epochs=epoch,
                folder=Run(folder, resume=bool(rows), overwrite=True),
                schedules={
                    "lr": lambda step: (
                        1e-3 * min(1.0, 2 - step / (250 * max(TARS[arguments.method])))
                    )
                }
                if arguments.decay
                else None,
                seed=arguments.seed,
                device=arguments.device,
            )
            if arguments.method == "vae":
                test = evaluate.log_likelihood(
                    model, guide, mnist.test, num_particles=10, seed=0
                )
            else:
                test = evaluate.elbo(model, guide, mnist.test).reconstruction
            error = test.std() / len(test) ** 0.5
            rows.append(
                {
                    "epoch": epoch,
                    "train elbo": round(history["elbo"][-1], 2),
                    "test": round(test.mean().item(), 2),
                    "standard error over images": round(error.item(), 2),
                    "tars": tars,
                    "seconds of training": round(sum(history["seconds"]), 1),
                }
            )
            print(rows[-1])
    report = {
        "method": arguments.method,
        "seed": arguments.seed,
        "torch": torch.__version__,
        "rows": rows,
    }
    variant = ("_decay" if arguments.decay else "") + (
        f"_seed{arguments.seed}" if arguments.seed else ""
    )
    path = Path(__file__).parent / "results" / f"mnist_{arguments.method}{variant}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
