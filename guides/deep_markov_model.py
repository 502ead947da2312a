"""The deep Markov model: the guide."""

__all__ = ["DeepMarkovModel"]

from collections.abc import Callable
from typing import Any

import pyro
from torch import Tensor, nn

from tarspyro.distributions import as_conditional
from tarspyro.modules import StochasticModule
from tarspyro.sequential import sequence_plate, sequential


class DeepMarkovModel(StochasticModule):
    r"""The inference half of a deep Markov model.

    .. math:: q(z_{0:T} \mid x_{0:T}) = q(z_0 \mid g_0) \prod_{t=1}^{T-1} q(z_t \mid g_t, z_{t-1}), \qquad
              g = \mathrm{encoder}(x)

    The posterior of z_t depends on the past through z_{t-1} alone, and on the rest of the
    sequence through g_t: with ``nn.Backward(torch.nn.GRU(...))`` it sees x_t and all that
    follows (the paper's DKS). Without an encoder g_t is x_t, and the guide filters. Sites, in
    the plate ``data`` of size :math:`B`, for t from 0 to T - 1:

    - ``z_{t}``: the latent variable, of the posteriors' event shape.

    Arguments:
        first: The approximate posterior of the first step, q(z_0 | g_0), such as a
            ``Conditional``.
        posterior: The others, q(z_t | g_t, z_{t-1}), such as a ``Conditional`` whose trunk
            takes g_t and z_{t-1}.
        encoder: What computes g of the shape ``(B, T, F)`` from x, called with ``lengths``
            too.

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
        first: Callable[[Tensor], Any],
        posterior: Callable[[Tensor, Tensor], Any],
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first, self.posterior = (
            as_conditional("first", first),
            as_conditional("posterior", posterior),
        )
        self.encoder = encoder
        seen = ("x_t", "x_0") if encoder is None else ("x", "x")
        self.factors = {
            "posterior": f"z_t | {seen[0]}, z_{{t-1}}",
            "first": f"z_0 | {seen[1]}",
        }

    @sequential
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Any:
        """Samples the z_t given x."""
        g = x if self.encoder is None else self.encoder(x, lengths)
        data, z = sequence_plate(len(x), lengths), None
        for t in range(x.shape[1]):
            z = yield z
            with data(t):
                z = pyro.sample(
                    f"z_{t}", self.first(g[:, t]) if t == 0 else self.posterior(g[:, t], z)
                )
