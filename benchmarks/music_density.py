"""Polyphonic music without latent variables: exact log-likelihoods in nats a step, beside the
bounds of ``vrnn_music.py``.

    TARSPYRO_DATA=... python benchmarks/music_density.py recurrent    # two minutes on one core
    TARSPYRO_DATA=... python benchmarks/music_density.py convolutional
    TARSPYRO_DATA=... python benchmarks/music_density.py pixelcnn     # half an hour

- *recurrent*: an LSTM of 128 units; the 88 notes of a step are independent given the steps
  before.
- *convolutional*: dilated causal convolutions over time; the same.
- *pixelcnn*: the piano roll as an image, time from the top to the bottom, so that a note sees
  the steps before it and the lower notes of its own step.

Adam with batches of 16; the weights are those of the epoch with the best validation part. A
sequence counts with its own steps.
"""

import argparse
import json
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Autoregressive, Run, data, evaluate, fit, models
from tarspyro.nn import CausalConv1d, CausalRNN, PixelCNN

NOTES = 88
EPOCHS = {"recurrent": 200, "convolutional": 100, "pixelcnn": 40}
PUBLISHED = {
    "RNN (Boulanger-Lewandowski et al. 2012)": -8.71,
    "RNN-NADE (the same)": -5.56,
    "VRNN, ELBO (VSMC-PRC paper)": -8.69,
    "VRNN, FIVO of 5 particles (VSMC-PRC paper)": -7.51,
}


def trunk(method, steps):
    shape = (steps, NOTES)
    if method == "recurrent":
        return CausalRNN(shape, 128, cell=nn.LSTM)
    if method == "convolutional":
        return CausalConv1d(shape, 64, 5)
    return PixelCNN(shape, 16, 5)


def nats_a_step(p, part):
    log_p = evaluate.log_likelihood(p, None, part)
    steps = part.lengths.to(log_p.dtype)
    mean = log_p.sum() / steps.sum()
    error = (log_p - mean * steps).std() * len(log_p) ** 0.5 / steps.sum()
    return {"nats a step": round(mean.item(), 3), "standard error": round(error.item(), 3)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=EPOCHS)
    parser.add_argument("--data", default="jsb_chorales")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rate", type=float, default=3e-3, help="the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="write the run here, and resume it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    music = data.polyphonic_music(arguments.data)
    steps = max(part.x.shape[1] for part in (music.train, music.validation, music.test))
    density = Autoregressive(dist.Bernoulli, trunk(arguments.method, steps), (steps, NOTES))
    p = models.Density(density)
    run = None
    if arguments.folder is not None:
        run = Run(arguments.folder, resume="auto")
    history = fit(
        p,
        None,
        music.train,
        validation=music.validation,
        epochs=arguments.epochs or EPOCHS[arguments.method],
        batch_size=16,
        lr=arguments.rate,
        seed=arguments.seed,
        folder=run,
    )
    name = f"music_density_{arguments.data}_{arguments.method}"
    report = {
        "data": arguments.data,
        "epochs": len(history),
        "best epoch": history.best_epoch,
        "learning rate": arguments.rate,
        "validation": nats_a_step(p, music.validation),
        "test": nats_a_step(p, music.test),
        "published, JSB chorales": PUBLISHED,
        "seconds": round(sum(history["seconds"]), 1),
        "seed": arguments.seed,
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=1))
    out = arguments.out or Path(__file__).parent / "results" / f"{name}.json"
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
