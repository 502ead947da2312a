"""Table 1 of rejection sampling variational inference: the variance of the sparse gamma DEF's
first gradient.

    # 10 draws: 2 minutes on one CPU core
    TARSPYRO_DATA=... python benchmarks/rsvi/gradient_variance.py
    # 3 draws of two estimators; only prints
    TARSPYRO_DATA=... python benchmarks/rsvi/gradient_variance.py --short

Naesseth, Ruiz, Linderman and Blei (2017, arXiv:1610.05683, table 1): the model and the initial
values of ``sparse_gamma_def.py``, but with shapes of at least 1, so that B = 0 is possible;
the smallest, the median and the largest variance over all 1,246,750 coordinates, shapes and
means, of ten one-draw gradients

    d log p(x, z)  +  log p(x, z) * d score  +  d entropy

with the entropy in closed form, as in the paper: every shape's score is multiplied by the
whole log-joint. ``RERUN`` is the paper's code, run anew; its table has medians of 9.0e7 for B
= 1, 2.9e7 for B = 4 and 1.6e12 for G-REP.

Writes ``benchmarks/results/rsvi_variance.json``.
"""

import argparse
import json
import time
from pathlib import Path

import pyro
import torch
from pyro import poutine
from sparse_gamma_def import RESULTS, Guide, data, model
from torch.nn.functional import softplus

ESTIMATORS = {
    **{f"RSVI, B={boost}": {"boost": boost} for boost in (0, 1, 2, 4, 10)},
    "implicit": {"reparameterization": "implicit"},
}
PAPER = {"G-REP": 1.6e12, "RSVI, B=1": 9.0e7, "RSVI, B=4": 2.9e7}
RERUN = {
    "G-REP": {"median": 1.2e12, "max": 9.9e16},
    "RSVI, B=0": {"median": 3.1e8, "max": 4.7e19},
    "RSVI, B=1": {"median": 8.6e7, "max": 1.5e17},
    "RSVI, B=2": {"median": 5.0e7},
    "RSVI, B=4": {"median": 2.8e7, "max": 3.3e14},
    "RSVI, B=10": {"median": 7.5e6},
}


class ByShapeAndMean(Guide):
    """The same guide with the shapes and means themselves for parameters: the paper's gradient
    is in these.
    """

    def __init__(self, counts, **options):
        super().__init__(counts, **options)
        with torch.no_grad():
            for name, parameter in self.raw.items():
                parameter.copy_(
                    softplus(parameter).clamp(min=1.0 if name.startswith("shape") else 0.0)
                )

    def shape_and_mean(self, name):
        return self.raw[f"shape_{name}"], self.raw[f"mean_{name}"]


def gradient(guide, counts):
    """One estimate of the bound's gradient: all shapes, then all means."""
    guide_trace = poutine.trace(guide).get_trace(counts)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(counts)
    guide_trace.compute_score_parts()
    surrogate = log_joint = model_trace.log_prob_sum()
    for name in guide.local + guide.shared:
        site = guide_trace.nodes[name]
        score = site["score_parts"].score_function
        surrogate = surrogate + site["fn"].entropy().sum()
        if torch.is_tensor(score):  # the implicit derivative has none
            surrogate = surrogate + log_joint.detach() * score.sum()
    gradients = torch.autograd.grad(surrogate, list(guide.parameters()))
    return torch.cat([value.flatten() for value in gradients])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--short", action="store_true", help="3 draws of B=1 and of the implicit derivative"
    )
    parser.add_argument("--draws", type=int, help="10 if not given; 3 with --short")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the initial values and of the draws"
    )
    parser.add_argument(
        "--out", type=Path, help="results/rsvi_variance.json if not given; none with --short"
    )
    arguments = parser.parse_args()
    draws = arguments.draws or (3 if arguments.short else 10)
    out = arguments.out or (None if arguments.short else RESULTS / "rsvi_variance.json")
    torch.set_default_dtype(torch.float64)
    pyro.enable_validation(False)
    start = time.perf_counter()
    counts = data()
    rows = {}
    for name in ("RSVI, B=1", "implicit") if arguments.short else ESTIMATORS:
        torch.manual_seed(arguments.seed)
        guide = ByShapeAndMean(counts, seed=arguments.seed, **ESTIMATORS[name])
        variance = torch.stack([gradient(guide, counts) for _ in range(draws)]).var(
            0, correction=0
        )
        shapes, means = variance.chunk(2)
        rows[name] = {
            "min": variance.min(),
            "median": variance.median(),
            "max": variance.max(),
            "median of the shapes": shapes.median(),
            "median of the means": means.median(),
        }
        rows[name] = {
            statistic: float(f"{value.item():.3g}") for statistic, value in rows[name].items()
        }
        print(
            f"{name:11}",
            *(f"{key} {value:.2g};" for key, value in rows[name].items()),
            RERUN.get(name, ""),
            flush=True,
        )
    report = {
        "draws": draws,
        "seed": arguments.seed,
        "torch": torch.__version__,
        "rows": rows,
        "the paper's medians": PAPER,
        "the paper's code, run anew": RERUN,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
