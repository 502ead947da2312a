"""The variational recurrent neural network: the model."""

__all__ = ["VRNN"]

from collections.abc import Callable, Generator
from typing import Any

import pyro
from torch import Tensor

from tarspyro.distributions import as_conditional, as_prior, has_context
from tarspyro.modules import StochasticModule
from tarspyro.nn import Recurrence, as_recurrence
from tarspyro.sequences import sequence_plate, sequence_sizes, sequential, stacked
from tarspyro.types import Distribution


class VRNN(StochasticModule):
    r"""The generative half of a variational recurrent neural network.

    .. math:: p(x_{0:T}, z_{0:T}) = \prod_{t=0}^{T-1} p(x_t \mid z_t, h_{t-1}) \,
              p(z_t \mid h_{t-1}), \qquad h_t = \mathrm{cell}(x_t, z_t, h_{t-1})

    The state h is a function of all earlier x and z, so the prior of each step depends on them.
    Sites, in the plate ``data`` of size :math:`B`, for t from 0 to T - 1:

    - ``z_{t}``: the latent variable, of the prior's event shape;
    - ``x_{t}``: the observation, of the likelihood's event shape.

    Sequences x have the shape ``(B, T, *event)``. Give ``lengths`` if they are padded: the
    padding is masked, and a bound counts each sequence's own steps, in nats per sequence.

    Arguments:
        cell: The recurrence, the same module as the guide's.
        prior: The prior p(z_t | h), such as a ``Conditional`` of the cell's hidden units; or
            p(z_t): a distribution, or a module that returns one.
        likelihood: The likelihood p(x_t | z_t, h), such as a ``Conditional`` whose trunk takes
            z and h.

    Raises:
        ValueError: When called, if neither x nor ``length`` is given, or ``lengths`` is invalid.

    References:
        Chung et al. (2015), A Recurrent Latent Variable Model for Sequential Data,
        arXiv:1506.02216, eqs. 5 to 8.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> cell = Recurrence(nn.GRUCell(88 + 16, 32))
        >>> prior = Conditional(dist.Normal, MLP(32, [32]), 16)
        >>> p = VRNN(cell, prior, Conditional(dist.Bernoulli, MLP([16, 32], [32]), 88))
        >>> p
        VRNN: p(x_t, z_t, h_t | h_{t-1}) = p(x_t | z_t, h_{t-1}) p(z_t | h_{t-1}) p(h_t | x_t,
            z_t, h_{t-1})
          likelihood: p(x_t | z_t, h_{t-1}) = Bernoulli(logits) of shape (88,) from MLP(48 ->
              32, ReLU)
          prior: p(z_t | h_{t-1}) = Normal(loc, scale) of shape (16,) from MLP(32 -> 32, ReLU)
          cell: p(h_t | x_t, z_t, h_{t-1}) = GRUCell(104, 32)
        >>> p(batch_size=5, length=20).shape
        torch.Size([5, 20, 88])
    """

    density = "p"

    def __init__(
        self,
        cell: Recurrence,
        prior: Distribution | Callable[..., Distribution],
        likelihood: Callable[[Tensor, Tensor], Distribution],
    ) -> None:
        super().__init__()
        self.cell = as_recurrence("cell", cell)
        self.prior = as_prior(prior)
        self.likelihood = as_conditional("likelihood", likelihood)
        self.factors = {
            "likelihood": "x_t | z_t, h_{t-1}",
            "prior": "z_t | h_{t-1}" if has_context(self.prior) else "z_t",
            "cell": "h_t | x_t, z_t, h_{t-1}",
        }

    @sequential
    def forward(
        self,
        x: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        batch_size: int = 1,
        length: int | None = None,
    ) -> Generator[Any, Any, Tensor]:
        """Samples the z_t and observes x.

        The steps of ``length`` beyond those of x are generated, all of them without x.
        """
        size, known, length = sequence_sizes(x, batch_size, length)
        data = sequence_plate(size, lengths, length)
        state = self.cell.initial(size)
        steps = []
        for t in range(length):
            state = yield state
            h = self.cell.hidden(state)
            with data(t):
                z = pyro.sample(f"z_{t}", self.prior(h))
                likelihood = self.likelihood(z, h)
                observed = x[:, t] if x is not None and t < known else None
                steps.append(pyro.sample(f"x_{t}", likelihood, obs=observed))
            state = self.cell(state, steps[-1], z)
        return stacked(steps, likelihood.event_dim)
