"""Sixteen encoders by twelve decoders, as users write them: what runs on each pair.

    python benchmarks/networks.py               (all pairs, also compiled from the first step)
    python benchmarks/networks.py --eager       (without the compiled step)

Every pair trains an epoch under the ELBO and under IWAE(5), is evaluated by
``log_likelihood``, embeds, and trains compiled (``Compiled`` without its trials, which
``fit(compile=True)`` makes before it compiles). ``results/networks.json`` holds a row for each
pair, with the sentence of what failed.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import pyro.distributions as dist
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tarspyro import Conditional, evaluate, fit, guides, models  # noqa: E402
from tarspyro.data import digits  # noqa: E402
from tarspyro.distributions import default_prior  # noqa: E402
from tarspyro.infer import ELBO, IWAE, Compiled  # noqa: E402
from tests.networks import DECODERS, ENCODERS, LATENT, SHAPE  # noqa: E402


def pair(encoder, decoder):
    """A VAE of two of the networks."""
    torch.manual_seed(0)
    model = models.VAE(
        default_prior(dist.Normal, LATENT),
        Conditional(dist.Bernoulli, DECODERS[decoder](), SHAPE),
    )
    return model, guides.VAE(Conditional(dist.Normal, ENCODERS[encoder](), LATENT))


def trial(encoder, decoder, x, compiled=True):
    """What came of each of the five uses of a pair: ``ok``, or the sentence."""
    options = {"epochs": 1, "batch_size": 20, "binarize": True, "seed": 0, "progress": False}

    def trained(**more):
        p, q = pair(encoder, decoder)
        losses = fit(p, q, x, **options, **more)["loss"]
        assert all(map(torch.isfinite, map(torch.tensor, losses)))
        return p, q

    uses = {
        "ELBO": lambda: trained(loss=ELBO()),
        "IWAE(5)": lambda: trained(loss=IWAE(num_particles=5)),
        "log_likelihood": lambda: evaluate.log_likelihood(
            *trained(), x, num_particles=7, binarize=True
        ),
        "embed": lambda: evaluate.embed(trained()[1], x).shape == (len(x), LATENT) or 1 / 0,
        "compiled": lambda: trained(loss=Compiled(ELBO(), choose=False)),
    }
    if not compiled:
        del uses["compiled"]
    found = {}
    for name, use in uses.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # also that a step is not compiled
                if name == "compiled":
                    warnings.filterwarnings("ignore", category=DeprecationWarning)
                use()
            found[name] = "ok"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--eager", action="store_true", help="without the compiled step")
    parser.add_argument(
        "--out", default=str(ROOT / "benchmarks" / "results" / "networks.json")
    )
    options = parser.parse_args()
    x = digits(flatten=False).train.x[:40]
    start = time.perf_counter()
    rows = {}
    for encoder in ENCODERS:
        for decoder in DECODERS:
            name = f"{encoder} / {decoder}"
            rows[name] = trial(encoder, decoder, x, not options.eager)
            failed = {use: said for use, said in rows[name].items() if said != "ok"}
            if failed:
                print(name, failed)
    cells = [said for row in rows.values() for said in row.values()]
    result = {
        "torch": torch.__version__,
        "cells": len(cells),
        "ok": cells.count("ok"),
        "seconds": round(time.perf_counter() - start),
        "each": rows,
    }
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['ok']} of {result['cells']} cells run, in {result['seconds']} seconds")


if __name__ == "__main__":
    main()
