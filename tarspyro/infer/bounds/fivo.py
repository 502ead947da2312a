"""The filtering variational objective: a particle filter's estimate of log p(x) as a bound."""

__all__ = ["FIVO"]

import math
from typing import Any

from torch import Tensor

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.filtering import ParticleFilter, check_resampling
from tarspyro.types import Program


class FIVO(Bound):
    r"""The filtering variational objective of each sequence.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}[\log \hat p_K(x)] \le \log p(x), \qquad
              \mathbb{E}[\hat p_K(x)] = p(x)

    with the estimate of a particle filter: after each step the particles of a sequence whose
    effective sample size is below ``threshold * K`` are drawn anew in proportion to their
    weights. Without resampling it is the importance weighted bound of whole sequences
    (``IWAE``), whose weights degenerate as they grow longer; with one particle it is the ELBO.

    Both halves are ``sequential`` programs, such as ``VRNN`` and ``DeepMarkovModel``, and run
    side by side. The gradient is that of the weights and, through the draws, of the states;
    that of which particles are drawn anew is left out, as in the paper: a small bias instead
    of much noise. Draws that are not, or not wholly, reparameterized get the score-function
    gradient, with the estimate before them as the baseline.

    Arguments:
        num_particles: K.
        threshold: The share of K, from 0 (never resample) to 1.
        resampling: ``"multinomial"``, or ``"systematic"``, with less noise.
        max_plate_nesting: How many plates deep the pair is; found by a run without side
            effects if not given.
        retain_graph: Passed on to ``backward`` by ``loss_and_grads``.

    Raises:
        ValueError: If an argument is out of range.
        PairError: When called, if the pair is not sequential, or has no weights for each
            sequence.

    References:
        Maddison et al. (2017), Filtering Variational Objectives, arXiv:1705.09279, section 3.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> from tarspyro import sequential
        >>> @sequential
        ... def model(x):
        ...     data, z = pyro.plate("data", len(x)), torch.zeros(len(x))
        ...     for t in range(x.shape[1]):
        ...         z = yield z
        ...         with data:
        ...             z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
        ...             pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])
        >>> @sequential
        ... def guide(x):
        ...     data, z = pyro.plate("data", len(x)), torch.zeros(len(x))
        ...     for t in range(x.shape[1]):
        ...         z = yield z
        ...         with data:
        ...             z = pyro.sample(f"z_{t}", dist.Normal((z + x[:, t]) / 2, 0.5**0.5))
        >>> x = torch.tensor([[0.0, 2.0]])
        >>> exact = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 3.0]])).log_prob(x)
        >>> abs(FIVO(num_particles=100_000).loss(model, guide, x) + exact.item()) < 0.05
        True
    """

    whole = False

    def __init__(
        self,
        num_particles: int = 4,
        threshold: float = 0.5,
        resampling: str = "multinomial",
        *,
        max_plate_nesting: int | float = math.inf,
        retain_graph: bool | None = None,
    ) -> None:
        check_resampling(threshold, resampling)
        super().__init__(
            num_particles, max_plate_nesting=max_plate_nesting, retain_graph=retain_graph
        )
        self.threshold, self.resampling = threshold, resampling

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the bound; there are no terms."""
        structure = self._structure(model, guide, args, kwargs)
        particles = ParticleFilter(
            model,
            guide,
            args,
            kwargs,
            self.num_particles,
            self.threshold,
            self.resampling,
            structure,
        )
        particles.run()
        value = particles.log_likelihood
        for score, before in particles.scores:
            surrogate = (value.detach() - before) * score.sum(0)
            value = value + (surrogate - surrogate.detach())
        return -(particles.scale * value).sum(), {}
