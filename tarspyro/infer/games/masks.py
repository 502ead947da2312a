"""Rows that masks leave in, whether by ``poutine.mask``, ``.mask()`` or ``obs_mask``."""

__all__ = ["both", "counted_rows", "observed_rows"]

from collections.abc import Iterable

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from tarspyro.infer.traces import Site

# Python's booleans stand for all entries; None for no mask.
Mask = Tensor | bool | None


def counted_rows(site: Site) -> Tensor | None:
    """Returns the rows of a site that are not masked, booleans of shape (N,); None for all.

    A row counts if one of its elements does.
    """
    mask = _mask_of_site(site)
    if mask is None:
        return None
    shape = torch.broadcast_shapes(mask.shape, site["fn"].batch_shape)
    return mask.expand(shape).reshape(len(site["value"]), -1).any(1)


def observed_rows(site: Site, observations: Iterable[Site]) -> Tensor | None:
    """Returns the rows of a latent site that are not masked and have an observation that is
    not masked either; None for all.
    """
    shape = site["fn"].batch_shape
    own = _mask_of_site(site)
    if own is not None:
        own = own.expand(shape)
    masks = [_mask_of_site(observation) for observation in observations]
    given = [_reduced(mask, shape).expand(shape) for mask in masks if mask is not None]
    # An observation without a mask is there in every row.
    seen = torch.stack(given).any(0) if given and len(given) == len(masks) else None
    counted = both(own, seen)
    return None if counted is None else counted.reshape(len(site["value"]), -1).any(1)


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Returns the rows that two masks both leave in; None for all."""
    if one is None:
        return other
    if other is None:
        return one
    return one & other


def _mask_of_site(site: Site) -> Tensor | None:
    """The masks around a site and those of its distribution together; None without any."""
    found: Tensor | None = None
    for mask in (site["mask"], _mask_of(site["fn"])):
        if mask is None or mask is True:
            continue
        if torch.is_tensor(mask):
            tensor = mask.bool()
        else:
            tensor = torch.full((), mask, device=site["value"].device)
        found = both(found, tensor)
    return found


def _mask_of(distribution: Distribution) -> Mask:
    """The mask inside a distribution. Of an event with several masks, one entry is enough."""
    if isinstance(distribution, MaskedDistribution):
        own: Mask = distribution._mask
        inner = _mask_of(distribution.base_dist)
        if inner is None or own is False:
            return own
        if own is None or own is True:
            return inner
        return own & inner
    if isinstance(distribution, ExpandedDistribution):
        return _mask_of(distribution.base_dist)
    if isinstance(distribution, Independent):
        mask = _mask_of(distribution.base_dist)
        ndims = distribution.reinterpreted_batch_ndims
        if torch.is_tensor(mask) and ndims:
            return mask.expand(distribution.base_dist.batch_shape).flatten(-ndims).any(-1)
        return mask
    return None


def _reduced(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask over more plates as one of the given shape: an entry counts if one of those
    inside it does.
    """
    while mask.dim() > len(shape):
        mask = mask.any(0)
    for dim in range(-mask.dim(), 0):
        if shape[dim] == 1 and mask.shape[dim] > 1:
            mask = mask.any(dim, keepdim=True)
    return mask
