"""Rows that masks leave out, however they are masked: by ``poutine.mask``, ``.mask()`` or
``obs_mask``.
"""

__all__ = ["both", "counted_rows", "observed_rows"]

from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor

from tarspyro.infer.traces import Site


def counted_rows(site: Site) -> Tensor | None:
    """Returns which rows of a site are not masked, of shape (N,); None for all of them.

    A row counts if one of its elements does.
    """
    mask = _mask(site)
    if mask is None:
        return None
    shape = site["fn"].batch_shape
    return (
        mask.expand(torch.broadcast_shapes(mask.shape, shape))
        .reshape(len(site["value"]), -1)
        .any(1)
    )


def observed_rows(site: Site, observations: Iterable[Site]) -> Tensor | None:
    """Returns which rows of a latent site are not masked and have an observation that is not;
    None for all of them.
    """
    own, masks = _mask(site), [_mask(observation) for observation in observations]
    shape = site["fn"].batch_shape
    given = [_reduced(mask, shape).expand(shape) for mask in masks if mask is not None]
    seen = torch.stack(given).any(0) if given and len(given) == len(masks) else None
    counted = both(None if own is None else own.expand(shape), seen)
    return None if counted is None else counted.reshape(len(site["value"]), -1).any(1)


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Returns which rows both masks leave in; None for all of them."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _mask(site: Site) -> Tensor | None:
    """The masks around a site and those of its distribution together; None if nothing is
    masked.
    """
    masks = [
        mask
        for mask in (site["mask"], _mask_of(site["fn"]))
        if mask is not None and mask is not True
    ]
    if not masks:
        return None
    device = site["value"].device
    tensors = [
        mask.bool() if torch.is_tensor(mask) else torch.full((), mask, device=device)
        for mask in masks
    ]
    return both(tensors[0], tensors[1] if len(tensors) > 1 else None)


def _mask_of(distribution: Any) -> Any:
    """The mask that a distribution was given: a row of several masked elements counts if one
    of them does.
    """
    if isinstance(distribution, MaskedDistribution):
        own, inner = distribution._mask, _mask_of(distribution.base_dist)
        if inner is None or own is False:
            return own
        return inner if own is True else own & inner
    if isinstance(distribution, ExpandedDistribution):
        return _mask_of(distribution.base_dist)
    if isinstance(distribution, Independent):
        mask, ndims = _mask_of(distribution.base_dist), distribution.reinterpreted_batch_ndims
        if torch.is_tensor(mask) and ndims:
            return mask.expand(distribution.base_dist.batch_shape).flatten(-ndims).any(-1)
        return mask
    return None


def _reduced(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask of more plates as one of these: an entry counts if one of those inside it does."""
    while mask.dim() > len(shape):
        mask = mask.any(0)
    for dim in range(-mask.dim(), 0):
        if shape[dim] == 1 and mask.shape[dim] > 1:
            mask = mask.any(dim, keepdim=True)
    return mask
