"""Distributions of transformed draws, which remember where they came from."""

__all__ = ["TransformedDistribution", "as_module", "flattened"]

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor, nn
from torch import distributions as td

from tarspyro.distributions.drawing import CarriesScore, Draw, recall, remember
from tarspyro.distributions.prior import map_tensors

_INVERSE = type(td.ExpTransform().inv)  # torch keeps its name to itself


class TransformedDistribution(CarriesScore, dist.TransformedDistribution):  # type: ignore[misc]
    r"""The law of :math:`z = t_n(\dots t_1(x))`, with x from a base distribution.

    .. math:: \log q(z) = \log q_0(x) - \sum_i \log |\det J_{t_i}|

    As Pyro's, but every draw remembers its x and its determinants. Pyro's transforms remember
    the latest call alone, and without that an inverse is computed, which costs D runs of an
    autoregressive network, and which planar and radial transforms do not have. Other values
    than draws are inverted here too. Nothing stays in the transforms, so that modules which
    hold them can be copied.

    Arguments:
        base_distribution: The law of x.
        transforms: The transforms, the first to be applied first.

    Raises:
        NotImplementedError: When a value that is no draw of it is scored, and a transform has
            no inverse.

    References:
        Rezende and Mohamed (2015), Variational Inference with Normalizing Flows,
        arXiv:1505.05770, eq. 7.

    Example:
        >>> flow = TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.Planar(2)])
        >>> first, second = flow.rsample((5,)), flow.rsample((5,))
        >>> flow.log_prob(first).shape
        torch.Size([5])
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Returns reparameterized draws, if the base's are."""
        return self._push(self.base_dist.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
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
        density: Tensor = self.base_dist.log_prob(x)
        independent = len(self.event_shape) - len(self.base_dist.event_shape)
        summed: Tensor = sum_rightmost(density, independent)
        return summed - log_det

    @property
    def partly_reparameterized(self) -> bool:
        """Whether the base's draws need a score beside their pathwise derivative."""
        base = self._innermost
        return not self.has_rsample or (
            isinstance(base, CarriesScore) and base.partly_reparameterized
        )

    @property
    def _innermost(self) -> Any:
        base = self.base_dist
        while isinstance(base, td.Independent):
            base = base.base_dist
        return base

    def _made(self, draw: Draw) -> bool:
        """Whether a draw is this flow's, and what it remembers has the gradients that are
        asked for.
        """
        transforms, with_gradients = draw.maker
        return transforms is self.transforms and (
            with_gradients or not torch.is_grad_enabled()
        )

    def _push(self, x: Tensor) -> Tensor:
        event_dims = self._event_dims()
        value, log_det = x, x.new_zeros(())
        for transform, event_dim in zip(self.transforms, event_dims, strict=True):
            with _running(transform, backwards=False):
                image = transform(value)
            log_det = log_det + sum_rightmost(
                transform.log_abs_det_jacobian(value, image), event_dim
            )
            value = image
        _forget(self.transforms)

        def score() -> Tensor:
            base = self._innermost
            function: Tensor = base.score_parts(x).score_function
            summed: Tensor = sum_rightmost(
                function, len(self.event_shape) - len(base.event_shape)
            )
            return summed

        return remember(
            value,
            parts=(x, log_det),
            maker=(self.transforms, torch.is_grad_enabled()),
            score=score,
        )

    def _pull(self, value: Tensor) -> tuple[Tensor, Tensor]:
        log_det = value.new_zeros(())
        for transform, event_dim in zip(
            self.transforms[::-1], self._event_dims()[::-1], strict=True
        ):
            with _running(transform, backwards=True):
                origin = transform.inv(value)
            log_det = log_det + sum_rightmost(
                transform.log_abs_det_jacobian(origin, value), event_dim
            )
            value = origin
        _forget(self.transforms)
        return value, log_det

    def _event_dims(self) -> list[int]:
        """How many dimensions each transform's determinants still have to be summed over."""
        event_dim, dims = len(self.event_shape), []
        for transform in self.transforms[::-1]:
            event_dim += transform.domain.event_dim - transform.codomain.event_dim
            dims.append(event_dim - transform.domain.event_dim)
        return dims[::-1]


@contextlib.contextmanager
def _running(transform: Any, *, backwards: bool) -> Iterator[None]:
    try:
        yield
    except (KeyError, NotImplementedError):  # the one is what Pyro raises, the other torch
        name = type(transform if backwards else transform.inv).__name__
        lost = (
            "nothing but the flow's own draws has a density"
            if backwards
            else "the flow cannot be drawn from"
        )
        raise NotImplementedError(
            f"{name} has no inverse, so {lost}: take another transform, such as"
            " affine_autoregressive, or the pathwise gradient in a guide, or the transform's"
            " .inv in a prior that only scores."
        ) from None


def _forget(transforms: Sequence[Any]) -> None:
    """Empties what transforms keep of their latest call: tensors of a graph, which cannot be
    copied.
    """
    for transform in flattened(transforms):
        owner = transform.inv if isinstance(transform, _INVERSE) else transform
        for part in owner.modules() if isinstance(owner, nn.Module) else (owner,):
            for name, value in vars(part).items():
                if name.startswith("_cache") and (
                    torch.is_tensor(value) or isinstance(value, tuple)
                ):
                    setattr(part, name, (None, None) if name == "_cached_x_y" else None)


def flattened(transforms: Iterable[Any]) -> Iterator[Any]:
    """Yields the transforms, and the parts of composed ones."""
    for transform in transforms:
        if isinstance(transform, td.ComposeTransform):
            yield from flattened(transform.parts)
        else:
            yield transform


class _Held(nn.Module):
    """A transform that is no module, as one: its numbers go where the module goes."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Held":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        map_tensors(self.transform, fn)
        return self

    def forward(self) -> Any:
        return self.transform


class _Inverse(nn.Module):
    """The inverse of a transform that is a module."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self) -> Any:
        return self.transform.inv


def as_module(transform: Any) -> nn.Module:
    """Returns the transform itself if it is a module, else a module that returns it."""
    if isinstance(transform, nn.Module):
        return transform
    inverse = transform.inv if isinstance(transform, _INVERSE) else None
    return _Inverse(inverse) if isinstance(inverse, nn.Module) else _Held(transform)
