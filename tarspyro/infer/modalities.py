"""What multimodal pairs are trained with beside one bound: KLs between guides, and bounds of subsets."""

__all__ = ["ModalityKL", "ModalitySubsets"]

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count, check_number
from tarspyro.infer.base import Bound
from tarspyro.infer.elbo import ELBO
from tarspyro.infer.structure import Structure
from tarspyro.infer.traces import Program


class _Composed(Bound):
    """A loss that is made of a bound of the same pair, with that bound's adjustable numbers as its own.

    Subclasses define ``further``, the other part.
    """

    def __init__(self, bound: Bound) -> None:
        if not isinstance(bound, Bound):
            raise TypeError(f"bound must be one of tarspyro.infer, got {type(bound).__name__}.")
        super().__init__(bound.num_particles, max_plate_nesting=bound.max_plate_nesting)
        self.bound, self.chunk_size = bound, getattr(bound, "chunk_size", None)
        self.adjustable = (*self.adjustable, *bound.adjustable)
        for name in bound.adjustable:
            setattr(self, name, getattr(bound, name))

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss, and beside it the bound on all that is given, with its terms, and the other part."""
        for name in self.bound.adjustable:
            setattr(self.bound, name, getattr(self, name))
        loss, terms = self.bound.loss_and_terms(model, guide, *args, **kwargs)
        # A pair of functions has no likelihoods: all that it takes are modalities.
        count = len(getattr(model, "likelihoods", args))
        if kwargs:
            model, guide = partial(model, **kwargs), partial(guide, **kwargs)
        masks = [mask for mask in args[count:] if mask is not None]
        further, named = self.further(model, guide, args[:count], masks)
        return loss + further, {"bound": -loss.detach(), **terms, **named}

    def further(
        self, model: Program, guide: Program, x: Sequence[Tensor | None], masks: Sequence[Tensor]
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns the other part of the loss and its terms, given the modalities and, if there is one, the mask."""
        raise NotImplementedError

    def _structure(self, *pair_and_data: Any) -> Structure:
        return self.bound._structure(*pair_and_data)


class ModalityKL(_Composed):
    r"""A bound, and beside it how far the guide of each modality is from the guide of all: JMVAE-kl.

    .. math:: \mathcal{L} - \alpha \sum_m \mathrm{KL}(q(z \mid x_1, \dots, x_M) \,\|\, q(z \mid x_m))

    The sum is over the modalities that are given, in the rows that have them. (Suzuki et al. 2016, arXiv:1611.01891.)
    It is a function of the guide alone, which is asked with all and with one modality; in closed form where the ELBO
    would take that, from draws else. The bound stays one on log p of what is given: ``fit`` writes it down as
    ``bound``, with the terms of an ``ELBO``, and the sum of the KLs, without alpha, as ``modality_kl``.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. What ``schedules`` of ``fit`` change, such as ``beta``, is set here.
        alpha: The weight of the KLs. They teach the guides of single modalities, and hold the joint one to what single
            ones can tell; the paper has 0.01, 0.1 and 1.

    Raises:
        TypeError: If ``bound`` is not a bound of the library.
        ValueError: If alpha is negative.

    Example:
        >>> ModalityKL(ELBO(), alpha=0.1).adjustable
        ('alpha', 'beta')
    """

    adjustable = ("alpha",)

    def __init__(self, bound: Bound, alpha: float = 1.0) -> None:
        check_number("alpha", alpha, 0)
        super().__init__(bound)
        self.alpha = alpha

    def further(
        self, model: Program, guide: Program, x: Sequence[Tensor | None], masks: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns alpha times the KLs, and the KLs."""
        divergences = []
        for m in _given(x):
            halves: list[Any] = [partial(guide, *subset, *masks) for subset in (_only(x, m), x)]
            for mask in masks:
                rows: Any = mask[:, m].bool()
                halves = [poutine.mask(half, mask=rows) for half in halves]
            # Of two guides, one as the model and nothing observed, minus the ELBO is the KL.
            divergences.append(ELBO().differentiable_loss(*halves))
        total = torch.stack(divergences).sum()
        return self.alpha * total, {"modality_kl": total.detach()}


class ModalitySubsets(_Composed):
    r"""The bounds of all modalities together, of each alone, and of random subsets: the sub-sampled training of MVAE.

    .. math:: \mathcal{L}(x_1, \dots, x_M) + \sum_{m=1}^M \mathcal{L}(x_m) + \sum_{j=1}^k \mathcal{L}(X_j)

    (Wu and Goodman 2018, arXiv:1802.05335.) Each is a bound on log p of its subset; their sum is none. ``fit``
    writes the first down as ``bound``, with the terms of an ``ELBO``. The subsets X_j are drawn anew for every row,
    uniformly among those that are not empty, less what the row lacks.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. What ``schedules`` of ``fit`` change, such as ``beta``, is set here.
        num_subsets: k, the number of random subsets; of two modalities there are none but those of the first terms.

    Raises:
        TypeError: If ``bound`` is not a bound of the library.
        ValueError: If there are fewer than 0 subsets.

    Example:
        >>> ModalitySubsets(ELBO(), num_subsets=1).num_particles
        1
    """

    def __init__(self, bound: Bound, num_subsets: int = 0) -> None:
        super().__init__(bound)
        self.num_subsets = as_count("num_subsets", num_subsets, 0)

    def further(
        self, model: Program, guide: Program, x: Sequence[Tensor | None], masks: Sequence[Tensor]
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns minus the bounds of single modalities and random subsets."""
        given = _given(x)
        subsets = [(*_only(x, m), *masks) for m in given] if len(given) > 1 else []
        first: Any = x[given[0]]
        for _ in range(self.num_subsets):
            # The binary digits of a number tell which modalities are in a subset.
            numbers = torch.randint(1, 2 ** len(x), (len(first), 1), device=first.device)
            drawn = (numbers >> torch.arange(len(x), device=first.device) & 1).bool()
            subsets.append((*x, reduce(torch.logical_and, masks, drawn)))
        return sum(self.bound.differentiable_loss(model, guide, *subset) for subset in subsets), {}


def _given(x: Sequence[Tensor | None]) -> list[int]:
    return [m for m, value in enumerate(x) if value is not None]


def _only(x: Sequence[Tensor | None], m: int) -> list[Tensor | None]:
    return [value if i == m else None for i, value in enumerate(x)]
