"""The filtering variational objective, a bound from a particle filter's estimate of p(x)."""

__all__ = ["FIVO"]

import math

from torch import Tensor

from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.filtering import ParticleFilter, check_filtered, check_resampling
from tarspyro.infer.structure import Structure
from tarspyro.types import Program


class FIVO(Bound):
    r"""The filtering variational objective of each sequence.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}[\log \hat p_K(x)] \le \log p(x), \qquad
              \mathbb{E}[\hat p_K(x)] = p(x)

    where :math:`\hat p_K` is the estimate of a particle filter. After each step, the particles of
    a sequence are resampled in proportion to their weights if its effective sample size is below
    ``threshold * K``. Without resampling it is the importance weighted bound of whole sequences
    (``IWAE``), whose weights degenerate as sequences grow longer. With one particle it is the
    ELBO.

    Both programs are ``sequential``, such as ``VRNN`` and ``DeepMarkovModel``, and run side by
    side. The gradient goes through the weights and, through the draws, through the states. The
    gradient of the choice of particles to resample is left out, as in the paper: a small bias in
    place of much noise. Draws that are not, or only in part, reparameterized get the
    score-function gradient, with the estimate before them as the baseline.

    Arguments:
        num_particles: K.
        threshold: The effective sample size below which particles are resampled, as a share of
            K, from 0 (never) to 1.
        resampling: ``"multinomial"``, or ``"systematic"``, which has less noise.
        max_plate_nesting: How many dimensions the pair's plates take; found by a run without
            side effects if not given.
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
        ...     data = pyro.plate("data", len(x))
        ...     z = torch.zeros(len(x))
        ...     for t in range(x.shape[1]):
        ...         z = yield z
        ...         with data:
        ...             z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
        ...             pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])
        >>> @sequential
        ... def guide(x):
        ...     data = pyro.plate("data", len(x))
        ...     z = torch.zeros(len(x))
        ...     for t in range(x.shape[1]):
        ...         z = yield z
        ...         with data:
        ...             z = pyro.sample(f"z_{t}", dist.Normal((z + x[:, t]) / 2, 0.5**0.5))
        >>> x = torch.tensor([[0.0, 2.0]])
        >>> covariance = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> exact = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(x)
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
        self.threshold = threshold
        self.resampling = resampling

    def _check(self, model: Program, guide: Program, structure: Structure) -> None:
        check_filtered(model, guide, structure)

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the bound; there are no terms."""
        structure = self.structure(model, guide, *args, **kwargs)
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
