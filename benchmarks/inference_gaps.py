"""The cost of inference in a VAE and an IWAE on binarized MNIST: gaps, annealed log-likelihoods
and true posteriors.

    # The short form: minutes of one CPU core
    TARSPYRO_DATA=... python benchmarks/inference_gaps.py
    # Trained to the end, 100 images, longer chains
    TARSPYRO_DATA=... python benchmarks/inference_gaps.py --full

Networks 784-200-200-50 and 784-200-200-2 with tanh, trained with the ELBO and with IWAE (k =
10) on pixels drawn anew for every batch (Burda et al. 2015), then on some binarized test
images:

- log p(x) importance weighted and by annealed importance sampling from the prior (Wu et al.
  2017), with standard
  errors: the second owes nothing to the guide. Both are lower bounds in expectation, the
      second a loose one where the
  chains are too few or too short, which its effective sample size tells;
- log p(x) - ELBO as approximation and amortization gap (Cremer et al. 2018), with log p(x)
  importance weighted by the guide and the best of its family for each image: a poor guide's
  own weights fall short of its gap;
- with two latent dimensions the true posterior of single digits by the No-U-Turn sampler,
  beside the guide's.

The short form says how the parts compare, not how good the networks get: it trains for a few
epochs. Results go to ``benchmarks/results/``: inference_gaps.json and .png, true_posterior.png
(VAE) and true_posterior_iwae.png.
"""

import argparse
import json
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from tarspyro import Conditional, data, evaluate, fit, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.infer import ELBO, IWAE
from tarspyro.nn import MLP

LOSSES = {"VAE": ELBO, "IWAE": lambda: IWAE(num_particles=10)}
SHORT = {
    "epochs": 3,
    "images": 50,
    "particles": 1000,
    "steps": 200,
    "chains": 8,
    "search": 300,
    "warmup": 100,
    "draws": 100,
}
FULL = {
    "epochs": 100,
    "images": 100,
    "particles": 5000,
    "steps": 2000,
    "chains": 16,
    "search": 1000,
    "warmup": 500,
    "draws": 1000,
}


def pair(size):
    trunk = {"activation": nn.Tanh}
    model = models.VAE(
        default_prior(dist.Normal, size),
        Conditional(dist.Bernoulli, MLP(size, [200, 200], **trunk), 784),
    )
    return model, guides.VAE(Conditional(dist.Normal, MLP(784, [200, 200], **trunk), size))


def over_images(values):
    """The mean and its standard error over the images."""
    return {
        "mean": round(values.mean().item(), 3),
        "error": round((values.std() / len(values) ** 0.5).item(), 3),
    }


def estimate(result, seconds):
    return {
        "log p": over_images(result.log_likelihood),
        "standard error of an image, median": round(result.standard_error.median().item(), 3),
        "effective sample size, median": round(
            result.effective_sample_size.median().item(), 1
        ),
        "seconds": round(seconds, 1),
    }


def by_image(result):
    return {
        part: [round(value, 3) for value in values.tolist()]
        for part, values in result._asdict().items()
    }


def timed(function, *arguments, **options):
    start = time.perf_counter()
    return function(*arguments, **options), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    for name, number in SHORT.items():
        parser.add_argument(f"--{name}", type=int, help=f"{number}, with --full {FULL[name]}")
    parser.add_argument(
        "--digits", type=int, default=4, help="of how many images the true posterior is drawn"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    settings = {
        name: number if getattr(arguments, name) is None else getattr(arguments, name)
        for name, number in (FULL if arguments.full else SHORT).items()
    }
    mnist = data.mnist(validation=0)
    x = torch.bernoulli(
        mnist.test.x[: settings["images"]], generator=torch.Generator().manual_seed(0)
    )
    rows = {}
    drawn = {}
    for size in (50, 2):
        for name, loss in LOSSES.items():
            torch.manual_seed(arguments.seed)
            model, guide = pair(size)
            history = fit(
                model,
                guide,
                mnist.train,
                loss=loss(),
                epochs=settings["epochs"],
                binarize=True,
                seed=arguments.seed,
                device=arguments.device,
                progress=False,
            )
            weighted, weighted_seconds = timed(
                evaluate.log_likelihood,
                model,
                guide,
                x,
                num_particles=settings["particles"],
                errors=True,
                seed=0,
            )
            annealed, annealed_seconds = timed(
                evaluate.annealed_log_likelihood,
                model,
                guide,
                x,
                num_steps=settings["steps"],
                num_chains=settings["chains"],
                errors=True,
                seed=0,
            )
            gaps, seconds = timed(
                evaluate.gaps,
                model,
                guide,
                x,
                num_particles=settings["particles"],
                num_steps=settings["search"],
                seed=0,
            )
            label = f"{name}, {size}-d"
            drawn[label] = gaps
            rows[label] = {
                "seconds of training": round(sum(history["seconds"]), 1),
                "importance weighted": estimate(weighted, weighted_seconds),
                "annealed": estimate(annealed, annealed_seconds),
                "importance weighted, guide and best of its family": over_images(
                    gaps.log_likelihood
                ),
                "annealed - importance weighted": over_images(
                    annealed.log_likelihood - weighted.log_likelihood
                ),
                "elbo": over_images(gaps.elbo),
                "approximation gap": over_images(gaps.approximation),
                "amortization gap": over_images(gaps.amortization),
                "seconds of the gaps": round(seconds, 1),
            }
            if size == 2:
                few = x[: arguments.digits]
                draws, seconds = timed(
                    evaluate.true_posterior,
                    model,
                    few,
                    num_samples=settings["draws"],
                    warmup=settings["warmup"],
                    num_chains=3,
                    seed=0,
                )
                kl = evaluate.posterior_kl(
                    model, guide, few, draws, num_particles=settings["particles"], seed=0
                )
                rows[label]["true posteriors"] = {
                    "seconds of NUTS": round(seconds, 1),
                    **{
                        field: {
                            part: [round(v, 3) for v in values.tolist()]
                            for part, values in pairs._asdict().items()
                        }
                        for field, pairs in kl._asdict().items()
                    },
                }
                names = [
                    f"{name}: a {digit}" for digit in mnist.test.y[: arguments.digits].tolist()
                ]
                figure = plot.posteriors(model, guide, few, draws=draws, names=names)
                figure.savefig(
                    arguments.out / f"true_posterior{'_iwae' if name == 'IWAE' else ''}.png",
                    dpi=100,
                )
            print(label, json.dumps(rows[label], indent=1), flush=True)
    plot.gaps(drawn).savefig(arguments.out / "inference_gaps.png", dpi=100)
    report = {
        **settings,
        "full": arguments.full,
        "seed": arguments.seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "networks": rows,
    }
    (arguments.out / "inference_gaps.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
