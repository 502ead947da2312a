"""The classifier: a model without latent variables."""

__all__ = ["Classifier"]

from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.scopes import evaluating


class Classifier(StochasticModule):
    r"""Classes of data points, without latent variables: fitted without a guide, by maximum
    likelihood.

    .. math:: p(y \mid x)

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
        >>> history = fit(p, data=data.digits().one_hot().train, epochs=20, seed=0, progress=False)
        >>> test = data.digits().test
        >>> (p.classes(test.x) == test.y).float().mean() > 0.9
        tensor(True)
    """

    density = "p"
    factors = {"likelihood": "y | x"}

    def __init__(self, likelihood: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.likelihood = as_conditional("likelihood", likelihood)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Observes y given x; without y, draws it."""
        with pyro.plate("data", len(x)):
            return pyro.sample("y", self.likelihood(x), obs=y)

    def classes(self, x: Tensor) -> Tensor:
        """Returns the most probable class of each data point, from 0 on, in evaluation mode
        without gradients.
        """
        return self._of_rows(lambda rows: self.likelihood(rows).mean.argmax(-1), x)

    def features(self, x: Tensor) -> Tensor:
        """Returns what the likelihood's trunk makes of each data point, likewise; shape (N,
        F).
        """
        return self._of_rows(lambda rows: self.likelihood.trunk(rows).flatten(1), x)

    def _of_rows(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        device = next(self.parameters()).device
        with evaluating(self):
            return torch.cat(
                [function(rows.to(device)).to(x.device) for rows in x.split(1000)]
            )
