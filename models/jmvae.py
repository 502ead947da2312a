"""The joint multimodal variational autoencoder: the model."""

__all__ = ["JMVAE"]

from collections.abc import Callable, Sequence

import pyro
from pyro import poutine
from torch import Tensor, nn

from tarspyro.arguments import as_module_list
from tarspyro.data.modalities import modalities_of
from tarspyro.distributions import as_prior
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class JMVAE(StochasticModule):
    r"""The generative half of a joint multimodal variational autoencoder.

    .. math:: p(x_1, \dots, x_M, z) = p(z) \prod_{m=1}^M p(x_m \mid z)

    The model is called with the modalities in order. A modality that is None is missing and is
    marginalized: ``p(x_1, None)`` is the model p(x_1, z) of x_1 alone. If rows miss different
    modalities, a mask of shape ``(B, M)`` comes last, true where a row has the modality. The
    data behind a false entry have no effect, but must be finite.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the prior's event shape;
    - ``x_1``, ..., ``x_M``: the given modalities, or all of them to generate, of the
      likelihoods' event shapes.

    Arguments:
        prior: The prior p(z): a distribution, or a module that returns one.
        likelihoods: The likelihoods p(x_1 | z), ..., p(x_M | z), such as ``Conditional``
            modules.

    Raises:
        TypeError: If ``likelihoods`` is not a list of modules.
        ValueError: When called, if there is not one modality for each likelihood.

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

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        likelihoods: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.likelihoods = as_module_list("likelihoods", likelihoods)
        modalities = range(len(self.likelihoods))
        likelihood_factors = {f"likelihoods.{m}": f"x_{m + 1} | z" for m in modalities}
        self.factors = {**likelihood_factors, "prior": "z"}

    def forward(self, *data: Tensor | None, batch_size: int = 1) -> list[Tensor | None]:
        """Samples z and observes the given modalities.

        Without any modality, it generates ``batch_size`` rows of all of them.
        """
        x, present = modalities_of(self, data, len(self.likelihoods))
        rows = next((len(value) for value in x if value is not None), None)
        with pyro.plate("data", batch_size if rows is None else rows):
            z = pyro.sample("z", self.prior())
            for m, likelihood in enumerate(self.likelihoods):
                if x[m] is not None or rows is None:
                    x[m] = _observe(f"x_{m + 1}", likelihood(z), x[m], present[m])
        return x


def _observe(
    name: str, likelihood: Distribution, value: Tensor | None, present: Tensor | None
) -> Tensor:
    """Samples or observes a modality, scored only in the rows that are present."""
    if value is None or present is None:
        return pyro.sample(name, likelihood, obs=value)

    # The other rows get a draw, which lies in the support and has finite derivatives.
    rows = present.reshape(-1, *[1] * likelihood.event_dim)
    value = value.where(rows, likelihood.sample())
    with poutine.mask(mask=present):  # type: ignore[call-overload]
        return pyro.sample(name, likelihood, obs=value)
