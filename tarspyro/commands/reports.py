"""What the command line says of a trained pair: functions that yield lines, each with entries
of the JSON report.
"""

__all__ = ["Finding", "Trained"]

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tarspyro import evaluate
from tarspyro.commands.material import Material, Part
from tarspyro.runs import History
from tarspyro.scopes import evaluating, preserved_rng

Finding = tuple[str, dict[str, Any]]
Report = Callable[["Trained"], Iterator[Finding]]

# Of how many training rows the bound is told.
_ROWS = 10_000


class Trained(NamedTuple):
    """A pair with the data that judges it.

    Attributes:
        model: The model.
        guide: The guide; None where there is none.
        history: What its training measured.
        material: The data.
        options: Those of its training, completed by the method's defaults.
        site: The name of the observed site.
        latent: The name of the latent site to look at, where there are several.
    """

    model: Any
    guide: Any
    history: History
    material: Material
    options: Namespace
    site: str = "x"
    latent: str | None = None


def bound(t: Trained) -> Iterator[Finding]:
    """Reports the ELBO and its terms on the training and the test part."""
    rows: dict[str, Any] = {}
    for name, part in (("train", first(t.material.train, _ROWS)), ("test", t.material.test)):
        found = evaluate.elbo(t.model, t.guide, part, num_particles=10, seed=0)
        row = rows[name] = {
            term: value.mean().item() for term, value in found._asdict().items()
        }
        line = (
            f"{name:5} ELBO {row['elbo']:9.2f} = reconstruction {row['reconstruction']:9.2f} -"
            f" KL {row['kl']:.2f}"
        )
        yield line + _per_step(part, found.elbo), {f"nats per {t.material.unit}": rows}


def likelihood_of(what: str) -> Report:
    """Returns the report of a log-likelihood by importance sampling, called log p(what)."""

    def likelihood(t: Trained) -> Iterator[Finding]:
        count = t.options.likelihood_particles
        values = evaluate.log_likelihood(
            t.model, t.guide, t.material.test, num_particles=count, seed=0
        )
        line = f"test  log p({what}) {_mean(values)} (importance weighted, {count} particles)"
        yield line, {"log-likelihood": values.mean().item(), "particles": count}

    return likelihood


def filtered(t: Trained) -> Iterator[Finding]:
    """Reports the log-likelihood of sequences by a particle filter."""
    count = t.options.likelihood_particles
    values = evaluate.particle_filter(
        t.model, t.guide, t.material.test, num_particles=count, seed=0
    ).log_likelihood
    line = f"test  log p(x) {_mean(values)} (particle filter, {count} particles)"
    yield (
        line + _per_step(t.material.test, values),
        {"log-likelihood": values.mean().item(), "particles": count},
    )


def active_units(t: Trained) -> Iterator[Finding]:
    """Reports how many latent units the guide uses, in each layer."""
    try:
        found = evaluate.active_units(t.guide, t.material.test)
    except NotImplementedError as reason:
        yield f"active units: not counted ({reason})", {}
        return
    layers = found if isinstance(found, dict) else {"": found}
    counts = {name: int(units.sum()) for name, units in layers.items()}
    text = ", ".join(
        f"{name} {counts[name]} of {units.numel()}".strip() for name, units in layers.items()
    )
    yield f"active units: {text}", {"active units": counts if "" not in counts else counts[""]}


def classification(t: Trained) -> Iterator[Finding]:
    """Reports how often the guide's classifier is right."""
    yield _accuracy(evaluate.accuracy(t.guide, t.material.test, t.material.labels))


def classes(t: Trained) -> Iterator[Finding]:
    """Reports how often a classifier without latent variables is right, and the log-likelihood
    of its labels.
    """
    x, y = t.material.test
    yield _accuracy((t.model.classes(x) == y.argmax(1)).double().mean().item())
    with evaluating(t.model):
        device = next(t.model.parameters()).device
        values = t.model.likelihood(x.to(device)).log_prob(y.to(device)).cpu()
    yield f"test  log p(y | x) {_mean(values)}", {"log-likelihood": values.mean().item()}


def predictions(t: Trained) -> Iterator[Finding]:
    """Reports the posterior predictive log-likelihood, and the error or the share of right
    answers.
    """
    log_p, mean = predicted(t)
    y, truth = t.material.test[1], t.material.truth
    if truth is None:
        yield (
            f"test  log p(y | x) {_mean(log_p)} (posterior predictive)",
            {"log-likelihood": log_p.mean().item()},
        )
        yield _accuracy((mean.argmax(1) == y.argmax(1)).double().mean().item())
        return
    log_p = log_p - math.log(truth.y_scale)
    error = truth.y_scale * (mean - y).square().mean().sqrt().item()
    line = (
        f"test  log p(y | x) {_mean(log_p)}, root mean squared error {error:.3f} (in the"
        " target's units)"
    )
    yield line, {"log-likelihood": log_p.mean().item(), "root mean squared error": error}


def predicted(t: Trained) -> tuple[Tensor, Tensor]:
    """Returns log p(y | x) and the mean of the posterior predictive distribution, for each row
    of the test part.
    """
    device = next(t.guide.parameters()).device
    columns: list[tuple[Tensor, Tensor]] = []
    with preserved_rng(seed=0), torch.no_grad():
        for x, y in zip(
            *(part.to(device).split(100) for part in t.material.test), strict=True
        ):
            predictive = t.model.predictive(t.guide, x)
            columns.append((predictive.log_prob(y).cpu(), predictive.mean.cpu()))
    log_p, mean = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return log_p, mean


def labels_from_images(t: Trained) -> Iterator[Finding]:
    """Reports how often the label that the model draws from an image is the right one."""
    x, y = t.material.test
    drawn = evaluate.impute_modalities(t.model, t.guide, (x, None), mean=True, seed=0)["x_2"]
    share = (drawn.argmax(1) == y.argmax(1)).double().mean().item()
    yield f"test  labels from images: {share:.1%} right", {"labels from images": share}


def reconstruction_error(t: Trained) -> Iterator[Finding]:
    """Reports the mean squared error of a pixel."""
    x = t.material.test[0]
    with preserved_rng(seed=0):
        means = evaluate.reconstruct(t.model, t.guide, t.material.test, site=t.site)
    error = (means - x).square().mean().item()
    yield f"test  mean squared error of a pixel {error:.4f}", {"mean squared error": error}


def codes(t: Trained) -> Iterator[Finding]:
    """Reports how the codes of the data are spread, beside the prior's."""
    z = evaluate.embed(t.guide, t.material.test)
    mean, spread = z.mean().item(), z.std().item()
    line = (
        f"test  codes: mean {mean:.2f}, standard deviation {spread:.2f} (under the prior 0"
        " and 1)"
    )
    yield line, {"codes": {"mean": mean, "standard deviation": spread}}


def game(t: Trained) -> Iterator[Finding]:
    """Reports how the game stood in the last epoch, and of points in the plane the modes that
    are reached.
    """
    row = t.history.rows[-1]
    measured = [
        name for name in row if name.endswith("_loss") and not name.startswith("validation_")
    ]
    losses = {name.removesuffix("_loss"): row[name] for name in measured}
    outputs: dict[str, Any] = {name: row[name] for name in ("real", "fake") if name in row}
    parts = [f"{name} {value:.3f}" for name, value in {**losses, **outputs}.items()]
    yield f"last epoch: losses {', '.join(parts)}", {"losses": losses, **outputs}
    truth = t.material.truth
    if truth is not None:
        samples = evaluate.sample(t.model, 1000, seed=0).cpu()
        found = evaluate.mode_coverage(samples, truth.means, truth.scale)
        line = (
            f"modes reached: {found.modes} of {len(truth.means)}, {found.quality:.1%} of"
            " samples near one"
        )
        yield line, {"modes": found.modes, "near a mode": found.quality}


def first(part: Part, count: int) -> Part:
    """Returns the first rows of a part."""
    return tuple(values[:count] for values in part)


def labels_as_vectors(t: Trained, count: int) -> Tensor:
    """Returns the one-hot labels of the first test rows."""
    assert t.material.labels is not None
    return one_hot(t.material.labels[:count], t.material.num_classes).to(
        t.material.test[0].dtype
    )


def _accuracy(share: float) -> Finding:
    return f"test  accuracy {share:.1%}", {"accuracy": share}


def _mean(values: Tensor) -> str:
    return f"{values.mean().item():.2f} +- {values.std().item() / len(values) ** 0.5:.2f}"


def _per_step(part: Part, values: Tensor) -> str:
    """What it is for each step of sequences of different lengths."""
    if len(part) < 2 or part[1].is_floating_point():
        return ""
    return f" ({values.sum().item() / part[1].sum().item():.3f} a step)"
