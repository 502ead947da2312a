"""The bounds of guides that ``guides.auto`` makes, beside those of guides written by hand.

    python benchmarks/auto_guides.py                # all programs, about 5 minutes of a core
    python benchmarks/auto_guides.py VAE AIR        # some of them, beside those kept before

The programs are Pyro's examples in their smallest form (``tests/pyro_programs.py``). Each is
trained anew with its own guide and with an automatic one: Adam, the same learning rate, steps
and particles, the same initial model. The bound is then the mean of 500 draws.
Examples whose guides
are points have no bound to compare with, and are left out. Results go to
``benchmarks/results/auto_guides.json``.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import pyro
import torch
from torch import nn
from torch.nn.functional import one_hot

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tarspyro import fit, guides  # noqa: E402
from tarspyro.infer import ELBO  # noqa: E402
from tarspyro.nn import MLP, Log1p  # noqa: E402
from tests import pyro_programs as programs  # noqa: E402

HIDDEN = 16


class Words(nn.Module):
    """Features of documents: those of the counts of their words."""

    def __init__(self):
        super().__init__()
        self.network = MLP(5, [HIDDEN])

    def forward(self, data):
        return self.network(one_hot(data, 5).float().sum(0))


def counts(size):
    return nn.Sequential(Log1p(), MLP(size, [HIDDEN]))


# The program, the trunk, and the options of ``guides.auto``.
PROGRAMS = {
    "VAE": (programs.vae, lambda: MLP(5, [HIDDEN]), {}),
    "conditional VAE": (programs.conditional_vae, lambda: MLP([6, 6], [HIDDEN]), {}),
    "M2, labels summed out": (programs.m2_summed_in_the_guide, lambda: MLP(5, [HIDDEN]), {}),
    "deep Markov model": (programs.deep_markov_model, lambda: MLP((4, 3), [HIDDEN]), {}),
    "AIR": (programs.attend_infer_repeat, lambda: MLP(5, [HIDDEN]), {}),
    "sparse gamma DEF": (programs.sparse_gamma_def, lambda: counts(10), {}),
    "ProdLDA": (programs.prodlda, lambda: counts(5), {}),
    "scANVI": (programs.scanvi_unlabelled, lambda: counts(4), {}),
    "Bayesian regression": (programs.bayesian_regression, lambda: None, {}),
    "hierarchical regression": (programs.hierarchical_regression, lambda: None, {}),
}


def trained(build, make, seed, steps):
    """The bound of a pair after its training, in nats, and the seconds of CPU time."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    pair = build()
    guide = pair.guide if make is None else make(pair)
    start = time.process_time()
    fit(
        pair.model,
        guide,
        pair.args,
        loss=ELBO(num_particles=2),
        epochs=steps,
        batch_size=len(pair.args[0]),
        lr=1e-2,
        schedules={"lr": lambda step: 1e-2 * min(1.0, 2 - 2 * step / steps)},
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - start
    for module in pair.modules:
        module.eval()
    with torch.no_grad():
        bounds = [
            -ELBO(num_particles=50).loss(pair.model, guide, *pair.args) for _ in range(10)
        ]
    return statistics.mean(bounds), seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="*", help="some of the programs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    out = ROOT / "benchmarks" / "results" / "auto_guides.json"
    kept = json.loads(out.read_text())["rows"] if out.exists() and arguments.programs else {}
    for name in arguments.programs or PROGRAMS:
        kept[name] = row_of(*PROGRAMS[name], arguments)
        print(name, json.dumps(kept[name]), flush=True)
        rows = {known: kept[known] for known in PROGRAMS if known in kept}
        out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def row_of(build, trunk, options, arguments):
    """The bounds of a program with its own guide, and with those of each structure."""

    def automatic(pair, structure):
        return guides.auto(pair.model, trunk(), *pair.args, structure=structure, **options)

    kinds = {"by hand": None, "mean-field": lambda pair: automatic(pair, "mean-field")}
    pair = build()
    if any(posterior.parents for posterior in automatic(pair, "model").posteriors):
        kinds["model"] = lambda pair: automatic(pair, "model")
    row = {"steps": arguments.steps}
    for kind, make in kinds.items():
        runs = [trained(build, make, seed, arguments.steps) for seed in range(arguments.seeds)]
        bounds = [bound for bound, _ in runs]
        row[kind] = {
            "bounds": [round(bound, 3) for bound in bounds],
            "seconds": round(statistics.mean(seconds for _, seconds in runs), 1),
        }
    for kind in kinds.keys() - {"by hand"}:
        by_hand = statistics.mean(row["by hand"]["bounds"])
        ahead = statistics.mean(row[kind]["bounds"]) - by_hand
        row[kind]["ahead of the guide by hand, %"] = round(100 * ahead / abs(by_hand), 2)
    return row


if __name__ == "__main__":
    main()
