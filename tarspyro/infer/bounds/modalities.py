"""Losses of multimodal pairs: KL divergences between guides, and bounds of subsets."""

__all__ = ["ModalityKL", "ModalitySubsets"]

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, TypeAlias

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count, check_number
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.composed import Composed
from tarspyro.infer.bounds.elbo import ELBO
from tarspyro.infer.traces import name_of
from tarspyro.types import Program

# A modality of a batch; None if it is not given.
Modality: TypeAlias = Tensor | None


class _OfModalities(Composed):
    """Minus a bound, plus a function of the modalities. Subclasses define ``of_modalities``."""

    def further(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: Mapping[str, object],
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        # Functions have no attribute ``likelihoods``: all their arguments are modalities.
        count = len(getattr(model, "likelihoods", args))
        if kwargs:
            model = partial(model, **kwargs)
            guide = partial(guide, **kwargs)
        masks = [mask for mask in args[count:] if mask is not None]
        return self.of_modalities(model, guide, args[:count], masks)

    def of_modalities(
        self,
        model: Program,
        guide: Program,
        x: Sequence[Modality],
        masks: Sequence[Tensor],
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns what is added to the loss, and its terms.

        Arguments:
            model: The model.
            guide: The guide.
            x: The modalities; None for one that is not given.
            masks: The mask of rows and modalities, if there is one.
        """
        raise NotImplementedError


class ModalityKL(_OfModalities):
    r"""Minus a bound, plus the KL divergences from the joint guide to those of single modalities:
    JMVAE-kl.

    .. math:: -\mathcal{L} +
              \alpha \sum_m \mathrm{KL}(q(z \mid x_1, \dots, x_M) \,\|\, q(z \mid x_m))

    The sum is over the modalities that are given, in the rows that have them. (Suzuki et al.
    2016, arXiv:1611.01891.) It depends on the guide alone, which runs with all modalities and
    with one. A KL is in closed form if the ELBO's would be, else from as many draws as the
    bound has particles. ``fit`` records the bound on log p of the given modalities as
    ``bound``, with the terms of an ``ELBO``, and the sum of the KLs, without alpha, as
    ``modality_kl``.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. Its adjustable attributes, such as ``beta``, are
            attributes of this loss too, and ``schedules`` of ``fit`` may change them.
        alpha: The weight of the KLs. They train the guides of single modalities, and keep the
            joint guide close to these. The paper uses 0.01, 0.1 and 1.

    Raises:
        TypeError: If ``bound`` is not a bound of the library.
        ValueError: If ``alpha`` is negative.

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
        x: Sequence[Modality],
        masks: Sequence[Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns alpha times the sum of the KLs, and the sum."""
        divergences = []
        for m in _given(x):
            elbo, alone, together = self._divergence(guide, m, len(x))
            divergences.append(elbo.differentiable_loss(alone, together, *x, *masks))
        total = torch.stack(divergences).sum()
        return self.alpha * total, {"modality_kl": total.detach()}

    def _divergence(self, guide: Program, m: int, count: int) -> tuple[ELBO, "_Of", "_Of"]:
        """Returns an ELBO, and the guides of one modality and of all.

        With a guide in place of the model, minus the ELBO is the KL of the two guides. All
        three are kept, so that the structure of such a pair is found only once.
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
    """A guide given the m-th modality alone, or all of them, in the rows that have the m-th.

    Arguments:
        guide: The guide.
        m: The modality.
        count: The number of modalities.
        alone: Whether the guide gets the m-th alone.
    """

    def __init__(self, guide: Program, m: int, count: int, *, alone: bool) -> None:
        self.guide = guide
        self.m = m
        self.count = count
        self.alone = alone
        self.__name__ = name_of(guide)

    def __call__(self, *data: Any) -> object:
        x = data[: self.count]
        masks = data[self.count :]
        guide: Program = self.guide
        for mask in masks:
            guide = poutine.mask(guide, mask=mask[:, self.m].bool())
        return guide(*(_only(x, self.m) if self.alone else x), *masks)


class ModalitySubsets(_OfModalities):
    r"""Minus the bounds of all modalities, of each alone, and of random subsets: the sub-sampled
    training of MVAE.

    .. math:: -\mathcal{L}(x_1, \dots, x_M) - \sum_{m=1}^M \mathcal{L}(x_m) -
              \sum_{j=1}^k \mathcal{L}(X_j)

    (Wu and Goodman 2018, arXiv:1802.05335.) Each is a bound on log p of its subset; their sum
    is none. ``fit`` records the first as ``bound``, with the terms of an ``ELBO``. The subsets
    X_j are drawn anew for every row, uniformly among those that are not empty, without the
    modalities that the row lacks.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. Its adjustable attributes, such as ``beta``, are
            attributes of this loss too, and ``schedules`` of ``fit`` may change them.
        num_subsets: k, the number of random subsets. Two modalities have no other subsets than
            those of the first terms.

    Raises:
        TypeError: If ``bound`` is not a bound of the library.
        ValueError: If ``num_subsets`` is negative.

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
        x: Sequence[Modality],
        masks: Sequence[Tensor],
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Returns minus the bounds of single modalities and random subsets."""
        given = _given(x)
        subsets = [(*_only(x, m), *masks) for m in given] if len(given) > 1 else []
        first = next(value for value in x if value is not None)
        for _ in range(self.num_subsets):
            # The binary digits of a number tell which modalities are in a subset.
            numbers = torch.randint(1, 2 ** len(x), (len(first), 1), device=first.device)
            drawn = (numbers >> torch.arange(len(x), device=first.device) & 1).bool()
            subsets.append((*x, reduce(torch.logical_and, masks, drawn)))
        losses = [self.bound.differentiable_loss(model, guide, *subset) for subset in subsets]
        return sum(losses), {}


def _given(x: Sequence[Modality]) -> list[int]:
    """Returns which modalities are given."""
    return [m for m, value in enumerate(x) if value is not None]


def _only(x: Sequence[Modality], m: int) -> list[Modality]:
    """Returns the modalities without all but the m-th."""
    return [value if i == m else None for i, value in enumerate(x)]
