"""The conditional variational autoencoder: the model."""

__all__ = ["ConditionalVAE"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.distributions import as_conditional, as_prior, has_context
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class ConditionalVAE(StochasticModule):
    r"""The generative half of a conditional variational autoencoder.

    .. math:: p(x, z \mid y) = p(x \mid z, y) \, p(z \mid y) \quad \text{or} \quad
              p(x \mid z, y) \, p(z)

    The condition y (one-hot labels, given pixels) is not a site: bounds and log-likelihoods
    are those of :math:`\log p(x \mid y)`. A ``Conditional`` of y is the prior p(z | y); a
    distribution or a ``Prior`` is p(z). The printed formula says which. Sites, in the plate
    ``data`` of size :math:`B`:

    - ``z``: the latent variable, of the prior's event shape;
    - ``x``: the observation, of the likelihood's event shape.

    Arguments:
        prior: The prior p(z | y), such as a ``Conditional``, or p(z): a distribution or a
            ``Prior``.
        likelihood: The likelihood p(x | z, y), such as a ``Conditional`` whose trunk takes z
            and y.

    Raises:
        ValueError: When called, if y is not given.

    References:
        Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep
        Conditional Generative Models.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> likelihood = Conditional(dist.Bernoulli, MLP([2, 10], [32]), 64)
        >>> p = ConditionalVAE(Conditional(dist.Normal, MLP(10, [32]), 2), likelihood)
        >>> p
        ConditionalVAE: p(x, z | y) = p(x | z, y) p(z | y)
          likelihood: p(x | z, y) = Bernoulli(logits) of shape (64,) from MLP(12 -> 32, ReLU)
          prior: p(z | y) = Normal(loc, scale) of shape (2,) from MLP(10 -> 32, ReLU)
        >>> p(y=torch.eye(10)).shape  # one for each label
        torch.Size([10, 64])
    """

    density = "p"

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        likelihood: Callable[[Tensor, Tensor], Distribution],
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.factors = {
            "likelihood": "x | z, y",
            "prior": "z | y" if has_context(self.prior) else "z",
        }

    def forward(
        self, x: Tensor | None = None, y: Tensor | None = None, *, batch_size: int = 1
    ) -> Tensor:
        """Samples z and observes x given y; without x, generates it.

        It generates one x for each row of y, or ``batch_size`` for a single row.
        """
        if y is None:
            raise ValueError(
                f"y must be given, because {type(self).__name__} has no distribution of y: call"
                " model(x, y), or model(y=y) to generate."
            )
        with pyro.plate("data", max(batch_size, len(y)) if x is None else len(x)):
            z = pyro.sample("z", self.prior(y))
            return pyro.sample("x", self.likelihood(z, y), obs=x)
