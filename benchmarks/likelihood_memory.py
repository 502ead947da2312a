"""The memory of ``evaluate.log_likelihood`` with 100, 1,000 and 5,000 particles, each in a
fresh process.

    TARSPYRO_DATA=... python benchmarks/likelihood_memory.py   (about a minute of one CPU core)

The network of the IWAE on MNIST (Burda et al. 2015: 784-200-200-50, tanh), untrained, on 200
binarized test images. ``peak`` is the process' largest resident set (Linux' VmHWM), ``before``
the one when the estimate starts, with the libraries, the network and these images in memory
(the parent reads MNIST). Results go to ``benchmarks/results/likelihood_memory.json``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional, data, evaluate, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

PARTICLES = (100, 1000, 5000)


def mebibytes():
    # Not getrusage: its peak includes that of the parent process before the child's program
    # was loaded.
    status = Path("/proc/self/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**10, 1)


def measure(num_particles, images):
    torch.manual_seed(0)
    trunk = {"activation": nn.Tanh}
    model = models.VAE(
        default_prior(dist.Normal, 50),
        Conditional(dist.Bernoulli, MLP(50, [200, 200], **trunk), 784),
    )
    guide = guides.VAE(Conditional(dist.Normal, MLP(784, [200, 200], **trunk), 50))
    x = torch.load(images)
    before = mebibytes()
    start = time.perf_counter()
    evaluate.log_likelihood(
        model, guide, x, num_particles=num_particles, errors=True, binarize=True, seed=0
    )
    seconds = time.perf_counter() - start
    return {"before, MiB": before, "peak, MiB": mebibytes(), "seconds": round(seconds, 1)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--child",
        nargs=2,
        help="a number of particles and a file of images, for this very process",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results" / "likelihood_memory.json",
    )
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(int(arguments.child[0]), arguments.child[1])))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.pt"
        torch.save(data.mnist().test.x[:200].clone(), images)
        for number in PARTICLES:
            command = [sys.executable, __file__, "--child", str(number), str(images)]
            rows[number] = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            print(number, rows[number])
    report = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "particles": rows,
    }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
