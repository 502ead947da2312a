"""Frey Face in Li and Turner's set-up: the VAE, IWAE and VR-max with five particles, one fold
of ten.

    # 2,000 epochs each: half an hour on a core
    TARSPYRO_DATA=... python benchmarks/frey_renyi.py vae iwae vr-max
    TARSPYRO_DATA=... python benchmarks/frey_renyi.py iwae --gradient dreg

Networks 560-200-200-20 and back with softplus; a Gaussian decoder with a mean between 0 and 1
and a variance for each pixel; nine tenths of the frames for training; Adam with learning rate
5e-4, batches of 100, pixels in [0, 1]. (Li and Turner 2016, arXiv:1602.02311, section 5.2;
they do not say how many epochs.) The figure is the log-likelihood of the held-out tenth by
importance sampling with 5,000 draws, in nats per image. Published, over ten folds: VAE 1322.96
+- 10.03, IWAE 1380.30 +- 4.60, VR-max 1377.40 +- 4.59. Results are written to
``benchmarks/results/frey_renyi.json``.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions.transforms import ExpTransform, SigmoidTransform

from tarspyro import Conditional, Run, data, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import Renyi
from tarspyro.nn import MLP

ORDERS = {"vae": 1.0, "iwae": 0.0, "vr-max": -math.inf, "alpha 0.5": 0.5}
PUBLISHED = {"vae": 1322.96, "iwae": 1380.30, "vr-max": 1377.40, "alpha 0.5": 1374.64}


def pair():
    layers = {"hidden_features": [200, 200], "activation": nn.Softplus}
    likelihood = Conditional(
        dist.Normal,
        MLP(20, **layers),
        560,
        transforms={"loc": SigmoidTransform(), "scale": ExpTransform()},
    )
    posterior = Conditional(
        dist.Normal, MLP(560, **layers), 20, transforms={"scale": ExpTransform()}
    )
    for network in (likelihood, posterior):
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(
                    layer.weight, gain=0.5
                )  # softplus adds up: larger ones overflow in exp
    return models.VAE(default_prior(dist.Normal, 20), likelihood), guides.VAE(posterior)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+", choices=ORDERS)
    parser.add_argument("--particles", type=int, default=5)
    parser.add_argument("--gradient", choices=["pathwise", "dreg"], default="pathwise")
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument(
        "--every", type=int, default=500, help="epochs between two evaluations"
    )
    parser.add_argument("--fold", type=int, default=0, help="the seed of the split")
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    frey = data.frey_face(seed=arguments.fold)
    path = Path(__file__).parent / "results" / "frey_renyi.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for method in arguments.methods:
        torch.manual_seed(arguments.fold)
        model, guide = pair()
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for epochs in range(arguments.every, arguments.epochs + 1, arguments.every):
                history = fit(
                    model,
                    guide,
                    frey.train.x,
                    loss=Renyi(
                        ORDERS[method], arguments.particles, gradient=arguments.gradient
                    ),
                    lr=5e-4,
                    epochs=epochs,
                    folder=Run(folder, resume=bool(rows), overwrite=True),
                    seed=arguments.fold,
                    device=arguments.device,
                    compile=arguments.compile,
                    progress=False,
                )
                likelihood = evaluate.log_likelihood(
                    model, guide, frey.test.x, num_particles=5000, seed=0
                )
                rows.append(
                    {
                        "epochs": epochs,
                        "test log p": round(likelihood.mean().item(), 2),
                        "standard error over images": round(
                            likelihood.std().item() / len(likelihood) ** 0.5, 2
                        ),
                        "training bound": round(-history["loss"][-1], 2),
                        "active units": int(evaluate.active_units(guide, frey.test.x).sum()),
                        "seconds of training": round(sum(history["seconds"]), 1),
                    }
                )
                print(method, json.dumps(rows[-1]), flush=True)
        name = method + ("" if arguments.gradient == "pathwise" else f", {arguments.gradient}")
        report[f"{name}, K = {arguments.particles}, fold {arguments.fold}"] = {
            "published": PUBLISHED[method],
            "torch": torch.__version__,
            "test, nats per image": rows,
        }
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
