"""Importance weighted bounds for each data point: IWAE, Renyi, CIWAE and PIWAE.

``WeightedBound.loss_and_terms`` draws the particles and their log weights,
``log_weights[group, particle, data point]`` = log p(x, z) - log q(z | x). Each bound is a
function of them, its method ``bound``.
"""

__all__ = ["CIWAE", "IWAE", "PIWAE", "Renyi", "WeightedBound"]

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from tarspyro.arguments import as_count, check_choice, check_number
from tarspyro.infer.bounds.base import Bound
from tarspyro.infer.bounds.gradient_estimators import (
    chain_rule,
    doubly_reparameterized,
    in_chunks,
    pathwise,
    scale_gradient,
)
from tarspyro.infer.bounds.reductions import renyi_bound, renyi_weights, without_each
from tarspyro.infer.pairs import check_vectorized
from tarspyro.infer.structure import Structure
from tarspyro.infer.summation import run_model
from tarspyro.infer.traces import (
    PairError,
    name_of,
    reparameterized,
    sum_of,
    views_of,
    with_values,
)
from tarspyro.infer.weights import draw_weights, in_plates, weigh
from tarspyro.types import Program

# The remedy of bounds that have no other way for pairs that run particle by particle.
TAKE_IWAE = "take IWAE, which runs its particles one after another there"


class WeightedBound(Bound):
    r"""A bound that is a function of several log weights of each data point.

    .. math:: \mathcal{L}(x) = \mathbb{E}\big[ f(\log w_1, \dots, \log w_K) \big], \qquad
              w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    averaged over groups of K particles. Subclasses define f as ``bound``. Draws that are not
    reparameterized also need ``without_each``; ``chunk_size`` needs ``derivative``, and
    ``gradient="dreg"`` needs ``derivative`` and ``damping``.

    Arguments:
        num_particles: K, the particles of a group.
        num_groups: The number of groups.
        gradient: ``"pathwise"``, or ``"dreg"`` for the doubly reparameterized gradient.
        max_plate_nesting: How many dimensions the pair's plates take; found by a run without
            side effects if not given.
        vectorize_particles: False runs the pair once for each particle.
        chunk_size: How many particles of each group are in memory at a time; all if not given.
        retain_graph: Passed on to ``backward`` by ``loss_and_grads``.

    Raises:
        ValueError: If an argument is out of range, or two do not go together.

    Example:
        >>> class Mean(WeightedBound):
        ...     def bound(self, log_weights):
        ...         return log_weights.mean(1)  # the ELBO of each group and data point
        >>> Mean(num_particles=5, num_groups=1, gradient="pathwise").num_particles
        5
    """

    whole = False

    def __init__(
        self,
        num_particles: int,
        num_groups: int,
        gradient: str,
        *,
        max_plate_nesting: int | float = math.inf,
        vectorize_particles: bool = True,
        chunk_size: int | None = None,
        retain_graph: bool | None = None,
    ) -> None:
        num_groups = as_count("num_groups", num_groups)
        if chunk_size is not None:
            chunk_size = as_count("chunk_size", chunk_size)
            if gradient != "pathwise" or not vectorize_particles:
                raise ValueError(
                    f"chunk_size={chunk_size} needs gradient='pathwise' and"
                    " vectorize_particles=True: leave it out."
                )
        if gradient == "stl":
            raise ValueError(
                "gradient='stl' is biased with several particles in a logarithm: take 'dreg'."
            )
        check_choice("gradient", gradient, ("pathwise", "dreg"))
        if gradient == "dreg" and not vectorize_particles:
            raise ValueError(
                "gradient='dreg' runs all particles at once: take vectorize_particles=True."
            )
        super().__init__(
            num_particles,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=vectorize_particles,
            retain_graph=retain_graph,
        )
        self.num_groups = num_groups
        self.gradient = gradient
        self.chunk_size = chunk_size

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the bound of each data point, for each group.

        Arguments:
            log_weights: The log weights, of shape ``[groups, particles, data points]``.

        Returns:
            A tensor of shape ``[groups, data points]``.
        """
        raise NotImplementedError

    def without_each(self, log_weights: Tensor) -> Tensor:
        """Returns the bound without each particle, the baseline of the particle's score.

        The shape is that of ``log_weights``.
        """
        raise NotImplementedError

    def derivative(self, log_weights: Tensor) -> Tensor:
        """Returns the bound's derivative in each log weight."""
        raise NotImplementedError

    def damping(self, derivative: Tensor) -> Tensor:
        """Returns the factor of each draw's gradient that makes it doubly reparameterized.

        Arguments:
            derivative: The bound's derivative in each log weight.
        """
        raise NotImplementedError

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the bound; there are no terms."""
        structure = self.structure(model, guide, *args, **kwargs)
        if self.gradient == "dreg" and torch.is_grad_enabled():
            value = doubly_reparameterized(self, model, guide, args, kwargs, structure)
        elif self.chunk_size is not None:
            value = in_chunks(self, model, guide, args, kwargs, self.chunk_size, structure)
        else:
            weights = draw_weights(
                model,
                guide,
                args,
                kwargs,
                self.num_groups,
                self.num_particles,
                structure,
                # The bound of one particle is its log weight, whatever the scales of its parts.
                scales="inside" if self.num_particles == 1 else "common",
            )
            value = pathwise(self, weights)
        return -value, {}

    def _check(self, model: Program, guide: Program, structure: Structure) -> None:
        if self.gradient == "dreg":
            check_vectorized(model, guide, structure, "gradient='dreg'", "leave it out")
        if self.chunk_size is not None:
            check_vectorized(model, guide, structure, "chunk_size", "leave it out")

    def _find_structure(
        self,
        model: Program,
        guide: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> Structure:
        structure = super()._find_structure(model, guide, args, kwargs)
        if structure.joint and structure.subsampled and self.num_particles > 1:
            warnings.warn(
                f"{name_of(model)} has one weight of all data, and a subsample only estimates"
                f" it, so {type(self).__name__} is no bound on log p(x) (Li and Turner 2016,"
                " section 4.3): ELBO() is one.",
                stacklevel=2,
            )
        return structure


class Renyi(WeightedBound):
    r"""The variational Renyi bound, for each data point.

    .. math:: \mathcal{L}_\alpha(x) = \mathbb{E}\bigg[ \frac{1}{1 - \alpha}
              \log \frac{1}{K} \sum_{k=1}^K
              \Big( \frac{p(x, z_k)}{q(z_k \mid x)} \Big)^{1 - \alpha} \bigg],
              \qquad z_k \sim q(z \mid x)

    alpha = 1 is the ELBO, 0 the importance weighted bound (``IWAE``), -inf the largest weight
    (VR-max), +inf the smallest. With alpha below 0 and many particles it is an upper bound on
    log p(x): for alpha = 1 - n the chi bound CUBO of order n (Dieng et al. 2017,
    arXiv:1611.00328). It is for measurements, because the loss is minus the bound: a guide that
    minimizes it is trained by ``FDivergence("chi2")``. (Li and Turner 2016, arXiv:1602.02311,
    eq. 7.)

    The weights are those of single data points: the indices of the plates that hold a latent
    variable and all sites that depend on it. A latent variable is shared if no plate holds it
    together with all sites that depend on it, because it lies outside all plates, or in a plate
    of groups, components or features that data are indexed by. The bound is then nested: log p
    - log q of the shared variables, plus the data points' bounds given these, in expectation
    over the shared variables. If all latent variables are shared, or there is no plate, the
    data set is the one data point. ``bound.structure(model, guide, x)`` says which of these
    holds.

    Scales multiply the bound of a data point; masks act on its weights. If there is one weight
    of all data, a subsample only estimates it, and the result is no bound; a warning says so.

    Draws that are not, or only in part, reparameterized (discrete ones, rejection samplers) get
    the score-function gradient, unbiased for the bound with K particles: a data point's bound
    minus the bound without the particle.

    Sites k of the model alone that it marks with ``infer={"enumerate": "parallel"}`` are summed
    out inside each weight, in the plates that they lie in:

    .. math:: \log p(x, z) = \log \sum_k p(k) \, p(z \mid k) \, p(x \mid z, k)

    Arguments:
        alpha: The order, any real number, ``-math.inf`` or ``math.inf``.
        num_particles: K, the number of draws inside the logarithm.
        num_groups: How many such bounds are averaged.
        gradient: ``"pathwise"``, or ``"dreg"`` for the doubly reparameterized gradient of the
            guide (Tucker et al. 2018, arXiv:1810.04152; for other orders than 0 Daudel et al.
            2022, arXiv:2210.06226), whose signal does not vanish in its noise as K grows. It
            needs a reparameterized guide and a finite alpha. A guide with several latent
            variables runs twice, and must have no dropout, which would differ between the
            runs. At alpha = 1 it is sticking the landing, which ``"stl"`` names too.
        options: ``max_plate_nesting``: how many dimensions the pair's plates take; found by a
            run without side effects if not given. ``vectorize_particles``: False runs the pair
            once for each particle, for programs that cannot take plates of particles.
            ``chunk_size``: how many particles of each group are in memory at a time, with
            ``"pathwise"``. Every chunk runs a second time, on the same noise, when all weights
            are known. So memory does not grow with K, the forward pass costs twice, and the
            statistics of batch normalization move twice. Data points must not share latent
            variables. ``retain_graph``: passed on to ``backward`` by ``loss_and_grads``.

    Raises:
        ValueError: If an argument is out of range.
        PairError: When called, if the sites of a data point have different scales, or the guide
            is not reparameterized and ``gradient`` is ``"dreg"``.

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
            raise ValueError(
                f"gradient='dreg' needs a finite alpha, got {alpha}: take 'pathwise'."
            )
        if gradient == "stl" and alpha == 1:
            gradient = "dreg"
        super().__init__(num_particles, num_groups, gradient, **options)
        self.alpha = alpha

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns the Renyi bound of each data point, for each group."""
        return renyi_bound(log_weights, self.alpha, dim=1)

    def without_each(self, log_weights: Tensor) -> Tensor:
        """Returns the bound without each particle, the baseline of the particle's score."""
        return without_each(log_weights, self.alpha, dim=1)

    def derivative(self, log_weights: Tensor) -> Tensor:
        """Returns the bound's derivative in each log weight: the softmax of (1 - alpha) log w."""
        return renyi_weights(log_weights, self.alpha, dim=1)

    def damping(self, derivative: Tensor) -> Tensor:
        """Returns alpha + (1 - alpha) times the derivative."""
        return self.alpha + (1 - self.alpha) * derivative


class IWAE(Renyi):
    r"""The importance weighted bound of each data point: ``Renyi`` of order 0.

    .. math:: \mathcal{L}_K(x) = \mathbb{E}\Big[ \log \frac{1}{K} \sum_{k=1}^K
              \frac{p(x, z_k)}{q(z_k \mid x)} \Big], \qquad z_k \sim q(z \mid x)

    (Burda et al. 2015, arXiv:1509.00519, eq. 8.) With ``num_groups`` it is MIWAE (Rainforth et
    al. 2018).

    Arguments:
        num_particles: K.
        num_groups: See ``Renyi``.
        gradient: See ``Renyi``.
        options: See ``Renyi``.

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

    def bound(self, log_weights: Tensor) -> Tensor:
        """Returns log (1/K) sum_k w_k of each data point, for each group."""
        return torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])


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
        options: See ``Renyi``.

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
        """Returns the combined bound of each data point, for each group."""
        return self._mixed(renyi_bound, log_weights)

    def without_each(self, log_weights: Tensor) -> Tensor:
        """Returns the bound without each particle, the baseline of the particle's score."""
        return self._mixed(without_each, log_weights)

    def derivative(self, log_weights: Tensor) -> Tensor:
        """Returns the bound's derivative in each log weight."""
        return self._mixed(renyi_weights, log_weights)

    def damping(self, derivative: Tensor) -> Tensor:
        """Returns the damped derivative divided by the derivative.

        The ELBO's part of it is damped by 1, the IWAE's part by itself.
        """
        elbo = self.beta / self.num_particles
        iwae = derivative - elbo
        tiny = torch.finfo(derivative.dtype).tiny
        damped: Tensor = elbo + (1 - self.beta) * (iwae / max(1 - self.beta, tiny)) ** 2
        return damped / derivative.clamp(min=tiny)

    def _mixed(self, function: Callable[..., Tensor], log_weights: Tensor) -> Tensor:
        elbo = function(log_weights, 1.0, dim=1)
        iwae = function(log_weights, 0.0, dim=1)
        return self.beta * elbo + (1 - self.beta) * iwae


class PIWAE(IWAE):
    r"""The partially importance weighted autoencoder: other bounds for the model and the guide.

    .. math:: \nabla_\theta \log \frac{1}{M K} \sum_{m, k} w_{mk}, \qquad
              \nabla_\phi \frac{1}{M} \sum_m \log \frac{1}{K} \sum_k w_{mk}

    The model follows the bound with all M K particles, which is tighter. The guide follows the
    mean of the M bounds with K particles, whose gradient has a better signal-to-noise ratio.
    The loss is minus the model's bound. The guide must be reparameterized, and data points must
    not share latent variables. (Rainforth et al. 2018, arXiv:1802.04537, section 5.)

    Arguments:
        num_particles: K, the particles of a group.
        num_groups: M.
        max_plate_nesting: How many dimensions the pair's plates take; found by a run without
            side effects if not given.
        retain_graph: Passed on to ``backward`` by ``loss_and_grads``.

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

    def _check(self, model: Program, guide: Program, structure: Structure) -> None:
        check_vectorized(model, guide, structure, "PIWAE", TAKE_IWAE)

    def loss_and_terms(
        self, model: Program, guide: Program, *args: object, **kwargs: object
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns minus the model's bound; there are no terms."""
        structure = self.structure(model, guide, *args, **kwargs)
        in_plate, guide_in_plate = in_plates(
            model, guide, self.num_groups, self.num_particles, structure
        )
        drawn = poutine.trace(guide_in_plate).get_trace(*args, **kwargs)
        sites = reparameterized(drawn, "PIWAE", "take IWAE")
        draws = {name: site["value"] for name, site in sites.items()}
        views = views_of(sites)
        given = with_values(drawn, views)
        model_trace = run_model(in_plate, given, args, kwargs, structure)
        weights = weigh(model, model_trace, drawn, structure)
        if weights.shared is not None:
            raise PairError(
                "PIWAE is for latent variables of data points, and data points share"
                f" {structure.shared}: take IWAE."
            )

        values = []
        joint = []
        guide_joint = []
        log_guide = []
        for group in weights.groups:
            log_weights = group.log_weights.detach()
            together = log_weights.flatten(0, 1).unsqueeze(0)
            values.append((group.scale * self.bound(together)).sum())
            derivative = self.derivative(together).view_as(log_weights)
            joint.append((group.scale * derivative * group.log_joint).sum())
            apart = group.scale * self.derivative(log_weights) / self.num_groups
            guide_joint.append((apart * group.log_joint).sum())
            log_guide.append((apart * group.log_guide).sum())

        # The gradient through the draws is that of the guide's bound. The gradient of the
        # model's bound ends at the views.
        through_draws = chain_rule(sum_of(guide_joint), views, draws)
        for view in views.values():
            scale_gradient(view, 0.0)
        surrogate = sum_of(joint) - sum_of(log_guide) + through_draws
        return -(sum_of(values) + (surrogate - surrogate.detach())), {}
