"""Pairs and a history to draw, and what a figure of images or points shows."""

import numpy as np
import pyro.distributions as dist
from torch import nn

from tarspyro import Conditional, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP
from tarspyro.runs import History


def make_pair(family=dist.Normal, latent=2, image=64):
    """With layers that behave differently in training and evaluation."""
    options = {"normalization": nn.BatchNorm1d, "dropout": 0.5}
    model = models.VAE(
        default_prior(family, latent),
        Conditional(dist.Bernoulli, MLP(latent, [8], **options), image),
    )
    return model, guides.VAE(Conditional(family, MLP(image, [8], **options), latent))


def pixels(figure):
    """The image that the first axes show."""
    return np.asarray(figure.axes[0].images[0].get_array())


def tiles(figure, rows, columns, height=8, width=8):
    """The images of a sheet, without the lines between them."""
    sheet = pixels(figure)
    assert sheet.shape[:2] == (rows * (height + 1) + 1, columns * (width + 1) + 1)
    tops, lefts = (
        (1 + (height + 1) * i for i in range(rows)),
        [1 + (width + 1) * j for j in range(columns)],
    )
    return [sheet[top : top + height, left : left + width] for top in tops for left in lefts]


def points(figure):
    """The coordinates of all points of the first axes, in the order of the data if there are
    no labels.
    """
    return np.concatenate(
        [collection.get_offsets() for collection in figure.axes[0].collections]
    )


HISTORY = History(
    rows=[
        {
            "epoch": epoch,
            "loss": 30.0 - epoch,
            "elbo": epoch - 30.0,
            "validation_elbo": epoch - 31.0,
        }
        for epoch in (1, 2)
    ],
    best_epoch=2,
)
