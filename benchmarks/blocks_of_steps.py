"""Several training steps in one compiled call: a prototype in plain PyTorch.

    python benchmarks/blocks_of_steps.py
    python benchmarks/blocks_of_steps.py --hidden 512

The MLP VAE 784-H-H-50, batch 100, H = 8 or 512. A step is the gradient of the loss and the
update of Adam. Contestants are a function of one step and a function of a block of 5 steps on as
many batches (``--blocks``), each one graph of PyTorch's compiler with the update in it, and the
step of ``fit(compile=True)``. They take turns; times are those of the processor, medians over the
rounds. The seconds of the prototype's compilations are printed too.
"""

import argparse
import json
import statistics
import time

import torch
from contestants import elbo, ours, take_turns, turn_of
from torch import Tensor
from torch.func import grad_and_value
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from tarspyro.memory import keep_freed_memory

BATCH = 100
PIXELS = 784
LATENT = 50


def shapes_of(hidden):
    """The sizes of the layers: of the encoder, then of the decoder."""
    widths = [
        (PIXELS, hidden),
        (hidden, hidden),
        (hidden, 2 * LATENT),
        (LATENT, hidden),
        (hidden, hidden),
        (hidden, PIXELS),
    ]
    return [shape for before, after in widths for shape in ((after, before), (after,))]


def loss_of(parameters, x):
    """Minus the ELBO of a batch, for each image."""
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    h = x
    for weight, bias in layers[:2]:
        h = linear(h, weight, bias).relu()
    loc, log_scale = linear(h, *layers[2]).chunk(2, -1)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    for weight, bias in layers[3:5]:
        z = linear(z, weight, bias).relu()
    logits = linear(z, *layers[5])
    kl = ((2 * log_scale).exp() + loc**2 - 1) / 2 - log_scale
    total = binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl.sum()
    return total / len(x)


def step(parameters, means, squares, count, x):
    """One step of Adam at 1e-3, which returns the new state and the loss."""
    gradients, loss = grad_and_value(loss_of)(parameters, x)
    count = count + 1
    first = 1 - 0.9**count
    second = 1 - 0.999**count
    means = [0.9 * mean + 0.1 * g for mean, g in zip(means, gradients, strict=True)]
    squares = [0.999 * s + 0.001 * g * g for s, g in zip(squares, gradients, strict=True)]
    parameters = [
        p - 1e-3 * (mean / first) / ((square / second).sqrt() + 1e-8)
        for p, mean, square in zip(parameters, means, squares, strict=True)
    ]
    return parameters, means, squares, count, loss


def block(size, parameters):
    """Training in calls of ``size`` steps; a turn takes blocks until its steps are taken."""

    @torch.compile(dynamic=False)
    def several(parameters, means, squares, count, batches):
        state = (parameters, means, squares, count)
        losses = []
        for x in batches.unbind():
            *state, loss = step(*state, x)
            losses.append(loss)
        return *state, torch.stack(losses)

    zeros = [torch.zeros_like(p) for p in parameters]
    held = [[p.clone() for p in parameters], zeros, list(zeros), torch.zeros(())]

    def run(batches: Tensor):
        *held[:], losses = several(*held, batches)
        return losses

    return run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=8)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    parameters = [0.05 * torch.randn(shape) for shape in shapes_of(options.hidden)]
    x = torch.rand(BATCH, PIXELS).round()
    turns = {}
    compiling = {}
    sizes = {}
    for size in options.blocks:
        name = f"{size} steps a call"
        batches = x.expand(size, *x.shape).contiguous()
        run = block(size, parameters)
        start = time.perf_counter()
        run(batches)
        compiling[name] = round(time.perf_counter() - start, 1)
        turns[name] = turn_of(run, batches)
        sizes[name] = size
    program = elbo(PIXELS, options.hidden, LATENT, BATCH)
    fitted = ours(program, "cpu", compiled=True)
    turns["fit(compile=True)"] = turn_of(fitted, x)

    costs = take_turns(turns, options.rounds)
    for name, found in costs.items():
        each = [1000 * cost.cpu / cost.steps / sizes.get(name, 1) for cost in found]
        row = {
            "ms of the processor a step": round(statistics.median(each), 3),
            "least": round(min(each), 3),
            "seconds of compilation": compiling.get(name),
        }
        print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
