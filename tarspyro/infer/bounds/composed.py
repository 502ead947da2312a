"""Losses that add another term to a bound."""

__all__ = ["Composed"]

from collections.abc import Mapping

import torch
from torch import Tensor

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.structure import Structure
from tarspyro.scopes import kept_buffers, preserved_rng
from tarspyro.types import Program


class Composed(Bound):
    """Minus a bound, plus another term. Subclasses define ``further``.

    The adjustable attributes of the bound are attributes of this loss too. The history of
    ``fit`` has the bound as ``bound``, with its terms, and beside them the terms of
    ``further``.

    Arguments:
        bound: Any bound of ``tarspyro.infer``.

    Raises:
        TypeError: If ``bound`` is not a bound of the library.
    """

    def __init__(self, bound: Bound) -> None:
        if not isinstance(bound, Bound):
            raise TypeError(
                f"bound must be one of tarspyro.infer, such as ELBO(), got {type(bound).__name__}."
            )
        super().__init__(
            bound.num_particles,
            max_plate_nesting=bound.max_plate_nesting,
            vectorize_particles=bound.vectorize_particles,
        )
        self.bound = bound
        self.chunk_size = getattr(bound, "chunk_size", None)
        self.adjustable = (*self.adjustable, *bound.adjustable)
        for name in bound.adjustable:
            setattr(self, name, getattr(bound, name))

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and the bound with its terms and those of ``further``."""
        self.adjust_bound()
        loss, terms = self.bound.loss_and_terms(model, guide, *args, **kwargs)
        further, further_terms = self.further(model, guide, args, kwargs)
        return loss + further, {"bound": -loss.detach(), **terms, **further_terms}

    def adjust_bound(self) -> None:
        """Gives the bound the values that its adjustable attributes have here."""
        for name in self.bound.adjustable:
            setattr(self.bound, name, getattr(self, name))

    def further(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns what is added to the loss, and its terms, detached and summed over the
        data.
        """
        raise NotImplementedError

    def prepare(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        # A whole run of the loss finds the structures that its parts need.
        with preserved_rng(), kept_buffers(model, guide), torch.no_grad():
            self.loss_and_terms(model, guide, *args, **kwargs)

    def structure(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> Structure:
        """Returns the structure that the bound finds."""
        return self.bound.structure(model, guide, *args, **kwargs)
