"""Importance weighted bounds, for each data point: Renyi, IWAE and their relatives."""

__all__ = ["CIWAE", "IWAE", "PIWAE", "Renyi"]

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import check_choice, check_number
from tarspyro.infer.bounds.reductions import renyi_bound, renyi_weights, without_each
from tarspyro.infer.bounds.weighted import WeightedBound, chain_rule, damp
from tarspyro.infer.traces import PairError, reparameterized, views_of, with_values
from tarspyro.infer.weights import in_plates, weigh
from tarspyro.types import Program


class Renyi(WeightedBound):
    r"""The variational Renyi bound, for each data point.

    .. math:: \mathcal{L}_\alpha(x) = \mathbb{E}\bigg[ \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^K
              \Big( \frac{p(x, z_k)}{q(z_k \mid x)} \Big)^{1 - \alpha} \bigg], \qquad z_k \sim
              q(z \mid x)

    alpha = 1 is the ELBO, 0 the importance weighted bound (``IWAE``), -inf the largest weight
    (VR-max), +inf the smallest. With alpha below 0 and many particles it is an upper bound on
    log p(x): for alpha = 1 - n the chi bound CUBO of order n (Dieng et al. 2017). (Li and
    Turner 2016, arXiv:1602.02311, eq. 7.)

    The weights are those of single data points: the indices of the plates that hold a latent
    variable and all sites that depend on it. Latent variables that no plate holds together
    with what depends on them (outside all plates; in a plate of groups, components or features
    that data are indexed by) are shared by the data points, and the bound is
    nested: their log p - log q, plus the data points' bounds given them, in expectation over
        them. Where all latent
    variables are shared, or there is no plate, the data set is the one data point.
    ``bound.structure(model, guide, x)`` says which. Scales multiply a data point's bound;
    masks act on the weights. One weight of all data is only estimated by a subsample of them,
    and the result is then no bound; a warning says so.

    Draws that are not, or not wholly, reparameterized (discrete ones, rejection samplers) get
    the score-function gradient, unbiased for the bound with K particles: a data point's bound
    minus the bound without the particle.

    Arguments:
        alpha: The order, any real number, ``-math.inf`` or ``math.inf``.
        num_particles: K, the number of draws inside the logarithm.
        num_groups: How many such bounds are averaged.
        gradient: ``"pathwise"``, or ``"dreg"`` for the doubly reparameterized gradient of the
            guide (Tucker et al. 2018, arXiv:1810.04152; for other orders than 0 Daudel et al.
            2022, arXiv:2210.06226), whose noise does not drown it as K grows. It wants a
            reparameterized guide and a finite alpha; a guide with several latent variables
            runs twice, and must do without dropout, which would differ. At alpha = 1 it is
            sticking the landing, which ``"stl"`` names too.
        max_plate_nesting: How many plates deep the pair is; found by a run without side
            effects if not given.
        vectorize_particles: False runs the pair once a particle, for programs that cannot take
            plates of particles.
        chunk_size: How many particles of each group are in memory at a time, with
            ``"pathwise"``. Every chunk runs a second time, on the same noise, when the weights
            of all of them are known, and is forgotten again: memory does not grow with K, and
            the forward pass costs twice. Statistics of batch normalization move twice. For
            latent variables that belong to data points.
        retain_graph: Passed on to ``backward`` by ``loss_and_grads``.

    Raises:
        ValueError: If an argument is out of range.
        PairError: When called, if data points have no weights of their own or no common scale,
            or ``"dreg"`` meets a guide that is not reparameterized.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> x = torch.tensor([0.0, 2.0])
        >>> exact = dist.Normal(0.0, 2.0**0.5).log_prob(x).sum()
        >>> abs(Renyi(0.0, num_particles=100_000).loss(model, guide, x) + exact.item()) < 0.05
        True
    """

    def __init__(
        self,
        alpha: float,
        num_particles: int = 10,
        num_groups: int = 1,
        gradient: str = "pathwise",
        **options: Any,
    ) -> None:
        check_number("alpha", alpha)
        check_choice("gradient", gradient, ("pathwise", "dreg", "stl"))
        if gradient == "dreg" and math.isinf(alpha):
            raise ValueError("gradient='dreg' is for a finite alpha: take 'pathwise'.")
        super().__init__(
            num_particles,
            num_groups,
            "dreg" if (gradient, alpha) == ("stl", 1) else gradient,
            **options,
        )
        self.alpha = alpha

    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each data point, for each group: shape ``[groups, data points]``."""
        return renyi_bound(log_weights, self.alpha, dim=1)

    def without_each(self, log_weights: Tensor) -> Tensor:
        """The bound without each particle, the baseline of its score."""
        return without_each(log_weights, self.alpha, dim=1)

    def derivative(self, log_weights: Tensor) -> Tensor:
        """The bound's derivative in each log weight: the softmax of (1 - alpha) log w."""
        return renyi_weights(log_weights, self.alpha, dim=1)

    def damping(self, derivative: Tensor) -> Tensor:
        """Alpha + (1 - alpha) times the derivative."""
        return self.alpha + (1 - self.alpha) * derivative


class IWAE(Renyi):
    r"""The importance weighted bound of each data point: ``Renyi`` of order 0.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}\Big[ \log \frac{1}{K} \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)} \Big]

    (Burda et al. 2015, arXiv:1509.00519, eq. 8.) With ``num_groups`` it is MIWAE (Rainforth et
    al. 2018).

    Arguments:
        num_particles: K.
        num_groups: See ``Renyi``.
        gradient: See ``Renyi``.

    Example:
        >>> IWAE(num_particles=5).alpha
        0.0
    """

    def __init__(
        self,
        num_particles: int = 10,
        num_groups: int = 1,
        gradient: str = "pathwise",
        **options: Any,
    ) -> None:
        super().__init__(0.0, num_particles, num_groups, gradient, **options)


class CIWAE(WeightedBound):
    r"""A combination of the ELBO and the importance weighted bound of the same particles.

    .. math:: \mathcal{L} = \beta \, \mathbb{E}\Big[ \frac{1}{K} \sum_k \log w_k \Big]
              + (1 - \beta) \, \mathbb{E}\Big[ \log \frac{1}{K} \sum_k w_k \Big]

    (Rainforth et al. 2018, arXiv:1802.04537, eq. 15.)

    Arguments:
        beta: The weight of the ELBO, from 0 to 1.
        num_particles: K.
        num_groups: See ``Renyi``.
        gradient: See ``Renyi``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> log_weights = torch.tensor([0.0, math.log(3.0)]).reshape(1, 2, 1)
        >>> CIWAE(0.5, num_particles=2).bound(log_weights)  # (log 3 / 2 + log 2) / 2
        tensor([[0.6212]])
    """

    def __init__(
        self,
        beta: float,
        num_particles: int = 10,
        num_groups: int = 1,
        gradient: str = "pathwise",
        **options: Any,
    ) -> None:
        check_number("beta", beta, 0, 1)
        super().__init__(num_particles, num_groups, gradient, **options)
        self.beta = beta

    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound of each data point, for each group: shape ``[groups, data points]``."""
        return self._mixed(renyi_bound, log_weights)

    def without_each(self, log_weights: Tensor) -> Tensor:
        """The bound without each particle, the baseline of its score."""
        return self._mixed(without_each, log_weights)

    def derivative(self, log_weights: Tensor) -> Tensor:
        """The bound's derivative in each log weight."""
        return self._mixed(renyi_weights, log_weights)

    def damping(self, derivative: Tensor) -> Tensor:
        """The two parts' damped derivatives, to their undamped ones: 1 for the ELBO's, its
        square for the IWAE's.
        """
        elbo = self.beta / self.num_particles
        iwae = derivative - elbo
        tiny = torch.finfo(derivative.dtype).tiny
        damped: Tensor = elbo + (1 - self.beta) * (iwae / max(1 - self.beta, tiny)) ** 2
        return damped / derivative.clamp(min=tiny)

    def _mixed(self, function: Callable[..., Tensor], log_weights: Tensor) -> Tensor:
        elbo, iwae = (function(log_weights, alpha, dim=1) for alpha in (1.0, 0.0))
        return self.beta * elbo + (1 - self.beta) * iwae


class PIWAE(IWAE):
    r"""The partially importance weighted autoencoder: one bound for the model, another for the
    guide.

    .. math:: \nabla_\theta \log \frac{1}{M K} \sum_{m, k} w_{mk}, \qquad
              \nabla_\phi \frac{1}{M} \sum_m \log \frac{1}{K} \sum_k w_{mk}

    The model climbs the bound with all particles, which is tighter; the guide the mean of
    those with a group's, whose gradient has less noise to its signal. The loss is minus the
    model's bound. It wants a reparameterized guide and latent variables that belong to data
    points. (Rainforth et al. 2018, arXiv:1802.04537, section 5.)

    Arguments:
        num_particles: K, the particles of a group.
        num_groups: M.

    Raises:
        ValueError: If an argument is out of range.
        PairError: When called, if the guide is not reparameterized, or data points share
            latent variables.

    Example:
        >>> PIWAE(num_particles=8, num_groups=8).num_groups
        8
    """

    def __init__(
        self,
        num_particles: int = 8,
        num_groups: int = 8,
        *,
        max_plate_nesting: int | float = math.inf,
        retain_graph: bool | None = None,
    ) -> None:
        super().__init__(
            num_particles,
            num_groups,
            max_plate_nesting=max_plate_nesting,
            retain_graph=retain_graph,
        )

    def loss_and_terms(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the model's bound; there are no terms."""
        structure = self._structure(model, guide, args, kwargs)
        self._check_vectorized(model, structure, "PIWAE")
        model, guide = in_plates(model, guide, self.num_groups, self.num_particles, structure)
        drawn = poutine.trace(guide).get_trace(*args, **kwargs)
        sites = reparameterized(drawn, "PIWAE")
        views = views_of(sites)
        model_trace = poutine.trace(
            poutine.replay(model, trace=with_values(drawn, views))
        ).get_trace(*args, **kwargs)
        weights = weigh(model, model_trace, drawn, structure)
        if weights.shared is not None:
            raise PairError(
                "PIWAE is for latent variables of data points, and the pair has others: take"
                " IWAE."
            )
        total: Any = 0.0
        joint: Any = 0.0
        partial: Any = 0.0
        guided: Any = 0.0
        for group in weights.groups:
            log_weights = group.log_weights.detach()
            together = log_weights.flatten(0, 1).unsqueeze(0)
            total = total + (group.scale * self.bound(together)).sum()
            joint = (
                joint
                + (
                    group.scale
                    * self.derivative(together).view_as(log_weights)
                    * group.log_joint
                ).sum()
            )
            apart = group.scale * self.derivative(log_weights) / self.num_groups
            partial = partial + (apart * group.log_joint).sum()
            guided = guided - (apart * group.log_guide).sum()
        # The gradient through the draws is the guide's bound's: the model's own does not reach
        # beyond the views.
        chain = chain_rule(
            partial, views, {name: site["value"] for name, site in sites.items()}
        )
        for view in views.values():
            damp(view, 0.0)
        surrogate = joint + guided + chain
        return -(total + (surrogate - surrogate.detach())), {}
