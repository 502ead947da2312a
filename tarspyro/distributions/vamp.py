"""The variational mixture of posteriors prior."""

__all__ = ["VampPrior"]

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import Independent, TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Normal, constraints
from torch.nn.functional import linear

from tarspyro.arguments import as_count, format_value
from tarspyro.distributions.drawing import check_parameters, unsqueezed
from tarspyro.modules import Configurable
from tarspyro.nn.folding import as_events, event_shapes
from tarspyro.types import Distribution, Shape


class VampPrior(Configurable):
    r"""The VampPrior: the mixture of the guide's posteriors at K learned pseudo-inputs.

    .. math:: p(z) = \frac1K \sum_{k=1}^K q(z \mid u_k)

    It takes the place of any prior. Model and guide share the module of the posterior, which
    the prior's term trains too. A context is passed to the posterior: :math:`p(z \mid c) =
    \frac1K \sum_k q(z \mid u_k, c)`. The KL has no closed form, and bounds estimate it by
    sampling. The pseudo-inputs pass through the network in each step, as a batch of their own,
    and are part of the statistics of normalization layers.

    Arguments:
        posterior: The posterior q(z | x) or q(z | x, c), such as a ``Conditional`` of any
            family.
        pseudo_inputs: The initial pseudo-inputs, a tensor of shape ``(K, *x)``, such as K rows
            of the training data, or noise around their mean. If it is only this shape, they
            are drawn near the lower bound: at 0.05 of the range, with a standard deviation of
            0.01; without bounds from N(0, 1).
        bounds: The range of the data, to which a hard tanh limits the pseudo-inputs; None for
            no bounds.

    Raises:
        TypeError: If ``posterior`` is not a module, or ``pseudo_inputs`` is neither a tensor
            nor a shape.
        ValueError: If there are no pseudo-inputs, or the bounds are in the wrong order.

    References:
        Tomczak and Welling (2017), VAE with a VampPrior, arXiv:1705.07120, eq. 9.

    Example:
        >>> import pyro.distributions as dist
        >>> from tarspyro import Conditional, guides, models
        >>> from tarspyro.nn import MLP
        >>> posterior = Conditional(dist.Normal, MLP(64, [32]), 2)
        >>> likelihood = Conditional(dist.Bernoulli, MLP(2, [32]), 64)
        >>> p = models.VAE(VampPrior(posterior, (50, 64)), likelihood)
        >>> q = guides.VAE(posterior)
        >>> p
        VAE: p(x, z) = p(x | z) p(z)
          likelihood: p(x | z) = Bernoulli(logits) of shape (64,) from MLP(2 -> 32, ReLU)
          prior: p(z) = mixture of 50 posteriors, each Normal(loc, scale) of shape (2,) from
              MLP(64 -> 32, ReLU)
    """

    def __init__(
        self,
        posterior: Callable[..., Distribution],
        pseudo_inputs: Tensor | Sequence[int],
        *,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(posterior, nn.Module):
            raise TypeError(
                "posterior must be a module, the guide's own such as a Conditional, got"
                f" {format_value(posterior)}."
            )
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(
                f"bounds must be (low, high) with low < high, or None, got {bounds}."
            )
        if not isinstance(pseudo_inputs, Tensor | Sequence):
            raise TypeError(
                "pseudo_inputs must be a tensor (K, *x) or its shape, got"
                f" {format_value(pseudo_inputs)}."
            )
        if isinstance(pseudo_inputs, Tensor):
            check_parameters(pseudo_inputs=pseudo_inputs)
            shape = tuple(pseudo_inputs.shape)
        else:
            sizes = enumerate(pseudo_inputs)
            shape = tuple(as_count(f"pseudo_inputs[{i}]", size, 0) for i, size in sizes)
        if not shape or shape[0] < 1:
            raise ValueError(
                "pseudo_inputs must be a tensor (K, *x) or its shape, with K of at least 1, got"
                f" shape {shape}."
            )
        self.posterior = posterior
        self.bounds = bounds
        if isinstance(pseudo_inputs, Tensor):
            initial = pseudo_inputs.detach().clone()
        else:
            initial = _initial(shape, bounds)
        self.free_pseudo_inputs = nn.Parameter(initial)
        # The configuration file holds the shape only; the values are saved with the weights.
        arguments = ((posterior, shape), {"bounds": bounds})
        object.__setattr__(self, "constructor_arguments", arguments)

    @property
    def pseudo_inputs(self) -> Tensor:
        """The pseudo-inputs, limited to the bounds, of shape ``(K, *x)``."""
        if self.bounds is None:
            return self.free_pseudo_inputs
        return self.free_pseudo_inputs.clamp(*self.bounds)

    def forward(self, *context: Tensor) -> Distribution:
        """Returns the mixture, given the values of the posterior's context, if any."""
        u = self.pseudo_inputs
        inputs = (u, *context)
        network = getattr(self.posterior, "trunk", None) or self.posterior
        events = as_events(inputs, event_shapes(network, inputs))
        # The components are the last dimension of the batch, along which a context is constant.
        contexts = [value.unsqueeze(-1 - ndims) for value, ndims in events[1:]]

        def chosen(rows: Size) -> Distribution:
            index = torch.randint(len(u), rows, device=u.device)
            distribution: Distribution = self.posterior(u[index], *context)
            return distribution

        return _Mixture(self.posterior(u, *contexts), chosen)

    @property
    def headline(self) -> str:
        """The number of posteriors, and the distribution of each."""
        each = getattr(self.posterior, "headline", type(self.posterior).__name__)
        return f"mixture of {len(self.free_pseudo_inputs)} posteriors, each {each}"

    def __repr__(self) -> str:
        return f"mixture of {len(self.free_pseudo_inputs)} posteriors, each {self.posterior!r}"


def _initial(shape: tuple[int, ...], bounds: tuple[float, float] | None) -> Tensor:
    noise = torch.randn(shape)
    if bounds is None:
        return noise
    low, high = bounds
    return low + (high - low) * (0.05 + 0.01 * noise)


class _Mixture(TorchDistribution):
    """A mixture with equal weights.

    Arguments:
        components: The distribution of the components, the last dimension of its batch.
        chosen: Returns a distribution of the given batch shape, with a randomly chosen component
            in each row.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, components: Distribution, chosen: Callable[[Size], Distribution]
    ) -> None:
        self.components: Any = components
        self._chosen = chosen
        super().__init__(
            components.batch_shape[:-1], components.event_shape, validate_args=False
        )

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """The support of the components."""
        support: constraints.Constraint = self.components.support
        return support

    def expand(self, batch_shape: Shape, _instance: object = None) -> "_Mixture":
        """Returns the mixture with its batch expanded; the components are not expanded."""
        new: _Mixture = self._get_checked_instance(_Mixture, _instance)
        new.components = self.components
        new._chosen = self._chosen
        super(_Mixture, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws from randomly chosen components, without gradients."""
        with torch.no_grad():
            draws: Tensor = self._chosen(Size(sample_shape) + self.batch_shape).sample()
            return draws

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(value), in nats."""
        components = self.components
        base = components.base_dist if isinstance(components, Independent) else components
        is_vector_normal = isinstance(base, Normal) and components.event_shape
        if is_vector_normal and not components.batch_shape[1:]:
            z = value.flatten(-self.event_dim)
            each = _log_normals(z, base.loc.flatten(1), base.scale.flatten(1))
        else:
            each = components.log_prob(unsqueezed(value, -1 - self.event_dim))
        return each.logsumexp(-1) - math.log(each.shape[-1])

    @property
    def mean(self) -> Tensor:
        """The mean."""
        mean: Tensor = self.components.mean.mean(-1 - self.event_dim)
        return mean.expand(self.batch_shape + self.event_shape)


def _log_normals(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Returns the log-densities, of shape ``(*, K)``, of values ``(*, D)`` under K Normals.

    The square in :math:`\sum_d (z_d - \mu_{kd})^2 / \sigma_{kd}^2` is expanded, so the sum is
    a product of matrices. This takes a tenth of the time of the differences, and no memory for
    them. The terms cancel, and are computed in double precision.
    """
    z = value.double()
    mu = loc.double()
    precision = scale.double() ** -2
    constant = (mu.square() * precision - precision.log() + math.log(2 * math.pi)).sum(-1)
    squares = linear(
        torch.cat([z.square(), z], -1),
        torch.cat([precision, -2 * mu * precision], -1),
        constant,
    )
    return (-0.5 * squares).to(value.dtype)
