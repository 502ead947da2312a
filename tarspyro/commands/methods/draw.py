"""``draw``, ``conv-draw`` and ``conditional-draw``, which paint an image in steps."""

__all__ = ["DRAW", "ConditionalDRAW", "ConvDRAW"]

from dataclasses import dataclass
from typing import TYPE_CHECKING

import tarspyro
from tarspyro.commands.methods import pictures, reports, samples
from tarspyro.commands.methods.forms import IMAGES, LABELLED_IMAGES, PreparedData
from tarspyro.commands.methods.layout import Seen, default_family
from tarspyro.commands.methods.method import Built, Variational, WithLabels
from tarspyro.commands.methods.networks import mlp, normal, standard_normal
from tarspyro.commands.methods.settings import PAIR, latent_units, setting

if TYPE_CHECKING:
    from tarspyro.nn import AttentionRead, AttentionWrite, Read, Write


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """Methods that may read and write through a window."""

    attention: bool = setting(True, PAIR, "whether to read and write through a window")
    read_size: int = setting(2, PAIR, "the filters along a side of the window that reads")
    write_size: int = setting(5, PAIR, "the filters along a side of the window that writes")

    def _reader(self, units: int, shape: tuple[int, ...]) -> "AttentionRead | Read":
        if self.attention:
            return tarspyro.nn.AttentionRead(units, shape, size=self.read_size)
        return tarspyro.nn.Read(shape)

    def _writer(self, units: int, shape: tuple[int, ...]) -> "AttentionWrite | Write":
        if self.attention:
            return tarspyro.nn.AttentionWrite(units, shape, size=self.write_size)
        return tarspyro.nn.Write(units, shape)


@dataclass(frozen=True, kw_only=True)
class _Painting(Variational):
    """Methods that paint an image in steps."""

    images_alone = True

    steps: int = setting(8, PAIR, "in how many steps an image is painted")
    likelihood_particles: int = 100
    clip_norm: float | None = 5.0
    lr: float = 3e-3

    figures = (pictures.canvases, pictures.curves)

    def family_of(self, seen: Seen) -> str | None:
        # The guide sees the mean of the canvas in every step, which takes long to compute for
        # 256 levels.
        family = super().family_of(seen) or default_family(seen)
        return "Normal" if family == "DiscretizedLogistic" else family


@dataclass(frozen=True, kw_only=True)
class _Recurrent(_Attention, _Painting):
    """DRAW, of images alone or given labels."""

    latent: int = latent_units(10)
    units: int = setting(
        128, PAIR, "the hidden units of the recurrence, or the channels of its maps"
    )

    epochs_on = {"digits": 100}

    def build(self, data: PreparedData) -> Built:
        from torch import nn

        shape = data.shape
        h = self.units
        z = self.latent
        y = data.num_classes  # 0 without labels
        read = self._reader(h, shape)
        write = self._writer(h, shape)
        canvas = tarspyro.nn.Canvas(tarspyro.nn.Recurrence(nn.LSTMCell(z + y, h)), write)
        likelihood = self.observed(data, tarspyro.nn.IdentityTrunk(shape))
        encoder = tarspyro.nn.Recurrence(nn.LSTMCell(read.out_features + h + y, h))
        posterior = normal(mlp([], h), z)

        model = getattr(tarspyro.models, self.pair)
        guide = getattr(tarspyro.guides, self.pair)
        return Built(
            model(standard_normal(z), canvas, likelihood, self.steps),
            guide(posterior, encoder, read, canvas, likelihood, self.steps),
            self.bound(),
        )


@dataclass(frozen=True, kw_only=True)
class DRAW(_Recurrent):
    """DRAW of images alone."""

    name = "draw"
    title = "DRAW, which paints an image step by step, with attention or without"
    paper = "Gregor et al. 2015, arXiv:1502.04623"
    pair = "DRAW"
    form = IMAGES

    report = (reports.bound, reports.likelihood_of("x"))
    sampler = samples.PLAIN


@dataclass(frozen=True, kw_only=True)
class ConvDRAW(_Painting):
    """Convolutional DRAW, whose maps have a quarter of the image's sides, or half of them if
    the image is small.
    """

    name = "conv-draw"
    title = "convolutional DRAW"
    paper = "Gregor et al. 2016, arXiv:1604.08772"
    pair = "ConvDRAW"
    form = IMAGES
    epochs_on = {"digits": 50}

    latent: int = latent_units(2)
    units: int = setting(
        32, PAIR, "the hidden units of the recurrence, or the channels of its maps"
    )

    report = (reports.bound, reports.likelihood_of("x"))
    sampler = samples.PLAIN

    def build(self, data: PreparedData) -> Built:
        shape = data.shape
        _, height, width = shape
        stride = 4 if min(height, width) > 16 else 2
        sides = (height // stride, width // stride)
        hidden = (self.units, *sides)
        code = (self.latent, *sides)

        read = tarspyro.nn.ConvRead(shape, 16, stride=stride)
        canvas = tarspyro.nn.Canvas(
            tarspyro.nn.Recurrence(tarspyro.nn.ConvLSTMCell(self.latent, hidden)),
            tarspyro.nn.ConvWrite(hidden, shape),
        )
        encoder = tarspyro.nn.Recurrence(tarspyro.nn.ConvLSTMCell(16 + self.units, hidden))
        likelihood = self.observed(data, tarspyro.nn.IdentityTrunk(shape))
        prior = normal(tarspyro.nn.FeatureMap(hidden), code)
        posterior = normal(tarspyro.nn.FeatureMap(hidden), code)
        return Built(
            tarspyro.models.ConvDRAW(prior, canvas, likelihood, self.steps),
            tarspyro.guides.ConvDRAW(posterior, encoder, read, canvas, likelihood, self.steps),
            self.bound(),
        )


@dataclass(frozen=True, kw_only=True)
class ConditionalDRAW(WithLabels, _Recurrent):
    """DRAW of images given labels."""

    name = "conditional-draw"
    title = "DRAW of images given labels"
    paper = "Gregor et al. 2015, arXiv:1502.04623; Sohn, Lee and Yan 2015"
    pair = "ConditionalDRAW"
    form = LABELLED_IMAGES
    classes = True

    report = (reports.bound, reports.likelihood_of("x | y"))
    sampler = samples.OF_EACH_CLASS
