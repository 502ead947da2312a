"""Mixtures of Gaussians in the plane: data on which one sees which modes a generator leaves
out.
"""

__all__ = ["Modes", "grid", "ring"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tarspyro.arguments import as_count, as_seed, check_positive


@dataclass(frozen=True)
class Modes:
    """Points of a mixture of equally likely round Gaussians.

    Attributes:
        x: The points, of shape (N, 2).
        y: The mode of each point, of shape (N,).
        means: The means of the modes, of shape (K, 2).
        scale: The standard deviation of each mode in each direction.
    """

    x: Tensor
    y: Tensor
    means: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns the log-density of the mixture at points of shape (N, 2), in nats."""
        # By differences: torch's default subtracts squared norms, and modes are narrow beside
        # their distances.
        distances = torch.cdist(x, self.means, compute_mode="donot_use_mm_for_euclid_dist")
        squares = distances**2 / (2 * self.scale**2)
        normalizer = math.log(len(self.means) * 2 * math.pi * self.scale**2)
        return (-squares).logsumexp(-1) - normalizer


def ring(
    num: int, *, modes: int = 8, radius: float = 2.0, scale: float = 0.02, seed: int = 0
) -> Modes:
    """Returns points around the corners of a regular polygon: 8 Gaussians on a circle if
    nothing else is said.

    As in Metz et al. (2016), Unrolled Generative Adversarial Networks, arXiv:1611.02163.

    Arguments:
        num: How many points.
        modes: How many Gaussians.
        radius: The circle's.
        scale: The standard deviation of each Gaussian.
        seed: The seed of the points.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> ring(100).x.shape
        torch.Size([100, 2])
    """
    num, modes = as_count("num", num), as_count("modes", modes)
    _check(radius=radius, scale=scale)
    angles = 2 * math.pi * torch.arange(modes) / modes
    return _around(radius * torch.stack([angles.cos(), angles.sin()], 1), num, scale, seed)


def grid(
    num: int, *, side: int = 5, step: float = 2.0, scale: float = 0.05, seed: int = 0
) -> Modes:
    """Returns points around those of a square grid, centred at zero: 25 Gaussians if nothing
    else is said.

    As in Srivastava et al. (2017), VEEGAN, arXiv:1705.07761.

    Arguments:
        num: How many points.
        side: How many Gaussians there are in a row.
        step: The distance of neighbours.
        scale: The standard deviation of each Gaussian.
        seed: The seed of the points.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> len(grid(100).means)
        25
    """
    num, side = as_count("num", num), as_count("side", side)
    _check(step=step, scale=scale)
    places = step * (torch.arange(side) - (side - 1) / 2)
    return _around(torch.cartesian_prod(places, places), num, scale, seed)


def _around(means: Tensor, num: int, scale: float, seed: int) -> Modes:
    generator = torch.Generator().manual_seed(as_seed(seed))
    y = torch.randint(len(means), (num,), generator=generator)
    return Modes(means[y] + scale * torch.randn(num, 2, generator=generator), y, means, scale)


def _check(**positive: float) -> None:
    for name, value in positive.items():
        check_positive(name, value)
