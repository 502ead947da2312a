r"""MNIST, binarized dynamically, in the IWAE paper's set-up: its one-layer network, its
schedule, any of its bounds.

    # 40 epochs: 5 minutes on a core
    TARSPYRO_DATA=... python benchmarks/mnist_iwae.py elbo
    # 40 epochs: 10 minutes
    TARSPYRO_DATA=... python benchmarks/mnist_iwae.py iwae --particles 5 --gradient dreg
    # 13 epochs: 20 minutes
    TARSPYRO_DATA=... python benchmarks/mnist_iwae.py iwae --particles 50 --stages 3
    # In full
    TARSPYRO_DATA=... python benchmarks/mnist_iwae.py iwae --particles 50 --stages 8 \
        --evaluations 5000

Networks 784-200-200-50 and back with tanh, output biases from the training mean, exp for the
scale; all 60,000 images, drawn black and white anew for every batch of 20; Adam with eps =
1e-4; stage i = 0, 1, ... lasts 3^i epochs at the learning rate 0.001 * 10^(-i/7), eight stages
and 3,280 epochs in full. (Burda et al. 2015, arXiv:1509.00519, section 5.) Figures: minus log
p by importance sampling with 1,000 draws (5,000 in the paper) on all 10,000 test images,
binarized once, and the active units. Results are written to ``benchmarks/results/``.

The short form is the first four stages, 40 epochs. Its references are runs of a plain PyTorch
loop on the same schedule; the full form's are the paper's table 1. A run that was stopped goes
on where it stood with ``--resume``.
"""

import argparse
import json
import math
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions.transforms import ExpTransform

from tarspyro import Conditional, Optimizer, Run, data, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, PIWAE
from tarspyro.nn import MLP

BATCH = 20
# Minus log p after so many epochs: of plain PyTorch on the first stages, and of the paper on
# all.
REFERENCE = {
    1: {1: 113.97, 4: 102.24, 13: 96.14, 40: 92.67, 3280: 86.76},
    5: {1: 111.65, 4: 100.15, 13: 94.45, 40: 91.31, 3280: 85.54},
    50: {1: 111.24, 4: 99.32, 13: 93.64, 3280: 84.78},
}


def pair(mean):
    """The paper's model and guide; the decoder starts from the training mean of each pixel."""
    likelihood = Conditional(dist.Bernoulli, MLP(50, [200, 200], activation=nn.Tanh), 784)
    with torch.no_grad():
        likelihood.heads["logits"].bias.copy_(torch.logit(mean.clamp(0.001, 0.999)))
    posterior = Conditional(
        dist.Normal,
        MLP(784, [200, 200], activation=nn.Tanh),
        50,
        transforms={"scale": ExpTransform()},
    )
    return models.VAE(default_prior(dist.Normal, 50), likelihood), guides.VAE(posterior)


def rate(step, steps_per_epoch):
    """The learning rate: 0.001 * 10^(-i/7) in stage i, which lasts 3^i epochs."""
    epoch = step // steps_per_epoch
    stage = int(math.log(2 * epoch + 1, 3) + 1e-9)
    return 1e-3 * 10 ** (-stage / 7)


def bound(name, particles, groups, gradient):
    if name == "elbo":
        return ELBO(particles, gradient="stl" if gradient == "dreg" else gradient)
    if name == "piwae":
        return PIWAE(particles, groups)
    return IWAE(particles, groups, gradient)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bound", choices=["elbo", "iwae", "piwae"])
    parser.add_argument("--particles", type=int, default=1)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--gradient", choices=["pathwise", "stl", "dreg"], default="pathwise")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument(
        "--evaluations", type=int, default=1000, help="how many draws estimate log p"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--folder", default="runs", help="where the run is kept")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    mnist = data.mnist(validation=0)
    model, guide = pair(mnist.train.x.mean(0))
    name = f"mnist_{arguments.bound}_{arguments.particles}"
    if arguments.groups > 1:
        name += f"x{arguments.groups}"
    if arguments.gradient != "pathwise":
        name += f"_{arguments.gradient}"
    if arguments.seed:
        name += f"_seed{arguments.seed}"
    rows = []
    for stage in range(arguments.stages):
        epochs = (3 ** (stage + 1) - 1) // 2
        history = fit(
            model,
            guide,
            mnist.train.x,
            loss=bound(
                arguments.bound, arguments.particles, arguments.groups, arguments.gradient
            ),
            optimizer=Optimizer(torch.optim.Adam, eps=1e-4),
            schedules={"lr": lambda step: rate(step, len(mnist.train) // BATCH)},
            epochs=epochs,
            batch_size=BATCH,
            binarize=True,
            folder=Run(
                Path(arguments.folder) / name,
                resume=stage > 0 or arguments.resume,
                overwrite=not arguments.resume,
            ),
            seed=arguments.seed,
            device=arguments.device,
            compile=arguments.compile,
            progress=False,
        )
        if stage < 2 and arguments.stages > 3:
            continue
        options = {"binarize": True, "seed": 0}
        likelihood = evaluate.log_likelihood(
            model, guide, mnist.test.x, num_particles=arguments.evaluations, **options
        )
        rows.append(
            {
                "epochs": epochs,
                "minus log p": round(-likelihood.mean().item(), 2),
                "standard error over images": round(
                    likelihood.std().item() / len(likelihood) ** 0.5, 2
                ),
                "reference": REFERENCE.get(arguments.particles * arguments.groups, {}).get(
                    epochs
                ),
                "minus elbo": round(
                    -evaluate.elbo(model, guide, mnist.test.x, **options).elbo.mean().item(), 2
                ),
                "active units": int(evaluate.active_units(guide, mnist.test.x).sum()),
                "seconds of training": round(sum(history["seconds"]), 1),
            }
        )
        report = {**vars(arguments), "torch": torch.__version__, "test, nats per image": rows}
        for key in ("resume", "folder"):
            del report[key]
        print(json.dumps(rows[-1]), flush=True)
        path = Path(__file__).parent / "results" / f"{name}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
