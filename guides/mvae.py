"""The multimodal variational autoencoder: the guide."""

__all__ = ["MVAE"]

import itertools
from collections.abc import Callable, Sequence

import pyro
import torch
from torch import Tensor, nn

from tarspyro.arguments import as_module_list, check_choice
from tarspyro.data.modalities import modalities_of
from tarspyro.distributions import MixtureOfExperts, ProductOfExperts, as_prior
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class MVAE(StochasticModule):
    r"""The inference half of a multimodal variational autoencoder.

    It combines one expert for each modality that is present. The product of experts and prior

    .. math:: q(z \mid x_1, \dots, x_M) \propto p(z)
              \prod_{m \text{ present}} q_m(z \mid x_m)

    is Normal, with a KL in closed form. ``ModalitySubsets`` trains the experts to be good on
    their own too. The mixture of experts (MMVAE)

    .. math:: q(z \mid x_1, \dots, x_M) = \frac{1}{\#\text{present}}
              \sum_{m \text{ present}} q_m(z \mid x_m)

    samples one expert and is scored by the density of the whole mixture. With ``IWAE`` this
    gives the bound without stratification, which is tighter, and ``ModalityStrata`` the bound
    of the paper, which trains every expert. The mixture of products (MoPoE)

    .. math:: q(z \mid x_1, \dots, x_M) = \frac{1}{\#S} \sum_S q_S(z), \qquad
              q_S(z) \propto p(z) \prod_{m \in S} q_m(z \mid x_m)

    has a component for each subset S of the modalities that are present. In rows without any
    modality, q is the prior.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the posteriors' event shape.

    Arguments:
        posteriors: The Normal experts q_1(z | x_1), ..., q_M(z | x_M), such as ``Conditional``
            modules.
        prior: The Normal prior p(z): the model's own module, not a copy.
        experts: How the experts are combined, ``"product"``, ``"mixture"`` or
            ``"mixture-of-products"``.

    Raises:
        TypeError: If ``posteriors`` is not a list of modules.
        ValueError: If ``experts`` is not one of these; when called, if a distribution is not
            Normal or all modalities are None.

    References:
        Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised
        Learning, arXiv:1802.05335; Shi et al. (2019), Variational Mixture-of-Experts
        Autoencoders, arXiv:1911.03393; Sutter et al. (2021), Generalized Multimodal ELBO,
        arXiv:2105.02470, eq. 8.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> image = Conditional(dist.Normal, MLP(64, [32]), 2)
        >>> label = Conditional(dist.Normal, MLP(10, [8]), 2)
        >>> q = MVAE([image, label], default_prior(dist.Normal, 2))
        >>> q.formula
        'q(z | x_1, x_2)'
        >>> q(torch.zeros(5, 64), None).shape
        torch.Size([5, 2])
    """

    density = "q"

    def __init__(
        self,
        posteriors: Sequence[nn.Module],
        prior: Distribution | Callable[..., Distribution],
        experts: str = "product",
    ) -> None:
        super().__init__()
        check_choice("experts", experts, ("product", "mixture", "mixture-of-products"))
        self.posteriors = as_module_list("posteriors", posteriors)
        self.prior = as_prior(prior)
        self.experts = experts

        parts = [f"posteriors.{m}" for m in range(len(self.posteriors))]
        combined = " + ".join(parts) if experts == "mixture" else " * ".join([*parts, "prior"])
        modalities = ", ".join(f"x_{m + 1}" for m in range(len(parts)))
        self.factors = {combined: f"z | {modalities}"}

    def forward(self, *data: Tensor | None) -> Tensor:
        """Samples z given the modalities that are not None, in the rows that have them."""
        x, present = modalities_of(self, data, len(self.posteriors))
        given = [(m, value) for m, value in enumerate(x) if value is not None]
        if not given:
            raise ValueError(
                "MVAE needs at least one modality to infer z, got none: generate with the"
                " model instead."
            )
        rows = [row for m, _ in given if (row := present[m]) is not None]
        mask = torch.stack(rows) if rows else None
        with pyro.plate("data", len(given[0][1])):
            experts = [self.posteriors[m](value) for m, value in given]
            return pyro.sample("z", self._combined(experts, mask))

    def _combined(self, experts: Sequence[Distribution], mask: Tensor | None) -> Distribution:
        """Returns q(z | x_1, ..., x_M) from the experts and the rows of each, shape (M, B)."""
        if self.experts == "product":
            return ProductOfExperts(experts, self.prior(), mask)
        if self.experts == "mixture-of-products":
            subsets = _subsets(len(experts))
            if mask is not None:
                mask = torch.stack([mask[subset].all(0) for subset in subsets])
            prior = self.prior()
            experts = [ProductOfExperts([experts[m] for m in s], prior) for s in subsets]
        if mask is None:
            return MixtureOfExperts(experts)

        # Equal weights for the experts of a row, and the prior for a row without any.
        count = mask.sum(0)
        weights = torch.cat([mask / count.clamp(min=1), (count == 0)[None]])
        return MixtureOfExperts(experts, self.prior(), weights)


def _subsets(count: int) -> list[list[int]]:
    """Returns the subsets of some modalities that are not empty."""
    sizes = range(1, count + 1)
    return [list(s) for size in sizes for s in itertools.combinations(range(count), size)]
