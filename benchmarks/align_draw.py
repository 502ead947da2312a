"""AlignDRAW on MNIST with captions: 60 x 60 pixels, one or two digits, withheld captions.

    TARSPYRO_DATA=... python benchmarks/align_draw.py judge
    TARSPYRO_DATA=... python benchmarks/align_draw.py train --record
    TARSPYRO_DATA=... python benchmarks/align_draw.py train --record --resume --epochs 100
    TARSPYRO_DATA=... python benchmarks/align_draw.py train --full --compile --device cuda

``judge`` trains a classifier of real images: which digits an image shows, and where. A
classifier of the pair's own images learns that withheld digits are never at their place, and
names none of them there. So the judge's training images are of four other seeds, which withhold
other digits. ``train`` trains the pair on dynamically binarized images, and measures on captions
that were withheld from training:

- the bound with the caption minus the bound with another row's caption, in nats per image;
- the share of generated images, means of the pixels, in which the judge recognizes all: the
  digits of the caption and their places. It is given for real images too.

Mansimov et al. (2015), arXiv:1511.02793, show images of this data set and give no figures. The
authors' program has T = 32, LSTMs of 300 units, a z of 150, 8 x 8 filters, a language LSTM of
128 units in each direction, an alignment of 512 and 1,000 epochs of 10,000 new images:
``--full``, with images that are drawn once. The short form, the default, is smaller. In both
the canvas starts at the mean image, and the filters cover the image; in the paper the canvas
starts black, and the filters one pixel wide.

A run writes its figures and two pictures to ``benchmarks/results/``: generated images of
withheld captions, and canvases with the alignment in each step.
"""

import argparse
import json
from pathlib import Path

import pyro.distributions as dist
import torch
from matplotlib import pyplot
from torch import nn
from torch.distributions.transforms import ComposeTransform, ExpTransform, TanhTransform
from torch.nn.functional import one_hot

from tarspyro import Conditional, Optimizer, Run, data, evaluate, fit, guides, load_run, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, Compiled
from tarspyro.nn import (
    MLP,
    Alignment,
    AttentionRead,
    AttentionWrite,
    Canvas,
    ConvEncoder,
    IdentityTrunk,
    LanguageRNN,
    Recurrence,
)
from tarspyro.sequences import states_of

RESULTS = Path(__file__).parent / "results"
IMAGE = (1, 60, 60)
FILTERS = 8
SHORT = {"steps": 8, "hidden": 200, "latent": 50, "language": 64, "align": 128, "epochs": 10}
PAPER = {
    "steps": 32,
    "hidden": 300,
    "latent": 150,
    "language": 128,
    "align": 512,
    "epochs": 1000,
}


def pair(sizes, words):
    hidden = sizes["hidden"]
    latent = sizes["latent"]
    rnns = [nn.LSTM(words, sizes["language"]) for _ in range(2)]
    language = LanguageRNN(nn.Embedding(words, words), *rnns)
    align = Alignment(hidden, language.out_features, sizes["align"])
    write = AttentionWrite(hidden, IMAGE, size=FILTERS)
    cell = Recurrence(nn.LSTMCell(latent + language.out_features, hidden), learn_initial=True)
    canvas = Canvas(cell, write)
    read = AttentionRead(hidden, IMAGE, size=FILTERS)
    encoder = Recurrence(nn.LSTMCell(read.out_features + hidden, hidden), learn_initial=True)

    scale = ComposeTransform([TanhTransform(), ExpTransform()])
    transition = Conditional(
        dist.Normal,
        MLP(hidden, []),
        latent,
        transforms={"loc": TanhTransform(), "scale": scale},
    )
    likelihood = Conditional(dist.Bernoulli, IdentityTrunk(IMAGE), IMAGE)
    posterior = Conditional(dist.Normal, MLP(hidden, []), latent)
    shared = (language, align, canvas, likelihood, sizes["steps"])
    p = models.AlignDRAW(default_prior(dist.Normal, latent), transition, *shared)
    return p, guides.AlignDRAW(posterior, encoder, read, *shared)


# --- the judge


def judge():
    trunk = ConvEncoder(IMAGE, [16, 32, 64, 64])
    return models.Classifier(Conditional(dist.OneHotCategorical, trunk, (3, 11)))


def truth(part):
    """The first digit, the second digit or none, and the layout, of shape (N, 3)."""
    return torch.cat([part.digits, part.layout.unsqueeze(1)], 1)


def train_judge(options, captioned):
    torch.manual_seed(options.seed)
    classifier = judge()
    others = [
        data.captioned_mnist(num_train=options.rows // 4, num_test=1, seed=seed).train
        for seed in range(1, 5)
    ]
    labels = torch.cat([truth(part) for part in others])
    fit(
        classifier,
        data=(torch.cat([part.x for part in others]), one_hot(labels, 11).float()),
        epochs=options.epochs or 8,
        lr=1e-3,
        batch_size=100,
        folder=Run(judge_folder(options), resume=options.resume, overwrite=not options.resume),
        seed=options.seed,
        device=options.device,
        progress=False,
    )
    for name in ("test", "withheld"):
        print(name, recognized(classifier, getattr(captioned, name)), flush=True)


def judge_folder(options):
    return Path(options.folder) / "align_draw_judge"


def recognized(classifier, part, images=None):
    """The share of images in which all is recognized, and their digits and layouts alone."""
    found = classifier.classes(part.x if images is None else images)
    right = found == truth(part)
    two = part.layout < 2
    return {
        "all": share(right.all(1)),
        "all, two digits": share(right[two].all(1)),
        "all, one digit": share(right[~two].all(1)),
        "digits": share(right[:, :2].all(1)),
        "layout": share(right[:, 2]),
    }


def share(right):
    return round(right.double().mean().item(), 4)


# --- the pair


def train(options, captioned):
    sizes = {
        name: getattr(options, name) or default
        for name, default in (PAPER if options.full else SHORT).items()
    }
    torch.manual_seed(options.seed)
    words = len(captioned.vocabulary)
    p, q = pair(sizes, words)
    name = f"align_draw_T{sizes['steps']}"
    history = fit(
        p,
        q,
        captioned.train,
        loss=Compiled(ELBO(), backend="eager", choose=False) if options.record else ELBO(),
        lr=options.lr,
        optimizer=Optimizer(torch.optim.Adam, clip_norm=10.0),
        epochs=sizes["epochs"],
        batch_size=100,
        binarize=True,
        folder=Run(
            Path(options.folder) / name, resume=options.resume, overwrite=not options.resume
        ),
        seed=options.seed,
        device=options.device,
        compile=options.compile,
        progress=False,
    )
    p.cpu()
    q.cpu()
    report = {
        **sizes,
        "training images": len(captioned.train),
        "seed": options.seed,
        "lr": options.lr,
        "compiled": options.compile,
        "recorded": options.record,
        "torch": torch.__version__,
        "device": options.device,
        "parameters": sum(part.numel() for part in {*p.parameters(), *q.parameters()}),
        "training loss by epoch": [round(loss, 2) for loss in history["loss"]],
        "seconds of training": round(sum(history["seconds"]), 1),
        "test": measure(p, q, captioned.test, options),
        "withheld": measure(p, q, captioned.withheld, options),
    }
    print(json.dumps(report), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    generated(p, captioned).savefig(options.results / f"{name}_generated.png", dpi=70)
    aligned(p, captioned).savefig(options.results / f"{name}_aligned.png", dpi=70)


def measure(p, q, part, options):
    judged = {"binarize": True, "seed": 0}
    bound = evaluate.elbo(p, q, part, **judged)
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
    other = {"x": part.x, "y": part.y[order], "lengths": part.lengths[order]}
    gain = bound.elbo - evaluate.elbo(p, q, other, **judged).elbo
    figures = {
        "images": len(part),
        "minus elbo": round(-bound.elbo.mean().item(), 2),
        "kl": round(bound.kl.mean().item(), 2),
        "gain by the caption": round(gain.mean().item(), 2),
        "standard error of the gain": round(gain.std().item() / len(part) ** 0.5, 2),
    }
    if judge_folder(options).exists():
        classifier = load_run(judge_folder(options)).model
        given = {"y": part.y, "lengths": part.lengths}
        images = evaluate.sample(p, len(part), given=given, mean=True, seed=0)
        figures["recognized"] = recognized(classifier, part, images)
        figures["recognized in real images"] = recognized(classifier, part)
    return figures


def generated(p, captioned, num=8, each=4):
    """Images of withheld captions."""
    part = captioned.withheld[:num]
    figure, axes = pyplot.subplots(
        2, num // 2, figsize=(3.2 * num // 2, 7), layout="constrained"
    )
    for ax, row in zip(axes.flat, range(num), strict=True):
        one = part[row : row + 1]
        given = {"y": one.y.expand(each, -1), "lengths": one.lengths.expand(each)}
        images = evaluate.sample(p, each, given=given, mean=True, seed=row)[:, 0]
        rows = [torch.cat([*pair], 1) for pair in images.split(2)]
        ax.imshow(torch.cat(rows), cmap="gray", vmin=0, vmax=1)
        caption = captioned.decode(one.y)[0].split()
        ax.set_title(" ".join(caption[:6]) + "\n" + " ".join(caption[6:]), fontsize=9)
        ax.axhline(59.5, color="grey", lw=0.5)
        ax.axvline(59.5, color="grey", lw=0.5)
        ax.set_axis_off()
    return figure


def aligned(p, captioned, num=3):
    """The canvas after each step, and the weights of the words in it."""
    part = captioned.withheld[torch.arange(num)]
    with torch.no_grad():
        torch.manual_seed(0)
        states = states_of(p, y=part.y, lengths=part.lengths)
        words = p.align.words(p.language(part.y, part.lengths), part.lengths)
        weights = [p.align.weights(p.canvas.hidden(state), words) for state in states[:-1]]
        images = [p.likelihood(p.canvas.painted(state)).mean for state in states[1:]]
    figure, axes = pyplot.subplots(
        2 * num,
        p.steps,
        figsize=(1.5 * p.steps, 3.6 * num),
        squeeze=False,
        layout="constrained",
    )
    for row in range(num):
        caption = captioned.decode(part.y[row : row + 1])[0].split()
        for t in range(p.steps):
            axes[2 * row, t].imshow(images[t][row, 0], cmap="gray", vmin=0, vmax=1)
            axes[2 * row, t].set_axis_off()
            below = axes[2 * row + 1, t]
            below.barh(range(len(caption)), weights[t][row], color="black")
            below.set(xlim=(0, 1), xticks=[], yticks=range(len(caption)))
            below.set_yticklabels(caption if t == 0 else [""] * len(caption), fontsize=7)
            below.invert_yaxis()
    return figure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["judge", "train"])
    parser.add_argument(
        "--full", action="store_true", help="the sizes of the authors' program"
    )
    for name, default in SHORT.items():
        parser.add_argument(f"--{name}", type=int, help=f"{default}, in full {PAPER[name]}")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=20_000, help="how many images to train on")
    parser.add_argument("--test-rows", type=int, default=2_000, help="how many to judge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument(
        "--record", action="store_true", help="record the steps as graphs, without compiling"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--folder", default="runs", help="where the runs are kept")
    parser.add_argument(
        "--results", default=RESULTS, type=Path, help="where the figures are written"
    )
    options = parser.parse_args()
    captioned = data.captioned_mnist(num_train=options.rows, num_test=options.test_rows)
    (train_judge if options.part == "judge" else train)(options, captioned)


if __name__ == "__main__":
    main()
