"""The time of one step of the importance weighted bound: ours, Pyro's RenyiELBO, and PyTorch
written by hand.

    python benchmarks/iwae_time.py [--rounds 30] [--threads 2] [--device cpu]

The networks, the batch and the rules are those of ``contestants.py``: all contestants take
turns in one process, the figure is the median over the rounds, and ratios to the hand-written
loop are taken round by round. Both hand-written loops run the encoder once and the decoder on
all draws together; one asks for the fused Adam, as ours does. Results are written to
``benchmarks/results/iwae_time.json``.
"""

import argparse
import json
import platform
import statistics
import warnings
from pathlib import Path

import pyro
import torch
from contestants import hand_written, iwae, measure, ours, ratio, svi
from pyro.infer import RenyiELBO

SIZES = {
    "784-512-512-50, batch 100": (784, 512, 50, 100),
    "784-200-200-50, batch 20": (784, 200, 50, 20),
}


def contestants_of(size, particles, device):
    program = iwae(*size, particles)
    doubly = iwae(*size, particles, gradient="dreg")
    one_by_one = program._replace(
        pyro_bound=lambda: RenyiELBO(
            alpha=0, num_particles=particles, vectorize_particles=False, max_plate_nesting=1
        )
    )
    return {
        "hand-written": hand_written(program, device),
        "hand-written, fused Adam": hand_written(program, device, fused=True),
        "ours": ours(program, device),
        "ours, dreg": ours(doubly, device),
        "ours, compiled": ours(program, device, compiled=True),
        "ours, dreg, compiled": ours(doubly, device, compiled=True),
        "RenyiELBO, vectorized": svi(program, device),
        "RenyiELBO, loop": svi(one_by_one, device),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    report = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        **vars(arguments),
        "steps of": {},
    }
    for name, size in SIZES.items():
        for particles in (1, 5, 50):
            pyro.clear_param_store()
            x = torch.bernoulli(torch.rand(size[-1], size[0])).to(arguments.device)
            times = measure(
                contestants_of(size, particles, arguments.device), x, arguments.rounds
            )
            rows = {
                contestant: {
                    "milliseconds": round(statistics.median(values), 2),
                    "to hand-written": round(ratio(times, contestant, "hand-written"), 3),
                }
                for contestant, values in times.items()
            }
            report["steps of"][f"{name}, {particles} particles"] = rows
            print(name, particles, json.dumps(rows, indent=1), flush=True)
    path = (
        Path(__file__).parent
        / "results"
        / f"iwae_time{'' if arguments.device == 'cpu' else '_cuda'}.json"
    )
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
