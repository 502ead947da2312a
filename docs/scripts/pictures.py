"""Pictures of the documentation, made in about four minutes on one core.

    python docs/scripts/pictures.py            (all of them)
    python docs/scripts/pictures.py samples    (those with these names)

``docs/pictures/plot/NAME.png`` is the picture of ``tarspyro.plot.NAME`` in the reference,
``NAME_KIND.png`` one of other data on its page, and ``docs/pictures/quick_start.png`` the one of
the README. All together stay below 400 KB.
"""

import sys
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_iris
from torch import nn

from tarspyro import Conditional, StochasticModule, data, evaluate, fit, guides, models, plot
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP, AttentionRead, AttentionWrite, Canvas, IdentityTrunk, Recurrence
from tarspyro.plot import Picture
from tarspyro.runs import History

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
DIGITS = data.digits()
TEST = data.Split(DIGITS.test.x.round(), DIGITS.test.y)
SETTINGS = {"binarize": True, "seed": 0, "progress": False}
Pair = tuple[StochasticModule, StochasticModule, History]


@cache
def trained(latent: int) -> Pair:
    """Returns a VAE with so many latent units, its guide and the history of its training."""
    torch.manual_seed(0)
    likelihood = Conditional(dist.Bernoulli, MLP(latent, [256, 256]), 64)
    posterior = Conditional(dist.Normal, MLP(64, [256, 256]), latent)
    p = models.VAE(default_prior(dist.Normal, latent), likelihood)
    q = guides.VAE(posterior)
    train = DIGITS.train[:-200]
    validation = DIGITS.train[-200:]
    history = fit(p, q, train, validation=validation, epochs=100, **SETTINGS)
    return p, q, history


@cache
def trained_on(kind: str) -> Pair:
    """Returns a VAE of points, of a table or of series, with two latent units."""
    torch.manual_seed(0)
    x = {"points": moons, "table": lambda: iris().x, "series": waves}[kind]()
    size = x.shape[1]
    likelihood = Conditional(dist.Normal, MLP(2, [64, 64]), size)
    p = models.VAE(default_prior(dist.Normal, 2), likelihood)
    q = guides.VAE(Conditional(dist.Normal, MLP(size, [64, 64]), 2))
    history = fit(p, q, x, epochs=300, batch_size=50, seed=0, progress=False)
    return p, q, history


@cache
def moons() -> torch.Tensor:
    """Returns 400 points around two half circles."""
    torch.manual_seed(0)
    angles = torch.pi * torch.rand(400)
    upper = torch.stack([angles.cos(), angles.sin()], 1)
    lower = torch.stack([1 - angles.cos(), 0.5 - angles.sin()], 1)
    chosen = torch.where(torch.rand(400, 1) < 0.5, upper, lower)
    return chosen + 0.08 * torch.randn(400, 2)


@cache
def iris() -> data.Table:
    """Returns the measures of 150 flowers, standardized."""
    found = load_iris()
    x = torch.tensor(found.data, dtype=torch.float32)
    names = [name.removesuffix(" (cm)") for name in found.feature_names]
    columns = tuple(data.Column(name, "real") for name in names)
    return data.Table((x - x.mean(0)) / x.std(0), columns)


@cache
def waves() -> torch.Tensor:
    """Returns 400 waves of 60 steps, of other phases and heights."""
    torch.manual_seed(0)
    phases = 2 * torch.pi * torch.rand(400, 1)
    heights = 0.5 + torch.rand(400, 1)
    clean = heights * torch.sin(torch.linspace(0, 4 * torch.pi, 60) + phases)
    return clean + 0.1 * torch.randn(400, 60)


@cache
def painter() -> Pair:
    """Returns a DRAW of six steps with attention, its guide and its history."""
    torch.manual_seed(0)
    image = (1, 8, 8)
    read = AttentionRead(64, image, size=3)
    canvas = Canvas(Recurrence(nn.LSTMCell(8, 64)), AttentionWrite(64, image, size=3))
    likelihood = Conditional(dist.Bernoulli, IdentityTrunk(image), 64)
    encoder = Recurrence(nn.LSTMCell(read.out_features + 64, 64))
    posterior = Conditional(dist.Normal, MLP(64, []), 8)
    p = models.DRAW(default_prior(dist.Normal, 8), canvas, likelihood, 6)
    q = guides.DRAW(posterior, encoder, read, canvas, likelihood, 6)
    rate = {"lr": lambda step: 3e-3}
    x = DIGITS.train.x
    history = fit(p, q, x, epochs=60, batch_size=50, schedules=rate, **SETTINGS)
    return p, q, history


def of_digit(digit: int) -> torch.Tensor:
    """Returns the test images of a digit."""
    return TEST.x[TEST.y == digit]


def active_units() -> Figure:
    """Activity of eight latent units."""
    _, q, _ = trained(8)
    return plot.active_units(evaluate.activity(q, TEST))


def arithmetic() -> Figure:
    """Zeros less ones, added to sixes."""
    p, q, _ = trained(8)
    return plot.arithmetic(p, q, of_digit(0), of_digit(1), of_digit(6)[:4])


def calibration() -> Figure:
    """The ranks of two latent units under a guide."""
    p, q, _ = trained(2)
    check = evaluate.check_guide(p, q, TEST.x[:100], seed=0)
    return plot.calibration(check)


def canvases() -> Figure:
    """Four digits that DRAW reconstructs."""
    p, q, _ = painter()
    return plot.canvases(p, q, TEST.x, num=4)


def compare() -> Figure:
    """The log-likelihood of two VAEs, and the ELBO of one."""
    found: dict[str, object] = {}
    for latent in (2, 8):
        p, q, _ = trained(latent)
        estimate = evaluate.log_likelihood(p, q, TEST, num_particles=200, errors=True, seed=0)
        found[f"{latent} units, log p(x)"] = estimate
        found[f"{latent} units, ELBO"] = evaluate.elbo(p, q, TEST, num_particles=20, seed=0)
    return plot.compare(found, quantity="nats per data point")


def curves_several() -> Figure:
    """The histories of two trainings."""
    return plot.curves({f"{latent} units": trained(latent)[2] for latent in (2, 8)})


def curves() -> Figure:
    """The history of a training with validation data."""
    _, _, history = trained(2)
    return plot.curves(history)


def gaps() -> Figure:
    """The two parts of the gap, of two and of eight latent units."""
    pairs = {f"{latent} units": trained(latent)[:2] for latent in (2, 8)}
    parts = {
        name: evaluate.gaps(p, q, TEST[:20], num_steps=100, seed=0)
        for name, (p, q) in pairs.items()
    }
    return plot.gaps(parts)


def graph() -> Figure:
    """The graph of a VAE."""
    p, _, _ = trained(2)
    return plot.graph(p, TEST.x[:5])


def imputations() -> Figure:
    """Lower halves, given the upper ones."""
    p, q, _ = trained(8)
    x = TEST.x[:10]
    mask = data.lower_half(x)
    drawn = evaluate.impute(p, q, x, mask, num_samples=2, method="importance", seed=0)
    return plot.imputations(x, mask, drawn)


def interpolation() -> Figure:
    """From zeros to ones."""
    p, q, _ = trained(8)
    return plot.interpolation(p, q, of_digit(0)[:3], of_digit(1)[:3])


def latents() -> Figure:
    """Posterior means, coloured by digit."""
    _, q, _ = trained(2)
    return plot.latents(q, TEST)


def latents_numbers() -> Figure:
    """Flowers, coloured by a number that some lack."""
    _, q, _ = trained_on("table")
    width = iris().column("petal width").clone()
    width[::10] = torch.nan
    return plot.latents(q, iris().x, labels=width, label_name="petal width, standardized")


def latents_words() -> Figure:
    """Flowers, coloured by species, with the contours of their densities."""
    _, q, _ = trained_on("table")
    found = load_iris()
    return plot.latents(q, iris().x, labels=found.target_names[found.target], contours=True)


def latents_thumbnails() -> Figure:
    """Digits at their codes."""
    _, q, _ = trained(2)
    return plot.latents(q, TEST, thumbnails=60, alpha=0.4)


def manifold() -> Figure:
    """A grid over two latent units."""
    p, _, _ = trained(2)
    return plot.manifold(p, num=14)


def neighbours() -> Figure:
    """Nearest training images."""
    _, q, _ = trained(8)
    return plot.neighbours(q, TEST.x[:4], DIGITS.train.x, num=8)


def piano_roll() -> Figure:
    """A scale in octaves."""
    scale = [0, 2, 4, 5, 7, 9, 11, 12, 11, 9, 7, 5, 4, 2, 0]
    notes = torch.zeros(len(scale), 88)
    for step, height in enumerate(scale):
        notes[step, [27 + height, 39 + height]] = 1
    return plot.piano_roll(notes, title="a scale in octaves")


def posteriors() -> Figure:
    """The true posterior of three digits beside the guide's."""
    p, q, _ = trained(2)
    return plot.posteriors(p, q, TEST.x[:3], num_samples=200, warmup=100)


def reconstructions() -> Figure:
    """Ten digits."""
    p, q, _ = trained(8)
    return plot.reconstructions(p, q, TEST, num=10)


def samples() -> Figure:
    """Forty samples."""
    p, _, _ = trained(8)
    return plot.samples(p, num=40, columns=10)


def samples_points() -> Figure:
    """Points in the plane."""
    return plot.samples(trained_on("points")[0], data=moons())


def samples_table() -> Figure:
    """The columns of a table."""
    return plot.samples(trained_on("table")[0], data=iris())


def reconstructions_series() -> Figure:
    """Three waves."""
    p, q, _ = trained_on("series")
    return plot.reconstructions(p, q, waves(), num=3)


def traversal_series() -> Figure:
    """Waves as two latent units change."""
    return plot.traversal(trained_on("series")[0])


def traversal() -> Figure:
    """Three latent units."""
    p, _, _ = trained(8)
    return plot.traversal(p, units=[0, 1, 2])


def quick_start() -> Figure:
    """Codes and manifold of one VAE, side by side."""
    p, q, _ = trained(2)
    figure = Picture(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot.latents(q, TEST, ax=left)
    plot.manifold(p, num=14, ax=right)
    left.set_title("posterior means q(z | x), by digit")
    right.set_title("means of p(x | z) over a grid of z")
    return figure


PLOTS: dict[str, Callable[[], Figure]] = {
    function.__name__: function
    for function in (
        active_units,
        arithmetic,
        calibration,
        canvases,
        compare,
        curves,
        curves_several,
        gaps,
        graph,
        imputations,
        interpolation,
        latents,
        latents_numbers,
        latents_thumbnails,
        latents_words,
        manifold,
        neighbours,
        piano_roll,
        posteriors,
        reconstructions,
        reconstructions_series,
        samples,
        samples_points,
        samples_table,
        traversal,
        traversal_series,
    )
}


def save(figure: Figure, path: Path, width: float = 4.5, colors: int = 128) -> None:
    """Writes a figure, at most ``width`` inches wide, as a PNG with so many colours."""
    buffer = BytesIO()
    resolution = 100 * min(1.0, width / figure.get_figwidth())
    figure.savefig(buffer, dpi=resolution, bbox_inches="tight", facecolor="white")
    picture = Image.open(buffer).convert("RGB")
    picture = picture.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def main(names: list[str]) -> None:
    """Draws the pictures with the given names, or all."""
    (FOLDER / "plot").mkdir(parents=True, exist_ok=True)
    for name in names or [*PLOTS, "animation", "quick_start"]:
        if name == "animation":
            p, _, _ = painter()
            plot.animation(FOLDER / "plot" / "animation.gif", p, num=9)
        elif name == "quick_start":
            save(quick_start(), FOLDER / "quick_start.png", width=8.0, colors=256)
        else:
            save(PLOTS[name](), FOLDER / "plot" / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
