"""The density: a model without latent variables, of the data alone."""

__all__ = ["Density"]

from collections.abc import Callable

import pyro
from torch import Tensor

from tarspyro.arguments import check_lengths
from tarspyro.distributions import as_prior
from tarspyro.distributions.autoregressive import AutoregressiveDistribution
from tarspyro.modules import StochasticModule
from tarspyro.types import Distribution


class Density(StochasticModule):
    r"""A density of the data: a model without latent variables.

    .. math:: p(x)

    It is fitted without a guide, by maximum likelihood, and ``evaluate.log_likelihood(p, None,
    x)`` is exact. The likelihood is an ``Autoregressive``, a flow (``Transformed``) whose
    transforms have an inverse, a learned ``Prior``, or any module that returns a distribution,
    such as a mixture.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``x``: the observation, of the likelihood's event shape.

    Sequences x have the shape ``(B, T, *event)``. Give ``lengths`` if they are padded: the steps
    beyond them are summed out, for which the likelihood must be an ``Autoregressive`` over
    steps, such as one of a ``CausalRNN``. They may have fewer steps than the likelihood.

    Arguments:
        likelihood: The distribution p(x), which has no context.

    Raises:
        TypeError: If ``likelihood`` is neither a distribution nor a module.
        ValueError: When called, if ``lengths`` are invalid, or the likelihood cannot have them.

    References:
        Germain et al. (2015), MADE: Masked Autoencoder for Distribution Estimation,
        arXiv:1502.03509; Van den Oord et al. (2016), Pixel Recurrent Neural Networks,
        arXiv:1601.06759; Dinh et al. (2016), Density Estimation Using Real NVP,
        arXiv:1605.08803.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Autoregressive, data, evaluate, fit
        >>> from tarspyro.nn import MADE
        >>> p = Density(Autoregressive(dist.Bernoulli, MADE(64, [64]), 64))
        >>> p
        Density: p(x)
          likelihood: p(x) = Bernoulli(logits) of shape (64,) from MADE(64 -> 64, ReLU)
        >>> x = data.digits().train.x.flatten(1).round()
        >>> history = fit(p, data=x, epochs=2, seed=0, progress=False)
        >>> evaluate.log_likelihood(p, None, x[:5]).shape
        torch.Size([5])
        >>> p(batch_size=5).shape
        torch.Size([5, 64])
    """

    density = "p"
    factors = {"likelihood": "x"}

    def __init__(self, likelihood: Distribution | Callable[..., Distribution]) -> None:
        super().__init__()
        self.likelihood = as_prior(likelihood, "likelihood")

    def forward(
        self, x: Tensor | None = None, lengths: Tensor | None = None, *, batch_size: int = 1
    ) -> Tensor:
        """Observes x; without x, generates ``batch_size`` rows."""
        likelihood = self.likelihood()
        with pyro.plate("data", batch_size if x is None else len(x)):
            if x is not None and lengths is not None:
                likelihood, x = _of_first_steps(likelihood, x, lengths)
            return pyro.sample("x", likelihood, obs=x)


def _of_first_steps(
    likelihood: Distribution, x: Tensor, lengths: Tensor
) -> tuple[Distribution, Tensor]:
    """Returns the distribution of the first steps of sequences, and the sequences, filled up
    with zeros to the likelihood's number of steps.
    """
    if not isinstance(likelihood, AutoregressiveDistribution):
        raise ValueError(
            f"lengths need a likelihood over steps, got {type(likelihood).__name__}: take an"
            " Autoregressive with a CausalRNN, or leave lengths out."
        )
    num_steps = likelihood.event_shape[0]
    if x.shape[1] > num_steps:
        raise ValueError(
            f"x must have at most {num_steps} steps, as the likelihood has, got {x.shape[1]}."
        )
    check_lengths(lengths, len(x), x.shape[1])
    filled = x.new_zeros(len(x), *likelihood.event_shape)
    filled[:, : x.shape[1]] = x
    return likelihood.first_steps(lengths), filled
