"""Images with labels in the set-up of JMVAE, and images with other images of the same digit:
coherence.

    # 40 epochs: 20 minutes of a core
    TARSPYRO_DATA=... python benchmarks/multimodal.py labels --method kl --compile
    TARSPYRO_DATA=... python benchmarks/multimodal.py labels --method zero --compile
    TARSPYRO_DATA=... python benchmarks/multimodal.py labels --method product --compile
    # 500 epochs: for a GPU
    TARSPYRO_DATA=... python benchmarks/multimodal.py labels --method kl --full --compile
    # 10 epochs; 30 with --full
    TARSPYRO_DATA=... python benchmarks/multimodal.py twins --method mixture --compile
    python benchmarks/multimodal.py table

``labels`` is MNIST and its one-hot labels as in Suzuki et al. (2016, arXiv:1611.01891):
networks of 784-512-512 and 10-512-512 ReLU, joined at 512 + 512, z of 64 dimensions with
softplus for the variance, decoders of 512-512, Adam at 1e-3, 60,000 images binarized
dynamically in batches of 100, beta warmed up over two fifths of the epochs. The figures are of
the test images, binarized once, by importance sampling with K = 1,000 (of the first 1,000
without ``--full``): log p(x), from codes of image and label as in the paper and of the image
alone; log p(x, y); log p(y), from codes of the label and of the prior; and log p(x | y), which
is log p(x, y) less the last: a guide that was never trained on labels alone falls far short of
log p(y), and the difference would be flattered by what it lacks. The paper's -86.86, for
JMVAE-kl with alpha = 0.1 after 500 epochs, is log p(x) from codes of image and label, and the
image's term alone. Methods are JMVAE-zero, JMVAE-kl, the product of experts (MVAE, with the
bounds of single modalities in the loss, and no larger weight for labels) and the mixture of
experts (MMVAE), by the ELBO or by IWAE with 10 draws and ``dreg``; by the bound of Shi et al.
(2019), a mean over experts of the ELBO, or of IWAE with 5 draws of each (``mixture-strata``,
``mixture-strata-iwae``); and the mixture of products (MoPoE).

``twins`` stands in for MNIST and SVHN, which is not held here: every image is paired with
another one of the same digit, rotated by a quarter turn and inverted, so that the pair shares
the digit and nothing else. It is easier than SVHN, and its figures are not to be compared with
published ones. Networks of 400-400 ReLU, z of 20 dimensions, both modalities binarized once.
Coherence is judged by a network of 784-256-10, whose accuracy is reported with it.
"""

import argparse
import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions.transforms import ComposeTransform, PowerTransform, SoftplusTransform

from tarspyro import Conditional, data, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE, ModalityKL, ModalityStrata, ModalitySubsets
from tarspyro.nn import MLP

RESULTS = Path(__file__).parent / "results"
METHODS = (
    *("zero", "kl", "product", "mixture", "mixture-iwae"),
    *("mixture-strata", "mixture-strata-iwae", "mixture-of-products"),
)
PAPER = {"kl": -86.86}  # log p(x) after 500 epochs, alpha = 0.1


class Joined(nn.Module):
    """A layer for each modality, and one for both together."""

    def __init__(self, sizes, hidden):
        super().__init__()
        self.first = nn.ModuleList(MLP(size, [hidden]) for size in sizes)
        self.second = MLP([hidden] * len(sizes), [hidden])
        self.in_shapes = tuple((size,) for size in sizes)
        self.out_features = hidden

    def forward(self, *x):
        return self.second(*(layer(value) for layer, value in zip(self.first, x, strict=True)))


def code(trunk, size):
    variance = ComposeTransform([SoftplusTransform(), PowerTransform(torch.tensor(0.5))])
    return Conditional(dist.Normal, trunk, size, transforms={"scale": variance})


def pair(method, families, sizes, hidden, latent):
    """The model and guide of a method; the trunks have two hidden layers."""
    prior = default_prior(dist.Normal, latent)
    likelihoods = [
        Conditional(family, MLP(latent, [hidden] * 2), size)
        for family, size in zip(families, sizes, strict=True)
    ]
    posteriors = [code(MLP(size, [hidden] * 2), latent) for size in sizes]
    if method in ("zero", "kl"):
        joint = code(Joined(sizes, hidden), latent)
        return models.JMVAE(prior, likelihoods), guides.JMVAE(
            joint, posteriors if method == "kl" else None
        )
    p = models.MVAE(prior, likelihoods)
    experts = method.removesuffix("-iwae").removesuffix("-strata")
    return p, guides.MVAE(posteriors, p.prior, experts)


def loss_of(method, alpha):
    return {
        "zero": ELBO(),
        "kl": ModalityKL(ELBO(), alpha),
        "product": ModalitySubsets(ELBO()),
        "mixture": ELBO(),
        "mixture-iwae": IWAE(10, gradient="dreg"),
        "mixture-strata": ModalityStrata(ELBO()),
        "mixture-strata-iwae": ModalityStrata(IWAE(5, gradient="dreg")),
        "mixture-of-products": ELBO(),
    }[method]


def trained(arguments, p, q, train, **options):
    loss = loss_of(arguments.method, arguments.alpha)
    steps = -(-len(train[0]) // 100)
    warm_up = max(1, int(0.4 * arguments.epochs)) * steps
    if "beta" in loss.adjustable and options.pop("warm_up", False):
        options["schedules"] = {"beta": lambda step: min(1.0, (step + 1) / warm_up)}
    options.pop("warm_up", None)
    history = fit(
        p,
        q,
        train,
        loss=loss,
        epochs=arguments.epochs,
        seed=arguments.seed,
        device=arguments.device,
        compile=arguments.compile,
        **options,
    )
    shown = ("loss", "bound", "modality_kl")
    measured = {
        f"train {name}": round(history[name][-1], 2) for name in shown if name in history
    }
    has_elbo = "elbo" in history
    curve = history["elbo"] if has_elbo else [-loss for loss in history["loss"]]
    measured["train elbo by epoch" if has_elbo else "minus train loss by epoch"] = [
        round(v, 2) for v in curve
    ]
    return measured | {"seconds of training": round(sum(history["seconds"]), 1)}


def from_prior(p, x):
    """Codes that look at nothing: enough for a label, and the same for guides that cannot do
    without an image.
    """
    with pyro.plate("data", next(len(value) for value in x if value is not None)):
        pyro.sample("z", p.prior())


def labels(arguments):
    mnist = data.mnist(validation=0).one_hot()
    train = mnist.train[: arguments.rows]
    test = mnist.test[: arguments.images]
    p, q = pair(arguments.method, (dist.Bernoulli, dist.OneHotCategorical), (784, 10), 512, 64)
    row = trained(arguments, p, q, (train.x, train.y), binarize=True, warm_up=True)
    x = torch.bernoulli(test.x, generator=torch.Generator().manual_seed(0)), test.y
    wanted = {
        "log p(x), codes of x and y": {"of": "x_1", "encoded": ["x_1", "x_2"]},
        "log p(x), codes of x": {"of": "x_1"},
        "log p(x, y)": {},
        "log p(y), codes of y": {"of": "x_2"},
        "log p(y), codes of the prior": {"of": "x_2"},
    }
    scores = {}
    for name, which in wanted.items():
        guide = (lambda *x: from_prior(p, x)) if "prior" in name else q
        scores[name] = evaluate.multimodal_log_likelihood(
            p, guide, x, num_particles=arguments.particles, seed=len(scores), **which
        )
    scores["log p(x | y)"] = scores["log p(x, y)"] - scores["log p(y), codes of the prior"]
    for name, score in scores.items():
        row[name] = round(score.mean().item(), 2)
        row[f"{name}, standard error over images"] = round(
            score.std().item() / len(score) ** 0.5, 2
        )
    return row | {"paper, log p(x), 500 epochs": PAPER.get(arguments.method)}


def turned(x):
    """The images rotated by a quarter turn and inverted."""
    return 1 - x.reshape(-1, 28, 28).rot90(1, (1, 2)).flatten(1)


def turned_back(x):
    return (1 - x).reshape(-1, 28, 28).rot90(-1, (1, 2)).flatten(1)


def twins_of(split, generator):
    """Black and white images and, turned, others of the same digits."""
    x = torch.bernoulli(split.x, generator=generator)
    partner = torch.empty(len(split), dtype=torch.long)
    for digit in split.y.unique():
        members = (split.y == digit).nonzero().flatten()
        partner[members] = members[torch.randperm(len(members), generator=generator)]
    return x, turned(x[partner])


def classifier(x, y, device):
    """A network that tells digits, trained for three epochs."""
    network = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(3):
        for index in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(
                network(x[index].to(device)), y[index].to(device)
            ).backward()
            optimizer.step()

    def classify(images):
        with torch.no_grad():
            return network(images.to(device)).argmax(1).cpu()

    return classify


def twins(arguments):
    mnist = data.mnist(validation=0)
    random = torch.Generator().manual_seed(arguments.seed)
    train = mnist.train[: arguments.rows]
    test = mnist.test[: arguments.images]
    pairs = twins_of(train, random)
    held_out = twins_of(test, random)
    p, q = pair(arguments.method, (dist.Bernoulli, dist.Bernoulli), (784, 784), 400, 20)
    row = trained(arguments, p, q, pairs)
    torch.manual_seed(arguments.seed)  # one judge for all methods
    classify = classifier(pairs[0], train.y, next(p.parameters()).device)
    accuracy = (classify(held_out[0]) == test.y).double().mean().item()
    classifiers = [classify, lambda x: classify(turned_back(x))]
    rounds = {"": 0} | ({", 5 rounds": 5} if arguments.method == "zero" else {})
    for name, num_rounds in rounds.items():
        shares = evaluate.coherence(
            p,
            q,
            held_out,
            classifiers,
            labels=test.y,
            num_samples=10_000,
            num_rounds=num_rounds,
            seed=0,
        )
        row |= {
            f"coherence, {key}{name}": round(100 * share, 1) for key, share in shares.items()
        }
    return row | {"accuracy of the classifier": round(100 * accuracy, 1)}


def table():
    for path in sorted(RESULTS.glob("multimodal_*.json")):
        row = json.loads(path.read_text())
        shown = {
            name: value
            for name, value in row.items()
            if name.startswith(("log p", "coherence"))
        }
        print(
            path.stem,
            *(f"{name}: {value}" for name, value in shown.items() if "error" not in name),
            sep="\n    ",
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["labels", "twins", "table"])
    parser.add_argument("--method", choices=METHODS, default="kl")
    parser.add_argument(
        "--alpha", type=float, default=0.1, help="the weight of the KLs of JMVAE-kl"
    )
    parser.add_argument("--epochs", type=int, help="40 for labels, 10 for twins, if not given")
    parser.add_argument(
        "--full", action="store_true", help="500 and 30 epochs, and all test images"
    )
    parser.add_argument("--particles", type=int, default=1000, help="K of the log-likelihoods")
    parser.add_argument(
        "--images",
        type=int,
        help="so many test images; 1,000 for labels if not given, without --full",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--rows",
        type=int,
        help="so many training rows only, to try it; no results are written",
    )
    arguments = parser.parse_args()
    if arguments.task == "table":
        return table()
    if arguments.epochs is None:
        arguments.epochs = {"labels": (40, 500), "twins": (10, 30)}[arguments.task][
            arguments.full
        ]
    if arguments.images is None and arguments.task == "labels" and not arguments.full:
        arguments.images = 1000
    torch.manual_seed(arguments.seed)
    row = {"labels": labels, "twins": twins}[arguments.task](arguments)
    report = {
        "method": arguments.method,
        "alpha": arguments.alpha if arguments.method == "kl" else None,
    }
    report |= {
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "compile": arguments.compile,
    }
    report |= {
        "torch": torch.__version__,
        "test images": arguments.images or 10_000,
        "K": arguments.particles,
        **row,
    }
    print(json.dumps(report, indent=1))
    if arguments.rows is not None:
        return None
    name = f"multimodal_{arguments.task}_{arguments.method}"
    if arguments.method == "kl" and arguments.alpha != 0.1:
        name += f"_alpha{arguments.alpha:g}"
    if arguments.full:
        name += "_full"
    if arguments.seed:
        name += f"_seed{arguments.seed}"
    return (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
