"""Samples of a trained model: as numbers, and as a picture."""

__all__ = ["OF_EACH_CLASS", "PLAIN", "SEQUENCES", "Sampler"]

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import tarspyro
from tarspyro.commands.methods import pictures
from tarspyro.commands.methods.reports import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


class Sampler(NamedTuple):
    """Two functions of a trained pair, the number of samples (None for the default), the seed,
    and whether to take means instead of draws.

    Attributes:
        draw: Returns samples by name: x, and with labels y, the number of the class.
        picture: Draws samples.
    """

    draw: "Callable[[Trained, int | None, int, bool], dict[str, Tensor]]"
    picture: "Callable[[Trained, int | None, int, bool], Figure]"


def _plain(t: Trained, num: int | None, seed: int, mean: bool) -> "dict[str, Tensor]":
    site = t.method.site
    x = tarspyro.evaluate.sample(t.model, num or 100, seed=seed, mean=mean, site=site)
    return {"x": x.cpu()}


def _of_each_class(t: Trained, num: int | None, seed: int, mean: bool) -> "dict[str, Tensor]":
    """The number of samples is rounded up to the same number for each class."""
    import torch

    classes = t.data.num_classes
    y = torch.arange(classes).repeat_interleave(-(-(num or 100) // classes))
    x = tarspyro.evaluate.sample(
        t.model,
        len(y),
        given={"y": torch.eye(classes)[y]},
        seed=seed,
        mean=mean,
        site=t.method.site,
    )
    return {"x": x.cpu(), "y": y}


def _sequences(t: Trained, num: int | None, seed: int, mean: bool) -> "dict[str, Tensor]":
    length = t.data.test[0].shape[1]
    x = tarspyro.evaluate.sample(t.model, num or 100, length=length, seed=seed, mean=mean)
    return {"x": x.cpu()}


PLAIN = Sampler(_plain, pictures.samples)
OF_EACH_CLASS = Sampler(_of_each_class, pictures.of_each_class)
SEQUENCES = Sampler(_sequences, pictures.sequences)
