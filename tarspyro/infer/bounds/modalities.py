"""Losses of multimodal pairs: KL divergences between guides, and bounds of subsets and of single
experts.
"""

__all__ = ["ModalityKL", "ModalityStrata", "ModalitySubsets"]

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from tarspyro.arguments import as_count, check_number
from tarspyro.distributions.experts import MixtureOfExperts
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
            # The binary digits of a number are the modalities in a subset.
            numbers = torch.randint(1, 2 ** len(x), (len(first), 1), device=first.device)
            drawn = (numbers >> torch.arange(len(x), device=first.device) & 1).bool()
            subsets.append((*x, reduce(torch.logical_and, masks, drawn)))
        losses = [self.bound.differentiable_loss(model, guide, *subset) for subset in subsets]
        return sum(losses), {}


class ModalityStrata(Composed):
    r"""Minus the mean of a bound over the experts of a mixture: MMVAE's bound.

    .. math:: \frac{1}{M} \sum_{m=1}^M \mathbb{E}_{z_1, \dots, z_K \sim q_m(z \mid x_m)}\left[
              \log \frac{1}{K} \sum_k \frac{p(z_k, x_1, \dots, x_M)}
              {\frac{1}{M} \sum_j q_j(z_k \mid x_j)}\right] \le \log p(x_1, \dots, x_M)

    (Shi et al. 2019, arXiv:1911.03393, eq. 3, with ``IWAE``.) All particles of a logarithm come
    from one expert, so that each of them has to explain the data. Under ``IWAE`` of the whole
    mixture the best expert gets all the weight, and the others learn nothing.

    The guide draws from a ``MixtureOfExperts``, as ``guides.MVAE(..., experts="mixture")``
    does. There are as many strata as modalities. A row whose mixture has other weights, such as
    one without some modality, has its experts in the strata in proportion to them, on average.

    Arguments:
        bound: Any bound of ``tarspyro.infer``. Its adjustable attributes are attributes of this
            loss too, and ``schedules`` of ``fit`` may change them.

    Raises:
        TypeError: If ``bound`` is not a bound of the library.
        ValueError: When called, if the guide draws from no mixture of experts.

    Example:
        >>> from tarspyro.infer import IWAE
        >>> ModalityStrata(IWAE(10)).num_particles
        10
    """

    def __init__(self, bound: Bound) -> None:
        super().__init__(bound)
        self._strata: _Strata | None = None

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the mean over the strata, with the means of the bound's terms."""
        if self._strata is None or self._strata.guide is not guide:
            self._strata = _Strata(guide)
        strata = self._strata
        x: Any = args[: len(getattr(model, "likelihoods", args))]
        strata.count = len(_given(x))
        self.adjust_bound()
        # The levels of the last batch, and those of the trial runs, are of other rows.
        strata.starts.clear()
        strata.nesting = self.bound.structure(model, strata, *args, **kwargs).nesting
        strata.starts.clear()
        losses: list[Tensor] = []
        terms: list[dict[str, Tensor]] = []
        for place in range(strata.count):
            strata.place = place
            loss, found = self.bound.loss_and_terms(model, strata, *args, **kwargs)
            losses.append(loss)
            terms.append(found)
        if not strata.starts:
            raise ValueError(
                f"guide must draw from a MixtureOfExperts, and {name_of(guide)} does not: take"
                f" {type(self.bound).__name__} itself, or MVAE(..., experts='mixture')."
            )
        means = {
            name: torch.stack([found[name] for found in terms]).mean(0) for name in terms[0]
        }
        return torch.stack(losses).mean(), means


class _Strata:
    """A guide whose mixtures of experts draw from one stratum.

    Arguments:
        guide: The guide.
    """

    def __init__(self, guide: Program) -> None:
        self.guide = guide
        self.count = 1
        self.place = 0
        self.nesting = 1
        self.starts: dict[str, Tensor] = {}
        self.__name__ = name_of(guide)

    def __call__(self, *args: Any, **kwargs: Any) -> object:
        with _FromExperts(self):
            return self.guide(*args, **kwargs)

    def levels(self, name: str, mixture: MixtureOfExperts) -> Tensor:
        """Returns the levels of a site's rows, which the particles share."""
        if name not in self.starts:
            shape = mixture.batch_shape[-self.nesting :] if self.nesting else ()
            self.starts[name] = torch.rand(shape, device=mixture.locs.device)
        return (self.starts[name] + self.place) / self.count


class _FromExperts(Messenger):
    """Lets the mixtures of experts of a program draw from the experts of a stratum."""

    def __init__(self, strata: _Strata) -> None:
        super().__init__()
        self.strata = strata

    def _pyro_sample(self, msg: Any) -> None:
        mixture = msg["fn"]
        if isinstance(mixture, MixtureOfExperts):
            msg["fn"] = mixture.at(self.strata.levels(msg["name"], mixture))


def _given(x: Sequence[Modality]) -> list[int]:
    """Returns which modalities are given."""
    return [m for m, value in enumerate(x) if value is not None]


def _only(x: Sequence[Modality], m: int) -> list[Modality]:
    """Returns the modalities without all but the m-th."""
    return [value if i == m else None for i, value in enumerate(x)]
