"""``made``, ``pixelcnn``, ``pixel-vae``, ``vq-vae`` and ``flow``."""

__all__ = ["MADE", "VQVAE", "Flow", "PixelCNN", "PixelVAE"]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import IMAGES, IMAGES_OR_POINTS, Form, PreparedData
from tarspyro.commands.methods.layout import Seen
from tarspyro.commands.methods.method import (
    Built,
    EarlyStopping,
    Method,
    Pixels,
    Variational,
)
from tarspyro.commands.methods.networks import standard_normal
from tarspyro.commands.methods.pictures import Drawn
from tarspyro.commands.methods.reports import Finding, Trained
from tarspyro.commands.methods.settings import PAIR, hidden_layers, latent_units, setting

if TYPE_CHECKING:
    from torch import nn

# The rows on which the exact log-likelihood of the training part is evaluated.
_ROWS = 10_000

POINTS = Form(
    "points in the plane",
    ("points",),
    IMAGES_OR_POINTS.prepare,
    IMAGES_OR_POINTS.prepare_own,
    "a table",
)


def exact(t: Trained) -> Iterator[Finding]:
    """Reports log p(x) of the training and the test part, and the bits of discrete data."""
    for name, part in (
        ("train", reports.first_rows(t.data.train, _ROWS)),
        ("test", t.data.test),
    ):
        values = tarspyro.evaluate.log_likelihood(t.model, None, part)
        mean = values.mean().item()
        error = values.std().item() / len(values) ** 0.5
        line = f"{name:5} log p(x) {mean:.2f} +- {error:.2f} (exact)"
        if name == "train":
            yield line, {}
            continue
        bits, entries = reports.bits_of(t, values)
        yield line + bits, {"log-likelihood": mean, **entries}


def completions(t: Trained) -> Iterator[Drawn]:
    """Draws the lower halves of test images given the upper ones, if the order allows it."""
    import torch

    count = 10
    (x,) = reports.first_rows(t.data.test, count)
    if x.dim() < 3:
        return
    known = torch.zeros(x.shape[1:], dtype=torch.bool)
    known[..., : x.shape[-2] // 2, :] = True
    try:
        drawn = tarspyro.evaluate.impute(t.model, None, x, known, num_samples=4, seed=0)
    except tarspyro.infer.PairError:
        return
    rows = torch.cat([x.unsqueeze(0), drawn.to(x)]).flatten(0, 1)
    title = "test images, and below how their upper halves may go on"
    yield "completions", pictures.sheet(t, rows, count, title)


def manifold(t: Trained) -> Iterator[Drawn]:
    """Draws images that codes decode to, one draw for each."""
    from tarspyro.scopes import preserved_rng

    with preserved_rng(seed=0):
        yield from pictures.manifold(t)


@dataclass(frozen=True, kw_only=True)
class _OfPixels(EarlyStopping, Pixels):
    """Densities of images without latent variables."""

    pair = "Density"
    form = IMAGES

    report = (exact,)
    figures = (completions, pictures.curves)
    sampler = samples.PLAIN

    def family_of(self, seen: Seen) -> str | None:
        if self.likelihood is None and seen.values == "counts":
            return None
        return super().family_of(seen)

    def trunk(self, shape: tuple[int, ...]) -> "nn.Module":
        """Returns the causal network over images of a shape."""
        raise NotImplementedError

    def build(self, data: PreparedData) -> Built:
        likelihood = self.observed(data, self.trunk(data.shape), tarspyro.Autoregressive)
        return Built(tarspyro.models.Density(likelihood), None, tarspyro.infer.ELBO())


@dataclass(frozen=True, kw_only=True)
class MADE(_OfPixels):
    """Masked autoencoder for distribution estimation."""

    name = "made"
    title = "masked autoencoder, an exact density of the pixels in any order"
    paper = "Germain et al. 2015, arXiv:1502.03509"

    hidden: Sequence[int] = hidden_layers(500)
    order: Literal["raster", "random"] = setting("raster", PAIR, "the order of the pixels")
    masks: int = setting(1, PAIR, "the number of masks, over which the density is a mixture")

    def trunk(self, shape: tuple[int, ...]) -> "nn.Module":
        return tarspyro.nn.MADE(
            shape, list(self.hidden), order=self.order, num_masks=self.masks, seed=self.seed
        )


@dataclass(frozen=True, kw_only=True)
class _Convolutional:
    """The settings of a PixelCNN."""

    layers: int = setting(5, PAIR, "the number of convolutional layers")
    channels: int = setting(16, PAIR, "the number of channels of a layer")
    kernel_size: int = setting(
        3, PAIR, "the side of the window that a layer sees half of, an odd number"
    )
    gated: bool = setting(False, PAIR, "gated layers, of twice the channels")

    @property
    def network(self) -> dict[str, Any]:
        """The options of the network."""
        return {
            "channels": self.channels,
            "num_layers": self.layers,
            "kernel_size": self.kernel_size,
            "gated": self.gated,
        }


@dataclass(frozen=True, kw_only=True)
class PixelCNN(_Convolutional, _OfPixels):
    """PixelCNN."""

    name = "pixelcnn"
    title = "PixelCNN, an exact density of the pixels, row by row"
    paper = "van den Oord et al. 2016, arXiv:1601.06759; gated: arXiv:1606.05328"
    images_alone = True
    lr: float = 3e-3

    def trunk(self, shape: tuple[int, ...]) -> "nn.Module":
        return tarspyro.nn.PixelCNN(shape, **self.network)


@dataclass(frozen=True, kw_only=True)
class PixelVAE(_Convolutional, Variational):
    """PixelVAE."""

    name = "pixel-vae"
    title = "variational autoencoder with a PixelCNN as its decoder"
    paper = "Gulrajani et al. 2016, arXiv:1611.05013"
    pair = "VAE"
    form = IMAGES
    images_alone = True
    lr: float = 3e-3

    latent: int = latent_units(8)
    hidden: Sequence[int] = hidden_layers(256)
    # A decoder that sees few pixels leaves the rest of the image to the code.
    layers: int = 2
    free_bits: float = setting(
        0.0, PAIR, "nats of each latent unit that cost nothing, against collapse", least=None
    )
    likelihood_particles: int = 100

    report = (reports.bound, reports.likelihood_of("x"), reports.active_units)
    figures = (*pictures.WITH_CODES, manifold)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        from pyro.distributions import Normal

        nn = tarspyro.nn
        encoder = nn.MLP(data.shape, list(self.hidden))
        decoder = nn.ConvDecoder(self.latent, data.shape, [32, 16])
        trunk = nn.PixelCNN(data.shape, **self.network, context=decoder)
        bound: Any = self.bound()
        if self.free_bits:
            if self.loss != "elbo":
                raise ValueError(
                    f"--free-bits is not for --loss {self.loss}: leave it out, or take --loss"
                    " elbo."
                )
            bound = tarspyro.infer.ELBO(
                num_particles=self.num_particles or 1,
                beta=1.0 if self.beta is None else self.beta,
                free_bits=self.free_bits,
            )
        return Built(
            tarspyro.models.VAE(
                standard_normal(self.latent),
                self.observed(data, trunk, tarspyro.Autoregressive),
            ),
            tarspyro.guides.VAE(tarspyro.Conditional(Normal, encoder, self.latent)),
            bound,
        )


@dataclass(frozen=True, kw_only=True)
class VQVAE(_Convolutional, Variational):
    """Vector-quantized VAE, whose prior over the codes is learned beside it."""

    name = "vq-vae"
    title = "vector-quantized VAE, with a PixelCNN over its codes"
    paper = "van den Oord et al. 2017, arXiv:1711.00937"
    pair = "VAE"
    form = IMAGES
    images_alone = True

    num_codes: int = setting(64, PAIR, "the number of codes")
    code_size: int = setting(16, PAIR, "the size of a code")
    hidden: Sequence[int] = hidden_layers(256)
    commitment: float = setting(
        0.25, PAIR, "the weight of the penalty that keeps outputs near codes", least=None
    )

    report = (reports.bound,)
    figures = (pictures.reconstructions, pictures.curves)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        from pyro.distributions import Categorical

        nn = tarspyro.nn
        # The encoder halves the image twice.
        height, width = (-(-side // 4) for side in data.shape[1:])
        shape = (self.code_size, height, width)
        codebook = nn.Codebook(self.num_codes, self.code_size)
        trunk = nn.PixelCNN((height, width), **self.network, num_classes=self.num_codes)
        indices = tarspyro.Autoregressive(
            Categorical,
            trunk,
            (height, width),
            param_shapes={"logits": (height, width, self.num_codes)},
        )
        encoder = nn.ConvEncoder(data.shape, [32, 64])
        posterior = tarspyro.VectorQuantized(
            encoder, codebook, shape, commitment=self.commitment
        )
        decoder = nn.MLP(shape, list(self.hidden)[::-1])
        return Built(
            tarspyro.models.VAE(posterior.prior(indices), self.observed(data, decoder)),
            tarspyro.guides.VAE(posterior),
            self.bound(),
        )


@dataclass(frozen=True, kw_only=True)
class Flow(EarlyStopping, Method):
    """Normalizing flow of affine couplings."""

    name = "flow"
    title = "normalizing flow, an exact density of points"
    paper = "Dinh et al. 2016, arXiv:1605.08803"
    pair = "Density"
    form = POINTS

    layers: int = setting(8, PAIR, "the number of coupling layers")
    hidden: Sequence[int] = hidden_layers(64, 64)

    report = (exact,)
    figures = (pictures.curves,)
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        import torch
        from pyro.distributions import transforms

        size = math.prod(data.shape)
        steps: list[Any] = []
        for _ in range(self.layers):
            steps.append(transforms.affine_coupling(size, list(self.hidden)))
            steps.append(transforms.Permute(torch.arange(size).flip(0)))
        flow = tarspyro.Transformed(standard_normal(size), steps)
        return Built(tarspyro.models.Density(flow), None, tarspyro.infer.ELBO())
