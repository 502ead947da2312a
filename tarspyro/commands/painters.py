"""DRAW as the command line builds it: with attention or without, convolutional, and given
labels.
"""

__all__ = ["conditional_draw", "conv_draw", "draw"]

from typing import Any

import pyro.distributions as dist
from torch import nn

from tarspyro import Conditional, guides, models
from tarspyro.commands.builders import Built, bound_of, likelihood
from tarspyro.commands.material import Material
from tarspyro.distributions import default_prior
from tarspyro.nn import (
    MLP,
    AttentionRead,
    AttentionWrite,
    Canvas,
    ConvLSTMCell,
    ConvRead,
    ConvWrite,
    FeatureMap,
    IdentityTrunk,
    Read,
    Recurrence,
    Write,
)


def _painted(o: Any, m: Material, model: Any, guide: Any, given: int = 0) -> Built:
    """A pair of recurrences of units, which see so many numbers beside."""
    shape, units = m.shape, o.units
    read = AttentionRead(units, shape, size=o.read_size) if o.attention else Read(shape)
    write = (
        AttentionWrite(units, shape, size=o.write_size) if o.attention else Write(units, shape)
    )
    canvas = Canvas(Recurrence(nn.LSTMCell(o.latent + given, units)), write)
    painting = likelihood(o, shape, IdentityTrunk(shape))
    encoder = Recurrence(nn.LSTMCell(read.out_features + units + given, units))
    posterior = Conditional(dist.Normal, MLP(units, []), o.latent)
    p = model(default_prior(dist.Normal, o.latent), canvas, painting, o.steps)
    return Built(p, guide(posterior, encoder, read, canvas, painting, o.steps), bound_of(o))


def draw(o: Any, m: Material) -> Built:
    """Builds the pair of ``DRAW``."""
    return _painted(o, m, models.DRAW, guides.DRAW)


def conditional_draw(o: Any, m: Material) -> Built:
    """Builds the pair of ``ConditionalDRAW``, whose condition is the label."""
    return _painted(o, m, models.ConditionalDRAW, guides.ConditionalDRAW, m.num_classes)


def conv_draw(o: Any, m: Material) -> Built:
    """ConvDRAW, with maps of a quarter of the image's sides, or of half of small ones'."""
    _, height, width = m.shape
    stride = 4 if min(height, width) > 16 else 2
    sides = height // stride, width // stride
    hidden, code, read = (
        (o.units, *sides),
        (o.latent, *sides),
        ConvRead(m.shape, 16, stride=stride),
    )
    canvas = Canvas(Recurrence(ConvLSTMCell(o.latent, hidden)), ConvWrite(hidden, m.shape))
    encoder = Recurrence(ConvLSTMCell(16 + o.units, hidden))
    painting = likelihood(o, m.shape, IdentityTrunk(m.shape))
    prior, posterior = (Conditional(dist.Normal, FeatureMap(hidden), code) for _ in range(2))
    p = models.ConvDRAW(prior, canvas, painting, o.steps)
    return Built(
        p, guides.ConvDRAW(posterior, encoder, read, canvas, painting, o.steps), bound_of(o)
    )
