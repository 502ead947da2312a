"""Bayesian regression: the model."""

__all__ = ["BayesianRegression"]

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count
from tarspyro.distributions import as_conditional, as_prior
from tarspyro.modules import StochasticModule
from tarspyro.scopes import evaluating, local_parameters
from tarspyro.types import Distribution, Program


class BayesianRegression(StochasticModule):
    r"""A Bayesian neural network: a regression or classification with a prior over its weights.

    .. math:: p(y, w \mid x) = p(w) \prod_{n=1}^N p(y_n \mid x_n, w)

    All data points share the weights w. A batch of B rows is a subsample of the N data points:
    its log-likelihood counts N / B times, and a bound is on the evidence of the whole data
    set. Sites:

    - ``w``: the weights, of the prior's event shape, outside all plates;
    - ``y``: the target, of the likelihood's event shape, in the plate ``data``.

    Arguments:
        prior: The prior p(w): a distribution, or a module that returns one.
        likelihood: The likelihood p(y | x, w), such as ``RandomWeights(Conditional(...))``.
        num_data: N, the number of training data points.

    Raises:
        ValueError: If ``num_data`` is below one.

    References:
        Kingma and Welling (2013), Auto-Encoding Variational Bayes, arXiv:1312.6114, appendix
        F; Li and Turner (2016), Renyi Divergence Variational Inference, arXiv:1602.02311,
        section 5.1.

    Example:
        >>> import torch
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP, RandomWeights
        >>> likelihood = RandomWeights(Conditional(dist.Normal, MLP(8, [50]), (), scale=0.1))
        >>> prior = default_prior(dist.Normal, likelihood.num_weights)
        >>> p = BayesianRegression(prior, likelihood, num_data=927)
        >>> p
        BayesianRegression: p(y, w | x) = p(y | x, w) p(w)
          likelihood: p(y | x, w) = Normal(loc, scale=0.1) of shape () from MLP(8 -> 50, ReLU),
              501 random weights
          prior: p(w) = Normal(loc=0, scale=1) of shape (501,)
        >>> p(torch.zeros(5, 8)).shape
        torch.Size([5])
    """

    density = "p"
    factors = {"likelihood": "y | x, w", "prior": "w"}

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        likelihood: Callable[[Tensor, Tensor], Distribution],
        num_data: int,
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.num_data = as_count("num_data", num_data)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Samples w and observes y given x; without y, generates y."""
        w = pyro.sample("w", self.prior())
        with pyro.plate("data", self.num_data, subsample=x):
            return pyro.sample("y", self.likelihood(x, w), obs=y)

    def predictive(
        self, guide: Program, x: Tensor, num_samples: int = 100
    ) -> dist.MixtureSameFamily:
        r"""Returns the posterior predictive distribution of each data point.

        .. math:: p(y \mid x) \approx \frac{1}{S} \sum_{s=1}^S p(y \mid x, w_s), \qquad
                  w_s \sim q(w)

        It is a mixture over draws of the weights. Its ``log_prob(y)`` is the test
        log-likelihood in nats, one number for each row of x.

        Arguments:
            guide: The guide, or any program that samples w given x.
            x: The inputs.
            num_samples: S.
        """
        with evaluating(self, guide), local_parameters():
            trace = poutine.trace(pyro.plate("samples", num_samples)(guide)).get_trace(x)
            w: Tensor = trace.nodes["w"]["value"]  # type: ignore[assignment]
            components = self.likelihood(x.unsqueeze(1), w)
        return dist.MixtureSameFamily(dist.Categorical(w.new_ones(num_samples)), components)
