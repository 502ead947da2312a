"""Reports of a trained pair: functions that yield lines, each with its entries of
``evaluation.json``.
"""

__all__ = [
    "Finding",
    "Report",
    "Trained",
    "active_units",
    "bound",
    "classes",
    "classification",
    "codes",
    "filtered",
    "first_rows",
    "game",
    "labels_from_images",
    "likelihood_of",
    "one_hot_labels",
    "predicted",
    "predictions",
    "reconstruction_error",
]

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import tarspyro
from tarspyro.commands.methods.forms import Part, PreparedData

if TYPE_CHECKING:
    from torch import Tensor

    from tarspyro import StochasticModule, models
    from tarspyro.commands.methods.method import Method
    from tarspyro.runs import History, LoadedRun

# A line, and the entries that it adds to the file.
Finding = tuple[str, dict[str, object]]
Report = Callable[["Trained"], Iterator[Finding]]

# The number of training rows on which the bound is evaluated.
_ROWS = 10_000
# The rows by which the time of a report is estimated, and those of a step of its progress.
_FIRST = 100
_PIECE = 500
# The seconds from which on a report shows its progress.
_LONG = 3


@dataclass(frozen=True)
class Trained:
    """A trained pair with its data.

    Attributes:
        run: The pair and the history of its training.
        data: The data on which it was trained, and on which it is evaluated.
        method: The method, with the settings of the training.
        progress: Whether long reports show their progress.
    """

    run: "LoadedRun"
    data: PreparedData
    method: "Method"
    progress: bool = True

    @property
    def model(self) -> "StochasticModule":
        """The model."""
        model: StochasticModule = self.run.model
        return model

    @property
    def guide(self) -> "StochasticModule":
        """The guide, of methods that have one."""
        guide: StochasticModule = self.run.guide
        return guide

    @property
    def history(self) -> "History":
        """The history of the training."""
        return self.run.history


def bound(t: Trained) -> Iterator[Finding]:
    """Reports the ELBO and its terms on the training and the test part."""
    rows: dict[str, dict[str, float]] = {}
    parts = {"train": first_rows(t.data.train, _ROWS), "test": t.data.test}

    for name, part in parts.items():
        found = tarspyro.evaluate.elbo(t.model, t.guide, part, num_particles=10, seed=0)
        row = {term: value.mean().item() for term, value in found._asdict().items()}
        rows[name] = row
        line = (
            f"{name:5} ELBO {row['elbo']:9.2f} = reconstruction {row['reconstruction']:9.2f} -"
            f" KL {row['kl']:.2f}"
        )
        yield line + _per_step(part, found.elbo), {f"nats per {t.data.unit}": rows}


def likelihood_of(variables: str) -> Report:
    """Returns the report of log p(variables) by importance sampling."""

    def likelihood(t: Trained) -> Iterator[Finding]:
        count = t.method.likelihood_particles

        def of(part: Part, seed: int) -> "Tensor":
            found: Tensor = tarspyro.evaluate.log_likelihood(
                t.model, t.guide, part, num_particles=count, seed=seed
            )
            return found

        values = _in_pieces(t, f"log p({variables})", of)
        line = (
            f"test  log p({variables}) {_mean(values)} (importance weighted, {count}"
            " particles)"
        )
        bits, entries = bits_of(t, values)
        entries |= {"log-likelihood": values.mean().item(), "particles": count}
        yield line + bits, entries

    return likelihood


def filtered(t: Trained) -> Iterator[Finding]:
    """Reports the log-likelihood of sequences by a particle filter."""
    count = t.method.likelihood_particles

    def of(part: Part, seed: int) -> "Tensor":
        found: Tensor = tarspyro.evaluate.particle_filter(
            t.model, t.guide, part, num_particles=count, seed=seed
        ).log_likelihood
        return found

    values = _in_pieces(t, "log p(x)", of)
    line = f"test  log p(x) {_mean(values)} (particle filter, {count} particles)"
    entries: dict[str, object] = {"log-likelihood": values.mean().item(), "particles": count}
    yield line + _per_step(t.data.test, values), entries


def active_units(t: Trained) -> Iterator[Finding]:
    """Reports the number of active latent units of each layer."""
    try:
        found = tarspyro.evaluate.active_units(t.guide, t.data.test)
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
    """Reports the accuracy of the guide's classifier."""
    assert t.data.labels is not None, "the form of the data has labels"
    yield _accuracy(tarspyro.evaluate.accuracy(t.guide, t.data.test, t.data.labels))


def classes(t: Trained) -> Iterator[Finding]:
    """Reports the accuracy of a classifier without latent variables, and the log-likelihood of
    the labels.
    """
    from tarspyro.scopes import evaluating

    model = cast("models.Classifier", t.model)
    x, y = t.data.test
    yield _accuracy((model.classes(x) == y.argmax(1)).double().mean().item())

    with evaluating(model):
        device = next(model.parameters()).device
        values = model.likelihood(x.to(device)).log_prob(y.to(device)).cpu()
    yield f"test  log p(y | x) {_mean(values)}", {"log-likelihood": values.mean().item()}


def predictions(t: Trained) -> Iterator[Finding]:
    """Reports the posterior predictive log-likelihood, and the error or the accuracy."""
    log_p, mean = predicted(t)
    y = t.data.test[1]
    regression = t.data.regression
    if regression is None:
        yield (
            f"test  log p(y | x) {_mean(log_p)} (posterior predictive)",
            {"log-likelihood": log_p.mean().item()},
        )
        yield _accuracy((mean.argmax(1) == y.argmax(1)).double().mean().item())
        return

    log_p = log_p - math.log(regression.y_scale)
    error = regression.y_scale * (mean - y).square().mean().sqrt().item()
    line = (
        f"test  log p(y | x) {_mean(log_p)}, root mean squared error {error:.3f} (in the"
        " target's units)"
    )
    yield line, {"log-likelihood": log_p.mean().item(), "root mean squared error": error}


def predicted(t: Trained) -> "tuple[Tensor, Tensor]":
    """Returns log p(y | x) and the mean of the posterior predictive distribution, for each row
    of the test part.
    """
    import torch

    from tarspyro.scopes import preserved_rng

    model = cast("models.BayesianRegression", t.model)
    device = next(t.guide.parameters()).device
    x, y = (part.to(device).split(100) for part in t.data.test)
    log_p = []
    means = []
    with preserved_rng(seed=0), torch.no_grad():
        for inputs, targets in zip(x, y, strict=True):
            predictive = model.predictive(t.guide, inputs)
            log_p.append(predictive.log_prob(targets).cpu())
            means.append(predictive.mean.cpu())
    return torch.cat(log_p), torch.cat(means)


def labels_from_images(t: Trained) -> Iterator[Finding]:
    """Reports how often the model draws the right label from an image."""
    x, y = t.data.test
    drawn = tarspyro.evaluate.impute_modalities(t.model, t.guide, (x, None), mean=True, seed=0)
    share = (drawn["x_2"].argmax(1) == y.argmax(1)).double().mean().item()
    yield f"test  labels from images: {share:.1%} right", {"labels from images": share}


def reconstruction_error(t: Trained) -> Iterator[Finding]:
    """Reports the mean squared error of a pixel."""
    from tarspyro.scopes import preserved_rng

    with preserved_rng(seed=0):
        means = tarspyro.evaluate.reconstruct(
            t.model, t.guide, t.data.test, site=t.method.site
        )
    error = (means - t.data.test[0]).square().mean().item()
    yield f"test  mean squared error of a pixel {error:.4f}", {"mean squared error": error}


def codes(t: Trained) -> Iterator[Finding]:
    """Reports the mean and the standard deviation of the codes, which the prior has too."""
    z = tarspyro.evaluate.embed(t.guide, t.data.test)
    mean = z.mean().item()
    spread = z.std().item()
    line = (
        f"test  codes: mean {mean:.2f}, standard deviation {spread:.2f} (under the prior 0"
        " and 1)"
    )
    yield line, {"codes": {"mean": mean, "standard deviation": spread}}


def game(t: Trained) -> Iterator[Finding]:
    """Reports the losses of the last epoch. For points in the plane it also reports the modes
    that the samples reach.
    """
    row = t.history.rows[-1]
    losses = {
        name.removesuffix("_loss"): value
        for name, value in row.items()
        if name.endswith("_loss") and not name.startswith("validation_")
    }
    outputs: dict[str, float] = {name: row[name] for name in ("real", "fake") if name in row}
    parts = [
        f"{name} {value:.3f}" for values in (losses, outputs) for name, value in values.items()
    ]
    entries: dict[str, object] = {"losses": losses}
    yield f"last epoch: losses {', '.join(parts)}", entries | outputs

    modes = t.data.modes
    if modes is not None:
        samples = tarspyro.evaluate.sample(t.model, 1000, seed=0).cpu()
        found = tarspyro.evaluate.mode_coverage(samples, modes.means, modes.scale)
        line = (
            f"modes reached: {found.modes} of {len(modes.means)}, {found.quality:.1%} of"
            " samples near one"
        )
        yield line, {"modes": found.modes, "near a mode": found.quality}


def _in_pieces(t: Trained, what: str, estimate: "Callable[[Part, int], Tensor]") -> "Tensor":
    """Returns an estimate for every test row.

    The time of all rows is extrapolated from that of the first ones. A report that takes long
    prints this time, and shows its progress.
    """
    import torch
    from tqdm.auto import tqdm

    rows = len(t.data.test[0])
    starts = [0, *range(_FIRST, rows, _PIECE)]
    pieces = [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]

    def of(index: int) -> "Tensor":
        part = tuple(values[pieces[index]] for values in t.data.test)
        return estimate(part, index).cpu()

    begin = time.perf_counter()
    found = [of(0)]
    seconds = (time.perf_counter() - begin) * (rows / len(found[0]) - 1)
    slow = t.progress and seconds > _LONG
    if slow:
        count = t.method.likelihood_particles
        flag = "--likelihood-particles"
        tqdm.write(
            f"{what} of {rows} {t.data.unit}s with {count} particles: about"
            f" {seconds:.0f} s ({flag} in train and --num-particles in evaluate change it)"
        )
    rest = range(1, len(pieces))
    found += [of(index) for index in tqdm(rest, desc=what, disable=not slow, leave=False)]
    return torch.cat(found)


def bits_of(t: Trained, nats: "Tensor") -> tuple[str, dict[str, object]]:
    """Returns the bits per dimension of test data that are discrete: bytes, black and white.

    A density of real numbers has none without the units of the numbers.
    """
    layout = t.data.layout
    discrete = layout is not None and layout.family == "DiscretizedLogistic"
    if not discrete and not (t.method.pair == "Density" and t.data.binarize):
        return "", {}
    bits = tarspyro.evaluate.bits_per_dim(nats, t.data.test[0][: len(nats)]).mean
    return f" = {bits:.3f} bits per dimension", {"bits per dimension": bits}


def first_rows(part: Part, count: int) -> Part:
    """Returns the first rows of a part."""
    return tuple(values[:count] for values in part)


def one_hot_labels(t: Trained, count: int) -> "Tensor":
    """Returns the one-hot labels of the first test rows."""
    from torch.nn.functional import one_hot

    assert t.data.labels is not None, "only data with labels are drawn with them"
    labels = one_hot(t.data.labels[:count], t.data.num_classes)
    return labels.to(t.data.test[0].dtype)


def _accuracy(share: float) -> Finding:
    return f"test  accuracy {share:.1%}", {"accuracy": share}


def _mean(values: "Tensor") -> str:
    """The mean with its standard error."""
    if len(values) < 2:
        return f"{values.mean().item():.2f}"
    return f"{values.mean().item():.2f} +- {values.std().item() / len(values) ** 0.5:.2f}"


def _per_step(part: Part, values: "Tensor") -> str:
    """The mean of a step, of sequences of different lengths."""
    if len(part) < 2 or part[1].is_floating_point():
        return ""
    return f" ({values.sum().item() / part[1].sum().item():.3f} a step)"
