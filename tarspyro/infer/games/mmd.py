"""The maximum mean discrepancy of two distributions, and its kernels."""

__all__ = ["GaussianKernel", "InverseMultiquadratic", "mmd"]

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tarspyro.modules import Configurable


class _Radial(Configurable):
    """A kernel of the distance alone, summed over scales."""

    def __init__(self, scales: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.scales = tuple(scales)
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be positive numbers, at least one, got {scales}.")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the matrix k(x_i, y_j) of rows x and rows y, of shapes (N, D) and (M, D)."""
        squares = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(-1)
        kernels = [self.of(squares, scale, x.shape[1]) for scale in self.scales]
        return torch.stack(kernels).sum(0)

    def of(self, squares: Tensor, scale: float, size: int) -> Tensor:
        """Returns the kernel of one scale at squared distances between vectors of a size."""
        raise NotImplementedError


class GaussianKernel(_Radial):
    r"""The Gaussian kernel, summed over scales.

    .. math:: k(x, y) = \sum_s \exp(-\|x - y\|^2 / 2 s^2)

    Arguments:
        scales: The scales s.

    Raises:
        ValueError: If a scale is not positive, or there is none.

    Example:
        >>> GaussianKernel()(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.3679]])
    """

    def of(self, squares: Tensor, scale: float, size: int) -> Tensor:
        return (-squares / (2 * scale**2)).exp()


class InverseMultiquadratic(_Radial):
    r"""The inverse multiquadratic kernel, summed over scales.

    .. math:: k(x, y) = \sum_s \frac{C_s}{C_s + \|x - y\|^2}, \qquad C_s = 2 D s^2

    so that C is the expected squared distance of two draws of N(0, s^2 I) in D dimensions, as
    in section 4 of Tolstikhin et al. (2017, arXiv:1711.01558). Its heavy tails give gradients
    to codes that are far away, too.

    Arguments:
        scales: The scales s.

    Raises:
        ValueError: If a scale is not positive, or there is none.

    Example:
        >>> InverseMultiquadratic()(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        tensor([[1.0000, 0.5000]])
    """

    def of(self, squares: Tensor, scale: float, size: int) -> Tensor:
        constant = 2 * size * scale**2
        return constant / (constant + squares)


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: Callable[[Tensor, Tensor], Tensor],
    counted: Tensor | None = None,
) -> Tensor:
    r"""Returns an unbiased estimate of the squared maximum mean discrepancy.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j)
              + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
              - \frac{2}{nm} \sum_{i,j} k(x_i, y_j)

    A draw is never compared with itself, so the estimate may be negative. (Gretton et al.
    2012, A Kernel Two-Sample Test, eq. 3.)

    Arguments:
        x: Draws of one distribution, of shape (N, *event).
        y: Draws of the other, of shape (M, *event).
        kernel: A function from (N, D) and (M, D) to (N, M), such as ``GaussianKernel()``.
        counted: Which of N pairs of rows count, booleans of shape (N,), where M is N; all of
            them if not given. If fewer than two do, the discrepancy is 0.

    Raises:
        ValueError: If there are fewer than two draws of one of them, or ``counted`` has
            another shape.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> mmd(x, x, GaussianKernel())  # e^-2 + e^-2 - (2 + 2 e^-2) / 2
        tensor(-0.8647)
    """
    if min(len(x), len(y)) < 2:
        raise ValueError(
            "mmd needs at least two draws of each distribution, x and y, got"
            f" {len(x)} and {len(y)}."
        )
    if counted is None:
        return _mmd_of_all(x.flatten(1), y.flatten(1), kernel)
    if counted.shape != x.shape[:1] or counted.shape != y.shape[:1]:
        raise ValueError(
            f"counted must have one entry for each row of x and of y, got {len(x)} and"
            f" {len(y)} rows and counted of shape {tuple(counted.shape)}."
        )
    return _mmd_of_some(x.flatten(1), y.flatten(1), kernel, counted)


def _mmd_of_all(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    def within(draws: Tensor) -> Tensor:
        pairs = kernel(draws, draws)
        return (pairs.sum() - pairs.diagonal().sum()) / (len(draws) * (len(draws) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def _mmd_of_some(
    x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor], counted: Tensor
) -> Tensor:
    # Weights of 0 and 1 in place of a selection, whose size would be read from the device.
    weights = counted.to(x.dtype)
    number = weights.sum()
    # A row that does not count may hold NaN, and NaN times zero is NaN.
    x = torch.where(counted.unsqueeze(-1), x, 0.0)
    y = torch.where(counted.unsqueeze(-1), y, 0.0)

    def total(pairs: Tensor) -> Tensor:
        return weights @ pairs @ weights

    def within(draws: Tensor) -> Tensor:
        pairs = kernel(draws, draws)
        different = total(pairs) - weights @ pairs.diagonal()
        return different / (number * (number - 1)).clamp(min=1)

    discrepancy = within(x) + within(y) - 2 * total(kernel(x, y)) / (number**2).clamp(min=1)
    return torch.where(number > 1, discrepancy, 0.0)
