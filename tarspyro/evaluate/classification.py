"""Class probabilities of a guide, and their accuracy."""

__all__ = ["accuracy", "as_classes", "classify"]

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_numbers, format_value
from tarspyro.distributions import as_discrete
from tarspyro.evaluate.batching import Array, map_batches
from tarspyro.evaluate.codes import check_rows
from tarspyro.infer.traces import PairError, drawn_of, name_of, sample_sites
from tarspyro.scopes import preserved_rng
from tarspyro.types import Argument, ArrayLike, Data, Program


def classify(guide: Program, x: Data, *, site: str = "y") -> Array:
    """Returns the class probabilities q(y | x) of each data point.

    In evaluation mode and without gradients.

    Arguments:
        guide: The guide, such as ``guides.SemiSupervisedVAE``.
        x: The data without labels, in any form that ``fit`` takes.
        site: The latent site of the class.

    Returns:
        Shape ``(N, K)``: an array for arrays, a tensor for tensors.

    Raises:
        PairError: If the guide has no such site, or the site's family has no probabilities.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.OneHotCategorical(logits=torch.stack([x, -x], -1)))
        >>> classify(guide, torch.tensor([0.0, 5.0])).round(decimals=3)
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """
    if not isinstance(site, str):
        raise TypeError(f"site must be the name of a latent class, got {format_value(site)}.")

    def probabilities(*batch: Argument) -> Array:
        latent = drawn_of(sample_sites(poutine.trace(guide).get_trace(*batch)))
        check_rows(guide, batch, latent)
        probs: Tensor | None = None
        if site in latent:
            probs = getattr(as_discrete(latent[site]["fn"]), "probs", None)
        if probs is None:
            raise PairError(
                f"{name_of(guide)} has no class probabilities at site={site!r}: name a latent"
                " class among its sites."
            )
        return probs

    with preserved_rng():  # the guide draws, although only probabilities are read
        return map_batches(probabilities, [guide], x)


def accuracy(guide: Program, x: Data, y: ArrayLike, *, site: str = "y") -> float:
    """Returns the share of data points whose most probable class is their label.

    Arguments:
        guide: See ``classify``.
        x: The data, without labels.
        y: The labels: classes 0, ..., K - 1, or one-hot.
        site: See ``classify``.

    Raises:
        ValueError: If x and y differ in length.
    """
    found = torch.as_tensor(classify(guide, x, site=site)).argmax(-1)
    labels = as_classes(y, len(found))
    return (found == labels.to(found.device)).double().mean().item()


def as_classes(y: ArrayLike, count: int) -> Tensor:
    """Returns the classes of labels, which are numbers or one-hot rows.

    Raises:
        ValueError: If there are more or fewer than the rows of x, whose number is ``count``.
    """
    labels = as_numbers("y", y)
    if len(labels) != count:
        raise ValueError(
            f"y must have a label for each of the {count} rows of x, got {len(labels)}."
        )
    return labels.argmax(-1) if labels.dim() > 1 else labels
