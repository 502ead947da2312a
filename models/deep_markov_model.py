"""The deep Markov model: the model."""

__all__ = ["DeepMarkovModel"]

from collections.abc import Callable, Generator

import pyro
from torch import Tensor

from tarspyro.distributions import as_conditional, as_prior
from tarspyro.modules import StochasticModule
from tarspyro.sequences import sequence_plate, sequence_sizes, sequential, stacked
from tarspyro.types import Distribution


class DeepMarkovModel(StochasticModule):
    r"""The generative half of a deep Markov model, a state space model with networks.

    .. math:: p(x_{0:T}, z_{0:T}) = p(z_0) \prod_{t=1}^{T-1} p(z_t \mid z_{t-1})
              \prod_{t=0}^{T-1} p(x_t \mid z_t)

    Sites, in the plate ``data`` of size :math:`B`, for t from 0 to T - 1:

    - ``z_{t}``: the latent variable, of the prior's event shape;
    - ``x_{t}``: the observation, of the likelihood's event shape.

    Sequences x have the shape ``(B, T, *event)``. Give ``lengths`` if they are padded: the
    padding is masked, and a bound counts each sequence's own steps, in nats per sequence.

    A scale that is the exponential of an unbounded function of the state overflows after a few
    steps. Use a bounded activation, as below, or softplus: ``Conditional(...,
    transforms={"scale": SoftplusTransform()})``.

    Arguments:
        prior: The prior of the first step, p(z_0): a distribution, or a module that returns
            one.
        transition: The prior of the later steps, p(z_t | z_{t-1}), such as a ``Conditional``.
        likelihood: The likelihood p(x_t | z_t), such as a ``Conditional``.

    Raises:
        ValueError: When called, if neither x nor ``length`` is given, or ``lengths`` is invalid.

    References:
        Krishnan, Shalit and Sontag (2017), Structured Inference Networks for Nonlinear State
        Space Models, arXiv:1609.09869, eq. 1.

    Example:
        >>> import pyro.distributions as dist
        >>> from torch import nn
        >>> from tarspyro import Conditional
        >>> from tarspyro.distributions import default_prior
        >>> from tarspyro.nn import MLP
        >>> transition = Conditional(dist.Normal, MLP(4, [16], activation=nn.Tanh), 4)
        >>> likelihood = Conditional(dist.Bernoulli, MLP(4, [16]), 88)
        >>> p = DeepMarkovModel(default_prior(dist.Normal, 4), transition, likelihood)
        >>> p
        DeepMarkovModel: p(x_t, z_t, z_0 | z_{t-1}) = p(x_t | z_t) p(z_t | z_{t-1}) p(z_0)
          likelihood: p(x_t | z_t) = Bernoulli(logits) of shape (88,) from MLP(4 -> 16, ReLU)
          transition: p(z_t | z_{t-1}) = Normal(loc, scale) of shape (4,) from MLP(4 -> 16,
              Tanh)
          prior: p(z_0) = Normal(loc=0, scale=1) of shape (4,)
        >>> p(batch_size=5, length=20).shape
        torch.Size([5, 20, 88])
    """

    density = "p"
    factors = {"likelihood": "x_t | z_t", "transition": "z_t | z_{t-1}", "prior": "z_0"}

    def __init__(
        self,
        prior: Distribution | Callable[..., Distribution],
        transition: Callable[[Tensor], Distribution],
        likelihood: Callable[[Tensor], Distribution],
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.transition = as_conditional("transition", transition)
        self.likelihood = as_conditional("likelihood", likelihood)

    @sequential
    def forward(
        self,
        x: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        batch_size: int = 1,
        length: int | None = None,
    ) -> Generator[Tensor | None, Tensor, Tensor]:
        """Samples the z_t and observes x.

        The steps of ``length`` beyond those of x are generated, all of them without x.
        """
        size, known, length = sequence_sizes(x, batch_size, length)
        data = sequence_plate(size, lengths, length)
        z = None
        steps = []
        for t in range(length):
            z = yield z
            with data(t):
                z = pyro.sample(f"z_{t}", self.prior() if t == 0 else self.transition(z))
                likelihood = self.likelihood(z)
                observed = x[:, t] if x is not None and t < known else None
                steps.append(pyro.sample(f"x_{t}", likelihood, obs=observed))
        return stacked(steps, likelihood.event_dim)
