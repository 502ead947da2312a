"""The bias of gradients through draws on the sphere, and draws that are not finite.

    python benchmarks/spherical.py                       (three minutes on one core)

For dimensions 2 to 512 and concentrations 0.01 to 10,000, of ``VonMisesFisher`` and
``PowerSpherical``:

- the relative bias of the gradient of E[w] in the concentration, w = loc^T x: the expectation
  of the pathwise derivative, by quadrature, against the exact derivative in high precision;
- the same of Wood's proposals without the correction for their acceptance, as it is often
  implemented;
- the gradient's mean over 100,000 draws in single precision, in standard errors from the
  truth;
- how many of these draws, their log-densities and their gradients are not finite.

Results go to ``benchmarks/results/spherical.json``.
"""

import argparse
import json
import time
from pathlib import Path

import mpmath
import torch

from tarspyro.distributions import PowerSpherical, VonMisesFisher

RESULTS = Path(__file__).parent / "results"
DIMS = (2, 3, 5, 10, 32, 128, 512)
CONCENTRATIONS = (1e-2, 1.0, 1e2, 1e4)
BATCH = 20_000


def exact_slope(family, dim, kappa):
    """The derivative of E[w] in the concentration."""
    with mpmath.workdps(50):
        kappa = mpmath.mpf(kappa)
        if family is PowerSpherical:
            return (dim - 1) / (kappa + dim - 1) ** 2
        order = mpmath.mpf(dim) / 2
        mean = mpmath.besseli(order, kappa) / mpmath.besseli(order - 1, kappa)
        return 1 - mean**2 - (dim - 1) * mean / kappa


def biases(family, dim, kappa):
    """The bias of the gradient, and without the correction that Wood's proposals need."""
    concentration = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    q = family(torch.eye(dim, dtype=torch.float64)[0], concentration)
    latitude, log_mass = q._quadrature()
    mass = log_mass.softmax(0).detach() / torch.cosh(latitude) ** 2
    truth = exact_slope(family, dim, kappa)
    ours = float((mass * q._slope(latitude)).sum().item() / truth - 1)
    if family is PowerSpherical:
        return ours, None
    (shift,) = torch.autograd.grad(q._peak(concentration), concentration)
    return ours, float((mass * shift).sum().item() / truth - 1)


def simulate(family, dim, kappa, draws):
    """The gradient's distance from the truth in standard errors, and what is not finite."""
    loc = torch.nn.functional.normalize(torch.randn(dim), dim=0)
    slopes = []
    broken = 0
    for _ in range(0, draws, BATCH):
        pole = loc.expand(BATCH, dim).clone().requires_grad_()
        concentration = torch.full((BATCH,), kappa, requires_grad=True)
        q = family(pole, concentration, validate_args=False)
        x = q.rsample()
        density = q.log_prob(x)
        (slope,) = torch.autograd.grad((x * loc).sum(), concentration, retain_graph=True)
        others = torch.autograd.grad(density.sum() + x.sum(), [pole, concentration])
        finite = x.isfinite().all(-1) & density.isfinite() & slope.isfinite()
        finite &= others[0].isfinite().all(-1) & others[1].isfinite()
        broken += int((~finite).sum())
        slopes.append(slope)
    slope = torch.cat(slopes).double()
    error = slope.std() / len(slope) ** 0.5
    off = (slope.mean() - float(exact_slope(family, dim, kappa))) / error
    return off.item(), broken


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "spherical.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    start = time.process_time()
    rows = []
    for family in (VonMisesFisher, PowerSpherical):
        for dim in DIMS:
            for kappa in CONCENTRATIONS:
                bias, uncorrected = biases(family, dim, kappa)
                off, broken = simulate(family, dim, kappa, options.draws)
                row = {
                    "family": family.__name__,
                    "dimension": dim,
                    "concentration": kappa,
                    "bias": bias,
                    "bias without the correction": uncorrected,
                    "standard errors from the truth": round(off, 2),
                    "not finite": broken,
                }
                rows.append(row)
                print(row, flush=True)
    result = {
        "draws": options.draws,
        "largest bias": max(abs(row["bias"]) for row in rows),
        "not finite": sum(row["not finite"] for row in rows),
        "processor seconds": round(time.process_time() - start),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
