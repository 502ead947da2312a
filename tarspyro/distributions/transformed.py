"""Transformed distributions, whose draws carry their origin and log-determinant."""

__all__ = ["TransformedDistribution", "as_module", "flattened"]

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalTransform
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch import distributions as td

from tarspyro.distributions.drawing import CarriesScore, Draw, recall, remember
from tarspyro.distributions.prior import map_tensors
from tarspyro.types import Distribution, Shape

# The class of inverse transforms, which is private in torch.
_INVERSE = type(td.ExpTransform().inv)

_Transform = TypeVar("_Transform")


class TransformedDistribution(CarriesScore, dist.TransformedDistribution):  # type: ignore[misc]
    r"""The distribution of :math:`z = t_n(\dots t_1(x))`, with x from a base distribution.

    .. math:: \log q(z) = \log q_0(x) - \sum_i \log |\det J_{t_i}|

    Each draw carries its x and the log-determinant, so ``log_prob`` of a draw needs no inverse.
    Pyro's own class caches the latest draw only, in the transforms. An inverse costs D runs of
    an autoregressive network, and planar and radial transforms have none. Values other than
    draws are inverted. The caches of the transforms are emptied, so modules with transforms can
    be copied.

    Arguments:
        base_distribution: The distribution of x.
        transforms: The transforms, in the order in which they are applied.

    Raises:
        NotImplementedError: When a value that is not a draw is scored, and a transform has no
            inverse.

    References:
        Rezende and Mohamed (2015), Variational Inference with Normalizing Flows,
        arXiv:1505.05770, eq. 7.

    Example:
        >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> flow = TransformedDistribution(base, [dist.transforms.Planar(2)])
        >>> first = flow.rsample((5,))
        >>> second = flow.rsample((5,))
        >>> flow.log_prob(first).shape
        torch.Size([5])
    """

    remembers_draws = True

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws, reparameterized if those of the base are."""
        return self._push(self.base_dist.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Returns draws without gradients."""
        with torch.no_grad():
            return self._push(self.base_dist.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log q(value), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        draw = recall(value)
        if draw is not None and draw.parts is not None and self._made(draw):
            x, log_det = draw.parts
        else:
            x, log_det = self._pull(value)
        independent = self._origin_ndims - len(self.base_dist.event_shape)
        density: Tensor = sum_rightmost(self.base_dist.log_prob(x), independent)
        return density - log_det

    @property
    def partly_reparameterized(self) -> bool:
        """Whether the pathwise derivative of a base draw must be completed by its score."""
        if not self.has_rsample:
            return True
        base = self._innermost
        return isinstance(base, CarriesScore) and base.partly_reparameterized

    @property
    def _innermost(self) -> Distribution:
        base = self.base_dist
        while isinstance(base, td.Independent):
            base = base.base_dist
        return base  # type: ignore[no-any-return]

    def _made(self, draw: Draw) -> bool:
        """Returns whether a draw is this flow's, and carries gradients if they are enabled."""
        transforms, with_gradients = draw.maker
        if transforms is not self.transforms:
            return False
        return with_gradients or not torch.is_grad_enabled()

    def _push(self, x: Tensor) -> Tensor:
        """Returns z, which carries x and the log-determinant."""
        z = x
        log_det = x.new_zeros(())
        for transform, event_dim in zip(self.transforms, self._event_dims(), strict=True):
            with _explaining(transform, backwards=False):
                image = transform(z)
            each = transform.log_abs_det_jacobian(z, image)
            log_det = log_det + sum_rightmost(each, event_dim)
            z = image
        _clear_caches(self.transforms)

        def score() -> Tensor:
            base = self._innermost
            independent = self._origin_ndims - len(base.event_shape)
            summed: Tensor = sum_rightmost(base.score_parts(x).score_function, independent)
            return summed

        maker = (self.transforms, torch.is_grad_enabled())
        return remember(z, parts=(x, log_det), maker=maker, score=score)

    def _pull(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x and the log-determinant."""
        log_det = z.new_zeros(())
        steps = zip(self.transforms[::-1], self._event_dims()[::-1], strict=True)
        for transform, event_dim in steps:
            with _explaining(transform, backwards=True):
                origin = transform.inv(z)
            each = transform.log_abs_det_jacobian(origin, z)
            log_det = log_det + sum_rightmost(each, event_dim)
            z = origin
        _clear_caches(self.transforms)
        return z, log_det

    @property
    def _origin_ndims(self) -> int:
        """The event dimensions of x, which may be other than those of z, as of a matrix."""
        ndims = len(self.event_shape)
        for transform in self.transforms:
            ndims += transform.domain.event_dim - transform.codomain.event_dim
        return ndims

    def _event_dims(self) -> list[int]:
        """Returns the number of dimensions to sum the log-determinants of each transform over."""
        event_dim = len(self.event_shape)
        dims = []
        for transform in self.transforms[::-1]:
            event_dim += transform.domain.event_dim - transform.codomain.event_dim
            dims.append(event_dim - transform.domain.event_dim)
        return dims[::-1]


@contextlib.contextmanager
def _explaining(transform: td.Transform, *, backwards: bool) -> Iterator[None]:
    """Explains the error of a transform without an inverse."""
    try:
        yield
    except (KeyError, NotImplementedError):  # Pyro raises KeyError, torch NotImplementedError
        name = type(transform if backwards else transform.inv).__name__
        consequence = (
            "the flow scores its own draws only" if backwards else "the flow has no draws"
        )
        raise NotImplementedError(
            f"{name} has no inverse, so {consequence}: use another transform, such as"
            " affine_autoregressive, or the pathwise gradient in a guide, or the transform's"
            " .inv in a prior that only scores."
        ) from None


def _clear_caches(transforms: Sequence[td.Transform]) -> None:
    """Empties the caches of transforms, because tensors of a graph cannot be copied."""
    for transform in flattened(transforms):
        owner = transform.inv if isinstance(transform, _INVERSE) else transform
        for part in owner.modules() if isinstance(owner, nn.Module) else (owner,):
            for name, value in vars(part).items():
                cached = torch.is_tensor(value) or isinstance(value, tuple)
                if name.startswith("_cache") and cached:
                    setattr(part, name, (None, None) if name == "_cached_x_y" else None)


def flattened(transforms: Iterable[_Transform]) -> Iterator[_Transform]:
    """Yields the transforms, with the parts of composed ones in their place."""
    for transform in transforms:
        if isinstance(transform, td.ComposeTransform):
            yield from flattened(transform.parts)  # type: ignore[misc]
        else:
            yield transform


class _TransformModule(nn.Module):
    """A transform that is not a module, as a module, with which its tensors move."""

    def __init__(self, transform: td.Transform | ConditionalTransform) -> None:
        super().__init__()
        self.transform = transform

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "_TransformModule":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        map_tensors(self.transform, fn)
        return self

    def forward(self) -> td.Transform | ConditionalTransform:
        return self.transform


class _InverseModule(nn.Module):
    """The inverse of a transform that is a module, as a module."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self) -> td.Transform:
        inverse: td.Transform = self.transform.inv  # type: ignore[assignment]
        return inverse


def as_module(transform: td.Transform | ConditionalTransform) -> nn.Module:
    """Returns the transform if it is a module, else a module that returns it when called."""
    if isinstance(transform, nn.Module):
        return transform
    inverse = transform.inv if isinstance(transform, _INVERSE) else None
    if isinstance(inverse, nn.Module):
        return _InverseModule(inverse)
    return _TransformModule(transform)
