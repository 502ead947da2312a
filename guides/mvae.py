"""The multimodal variational autoencoder: the guide."""

__all__ = ["MVAE"]

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from tarspyro.arguments import check_choice
from tarspyro.data.modalities import modalities_of
from tarspyro.distributions import MixtureOfExperts, ProductOfExperts, as_prior
from tarspyro.modules import StochasticModule, layers_of


class MVAE(StochasticModule):
    r"""The inference half of a multimodal variational autoencoder: one expert for each
    modality, combined.

    The product of those that are present and the prior,

    .. math:: q(z \mid x_1, \dots, x_M) \propto p(z) \prod_{m \text{ present}} q_m(z \mid x_m),

    is Normal and has its KL in closed form. Where the experts are to be good alone, train them
    alone too: see ``ModalitySubsets``. The mixture (MMVAE)

    .. math:: q(z \mid x_1, \dots, x_M) = \frac{1}{\#\text{present}} \sum_{m \text{ present}} q_m(z \mid x_m)

    draws from one expert, and is weighted by the density of all: with ``IWAE`` the bound that
    is not stratified, which is the tighter one. Rows without any modality have the prior.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the posteriors' event shape.

    Arguments:
        posteriors: The experts q_1(z | x_1), ..., q_M(z | x_M), which are Normal, such as
            ``Conditional`` modules.
        prior: The prior p(z) of the model, itself and no copy; Normal.
        experts: How they are combined, as ``"product"`` or as ``"mixture"``.

    Raises:
        TypeError: If ``posteriors`` is not a list of modules.
        ValueError: If ``experts`` is neither; when called, if a distribution is not Normal or
            all modalities are None.

    References:
        Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised
        Learning, arXiv:1802.05335; Shi et al. (2019), Variational Mixture-of-Experts
        Autoencoders, arXiv:1911.03393.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> image, label = Conditional(dist.Normal, MLP(64, [32]), 2), Conditional(dist.Normal, MLP(10, [8]), 2)
        >>> q = MVAE([image, label], default_prior(dist.Normal, 2))
        >>> q.formula
        'q(z | x_1, x_2)'
        >>> q(torch.zeros(5, 64), None).shape
        torch.Size([5, 2])
    """

    density = "q"

    def __init__(
        self, posteriors: Sequence[nn.Module], prior: Any, experts: str = "product"
    ) -> None:
        super().__init__()
        check_choice("experts", experts, ("product", "mixture"))
        self.posteriors, self.prior, self.experts = (
            layers_of("posteriors", posteriors),
            as_prior(prior),
            experts,
        )
        parts = [f"posteriors.{m}" for m in range(len(self.posteriors))]
        combined = " + ".join(parts) if experts == "mixture" else " * ".join([*parts, "prior"])
        self.factors = {combined: f"z | {', '.join(f'x_{m + 1}' for m in range(len(parts)))}"}

    def forward(self, *data: Tensor | None) -> Tensor:
        """Samples z given the modalities that are not None, in the rows that have them."""
        x, present = modalities_of(self, data, len(self.posteriors))
        given = [(m, value) for m, value in enumerate(x) if value is not None]
        if not given:
            raise ValueError("MVAE infers z from at least one modality, got none.")
        rows = [row for m, _ in given if (row := present[m]) is not None]
        with pyro.plate("data", len(given[0][1])):
            experts = [self.posteriors[m](value) for m, value in given]
            return pyro.sample(
                "z", self._combined(experts, torch.stack(rows) if rows else None)
            )

    def _combined(self, experts: Sequence[Any], mask: Tensor | None) -> Any:
        if self.experts == "product":
            return ProductOfExperts(experts, self.prior(), mask)
        if mask is None:
            return MixtureOfExperts(experts)
        count = mask.sum(0)
        return MixtureOfExperts(
            experts, self.prior(), torch.cat([mask / count.clamp(min=1), (count == 0)[None]])
        )
