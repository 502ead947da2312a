"""How often the intervals of ``evaluate.compare`` cover the true difference of two pairs, and
how small a difference it resolves on MNIST.

    python benchmarks/compare.py  # 400 data sets of 200 points, some minutes
    TARSPYRO_DATA=... python benchmarks/compare.py --mnist  # ten minutes of one core

The pairs are linear Gaussian, z ~ N(0, 1) and x | z ~ N(z, s^2) with s = 1 and s = 1.3, their
guides 1.2 times as wide as the posterior. The data come from the first pair, so that the true
mean difference is known. Intervals of 95 % should cover it in 93 to 97 of 100 data sets.

On MNIST one VAE (784-200-200-50) is compared with itself some epochs earlier, on the 10,000
test images, with the same black and white pixels. A difference of 0.15 nats is resolved if the
half of the interval is shorter. Each comparison is repeated with other draws.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import pyro.distributions as dist
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tarspyro import Conditional, Run, data, evaluate, fit, guides, models  # noqa: E402
from tarspyro.distributions import default_prior  # noqa: E402
from tarspyro.nn import MLP  # noqa: E402
from tests.evaluate.test_comparison import draw, pair, true_difference  # noqa: E402

OUT = Path(__file__).parent / "results"
EPOCHS = (20, 21, 22, 24, 28)


def vae():
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(50, [200, 200]), 784)
    posterior = Conditional(dist.Normal, MLP(784, [200, 200]), 50)
    return models.VAE(default_prior(dist.Normal, 50), likelihood), guides.VAE(posterior)


def epochs_of_mnist(options):
    """One VAE after several epochs: the differences from the first of them."""
    mnist = data.mnist()
    p, q = vae()
    pairs = {}
    with tempfile.TemporaryDirectory() as folder:
        for epochs in EPOCHS:
            run = Run(folder, resume=bool(pairs), overwrite=True)
            fit(p, q, mnist.train, epochs=epochs, binarize=True, folder=run)
            pairs[f"{epochs} epochs"] = (copy.deepcopy(p), copy.deepcopy(q))
    rows = {}
    for seed in range(3):
        # The pixels are drawn once: other seeds are other draws of the latent variables.
        test = torch.bernoulli(mnist.test.x, generator=torch.Generator().manual_seed(1))
        found = evaluate.compare(pairs, test, num_particles=options.num_particles, seed=seed)
        print(found, flush=True)
        for name, gap in found.differences.items():
            rows.setdefault(name, []).append(
                {
                    "nats": gap.value,
                    "standard error": gap.standard_error,
                    "unpaired standard error": (
                        found[name].standard_error ** 2
                        + found[f"{EPOCHS[0]} epochs"].standard_error ** 2
                    )
                    ** 0.5,
                    "interval": [gap.low, gap.high],
                }
            )
    return {
        "test images": len(mnist.test.x),
        "particles": options.num_particles,
        f"minus {EPOCHS[0]} epochs": rows,
    }


def coverage(options):
    """How many intervals of linear Gaussian pairs cover the true difference."""
    true = true_difference(1.3, 1.0)
    pairs = {"s = 1": pair(1.0, 1.2), "s = 1.3": pair(1.3, 1.2)}
    gaps = []
    for seed in range(options.repeats):
        x = draw(options.num, 1000 + seed)
        found = evaluate.compare(pairs, x, num_particles=options.num_particles, seed=seed)
        gaps.append(found.difference("s = 1.3"))
    values = [gap.value for gap in gaps]
    mean = sum(values) / len(values)
    return {
        "repeats": options.repeats,
        "data points": options.num,
        "particles": options.num_particles,
        "true difference, nats": true,
        "mean difference, nats": mean,
        "standard deviation of the differences": (
            sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        )
        ** 0.5,
        "mean standard error": sum(gap.standard_error for gap in gaps) / len(gaps),
        "coverage of the 95 % intervals": sum(gap.low <= true <= gap.high for gap in gaps)
        / len(gaps),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--num", type=int, default=200, help="data points of a data set")
    parser.add_argument("--num-particles", type=int, default=100)
    parser.add_argument("--mnist", action="store_true", help="one VAE after several epochs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "compare_mnist.json" if options.mnist else "compare.json"
    result = (epochs_of_mnist if options.mnist else coverage)(options)
    (options.out or OUT / name).write_text(json.dumps(result, indent=1) + "\n")
    print(result)


if __name__ == "__main__":
    main()
