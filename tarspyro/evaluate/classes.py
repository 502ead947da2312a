"""What a guide takes data points for: class probabilities, and how often they are right."""

__all__ = ["accuracy", "classify"]

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_numbers, format_value
from tarspyro.distributions import as_discrete
from tarspyro.evaluate.batching import by_batch
from tarspyro.infer.traces import PairError, name_of
from tarspyro.scopes import preserved_rng
from tarspyro.types import Program


def classify(guide: Program, x: Any, *, site: str = "y") -> Any:
    """Returns the class probabilities q(y | x) of each data point, in evaluation mode and
    without gradients.

    Arguments:
        guide: The guide, such as ``guides.SemiSupervisedVAE``.
        x: The data without labels, in any form that ``fit`` takes in memory.
        site: The latent site of the class.

    Returns:
        Shape ``(N, K)``: an array for arrays, a tensor for tensors.

    Raises:
        PairError: If the guide has no such site, or the site's family no probabilities.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.OneHotCategorical(logits=torch.stack([x, -x], -1)))
        >>> classify(guide, torch.tensor([0.0, 5.0])).round(decimals=3)
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """

    def probabilities(*arguments: Tensor) -> Tensor:
        if not isinstance(site, str):
            raise TypeError(
                f"site must be the name of a latent class, got {format_value(site)}."
            )
        nodes: Any = poutine.trace(guide).get_trace(*arguments).nodes
        probs: Tensor | None = None
        if site in nodes and not nodes[site]["is_observed"]:
            probs = getattr(as_discrete(nodes[site]["fn"]), "probs", None)
        if probs is None:
            raise PairError(
                f"{name_of(guide)} has no class probabilities: site={site!r} is not a latent"
                " class of it."
            )
        return probs

    with preserved_rng():  # the guide draws what it is not asked for
        return by_batch(probabilities, guide, guide, x)


def accuracy(guide: Program, x: Any, y: Any, *, site: str = "y") -> float:
    """Returns the share of data points whose most probable class is the right one.

    Arguments:
        guide: See ``classify``.
        x: The data, without labels.
        y: The right classes 0, ..., K - 1, or one-hot.
        site: See ``classify``.

    Raises:
        ValueError: If x and y differ in length.
    """
    found = torch.as_tensor(classify(guide, x, site=site)).argmax(-1)
    right = as_numbers("y", y).to(found.device)
    right = right.argmax(-1) if right.dim() > 1 else right
    if len(found) != len(right):
        raise ValueError(
            f"y must have a class for each of the {len(found)} rows of x, got {len(right)}."
        )
    return (found == right).double().mean().item()
