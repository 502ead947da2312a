"""The variational recurrent neural network: the guide."""

__all__ = ["VRNN"]

from collections.abc import Callable, Generator
from typing import Any

import pyro
from torch import Tensor

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.nn import Recurrence, as_recurrence
from tarspyro.sequences import sequence_plate, sequential
from tarspyro.types import Distribution


class VRNN(StochasticModule):
    r"""The inference half of a variational recurrent neural network.

    .. math:: q(z_{0:T} \mid x_{0:T}) = \prod_{t=0}^{T-1} q(z_t \mid x_t, h_{t-1}), \qquad
              h_t = \mathrm{cell}(x_t, z_t, h_{t-1})

    The guide is a filter: z_t depends on the data up to x_t, so it is also the proposal of a
    particle filter. Sites, in the plate ``data`` of size :math:`B`, for t from 0 to T - 1:

    - ``z_{t}``: the latent variable, of the posterior's event shape.

    Arguments:
        cell: The recurrence, the same module as the model's.
        posterior: The approximate posterior q(z_t | x_t, h), such as a ``Conditional`` whose
            trunk takes x_t and the cell's hidden units.

    References:
        Chung et al. (2015), A Recurrent Latent Variable Model for Sequential Data,
        arXiv:1506.02216, eqs. 9 and 10.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP
        >>> cell = Recurrence(nn.GRUCell(88 + 16, 32))
        >>> VRNN(cell, Conditional(dist.Normal, MLP([88, 32], [32]), 16))
        VRNN: q(z_t, h_t | x_t, h_{t-1}) = q(z_t | x_t, h_{t-1}) q(h_t | x_t, z_t, h_{t-1})
          posterior: q(z_t | x_t, h_{t-1}) = Normal(loc, scale) of shape (16,) from MLP(120 ->
              32, ReLU)
          cell: q(h_t | x_t, z_t, h_{t-1}) = GRUCell(104, 32)
    """

    density = "q"
    factors = {"posterior": "z_t | x_t, h_{t-1}", "cell": "h_t | x_t, z_t, h_{t-1}"}

    def __init__(
        self, cell: Recurrence, posterior: Callable[[Tensor, Tensor], Distribution]
    ) -> None:
        super().__init__()
        self.cell = as_recurrence("cell", cell)
        self.posterior = as_conditional("posterior", posterior)

    @sequential
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Generator[Any, Any, None]:
        """Samples the z_t given x."""
        data = sequence_plate(len(x), lengths, x.shape[1])
        state = self.cell.initial(len(x))
        for t in range(x.shape[1]):
            state = yield state
            h = self.cell.hidden(state)
            with data(t):
                z = pyro.sample(f"z_{t}", self.posterior(x[:, t], h))
            state = self.cell(state, x[:, t], z)
