"""Losses that are made of a bound of the pair and a further part."""

__all__ = ["Composed"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.structure import Structure
from tarspyro.scopes import kept_buffers, preserved_rng
from tarspyro.types import Program


class Composed(Bound):
    """A bound and a further part of the loss, with the bound's adjustable numbers as its own.

    The history has the bound as ``bound``, with its terms, and beside them those of the
    further part, under names of their own. Subclasses define ``further``.

    Arguments:
        bound: Any bound of ``tarspyro.infer``.

    Raises:
        TypeError: If ``bound`` is not a bound of the library.
    """

    def __init__(self, bound: Bound) -> None:
        if not isinstance(bound, Bound):
            raise TypeError(
                f"bound must be one of tarspyro.infer, got {type(bound).__name__}."
            )
        super().__init__(
            bound.num_particles,
            max_plate_nesting=bound.max_plate_nesting,
            vectorize_particles=bound.vectorize_particles,
        )
        self.bound, self.chunk_size = bound, getattr(bound, "chunk_size", None)
        self.adjustable = (*self.adjustable, *bound.adjustable)
        for name in bound.adjustable:
            setattr(self, name, getattr(bound, name))

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and beside it the bound with its terms, and the terms of the
        further part.
        """
        for name in self.bound.adjustable:
            setattr(self.bound, name, getattr(self, name))
        loss, terms = self.bound.loss_and_terms(model, guide, *args, **kwargs)
        further, named = self.further(model, guide, args, kwargs)
        return loss + further, {"bound": -loss.detach(), **terms, **named}

    def further(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns the further part of the loss and its terms, detached and summed over the
        data.
        """
        raise NotImplementedError

    def prepare(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        # Both parts find out the structures of what they run, by a run that leaves no mark.
        with preserved_rng(), kept_buffers(model, guide), torch.no_grad():
            self.loss_and_terms(model, guide, *args, **kwargs)

    def _structure(self, *pair_and_data: Any) -> Structure:
        return self.bound._structure(*pair_and_data)
