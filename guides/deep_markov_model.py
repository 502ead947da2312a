"""The deep Markov model: the guide."""

__all__ = ["DeepMarkovModel"]

from collections.abc import Callable, Generator

import pyro
from torch import Tensor, nn

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.sequences import sequence_plate, sequential
from tarspyro.types import Distribution


class DeepMarkovModel(StochasticModule):
    r"""The inference half of a deep Markov model.

    .. math:: q(z_{0:T} \mid x_{0:T}) = q(z_0 \mid g_0)
              \prod_{t=1}^{T-1} q(z_t \mid g_t, z_{t-1}), \qquad g = \mathrm{encoder}(x)

    The posterior of z_t depends on the past through z_{t-1} and on the data through g_t. With
    ``nn.Backward(torch.nn.GRU(...))`` the features g_t depend on x_t and all later x (DKS in
    the paper). Without an encoder g_t is x_t, and the guide is a filter. Sites, in the plate
    ``data`` of size :math:`B`, for t from 0 to T - 1:

    - ``z_{t}``: the latent variable, of the posteriors' event shape.

    Arguments:
        first: The approximate posterior of the first step, q(z_0 | g_0), such as a
            ``Conditional``.
        posterior: That of the later steps, q(z_t | g_t, z_{t-1}), such as a ``Conditional``
            whose trunk takes g_t and z_{t-1}.
        encoder: The network that computes g of shape ``(B, T, F)`` from x and ``lengths``.

    References:
        Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State
        Space Models, arXiv:1609.09869, section 4.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional
        >>> from tarspyro.nn import MLP, Backward
        >>> first = Conditional(dist.Normal, MLP(32, [16], activation=nn.Tanh), 4)
        >>> posterior = Conditional(dist.Normal, MLP([32, 4], [16], activation=nn.Tanh), 4)
        >>> DeepMarkovModel(first, posterior, Backward(nn.GRU(88, 32)))
        DeepMarkovModel: q(z_t, z_0 | x, z_{t-1}) = q(z_t | x, z_{t-1}) q(z_0 | x)
          posterior: q(z_t | x, z_{t-1}) = Normal(loc, scale) of shape (4,) from MLP(36 -> 16,
              Tanh)
          first: q(z_0 | x) = Normal(loc, scale) of shape (4,) from MLP(32 -> 16, Tanh)
    """

    density = "q"

    def __init__(
        self,
        first: Callable[[Tensor], Distribution],
        posterior: Callable[[Tensor, Tensor], Distribution],
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first = as_conditional("first", first)
        self.posterior = as_conditional("posterior", posterior)
        self.encoder = encoder
        if encoder is None:
            self.factors = {"posterior": "z_t | x_t, z_{t-1}", "first": "z_0 | x_0"}
        else:
            self.factors = {"posterior": "z_t | x, z_{t-1}", "first": "z_0 | x"}

    @sequential
    def forward(
        self, x: Tensor, lengths: Tensor | None = None
    ) -> Generator[Tensor | None, Tensor, None]:
        """Samples the z_t given x."""
        g = x if self.encoder is None else self.encoder(x, lengths)
        data = sequence_plate(len(x), lengths, x.shape[1])
        z = None
        for t in range(x.shape[1]):
            z = yield z
            with data(t):
                posterior = self.first(g[:, t]) if t == 0 else self.posterior(g[:, t], z)
                z = pyro.sample(f"z_{t}", posterior)
