"""Few labels on MNIST: M2 with labels summed out or relaxed, M1 with a linear probe, M1 + M2;
and the time of a step.

    # M2, labels summed out
    TARSPYRO_DATA=... python benchmarks/semi_supervised.py m2
    # The same with a convolutional classifier
    TARSPYRO_DATA=... python benchmarks/semi_supervised.py m2-conv
    # M2, straight-through Gumbel-softmax labels
    TARSPYRO_DATA=... python benchmarks/semi_supervised.py m2-gumbel
    # A VAE, and a linear probe on its codes
    TARSPYRO_DATA=... python benchmarks/semi_supervised.py m1
    # M2 on draws of the codes of that VAE
    TARSPYRO_DATA=... python benchmarks/semi_supervised.py m1m2
    # One step of M2, against TraceEnum_ELBO
    python benchmarks/semi_supervised.py time [--rounds 10]

50,000 training images, of which 100 keep their labels, ten of each class; three splits, each
with its own weights; 10,000 test images, binarized dynamically in training and grey when they
are classified. With ``--full`` the length is that of the sources, otherwise a tenth of it or
less; ``--epochs`` sets it.

- M2 (Kingma et al. 2014, arXiv:1406.5298): one hidden layer of 500 softplus units, z of 50,
  alpha = 0.1 N, batches of 100 labelled and 100 unlabelled images. The paper has 88.03 %
  (11.97 +- 1.71 % error); Pyro's tutorial, with labels summed out and the classifier's term,
  93.19 +- 0.60 % after 50 epochs; Jang et al. (2016, arXiv:1611.01144), with convolutions,
  92.6 % summed out, 92.4 % relaxed and 93.6 % straight-through.
- M2 with a convolutional classifier: halving layers of 32, 64 and 64 maps with batch
  normalization and dropout (0.25 of the maps, half of the last units); alpha = N, batches of
  50 labelled and 50 unlabelled images.
- M1: 784-600-600-50 softplus; then multinomial logistic regression on the posterior means of
  the labelled images. The paper has 88.18 % with a transductive SVM in its place.
- M1 + M2: the units whose means have a standard deviation above 0.1, a draw of them from q(z |
  x) in every batch; one hidden layer of 300, z of 50. The paper has 96.67 +- 0.14 % after
  3,000 passes of 100 batches, with alpha = 0.1; here a pass has 555 batches of 90 rows and 10
  labelled ones, and alpha is 1.

Adam; the rate of M2 with convolutions and of M1 + M2 falls to 0 over the second half. What
differs from the papers was chosen on the validation images of the first split. Results are
written to ``benchmarks/results/``.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from contestants import measure, ratio
from pyro.infer import SVI, TraceEnum_ELBO
from sklearn.linear_model import LogisticRegression
from torch import nn

from tarspyro import Conditional, data, evaluate, fit, guides, models
from tarspyro.distributions import GumbelSoftmax, default_prior
from tarspyro.infer import ELBO, Compiled, SemiSupervised
from tarspyro.nn import MLP
from tarspyro.scopes import local_parameters
from tarspyro.training.counts import Counts
from tarspyro.training.losses import Objective
from tarspyro.training.state import TrainingState
from tarspyro.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
EPOCHS = {
    "m2": (5, 50),
    "m2-conv": (40, 100),
    "m2-gumbel": (5, 50),
    "m1": (20, 500),
    "m1m2": (120, 3000),
}
ALPHA = {"m2-conv": 1.0, "m1m2": 1.0}  # others: 0.1
RATE = {"m2-conv": 1e-3, "m1m2": 1e-3}  # others: 3e-4
PUBLISHED = {
    "m2": {"Kingma et al.": 88.03, "Pyro's tutorial": 93.19, "Jang et al., summed out": 92.6},
    "m2-conv": {
        "Pyro's tutorial, without convolutions": 93.19,
        "Jang et al., summed out": 92.6,
    },
    "m2-gumbel": {"Jang et al., relaxed": 92.4, "Jang et al., straight-through": 93.6},
    "m1": {"Kingma et al., with a TSVM": 88.18},
    "m1m2": {"Kingma et al.": 96.67},
}
SUMMED_OUT = (dist.OneHotCategorical, {})
LABELS = {
    "m2": SUMMED_OUT,
    "m2-conv": SUMMED_OUT,
    "m2-gumbel": (GumbelSoftmax, {"hard": True, "temperature": 1.0}),
}


class Convolutions(nn.Module):
    """Three halving layers with batch normalization; a part of their maps and units is dropped
    in training.
    """

    def __init__(self):
        super().__init__()
        layers = []
        for maps, after in ((1, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(maps, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += (
                [nn.Dropout2d(0.25)] if after != maps else [nn.Flatten(), nn.Dropout(0.5)]
            )
        self.layers = nn.Sequential(*layers)
        self.in_shapes = ((1, 28, 28),)
        self.out_features = 64 * 4 * 4

    def forward(self, image):
        rows = image.shape[: image.dim() - (3 if image.shape[-1] == 28 else 1)]
        return self.layers(image.reshape(-1, 1, 28, 28)).reshape(*rows, -1)


def pair(features, hidden, likelihood, *, labels="m2", num_labelled=0, num_unlabelled=0):
    """M2 on rows of so many features."""
    family, options = LABELS[labels]
    sizes = {"num_labelled": num_labelled, "num_unlabelled": num_unlabelled}

    def trunk(inputs):
        return MLP(inputs, [hidden], activation=nn.Softplus)

    seen = Convolutions() if labels == "m2-conv" else trunk(features)
    classifier = Conditional(family, seen, 10, **options)
    model = models.SemiSupervisedVAE(
        default_prior(dist.Normal, 50),
        default_prior(family, 10, **options),
        Conditional(likelihood, trunk([50, 10]), features),
        **sizes,
    )
    posterior = Conditional(dist.Normal, trunk([features, 10]), 50)
    return model, guides.SemiSupervisedVAE(classifier, posterior, **sizes)


def objective(alpha=0.1):
    """J of eq. 9 of Kingma et al. (2014)."""
    return SemiSupervised(ELBO(), alpha)


def sizes_of(labelled, rest):
    return {"num_labelled": len(labelled), "num_unlabelled": len(rest)}


def m2(mnist, parts, options, epochs, seed):
    halves = pair(784, 500, dist.Bernoulli, labels=options.method, **sizes_of(*parts))
    size = 50 if options.method == "m2-conv" else 100
    batches = data.PartlyLabelled(
        *parts, batch_size=size, labelled_batch_size=size, binarize=True
    )
    schedules = (
        falling(options.lr, epochs * len(batches)) if options.method == "m2-conv" else None
    )
    history = train(
        halves,
        batches,
        options,
        epochs,
        seed,
        loss=objective(options.alpha),
        schedules=schedules,
    )
    found = {
        part: 100 * evaluate.accuracy(halves[1], rows.x, rows.y)
        for part, rows in (("test", mnist.test), ("validation", mnist.validation))
    }
    return {**found, "elbo": history["elbo"][-1], "seconds": sum(history["seconds"])}


def codes(mnist, options, epochs, seed):
    """The means and the standard deviations of q(z | x) of all images, and the seconds of
    training.
    """
    halves = (
        models.VAE(
            default_prior(dist.Normal, 50),
            Conditional(dist.Bernoulli, MLP(50, [600, 600], activation=nn.Softplus), 784),
        ),
        guides.VAE(Conditional(dist.Normal, MLP(784, [600, 600], activation=nn.Softplus), 50)),
    )
    history = train(halves, mnist.train.x, options, epochs, seed, binarize=True)
    posterior = halves[1].posterior.cpu().eval()
    with torch.no_grad():
        found = {}
        for part, rows in (
            ("train", mnist.train),
            ("validation", mnist.validation),
            ("test", mnist.test),
        ):
            spread = [posterior(batch) for batch in rows.x.split(1000)]
            moments = [
                torch.cat([getattr(q, name) for q in spread]) for name in ("mean", "stddev")
            ]
            found[part] = torch.stack(moments, 1)
    return found, sum(history["seconds"])


def m1(mnist, split, options, epochs, seed):
    found, seconds = codes(mnist, options, epochs, seed)
    labelled = data.Split(torch.arange(len(mnist.train)), mnist.train.y)
    few = data.labelled_subset(labelled, options.labels, seed=split)[0]
    probe = LogisticRegression(max_iter=10_000).fit(found["train"][few.x, 0], few.y)
    return {"test": 100 * probe.score(found["test"][:, 0], mnist.test.y), "seconds": seconds}


class Draws:
    """Batches of draws of the codes, new ones every time, from batches of their moments."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for x, y, unlabelled in self.batches:
            yield self.draw(x), y, self.draw(unlabelled)

    def draw(self, moments):
        return torch.normal(moments[:, 0], moments[:, 1])


def m1m2(mnist, split, options, epochs, seed):
    found, seconds = codes(mnist, options, options.m1_epochs, seed)
    used = found["train"][:, 0].std(0) > 0.1
    rows = data.Split(found["train"][..., used], mnist.train.y)
    parts = data.labelled_subset(rows, options.labels, seed=split)
    batches = data.PartlyLabelled(*parts, batch_size=90, labelled_batch_size=10)
    halves = pair(int(used.sum()), 300, dist.Normal, **sizes_of(*parts))
    schedules = falling(options.lr, epochs * len(batches))
    loss = objective(options.alpha)
    history = train(
        halves, Draws(batches), options, epochs, seed, loss=loss, schedules=schedules
    )
    return {
        "test": 100 * evaluate.accuracy(halves[1], found["test"][:, 0, used], mnist.test.y),
        "validation": 100
        * evaluate.accuracy(halves[1], found["validation"][:, 0, used], mnist.validation.y),
        "units": int(used.sum()),
        "elbo": history["elbo"][-1],
        "seconds": seconds + sum(history["seconds"]),
    }


def falling(rate, steps):
    """A learning rate that falls to 0 over the second half."""
    return {"lr": lambda step: rate * min(1.0, 2 - 2 * step / steps)}


def train(halves, batches, options, epochs, seed, **more):
    return fit(
        *halves,
        batches,
        epochs=epochs,
        lr=options.lr,
        compile=options.compile,
        device=options.device,
        seed=seed,
        progress=options.progress,
        autocast=torch.bfloat16 if options.bfloat16 else None,
        **more,
    )


def accuracies(options):
    mnist = data.mnist()
    epochs = options.epochs or EPOCHS[options.method][options.full]
    options.m1_epochs = options.m1_epochs or EPOCHS["m1"][options.full]
    rows = []
    for split in range(options.first_split, options.first_split + options.splits):
        torch.manual_seed(split)
        start = time.perf_counter()
        if options.method.startswith("m2"):
            row = m2(
                mnist,
                data.labelled_subset(mnist.train, options.labels, seed=split),
                options,
                epochs,
                split,
            )
        else:
            row = {"m1": m1, "m1m2": m1m2}[options.method](
                mnist, split, options, epochs, split
            )
        rows.append({name: round(value, 2) for name, value in row.items()})
        print(
            f"split {split}: {rows[-1]}, {time.perf_counter() - start:.0f} s in all",
            flush=True,
        )
        test = [row["test"] for row in rows]
        report = {
            "method": options.method,
            "labels": options.labels,
            "epochs": epochs,
            **({"epochs of M1": options.m1_epochs} if options.method == "m1m2" else {}),
            "learning rate": options.lr,
            "alpha": options.alpha,
            "test accuracy, %": round(statistics.mean(test), 2),
            "standard deviation over splits": round(statistics.stdev(test), 2)
            if len(test) > 1
            else None,
            "splits": rows,
            "published, 100 labels": PUBLISHED[options.method],
            "compiled": options.compile,
            "networks train in": "bfloat16" if options.bfloat16 else "float32",
            "torch": torch.__version__,
        }
        variant = "" if options.labels == 100 else f"_{options.labels}"
        variant += f"_from{options.first_split}" if options.first_split else ""
        options.out.mkdir(exist_ok=True)
        path = (
            options.out / f"semi_supervised_{options.method.replace('-', '_')}{variant}.json"
        )
        path.write_text(json.dumps(report, indent=1) + "\n")


# --- the time of a step


def ours(arguments, compiled):
    """The step that ``fit`` runs, its bookkeeping included."""
    halves = pair(784, 500, dist.Bernoulli, num_labelled=100, num_unlabelled=49_900)
    parameters = list({id(p): p for half in halves for p in half.parameters()}.values())
    optimizer = torch.optim.Adam(parameters, lr=3e-4, fused=True)  # as fit chooses
    bound = Compiled(objective(), choose=False) if compiled else objective()
    trained = Objective(bound, *halves)
    trained.add_players(parameters, [])
    state = TrainingState(trained.halves, [optimizer])
    trainer = Trainer(trained, state, count=lambda batch: Counts(50_000, 50_000))

    def step(_):
        with local_parameters(), pyro.validation_enabled(False):
            return trainer.step(arguments)

    return step


def enumerated_by_pyro(arguments, concatenating):
    """The same pair under Pyro's bound; its tutorial's networks concatenate the image with
    each of the labels.
    """
    halves = pair(784, 500, dist.Bernoulli, num_labelled=100, num_unlabelled=49_900)
    for module in (module for half in halves for module in half.modules()):
        if isinstance(module, MLP):
            module.broadcasts = not concatenating
    model, guide = halves

    def with_labels(x, y, unlabelled):
        """The objective of eq. 9 as Pyro's tutorials write it: the labels observed once more,
        with a scale.
        """
        model(x, y, unlabelled)
        with (
            pyro.plate("classified", 100, subsample=x),
            pyro.poutine.scale(scale=0.1 * 50_000 / 100),
        ):
            pyro.sample("y_classified", guide.classifier(x), obs=y)

    inference = SVI(
        with_labels, guide, pyro.optim.Adam({"lr": 3e-4}), TraceEnum_ELBO(max_plate_nesting=1)
    )

    def step(_):
        with pyro.validation_enabled(False):
            return inference.step(*arguments)

    return step


def step_times(options):
    warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    x = torch.rand(100, 784).round()
    y = torch.eye(10).repeat(10, 1)
    arguments = (x, y, torch.rand(100, 784).round())
    contestants = {
        "Pyro SVI, TraceEnum_ELBO": enumerated_by_pyro(arguments, True),
        "Pyro SVI, TraceEnum_ELBO, our first layers": enumerated_by_pyro(arguments, False),
        "tarspyro, eager": ours(arguments, False),
        "tarspyro, compiled": ours(arguments, True),
    }
    times = measure(contestants, x, options.rounds)
    report = {"threads": options.threads, "torch": torch.__version__, "rows": {}}
    for name, values in times.items():
        to_pyro = round(ratio(times, name, "Pyro SVI, TraceEnum_ELBO"), 2)
        report["rows"][name] = {"ms": round(statistics.median(values), 1), "to Pyro": to_pyro}
        print(f"{name:45} {report['rows'][name]}")
    options.out.mkdir(exist_ok=True)
    (options.out / "semi_supervised_time.json").write_text(json.dumps(report, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=[*EPOCHS, "time"])
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="as long as the sources")
    parser.add_argument("--epochs", type=int, help="passes over the data, instead")
    parser.add_argument("--m1-epochs", type=int, help="those of M1 under M2")
    parser.add_argument("--lr", type=float, help="3e-4 if not given, for M1 + M2 1e-3")
    parser.add_argument("--alpha", type=float, help="0.1 if not given, for M1 + M2 1")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="networks train in this type; densities never do",
    )
    parser.add_argument("--first-split", type=int, default=0)
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.lr = options.lr or RATE.get(options.method, 3e-4)
    options.alpha = options.alpha or ALPHA.get(options.method, 0.1)
    step_times(options) if options.method == "time" else accuracies(options)


if __name__ == "__main__":
    main()
