"""The eager step of this checkout against that of another one, in turns.

    git worktree add ../before f731c93
    python benchmarks/against.py ../before

Each turn is a process of its own that runs a few hundred steps of every bound and reports
their median CPU time; the turns alternate between the checkouts. The table holds the medians
over the turns, in milliseconds, and their ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def step_times(steps):
    """Median CPU time of a step of each bound, in milliseconds, of the package that Python
    finds first.
    """
    import pyro
    import pyro.distributions as dist
    import torch

    from tarspyro import Conditional, guides, models
    from tarspyro.distributions import default_prior
    from tarspyro.infer import ELBO, IWAE
    from tarspyro.nn import MLP
    from tarspyro.scopes import local_parameters

    torch.set_num_threads(1)
    found = {}
    for name, hidden, batch in (("784-200-200-50", 200, 100), ("784-8-8-50", 8, 100)):
        torch.manual_seed(0)
        likelihood = Conditional(dist.Bernoulli, MLP(50, [hidden, hidden]), 784)
        p = models.VAE(default_prior(dist.Normal, 50), likelihood)
        q = guides.VAE(Conditional(dist.Normal, MLP(784, [hidden, hidden]), 50))
        x = torch.rand(batch, 784).round()
        for bound in (ELBO(), IWAE(5)):
            times = []
            with pyro.validation_enabled(False), local_parameters():
                for _ in range(steps):
                    start = time.process_time()
                    bound.differentiable_loss(p, q, x).backward()
                    times.append(1e3 * (time.process_time() - start))
            found[f"{type(bound).__name__}, {name}"] = statistics.median(times[10:])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", type=Path, nargs="?", help="another checkout of the library")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        print(json.dumps(step_times(arguments.steps)))
        return
    if arguments.other is None:
        parser.error("give the folder of another checkout, such as a git worktree")
    times = {"other": [], "this": []}
    folders = {"other": arguments.other.resolve(), "this": ROOT}
    for _ in range(arguments.turns):
        for name, folder in folders.items():
            command = [sys.executable, __file__, "--turn", "--steps", str(arguments.steps)]
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            output = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
            )
            times[name].append(json.loads(output.stdout))
    print(f"{'':32} {'other':>8} {'this':>8} {'ratio':>8}")
    for row in times["this"][0]:
        other, this = (
            statistics.median(turn[row] for turn in times[name]) for name in ("other", "this")
        )
        print(f"{row:32} {other:8.3f} {this:8.3f} {this / other:8.3f}")


if __name__ == "__main__":
    main()
