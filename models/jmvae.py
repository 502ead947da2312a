"""The joint multimodal variational autoencoder: the model."""

__all__ = ["JMVAE"]

from collections.abc import Sequence
from typing import Any

import pyro
from pyro import poutine
from torch import Tensor, nn

from tarspyro.data.modalities import modalities_of
from tarspyro.distributions import as_prior
from tarspyro.modules import StochasticModule, layers_of


class JMVAE(StochasticModule):
    r"""The generative half of a joint multimodal variational autoencoder: several modalities
    of one latent variable.

    .. math:: p(x_1, \dots, x_M, z) = p(z) \prod_{m=1}^M p(x_m \mid z)

    Called with the modalities, in order; what is None is not observed, and integrates out:
    ``p(x_1, None)`` is the model of x_1 alone, p(x_1, z). Where rows differ in what they have,
    a mask of shape ``(B, M)`` comes last, true where a row has the modality. What stands in
    the data where it has not makes no difference, but has to be finite.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the prior's event shape;
    - ``x_1``, ..., ``x_M``: the modalities that are given, or all of them where nothing is, of
      the likelihoods' event shapes.

    Arguments:
        prior: The prior p(z): a distribution, or a module that returns one.
        likelihoods: The likelihoods p(x_1 | z), ..., p(x_M | z), such as ``Conditional``
            modules.

    Raises:
        TypeError: If ``likelihoods`` is not a list of modules.
        ValueError: When called, if the modalities are more or fewer than the likelihoods.

    References:
        Suzuki, Nakayama and Matsuo (2016), Joint Multimodal Learning with Deep Generative
        Models, arXiv:1611.01891.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> image = Conditional(dist.Bernoulli, MLP(2, [32]), 64)
        >>> label = Conditional(dist.OneHotCategorical, MLP(2, [8]), 10)
        >>> p = JMVAE(default_prior(dist.Normal, 2), [image, label])
        >>> p
        JMVAE: p(x_1, x_2, z) = p(x_1 | z) p(x_2 | z) p(z)
          likelihoods.0: p(x_1 | z) = Bernoulli(logits) of shape (64,) from MLP(2 -> 32, ReLU)
          likelihoods.1: p(x_2 | z) = OneHotCategorical(logits) of shape (10,) from MLP(2 -> 8,
          ReLU)
          prior: p(z) = Normal(loc=0, scale=1) of shape (2,)
        >>> [x.shape for x in p(batch_size=5)]
        [torch.Size([5, 64]), torch.Size([5, 10])]
    """

    density = "p"

    def __init__(self, prior: Any, likelihoods: Sequence[nn.Module]) -> None:
        super().__init__()
        self.prior, self.likelihoods = as_prior(prior), layers_of("likelihoods", likelihoods)
        self.factors = {
            f"likelihoods.{m}": f"x_{m + 1} | z" for m in range(len(self.likelihoods))
        } | {"prior": "z"}

    def forward(self, *data: Tensor | None, batch_size: int = 1) -> list[Tensor | None]:
        """Samples z and observes the modalities given; without any, generates ``batch_size``
        of all.
        """
        x, present = modalities_of(self, data, len(self.likelihoods))
        rows = next((len(value) for value in x if value is not None), None)
        with pyro.plate("data", batch_size if rows is None else rows):
            z = pyro.sample("z", self.prior())
            for m, likelihood in enumerate(self.likelihoods):
                if x[m] is not None or rows is None:
                    x[m] = self._observe(f"x_{m + 1}", likelihood(z), x[m], present[m])
        return x

    def _observe(self, name: str, likelihood: Any, value: Tensor | None, rows: Any) -> Tensor:
        if value is None or rows is None:
            return pyro.sample(name, likelihood, obs=value)
        # Rows that lack the modality get a draw of it: of the right support, and with finite
        # derivatives.
        value = value.where(rows.reshape(-1, *[1] * likelihood.event_dim), likelihood.sample())
        with poutine.mask(mask=rows):
            return pyro.sample(name, likelihood, obs=value)
