"""The classifier: a model without latent variables."""

__all__ = ["Classifier"]

from collections.abc import Callable

import pyro
import torch
from pyro.distributions import OneHotCategorical
from torch import Tensor

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.scopes import evaluating


class Classifier(StochasticModule):
    r"""A classifier: a model without latent variables.

    .. math:: p(y \mid x)

    It is fitted without a guide, by maximum likelihood.

    Sites, in the plate ``data`` of size :math:`B`:

    - ``y``: the class, of the likelihood's event shape.

    Arguments:
        likelihood: The likelihood p(y | x), such as a ``Conditional`` with the family
            ``OneHotCategorical``.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, data, fit
        >>> from tarspyro.nn import MLP
        >>> p = Classifier(Conditional(dist.OneHotCategorical, MLP(64, [32]), 10))
        >>> p
        Classifier: p(y | x)
          likelihood: p(y | x) = OneHotCategorical(logits) of shape (10,) from MLP(64 -> 32,
              ReLU)
        >>> digits = data.digits().one_hot()
        >>> history = fit(p, data=digits.train, epochs=20, seed=0, progress=False)
        >>> test = data.digits().test
        >>> (p.classes(test.x) == test.y).float().mean() > 0.9
        tensor(True)
    """

    density = "p"
    factors = {"likelihood": "y | x"}

    def __init__(self, likelihood: Callable[[Tensor], OneHotCategorical]) -> None:
        super().__init__()
        self.likelihood = as_conditional("likelihood", likelihood)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Observes y given x; without y, samples y."""
        with pyro.plate("data", len(x)):
            return pyro.sample("y", self.likelihood(x), obs=y)

    def classes(self, x: Tensor) -> Tensor:
        """Returns the most probable class of each data point, an integer from 0.

        Computed in evaluation mode, without gradients.
        """
        return self._in_chunks(lambda rows: self.likelihood(rows).mean.argmax(-1), x)

    def features(self, x: Tensor) -> Tensor:
        """Returns the features of each data point, the output of the likelihood's trunk.

        Computed in evaluation mode, without gradients; the shape is (N, F).
        """
        trunk: Callable[[Tensor], Tensor] = self.likelihood.trunk  # type: ignore[attr-defined]
        return self._in_chunks(lambda rows: trunk(rows).flatten(1), x)

    def _in_chunks(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        device = next(self.parameters()).device
        with evaluating(self):
            chunks = [function(rows.to(device)).to(x.device) for rows in x.split(1000)]
        return torch.cat(chunks)
