"""Whether ``fit`` alarms planted collapses, leaves the library's defaults alone, and what its
remedy revives.

    TARSPYRO_DATA=... python benchmarks/collapse.py  # some minutes on one core

- *Planted*: 20 pairs whose code says nothing about the data after two epochs: a heavy KL, a
  decoder that explains the images alone, noise, a decoder or a guide with a mistake.
- *Defaults*: the methods of the command line that have a latent variable, with their default
  settings on each data set that takes seconds, until the alarm has looked. There should be none.
- *Remedy*: those of the planted that the training is the reason of are trained again with the
  loss that the alarm names. A unit is revived if its KL is above 0.01 nats, and the share of
  their nats that the decoder uses is the gain from the own code over another one's. Mistakes of
  programs are left out: no loss mends them.

The table is written to ``benchmarks/results/collapse.json``.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Autoregressive, Conditional, data, evaluate, fit, guides, models
from tarspyro.commands.methods import METHODS
from tarspyro.distributions import Gamma, default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP, PixelCNN

OUT = Path(__file__).parent / "results" / "collapse.json"
IMAGE = (1, 8, 8)
UNITS = 8
HIDDEN = 64
# Two epochs of the 1,437 digits are 288 steps.
TRAINING = {"epochs": 2, "batch_size": 10, "lr": 3e-3, "binarize": True, "seed": 0}
# The methods whose latent variable tells what the data says, and data that takes seconds.
DEFAULTS = {
    "digits": [
        "vae",
        "conditional-vae",
        "hierarchical-vae",
        "ladder-vae",
        "semi-supervised-vae",
        "jmvae",
        "mvae",
        "cmma",
        "draw",
        "conv-draw",
        "conditional-draw",
        "pixel-vae",
        "vrnn",
        "deep-markov-model",
    ],
    "frey_face": ["vae", "hierarchical-vae", "ladder-vae"],
}
SETTINGS = [
    ("vae", {"family": family})
    for family in ("Laplace", "LogNormal", "Gamma", "Beta", "Kumaraswamy", "Dirichlet")
] + [
    ("vae", {"latent": 50}),
    ("vae", {"prior": "vamp"}),
    ("vae", {"prior": "flow"}),
    ("vae", {"posterior": "flow"}),
    ("vae", {"loss": "iwae", "num_particles": 5}),
    ("vae", {"loss": "renyi", "num_particles": 5}),
    ("vae", {"trunk": "conv"}),
]


class Plant(NamedTuple):
    """A pair that collapses.

    Attributes:
        model: The model.
        guide: The guide.
        x: Its data, the digits if not given.
        loss: The loss.
        mistake: Whether the program is wrong, so that no loss helps.
        options: What ``fit`` gets instead of the usual options.
    """

    model: nn.Module
    guide: nn.Module
    x: torch.Tensor | None = None
    loss: object | None = None
    mistake: bool = False
    options: dict = {}


class Deaf(nn.Module):
    """A network that leaves its input out."""

    def __init__(self, size):
        super().__init__()
        self.out_features = size
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return self.bias.expand(*x.shape[:-1], -1)


class Before(nn.Module):
    """A network behind a function of its input."""

    def __init__(self, function, trunk):
        super().__init__()
        self.function = function
        self.trunk = trunk
        self.out_features = trunk.out_features

    def forward(self, *inputs):
        return self.trunk(*map(self.function, inputs))


def vae(decoder=None, encoder=None, family=dist.Normal, likelihood=None, size=64):
    if likelihood is None:
        trunk = MLP(UNITS, [HIDDEN]) if decoder is None else decoder
        likelihood = Conditional(dist.Bernoulli, trunk, size)
    encoder = MLP(size, [HIDDEN]) if encoder is None else encoder
    p = models.VAE(default_prior(family, UNITS), likelihood)
    return p, guides.VAE(Conditional(family, encoder, UNITS))


def strong(**network):
    """A pair whose decoder knows the pixels before."""
    trunk = PixelCNN(IMAGE, 16, 5, context=MLP(UNITS, [16]), **network)
    p = models.VAE(
        default_prior(dist.Normal, UNITS), Autoregressive(dist.Bernoulli, trunk, IMAGE)
    )
    return p, guides.VAE(Conditional(dist.Normal, MLP(IMAGE, [HIDDEN]), UNITS))


def of_loud_normal(scale):
    likelihood = Conditional(dist.Normal, MLP(UNITS, [HIDDEN]), 64, scale=scale)
    return vae(likelihood=likelihood)


def layers(deaf):
    trunk = Deaf(HIDDEN) if deaf else MLP(4, [HIDDEN])
    p = models.HierarchicalVAE(
        default_prior(dist.Normal, 4),
        [Conditional(dist.Normal, MLP(4, [HIDDEN]), 4)],
        Conditional(dist.Bernoulli, trunk, 64),
    )
    q = guides.HierarchicalVAE(
        [
            Conditional(dist.Normal, MLP(64, [HIDDEN]), 4),
            Conditional(dist.Normal, MLP(4, [HIDDEN]), 4),
        ]
    )
    return p, q


def planted():
    """The collapses by name."""
    noise = torch.rand(1437, 64, generator=torch.Generator().manual_seed(0)).round()
    digits = data.digits().train.x
    images = digits.reshape(-1, *IMAGE)
    half = {"binarize": False}
    return {
        "beta 10": lambda: Plant(*vae(), loss=ELBO(beta=10.0)),
        "beta 30": lambda: Plant(*vae(), loss=ELBO(beta=30.0)),
        "beta 100": lambda: Plant(*vae(), loss=ELBO(beta=100.0)),
        "beta 30, Laplace": lambda: Plant(*vae(family=dist.Laplace), loss=ELBO(beta=30.0)),
        "beta 30, Gamma": lambda: Plant(*vae(family=Gamma), loss=ELBO(beta=30.0)),
        "beta 100, two layers": lambda: Plant(*layers(deaf=False), loss=ELBO(beta=100.0)),
        "PixelCNN": lambda: Plant(*strong(kernel_size=5), images),
        "gated PixelCNN": lambda: Plant(*strong(gated=True), images),
        "gated PixelCNN, 5 x 5": lambda: Plant(*strong(kernel_size=5, gated=True), images),
        "gated PixelCNN, IWAE": lambda: Plant(*strong(gated=True), images, loss=IWAE(3)),
        "noise of scale 10": lambda: Plant(*of_loud_normal(10.0), digits, options=half),
        "noise of scale 30": lambda: Plant(*of_loud_normal(30.0), digits, options=half),
        "dark images": lambda: Plant(*of_loud_normal(1.0), digits / 100, options=half),
        "pure noise": lambda: Plant(*vae(), noise, mistake=True),
        "deaf decoder": lambda: Plant(*vae(Deaf(HIDDEN)), mistake=True),
        "deaf decoder, IWAE": lambda: Plant(*vae(Deaf(HIDDEN)), loss=IWAE(5), mistake=True),
        "deaf decoder, two layers": lambda: Plant(*layers(deaf=True), mistake=True),
        "deaf guide": lambda: Plant(*vae(encoder=Deaf(HIDDEN)), mistake=True),
        "guide of other rows": lambda: Plant(
            *vae(encoder=Before(lambda x: x.roll(1, -2), MLP(64, [HIDDEN]))), mistake=True
        ),
        "dead units": lambda: Plant(
            *vae(Before(lambda z: z.clamp(max=-9.0), MLP(UNITS, [HIDDEN]))), mistake=True
        ),
    }


def trained(plant, **changes):
    """Trains, and returns the alarms."""
    x = data.digits().train.x if plant.x is None else plant.x
    options = {**TRAINING, "loss": plant.loss, **plant.options, **changes}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(plant.model, plant.guide, x, progress=False, **options)
    alarms = [str(w.message) for w in caught if "collapsed" in str(w.message)]
    return alarms, history


def of_planted(name, build, options):
    torch.manual_seed(0)
    plant = build()
    start = time.process_time()
    alarms, history = trained(plant)
    row = {
        "name": name,
        "alarm": bool(alarms),
        "KL": history["kl"][-1] if "kl" in history else None,
        "mistake": plant.mistake,
        "seconds": round(time.process_time() - start, 1),
    }
    if plant.mistake:
        print(row, flush=True)
        return row
    torch.manual_seed(0)
    plant = build()
    trained(plant, loss=ELBO(free_bits=0.25), epochs=options.epochs)
    x = data.digits().train.x if plant.x is None else plant.x
    x = x.round() if plant.options.get("binarize", True) else x
    found = evaluate.diagnose(plant.model, plant.guide, x, seed=0)
    units = torch.cat([part.flatten() for part in found.kl.values()])
    revived = float((units > 0.01).double().mean())
    row |= {
        "revived": revived,
        "KL with free bits": float(units.sum()),
        "gain from the own code": float(found.decoder_gain[0]),
    }
    print(row, flush=True)
    return row


def of_defaults(name, source, settings):
    method = METHODS[name].completed(source, settings)
    material = method.form.load(source, method, None)
    method = method.settled(material)
    torch.manual_seed(0)
    model, guide, loss = method.build(material)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(
            model,
            guide,
            material.batches,
            loss=loss,
            lr=method.lr,
            batch_size=method.batch_size,
            epochs=min(method.epochs, 8),
            binarize=material.binarize,
            seed=0,
            progress=False,
        )
    row = {
        "name": name,
        "data": source,
        "settings": settings,
        "alarm": any("collapsed" in str(w.message) for w in caught),
        "KL": history["kl"][-1] if "kl" in history else None,
        "steps": history.rows[-1]["steps"],
        "seconds": round(time.process_time() - start, 1),
    }
    print(row, flush=True)
    return row


def rows_of_planted(options):
    return [of_planted(name, build, options) for name, build in planted().items()]


def rows_of_defaults(options):
    named = [(name, source, {}) for source, names in DEFAULTS.items() for name in names]
    named += [(name, "digits", settings) for name, settings in SETTINGS]
    return [of_defaults(*arguments) for arguments in named]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=5, help="of the remedy")
    parser.add_argument(
        "--part", choices=["planted", "defaults"], help="one half; the other stays as it is"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    found = {}
    if options.part != "defaults":
        found["planted rows"] = rows_of_planted(options)
    if options.part != "planted":
        found["default rows"] = rows_of_defaults(options)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows = {name: kept.get(name, []) for name in ("planted rows", "default rows")} | found

    mendable = [row for row in rows["planted rows"] if "revived" in row]
    result = {
        "planted": len(rows["planted rows"]),
        "alarmed": sum(row["alarm"] for row in rows["planted rows"]),
        "defaults": len(rows["default rows"]),
        "alarms on defaults": sum(row["alarm"] for row in rows["default rows"]),
        "trained again": len(mendable),
        "units revived": sum(row["revived"] for row in mendable) / max(1, len(mendable)),
        "torch": torch.__version__,
        **rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print({name: value for name, value in result.items() if not name.endswith("rows")})


if __name__ == "__main__":
    main()
