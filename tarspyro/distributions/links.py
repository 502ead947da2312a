"""Links: transforms from a network's outputs to a family's parameters."""

__all__ = ["Direction", "Positive", "is_identity", "link_to"]

import math

import torch
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Transform,
    constraints,
    transform_to,
)

# Within these the link is the exponential. They are far outside of what a trained network
# computes, and far inside of what single precision holds.
_LOWEST = -20.0
_HIGHEST = 20.0

_ABOVE = (type(constraints.positive), type(constraints.nonnegative))


class Positive(Transform):
    r"""An exponential that neither overflows nor vanishes.

    .. math:: f(u) = e^u \quad (|u| \le c), \qquad
              f(u) = e^c (1 + u - c) \quad (u > c), \qquad
              f(u) = \frac{e^{-c}}{1 - u - c} \quad (u < -c), \qquad c = 20

    The function and its derivative are continuous. Far from the data, where a network is
    before its first steps, a plain exponential is infinite or zero, and the loss with it.

    Example:
        >>> Positive()(torch.tensor([0.0, 1000.0, -1000.0])).log()
        tensor([  0.0000,  26.8886, -26.8886])
    """

    domain = constraints.real
    codomain = constraints.positive
    bijective = True
    sign = +1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Positive)

    def __hash__(self) -> int:
        return hash(Positive)

    def _call(self, x: Tensor) -> Tensor:
        # Almost always all numbers are inside. Then this is one operation in place of ten.
        if _can_be_read(x) and torch.equal(x, x.detach().clamp(_LOWEST, _HIGHEST)):
            return x.exp()
        inside = x.clamp(_LOWEST, _HIGHEST)
        above = torch.relu(x - _HIGHEST)
        below = torch.relu(_LOWEST - x)
        return inside.exp() * (1 + above) / (1 + below)

    def _inverse(self, y: Tensor) -> Tensor:
        log = y.log()
        above = _HIGHEST + y / math.exp(_HIGHEST) - 1
        below = _LOWEST + 1 - math.exp(_LOWEST) / y
        return torch.where(log > _HIGHEST, above, torch.where(log < _LOWEST, below, log))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the logarithm of the derivative."""
        inside = x.clamp(_LOWEST, _HIGHEST)
        below = torch.relu(_LOWEST - x)
        return inside - 2 * torch.log1p(below)


class Direction(Transform):
    r"""The direction of a vector, :math:`u / \lVert u \rVert`; that of zero is the first axis.

    Example:
        >>> Direction()(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]])
    """

    domain = constraints.real_vector
    codomain = sphere
    bijective = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Direction)

    def __hash__(self) -> int:
        return hash(Direction)

    def _call(self, x: Tensor) -> Tensor:
        # Scaled first, because squares overflow and vanish.
        size = x.detach().abs().amax(-1, keepdim=True)
        zero = size == 0
        x = x / torch.where(zero, 1.0, size)
        first = torch.cat([x[..., :1] + zero.to(x.dtype), x[..., 1:]], -1)
        direction: Tensor = first / torch.linalg.vector_norm(first, dim=-1, keepdim=True)
        return direction

    def _inverse(self, y: Tensor) -> Tensor:
        return y


def link_to(constraint: constraints.Constraint) -> Transform:
    """Returns the transform from real numbers to a parameter's domain.

    It is torch's ``transform_to(constraint)``, with ``Positive`` in place of an exponential, and
    ``Direction`` for unit vectors.

    Raises:
        NotImplementedError: If there is none.
    """
    if isinstance(constraint, _ABOVE):
        bound = constraint.lower_bound
        return (
            Positive()
            if bound == 0
            else ComposeTransform([Positive(), AffineTransform(bound, 1)])
        )
    if constraint is sphere:
        return Direction()
    transform: Transform = transform_to(constraint)
    return transform


def _can_be_read(x: Tensor) -> bool:
    """Returns whether the numbers of a tensor can be read at once, from the CPU's memory.

    A recorded or transformed function must not depend on them, and reading from a GPU waits.
    """
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None  # torch.jit.trace
        and not torch._C._len_torch_dispatch_stack()  # such as that of make_fx
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def is_identity(transform: Transform) -> bool:
    """Returns whether a link leaves real numbers as they are."""
    return isinstance(transform, ComposeTransform) and not transform.parts
