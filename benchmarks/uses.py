"""Uses of a VAE of MNIST: finding digits it has not seen, filling in what is missing,
learning from streams.

    # 10 pairs of 5 epochs each
    TARSPYRO_DATA=... python benchmarks/uses.py anomalies --compile
    # 10 pairs of 50 epochs each
    TARSPYRO_DATA=... python benchmarks/uses.py anomalies --full --compile
    # 20 epochs, 200 test images
    TARSPYRO_DATA=... python benchmarks/uses.py imputation --compile
    # 200 epochs, 1,000 test images
    TARSPYRO_DATA=... python benchmarks/uses.py imputation --full --compile
    # 50,000 images once, in six ways
    TARSPYRO_DATA=... python benchmarks/uses.py streaming --compile

Networks 784-400-400-20 and back, ReLU, binarized dynamically, batches of 100, Adam with a
learning rate of 1e-3.

anomalies: a pair for each digit, which is left out of the 50,000 training images; then the
AUROC of telling its test images from the other digits' by minus the ELBO, by minus log p
(importance weighted) and by minus the reconstruction term. Beside them the known failure
(Nalisnick et al. 2019): how many normal test images score as more anomalous than a black one,
which is unlike all digits; and the mean score of each image by how many white pixels it has.

imputation: the log-likelihood of what was missing given what was not, in nats per image, for
inpainting (the lower half, half of the pixels at random), super-resolution (from 14x14 and
7x7) and denoising (a tenth of the pixels flipped); by the VAE with importance sampling, and by
two baselines without a model: independent pixels with the training images' means, and with
those of the k nearest of 10,000 training images, in the distance of what is observed, with one
white and one black image added to them; k is the best of 5, 10, 20, 50, 100 on as many
validation images. Each also gets the noise's likelihood where pixels are noisy. Below that the
mean squared error of the imputed means, in units of a missing pixel, for each method of
``evaluate.impute``.

streaming: every image is seen once and never again, by ``fit`` on an iterator that does not
say how many there are: in the order of the file in batches of 100 and of 10 and one by one,
against one epoch of shuffled batches of 100; and, as the worst order of arrival, digit after
digit, in batches of 100 and of 10. Single images have a learning rate of 1e-4, all others
1e-3. Figures are log p of the test images, of all, of the zeros (seen first) and of the nines
(seen last).

Results and pictures go to ``benchmarks/results/``.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import torch

from tarspyro import Conditional, data, evaluate, fit, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

LATENT = 20
HIDDEN = [400, 400]
EPOCHS = {
    "anomalies": (5, 50),
    "imputation": (20, 200),
    "streaming": (1, 1),
}  # of the short form, and the full one
NEIGHBOURS = (5, 10, 20, 50, 100)
TASKS = {
    "lower half": data.lower_half,
    "random 50 %": lambda x: data.random_pixels(x, 0.5, seed=0),
    "14x14": lambda x: data.off_grid(x, 2),
    "7x7": lambda x: data.off_grid(x, 4),
    "10 % flipped": lambda x: torch.full_like(x, 0.8),  # a fair coin in the place of a fifth
}


def trained(x, arguments, **options):
    torch.manual_seed(arguments.seed)
    p = models.VAE(
        default_prior(dist.Normal, LATENT),
        Conditional(dist.Bernoulli, MLP(LATENT, HIDDEN), 784),
    )
    q = guides.VAE(Conditional(dist.Normal, MLP(784, HIDDEN), LATENT))
    history = fit(
        p,
        q,
        x,
        epochs=arguments.epochs,
        binarize=True,
        seed=arguments.seed,
        device=arguments.device,
        compile=arguments.compile,
        progress=False,
        **options,
    )
    return p, q, round(sum(history["seconds"]), 1)


def black_and_white(x, seed):
    return torch.bernoulli(x, generator=torch.Generator().manual_seed(seed))


def anomalies(arguments, mnist):
    train = mnist.train[: arguments.images]
    test = mnist.test[: arguments.images]
    rows = {}
    x = black_and_white(test.x, 0)
    particles = {
        "elbo": 10,
        "log_likelihood": 1000 if arguments.full else 50,
        "reconstruction": 10,
    }
    for digit in range(10) if arguments.digit is None else [arguments.digit]:
        p, q, seconds = trained(train.x[train.y != digit], arguments)
        row = {}
        unseen = test.y == digit
        for name, count in particles.items():
            options = {"score": name, "num_particles": count, "seed": 0}
            scores = evaluate.anomaly_score(p, q, x, **options)
            black = evaluate.anomaly_score(p, q, torch.zeros(1, 784), **options)
            normal = scores[~unseen]
            white = x[~unseen].sum(1)
            correlation = np.corrcoef(normal.numpy(), white.numpy())[0, 1]
            row[name] = {
                "auroc": round(evaluate.auroc(scores, unseen), 4),
                "mean score, seen and unseen": [
                    round(scores[part].mean().item(), 2) for part in (~unseen, unseen)
                ],
                "a black image's score": round(black.item(), 2),
                "normal images that look more anomalous than a black one": round(
                    (normal > black).double().mean().item(), 4
                ),
                "correlation of normal images' scores with their white pixels": round(
                    float(correlation), 3
                ),
            }
        rows[str(digit)] = {**row, "seconds of training": seconds}
        print(digit, {name: row[name]["auroc"] for name in particles}, flush=True)
    mean = {
        name: round(float(np.mean([row[name]["auroc"] for row in rows.values()])), 4)
        for name in particles
    }
    return {"digits held out of training": rows, "mean auroc": mean}


def of_pixels(means, x, seen, trust):
    """The log-likelihood of x under independent pixels with these means, given what is seen of
    them.
    """

    def joint(value):
        likelihood = trust * (seen == value) + (1 - trust) / 2
        return torch.where(value > 0, means, 1 - means) * likelihood

    return (joint(x).log() - (joint(x) + joint(1 - x)).log()).sum(1)


def neighbours_means(train, seen, trust, k):
    """The means of the k nearest training images, in the expected number of pixels that
    differ.
    """
    # |a - b| of binary pixels, weighed by the trust in them.
    distances = (trust * seen) @ (1 - train).T + (trust * (1 - seen)) @ train.T
    nearest = distances.topk(k, largest=False).indices
    return (train[nearest].sum(1) + 1) / (k + 2)


def imputation(arguments, mnist):
    p, q, seconds = trained(mnist.train.x[: arguments.images], arguments)
    count, particles = (1000, 1000) if arguments.full else (200, 500)
    if arguments.images is not None:
        count = min(20, arguments.images)
        particles = 50
    train = black_and_white(mnist.train.x[:10_000], 1)
    test, held_out = (
        black_and_white(part.x[:count], 0) for part in (mnist.test, mnist.validation)
    )
    mean_image = (mnist.train.x.sum(0) + 1) / (len(mnist.train) + 2)
    rows = {}
    pictures = {}
    for name, mask_of in TASKS.items():
        start = time.perf_counter()
        mask = mask_of(test)
        noisy = mask.dtype != torch.bool
        trust = mask.to(test.dtype)

        def corrupted(x, trust=trust):
            generator = torch.Generator().manual_seed(2)
            kept = torch.bernoulli(trust, generator=generator)
            return torch.where(
                kept > 0, x, torch.bernoulli(torch.full_like(x, 0.5), generator=generator)
            )

        seen = corrupted(test) if noisy else test
        result = evaluate.imputation_log_likelihood(
            p,
            q,
            test,
            mask,
            corrupted=seen if noisy else None,
            num_particles=particles,
            errors=True,
            seed=0,
        )
        known = corrupted(held_out) if noisy else held_out
        best = max(
            NEIGHBOURS,
            key=lambda k: (
                of_pixels(neighbours_means(train, known, trust, k), held_out, known, trust)
                .mean()
                .item()
            ),
        )
        scores = {
            "vae": result.log_likelihood.cpu(),
            "mean image": of_pixels(mean_image, test, seen, trust),
            "nearest neighbours": of_pixels(
                neighbours_means(train, seen, trust, best), test, seen, trust
            ),
        }
        row = {key: mean_and_error(value) for key, value in scores.items()}
        row |= {
            "k": best,
            "median effective sample size": round(
                result.effective_sample_size.median().item(), 1
            ),
        }
        row["mean standard error of the vae's"] = round(result.standard_error.mean().item(), 3)
        few = min(50, count)
        options = {"mean": True, "seed": 0, "num_samples": 10, "num_particles": particles}
        for method in ("pseudo-gibbs", "metropolis-within-gibbs", "importance"):
            found = evaluate.impute(
                p, q, seen[:few], mask[:few], method=method, **options
            ).cpu()
            error = (found - test[:few]).square() * (1 if noisy else 1 - trust[:few])
            row[f"squared error, {method}"] = round(
                (error.sum() / (error.numel() if noisy else (1 - trust[:few]).sum())).item(), 4
            )
        row["seconds"] = round(time.perf_counter() - start, 1)
        rows[name] = row
        print(name, row, flush=True)
        shown = evaluate.impute(p, q, seen[:12], mask[:12], num_samples=3, seed=0)
        means = evaluate.impute(p, q, seen[:12], mask[:12], **options)
        stack = torch.cat([shown.cpu(), means.cpu().unsqueeze(0)])
        if noisy:  # shown as it is, in the place of shades
            stack = torch.cat([seen[:12].unsqueeze(0), stack])
        pictures[name] = plot.imputations(test[:12], mask[:12], stack)
    for name, figure in pictures.items():
        if arguments.images is None:
            file = f"uses_{name.replace(' %', '').replace(' ', '_')}.png"
            figure.savefig(Path(arguments.out) / file, dpi=100, bbox_inches="tight")
    return {
        "test images": count,
        "particles": particles,
        "tasks": rows,
        "seconds of training": seconds,
    }


def mean_and_error(values):
    return [round(values.mean().item(), 2), round(values.std().item() / len(values) ** 0.5, 2)]


def streaming(arguments, mnist):
    train = mnist.train[: arguments.images]
    count = arguments.images or (10_000 if arguments.full else 1000)
    test = mnist.test[:count]
    particles = 1000 if arguments.full else 100
    x = train.x
    by_digit = train.x[train.y.argsort(stable=True)]
    streams = {
        "one shuffled epoch, batches of 100": (x, 100, None),
        "order of the file, batches of 100": (x, 100, 1e-3),
        "order of the file, batches of 10": (x, 10, 1e-3),
        "order of the file, one by one": (x, 1, 1e-4),
        "digit after digit, batches of 100": (by_digit, 100, 1e-3),
        "digit after digit, batches of 10": (by_digit, 10, 1e-3),
    }
    rows = {}
    for name, (images, size, rate) in streams.items():
        if rate is None:
            p, q, seconds = trained(images, arguments, batch_size=size)
        else:
            batches = images.split(size)
            stream = data.Stream(iter(batches), len(batches))
            p, q, seconds = trained(stream, arguments, lr=rate)
        scores = evaluate.log_likelihood(
            p, q, test.x, binarize=True, num_particles=particles, seed=0
        )
        rows[name] = {
            "log p(x)": mean_and_error(scores),
            "log p(x), zeros": mean_and_error(scores[test.y == 0]),
            "log p(x), nines": mean_and_error(scores[test.y == 9]),
            "steps": -(-len(images) // size),
            "seconds of training": seconds,
        }
        print(name, rows[name], flush=True)
    return {"test images": count, "particles": particles, "streams": rows}


USES = {"anomalies": anomalies, "imputation": imputation, "streaming": streaming}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("use", choices=list(USES))
    parser.add_argument("--full", action="store_true", help="more epochs, images and draws")
    parser.add_argument(
        "--epochs", type=int, help="in place of those of the short or the full form"
    )
    parser.add_argument(
        "--digit", type=int, choices=range(10), help="hold out this digit alone"
    )
    parser.add_argument(
        "--images",
        type=int,
        help="so many images of each part only, to try it; nothing is written",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--out",
        default=str(Path(__file__).parent / "results"),
        help="where the results are kept",
    )
    arguments = parser.parse_args()
    if arguments.epochs is None:
        arguments.epochs = EPOCHS[arguments.use][arguments.full]
    result = USES[arguments.use](arguments, data.mnist())
    report = {
        **{k: v for k, v in vars(arguments).items() if k != "out"},
        "torch": torch.__version__,
        **result,
    }
    print(json.dumps(report, indent=1))
    if arguments.images is None:
        variant = ("_full" if arguments.full else "") + (
            "" if arguments.digit is None else f"_{arguments.digit}"
        )
        variant += f"_seed{arguments.seed}" if arguments.seed else ""
        path = Path(arguments.out) / f"uses_{arguments.use}{variant}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
