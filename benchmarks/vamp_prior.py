r"""MNIST, binarized dynamically: a VAE with the standard normal prior, and with the VampPrior,
at equal epochs.

    # 60 epochs
    TARSPYRO_DATA=... python benchmarks/vamp_prior.py standard
    # 60 epochs
    TARSPYRO_DATA=... python benchmarks/vamp_prior.py vamp
    # In full
    TARSPYRO_DATA=... python benchmarks/vamp_prior.py vamp --epochs 2000 --patience 50 \
        --evaluations 5000

Networks 784-300-300-40 and back of gated layers, 500 pseudo-inputs that start near black,
batches of 100, Adam with a learning rate of 5e-4 (the paper's has normalized gradients); the
divergence counts linearly more over the first 100 epochs, or a quarter of them where there are
fewer. 50,000 images, drawn black and white anew for every batch, 10,000 to validate and 10,000
to test, binarized once. (Tomczak and Welling 2017, arXiv:1705.07120, section 5 and its code.)
Figures: minus log p by importance sampling with 1,000 draws (5,000 in the paper) on all test
images, the active units. The paper's are 84.50 with the standard prior and 82.38 with the
VampPrior, in full. Results are written to ``benchmarks/results/``. A run that was stopped goes
on where it stood with ``--resume``.
"""

import argparse
import json
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional, Run, data, evaluate, fit, guides, models, plot
from tarspyro.distributions import VampPrior, default_prior
from tarspyro.infer import ELBO
from tarspyro.modules import Configurable

LATENT = 40
BATCH = 100
PAPER = {"standard": 84.50, "vamp": 82.38}


class Gated(Configurable):
    """A linear layer times the sigmoid of another one."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.out_features = out_features
        self.value = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(in_features, out_features)
        for layer in (self.value, self.gate):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        return self.value(x) * torch.sigmoid(self.gate(x))


def pair(prior, components, units):
    posterior = Conditional(
        dist.Normal, nn.Sequential(Gated(784, units), Gated(units, units)), LATENT
    )
    likelihood = Conditional(
        dist.Bernoulli, nn.Sequential(Gated(LATENT, units), Gated(units, units)), 784
    )
    p_z = (
        default_prior(dist.Normal, LATENT)
        if prior == "standard"
        else VampPrior(posterior, (components, 784))
    )
    return models.VAE(p_z, likelihood), guides.VAE(posterior)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prior", choices=list(PAPER))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--patience", type=int, help="stop after so many epochs without a better one"
    )
    parser.add_argument("--components", type=int, default=500)
    parser.add_argument("--units", type=int, default=300, help="of each hidden layer")
    parser.add_argument(
        "--evaluations", type=int, default=1000, help="how many draws estimate log p"
    )
    parser.add_argument(
        "--images", type=int, help="use the first images alone, to try the script"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--folder", default="runs", help="where the run is kept")
    parser.add_argument(
        "--out",
        default=str(Path(__file__).parent / "results"),
        help="where the results are kept",
    )
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    mnist = data.mnist()
    train, held_out, test = (
        part.x[: arguments.images] for part in (mnist.train, mnist.validation, mnist.test)
    )
    model, guide = pair(arguments.prior, arguments.components, arguments.units)
    name = f"vamp_prior_{arguments.prior}" + (
        f"_seed{arguments.seed}" if arguments.seed else ""
    )
    warm_up = min(100, arguments.epochs // 4) * -(-len(train) // BATCH)
    history = fit(
        model,
        guide,
        train,
        loss=ELBO(),
        validation=held_out,
        lr=5e-4,
        schedules={"beta": lambda step: min(1.0, step / warm_up) if warm_up else 1.0},
        epochs=arguments.epochs,
        patience=arguments.patience,
        batch_size=BATCH,
        binarize=True,
        folder=Run(
            Path(arguments.folder) / name,
            resume=arguments.resume,
            overwrite=not arguments.resume,
        ),
        seed=arguments.seed,
        device=arguments.device,
        compile=arguments.compile,
        progress=False,
    )
    options = {"binarize": True, "seed": 0}
    log_p = evaluate.log_likelihood(
        model, guide, test, num_particles=arguments.evaluations, **options
    )
    bound = evaluate.elbo(model, guide, test, **options)
    report = {
        **{
            key: value
            for key, value in vars(arguments).items()
            if key not in ("resume", "folder", "out")
        },
        "torch": torch.__version__,
        "epochs done": len(history),
        "best epoch": history.best_epoch,
        "test, nats per image": {
            "minus log p": round(-log_p.mean().item(), 2),
            "standard error over images": round(log_p.std().item() / len(log_p) ** 0.5, 2),
            "minus log p of the paper, in full": PAPER[arguments.prior],
            "minus elbo": round(-bound.elbo.mean().item(), 2),
            "reconstruction": round(bound.reconstruction.mean().item(), 2),
            "kl": round(bound.kl.mean().item(), 2),
        },
        "active units": int(evaluate.active_units(guide, test).sum()),
        "seconds of training": round(sum(history["seconds"]), 1),
    }
    print(json.dumps(report, indent=1))
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    plot.samples(model).savefig(out / f"{name}_samples.png", dpi=100)


if __name__ == "__main__":
    main()
