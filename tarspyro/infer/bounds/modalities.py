"""What multimodal pairs are trained with beside one bound: KLs between guides, and bounds of
subsets.
"""

__all__ = ["ModalityKL", "ModalitySubsets"]

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count, check_number
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.composed import Composed
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.traces import name_of
from tarspyro.types import Program


class _OfModalities(Composed):
    """A bound, and a further part that is a function of the modalities. Subclasses define
    ``of_modalities``.
    """

    def further(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        # A pair of functions has no likelihoods: all that it takes are modalities.
        count = len(getattr(model, "likelihoods", args))
        if kwargs:
            model, guide = partial(model, **kwargs), partial(guide, **kwargs)
        masks = [mask for mask in args[count:] if mask is not None]
        return self.of_modalities(model, guide, args[:count], masks)

    def of_modalities(
        self,
        model: Program,
        guide: Program,
        x: Sequence[Tensor | None],
        masks: Sequence[Tensor],
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns the further part of the loss and its terms, given the modalities and, if
        there is one, the mask.
        """
        raise NotImplementedError


class ModalityKL(_OfModalities):
    r"""A bound, and beside it how far the guide of each modality is from the guide of all:
    JMVAE-kl.

    .. math:: \mathcal{L} - \alpha \sum_m \mathrm{KL}(q(z \mid x_1, \dots, x_M) \,\|\, q(z \mid x_m))

    The sum is over the modalities that are given, in the rows that have them. (Suzuki et al.
    2016, arXiv:1611.01891.) It is a function of the guide alone, which is asked with all and
    with one modality; in closed form where the ELBO would take that, else from as many draws
    as the bound has particles. The bound stays one on log p of what is given: ``fit`` writes
    it down as ``bound``, with the terms of an ``ELBO``, and the sum of the KLs, without alpha,
    as ``modality_kl``.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. What ``schedules`` of ``fit`` change, such as
            ``beta``, is set here.
        alpha: The weight of the KLs. They teach the guides of single modalities, and hold the
            joint one to what single ones can tell; the paper has 0.01, 0.1 and 1.

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
        self._divergences: dict[int, tuple[ELBO, _Of, _Of]] = {}

    def of_modalities(
        self,
        model: Program,
        guide: Program,
        x: Sequence[Tensor | None],
        masks: Sequence[Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns alpha times the KLs, and the KLs."""
        divergences = []
        for m in _given(x):
            elbo, alone, together = self._divergence(guide, m, len(x))
            divergences.append(elbo.differentiable_loss(alone, together, *x, *masks))
        total = torch.stack(divergences).sum()
        return self.alpha * total, {"modality_kl": total.detach()}

    def _divergence(self, guide: Program, m: int, count: int) -> tuple[ELBO, "_Of", "_Of"]:
        """Of two guides, one as the model and nothing observed, minus the ELBO is the KL.

        They are kept, so that the structure of such a pair has to be found only once.
        """
        if m not in self._divergences or self._divergences[m][1].guide is not guide:
            elbo = ELBO(
                self.bound.num_particles,
                max_plate_nesting=self.bound.max_plate_nesting,
                vectorize_particles=self.bound.vectorize_particles,
            )
            elbo.observed = False
            self._divergences[m] = (
                elbo,
                _Of(guide, m, count, alone=True),
                _Of(guide, m, count, alone=False),
            )
        self._divergences[m][0].num_particles = self.bound.num_particles
        return self._divergences[m]


class _Of:
    """A guide that sees the m-th modality alone, or all of them, in the rows that have the
    m-th.
    """

    def __init__(self, guide: Program, m: int, count: int, *, alone: bool) -> None:
        self.guide, self.m, self.count, self.alone = guide, m, count, alone
        self.__name__ = name_of(guide)

    def __call__(self, *data: Any) -> Any:
        x, masks = data[: self.count], data[self.count :]
        guide: Any = self.guide
        for mask in masks:
            rows: Any = mask[:, self.m].bool()
            guide = poutine.mask(guide, mask=rows)
        return guide(*(_only(x, self.m) if self.alone else x), *masks)


class ModalitySubsets(_OfModalities):
    r"""The bounds of all modalities together, of each alone, and of random subsets: the
    sub-sampled training of MVAE.

    .. math:: \mathcal{L}(x_1, \dots, x_M) + \sum_{m=1}^M \mathcal{L}(x_m) + \sum_{j=1}^k \mathcal{L}(X_j)

    (Wu and Goodman 2018, arXiv:1802.05335.) Each is a bound on log p of its subset; their sum
    is none. ``fit`` writes the first down as ``bound``, with the terms of an ``ELBO``. The
    subsets X_j are drawn anew for every row, uniformly among those that are not empty, less
    what the row lacks.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. What ``schedules`` of ``fit`` change, such as
            ``beta``, is set here.
        num_subsets: k, the number of random subsets; of two modalities there are none but
            those of the first terms.

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

    def of_modalities(
        self,
        model: Program,
        guide: Program,
        x: Sequence[Tensor | None],
        masks: Sequence[Tensor],
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
        return (
            sum(self.bound.differentiable_loss(model, guide, *subset) for subset in subsets),
            {},
        )


def _given(x: Sequence[Tensor | None]) -> list[int]:
    return [m for m, value in enumerate(x) if value is not None]


def _only(x: Sequence[Tensor | None], m: int) -> list[Tensor | None]:
    return [value if i == m else None for i, value in enumerate(x)]
